//! Keys whose loads wait until other shards have nothing of them.

use super::*;

fn one_at_a_time() -> Limits {
    Limits {
        max_loads: 1,
        batch: 2,
        ..Limits::default()
    }
}

#[test]
fn what_is_set_apart_holds_up_nobody_and_begins_later() {
    let mut machine = machine(one_at_a_time());
    let waiter = ask(&mut machine, 0, &["a", "b"]);
    let (load, _) = begun(&mut machine);
    assert!(ask(&mut machine, 0, &["c", "d"]).is_ok());
    assert_eq!(
        machine.set_apart(ms(0), load, &[key("a")]).as_slice(),
        [key("b")],
        "the rest is loaded"
    );
    assert!(machine.waits_apart(&key("a")) && !machine.waits_apart(&key("b")));
    assert!(machine.take_actions().is_empty(), "one load at a time");
    land(&mut machine, load, "b", Some(1), false);
    let (load, _) = begun(&mut machine);
    assert!(machine.set_apart(ms(0), load, &[key("c"), key("d")]).is_empty());
    assert!(!machine.knows(load), "it is as if it had not begun");
    let counts = machine
        .rule(rule(1))
        .map(|rule| (rule.counts.loads, rule.counts.batches, rule.counts.loading));
    assert_eq!(counts, Some((1, 1, 0)));
    machine.tick(Time::from_secs(1000));
    assert!(machine.take_actions().is_empty(), "it has no time of its own");
    machine.resume(ms(5), &key("a"));
    machine.tick(ms(100));
    let (load, keys) = begun(&mut machine);
    assert_eq!(keys.as_slice(), [key("a")]);
    assert!(machine.take_cleared(&key("a")) && !machine.take_cleared(&key("a")));
    land(&mut machine, load, "a", Some(1), false);
    assert_eq!(ready(&mut machine), [waiter.unwrap_or(0)]);
}

#[test]
fn who_waits_no_longer_is_not_asked_for() {
    let mut machine = machine(Limits::default());
    let waiter = ask(&mut machine, 0, &["a"]).unwrap_or(0);
    let (load, _) = begun(&mut machine);
    assert!(machine.set_apart(ms(0), load, &[key("a")]).is_empty());
    machine.release(waiter);
    assert!(!machine.waits_apart(&key("a")));
    machine.resume(ms(0), &key("a"));
    assert!(machine.take_actions().is_empty() && machine.is_idle());
}

#[test]
fn a_value_that_comes_serves_those_who_wait_apart() {
    let mut machine = machine(Limits::default());
    let waiter = ask(&mut machine, 0, &["a"]).unwrap_or(0);
    let (load, _) = begun(&mut machine);
    machine.set_apart(ms(0), load, &[key("a")]);
    machine.changed(0, b"a", Change::Written);
    assert_eq!(ready(&mut machine), [waiter]);
    assert!(!machine.waits_apart(&key("a")));
}

#[test]
fn a_key_that_is_given_away_is_decided() {
    let mut machine = machine(Limits::default());
    let waiter = ask(&mut machine, 0, &["a"]).unwrap_or(0);
    let (load, _) = begun(&mut machine);
    machine.set_apart(ms(0), load, &[key("a")]);
    machine.given_away(&key("a"));
    assert_eq!(ready(&mut machine), [waiter]);
}
