//! `timeout`: executions that have run for too long, in the background, too. The time in which they run counts, not that in which they
//! wait.
//!
//! When it is over the "stop" error is raised once in the function, which may catch it and clean up. After as long again the execution
//! is stopped for good.

use std::{sync::Arc, time::Duration};

use super::{
    Engine,
    execution::Execution,
    stop::{Interrupted, Stoppable},
};
use crate::{clock::Instant, mutex::Mutex, server::api};

/// How soon somebody looks again who could not be interrupted.
const AGAIN: Duration = Duration::from_millis(20);
/// The least time for cleaning up.
const LEAST_GRACE: Duration = Duration::from_millis(50);

/// What runs now and has a limit.
#[derive(Default)]
pub(super) struct Overtime(Mutex<Watched>);

#[derive(Default)]
struct Watched {
    /// As many as there are threads that run executions, at most.
    running: Vec<Running>,
    /// When somebody looks next.
    looks_at: Option<Instant>,
    last: u64,
}

struct Running {
    number: u64,
    execution: Arc<Execution>,
    due: Instant,
    limit: Duration,
    /// It was told once.
    told: bool,
}

impl Watched {
    fn next(&self) -> Option<Instant> {
        self.running.iter().map(|running| running.due).min()
    }
}

/// The time of one piece of a run.
pub(super) struct Timed<'a> {
    overtime: &'a Overtime,
    number: u64,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let mut watched = self.overtime.0.lock();
        let place = watched
            .running
            .iter()
            .position(|running| running.number == self.number);
        let ended = place.map(|place| watched.running.swap_remove(place));
        drop(watched);
        drop(ended);
    }
}

impl Engine {
    /// From now on until the guard is dropped the limit of the execution's registration counts, if it has one. `total`: how long it
    /// has run before.
    pub(super) fn time_run(&self, execution: &Arc<Execution>, total: Duration) -> Option<Timed<'_>> {
        let limit = execution.owner()?.limits.timeout()?;
        let told = execution.has_overrun();
        let left = if told {
            LEAST_GRACE
        } else {
            limit.saturating_sub(total)
        };
        let due = Instant::now().checked_add(left)?;
        let mut watched = self.overtime.0.lock();
        watched.last += 1;
        let number = watched.last;
        watched.running.push(Running {
            number,
            execution: Arc::clone(execution),
            due,
            limit,
            told,
        });
        let sooner = watched.looks_at.is_none_or(|at| due < at);
        if sooner {
            watched.looks_at = Some(due);
        }
        drop(watched);
        if sooner {
            // The receiver lives as long as the process.
            let _ = self.stopper.send(None);
        }
        Some(Timed {
            overtime: &self.overtime,
            number,
        })
    }

    /// Stops what is late. How long until somebody is to look again. On the thread that stops, which waits for no lock of the server.
    pub(super) fn look_at_overtime(&self) -> Option<Duration> {
        let now = Instant::now();
        let mut late = Vec::new();
        let mut watched = self.overtime.0.lock();
        for running in watched.running.iter_mut().filter(|running| running.due <= now) {
            late.push((Arc::clone(&running.execution), running.limit, running.told));
            running.due = now + AGAIN;
        }
        drop(watched);
        for (execution, limit, told) in late {
            self.stop_late(&execution, limit, told);
        }
        let mut watched = self.overtime.0.lock();
        watched.looks_at = watched.next();
        let next = watched.looks_at?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn stop_late(&self, execution: &Arc<Execution>, limit: Duration, told: bool) {
        if told {
            if !execution.stop.is_asked() {
                self.abort_execution(execution);
            }
            return;
        }
        execution.note_overrun();
        if self.language.interrupt(&execution.stop) != Interrupted::Now {
            // It is inside an import, or between two functions: soon.
            return;
        }
        api::log_warning(&format!(
            "{} has run for longer than its timeout ({} ms) and is stopped",
            execution.describe_fully(),
            limit.as_millis()
        ));
        let grace = limit.max(LEAST_GRACE);
        let mut watched = self.overtime.0.lock();
        let its = watched
            .running
            .iter_mut()
            .find(|running| Arc::ptr_eq(&running.execution, execution));
        if let Some(running) = its {
            running.told = true;
            running.due = Instant::now() + grace;
        }
    }
}
