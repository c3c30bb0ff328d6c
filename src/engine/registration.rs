//! A registration: a plan that runs on each event of a reader. Contract:
//! docs/contract/readers-and-events.md 1.3 and 11.

use std::{
    collections::{BTreeSet, VecDeque},
    hash::{BuildHasher, DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::mutex::Mutex;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{id::Id, language::Function, plan::Plan, queue::Lane, session::Session};
use crate::{
    error::Error,
    hashing::Seeds,
    server::{
        lock::Lock,
        reply::Reply,
        rights::{Actor, Owner},
    },
    stats::RunStats,
};

/// Where and when the executions of a registration run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Inside the command that caused the event.
    Sync,
    /// On a worker of this shard.
    AsyncLocal,
    /// On all shards; on a worker of this one while there is no other.
    Async,
}

impl Mode {
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Sync, Self::AsyncLocal, Self::Async]
            .into_iter()
            .find(|mode| mode.name() == name)
    }

    /// The names, for messages.
    pub const NAMES: &str = "sync, async_local or async";

    pub const fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::AsyncLocal => "async_local",
            Self::Async => "async",
        }
    }
}

/// What a new registration meets that is not in force yet, or not for long.
#[derive(Clone, Copy, Default)]
pub struct Peers<'a> {
    /// The session whose place the script's session takes.
    pub replaced: Option<&'a Session>,
    /// The earlier registrations of the same script.
    pub prepared: &'a [Arc<Registration>],
}

impl Peers<'_> {
    /// True for a registration that is gone when the new one comes.
    pub fn replace(&self, registration: &Registration) -> bool {
        self.replaced
            .is_some_and(|session| std::ptr::eq(session, Arc::as_ptr(&registration.session)))
    }

    /// What the earlier registrations of the script take.
    pub fn claims(&self) -> impl Iterator<Item = Claim<'_>> {
        self.prepared.iter().filter_map(|earlier| earlier.trigger.claim())
    }
}

/// Why a registration is there and does not run. The texts are for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disabled {
    /// Its requirements or functions are not there yet.
    Awaited(&'static str),
    /// They could not be loaded.
    NotLoaded(String),
    /// Its trigger was refused: it begins when what it wants is free.
    Refused(String),
}

impl Disabled {
    /// What people are told.
    pub fn reason(&self) -> &str {
        match self {
            Self::Awaited(reason) => reason,
            Self::NotLoaded(reason) | Self::Refused(reason) => reason,
        }
    }
}

/// A name that a registration takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim<'a> {
    Trigger(&'a str),
    /// The keys that a registration loads.
    Loads(&'a str),
    /// The keys whose changes a registration saves.
    Saves(&'a str),
    /// The place of a command, in lower case.
    Hook {
        command: &'a str,
        sync: bool,
    },
}

/// The event side of a reader, as one registration uses it. What takes a [`Lock`] is called under the server's lock, on whichever
/// thread has it; the rest on any thread.
pub trait Trigger: Send + Sync {
    /// The reader's name.
    fn reader(&self) -> &'static str;

    /// The reader's arguments as RG.DUMPREGISTRATIONS shows them.
    fn arguments(&self) -> Vec<(&'static str, Reply)>;

    /// Why it may never fire, or not for what it seems to be about: each a sentence for the log. It is accepted all the same.
    fn doubts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether it could be started now.
    ///
    /// # Errors
    /// The text for the script that asked.
    fn check(&self, lock: Lock<'_>, peers: Peers<'_>) -> Result<(), Error>;

    /// Begins to start executions of `registration`.
    ///
    /// # Errors
    /// As [`Trigger::check`]; nothing has changed then.
    fn start(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error>;

    /// It is known, but cannot start, or not yet: its functions are not there.
    fn hold(&self, _lock: Lock<'_>, _registration: &Arc<Registration>) {}

    /// Whether it may end now.
    ///
    /// # Errors
    /// Something would be lost with it.
    fn check_end(&self, _lock: Lock<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// It is to end as soon as [`Trigger::check_end`] allows.
    fn drain(&self, _lock: Lock<'_>) {}

    /// It is over, behind [`Trigger::stop`], also when an upgrade has replaced it: another one may own by now what it had.
    fn ended(&self, _lock: Lock<'_>, _registration: &Registration) {}

    /// Starts no more executions.
    fn stop(&self, lock: Lock<'_>, registration: &Registration);

    /// What the readers make the trigger of again, in another process. Called after [`Trigger::start`].
    fn image(&self) -> Vec<u8>;

    /// The name that it takes, if any.
    fn claim(&self) -> Option<Claim<'_>> {
        None
    }

    /// What the reader knows beyond the usual counters; `finished`: how many executions have ended.
    fn figures(&self, _finished: u64) -> Vec<(&'static str, Reply)> {
        Vec::new()
    }

    /// Forgets [`Trigger::figures`].
    fn clear_figures(&self) {}

    /// Whether it reads now, for readers that can be paused.
    fn status(&self) -> Option<&'static str> {
        None
    }

    /// Starts no executions until [`Trigger::unpause`].
    ///
    /// # Errors
    /// The reader cannot be paused; nothing has changed then.
    fn pause(&self, _lock: Lock<'_>, _registration: &Arc<Registration>) -> Result<(), Error> {
        Err(Error::CannotPause(self.reader()))
    }

    /// Undoes [`Trigger::pause`], and whatever else keeps it from reading.
    ///
    /// # Errors
    /// The reader cannot be paused.
    fn unpause(&self, _lock: Lock<'_>, _registration: &Arc<Registration>) -> Result<(), Error> {
        Err(Error::CannotUnpause(self.reader()))
    }
}

/// One registration.
pub struct Registration {
    pub id: Id,
    pub desc: Option<String>,
    pub mode: Mode,
    /// Executions follow each other in the order of events, whatever key.
    pub in_order: bool,
    pub plan: Arc<Plan>,
    pub session: Arc<Session>,
    /// Who made it.
    pub owner: Owner,
    /// Whose rights its functions have; `None` for all.
    pub actor: Option<Arc<Actor>>,
    pub trigger: Box<dyn Trigger>,
    pub on_registered: Option<Arc<dyn Function>>,
    pub limits: Limits,
    pub images: Images,
    /// Why it does not run although it is there.
    pub disabled: Option<Disabled>,
    /// What was said of the arguments when it was made; not kept in files.
    pub doubts: Vec<String>,
    pub stats: RunStats,
    pub life: Life,
}

/// What one registration may use; `None` for what is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How long an execution may run, in milliseconds.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// How many executions may be under way in the background at the same time, on one server.
    #[serde(default)]
    pub max_concurrent: Option<u64>,
    /// How much an execution may hold at one moment, in bytes.
    #[serde(default)]
    pub max_memory: Option<u64>,
}

impl Limits {
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }
}

/// The functions of a registration as they were when it was made: what is saved and sent, whatever becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// In the order of the plan's table.
    pub functions: Vec<ByteBuf>,
    pub on_registered: Option<ByteBuf>,
}

/// What changes while a registration exists.
#[derive(Default)]
pub struct Life {
    /// Finished executions that can still be read, oldest first.
    kept: Mutex<VecDeque<Id>>,
    /// The same for what belongs to executions of other shards.
    parts: Mutex<BTreeSet<Id>>,
    removed: AtomicBool,
    /// How many executions have got a place among those that may run.
    turns: AtomicU64,
}

impl Registration {
    /// Whose rights the functions of this registration have.
    pub fn actor_of(owner: &Owner, id: Id) -> Option<Arc<Actor>> {
        owner.actor(|| format!("registration {id}"))
    }

    /// Why it may never fire, or not for what it seems to be about: each a sentence.
    pub fn doubts(&self) -> Vec<String> {
        let of_trigger = self.trigger.doubts();
        self.doubts.iter().cloned().chain(of_trigger).collect()
    }

    /// Where its executions wait for each other; `None` if they do not.
    pub fn lane(&self) -> Option<Lane> {
        if self.in_order {
            return Some(Lane::Registration(self.id));
        }
        let most = self.limits.max_concurrent?;
        let turn = self.life.turns.fetch_add(1, Ordering::Relaxed);
        Some(self.share(turn % most.max(1)))
    }

    /// The same for executions that stand for a key, which follow each other.
    pub fn lane_of_key(&self, db: i32, key: &[u8]) -> Lane {
        if self.in_order {
            return Lane::Registration(self.id);
        }
        if let Some(most) = self.limits.max_concurrent {
            let mut hasher = DefaultHasher::new();
            (db, key).hash(&mut hasher);
            return self.share(hasher.finish() % most.max(1));
        }
        Lane::Key(Seeds::default().hash_one((self.id, db, key)))
    }

    fn share(&self, number: u64) -> Lane {
        Lane::Share {
            registration: self.id,
            number,
        }
    }

    /// Notes a finished execution that can still be read; the ones beyond `limit` are to be dropped: the first one, and more where
    /// the limit was lowered.
    pub(super) fn keep(&self, id: Id, limit: Option<usize>) -> (Option<Id>, Vec<Id>) {
        let mut kept = self.life.kept.lock();
        kept.push_back(id);
        let surplus = limit.map_or(0, |limit| kept.len().saturating_sub(limit));
        let first = if surplus > 0 { kept.pop_front() } else { None };
        (first, kept.drain(..surplus.saturating_sub(1)).collect())
    }

    /// The same where as many are kept as may be: the one that goes for it. `None` where that is not so; then nothing has changed.
    #[inline]
    pub(super) fn exchange_oldest(&self, id: Id, limit: Option<usize>) -> Option<Id> {
        let mut kept = self.life.kept.lock();
        if Some(kept.len()) != limit {
            return None;
        }
        let oldest = kept.pop_front()?;
        kept.push_back(id);
        Some(oldest)
    }

    /// Notes a finished part of another shard's execution.
    pub(super) fn keep_part(&self, id: Id) {
        self.life.parts.lock().insert(id);
    }

    /// Forgets an execution that was dropped otherwise.
    pub(super) fn forget(&self, id: Id) {
        self.life.parts.lock().remove(&id);
        self.life.kept.lock().retain(|&known| known != id);
    }

    /// Marks it as removed; its kept executions are to be dropped.
    pub(super) fn remove(&self) -> Vec<Id> {
        self.life.removed.store(true, Ordering::Release);
        let parts = std::mem::take(&mut *self.life.parts.lock());
        self.life.kept.lock().drain(..).chain(parts).collect()
    }

    pub fn is_removed(&self) -> bool {
        self.life.removed.load(Ordering::Acquire)
    }
}
