//! The machine alone: what it decides in each case.

mod apart;
mod random;

use super::*;
use crate::engine::id::ShardId;

impl<V> Machine<V> {
    /// What is to be done; nothing is left behind.
    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.next_action()).collect()
    }
}

fn rule(number: u64) -> Id {
    Id {
        number,
        shard: ShardId::STANDALONE,
    }
}

fn key(name: &str) -> Key {
    Key::new(0, name.as_bytes())
}

fn ms(ms: u64) -> Time {
    Time::from_millis(ms)
}

const COMMAND: Purpose = Purpose::Command { writes: false };

fn machine(limits: Limits) -> Machine<u32> {
    let bounds = Bounds {
        absent: 100,
        backoffs: 100,
        loads: 100,
    };
    let mut machine = Machine::new(bounds, 7);
    machine.add_rule(rule(1), limits);
    machine
}

fn ask(machine: &mut Machine<u32>, now: u64, names: &[&str]) -> Result<u64, NoValue> {
    let asks: Vec<Ask> = names
        .iter()
        .map(|name| Ask {
            rule: rule(1),
            key: key(name),
            present: false,
        })
        .collect();
    machine.ask(ms(now), &asks, COMMAND).map_err(|(_, why)| why)
}

/// The load that begins, and its keys.
fn begun(machine: &mut Machine<u32>) -> (u64, Keys) {
    match machine.take_actions().as_slice() {
        [Action::Begin { load, keys, .. }] => (*load, keys.clone()),
        other => panic!("one load begins, not {other:?}"),
    }
}

fn land(machine: &mut Machine<u32>, load: u64, name: &str, value: Option<u32>, present: bool) -> Landing {
    let value = Ok(value.map(Arc::new));
    let landing = machine.land(ms(1), load, &key(name), value, found(Keep::Yes, present));
    machine.ended(ms(1), load);
    landing
}

fn found(keep: Keep, present: bool) -> Found {
    Found {
        keep,
        present,
        may_delete: true,
    }
}

/// What becomes of the old value, and how many keys a refresh counts.
fn refreshed(value: Option<u32>, found: Found) -> (Landing, u64) {
    let mut machine = machine(Limits::default());
    let asks = [Ask {
        rule: rule(1),
        key: key("a"),
        present: true,
    }];
    let waiter = machine.ask(ms(0), &asks, Purpose::Refresh(0)).unwrap_or(0);
    let (load, _) = begun(&mut machine);
    let landing = machine.land(ms(1), load, &key("a"), Ok(value.map(Arc::new)), found);
    machine.ended(ms(1), load);
    let Some((_, Purpose::Refresh(count))) = machine.release(waiter) else {
        panic!("a refresh")
    };
    (landing, count)
}

#[test]
fn what_cannot_be_kept_takes_the_old_value_away_and_counts_only_if_it_does() {
    for keep in [Keep::No, Keep::Cannot] {
        let mut found = found(keep, true);
        assert_eq!(refreshed(Some(1), found), (Landing::Delete, 1));
        found.may_delete = false;
        assert_eq!(refreshed(Some(1), found).1, 0, "{keep:?}");
        found.present = false;
        assert_eq!(refreshed(Some(1), found).1, 1, "nothing old is there");
    }
    assert_eq!(refreshed(None, found(Keep::No, true)), (Landing::Delete, 1));
    assert_eq!(refreshed(Some(1), found(Keep::Yes, true)), (Landing::Store, 1));
}

#[test]
fn in_the_background_only_what_has_no_room_leaves_the_old_value() {
    for (keep, landing) in [
        (Keep::No, Landing::Delete),
        (Keep::Cannot, Landing::Unkept),
        (Keep::Yes, Landing::Store),
    ] {
        let mut machine = machine(Limits::default());
        assert!(machine.refresh(ms(0), rule(1), &key("a")));
        let (load, _) = begun(&mut machine);
        let value = Ok(Some(Arc::new(1)));
        assert_eq!(
            machine.land(ms(1), load, &key("a"), value, found(keep, true)),
            landing
        );
        machine.ended(ms(1), load);
        assert!(machine.is_idle());
    }
}

fn ready(machine: &mut Machine<u32>) -> Vec<u64> {
    let actions = machine.take_actions();
    let ready = actions.iter().map(|action| match action {
        Action::Ready { waiter } => *waiter,
        other => panic!("somebody is ready, not {other:?}"),
    });
    ready.collect()
}

#[test]
fn one_load_serves_all_who_wait() {
    let mut machine = machine(Limits::default());
    let first = ask(&mut machine, 0, &["a"]);
    let (load, keys) = begun(&mut machine);
    let second = ask(&mut machine, 0, &["a", "b"]);
    let (other, _) = begun(&mut machine);
    assert_eq!(keys.as_slice(), [key("a")]);
    assert_eq!(land(&mut machine, load, "a", Some(1), false), Landing::Store);
    assert_eq!(ready(&mut machine), [first.clone().unwrap_or(0)]);
    assert_eq!(land(&mut machine, other, "b", None, false), Landing::Nothing);
    assert_eq!(ready(&mut machine), [second.clone().unwrap_or(0)]);
    for waiter in [first, second] {
        let (keys, _) = machine
            .release(waiter.unwrap_or(0))
            .unwrap_or_else(|| panic!("it waited"));
        for key in keys {
            machine.replied(&key);
        }
    }
    assert!(machine.is_idle());
    // What might still take too long is only looked at when its time is over.
    machine.tick(Time::MAX);
    assert!(machine.next_due().is_none());
}

#[test]
fn the_key_is_signalled_behind_the_last_reply() {
    let mut machine = machine(Limits::default());
    let waiters: Vec<u64> = (0..3).filter_map(|_| ask(&mut machine, 0, &["a"]).ok()).collect();
    let (load, _) = begun(&mut machine);
    land(&mut machine, load, "a", Some(1), false);
    let mut last = Vec::new();
    for waiter in waiters {
        let (keys, _) = machine.release(waiter).unwrap_or_else(|| panic!("it waited"));
        last.extend(keys.iter().map(|key| machine.replied(key)));
    }
    assert_eq!(last, [false, false, true]);
}

#[test]
fn a_background_load_is_written_over_by_nothing_older() {
    let mut machine = machine(Limits::default());
    assert!(machine.refresh(ms(0), rule(1), &key("a")));
    assert!(!machine.refresh(ms(0), rule(1), &key("a")), "one at a time");
    let (load, _) = begun(&mut machine);
    assert_eq!(land(&mut machine, load, "a", Some(1), true), Landing::Store);
    machine.refresh(ms(0), rule(1), &key("a"));
    let (load, _) = begun(&mut machine);
    machine.changed(0, b"a", Change::Written);
    assert_eq!(land(&mut machine, load, "a", Some(1), true), Landing::Nothing);
    machine.refresh(ms(0), rule(1), &key("a"));
    let (load, _) = begun(&mut machine);
    assert_eq!(land(&mut machine, load, "a", None, true), Landing::Delete);
    assert!(machine.is_idle());
}

#[test]
fn a_load_whose_time_is_over_is_known_to_nobody() {
    let mut machine = machine(Limits {
        max_load_time: ms(10),
        backoff: ms(100),
        ..Limits::default()
    });
    let waiter = ask(&mut machine, 0, &["a"]).unwrap_or(0);
    let (load, _) = begun(&mut machine);
    machine.tick(ms(10));
    assert_eq!(
        machine.take_actions(),
        [
            Action::Refuse {
                waiter,
                rule: rule(1),
                why: NoValue::LoadTimedOut
            },
            Action::Stop { load, rule: rule(1) }
        ]
    );
    assert_eq!(land(&mut machine, load, "a", Some(1), false), Landing::Nothing);
    assert_eq!(ask(&mut machine, 20, &["a"]), Err(NoValue::BackingOff));
    machine.release(waiter);
    assert!(ask(&mut machine, 200, &["a"]).is_ok());
}

#[test]
fn what_says_nothing_of_the_source_counts_for_neither_back_off_nor_breaker() {
    let mut machine = machine(Limits {
        backoff: ms(100),
        breaker: Some((2, ms(1000))),
        ..Limits::default()
    });
    let mut ends_with = |now: u64, why: NoValue| {
        let waiter = ask(&mut machine, now, &["a"])?;
        let (load, _) = begun(&mut machine);
        machine.land(ms(now), load, &key("a"), Err(why), Found::NOTHING);
        machine.ended(ms(now), load);
        machine.take_actions();
        machine.release(waiter);
        let counts = machine
            .rule(rule(1))
            .map(|rule| (rule.counts.load_failures, rule.counts.refusals));
        Ok(counts.unwrap_or_default())
    };
    let failed = || NoValue::Failed("KeyError".into());
    assert_eq!(ends_with(0, failed()), Ok((1, 0)));
    assert_eq!(ends_with(1, NoValue::Aborted), Err(NoValue::BackingOff));
    assert_eq!(ends_with(200, NoValue::Aborted), Ok((1, 1)));
    assert_eq!(ends_with(200, NoValue::TooManyPending), Ok((1, 2)));
    // The second failure in a row: what was between them was none, and no success.
    assert_eq!(ends_with(200, failed()), Ok((2, 2)));
    assert_eq!(
        ends_with(5000, NoValue::Aborted),
        Ok((2, 2)),
        "a trial that told nothing"
    );
    assert_eq!(
        ends_with(5000, failed()),
        Ok((3, 2)),
        "makes room for another one"
    );
    assert_eq!(ends_with(5001, failed()), Err(NoValue::BreakerOpen));
}

#[test]
fn what_is_queued_goes_on_only_for_those_who_wait() {
    let mut machine = machine(Limits {
        max_loads: 1,
        ..Limits::default()
    });
    ask(&mut machine, 0, &["a"]).unwrap_or(0);
    let gone = ask(&mut machine, 0, &["b"]).unwrap_or(0);
    let written = ask(&mut machine, 0, &["c"]).unwrap_or(0);
    let (load, _) = begun(&mut machine);
    machine.release(gone);
    machine.changed(0, b"c", Change::Written);
    assert_eq!(ready(&mut machine), [written]);
    land(&mut machine, load, "a", Some(1), false);
    assert!(
        !machine
            .take_actions()
            .iter()
            .any(|action| matches!(action, Action::Begin { .. }))
    );
}

#[test]
fn a_removed_rule_hands_on_who_waits() {
    let mut machine = machine(Limits::default());
    let waiter = ask(&mut machine, 0, &["a", "b"]).unwrap_or(0);
    let actions = machine.take_actions();
    let loads: Vec<u64> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Begin { load, .. } => Some(*load),
            _ => None,
        })
        .collect();
    land(&mut machine, loads[0], "a", Some(1), false);
    machine.remove_rule(rule(1));
    let keys = vec![key("b")];
    assert_eq!(machine.take_actions(), [Action::Again { waiter, keys }]);
    assert_eq!(
        land(&mut machine, loads[1], "b", Some(1), false),
        Landing::Nothing
    );
    machine.add_rule(rule(2), Limits::default());
    let asks = [Ask {
        rule: rule(2),
        key: key("b"),
        present: false,
    }];
    machine.ask_again(ms(2), waiter, &asks);
    let (load, _) = begun(&mut machine);
    assert_eq!(land(&mut machine, load, "b", Some(2), false), Landing::Store);
    assert_eq!(ready(&mut machine), [waiter]);
    let (keys, _) = machine.release(waiter).unwrap_or_default_keys();
    assert_eq!(keys.len(), 2, "what had landed before is still at hand");
    assert_eq!(machine.rule(rule(2)).map(|rule| rule.counts.waiting), Some(0));
}

trait OrNone {
    fn unwrap_or_default_keys(self) -> (Keys, Purpose);
}

impl OrNone for Option<(Keys, Purpose)> {
    fn unwrap_or_default_keys(self) -> (Keys, Purpose) {
        self.unwrap_or_else(|| panic!("it waited"))
    }
}

#[test]
fn what_was_stored_is_there_until_anything_is_said_of_it() {
    type Said = fn(&mut Machine<u32>);
    let said: [Said; 6] = [
        |_| (),
        |machine| machine.mentioned(0, b"k"),
        |machine| machine.changed(0, b"k", Change::Aged),
        |machine| machine.changed(0, b"k", Change::Removed),
        |machine| machine.flushed(None),
        |machine| machine.changed(0, b"other", Change::Removed),
    ];
    for (place, say) in said.into_iter().enumerate() {
        let mut machine = machine(Limits::default());
        let waiter = ask(&mut machine, 0, &["k"]);
        let (load, _) = begun(&mut machine);
        assert_eq!(land(&mut machine, load, "k", Some(7), false), Landing::Store);
        assert!(!machine.holds(&key("k"), 0), "not stored yet");
        machine.stored(&key("k"), 100);
        assert!(machine.holds(&key("k"), 99) && !machine.holds(&key("k"), 100));
        say(&mut machine);
        assert_eq!(machine.holds(&key("k"), 99), [0, 5].contains(&place), "{place}");
        assert_eq!(ready(&mut machine).len(), 1);
        assert!(machine.release(waiter.unwrap_or_default()).is_some() && machine.replied(&key("k")));
        assert!(!machine.holds(&key("k"), 0));
    }
}

#[test]
fn a_look_at_a_key_tells_its_load_who_waits_and_what_holds_it_back() {
    let mut machine = machine(Limits {
        max_loads: 1,
        negative_ttl: ms(1000),
        ..Limits::default()
    });
    let look = |machine: &Machine<u32>, now, name: &str| machine.look_at(ms(now), 0, name.as_bytes());
    assert_eq!(look(&machine, 0, "a"), Seen::default());
    for _ in 0..2 {
        assert!(ask(&mut machine, 10, &["a"]).is_ok());
    }
    assert!(ask(&mut machine, 10, &["b"]).is_ok());
    let (load, _) = begun(&mut machine);
    let seen = look(&machine, 25, "a");
    assert_eq!((seen.load, seen.waiting), (Some(SeenLoad::Running(ms(15))), 2));
    let seen = look(&machine, 25, "b");
    assert_eq!((seen.load, seen.waiting), (Some(SeenLoad::Queued), 1));
    land(&mut machine, load, "a", None, false);
    let seen = look(&machine, 1, "a");
    assert_eq!(
        (seen.load, seen.waiting, seen.absent_for),
        (None, 2, Some(ms(1000))),
        "they have no reply yet"
    );
    assert_eq!(look(&machine, 1001, "a").absent_for, None);
    let (load, keys) = match machine.take_actions().as_slice() {
        [
            Action::Ready { .. },
            Action::Ready { .. },
            Action::Begin { load, keys, .. },
        ] => (*load, keys.clone()),
        other => panic!("both are ready, and the next load begins, not {other:?}"),
    };
    let failed = Err(NoValue::Failed("ValueError".into()));
    machine.land(ms(2000), load, &keys[0], failed, Found::NOTHING);
    machine.ended(ms(2000), load);
    let seen = look(&machine, 2000, "b");
    let rest = seen.backs_off_for.unwrap_or_default();
    assert_eq!(seen.failures, 1);
    assert!(rest > ms(0) && rest <= ms(100), "{rest:?}");
    assert_eq!(look(&machine, 2200, "b").backs_off_for, None);
}
