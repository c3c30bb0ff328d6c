//! Keys whose changes are written behind: what the filter and the proxy command ask about them. Who saves changes is in the room
//! `write_behind`, behind [`Writes`].

use std::sync::Arc;

use super::{
    Hooks,
    loads::Wait,
    parts::{self, REMOVERS},
    spec::{self, CommandSpec},
    table::Entry,
};
use crate::{
    engine::{id::Id, linked_command::LinkedCommand, prefix::Pattern},
    server::{
        api,
        call::Refusal,
        call_reply::CallReply,
        client::BlockedClient,
        command::{Answer, Command},
        filter::{PassedKey, Passing},
        key::{self, Life},
        lock::Lock,
    },
};

/// A key of a database.
pub type Place<'a> = (i32, &'a [u8]);

/// Who saves changes. Called under the server's lock.
pub trait Writes: Send + Sync {
    /// A key was to be deleted, and was not there.
    fn removed(&self, lock: Lock<'_>, db: i32, name: &[u8]);

    /// Whether there is a registration.
    fn is_any(&self, lock: Lock<'_>) -> bool;

    /// Whether changes of the key are saved, if somebody makes one now: not those of a function that saves.
    fn saves(&self, lock: Lock<'_>, name: &[u8]) -> bool;

    /// Whether a command that changes the key has to wait now, before it runs or behind that.
    fn minds_write(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> bool;

    /// A command that changes these keys is about to run.
    fn before(&self, command: &Command<'_>, keys: &[Place<'_>]) -> Wait;

    /// Whether the client of a command that changes these keys is to wait behind it.
    fn holds(&self, lock: Lock<'_>, keys: &[Place<'_>]) -> bool;

    /// It runs now, for a client that can wait. A number, if that is to wait for what it changes.
    fn begin(&self, lock: Lock<'_>, keys: &[Place<'_>]) -> Option<u64>;

    /// It was not run after all.
    fn cancel(&self, lock: Lock<'_>, number: u64);

    /// It has run. `Some`: its client does not wait. `block`: how it would. `link`: who else has a say in its reply, when what it
    /// changed is saved.
    fn end(
        &self,
        lock: Lock<'_>,
        number: u64,
        reply: CallReply,
        link: Option<&Arc<LinkedCommand>>,
        block: &mut dyn FnMut() -> Option<BlockedClient>,
    ) -> Option<CallReply>;

    /// What a command has changed that was run in its client's place is a unit of its own, although the server's has not ended.
    fn end_unit(&self, lock: Lock<'_>);
}

/// Why a registration wants to see a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// It removes keys, also some that are not there.
    Removal,
    /// It changes keys.
    Write,
}

/// One registration's interest in a command.
pub(super) struct WriteRule {
    pub(super) registration: Id,
    pub(super) pattern: Pattern,
    pub(super) interest: Interest,
}

/// Commands by which a key comes to another shard as it is.
pub(super) const MOVING: [&[u8]; 2] = [b"migrate", b"restore-asking"];

/// True for one of them, in any letter case.
pub(super) fn moves_keys(name: &[u8]) -> bool {
    MOVING.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Commands that change when a key or a field expires: they change no value, and need no room for one.
const LIFETIMES: [&[u8]; 12] = [
    b"expire",
    b"pexpire",
    b"expireat",
    b"pexpireat",
    b"persist",
    b"getex",
    b"hgetex",
    b"hexpire",
    b"hpexpire",
    b"hexpireat",
    b"hpexpireat",
    b"hpersist",
];

/// A command that runs, for who saves what it changes.
#[derive(Default)]
pub(super) struct Write<'a> {
    /// Of its client, if that is to wait behind it.
    number: Option<u64>,
    /// The keys that it removes although they are not there.
    absent: Vec<&'a [u8]>,
}

impl Hooks {
    /// True while such a command runs; known while the filter is installed.
    pub fn is_moving(&self, lock: Lock<'_>) -> bool {
        self.noted.get(lock).moving
    }

    /// Told once who saves changes.
    pub fn connect_writes(&self, writes: Arc<dyn Writes>) {
        // A second call cannot happen: the module cannot be loaded twice.
        let _ = self.writes.set(writes);
    }

    /// Whether changes of any keys are saved.
    pub fn saves_writes(&self, lock: Lock<'_>) -> bool {
        self.writes.get().is_some_and(|writes| writes.is_any(lock))
    }

    /// Whether changes of this key are saved.
    pub fn saves_write(&self, lock: Lock<'_>, name: &[u8]) -> bool {
        self.writes.get().is_some_and(|writes| writes.saves(lock, name))
    }

    /// The commands that change keys at known places and do not wait by themselves.
    pub fn look_up_writers(&self, lock: Lock<'_>) -> Vec<CommandSpec> {
        spec::look_up_writers(lock, self.features)
    }

    /// Tells a registration of keys that are deleted without being there.
    pub fn link_removals(&self, lock: Lock<'_>, registration: Id, pattern: &Pattern) {
        let mut removers = Vec::new();
        for name in REMOVERS {
            match self.look_up(lock, &[name.to_owned()], &Pattern::Everything) {
                Ok(found) => removers.extend(found),
                Err(error) => api::log_warning(&format!(
                    "write_behind does not notice {name} of a key that is not there: {error}"
                )),
            }
        }
        self.link_interest(lock, registration, removers, pattern, Interest::Removal);
    }

    /// Lets a registration decide about commands before they change its keys.
    pub fn link_writes(
        &self,
        lock: Lock<'_>,
        registration: Id,
        commands: Vec<CommandSpec>,
        pattern: &Pattern,
    ) {
        self.link_interest(lock, registration, commands, pattern, Interest::Write);
    }

    fn link_interest(
        &self,
        lock: Lock<'_>,
        registration: Id,
        commands: Vec<CommandSpec>,
        pattern: &Pattern,
        interest: Interest,
    ) {
        let mut table = self.table.write(lock);
        for spec in commands {
            table.entry(spec).writes.push(WriteRule {
                registration,
                pattern: pattern.clone(),
                interest,
            });
        }
        table.recompute();
        drop(table);
        self.install(lock);
    }

    /// Undoes [`Hooks::link_writes`], and leaves what else the registration has linked.
    pub fn unlink_writes(&self, lock: Lock<'_>, registration: Id) {
        self.take_out(lock, |entry| {
            entry
                .writes
                .retain(|rule| rule.registration != registration || rule.interest != Interest::Write);
        });
    }

    /// Whether a command of a client outside of transactions concerns who saves changes.
    pub(super) fn wants_write_proxy(
        &self,
        entry: &Entry,
        passing: Passing<'_>,
        db: i32,
        passed: &PassedKey<'_>,
    ) -> bool {
        let key = passed.name;
        let Some(writes) = self.writes.get() else {
            return false;
        };
        let wants = |interest| {
            let mut rules = entry.writes.iter();
            rules.any(|rule| rule.interest == interest && rule.pattern.matches(key))
        };
        let minds = |db| writes.minds_write(passing.lock(), db, key);
        let other = || parts::elsewhere(&entry.spec, passing.len(), &|at| passing.arg(at));
        (wants(Interest::Write) && (minds(db) || other().is_some_and(minds)))
            || (wants(Interest::Removal) && passing.key_life(db, passed) == Life::Missing)
    }

    /// What the command behind the proxy command changes, or removes, that a registration saves.
    fn written_keys<'a>(&self, command: &Command<'a>, interest: Interest) -> Vec<Place<'a>> {
        let (original, db) = (command.argv().skip(1), command.db());
        let table = self.table.read(command.lock());
        let entry = original.get(0).and_then(|name| table.find(name));
        let Some(entry) = entry.filter(|entry| !entry.writes.is_empty() && entry.spec.takes(original.len()))
        else {
            return Vec::new();
        };
        let word = |at| original.get(at);
        let places = match interest {
            Interest::Write => parts::changed(&entry.spec, db, original.len(), &word),
            Interest::Removal => parts::removed_keys(&entry.spec, original.len(), &word)
                .map(|position| (db, position))
                .collect(),
        };
        let places = places.into_iter();
        places
            .filter_map(|(db, position)| Some((db, original.get(position)?)))
            .filter(|(_, key)| {
                let mut rules = entry.writes.iter();
                rules.any(|rule| rule.interest == interest && rule.pattern.matches(key))
            })
            .collect()
    }

    /// Lets a command wait before it runs: there is no room for its changes. `None`: it runs.
    ///
    /// # Errors
    /// The user may not run it.
    pub(super) fn wait_for_room(
        &self,
        command: &Command<'_>,
        cleared: bool,
    ) -> Result<Option<Answer>, Refusal> {
        let Some(writes) = self.writes.get() else {
            return Ok(None);
        };
        let keys = self.written_keys(command, Interest::Write);
        let name = command.argv().get(1).unwrap_or_default();
        if keys.is_empty() || LIFETIMES.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Ok(None);
        }
        if !cleared && !command.sender_may_run(command.argv().skip(1)) {
            return Err(Refusal::NotPermitted);
        }
        Ok(match writes.before(command, &keys) {
            Wait::No => None,
            Wait::Waits => Some(Answer::Done),
            Wait::Refused(answer) => Some(answer),
        })
    }

    /// Whether the client of the command behind the proxy command is to wait behind that, too.
    pub fn holds(&self, command: &Command<'_>) -> bool {
        let Some(writes) = self.writes.get() else {
            return false;
        };
        let keys = self.written_keys(command, Interest::Write);
        !keys.is_empty() && writes.holds(command.lock(), &keys)
    }

    /// The command behind the proxy command is about to run. `can_wait`: its client can wait behind it.
    pub(super) fn begin_write<'a>(&self, command: &Command<'a>, can_wait: bool) -> Write<'a> {
        let keys = if can_wait {
            self.written_keys(command, Interest::Write)
        } else {
            Vec::new()
        };
        let writes = self.writes.get().filter(|_| !keys.is_empty());
        Write {
            number: writes.and_then(|writes| writes.begin(command.lock(), &keys)),
            absent: self.absent_removals(command),
        }
    }

    /// It has run, or was refused. `Ok(None)`: its client waits, which `block` has made it do.
    ///
    /// # Errors
    /// It was refused.
    pub(super) fn end_write(
        &self,
        command: &Command<'_>,
        write: &Write<'_>,
        reply: Result<CallReply, Refusal>,
        link: Option<&Arc<LinkedCommand>>,
        block: &mut dyn FnMut() -> Option<BlockedClient>,
    ) -> Result<Option<CallReply>, Refusal> {
        let (Some(writes), lock) = (self.writes.get(), command.lock()) else {
            return reply.map(Some);
        };
        match (write.number, reply) {
            (Some(number), Err(refusal)) => {
                writes.cancel(lock, number);
                Err(refusal)
            }
            (_, Err(refusal)) => Err(refusal),
            (number, Ok(reply)) => {
                // Before it ends: who waits behind it waits for these, too.
                let absent = if reply.is_error() { &[][..] } else { &write.absent };
                let is_missing = |name: &&&[u8]| key::life(lock, command.db(), name) == Life::Missing;
                for name in absent.iter().filter(is_missing) {
                    writes.removed(lock, command.db(), name);
                }
                Ok(match number {
                    Some(number) => writes.end(lock, number, reply, link, block),
                    None => Some(reply),
                })
            }
        }
    }

    /// The keys that a command is about to remove although they are not there.
    fn absent_removals<'a>(&self, command: &Command<'a>) -> Vec<&'a [u8]> {
        let (lock, db) = (command.lock(), command.db());
        let keys = self.written_keys(command, Interest::Removal).into_iter();
        keys.map(|(_, name)| name)
            .filter(|name| key::life(lock, db, name) == Life::Missing)
            .collect()
    }
}
