//! The queue between the server's thread and the workers: order within a lane, parallel between lanes.
//!
//! Short executions are worked off by one attached worker: waking others for them only makes threads fight for the
//! interpreter. While a worker is at it, one other stands by and looks every [`TICK`]: if no job was taken for that long
//! although some are ready, the first one is blocked, and the second one comes; so it does where those that are at it spend
//! most of their time waiting ([`Utilization`]). Where they fight for the interpreter one of them leaves. Where all of them are blocked,
//! others come for what they keep waiting ([`reserve`]), and one that hangs in a call which was given up is replaced ([`lost`]).

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    execution::Execution,
    id::Id,
    reuse::Pool,
    utilization::{Advice, Utilization},
};
use crate::{
    hashing::Seeds,
    waits::{self, Condvar, Mutex, MutexGuard, Thread, ThreadId},
};

mod lost;
#[cfg(all(test, feature = "model"))]
mod model;
mod reserve;

use lost::Lost;
pub use lost::{Loss, MOST as MOST_LOST};
pub use reserve::Look;
use reserve::{Owner, Reserve, Taken};

/// How long ready jobs are left to the workers that are at it.
const TICK: Duration = Duration::from_micros(500);
/// How many ticks a worker stands by after the last job, so that it need not be woken for the next burst.
const LINGER: u32 = if cfg!(feature = "model") { 2 } else { 200 };

/// How many jobs are gathered before a worker is woken for them.
const GATHER: usize = 16;

/// Executions of one lane run one after another, in the order of their events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// One key of one registration, as a hash that nobody outside can foresee: two that share one by chance follow each other, too.
    Key(u64),
    /// A whole registration.
    Registration(Id),
    /// One of as many as executions of a registration may run at the same time.
    Share { registration: Id, number: u64 },
}

/// An execution with the lane that it stands in.
pub struct Job {
    pub execution: Arc<Execution>,
    pub lane: Option<Lane>,
    /// Where the execution goes if it can be used again.
    pub pool: Option<Arc<Pool>>,
}

/// A worker's own memory.
pub struct Seat {
    number: usize,
    /// The last job that it took.
    last: u64,
    /// It was the last one that could come: somebody is to look after them ([`Queue::look`]).
    pub is_last: bool,
    /// It was lost and has come back: others have its place ([`Queue::wait_to_replace`]).
    pub is_surplus: bool,
}

/// The queue. Its mutex is held for a few moves of pointers only.
#[derive(Default)]
pub struct Queue {
    state: Mutex<QueueState>,
    /// Ends the tick of the worker that stands by.
    standby: Condvar,
    /// Wakes those in reserve.
    reserve: Condvar,
    /// Wakes those who have come back.
    surplus: Condvar,
    /// The server's thread, if it calls [`Queue::release`] before it sleeps.
    gatherer: OnceLock<ThreadId>,
    /// The server's thread has appended jobs that no worker was woken for.
    gathered: AtomicBool,
}

#[derive(Default)]
struct QueueState {
    ready: VecDeque<Job>,
    /// Each lane that has a job ready or running, with the jobs behind that one.
    lanes: HashMap<Lane, VecDeque<Job>, Seeds>,
    /// Jobs that were ever taken.
    taken: u64,
    /// Workers between [`Queue::wait`] and the [`Queue::next`] that gave them nothing.
    at_it: usize,
    /// A worker was told to come and has not heard it yet.
    called: bool,
    /// A worker stands by.
    standby: bool,
    utilization: Utilization,
    /// Workers that sleep. The last one is woken first: its memory is still warm.
    sleepers: Vec<Thread>,
    /// What each worker is at.
    seats: Vec<Option<Taken>>,
    /// Who they are.
    threads: Vec<ThreadId>,
    reserve: Reserve,
    lost: Lost,
}

/// Whom to wake after the mutex was let go.
enum Wake {
    Nobody,
    Sleeper(Thread),
    Standby,
}

impl QueueState {
    /// How many workers count.
    fn workers(&self) -> usize {
        self.seats.len() - self.lost.away
    }

    /// Somebody must come if there is work and nobody is at it. The one that stands by stays where it is if it can.
    fn call(&mut self) -> Wake {
        if self.ready.is_empty() || self.at_it > 0 || self.called {
            return Wake::Nobody;
        }
        self.called = true;
        match self.sleepers.pop() {
            Some(sleeper) => Wake::Sleeper(sleeper),
            None if self.standby => Wake::Standby,
            // It is about to wait, and will see that it was called.
            None => Wake::Nobody,
        }
    }
}

impl Queue {
    /// Appends a job. Never waits for anything but the mutex.
    pub fn push(&self, job: Job) {
        let mut state = self.state.lock();
        if let Some(lane) = job.lane {
            match state.lanes.entry(lane) {
                Entry::Occupied(mut behind) => {
                    job.execution.mark_delayed();
                    behind.get_mut().push_back(job);
                    return;
                }
                Entry::Vacant(free) => {
                    free.insert(VecDeque::new());
                }
            }
        }
        state.ready.push_back(job);
        // What one turn of the server's loop brings is begun together: one worker is woken once for all of it.
        let gathers = state.ready.len() < GATHER
            && self
                .gatherer
                .get()
                .is_some_and(|&gatherer| gatherer == waits::current().id());
        if gathers {
            self.gathered.store(true, Ordering::Relaxed);
            return;
        }
        self.wake(state);
    }

    /// The calling thread will call [`Queue::release`] after it has pushed jobs.
    pub fn gather(&self) {
        // Told once, while the module loads.
        let _ = self.gatherer.set(waits::current().id());
    }

    /// Wakes a worker for the jobs gathered since the last call.
    pub fn release(&self) {
        if self.gathered.swap(false, Ordering::Relaxed) {
            self.wake(self.state.lock());
        }
    }

    fn wake(&self, mut state: MutexGuard<'_, QueueState>) {
        let wake = state.call();
        drop(state);
        match wake {
            Wake::Nobody => {}
            Wake::Sleeper(sleeper) => sleeper.unpark(),
            Wake::Standby => {
                self.standby.notify_one();
            }
        }
    }

    /// Waits until this worker is needed. Called detached; the worker then attaches and asks for jobs until there is none.
    pub fn wait(&self) {
        let mut state = self.state.lock();
        let mut quiet_ticks = 0;
        loop {
            if state.called || (!state.ready.is_empty() && state.at_it == 0) {
                state.called = false;
                break;
            }
            if state.standby || (state.at_it == 0 && (quiet_ticks == 0 || quiet_ticks > LINGER)) {
                let this = waits::current();
                let id = this.id();
                state.sleepers.push(this);
                MutexGuard::unlocked(&mut state, waits::park);
                state.sleepers.retain(|sleeper| sleeper.id() != id);
                quiet_ticks = 0;
                continue;
            }
            let taken = state.taken;
            state.standby = true;
            self.standby.wait_for(&mut state, TICK);
            state.standby = false;
            if state.taken != taken {
                quiet_ticks = 1;
                let workers = state.at_it;
                if workers > 0 && !state.ready.is_empty() && state.utilization.advice(workers) == Advice::More
                {
                    break;
                }
            } else if state.ready.is_empty() {
                quiet_ticks += 1;
            } else {
                break;
            }
        }
        if state.at_it == 0 {
            state.utilization.restart();
        }
        state.at_it += 1;
        // Somebody has to stand by while this one is at it.
        let second = if state.standby { None } else { state.sleepers.pop() };
        drop(state);
        if let Some(second) = second {
            second.unpark();
        }
    }

    /// Counts the calling thread as a worker; before it waits for the first time.
    pub fn enlist(&self) -> Seat {
        let mut state = self.state.lock();
        state.utilization.count_this_thread();
        state.seats.push(None);
        state.threads.push(waits::current().id());
        Seat {
            number: state.seats.len() - 1,
            last: 0,
            is_last: false,
            is_surplus: false,
        }
    }

    /// The next job; if there is none, or others do it better alone, the worker is no longer at it.
    pub fn next(&self, seat: &mut Seat) -> Option<Job> {
        let mut state = self.state.lock();
        if state.has_lost_some() && state.comes_back(seat) {
            return None;
        }
        let workers = state.at_it;
        // Whoever is the only one that gets on with it stays: the others wait for something.
        let others_take = state.taken != seat.last;
        let too_many = workers > 1 && others_take && state.utilization.advice(workers) == Advice::Fewer;
        let job = if too_many { None } else { state.ready.pop_front() };
        state.seats[seat.number] = job.as_ref().map(Taken::of);
        if job.is_some() {
            state.taken += 1;
            seat.last = state.taken;
            // A single worker runs one after the other: that is what whoever wants only one gets.
            seat.is_last = workers > 1 && workers == state.workers() && state.reserve.begin_watch();
        } else {
            state.at_it -= 1;
        }
        job
    }

    /// The job of `lane` has ended: the next one of that lane becomes ready.
    pub fn advance(&self, lane: Lane) {
        let mut state = self.state.lock();
        let Entry::Occupied(mut behind) = state.lanes.entry(lane) else {
            return;
        };
        match behind.get_mut().pop_front() {
            Some(job) => state.ready.push_back(job),
            None => {
                behind.remove();
            }
        }
    }

    /// Jobs that no worker has taken yet.
    pub fn waiting_jobs(&self) -> usize {
        let state = self.state.lock();
        state.ready.len() + state.lanes.values().map(VecDeque::len).sum::<usize>()
    }
}
