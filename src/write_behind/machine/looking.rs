//! What is known of the changes of one key, for whoever asks about it: nothing changes by that.

use std::time::Duration;

use super::{Change, Entry, FailedSave, GivenUp, Queue, Stage, Time, Waiters};

/// What becomes of a change now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It has not been in a call, or behind another one of its key that is ahead.
    Waits,
    /// It is in the call that has run for so long.
    IsSaved(Duration),
    /// It was in a call that failed, and comes again.
    ComesAgain,
}

/// The changes of a key that are not saved yet.
pub struct Seen<'a, P> {
    pub count: usize,
    /// The next one that is saved.
    pub oldest: &'a Entry<P>,
    pub newest: &'a Change<P>,
    pub doing: Doing,
    /// How long it takes at least until the oldest one goes into a call; nothing while it is in one.
    pub earliest: Option<Duration>,
    /// Clients that wait until one of them is saved.
    pub waiting: usize,
}

impl<P> Queue<P> {
    /// For how long the call that runs has run; nothing where none does.
    pub fn saving_for(&self, now: Time) -> Duration {
        let flight = self.flight.as_ref();
        flight.map_or(Duration::ZERO, |flight| now.saturating_sub(flight.begun))
    }

    /// Calls that have failed since one ended well.
    pub fn failures_in_a_row(&self) -> u32 {
        self.failures
    }

    /// `None`: all of the key is saved, or nothing has happened to it. `waiters`: those who wait for changes of any queue, and how many
    /// for changes of this one at most.
    pub fn look_at(
        &self,
        now: Time,
        db: i32,
        name: &[u8],
        waiters: (&Waiters, usize),
    ) -> Option<Seen<'_, P>> {
        let chain = self.chains.get(db, name)?;
        let oldest = self.entries.get(chain.places.front()?)?;
        let newest = self.entries.get(chain.places.back()?)?;
        let rests = self.rests_until.unwrap_or_default();
        let at = |earliest: Time| Some(earliest.max(rests).saturating_sub(now));
        let (doing, earliest) = match oldest.stage {
            Stage::Waiting => (
                Doing::Waits,
                at(oldest.since.saturating_add(self.limits.interval)),
            ),
            Stage::Flying => {
                let begun = self.flight.as_ref().map_or(now, |flight| flight.begun);
                (Doing::IsSaved(now.saturating_sub(begun)), None)
            }
            Stage::Suspect => (Doing::ComesAgain, at(Time::ZERO)),
            Stage::Alone(again) => (Doing::ComesAgain, at(again)),
        };
        // The newest first, and no further than there may be somebody: there can be a million of one key.
        let theirs = (0..chain.places.len()).rev();
        let numbers = theirs
            .filter_map(|at| self.entries.get(chain.places.nth(at)?))
            .flat_map(|entry| &entry.waiters)
            .filter(|number| waiters.0.knows(**number));
        Some(Seen {
            count: chain.places.len(),
            oldest,
            newest: &newest.change,
            doing,
            earliest,
            waiting: numbers.take(waiters.1).count(),
        })
    }

    /// The last change of a key that was given up, unless one behind it was saved since.
    pub fn given_up(&self, db: i32, name: &[u8]) -> Option<&GivenUp> {
        self.given_up.get(db, name)
    }
}

impl<P> Entry<P> {
    /// Why the last call with this change failed, unless another one has taken its place since.
    pub fn last_failure(&self) -> Option<&FailedSave> {
        self.why.as_deref()
    }
}
