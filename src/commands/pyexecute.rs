//! RG.PYEXECUTE: runs a script and does what it asked for. Contract: docs/contract/commands.md 1.2.

use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::check_may_bring_code;
use crate::{
    cluster::Registered,
    engine::{
        Engine,
        execution::Outcome,
        requirement::Requirement,
        scope::Prepared,
        session::{Needs, Session, random_hex},
        start::Start,
    },
    error::Error,
    module::Pinion,
    python, requirements,
    server::{
        api,
        client::{self, WatchedClient},
        command::{Answer, Command},
        lock::{self, Lock},
        reply::Reply,
        rights::Owner,
        string::Argv,
    },
};

commands! {
    pyexecute_command {
        name: c"rg.pyexecute",
        flags: c"write deny-script",
        categories: c"write admin dangerous gears gears-register",
        syntax: "<script> [UNBLOCKING] [ID <id>] [DESCRIPTION <text>] [UPGRADE] [REPLACE_WITH <id>] [FORCE_REINSTALL_REQUIREMENTS] [REQUIREMENTS [<requirement> ...]]",
        summary: c"Runs a script, which may run functions over the data and register others.",
        handler: pyexecute,
    }
}

#[derive(Default)]
struct Options {
    unblocking: bool,
    id: Option<String>,
    description: Option<ByteBuf>,
    upgrade: bool,
    replace_with: Option<String>,
    force: bool,
    requirements: Vec<String>,
    /// Who sent the script.
    made_by: Option<String>,
}

/// What follows a script that ended well.
enum Next {
    Reply(Reply),
    /// Its run, whose results the client waits for.
    Wait(Start),
    /// Other shards register what it registered.
    OnAllShards {
        prepared: Prepared,
        unblocking: bool,
    },
}

/// `RG.PYEXECUTE <script> [UNBLOCKING] [ID <id>] [DESCRIPTION <text>] [UPGRADE] [REPLACE_WITH <id>]
/// [FORCE_REINSTALL_REQUIREMENTS] [REQUIREMENTS [<requirement> ...]]`
///
/// # Errors
/// A wrong argument; the error string of the script; what a registration was refused for. After an installation these are
/// the reply of the waiting client.
fn pyexecute(pinion: &'static Pinion, command: &Command<'_>) -> Result<Answer, Error> {
    if !command.may_block() {
        return Err(Error::CannotRunHere);
    }
    let script = command.argv().get(1).ok_or(Error::WrongArity)?;
    check_may_bring_code(pinion)?;
    let mut options = parse(command.argv().skip(2))?;
    options.made_by = client::user_name(command.lock(), command.client_id());
    session_to_replace(&pinion.engine, &options)?;
    let lock = command.lock();
    if pinion.cluster.check_shape(lock).is_err() {
        // It will be known in a moment, usually.
        let (client, script) = (command.block()?.watched(lock), script.to_vec());
        pinion.cluster.when_shape_known(move |known| match known {
            Ok(()) => lock::with_lock(|lock| pinion.begin(lock, script, options, client)),
            Err(error) => client.answer(error.into()),
        });
        return Ok(Answer::Done);
    }
    // Other shards may lack what is known here.
    if let Some(needs) = pinion.ready_needs(lock, &options) {
        return Ok(match pinion.run(lock, script, options, needs)? {
            Next::Reply(reply) => reply.into(),
            next => {
                pinion.follow_up(lock, next, command.block()?.watched(lock));
                Answer::Done
            }
        });
    }
    pinion.packages.check(&options.requirements)?;
    pinion.install_and_run(script.to_vec(), options, command.block()?.watched(lock));
    Ok(Answer::Done)
}

impl Pinion {
    /// What the script needs, if nothing is to be installed, here or on other shards.
    fn ready_needs(&self, lock: Lock<'_>, options: &Options) -> Option<Needs> {
        let known = |name: &String| self.engine.requirements.get(lock, name);
        let requirements: Vec<_> = options.requirements.iter().filter_map(known).collect();
        let ready = are_ready(options, &requirements);
        (ready && (requirements.is_empty() || !self.cluster.has_others())).then_some(Needs {
            requirements,
            installed: false,
        })
    }

    /// Runs the script of a client that waited until the shards were known.
    fn begin(&'static self, lock: Lock<'_>, script: Vec<u8>, options: Options, client: WatchedClient) {
        if let Some(needs) = self.ready_needs(lock, &options) {
            return self.run_blocked(lock, &script, options, needs, client);
        }
        match self.packages.check(&options.requirements) {
            Ok(()) => self.install_and_run(script, options, client),
            Err(error) => client.answer(error.into()),
        }
    }

    fn install_and_run(&'static self, script: Vec<u8>, options: Options, client: WatchedClient) {
        self.packages.later(move || match self.install(&options) {
            Ok(needs) => self.run_when_shards_are_ready(script, options, needs, client),
            Err(error) => client.answer(error.into()),
        });
    }

    /// Fetches and installs requirements, and makes them known. On the thread for requirements.
    fn install(&self, options: &Options) -> Result<Needs, Error> {
        let names = &options.requirements;
        let known = lock::with_lock(|lock| {
            let known = |name: &String| self.engine.requirements.get(lock, name);
            names.iter().filter_map(known).collect::<Vec<_>>()
        });
        // What the client waited for may have done it.
        if are_ready(options, &known) {
            return Ok(Needs {
                requirements: known,
                installed: false,
            });
        }
        let is_installed = |known: &Arc<Requirement>| known.is_installed();
        let known: Vec<_> = known.into_iter().filter(is_installed).collect();
        let fetched = self.packages.obtain(names, &known)?;
        lock::with_lock(|lock| {
            let mut each = fetched.iter();
            each.try_for_each(|fetched| {
                self.persistence
                    .import(lock, &fetched.requirement, &fetched.archive)
            })
        })?;
        Ok(Needs {
            requirements: fetched.into_iter().map(|fetched| fetched.requirement).collect(),
            installed: true,
        })
    }

    /// Runs the script of a client that waited for an installation, when other shards have what it needs, too.
    fn run_when_shards_are_ready(
        &'static self,
        script: Vec<u8>,
        options: Options,
        needs: Needs,
        client: WatchedClient,
    ) {
        let requirements = needs.requirements.clone();
        self.cluster.ensure_requirements(requirements, move |ensured| {
            if let Err(error) = ensured {
                return client.answer(error.into());
            }
            lock::with_lock(|lock| self.run_blocked(lock, &script, options, needs, client));
        });
    }

    /// Runs the script of a client that has waited, if it still does. Otherwise it knows that the script has failed, and what
    /// it has deployed meanwhile must not be replaced.
    fn run_blocked(
        &'static self,
        lock: Lock<'_>,
        script: &[u8],
        options: Options,
        needs: Needs,
        client: WatchedClient,
    ) {
        if client.is_gone() {
            return;
        }
        match self.run(lock, script, options, needs) {
            Ok(next) => self.follow_up(lock, next, client),
            Err(error) => client.answer(error.into()),
        }
    }

    /// Does what follows a script whose client waits.
    fn follow_up(&'static self, lock: Lock<'_>, next: Next, client: WatchedClient) {
        match next {
            Next::Reply(reply) => client.answer(reply),
            Next::Wait(start) => {
                self.engine
                    .submit(start.answering(client.blocked(), Outcome::to_reply), None);
            }
            Next::OnAllShards {
                mut prepared,
                unblocking,
            } => {
                let registrations = std::mem::take(&mut prepared.registrations);
                let old = prepared.replaces.take();
                let wanted = client.still_waits();
                let run = move |registered: Registered| match registered {
                    Ok(()) => {
                        self.start_run(prepared.run, true, unblocking);
                        client.answer(Reply::ok());
                    }
                    Err(failures) => client.answer(Reply::Array(failures)),
                };
                self.cluster
                    .register_on_all_shards(lock, old, registrations, wanted, run);
            }
        }
    }

    fn run(&self, lock: Lock<'_>, script: &[u8], options: Options, needs: Needs) -> Result<Next, Error> {
        let old = session_to_replace(&self.engine, &options)?;
        let id = options.id.unwrap_or_else(random_hex);
        let session = Session::new(id, options.description, needs);
        let session = Arc::new(session.owned_by(Owner::of_user(options.made_by)));
        let prepared = python::run_script(lock, script, &session, old)?;
        if let Some(made) = prepared.unapplied.first() {
            return Err(Error::given_no_function(made));
        }
        if prepared.is_idle() {
            api::log_warning(&format!(
                "session {}: the script neither runs nor registers a function: end GB() with .run(...) or .register(...), or put a function \
                 behind @read_through(...) or @write_behind(...)",
                session.id
            ));
        }
        let unblocking = options.unblocking;
        let changes = !prepared.registrations.is_empty() || prepared.replaces.is_some();
        if changes && self.cluster.has_others() {
            return Ok(Next::OnAllShards { prepared, unblocking });
        }
        self.persistence
            .register(lock, prepared.replaces.as_ref(), &prepared.registrations)?;
        Ok(self.start_run(prepared.run, !prepared.registrations.is_empty(), unblocking))
    }

    /// `registered`: the script has registered something, so that its run is nobody's to wait for.
    fn start_run(&self, run: Option<Start>, registered: bool, unblocking: bool) -> Next {
        let Some(start) = run else {
            return Next::Reply(Reply::ok());
        };
        if !registered && !unblocking {
            return Next::Wait(start);
        }
        let execution = self.engine.submit(start.kept(), None);
        Next::Reply(if registered {
            Reply::ok()
        } else {
            Reply::bulk(execution.id.to_string())
        })
    }
}

/// Whether nothing is to be installed; `known`: which of the requirements are known by name.
fn are_ready(options: &Options, known: &[Arc<Requirement>]) -> bool {
    let all = known.len() == options.requirements.len();
    let installed = known.iter().all(|requirement| requirement.is_installed());
    all && installed && (!options.force || known.is_empty())
}

fn parse(words: Argv<'_>) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut words = words.iter();
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    while let Some(word) = words.next() {
        let is = |option: &str| word.eq_ignore_ascii_case(option.as_bytes());
        let mut value = |option: &'static str| words.next().ok_or(Error::ValueMissing(option));
        if is("UNBLOCKING") {
            options.unblocking = true;
        } else if is("ID") {
            let id = value("ID")?;
            if !Session::is_valid_id(id) {
                return Err(Error::BadSessionId);
            }
            options.id = Some(text(id));
        } else if is("DESCRIPTION") {
            options.description = Some(ByteBuf::from(value("DESCRIPTION")?));
        } else if is("UPGRADE") {
            options.upgrade = true;
        } else if is("REPLACE_WITH") {
            options.replace_with = Some(text(value("REPLACE_WITH")?));
        } else if is("FORCE_REINSTALL_REQUIREMENTS") {
            options.force = true;
        } else if is("REQUIREMENTS") {
            let named = words.by_ref().map(text);
            options.requirements = named.filter(|name| !requirements::is_shipped(name)).collect();
        } else {
            return Err(Error::UnknownArgument(text(word)));
        }
    }
    Ok(options)
}

/// The session whose place the new one takes.
///
/// # Errors
/// The id is taken, or what is to be replaced does not exist.
fn session_to_replace(engine: &Engine, options: &Options) -> Result<Option<Arc<Session>>, Error> {
    engine.registry.sessions(|sessions| {
        let same = options.id.as_ref().and_then(|id| sessions.live(id));
        match (&options.replace_with, same) {
            (Some(other), Some(same)) => Err(Error::CannotReplaceExisting {
                id: same.id.clone(),
                old: other.clone(),
            }),
            (Some(other), None) => match sessions.live(other) {
                Some(old) => Ok(Some(old)),
                None => Err(Error::NothingToReplace(other.clone())),
            },
            (None, Some(same)) if !options.upgrade => Err(Error::SessionExists(same.id.clone())),
            (None, same) => Ok(same),
        }
    })
}
