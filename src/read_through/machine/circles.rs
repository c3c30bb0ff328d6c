//! Loaders that ask for keys themselves, and wait: a circle of those would wait until somebody loses patience.
//!
//! What can go on is found from the end: a load whose loader waits for nothing goes on; one that waits does if all of its keys do; a
//! key whose load stands in a queue does if any load of its registration does.

use std::collections::BTreeMap;

use super::{Ask, Machine, Stage};
use crate::{engine::id::Id, read_through::keys::Key};

/// The loads whose loaders wait, and for which keys.
type Waiting<'a> = BTreeMap<u64, Vec<(Id, &'a Key)>>;

impl<V> Machine<V> {
    /// Whoever waits under this number is the loader of a load.
    pub fn asked_by(&mut self, number: u64, load: u64) {
        if let Some(waiter) = self.waiters.get_mut(&number) {
            waiter.loader_of = Some(load);
        }
    }

    /// One of the keys that the loader of `load` is about to wait for, if they will only come when it has ended itself.
    pub fn circle(&self, load: u64, asks: &[Ask]) -> Option<Key> {
        let mut waiting = Waiting::new();
        for waiter in self.waiters.values().filter(|waiter| waiter.open > 0) {
            if let Some(loader_of) = waiter.loader_of.filter(|load| self.loads.contains_key(load)) {
                let open = waiter.wanted.iter().filter(|wanted| !wanted.settled);
                let keys = waiting.entry(loader_of).or_default();
                keys.extend(open.map(|wanted| (wanted.rule, &wanted.key)));
            }
        }
        let asked = asks.iter().map(|ask| (ask.rule, &ask.key));
        waiting.entry(load).or_default().extend(asked);
        loop {
            let go_on =
                |keys: &[(Id, &Key)]| keys.iter().all(|(rule, key)| self.goes_on(*rule, key, &waiting));
            let free = waiting
                .iter()
                .find(|(_, keys)| go_on(keys))
                .map(|(&load, _)| load);
            match free {
                Some(free) => drop(waiting.remove(&free)),
                None => break,
            }
        }
        waiting.get(&load)?;
        let stuck = asks
            .iter()
            .find(|ask| !self.goes_on(ask.rule, &ask.key, &waiting));
        stuck.map(|ask| ask.key.clone())
    }

    /// Whether the load of a key, by `rule` if there is none yet, goes on while these wait.
    fn goes_on(&self, rule: Id, key: &Key, waiting: &Waiting<'_>) -> bool {
        let flight = self.flights.at(key);
        if let Some(Stage::Loading(load)) = flight.map(|flight| flight.stage) {
            return !waiting.contains_key(&load);
        }
        let id = flight.map_or(rule, |flight| flight.rule);
        let is_full = |rule: &super::Rule| rule.counts.loading >= rule.limits.max_loads as u64;
        if !self.rules.get(id).is_some_and(is_full) {
            return true;
        }
        let mut running = self.loads.iter().filter(|(_, load)| load.rule == id);
        running.any(|(load, _)| !waiting.contains_key(load))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Action, Bounds, Limits, Purpose, Time},
        *,
    };
    use crate::engine::id::ShardId;

    const NOW: Time = Time::ZERO;

    fn rule(number: u64) -> Id {
        Id {
            number,
            shard: ShardId::STANDALONE,
        }
    }

    fn ask(id: u64, name: &str) -> Ask {
        Ask {
            rule: rule(id),
            key: Key::new(0, name.as_bytes()),
            present: true,
        }
    }

    /// A machine, and what asks it as a loader does.
    fn machine(max_loads: usize) -> Machine<u8> {
        let bounds = Bounds {
            absent: 10,
            backoffs: 10,
            loads: 100,
        };
        let mut machine = Machine::new(bounds, 1);
        for number in [1, 2] {
            let limits = Limits {
                max_loads,
                ..Limits::default()
            };
            machine.add_rule(rule(number), limits);
        }
        machine
    }

    /// Somebody refreshes a key: the number of the load that begins, if one does.
    fn refresh(machine: &mut Machine<u8>, loader_of: Option<u64>, ask: &Ask) -> Result<Option<u64>, Key> {
        let asks = std::slice::from_ref(ask);
        if let Some(stuck) = loader_of.and_then(|load| machine.circle(load, asks)) {
            return Err(stuck);
        }
        let asked = machine.ask(NOW, asks, Purpose::Refresh(0));
        if let (Ok(number), Some(load)) = (asked, loader_of) {
            machine.asked_by(number, load);
        }
        let mut begun = machine
            .take_actions()
            .into_iter()
            .filter_map(|action| match action {
                Action::Begin { load, .. } => Some(load),
                _ => None,
            });
        Ok(begun.next())
    }

    #[test]
    fn a_loader_that_asks_for_its_own_key_waits_for_itself() {
        let mut machine = machine(usize::MAX);
        let begun = refresh(&mut machine, None, &ask(1, "a"));
        let Ok(Some(a)) = begun else { panic!("{begun:?}") };
        assert_eq!(refresh(&mut machine, Some(a), &ask(1, "a")), Err(ask(1, "a").key));
        assert!(matches!(
            refresh(&mut machine, Some(a), &ask(1, "b")),
            Ok(Some(_))
        ));
    }

    #[test]
    fn a_circle_of_any_length_is_seen_where_it_closes() {
        let mut machine = machine(usize::MAX);
        let mut load = None;
        for name in ["a", "b", "c", "d"] {
            let begun = refresh(&mut machine, load, &ask(1, name));
            let Ok(Some(next)) = begun else {
                panic!("{begun:?}")
            };
            load = Some(next);
        }
        assert_eq!(refresh(&mut machine, load, &ask(1, "b")), Err(ask(1, "b").key));
        // Somebody else may wait for any of them.
        assert_eq!(refresh(&mut machine, None, &ask(1, "b")), Ok(None));
        assert!(matches!(refresh(&mut machine, load, &ask(1, "e")), Ok(Some(_))));
    }

    #[test]
    fn a_key_behind_the_last_free_load_waits_for_the_loader_that_asks() {
        let mut machine = machine(1);
        let begun = refresh(&mut machine, None, &ask(1, "a"));
        let Ok(Some(a)) = begun else { panic!("{begun:?}") };
        assert_eq!(refresh(&mut machine, Some(a), &ask(1, "b")), Err(ask(1, "b").key));
        // That of another registration has a load of its own.
        let begun = refresh(&mut machine, Some(a), &ask(2, "x"));
        let Ok(Some(x)) = begun else { panic!("{begun:?}") };
        assert_eq!(refresh(&mut machine, Some(x), &ask(1, "c")), Err(ask(1, "c").key));
    }

    #[test]
    fn one_load_that_goes_on_is_enough_for_what_is_queued() {
        let mut machine = machine(2);
        let loads: Vec<_> = ["a", "b"]
            .iter()
            .map(|name| refresh(&mut machine, None, &ask(1, name)))
            .collect();
        let [Ok(Some(a)), Ok(Some(b))] = loads.as_slice() else {
            panic!("{loads:?}")
        };
        assert_eq!(
            refresh(&mut machine, Some(*a), &ask(1, "c")),
            Ok(None),
            "behind b"
        );
        assert_eq!(
            refresh(&mut machine, Some(*b), &ask(1, "d")),
            Err(ask(1, "d").key)
        );
    }
}
