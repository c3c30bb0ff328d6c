//! The engine: starts executions, runs them on workers, keeps what exists. It knows neither readers nor the language.
//!
//! One handle, made while the module loads and passed down. Commands and readers call it on the server's thread, the
//! language's functions on any thread.

pub mod brief;
pub mod distributed_run;
mod distribution;
pub mod doubts;
mod ended;
mod ending;
pub mod execution;
mod failure;
pub mod holding;
pub mod id;
pub mod language;
pub mod leftover;
pub mod linked_command;
pub mod loading_functions;
pub mod members;
mod outcome;
mod overtime;
pub mod phase;
mod pipeline;
pub mod plan;
pub mod prefix;
mod queue;
pub mod record;
pub mod registering;
pub mod registration;
mod registry;
pub mod requirement;
mod retention;
pub mod reuse;
mod run;
pub mod run_message;
mod run_one;
mod running_now;
pub mod scope;
pub mod session;
mod shuffle;
pub mod sleeper;
pub mod source;
pub mod start;
mod step_state;
pub mod stop;
mod table;
#[cfg(test)]
pub mod testing;
pub mod timers;
mod utilization;
mod waiting;
mod workers;

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::mutex::Mutex;
pub use distribution::{Participation, Shape};
pub use queue::Lane;
pub use registry::Registry;
pub use running_now::RanNow;

use self::{
    distributed_run::DistributedRun,
    distribution::Distribution,
    execution::{Execution, Outcome},
    id::Id,
    language::Language,
    leftover::Leftover,
    overtime::Overtime,
    phase::Status,
    queue::{Job, Queue},
    registration::Registration,
    requirement::Requirements,
    run::Ran,
    start::Start,
    stop::SyncWatch,
    timers::Timers,
};
use crate::{
    clock::Instant,
    config::{Config, Number},
    error::Error,
    server::{
        api::{self, Features},
        client::Meter,
        lock::Lock,
    },
    stats::ServerStats,
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
    spares: Mutex<workers::Spares>,
    leftover: OnceLock<Arc<dyn Leftover>>,
    pub timers: Timers,
    /// Of what is to be stopped; `None`: look at the limits.
    stopper: crossbeam_channel::Sender<Option<Arc<Execution>>>,
    sync_watch: SyncWatch,
    overtime: Overtime,
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
            spares: Mutex::default(),
            leftover: OnceLock::new(),
            timers: Timers::default(),
            stopper,
            sync_watch: SyncWatch::default(),
            overtime: Overtime::default(),
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
        if gather {
            self.queue.gather();
        }
    }

    /// The server's thread has done what its clients asked for: the workers get what came of that.
    pub fn about_to_sleep(&self) {
        self.queue.release();
    }

    /// Executions that wait for a worker.
    pub fn queued(&self) -> usize {
        self.queue.waiting_jobs()
    }

    /// Creates an execution and queues it for the workers. On any thread, with or without the server's lock.
    pub fn submit(&self, start: Start, lane: Option<Lane>) -> Arc<Execution> {
        let execution = self.create(start);
        execution.enter_queue();
        self.queue.push(Job {
            execution: Arc::clone(&execution),
            lane,
            pool: None,
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
            pool: None,
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
            match ran {
                Ran::Well(run) => self.finish_well(execution, run),
                Ran::Ended(status, outcome) => self.finish(execution, status, outcome),
                Ran::Waits | Ran::Gone => {}
            }
        }));
        if done.is_err() {
            // The panic hook has logged it. One that has ended by then is left as it is.
            self.finish(execution, Status::Done, Outcome::of_error(run::INTERNAL));
        }
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
        let distributed = payload.map(|payload| DistributedRun::initiate(self.max_idle(), *payload));
        self.registry.create(start, distributed, self.most_executions())
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
        for execution in self.registry.whole_executions().0 {
            if execution.status() == Status::Created {
                self.fail(&execution, Error::DataReplaced.into());
            }
            drop(execution.release());
        }
        self.registry.drop_finished();
    }
}

/// A duration in whole milliseconds.
pub fn whole_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
