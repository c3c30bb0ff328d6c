//! What happens to keys that are loaded: all of it ends in the machine. Under the server's lock.

use super::{Key, ReadThrough, Served, machine::Change};
use crate::{
    engine::scope,
    hooks::Loads,
    server::{events::KeyEvent, key, lock::Lock},
};

impl ReadThrough {
    /// A glance at a key, which calls nothing of the server: most changes end here.
    pub fn concerns(&self, lock: Lock<'_>, name: &[u8]) -> bool {
        let state = self.state.read(lock);
        let loads = |served: &Served| served.pattern.matches(name);
        let matters = !state.machine.is_idle() || !self.engine.is_serving();
        matters && !state.storing && state.served.values().any(loads)
    }

    /// True while a value is stored that was loaded: that is no change.
    pub fn is_storing(&self, lock: Lock<'_>) -> bool {
        self.state.read(lock).storing
    }

    /// One notification of the server.
    pub fn notify(&self, event: &KeyEvent<'_>) {
        let change = match event.name {
            b"expire" | b"persist" | b"hexpire" | b"hpersist" => {
                return self
                    .state
                    .write(event.lock)
                    .machine
                    .mentioned(event.db, event.key);
            }
            b"keymiss" => return self.missed(event.lock, event.key),
            b"del" if self.is_ended_by_expiry(event) => Change::Aged,
            b"del" | b"rename_from" | b"move_from" => Change::Removed,
            b"hexpired" => {
                if key::is_left_empty(event.lock, event.db, event.key) {
                    self.state.write(event.lock).expired = Some(Key::new(event.db, event.key));
                }
                Change::Aged
            }
            b"expired" | b"evicted" => Change::Aged,
            _ => Change::Written,
        };
        self.changed(event.lock, event.db, event.key, change);
    }

    fn is_ended_by_expiry(&self, event: &KeyEvent<'_>) -> bool {
        let expired = self.state.write(event.lock).expired.take();
        expired.is_some_and(|key| key.db == event.db && *key.name == *event.key)
    }

    /// Somebody found nothing. A replica loads nothing, and counts that; elsewhere those count who wait, or cannot.
    fn missed(&self, lock: Lock<'_>, name: &[u8]) {
        if self.engine.is_serving() {
            return;
        }
        let rule = self.state.read(lock).served_for(name);
        if let Some(rule) = rule {
            self.count_plain(lock, rule);
        }
    }

    pub(super) fn changed(&self, lock: Lock<'_>, db: i32, name: &[u8], change: Change) {
        let mut state = self.state.write(lock);
        let load = state.machine.loading(db, name);
        let execution = load
            .and_then(|load| state.running.get(&load))
            .map(|running| running.execution);
        // What a loader does to its own key does not break its lease.
        if execution.is_some() && execution == scope::acting() {
            return;
        }
        state.machine.changed(db, name, change);
    }

    /// All keys of a database are others now, or those of all databases.
    pub fn flushed(&self, lock: Lock<'_>, db: Option<i32>) {
        let mut state = self.state.write(lock);
        state.machine.flushed(db);
        state.lives.clear(db);
    }
}
