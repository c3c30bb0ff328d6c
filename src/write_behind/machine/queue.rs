//! Changes come into a queue and leave it.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Change, Counts, Entry, Gone, Limits, OVERHEAD, Queue, Settled, Stage, Time, places::Line, store::Store,
};
use crate::read_through::keys::{ByKey, Key};

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
            ready: Line::default(),
            suspects: BTreeSet::new(),
            alone: BTreeSet::new(),
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
            random: seed | 1,
            settled: Vec::new(),
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
            for place in std::mem::take(&mut self.alone) {
                self.suspects.insert(place);
                if let Some(entry) = self.entries.get_mut(place) {
                    entry.stage = Stage::Suspect;
                }
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
        // Whatever is parked stands behind an older one.
        let flying = self
            .flight
            .iter()
            .flat_map(|flight| flight.places.iter().copied());
        let failed = self.suspects.iter().chain(&self.alone).copied();
        let places = self.ready.first().into_iter().chain(flying).chain(failed);
        let times = places.filter_map(|place| self.entries.get(place));
        let oldest = times.map(|entry| entry.since).min();
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

    /// A change has happened.
    pub fn add(&mut self, now: Time, change: Change<P>, waiter: Option<u64>) {
        self.counts.captured += 1;
        self.bytes += size_of(&change);
        let new = self.last_place + 1;
        let chain = self.chains.of_or_default(&change.key);
        let last = chain.places.back();
        let replaced =
            last.filter(|&place| is_replaceable(&self.limits, &self.entries, self.last_place, place));
        if let Some(place) = replaced {
            return self.replace(place, change, waiter);
        }
        chain.places.push(new);
        let held = chain.held;
        self.last_place = new;
        let stage = if held { Stage::Parked } else { Stage::Ready };
        if stage == Stage::Ready {
            self.ready.insert(new);
        }
        self.entries.push(
            new,
            Entry {
                change,
                since: now,
                tries: 0,
                tries_alone: 0,
                probed: 0,
                first_failed: None,
                stage,
                waiters: waiter.into_iter().collect(),
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
    fn replace(&mut self, place: u64, change: Change<P>, waiter: Option<u64>) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        self.bytes -= size_of(&entry.change);
        entry.change = change;
        entry.waiters.extend(waiter);
        // It is another change than the one that failed.
        entry.tries = 0;
        entry.tries_alone = 0;
        entry.probed = 0;
        entry.first_failed = None;
        self.counts.coalesced += 1;
        if matches!(entry.stage, Stage::Alone(_) | Stage::Suspect) {
            self.let_in(place);
        }
    }

    /// A change that had failed was replaced: it is one like the others.
    fn let_in(&mut self, place: u64) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        let first = match self.chains.of(&entry.change.key) {
            Some(chain) if chain.places.front() == Some(place) => chain,
            _ => return,
        };
        if matches!(entry.stage, Stage::Alone(_)) || (entry.stage == Stage::Suspect && !self.limits.ordered) {
            entry.stage = Stage::Ready;
            first.held = false;
            self.suspects.remove(&place);
            self.alone.remove(&place);
            self.ready.insert(place);
        }
    }

    /// Takes a change out whose key is done with it. What stood behind it may come.
    pub(super) fn remove(&mut self, place: u64, settled: &Settled) -> Option<Entry<P>> {
        let entry = self.entries.remove(place)?;
        self.bytes -= size_of(&entry.change);
        self.leave(place, entry.stage);
        for &waiter in &entry.waiters {
            self.settled.push((waiter, settled.clone()));
        }
        let key = &entry.change.key;
        let mut held = false;
        self.chains.change(key, |chain| {
            chain.places.remove(place);
            held = chain.held;
            !chain.places.is_empty()
        });
        if held {
            self.release(key);
        }
        Some(entry)
    }

    /// A change is no longer among those of its stage.
    pub(super) fn leave(&mut self, place: u64, stage: Stage) {
        match stage {
            Stage::Ready => self.ready.remove(place),
            Stage::Suspect => drop(self.suspects.remove(&place)),
            Stage::Alone(_) => drop(self.alone.remove(&place)),
            Stage::Parked | Stage::Flying => {}
        }
    }

    /// What is parked in a chain may come if nothing before it has failed.
    fn release(&mut self, key: &Key) {
        let Some(chain) = self.chains.of(key) else { return };
        let parked = chain
            .places
            .front()
            .and_then(|first| self.entries.get(first))
            .is_some_and(|first| first.stage == Stage::Parked);
        if !chain.held || !parked {
            return;
        }
        chain.held = false;
        for place in chain.places.iter() {
            if let Some(entry) = self.entries.get_mut(place) {
                entry.stage = Stage::Ready;
                self.ready.insert(place);
            }
        }
    }

    /// A change of the key has failed, which stands first: the others wait behind it.
    pub(super) fn hold(&mut self, key: &Key, first: u64) {
        let Some(chain) = self.chains.of(key) else { return };
        chain.held = true;
        for place in chain.places.iter().filter(|place| *place > first) {
            let Some(entry) = self.entries.get_mut(place) else {
                continue;
            };
            entry.stage = Stage::Parked;
            self.ready.remove(place);
            self.suspects.remove(&place);
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

    /// The queue ends: all who wait for one of its changes.
    pub fn into_waiters(self) -> Vec<u64> {
        self.entries
            .into_values()
            .flat_map(|entry| entry.waiters)
            .collect()
    }

    /// The id up to which a change stands for its key.
    pub(super) fn gone(entry: &Entry<P>) -> Gone {
        Gone {
            key: entry.change.key.clone(),
            id: entry.change.id,
        }
    }

    /// A number from 0 to 1 (xorshift).
    pub(super) fn chance(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
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

fn size_of<P>(change: &Change<P>) -> usize {
    OVERHEAD + change.key.name.len() + change.size
}
