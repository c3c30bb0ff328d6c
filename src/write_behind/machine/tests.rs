//! The machine by itself: a queue, a clock that the test sets, and a `save` that it plays.
#![allow(clippy::expect_used, clippy::unchecked_time_subtraction)] // a test may panic

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use super::{Change, ChangeId, Failed, Gone, Ids, Limits, Queue, Settled};
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

fn why() -> Arc<Failed> {
    Arc::new(Failed {
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
fn calls_that_fail_come_again_after_longer_and_longer_rests() {
    let mut bench = Bench::new(Limits::default());
    bench.add("a", 1);
    let mut at = Vec::new();
    bench.run(Duration::from_secs(300), |now, _| {
        at.push(now);
        false
    });
    let rests: Vec<f64> = at
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_secs_f64())
        .collect();
    for (number, rest) in rests.iter().enumerate() {
        let most = (0.1 * f64::from(1 << number.min(20))).min(30.0);
        assert!(
            *rest <= most && *rest >= most / 2.0,
            "{number}: {rest}, at most {most}"
        );
    }
    assert!((10..30).contains(&rests.len()), "{}", rests.len());
    bench.run(Duration::from_secs(400), |_, _| true);
    assert_eq!(bench.saved.len(), 1);
}

#[test]
fn the_change_that_fails_is_found_by_halving_and_given_up() {
    let limits = Limits {
        max_tries: Some(3),
        has_dead_letters: true,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for number in 0..100 {
        bench.add(&format!("k{number}"), number);
    }
    bench.run(Duration::from_secs(60), |_, changes| {
        changes.iter().all(|(_, _, value)| *value != 63)
    });
    assert_eq!(bench.dead, [("k63".to_owned(), 63)]);
    assert_eq!(bench.saved.len(), 99);
    assert!(bench.calls < 40, "{} calls", bench.calls);
    assert!(bench.queue.is_empty());
    assert_eq!(bench.queue.counts.dead, 1);
}

#[test]
fn several_that_fail_are_all_found() {
    let limits = Limits {
        max_tries: Some(2),
        has_dead_letters: true,
        batch: 50,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for number in 0..500 {
        bench.add(&format!("k{number}"), number);
    }
    bench.run(Duration::from_secs(600), |_, changes| {
        changes.iter().all(|(_, _, value)| value % 97 != 13)
    });
    bench.dead.sort_unstable();
    let poison: Vec<u32> = bench.dead.iter().map(|(_, value)| *value).collect();
    assert_eq!(poison, [110, 13, 207, 304, 401, 498].map(|value| value));
    assert_eq!(bench.saved.len(), 494);
}

#[test]
fn an_outage_gives_nothing_up() {
    let limits = Limits {
        max_tries: Some(2),
        has_dead_letters: true,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for number in 0..300 {
        bench.add(&format!("k{number}"), number);
    }
    bench.run(Duration::from_secs(3600), |_, _| false);
    let during = bench.calls;
    assert!(during < 400, "{during} calls in an hour");
    assert_eq!((bench.dead.len(), bench.queue.len()), (0, 300));
    bench.run(Duration::from_secs(3700), |_, _| true);
    assert_eq!(
        (bench.dead.len(), bench.saved.len(), bench.queue.len()),
        (0, 300, 0)
    );
    assert!(
        bench.calls - during < 150,
        "{} calls after it",
        bench.calls - during
    );
}

#[test]
fn without_a_place_for_it_it_is_tried_for_ever_while_the_others_go_on() {
    let mut bench = Bench::new(Limits::default());
    for number in 0..10 {
        bench.add(&format!("k{number}"), number);
    }
    let poison = |_: Duration, changes: &[Called]| changes.iter().all(|(_, name, _)| name != "k4");
    bench.run(Duration::from_secs(60), poison);
    assert_eq!((bench.saved.len(), bench.queue.len()), (9, 1));
    // Others are not held up by it, and its own later changes wait behind it.
    for number in 0..10 {
        bench.add(&format!("k{number}"), 100 + number);
    }
    bench.run(Duration::from_secs(70), poison);
    assert_eq!(bench.saved.len(), 18);
    assert_eq!(
        bench.queue.len(),
        1,
        "the newer one of k4 took the place of the older one"
    );
    bench.run(Duration::from_secs(200), |_, _| true);
    assert_eq!(bench.saved.last(), Some(&("k4".to_owned(), 104)));
}

#[test]
fn later_changes_of_a_key_never_pass_one_that_fails() {
    let limits = Limits {
        coalesce: false,
        max_tries: Some(3),
        has_dead_letters: true,
        batch: 7,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for number in 0..60 {
        bench.add(&format!("k{}", number % 6), number);
    }
    let mut tries = BTreeMap::new();
    bench.run(Duration::from_secs(600), |_, changes| {
        // 14 is poison; 20 fails for a while.
        let mut bad = |value: u32| value == 14 || (value == 20 && *tries.entry(value).or_insert(0) < 6);
        let fails = changes.iter().any(|(_, _, value)| bad(*value));
        if changes.iter().any(|(_, _, value)| *value == 20) {
            *tries.entry(20).or_insert(0) += 1;
        }
        !fails
    });
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    for (name, value) in &bench.saved {
        let before = last.insert(name.clone(), *value);
        assert!(
            before.is_none_or(|before| before < *value),
            "{name}: {value} behind {before:?}"
        );
    }
    assert_eq!(bench.saved.len() + bench.dead.len(), 60);
    assert!(bench.dead.contains(&("k2".to_owned(), 14)));
}

#[test]
fn in_the_order_of_all_nothing_passes_and_nothing_is_coalesced_across() {
    let limits = Limits {
        ordered: true,
        batch: 4,
        max_tries: Some(2),
        has_dead_letters: true,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for (name, value) in [
        ("a", 1),
        ("a", 2),
        ("b", 3),
        ("a", 4),
        ("c", 5),
        ("d", 6),
        ("a", 7),
    ] {
        bench.add(name, value);
    }
    assert_eq!(bench.queue.len(), 6, "only neighbours take each other's place");
    bench.run(Duration::from_secs(60), |_, changes| {
        changes.iter().all(|(_, _, value)| *value != 4)
    });
    let values: Vec<u32> = bench.saved.iter().map(|(_, value)| *value).collect();
    assert_eq!(values, [2, 3, 5, 6, 7]);
    assert_eq!(bench.dead, [("a".to_owned(), 4)]);
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

/// Random changes and a `save` that fails at random: in the end all is saved, in order by key, and nothing is given up but what
/// always fails.
#[test]
fn random_failures_lose_nothing_and_keep_the_order() {
    for seed in 1_u64..60 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 20) % below
        };
        let limits = Limits {
            batch: 1 + next(20) as usize,
            coalesce: seed % 2 == 0,
            ordered: seed % 5 == 0,
            max_tries: (seed % 3 == 0).then_some(2),
            has_dead_letters: seed % 6 == 0,
            interval: ms(next(50)),
            ..Limits::default()
        };
        let gives_up = limits.has_dead_letters && limits.max_tries.is_some();
        let mut bench = Bench::new(limits);
        let mut newest = BTreeMap::new();
        for value in 1..=300_u32 {
            let name = format!("k{}", next(17));
            newest.insert(name.clone(), value);
            bench.add(&name, value);
            if next(4) == 0 {
                let end = bench.now + ms(next(200));
                let mut failing = next(3) == 0;
                bench.run(end, |_, _| {
                    failing = failing != (value % 7 == 0);
                    !failing
                });
            }
        }
        let end = bench.now + Duration::from_secs(1000);
        bench.run(end, |_, _| true);
        assert!(bench.queue.is_empty(), "seed {seed}: {} left", bench.queue.len());
        assert_eq!(bench.queue.bytes(), 0, "seed {seed}");
        let mut last: BTreeMap<String, u32> = BTreeMap::new();
        for (name, value) in &bench.saved {
            let before = last.insert(name.clone(), *value);
            assert!(before.is_none_or(|before| before < *value), "seed {seed}: {name}");
        }
        if gives_up {
            continue;
        }
        assert!(bench.dead.is_empty(), "seed {seed}");
        assert_eq!(last, newest, "seed {seed}");
    }
}
