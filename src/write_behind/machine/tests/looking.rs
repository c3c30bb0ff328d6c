//! What is told of one key.

use super::*;
use crate::write_behind::machine::{Doing, Waiters};

#[test]
fn a_look_at_a_key_tells_what_becomes_of_its_changes() {
    let mut bench = Bench::new(Limits {
        coalesce: false,
        batch: 2,
        has_dead_letters: true,
        max_tries: Some(1),
        ..Limits::default()
    });
    let mut waiters = Waiters::default();
    let waiter = waiters.add(ms(60_000));
    waiters.expect(waiter);
    assert!(bench.queue.look_at(ms(0), 0, b"a", (&waiters, 9)).is_none());
    bench.add("a", 1);
    bench.now = ms(5);
    let change = bench.change("a", 2);
    bench.queue.add(bench.now, change, Some(waiter));
    bench.add("b", 3);
    let look = |bench: &Bench, waiters: &Waiters| {
        let seen = bench.queue.look_at(bench.now, 0, b"a", (waiters, 9))?;
        let (oldest, newest) = (seen.oldest.change.payload, seen.newest.payload);
        Some((
            seen.count,
            oldest,
            newest,
            seen.doing,
            seen.oldest.tries,
            seen.waiting,
        ))
    };
    assert_eq!(look(&bench, &waiters), Some((2, 1, 2, Doing::Waits, 0, 1)));
    let (call, _) = bench.begin().expect("it is time");
    bench.now = ms(12);
    assert_eq!(
        look(&bench, &waiters),
        Some((2, 1, 2, Doing::IsSaved(ms(7)), 0, 1))
    );
    waiters.forget(waiter);
    bench.fail(call);
    assert_eq!(
        look(&bench, &waiters),
        Some((2, 1, 2, Doing::ComesAgain, 1, 0)),
        "who waits no more is not counted"
    );
    let seen = bench
        .queue
        .look_at(bench.now, 0, b"a", (&waiters, 9))
        .expect("it is there");
    assert_eq!(seen.oldest.last_failure(), Some(&*why()));
    let earliest = seen.earliest.expect("it is in no call");
    assert!(earliest > ms(0) && earliest <= ms(100), "{earliest:?}");
}

#[test]
fn what_was_given_up_is_told_until_a_newer_change_of_the_key_is_saved() {
    let mut bench = Bench::new(Limits {
        batch: 1,
        has_dead_letters: true,
        max_tries: Some(1),
        ..Limits::default()
    });
    bench.add("bad", 1);
    bench.add("good", 2);
    let first = bench.queue.newest(0, b"bad").expect("it is there").id;
    let is_good = |changes: &[Called]| changes.iter().all(|(_, name, value)| name != "bad" || *value > 1);
    bench.run(ms(60_000), |_, changes| is_good(changes));
    while bench.dead.is_empty() {
        bench.add("good", 3);
        let end = bench.now + ms(60_000);
        bench.run(end, |_, changes| is_good(changes));
    }
    let told = bench.queue.given_up(0, b"bad").expect("it was given up");
    assert_eq!((told.id, &told.why), (first, &why()));
    assert!(bench.queue.given_up(0, b"good").is_none());
    bench.add("bad", 2);
    assert!(
        bench.queue.given_up(0, b"bad").is_some(),
        "the newer one is not saved yet"
    );
    let end = bench.now + ms(60_000);
    bench.run(end, |_, _| true);
    assert!(bench.queue.given_up(0, b"bad").is_none());
}
