//! What is registered, where it outlives the process: files, replicas. Contract: `commands.md` 4.4 and chapter 6.
//!
//! Every change goes through here: it takes effect, and then goes out as one internal command. What comes in that way, or
//! from a file, takes effect by the same code and in the same order.

mod archive;
mod gone;
mod shared;
mod step;

use std::{
    ffi::CStr,
    sync::{Arc, Weak},
    time::Duration,
};

pub use archive::{Header, encode as write_archive, header as read_header};
use serde_bytes::ByteBuf;

use self::gone::Gone;
use self::step::{SavedRegistration, SavedSession};
pub use self::{shared::Prepared, step::Step};
use crate::{
    engine::{
        Engine,
        id::Id,
        language::Function,
        plan::Plan,
        registration::{Claim, Life, Peers, Registration},
        requirement::Requirement,
        session::{Needs, Session, Sessions},
    },
    error::Error,
    python::{Files, Packages},
    readers::image::Readers,
    redis::{
        api::{self, Features},
        call::{call, replicate},
        command::{Answer, Command},
        guarded::Guarded,
        lock::{self, Lock},
        persist::{Blob, Saved},
        reply::Reply,
    },
    stats::RunStats,
};

/// The internal commands that carry what is registered.
const REGISTER: &CStr = c"RG.INNERREGISTER";
const UNREGISTER: &CStr = c"RG.INNERUNREGISTER";
const IMPORT: &CStr = c"RG.PYIMPORTRETINTERNAL";

/// Why a registration does not run yet: what a client sees as its last error.
const HELD: &str = "its requirements are being installed";

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
    /// No longer in force.
    gone: Gone,
    /// Those of them that begin to run when their requirements are installed.
    held: Vec<Arc<Registration>>,
    /// Whose onRegistered is to be called when everything is loaded.
    loaded: Vec<Arc<Registration>>,
    /// The requirements before the load; what is loaded may be the same.
    previous: Vec<Arc<Requirement>>,
}

/// The functions of a registration, loaded.
#[derive(Default)]
struct Functions {
    /// In the order of the plan's table.
    table: Vec<Arc<dyn Function>>,
    on_registered: Option<Arc<dyn Function>>,
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

    /// Puts registrations in force, all or none, in the place of those of session `old`, here and on replicas.
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
        self.check_held(lock, old, registrations)?;
        self.put_in_force(lock, old, registrations)?;
        let step = step_of(session, old, registrations);
        replicate(lock, REGISTER, &[&step.encode()]);
        for registration in registrations {
            self.engine.call_on_registered(registration);
        }
        Ok(())
    }

    /// What is held takes its names already, though the readers do not know of it.
    fn check_held(
        &self,
        lock: Lock<'_>,
        old: Option<&Arc<Session>>,
        registrations: &[Arc<Registration>],
    ) -> Result<(), Error> {
        let kept = self.kept.read(lock);
        let peers = Peers {
            replaced: old.map(|old| &**old),
            prepared: &[],
        };
        let stays = |held: &&Arc<Registration>| !held.is_removed() && !peers.replace(held);
        for held in kept.held.iter().filter(stays) {
            for registration in registrations {
                match (held.trigger.claim(), registration.trigger.claim()) {
                    (Some(Claim::Trigger(held)), Some(Claim::Trigger(new))) if held == new => {
                        return Err(Error::TriggerExists);
                    }
                    (
                        Some(Claim::Hook {
                            command: held,
                            sync: false,
                        }),
                        Some(Claim::Hook { command: new, .. }),
                    ) if held == new => return Err(Error::HookedByBackground),
                    _ => {}
                }
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
        kept.gone.extend(replaced);
        kept.registrations.extend(registrations.iter().cloned());
        kept.registrations
            .retain(|registration| !registration.is_removed());
        kept.registrations.sort_by_key(|registration| registration.id);
        drop(kept);
        if let Some(old) = old {
            let sessions = self.engine.registry.sessions(Sessions::all_live);
            self.engine.requirements.forget_unused(lock, old, &sessions);
        }
        Ok(())
    }

    /// Ends a registration, here and on replicas.
    ///
    /// # Errors
    /// There is no such registration; this is a replica.
    pub fn unregister(&self, lock: Lock<'_>, id: Id, abort_pending: bool) -> Result<(), Error> {
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        self.take_out_of_force(lock, id, abort_pending)?;
        let id = id.to_string();
        if abort_pending {
            replicate(lock, UNREGISTER, &[id.as_bytes(), b"abortpending"]);
        } else {
            replicate(lock, UNREGISTER, &[id.as_bytes()]);
        }
        Ok(())
    }

    fn take_out_of_force(&self, lock: Lock<'_>, id: Id, abort_pending: bool) -> Result<(), Error> {
        self.engine.unregister(lock, id, abort_pending)?;
        let mut kept = self.kept.write(lock);
        kept.gone.extend([id]);
        kept.registrations.retain(|registration| registration.id != id);
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
        log_failure(Step::decode(blob).and_then(|step| self.apply_step(lock, step)));
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
            self.unregister(lock, id, abort_pending)?;
            return Ok(Reply::ok().into());
        }
        let done = self.take_out_of_force(lock, id, abort_pending);
        log_failure(done.map_err(|error| error.to_string()));
        let arguments: Vec<&[u8]> = words.iter().skip(1).map(Vec::as_slice).collect();
        replicate(lock, UNREGISTER, &arguments);
        Ok(Reply::ok().into())
    }

    /// Makes a requirement known that came from a file or the master. What is not installed yet will be, by its thread:
    /// a replica serves its clients meanwhile.
    fn take(&self, lock: Lock<'_>, archive: &[u8]) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        let header = archive::header(archive).map_err(text)?;
        let loading = self.engine.is_loading();
        // Otherwise the thread for requirements finds out: it takes its time.
        let files = loading
            .then(|| archive::decode(archive).map_err(text))
            .transpose()?;
        let is_it = |known: &Arc<Requirement>| {
            known.name == header.name && known.digest == header.digest && known.has_files(lock)
        };
        let known = self.engine.requirements.get(lock, &header.name).filter(is_it);
        let known = known.or_else(|| {
            self.kept
                .read(lock)
                .previous
                .iter()
                .find(|old| is_it(old))
                .cloned()
        });
        let requirement = known.unwrap_or_else(|| {
            let requirement = self.packages.requirement(&header);
            if files.is_some_and(|files| self.packages.has_installed(&requirement, &files)) {
                requirement.set_installed();
                Arc::new(requirement)
            } else {
                Arc::new(requirement.with_archive(archive.into()))
            }
        });
        if !requirement.is_installed() {
            requirement.set_wanted();
        }
        self.engine.requirements.put(lock, &requirement);
        if !loading {
            self.install_wanted();
        }
        Ok(())
    }

    /// Installs what has come without being installed, and begins what was held for it.
    fn install_wanted(&self) {
        let Some(this) = self.this.upgrade() else { return };
        self.packages.later(move || {
            let wanted = lock::with_lock(|lock| this.wanted(lock));
            for requirement in wanted {
                let installed = this.unpack(&requirement).and_then(|()| {
                    let requirement = std::slice::from_ref(&requirement);
                    this.packages.install(requirement)
                });
                if let Err(error) = installed {
                    // Functions that miss it tell by themselves.
                    api::log_warning(&format!(
                        "requirement {} was not installed: {error}",
                        requirement.name
                    ));
                    requirement.set_failed();
                }
            }
            lock::with_lock(|lock| this.begin_held(lock));
        });
    }

    /// The requirements that are to be installed: those that only held registrations know, and by name all from the first
    /// one on, because of two versions the last one is imported.
    fn wanted(&self, lock: Lock<'_>) -> Vec<Arc<Requirement>> {
        if self.engine.is_loading() {
            return Vec::new();
        }
        let known = self.engine.requirements.all(lock);
        let kept = self.kept.read(lock);
        let held = kept.held.iter().filter(|held| !held.is_removed());
        let mut wanted: Vec<Arc<Requirement>> = Vec::new();
        for requirement in held.flat_map(|held| &held.session.needs.requirements) {
            let is_it = |other: &Arc<Requirement>| Arc::ptr_eq(other, requirement);
            if !requirement.is_wanted() || known.iter().any(is_it) || wanted.iter().any(is_it) {
                continue;
            }
            if known.iter().any(|known| known.name == requirement.name) {
                // A later one has its name: as after a restart, the session gets that.
                requirement.drop_archive(lock);
                requirement.set_failed();
            } else {
                wanted.push(Arc::clone(requirement));
            }
        }
        wanted.extend(known.into_iter().skip_while(|known| !known.is_wanted()));
        wanted
    }

    /// Puts files on the disk that exist as bytes only. The bytes are kept, and saved, until that has worked.
    fn unpack(&self, requirement: &Arc<Requirement>) -> Result<(), String> {
        let Some(archive) = lock::with_lock(|lock| requirement.archive(lock)) else {
            return Ok(());
        };
        let files = archive::decode(&archive).map_err(|error| {
            lock::with_lock(|lock| self.engine.requirements.remove(lock, requirement));
            error.to_string()
        })?;
        self.packages
            .store(requirement, &files)
            .map_err(|error| error.to_string())?;
        lock::with_lock(|lock| requirement.drop_archive(lock));
        Ok(())
    }

    /// Starts registrations whose requirements are installed, or cannot be.
    fn begin_held(&self, lock: Lock<'_>) {
        if self.engine.is_loading() {
            return;
        }
        let held = std::mem::take(&mut self.kept.write(lock).held);
        let (held, ready): (Vec<_>, Vec<_>) = held
            .into_iter()
            .filter(|held| !held.is_removed())
            .partition(|held| is_held(&held.session));
        self.kept.write(lock).held.extend(held);
        for held in ready {
            // Functions of one that began before may have removed it.
            if !held.is_removed() {
                self.begin(lock, &held);
            }
        }
    }

    /// Puts a registration that runs in the place of one that was held. One that cannot run stays, and tells why.
    fn begin(&self, lock: Lock<'_>, held: &Registration) {
        let session = &held.session;
        let make = |functions| self.rebuild(SavedRegistration::of(held), session, functions);
        let functions = self.load(&SavedRegistration::of(held), session);
        let started = make(functions).and_then(|registration| {
            let registration = Arc::new(registration);
            if registration.disabled.is_none() {
                registration
                    .trigger
                    .start(lock, &registration)
                    .map_err(|error| error.to_string())?;
            }
            Ok(registration)
        });
        let registration = match started.or_else(|reason| make(Err(reason)).map(Arc::new)) {
            Ok(registration) => registration,
            Err(reason) => {
                // It was made of the same before.
                api::log_warning(&format!("registration {} cannot begin: {reason}", held.id));
                return;
            }
        };
        self.engine.registry.exchange_registration(&registration);
        let mut kept = self.kept.write(lock);
        kept.registrations.retain(|kept| kept.id != registration.id);
        kept.registrations.push(Arc::clone(&registration));
        kept.registrations.sort_by_key(|registration| registration.id);
        drop(kept);
        log_disabled(&registration);
        if registration.disabled.is_none() {
            self.engine.call_on_registered(&registration);
        }
    }

    /// Does what came from elsewhere. Registrations whose requirements are not installed yet are there, with their numbers,
    /// their names and their session, and begin to run later.
    fn apply_step(&self, lock: Lock<'_>, step: Step) -> Result<(), String> {
        // Earlier versions sent them along.
        for archive in &step.requirements {
            if let Err(error) = self.take(lock, archive) {
                api::log_warning(&format!("a requirement could not be restored: {error}"));
            }
        }
        let gone = step.gone.iter().filter_map(|id| Id::parse(id.as_bytes()));
        self.kept.write(lock).gone.extend(gone);
        let live = |id: &str| self.engine.registry.sessions(|sessions| sessions.live(id));
        let old = step.replaces.as_deref().and_then(live);
        let same =
            live(&step.session.id).filter(|same| !old.as_ref().is_some_and(|old| Arc::ptr_eq(old, same)));
        let session = same.unwrap_or_else(|| {
            let known = |name: &String| self.engine.requirements.get(lock, name);
            let needs = Needs {
                requirements: step.session.requirements.iter().filter_map(known).collect(),
                installed: false,
            };
            Arc::new(Session::new(step.session.id, step.session.description, needs))
        });
        let mut registrations = Vec::new();
        for saved in step.registrations {
            let peers = Peers {
                replaced: old.as_deref(),
                prepared: &registrations,
            };
            let restored = self.restore(lock, saved, &session, peers)?;
            registrations.push(restored);
        }
        self.put_in_force(lock, old.as_ref(), &registrations)
            .map_err(|error| error.to_string())?;
        if is_held(&session) {
            self.kept.write(lock).held.extend(registrations);
        } else if self.engine.is_loading() {
            self.kept.write(lock).loaded.extend(registrations);
        } else {
            for registration in &registrations {
                self.engine.call_on_registered(registration);
            }
        }
        Ok(())
    }

    /// Makes a registration of what was saved of it. If its functions cannot be loaded, or not yet, or its trigger not be
    /// started, it is there without running, and tells why.
    fn restore(
        &self,
        lock: Lock<'_>,
        saved: SavedRegistration,
        session: &Arc<Session>,
        peers: Peers<'_>,
    ) -> Result<Arc<Registration>, String> {
        let held = is_held(session);
        let functions = if held {
            Err(HELD.to_owned())
        } else {
            self.load(&saved, session)
        };
        let mut registration = self.rebuild(saved, session, functions)?;
        let id = registration.id;
        if self.engine.registry.registration(id).is_some() {
            return Err(format!("there is a registration {id} already"));
        }
        if registration.disabled.is_none() {
            let refused = registration.trigger.check(lock, peers).err();
            registration.disabled = refused.map(|error| error.to_string());
        }
        if !held {
            log_disabled(&registration);
        }
        Ok(Arc::new(registration))
    }

    fn load(&self, saved: &SavedRegistration, session: &Arc<Session>) -> Result<Functions, String> {
        let load = |image: &ByteBuf| self.engine.language.load(image, session);
        Ok(Functions {
            table: saved
                .images
                .functions
                .iter()
                .map(load)
                .collect::<Result<_, _>>()?,
            on_registered: saved.images.on_registered.as_ref().map(load).transpose()?,
        })
    }

    /// # Errors
    /// What was saved is no registration.
    fn rebuild(
        &self,
        saved: SavedRegistration,
        session: &Arc<Session>,
        functions: Result<Functions, String>,
    ) -> Result<Registration, String> {
        let id = Id::parse(saved.id.as_bytes()).ok_or_else(|| format!("its id {} is none", saved.id))?;
        let trigger = self.readers.trigger(&saved.trigger)?;
        let (functions, disabled) = match functions {
            Ok(functions) => (functions, None),
            Err(reason) => (Functions::default(), Some(reason)),
        };
        let plan = Plan {
            steps: saved.steps,
            functions: functions.table,
        };
        if disabled.is_none() && !plan.is_complete() {
            return Err(format!(
                "registration {id} names a function that it does not have"
            ));
        }
        Ok(Registration {
            id,
            desc: saved.desc,
            mode: saved.mode,
            in_order: saved.in_order,
            plan: Arc::new(plan),
            session: Arc::clone(session),
            trigger,
            on_registered: functions.on_registered,
            images: saved.images,
            disabled,
            stats: RunStats::default(),
            life: Life::default(),
        })
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
        for registration in loaded.iter().filter(|registration| !registration.is_removed()) {
            self.engine.call_on_registered(registration);
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
                    let packages = Arc::clone(&this.packages);
                    this.packages.later(move || packages.sweep(&owner));
                }
                None => this.sweep_later(),
            }
        });
    }
}

/// How long after the start, and after each look whether data are still loaded.
const SWEEP_DELAY: Duration = Duration::from_secs(1);

/// Tells this server from others that may use the same folder for requirements.
fn own_name(lock: Lock<'_>) -> String {
    let words: [&[u8]; 3] = [b"CONFIG", b"GET", b"*port"];
    // In no order that stays.
    let mut ports = match call(lock, Features::probe(), 0, &words.map(<[u8]>::to_vec)) {
        Reply::Array(words) => words.iter().map(|word| format!("{word:?}")).collect(),
        _ => Vec::new(),
    };
    ports.sort();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    format!("{host} {} {ports:?}", here.display())
}

impl Saved for Persistence {
    fn count(&self, lock: Lock<'_>) -> usize {
        let kept = self.kept.read(lock);
        let gone = usize::from(!kept.gone.is_empty());
        kept.registrations.len() + gone + self.engine.requirements.all(lock).len()
    }

    fn each(&self, lock: Lock<'_>, save: &mut dyn FnMut(Blob)) {
        for requirement in self.engine.requirements.all(lock) {
            match archive_of(lock, &requirement) {
                Ok(bytes) => save(Blob {
                    command: IMPORT,
                    bytes,
                }),
                Err(error) => api::log_warning(&format!(
                    "Failed serializing requirement {}, {error}",
                    requirement.name
                )),
            }
        }
        let kept = self.kept.read(lock);
        if !kept.gone.is_empty() {
            let step = Step {
                gone: kept.gone.iter().map(|id| id.to_string()).collect(),
                ..Step::default()
            };
            save(Blob {
                command: REGISTER,
                bytes: step.encode(),
            });
        }
        for registration in &kept.registrations {
            let step = Step {
                session: SavedSession::of(&registration.session),
                registrations: vec![SavedRegistration::of(registration)],
                ..Step::default()
            };
            save(Blob {
                command: REGISTER,
                bytes: step.encode(),
            });
        }
    }

    fn load(&self, lock: Lock<'_>, blob: &[u8]) -> Result<(), String> {
        if archive::is_one(blob) {
            return self.take(lock, blob);
        }
        self.apply_step(lock, Step::decode(blob)?)
    }
}

/// Registrations of a session that takes the place of `old`, as others see it. The requirements went out when they were
/// installed, see [`Persistence::import`].
fn step_of(session: &Session, old: Option<&Arc<Session>>, registrations: &[Arc<Registration>]) -> Step {
    let saved = registrations
        .iter()
        .map(|registration| SavedRegistration::of(registration));
    Step {
        replaces: old.map(|old| old.id.clone()),
        session: SavedSession::of(session),
        registrations: saved.collect(),
        ..Step::default()
    }
}

/// True while something that the session's functions need is to be installed.
fn is_held(session: &Session) -> bool {
    session
        .needs
        .requirements
        .iter()
        .any(|requirement| requirement.is_wanted())
}

fn log_failure(done: Result<(), String>) {
    if let Err(reason) = done {
        api::log_warning(&format!("Failed register session on replica, {reason}"));
    }
}

fn log_disabled(registration: &Registration) {
    if let Some(reason) = &registration.disabled {
        api::log_warning(&format!(
            "registration {} is there but does not run: {reason}",
            registration.id
        ));
    }
}

/// A requirement as bytes.
///
/// # Errors
/// One of its files is gone; the bytes that came are damaged, which its thread has not noticed yet.
fn archive_of(lock: Lock<'_>, requirement: &Requirement) -> Result<Vec<u8>, String> {
    match requirement.archive(lock) {
        Some(archive) => match archive::decode(&archive) {
            Ok(_) => Ok(archive.to_vec()),
            Err(error) => Err(error.to_string()),
        },
        None => files_of(requirement).map(|files| archive::encode(&files)),
    }
}

/// The files of a requirement, read from the disk.
///
/// # Errors
/// One of them is gone.
pub fn files_of(requirement: &Requirement) -> Result<Files, String> {
    let read = |wheel: &String| Ok((wheel.clone(), requirement.read(wheel)?));
    Ok(Files {
        name: requirement.name.clone(),
        platform: requirement.platform.clone(),
        wheels: requirement
            .wheels
            .iter()
            .map(read)
            .collect::<Result<_, String>>()?,
    })
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
