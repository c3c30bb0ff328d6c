//! The machine by itself: a queue, a clock that the test sets, and a `save` that it plays.
#![allow(clippy::expect_used, clippy::unchecked_time_subtraction)] // a test may panic

mod failing;
mod long;
mod looking;
mod superseded;
mod unreadable;

use std::{borrow::Cow, sync::Arc, time::Duration};

use super::{Change, ChangeId, FailedSave, Gone, Ids, Limits, Queue, Settled};
use crate::read_through::keys::Key;

/// A change of a call: its place, its key and its value.
type Called = (u64, String, u32);

/// A queue of numbers with its clock.
struct Bench {
    queue: Queue<u32>,
    ids: Ids,
    now: Duration,
    /// What was saved, in this order.
    saved: Vec<(String, u32)>,
    dead: Vec<(String, u32)>,
    calls: usize,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self {
            queue: Queue::new(limits, 1),
            ids: Ids::default(),
            now: Duration::ZERO,
            saved: Vec::new(),
            dead: Vec::new(),
            calls: 0,
        }
    }

    fn change(&mut self, name: &str, value: u32) -> Change<u32> {
        Change {
            id: self.ids.next(self.now.as_millis() as u64),
            key: Key::new(0, name.as_bytes()),
            event: Cow::Borrowed("set"),
            payload: value,
            size: 4,
        }
    }

    fn add(&mut self, name: &str, value: u32) {
        let change = self.change(name, value);
        self.queue.add(self.now, change, None);
    }

    /// The changes of the next call, if one begins now.
    fn begin(&mut self) -> Option<(u64, Vec<Called>)> {
        let (call, places) = self.queue.begin(self.now)?;
        self.calls += 1;
        let shown = places.into_iter().map(|place| {
            let change = &self.queue.entry(place).expect("it is there").change;
            let name = String::from_utf8_lossy(&change.key.name).into_owned();
            (place, name, change.payload)
        });
        Some((call, shown.collect()))
    }

    fn names(&mut self) -> Option<(u64, Vec<String>)> {
        let (call, changes) = self.begin()?;
        let names = changes
            .into_iter()
            .map(|(_, name, value)| format!("{name}{value}"));
        Some((call, names.collect()))
    }

    fn fail(&mut self, call: u64) {
        if let Some(place) = self.queue.failed(self.now, call, &why()) {
            let entry = self.queue.bury(place, &why()).expect("it is there");
            let name = String::from_utf8_lossy(&entry.change.key.name).into_owned();
            self.dead.push((name, entry.change.payload));
        }
    }

    /// Plays `save` until nothing is due before `end`, or the queue is empty. True from `save`: it ends well.
    fn run(&mut self, end: Duration, mut save: impl FnMut(Duration, &[Called]) -> bool) {
        while let Some(due) = self.queue.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            let Some((call, changes)) = self.begin() else {
                continue;
            };
            if save(self.now, &changes) {
                self.saved
                    .extend(changes.into_iter().map(|(_, name, value)| (name, value)));
                self.queue.saved(call);
            } else {
                self.fail(call);
            }
        }
        self.now = end;
    }
}

fn why() -> Arc<FailedSave> {
    Arc::new(FailedSave {
        kind: "ValueError".into(),
        text: "no".into(),
    })
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_newer_change_takes_the_place_of_an_older_one() {
    let mut bench = Bench::new(Limits::default());
    bench.add("a", 1);
    bench.add("b", 1);
    bench.add("a", 2);
    assert_eq!(
        bench.names().map(|(_, names)| names),
        Some(vec!["a2".into(), "b1".into()])
    );
    // What is on its way is not touched: a third one stands behind it.
    bench.add("a", 3);
    bench.add("a", 4);
    assert!(bench.begin().is_none(), "one call at a time");
    let gone = bench.queue.saved(1);
    assert_eq!(gone.len(), 2);
    assert_eq!(bench.names().map(|(_, names)| names), Some(vec!["a4".into()]));
    bench.queue.saved(2);
    assert_eq!((bench.queue.len(), bench.queue.bytes()), (0, 0));
    assert_eq!(bench.queue.counts.coalesced, 2);
}

#[test]
fn without_coalescing_each_change_is_saved_in_its_order() {
    let limits = Limits {
        coalesce: false,
        batch: 2,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for (name, value) in [("a", 1), ("a", 2), ("b", 1), ("a", 3)] {
        bench.add(name, value);
    }
    bench.run(ms(0), |_, _| true);
    let expected = [("a", 1), ("a", 2), ("b", 1), ("a", 3)].map(|(name, value)| (name.to_owned(), value));
    assert_eq!(bench.saved, expected);
}

#[test]
fn a_batch_waits_for_its_interval_or_until_it_is_full() {
    let limits = Limits {
        batch: 3,
        interval: ms(100),
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    bench.now = ms(10);
    bench.add("a", 1);
    assert!(bench.begin().is_none());
    assert_eq!(bench.queue.next_due(), Some(ms(110)));
    bench.now = ms(60);
    bench.add("a", 2);
    assert_eq!(bench.queue.next_due(), Some(ms(110)), "the first of them counts");
    bench.add("b", 1);
    bench.add("c", 1);
    assert_eq!(bench.names().map(|(_, names)| names.len()), Some(3));
    bench.queue.saved(1);
    bench.add("d", 1);
    bench.now = ms(160);
    assert_eq!(bench.names().map(|(_, names)| names), Some(vec!["d1".into()]));
}

#[test]
fn calls_that_end_soon_gather_changes() {
    let limits = Limits {
        batch: 3,
        pace: ms(2),
        max_entries: 4,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    bench.now = ms(10);
    bench.add("a", 1);
    assert!(bench.begin().is_some(), "the first one waits for nothing");
    bench.queue.saved(1);
    bench.now = ms(11);
    bench.add("b", 1);
    assert!(bench.begin().is_none());
    assert_eq!(bench.queue.next_due(), Some(ms(12)));
    bench.add("c", 1);
    bench.add("d", 1);
    assert_eq!(
        bench.names().map(|(_, names)| names.len()),
        Some(3),
        "that is full"
    );
    // Who has run for longer than that is not waited for.
    bench.now = ms(13);
    bench.add("e", 1);
    bench.queue.saved(2);
    assert_eq!(bench.names().map(|(_, names)| names), Some(vec!["e1".into()]));
}

#[test]
fn a_full_queue_takes_what_replaces() {
    let limits = Limits {
        max_entries: 2,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    bench.add("a", 1);
    assert!(!bench.queue.is_full());
    bench.add("b", 1);
    assert!(bench.queue.is_full() && bench.queue.replaces(0, b"a") && !bench.queue.replaces(0, b"c"));
    let mut narrow = Bench::new(Limits {
        max_bytes: 500,
        ..Limits::default()
    });
    narrow.add("a", 1);
    narrow.add("b", 1);
    assert!(!narrow.queue.is_full());
    narrow.add("c", 1);
    assert!(narrow.queue.is_full());
    narrow.run(ms(0), |_, _| true);
    assert!(!narrow.queue.is_full());
}

#[test]
fn whoever_waits_is_told_when_his_change_or_a_newer_one_is_saved() {
    let mut bench = Bench::new(Limits::default());
    let first = bench.change("a", 1);
    bench.queue.add(bench.now, first, Some(7));
    let second = bench.change("a", 2);
    bench.queue.add(bench.now, second, Some(8));
    assert!(bench.queue.take_settled().is_empty());
    bench.run(ms(0), |_, _| true);
    assert_eq!(
        bench.queue.take_settled(),
        [(7, Settled::Saved), (8, Settled::Saved)]
    );
}

#[test]
fn a_replica_follows_by_what_is_gone() {
    let mut master = Bench::new(Limits::default());
    let mut replica = Bench::new(Limits::default());
    let both = |master: &mut Bench, replica: &mut Bench, name: &str, value: u32| {
        let change = master.change(name, value);
        replica.queue.add(replica.now, change.clone(), None);
        master.queue.add(master.now, change, None);
    };
    both(&mut master, &mut replica, "a", 1);
    both(&mut master, &mut replica, "b", 1);
    let (call, _) = master.begin().expect("a call");
    // The replica knows of no call: there the newer one takes the place.
    both(&mut master, &mut replica, "a", 2);
    assert_eq!((master.queue.len(), replica.queue.len()), (3, 2));
    for gone in master.queue.saved(call) {
        replica.queue.remove_up_to(&gone);
    }
    let left = |bench: &Bench| {
        bench
            .queue
            .changes()
            .map(|change| change.payload)
            .collect::<Vec<_>>()
    };
    assert_eq!((left(&master), left(&replica)), (vec![2], vec![2]));
    // A promoted one goes on.
    replica.run(ms(0), |_, _| true);
    assert_eq!(replica.saved, [("a".to_owned(), 2)]);
    let gone = Gone {
        key: Key::new(0, b"nobody"),
        id: ChangeId { ms: 9, seq: 9 },
    };
    replica.queue.remove_up_to(&gone);
}

#[test]
fn a_call_that_hangs_is_known() {
    let mut bench = Bench::new(Limits::default());
    bench.add("a", 1);
    let (call, _) = bench.begin().expect("a call");
    assert_eq!(bench.queue.overdue(ms(59_999)), None);
    assert_eq!(bench.queue.next_due(), Some(ms(60_000)));
    assert_eq!(bench.queue.overdue(ms(60_000)), Some(call));
    assert_eq!(bench.queue.overdue(ms(60_001)), None);
    bench.now = ms(60_002);
    bench.fail(call);
    bench.run(ms(70_000), |_, _| true);
    assert_eq!(bench.saved.len(), 1);
    // What comes of the old call is of no interest any more.
    assert!(bench.queue.saved(call).is_empty());
}

#[test]
fn a_server_that_is_no_master_any_more_calls_nothing_and_forgets_nothing() {
    let mut bench = Bench::new(Limits::default());
    bench.add("a", 1);
    let (call, _) = bench.begin().expect("a call");
    bench.queue.ground();
    assert!(bench.queue.saved(call).is_empty());
    assert_eq!(bench.queue.len(), 1);
    bench.run(ms(0), |_, _| true);
    assert_eq!(bench.saved.len(), 1);
}
