//! Command hooks: functions in the place of a command, the newest one first, the command itself last. Contract:
//! docs/contract/readers-and-events.md chapter 8.
//!
//! [`super::Hooks::run_proxy`] starts the newest function; `call_next` goes on from there through [`Behind`].

use std::sync::Arc;

use super::{Hooks, passed::Passed, table::Entry};
use crate::{
    engine::{
        Engine, RanNow,
        execution::{Next, Outcome},
        id::Id,
        registration::{Mode, Registration},
        source::{Once, Source, Withheld},
        start::Start,
    },
    error::Error,
    server::{
        call::{execute, execute_for_resp3},
        call_reply::Forms,
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
                    let begins = |position| word(position).is_some_and(|key| key.starts_with(prefix));
                    self.spec.any_key(len, &word, begins)
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
        let behind = Arc::new(Behind {
            hooks: Arc::clone(self),
            registration: Arc::clone(registration),
            command: name.to_ascii_lowercase(),
            db: command.db(),
            resp3: command.is_resp3().then(Passed::default),
        });
        let start = behind.start(command.lock(), words.iter());
        let reply = move |outcome| {
            let forms = behind.forms_of(outcome);
            forms.resp3.unwrap_or(forms.resp2)
        };
        if registration.mode == Mode::Sync {
            let start = start.waiting(command.may_block());
            return engine.run_now(start).answer(command, reply);
        }
        if !command.may_block() {
            return Err(Error::CannotWaitHere);
        }
        if !engine.has_room(registration) {
            return Err(Error::NotTriggered("too many executions are pending"));
        }
        let start = start
            .distributed(engine.payload(registration))
            .answering(command.block()?, move |outcome| reply(outcome.clone()));
        engine.submit(start, registration.lane());
        Ok(Answer::Done)
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
    /// What the function gets, if the client has chosen RESP3.
    resp3: Option<Passed>,
}

impl Behind {
    fn start<'a>(self: &Arc<Self>, lock: Lock<'_>, words: impl Iterator<Item = &'a [u8]>) -> Start {
        let record = self.record(lock, words);
        Start::of_call(&self.registration, self.db, record, Arc::clone(self) as _)
    }

    /// The words of the command, unless the function has a user who may not run it himself.
    fn record<'a>(&self, lock: Lock<'_>, words: impl Iterator<Item = &'a [u8]>) -> Box<dyn Source> {
        let Some(actor) = &self.registration.actor else {
            return Box::new(Once::of_words(words));
        };
        let words: Vec<&[u8]> = words.collect();
        match actor.check_command(lock, &words) {
            Ok(()) => Box::new(Once::of_words(words.into_iter())),
            Err(refusal) => Box::new(Withheld(Some(refusal.into()))),
        }
    }

    /// What the function sees of a reply.
    fn note(&self, forms: Forms) -> Reply {
        match &self.resp3 {
            Some(passed) => passed.note(forms),
            None => forms.resp2,
        }
    }

    /// What the function replies.
    fn forms_of(&self, outcome: Outcome) -> Forms {
        let reply = one_result(outcome);
        match &self.resp3 {
            Some(passed) => passed.forms_of(reply),
            None => reply.into(),
        }
    }
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
            let behind = Arc::new(Self {
                hooks: Arc::clone(&self.hooks),
                registration: older,
                command: self.command.clone(),
                db: self.db,
                resp3: self.resp3.as_ref().map(|_| Passed::default()),
            });
            let start = behind.start(lock, argv.iter().map(Vec::as_slice)).waiting(false);
            return match engine.run_now(start) {
                RanNow::Ended(outcome) => self.note(behind.forms_of(outcome)),
                // It may not wait, and nobody keeps it.
                _ => Error::NotOneResult.into(),
            };
        }
        let actor = self.registration.actor.as_ref();
        let _bypass = self.hooks.bypass(lock);
        if self.resp3.is_none() {
            return execute(lock, engine.features, self.db, &argv, actor);
        }
        self.note(execute_for_resp3(lock, engine.features, self.db, &argv, actor))
    }

    fn stands_for(&self, command: &[u8]) -> bool {
        self.command.eq_ignore_ascii_case(command)
    }
}
