//! Workers that are lost: their call was given up (its time is over, or somebody aborted it), and goes on hanging where nothing
//! can end it. Each is replaced, so that its registration and all others go on as before. With bounds: a source that is gone for long would
//! take one thread after the other. The first few of a registration are replaced at once, the next ones after rests that double, up to
//! [`MOST_OF_ONE`] of a registration and [`MOST`] together. A call that returns gives its worker back, which waits to come in the place of
//! the next one.

use std::{sync::Arc, time::Duration};

use super::{Owner, Queue, QueueState, Seat};
use crate::{backoff, clock::Instant, engine::execution::Execution};

/// How many there are at most.
pub const MOST: usize = 64;
/// How many of one registration.
pub const MOST_OF_ONE: usize = 32;
/// So many of one registration are replaced at once.
const FREE: usize = 3;
/// The first rest behind those, and the longest.
const RESTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// How soon somebody looks again where there are too many.
const FULL: Duration = Duration::from_secs(1);
/// How often one that has come back looks; it is told when it is to come.
const REST: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Worker(usize),
    Reserve(usize),
}

struct Call {
    place: Place,
    owner: Owner,
    since: Instant,
}

/// Those that are lost now.
#[derive(Default)]
pub(super) struct Lost {
    calls: Vec<Call>,
    /// Seats that count for nothing: of workers that are lost, and of those that have come back and wait.
    pub(super) away: usize,
    /// Those who have come back.
    idle: usize,
    /// So many of them are to come.
    called: usize,
}

impl Lost {
    /// How long a registration has to wait until another one of its workers is replaced.
    fn rest(&self, owner: Owner, now: Instant) -> Option<Duration> {
        let its = || self.calls.iter().filter(|call| call.owner == owner);
        let count = its().count();
        if count >= MOST_OF_ONE || self.calls.len() >= MOST {
            return Some(FULL);
        }
        let more = u32::try_from((count + 1).saturating_sub(FREE)).unwrap_or(u32::MAX);
        let last = its().map(|call| call.since).max().filter(|_| more > 0)?;
        let rest = backoff::delay(more, RESTS.0, RESTS.1, 0.0).saturating_sub(now - last);
        (!rest.is_zero()).then_some(rest)
    }

    fn take(&mut self, place: Place) -> bool {
        let found = self.calls.iter().position(|call| call.place == place);
        found.map(|found| self.calls.swap_remove(found)).is_some()
    }

    /// The same for one in reserve. How many of these are lost.
    pub(super) fn in_reserve(&self) -> usize {
        let calls = self.calls.iter();
        calls
            .filter(|call| matches!(call.place, Place::Reserve(_)))
            .count()
    }

    /// One in reserve has come back.
    pub(super) fn back_in_reserve(&mut self, number: usize) {
        if !self.calls.is_empty() {
            self.take(Place::Reserve(number));
        }
    }
}

/// What is to be done about a call that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing: it has ended.
    None,
    /// To look again then.
    Later(Duration),
    /// Its worker is lost. `wants_one`: a new thread is to come.
    Lost { wants_one: bool },
}

impl QueueState {
    /// A worker that was lost asks for a job: others have its place.
    #[cold]
    pub(super) fn comes_back(&mut self, seat: &mut Seat) -> bool {
        seat.is_surplus = self.lost.take(Place::Worker(seat.number));
        self.lost.idle += usize::from(seat.is_surplus);
        seat.is_surplus
    }

    pub(super) fn has_lost_some(&self) -> bool {
        !self.lost.calls.is_empty()
    }
}

impl Queue {
    /// A call was given up some time ago. Where it still keeps a worker, that one is lost, unless there are too many.
    pub fn lose(&self, execution: &Arc<Execution>, now: Instant) -> Loss {
        let address = Arc::as_ptr(execution) as usize;
        let mut state = self.state.lock();
        let in_seat = |seats: &[Option<super::Taken>]| {
            let its = |seat: &Option<super::Taken>| seat.is_some_and(|taken| taken.execution == address);
            seats.iter().position(its)
        };
        let worker = in_seat(&state.seats).map(Place::Worker);
        let Some(place) = worker.or_else(|| in_seat(&state.reserve.seats).map(Place::Reserve)) else {
            return Loss::None;
        };
        let owner = Owner::of(execution);
        if let Some(rest) = state.lost.rest(owner, now) {
            return Loss::Later(rest);
        }
        state.lost.calls.push(Call {
            place,
            owner,
            since: now,
        });
        let wants_one = match place {
            Place::Worker(number) => {
                state.seats[number] = None;
                state.at_it -= 1;
                state.lost.away += 1;
                let calls_one = state.lost.idle > 0;
                if calls_one {
                    state.lost.idle -= 1;
                    state.lost.called += 1;
                    state.lost.away -= 1;
                    self.surplus.notify_one();
                }
                !calls_one
            }
            Place::Reserve(number) => {
                state.reserve.seats[number] = None;
                false
            }
        };
        self.wake(state);
        Loss::Lost { wants_one }
    }

    /// How many workers are lost.
    pub fn lost(&self) -> usize {
        self.state.lock().lost.calls.len()
    }

    /// Waits until this worker, which was lost, is to come in the place of another one. Called detached.
    pub fn wait_to_replace(&self, seat: &mut Seat) {
        let mut state = self.state.lock();
        while state.lost.called == 0 {
            self.surplus.wait_for(&mut state, REST);
        }
        state.lost.called -= 1;
        seat.is_surplus = false;
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;

    fn call(owner: usize, since: Instant) -> Call {
        Call {
            place: Place::Worker(0),
            owner: Owner(owner),
            since,
        }
    }

    #[test]
    fn the_first_are_replaced_at_once_and_others_after_rests_up_to_a_bound() {
        let (mut lost, now) = (Lost::default(), Instant::now());
        let mut rests = Vec::new();
        while lost.calls.len() < MOST_OF_ONE {
            rests.push(lost.rest(Owner(1), now).unwrap_or_default());
            lost.calls.push(call(1, now));
        }
        assert_eq!(rests[..FREE], [Duration::ZERO; FREE]);
        assert!(rests[FREE..].iter().all(|rest| !rest.is_zero()));
        assert!(rests.iter().all(|rest| *rest <= RESTS.1) && rests.is_sorted());
        assert!(
            rests.iter().sum::<Duration>() > Duration::from_secs(600),
            "{rests:?}"
        );
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(lost.rest(Owner(1), much_later), Some(FULL), "it has its share");
        assert_eq!(lost.rest(Owner(2), now), None, "and no other one's");
        while lost.calls.len() < MOST {
            lost.calls.push(call(lost.calls.len() + 10, now));
        }
        assert_eq!(lost.rest(Owner(2), much_later), Some(FULL));
    }
}
