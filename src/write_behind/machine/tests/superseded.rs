//! Newer changes that come while an older one is in a call that fails.

use std::time::Duration;

use super::{Bench, Limits};

#[test]
fn what_was_corrected_meanwhile_is_saved_in_its_place() {
    let mut bench = Bench::new(Limits::default());
    bench.add("a", 1);
    bench.add("b", 1);
    let (call, _) = bench.begin().expect("it is due");
    bench.add("a", 2);
    bench.add("a", 3);
    bench.fail(call);
    assert_eq!((bench.queue.len(), bench.queue.counts.coalesced), (2, 2));
    bench.run(Duration::from_secs(60), |_, changes| {
        changes.iter().all(|(_, name, value)| name != "a" || *value == 3)
    });
    bench.saved.sort();
    assert_eq!(bench.saved, [("a".to_owned(), 3), ("b".to_owned(), 1)]);
    assert_eq!((bench.queue.len(), bench.queue.bytes()), (0, 0));
}

#[test]
fn who_waits_for_the_older_one_waits_for_the_newer_one() {
    let mut bench = Bench::new(Limits::default());
    for (value, waiter) in [(1, 7), (2, 8)] {
        let change = bench.change("a", value);
        bench.queue.add(bench.now, change, [waiter]);
        if value == 1 {
            bench.begin().expect("it is due");
        }
    }
    bench.fail(1);
    assert!(bench.queue.take_settled().is_empty());
    bench.run(Duration::from_secs(60), |_, _| true);
    let mut settled: Vec<u64> = bench
        .queue
        .take_settled()
        .into_iter()
        .map(|(waiter, _)| waiter)
        .collect();
    settled.sort_unstable();
    assert_eq!((settled, bench.saved), (vec![7, 8], vec![("a".to_owned(), 2)]));
}

#[test]
fn it_is_not_given_up_for_what_failed_before_it() {
    let limits = Limits {
        max_tries: Some(1),
        has_dead_letters: true,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    bench.add("b", 1);
    bench.run(Duration::from_secs(1), |_, _| true);
    bench.add("a", 1);
    let (call, _) = bench.begin().expect("it is due");
    bench.add("a", 2);
    bench.fail(call);
    bench.run(Duration::from_secs(60), |_, _| true);
    assert_eq!(
        (bench.dead.len(), bench.saved.last()),
        (0, Some(&("a".to_owned(), 2)))
    );
}

#[test]
fn without_coalescing_and_in_the_order_of_all_each_one_stays() {
    for (coalesce, ordered) in [(false, false), (true, true)] {
        let limits = Limits {
            coalesce,
            ordered,
            ..Limits::default()
        };
        let mut bench = Bench::new(limits);
        bench.add("a", 1);
        let (call, _) = bench.begin().expect("it is due");
        bench.add("a", 2);
        bench.fail(call);
        bench.run(Duration::from_secs(60), |_, _| true);
        assert_eq!(bench.saved, [("a".to_owned(), 1), ("a".to_owned(), 2)]);
    }
}

#[test]
fn keys_that_change_in_each_call_are_saved_beside_one_that_fails_in_each() {
    let mut bench = Bench::new(Limits::default());
    let mut saved = 0;
    for round in 0..200 {
        for name in ["good", "bad", "other"] {
            bench.add(name, round);
        }
        bench.now = bench.queue.next_due().map_or(bench.now, |due| bench.now.max(due));
        let Some((call, changes)) = bench.begin() else {
            continue;
        };
        // All of them are changed while `save` is at it.
        for name in ["good", "bad", "other"] {
            bench.add(name, 1000 + round);
        }
        if changes.iter().any(|(_, name, _)| name == "bad") {
            bench.fail(call);
        } else {
            saved += bench.queue.saved(call).len();
        }
    }
    assert!(saved > 20, "{saved}");
}
