//! Clients that have waited for a load, or for room in a queue: their own commands are run in their place, unless something has happened in
//! the meantime that forbids it. The server does not let a client wait twice: the command of one who is to wait behind it, too, is run
//! before he is let go. Under the server's lock.

use smallvec::SmallVec;

use super::{Hooks, Linked, proxy::Concerns, spec::CommandSpec, table::Entry};
use crate::{
    engine::{
        id::Id,
        linked_command::{LinkedCommand, StillHeld},
        prefix::Pattern,
    },
    error::Error,
    server::{
        call::{Refusal, SEVERAL_SLOTS, call_original, must_wait},
        call_reply::CallReply,
        client::{BlockedClient, user_name},
        command::Command,
        key::{self, Life},
        lock::Lock,
        reply::Reply,
        room,
        slots::slot_of,
        store,
        string::Words,
        waiting::{self, AwaitedCommand, Note, WaitingClient},
    },
};

/// What a command gets that could not run because clients were paused when its turn had come.
const PAUSED_MEANWHILE: &str =
    "TRYAGAIN clients were paused before the command could run, and nothing was done";

/// The same, where what it was to change is not in the cache by then.
const FORGOTTEN_MEANWHILE: &str =
    "TRYAGAIN the cache has forgotten the value before the command could run, and nothing was done";

/// What a client gets whose command would change a part of what the cache does not have.
pub fn forgotten_meanwhile() -> Reply {
    Reply::error(FORGOTTEN_MEANWHILE)
}

/// A client that waits.
pub struct Awaiting {
    client: WaitingClient,
    /// What runs before it is let go, if it is to wait behind that, too.
    sent: Option<Sent>,
}

/// The command of a client, as it was sent.
#[derive(Default)]
struct Sent {
    words: Words,
    /// Who sent it. Before the server closes the connection of a user that was deleted, it makes the default user of him.
    user: Option<String>,
}

impl Awaiting {
    /// See [`WaitingClient::address`].
    pub fn address(&self) -> usize {
        self.client.address()
    }

    /// See [`WaitingClient::let_go`].
    pub fn let_go(self, note: Note) {
        self.client.let_go(note);
    }

    /// See [`WaitingClient::forget`].
    pub fn forget(self, lock: Lock<'_>) {
        self.client.forget(lock);
    }

    /// True if its command is to be run by [`Awaiting::run`].
    pub fn is_to_wait_again(&self) -> bool {
        self.sent.is_some()
    }

    /// Runs the command before the client is let go. `work` gets what stands for the command, and runs it by
    /// [`Hooks::run_awaited`]: its reply is the client's, now or as soon as what it has changed is saved.
    pub fn run(self, lock: Lock<'_>, work: impl FnOnce(&Command<'_>, Block<'_>) -> Option<Reply>) {
        let sent = self.sent.unwrap_or_default();
        let mut awaited = AwaitedCommand::new(lock, &self.client, &sent.words);
        let mut client = Some(self.client.into_blocked(lock));
        let command = awaited.as_command();
        // Who is gone by now has no rights to run anything with.
        let reply = if command.has_client() && user_name(lock, command.client_id()) == sent.user {
            work(&command, &mut || client.take())
        } else {
            None
        };
        if let (Some(client), Some(reply)) = (client, reply) {
            client.answer(reply);
        }
    }
}

/// Makes the client of a command wait behind that.
pub type Block<'a> = &'a mut dyn FnMut() -> Option<BlockedClient>;

impl Hooks {
    /// The client of a command that has to wait now, or `None` if the server does not let it. `writes`: it is a writing one.
    pub fn block(&self, command: &Command<'_>, awaited: waiting::Awaited, writes: bool) -> Option<Awaiting> {
        let waits_again = self.is_linked(command) || (writes && self.holds(command));
        let sent = waits_again.then(|| Sent {
            words: command.argv().to_words(),
            user: user_name(command.lock(), command.client_id()),
        });
        let client = command.wait(awaited)?;
        Some(Awaiting { client, sent })
    }

    /// A command that has waited and changes a part of a value is not run where the cache does not have the value, or a stale one,
    /// and changes of the key are saved: a part would be saved over the whole. What its client gets then. What is not saved
    /// yet is put back. `known`: what a key holds is what its source has by now, that is nothing, or (`true`) what is there.
    pub fn refuse_forgotten(
        &self,
        command: &Command<'_>,
        known: impl Fn(&[u8], bool) -> bool,
    ) -> Option<Reply> {
        let (lock, db, original) = (command.lock(), command.db(), command.argv().skip(1));
        let (loads, writes) = (self.loads.get()?, self.writes.get()?);
        let table = self.table.read(lock);
        let entry = original.get(0).and_then(|name| table.find(name));
        let takes = |entry: &&Entry| entry.spec.writes() && entry.spec.takes(original.len());
        let entry = entry.filter(takes).filter(|entry| !entry.loads.is_empty())?;
        let positions = entry.spec.key_positions(original.len(), &|at| original.get(at));
        let missing: SmallVec<[(Id, &[u8], bool); 1]> = positions
            .filter_map(|position| {
                let name = original.get(position)?;
                let rule = self.load_before(lock, entry, name, original.len(), |at| original.get(at))?;
                let life = key::life(lock, db, name);
                // The clock goes on until the command runs.
                let is_gone = life == Life::Missing || life.ends_within(1);
                let (rules, found) = ((entry, rule), (db, name, life));
                let is_old =
                    !is_gone && self.is_too_old(lock, rules, found, original.len(), |at| original.get(at));
                let missing = writes.saves(lock, name) && (is_gone || is_old);
                missing.then_some((rule.registration, name, is_old))
            })
            .collect();
        drop(table);
        let forgotten = missing.iter().any(|&(registration, name, is_old)| {
            !known(name, is_old)
                && (is_old
                    || !loads.restore(lock, registration, db, name)
                        && !loads.is_absent(lock, registration, db, name))
        });
        forgotten.then(forgotten_meanwhile)
    }

    /// Functions are linked to the command behind the proxy command, for one of its keys.
    fn is_linked(&self, command: &Command<'_>) -> bool {
        let original = command.argv().skip(1);
        let table = self.table.read(command.lock());
        let entry = original.get(0).and_then(|name| table.find(name));
        let entry = entry.filter(|entry| !entry.rules.is_empty() && entry.spec.takes(original.len()));
        entry.is_some_and(|entry| {
            let mut positions = entry.spec.key_positions(original.len(), &|at| original.get(at));
            positions.any(|position| original.get(position).is_some_and(|key| entry.links(key)))
        })
    }

    /// The first key of the command behind the proxy command.
    fn first_key<'a>(&self, command: &Command<'a>) -> Option<&'a [u8]> {
        let original = command.argv().skip(1);
        let name = original.get(0)?;
        let known = self.table.read(command.lock());
        let word = |at| original.get(at);
        let first = |spec: &CommandSpec| spec.key_positions(original.len(), &word).next();
        let place = if let Some(entry) = known.find(name) {
            first(&entry.spec)
        } else {
            // Nobody is interested in it any more.
            drop(known);
            let name = String::from_utf8_lossy(name).into_owned();
            let found = self.look_up(command.lock(), &[name], &Pattern::Everything);
            found.ok()?.first().and_then(first)
        };
        original.get(place?)
    }

    /// If clients have been paused since a client was let go, its command is not run if it may write: the server does not let it wait
    /// once more. What it gets then.
    pub fn refuse_paused(&self, command: &Command<'_>) -> Option<Reply> {
        let name = command.argv().get(1).unwrap_or_default();
        must_wait(command.lock(), self.features, name).then(|| Reply::error(PAUSED_MEANWHILE))
    }

    /// The server has looked at its memory before the client waited. What it gets where there is none by now for its writing command.
    pub fn refuse_without_room(&self, command: &Command<'_>) -> Option<Reply> {
        let name = command.argv().get(1).unwrap_or_default();
        room::is_short_for(command.lock(), self.features, name).then(room::no_room)
    }

    /// Runs the command of a client that has waited. `None`: it waits behind that, which `block` has made it do. `writes`: it is a
    /// writing one.
    pub fn run_awaited(
        &self,
        command: &Command<'_>,
        writes: bool,
        block: Option<Block<'_>>,
    ) -> Option<Awaited> {
        let original = command.argv().skip(1);
        let concerns = if writes {
            self.concerns_of(command)
        } else {
            Concerns::default()
        };
        let write = concerns
            .writes
            .then(|| self.begin_write(command, block.is_some()));
        let write = write.unwrap_or_default();
        let (mut never, is_one_of_many) = (|| None, block.is_some());
        let block = block.unwrap_or(&mut never);
        let linked = Linked {
            may_wait: Some(is_one_of_many),
            ..Linked::default()
        };
        // The filter leaves it alone: it has waited.
        let (reply, linked) = self.current.during(command, 1, linked, || {
            let _bypass = writes.then(|| self.bypass(command.lock()));
            call_original(command, self.features, original, false, !writes)
        });
        let link = linked.link;
        let reply = self.end_write(command, &write, reply, link.as_ref(), block);
        if let Some(writes) = self.writes.get().filter(|_| is_one_of_many) {
            // The commands of all who are let go in this turn are one unit of the server's.
            writes.end_unit(command.lock());
        }
        if concerns.removals && reply.is_ok() {
            self.tell_removed(command);
        }
        Some(match reply {
            Ok(reply) => {
                let reply = reply?;
                if reply.is_foreign() {
                    let slot = self.first_key(command).map_or(0, slot_of);
                    Awaited::Told(store::redirection(command.lock(), self.features, slot))
                } else {
                    return linked_reply(link.as_deref(), reply, block);
                }
            }
            Err(Refusal::SeveralSlots) => Awaited::Told(Error::Text(SEVERAL_SLOTS.into()).into()),
            Err(Refusal::NotPermitted) => {
                let name = original.get(0).unwrap_or_default().to_ascii_lowercase();
                Awaited::Told(Error::NotPermitted(String::from_utf8_lossy(&name).into_owned()).into())
            }
        })
    }
}

/// What the client of a command that has waited gets when functions have had their say to which it is linked. `None`: it waits for them.
fn linked_reply(link: Option<&LinkedCommand>, reply: CallReply, block: Block<'_>) -> Option<Awaited> {
    let replacement = link.map_or(Ok(None), LinkedCommand::close_if_free);
    match (replacement, link) {
        (Ok(Some(replacement)), _) => Some(Awaited::Told(replacement)),
        (Err(StillHeld), Some(link)) => match block() {
            Some(client) => {
                link.wait(client, reply.into_reply());
                None
            }
            None => Some(link.close().map_or(Awaited::Ran(reply), Awaited::Told)),
        },
        _ => Some(Awaited::Ran(reply)),
    }
}

/// What a client gets that has waited.
pub enum Awaited {
    Ran(CallReply),
    Told(Reply),
}

impl Awaited {
    /// Answers the client of the command.
    pub fn send(self, command: &Command<'_>) {
        match self {
            Self::Ran(reply) => reply.forward(command),
            Self::Told(reply) => command.send(&reply),
        }
    }

    pub fn into_reply(self) -> Reply {
        match self {
            Self::Ran(reply) => reply.into_reply(),
            Self::Told(reply) => reply,
        }
    }
}
