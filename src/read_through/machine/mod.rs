//! The state of all loads as one machine: who waits for which key, which loads run, what is known to be absent, what backs
//! off. Inputs are events with a time, outputs are [`Action`]s. It needs neither server nor Python, neither clock nor thread.
//!
//! A key has one *flight* at a time: its load is queued or runs, and clients wait for it. When a load has ended it *lands*: its
//! value stays at hand until the last of those who waited has its reply. Contract: `read-through.md` chapter 3.

mod changes;
mod landing;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    bounded::Bounded,
    keys::{ByKey, Key},
    pace::Backoff,
    rule::{Counts, Limits, Rule},
};
use crate::engine::id::Id;

/// A moment: how long after the start.
pub type Time = Duration;

/// Loads for one wait, before the value answers without being kept.
const MAX_LOADS: u8 = 3;

/// Why somebody gets no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
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
}

impl Why {
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
        keys: Vec<Key>,
    },
    /// Its time is over: whatever it brings is dropped.
    Stop {
        load: u64,
    },
    /// Everything that this one waited for is decided.
    Ready {
        waiter: u64,
    },
    Refuse {
        waiter: u64,
        rule: Id,
        why: Why,
    },
    /// The registration that was to load these keys has gone: perhaps another one has them ([`Machine::ask_again`]).
    Again {
        waiter: u64,
        keys: Vec<Key>,
    },
}

/// What is to be done about a key whose load has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// Nobody knows the load any more, or what it brought is not to be stored.
    Nothing,
    Store,
    /// There is no such value any more, but an old one in the cache.
    Delete,
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
    waiters: Vec<u64>,
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
    wanted: Vec<Wanted>,
    open: usize,
    rules: Vec<Id>,
    purpose: Purpose,
    deadline: Option<Time>,
}

struct Load {
    rule: Id,
    /// Those that have not landed.
    keys: Vec<Key>,
    deadline: Time,
    failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Waiter(u64),
    Load(u64),
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
    rules: BTreeMap<Id, Rule>,
    flights: ByKey<Flight>,
    landed: ByKey<Landed<V>>,
    absent: Bounded<Time>,
    backoffs: Bounded<Backoff>,
    waiters: HashMap<u64, Waiter>,
    loads: HashMap<u64, Load>,
    due: BTreeSet<(Time, Due)>,
    last_load: u64,
    last_waiter: u64,
    actions: Vec<Action>,
    random: u64,
}

impl<V> Machine<V> {
    /// `seed`: of the jitter.
    pub fn new(bounds: Bounds, seed: u64) -> Self {
        Self {
            bounds,
            rules: BTreeMap::new(),
            flights: ByKey::default(),
            landed: ByKey::default(),
            absent: Bounded::default(),
            backoffs: Bounded::default(),
            waiters: HashMap::new(),
            loads: HashMap::new(),
            due: BTreeSet::new(),
            last_load: 0,
            last_waiter: 0,
            actions: Vec::new(),
            random: seed | 1,
        }
    }

    /// A number from 0 to 1 (xorshift).
    pub fn chance(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn add_rule(&mut self, id: Id, limits: Limits) {
        self.rules.insert(id, Rule::new(limits));
    }

    pub fn rule(&self, id: Id) -> Option<&Rule> {
        self.rules.get(&id)
    }

    /// Forgets what [`Counts`] counts, but not what is under way.
    pub fn clear_counts(&mut self, id: Id) {
        if let Some(rule) = self.rules.get_mut(&id) {
            rule.counts = Counts {
                waiting: rule.counts.waiting,
                loading: rule.counts.loading,
                ..Counts::default()
            };
        }
    }

    /// True if what happens to keys is of interest.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.landed.is_empty() && self.absent.is_empty()
    }

    /// True if what happens to this key is.
    pub fn concerns(&self, db: i32, name: &[u8]) -> bool {
        !self.is_idle()
            && (self.flights.get(db, name).is_some()
                || self.landed.get(db, name).is_some()
                || self.absent.get(db, name).is_some())
    }

    /// Whether the key is known to be absent.
    pub fn is_absent(&mut self, now: Time, db: i32, name: &[u8]) -> bool {
        let Some(until) = self.absent.get(db, name) else {
            return false;
        };
        let known = now < *until;
        if !known {
            self.absent.remove(db, name);
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
        self.landed.get(key.db, &key.name)
    }

    /// What is to be done; nothing is left behind.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// When [`Machine::tick`] is to be called next.
    pub fn next_due(&self) -> Option<Time> {
        self.due.first().map(|&(time, _)| time)
    }

    /// Somebody waits for these keys, which are distinct. His number.
    ///
    /// # Errors
    /// It is refused, on behalf of a registration; nothing has changed then but its counter.
    pub fn ask(&mut self, now: Time, asks: &[Ask], purpose: Purpose) -> Result<u64, (Id, Why)> {
        if let Err((rule, why)) = self.check(now, asks, purpose, true) {
            self.count(rule, |counts| counts.refusals += 1);
            return Err((rule, why));
        }
        self.last_waiter += 1;
        let number = self.last_waiter;
        let mut rules: Vec<Id> = asks.iter().map(|ask| ask.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        let command = purpose.is_command();
        for &rule in &rules {
            self.count(rule, |counts| {
                counts.waiting += 1;
                counts.misses += u64::from(command);
            });
        }
        let timeouts = rules
            .iter()
            .filter_map(|rule| self.rules.get(rule)?.limits.timeout);
        let deadline = timeouts.min().map(|timeout| now.saturating_add(timeout));
        if let Some(deadline) = deadline {
            self.due.insert((deadline, Due::Waiter(number)));
        }
        self.waiters.insert(
            number,
            Waiter {
                wanted: Vec::with_capacity(asks.len()),
                open: 0,
                rules,
                purpose,
                deadline,
            },
        );
        let shared = self.join(now, number, asks, &[]);
        if let Some(first) = asks.first().filter(|_| shared && command) {
            self.count(first.rule, |counts| counts.shared += 1);
        }
        Ok(number)
    }

    /// Somebody who waits is to wait for these keys anew: what he waited for has gone. Keys that nobody loads any more are
    /// left out by the caller.
    pub fn ask_again(&mut self, now: Time, number: u64, asks: &[Ask]) {
        let Some(waiter) = self.waiters.get_mut(&number) else {
            return;
        };
        let purpose = waiter.purpose;
        if let Err((rule, why)) = self.check(now, asks, purpose, false) {
            self.refuse(number, rule, why);
            return;
        }
        let Some(waiter) = self.waiters.get_mut(&number) else {
            return;
        };
        // What is not asked for again is decided; the loads of the others count on.
        let mut used = Vec::with_capacity(asks.len());
        for ask in asks {
            let before = waiter.wanted.iter().position(|wanted| wanted.key == ask.key);
            used.push(before.map_or(0, |place| waiter.wanted[place].used.saturating_add(1)));
        }
        let gone: Vec<Wanted> = std::mem::take(&mut waiter.wanted);
        let (again, rest): (Vec<_>, Vec<_>) = gone
            .into_iter()
            .partition(|wanted| asks.iter().any(|ask| ask.key == wanted.key));
        waiter.wanted = rest;
        for wanted in &mut waiter.wanted {
            wanted.settled = true;
        }
        waiter.open = 0;
        for ask in asks {
            if !waiter.rules.contains(&ask.rule) {
                waiter.rules.push(ask.rule);
                if let Some(rule) = self.rules.get_mut(&ask.rule) {
                    rule.counts.waiting += 1;
                }
            }
        }
        for wanted in again.iter().filter(|wanted| wanted.landed) {
            self.replied_one(&wanted.key);
        }
        self.join(now, number, asks, &used);
        if self.waiters.get(&number).is_some_and(|waiter| waiter.open == 0) {
            self.actions.push(Action::Ready { waiter: number });
        }
    }

    /// A hit shows that the value of a key will soon be too old. True if a load begins for it.
    pub fn refresh(&mut self, now: Time, rule: Id, key: &Key) -> bool {
        let ask = [Ask {
            rule,
            key: key.clone(),
            present: true,
        }];
        if self.flights.get(key.db, &key.name).is_some()
            || self
                .check(now, &ask, Purpose::Command { writes: false }, false)
                .is_err()
        {
            return false;
        }
        self.flights.insert(key, Flight::new(rule, true, true));
        self.count(rule, |counts| counts.refreshes += 1);
        self.enqueue(now, rule, vec![key.clone()]);
        true
    }

    fn check(&self, now: Time, asks: &[Ask], purpose: Purpose, is_new: bool) -> Result<(), (Id, Why)> {
        for ask in asks {
            let Some(rule) = self.rules.get(&ask.rule) else {
                continue;
            };
            let refuse = |why| Err((ask.rule, why));
            if is_new && rule.counts.waiting >= rule.limits.max_waiting as u64 {
                return refuse(Why::TooManyWaiting);
            }
            if self.flights.get(ask.key.db, &ask.key.name).is_some() {
                continue;
            }
            if !rule.breaker.allows(now) {
                return refuse(Why::BreakerOpen);
            }
            let backoff = self.backoffs.get(ask.key.db, &ask.key.name);
            if purpose.is_command() && backoff.is_some_and(|backoff| !backoff.is_over(now)) {
                return refuse(Why::BackingOff);
            }
            if rule.queued() as u64 + rule.counts.loading + asks.len() as u64 > self.bounds.loads as u64 {
                return refuse(Why::TooManyLoads);
            }
        }
        Ok(())
    }

    /// Adds a waiter to the flights of keys. True if all of them were under way already.
    fn join(&mut self, now: Time, number: u64, asks: &[Ask], used: &[u8]) -> bool {
        let mut fresh: Vec<(Id, Vec<Key>)> = Vec::new();
        let refresh = self
            .waiters
            .get(&number)
            .is_some_and(|waiter| !waiter.purpose.is_command());
        for (place, ask) in asks.iter().enumerate() {
            let mut after = 0;
            if let Some(flight) = self.flights.of(&ask.key) {
                if let Stage::Loading(load) = flight.stage {
                    if refresh {
                        flight.touched = Some(Change::Removed);
                    }
                    if flight.touched == Some(Change::Removed) {
                        after = load;
                    }
                }
                flight.present &= ask.present;
                flight.forced |= refresh;
                flight.waiters.push(number);
                flight.live += 1;
            } else {
                let mut flight = Flight::new(ask.rule, ask.present, false);
                flight.forced = refresh;
                flight.waiters.push(number);
                flight.live = 1;
                self.flights.insert(&ask.key, flight);
                match fresh.iter_mut().find(|(rule, _)| *rule == ask.rule) {
                    Some((_, keys)) => keys.push(ask.key.clone()),
                    None => fresh.push((ask.rule, vec![ask.key.clone()])),
                }
            }
            if let Some(waiter) = self.waiters.get_mut(&number) {
                waiter.open += 1;
                waiter.wanted.push(Wanted {
                    key: ask.key.clone(),
                    rule: ask.rule,
                    after,
                    used: used.get(place).copied().unwrap_or(0),
                    settled: false,
                    landed: false,
                });
            }
        }
        let shared = fresh.is_empty();
        for (rule, keys) in fresh {
            self.enqueue(now, rule, keys);
        }
        shared
    }

    fn enqueue(&mut self, now: Time, id: Id, keys: Vec<Key>) {
        let Some(rule) = self.rules.get_mut(&id) else {
            return;
        };
        if let Some(due) = rule.enqueue(now, keys) {
            self.due.insert((due, Due::Batch(id)));
        }
        self.begin_loads(now, id);
    }

    /// Begins what may begin.
    fn begin_loads(&mut self, now: Time, id: Id) {
        while let Some(rule) = self.rules.get_mut(&id) {
            let Some(chunk) = rule.next_chunk(now) else { break };
            let mut keys = Vec::with_capacity(chunk.keys.len());
            for key in chunk.keys {
                match self.flights.of(&key) {
                    Some(flight) if flight.stage != Stage::Queued => {}
                    Some(flight) if flight.live > 0 || flight.background => keys.push(key),
                    Some(_) => drop(self.flights.remove(key.db, &key.name)),
                    None => {}
                }
            }
            if keys.is_empty() {
                continue;
            }
            let Some(rule) = self.rules.get_mut(&id) else {
                break;
            };
            if !rule.breaker.allows(now) {
                for key in keys {
                    self.fail(&key, &Why::BreakerOpen);
                }
                continue;
            }
            self.last_load += 1;
            let load = self.last_load;
            rule.breaker.begun(load);
            rule.counts.loading += 1;
            rule.counts.batches += 1;
            rule.counts.loads += keys.len() as u64;
            let deadline = now.saturating_add(rule.limits.max_load_time);
            for key in &keys {
                if let Some(flight) = self.flights.of(key) {
                    flight.stage = Stage::Loading(load);
                    flight.touched = None;
                }
            }
            self.due.insert((deadline, Due::Load(load)));
            self.loads.insert(
                load,
                Load {
                    rule: id,
                    keys: keys.clone(),
                    deadline,
                    failed: false,
                },
            );
            self.actions.push(Action::Begin { load, rule: id, keys });
        }
        if let Some(due) = self.rules.get(&id).and_then(Rule::next_due) {
            self.due.insert((due.max(now), Due::Batch(id)));
        }
    }

    fn count(&mut self, rule: Id, change: impl FnOnce(&mut Counts)) {
        if let Some(rule) = self.rules.get_mut(&rule) {
            change(&mut rule.counts);
        }
    }
}

impl Flight {
    fn new(rule: Id, present: bool, background: bool) -> Self {
        Self {
            rule,
            stage: Stage::Queued,
            waiters: Vec::new(),
            live: 0,
            background,
            present,
            forced: false,
            touched: None,
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
