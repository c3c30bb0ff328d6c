//! Workers in reserve. A function that waits in a call which does not return keeps its worker, and enough of one registration keep all. While
//! none of the workers gets on, one in reserve runs what they keep waiting, but nothing of those that keep a worker already: whoever
//! hangs gets no more workers than there are, and one in reserve at most, unless his calls are given up ([`super::lost`]). A single worker (`ExecutionThreads` 1) has no reserve: functions run
//! one after the other there.

use std::{sync::Arc, time::Duration};

use super::{Execution, Job, Queue, QueueState, ThreadId, waits};

/// How many there are at most.
const MOST: usize = 8;
/// How often one that waits looks while the others do not get on.
const TICK: Duration = Duration::from_millis(2);
/// And while they do: it is told when not.
const REST: Duration = Duration::from_secs(3600);

/// Whose an execution is: its registration, or the execution itself. An address, which nobody else has while it runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(pub(super) usize);

/// What a worker is at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) owner: Owner,
    /// Its address.
    pub(super) execution: usize,
}

impl Taken {
    pub(super) fn of(job: &Job) -> Self {
        Self {
            owner: Owner::of(&job.execution),
            execution: Arc::as_ptr(&job.execution) as usize,
        }
    }
}

impl Owner {
    pub(super) fn of(execution: &Arc<Execution>) -> Self {
        let registration = execution.registration.as_ref();
        Self(registration.map_or_else(
            || Arc::as_ptr(execution) as usize,
            |registration| Arc::as_ptr(registration) as usize,
        ))
    }
}

/// Those in reserve.
#[derive(Default)]
pub(super) struct Reserve {
    /// Somebody looks after the workers.
    is_watched: bool,
    /// No worker has got on between two looks: as many jobs were taken by then.
    stuck_at: Option<u64>,
    /// What each of them is at.
    pub(super) seats: Vec<Option<Taken>>,
    /// Who they are, as soon as they have begun.
    threads: Vec<Option<ThreadId>>,
    idle: usize,
}

impl Reserve {
    /// All workers are at it. True if nobody looks after them yet.
    #[inline]
    pub(super) fn begin_watch(&mut self) -> bool {
        !std::mem::replace(&mut self.is_watched, true)
    }
}

/// What a look at the workers has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// One of them is free: nobody has to look again.
    Free,
    /// All of them are at it; to be given to the next look.
    Again(u64),
    /// The same, and none of them gets on. `wants_one`: one in reserve is to come who is not there yet.
    Stuck { seen: u64, wants_one: bool },
}

/// What [`Queue::pause`] has found.
pub struct Paused {
    taken: Option<Taken>,
    /// All workers are at it.
    pub none_is_free: bool,
}

impl QueueState {
    /// What the calling thread is at, if it is a worker.
    fn own_seat(&mut self) -> Option<&mut Option<Taken>> {
        let this = waits::current().id();
        if let Some(place) = self.threads.iter().position(|thread| *thread == this) {
            return self.seats.get_mut(place);
        }
        let place = self
            .reserve
            .threads
            .iter()
            .position(|thread| *thread == Some(this))?;
        self.reserve.seats.get_mut(place)
    }

    /// The place of a job whose owner keeps no worker.
    fn fit(&self) -> Option<usize> {
        let seats = || self.seats.iter().chain(&self.reserve.seats).flatten();
        let is_kept = |owner| seats().any(|taken| taken.owner == owner);
        self.ready
            .iter()
            .position(|job| !is_kept(Owner::of(&job.execution)))
    }

    /// No worker has got on since somebody looked.
    fn is_stuck(&self) -> bool {
        self.reserve.stuck_at == Some(self.taken)
    }
}

impl Queue {
    /// Looks whether the workers get on. `before`: what the last look has shown, which was some time ago; `None` for the first.
    pub fn look(&self, before: Option<u64>) -> Look {
        let mut state = self.state.lock();
        let taken = state.taken;
        if state.at_it < state.workers() {
            (state.reserve.is_watched, state.reserve.stuck_at) = (false, None);
            return Look::Free;
        }
        state.reserve.stuck_at = before.filter(|before| *before == taken);
        if !state.is_stuck() || state.fit().is_none() {
            return Look::Again(taken);
        }
        let wants_one = state.reserve.idle == 0 && state.reserve.seats.len() - state.lost.in_reserve() < MOST;
        self.reserve.notify_all();
        Look::Stuck {
            seen: taken,
            wants_one,
        }
    }

    /// Counts the calling thread among those in reserve. Its number.
    pub fn enlist_in_reserve(&self) -> usize {
        let mut state = self.state.lock();
        state.reserve.seats.push(None);
        state.reserve.threads.push(None);
        state.reserve.seats.len() - 1
    }

    /// The job of the calling thread waits for another one, which may be of the same owner: until [`Queue::resume`] it keeps no worker.
    pub fn pause(&self) -> Paused {
        let mut state = self.state.lock();
        let taken = state.own_seat().and_then(Option::take);
        Paused {
            taken,
            none_is_free: state.at_it >= state.workers(),
        }
    }

    /// It goes on.
    pub fn resume(&self, paused: Paused) {
        let mut state = self.state.lock();
        if let Some(seat) = state.own_seat() {
            *seat = paused.taken;
        }
    }

    /// Waits until one in reserve is needed. Called detached.
    pub fn wait_in_reserve(&self) {
        let mut state = self.state.lock();
        state.reserve.idle += 1;
        while !state.is_stuck() || state.fit().is_none() {
            let rest = if state.is_stuck() { TICK } else { REST };
            self.reserve.wait_for(&mut state, rest);
        }
        state.reserve.idle -= 1;
    }

    /// A job for the one in reserve with this number, as long as the workers do not get on.
    pub fn next_in_reserve(&self, number: usize) -> Option<Job> {
        let mut state = self.state.lock();
        state.reserve.seats[number] = None;
        state.lost.back_in_reserve(number);
        state.reserve.threads[number] = Some(waits::current().id());
        let place = if state.is_stuck() {
            state.fit()?
        } else {
            return None;
        };
        let job = state.ready.remove(place)?;
        state.reserve.seats[number] = Some(Taken::of(&job));
        Some(job)
    }
}
