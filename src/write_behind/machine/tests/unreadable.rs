//! Changes that cannot be read: they are put away before `save` sees them, or stay where that fails.

use super::{Bench, Limits, ms, why};

impl Bench {
    /// Begins a call of which these changes cannot be read, nor put away. What flies of it.
    fn begin_without(&mut self, unreadable: &[u32]) -> Option<(u64, Vec<u32>)> {
        let (call, changes) = self.begin()?;
        let places: Vec<u64> = changes
            .iter()
            .filter(|(_, _, value)| unreadable.contains(value))
            .map(|(place, _, _)| *place)
            .collect();
        self.queue.held_back(self.now, call, &places);
        let flying = self.queue.flying(call);
        Some((call, flying.iter().map(|entry| entry.change.payload).collect()))
    }
}

#[test]
fn one_that_stays_holds_up_its_key_only() {
    let limits = Limits {
        coalesce: false,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for (name, value) in [("a", 1), ("a", 2), ("b", 3), ("a", 4)] {
        bench.add(name, value);
    }
    let (call, flying) = bench.begin_without(&[1]).expect("a call");
    assert_eq!(flying, [3]);
    bench.queue.saved(call);
    assert_eq!(
        (
            bench.queue.len(),
            bench.queue.counts.saved,
            bench.queue.counts.dead
        ),
        (3, 1, 0)
    );
    // It comes again by itself, later and later, and nothing runs meanwhile.
    let mut tries = 0;
    while let Some(due) = bench.queue.next_due().filter(|due| *due < ms(60_000)) {
        assert!(due > bench.now, "there is a rest before each try");
        bench.now = due;
        assert_eq!(bench.begin_without(&[1]).expect("a call").1, [0; 0]);
        tries += 1;
    }
    assert!((8..30).contains(&tries), "{tries}");
    assert_eq!(
        bench.queue.counts.batches, 1,
        "what did not begin did not end well"
    );
    bench.now = ms(120_000);
    let (_, changes) = bench.begin().expect("a call");
    let (place, _, _) = changes[0];
    bench.queue.bury(place, &why());
    assert_eq!(bench.queue.flying(2 + tries).len(), 0);
    let (_, flying) = bench.begin_without(&[]).expect("a call");
    assert_eq!(flying, [2, 4]);
}

#[test]
fn nothing_passes_one_that_stays_in_the_order_of_all() {
    let limits = Limits {
        ordered: true,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for (name, value) in [("a", 1), ("b", 2), ("c", 3), ("a", 4)] {
        bench.add(name, value);
    }
    let (call, flying) = bench.begin_without(&[2]).expect("a call");
    assert_eq!(flying, [1]);
    bench.queue.saved(call);
    bench.add("d", 5);
    for _ in 0..5 {
        let due = bench.queue.next_due().expect("it comes again");
        bench.now = bench.now.max(due);
        let (_, flying) = bench.begin_without(&[2]).expect("a call");
        assert_eq!(flying, [0; 0]);
        assert_eq!(bench.queue.begin(bench.now), None, "there is a rest");
    }
    bench.now = ms(60_000);
    bench.run(ms(120_000), |_, _| true);
    let values: Vec<u32> = bench.saved.iter().map(|(_, value)| *value).collect();
    assert_eq!(values, [2, 3, 4, 5]);
}

#[test]
fn one_that_cannot_be_put_away_is_not_tried_at_once() {
    let limits = Limits {
        ordered: true,
        batch: 1,
        max_tries: Some(1),
        has_dead_letters: true,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    bench.add("a", 1);
    bench.add("b", 2);
    let mut tries = 0;
    while let Some(due) = bench.queue.next_due().filter(|due| *due < ms(60_000)) {
        bench.now = bench.now.max(due);
        let (call, changes) = bench.begin().expect("a call");
        if changes[0].2 == 2 {
            bench.queue.saved(call);
        } else if bench.queue.failed(bench.now, call, &why()).is_some() {
            bench.queue.not_buried(bench.now);
        }
        tries += 1;
        assert!(tries < 100, "it is tried again and again");
    }
    assert_eq!((bench.queue.len(), bench.queue.counts.saved), (1, 1));
}
