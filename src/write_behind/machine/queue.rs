//! Changes come into a queue and leave it.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Change, Counts, Entry, Gone, Limits, Queue, Settled, Stage, TRIES_BEFORE_HALVING, Time,
    chains::{Failed, Waiting},
    size_of,
    store::Store,
};
use crate::read_through::{bounded::Bounded, keys::ByKey};

/// So many who wait for one change are not counted.
const MANY_WAITERS: usize = 16;

impl<P> Queue<P> {
    /// `seed`: of the jitter.
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            narrow: limits.batch.max(1),
            limits,
            counts: Counts::default(),
            entries: Store::default(),
            chains: ByKey::default(),
            waiting: Waiting::default(),
            failed: Failed::default(),
            unproven: BTreeSet::new(),
            flight: None,
            bytes: 0,
            last_place: 0,
            last_call: 0,
            failures: 0,
            streak: 0,
            rests_until: None,
            paced_until: Time::ZERO,
            successes: 0,
            last_failure: None,
            turn: 0,
            probe: None,
            random: fastrand::Rng::with_seed(seed),
            settled: Vec::new(),
            given_up: Bounded::default(),
        }
    }

    /// How long a call may take.
    pub fn max_save_time(&self) -> Duration {
        self.limits.max_save_time
    }

    /// A registration with other options takes over.
    pub fn set_limits(&mut self, limits: Limits) {
        self.narrow = limits.batch.max(1);
        self.limits = limits;
        self.rests_until = None;
        if self.limits.ordered {
            // What failed by itself lets nothing pass any more.
            for (_, place) in std::mem::take(&mut self.failed.alone) {
                self.set_stage(place, Stage::Suspect);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How long the oldest change has been there.
    pub fn age(&self, now: Time) -> Time {
        let oldest = self.entries.iter().next().map(|(_, entry)| entry.since);
        oldest.map_or(Time::ZERO, |since| now.saturating_sub(since))
    }

    /// No more changes are to come, but for those that replace others.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.limits.max_entries || self.bytes >= self.limits.max_bytes
    }

    /// The newest change of a key.
    pub fn newest(&self, db: i32, name: &[u8]) -> Option<&Change<P>> {
        let place = self.chains.get(db, name)?.places.back()?;
        self.entries.get(place).map(|entry| &entry.change)
    }

    /// True if it is there already, or a newer one of its key: what a file has of a moment is told again by what follows it.
    pub fn has(&self, change: &Change<P>) -> bool {
        let newest = self.newest(change.key.db, &change.key.name);
        newest.is_some_and(|newest| newest.id >= change.id)
    }

    /// Whether a change of the key would take the place of an older one.
    pub fn replaces(&self, db: i32, name: &[u8]) -> bool {
        let last = self.chains.get(db, name).and_then(|chain| chain.places.back());
        last.is_some_and(|place| is_replaceable(&self.limits, &self.entries, self.last_place, place))
    }

    /// A change has happened. `waiters`: who waits until it is saved.
    pub fn add(&mut self, now: Time, change: Change<P>, waiters: impl IntoIterator<Item = u64>) {
        self.counts.captured += 1;
        self.bytes += size_of(&change);
        let new = self.last_place + 1;
        let chain = self.chains.of_or_default(&change.key);
        let last = chain.places.back();
        let replaced =
            last.filter(|&place| is_replaceable(&self.limits, &self.entries, self.last_place, place));
        if let Some(place) = replaced {
            return self.replace(place, change, waiters);
        }
        chain.places.push(new);
        self.waiting.pushed(chain);
        self.last_place = new;
        self.entries.push(
            new,
            Entry {
                change,
                since: now,
                tries: 0,
                tries_alone: 0,
                probed: 0,
                first_failed: None,
                stage: Stage::Waiting,
                why: None,
                waiters: waiters.into_iter().collect(),
            },
        );
    }

    /// Forgets who waits no more for the newest change of a key, from time to time: before the list of them grows. Changes of an
    /// outage that replace each other would gather all clients of that time.
    pub fn forget_waiters(&mut self, db: i32, name: &[u8], waits: impl Fn(u64) -> bool) {
        let newest = self.chains.get(db, name).and_then(|chain| chain.places.back());
        let Some(entry) = newest.and_then(|place| self.entries.get_mut(place)) else {
            return;
        };
        if entry.waiters.len() >= MANY_WAITERS && entry.waiters.len() == entry.waiters.capacity() {
            entry.waiters.retain(|waiter| waits(*waiter));
        }
    }

    /// It takes the place of an older one of its key.
    fn replace(&mut self, place: u64, change: Change<P>, waiters: impl IntoIterator<Item = u64>) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        self.bytes -= size_of(&entry.change);
        entry.change = change;
        entry.waiters.extend(waiters);
        // It is another change than the one that failed. How often its place has failed stays: else a key that changes all the time, and
        // fails each time, would keep the others from being saved.
        let has_failed_often = entry.tries >= TRIES_BEFORE_HALVING;
        entry.tries_alone = 0;
        entry.probed = 0;
        entry.first_failed = None;
        entry.why = None;
        self.counts.coalesced += 1;
        // One that had failed is like the others now.
        let is_let_in = match entry.stage {
            Stage::Alone(_) => !has_failed_often,
            Stage::Suspect => !self.limits.ordered && !has_failed_often,
            Stage::Waiting | Stage::Flying => false,
        };
        if is_let_in {
            let key = entry.change.key.clone();
            if self.is_front(place) {
                self.keep_ahead(&key, 0);
            }
        }
    }

    /// Another server has saved the changes of a key up to this one.
    pub fn remove_up_to(&mut self, gone: &Gone) {
        loop {
            let key = &gone.key;
            let first = self
                .chains
                .get(key.db, &key.name)
                .and_then(|chain| chain.places.front());
            let Some(first) = first else { return };
            let old = self
                .entries
                .get(first)
                .is_some_and(|entry| entry.change.id <= gone.id);
            if !old {
                return;
            }
            self.remove(first, &Settled::Saved);
            self.given_up.remove(key);
            self.counts.saved += 1;
        }
    }

    /// All changes in their order.
    pub fn changes(&self) -> impl Iterator<Item = &Change<P>> {
        self.entries.iter().map(|(_, entry)| &entry.change)
    }

    pub fn entry(&self, place: u64) -> Option<&Entry<P>> {
        self.entries.get(place)
    }

    /// Those who wait for a change that has left.
    pub fn take_settled(&mut self) -> Vec<(u64, Settled)> {
        std::mem::take(&mut self.settled)
    }

    /// All who wait for one of its changes, or did.
    pub fn waiters(&self) -> impl Iterator<Item = u64> {
        let entries = self.entries.iter();
        entries.flat_map(|(_, entry)| entry.waiters.iter().copied())
    }

    /// The id up to which a change stands for its key.
    pub(super) fn gone(entry: &Entry<P>) -> Gone {
        Gone {
            key: entry.change.key.clone(),
            id: entry.change.id,
        }
    }
}

/// Whether a newer change takes the place of this one, the last of its key.
fn is_replaceable<P>(limits: &Limits, entries: &Store<Entry<P>>, last: u64, place: u64) -> bool {
    // In the order of all nothing is passed by.
    let passes = limits.ordered && place != last;
    let flying = || {
        let entry = entries.get(place);
        entry.is_none_or(|entry| entry.stage == Stage::Flying)
    };
    limits.coalesce && !passes && !flying()
}
