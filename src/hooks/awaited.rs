//! Clients that have waited for a load, or for room in a queue: their own commands are run in their place, unless something has happened in
//! the meantime that forbids it. The server does not let a client wait twice. Under the server's lock.

use smallvec::SmallVec;

use super::{
    Hooks, Linked,
    table::{CommandSpec, Entry},
};
use crate::{
    engine::{id::Id, prefix::Pattern},
    error::Error,
    server::{
        call::{Refusal, call_original, must_wait},
        call_reply::CallReply,
        command::Command,
        key::{self, Life},
        reply::Reply,
        slots::slot_of,
        store,
    },
};

/// What a command gets that could not run because clients were paused when its turn had come.
const PAUSED_MEANWHILE: &str =
    "TRYAGAIN clients were paused before the command could run, and nothing was done";

/// The same, where what it was to change was forgotten by then.
const FORGOTTEN_MEANWHILE: &str =
    "TRYAGAIN the cache has forgotten the value before the command could run, and nothing was done";

impl Hooks {
    /// A command that has waited and changes a part of a value is not run where the cache has forgotten the value since, and changes
    /// of the key are saved: a part would be saved over the whole. True then, and the client was told. What is not saved yet is put
    /// back. `known`: the key was loaded.
    pub fn is_forgotten_meanwhile(&self, command: &Command<'_>, known: impl Fn(&[u8]) -> bool) -> bool {
        let (lock, db, original) = (command.lock(), command.db(), command.argv().skip(1));
        let (Some(loads), Some(writes)) = (self.loads.get(), self.writes.get()) else {
            return false;
        };
        let table = self.table.read(lock);
        let entry = original.get(0).and_then(|name| table.find(name));
        let takes = |entry: &&Entry| entry.spec.writes() && entry.spec.takes(original.len());
        let Some(entry) = entry.filter(takes).filter(|entry| !entry.loads.is_empty()) else {
            return false;
        };
        let positions = entry.spec.key_positions(original.len());
        let missing: SmallVec<[(Id, &[u8]); 1]> = positions
            .filter_map(|position| {
                let name = original.get(position)?;
                let rule = self.load_before(lock, entry, name, original.len(), |at| original.get(at))?;
                let missing = writes.saves(lock, name) && key::life(lock, db, name) == Life::Missing;
                missing.then_some((rule.registration, name))
            })
            .collect();
        drop(table);
        let forgotten = missing.iter().any(|&(registration, name)| {
            !loads.restore(lock, registration, db, name)
                && !known(name)
                && !loads.is_absent(lock, registration, db, name)
        });
        if forgotten {
            command.send(&Reply::error(FORGOTTEN_MEANWHILE));
        }
        forgotten
    }

    /// The first key of the command behind the proxy command.
    fn first_key<'a>(&self, command: &Command<'a>) -> Option<&'a [u8]> {
        let original = command.argv().skip(1);
        let name = original.get(0)?;
        let known = self.table.read(command.lock());
        let first = |spec: &CommandSpec| spec.key_positions(original.len()).next();
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

    /// The server calls us back for a client that was let go a turn of its loop before, and does not let it wait once more. If clients
    /// have been paused since, what may write is not run: true, and the client was told.
    pub fn is_paused_meanwhile(&self, command: &Command<'_>) -> bool {
        let name = command.argv().get(1).unwrap_or_default();
        let paused = must_wait(command.lock(), self.features, name);
        if paused {
            command.send(&Reply::error(PAUSED_MEANWHILE));
        }
        paused
    }

    /// Answers a client that has waited by its own command, in whose place the server calls us back.
    pub fn answer_awaited(&self, command: &Command<'_>) {
        match self.run_awaited(command) {
            Ok(reply) if reply.is_foreign() => {
                let slot = self.first_key(command).map(slot_of);
                let redirection = store::redirection(command.lock(), self.features, slot.unwrap_or(0));
                command.send(&redirection);
            }
            Ok(reply) => reply.forward(command),
            Err(_) => {
                let name = command.argv().get(1).unwrap_or_default().to_ascii_lowercase();
                command.send(&Error::NotPermitted(String::from_utf8_lossy(&name).into_owned()).into());
            }
        }
    }

    /// Runs the command of a client that has waited, in whose place the server calls us back.
    ///
    /// # Errors
    /// The user may not run it any more.
    fn run_awaited(&self, command: &Command<'_>) -> Result<CallReply, Refusal> {
        let original = command.argv().skip(1);
        // The filter leaves it alone: it has waited.
        let (reply, _) = self.current.during(command, 1, Linked::default(), || {
            let _bypass = self.bypass(command.lock());
            call_original(command, self.features, original, false)
        });
        reply
    }
}
