//! Slots that have come here, and changes of `write_behind` that were captured where they were before and are not saved yet. A slot that
//! was not here when it was looked last is *young*; it is settled when each other shard has said that it neither serves it nor has a change
//! of a key in it. What is loaded of young slots asks before (`read_through/elsewhere.rs`). Contract: docs/contract/write-behind.md 2.3 and 2.6.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_bytes::ByteBuf;

use super::{
    Cluster,
    message::{Question, Said},
    questions::Answers,
    topology::Topology,
};
use crate::{
    engine::{
        id::ShardId,
        members::{SLOTS, Slots},
    },
    mutex::Mutex,
    read_through::{Elsewhere, ReadThrough, Unsaved},
    server::{
        api, key,
        lock::{self, Lock},
        slots::slot_of,
    },
};

/// How long others may take for an answer, before they are asked again.
const LIMIT: Duration = Duration::from_secs(1);

/// For so long loads wait for a shard that does not answer. Then they go on without it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Slots are not asked for more often than that.
const PACE: Duration = Duration::from_millis(200);

/// In longer queues nobody looks for slots: there may be some of each.
const LONG: usize = 20_000;

/// Some of the slots.
#[derive(Clone)]
pub(super) struct SlotSet(Box<[u64]>);

impl Default for SlotSet {
    fn default() -> Self {
        Self(vec![0; usize::from(SLOTS) / 64].into())
    }
}

impl SlotSet {
    fn of(topology: &Topology) -> Self {
        let mut set = Self::default();
        let mine = topology.shards.get(&topology.me);
        for &(first, last) in mine.iter().flat_map(|shard| &shard.slots) {
            (first..=last).for_each(|slot| set.put(slot, true));
        }
        set
    }

    fn has(&self, slot: u16) -> bool {
        let word = self.0.get(usize::from(slot / 64));
        word.is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }

    fn put(&mut self, slot: u16, is_in: bool) {
        if let Some(word) = self.0.get_mut(usize::from(slot / 64)) {
            let bit = 1 << (slot % 64);
            *word = if is_in { *word | bit } else { *word & !bit };
        }
    }

    fn ranges(&self) -> Vec<Slots> {
        let mut ranges: Vec<Slots> = Vec::new();
        for slot in (0..SLOTS).filter(|&slot| self.has(slot)) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == slot => *last = slot,
                _ => ranges.push((slot, slot)),
            }
        }
        ranges
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Moved {
    behind: OnceLock<Arc<dyn Unsaved>>,
    slots: Mutex<Known>,
    silent: Mutex<HashMap<ShardId, Silence>>,
    /// Something was to be loaded of a young slot.
    is_wanted: AtomicBool,
    is_asking: AtomicBool,
}

#[derive(Default)]
struct Known {
    owned: SlotSet,
    settled: SlotSet,
    /// Since when slots are here that came while this server ran (Unix time in milliseconds).
    since: BTreeMap<u16, u64>,
    /// Somebody has moved them since they were looked at.
    moving: BTreeSet<u16>,
    epoch: Option<u64>,
    has_looked: bool,
    /// How often something has changed.
    changes: u64,
    asked: Option<Instant>,
}

impl Known {
    fn look(&mut self, owned: SlotSet, epoch: Option<u64>, now_ms: u64) {
        let is_same = self.has_looked && self.owned.0 == owned.0;
        if is_same && self.epoch == epoch && self.moving.is_empty() {
            return;
        }
        self.changes += 1;
        if self.epoch != epoch {
            // A slot may have gone and come back since: who takes one from another shard has a new epoch.
            self.settled = SlotSet::default();
        }
        let moving = std::mem::take(&mut self.moving);
        for slot in 0..SLOTS {
            let (had, has) = (self.owned.has(slot) && !moving.contains(&slot), owned.has(slot));
            if has && !had && self.has_looked {
                self.since.insert(slot, now_ms);
            }
            if !has {
                self.since.remove(&slot);
                self.settled.put(slot, false);
            }
        }
        (self.owned, self.epoch, self.has_looked) = (owned, epoch, true);
    }

    /// Somebody moves the slot: it is as if it came with the next look.
    fn unsettle(&mut self, slot: u16) {
        self.changes += 1;
        self.settled.put(slot, false);
        self.moving.insert(slot);
    }

    /// A replica has what its master has: if it takes its place, the slots are where they were.
    fn forget(&mut self) {
        *self = Self {
            changes: self.changes + 1,
            ..Self::default()
        };
    }

    fn young(&self) -> SlotSet {
        let mut young = self.owned.clone();
        for (word, settled) in young.0.iter_mut().zip(&self.settled.0) {
            *word &= !settled;
        }
        young
    }
}

/// A shard that has not answered since.
struct Silence {
    since: Instant,
    last: Instant,
    is_given_up: bool,
}

impl Moved {
    /// What the shard has said, or not. False if loads have to wait for its answer.
    fn note(&self, shard: ShardId, has_answered: bool) -> bool {
        let mut silent = self.silent.lock();
        if has_answered {
            silent.remove(&shard);
            return true;
        }
        let now = Instant::now();
        let begins = || Silence {
            since: now,
            last: now,
            is_given_up: false,
        };
        let silence = silent.entry(shard).or_insert_with(begins);
        if silence.last.elapsed() > PATIENCE {
            *silence = begins();
        }
        silence.last = now;
        if silence.since.elapsed() < PATIENCE {
            return false;
        }
        if !std::mem::replace(&mut silence.is_given_up, true) {
            api::log_warning(&format!(
                "shard {shard} does not say whether it has changes that are not saved (write_behind) of slots that may have been its own: what is loaded of \
                 them goes on without it, and may be older than such a change"
            ));
        }
        true
    }

    fn is_given_up(&self, shard: ShardId) -> bool {
        let silent = self.silent.lock();
        let silence = silent.get(&shard);
        silence.is_some_and(|silence| silence.is_given_up && silence.last.elapsed() < PATIENCE)
    }
}

impl Cluster {
    /// Told once who loads, and who has changes: where slots can move, loads ask here.
    pub fn connect_halves(&self, loads: &ReadThrough, behind: Arc<dyn Unsaved>) {
        // A second call cannot happen: the module cannot be loaded twice.
        let _ = self.moved.behind.set(behind);
        if let Some(this) = self.handle().upgrade().filter(|_| self.node) {
            loads.connect_elsewhere(this as _);
        }
    }

    /// The slots of this server were looked at.
    pub(super) fn slots_seen(&self, lock: Lock<'_>, topology: &Topology, epoch: Option<u64>) {
        let now_ms = u64::try_from(key::now_ms(lock)).unwrap_or(0);
        let owned = SlotSet::of(topology);
        let mut known = self.moved.slots.lock();
        if lock.is_master() {
            known.look(owned, epoch, now_ms);
        } else {
            known.forget();
        }
    }

    /// Asks all others for the young slots, if anything was to be loaded of one. On the cluster's thread.
    pub(super) fn settle(&self) {
        let moved = &self.moved;
        if !moved.is_wanted.load(Ordering::Acquire) || moved.is_asking.load(Ordering::Acquire) {
            return;
        }
        let (mut young, changes) = {
            let mut known = moved.slots.lock();
            if known.asked.is_some_and(|asked| asked.elapsed() < PACE) {
                return;
            }
            known.asked = Some(Instant::now());
            (known.young(), known.changes)
        };
        // This shard may have changes itself of a time before the slot has gone and come back.
        for slot in lock::with_lock(|lock| self.own_old_slots(lock, &young)) {
            young.put(slot, false);
        }
        let ranges = young.ranges();
        if ranges.is_empty() {
            return;
        }
        moved.is_asking.store(true, Ordering::Release);
        let this = self.handle();
        self.ask_all(&Question::Unsettled(ranges), LIMIT, move |_, answers| {
            if let Some(this) = this.upgrade() {
                this.moved.is_asking.store(false, Ordering::Release);
                this.settled(young, changes, answers);
            }
        });
    }

    fn settled(&self, mut young: SlotSet, changes: u64, answers: Answers) {
        let mut have_all_said = true;
        for (shard, answer) in answers {
            let has_said = if let Some(Ok(Said::Unsettled(slots))) = answer {
                for slot in slots {
                    young.put(slot, false);
                }
                true
            } else {
                false
            };
            self.moved.note(shard, has_said);
            have_all_said &= has_said;
        }
        let mut known = self.moved.slots.lock();
        if !have_all_said || known.changes != changes {
            return;
        }
        for (settled, now) in known.settled.0.iter_mut().zip(&young.0) {
            *settled |= now;
        }
        if known.young().ranges().is_empty() {
            self.moved.is_wanted.store(false, Ordering::Release);
        }
    }

    fn own_old_slots(&self, lock: Lock<'_>, young: &SlotSet) -> BTreeSet<u16> {
        let mut old = BTreeSet::new();
        let Some(behind) = self.moved.behind.get() else {
            return old;
        };
        let since = self.moved.slots.lock().since.clone();
        if since.is_empty() {
            return old;
        }
        let mut show = |name: &[u8], ms: u64| {
            let slot = slot_of(name);
            if since.get(&slot).is_some_and(|since| ms < *since) {
                old.insert(slot);
            }
        };
        if !behind.show_all(lock, LONG, &mut show) {
            old.extend(since.into_keys().filter(|slot| young.has(*slot)));
        }
        old
    }

    /// Another shard wants to know in which of these slots this one has changes that are not saved, or may come to have some.
    pub(super) fn unsettled(&self, lock: Lock<'_>, ranges: &[Slots]) -> Vec<u16> {
        let mut busy = {
            let known = self.moved.slots.lock();
            let mut busy = known.owned.clone();
            known.moving.iter().for_each(|&slot| busy.put(slot, true));
            busy
        };
        let is_short =
            self.moved.behind.get().is_none_or(|behind| {
                behind.show_all(lock, LONG, &mut |name, _| busy.put(slot_of(name), true))
            });
        let asked = ranges
            .iter()
            .flat_map(|&(first, last)| first..=last.min(SLOTS - 1));
        asked.filter(|&slot| !is_short || busy.has(slot)).collect()
    }

    /// Another shard wants to know of which of these keys this one has changes that are not saved.
    pub(super) fn unsaved(&self, lock: Lock<'_>, keys: &[(i32, ByteBuf)]) -> Vec<bool> {
        let behind = self.moved.behind.get();
        let is_changed =
            |(db, name): &(i32, ByteBuf)| behind.is_some_and(|behind| behind.is_changed(lock, *db, name));
        keys.iter().map(is_changed).collect()
    }

    /// Of which keys nobody has a change.
    fn free_keys(&self, count: usize, answers: Answers) -> Vec<bool> {
        let mut free = vec![true; count];
        for (shard, answer) in answers {
            match answer {
                Some(Ok(Said::Unsaved(unsaved))) if unsaved.len() == count => {
                    self.moved.note(shard, true);
                    for (free, unsaved) in free.iter_mut().zip(unsaved) {
                        *free &= !unsaved;
                    }
                }
                _ => {
                    if !self.moved.note(shard, false) {
                        free.fill(false);
                    }
                }
            }
        }
        free
    }
}

impl Elsewhere for Cluster {
    fn is_settled(&self, _lock: Lock<'_>, slot: u16) -> bool {
        self.moved.slots.lock().settled.has(slot)
    }

    fn own_since_ms(&self, _lock: Lock<'_>, slot: u16) -> Option<u64> {
        let known = self.moved.slots.lock();
        let since = || known.since.get(&slot).copied().unwrap_or(0);
        (known.owned.has(slot) && !known.moving.contains(&slot)).then(since)
    }

    fn unsettle(&self, _lock: Lock<'_>, slot: u16) {
        self.moved.slots.lock().unsettle(slot);
    }

    fn ask_others(&self, keys: Vec<(i32, Vec<u8>)>, done: Box<dyn FnOnce(Vec<bool>) + Send>) {
        let count = keys.len();
        if !self.moved.is_wanted.swap(true, Ordering::AcqRel) {
            self.later(Self::settle);
        }
        if !self.moved.slots.lock().has_looked {
            return done(vec![false; count]);
        }
        let shards: BTreeSet<ShardId> = self
            .other_shards()
            .into_iter()
            .filter(|shard| !self.moved.is_given_up(*shard))
            .collect();
        let names = keys.into_iter().map(|(db, name)| (db, ByteBuf::from(name)));
        let question = Question::Unsaved(names.collect());
        let this = self.handle();
        self.ask(&shards, &question, LIMIT, move |_, answers| {
            done(match this.upgrade() {
                Some(this) => this.free_keys(count, answers),
                None => vec![true; count],
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[Slots]) -> SlotSet {
        let mut set = SlotSet::default();
        for &(first, last) in ranges {
            (first..=last).for_each(|slot| set.put(slot, true));
        }
        set
    }

    #[test]
    fn slots_that_come_are_young_and_those_that_go_are_forgotten() {
        let mut known = Known::default();
        known.look(set(&[(0, 99), (16383, 16383)]), Some(1), 1000);
        assert_eq!(known.young().ranges(), [(0, 99), (16383, 16383)]);
        assert!(
            known.since.is_empty(),
            "what is there at the start is the newest here"
        );
        known.settled = known.owned.clone();
        known.look(set(&[(0, 100)]), Some(1), 2000);
        assert_eq!(known.young().ranges(), [(100, 100)]);
        assert_eq!(known.since.get(&100), Some(&2000));
        let changes = known.changes;
        known.look(set(&[(0, 100)]), Some(1), 3000);
        assert_eq!(known.changes, changes);
        known.look(set(&[(0, 100)]), Some(2), 4000);
        assert_eq!(
            known.young().ranges(),
            [(0, 100)],
            "one of them may have been away"
        );
        known.look(set(&[(0, 99)]), Some(2), 5000);
        assert!(known.since.is_empty());
        known.settled = known.owned.clone();
        known.unsettle(7);
        assert_eq!(known.young().ranges(), [(7, 7)]);
        known.look(set(&[(0, 99)]), Some(2), 6000);
        assert_eq!(known.since.get(&7), Some(&6000));
    }

    #[test]
    fn who_does_not_answer_is_waited_for_for_a_while() {
        let moved = Moved::default();
        let shard = ShardId::STANDALONE;
        assert!(!moved.note(shard, false));
        if let Some(silence) = moved.silent.lock().get_mut(&shard) {
            silence.since = Instant::now().checked_sub(PATIENCE).unwrap_or(silence.since);
            // There is no log to say it in.
            silence.is_given_up = true;
        }
        assert!(moved.note(shard, false));
        assert!(moved.is_given_up(shard));
        assert!(moved.note(shard, true));
        assert!(!moved.is_given_up(shard));
    }
}
