//! What is registered, where it outlives the process: files, replicas. Contract: docs/contract/commands.md 4.4 and
//! chapter 6.
//!
//! Every change goes through here: it takes effect, and then goes out as one internal command. What comes in that way, or
//! from a file, takes effect by the same code and in the same order.

mod awaiting;
mod change;
mod files;
mod replay;
mod restore;
mod shared;
mod tombstones;

use std::{
    ffi::CStr,
    sync::{Arc, Weak},
    time::Duration,
};

pub use files::files_of;

use self::change::{SavedRegistration, SavedSession};
use self::tombstones::Tombstones;
pub use self::{
    change::RegistrationChange,
    shared::{LoadingChange, PreparedChange},
};
use crate::{
    engine::{
        Engine,
        id::Id,
        registration::{Registration, Trigger},
        requirement::Requirement,
        session::{Session, Sessions},
    },
    error::Error,
    readers::image::Readers,
    requirements::Packages,
    server::{
        after::when_writes_are_allowed,
        api::{self, Features},
        asking::config,
        call::replicate,
        command::{Answer, Command},
        guarded::Guarded,
        lock::{self, Lock},
        reply::Reply,
    },
};

/// The internal commands that carry what is registered.
const REGISTER: &CStr = c"RG.INNERREGISTER";
const UNREGISTER: &CStr = c"RG.INNERUNREGISTER";
const IMPORT: &CStr = c"RG.PYIMPORTRETINTERNAL";

/// The registrations of this server as files and replicas see them.
pub struct Persistence {
    this: Weak<Self>,
    engine: Arc<Engine>,
    readers: Arc<Readers>,
    packages: Arc<Packages>,
    kept: Guarded<Kept>,
}

#[derive(Default)]
struct Kept {
    /// All that are there, in their order.
    registrations: Vec<Arc<Registration>>,
    /// The ids of registrations that have ended, for other shards.
    tombstones: Tombstones,
    /// Those of `registrations` that begin to run when their requirements are installed and their functions loaded.
    awaiting_requirements: Vec<Arc<Registration>>,
    /// Those of `awaiting_requirements` whose functions are being loaded.
    loading: Vec<Arc<Registration>>,
    /// Whose onRegistered is to be called when the data are loaded.
    loaded: Vec<Arc<Registration>>,
    /// The requirements before the load; what is loaded may be the same.
    previous: Vec<Arc<Requirement>>,
}

impl Persistence {
    pub fn new(engine: Arc<Engine>, readers: Arc<Readers>, packages: Arc<Packages>) -> Arc<Self> {
        let persistence = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            engine,
            readers,
            packages,
            kept: Guarded::default(),
        });
        persistence.sweep_later();
        persistence
    }

    /// Puts registrations in force, all or none, in the place of those of session `old`, here and on replicas. The only way in
    /// on this shard: checks, `Engine::register`, replicas, onRegistered.
    ///
    /// # Errors
    /// This is a replica; a reader refuses one of them. Nothing has changed then.
    pub fn register(
        &self,
        lock: Lock<'_>,
        old: Option<&Arc<Session>>,
        registrations: &[Arc<Registration>],
    ) -> Result<(), Error> {
        let owner = registrations.first().map(|registration| &registration.session);
        let Some(session) = owner.or(old) else {
            return Ok(());
        };
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        self.check_awaiting(lock, old, registrations)?;
        self.check_ends(lock, old, &triggers(registrations))?;
        self.put_in_force(lock, old, registrations)?;
        let change = change_of(session, old, registrations);
        replicate(lock, REGISTER, &[&change.encode()]);
        for registration in registrations {
            self.engine.call_on_registered(registration);
        }
        Ok(())
    }

    /// What a session has that none of the new triggers takes over must be allowed to end.
    pub(super) fn check_ends(
        &self,
        lock: Lock<'_>,
        old: Option<&Arc<Session>>,
        new: &[&dyn Trigger],
    ) -> Result<(), Error> {
        let Some(old) = old else { return Ok(()) };
        for ending in self.engine.registry.registrations_of(old) {
            let claim = ending.trigger.claim();
            let taken_over = new.iter().any(|new| new.claim() == claim);
            if claim.is_none() || !taken_over {
                ending.trigger.check_end(lock)?;
            }
        }
        Ok(())
    }

    fn put_in_force(
        &self,
        lock: Lock<'_>,
        old: Option<&Arc<Session>>,
        registrations: &[Arc<Registration>],
    ) -> Result<(), Error> {
        let replaced = old.map_or_else(Vec::new, |old| old.registrations());
        self.engine.register(lock, old, registrations)?;
        let mut kept = self.kept.write(lock);
        kept.tombstones.extend(replaced);
        kept.registrations.extend(registrations.iter().cloned());
        kept.registrations
            .retain(|registration| !registration.is_removed());
        kept.registrations.sort_by_key(|registration| registration.id);
        drop(kept);
        if let Some(old) = old {
            let sessions = self.engine.registry.sessions(Sessions::all_live);
            self.engine.requirements.forget_unused(lock, old, &sessions);
            self.name_is_free(lock);
        }
        Ok(())
    }

    /// Ends registrations, all or none, here and on replicas.
    ///
    /// # Errors
    /// There is no such registration; this is a replica; something would be lost with one of them. Nothing has changed then.
    pub fn unregister(&self, lock: Lock<'_>, ids: &[Id], abort_pending: bool) -> Result<(), Error> {
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        for &id in ids {
            let ending = self.engine.registry.registration(id);
            let ending = ending.ok_or(Error::NotRegistered)?;
            if !abort_pending {
                ending.trigger.check_end(lock)?;
            }
        }
        for &id in ids {
            if self.take_out_of_force(lock, id, abort_pending).is_err() {
                // The end of one before has ended it, by code of users that died with it.
                continue;
            }
            let id = id.to_string();
            if abort_pending {
                replicate(lock, UNREGISTER, &[id.as_bytes(), b"abortpending"]);
            } else {
                replicate(lock, UNREGISTER, &[id.as_bytes()]);
            }
        }
        Ok(())
    }

    /// A registration has ended on another shard: it ends here as well, now or when what it has is saved. Whoever compares
    /// registrations comes again.
    pub fn end(&self, lock: Lock<'_>, id: Id, abort_pending: bool) {
        // It may be gone already.
        let Some(ending) = self.engine.registry.registration(id) else {
            return;
        };
        if !abort_pending && ending.trigger.check_end(lock).is_err() {
            return ending.trigger.drain(lock);
        }
        let _ = self.unregister(lock, &[id], true);
    }

    fn take_out_of_force(&self, lock: Lock<'_>, id: Id, abort_pending: bool) -> Result<(), Error> {
        self.engine.unregister(lock, id, abort_pending)?;
        let mut kept = self.kept.write(lock);
        kept.tombstones.extend([id]);
        kept.registrations.retain(|registration| registration.id != id);
        drop(kept);
        self.name_is_free(lock);
        Ok(())
    }

    /// The requirement that is known by a name.
    pub fn known(&self, lock: Lock<'_>, name: &str) -> Option<Arc<Requirement>> {
        self.engine.requirements.get(lock, name)
    }

    /// Makes an installed requirement known by name, here, on replicas and in the AOF file. `archive`: its files as bytes.
    /// Sessions that use it later name it only.
    ///
    /// # Errors
    /// This is a replica by now.
    pub fn import(
        &self,
        lock: Lock<'_>,
        requirement: &Arc<Requirement>,
        archive: &[u8],
    ) -> Result<(), Error> {
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        self.engine.requirements.put(lock, requirement);
        replicate(lock, IMPORT, &[archive]);
        Ok(())
    }

    /// `RG.INNERREGISTER <blob>`, from an AOF file or a master only.
    ///
    /// # Errors
    /// Somebody else sent it; not one argument.
    pub fn inner_register(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let (lock, blob) = (command.lock(), only_argument(command)?);
        let change = RegistrationChange::decode(blob).map_err(Error::from);
        log_failure(change.and_then(|change| self.apply_change(lock, change)));
        replicate(lock, REGISTER, &[blob]);
        Ok(Answer::Done)
    }

    /// `RG.PYIMPORTRETINTERNAL <blob>`, from an AOF file or a master only.
    ///
    /// # Errors
    /// Somebody else sent it; not one argument.
    pub fn inner_import(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let (lock, blob) = (command.lock(), only_argument(command)?);
        log_failure(self.take(lock, blob));
        replicate(lock, IMPORT, &[blob]);
        Ok(Answer::Done)
    }

    /// `RG.INNERUNREGISTER <id> [abortpending]`: as RG.UNREGISTER, on this shard only.
    ///
    /// # Errors
    /// As [`Persistence::unregister`]; for what comes from the master none.
    pub fn inner_unregister(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let words = command.argv().to_vecs();
        let (word, abort) = match words.as_slice() {
            [_, id] => (id, None),
            [_, id, abort] => (id, Some(abort)),
            _ => return Err(Error::WrongArity),
        };
        let abort_pending = abort.is_some_and(|word| word.eq_ignore_ascii_case(b"abortpending"));
        let id = Id::parse(word).ok_or(Error::NotRegistered)?;
        let lock = command.lock();
        if !command.comes_from_the_data() {
            self.unregister(lock, &[id], abort_pending)?;
            return Ok(Reply::ok().into());
        }
        let done = self.take_out_of_force(lock, id, abort_pending);
        log_failure(done);
        let arguments: Vec<&[u8]> = words.iter().skip(1).map(Vec::as_slice).collect();
        replicate(lock, UNREGISTER, &arguments);
        Ok(Reply::ok().into())
    }

    /// The data are about to be replaced, and with them whatever is registered.
    pub fn loading_started(&self, lock: Lock<'_>) {
        self.engine.loading_started();
        let old = std::mem::take(&mut *self.kept.write(lock));
        for registration in old.registrations {
            // It was in force until now.
            let _ = self.engine.unregister(lock, registration.id, true);
        }
        for session in self.engine.registry.sessions(Sessions::all_live) {
            self.engine.registry.replace_session(&session);
        }
        let previous = self.engine.requirements.clear(lock);
        self.kept.write(lock).previous = previous;
    }

    /// The data are there: functions that prepare something for others may do so, and what is missing is installed.
    pub fn loading_ended(&self, lock: Lock<'_>) {
        let mut kept = self.kept.write(lock);
        let (loaded, previous) = (
            std::mem::take(&mut kept.loaded),
            std::mem::take(&mut kept.previous),
        );
        drop(kept);
        let known = self.engine.requirements.all(lock);
        for old in previous {
            if !known.iter().any(|known| known.directory() == old.directory()) {
                old.place.forget();
            }
        }
        for registration in loaded {
            let engine = Arc::clone(&self.engine);
            when_writes_are_allowed(lock, move |_| {
                if !registration.is_removed() {
                    engine.call_on_registered(&registration);
                }
            });
        }
        self.install_wanted();
    }

    /// The data could not be loaded, or only in part.
    pub fn loading_failed(&self, lock: Lock<'_>) {
        self.loading_started(lock);
    }

    /// Deletes what an earlier process has left of requirements, when this one has loaded its data and knows what it needs.
    fn sweep_later(&self) {
        let this = Weak::clone(&self.this);
        self.engine.timers.after(SWEEP_DELAY, move |_| {
            let Some(this) = this.upgrade() else { return };
            let owner = lock::with_lock(|lock| (!this.engine.is_loading()).then(|| own_name(lock)));
            match owner {
                Some(owner) => {
                    lock::with_lock(|lock| this.check_replay(lock));
                    let packages = Arc::clone(&this.packages);
                    this.packages.later(move || packages.sweep(&owner));
                }
                None => this.sweep_later(),
            }
        });
    }
}

fn triggers(registrations: &[Arc<Registration>]) -> Vec<&dyn Trigger> {
    let triggers = registrations.iter();
    triggers
        .map(|registration| registration.trigger.as_ref())
        .collect()
}

/// How long after the start, and after each look whether data are still loaded.
const SWEEP_DELAY: Duration = Duration::from_secs(1);

/// Tells this server from others that may use the same folder for requirements.
fn own_name(lock: Lock<'_>) -> String {
    // In no order that stays.
    let mut ports = config(lock, Features::probe(), "*port");
    ports.sort();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    format!("{host} {} {ports:?}", here.display())
}

/// Registrations of a session that takes the place of `old`, as others see it. The requirements went out when they were
/// installed, see [`Persistence::import`].
fn change_of(
    session: &Session,
    old: Option<&Arc<Session>>,
    registrations: &[Arc<Registration>],
) -> RegistrationChange {
    let saved = registrations
        .iter()
        .map(|registration| SavedRegistration::of(registration));
    RegistrationChange {
        replaces: old.map(|old| old.id.clone()),
        session: SavedSession::of(session),
        registrations: saved.collect(),
        ..RegistrationChange::default()
    }
}

fn log_failure(done: Result<(), Error>) {
    if let Err(reason) = done {
        api::log_warning(&format!("Failed register session on replica, {reason}"));
    }
}

fn only_argument<'a>(command: &Command<'a>) -> Result<&'a [u8], Error> {
    if !command.comes_from_the_data() {
        return Err(Error::InnerCommand);
    }
    let argv = command.argv();
    match argv.len() {
        2 => argv.get(1).ok_or(Error::WrongArity),
        _ => Err(Error::WrongArity),
    }
}
