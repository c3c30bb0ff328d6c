//! The state of all loads as one machine: who waits for which key, which loads run, what is known to be absent, what backs
//! off. Inputs are events with a time, outputs are [`Action`]s. It needs neither server nor Python, neither clock nor thread.
//!
//! A key has one *flight* at a time: its load is queued or runs, and clients wait for it. When a load has ended it *lands*: its
//! value stays at hand until the last of those who waited has its reply. Contract: docs/contract/read-through.md chapter 3.

mod apart;
mod asking;
mod changes;
mod circles;
mod landing;
mod looking;
mod pace;
mod rule;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    bounded::Bounded,
    keys::{ByKey, Key},
};
use crate::{
    engine::id::{ById, Id},
    hashing::ByNumber,
};

pub use self::looking::{Seen, SeenLoad};
use self::pace::Backoff;
pub use self::rule::{Counts, Limits, Rule, Standing};

/// Few keys, nearly always one.
pub type Keys = SmallVec<[Key; 1]>;

/// A moment: how long after the start.
pub type Time = Duration;

/// Loads for one wait, before the value answers without being kept.
const MAX_LOADS: u8 = 3;

/// Why somebody gets no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoValue {
    /// The load failed; with the type of what was raised.
    Failed(Arc<str>),
    /// It took longer than `max_load_time`.
    LoadTimedOut,
    /// The client has waited for `timeout`.
    TimedOut,
    BackingOff,
    BreakerOpen,
    TooManyWaiting,
    TooManyLoads,
    /// So many executions of the registration are pending that no other may begin (MaxPendingPerRegistration).
    TooManyPending,
    /// Somebody has ended the load.
    Aborted,
    /// The command would leave a part of a value behind, and cannot wait for the rest.
    CannotWait,
    /// The loader of the registration could not be loaded itself.
    NotLoaded,
}

impl NoValue {
    /// Whether it tells something of the source, and so counts for back-off and breaker.
    fn blames_the_source(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::LoadTimedOut)
    }

    /// The word behind LOADFAILED.
    pub fn kind(&self) -> &str {
        match self {
            Self::Failed(kind) => kind,
            Self::LoadTimedOut => "LoadTimedOut",
            Self::TimedOut => "TimedOut",
            Self::BackingOff => "BackingOff",
            Self::BreakerOpen => "BreakerOpen",
            Self::TooManyWaiting => "TooManyWaiting",
            Self::TooManyLoads => "TooManyLoads",
            Self::TooManyPending => "TooManyPending",
            Self::Aborted => "Aborted",
            Self::NotLoaded => "NotLoaded: the loader's functions could not be loaded",
            Self::CannotWait => {
                "CannotWait: a transaction, a script or a function cannot wait for a key that is not in the cache, or is stale there, and what it changes of that \
                 would be saved in the place of the whole"
            }
        }
    }
}

/// What is to be done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// The loader is to be called with these keys.
    Begin {
        load: u64,
        rule: Id,
        keys: Keys,
    },
    /// Its time is over: whatever it brings is dropped.
    Stop {
        load: u64,
        rule: Id,
    },
    /// Everything that this one waited for is decided.
    Ready {
        waiter: u64,
    },
    Refuse {
        waiter: u64,
        rule: Id,
        why: NoValue,
    },
    /// The registration that was to load these keys has gone: perhaps another one has them ([`Machine::ask_again`]).
    Again {
        waiter: u64,
        keys: Vec<Key>,
    },
}

/// What the cache can do with a value that has come, and with one that is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub keep: Keep,
    /// The key is there.
    pub present: bool,
    /// It may be taken away.
    pub may_delete: bool,
}

impl Found {
    /// For a load that has brought nothing.
    pub const NOTHING: Self = Self {
        keep: Keep::No,
        present: false,
        may_delete: false,
    };
}

/// Whether a value that has come is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// If nothing speaks against it.
    Yes,
    /// It is not to be kept.
    No,
    /// There is no room for it, or its user may not.
    Cannot,
}

/// What is to be done about a key whose load has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// Nobody knows the load any more, or what it brought is not to be stored.
    Nothing,
    Store,
    /// An old one is in the cache in the place of what was loaded.
    Delete,
    /// It could not be stored, and nothing is to be done about that.
    Unkept,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Written,
    /// Deleted, renamed, invalidated.
    Removed,
    /// Expired or evicted: its value is as true as before.
    Aged,
}

/// A key that somebody waits for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub rule: Id,
    pub key: Key,
    /// The key is there now: a load takes the place of its value.
    pub present: bool,
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run a command, a writing one or not.
    Command { writes: bool },
    /// RG.REFRESH: nothing that began before will do. With the number of keys that were loaded.
    Refresh(u64),
}

impl Purpose {
    fn is_command(self) -> bool {
        matches!(self, Self::Command { .. })
    }
}

/// A value that was loaded, as long as somebody who waited for it has no reply.
pub struct Landed<V> {
    /// `None`: there is no such value.
    pub value: Option<Arc<V>>,
    /// Something has happened to the key since.
    pub void: bool,
    /// The cache goes by it: it has the value, or no other one.
    in_effect: bool,
    /// It has been stored.
    is_stored: bool,
    /// Until when the key holds it (Unix time in milliseconds), if it was stored and nobody has said anything of the key since.
    held_until: Option<i64>,
    left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued,
    Loading(u64),
}

struct Flight {
    rule: Id,
    stage: Stage,
    /// Perhaps also some who wait no longer.
    waiters: SmallVec<[u64; 2]>,
    /// How many of them wait.
    live: usize,
    /// It goes on although nobody waits.
    background: bool,
    /// The key was there when the load was asked for.
    present: bool,
    /// Somebody asked for a load whatever is there.
    forced: bool,
    /// The last thing that happened to the key since the load began.
    touched: Option<Change>,
    /// No other shard has a change of the key that is not saved.
    cleared: bool,
}

struct Wanted {
    key: Key,
    rule: Id,
    /// Loads up to this one began too early.
    after: u64,
    /// Loads that came to nothing.
    used: u8,
    settled: bool,
    /// One of those that [`Landed`] counts.
    landed: bool,
}

struct Waiter {
    wanted: SmallVec<[Wanted; 1]>,
    open: usize,
    rules: SmallVec<[Id; 1]>,
    purpose: Purpose,
    begun: Time,
    deadline: Option<Time>,
    /// The load whose loader waits here.
    loader_of: Option<u64>,
}

struct Load {
    rule: Id,
    begun: Time,
    /// Until they land.
    keys: Keys,
    /// Whether it failed, as far as it has told something of the source.
    failed: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Waiter(u64),
    /// Of a registration, the oldest one.
    Loads(Id),
    Batch(Id),
}

/// The bounds of the whole machine.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub absent: usize,
    pub backoffs: usize,
    /// Loads of one registration, queued and running.
    pub loads: usize,
}

/// See the module.
pub struct Machine<V> {
    pub bounds: Bounds,
    rules: ById<Rule>,
    flights: ByKey<Flight>,
    landed: ByKey<Landed<V>>,
    /// Until when keys are known to be absent, by the registration that found out.
    absent: Bounded<(Id, Time)>,
    backoffs: Bounded<(Id, Backoff)>,
    waiters: ByNumber<Waiter>,
    loads: ByNumber<Load>,
    due: BTreeSet<(Time, Due)>,
    last_load: u64,
    last_waiter: u64,
    /// Entries that had to be forgotten because there was no room for more.
    pub forgotten: u64,
    actions: VecDeque<Action>,
    random: fastrand::Rng,
}

impl<V> Machine<V> {
    /// `seed`: of the jitter.
    pub fn new(bounds: Bounds, seed: u64) -> Self {
        Self {
            bounds,
            rules: ById::default(),
            flights: ByKey::default(),
            landed: ByKey::default(),
            absent: Bounded::default(),
            backoffs: Bounded::default(),
            waiters: ByNumber::default(),
            loads: ByNumber::default(),
            due: BTreeSet::new(),
            last_load: 0,
            last_waiter: 0,
            forgotten: 0,
            actions: VecDeque::new(),
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// A number from 0 to 1.
    pub fn chance(&mut self) -> f64 {
        self.random.f64()
    }

    pub fn add_rule(&mut self, id: Id, limits: Limits) {
        self.rules.insert(id, Rule::new(limits));
    }

    /// Whether the loader of a registration can be called from now on.
    pub fn set_standing(&mut self, now: Time, id: Id, standing: Standing) {
        let Some(rule) = self.rules.get_mut(id) else {
            return;
        };
        rule.standing = standing;
        if standing == Standing::Missing {
            for key in rule.take_queued() {
                self.fail(&key, &NoValue::NotLoaded);
            }
        }
        self.begin_loads(now, id);
    }

    pub fn rule(&self, id: Id) -> Option<&Rule> {
        self.rules.get(id)
    }

    /// Forgets what [`Counts`] counts, but not what is under way.
    pub fn clear_counts(&mut self, id: Id) {
        if let Some(rule) = self.rules.get_mut(id) {
            rule.counts = Counts {
                waiting: rule.counts.waiting,
                loading: rule.counts.loading,
                ..Counts::default()
            };
        }
    }

    /// Nobody waits, nothing is loaded or known to be absent: what happens to keys does not matter.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.landed.is_empty() && self.absent.is_empty()
    }

    /// True if it matters what happens to this key.
    pub fn concerns(&self, db: i32, name: &[u8]) -> bool {
        !self.is_idle()
            && (self.flights.get(db, name).is_some()
                || self.landed.get(db, name).is_some()
                || self.absent.get(db, name).is_some())
    }

    /// Whether the key is known to be absent.
    pub fn is_absent(&mut self, now: Time, db: i32, name: &[u8]) -> bool {
        let Some((_, until)) = self.absent.get(db, name) else {
            return false;
        };
        let known = now < *until;
        if !known {
            self.absent.remove_named(db, name);
        }
        known
    }

    pub fn absent_count(&self) -> usize {
        self.absent.len()
    }

    pub fn backoff_count(&self) -> usize {
        self.backoffs.len()
    }

    /// What was loaded for a key, while somebody waits for his reply.
    pub fn landed(&self, key: &Key) -> Option<&Landed<V>> {
        self.landed.at(key)
    }

    /// What was loaded for a key has been stored, to expire at that moment (Unix time in milliseconds).
    pub fn stored(&mut self, key: &Key, until_ms: i64) {
        if let Some(landed) = self.landed.of(key) {
            landed.held_until = Some(until_ms);
            landed.is_stored = true;
        }
    }

    /// True if what was loaded for a key has not been stored, and nothing has happened to the key since: whatever it holds is older.
    pub fn is_outdated(&self, key: &Key) -> bool {
        let landed = self.landed(key);
        landed.is_some_and(|landed| !landed.void && !landed.is_stored)
    }

    /// True if what was loaded for a key is still there, by all that has been said of it: then nobody needs to look.
    pub fn holds(&self, key: &Key, now_ms: i64) -> bool {
        let landed = self.landed(key).filter(|landed| !landed.void);
        landed
            .and_then(|landed| landed.held_until)
            .is_some_and(|until| now_ms < until)
    }

    /// Something was said of a key: when it is to expire, or more.
    pub fn mentioned(&mut self, db: i32, name: &[u8]) {
        if let Some(landed) = self.landed.get_mut(db, name) {
            landed.held_until = None;
        }
    }

    /// Whether somebody waits with a command that writes.
    pub fn writes(&self, waiter: u64) -> bool {
        let waiter = self.waiters.get(&waiter);
        waiter.is_some_and(|waiter| waiter.purpose == Purpose::Command { writes: true })
    }

    /// What is to be done next.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The same if it is a load that begins: who has asked need not wait for the others.
    pub fn next_begin(&mut self) -> Option<Action> {
        matches!(self.actions.front(), Some(Action::Begin { .. })).then(|| self.actions.pop_front())?
    }

    /// When [`Machine::tick`] is to be called next.
    pub fn next_due(&self) -> Option<Time> {
        self.due.first().map(|&(time, _)| time)
    }

    fn count(&mut self, rule: Id, change: impl FnOnce(&mut Counts)) {
        if let Some(rule) = self.rules.get_mut(rule) {
            change(&mut rule.counts);
        }
    }
}

impl Flight {
    fn new(rule: Id, present: bool, background: bool) -> Self {
        Self {
            rule,
            stage: Stage::Queued,
            waiters: SmallVec::new(),
            live: 0,
            background,
            present,
            forced: false,
            touched: None,
            cleared: false,
        }
    }
}

impl Waiter {
    fn open_for(&mut self, key: &Key) -> Option<&mut Wanted> {
        self.wanted
            .iter_mut()
            .find(|wanted| !wanted.settled && wanted.key == *key)
    }

    fn open_keys(&self) -> impl Iterator<Item = &Key> {
        self.wanted
            .iter()
            .filter(|wanted| !wanted.settled)
            .map(|wanted| &wanted.key)
    }
}
