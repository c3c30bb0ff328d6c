//! Sessions: what one RG.PYEXECUTE made, and what its functions made later. Contract:
//! docs/contract/commands.md chapter 4.

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::mutex::Mutex;

use super::id::Id;
use super::requirement::Requirement;

/// One session. Listed in the registry while it has registrations, or kept executions of them.
pub struct Session {
    pub id: String,
    pub description: Option<String>,
    pub needs: Needs,
    members: Mutex<Members>,
    /// Another session has taken its place.
    replaced: AtomicBool,
    /// What the language keeps for it.
    attachment: Mutex<Option<Attachment>>,
}

/// What the language keeps for a session.
type Attachment = Box<dyn Any + Send + Sync>;

/// The packages that a session's functions need.
#[derive(Debug, Default)]
pub struct Needs {
    pub requirements: Vec<Arc<Requirement>>,
    /// They were installed for this very session.
    pub installed: bool,
}

#[derive(Default)]
struct Members {
    registrations: Vec<Id>,
    executions: usize,
}

impl Session {
    pub fn new(id: String, description: Option<String>, needs: Needs) -> Self {
        Self {
            id,
            description,
            needs,
            members: Mutex::default(),
            replaced: AtomicBool::new(false),
            attachment: Mutex::default(),
        }
    }

    /// What the language keeps for this session; made by `make` when first asked for, always of the same type.
    pub fn attachment<T: Clone + Send + Sync + 'static>(&self, make: impl Fn() -> T) -> T {
        let mut attachment = self.attachment.lock();
        let kept = attachment.get_or_insert_with(|| Box::new(make()));
        kept.downcast_ref().cloned().unwrap_or_else(make)
    }

    /// Nothing refers to the session any more: what the language keeps for it is to be dropped, behind all locks.
    fn release(&self) -> Option<Attachment> {
        self.attachment.lock().take()
    }

    /// True once another session has taken its place.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// True if `id` is made of letters, digits, `_` and `-`; the empty id is one too.
    pub fn is_valid_id(id: &[u8]) -> bool {
        id.iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    }

    pub fn registrations(&self) -> Vec<Id> {
        self.members.lock().registrations.clone()
    }

    /// Registrations and executions that belong to the session now.
    pub fn ref_count(&self) -> usize {
        let members = self.members.lock();
        members.registrations.len() + members.executions
    }

    pub(super) fn add_registration(&self, id: Id) {
        self.members.lock().registrations.push(id);
    }

    pub(super) fn remove_registration(&self, id: Id) {
        self.members.lock().registrations.retain(|&known| known != id);
    }

    pub(super) fn add_execution(&self) {
        self.members.lock().executions += 1;
    }

    pub(super) fn remove_execution(&self) {
        self.members.lock().executions -= 1;
    }
}

/// The sessions that are listed. A session that only ran a function never is.
#[derive(Default)]
pub struct Sessions {
    /// By id.
    live: BTreeMap<String, Arc<Session>>,
    /// Replaced ones that something still refers to, oldest first.
    dead: Vec<Arc<Session>>,
}

impl Sessions {
    pub fn live(&self, id: &str) -> Option<Arc<Session>> {
        self.live.get(id).cloned()
    }

    /// All live sessions by id.
    pub fn all_live(&self) -> Vec<Arc<Session>> {
        self.live.values().cloned().collect()
    }

    pub fn all_dead(&self) -> Vec<Arc<Session>> {
        self.dead.clone()
    }

    /// Lists a session, unless another one has its id.
    pub(super) fn list(&mut self, session: &Arc<Session>) {
        if !session.is_replaced() {
            let listed = self.live.entry(session.id.clone());
            listed.or_insert_with(|| Arc::clone(session));
        } else if !self.dead.iter().any(|dead| Arc::ptr_eq(dead, session)) {
            self.dead.push(Arc::clone(session));
        }
    }

    /// Another session takes the place of this one.
    pub(super) fn replace(&mut self, session: &Arc<Session>) {
        self.unlist(session);
        session.replaced.store(true, Ordering::Relaxed);
        if session.ref_count() > 0 {
            self.dead.push(Arc::clone(session));
        }
    }

    /// Removes a session that nothing refers to any more; what is left of it is to be dropped, behind all locks.
    pub(super) fn unlist_if_empty(&mut self, session: &Arc<Session>) -> Option<Attachment> {
        if session.ref_count() > 0 {
            return None;
        }
        self.unlist(session);
        session.release()
    }

    fn unlist(&mut self, session: &Arc<Session>) {
        let is_it = |listed: &Arc<Session>| Arc::ptr_eq(listed, session);
        if self.live.get(&session.id).is_some_and(is_it) {
            self.live.remove(&session.id);
        }
        self.dead.retain(|dead| !is_it(dead));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::id::ShardId;

    fn id(number: u64) -> Id {
        Id {
            number,
            shard: ShardId::STANDALONE,
        }
    }

    #[test]
    fn a_replaced_session_stays_while_something_refers_to_it() {
        let mut sessions = Sessions::default();
        let old = Arc::new(Session::new("s".into(), None, Needs::default()));
        old.add_registration(id(1));
        sessions.list(&old);
        sessions.replace(&old);
        let new = Arc::new(Session::new("s".into(), None, Needs::default()));
        sessions.list(&new);
        assert!(sessions.live("s").is_some_and(|live| Arc::ptr_eq(&live, &new)));
        assert_eq!(sessions.all_dead().len(), 1);
        old.remove_registration(id(1));
        drop(sessions.unlist_if_empty(&old));
        assert!(sessions.all_dead().is_empty() && sessions.live("s").is_some());
    }
}
