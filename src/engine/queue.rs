//! The queue between the server's thread and the workers: order within a lane, parallel between lanes.
//!
//! A worker is woken only when no woken one is still on its way: while one worker runs, at most one other waits to
//! attach, so that a burst of short executions is worked off by one attached worker without a change of threads.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};

use super::{execution::Execution, id::Id};

/// Executions of one lane run one after another, in the order of their events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// One key of one registration.
    Key { registration: Id, db: i32, key: Vec<u8> },
    /// A whole registration.
    Registration(Id),
}

/// An execution with the lane that it stands in.
pub struct Job {
    pub execution: Arc<Execution>,
    pub lane: Option<Lane>,
}

/// The queue. Its mutex is held for a few moves of pointers only.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Job>,
    /// Each lane that has a job ready or running, with the jobs behind that one.
    lanes: HashMap<Lane, VecDeque<Job>>,
    /// Workers inside [`Queue::wait`].
    waiting: usize,
    /// Permissions to leave it that no worker has taken yet.
    tokens: usize,
    /// Workers that have left it and have not asked for a job yet: they are attaching.
    arriving: usize,
}

impl State {
    /// Grants a permission if one more worker should come; the caller then notifies.
    fn wake_one(&mut self) -> bool {
        let wake = self.needs_worker() && self.waiting > 0;
        if wake {
            self.tokens += 1;
        }
        wake
    }

    fn needs_worker(&self) -> bool {
        !self.ready.is_empty() && self.tokens + self.arriving == 0
    }
}

impl Queue {
    /// Appends a job. Never waits for anything but the mutex.
    pub fn push(&self, job: Job) {
        let mut state = self.state.lock();
        if let Some(lane) = &job.lane {
            if let Some(behind) = state.lanes.get_mut(lane) {
                job.execution.mark_delayed();
                behind.push_back(job);
                return;
            }
            state.lanes.insert(lane.clone(), VecDeque::new());
        }
        state.ready.push_back(job);
        let wake = state.wake_one();
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// Waits until there may be work. Called detached.
    pub fn wait(&self) {
        let mut state = self.state.lock();
        if !state.needs_worker() {
            state.waiting += 1;
            self.work.wait_while(&mut state, |state| state.tokens == 0);
            state.tokens -= 1;
            state.waiting -= 1;
        }
        state.arriving += 1;
    }

    /// The worker that [`Queue::wait`] let go has attached.
    pub fn arrived(&self) {
        self.state.lock().arriving -= 1;
    }

    /// The next job, if there is one now.
    pub fn pop(&self) -> Option<Job> {
        let mut state = self.state.lock();
        let job = state.ready.pop_front();
        let wake = state.wake_one();
        drop(state);
        if wake {
            self.work.notify_one();
        }
        job
    }

    /// The job of `lane` has ended: the next one of that lane becomes ready.
    pub fn advance(&self, lane: &Lane) {
        let mut state = self.state.lock();
        match state.lanes.get_mut(lane).and_then(VecDeque::pop_front) {
            Some(job) => state.ready.push_back(job),
            None => {
                state.lanes.remove(lane);
            }
        }
    }

    /// Jobs that no worker has taken yet.
    pub fn waiting_jobs(&self) -> usize {
        let state = self.state.lock();
        state.ready.len() + state.lanes.values().map(VecDeque::len).sum::<usize>()
    }
}
