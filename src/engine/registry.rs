//! What exists: executions, registrations, sessions; and how long finished executions are kept.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;

use super::{
    distributed_run::DistributedRun,
    ended::{Ended, Known, Single},
    execution::{Execution, Left},
    id::{Id, ShardId},
    registration::Registration,
    retention::Executions,
    run_message::Listing,
    session::{Session, Sessions},
    start::Start,
};
use crate::mutex::Mutex;

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

    fn forget_all(&self, evicted: Vec<(Id, Known)>) {
        for (id, known) in evicted {
            forget(id, &known);
            self.unlist_if_empty(known.session());
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

    pub(super) fn next_execution_id(&self) -> Id {
        self.next_id(&self.next_execution)
    }

    pub fn execution(&self, id: Id) -> Option<Arc<Execution>> {
        let mut executions = self.executions.lock();
        executions.by_id.get_mut(id).map(|known| known.execution(id))
    }

    /// All executions, oldest first.
    pub fn executions(&self) -> Vec<Arc<Execution>> {
        let mut known = self.executions.lock();
        let all = known.by_id.iter_mut();
        all.map(|(id, known)| known.execution(id)).collect()
    }

    /// Those that are whole, oldest first: all that have not ended, and what somebody has looked at. How many others there are, which
    /// are done.
    pub fn whole_executions(&self) -> (Vec<Arc<Execution>>, usize) {
        let known = self.executions.lock();
        let whole = |known: &Known| match known {
            Known::Whole(execution) => Some(Arc::clone(execution)),
            Known::Ended(_) => None,
        };
        let executions: Vec<_> = known.by_id.iter().filter_map(|(_, known)| whole(known)).collect();
        let others = known.by_id.len() - executions.len();
        (executions, others)
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
        } else if !executions.by_id.contains(execution.id) {
            // Dropped in this moment.
            return;
        }
        executions.finished.insert(execution.id);
        let surplus = match &execution.registration {
            Some(registration) => executions.keep_of(registration, execution.id, limit),
            None => <_>::default(),
        };
        drop(executions);
        drop(surplus);
        self.forget_all(evicted);
        let Some(registration) = registration else { return };
        if execution.registration.is_none() {
            registration.keep_part(execution.id);
        }
        self.drop_of_removed(registration, execution.id);
    }

    /// The same for a run that nobody could ask for so far.
    /// What goes for it, if that is one.
    pub(super) fn keep_ended(
        &self,
        id: Id,
        ended: Ended,
        limit: Option<usize>,
        most: Option<usize>,
    ) -> Option<Known> {
        let registration = Arc::clone(&ended.registration);
        if registration.is_removed() {
            return None;
        }
        let mut executions = self.executions.lock();
        let has_room = most.is_none_or(|most| executions.count() <= most);
        if let Some(oldest) = has_room
            .then(|| registration.exchange_oldest(id, limit))
            .flatten()
        {
            let gone = executions.exchange(oldest, id, ended);
            drop(executions);
            self.drop_of_removed(&registration, id);
            return gone;
        }
        let evicted = most.map(|most| executions.evict(most)).unwrap_or_default();
        executions.insert(id, Known::Ended(ended));
        executions.finished.insert(id);
        let surplus = executions.keep_of(&registration, id, limit);
        drop(executions);
        drop(surplus);
        self.forget_all(evicted);
        self.drop_of_removed(&registration, id);
        None
    }

    /// The same for a listed one, if only the registry and the thread that ran it have a reference: it ends with that.
    ///
    /// # Errors
    /// Somebody may look at it.
    pub(super) fn keep_unseen(
        &self,
        execution: &Arc<Execution>,
        registration: &Arc<Registration>,
        run: Single,
        limit: Option<usize>,
    ) -> Result<Left, Single> {
        let id = execution.id;
        let mut executions = self.executions.lock();
        // New references come of this table, or of those who have one.
        let is_unseen = Arc::strong_count(execution) == 2 && !executions.is_surplus(id);
        let known = executions.by_id.get_mut(id);
        let Some(known) = known.filter(|_| is_unseen && !registration.is_removed()) else {
            return Err(run);
        };
        let Ok(left) = execution.end_unseen() else {
            return Err(run);
        };
        *known = Known::Ended(Ended {
            registration: Arc::clone(registration),
            db: execution.db,
            run,
        });
        executions.finished.insert(id);
        let surplus = executions.keep_of(registration, id, limit);
        drop(executions);
        drop(surplus);
        self.drop_of_removed(registration, id);
        Ok(left)
    }

    /// The same for one of which nothing is kept. `None`: somebody may look at it.
    pub(super) fn drop_unseen(
        &self,
        execution: &Arc<Execution>,
        registration: &Registration,
    ) -> Option<Left> {
        let mut executions = self.executions.lock();
        if Arc::strong_count(execution) != 2 {
            return None;
        }
        let left = execution.end_unseen().ok()?;
        let known = executions.remove(execution.id);
        drop(executions);
        drop(known);
        if registration.is_removed() {
            self.unlist_if_empty(&registration.session);
        }
        Some(left)
    }

    /// The registration may have been removed between the first look and this one: what was kept of it goes, and its session if that
    /// was the last of it.
    fn drop_of_removed(&self, registration: &Registration, id: Id) {
        if registration.is_removed() {
            self.drop_execution(id);
            self.unlist_if_empty(&registration.session);
        }
    }

    /// Forgets an execution. The caller has seen that it is finished.
    pub fn drop_execution(&self, id: Id) {
        if let Some(known) = self.remove(id) {
            forget(id, &known);
        }
    }

    /// The same for one that its registration does not know any more.
    fn remove(&self, id: Id) -> Option<Known> {
        let removed = self.executions.lock().remove(id)?;
        // The session of a registration stays listed; when that one is removed, it is looked at again.
        let registration = removed.registration();
        if registration.is_none_or(|registration| registration.is_removed()) {
            self.unlist_if_empty(removed.session());
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
        let (whole, _) = self.whole_executions();
        let ended = whole.iter().filter(|execution| execution.status().is_final());
        let mut ids: Vec<Id> = ended.map(|execution| execution.id).collect();
        let known = self.executions.lock();
        let unseen = known
            .by_id
            .iter()
            .filter(|(_, known)| matches!(known, Known::Ended(_)));
        ids.extend(unseen.map(|(id, _)| id));
        drop(known);
        for id in ids {
            self.drop_execution(id);
        }
    }
}

/// Tells the registration that one of its executions cannot be read any more.
fn forget(id: Id, known: &Known) {
    if let Some(registration) = known.owner() {
        registration.forget(id);
    }
}
