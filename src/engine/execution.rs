//! An execution: one run of a plan, as a state machine. Contract: docs/contract/commands.md chapter 3.
//!
//! `created -> running -> done | aborted`; what distributed ones do in between is in `distributed_run.rs`. Shared between the registry,
//! the queue and the thread that runs it.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

mod again;

pub(super) use self::again::Left;
pub use super::outcome::{Collector, Collects, Late, Outcome};
use crate::clock::Instant;
use crate::mutex::Mutex;

use super::{
    Engine,
    distributed_run::DistributedRun,
    id::{Id, ShardId},
    language::Failure,
    linked_command::{LinkedCommand, ReplyHold},
    phase::{Parked, Phase, Status},
    plan::Plan,
    record::Record,
    registration::Registration,
    run_message::RunMessage,
    session::Session,
    source::Source,
    start::Start,
    stop::Stop,
};
use crate::server::{
    client::{BlockedClient, Meter},
    command,
    lock::Lock,
    reply::Reply,
    rights::Actor,
};

/// Whether functions may return something to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MayWait {
    No,
    Yes,
    /// If the caller of the command can wait in whose time the function runs ([`command::caller_may_wait`]).
    AsCaller,
}

impl MayWait {
    /// Whether the function that runs on this thread may.
    pub fn is_true(self) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::AsCaller => command::caller_may_wait(),
        }
    }
}

impl From<bool> for MayWait {
    fn from(may: bool) -> Self {
        if may { Self::Yes } else { Self::No }
    }
}

/// Called once, with the outcome, on the thread that finished the execution.
pub type Waiter = Box<dyn FnOnce(&Outcome) + Send>;

/// One execution.
pub struct Execution {
    pub id: Id,
    pub plan: Arc<Plan>,
    pub session: Arc<Session>,
    /// The registration that started it, if one did.
    pub registration: Option<Arc<Registration>>,
    /// Whose rights its functions have; `None` for all.
    pub actor: Option<Arc<Actor>>,
    /// The database that its functions act in.
    pub db: i32,
    /// Forget it as soon as it is finished and its waiters are answered.
    pub transient: bool,
    /// The linked command, if there is one.
    pub link: Option<Arc<LinkedCommand>>,
    /// Its functions may return something to wait for.
    pub may_wait: MayWait,
    pub stop: Stop,
    /// Of the client that waits for it.
    meter: OnceLock<Meter>,
    /// What `call_next` does in its functions; `None` where that is an error.
    pub next: Option<Arc<dyn Next>>,
    /// What it has to do with other shards, if it runs on several.
    pub distributed: Option<Box<DistributedRun>>,
    /// The reader goes on after an error.
    pub(super) skips_errors: bool,
    /// The waiter that it was made with does not look at the results.
    ignores_results: bool,
    /// There is, or was, a collector.
    is_collected: bool,
    /// Why it cannot come to a right result any more.
    fate: OnceLock<Failure>,
    /// The type of the first error that a function of it raised.
    error_kind: OnceLock<String>,
    /// Forgotten when it ends; nobody else can know of it.
    unlisted: AtomicBool,
    /// It has run for longer than its registration allows.
    overrun: AtomicBool,
    /// Records that its reader has given so far, on this shard.
    records_read: AtomicU64,
    delayed: AtomicBool,
    /// There is something in [`ExecutionState::completions`] or [`ExecutionState::arrivals`].
    completed: AtomicBool,
    state: Mutex<ExecutionState>,
}

struct ExecutionState {
    phase: Phase,
    queued_at: Option<Instant>,
    waiters: Vec<Waiter>,
    link: Option<ReplyHold>,
    collector: Option<Collector>,
    /// It has the results, or is about to get them.
    collected: bool,
    /// What it waited for and nobody has taken yet.
    completions: Vec<Completed>,
    /// What other shards have told and nobody has looked at yet.
    arrivals: Vec<Arrival>,
}

/// What came from another shard.
pub type Arrival = (ShardId, RunMessage);

/// A value that was waited for: the step, the place in the order of that step, and what came.
pub type Completed = (usize, u64, Result<Record, Failure>);

/// The way from a function that stands in the place of a command to what stands behind it.
pub trait Next: Send + Sync {
    /// Runs the next function, or the command itself, with these arguments. Called under the server's lock.
    fn call(&self, engine: &Engine, lock: Lock<'_>, arguments: Vec<Vec<u8>>) -> Reply;

    /// True if `command` is the one that the function stands for.
    fn stands_for(&self, command: &[u8]) -> bool;
}

/// What is to be done after a change of state, without any lock of the execution.
pub(super) struct Aftermath {
    pub waiters: Vec<Waiter>,
    pub link: Option<ReplyHold>,
    pub collector: Option<Collector>,
    /// It never came to its results: the collector is to be told.
    pub uncollected: bool,
    _dropped: (Phase, Vec<Completed>, Vec<Arrival>),
}

impl Execution {
    pub(super) fn new(id: Id, start: Start, distributed: Option<DistributedRun>) -> Self {
        Self {
            id,
            plan: start.plan,
            session: start.session,
            registration: start.registration,
            actor: start.actor,
            db: start.db,
            transient: start.transient,
            link: start.link.as_ref().map(|hold| Arc::clone(hold.link())),
            may_wait: start.may_wait,
            stop: Stop::default(),
            meter: start.meter.map(OnceLock::from).unwrap_or_default(),
            next: start.next,
            distributed: distributed.map(Box::new),
            skips_errors: start.skips_errors,
            ignores_results: start.ignores_results,
            is_collected: start.collector.is_some(),
            fate: OnceLock::new(),
            error_kind: OnceLock::new(),
            unlisted: AtomicBool::new(true),
            overrun: AtomicBool::new(false),
            records_read: AtomicU64::new(0),
            delayed: AtomicBool::new(false),
            completed: AtomicBool::new(false),
            state: Mutex::new(ExecutionState {
                phase: Phase::Created(start.source),
                queued_at: None,
                waiters: start.waiter.into_iter().collect(),
                link: start.link,
                collector: start.collector,
                collected: false,
                completions: Vec::new(),
                arrivals: Vec::new(),
            }),
        }
    }

    /// A function of it raised an error of this type.
    pub fn note_error_kind(&self, kind: &str) {
        // The first one counts.
        let _ = self.error_kind.set(kind.to_owned());
    }

    /// The type of the first error that a function of it raised.
    pub fn error_kind(&self) -> Option<&str> {
        self.error_kind.get().map(String::as_str)
    }

    pub(super) fn note_overrun(&self) {
        self.overrun.store(true, Ordering::Relaxed);
    }

    /// It has run for longer than its registration allows.
    pub(super) fn has_overrun(&self) -> bool {
        self.overrun.load(Ordering::Relaxed)
    }

    /// A client waits for it from now on.
    pub fn measure_for(&self, client: &BlockedClient) {
        // The first one counts.
        let _ = self.meter.set(client.meter());
    }

    /// What measures its work, if a client waits for it.
    pub(super) fn meter(&self) -> Option<Meter> {
        self.meter
            .get()
            .cloned()
            .or_else(|| self.link.as_ref().and_then(|link| link.meter()))
    }

    pub fn status(&self) -> Status {
        self.state.lock().phase.status()
    }

    /// The name of its state as clients see it.
    pub fn state_name(&self) -> &'static str {
        let status = self.status();
        let distributed = self.distributed.as_ref().filter(|_| !status.is_final());
        distributed
            .and_then(|distributed| distributed.state(status == Status::Running))
            .unwrap_or(status.name())
    }

    /// The registration that it is a run of, or a part of a run on another shard.
    pub fn owner(&self) -> Option<&Arc<Registration>> {
        let elsewhere = || {
            self.distributed
                .as_ref()
                .and_then(|distributed| distributed.owner.as_ref())
        };
        self.registration.as_ref().or_else(elsewhere)
    }

    /// It cannot come to a right result any more. The first reason counts.
    pub(super) fn set_fate(&self, error: Failure) {
        let _ = self.fate.set(error);
    }

    pub(super) fn fate(&self) -> Option<&Failure> {
        self.fate.get()
    }

    /// A registration started it, here or on another shard.
    pub fn is_registered(&self) -> bool {
        self.registration.is_some()
            || self
                .distributed
                .as_ref()
                .is_some_and(|distributed| distributed.registered)
    }

    /// The outcome, once finished.
    pub fn outcome(&self) -> Option<Arc<Outcome>> {
        self.state.lock().phase.outcome().cloned()
    }

    /// Nobody else can know of it: it is forgotten when it ends.
    pub(super) fn is_unlisted(&self) -> bool {
        self.unlisted.load(Ordering::Relaxed)
    }

    /// False if it was before. Under the mutex of those that are listed.
    pub(super) fn mark_listed(&self) -> bool {
        self.unlisted.swap(false, Ordering::Relaxed)
    }

    /// Something that it waited for has come. True if a thread is to go on with it.
    pub(super) fn complete(&self, completed: Completed) -> bool {
        self.note(|state| state.completions.push(completed))
    }

    /// Another shard has told something. True if a thread is to go on with it.
    pub(super) fn arrive(&self, arrival: Arrival) -> bool {
        self.note(|state| state.arrivals.push(arrival))
    }

    fn note(&self, note: impl FnOnce(&mut ExecutionState)) -> bool {
        let mut state = self.state.lock();
        if state.phase.status().is_final() {
            return false;
        }
        note(&mut state);
        self.completed.store(true, Ordering::Release);
        state.phase.wake()
    }

    /// True if [`Execution::take_news`] has something.
    pub(super) fn has_news(&self) -> bool {
        self.completed.load(Ordering::Relaxed)
    }

    /// What has come since the last call.
    pub(super) fn take_news(&self) -> (Vec<Completed>, Vec<Arrival>) {
        if !self.completed.swap(false, Ordering::AcqRel) {
            return (Vec::new(), Vec::new());
        }
        let mut state = self.state.lock();
        (
            std::mem::take(&mut state.completions),
            std::mem::take(&mut state.arrivals),
        )
    }

    /// Leaves the run until something comes that it waits for.
    ///
    /// # Errors
    /// Something has come, or it is to end: the thread goes on.
    pub(super) fn park(&self, parked: Box<Parked>) -> Result<(), Box<Parked>> {
        let mut state = self.state.lock();
        let message = !state.completions.is_empty() || !state.arrivals.is_empty();
        if message || self.stop.is_asked() {
            return Err(parked);
        }
        state.phase.park(parked)
    }

    /// Takes a run that waits, to go on with it or to end it.
    pub(super) fn unpark(&self) -> Option<Box<Parked>> {
        self.state.lock().phase.unpark()
    }

    /// Nobody waits for its results, which are kept.
    pub(super) fn is_kept_only(&self) -> bool {
        let others = usize::from(self.ignores_results);
        !self.transient && !self.is_collected && self.state.lock().waiters.len() <= others
    }

    /// Somebody gets the results as objects.
    pub(super) fn is_collected(&self) -> bool {
        self.is_collected
    }

    /// Who gets the results now; `None` if nobody does, or he has them.
    pub(super) fn begin_collecting(&self) -> Option<Collector> {
        if !self.is_collected {
            return None;
        }
        let mut state = self.state.lock();
        let has_them = std::mem::replace(&mut state.collected, true);
        state.collector.clone().filter(|_| !has_them)
    }

    /// How many records its reader has given so far, on this shard.
    pub fn records_read(&self) -> u64 {
        self.records_read.load(Ordering::Relaxed)
    }

    /// One record more; only the thread that is at the run calls this.
    pub(super) fn note_read(&self) {
        self.records_read
            .store(self.records_read() + 1, Ordering::Relaxed);
    }

    pub(super) fn mark_delayed(&self) {
        self.delayed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_delayed(&self) -> bool {
        self.delayed.load(Ordering::Relaxed)
    }

    /// Calls `waiter` when finished, now if it is already.
    pub fn when_finished(&self, waiter: Waiter) {
        let mut state = self.state.lock();
        match state.phase.outcome().cloned() {
            None => state.waiters.push(waiter),
            Some(outcome) => {
                drop(state);
                waiter(&outcome);
            }
        }
    }

    /// `created -> running`. `None` if it was aborted before.
    pub(super) fn begin(&self, now: Instant) -> Option<Box<dyn Source>> {
        let mut state = self.state.lock();
        let (source, queued_at) = (state.phase.begin()?, state.queued_at);
        drop(state);
        if let (Some(queued_at), Some(registration)) = (queued_at, &self.registration) {
            let waited = now.saturating_duration_since(queued_at);
            registration.stats.taken(waited);
        }
        Some(source)
    }

    /// To the final status, with an outcome if anybody can ask for it. `None` if it is finished already.
    pub(super) fn end(&self, status: Status, outcome: Option<&Arc<Outcome>>) -> Option<Aftermath> {
        let mut state = self.state.lock();
        let before = state.phase.end(status, outcome)?;
        Some(Aftermath {
            waiters: std::mem::take(&mut state.waiters),
            link: state.link.take(),
            collector: state.collector.take(),
            uncollected: !std::mem::replace(&mut state.collected, true),
            _dropped: (
                before,
                std::mem::take(&mut state.completions),
                std::mem::take(&mut state.arrivals),
            ),
        })
    }

    /// Asks a running execution to stop, and lets its client go. The hold is dropped by the caller.
    pub(super) fn stop(&self) -> Option<ReplyHold> {
        self.stop.ask();
        self.release()
    }

    /// It stands in the queue from now on.
    pub(super) fn enter_queue(&self) {
        if let Some(registration) = &self.registration {
            self.note_queued(Instant::now());
            registration.stats.queued();
        }
    }

    pub(super) fn note_queued(&self, now: Instant) {
        // Once only.
        self.state.lock().queued_at.get_or_insert(now);
    }

    /// Lets its client go without it.
    pub(super) fn release(&self) -> Option<ReplyHold> {
        self.state.lock().link.take()
    }
}
