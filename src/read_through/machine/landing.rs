//! Loads that have ended: what becomes of their values, and of those who wait for them.

use std::sync::Arc;

use super::{
    Action, Backoff, Change, Found, Keep, Keys, Landed, Landing, MAX_LOADS, Machine, NoValue, Purpose, Stage,
    Time,
};
use crate::{engine::id::Id, read_through::keys::Key};

impl<V> Machine<V> {
    /// The keys of a load whose result has come, if anybody still knows it: each of them is to land, then it has ended
    /// ([`Machine::ended`]). Asked once.
    pub fn take_keys(&mut self, load: u64) -> Option<(Id, Keys)> {
        let load = self.loads.get_mut(&load)?;
        Some((load.rule, std::mem::take(&mut load.keys)))
    }

    /// Whether a load is under way, or lands.
    pub fn knows(&self, load: u64) -> bool {
        self.loads.contains_key(&load)
    }

    /// The value of one key of a load has come. An old one gives way to it: it is replaced, or removed where the new one is not kept. Only
    /// where that has no room and nobody waits for it the old one stays, for as long as it was to be served.
    pub fn land(
        &mut self,
        now: Time,
        load: u64,
        key: &Key,
        value: Result<Option<Arc<V>>, NoValue>,
        found: Found,
    ) -> Landing {
        let Some(known) = self.loads.get_mut(&load) else {
            return Landing::Nothing;
        };
        let rule = known.rule;
        let value = match value {
            Ok(value) => value,
            Err(why) => {
                if why.blames_the_source() {
                    known.failed = Some(true);
                    self.load_failed(now, rule, key);
                }
                if self.is_loading(key, load) {
                    self.fail(key, &why);
                }
                return Landing::Nothing;
            }
        };
        known.failed = known.failed.or(Some(false));
        self.backoffs.remove(key);
        if !self.is_loading(key, load) {
            return Landing::Nothing;
        }
        let Some(flight) = self.flights.of(key) else {
            return Landing::Nothing;
        };
        let newer = match flight.touched {
            Some(Change::Written) => found.present,
            Some(_) => false,
            // Whatever put it there did so without a word.
            None => found.present && !flight.present,
        };
        let (touched, is_awaited) = (flight.touched.is_some(), !flight.waiters.is_empty());
        if newer {
            self.count(rule, |counts| counts.dropped_by_lease += 1);
            self.settle_all(key, false);
            return Landing::Nothing;
        }
        if touched {
            self.count(rule, |counts| counts.dropped_by_lease += 1);
            self.lease_lost(now, load, key, value);
            return Landing::Nothing;
        }
        let cannot = value.is_some() && found.keep == Keep::Cannot;
        let landing = match found.keep {
            Keep::Yes if value.is_some() => Landing::Store,
            _ if found.present && found.may_delete && (is_awaited || !cannot) => Landing::Delete,
            _ if cannot => Landing::Unkept,
            _ => Landing::Nothing,
        };
        if value.is_none() {
            self.remember_absent(now, rule, key);
        }
        self.put_landed(key, value, false);
        if let Some(landed) = self.landed.of(key) {
            landed.in_effect = matches!(landing, Landing::Store | Landing::Delete) || !found.present;
        }
        self.settle_all(key, true);
        landing
    }

    /// All keys of a load have landed; or it ended without telling of some, which is a failure of those. Whether the breaker of its
    /// registration has opened or closed by that: `true` if it is open now.
    pub fn ended(&mut self, now: Time, load: u64) -> Option<bool> {
        let known = self.loads.remove(&load)?;
        let mut turned = None;
        if let Some(rule) = self.rules.get_mut(known.rule) {
            rule.counts.loading -= 1;
            match (rule.limits.breaker, known.failed) {
                (Some(limit), Some(failed)) => {
                    let was_open = rule.breaker.is_open();
                    rule.breaker.ended(load, failed, now, limit);
                    let is_open = rule.breaker.is_open();
                    turned = (was_open != is_open).then_some(is_open);
                }
                (Some(_), None) => rule.breaker.forget(load),
                (None, _) => {}
            }
        }
        self.begin_loads(now, known.rule);
        turned
    }

    /// The key of a load is another server's by now: whoever waits for it is told so when his command runs.
    pub fn moved_away(&mut self, load: u64, key: &Key) {
        if self.is_loading(key, load) {
            self.settle_all(key, false);
        }
    }

    pub(super) fn is_loading(&self, key: &Key, load: u64) -> bool {
        self.flights
            .at(key)
            .is_some_and(|flight| flight.stage == Stage::Loading(load))
    }

    pub(super) fn load_failed(&mut self, now: Time, id: Id, key: &Key) {
        let jitter = self.chance();
        let Some(rule) = self.rules.get_mut(id) else {
            return;
        };
        rule.counts.load_failures += 1;
        if rule.limits.backoff.is_zero() {
            return;
        }
        let before = self.backoffs.at(key).map(|&(_, backoff)| backoff);
        let (first, most) = (rule.limits.backoff, rule.limits.max_backoff);
        let backoff = Backoff::after_failure(before, now, first, most, jitter);
        self.forgotten += self.backoffs.insert(key, (id, backoff), self.bounds.backoffs);
    }

    /// Something happened to the key while the load ran. It is loaded again for those who wait, or answers without being kept
    /// for whom it was loaded often enough.
    pub(super) fn lease_lost(&mut self, now: Time, load: u64, key: &Key, value: Option<Arc<V>>) {
        let Some(flight) = self.flights.of(key) else {
            return;
        };
        let id = flight.rule;
        let waiters = std::mem::take(&mut flight.waiters);
        let mut tired = Vec::new();
        let mut rest = smallvec::SmallVec::new();
        for number in waiters {
            let Some(wanted) = self
                .waiters
                .get_mut(&number)
                .and_then(|waiter| waiter.open_for(key))
            else {
                continue;
            };
            let may_have_it = load > wanted.after;
            wanted.used += u8::from(may_have_it);
            if may_have_it && wanted.used >= MAX_LOADS {
                tired.push(number);
            } else {
                rest.push(number);
            }
        }
        let again = !rest.is_empty();
        if let Some(flight) = self.flights.of(key) {
            flight.live = rest.len();
            flight.waiters = rest;
            flight.stage = Stage::Queued;
            flight.background = false;
            flight.present = false;
        }
        if !tired.is_empty() {
            // Something has happened to it: who changes a part of it may not take it for what there is.
            self.put_landed(key, value, true);
            for number in tired {
                self.settle(number, key, true);
            }
        }
        if again {
            self.enqueue(now, id, smallvec::smallvec![key.clone()]);
        } else {
            self.flights.remove(key);
        }
    }

    pub(super) fn remember_absent(&mut self, now: Time, id: Id, key: &Key) {
        let Some(rule) = self.rules.get(id) else { return };
        if !rule.limits.negative_ttl.is_zero() {
            let until = now.saturating_add(rule.limits.negative_ttl);
            self.forgotten += self.absent.insert(key, (id, until), self.bounds.absent);
        }
    }

    pub(super) fn put_landed(&mut self, key: &Key, value: Option<Arc<V>>, void: bool) {
        let left = self.landed.at(key).map_or(0, |landed| landed.left);
        self.landed.insert(
            key,
            Landed {
                value,
                void,
                in_effect: !void,
                is_stored: false,
                held_until: None,
                left,
            },
        );
    }

    /// All who wait for the key are served. `landed`: by what was loaded.
    pub(super) fn settle_all(&mut self, key: &Key, landed: bool) {
        let Some(flight) = self.flights.remove(key) else {
            return;
        };
        for number in flight.waiters {
            self.settle(number, key, landed);
        }
        if self.landed.of(key).is_some_and(|landed| landed.left == 0) {
            self.landed.remove(key);
        }
    }

    pub(super) fn settle(&mut self, number: u64, key: &Key, landed: bool) {
        let Some(waiter) = self.waiters.get_mut(&number) else {
            return;
        };
        let Some(wanted) = waiter.open_for(key) else {
            return;
        };
        wanted.settled = true;
        wanted.landed = landed;
        waiter.open -= 1;
        if waiter.open == 0 {
            self.actions.push_back(Action::Ready { waiter: number });
        }
        if landed {
            if let Some(landed) = self.landed.of(key) {
                landed.left += 1;
                if let (true, Purpose::Refresh(count)) = (landed.in_effect, &mut waiter.purpose) {
                    *count += 1;
                }
            }
        }
    }

    /// Nobody gets a value for this key.
    pub(super) fn fail(&mut self, key: &Key, why: &NoValue) {
        let Some(flight) = self.flights.remove(key) else {
            return;
        };
        let refused = *why == NoValue::TooManyPending;
        for number in flight.waiters {
            let Some(waiter) = self.waiters.get_mut(&number) else {
                continue;
            };
            let purpose = waiter.purpose;
            let Some(wanted) = waiter.open_for(key) else {
                continue;
            };
            wanted.used = MAX_LOADS;
            if purpose.is_command() {
                self.count(flight.rule, |counts| counts.refusals += u64::from(refused));
            }
            if purpose.is_command() && !self.finds_nothing(flight.rule, purpose) {
                self.refuse(number, flight.rule, why.clone());
            } else {
                self.settle(number, key, false);
            }
        }
    }

    pub(super) fn refuse(&mut self, number: u64, rule: Id, why: NoValue) {
        if let Some(waiter) = self.waiters.get_mut(&number) {
            // Nothing else decides about it any more.
            waiter.open = 0;
            for wanted in waiter.wanted.iter_mut().filter(|wanted| !wanted.settled) {
                wanted.settled = true;
                if let Some(flight) = self.flights.of(&wanted.key) {
                    flight.live = flight.live.saturating_sub(1);
                }
            }
            self.actions.push_back(Action::Refuse {
                waiter: number,
                rule,
                why,
            });
        }
    }
}
