//! Command hooks: functions in the place of a command, the newest one first, the command itself last. Contract:
//! `readers-and-events.md` chapter 8.
//!
//! [`super::Hooks::run_proxy`] starts the newest function; `call_next` goes on from there through [`Behind`].

use std::sync::Arc;

use super::{Hooks, table::Entry};
use crate::{
    engine::{
        Engine, RanNow,
        execution::{Next, Outcome, Start},
        id::Id,
        registration::{Mode, Registration},
    },
    error::Error,
    readers::command::{answer, lane, record_of},
    server::{
        call::execute,
        command::{Answer, Command},
        lock::Lock,
        reply::Reply,
    },
};

/// One function in the place of a command.
pub(super) struct HookRule {
    pub(super) registration: Arc<Registration>,
    /// At least one key of the command must begin with it; bytewise, `*` is nothing special.
    pub(super) prefix: Option<Vec<u8>>,
}

impl Entry {
    /// The newest function for a command of `len` words, of those older than `before`.
    pub(super) fn hook<'a>(
        &self,
        before: Option<Id>,
        len: usize,
        word: impl Fn(usize) -> Option<&'a [u8]>,
    ) -> Option<&Arc<Registration>> {
        let applies = |rule: &&HookRule| {
            before.is_none_or(|before| rule.registration.id < before)
                && rule.prefix.as_ref().is_none_or(|prefix| {
                    self.spec
                        .key_positions(len)
                        .any(|position| word(position).is_some_and(|key| key.starts_with(prefix)))
                })
        };
        let newest = self.hooks.iter().rev().find(applies);
        newest.map(|rule| &rule.registration)
    }
}

impl Hooks {
    /// Runs the function that stands in the place of `original`, and answers the client, now or when it has ended.
    ///
    /// # Errors
    /// It is not `sync` and the caller cannot wait; too many of its executions are pending.
    pub(super) fn run_hook(
        self: &Arc<Self>,
        engine: &Engine,
        command: &Command<'_>,
        name: &[u8],
        registration: &Arc<Registration>,
    ) -> Result<Answer, Error> {
        engine.stats.count_hooked();
        let words = command.argv().skip(1);
        let start = self.start(name, registration, command.db(), words.iter());
        if registration.mode == Mode::Sync {
            let start = Start {
                may_wait: command.may_block(),
                ..start
            };
            return Ok(answer(command, engine.run_now(start), one_result));
        }
        if !command.may_block() {
            return Err(Error::CannotWaitHere);
        }
        if !engine.has_room(registration) {
            return Err(Error::NotTriggered("too many executions are pending"));
        }
        let client = command.block();
        let meter = client.meter();
        let waiter = move |outcome: &Outcome| client.answer(one_result(outcome.clone()));
        let start = Start {
            waiter: Some(Box::new(waiter)),
            payload: engine.payload(registration),
            meter: Some(meter),
            ..start
        };
        engine.submit(start, lane(registration));
        Ok(Answer::Done)
    }

    fn start<'a>(
        self: &Arc<Self>,
        name: &[u8],
        registration: &Arc<Registration>,
        db: i32,
        words: impl Iterator<Item = &'a [u8]>,
    ) -> Start {
        Start {
            transient: true,
            next: Some(Arc::new(Behind {
                hooks: Arc::clone(self),
                registration: Arc::clone(registration),
                command: name.to_ascii_lowercase(),
                db,
            })),
            ..Start::of_registration(registration, db, Box::new(record_of(words)))
        }
    }
}

/// The reply of a hooked command: the first error, else the only result.
fn one_result(outcome: Outcome) -> Reply {
    let mut results = outcome.results.into_iter();
    match (outcome.errors.first(), results.next(), results.next()) {
        (Some(error), ..) => Reply::error(error),
        (None, Some(result), None) => result,
        _ => Error::NotOneResult.into(),
    }
}

/// What stands behind one function: the older ones, and the command.
struct Behind {
    hooks: Arc<Hooks>,
    registration: Arc<Registration>,
    /// In lower case.
    command: Vec<u8>,
    /// The client's.
    db: i32,
}

impl Next for Behind {
    fn call(&self, engine: &Engine, lock: Lock<'_>, arguments: Vec<Vec<u8>>) -> Reply {
        if self.registration.is_removed() {
            return Reply::error("Failed executing command");
        }
        let mut argv = arguments;
        argv.insert(0, self.command.clone());
        let older = {
            let table = self.hooks.table.read(lock);
            let word = |position: usize| argv.get(position).map(Vec::as_slice);
            let found = table
                .find(&self.command)
                .and_then(|entry| entry.hook(Some(self.registration.id), argv.len(), word));
            found.cloned()
        };
        if let Some(older) = older {
            let words = argv.iter().map(Vec::as_slice);
            let start = Start {
                may_wait: false,
                ..self.hooks.start(&self.command, &older, self.db, words)
            };
            return match engine.run_now(start) {
                RanNow::Ended(outcome) => one_result(outcome),
                // It may not wait, and nobody keeps it.
                _ => Error::NotOneResult.into(),
            };
        }
        let _bypass = self.hooks.bypass(lock);
        execute(lock, engine.features, self.db, &argv)
    }

    fn stands_for(&self, command: &[u8]) -> bool {
        self.command.eq_ignore_ascii_case(command)
    }
}
