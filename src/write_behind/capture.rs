//! Sees what happens to keys, and puts it into the queues when the unit of commands has ended: one change for a key, with the
//! value that it has then. No Python is on this way.

use std::borrow::Cow;

use super::{
    State, WriteBehind,
    event_names::{event_name, usual_name},
    late,
    machine::{Change, Settled, Time},
    options::removes,
};
use crate::{
    engine::scope,
    read_through::keys::{ByKey, Key},
    server::{
        after, audience, events::KeyEvent, key, lock::Lock, reply::Reply, slots::slot_of, snapshot::Snapshot,
        store, string::Held,
    },
};

/// So many keys are looked for one by one.
const FEW: usize = 8;

/// Room of more bytes than that is not kept.
const LARGE: usize = 1 << 16;

/// What has happened in the unit that runs.
#[derive(Default)]
pub(super) struct Notes {
    list: Vec<Note>,
    /// Where a key stands in the list, once there are more than [`FEW`].
    places: ByKey<usize>,
    /// Somebody comes at the end of the unit.
    asked: bool,
    /// The hash whose last fields have just expired: what deletes it next is no change by itself.
    expired: Option<Key>,
    /// Who waits for what the present command changes.
    pub(super) waiter: Option<u64>,
    /// Room to work in.
    room: Vec<u8>,
}

pub(super) struct Note {
    db: i32,
    name: Held,
    event: Cow<'static, str>,
    /// Whose change it is: a bit for each sink.
    sinks: u64,
    /// Whose command changed it, if he waits for that: each is a unit of its own.
    waiter: Option<u64>,
}

impl Note {
    fn key(&self) -> Key {
        Key::new(self.db, self.name.bytes())
    }
}

impl Notes {
    fn place_of(&self, db: i32, name: &[u8]) -> Option<usize> {
        if self.list.len() <= FEW {
            let is_it = |note: &Note| note.db == db && note.name.bytes() == name;
            return self.list.iter().position(is_it);
        }
        self.places.get(db, name).copied()
    }

    fn find(&mut self, db: i32, name: &[u8]) -> Option<&mut Note> {
        let place = self.place_of(db, name)?;
        self.list.get_mut(place)
    }

    /// The unit has removed a key, as the last of what it did to it, and somebody saves that.
    pub(super) fn has_removed(&self, db: i32, name: &[u8]) -> bool {
        let note = self.place_of(db, name).and_then(|place| self.list.get(place));
        note.is_some_and(|note| note.sinks != 0 && removes(note.event.as_bytes()))
    }

    /// The unit has changed a key, and somebody saves that.
    pub(super) fn has(&self, db: i32, name: &[u8]) -> bool {
        let note = self.place_of(db, name).and_then(|place| self.list.get(place));
        note.is_some_and(|note| note.sinks != 0)
    }

    /// A key that the unit has changed is there no more: the clock stands still in a unit, so the unit itself has given it a time that
    /// has passed. That is a deletion as any other, for those who save deletions (`removing`).
    fn end(&mut self, db: i32, name: &[u8], event: &[u8], removing: u64) {
        let note = self.find(db, name).filter(|note| note.sinks & removing != 0);
        if let Some(note) = note {
            note.event = event_name(event);
            note.sinks &= removing;
        }
    }

    fn add(&mut self, note: Note) {
        if self.list.len() == FEW {
            for (place, note) in self.list.iter().enumerate() {
                self.places.insert(&note.key(), place);
            }
        }
        if self.list.len() >= FEW {
            self.places.insert(&note.key(), self.list.len());
        }
        self.list.push(note);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All keys with their events.
    pub(super) fn keys(&self) -> impl Iterator<Item = (Key, Cow<'static, str>)> {
        self.list.iter().map(|note| (note.key(), note.event.clone()))
    }

    /// A key has changed; nobody waits for that.
    pub(super) fn note(
        &mut self,
        db: i32,
        name: &[u8],
        event: Cow<'static, str>,
        sinks: u64,
        hold: impl FnOnce() -> Held,
    ) {
        if let Some(note) = self.find(db, name) {
            note.event = event;
            note.sinks |= sinks;
        } else {
            self.add(Note {
                db,
                name: hold(),
                event,
                sinks,
                waiter: None,
            });
        }
    }

    pub(super) fn take(&mut self) -> Vec<Note> {
        self.asked = false;
        self.expired = None;
        if !self.places.is_empty() {
            self.places.clear(None);
        }
        std::mem::take(&mut self.list)
    }

    /// The list that was taken, empty again: what it has allocated is of use to the next unit.
    fn give_back(&mut self, list: Vec<Note>) {
        if self.list.capacity() == 0 && list.capacity() <= FEW {
            self.list = list;
        }
    }

    pub(super) fn sinks_of(&self, waiter: u64) -> u64 {
        let theirs = self.list.iter().filter(|note| note.waiter == Some(waiter));
        theirs.fold(0, |all, note| all | note.sinks)
    }

    pub(super) fn forget_waiter(&mut self, waiter: u64) {
        for note in &mut self.list {
            note.waiter = note.waiter.filter(|other| *other != waiter);
        }
    }

    /// The number of a sink that has gone may be another one's soon.
    pub(super) fn forget_sink(&mut self, number: usize) {
        for note in &mut self.list {
            note.sinks &= !(1 << number);
        }
    }

    /// Those of a database, or all.
    fn take_of(&mut self, db: Option<i32>) -> Vec<Note> {
        let list = std::mem::take(&mut self.list);
        self.places.clear(None);
        let (theirs, others): (Vec<_>, Vec<_>) = list
            .into_iter()
            .partition(|note| db.is_none_or(|db| db == note.db));
        for note in others {
            self.add(note);
        }
        theirs
    }

    /// Two databases have changed places, with the keys that were noted in them.
    pub(super) fn swap(&mut self, first: i32, second: i32) {
        let list = std::mem::take(&mut self.list);
        self.places.clear(None);
        for mut note in list {
            if note.db == first {
                note.db = second;
            } else if note.db == second {
                note.db = first;
            }
            self.add(note);
        }
    }
}

impl WriteBehind {
    /// A glance at a key, which calls nothing of the server: most changes end here.
    pub fn concerns(&self, lock: Lock<'_>, name: &[u8]) -> bool {
        let state = self.state.read(lock);
        state.sinks.iter().any(|sink| sink.pattern.matches(name))
    }

    /// One notification of the server.
    pub fn notify(&self, event: &KeyEvent<'_>) {
        if !self.engine.is_serving() {
            let mut state = self.state.write(event.lock);
            return state.follow(event.db, event.key, event.name, || event.hold());
        }
        self.note(event.lock, event.db, event.key, event.name, || event.hold());
    }

    /// A key was to be deleted, and was not there.
    pub(super) fn note_removal(&self, lock: Lock<'_>, db: i32, name: &[u8]) {
        if self.engine.is_serving() {
            self.note(lock, db, name, b"del", || Held::of_bytes(lock, name));
        }
    }

    /// `hold`: the key, to be kept.
    fn note(&self, lock: Lock<'_>, db: i32, name: &[u8], event: &[u8], hold: impl FnOnce() -> Held) {
        let mut state = self.state.write(lock);
        let state = &mut *state;
        let expired = state.notes.expired.take();
        if event == b"hexpired" && key::is_left_empty(lock, db, name) {
            state.notes.expired = Some(Key::new(db, name));
        }
        let by_expiry = event == b"del" && expired.is_some_and(|key| key.db == db && *key.name == *name);
        let usual = usual_name(event);
        let mut sinks = 0;
        let mut waits = false;
        let mut followed = false;
        for sink in &state.sinks {
            let options = &sink.options;
            let wanted =
                || options.wants(event, usual.is_some()) && (!by_expiry || options.wants(b"hexpired", false));
            if !sink.pattern.matches(name) {
                continue;
            }
            followed |= options.may_come_late();
            if !sink.draining && wanted() {
                sinks |= 1 << sink.number;
                waits |= options.wait;
            }
        }
        let ours = || state.quiet || self.loads.is_storing(lock) || self.is_saving(state);
        let is_not_ours = !self.hooks.is_moving(lock) && !ours();
        if sinks == 0 || !is_not_ours {
            if is_not_ours && after::has_units() && (event == b"expired" || by_expiry) {
                let removing = state.removing();
                state.notes.end(db, name, event, removing);
            }
            if !state.unsent.frames.is_empty() {
                // Ahead of whatever happens to the key now.
                state.send(lock);
            }
            if followed && late::is_possible() && late::seems_plain(event) {
                state.unsent.no_change = true;
                state.notes.asked = state.notes.asked || after::at_end_of_unit(lock);
            }
            return;
        }
        let event = usual.map_or_else(|| event_name(event), Cow::Borrowed);
        let waiter = state.notes.waiter.filter(|_| waits);
        if let Some(note) = state.notes.find(db, name) {
            note.event = event;
            note.sinks |= sinks;
            note.waiter = waiter.or(note.waiter);
        } else {
            state.notes.add(Note {
                db,
                name: hold(),
                event,
                sinks,
                waiter,
            });
        }
        if !state.notes.asked {
            state.notes.asked = after::at_end_of_unit(lock);
        }
    }

    /// True while a function that saves writes by itself.
    pub(super) fn is_saving(&self, state: &State) -> bool {
        scope::acting().is_some_and(|acting| state.sinks.iter().any(|sink| sink.running == Some(acting)))
    }

    /// The command, transaction or script has ended: what it did goes into the queues, and to replicas and files.
    pub(super) fn unit_ended(&self, lock: Lock<'_>) {
        let mut state = self.state.write(lock);
        let mut notes = state.notes.take();
        let no_change = std::mem::take(&mut state.unsent.no_change);
        let split = std::mem::take(&mut state.unsent.split);
        drop(state);
        // The same transaction may have made a replica of the server.
        if !self.engine.is_serving() {
            return;
        }
        self.capture_tail(lock);
        let late = self.take_in(lock, &mut notes, false);
        self.state.write(lock).notes.give_back(notes);
        if no_change {
            self.say_no_change(lock);
        }
        let Some(late) = late else { return };
        self.hand_on(lock, late && !split);
        self.link_where_full(lock);
        self.come();
    }

    /// Puts what was noted into the queues and the frames. `None` if there was nothing; else whether it may be handed on late,
    /// and whatever waits. `only_there`: keys that are gone are left out.
    pub(super) fn take_in(&self, lock: Lock<'_>, notes: &mut Vec<Note>, only_there: bool) -> Option<bool> {
        if notes.is_empty() {
            return None;
        }
        let mut room = std::mem::take(&mut self.state.write(lock).notes.room);
        // One look at a clock in each turn of the loop: it costs more than the queue.
        let now = *self.state.write(lock).turn.get_or_insert_with(|| self.now());
        let now_ms = u64::try_from(key::command_ms(lock)).unwrap_or(0);
        let told = audience::is_there(lock);
        let mut late = late::is_possible();
        let mut waiters: Vec<u64> = Vec::new();
        for note in notes.drain(..) {
            waiters.extend(note.waiter);
            let (payload, stays) = Snapshot::take(lock, note.db, &note.name, &mut room);
            let mut sinks = note.sinks;
            if payload.is_gone() && !removes(note.event.as_bytes()) {
                // A hash whose last fields have expired is there, and what was done to it has left nothing in it.
                sinks &= if payload.is_emptied() {
                    self.state.read(lock).removing()
                } else {
                    0
                };
            }
            if payload.is_gone() && (only_there || sinks == 0) {
                // The cache has forgotten it since; that is no deletion.
                late = false;
                continue;
            }
            let key = note.key();
            if payload.is_gone() && self.has_lost_slot(lock, &key) {
                late = false;
                continue;
            }
            late &= stays && late::is_plain(note.event.as_bytes());
            let mut state = self.state.write(lock);
            let id = state.ids.next(now_ms);
            let change = Change {
                id,
                key,
                event: note.event,
                size: payload.as_bytes().len(),
                payload,
            };
            late &= state.enqueue(now, change, sinks, note.waiter, told);
        }
        let mut state = self.state.write(lock);
        if room.capacity() <= LARGE {
            state.notes.room = room;
        }
        drop(state);
        self.let_free(lock, waiters);
        Some(late)
    }

    /// True if the key's slot belongs to another shard by now: what the server takes away for that is there.
    fn has_lost_slot(&self, lock: Lock<'_>, key: &Key) -> bool {
        let features = self.engine.features;
        if store::is_local(lock, features, key.db, &key.name) {
            return false;
        }
        let redirection = store::redirection(lock, features, slot_of(&key.name));
        matches!(redirection, Reply::Error(text) if text.starts_with(b"MOVED"))
    }

    /// Whoever waits for no change after all has his reply.
    fn let_free(&self, lock: Lock<'_>, waiters: Vec<u64>) {
        for number in waiters {
            let mut state = self.state.write(lock);
            if state.waiters.open(number) > 0 || state.waiters.settle(number, Settled::Saved).is_none() {
                continue;
            }
            let waits = state.waiting.remove(&number);
            drop(state);
            if let Some(waits) = waits {
                waits.saved();
            }
        }
    }

    /// All keys of a database will be gone, or of all, or are: a cache that forgets deletes nothing. What the unit that runs has done
    /// before is as if it had ended.
    pub fn flushed(&self, lock: Lock<'_>, db: Option<i32>) {
        let mut notes = self.state.write(lock).notes.take_of(db);
        if self.engine.is_serving() {
            self.take_in(lock, &mut notes, false);
        }
        self.flush_before(lock);
    }

    /// Two databases have changed places: what the unit that runs has done before is found in the other one. Whoever follows has
    /// noted that of a unit, too.
    pub fn swapped(&self, lock: Lock<'_>, first: i32, second: i32) {
        self.flush_before(lock);
        let mut state = self.state.write(lock);
        state.notes.swap(first, second);
        state.tail.notes.swap(first, second);
    }
}

impl State {
    /// Those who save deletions.
    fn removing(&self) -> u64 {
        let theirs = self.sinks.iter().filter(|sink| sink.options.wants_removals());
        theirs.fold(0, |all, sink| all | sink.bit())
    }

    /// Puts a change into the queues of these sinks, and into the frames if somebody is to be `told`. True if all of them let it be
    /// told late.
    fn enqueue(
        &mut self,
        now: Time,
        change: Change<Snapshot>,
        sinks: u64,
        waiter: Option<u64>,
        told: bool,
    ) -> bool {
        let mut late = true;
        let mut left = sinks;
        let mut change = Some(change);
        for sink in &mut self.sinks {
            let bit = 1 << sink.number;
            if left & bit == 0 {
                continue;
            }
            left &= !bit;
            // The last one gets it without a copy.
            let theirs = if left == 0 { change.take() } else { change.clone() };
            let Some(change) = theirs else { return late };
            late &= sink.options.may_come_late();
            if told {
                self.unsent.frames.change(&sink.options.prefix, &change);
            }
            let waiter = waiter.filter(|_| sink.options.wait);
            if let Some(waiter) = waiter {
                self.waiters.expect(waiter);
                let key = &change.key;
                sink.queue
                    .forget_waiters(key.db, &key.name, |number| self.waiters.knows(number));
            }
            sink.queue.add(now, change, waiter);
        }
        late
    }
}
