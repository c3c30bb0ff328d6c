//! Changes of which a replica, or whoever loads an AOF file, has heard by their commands only: the master tells of them a moment
//! later ([`super::late`]). If it does not come to that, because it died or its file was cut off, this server captures them itself
//! when it serves clients.

use std::borrow::Cow;

use super::{
    State, WriteBehind,
    capture::{Note, Notes},
    event_names::{event_name, usual_name},
    frame::Follows,
    late::{self, Unsent},
};
use crate::{
    read_through::keys::Key,
    server::{lock::Lock, string::Held},
};

/// See the module.
#[derive(Default)]
pub(super) struct Tail {
    /// Changes may come late.
    follows: bool,
    /// What has changed since changes were told.
    pub(super) notes: Notes,
}

impl Tail {
    pub(super) fn follows(&self) -> bool {
        self.follows
    }

    pub(super) fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }

    /// Other data are loaded.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// All changes up to here were told. `follows`: the next ones may come late.
    pub(super) fn told(&mut self, follows: bool) {
        self.follows = follows;
        if !self.notes.is_empty() {
            self.notes.take();
        }
    }

    /// As it is kept in a file.
    pub(super) fn kept(&self) -> Follows {
        if self.follows {
            Follows::Following(self.notes.keys().collect())
        } else {
            Follows::Never
        }
    }
}

impl State {
    /// A key has changed by what comes from elsewhere.
    pub(super) fn follow(&mut self, db: i32, name: &[u8], event: &[u8], hold: impl FnOnce() -> Held) {
        if !self.tail.follows || !late::is_plain(event) {
            return;
        }
        let theirs = self.sinks.iter().filter(|sink| sink.options.may_come_late());
        let sinks = theirs
            .filter(|sink| sink.pattern.matches(name))
            .fold(0, |all, sink| all | 1 << sink.number);
        if sinks == 0 {
            return;
        }
        let event = usual_name(event).map_or_else(|| event_name(event), Cow::Borrowed);
        self.tail.notes.note(db, name, event, sinks, hold);
    }

    /// The same, from a file that a server wrote which followed.
    pub(super) fn go_on_following(&mut self, lock: Lock<'_>, keys: Vec<(Key, Cow<'static, str>)>) {
        self.tail.follows = true;
        for (key, event) in keys {
            self.follow(key.db, &key.name, event.as_bytes(), || {
                Held::of_bytes(lock, &key.name)
            });
        }
    }
}

impl WriteBehind {
    /// Captures what nobody has told of, now that this server serves clients, and hands it on.
    pub(super) fn capture_tail(&self, lock: Lock<'_>) {
        if self.take_tail(lock) {
            self.hand_on(lock, false);
        }
    }

    /// The same; it is handed on with what comes next, or at the end of this turn. True if there was anything.
    pub(super) fn take_tail(&self, lock: Lock<'_>) -> bool {
        let mut state = self.state.write(lock);
        state.tail.follows = false;
        if state.tail.is_empty() {
            return false;
        }
        let mut notes: Vec<Note> = state.tail.notes.take();
        state.tail.reset();
        drop(state);
        // What is gone by now was told, or is nothing that a cache would delete elsewhere.
        let some = self.take_in(lock, &mut notes, true).is_some();
        if some {
            self.link_where_full(lock);
            self.come();
        }
        some
    }

    /// Other data are loaded, or could not be.
    pub fn loading_started(&self, lock: Lock<'_>) {
        let mut state = self.state.write(lock);
        state.tail.reset();
        state.unsent = Unsent::default();
    }
}
