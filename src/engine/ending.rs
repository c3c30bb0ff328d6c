//! How executions end: finished, aborted, forgotten; and what follows for those who wait. Contract: docs/contract/commands.md
//! chapter 3.
//!
//! On whichever thread the end comes; a panic of one who waits is not the others' loss.

use std::{
    iter,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{
    Engine,
    execution::{Execution, Outcome},
    id::Id,
    language::Failure,
    phase::Status,
    registration::Registration,
    run::{self, Ran},
};
use crate::{clock::Instant, config::Number, error::Error, server::api, stats::Ending};

impl Engine {
    /// [`Engine::finish`] for an execution that nobody could know of.
    pub(super) fn finish_unlisted(
        &self,
        execution: &Execution,
        status: Status,
        mut outcome: Outcome,
    ) -> Outcome {
        outcome.aborted = status == Status::Aborted;
        if let Some(aftermath) = execution.end(status, None) {
            if let Some(registration) = &execution.registration {
                self.count_end(registration, status, &outcome);
            }
            for waiter in aftermath.waiters {
                guarded(|| waiter(&outcome));
            }
            if let Some(collector) = aftermath.collector {
                guarded(|| collector.ended());
            }
            drop(aftermath.link);
        }
        outcome
    }

    /// How many executions may exist.
    pub(super) fn most_executions(&self) -> Option<usize> {
        self.config.limit(Number::MaxExecutions)
    }

    /// An execution that nobody could know of runs code that may ask for it.
    pub fn show(&self, execution: Option<&Arc<Execution>>) {
        if let Some(execution) = execution.filter(|execution| execution.is_unlisted() && !execution.transient)
        {
            self.registry.list(execution, self.most_executions());
        }
    }

    /// Counts how an execution of a registration ended. The log has a line about failures, at most once a second.
    pub(super) fn count_end(&self, registration: &Registration, status: Status, outcome: &Outcome) {
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

    /// Brings an execution to its end and does what follows: counters, retention, waiters, and last the client.
    pub(super) fn finish(&self, execution: &Arc<Execution>, status: Status, mut outcome: Outcome) {
        if self.finish_unseen(execution, status, &mut outcome)
            || self.finish_load(execution, status, &outcome)
        {
            return;
        }
        self.finish_seen(execution, status, outcome);
    }

    /// The same for one that somebody may look at.
    pub(super) fn finish_seen(&self, execution: &Arc<Execution>, status: Status, mut outcome: Outcome) {
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
            self.registry.keep(execution, limit, self.most_executions());
        }
        if let Some(collector) = aftermath.collector {
            if aftermath.uncollected {
                guarded(|| {
                    self.language
                        .attached(&mut || drop(collector.collect(&mut iter::empty(), &outcome.errors)));
                });
            }
            guarded(|| collector.ended());
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

    /// Ends an execution, if it has not ended yet, which counts as failed by that; `error` is why.
    pub fn fail_execution(&self, id: Id, error: &str) {
        if let Some(execution) = self.registry.execution(id) {
            self.fail(&execution, error.into());
        }
    }

    pub(super) fn abort_execution(&self, execution: &Arc<Execution>) {
        drop(execution.stop());
        self.end_waiting(execution, None);
        if !execution.status().is_final() {
            // The receiver lives as long as the process.
            let _ = self.stopper.send(Some(Arc::clone(execution)));
        }
    }

    /// Ends an execution that no thread is at: one that has not begun, or that waits. `error`: why.
    pub(super) fn end_waiting(&self, execution: &Arc<Execution>, error: Option<&Failure>) {
        if execution.status() == Status::Created {
            // A worker may begin it in this moment: then this changes nothing, and it stops as a running one does.
            if let Some(source) = execution.begin(Instant::now()) {
                drop(source);
                let outcome = error.cloned().map(Outcome::of_error).unwrap_or_default();
                self.finish(execution, Status::Aborted, outcome);
            }
        }
        if let Some(parked) = execution.unpark() {
            let mut parked = Some(parked);
            self.language.attached(&mut || {
                let Some(mut parked) = parked.take() else { return };
                parked.state.errors.extend(error.cloned());
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

    pub(super) fn abort_queued(&self, concerns: impl Fn(&Execution) -> bool) {
        for execution in self.registry.whole_executions().0 {
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
}

/// Tells one of those who wait for an execution: a panic there, which the panic hook logs, is not the others' loss.
pub(super) fn guarded(tell: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(tell));
}
