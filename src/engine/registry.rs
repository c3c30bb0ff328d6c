//! What exists: executions, registrations, sessions; and how long finished executions are kept.
//!
//! Retention: docs/contract/commands.md 3.6. Only finished executions are evicted, so nothing that runs is ever lost.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::BuildHasherDefault,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;

use super::{
    distributed_run::DistributedRun,
    execution::Execution,
    id::{Id, ShardId},
    registration::Registration,
    run_message::Listing,
    session::{Session, Sessions},
    start::Start,
};
use crate::{hashing::NumberHasher, mutex::Mutex};

/// The tables of one server.
pub struct Registry {
    /// What the ids made here begin with.
    shard: RwLock<ShardId>,
    executions: Mutex<Executions>,
    /// In the order of registration.
    registrations: Mutex<BTreeMap<Id, Arc<Registration>>>,
    sessions: Mutex<Sessions>,
    next_execution: AtomicU64,
    next_registration: AtomicU64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            shard: RwLock::new(ShardId::STANDALONE),
            executions: Mutex::default(),
            registrations: Mutex::default(),
            sessions: Mutex::default(),
            next_execution: AtomicU64::default(),
            next_registration: AtomicU64::default(),
        }
    }
}

#[derive(Default)]
struct Executions {
    by_id: HashMap<Id, Arc<Execution>, BuildHasherDefault<NumberHasher>>,
    /// Those that can be evicted; ids ascend in the order of creation.
    finished: Ascending,
    /// All, or more than those, in their order; only while there are too many of which none has finished.
    ordered: Option<BTreeSet<Id>>,
    /// Those up to this one are surplus: each is forgotten when it ends. `surplus`: how many there are.
    surplus_up_to: Option<Id>,
    surplus: usize,
}

/// Ids in their order. Nearly all come at the end, and most go at the beginning.
#[derive(Default)]
struct Ascending(VecDeque<Id>);

impl Ascending {
    fn insert(&mut self, id: Id) {
        if self.0.back().is_none_or(|last| *last < id) {
            self.0.push_back(id);
        } else if let Err(place) = self.0.binary_search(&id) {
            self.0.insert(place, id);
        }
    }

    fn remove(&mut self, id: Id) {
        if self.0.front() == Some(&id) {
            self.0.pop_front();
        } else if let Ok(place) = self.0.binary_search(&id) {
            self.0.remove(place);
        }
    }

    fn pop_first(&mut self) -> Option<Id> {
        self.0.pop_front()
    }
}

impl Executions {
    fn remove(&mut self, id: Id) -> Option<Arc<Execution>> {
        let execution = self.by_id.remove(&id)?;
        self.finished.remove(id);
        self.surplus -= usize::from(self.is_surplus(id));
        execution.session.remove_execution();
        Some(execution)
    }

    fn is_surplus(&self, id: Id) -> bool {
        self.surplus_up_to.is_some_and(|last| id <= last)
    }

    fn insert(&mut self, execution: &Arc<Execution>) {
        execution.session.add_execution();
        if let Some(ordered) = &mut self.ordered {
            ordered.insert(execution.id);
        }
        self.by_id.insert(execution.id, Arc::clone(execution));
    }

    /// The same for one that nobody could ask for so far; not twice.
    fn list(&mut self, execution: &Arc<Execution>) {
        if execution.mark_listed() {
            self.insert(execution);
        }
    }

    /// Makes room for one more below `limit`: finished ones go now, else the oldest other ones when they end.
    fn evict(&mut self, limit: usize) -> Vec<Arc<Execution>> {
        let mut evicted = Vec::new();
        if self.by_id.len() - self.surplus < limit {
            self.ordered = None;
            return evicted;
        }
        while self.by_id.len() - self.surplus >= limit {
            if let Some(oldest) = self.finished.pop_first() {
                evicted.extend(self.remove(oldest));
                continue;
            }
            let Some(oldest) = self.oldest_below_limit() else {
                break;
            };
            self.surplus_up_to = Some(oldest);
            self.surplus += 1;
        }
        evicted
    }

    /// The oldest one that is no surplus.
    fn oldest_below_limit(&mut self) -> Option<Id> {
        let (by_id, last) = (&self.by_id, self.surplus_up_to);
        let ordered = self
            .ordered
            .get_or_insert_with(|| by_id.keys().copied().collect());
        while let Some(oldest) = ordered.pop_first() {
            let is_surplus = last.is_some_and(|last| oldest <= last);
            if !is_surplus && by_id.contains_key(&oldest) {
                return Some(oldest);
            }
        }
        None
    }
}

impl Registry {
    /// Creates an execution; `limit` is the number that may exist with it.
    pub fn create(
        &self,
        start: Start,
        distributed: Option<DistributedRun>,
        limit: Option<usize>,
    ) -> Arc<Execution> {
        self.create_with(self.next_execution_id(), start, distributed, limit)
    }

    /// Creates this shard's part of an execution of another shard. `None` if there is one already.
    pub fn adopt(
        &self,
        id: Id,
        start: Start,
        distributed: DistributedRun,
        limit: Option<usize>,
    ) -> Option<Arc<Execution>> {
        // New ids differ from all that were ever seen.
        let above = id.number.saturating_add(1);
        self.next_execution.fetch_max(above, Ordering::Relaxed);
        if self.execution(id).is_some() {
            return None;
        }
        Some(self.create_with(id, start, Some(distributed), limit))
    }

    fn create_with(
        &self,
        id: Id,
        start: Start,
        distributed: Option<DistributedRun>,
        limit: Option<usize>,
    ) -> Arc<Execution> {
        let execution = Arc::new(Execution::new(id, start, distributed));
        self.list(&execution, limit);
        execution
    }

    /// Creates an execution that ends before anybody can ask for it, and is forgotten then.
    pub fn create_unlisted(&self, start: Start) -> Arc<Execution> {
        Arc::new(Execution::new(self.next_execution_id(), start, None))
    }

    /// An execution that nobody could know of is to be seen: from now on it is one like the others. `limit`: the number that may exist
    /// with it.
    pub fn list(&self, execution: &Arc<Execution>, limit: Option<usize>) {
        let mut executions = self.executions.lock();
        let evicted = limit.map(|limit| executions.evict(limit)).unwrap_or_default();
        executions.list(execution);
        drop(executions);
        self.forget_all(evicted);
    }

    fn forget_all(&self, evicted: Vec<Arc<Execution>>) {
        for execution in evicted {
            forget(&execution);
            self.unlist_if_empty(&execution.session);
        }
    }

    /// The id of this shard; zeros while it is in no cluster.
    pub fn shard(&self) -> ShardId {
        *self.shard.read()
    }

    /// From now on this is the id of this shard.
    pub fn set_shard(&self, shard: ShardId) {
        *self.shard.write() = shard;
    }

    fn next_id(&self, counter: &AtomicU64) -> Id {
        Id {
            number: counter.fetch_add(1, Ordering::Relaxed),
            shard: self.shard(),
        }
    }

    fn next_execution_id(&self) -> Id {
        self.next_id(&self.next_execution)
    }

    pub fn execution(&self, id: Id) -> Option<Arc<Execution>> {
        self.executions.lock().by_id.get(&id).cloned()
    }

    /// All executions, oldest first.
    pub fn executions(&self) -> Vec<Arc<Execution>> {
        let mut executions: Vec<_> = self.executions.lock().by_id.values().cloned().collect();
        executions.sort_unstable_by_key(|execution| execution.id);
        executions
    }

    pub fn execution_count(&self) -> usize {
        self.executions.lock().by_id.len()
    }

    /// An execution that is kept has finished: `limit` is that of its registration, which does not count what belongs to
    /// other shards' executions; `most`: the number of all that may exist, for one that nobody could ask for so far.
    pub fn keep(&self, execution: &Arc<Execution>, limit: Option<usize>, most: Option<usize>) {
        let registration = execution.owner();
        if registration.is_some_and(|registration| registration.is_removed()) {
            self.drop_execution(execution.id);
            return;
        }
        let mut executions = self.executions.lock();
        let mut evicted = Vec::new();
        if execution.is_unlisted() {
            if let Some(most) = most {
                evicted = executions.evict(most);
            }
            executions.list(execution);
        } else if executions.is_surplus(execution.id) {
            drop(executions);
            self.drop_execution(execution.id);
            return;
        } else if !executions.by_id.contains_key(&execution.id) {
            // Dropped in this moment.
            return;
        }
        executions.finished.insert(execution.id);
        drop(executions);
        self.forget_all(evicted);
        let Some(registration) = registration else { return };
        if execution.registration.is_none() {
            registration.keep_part(execution.id);
        } else {
            let (surplus, more) = registration.keep(execution.id, limit);
            for surplus in surplus.into_iter().chain(more) {
                self.remove(surplus);
            }
        }
        // It may have been removed between the first look and this one.
        if registration.is_removed() {
            self.drop_execution(execution.id);
        }
    }

    /// Forgets an execution. The caller has seen that it is finished.
    pub fn drop_execution(&self, id: Id) {
        if let Some(execution) = self.remove(id) {
            forget(&execution);
        }
    }

    /// The same for one that its registration does not know any more.
    fn remove(&self, id: Id) -> Option<Arc<Execution>> {
        let removed = self.executions.lock().remove(id)?;
        // The session of a registration stays listed; when that one is removed, it is looked at again.
        let registration = removed.registration.as_ref();
        if registration.is_none_or(|registration| registration.is_removed()) {
            self.unlist_if_empty(&removed.session);
        }
        Some(removed)
    }

    /// A number for a registration, or for a builder, which uses up one as well.
    pub fn next_registration_id(&self) -> Id {
        self.next_id(&self.next_registration)
    }

    /// There was a registration with this number, so the next ones have greater ones.
    pub fn saw_registration(&self, number: u64) {
        let above = number.saturating_add(1);
        self.next_registration.fetch_max(above, Ordering::Relaxed);
    }

    /// Adds a registration, and lists its session.
    pub fn add_registration(&self, registration: &Arc<Registration>) {
        let session = &registration.session;
        session.add_registration(registration.id);
        // One that was loaded has its number already.
        self.saw_registration(registration.id.number);
        self.registrations
            .lock()
            .insert(registration.id, Arc::clone(registration));
        self.sessions.lock().list(session);
    }

    /// Puts a registration in the place of one that never ran, with its number and session.
    pub fn exchange_registration(&self, registration: &Arc<Registration>) {
        let old = self
            .registrations
            .lock()
            .insert(registration.id, Arc::clone(registration));
        if let Some(old) = old {
            // It has no executions.
            drop(old.remove());
        }
    }

    /// Removes a registration with its kept executions.
    pub fn remove_registration(&self, id: Id) -> Option<Arc<Registration>> {
        let registration = self.registrations.lock().remove(&id)?;
        registration.session.remove_registration(id);
        for kept in registration.remove() {
            self.remove(kept);
        }
        self.unlist_if_empty(&registration.session);
        Some(registration)
    }

    pub fn registration(&self, id: Id) -> Option<Arc<Registration>> {
        self.registrations.lock().get(&id).cloned()
    }

    /// All registrations in their order.
    pub fn registrations(&self) -> Vec<Arc<Registration>> {
        self.registrations.lock().values().cloned().collect()
    }

    pub fn registration_count(&self) -> usize {
        self.registrations.lock().len()
    }

    /// The registrations of one session, in their order.
    pub fn registrations_of(&self, session: &Session) -> Vec<Arc<Registration>> {
        let registrations = self.registrations.lock();
        let ids = session.registrations();
        ids.iter()
            .filter_map(|id| registrations.get(id).cloned())
            .collect()
    }

    /// Looks at the listed sessions.
    pub fn sessions<R>(&self, look: impl FnOnce(&Sessions) -> R) -> R {
        look(&self.sessions.lock())
    }

    /// Another session takes the place of this one.
    pub fn replace_session(&self, session: &Arc<Session>) {
        self.sessions.lock().replace(session);
    }

    /// Lists the session of an execution as another shard does, unless it is listed.
    pub fn list_session(&self, session: &Arc<Session>, listing: Listing) {
        self.sessions.lock().list_as(session, listing);
    }

    fn unlist_if_empty(&self, session: &Arc<Session>) {
        let ended = self.sessions.lock().unlist_if_empty(session);
        drop(ended);
    }

    /// Drops all finished executions; a load begins.
    pub fn drop_finished(&self) {
        for execution in self.executions() {
            if execution.status().is_final() {
                self.drop_execution(execution.id);
            }
        }
    }
}

/// Tells the registration that one of its executions cannot be read any more.
fn forget(execution: &Execution) {
    if let Some(registration) = execution.owner() {
        registration.forget(execution.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_in_their_order() {
        let id = |number| Id {
            number,
            shard: ShardId::STANDALONE,
        };
        let mut ids = Ascending::default();
        for number in [3, 7, 5, 9, 5, 1] {
            ids.insert(id(number));
        }
        ids.remove(id(7));
        ids.remove(id(8));
        ids.remove(id(1));
        let left: Vec<u64> = std::iter::from_fn(|| ids.pop_first())
            .map(|id| id.number)
            .collect();
        assert_eq!(left, [3, 5, 9]);
    }
}
