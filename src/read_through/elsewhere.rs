//! Changes that are not saved yet and stand in the queue of another shard, because their slot was its own when they happened: no load may
//! come over them. Slots of which nobody else has any are *settled* and cost one look; keys of others wait apart
//! (`machine/apart.rs`) until the other shards have said that they have nothing.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    Key, ReadThrough,
    machine::{Keys, Time},
};
use crate::{
    hooks::MovingSlots,
    mutex::Mutex,
    server::{
        api,
        key::{self, Life},
        lock::Lock,
        slots::slot_of,
        store,
    },
};

/// Who knows other shards. Called under the server's lock.
pub trait Elsewhere: Send + Sync {
    /// True if no other shard has changes of keys in that slot which are not saved.
    fn is_settled(&self, lock: Lock<'_>, slot: u16) -> bool;

    /// From when on the changes of this shard are the newest ones of that slot (Unix time in milliseconds); `None` if that is not known.
    fn own_since_ms(&self, lock: Lock<'_>, slot: u16) -> Option<u64>;

    /// Slots go or come: what was known of this one is so no more.
    fn unsettle(&self, lock: Lock<'_>, slot: u16);

    /// Asks which of these keys have no change on another shard; `done` is called once, on any thread, which may hold the server's lock.
    fn ask_others(&self, keys: Vec<(i32, Vec<u8>)>, done: Box<dyn FnOnce(Vec<bool>) + Send>);
}

/// How long keys rest of which another shard has a change, until it is asked again.
const REST: Duration = Duration::from_millis(100);

/// How often it is said in the log that loads wait.
const SAID: Duration = Duration::from_secs(60);

/// The way to the other shards, and what came from there.
#[derive(Default)]
pub(super) struct Way {
    elsewhere: OnceLock<Arc<dyn Elsewhere>>,
    has_told: AtomicBool,
    told: Mutex<Vec<Told>>,
}

enum Told {
    /// Of which keys nobody else has changes.
    Answer(Keys, Vec<bool>),
    /// Those that rest are asked for again.
    Again,
}

/// Keys whose loads wait apart.
#[derive(Default)]
pub(super) struct Apart {
    /// To be asked for.
    keys: Keys,
    is_asked: bool,
    /// Another shard has changes of them.
    resting: Keys,
    is_armed: bool,
    said: Option<Time>,
}

impl MovingSlots for ReadThrough {
    fn moves(&self, lock: Lock<'_>, slot: u16) {
        if let Some(elsewhere) = self.way.elsewhere.get() {
            elsewhere.unsettle(lock, slot);
        }
    }
}

impl ReadThrough {
    /// Told once who knows other shards.
    pub fn connect_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        // A second call cannot happen: the module cannot be loaded twice.
        let _ = self.way.elsewhere.set(elsewhere);
        if let Some(this) = self.this.upgrade() {
            self.hooks.connect_slots(this as _);
        }
    }

    /// Whether the newest change in the queue of this server may be older than one of another shard.
    pub(super) fn is_own_doubtful(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> bool {
        let Some((elsewhere, behind)) = self.way.elsewhere.get().zip(self.behind.get()) else {
            return false;
        };
        let slot = slot_of(name);
        if elsewhere.is_settled(lock, slot) {
            return false;
        }
        behind.newest_ms(lock, db, name).is_some_and(|ms| {
            let since = elsewhere.own_since_ms(lock, slot);
            since.is_none_or(|since| ms < since)
        })
    }

    /// Of the keys of a load that is about to begin, those may be loaded of which nobody has a change that is not saved; the others wait
    /// apart.
    pub(super) fn without_doubtful(&self, lock: Lock<'_>, now: Time, load: u64, keys: Keys) -> Keys {
        let Some((elsewhere, behind)) = self.way.elsewhere.get().zip(self.behind.get()) else {
            return keys;
        };
        let mut doubtful = Keys::new();
        for key in &keys {
            if !elsewhere.is_settled(lock, slot_of(&key.name))
                && behind.concerns(lock, &key.name)
                && !self.state.write(lock).machine.take_cleared(key)
            {
                doubtful.push(key.clone());
            }
        }
        if doubtful.is_empty() {
            return keys;
        }
        let mut state = self.state.write(lock);
        let left = state.machine.set_apart(now, load, &doubtful);
        state.apart.keys.extend(doubtful);
        drop(state);
        self.ask_elsewhere(lock);
        left
    }

    fn ask_elsewhere(&self, lock: Lock<'_>) {
        let Some(elsewhere) = self.way.elsewhere.get() else {
            return;
        };
        let mut state = self.state.write(lock);
        if state.apart.is_asked || state.apart.keys.is_empty() {
            return;
        }
        let mut keys = std::mem::take(&mut state.apart.keys);
        keys.retain(|key| state.machine.waits_apart(key));
        if keys.is_empty() {
            return;
        }
        state.apart.is_asked = true;
        drop(state);
        let names = keys.iter().map(|key| (key.db, key.name.to_vec())).collect();
        let this = Weak::clone(&self.this);
        let done = move |free| {
            if let Some(this) = this.upgrade() {
                this.told_elsewhere(Told::Answer(keys, free));
            }
        };
        elsewhere.ask_others(names, Box::new(done));
    }

    fn told_elsewhere(&self, told: Told) {
        self.way.told.lock().push(told);
        self.way.has_told.store(true, Ordering::Release);
        self.wake();
    }

    /// Goes on with what other shards have said.
    pub(super) fn hear_elsewhere(&self, lock: Lock<'_>, now: Time) {
        if !self.way.has_told.swap(false, Ordering::AcqRel) {
            return;
        }
        let all = std::mem::take(&mut *self.way.told.lock());
        for told in all {
            match told {
                Told::Again => {
                    let mut state = self.state.write(lock);
                    let apart = &mut state.apart;
                    apart.is_armed = false;
                    let resting = std::mem::take(&mut apart.resting);
                    apart.keys.extend(resting);
                }
                Told::Answer(keys, free) => {
                    self.state.write(lock).apart.is_asked = false;
                    for (key, free) in keys.into_iter().zip(free) {
                        self.hear_of(lock, now, key, free);
                    }
                }
            }
        }
        self.ask_elsewhere(lock);
        self.rest_apart(lock, now);
    }

    fn hear_of(&self, lock: Lock<'_>, now: Time, key: Key, free: bool) {
        if !self.state.write(lock).machine.waits_apart(&key) {
            return;
        }
        let may_begin = free && !self.is_own_doubtful(lock, key.db, &key.name);
        // One that is there may be looked at by its life only.
        let is_away = || {
            key::life(lock, key.db, &key.name) == Life::Missing
                && !store::is_local(lock, self.engine.features, key.db, &key.name)
        };
        if may_begin {
            self.state.write(lock).machine.resume(now, &key);
        } else if is_away() {
            self.state.write(lock).machine.given_away(&key);
        } else {
            self.state.write(lock).apart.resting.push(key);
        }
    }

    /// Sees to it that those that rest are asked for again.
    fn rest_apart(&self, lock: Lock<'_>, now: Time) {
        let mut state = self.state.write(lock);
        let apart = &mut state.apart;
        if apart.resting.is_empty() || std::mem::replace(&mut apart.is_armed, true) {
            return;
        }
        if apart.said.is_none_or(|said| now.saturating_sub(said) >= SAID) {
            apart.said = Some(now);
            let count = apart.resting.len();
            api::log_notice(&format!(
                "read_through: loads of {count} keys wait until changes of them are saved that happened before their slots moved"
            ));
        }
        drop(state);
        let this = Weak::clone(&self.this);
        self.engine.timers.after(REST, move |_| {
            if let Some(this) = this.upgrade() {
                this.told_elsewhere(Told::Again);
            }
        });
    }
}
