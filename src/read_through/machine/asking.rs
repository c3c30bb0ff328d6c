//! Somebody wants keys: he joins the loads that are under way, or new ones begin.

use std::slice;

use smallvec::{SmallVec, smallvec};

use super::{
    Action, Ask, Change, Due, Flight, Keys, Load, MAX_LOADS, Machine, NoValue, Purpose, Stage, Standing,
    Time, Waiter, Wanted,
};
use crate::{engine::id::Id, read_through::keys::Key};

type Keyed = SmallVec<[Ask; 1]>;

impl<V> Machine<V> {
    /// A command of somebody who cannot wait was refused, on behalf of a registration.
    pub fn count_refusal(&mut self, rule: Id) {
        self.count(rule, |counts| counts.refusals += 1);
    }

    /// Somebody waits for these keys, which are distinct. His number.
    ///
    /// # Errors
    /// It is refused, on behalf of a registration; nothing has changed then but its counter.
    pub fn ask(&mut self, now: Time, asks: &[Ask], purpose: Purpose) -> Result<u64, (Id, NoValue)> {
        let admitted;
        let asks = if self.check(now, asks, purpose, true).is_ok() {
            asks
        } else {
            admitted = self.admit(now, asks, purpose, true)?;
            &admitted
        };
        self.last_waiter += 1;
        let number = self.last_waiter;
        let mut rules: SmallVec<[Id; 1]> = asks.iter().map(|ask| ask.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        let command = purpose.is_command();
        let mut timeout = None;
        for rule in &rules {
            let Some(rule) = self.rules.get_mut(*rule) else {
                continue;
            };
            rule.counts.waiting += 1;
            rule.counts.misses += u64::from(command);
            timeout = timeout.into_iter().chain(rule.limits.timeout).min();
        }
        let deadline = timeout.map(|timeout| now.saturating_add(timeout));
        if let Some(deadline) = deadline {
            self.due.insert((deadline, Due::Waiter(number)));
        }
        let mut waiter = Waiter {
            wanted: SmallVec::with_capacity(asks.len()),
            open: 0,
            rules,
            purpose,
            begun: now,
            deadline,
            loader_of: None,
        };
        let fresh = self.join(number, &mut waiter, asks, &[]);
        self.waiters.insert(number, waiter);
        let shared = fresh.is_empty();
        for (rule, keys) in fresh {
            self.enqueue(now, rule, keys);
        }
        if let Some(first) = asks.first().filter(|_| shared && command) {
            self.count(first.rule, |counts| counts.shared += 1);
        }
        Ok(number)
    }

    /// Somebody who waits is to wait for these keys anew: what he waited for has gone. Keys that nobody loads any more are
    /// left out by the caller.
    pub fn ask_again(&mut self, now: Time, number: u64, asks: &[Ask]) {
        let Some(waiter) = self.waiters.get_mut(&number) else {
            return;
        };
        let purpose = waiter.purpose;
        let admitted;
        let asks = if self.check(now, asks, purpose, false).is_ok() {
            asks
        } else {
            admitted = match self.admit(now, asks, purpose, false) {
                Ok(admitted) => admitted,
                Err((rule, _)) if self.finds_nothing(rule, purpose) => Keyed::new(),
                Err((rule, why)) => return self.refuse(number, rule, why),
            };
            self.decide_all_but(number, &admitted);
            &admitted
        };
        let Some(waiter) = self.waiters.get_mut(&number) else {
            return;
        };
        // What is not asked for again is decided; the loads of the others count on.
        let mut used = Vec::with_capacity(asks.len());
        for ask in asks {
            let before = waiter.wanted.iter().position(|wanted| wanted.key == ask.key);
            used.push(before.map_or(0, |place| waiter.wanted[place].used.saturating_add(1)));
        }
        let gone: SmallVec<[Wanted; 1]> = std::mem::take(&mut waiter.wanted);
        let (again, rest): (SmallVec<[_; 1]>, SmallVec<_>) = gone
            .into_iter()
            .partition(|wanted| asks.iter().any(|ask| ask.key == wanted.key));
        waiter.wanted = rest;
        for wanted in &mut waiter.wanted {
            wanted.settled = true;
        }
        waiter.open = 0;
        for ask in asks {
            if !waiter.rules.contains(&ask.rule) {
                waiter.rules.push(ask.rule);
                if let Some(rule) = self.rules.get_mut(ask.rule) {
                    rule.counts.waiting += 1;
                }
            }
        }
        for wanted in again.iter().filter(|wanted| wanted.landed) {
            self.replied(&wanted.key);
        }
        let Some(mut waiter) = self.waiters.remove(&number) else {
            return;
        };
        let fresh = self.join(number, &mut waiter, asks, &used);
        self.waiters.insert(number, waiter);
        for (rule, keys) in fresh {
            self.enqueue(now, rule, keys);
        }
        if self.waiters.get(&number).is_some_and(|waiter| waiter.open == 0) {
            self.actions.push_back(Action::Ready { waiter: number });
        }
    }

    /// A hit shows that the value of a key will soon be too old. True if a load begins for it.
    pub fn refresh(&mut self, now: Time, rule: Id, key: &Key) -> bool {
        let ask = [Ask {
            rule,
            key: key.clone(),
            present: true,
        }];
        if self.flights.at(key).is_some()
            || self
                .check(now, &ask, Purpose::Command { writes: false }, false)
                .is_err()
        {
            return false;
        }
        self.flights.insert(key, Flight::new(rule, true, true));
        self.count(rule, |counts| counts.refreshes += 1);
        self.enqueue(now, rule, smallvec![key.clone()]);
        true
    }

    /// Which of these keys may be waited for, if not all: those of registrations whose readers find nothing then are left out.
    ///
    /// # Errors
    /// The others are refused, or none is left.
    fn admit(
        &mut self,
        now: Time,
        asks: &[Ask],
        purpose: Purpose,
        is_new: bool,
    ) -> Result<Keyed, (Id, NoValue)> {
        let mut admitted = Keyed::new();
        let mut left_out = None;
        for ask in asks {
            match self.check(now, slice::from_ref(ask), purpose, is_new) {
                Ok(()) => admitted.push(ask.clone()),
                Err((rule, why)) => {
                    self.count_refusal(rule);
                    if !self.finds_nothing(rule, purpose) {
                        return Err((rule, why));
                    }
                    left_out = Some((rule, why));
                }
            }
        }
        match left_out {
            Some(refused) if admitted.is_empty() => Err(refused),
            // What may wait alone may be too much together.
            _ => self
                .check(now, &admitted, purpose, is_new)
                .map(|()| admitted)
                .inspect_err(|&(rule, _)| {
                    self.count_refusal(rule);
                }),
        }
    }

    /// Of what somebody waits for, all but these keys is decided: nobody loads it for him any more.
    fn decide_all_but(&mut self, number: u64, open: &[Ask]) {
        if let Some(waiter) = self.waiters.get_mut(&number) {
            for wanted in &mut waiter.wanted {
                if !open.iter().any(|ask| ask.key == wanted.key) {
                    wanted.used = MAX_LOADS;
                }
            }
        }
    }

    /// Whether whoever waits for that simply finds nothing where a key of the registration cannot be loaded.
    pub(super) fn finds_nothing(&self, rule: Id, purpose: Purpose) -> bool {
        purpose == Purpose::Command { writes: false }
            && self.rules.get(rule).is_some_and(|rule| rule.limits.misses)
    }

    pub(super) fn check(
        &self,
        now: Time,
        asks: &[Ask],
        purpose: Purpose,
        is_new: bool,
    ) -> Result<(), (Id, NoValue)> {
        for ask in asks {
            let Some(rule) = self.rules.get(ask.rule) else {
                continue;
            };
            let refuse = |why| Err((ask.rule, why));
            if is_new && rule.counts.waiting >= rule.limits.max_waiting as u64 {
                return refuse(NoValue::TooManyWaiting);
            }
            if self.flights.at(&ask.key).is_some() {
                continue;
            }
            if rule.standing == Standing::Missing {
                return refuse(NoValue::NotLoaded);
            }
            if !rule.breaker.allows(now) {
                return refuse(NoValue::BreakerOpen);
            }
            let backoff = self.backoffs.at(&ask.key);
            if purpose.is_command() && backoff.is_some_and(|(_, backoff)| !backoff.is_over(now)) {
                return refuse(NoValue::BackingOff);
            }
            if rule.queued() as u64 + rule.counts.loading + asks.len() as u64 > self.bounds.loads as u64 {
                return refuse(NoValue::TooManyLoads);
            }
        }
        Ok(())
    }

    /// Adds a waiter to the flights of keys. Those that were not under way, which are to be queued.
    fn join(
        &mut self,
        number: u64,
        waiter: &mut Waiter,
        asks: &[Ask],
        used: &[u8],
    ) -> SmallVec<[(Id, Keys); 1]> {
        let mut fresh: SmallVec<[(Id, Keys); 1]> = SmallVec::new();
        let refresh = !waiter.purpose.is_command();
        for (place, ask) in asks.iter().enumerate() {
            let mut after = 0;
            if let Some(flight) = self.flights.of(&ask.key) {
                if let Stage::Loading(load) = flight.stage {
                    if refresh {
                        flight.touched = Some(Change::Removed);
                    }
                    if flight.touched == Some(Change::Removed) {
                        after = load;
                    }
                }
                flight.present &= ask.present;
                flight.forced |= refresh;
                flight.waiters.push(number);
                flight.live += 1;
            } else {
                let mut flight = Flight::new(ask.rule, ask.present, false);
                flight.forced = refresh;
                flight.waiters.push(number);
                flight.live = 1;
                self.flights.insert(&ask.key, flight);
                match fresh.iter_mut().find(|(rule, _)| *rule == ask.rule) {
                    Some((_, keys)) => keys.push(ask.key.clone()),
                    None => fresh.push((ask.rule, smallvec![ask.key.clone()])),
                }
            }
            waiter.open += 1;
            waiter.wanted.push(Wanted {
                key: ask.key.clone(),
                rule: ask.rule,
                after,
                used: used.get(place).copied().unwrap_or(0),
                settled: false,
                landed: false,
            });
        }
        fresh
    }

    pub(super) fn enqueue(&mut self, now: Time, id: Id, keys: Keys) {
        let Some(rule) = self.rules.get_mut(id) else {
            return;
        };
        if let Some(due) = rule.enqueue(now, keys) {
            self.due.insert((due, Due::Batch(id)));
        }
        self.begin_loads(now, id);
    }

    /// Begins what may begin.
    pub(super) fn begin_loads(&mut self, now: Time, id: Id) {
        let Some(rule) = self.rules.get_mut(id) else {
            return;
        };
        if rule.queued() == 0 {
            return;
        }
        let mut refused = Vec::new();
        while rule.queued() > 0 {
            let Some(chunk) = rule.next_chunk(now) else { break };
            let (mut keys, load) = (chunk.keys, self.last_load + 1);
            keys.retain(|key| match self.flights.of(key) {
                Some(flight) if flight.stage != Stage::Queued => false,
                Some(flight) if flight.live > 0 || flight.background => {
                    flight.stage = Stage::Loading(load);
                    flight.touched = None;
                    true
                }
                Some(_) => {
                    drop(self.flights.remove(key));
                    false
                }
                None => false,
            });
            if keys.is_empty() {
                continue;
            }
            if !rule.breaker.allows(now) {
                refused.extend(keys);
                continue;
            }
            self.last_load = load;
            rule.breaker.begun(load);
            rule.counts.loading += 1;
            rule.counts.batches += 1;
            rule.counts.loads += keys.len() as u64;
            let deadline = now.saturating_add(rule.limits.max_load_time);
            let loads = &mut self.loads;
            let runs = |load| loads.contains_key(&load);
            if rule.deadlines.begin(deadline, load, rule.counts.loading, runs) {
                self.due.insert((deadline, Due::Loads(id)));
            }
            loads.insert(
                load,
                Load {
                    rule: id,
                    begun: now,
                    keys: keys.clone(),
                    failed: None,
                },
            );
            self.actions.push_back(Action::Begin { load, rule: id, keys });
        }
        if let Some(due) = rule.next_due() {
            self.due.insert((due.max(now), Due::Batch(id)));
        }
        for key in refused {
            self.fail(&key, &NoValue::BreakerOpen);
        }
    }
}
