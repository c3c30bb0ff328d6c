//! Which changes wait for a call, and which are ahead of that.
//!
//! The changes of one key leave in their order. Those *ahead*, at the front of its chain, are in the call that runs or have failed;
//! all others wait. A chain is *open* while none is ahead: only the first change of an open chain stands in the line of those
//! that may go, and stands there for all of its key. So nothing that happens to one change touches those behind it, however many
//! there are.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use super::{Chain, Entry, Queue, Settled, Stage, Time, places::Line};
use crate::read_through::keys::Key;

/// What may go into a call.
#[derive(Default)]
pub struct Waiting {
    /// The first changes of all open chains.
    fronts: Line,
    /// How many changes those chains have.
    len: usize,
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn first(&self) -> Option<u64> {
        self.fronts.first()
    }

    /// The first one behind `place` that is the first of its key and `fits`.
    pub fn find_behind(&self, place: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
        self.fronts.find_behind(place, fits)
    }

    /// The last change of a chain is a new one.
    pub fn pushed(&mut self, chain: &Chain) {
        if chain.ahead > 0 {
            return;
        }
        self.len += 1;
        if chain.places.len() == 1 {
            self.opened_at(chain);
        }
    }

    fn opened_at(&mut self, chain: &Chain) {
        if let Some(front) = chain.places.front() {
            self.fronts.insert(front);
        }
    }

    fn open(&mut self, chain: &Chain) {
        self.len += chain.places.len();
        self.opened_at(chain);
    }

    /// One more change of a chain goes ahead: the first one that waited.
    fn take(&mut self, chain: &mut Chain) {
        if chain.ahead == 0 {
            self.len -= chain.places.len();
        }
        chain.ahead += 1;
    }

    /// A change leaves its chain.
    fn removed(&mut self, chain: &mut Chain, place: u64, waited: bool) {
        let was_open = chain.ahead == 0;
        chain.places.remove(place);
        if !waited {
            chain.ahead = chain.ahead.saturating_sub(1);
        }
        if was_open {
            self.len -= 1;
            self.fronts.remove(place);
            self.opened_at(chain);
        } else if chain.ahead == 0 {
            self.open(chain);
        }
    }
}

/// Those that have failed.
#[derive(Default)]
pub struct Failed {
    /// They failed with others.
    pub suspects: BTreeSet<u64>,
    /// They failed by themselves: when they are tried again, and their places.
    pub alone: BTreeSet<(Time, u64)>,
}

impl Failed {
    /// A change is no longer among those of its stage.
    fn leave(&mut self, place: u64, stage: Stage) {
        match stage {
            Stage::Suspect => drop(self.suspects.remove(&place)),
            Stage::Alone(at) => drop(self.alone.remove(&(at, place))),
            Stage::Waiting | Stage::Flying => {}
        }
    }

    fn enter(&mut self, place: u64, stage: Stage) {
        match stage {
            Stage::Suspect => drop(self.suspects.insert(place)),
            Stage::Alone(at) => drop(self.alone.insert((at, place))),
            Stage::Waiting | Stage::Flying => {}
        }
    }
}

impl<P> Queue<P> {
    /// The first of those that wait, at most so many: they go into a call.
    pub(super) fn take_waiting(&mut self, most: usize) -> Vec<u64> {
        let mut places = Vec::with_capacity(most.min(self.waiting.len()));
        // Of the keys that have changes in this call: the next ones.
        let mut next = BinaryHeap::new();
        while places.len() < most {
            let first = self.waiting.first();
            let place = match (next.peek(), first) {
                (Some(&Reverse(behind)), first) if first.is_none_or(|first| behind < first) => {
                    next.pop();
                    behind
                }
                (_, Some(first)) => {
                    self.waiting.fronts.remove(first);
                    first
                }
                (_, None) => break,
            };
            let Some(entry) = self.entries.get_mut(place) else {
                continue;
            };
            entry.stage = Stage::Flying;
            if let Some(chain) = self.chains.of(&entry.change.key) {
                self.waiting.take(chain);
                next.extend(chain.places.nth(chain.ahead).map(Reverse));
            }
            places.push(place);
        }
        places
    }

    /// A change goes into a call which has failed before, or is the first of its key.
    pub(super) fn take(&mut self, place: u64) {
        let Some(entry) = self.entries.get_mut(place) else {
            return;
        };
        let before = std::mem::replace(&mut entry.stage, Stage::Flying);
        self.failed.leave(place, before);
        if before == Stage::Waiting {
            self.waiting.fronts.remove(place);
            if let Some(chain) = self.chains.of(&entry.change.key) {
                self.waiting.take(chain);
            }
        }
    }

    /// A change that is ahead is so for another reason.
    pub(super) fn set_stage(&mut self, place: u64, stage: Stage) {
        if let Some(entry) = self.entries.get_mut(place) {
            let before = std::mem::replace(&mut entry.stage, stage);
            self.failed.leave(place, before);
            self.failed.enter(place, stage);
        }
    }

    /// Of the changes of a key that are ahead only the first ones are it any longer, so many: the others wait again.
    pub(super) fn keep_ahead(&mut self, key: &Key, most: usize) {
        let Some(chain) = self.chains.of(key) else { return };
        if chain.ahead <= most {
            return;
        }
        for place in (most..chain.ahead).filter_map(|at| chain.places.nth(at)) {
            if let Some(entry) = self.entries.get_mut(place) {
                let before = std::mem::replace(&mut entry.stage, Stage::Waiting);
                self.failed.leave(place, before);
            }
        }
        chain.ahead = most;
        if most == 0 {
            self.waiting.open(chain);
        }
    }

    /// The same: all behind this one wait again.
    pub(super) fn keep_ahead_to(&mut self, key: &Key, place: u64) {
        if let Some(chain) = self.chains.of(key) {
            let most = chain.places.before(place) + 1;
            self.keep_ahead(key, most);
        }
    }

    /// True if no other change of its key stands before it.
    pub(super) fn is_front(&self, place: u64) -> bool {
        let entry = self.entries.get(place);
        let chain = entry.and_then(|entry| self.chains.at(&entry.change.key));
        chain.is_some_and(|chain| chain.places.front() == Some(place))
    }

    /// Takes a change out whose key is done with it. What stood behind it may come.
    pub(super) fn remove(&mut self, place: u64, settled: &Settled) -> Option<Entry<P>> {
        let entry = self.entries.remove(place)?;
        self.bytes -= super::size_of(&entry.change);
        self.failed.leave(place, entry.stage);
        for &waiter in &entry.waiters {
            self.settled.push((waiter, settled.clone()));
        }
        self.chains.change(&entry.change.key, |chain| {
            self.waiting.removed(chain, place, entry.stage == Stage::Waiting);
            chain.places.front().is_some()
        });
        Some(entry)
    }
}
