//! Clients that wait: for room before their command runs (back-pressure), and behind it until its change is saved
//! (write-through).

use std::{collections::VecDeque, sync::Arc};

use super::{
    Sink, State, WriteBehind,
    machine::{Queue, Time},
    options::OnFull,
    pump::save_failed,
};
use crate::{
    engine::linked_command::LinkedCommand,
    hooks::{self, Awaiting, Block, Place, Wait, Writes},
    read_through::{Newest, Unsaved, options::seconds},
    server::{
        call_reply::CallReply,
        client::{BlockedClient, WatchedClient},
        command::Command,
        lock::Lock,
        reply::Reply,
        waiting::{Awaited, Note, Waiting},
    },
};

/// A client whose change is not saved yet.
pub(super) struct Waits {
    pub(super) client: WatchedClient,
    /// What its command has replied.
    pub(super) reply: Reply,
    /// Whose queues the change is in.
    pub(super) sinks: u64,
    /// Functions to which the command is linked: when the change is saved they have their say.
    link: Option<Arc<LinkedCommand>>,
}

impl Waits {
    /// The change is saved: the client gets its reply, or what functions make of that.
    pub(super) fn saved(self) {
        match self.link {
            Some(link) => link.wait(self.client.blocked(), self.reply),
            None => self.client.answer(self.reply),
        }
    }

    /// It is not, and the client hears that whatever functions say.
    pub(super) fn lost(self, kind: &str) {
        if let Some(link) = self.link {
            // Nobody overrides a reply that is sent.
            let _ = link.close();
        }
        self.client.answer(save_failed(kind));
    }
}

/// A client whose command has not run yet.
pub(super) struct Held {
    client: Awaiting,
    /// The queues that were full.
    sinks: u64,
    /// It waits no longer than that.
    deadline: Option<Time>,
    /// What its command changes, each in its database.
    keys: Vec<(i32, Box<[u8]>)>,
}

impl Held {
    /// There is a change of each key in its queue that this one would replace.
    fn replaces(&self, sink: &Sink) -> bool {
        self.keys.iter().all(|(db, name)| !sink.refuses(*db, name))
    }

    /// It waits for room in this queue, and would change this key.
    pub(super) fn waits_for(&self, sink: &Sink, db: i32, name: &[u8]) -> bool {
        let mut keys = self.keys.iter();
        self.sinks & sink.bit() != 0 && keys.any(|(own, key)| *own == db && **key == *name)
    }
}

/// Among so many clients that wait nobody looks for those that are gone.
const FEW_WAITING: usize = 64;

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

    pub(super) fn bit(&self) -> u64 {
        1 << self.number
    }

    /// What a client gets whose change has no room.
    fn queue_full(&self) -> Reply {
        let (queued, prefix) = (self.queue.len(), &self.options.prefix);
        Reply::error(format!(
            "QUEUEFULL {queued} changes of '{prefix}' are not saved yet"
        ))
    }
}

impl State {
    fn full_for(&self, keys: &[Place<'_>]) -> u64 {
        let full = |sink: &&Sink| keys.iter().any(|&(db, name)| sink.refuses(db, name));
        self.sinks
            .iter()
            .filter(full)
            .fold(0, |all, sink| all | sink.bit())
    }

    /// Those whose clients wait behind commands that change one of the keys.
    fn holding(&self, keys: &[Place<'_>]) -> impl Iterator<Item = &Sink> {
        let holds = |sink: &&Sink| sink.options.wait && keys.iter().any(|(_, name)| sink.has(name));
        self.sinks.iter().filter(holds)
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

    fn before(&self, command: &Command<'_>, keys: &[Place<'_>]) -> Wait {
        if !self.engine.is_serving() {
            return Wait::No;
        }
        let lock = command.lock();
        let mut state = self.state.write(lock);
        let full = state.full_for(keys);
        // What is not captured needs no room.
        if full == 0 || state.quiet || self.is_saving(&state) {
            return Wait::No;
        }
        let refusing = state.of(full).find(|sink| sink.options.on_full == OnFull::Error);
        if let Some(sink) = refusing {
            let reply = sink.queue_full();
            state.count_refusal(full);
            return Wait::Refused(reply.into());
        }
        if !command.may_block() || !command.has_client() {
            return Wait::No;
        }
        drop(state);
        let Some(client) = self.hooks.block(command, Awaited::Room, true) else {
            return Wait::No;
        };
        let mut state = self.state.write(lock);
        let now = self.now();
        let limits = state.of(full).filter_map(|sink| sink.options.full_timeout);
        let deadline = limits.map(|limit| now.saturating_add(seconds(limit))).min();
        state.held_until = state.held_until.into_iter().chain(deadline).min();
        state.held.push_back(Held {
            client,
            sinks: full,
            deadline,
            keys: keys.iter().map(|&(db, name)| (db, name.into())).collect(),
        });
        for sink in state.sinks.iter_mut().filter(|sink| full & sink.bit() != 0) {
            sink.figures.held += 1;
        }
        drop(state);
        self.come();
        Wait::Waits
    }

    fn holds(&self, lock: Lock<'_>, keys: &[Place<'_>]) -> bool {
        self.state.read(lock).holding(keys).next().is_some()
    }

    fn begin(&self, lock: Lock<'_>, keys: &[Place<'_>]) -> Option<u64> {
        if !self.engine.is_serving() {
            return None;
        }
        let mut state = self.state.write(lock);
        let theirs = state.holding(keys);
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

    fn end(
        &self,
        lock: Lock<'_>,
        number: u64,
        reply: CallReply,
        link: Option<&Arc<LinkedCommand>>,
        block: &mut dyn FnMut() -> Option<BlockedClient>,
    ) -> Option<CallReply> {
        let mut state = self.state.write(lock);
        state.notes.waiter = None;
        let noted = state.notes.sinks_of(number);
        let waits = !reply.is_error() && (noted != 0 || state.waiters.open(number) > 0);
        drop(state);
        let client = if waits { block() } else { None };
        let Some(client) = client else {
            self.cancel(lock, number);
            return Some(reply);
        };
        let waits = Waits {
            client: client.watched(lock),
            reply: reply.into_reply(),
            sinks: if noted == 0 { u64::MAX } else { noted },
            link: link.map(Arc::clone),
        };
        let mut state = self.state.write(lock);
        state.forget_gone();
        state.waiting.insert(number, waits);
        drop(state);
        self.come();
        None
    }

    fn end_unit(&self, lock: Lock<'_>) {
        self.unit_ended(lock);
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

    fn is_changed(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> bool {
        let state = self.state.read(lock);
        let mut queues = state.sinks.iter().map(|sink| &sink.queue);
        state.notes.has(db, name) || queues.any(|queue| queue.newest(db, name).is_some())
    }

    fn concerns(&self, lock: Lock<'_>, name: &[u8]) -> bool {
        WriteBehind::concerns(self, lock, name)
    }

    fn newest_ms(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> Option<u64> {
        let state = self.state.read(lock);
        if state.notes.has(db, name) {
            return Some(u64::MAX);
        }
        let newest = state.sinks.iter().filter_map(|sink| sink.queue.newest(db, name));
        newest.map(|change| change.id.ms).max()
    }

    fn show_all(&self, lock: Lock<'_>, most: usize, show: &mut dyn FnMut(&[u8], u64)) -> bool {
        let state = self.state.read(lock);
        let queues = || state.sinks.iter().map(|sink| &sink.queue);
        if queues().map(Queue::len).sum::<usize>() > most {
            return false;
        }
        for change in queues().flat_map(Queue::changes) {
            show(&change.key.name, change.id.ms);
        }
        true
    }
}

impl WriteBehind {
    /// Lets those in for whose changes there is room, in their order. Behind a call that has failed also those who replace what it had.
    pub(super) fn let_in(&self, lock: Lock<'_>) {
        let mut state = self.state.write(lock);
        if state.held.is_empty() {
            return;
        }
        let may_replace = std::mem::take(&mut state.may_replace);
        let held = std::mem::take(&mut state.held);
        let mut going = Vec::new();
        for held in held {
            let fits = |sink: &Sink| sink.has_room() || (may_replace && held.replaces(sink));
            if state.of(held.sinks).all(fits) {
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
            if held.client.is_to_wait_again() {
                held.client.run(lock, |command, block| {
                    self.serve(command, Some(block)).map(hooks::Awaited::into_reply)
                });
                self.let_in_no_more(lock, &LetIn(held.sinks));
            } else {
                let more = Box::new(LetIn(held.sinks));
                held.client.let_go(Note { reply: None, more });
            }
        }
    }

    /// Runs the command of a client that has waited. `None`: it waits behind that, too, which `block` has made it do.
    fn serve(&self, command: &Command<'_>, block: Option<Block<'_>>) -> Option<hooks::Awaited> {
        let mut refusal = self.hooks.refuse_paused(command);
        refusal = refusal.or_else(|| self.hooks.refuse_without_room(command));
        if refusal.is_none() && self.engine.is_serving() {
            refusal = self.hooks.refuse_forgotten(command, |_, _| false);
        }
        match refusal {
            Some(refusal) => Some(hooks::Awaited::Told(refusal)),
            None => self.hooks.run_awaited(command, true, block),
        }
    }

    /// The command of one who was let in has run.
    fn let_in_no_more(&self, lock: Lock<'_>, let_in: &LetIn) {
        let mut state = self.state.write(lock);
        for sink in state.sinks.iter_mut().filter(|sink| let_in.0 & sink.bit() != 0) {
            sink.expected = sink.expected.saturating_sub(1);
        }
        drop(state);
        self.come();
    }

    /// Refuses the commands of those who have waited for room for as long as they may (`full_timeout`).
    pub(super) fn refuse_overdue(&self, lock: Lock<'_>, now: Time) {
        let mut state = self.state.write(lock);
        if state.held_until.is_none_or(|until| now < until) {
            return;
        }
        let is_over = |held: &Held| held.deadline.is_some_and(|deadline| deadline <= now);
        let (over, held): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut state.held).into_iter().partition(is_over);
        state.held = held;
        state.held_until = state.held.iter().filter_map(|held| held.deadline).min();
        let mut going = Vec::with_capacity(over.len());
        for held in over {
            let full = state.of(held.sinks).find(|sink| !sink.has_room());
            let reply = full.or_else(|| state.of(held.sinks).next()).map(Sink::queue_full);
            // Its queues may have ended meanwhile: then the command runs.
            state.count_refusal(held.sinks);
            going.push((held, reply));
        }
        drop(state);
        for (held, reply) in going {
            let more = Box::new(LetIn(0));
            held.client.let_go(Note { reply, more });
        }
    }

    /// Lets all go: the server says to each why it runs its command no more.
    pub(super) fn let_all_in(&self, lock: Lock<'_>) {
        let held = std::mem::take(&mut self.state.write(lock).held);
        for held in held {
            let more = Box::new(LetIn(0));
            held.client.let_go(Note { reply: None, more });
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
    /// Clients that have closed their connections wait for nothing, whatever their `timeout` is: looked at when there are twice as
    /// many as there were behind the last look.
    fn forget_gone(&mut self) {
        if self.waiting.len() < self.looked_for_gone.max(FEW_WAITING) {
            return;
        }
        let gone: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waits)| waits.client.is_gone())
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.waiters.forget(number);
            if let Some(waits) = self.waiting.remove(&number) {
                waits.saved();
            }
        }
        self.looked_for_gone = self.waiting.len() * 2;
    }

    fn count_refusal(&mut self, sinks: u64) {
        for sink in self.sinks.iter_mut().filter(|sink| sinks & sink.bit() != 0) {
            sink.figures.refused += 1;
        }
    }
}

impl Waiting for WriteBehind {
    fn answer(&self, command: &Command<'_>, note: Option<&Note>) {
        let told = note.and_then(|note| note.reply.as_ref());
        match told {
            Some(reply) => command.send(reply),
            None => {
                if let Some(answer) = self.serve(command, None) {
                    answer.send(command);
                }
            }
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
        if let Ok(let_in) = note.more.downcast::<LetIn>() {
            self.let_in_no_more(lock, &let_in);
        }
    }
}
