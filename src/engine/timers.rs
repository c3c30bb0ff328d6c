//! What is to happen later: jobs with a time, done by one thread of their own, detached from the language.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::Engine;
use crate::{server::api, threads};

type Job = Box<dyn FnOnce(&Arc<Engine>) + Send>;

/// The jobs that wait.
#[derive(Default)]
pub struct Timers {
    state: Mutex<TimerQueue>,
    changed: Condvar,
}

#[derive(Default)]
struct TimerQueue {
    /// The next one first; the number keeps those of one time in order.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    jobs: std::collections::HashMap<u64, Job>,
    next: u64,
}

impl Timers {
    /// Does `job` after `delay`, on the thread of the timers. It must not take long. A time that no clock reaches never
    /// comes: the job is dropped.
    pub fn after(&self, delay: Duration, job: impl FnOnce(&Arc<Engine>) + Send + 'static) {
        let Some(due) = Instant::now().checked_add(delay) else {
            return;
        };
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.due.push(Reverse((due, number)));
        state.jobs.insert(number, Box::new(job));
        drop(state);
        self.changed.notify_one();
    }

    /// Starts the thread.
    pub(super) fn start(engine: &Arc<Engine>) -> std::io::Result<()> {
        let engine = Arc::clone(engine);
        let life = move || {
            engine.language.thread(&mut || {
                loop {
                    let job = engine.timers.wait();
                    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&engine)));
                    if done.is_err() {
                        api::log_warning("a job of the timer failed");
                    }
                }
            });
        };
        threads::spawn("pinion-timer".into(), life).map(drop)
    }

    /// The next job, when its time has come.
    fn wait(&self) -> Job {
        let mut state = self.state.lock();
        loop {
            let Some(&Reverse((due, number))) = state.due.peek() else {
                self.changed.wait(&mut state);
                continue;
            };
            if due > Instant::now() {
                self.changed.wait_until(&mut state, due);
                continue;
            }
            state.due.pop();
            if let Some(job) = state.jobs.remove(&number) {
                return job;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_clock_reaches_never_comes() {
        let timers = Timers::default();
        timers.after(Duration::MAX, |_| {});
        timers.after(Duration::from_secs(u64::MAX), |_| {});
        assert!(timers.state.lock().jobs.is_empty());
        timers.after(Duration::from_secs(i64::MAX as u64 / 2), |_| {});
        assert_eq!(timers.state.lock().jobs.len(), 1);
    }
}
