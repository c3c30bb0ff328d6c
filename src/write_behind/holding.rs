//! Clients that wait: for room before their command runs (back-pressure), and behind it until its change is saved
//! (write-through).

use super::{Sink, State, WriteBehind, options::OnFull};
use crate::{
    hooks::{Wait, Writes},
    read_through::{Newest, Unsaved, options::seconds},
    server::{
        call_reply::CallReply,
        client::BlockedClient,
        command::Command,
        lock::Lock,
        reply::Reply,
        waiting::{Awaited, Note, Waiting, WaitingClient},
    },
};

/// A client whose change is not saved yet.
pub(super) struct Waits {
    pub(super) client: BlockedClient,
    /// What its command has replied.
    pub(super) reply: Reply,
    /// Whose queues the change is in.
    pub(super) sinks: u64,
}

/// A client whose command has not run yet.
pub(super) struct Held {
    client: WaitingClient,
    /// The queues that were full.
    sinks: u64,
}

/// What a client is let in with: the queues that expect its change.
struct LetIn(u64);

impl Sink {
    fn has(&self, name: &[u8]) -> bool {
        !self.draining && self.pattern.matches(name)
    }

    /// There is no room for a change of the key.
    fn refuses(&self, db: i32, name: &[u8]) -> bool {
        self.has(name) && self.queue.is_full() && !self.queue.replaces(db, name)
    }

    /// There is room for one more, beside those that were let in.
    fn has_room(&self) -> bool {
        let limits = &self.queue.limits;
        !self.queue.is_full() && self.queue.len() + self.expected < limits.max_entries
    }

    fn bit(&self) -> u64 {
        1 << self.number
    }
}

impl State {
    fn full_for(&self, db: i32, keys: &[&[u8]]) -> u64 {
        let full = |sink: &&Sink| keys.iter().any(|name| sink.refuses(db, name));
        self.sinks
            .iter()
            .filter(full)
            .fold(0, |all, sink| all | sink.bit())
    }

    fn of(&self, sinks: u64) -> impl Iterator<Item = &Sink> {
        self.sinks.iter().filter(move |sink| sinks & sink.bit() != 0)
    }
}

impl Writes for WriteBehind {
    fn removed(&self, lock: Lock<'_>, db: i32, name: &[u8]) {
        self.note_removal(lock, db, name);
    }

    fn is_any(&self, lock: Lock<'_>) -> bool {
        !self.state.read(lock).sinks.is_empty()
    }

    fn saves(&self, lock: Lock<'_>, name: &[u8]) -> bool {
        self.concerns(lock, name) && !self.is_saving(&self.state.read(lock))
    }

    fn minds_write(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> bool {
        let state = self.state.read(lock);
        let minds = |sink: &Sink| sink.has(name) && (sink.options.wait || sink.refuses(db, name));
        state.sinks.iter().any(minds)
    }

    fn before(&self, command: &Command<'_>, keys: &[&[u8]]) -> Wait {
        if !self.engine.is_serving() {
            return Wait::No;
        }
        let lock = command.lock();
        let mut state = self.state.write(lock);
        let full = state.full_for(command.db(), keys);
        if full == 0 {
            return Wait::No;
        }
        let refusing = state.of(full).find(|sink| sink.options.on_full == OnFull::Error);
        if let Some(sink) = refusing {
            let text = format!(
                "QUEUEFULL {} changes of '{}' are not saved yet",
                sink.queue.len(),
                sink.options.prefix
            );
            state.count_refusal(full);
            return Wait::Refused(Reply::error(text).into());
        }
        if !command.may_block() || !command.has_client() {
            return Wait::No;
        }
        drop(state);
        let Some(client) = command.wait(Awaited::Room) else {
            return Wait::No;
        };
        let mut state = self.state.write(lock);
        state.held.push_back(Held { client, sinks: full });
        for sink in state.sinks.iter_mut().filter(|sink| full & sink.bit() != 0) {
            sink.figures.held += 1;
        }
        drop(state);
        self.come();
        Wait::Waits
    }

    fn begin(&self, command: &Command<'_>, keys: &[&[u8]]) -> Option<u64> {
        if !self.engine.is_serving() || !command.may_block() || !command.has_client() {
            return None;
        }
        let mut state = self.state.write(command.lock());
        let waits = |sink: &&Sink| sink.options.wait && keys.iter().any(|name| sink.has(name));
        let theirs = state.sinks.iter().filter(waits);
        let timeout = theirs.map(|sink| seconds(sink.options.timeout)).min()?;
        let number = state.waiters.add(self.now().saturating_add(timeout));
        state.notes.waiter = Some(number);
        Some(number)
    }

    fn cancel(&self, lock: Lock<'_>, number: u64) {
        let mut state = self.state.write(lock);
        state.notes.waiter = None;
        state.notes.forget_waiter(number);
        state.waiters.forget(number);
    }

    fn end(&self, command: &Command<'_>, number: u64, reply: CallReply) -> Option<CallReply> {
        let lock = command.lock();
        let mut state = self.state.write(lock);
        state.notes.waiter = None;
        let noted = state.notes.sinks_of(number);
        let waits = !reply.is_error() && (noted != 0 || state.waiters.open(number) > 0);
        drop(state);
        let client = if waits { command.block().ok() } else { None };
        let Some(client) = client else {
            self.cancel(lock, number);
            return Some(reply);
        };
        let waits = Waits {
            client,
            reply: reply.into_reply(),
            sinks: if noted == 0 { u64::MAX } else { noted },
        };
        self.state.write(lock).waiting.insert(number, waits);
        self.come();
        None
    }
}

impl Unsaved for WriteBehind {
    fn unsaved(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> Option<Newest> {
        let state = self.state.read(lock);
        if state.sinks.is_empty() {
            return None;
        }
        if state.notes.has_removed(db, name) {
            return Some(Newest::Gone);
        }
        let newest = state.sinks.iter().filter_map(|sink| sink.queue.newest(db, name));
        let newest = newest.max_by_key(|change| change.id)?;
        Some(newest.payload.content().map_or(Newest::Gone, Newest::Value))
    }
}

impl WriteBehind {
    /// Lets those in for whose changes there is room, in their order.
    pub(super) fn let_in(&self, lock: Lock<'_>) {
        let mut state = self.state.write(lock);
        if state.held.is_empty() {
            return;
        }
        let held = std::mem::take(&mut state.held);
        let mut going = Vec::new();
        for held in held {
            if state.of(held.sinks).all(Sink::has_room) {
                for sink in state.sinks.iter_mut().filter(|sink| held.sinks & sink.bit() != 0) {
                    sink.expected += 1;
                }
                going.push(held);
            } else {
                state.held.push_back(held);
            }
        }
        drop(state);
        for held in going {
            let more = Box::new(LetIn(held.sinks));
            held.client.let_go(lock, Note { reply: None, more });
        }
    }

    /// Lets all go: the server says to each why it runs its command no more.
    pub(super) fn let_all_in(&self, lock: Lock<'_>) {
        let held = std::mem::take(&mut self.state.write(lock).held);
        for held in held {
            let more = Box::new(LetIn(0));
            held.client.let_go(lock, Note { reply: None, more });
        }
    }

    /// Commands that write pass the filter from now on where a queue is full, or their clients are to wait.
    pub(super) fn link_where_full(&self, lock: Lock<'_>) {
        let state = self.state.read(lock);
        let wants = |sink: &&Sink| !sink.linked && (sink.options.wait || sink.queue.is_full());
        let wanting: Vec<_> = state.sinks.iter().filter(wants).map(|sink| sink.token).collect();
        drop(state);
        for token in wanting {
            let known = self.state.read(lock).writers.clone();
            let writers = known.unwrap_or_else(|| self.hooks.look_up_writers(lock));
            let mut state = self.state.write(lock);
            state.writers = Some(writers.clone());
            let Some(sink) = state.token(token) else { continue };
            sink.linked = true;
            let (registration, pattern) = (sink.owner.id, sink.pattern.clone());
            drop(state);
            self.hooks.link_writes(lock, registration, writers, &pattern);
        }
    }

    /// The reverse, when there is some room again.
    pub(super) fn unlink_where_not_full(&self, lock: Lock<'_>) {
        let mut state = self.state.write(lock);
        let mut done = Vec::new();
        for sink in state
            .sinks
            .iter_mut()
            .filter(|sink| sink.linked && !sink.options.wait)
        {
            let limits = &sink.queue.limits;
            let roomy = sink.queue.len() < limits.max_entries - limits.max_entries / 8
                && sink.queue.bytes() < limits.max_bytes - limits.max_bytes / 8;
            if roomy {
                sink.linked = false;
                done.push(sink.owner.id);
            }
        }
        drop(state);
        for registration in done {
            self.hooks.unlink_writes(lock, registration);
        }
    }
}

impl State {
    fn count_refusal(&mut self, sinks: u64) {
        for sink in self.sinks.iter_mut().filter(|sink| sinks & sink.bit() != 0) {
            sink.figures.refused += 1;
        }
    }
}

impl Waiting for WriteBehind {
    fn answer(&self, command: &Command<'_>, _note: Option<&Note>) {
        if self.hooks.is_paused_meanwhile(command) {
            return;
        }
        if !self.engine.is_serving() || !self.hooks.is_forgotten_meanwhile(command, |_| false) {
            self.hooks.answer_awaited(command);
        }
    }

    fn gone(&self, lock: Lock<'_>, address: usize) {
        let mut state = self.state.write(lock);
        let place = state
            .held
            .iter()
            .position(|held| held.client.address() == address);
        let held = place.and_then(|place| state.held.remove(place));
        drop(state);
        if let Some(held) = held {
            held.client.forget(lock);
        }
    }

    fn answered(&self, lock: Lock<'_>, note: Note) {
        let Ok(let_in) = note.more.downcast::<LetIn>() else {
            return;
        };
        let mut state = self.state.write(lock);
        for sink in state.sinks.iter_mut().filter(|sink| let_in.0 & sink.bit() != 0) {
            sink.expected = sink.expected.saturating_sub(1);
        }
        drop(state);
        self.come();
    }
}
