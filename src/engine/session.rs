//! Sessions: what one RG.PYEXECUTE made, and what its functions made later. Contract:
//! docs/contract/commands.md chapter 4.

use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    mutex::Mutex,
    server::rights::{Actor, Owner},
};

use serde_bytes::ByteBuf;

use super::{id::Id, requirement::Requirement, run_message::Listing};

/// One session. Listed in the registry while it has registrations, or kept executions of them.
pub struct Session {
    pub id: String,
    /// The same on all shards, in files and on replicas, and no other session's; empty if it comes from an earlier version.
    pub token: String,
    /// Of two sessions with one id, the one with the greater generation takes the place of the other, on all shards.
    pub generation: u64,
    /// As the client sent it.
    pub description: Option<ByteBuf>,
    pub needs: Needs,
    /// Who sent the script.
    pub owner: Owner,
    /// Whose rights its code has where no registration says otherwise; `None` for all.
    pub actor: Option<Arc<Actor>>,
    registrations: Mutex<Vec<Id>>,
    /// How many executions are listed.
    executions: AtomicUsize,
    /// Another session has taken its place.
    replaced: AtomicBool,
    /// What the language keeps for it.
    attachment: Mutex<Option<Attachment>>,
}

/// The newest generation that was seen here or made here.
static NEWEST: AtomicU64 = AtomicU64::new(0);

/// Above all generations that were seen here, and by the clock, so that it is also above those that nobody has told of yet.
fn next_generation() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_micros()).unwrap_or(0);
    let above = |newest: u64| newest.saturating_add(1).max(now);
    let before = NEWEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |newest| Some(above(newest)));
    above(before.unwrap_or_else(|newest| newest))
}

fn described(id: &str) -> String {
    if id.is_empty() {
        "a script of EVAL or FUNCTION LOAD".into()
    } else {
        format!("session {id}")
    }
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

impl Session {
    pub fn new(id: String, description: Option<ByteBuf>, needs: Needs) -> Self {
        let owner = Owner::default();
        Self {
            actor: owner.actor(|| described(&id)),
            owner,
            id,
            token: random_hex(),
            generation: next_generation(),
            description,
            needs,
            registrations: Mutex::default(),
            executions: AtomicUsize::new(0),
            replaced: AtomicBool::new(false),
            attachment: Mutex::default(),
        }
    }

    /// The same session as elsewhere.
    #[must_use]
    pub fn known_as(mut self, token: String, generation: u64) -> Self {
        NEWEST.fetch_max(generation, Ordering::Relaxed);
        self.token = token;
        self.generation = generation;
        self
    }

    /// The session of this user's script.
    #[must_use]
    pub fn owned_by(mut self, owner: Owner) -> Self {
        self.actor = owner.actor(|| described(&self.id));
        self.owner = owner;
        self
    }

    /// Its place among sessions with its id; tokens only decide where clocks are equal.
    pub fn rank(&self) -> (u64, &str) {
        (self.generation, &self.token)
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

    /// True while something that its functions need is to be installed.
    pub fn awaits_requirements(&self) -> bool {
        self.needs.requirements.iter().any(|needed| needed.is_wanted())
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
        self.registrations.lock().clone()
    }

    /// Registrations and executions that belong to the session now.
    pub fn ref_count(&self) -> usize {
        self.registrations.lock().len() + self.executions.load(Ordering::Relaxed)
    }

    pub(super) fn add_registration(&self, id: Id) {
        self.registrations.lock().push(id);
    }

    pub(super) fn remove_registration(&self, id: Id) {
        self.registrations.lock().retain(|&known| known != id);
    }

    pub(super) fn add_execution(&self) {
        self.executions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_execution(&self) {
        self.executions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The sessions that are listed. A session that only ran a function never is.
#[derive(Default)]
pub struct Sessions {
    /// By id.
    live: BTreeMap<String, Arc<Session>>,
    /// Replaced ones that something still refers to, oldest first.
    dead: Vec<Arc<Session>>,
    /// The tokens of the last ones that were replaced: a run of theirs may come from another shard, where it began before.
    replaced: VecDeque<String>,
}

/// How many tokens of replaced sessions are remembered.
const REMEMBERED: usize = 1000;

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

    /// The listed session that has this token, live or replaced.
    pub fn with_token(&self, token: &str) -> Option<Arc<Session>> {
        let mut all = self.live.values().chain(&self.dead);
        all.find(|session| session.token == token && !token.is_empty())
            .cloned()
    }

    /// Where a session is listed.
    pub(super) fn listing(&self, session: &Arc<Session>) -> Listing {
        match self.live.get(&session.id) {
            _ if session.is_replaced() => Listing::Dead,
            Some(live) if Arc::ptr_eq(live, session) => Listing::Live,
            _ => Listing::Unlisted,
        }
    }

    /// Lists a session as another shard does. Where its place is taken, it has been replaced.
    pub(super) fn list_as(&mut self, session: &Arc<Session>, listing: Listing) {
        let ended = match self.live.get(&session.id) {
            Some(live) => !Arc::ptr_eq(live, session),
            None => self.replaced.contains(&session.token),
        };
        match listing {
            Listing::Unlisted => {}
            Listing::Dead => self.replace(session),
            Listing::Live if ended => self.replace(session),
            Listing::Live => self.list(session),
        }
    }

    /// Lists a session, unless another one has its id.
    pub(super) fn list(&mut self, session: &Arc<Session>) {
        if !session.is_replaced() {
            // Data that are loaded bring back what was there before.
            self.replaced.retain(|token| *token != session.token);
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
        if !session.token.is_empty() && !self.replaced.contains(&session.token) {
            self.replaced.push_back(session.token.clone());
            let surplus = self.replaced.len().saturating_sub(REMEMBERED);
            self.replaced.drain(..surplus);
        }
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

/// Forty lower-case hexadecimal digits, different each time.
pub fn random_hex() -> String {
    let mut bytes = [0; 20];
    fastrand::fill(&mut bytes);
    hex::encode(bytes)
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

    #[test]
    fn a_session_is_listed_as_elsewhere() {
        let mut sessions = Sessions::default();
        let make = || Arc::new(Session::new("s".into(), None, Needs::default()));
        let (first, second, other) = (make(), make(), make());
        for session in [&first, &second, &other] {
            session.add_execution();
        }
        sessions.list_as(&first, Listing::Unlisted);
        assert_eq!(sessions.listing(&first), Listing::Unlisted);
        sessions.list_as(&first, Listing::Live);
        sessions.list_as(&second, Listing::Live);
        assert_eq!(sessions.listing(&first), Listing::Live, "it was there before");
        assert_eq!(sessions.listing(&second), Listing::Dead);
        sessions.list_as(&other, Listing::Dead);
        assert_eq!(sessions.all_dead().len(), 2);
        let found = sessions.with_token(&other.token);
        assert!(found.is_some_and(|found| Arc::ptr_eq(&found, &other)));
        assert!(sessions.with_token("").is_none());
    }

    #[test]
    fn a_run_of_a_replaced_session_may_come_later() {
        let mut sessions = Sessions::default();
        let old = Arc::new(Session::new("old".into(), None, Needs::default()));
        sessions.list(&old);
        // Another one with another id takes its place; nothing refers to it.
        sessions.replace(&old);
        let again = Session::new("old".into(), None, Needs::default());
        let again = Arc::new(again.known_as(old.token.clone(), old.generation));
        again.add_execution();
        sessions.list_as(&again, Listing::Live);
        assert_eq!(sessions.listing(&again), Listing::Dead);
        assert!(sessions.live("old").is_none() && sessions.all_dead().len() == 1);
    }

    #[test]
    fn later_sessions_rank_above_all_that_were_seen() {
        let make = || Session::new("s".into(), None, Needs::default());
        let (first, second) = (make(), make());
        assert!(first.rank() < second.rank());
        // Its server's clock is ahead of this one's.
        let foreign = make().known_as("token".into(), second.generation + 3_600_000_000);
        assert!(foreign.rank() < make().rank());
    }

    #[test]
    fn random_ids_differ() {
        let (first, second) = (random_hex(), random_hex());
        assert_eq!(first.len(), 40);
        let is_hex = |byte: u8| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase();
        assert!(first.bytes().all(is_hex));
        assert_ne!(first, second);
    }
}
