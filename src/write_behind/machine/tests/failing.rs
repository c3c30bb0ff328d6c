//! Calls that fail: rests, halving, outages, what is given up, and the order in all of that.

use std::{collections::BTreeMap, time::Duration};

use super::{Bench, Called, Limits, ms};

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

/// A queue in the order of all whose first changes can never be saved.
fn poisoned(values: u32) -> Bench {
    let mut bench = Bench::new(Limits {
        ordered: true,
        batch: 4,
        max_tries: Some(2),
        has_dead_letters: true,
        ..Limits::default()
    });
    for value in 0..values {
        bench.add(&format!("k{}", value % 5), value);
    }
    bench
}

#[test]
fn in_the_order_of_all_the_first_changes_are_given_up_too_if_others_can_be_saved() {
    for poison in 1..=4 {
        let mut bench = poisoned(10);
        bench.run(Duration::from_secs(600), |_, changes| {
            changes.iter().all(|(_, _, value)| *value >= poison)
        });
        let dead: Vec<u32> = bench.dead.iter().map(|(_, value)| *value).collect();
        let saved: Vec<u32> = bench.saved.iter().map(|(_, value)| *value).collect();
        assert_eq!(dead, (0..poison).collect::<Vec<_>>());
        assert_eq!(saved, (poison..10).collect::<Vec<_>>());
    }
}

#[test]
fn in_the_order_of_all_an_outage_gives_nothing_up_and_nothing_passes() {
    let mut bench = poisoned(20);
    bench.run(Duration::from_secs(3600), |_, _| false);
    assert_eq!((bench.dead.len(), bench.queue.len()), (0, 20));
    bench.run(Duration::from_secs(3700), |_, _| true);
    let saved: Vec<u32> = bench.saved.iter().map(|(_, value)| *value).collect();
    assert_eq!(saved, (0..20).collect::<Vec<_>>());
}
