//! Runs that are one call: a `sync` function of an event, or one that a client calls by its name, whose plan is one `map` or `foreach`.
//! Nobody can see such a run before it ends but its own function, so it needs no source, no pipeline and no outcome, and the execution is
//! the one of the last such run. Of a run that can be asked for later an [`Ended`] is kept.
//!
//! Whatever is unusual (an error, a coroutine, SyncTimeout) goes on as in any other run. Called under the server's lock.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    Engine,
    ended::{Ended, Known, Single},
    execution::{Execution, MayWait, Next, Outcome},
    language::{Called, Failure, Shown},
    linked_command::ReplyHold,
    phase::Status,
    pipeline::single,
    plan::OnlyCall,
    record::Record,
    registration::Registration,
    run::{self, Ran},
    run_one,
    running_now::{Depth, RanNow},
    scope::Scope,
    source::{Once, Source, Withheld},
    start::Start,
};
use crate::{
    clock::Instant,
    config::Number,
    server::{command::Command, guarded::Guarded, lock::Lock, reply::Reply, string::Argv},
};

/// The execution of the last run of a registration, for the next one.
#[derive(Default)]
pub struct Spare {
    execution: Guarded<Option<Arc<Execution>>>,
    /// A result that is not kept any more: it ends with the next run, attached.
    outdated: Guarded<Option<Shown>>,
}

impl Spare {
    /// The execution, if nobody else has kept a reference to it.
    fn take(&self, lock: Lock<'_>, renew: impl FnOnce(&mut Execution)) -> Option<Arc<Execution>> {
        let mut execution = self.execution.write(lock).take()?;
        // The watch may have been about to stop the run that has just ended.
        let kept = Arc::get_mut(&mut execution).filter(|execution| execution.is_as_new())?;
        renew(kept);
        Some(execution)
    }

    fn put(&self, lock: Lock<'_>, execution: Arc<Execution>) {
        // That of an outer run of the same function is dropped behind the borrow.
        let before = self.execution.write(lock).replace(execution);
        drop(before);
    }
}

/// An event that a `sync` function runs for.
pub struct Event {
    pub db: i32,
    /// Its record, or why the function may not have it.
    pub record: Result<Record, Failure>,
    /// The linked command whose client waits for the end.
    pub link: Option<ReplyHold>,
    pub may_wait: MayWait,
}

/// What became of a run that a client waits for.
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
        registration: &Arc<Registration>,
        spare: &Spare,
        next: &Arc<dyn Next>,
        words: Argv<'_>,
        command: &Command<'_>,
    ) -> Option<Brief> {
        let call = self.only_call(registration).filter(|call| !call.visits)?;
        let _depth = Depth::enter()?;
        registration.stats.triggered();
        let lock = command.lock();
        let _caller = command.is_asked();
        let execution = spare.take(lock, |_| ()).unwrap_or_else(|| {
            let start = Start::of_call(registration, 0, Box::new(Once(None)), Arc::clone(next));
            self.registry.create_unlisted(start.waiting(MayWait::AsCaller))
        });
        let started = Instant::now();
        let watched = self.sync_watch.enter(Arc::clone(&execution) as _, started);
        let scope = Scope::enter_execution(&execution);
        let function = &registration.plan.functions[call.function];
        let called = catch_unwind(AssertUnwindSafe(|| {
            function.answer(&execution.stop, words, call.text)
        }));
        let otherwise = match called {
            Ok(Ok(Called::Now(result))) if !execution.stop.is_asked() => {
                drop(scope);
                drop(watched);
                registration.stats.succeeded(started.elapsed());
                spare.put(lock, execution);
                return Some(Brief::Result(result));
            }
            Ok(called) => Some(called),
            Err(_) => None,
        };
        let ran = self.went_otherwise(&execution, otherwise, started);
        drop(scope);
        drop(watched);
        Some(Brief::Ran(self.after_run(&execution, ran)))
    }

    /// What a call by name has come to that has not just given a result; `None` for a panic.
    #[inline(never)]
    fn went_otherwise(
        &self,
        execution: &Arc<Execution>,
        called: Option<Result<Called<Reply>, Failure>>,
        started: Instant,
    ) -> Ran {
        match called {
            Some(Ok(Called::Later(awaitable, _))) => {
                execution.note_read();
                // Nobody can have aborted it: it has no id yet that anybody knows.
                drop(execution.begin(started));
                run_one::wait_for(self, execution, Duration::ZERO, started, |ticket| {
                    single::waiting_at(0, awaitable, None, ticket)
                })
            }
            Some(Ok(Called::Now(result))) => {
                let outcome = Outcome {
                    results: vec![result],
                    ..Outcome::default()
                };
                run_one::ended_at_once(self, execution, outcome, started)
            }
            Some(Err(failure)) => {
                run_one::ended_at_once(self, execution, Outcome::of_error(failure), started)
            }
            None => Ran::Ended(Status::Done, Outcome::of_error(run::INTERNAL)),
        }
    }

    /// The call that a run of the registration is, if nothing has to be watched or measured but SyncTimeout.
    fn only_call(&self, registration: &Registration) -> Option<OnlyCall> {
        let limits = &registration.limits;
        let is_limited = limits.timeout_ms.is_some() || limits.max_memory.is_some();
        if is_limited || self.config.is_on(Number::ProfileExecutions) {
            return None;
        }
        registration.plan.only_call()
    }

    /// Runs the function of a `sync` registration for an event, watched by SyncTimeout. The run is kept for those who ask for it later.
    pub fn run_event(&self, lock: Lock<'_>, registration: &Arc<Registration>, spare: &Spare, event: Event) {
        let Event {
            db,
            record,
            mut link,
            may_wait,
        } = event;
        let call = self.only_call(registration).filter(|call| call.text);
        let depth = call.and_then(|_| Depth::enter());
        let (record, call, _depth) = match (record, call, depth) {
            (Ok(record), Some(call), Some(depth)) => (record, call, depth),
            (record, ..) => {
                let source: Box<dyn Source> = match record {
                    Ok(record) => Box::new(Once(Some(record))),
                    Err(refusal) => Box::new(Withheld(Some(refusal))),
                };
                let start = Start::of_registration(registration, db, source).linked(link);
                drop(self.run_now(start.waiting(may_wait)));
                return;
            }
        };
        registration.stats.triggered();
        let renewed = spare.take(lock, |execution| {
            execution.renew(self.registry.next_execution_id(), db, may_wait, link.take());
        });
        let started = Instant::now();
        let mut execution = renewed.unwrap_or_else(|| {
            let start = Start::of_registration(registration, db, Box::new(Once(None))).linked(link.take());
            let execution = self.registry.create_unlisted(start.waiting(may_wait));
            drop(execution.begin(started));
            execution
        });
        let watched = self.sync_watch.enter(Arc::clone(&execution) as _, started);
        let scope = Scope::enter_execution(&execution);
        execution.note_read();
        let function = &registration.plan.functions[call.function];
        let outdated = spare.outdated.write(lock).take();
        let called = catch_unwind(AssertUnwindSafe(|| {
            function.text(&execution.stop, record, call.visits, outdated)
        }));
        let ran = match called {
            Ok(Ok(Called::Now(result))) if !execution.stop.is_asked() => {
                let total = started.elapsed();
                drop(scope);
                drop(watched);
                // Whoever has a reference to it, or asked for it, has the execution itself.
                let alone = Arc::get_mut(&mut execution).filter(|execution| execution.is_unlisted());
                let run = Single {
                    result,
                    total,
                    reading: Duration::ZERO,
                };
                let Some(alone) = alone else {
                    self.finish_well(&execution, run);
                    return;
                };
                let link = alone.unlink();
                registration.stats.succeeded(total);
                let ended = Ended {
                    registration: Arc::clone(registration),
                    db,
                    run,
                };
                let limit = self.config.limit(Number::MaxExecutionsPerRegistration);
                let gone = self
                    .registry
                    .keep_ended(execution.id, ended, limit, self.most_executions());
                spare.put(lock, execution);
                if let Some(Known::Ended(gone)) = gone {
                    let before = spare.outdated.write(lock).replace(gone.run.result);
                    drop(before);
                }
                drop(link);
                return;
            }
            Ok(Ok(Called::Now(result))) => {
                let result = Outcome::of_result(result, Duration::ZERO);
                run_one::ended_at_once(self, &execution, result, started)
            }
            Ok(Ok(Called::Later(awaitable, record))) => {
                run_one::wait_for(self, &execution, Duration::ZERO, started, |ticket| {
                    single::waiting_at(0, awaitable, record, ticket)
                })
            }
            Ok(Err(failure)) => run_one::ended_at_once(self, &execution, Outcome::of_error(failure), started),
            Err(_) => Ran::Ended(Status::Done, Outcome::of_error(run::INTERNAL)),
        };
        drop(scope);
        drop(watched);
        drop(self.after_run(&execution, ran));
    }
}
