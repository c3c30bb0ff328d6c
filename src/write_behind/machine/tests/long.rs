//! Long queues: what one call, or one turn of the server's loop, costs does not grow with what stands behind. Where something did, these
//! tests took minutes; what they may take is far more than what they take on a slow machine without optimisation.

use std::{fs, time::Duration};

use super::{Bench, Limits, ms};

const MANY: u32 = 300_000;
/// For all of a test.
const BOUND: Duration = Duration::from_secs(20);

/// Processor time of this thread: the machine may have more to do than these tests.
struct Start(Duration);

impl Start {
    fn now() -> Self {
        let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells");
        let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
        Self(Duration::from_nanos(nanoseconds.expect("a number")))
    }

    fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }
}

fn one_by_one(batch: usize) -> Limits {
    Limits {
        coalesce: false,
        batch,
        ..Limits::default()
    }
}

/// So many changes of so many keys, in turns.
fn filled(limits: Limits, keys: u32) -> Bench {
    let mut bench = Bench::new(limits);
    for value in 0..MANY {
        bench.add(&format!("k{}", value % keys), value);
    }
    bench
}

#[test]
fn calls_that_fail_with_the_first_of_long_chains() {
    let start = Start::now();
    for (keys, batch) in [(1, 1000), (2, 1), (2, 1000), (100_000, 1000)] {
        let mut bench = filled(one_by_one(batch), keys);
        for _ in 0..200 {
            let due = bench.queue.next_due().expect("there is more");
            bench.now = bench.now.max(due);
            let (call, _) = bench.begin().expect("it is due");
            bench.fail(call);
        }
        assert_eq!(bench.queue.len(), MANY as usize);
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
}

#[test]
fn calls_of_which_every_other_one_fails() {
    let start = Start::now();
    for keys in [1, 2, 1000] {
        let mut bench = filled(one_by_one(50), keys);
        let end = bench.now + Duration::from_secs(1_000_000);
        let mut calls = 0;
        bench.run(end, |_, _| {
            calls += 1;
            calls % 2 == 0
        });
        let values: Vec<u32> = bench.saved.iter().map(|(_, value)| *value).collect();
        assert_eq!(values.len(), MANY as usize);
        if keys == 1 {
            assert!(values.is_sorted());
        }
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
}

#[test]
fn many_that_are_refused_one_by_one() {
    let start = Start::now();
    let mut bench = Bench::new(Limits {
        batch: 1,
        backoff: ms(2),
        max_backoff: Duration::from_secs(100_000),
        ..Limits::default()
    });
    let refused = 50_000;
    for value in 0..refused * 2 {
        bench.add(&format!("k{value}"), value);
    }
    // Each of them once, and the loop of the server comes ten times between two calls.
    while bench.queue.failing() < refused as usize || bench.queue.len() > refused as usize {
        let mut due = bench.queue.next_due().expect("there is more");
        for _ in 0..10 {
            due = bench.queue.next_due().expect("there is more");
        }
        bench.now = bench.now.max(due);
        let (call, changes) = bench.begin().expect("it is due");
        if changes[0].2 % 2 == 0 {
            bench.queue.saved(call);
        } else {
            bench.fail(call);
        }
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
    assert_eq!(bench.queue.counts.saved, u64::from(refused));
}

#[test]
fn one_that_fails_before_many_of_its_key_in_the_order_of_all() {
    let start = Start::now();
    let mut bench = filled(
        Limits {
            ordered: true,
            coalesce: false,
            batch: 1,
            max_tries: Some(2),
            has_dead_letters: true,
            ..Limits::default()
        },
        1,
    );
    bench.add("other", MANY);
    for _ in 0..1000 {
        let due = bench.queue.next_due().expect("there is more");
        bench.now = bench.now.max(due);
        let (call, _) = bench.begin().expect("it is due");
        bench.fail(call);
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
    assert!(bench.dead.is_empty(), "that is an outage");
}

#[test]
fn a_replica_follows_and_looks_at_its_age() {
    let start = Start::now();
    let mut master = filled(one_by_one(100), 3);
    let mut replica = filled(one_by_one(100), 3);
    while let Some((call, _)) = master.begin() {
        for gone in master.queue.saved(call) {
            replica.queue.remove_up_to(&gone);
        }
        assert_eq!(replica.queue.age(replica.now), Duration::ZERO);
        assert!(start.elapsed() < BOUND, "{:?}", start.elapsed());
    }
    assert!(replica.queue.is_empty() && replica.begin().is_none());
}
