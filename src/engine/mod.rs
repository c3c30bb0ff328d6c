//! The engine: starts executions, runs them on workers, keeps what exists. It knows neither readers nor the language.
//!
//! One handle, made while the module loads and passed down. Commands and readers call it on the server's thread, the
//! language's functions on any thread.

pub mod distributed_run;
mod distribution;
pub mod execution;
pub mod id;
pub mod language;
pub mod linked_command;
mod load;
pub mod loading;
pub mod members;
mod pipeline;
pub mod plan;
pub mod prefix;
mod queue;
pub mod record;
pub mod registering;
pub mod registration;
mod registry;
pub mod requirement;
mod run;
pub mod scope;
pub mod session;
mod shuffle;
pub mod source;
mod step_state;
pub mod stop;
#[cfg(test)]
pub mod testing;
pub mod timers;
mod waiting;
mod workers;

use std::{
    cell::Cell,
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::mutex::Mutex;
pub use distribution::{Participation, Shape};
pub use queue::Lane;
pub use registry::Registry;

use self::{
    distributed_run::DistributedRun,
    distribution::Distribution,
    execution::{Execution, Outcome, Start, Status},
    id::Id,
    language::Language,
    queue::{Job, Queue},
    registration::Registration,
    requirement::Requirements,
    run::Ran,
    stop::SyncWatch,
    timers::Timers,
};
use crate::{
    config::{Config, Number},
    error::Error,
    server::{
        api::{self, Features},
        client::Meter,
        command::{Answer, Command},
        lock::Lock,
        reply::Reply,
    },
    stats::{Ending, ServerStats},
};

/// Everything that lives as long as the module.
pub struct Engine {
    this: Weak<Self>,
    pub config: Arc<Config>,
    pub features: Features,
    pub stats: ServerStats,
    pub registry: Registry,
    pub requirements: Requirements,
    pub language: Arc<dyn Language>,
    queue: Queue,
    pub timers: Timers,
    stopper: crossbeam_channel::Sender<Arc<Execution>>,
    sync_watch: SyncWatch,
    started: Instant,
    distribution: Distribution,
    /// True on a master that is not loading: events fire, clients are linked.
    serving: AtomicBool,
    loading: AtomicBool,
    /// How often data were replaced.
    loads: AtomicU64,
    /// Registrations whose onRegistered failed while this server was no master.
    unprepared: Mutex<BTreeSet<Id>>,
}

impl Engine {
    /// Makes the engine and starts its threads.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub fn start(
        config: Arc<Config>,
        features: Features,
        language: Arc<dyn Language>,
    ) -> std::io::Result<Arc<Self>> {
        let (stopper, to_stop) = crossbeam_channel::unbounded();
        let engine = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            config,
            features,
            stats: ServerStats::default(),
            registry: Registry::default(),
            requirements: Requirements::default(),
            language,
            queue: Queue::default(),
            timers: Timers::default(),
            stopper,
            sync_watch: SyncWatch::default(),
            started: Instant::now(),
            distribution: Distribution::default(),
            serving: AtomicBool::new(false),
            loading: AtomicBool::new(false),
            loads: AtomicU64::new(0),
            unprepared: Mutex::default(),
        });
        workers::spawn(&engine, to_stop)?;
        Ok(engine)
    }

    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    pub fn is_loading(&self) -> bool {
        self.loading.load(Ordering::Relaxed)
    }

    /// To be called when the server's role or its loading state has changed. True if it begins to serve.
    pub fn update_serving(&self, lock: Lock<'_>) -> bool {
        let loading = lock.is_loading();
        let serving = lock.is_master() && !loading;
        self.loading.store(loading, Ordering::Relaxed);
        !self.serving.swap(serving, Ordering::Relaxed) && serving
    }

    /// `true`: the server's thread tells when it is about to sleep, see [`Engine::about_to_sleep`].
    pub fn gather_jobs(&self, gather: bool) {
        self.queue.gather(gather.then(|| thread::current().id()));
    }

    /// The server's thread has done what its clients asked for: the workers get what came of that.
    pub fn about_to_sleep(&self) {
        self.queue.release();
    }

    /// Executions that wait for a worker.
    pub fn queued(&self) -> usize {
        self.queue.waiting_jobs()
    }

    /// Creates an execution and queues it for the workers.
    pub fn submit(&self, start: Start, lane: Option<Lane>) -> Arc<Execution> {
        let execution = self.create(start);
        execution.enter_queue();
        self.queue.push(Job {
            execution: Arc::clone(&execution),
            lane: lane.map(Arc::new),
        });
        execution
    }

    /// A handle for those who outlive their caller.
    fn handle(&self) -> Arc<Self> {
        // Whoever calls this is called through such a handle.
        #[allow(clippy::expect_used)]
        self.this
            .upgrade()
            .expect("the engine lives as long as the process")
    }

    /// An execution that waited has something to go on with.
    fn go_on(&self, execution: &Arc<Execution>) {
        self.queue.push(Job {
            execution: Arc::clone(execution),
            lane: None,
        });
    }

    /// Runs a job of the queue on this thread. Whatever panics, the thread goes on and the execution ends.
    fn run_job(&self, execution: &Arc<Execution>) {
        let done = catch_unwind(AssertUnwindSafe(|| {
            let ran = {
                let meter = execution.meter();
                let _measured = meter.as_ref().map(Meter::start);
                run::run(self, execution, Instant::now())
            };
            if let Ran::Ended(status, outcome) = ran {
                self.finish(execution, status, outcome);
            }
        }));
        if done.is_err() {
            // The panic hook has logged it. One that has ended by then is left as it is.
            self.finish(execution, Status::Done, Outcome::of_error(run::INTERNAL));
        }
    }

    /// Creates an execution and runs it on this thread. Watched by SyncTimeout.
    pub fn run_now(&self, start: Start) -> RanNow {
        if let Some(registration) = &start.registration {
            registration.stats.triggered();
        }
        let execution = if start.transient {
            self.registry.create_unlisted(start)
        } else {
            let limit = self.config.limit(Number::MaxExecutions);
            self.registry.create(start, None, limit)
        };
        let mut ran = None;
        if let Some(_depth) = Depth::enter() {
            let now = Instant::now();
            let _watched = self.sync_watch.enter(Arc::clone(&execution) as _, now);
            self.language
                .attached(&mut || ran = Some(run::run(self, &execution, now)));
        }
        match ran.unwrap_or_else(|| Ran::Ended(Status::Done, Outcome::of_error(TOO_DEEP))) {
            Ran::Ended(status, outcome) if execution.is_unlisted() => {
                RanNow::Ended(self.finish_unlisted(&execution, status, outcome))
            }
            Ran::Ended(status, outcome) => {
                self.finish(&execution, status, outcome);
                RanNow::Kept
            }
            Ran::Gone => RanNow::Kept,
            Ran::Waits => {
                if execution.is_unlisted() {
                    self.registry.list(&execution);
                    // It may have gone on and ended before it was listed.
                    if execution.status().is_final() {
                        self.registry.drop_execution(execution.id);
                    }
                }
                RanNow::Waits(execution)
            }
        }
    }

    /// [`Engine::finish`] for an execution that nobody could know of.
    fn finish_unlisted(&self, execution: &Execution, status: Status, mut outcome: Outcome) -> Outcome {
        outcome.aborted = status == Status::Aborted;
        if let Some(aftermath) = execution.end(status, None) {
            if let Some(registration) = &execution.registration {
                self.count_end(registration, status, &outcome);
            }
            for waiter in aftermath.waiters {
                guarded(|| waiter(&outcome));
            }
            drop(aftermath.link);
        }
        outcome
    }

    /// Counts how an execution of a registration ended. The log has a line about failures, at most once a second.
    fn count_end(&self, registration: &Registration, status: Status, outcome: &Outcome) {
        let ending = outcome.ending(status);
        if let Ending::Failure(error) = &ending {
            if let Some(failures) = registration.stats.failures_to_log(self.started.elapsed()) {
                let (id, session) = (registration.id, &registration.session.id);
                let line = self.language.in_one_line(error);
                let number = if failures == 1 {
                    String::new()
                } else {
                    format!(" {failures} times, at last")
                };
                api::log_warning(&format!(
                    "registration {id} of session {session} failed{number}: {line}"
                ));
            }
        }
        registration.stats.ended(ending, outcome.total);
    }

    /// An event is not followed by an execution if too many of its registration are pending already.
    pub fn has_room(&self, registration: &Registration) -> bool {
        let Some(limit) = self.config.limit(Number::MaxPendingPerRegistration) else {
            return true;
        };
        if registration.stats.pending() < limit as u64 {
            return true;
        }
        if registration.stats.dropped(self.started.elapsed()) {
            api::log_warning(&format!(
                "{limit} executions of registration {} are pending (MaxPendingPerRegistration): new events are dropped",
                registration.id
            ));
        }
        false
    }

    fn create(&self, mut start: Start) -> Arc<Execution> {
        if let Some(registration) = &start.registration {
            registration.stats.triggered();
        }
        let payload = start.payload.take();
        let distributed = payload.map(|payload| DistributedRun::initiate(self.max_idle(), payload));
        self.registry
            .create(start, distributed, self.config.limit(Number::MaxExecutions))
    }

    /// Brings an execution to its end and does what follows: counters, retention, waiters, and last the client.
    fn finish(&self, execution: &Arc<Execution>, status: Status, mut outcome: Outcome) {
        outcome.aborted = status == Status::Aborted;
        if let Some(fate) = execution.fate() {
            outcome.errors.insert(0, fate.clone());
        }
        let outcome = Arc::new(outcome);
        let Some(aftermath) = execution.end(status, Some(&outcome)) else {
            return;
        };
        if let Some(registration) = &execution.registration {
            self.count_end(registration, status, &outcome);
        }
        self.tell_end(execution, status);
        if !execution.transient {
            let limit = self.config.limit(Number::MaxExecutionsPerRegistration);
            self.registry.keep(execution, limit);
        }
        if let Some(collector) = execution.take_collector() {
            // It never came to its results.
            let mut collector = Some(collector);
            guarded(|| {
                self.language.attached(&mut || {
                    if let Some(collector) = collector.take() {
                        drop(collector(Vec::new(), &outcome.errors));
                    }
                });
            });
        }
        for waiter in aftermath.waiters {
            guarded(|| waiter(&outcome));
        }
        if execution.transient {
            self.registry.drop_execution(execution.id);
        }
        drop(aftermath.link);
    }

    /// Asks for the end of an execution; `done` is called when it is finished, which may be now.
    ///
    /// # Errors
    /// There is no such execution.
    pub fn abort(&self, id: Id, done: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let execution = self.registry.execution(id).ok_or(Error::NoSuchExecution)?;
        self.abort_execution(&execution);
        execution.when_finished(Box::new(|_| done()));
        Ok(())
    }

    fn abort_execution(&self, execution: &Arc<Execution>) {
        drop(execution.stop());
        self.end_waiting(execution, None);
        if !execution.status().is_final() {
            // The receiver lives as long as the process.
            let _ = self.stopper.send(Arc::clone(execution));
        }
    }

    /// Ends an execution that no thread is at: one that has not begun, or that waits. `error`: why.
    fn end_waiting(&self, execution: &Arc<Execution>, error: Option<&str>) {
        if execution.status() == Status::Created {
            // A worker may begin it in this moment: then this changes nothing, and it stops as a running one does.
            if let Some(source) = execution.begin() {
                drop(source);
                let outcome = error.map(Outcome::of_error).unwrap_or_default();
                self.finish(execution, Status::Aborted, outcome);
            }
        }
        if let Some(parked) = execution.unpark() {
            let mut parked = Some(parked);
            self.language.attached(&mut || {
                let Some(mut parked) = parked.take() else { return };
                parked.state.errors.extend(error.map(str::to_owned));
                if let Ran::Ended(status, outcome) = run::ended(self, execution, &mut parked) {
                    let status = if error.is_some() { Status::Aborted } else { status };
                    self.finish(execution, status, outcome);
                }
            });
        }
    }

    /// Forgets a finished execution.
    ///
    /// # Errors
    /// There is none, or it is not finished.
    pub fn drop_execution(&self, id: Id) -> Result<(), Error> {
        let execution = self.registry.execution(id).ok_or(Error::NoSuchPlan)?;
        if !execution.status().is_final() {
            return Err(Error::NotFinished);
        }
        self.registry.drop_execution(id);
        Ok(())
    }

    fn abort_queued(&self, concerns: impl Fn(&Execution) -> bool) {
        for execution in self.registry.executions() {
            if execution.status() == Status::Created && concerns(&execution) {
                self.abort_execution(&execution);
            }
        }
    }

    /// Forgets an execution as soon as it is finished.
    pub fn drop_when_finished(engine: &Arc<Self>, id: Id) {
        let Some(execution) = engine.registry.execution(id) else {
            return;
        };
        let engine = Arc::clone(engine);
        execution.when_finished(Box::new(move |_| engine.registry.drop_execution(id)));
    }

    /// Changes when the data are replaced.
    fn loads(&self) -> u64 {
        self.loads.load(Ordering::Acquire)
    }

    /// The data are about to be replaced: whatever was started for the old ones ends, and no client waits for it. What is
    /// under way ends when it wants to read on.
    pub fn loading_started(&self) {
        self.loads.fetch_add(1, Ordering::AcqRel);
        self.unprepared.lock().clear();
        for execution in self.registry.executions() {
            if execution.status() == Status::Created {
                self.fail(&execution, &Error::DataReplaced.to_string());
            }
            drop(execution.release());
        }
        self.registry.drop_finished();
    }
}

/// Tells one of those who wait for an execution: a panic there, which the panic hook logs, is not the others' loss.
fn guarded(tell: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(tell));
}

/// What became of an execution that was run at once.
pub enum RanNow {
    Ended(Outcome),
    /// It waits, and ends in the background.
    Waits(Arc<Execution>),
    /// It has ended, and its outcome is where those of others are.
    Kept,
}

impl RanNow {
    /// Answers the client that asked for it, now or when it has ended in the background.
    ///
    /// # Errors
    /// It goes on in the background, and the server does not let the client wait for it.
    pub fn answer(
        self,
        command: &Command<'_>,
        reply: impl Fn(Outcome) -> Reply + Send + 'static,
    ) -> Result<Answer, Error> {
        Ok(match self {
            Self::Ended(outcome) => reply(outcome).into(),
            Self::Waits(execution) => {
                let client = command.block()?;
                execution.measure_for(&client);
                execution.when_finished(Box::new(move |outcome| client.answer(reply(outcome.clone()))));
                Answer::Done
            }
            // It ended in this moment, and was dropped with its outcome.
            Self::Kept => Reply::error("ERR the execution was lost before it could reply").into(),
        })
    }
}

/// How deep functions that run at once may call each other; each level takes room on the stack of its thread.
const MAX_DEPTH: u32 = 100;
const TOO_DEEP: &str = "ERR functions call each other too deeply (does one call itself?)";

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// One level of functions that run at once.
struct Depth;

impl Depth {
    fn enter() -> Option<Self> {
        let depth = DEPTH.get();
        if depth >= MAX_DEPTH {
            return None;
        }
        DEPTH.set(depth + 1);
        Some(Self)
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// A duration in whole milliseconds.
pub fn whole_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
