//! Calls of `save` that do not end: when one is stopped, how long it has to end then, and when another `save` goes on without it.

use std::time::Duration;

use super::{Queue, Stage, Time};

/// How long a call has to end that was stopped; not longer than it had to run.
const GRACE: Duration = Duration::from_secs(5);
/// How long a call runs on while another `save` waits, and has to end then.
const HURRY: Duration = Duration::from_secs(2);
const HURRY_GRACE: Duration = Duration::from_secs(1);

impl<P> Queue<P> {
    /// The call that runs, if its time is over. It is given more time, in which it is to end.
    pub fn overdue(&mut self, now: Time) -> Option<u64> {
        let flight = self.flight.as_mut().filter(|flight| flight.deadline <= now)?;
        let grace = if flight.hurried { HURRY_GRACE } else { GRACE };
        flight.deadline = now.saturating_add(self.limits.max_save_time.min(grace));
        flight.stopped = true;
        Some(flight.call)
    }

    /// Another `save` goes on with the queue: nothing that rests or hangs keeps it waiting for long. `has_begun`: the call that runs does.
    pub fn hurry(&mut self, now: Time, has_begun: bool) {
        self.rests_until = None;
        self.failures = self.failures.min(1);
        for (_, place) in std::mem::take(&mut self.failed.alone) {
            self.set_stage(place, Stage::Alone(now));
        }
        if let Some(flight) = &mut self.flight {
            let most = if flight.stopped || !has_begun {
                Duration::ZERO
            } else {
                HURRY
            };
            flight.deadline = flight.deadline.min(now.saturating_add(most));
            flight.hurried = true;
        }
    }

    /// Whether the time of the call that runs is over.
    pub fn is_late(&self, now: Time) -> bool {
        let flight = self.flight.as_ref();
        flight.is_some_and(|flight| flight.begun.saturating_add(self.limits.max_save_time) <= now)
    }
}
