//! Where changes of keys are saved behind the cache: a change that is not saved yet is newer than whatever a loader finds.

use std::sync::Arc;

use super::{
    Key, Lifetime, Loaded, ReadThrough, life,
    machine::{Change, NoValue},
    options::{PARTIAL_WRITERS, Ttl},
};
use crate::{
    engine::id::Id,
    server::{
        key::{self, Life},
        lock::Lock,
        store::{self, Content},
    },
};

/// Who has changes that are not saved yet. Called under the server's lock.
pub trait Unsaved: Send + Sync {
    /// The newest change of a key.
    fn unsaved(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> Option<Newest>;

    /// Whether there is one, also of the unit that runs.
    fn is_changed(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> bool;

    /// Whether changes of the key are saved at all.
    fn concerns(&self, lock: Lock<'_>, name: &[u8]) -> bool;

    /// When the newest change of a key happened (Unix time in milliseconds), if there is one.
    fn newest_ms(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> Option<u64>;

    /// Shows the name of each key with a change, and when that happened. False if there are more than `most`.
    fn show_all(&self, lock: Lock<'_>, most: usize, show: &mut dyn FnMut(&[u8], u64)) -> bool;
}

/// What a key holds by its newest change.
pub enum Newest {
    /// Nothing, or nothing that could be stored.
    Gone,
    Value(Content),
}

/// How long a value lives that is stored again where a function says how long one is fresh: nothing of Python runs here, and the
/// next load asks it.
const RESTORED_S: f64 = 60.0;

impl ReadThrough {
    /// Told once who has changes.
    pub fn connect_behind(&self, behind: Arc<dyn Unsaved>) {
        // A second call cannot happen: the module cannot be loaded twice.
        let _ = self.behind.set(behind);
    }

    pub(super) fn unsaved(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> Option<Newest> {
        self.behind.get()?.unsaved(lock, db, name)
    }

    /// A key has a change that is not saved, or one of the unit that runs.
    pub(super) fn is_changed(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> bool {
        let behind = self.behind.get();
        behind.is_some_and(|behind| behind.is_changed(lock, db, name))
    }

    /// A value of ours with that life is stale, and nothing has changed it that is not saved.
    pub(super) fn is_outdated(&self, lock: Lock<'_>, rule: Id, (db, name): (i32, &[u8]), life: Life) -> bool {
        let Life::Until { at_ms, left_ms } = life else {
            return false;
        };
        let state = self.state.read(lock);
        let served = state.served.get(rule);
        let is_stale = served.is_some_and(|served| {
            let (may_be, fresh_ms) = (
                served.options.stale > 0.0,
                life::fresh_left_ms(&served.options, left_ms),
            );
            may_be && fresh_ms <= 0 && life::is_marked(at_ms)
        });
        drop(state);
        is_stale && !self.is_changed(lock, db, name)
    }

    /// Commands that change a part of a value wait for loads from now on, where no commands were named.
    pub fn meet_writes(&self, lock: Lock<'_>) {
        let mut meeting = Vec::new();
        for (id, served) in self.state.write(lock).served.iter_mut() {
            if served.options.commands.is_none() && !std::mem::replace(&mut served.meets_writes, true) {
                meeting.push((id, served.pattern.clone(), Arc::clone(&served.hot)));
            }
        }
        for (id, pattern, hot) in meeting {
            self.hooks
                .link_partial_writers(lock, id, &PARTIAL_WRITERS, &pattern, &hot);
        }
    }

    /// Answers a miss from the changes that are not saved: the value is stored again, with its lifetime. False if there is none.
    pub(super) fn restore_unsaved(&self, lock: Lock<'_>, rule: Id, db: i32, name: &[u8]) -> bool {
        let Some(unsaved) = self.unsaved(lock, db, name) else {
            return false;
        };
        let Newest::Value(content) = unsaved else {
            return true;
        };
        let now_ms = key::now_ms(lock);
        let mut state = self.state.write(lock);
        let chance = state.machine.chance();
        let options = state.served.get(rule).map(|served| Arc::clone(&served.options));
        drop(state);
        let expires = options.and_then(|options| {
            let fresh = match options.ttl {
                Ttl::Function => RESTORED_S,
                _ => Lifetime::Default.fresh_s(&options)?,
            };
            Some(life::expires_ms(&options, fresh, now_ms, chance))
        });
        self.quietly(lock, || store::put(lock, db, name, &content, expires));
        store::signal_modified(lock, db, name);
        true
    }

    /// What a load that begins now brings of these keys is dropped.
    pub(super) fn break_leases(&self, lock: Lock<'_>, keys: &[Key]) {
        let mut state = self.state.write(lock);
        for key in keys {
            state.machine.changed(key.db, &key.name, Change::Removed);
        }
    }

    /// What a load has brought of a key, or what is newer than that.
    pub(super) fn newer_than(
        &self,
        lock: Lock<'_>,
        rule: Id,
        load: u64,
        key: &Key,
        value: Result<Loaded, NoValue>,
    ) -> Result<Loaded, NoValue> {
        let Some(unsaved) = self.unsaved(lock, key.db, &key.name) else {
            return value;
        };
        if matches!(unsaved, Newest::Gone) {
            return Ok(Loaded {
                content: None,
                lifetime: Lifetime::NotKept,
            });
        }
        if key::life(lock, key.db, &key.name) == Life::Missing {
            self.restore_unsaved(lock, rule, key.db, &key.name);
        }
        let mut state = self.state.write(lock);
        if state.machine.knows(load) {
            state.machine.changed(key.db, &key.name, Change::Written);
        }
        value
    }
}
