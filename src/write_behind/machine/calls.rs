//! Which changes go into the next call of `save`, and what follows from its end.
//!
//! A call that fails is made again after a rest, which doubles. When it has failed often enough its changes, the *suspects*, go
//! in by halves. One that fails alone is tried alone from then on, at times of its own, while the others go on. That another
//! call ends well tells it from an outage, in which all fail: then no change is given up.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::{
    Chain, Entry, FailedSave, Flight, GivenUp, Gone, MOST_GIVEN_UP, Queue, Settled, Stage,
    TRIES_BEFORE_HALVING, Time, size_of,
};
use crate::backoff;

/// From where the next changes come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Suspects,
    Ready,
    Alone,
}

impl<P> Queue<P> {
    /// Begins a call, if it is time for one. Its number, and the places of its changes.
    pub fn begin(&mut self, now: Time) -> Option<(u64, Vec<u64>)> {
        if self.flight.is_some() || self.rests_until.is_some_and(|until| now < until) {
            return None;
        }
        let (from, places) = self.choose(now)?;
        self.last_call += 1;
        self.paced_until = now.saturating_add(self.limits.pace);
        self.flight = Some(Flight {
            call: self.last_call,
            places: places.clone(),
            suspects: from == From::Suspects,
            begun: now,
            deadline: now.saturating_add(self.limits.max_save_time),
            stopped: false,
            hurried: false,
        });
        Some((self.last_call, places))
    }

    /// The changes of the next call, which are taken, and from where they come.
    fn choose(&mut self, now: Time) -> Option<(From, Vec<u64>)> {
        const TURNS: [[From; 3]; 3] = [
            [From::Suspects, From::Ready, From::Alone],
            [From::Ready, From::Alone, From::Suspects],
            [From::Alone, From::Suspects, From::Ready],
        ];
        self.probe = self.probe.filter(|(place, _)| self.entries.get(*place).is_some());
        if let Some((place, _)) = self.probe {
            self.take(place);
            return Some((From::Ready, vec![place]));
        }
        // While nothing ends well, those that failed come first: there is no use in drawing others in.
        let first = if self.failures > 0 || self.limits.ordered {
            0
        } else {
            usize::from(self.turn)
        };
        self.turn = (self.turn + 1) % 3;
        TURNS[first]
            .into_iter()
            .find_map(|from| Some((from, self.choose_from(from, now)?)))
    }

    fn choose_from(&mut self, from: From, now: Time) -> Option<Vec<u64>> {
        let failed: Vec<u64> = match from {
            // In the order of all, nothing passes those that failed.
            From::Ready if self.limits.ordered && !self.failed.suspects.is_empty() => return None,
            From::Ready => {
                self.ready_at().filter(|at| *at <= now)?;
                let most = if self.failures > 0 {
                    self.narrow
                } else {
                    self.limits.batch
                };
                return Some(self.take_waiting(most.max(1)));
            }
            From::Suspects => self.failed.suspects.iter().take(self.narrow).copied().collect(),
            From::Alone => {
                let first = self.failed.alone.first().filter(|(at, _)| *at <= now);
                first.into_iter().map(|(_, place)| *place).collect()
            }
        };
        for &place in &failed {
            self.take(place);
        }
        (!failed.is_empty()).then_some(failed)
    }

    /// When those that have not failed may go.
    fn ready_at(&self) -> Option<Time> {
        let first = self.entries.get(self.waiting.first()?)?;
        if self.waiting.len() >= self.limits.batch {
            return Some(Time::ZERO);
        }
        let at = first.since.saturating_add(self.limits.interval);
        Some(if self.is_full() {
            at
        } else {
            at.max(self.paced_until)
        })
    }

    /// When [`Queue::overdue`] is to be called next, if a call runs.
    pub fn call_ends(&self) -> Option<Time> {
        self.flight.as_ref().map(|flight| flight.deadline)
    }

    /// When [`Queue::begin`] or [`Queue::overdue`] is to be called next.
    pub fn next_due(&self) -> Option<Time> {
        if let Some(end) = self.call_ends() {
            return Some(end);
        }
        let suspects = (!self.failed.suspects.is_empty()).then_some(Time::ZERO);
        let alone = self.failed.alone.first().map(|(at, _)| *at);
        let ready = self
            .ready_at()
            .filter(|_| !self.limits.ordered || suspects.is_none());
        let first = suspects.into_iter().chain(ready).chain(alone).min()?;
        Some(first.max(self.rests_until.unwrap_or_default()))
    }

    pub fn is_flying(&self, call: u64) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.call == call)
    }

    /// A call has ended well: what is gone with it.
    pub fn saved(&mut self, call: u64) -> Vec<Gone> {
        let Some(flight) = self.flight.take_if(|flight| flight.call == call) else {
            return Vec::new();
        };
        let before = self.successes;
        self.successes += 1;
        self.counts.batches += 1;
        self.streak += 1;
        self.rests_until = None;
        self.probe = None;
        self.last_failure = None;
        let unproven = std::mem::take(&mut self.unproven);
        if std::mem::take(&mut self.failures) > 0 {
            self.forgive(unproven, before);
        }
        let mut gone = Vec::with_capacity(flight.places.len());
        for place in flight.places {
            if let Some(entry) = self.remove(place, &Settled::Saved) {
                self.counts.saved += 1;
                if !self.given_up.is_empty() {
                    self.given_up.remove(&entry.change.key);
                }
                gone.push(Gone {
                    key: entry.change.key,
                    id: entry.change.id,
                });
            }
        }
        if self.failed.suspects.is_empty() {
            self.narrow = self.limits.batch.max(1);
        } else if self.streak > 1 {
            self.narrow = self.narrow.saturating_mul(2).min(self.limits.batch.max(1));
        }
        gone
    }

    /// The outage is over: who failed alone in it is as good as the others.
    fn forgive(&mut self, unproven: BTreeSet<u64>, successes: u64) {
        for place in unproven {
            let entry = self.entries.get(place);
            let is_alone = entry.is_some_and(|entry| {
                matches!(entry.stage, Stage::Alone(_)) && entry.first_failed == Some(successes)
            });
            if is_alone {
                self.set_stage(place, Stage::Suspect);
            }
        }
    }

    /// A call has failed. The place of a change that is to be given up, which stays until [`Queue::bury`].
    pub fn failed(&mut self, now: Time, call: u64, why: &Arc<FailedSave>) -> Option<u64> {
        let flight = self.flight.take_if(|flight| flight.call == call)?;
        let places = flight.places.clone();
        let hurried = flight.hurried;
        let given_up = self.settle_failed(now, flight, why);
        if hurried {
            self.hurry(now, true);
        }
        for place in places.into_iter().filter(|place| Some(*place) != given_up) {
            self.supersede(place);
        }
        given_up
    }

    fn settle_failed(&mut self, now: Time, flight: Flight, why: &Arc<FailedSave>) -> Option<u64> {
        let places: Vec<u64> = flight
            .places
            .into_iter()
            .filter(|place| self.entries.get(*place).is_some())
            .collect();
        self.counts.failures += 1;
        self.last_failure = Some(Arc::clone(why));
        self.counts.retried += places.len() as u64;
        self.streak = 0;
        for place in &places {
            if let Some(entry) = self.entries.get_mut(*place) {
                entry.why = Some(Arc::clone(why));
            }
        }
        if let Some(probe) = self.probe.take() {
            self.failed_probe(now, probe);
            return None;
        }
        let mut most = 0;
        for place in &places {
            if let Some(entry) = self.entries.get_mut(*place) {
                entry.tries = entry.tries.saturating_add(1);
                entry.first_failed.get_or_insert(self.successes);
                most = most.max(entry.tries);
            }
        }
        if let [place] = places.as_slice() {
            return self.failed_alone(now, *place);
        }
        for &place in &places {
            self.set_stage(place, Stage::Suspect);
            // Of its key one may be tried by itself that could not be read: nothing of it passes.
            if !self.failed.alone.is_empty() {
                self.keep_suspects(place);
            }
        }
        let threshold = self.limits.max_tries.unwrap_or(TRIES_BEFORE_HALVING);
        self.narrow = if most >= threshold {
            (places.len() / 2).max(1)
        } else {
            places.len().max(1)
        };
        self.rest(now);
        None
    }

    /// A newer change of its key has come while a change was in the call that failed: it takes its place now, and is tried when that
    /// would have been.
    fn supersede(&mut self, place: u64) {
        let coalesces = self.limits.coalesce && !self.limits.ordered;
        let Some(entry) = self.entries.get(place).filter(|_| coalesces) else {
            return;
        };
        let key = entry.change.key.clone();
        let is_front = |chain: &&Chain| chain.places.front() == Some(place);
        while let Some(behind) = self
            .chains
            .at(&key)
            .filter(is_front)
            .and_then(|chain| chain.places.nth(1))
        {
            let waiters = self
                .entries
                .get_mut(behind)
                .map(|entry| std::mem::take(&mut entry.waiters));
            let Some(newer) = self.remove(behind, &Settled::Saved) else {
                break;
            };
            if let Some(entry) = self.entries.get_mut(place) {
                self.bytes = self.bytes + size_of(&newer.change) - size_of(&entry.change);
                entry.change = newer.change;
                entry.waiters.extend(waiters.unwrap_or_default());
                // By itself it has not failed yet.
                (entry.tries_alone, entry.probed) = (0, 0);
                self.counts.coalesced += 1;
            }
        }
    }

    fn failed_alone(&mut self, now: Time, place: u64) -> Option<u64> {
        let entry = self.entries.get_mut(place)?;
        let others_go_on = entry.first_failed.is_some_and(|then| then < self.successes);
        // What failed in an outage, or with another one, says nothing of this change.
        entry.tries_alone += u32::from(others_go_on);
        let (key, tries, tries_alone) = (entry.change.key.clone(), entry.tries, entry.tries_alone);
        let enough = self.limits.max_tries.is_some_and(|most| tries_alone >= most);
        self.narrow = 1;
        if self.limits.ordered {
            self.set_stage(place, Stage::Suspect);
        } else {
            let again = now.saturating_add(self.delay(tries));
            self.set_stage(place, Stage::Alone(again));
            self.keep_ahead_to(&key, place);
            if !others_go_on {
                self.unproven.insert(place);
            }
        }
        if enough && others_go_on && self.limits.has_dead_letters {
            return Some(place);
        }
        if self.limits.ordered && !others_go_on {
            self.probe = self.choose_probe(place, tries);
        }
        if self.probe.is_none() && (!others_go_on || self.limits.ordered) {
            self.rest(now);
        }
        None
    }

    /// In the order of all nothing is saved behind a change that fails, so nothing would ever tell it from an outage. When it has
    /// failed often enough another one is tried in its place: the next whose key has no older change, and which has not
    /// failed so often itself.
    fn choose_probe(&self, head: u64, tries: u32) -> Option<(u64, Stage)> {
        let most = self.limits.max_tries.filter(|_| self.limits.has_dead_letters)?;
        if tries < most {
            return None;
        }
        let is_fit = |place: u64| self.entries.get(place).is_some_and(|entry| entry.probed < most);
        let mut suspects = self.failed.suspects.range(head.saturating_add(1)..).copied();
        let suspect = suspects.find(|place| is_fit(*place) && self.is_front(*place));
        let waiting = self.waiting.find_behind(head, is_fit);
        let place = suspect.into_iter().chain(waiting).min()?;
        Some((place, self.entries.get(place)?.stage))
    }

    /// It is where it was: those before it come first.
    fn failed_probe(&mut self, now: Time, (place, stage): (u64, Stage)) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.tries = entry.tries.saturating_add(1);
            entry.probed += 1;
        }
        self.put_back(place, stage);
        self.rest(now);
    }

    /// A change that was in a call is where it was before, and first of its key.
    fn put_back(&mut self, place: u64, stage: Stage) {
        if stage == Stage::Suspect {
            return self.set_stage(place, stage);
        }
        if let Some(entry) = self.entries.get(place) {
            let key = entry.change.key.clone();
            self.keep_ahead(&key, 0);
        }
    }

    /// Behind a change that has failed with others there are only suspects.
    fn keep_suspects(&mut self, place: u64) {
        let Some(entry) = self.entries.get(place) else {
            return;
        };
        let key = entry.change.key.clone();
        let behind = self.chains.at(&key).and_then(|chain| {
            let at = chain.places.before(place) + 1;
            chain.places.nth(at).filter(|_| at < chain.ahead)
        });
        let behind = behind.and_then(|behind| self.entries.get(behind));
        if behind.is_some_and(|behind| matches!(behind.stage, Stage::Alone(_))) {
            self.keep_ahead_to(&key, place);
        }
    }

    /// Nothing is called for a while.
    fn rest(&mut self, now: Time) {
        self.failures = self.failures.saturating_add(1);
        let delay = self.delay(self.failures);
        self.rests_until = Some(now.saturating_add(delay));
    }

    fn delay(&mut self, failures: u32) -> Duration {
        let (first, most) = (self.limits.backoff, self.limits.max_backoff);
        backoff::delay(failures, first, most, self.random.f64())
    }

    /// A change is given up: it stands elsewhere now.
    pub fn bury(&mut self, place: u64, why: &Arc<FailedSave>) -> Option<Entry<P>> {
        let entry = self.remove(place, &Settled::Lost(Arc::clone(why)))?;
        self.counts.dead += 1;
        let given_up = GivenUp {
            id: entry.change.id,
            why: Arc::clone(why),
        };
        self.given_up.insert(&entry.change.key, given_up, MOST_GIVEN_UP);
        if self.failed.suspects.is_empty() {
            self.narrow = self.limits.batch.max(1);
        }
        Some(entry)
    }

    /// A change that was to be given up could not be put away: it stays, and is tried again.
    pub fn not_buried(&mut self, now: Time) {
        // In the order of all it has no time of its own.
        if self.limits.ordered {
            self.rest(now);
        }
    }

    /// Changes of the call that is to begin cannot be read, and could not be put away: they stay, and come again at a time of their own.
    /// Whatever has to come behind one of them stays with it.
    pub fn held_back(&mut self, now: Time, call: u64, unreadable: &[u64]) {
        let Some(mut flight) = self.flight.take_if(|flight| flight.call == call) else {
            return;
        };
        if let Some(probe) = self.probe.take_if(|(place, _)| unreadable.contains(place)) {
            return self.failed_probe(now, probe);
        }
        let mut behind = false;
        for &place in &flight.places {
            let is_one = unreadable.binary_search(&place).is_ok();
            let Some(entry) = self.entries.get_mut(place) else {
                continue;
            };
            entry.tries = entry.tries.saturating_add(u32::from(is_one));
            let (key, tries) = (entry.change.key.clone(), entry.tries);
            behind |= is_one && self.limits.ordered;
            if behind {
                self.set_stage(place, Stage::Suspect);
            } else if is_one && entry.stage == Stage::Flying {
                let again = now.saturating_add(self.delay(tries));
                self.set_stage(place, Stage::Alone(again));
                self.keep_ahead_to(&key, place);
            }
        }
        if behind {
            self.rest(now);
        }
        let flies = |place: &u64| {
            let entry = self.entries.get(*place);
            entry.is_some_and(|entry| entry.stage == Stage::Flying)
        };
        flight.places.retain(flies);
        self.flight = Some(flight);
    }

    /// What the call that is to begin has. If that is nothing it does not begin, and counts for nothing.
    pub fn flying(&mut self, call: u64) -> Vec<&Entry<P>> {
        let flight = self.flight.iter().filter(|flight| flight.call == call);
        let places = flight.flat_map(|flight| &flight.places);
        let found: Vec<_> = places.filter_map(|place| self.entries.get(*place)).collect();
        if found.is_empty() {
            self.flight = None;
        }
        found
    }

    /// What is gone with a change that was buried.
    pub fn gone_with(entry: &Entry<P>) -> Gone {
        Self::gone(entry)
    }

    /// The server stops calling: whatever runs, its end is of no interest.
    pub fn ground(&mut self) {
        let probe = self.probe.take();
        let Some(flight) = self.flight.take() else { return };
        let failed = flight.suspects || (self.limits.ordered && !self.failed.suspects.is_empty());
        let stage = if failed { Stage::Suspect } else { Stage::Waiting };
        for place in flight.places {
            let stage = probe
                .filter(|probe| probe.0 == place)
                .map_or(stage, |probe| probe.1);
            self.put_back(place, stage);
        }
    }

    /// Why the last call failed, if it did.
    pub fn last_failure(&self) -> Option<&FailedSave> {
        self.last_failure.as_deref()
    }

    /// How many changes have failed so far.
    pub fn failing(&self) -> usize {
        self.failed.suspects.len() + self.failed.alone.len()
    }
}
