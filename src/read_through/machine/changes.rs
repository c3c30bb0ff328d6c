//! What happens from outside: keys change, time passes, clients and registrations go.

use std::collections::BTreeMap;

use super::{Action, Change, Due, Found, Keys, MAX_LOADS, Machine, NoValue, Purpose, Stage, Time, Wanted};
use crate::{engine::id::Id, read_through::keys::Key};

impl<V> Machine<V> {
    /// Whoever waits is let go. His keys, each of which [`Machine::replied`] is to be told of, and what he waited for.
    pub fn release(&mut self, number: u64) -> Option<(Keys, Purpose)> {
        let waiter = self.waiters.remove(&number)?;
        if let Some(deadline) = waiter.deadline {
            self.due.remove(&(deadline, Due::Waiter(number)));
        }
        for &rule in &waiter.rules {
            self.count(rule, |counts| counts.waiting = counts.waiting.saturating_sub(1));
        }
        let mut keys = Keys::with_capacity(waiter.wanted.len());
        for wanted in waiter.wanted {
            if wanted.settled {
                if wanted.landed {
                    keys.push(wanted.key);
                }
                continue;
            }
            if let Some(flight) = self.flights.of(&wanted.key) {
                flight.live = flight.live.saturating_sub(1);
            }
        }
        Some((keys, waiter.purpose))
    }

    /// The keys of this waiter that cannot be put back if they are gone, because their value was a newer one, or something has
    /// happened to them since; each with whether it may be loaded again: not for whom a load that failed is the answer.
    pub fn lost_keys(&self, number: u64) -> Vec<(Key, bool)> {
        let Some(waiter) = self.waiters.get(&number) else {
            return Vec::new();
        };
        let is_lost = |wanted: &&Wanted| {
            let landed = self.landed.at(&wanted.key);
            wanted.settled && !landed.is_some_and(|landed| wanted.landed && !landed.void)
        };
        waiter
            .wanted
            .iter()
            .filter(is_lost)
            .map(|wanted| {
                let again = waiter.purpose.is_command() && wanted.used < MAX_LOADS;
                (wanted.key.clone(), again)
            })
            .collect()
    }

    /// The load of a key that runs.
    pub fn loading(&self, db: i32, name: &[u8]) -> Option<u64> {
        match self.flights.get(db, name)?.stage {
            Stage::Loading(load) => Some(load),
            Stage::Queued => None,
        }
    }

    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Somebody who waited for a key has his reply. True if he was the last one, and a loaded value was there.
    pub fn replied(&mut self, key: &Key) -> bool {
        let Some(landed) = self.landed.of(key) else {
            return false;
        };
        landed.left = landed.left.saturating_sub(1);
        if landed.left > 0 {
            return false;
        }
        let landed = self.landed.remove(key);
        landed.is_some_and(|landed| landed.value.is_some())
    }

    /// Something happened to a key.
    pub fn changed(&mut self, db: i32, name: &[u8], change: Change) {
        self.absent.remove_named(db, name);
        self.mentioned(db, name);
        if change == Change::Aged {
            return;
        }
        if let Some(landed) = self.landed.get_mut(db, name) {
            landed.void = true;
        }
        let Some(flight) = self.flights.get_mut(db, name) else {
            return;
        };
        flight.touched = Some(change);
        // A newer value than any that could be loaded for those who wait.
        if flight.stage == Stage::Queued && change == Change::Written && !flight.forced {
            self.settle_all(&Key::new(db, name), false);
        }
    }

    /// All keys of a database, or of all databases, were removed or are others now.
    pub fn flushed(&mut self, db: Option<i32>) {
        self.absent.clear(db);
        for landed in self.landed.values_mut(db) {
            landed.void = true;
        }
        for flight in self.flights.values_mut(db) {
            flight.touched = Some(Change::Removed);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) {
        while let Some(&(time, due)) = self.due.first() {
            if time > now {
                break;
            }
            self.due.pop_first();
            match due {
                Due::Waiter(number) => self.waited_too_long(now, number),
                Due::Loads(rule) => self.loads_are_late(now, rule),
                Due::Batch(rule) => self.begin_loads(now, rule),
            }
        }
    }

    /// The time that somebody may wait for some of his keys is over.
    fn waited_too_long(&mut self, now: Time, number: u64) {
        let Some(waiter) = self.waiters.get_mut(&number).filter(|waiter| waiter.open > 0) else {
            return;
        };
        waiter.deadline = None;
        let (purpose, begun) = (waiter.purpose, waiter.begun);
        let mut late = Vec::new();
        let mut next = None;
        for wanted in waiter.wanted.iter().filter(|wanted| !wanted.settled) {
            let timeout = self.rules.get(wanted.rule).and_then(|rule| rule.limits.timeout);
            let Some(deadline) = timeout.map(|timeout| begun.saturating_add(timeout)) else {
                continue;
            };
            if deadline <= now {
                late.push((wanted.rule, wanted.key.clone()));
            } else {
                next = next.into_iter().chain([deadline]).min();
            }
        }
        let keys: Vec<Key> = waiter.open_keys().cloned().collect();
        let mut rules: Vec<Id> = late.iter().map(|&(rule, _)| rule).collect();
        rules.sort_unstable();
        rules.dedup();
        for &rule in &rules {
            self.count(rule, |counts| counts.timeouts += 1);
        }
        if let Some(&rule) = rules.iter().find(|&&rule| !self.finds_nothing(rule, purpose)) {
            for key in keys {
                self.keep_loading(&key);
            }
            return self.refuse(number, rule, NoValue::TimedOut);
        }
        for (_, key) in late {
            self.keep_loading(&key);
            if let Some(flight) = self.flights.of(&key) {
                flight.live = flight.live.saturating_sub(1);
            }
            if let Some(wanted) = self
                .waiters
                .get_mut(&number)
                .and_then(|waiter| waiter.open_for(&key))
            {
                wanted.used = MAX_LOADS;
            }
            self.settle(number, &key, false);
        }
        if let (Some(deadline), Some(waiter)) = (next, self.waiters.get_mut(&number)) {
            waiter.deadline = next;
            self.due.insert((deadline, Due::Waiter(number)));
        }
    }

    /// The load of a key fills the cache, whoever waits for it.
    fn keep_loading(&mut self, key: &Key) {
        if let Some(flight) = self.flights.of(key) {
            flight.background = true;
        }
    }

    /// The time of the oldest load of a registration may be over.
    fn loads_are_late(&mut self, now: Time, id: Id) {
        while let Some(rule) = self.rules.get_mut(id) {
            match rule.deadlines.next(now, |load| self.loads.contains_key(&load)) {
                Ok(late) => self.loaded_too_long(now, late),
                Err(next) => {
                    self.due.extend(next.map(|next| (next, Due::Loads(id))));
                    break;
                }
            }
        }
    }

    pub(super) fn loaded_too_long(&mut self, now: Time, load: u64) {
        let Some((rule, keys)) = self.take_keys(load) else {
            return;
        };
        for key in keys {
            self.land(now, load, &key, Err(NoValue::LoadTimedOut), Found::NOTHING);
        }
        self.ended(now, load);
        self.actions.push_back(Action::Stop { load, rule });
    }

    /// A registration has gone. What its loads bring is dropped; those who wait for them ask again.
    pub fn remove_rule(&mut self, id: Id) {
        self.rules.remove(id);
        // What it found out is nothing that the next loader has to go by.
        self.absent.retain(|&(rule, _)| rule != id);
        self.backoffs.retain(|&(rule, _)| rule != id);
        let loads: Vec<u64> = self
            .loads
            .iter()
            .filter(|(_, load)| load.rule == id)
            .map(|(&number, _)| number)
            .collect();
        for number in loads {
            self.loads.remove(&number);
        }
        self.due
            .retain(|(_, due)| *due != Due::Batch(id) && *due != Due::Loads(id));
        let keys: Vec<Key> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.rule == id)
            .map(|(key, _)| key.clone())
            .collect();
        let mut lost: BTreeMap<u64, Vec<Key>> = BTreeMap::new();
        for key in keys {
            let Some(flight) = self.flights.remove(&key) else {
                continue;
            };
            for number in flight.waiters {
                let waiter = self.waiters.get_mut(&number);
                if waiter.is_some_and(|waiter| waiter.open_for(&key).is_some()) {
                    lost.entry(number).or_default().push(key.clone());
                }
            }
        }
        for (waiter, keys) in lost {
            self.actions.push_back(Action::Again { waiter, keys });
        }
        for waiter in self.waiters.values_mut() {
            waiter.rules.retain(|rule| *rule != id);
        }
    }

    /// Everybody is let go with whatever there is: the server takes no loads any more.
    pub fn let_all_go(&mut self) {
        let mut waiting: Vec<u64> = Vec::new();
        for (&number, waiter) in &mut self.waiters {
            if waiter.open > 0 {
                waiting.push(number);
                waiter.open = 0;
                for wanted in &mut waiter.wanted {
                    wanted.settled = true;
                }
            }
        }
        waiting.sort_unstable();
        let ready = waiting.into_iter().map(|waiter| Action::Ready { waiter });
        self.actions.extend(ready);
        self.flights.clear(None);
        self.absent.clear(None);
        for (number, load) in self.loads.drain() {
            if let Some(rule) = self.rules.get_mut(load.rule) {
                rule.counts.loading -= 1;
                rule.breaker.forget(number);
            }
        }
    }
}
