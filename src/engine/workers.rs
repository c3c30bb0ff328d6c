//! The threads of the engine: workers that run executions, and one that stops those that somebody aborts.
//!
//! A worker stays attached to the language while there is work and waits detached. None of them ever ends. Where one waits for
//! another execution ([`Engine::wait_on_worker`]), a spare one comes for it: else all of them could wait for what none is left to run. Where all
//! of them hang, those in reserve run what others have ([`Engine::look_after_workers`]).

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{
    Engine, Lane,
    execution::Execution,
    leftover,
    queue::{Job, Look},
    stop::INTERRUPT_INTERVAL,
    timers::Timers,
};
use crate::{clock::Instant, config::Number, per_thread, server::api, threads};

/// For how long no worker gets on before one in reserve comes.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often the log says so.
const QUIET: Duration = Duration::from_secs(60);
/// How many spare workers there are at most.
const MOST_SPARES: usize = 64;

/// Workers that wait for other executions, and those that came for them.
#[derive(Default)]
pub(super) struct Spares {
    waiting: usize,
    made: usize,
    /// When the log said last that all workers hang.
    told: Option<Instant>,
}

impl Spares {
    /// The log says that all workers hang, not more often than each [`QUIET`].
    fn is_to_be_told(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.told.is_none_or(|told| now - told >= QUIET);
        if is_due {
            self.told = Some(now);
        }
        is_due
    }

    /// One more waits. The number of the spare worker that is to come. `none_is_free`: those that are there may hang.
    fn wait(&mut self, none_is_free: bool) -> Option<usize> {
        self.waiting += 1;
        if (self.waiting <= self.made && !none_is_free) || self.made >= MOST_SPARES {
            return None;
        }
        self.made += 1;
        Some(self.made)
    }
}

impl Engine {
    /// Does `wait`, which waits, detached from the language, for an execution that a worker has to run.
    pub fn wait_on_worker<R>(self: &Arc<Self>, wait: impl FnOnce() -> R) -> R {
        let paused = self.queue.pause();
        let spare = self.spares.lock().wait(paused.none_is_free);
        if let Some(number) = spare {
            let engine = Arc::clone(self);
            let life = move || engine.language.thread(&mut || work(&engine));
            if let Err(error) = threads::spawn(format!("pinion-spare-{number}"), life) {
                api::log_warning(&format!("no thread for a worker that waits: {error}"));
                self.spares.lock().made -= 1;
            }
        }
        let result = wait();
        self.queue.resume(paused);
        self.spares.lock().waiting -= 1;
        result
    }
}

impl Engine {
    /// All workers are at it: somebody looks a moment later whether they get on.
    fn look_after_workers(&self, before: Option<u64>) {
        self.timers
            .after(PATIENCE, move |engine| match engine.queue.look(before) {
                Look::Free => {}
                Look::Again(seen) => engine.look_after_workers(Some(seen)),
                Look::Stuck { seen, wants_one } => {
                    engine.tell_of_stuck_workers();
                    if wants_one {
                        engine.call_reserve();
                    }
                    engine.look_after_workers(Some(seen));
                }
            });
    }

    fn tell_of_stuck_workers(&self) {
        if self.spares.lock().is_to_be_told() {
            api::log_warning(&format!(
                "all {} workers (ExecutionThreads) wait in functions that do not return: workers in reserve run those of others",
                self.config.number(Number::ExecutionThreads)
            ));
        }
    }

    fn call_reserve(self: &Arc<Self>) {
        let number = self.queue.enlist_in_reserve();
        let engine = Arc::clone(self);
        let life = move || engine.language.thread(&mut || work_in_reserve(&engine, number));
        if let Err(error) = threads::spawn(format!("pinion-reserve-{}", number + 1), life) {
            api::log_warning(&format!("no thread for a worker in reserve: {error}"));
        }
    }
}

/// Starts all threads.
pub(super) fn spawn(engine: &Arc<Engine>, to_stop: Receiver<Option<Arc<Execution>>>) -> std::io::Result<()> {
    for number in 0..engine.config.number(Number::ExecutionThreads) {
        let engine = Arc::clone(engine);
        threads::spawn(format!("pinion-{number}"), move || {
            per_thread::take_place();
            engine.language.thread(&mut || work(&engine));
        })?;
    }
    Timers::start(engine)?;
    let stopping = Arc::clone(engine);
    threads::spawn("pinion-stop".into(), move || {
        stopping.language.thread(&mut || stop(&stopping, &to_stop));
    })?;
    let watching = Arc::clone(engine);
    threads::spawn("pinion-watch".into(), move || {
        let engine = &watching;
        let limit = || {
            let limit = engine.config.limit(Number::SyncTimeout)?;
            Some(Duration::from_millis(limit as u64))
        };
        engine
            .language
            .thread(&mut || engine.sync_watch.watch(engine.language.as_ref(), limit));
    })?;
    Ok(())
}

fn work(engine: &Engine) {
    leftover::this_is_a_worker();
    let mut seat = engine.queue.enlist();
    loop {
        engine.queue.wait();
        engine.language.attached(&mut || {
            while let Some(job) = engine.queue.next(&mut seat) {
                if seat.is_last {
                    engine.look_after_workers(None);
                }
                engine.hand_on_what_is_left();
                work_off(engine, job);
            }
        });
        engine.do_what_is_left();
    }
}

fn work_off(engine: &Engine, job: Job) {
    engine.run_job(&job.execution);
    if let Some(lane) = job.lane {
        leave(engine, &job.execution, lane);
    }
    if let Some(pool) = job.pool {
        pool.put(job.execution);
    }
}

fn work_in_reserve(engine: &Engine, number: usize) {
    loop {
        engine.queue.wait_in_reserve();
        engine.language.attached(&mut || {
            while let Some(job) = engine.queue.next_in_reserve(number) {
                work_off(engine, job);
            }
        });
    }
}

/// An execution leaves its lane: those that only share it with others when they have ended, all others when they wait, too.
fn leave(engine: &Engine, execution: &Arc<Execution>, lane: Lane) {
    if !matches!(lane, Lane::Share { .. }) || execution.status().is_final() {
        return engine.queue.advance(lane);
    }
    let engine = engine.handle();
    execution.when_finished(Box::new(move |_| engine.queue.advance(lane)));
}

fn stop(engine: &Engine, to_stop: &Receiver<Option<Arc<Execution>>>) {
    let mut stopping: Vec<Arc<Execution>> = Vec::new();
    loop {
        let looks = engine.look_at_overtime();
        let often = (!stopping.is_empty()).then_some(INTERRUPT_INTERVAL);
        let more = match looks.into_iter().chain(often).min() {
            None => to_stop.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(rest) => to_stop.recv_timeout(rest),
        };
        match more {
            Ok(execution) => stopping.extend(execution),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        stopping.retain(|execution| !execution.status().is_final());
        for execution in &stopping {
            engine.language.interrupt(&execution.stop);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::{RecvTimeoutError, bounded};

    use super::*;
    use crate::{
        config::Config,
        engine::{
            execution::Outcome,
            language::Failure,
            plan::Plan,
            record::Record,
            session::{Needs, Session},
            source::{Reading, Source},
            start::Start,
            testing::Plain,
        },
        server::api::Features,
    };

    struct Empty;

    impl Source for Empty {
        fn next(&mut self, _reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
            Ok(None)
        }
    }

    struct Broken;

    impl Source for Broken {
        fn next(&mut self, _reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
            panic!("a source that panics, for a test")
        }
    }

    fn start(source: Box<dyn Source>, waiter: impl FnOnce(&Outcome) + Send + 'static) -> Start {
        let plan = Arc::new(Plan {
            steps: Vec::new(),
            functions: Vec::new(),
        });
        let session = Arc::new(Session::new("session".into(), None, Needs::default()));
        Start::of_run(plan, session, source).told(waiter)
    }

    #[test]
    fn a_panic_ends_one_execution_and_no_worker() {
        let started = Engine::start(Arc::default(), Features::default(), Arc::new(Plain));
        let engine = started.unwrap_or_else(|error| panic!("no threads: {error}"));
        let config: &Config = &engine.config;
        let (told, errors) = bounded(1);
        for _ in 0..2 * config.number(Number::ExecutionThreads) {
            engine.submit(
                start(Box::new(Empty), |_| panic!("a waiter that panics, for a test")),
                None,
            );
            let told = told.clone();
            let waiter = move |outcome: &Outcome| {
                // Nobody listens any more only where the test has failed.
                let _ = told.send(outcome.errors.clone());
            };
            engine.submit(start(Box::new(Broken), waiter), None);
            let said: Result<_, RecvTimeoutError> = errors.recv_timeout(Duration::from_secs(20));
            assert_eq!(
                said,
                Ok(vec![Failure::from("ERR internal error, see the server's log")])
            );
        }
        while engine.registry.execution_count() > 0 {
            thread::yield_now();
        }
    }
}
