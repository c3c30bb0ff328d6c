//! The changes of one registration that are not saved yet: their order, which of them go into the next call of `save`, what
//! follows from its end. Inputs are events with a time. It needs neither server nor Python, neither clock nor thread.
//!
//! Each change has a *place*, which says when it comes, and which a newer change of its key takes over. The places of one key
//! form a *chain*. While an older change of a key has failed, the later ones of its chain wait. Contract:
//! docs/contract/write-behind.md chapters 1 and 2.

mod calls;
mod chains;
mod hanging;
mod ids;
mod looking;
mod places;
mod queue;
mod store;
#[cfg(test)]
mod tests;
mod waiters;

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

pub use ids::{ChangeId, Ids};
pub use looking::Doing;
pub use waiters::{Settled, Waiters};

use self::{
    chains::{Failed, Waiting},
    places::Places,
    store::Store,
};
use crate::read_through::{
    bounded::Bounded,
    keys::{ByKey, Key},
};

/// A moment: how long after the start.
pub type Time = Duration;

/// Failed calls with the same change before its batch is halved, where `max_tries` does not say it.
const TRIES_BEFORE_HALVING: u32 = 3;

/// What a change takes beside its key and its value.
const OVERHEAD: usize = 200;

/// What happened to a key, and what it holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<P> {
    pub id: ChangeId,
    pub key: Key,
    pub event: Cow<'static, str>,
    /// The value, of so many bytes.
    pub payload: P,
    pub size: usize,
}

/// What a registration says about its queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub batch: usize,
    pub interval: Duration,
    pub coalesce: bool,
    pub backoff: Duration,
    pub max_backoff: Duration,
    pub max_tries: Option<u32>,
    /// There is a place for changes that cannot be saved.
    pub has_dead_letters: bool,
    pub max_entries: usize,
    pub max_bytes: usize,
    /// All changes are saved in their order, not only those of one key.
    pub ordered: bool,
    pub max_save_time: Duration,
    /// The least time from one call to the next, unless that is full.
    pub pace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch: 100,
            interval: Duration::ZERO,
            coalesce: true,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            max_tries: None,
            has_dead_letters: false,
            max_entries: 1_000_000,
            max_bytes: 256 << 20,
            ordered: false,
            max_save_time: Duration::from_secs(60),
            pace: Duration::ZERO,
        }
    }
}

/// What has happened so far; all of it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub captured: u64,
    pub saved: u64,
    pub coalesced: u64,
    /// Changes in calls that failed.
    pub retried: u64,
    pub dead: u64,
    /// Calls of `save` that ended well.
    pub batches: u64,
    pub failures: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.captured += other.captured;
        self.saved += other.saved;
        self.coalesced += other.coalesced;
        self.retried += other.retried;
        self.dead += other.dead;
        self.batches += other.batches;
        self.failures += other.failures;
    }
}

/// Why a call failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailedSave {
    /// The type of what was raised: what clients see.
    pub kind: String,
    /// All of it.
    pub text: String,
}

/// Where a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It may go, or stands behind one of its key that is ahead.
    Waiting,
    /// In the call that runs.
    Flying,
    /// It was in a call that failed.
    Suspect,
    /// It failed by itself: it is tried by itself, at its own time.
    Alone(Time),
}

/// A change that is not saved yet.
pub struct Entry<P> {
    pub change: Change<P>,
    /// When the first change came that has this place.
    pub since: Time,
    pub tries: u32,
    /// How often it failed by itself while others were saved.
    tries_alone: u32,
    /// How often it failed in the place of another one that fails, see `choose_probe`.
    probed: u32,
    /// How many calls had ended well when it first failed.
    first_failed: Option<u64>,
    stage: Stage,
    /// Why the last call with it failed.
    why: Option<Arc<FailedSave>>,
    /// Who waits until it is saved.
    waiters: Vec<u64>,
}

/// The places of one key, in their order.
#[derive(Default)]
struct Chain {
    places: Places,
    /// How many of them, the first ones, do not wait any more.
    ahead: usize,
}

/// The call that runs.
struct Flight {
    call: u64,
    places: Vec<u64>,
    /// They had failed before, with others.
    suspects: bool,
    begun: Time,
    deadline: Time,
    /// It was told to end.
    stopped: bool,
    /// Another `save` goes on with the queue.
    hurried: bool,
}

/// So many keys are remembered whose changes were given up.
const MOST_GIVEN_UP: usize = 1000;

/// A change that was given up.
pub struct GivenUp {
    pub id: ChangeId,
    pub why: Arc<FailedSave>,
}

/// What is gone from a queue: all changes of a key up to one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    pub key: Key,
    pub id: ChangeId,
}

/// See the module.
pub struct Queue<P> {
    pub limits: Limits,
    pub counts: Counts,
    entries: Store<Entry<P>>,
    chains: ByKey<Chain>,
    waiting: Waiting,
    failed: Failed,
    /// Those that have failed by themselves, but since no other call has ended well.
    unproven: BTreeSet<u64>,
    flight: Option<Flight>,
    bytes: usize,
    last_place: u64,
    last_call: u64,
    /// How many changes that may fail go into one call.
    narrow: usize,
    /// Calls that failed since the last one that did not.
    failures: u32,
    /// Calls that ended well, in a row.
    streak: u32,
    /// No call begins before.
    rests_until: Option<Time>,
    /// None begins before that is not full, and has no changes that failed.
    paced_until: Time,
    /// Calls that ended well.
    successes: u64,
    /// Why the last call failed; nothing after one that ended well.
    last_failure: Option<Arc<FailedSave>>,
    turn: u8,
    /// The change that is called next, or runs, in the place of the first one, which fails; and where it comes from.
    probe: Option<(u64, Stage)>,
    random: fastrand::Rng,
    /// Who has what he waited for.
    settled: Vec<(u64, Settled)>,
    /// The last change of keys that was given up, while none behind it is saved.
    given_up: Bounded<GivenUp>,
}

fn size_of<P>(change: &Change<P>) -> usize {
    OVERHEAD + change.key.name.len() + change.size
}
