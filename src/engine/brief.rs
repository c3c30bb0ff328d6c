//! Runs that are one call: a `sync` function that a client calls by its name, whose plan is one `map`. Nobody can see such a run before
//! it ends but its own function, so it needs no source, no pipeline and no outcome, and the execution is the one of the last such run.
//!
//! Whatever is unusual (an error, a coroutine, SyncTimeout) goes on as in any other run. Called under the server's lock.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Engine,
    execution::{Execution, Next, Outcome},
    language::Called,
    phase::Status,
    pipeline::single,
    registration::Registration,
    run::{self, Ran},
    run_one,
    running_now::{Depth, RanNow},
    scope::Scope,
    source::Once,
    start::Start,
};
use crate::{
    config::Number,
    server::{guarded::Guarded, lock::Lock, reply::Reply, string::Argv},
};

/// The execution of the last run of a registration, for the next one.
#[derive(Default)]
pub struct Spare(Guarded<Option<Arc<Execution>>>);

impl Spare {
    /// The execution, if nobody else has kept a reference to it.
    fn take(&self, lock: Lock<'_>, may_wait: bool) -> Option<Arc<Execution>> {
        let mut execution = self.0.write(lock).take()?;
        // The watch may have been about to stop the run that has just ended.
        let kept = Arc::get_mut(&mut execution).filter(|execution| !execution.stop.is_asked())?;
        kept.may_wait = may_wait;
        Some(execution)
    }

    fn put(&self, lock: Lock<'_>, execution: Arc<Execution>) {
        // That of an outer run of the same function is dropped behind the borrow.
        let before = self.0.write(lock).replace(execution);
        drop(before);
    }
}

/// What became of such a run.
pub enum Brief {
    /// Its only result.
    Result(Reply),
    Ran(RanNow),
}

impl Engine {
    /// Runs the function of a `sync` registration with the words of a command, watched by SyncTimeout. `None`: it is no such run, and
    /// nothing has happened.
    pub fn run_brief(
        &self,
        lock: Lock<'_>,
        registration: &Arc<Registration>,
        spare: &Spare,
        next: &Arc<dyn Next>,
        words: Argv<'_>,
        may_wait: bool,
    ) -> Option<Brief> {
        let call = registration.plan.only_call().filter(|call| !call.visits)?;
        let limits = &registration.limits;
        let is_limited = limits.timeout_ms.is_some() || limits.max_memory.is_some();
        if is_limited || self.config.is_on(Number::ProfileExecutions) {
            return None;
        }
        let _depth = Depth::enter()?;
        registration.stats.triggered();
        let execution = spare.take(lock, may_wait).unwrap_or_else(|| {
            let start = Start::of_call(registration, 0, Box::new(Once(None)), Arc::clone(next));
            self.registry.create_unlisted(start.waiting(may_wait))
        });
        let started = Instant::now();
        let watched = self.sync_watch.enter(Arc::clone(&execution) as _, started);
        let scope = Scope::enter_execution(&execution);
        let function = &registration.plan.functions[call.function];
        let called = catch_unwind(AssertUnwindSafe(|| {
            function.answer(&execution.stop, words, call.text)
        }));
        let ran = match called {
            Ok(Ok(Called::Now(result))) if !execution.stop.is_asked() => {
                drop(scope);
                drop(watched);
                registration.stats.succeeded(started.elapsed());
                spare.put(lock, execution);
                return Some(Brief::Result(result));
            }
            Ok(Ok(Called::Later(awaitable, _))) => {
                execution.note_read();
                // Nobody can have aborted it: it has no id yet that anybody knows.
                drop(execution.begin(started));
                run_one::wait_for(self, &execution, Duration::ZERO, started, |ticket| {
                    single::waiting_at(0, awaitable, None, ticket)
                })
            }
            Ok(Ok(Called::Now(result))) => run_one::ended_at_once(self, &execution, Ok(result), started),
            Ok(Err(failure)) => run_one::ended_at_once(self, &execution, Err(failure), started),
            Err(_) => Ran::Ended(Status::Done, Outcome::of_error(run::INTERNAL)),
        };
        drop(scope);
        drop(watched);
        Some(Brief::Ran(self.after_run(&execution, ran)))
    }
}
