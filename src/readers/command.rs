//! The CommandReader: functions that clients call by name (RG.TRIGGER), and functions that stand in the place of a
//! command. Contract: docs/contract/readers-and-events.md chapters 7 and 8.
//!
//! Called on whichever thread runs the command, under the server's lock. What a hook does is in `hooks.rs`.

use std::{collections::BTreeMap, sync::Arc};

use super::{image::Image, source::SourceImage};
use crate::{
    engine::{
        Engine,
        brief::{Brief, Spare},
        doubts,
        execution::{Next, Outcome},
        registration::{Claim, Mode, Peers, Registration, Trigger},
        run_message::LaunchPayload,
        source::Once,
        start::Start,
    },
    error::Error,
    hooks::Hooks,
    server::{
        command::{Answer, Command},
        guarded::Guarded,
        lock::Lock,
        reply::Reply,
        string::Argv,
    },
};

/// All triggers of this server by name.
pub struct Commands {
    engine: Arc<Engine>,
    hooks: Arc<Hooks>,
    triggers: Guarded<BTreeMap<Vec<u8>, Arc<Called>>>,
    nothing: Arc<dyn Next>,
}

/// A registration that is called by its name.
struct Called {
    registration: Arc<Registration>,
    spare: Spare,
}

impl Commands {
    pub fn new(engine: Arc<Engine>, hooks: Arc<Hooks>) -> Arc<Self> {
        Arc::new(Self {
            engine,
            hooks,
            triggers: Guarded::default(),
            nothing: Arc::new(Nothing),
        })
    }

    /// The event side of a registration with `trigger=`.
    pub fn trigger(self: &Arc<Self>, name: String, in_order: bool) -> Box<dyn Trigger> {
        Box::new(Named {
            commands: Arc::clone(self),
            name,
            in_order,
        })
    }

    /// The event side of a registration with `hook=`.
    pub fn hook(
        self: &Arc<Self>,
        command: String,
        prefix: Option<String>,
        mode: Mode,
        in_order: bool,
    ) -> Box<dyn Trigger> {
        Box::new(Hook {
            commands: Arc::clone(self),
            folded: command.to_ascii_lowercase(),
            command,
            prefix,
            mode,
            in_order,
        })
    }

    /// Runs the function that the second word of `command` names.
    ///
    /// # Errors
    /// There is none; its mode is not `sync` and the caller cannot wait; too many of its executions are pending.
    pub fn call(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let words = command.argv().skip(1);
        let Some(name) = words.get(0) else {
            return Err(Error::WrongArity);
        };
        let called = self.triggers.read(command.lock()).get(name).cloned();
        let Some(called) = called else {
            return Err(Error::NoSuchTrigger);
        };
        let registration = &called.registration;
        if registration.mode == Mode::Sync {
            let ran = self
                .engine
                .run_brief(registration, &called.spare, &self.nothing, words, command);
            return match ran {
                Some(Brief::Result(result)) => {
                    command.send_only(&result);
                    Ok(Answer::Done)
                }
                Some(Brief::Ran(ran)) => ran.answer(command, all_results),
                None => {
                    let start = self.start(&called, words).waiting(command.may_block());
                    self.engine.run_now(start).answer(command, all_results)
                }
            };
        }
        self.call_in_background(&called, command, words)
    }

    #[inline(never)]
    fn start(&self, called: &Called, words: Argv<'_>) -> Start {
        let record = Box::new(Once::of_words(words.iter()));
        Start::of_call(&called.registration, 0, record, Arc::clone(&self.nothing))
    }

    #[inline(never)]
    fn call_in_background(
        &self,
        called: &Called,
        command: &Command<'_>,
        words: Argv<'_>,
    ) -> Result<Answer, Error> {
        let registration = &called.registration;
        if !command.may_block() {
            return Err(Error::CannotWaitHere);
        }
        if !self.engine.has_room(registration) {
            return Err(Error::NotTriggered("too many executions are pending"));
        }
        let distributed =
            registration.mode == Mode::Async && self.engine.is_distributed(&registration.plan, true);
        let payload = distributed.then(|| {
            let words = SourceImage::of_words(words.iter()).to_bytes();
            LaunchPayload::of_registration(registration, Some(words))
        });
        let owner = Arc::clone(registration);
        let reply = move |outcome: &Outcome| {
            // Otherwise it would look as if the function had nothing to say.
            let removed = outcome.aborted && outcome.errors.is_empty() && owner.is_removed();
            if removed {
                Error::NotTriggered("its registration was removed before it began").into()
            } else {
                all_results(outcome.clone())
            }
        };
        let start = self.start(called, words).distributed(payload);
        let start = start.answering(command.block()?, reply);
        self.engine.submit(start, registration.lane());
        Ok(Answer::Done)
    }
}

/// The reply of RG.TRIGGER: the first error, else all results.
fn all_results(outcome: Outcome) -> Reply {
    match outcome.errors.first() {
        Some(error) => Reply::error(error),
        None => Reply::Array(outcome.results),
    }
}

/// There is nothing behind a function that is called by its name.
struct Nothing;

impl Next for Nothing {
    fn call(&self, _engine: &Engine, _lock: Lock<'_>, _arguments: Vec<Vec<u8>>) -> Reply {
        Reply::error("Failed executing command")
    }

    fn stands_for(&self, _command: &[u8]) -> bool {
        false
    }
}

const READER: &str = "CommandReader";

fn arguments(name: &str, in_order: bool) -> Vec<(&'static str, Reply)> {
    vec![
        ("trigger", Reply::bulk(name)),
        ("inorder", Reply::Int(i64::from(in_order))),
    ]
}

/// A registration with a name of its own.
struct Named {
    commands: Arc<Commands>,
    name: String,
    in_order: bool,
}

impl Trigger for Named {
    fn reader(&self) -> &'static str {
        READER
    }

    fn arguments(&self) -> Vec<(&'static str, Reply)> {
        arguments(&self.name, self.in_order)
    }

    fn image(&self) -> Vec<u8> {
        let image = Image::Trigger {
            name: self.name.clone(),
            in_order: self.in_order,
        };
        image.to_bytes()
    }

    fn check(&self, lock: Lock<'_>, peers: Peers<'_>) -> Result<(), Error> {
        let triggers = self.commands.triggers.read(lock);
        let taken = triggers.get(self.name.as_bytes());
        if taken.is_some_and(|taken| !peers.replace(&taken.registration)) {
            return Err(Error::TriggerExists);
        }
        if peers.claims().any(|claim| claim == Claim::Trigger(&self.name)) {
            return Err(Error::TriggerExistsInSession);
        }
        Ok(())
    }

    fn start(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let mut triggers = self.commands.triggers.write(lock);
        if triggers.contains_key(self.name.as_bytes()) {
            return Err(Error::TriggerExists);
        }
        let called = Called {
            registration: Arc::clone(registration),
            spare: Spare::default(),
        };
        triggers.insert(self.name.clone().into_bytes(), Arc::new(called));
        Ok(())
    }

    fn stop(&self, lock: Lock<'_>, registration: &Registration) {
        let mut triggers = self.commands.triggers.write(lock);
        if triggers
            .get(self.name.as_bytes())
            .is_some_and(|known| known.registration.id == registration.id)
        {
            triggers.remove(self.name.as_bytes());
        }
    }

    fn claim(&self) -> Option<Claim<'_>> {
        Some(Claim::Trigger(&self.name))
    }
}

/// A registration in the place of a command.
struct Hook {
    commands: Arc<Commands>,
    /// As given.
    command: String,
    /// In lower case.
    folded: String,
    prefix: Option<String>,
    mode: Mode,
    in_order: bool,
}

impl Trigger for Hook {
    fn reader(&self) -> &'static str {
        READER
    }

    fn arguments(&self) -> Vec<(&'static str, Reply)> {
        arguments(&self.command, self.in_order)
    }

    fn image(&self) -> Vec<u8> {
        let image = Image::Hook {
            command: self.command.clone(),
            prefix: self.prefix.clone(),
            mode: self.mode,
            in_order: self.in_order,
        };
        image.to_bytes()
    }

    fn doubts(&self) -> Vec<String> {
        let doubt = |prefix| doubts::of_literal_prefix("keyprefix", prefix);
        self.prefix.as_deref().and_then(doubt).into_iter().collect()
    }

    fn check(&self, lock: Lock<'_>, peers: Peers<'_>) -> Result<(), Error> {
        let hooks = &self.commands.hooks;
        hooks.look_up_hook(lock, &self.folded, self.prefix.is_some())?;
        if hooks
            .newest_hook(lock, &self.folded)
            .is_some_and(|newest| newest.mode != Mode::Sync && !peers.replace(&newest))
        {
            return Err(Error::HookedByBackground);
        }
        let background = Claim::Hook {
            command: &self.folded,
            sync: false,
        };
        if peers.claims().any(|claim| claim == background) {
            return Err(Error::HookedByBackgroundInSession);
        }
        Ok(())
    }

    fn start(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let hooks = &self.commands.hooks;
        let spec = hooks.look_up_hook(lock, &self.folded, self.prefix.is_some())?;
        let prefix = self.prefix.clone().map(String::into_bytes);
        hooks.put_hook(lock, registration, spec, prefix);
        Ok(())
    }

    fn stop(&self, lock: Lock<'_>, registration: &Registration) {
        self.commands.hooks.unlink(lock, registration.id);
    }

    fn claim(&self) -> Option<Claim<'_>> {
        Some(Claim::Hook {
            command: &self.folded,
            sync: self.mode == Mode::Sync,
        })
    }
}
