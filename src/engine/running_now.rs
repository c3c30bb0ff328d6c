//! Executions that run at once, on the thread that starts them: those of `sync` registrations, and functions that they call.

use std::{cell::Cell, sync::Arc};

use super::{
    Engine,
    execution::{Execution, Outcome},
    phase::Status,
    run::{self, Ran},
    start::Start,
};
use crate::{
    clock::Instant,
    error::Error,
    per_thread::per_thread,
    server::{
        command::{Answer, Command},
        reply::Reply,
    },
};

impl Engine {
    /// Creates an execution and runs it on this thread. Watched by SyncTimeout.
    pub fn run_now(&self, start: Start) -> RanNow {
        if let Some(registration) = &start.registration {
            registration.stats.triggered();
        }
        let execution = self.registry.create_unlisted(start);
        let mut ran = None;
        if let Some(_depth) = Depth::enter() {
            let now = Instant::now();
            let _watched = self.sync_watch.enter(Arc::clone(&execution) as _, now);
            // It attaches by itself.
            ran = Some(run::run(self, &execution, now));
        }
        let ran = ran.unwrap_or_else(|| Ran::Ended(Status::Done, Outcome::of_error(TOO_DEEP)));
        self.after_run(&execution, ran)
    }

    /// What follows when this thread has left an execution that was unlisted when it began.
    pub(super) fn after_run(&self, execution: &Arc<Execution>, ran: Ran) -> RanNow {
        match ran {
            Ran::Ended(status, outcome) if execution.is_unlisted() && execution.transient => {
                RanNow::Ended(self.finish_unlisted(execution, status, outcome))
            }
            Ran::Ended(status, outcome) => {
                self.finish(execution, status, outcome);
                RanNow::Kept
            }
            Ran::Well(run) => {
                self.finish_well(execution, run);
                RanNow::Kept
            }
            Ran::Gone => RanNow::Kept,
            Ran::Waits => {
                if execution.is_unlisted() {
                    self.registry.list(execution, self.most_executions());
                    // It may have gone on and ended before it was listed.
                    if execution.transient && execution.status().is_final() {
                        self.registry.drop_execution(execution.id);
                    }
                }
                RanNow::Waits(Arc::clone(execution))
            }
        }
    }
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

per_thread! {
    static DEPTH: Cell<u32> = Cell::new(0);
}

/// One level of functions that run at once.
pub(super) struct Depth;

impl Depth {
    pub(super) fn enter() -> Option<Self> {
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
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}
