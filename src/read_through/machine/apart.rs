//! Keys of which another shard may have changes that are not saved: their loads do not begin before it is known that it has none.

use smallvec::smallvec;

use super::{Keys, Machine, Stage, Time};
use crate::read_through::keys::Key;

impl<V> Machine<V> {
    /// These keys of a load that was to begin wait apart, until [`Machine::resume`]: it is as if it had not begun for them. Those that
    /// are left.
    pub fn set_apart(&mut self, now: Time, load: u64, keys: &[Key]) -> Keys {
        let Some(known) = self.loads.get_mut(&load) else {
            return Keys::new();
        };
        known.keys.retain(|key| !keys.contains(key));
        let (id, left) = (known.rule, known.keys.clone());
        for key in keys {
            if let Some(flight) = self.flights.of(key) {
                if flight.stage == Stage::Loading(load) {
                    flight.stage = Stage::Queued;
                }
            }
        }
        if let Some(rule) = self.rules.get_mut(id) {
            rule.counts.loads = rule.counts.loads.saturating_sub(keys.len() as u64);
            if left.is_empty() {
                rule.counts.batches = rule.counts.batches.saturating_sub(1);
                rule.counts.loading -= 1;
                rule.breaker.forget(load);
            }
        }
        if left.is_empty() {
            self.loads.remove(&load);
            self.begin_loads(now, id);
        }
        left
    }

    /// Whether the load of a key has not begun. One for which nobody waits any more is forgotten.
    pub fn waits_apart(&mut self, key: &Key) -> bool {
        let Some(flight) = self.flights.at(key) else {
            return false;
        };
        let (is_queued, is_wanted) = (
            flight.stage == Stage::Queued,
            flight.live > 0 || flight.background,
        );
        if is_queued && !is_wanted {
            self.flights.remove(key);
        }
        is_queued && is_wanted
    }

    /// It is known that nobody has a change of the key: its load may begin.
    pub fn resume(&mut self, now: Time, key: &Key) {
        let Some(flight) = self.flights.of(key) else {
            return;
        };
        flight.cleared = true;
        let rule = flight.rule;
        self.enqueue(now, rule, smallvec![key.clone()]);
    }

    /// Whether that is known for the load that is about to begin.
    pub fn take_cleared(&mut self, key: &Key) -> bool {
        let flight = self.flights.of(key);
        flight.is_some_and(|flight| std::mem::take(&mut flight.cleared))
    }

    /// The key is another server's: whoever waits for it is told so when his command runs.
    pub fn given_away(&mut self, key: &Key) {
        self.settle_all(key, false);
    }
}
