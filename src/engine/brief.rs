//! Runs that are one call: a `sync` function that a client calls by its name, whose plan is one `map`. Nobody can see such a run before
//! it ends but its own function, so it needs no source, no pipeline and no outcome, and the execution is the one of the last such run.
//!
//! Whatever is unusual (an error, a coroutine, SyncTimeout) goes on as in any other run. Called under the server's lock.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use super::{
    Engine,
    execution::{Execution, Next, Outcome},
    language::Called,
    phase::Status,
    pipeline::single,
    plan::{Plan, Step},
    registration::Registration,
    run::{self, Ran},
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

/// The function of a plan that is one call, and whether its result is the text of what it returns.
fn only_call(plan: &Plan) -> Option<(usize, bool)> {
    let (Step::Map(function), rest) = plan.steps.split_first()? else {
        return None;
    };
    match rest {
        // On a shard alone nothing moves.
        [] | [Step::Collect] => Some((*function, false)),
        [Step::Text] | [Step::Text, Step::Collect] => Some((*function, true)),
        _ => None,
    }
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
        let (function, text) = only_call(&registration.plan)?;
        if registration.limits.timeout_ms.is_some() || self.config.is_on(Number::ProfileExecutions) {
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
        let function = &registration.plan.functions[function];
        let called = catch_unwind(AssertUnwindSafe(|| function.answer(&execution.stop, words, text)));
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
                run::wait_for(self, &execution, started, |ticket| {
                    single::waiting_at(0, awaitable, None, ticket)
                })
            }
            Ok(Ok(Called::Now(result))) => run::ended_at_once(self, &execution, Ok(result), started),
            Ok(Err(failure)) => run::ended_at_once(self, &execution, Err(failure), started),
            Err(_) => Ran::Ended(Status::Done, Outcome::of_error(run::INTERNAL)),
        };
        drop(scope);
        drop(watched);
        Some(Brief::Ran(self.after_run(&execution, ran)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_is_a_map_and_what_follows_by_itself() {
        let call = |steps: &[Step]| {
            only_call(&Plan {
                steps: steps.to_vec(),
                functions: Vec::new(),
            })
        };
        assert_eq!(call(&[Step::Map(3)]), Some((3, false)));
        assert_eq!(call(&[Step::Map(0), Step::Text, Step::Collect]), Some((0, true)));
        assert_eq!(call(&[Step::Map(0), Step::Collect, Step::Text]), None);
        assert_eq!(call(&[Step::Map(0), Step::Map(1)]), None);
        assert_eq!(call(&[Step::ForEach(0)]), None);
        assert_eq!(call(&[]), None);
    }
}
