//! Lets clients go that have waited, a slice of them in each turn of the server's loop, and answers them: the server calls
//! back with the client's own arguments.

use std::{cell::Cell, time::Duration};

use super::{
    Key, Leave, Lifetime, Loaded, ReadThrough, State, Who,
    machine::{Keys, NoValue, Purpose},
    options::OnError,
    pump::Place,
};
use crate::{
    clock::Instant,
    engine::id::Id,
    hooks::{self, Block},
    server::{
        command::Command,
        key::{self, Life},
        lock::Lock,
        reply::Reply,
        room,
        slots::slot_of,
        store,
        waiting::{Note, Waiting},
    },
};

/// How long answering may hold the server up in one turn of its loop.
const SLICE: Duration = Duration::from_millis(2);
const FIRST: usize = 32;
const FEWEST: usize = 1;
const MOST: usize = 4096;

/// How many clients are let go at a time.
pub(super) struct Pace {
    slice: usize,
    let_go: usize,
    spent: Duration,
    /// What they take is measured.
    is_measured: bool,
    /// How many slices there were.
    pub(super) slices: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            slice: FIRST,
            let_go: 0,
            spent: Duration::ZERO,
            is_measured: false,
            slices: 0,
        }
    }
}

impl Pace {
    /// How many of those who leave may go now, by what the last ones took.
    fn next(&mut self, leaving: usize) -> usize {
        if self.is_measured && self.let_go > 0 {
            let each = self.spent.as_secs_f64() / self.let_go as f64;
            let fit = SLICE.as_secs_f64() / each.max(1e-7);
            // By and by: one client may be far from the next.
            self.slice = (fit as usize).min(self.slice * 2).clamp(FEWEST, MOST);
        } else {
            // What comes after a rest may be something else.
            self.slice = self.slice.min(FIRST);
        }
        (self.let_go, self.spent) = (0, Duration::ZERO);
        // One alone holds nobody up who comes with him: two reads of the clock would be for nothing.
        self.is_measured = leaving > 1;
        self.slice.min(leaving)
    }
}

/// Why somebody's command does not run although all is decided.
enum Hindrance {
    /// He waits for another load.
    WaitsAgain,
    /// Another node serves his key: what he hears.
    Elsewhere(Reply),
}

/// What a client is let go with.
struct Awaited {
    /// Keys with a value at hand.
    keys: Keys,
    /// Its command writes.
    writes: bool,
    /// Its keys were given up as it was answered.
    is_through: Cell<bool>,
}

/// What was put back for a command.
#[derive(Default)]
struct Provided<'a> {
    /// What is to be taken away after it.
    guests: Vec<&'a Key>,
    /// A value found no room that the command was to change.
    lacks_room: bool,
}

impl ReadThrough {
    /// Lets the next ones go. While clients are paused only those whose command is not run; commands that are run before their client is
    /// let go are run on the server's thread.
    pub(super) fn let_go(&self, lock: Lock<'_>, paused: bool, place: Place) {
        let slice = {
            let mut state = self.state.write(lock);
            let leaving = state.leaving.len();
            state.pace.next(leaving)
        };
        if slice > 0 {
            self.state.write(lock).pace.slices += 1;
        }
        for _ in 0..slice {
            let next = self.state.write(lock).leaving.pop_front();
            let Some((number, leave)) = next else { break };
            match leave {
                Leave::Reply(reply) => self.let_one_go(lock, number, Some(reply), place),
                leave if paused || (place == Place::Worker && self.runs_before(lock, number)) => {
                    self.state.write(lock).leaving.push_back((number, leave));
                }
                Leave::Served => match self.hindrance(lock, number) {
                    None => self.let_one_go(lock, number, None, place),
                    Some(Hindrance::WaitsAgain) => {}
                    Some(Hindrance::Elsewhere(reply)) => self.let_one_go(lock, number, Some(reply), place),
                },
                Leave::Plain => self.let_one_go(lock, number, None, place),
            }
        }
        if !paused && !self.state.read(lock).leaving.is_empty() {
            self.wake();
        }
    }

    /// Whether the command of somebody who leaves is run before he is let go.
    fn runs_before(&self, lock: Lock<'_>, number: u64) -> bool {
        let state = self.state.read(lock);
        matches!(state.clients.get(&number), Some(Who::Client(client)) if client.is_to_wait_again())
    }

    /// What speaks against running a command now: a value for which somebody waited is gone, and may not be put back.
    fn hindrance(&self, lock: Lock<'_>, number: u64) -> Option<Hindrance> {
        let keys = self.state.read(lock).machine.lost_keys(number);
        let mut gone = Vec::new();
        for (key, may_load) in keys {
            if key::life(lock, key.db, &key.name) != Life::Missing {
                continue;
            }
            if !store::is_local(lock, self.engine.features, key.db, &key.name) {
                // Decided now: when the command runs the key may be served here again, and nothing is there.
                let slot = slot_of(&key.name);
                return Some(Hindrance::Elsewhere(store::redirection(
                    lock,
                    self.engine.features,
                    slot,
                )));
            }
            if may_load {
                gone.push(key);
            }
        }
        if gone.is_empty() || !self.engine.is_serving() {
            return None;
        }
        let now = self.now();
        let asks = self.asks_for(lock, now, &gone);
        if asks.is_empty() {
            return None;
        }
        self.state.write(lock).machine.ask_again(now, number, &asks);
        Some(Hindrance::WaitsAgain)
    }

    fn let_one_go(&self, lock: Lock<'_>, number: u64, reply: Option<Reply>, place: Place) {
        let mut state = self.state.write(lock);
        let Some((keys, purpose)) = state.machine.release(number) else {
            return;
        };
        let Some(who) = state.clients.remove(&number) else {
            return;
        };
        if let Who::Client(client) = &who {
            state.numbers.remove(&(client.address() as u64));
        }
        state.pace.let_go += 1;
        drop(state);
        let (reply, writes) = match purpose {
            Purpose::Command { writes } => (reply, writes),
            Purpose::Refresh(count) => {
                let count = Reply::Int(i64::try_from(count).unwrap_or(i64::MAX));
                (Some(reply.unwrap_or(count)), false)
            }
        };
        match who {
            Who::Client(client) if reply.is_none() && client.is_to_wait_again() => {
                let awaited = Awaited {
                    keys,
                    writes,
                    is_through: Cell::new(true),
                };
                client.run(lock, |command, block| {
                    let answer = self.serve(command, Some(&awaited), Some(block));
                    answer.map(hooks::Awaited::into_reply)
                });
                self.replied(lock, &awaited.keys);
            }
            Who::Client(client) => {
                let note = Note {
                    reply,
                    more: Box::new(Awaited {
                        keys,
                        writes,
                        is_through: Cell::new(false),
                    }),
                };
                match place {
                    Place::Server => client.let_go(note),
                    Place::Worker => self.state.write(lock).departing.push((client, note)),
                }
            }
            Who::Told(told) => {
                told(reply.unwrap_or(Reply::Null));
                self.replied(lock, &keys);
            }
        }
    }

    /// Nobody waits for these keys behind this reply any more: whoever watches or caches them hears of what was loaded.
    pub(super) fn replied(&self, lock: Lock<'_>, keys: &[Key]) {
        for key in keys {
            if self.state.write(lock).machine.replied(key) {
                store::signal_modified(lock, key.db, &key.name);
            }
        }
    }

    /// The same for a command of one key, which has its name at hand.
    fn replied_in_place(&self, command: &Command<'_>, awaited: &Awaited) {
        let [key] = awaited.keys.as_slice() else { return };
        awaited.is_through.set(true);
        if self.state.write(command.lock()).machine.replied(key) {
            store::signal_modified_of(command, key.db, &key.name);
        }
    }

    /// Puts back the values that the command waited for and that are gone.
    fn provide<'a>(&self, lock: Lock<'_>, awaited: &'a Awaited) -> Provided<'a> {
        let mut provided = Provided::default();
        let now_ms = key::now_ms(lock);
        for key in &awaited.keys {
            if self.state.read(lock).machine.holds(key, now_ms) {
                continue;
            }
            // A value that is kept for no reader is kept for a writer, in the place of a stale one, too.
            let is_outdated = || awaited.writes && self.state.read(lock).machine.is_outdated(key);
            if key::life(lock, key.db, &key.name) != Life::Missing && !is_outdated() {
                continue;
            }
            let state = self.state.read(lock);
            // Of what is void nothing may be made that is saved.
            let is_saved = || awaited.writes && self.hooks.saves_write(lock, &key.name);
            let landed = state.machine.landed(key);
            let landed = landed.filter(|landed| !landed.void || !is_saved());
            let loaded = landed.and_then(|landed| landed.value.clone());
            let rule = awaited.writes.then(|| state.served_for(&key.name)).flatten();
            drop(state);
            let Some(loaded) = loaded else { continue };
            let Some(content) = &loaded.content else { continue };
            if let Some(rule) = rule {
                let kept = Loaded {
                    lifetime: match loaded.lifetime {
                        Lifetime::NotKept => Lifetime::Default,
                        other => other,
                    },
                    ..Loaded::clone(&loaded)
                };
                provided.lacks_room |=
                    !self.store(lock, rule, key, &kept, None) && !store::has_room(lock, self.engine.features);
                continue;
            }
            self.quietly(lock, || {
                // Others would keep it, since they do not hear of the guest.
                store::delete_emptied(lock, key.db, &key.name);
                store::put_quietly(lock, key.db, &key.name, content);
            });
            provided.guests.push(key);
        }
        provided
    }
}

impl ReadThrough {
    /// Runs the command of a client that has waited, with the values for which it did. `None`: it waits behind that, too, which
    /// `block` has made it do.
    fn serve(
        &self,
        command: &Command<'_>,
        awaited: Option<&Awaited>,
        block: Option<Block<'_>>,
    ) -> Option<hooks::Awaited> {
        if let Some(refusal) = self.hooks.refuse_paused(command) {
            return Some(hooks::Awaited::Told(refusal));
        }
        let lock = command.lock();
        let writes = awaited.is_none_or(|awaited| awaited.writes);
        let no_room = awaited
            .filter(|awaited| awaited.writes)
            .and_then(|_| self.hooks.refuse_without_room(command));
        if let Some(refusal) = no_room {
            return Some(hooks::Awaited::Told(refusal));
        }
        let provided = awaited
            .map(|awaited| self.provide(lock, awaited))
            .unwrap_or_default();
        if provided.lacks_room {
            return Some(hooks::Awaited::Told(room::no_room()));
        }
        if let Some(awaited) = awaited.filter(|awaited| awaited.writes && self.engine.is_serving()) {
            let known = |name: &[u8], is_there: bool| {
                let state = self.state.read(lock);
                let mut keys = awaited.keys.iter().filter(|key| *key.name == *name);
                keys.any(|key| {
                    let landed = state.machine.landed(key).filter(|landed| !landed.void);
                    landed.is_some_and(|landed| {
                        let value = landed.value.as_ref();
                        is_there || value.is_none_or(|loaded| loaded.content.is_none())
                    })
                })
            };
            let mut keys = awaited.keys.iter();
            let is_outdated = keys.any(|key| {
                let is_outdated = self.state.read(lock).machine.is_outdated(key);
                is_outdated && key::life(lock, key.db, &key.name) != Life::Missing
            });
            let refusal = is_outdated.then(hooks::forgotten_meanwhile);
            if let Some(refusal) = refusal.or_else(|| self.hooks.refuse_forgotten(command, known)) {
                return Some(hooks::Awaited::Told(refusal));
            }
        }
        let answer = self.hooks.run_awaited(command, writes, block);
        for key in provided.guests {
            self.quietly(lock, || store::take_quietly(lock, key.db, &key.name));
        }
        answer
    }
}

impl Waiting for ReadThrough {
    fn answer(&self, command: &Command<'_>, note: Option<&Note>) {
        if let Some(reply) = note.and_then(|note| note.reply.as_ref()) {
            command.send(reply);
            return;
        }
        let lock = command.lock();
        let begun = self.state.read(lock).pace.is_measured.then(Instant::now);
        let awaited = note.and_then(|note| note.more.downcast_ref::<Awaited>());
        if let Some(answer) = self.serve(command, awaited, None) {
            answer.send(command);
        }
        if let Some(awaited) = awaited {
            self.replied_in_place(command, awaited);
        }
        if let Some(begun) = begun {
            self.state.write(lock).pace.spent += begun.elapsed();
        }
    }

    fn gone(&self, lock: Lock<'_>, address: usize) {
        let mut state = self.state.write(lock);
        let Some(number) = state.numbers.remove(&(address as u64)) else {
            return;
        };
        let client = state.clients.remove(&number);
        let released = state.machine.release(number);
        drop(state);
        if let Some((keys, _)) = released {
            self.replied(lock, &keys);
        }
        if let Some(Who::Client(client)) = client {
            client.forget(lock);
        }
    }

    fn answered(&self, lock: Lock<'_>, note: Note) {
        if let Ok(awaited) = note.more.downcast::<Awaited>() {
            if !awaited.is_through.get() {
                self.replied(lock, &awaited.keys);
            }
        }
    }
}

impl State {
    /// What somebody gets who gets no value; `None`: the command's own reply.
    pub(super) fn refusal(&self, rule: Id, why: &NoValue, writes: bool) -> Option<Reply> {
        let on_error = self
            .served
            .get(rule)
            .map_or(OnError::Error, |served| served.options.on_error);
        match on_error {
            OnError::Miss if !writes => None,
            _ => Some(why.clone().into()),
        }
    }
}

impl From<NoValue> for Reply {
    fn from(why: NoValue) -> Self {
        Self::error(format!("LOADFAILED {}", why.kind()))
    }
}
