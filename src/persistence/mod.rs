//! What is registered, where it outlives the process: files, replicas. Contract: `commands.md` 4.4 and chapter 6.
//!
//! Every change goes through here: it takes effect, and then goes out as one internal command. What comes in that way, or
//! from a file, takes effect by the same code and in the same order.

mod archive;
mod gone;
mod shared;
mod step;

use std::{
    collections::VecDeque,
    ffi::CStr,
    sync::{Arc, Weak},
};

pub use archive::{decode as read_archive, encode as write_archive};
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
        registration::{Life, Peers, Registration},
        requirement::Requirement,
        session::{Needs, Session, Sessions},
    },
    error::Error,
    python::{Files, Packages},
    readers::image::Readers,
    redis::{
        api,
        call::replicate,
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
    /// In force, in their order.
    registrations: Vec<Arc<Registration>>,
    /// No longer in force.
    gone: Gone,
    /// What came from the master and waits for the installation of requirements, oldest first.
    waiting: VecDeque<Change>,
    /// Goes up with each load: what was begun before does not go on.
    epoch: u64,
    /// Whose onRegistered is to be called when everything is loaded.
    loaded: Vec<Arc<Registration>>,
    /// The requirements before the load; what is loaded may be the same.
    previous: Vec<Arc<Requirement>>,
}

/// Something that came from a file or from the master.
#[derive(Clone)]
enum Change {
    Step(Arc<[u8]>),
    Import(Arc<[u8]>),
    Unregister { id: Id, abort_pending: bool },
}

impl Persistence {
    pub fn new(engine: Arc<Engine>, readers: Arc<Readers>, packages: Arc<Packages>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            engine,
            readers,
            packages,
            kept: Guarded::default(),
        })
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
        self.put_in_force(lock, old, registrations)?;
        let step = step_of(session, old, registrations);
        replicate(lock, REGISTER, &[&step.encode()]);
        for registration in registrations {
            self.engine.call_on_registered(registration);
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

    /// Makes an installed requirement known by name, here and on replicas.
    ///
    /// # Errors
    /// This is a replica by now.
    pub fn import(&self, lock: Lock<'_>, requirement: &Arc<Requirement>) -> Result<(), Error> {
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        self.engine.requirements.put(lock, requirement);
        for archive in archives(std::slice::from_ref(requirement)) {
            replicate(lock, IMPORT, &[&archive]);
        }
        Ok(())
    }

    /// `RG.INNERREGISTER <blob>`, from an AOF file or a master only.
    ///
    /// # Errors
    /// Somebody else sent it; not one argument.
    pub fn inner_register(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let blob = only_argument(command)?;
        self.receive(command.lock(), Change::Step(blob.into()));
        replicate(command.lock(), REGISTER, &[blob]);
        Ok(Answer::Done)
    }

    /// `RG.PYIMPORTRETINTERNAL <blob>`, from an AOF file or a master only.
    ///
    /// # Errors
    /// Somebody else sent it; not one argument.
    pub fn inner_import(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let blob = only_argument(command)?;
        self.receive(command.lock(), Change::Import(blob.into()));
        replicate(command.lock(), IMPORT, &[blob]);
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
        self.receive(lock, Change::Unregister { id, abort_pending });
        let arguments: Vec<&[u8]> = words.iter().skip(1).map(Vec::as_slice).collect();
        replicate(lock, UNREGISTER, &arguments);
        Ok(Reply::ok().into())
    }

    /// Something came from the master or from an AOF file: does it now, or when what came before it is done.
    fn receive(&self, lock: Lock<'_>, change: Change) {
        if !self.engine.is_loading() {
            let mut kept = self.kept.write(lock);
            if !kept.waiting.is_empty() {
                kept.waiting.push_back(change);
                return;
            }
            drop(kept);
            if self.needs_installation(lock, &change) {
                self.kept.write(lock).waiting.push_back(change);
                self.install_first();
                return;
            }
        }
        self.apply(lock, &change, None);
    }

    /// A replica serves its clients while requirements are installed.
    fn needs_installation(&self, lock: Lock<'_>, change: &Change) -> bool {
        match change {
            Change::Step(blob) => Step::decode(blob).is_ok_and(|step| {
                step.requirements
                    .iter()
                    .any(|archive| self.is_news(lock, archive))
            }),
            Change::Import(archive) => self.is_news(lock, archive),
            Change::Unregister { .. } => false,
        }
    }

    /// True for a requirement that is not known with these very files.
    fn is_news(&self, lock: Lock<'_>, archive: &[u8]) -> bool {
        let Ok(files) = archive::decode(archive) else {
            return false;
        };
        let known = self.engine.requirements.get(lock, &files.name);
        !known.is_some_and(|known| files_of(&known).is_ok_and(|known| known == files))
    }

    /// Installs what the oldest waiting change needs, and goes on with it.
    fn install_first(&self) {
        let Some(this) = self.this.upgrade() else { return };
        self.packages.later(move || {
            let first = lock::with_lock(|lock| {
                let kept = this.kept.read(lock);
                kept.waiting.front().cloned().map(|change| (change, kept.epoch))
            });
            let Some((change, epoch)) = first else { return };
            let prepared = change.archives().map(|archives| this.prepare(&archives));
            lock::with_lock(|lock| {
                if this.kept.read(lock).epoch != epoch {
                    return;
                }
                this.kept.write(lock).waiting.pop_front();
                this.apply(lock, &change, prepared.ok());
                loop {
                    let Some(next) = this.kept.read(lock).waiting.front().cloned() else {
                        return;
                    };
                    if this.needs_installation(lock, &next) {
                        break;
                    }
                    this.kept.write(lock).waiting.pop_front();
                    this.apply(lock, &next, None);
                }
                this.install_first();
            });
        });
    }

    /// Stores and installs requirements. What fails is logged: functions that miss it tell by themselves.
    fn prepare(&self, archives: &[ByteBuf]) -> Vec<Arc<Requirement>> {
        let mut stored = Vec::new();
        for archive in archives {
            match archive::decode(archive).and_then(|files| self.packages.store(&files)) {
                Ok(requirement) => stored.push(requirement),
                Err(error) => api::log_warning(&format!("a requirement could not be restored: {error}")),
            }
        }
        if let Err(error) = self.packages.restore(&stored) {
            api::log_warning(&format!("requirements were not installed: {error}"));
        }
        stored
    }

    /// Does what came from elsewhere. `prepared`: its requirements, if they were installed on the way.
    fn apply(&self, lock: Lock<'_>, change: &Change, prepared: Option<Vec<Arc<Requirement>>>) {
        let done = match change {
            Change::Step(blob) => Step::decode(blob).and_then(|step| self.apply_step(lock, step, prepared)),
            Change::Import(archive) => self.apply_import(lock, archive, prepared),
            Change::Unregister { id, abort_pending } => self
                .take_out_of_force(lock, *id, *abort_pending)
                .map_err(|error| error.to_string()),
        };
        if let Err(reason) = done {
            api::log_warning(&format!("Failed register session on replica, {reason}"));
        }
    }

    fn apply_import(
        &self,
        lock: Lock<'_>,
        archive: &[u8],
        prepared: Option<Vec<Arc<Requirement>>>,
    ) -> Result<(), String> {
        archive::decode(archive).map_err(|error| error.to_string())?;
        if prepared.is_none() && !self.is_news(lock, archive) {
            return Ok(());
        }
        let prepared = prepared.unwrap_or_else(|| self.prepare(&[ByteBuf::from(archive)]));
        for requirement in &prepared {
            self.engine.requirements.put(lock, requirement);
        }
        Ok(())
    }

    fn apply_step(
        &self,
        lock: Lock<'_>,
        step: Step,
        prepared: Option<Vec<Arc<Requirement>>>,
    ) -> Result<(), String> {
        let news: Vec<_> = step
            .requirements
            .iter()
            .filter(|archive| prepared.is_none() && self.is_news(lock, archive))
            .cloned()
            .collect();
        for requirement in prepared.unwrap_or_default().iter().chain(&self.prepare(&news)) {
            self.engine.requirements.put(lock, requirement);
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
        if self.engine.is_loading() {
            self.kept.write(lock).loaded.extend(registrations);
        } else {
            for registration in &registrations {
                self.engine.call_on_registered(registration);
            }
        }
        Ok(())
    }

    /// Makes a registration of what was saved of it. If its functions cannot be loaded, or its trigger not be started, it
    /// is there without running, and tells why.
    fn restore(
        &self,
        lock: Lock<'_>,
        saved: SavedRegistration,
        session: &Arc<Session>,
        peers: Peers<'_>,
    ) -> Result<Arc<Registration>, String> {
        let id = Id::parse(saved.id.as_bytes()).ok_or_else(|| format!("its id {} is none", saved.id))?;
        if self.engine.registry.registration(id).is_some() {
            return Err(format!("there is a registration {id} already"));
        }
        let trigger = self.readers.trigger(&saved.trigger)?;
        let load = |image: &ByteBuf| self.engine.language.load(image, session);
        let mut disabled = None;
        let mut note = |error: String| disabled = disabled.take().or(Some(error));
        let functions = saved.images.functions.iter().map(load);
        let functions = functions.collect::<Result<Vec<Arc<dyn Function>>, _>>();
        let functions = functions.map_err(&mut note).unwrap_or_default();
        let on_registered = saved.images.on_registered.as_ref().map(load).transpose();
        let on_registered = on_registered.map_err(&mut note).ok().flatten();
        let plan = Plan {
            steps: saved.steps,
            functions,
        };
        if disabled.is_none() {
            if !plan.is_complete() {
                return Err(format!(
                    "registration {id} names a function that it does not have"
                ));
            }
            disabled = trigger.check(lock, peers).err().map(|error| error.to_string());
        }
        let registration = Registration {
            id,
            desc: saved.desc,
            mode: saved.mode,
            in_order: saved.in_order,
            plan: Arc::new(plan),
            session: Arc::clone(session),
            trigger,
            on_registered,
            images: saved.images,
            disabled,
            stats: RunStats::default(),
            life: Life::default(),
        };
        if let Some(reason) = &registration.disabled {
            api::log_warning(&format!("registration {id} is there but does not run: {reason}"));
        }
        Ok(Arc::new(registration))
    }

    /// The data are about to be replaced, and with them whatever is registered.
    pub fn loading_started(&self, lock: Lock<'_>) {
        self.engine.loading_started();
        let mut kept = self.kept.write(lock);
        let epoch = kept.epoch + 1;
        let old = std::mem::replace(
            &mut *kept,
            Kept {
                epoch,
                ..Kept::default()
            },
        );
        drop(kept);
        for registration in old.registrations {
            // It was in force until now.
            let _ = self.engine.unregister(lock, registration.id, true);
        }
        for session in self.engine.registry.sessions(Sessions::all_live) {
            self.engine.registry.replace_session(&session);
        }
        self.kept.write(lock).previous = self.engine.requirements.clear(lock);
    }

    /// The data are there: functions that prepare something for others may do so.
    pub fn loading_ended(&self, lock: Lock<'_>) {
        let mut kept = self.kept.write(lock);
        let (loaded, previous) = (
            std::mem::take(&mut kept.loaded),
            std::mem::take(&mut kept.previous),
        );
        drop(kept);
        let known = self.engine.requirements.all(lock);
        for old in previous {
            if !known.iter().any(|known| known.directory == old.directory) {
                old.forget();
            }
        }
        for registration in loaded.iter().filter(|registration| !registration.is_removed()) {
            self.engine.call_on_registered(registration);
        }
    }

    /// The data could not be loaded, or only in part.
    pub fn loading_failed(&self, lock: Lock<'_>) {
        self.loading_started(lock);
    }
}

impl Change {
    /// The requirements that it brings.
    fn archives(&self) -> Result<Vec<ByteBuf>, String> {
        match self {
            Self::Step(blob) => Step::decode(blob).map(|step| step.requirements),
            Self::Import(archive) => Ok(vec![ByteBuf::from(archive.to_vec())]),
            Self::Unregister { .. } => Ok(Vec::new()),
        }
    }
}

impl Saved for Persistence {
    fn count(&self, lock: Lock<'_>) -> usize {
        let kept = self.kept.read(lock);
        let gone = usize::from(!kept.gone.is_empty());
        kept.registrations.len() + kept.waiting.len() + gone + self.engine.requirements.all(lock).len()
    }

    fn each(&self, lock: Lock<'_>, save: &mut dyn FnMut(Blob)) {
        for requirement in self.engine.requirements.all(lock) {
            for bytes in archives(std::slice::from_ref(&requirement)) {
                save(Blob {
                    command: IMPORT,
                    bytes,
                });
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
        let gone = |id: Id| {
            kept.waiting
                .iter()
                .any(|change| matches!(change, Change::Unregister { id: gone, .. } if *gone == id))
        };
        for registration in kept
            .registrations
            .iter()
            .filter(|registration| !gone(registration.id))
        {
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
        for change in &kept.waiting {
            match change {
                Change::Step(blob) => {
                    let Ok(mut step) = Step::decode(blob) else {
                        continue;
                    };
                    step.registrations
                        .retain(|saved| !Id::parse(saved.id.as_bytes()).is_some_and(gone));
                    save(Blob {
                        command: REGISTER,
                        bytes: step.encode(),
                    });
                }
                Change::Import(archive) => save(Blob {
                    command: IMPORT,
                    bytes: archive.to_vec(),
                }),
                Change::Unregister { .. } => {}
            }
        }
    }

    fn load(&self, lock: Lock<'_>, blob: &[u8]) -> Result<(), String> {
        if archive::is_one(blob) {
            return self.apply_import(lock, blob, None);
        }
        self.apply_step(lock, Step::decode(blob)?, None)
    }
}

/// Registrations of a session that takes the place of `old`, as others see it.
fn step_of(session: &Session, old: Option<&Arc<Session>>, registrations: &[Arc<Registration>]) -> Step {
    let saved = registrations
        .iter()
        .map(|registration| SavedRegistration::of(registration));
    Step {
        replaces: old.map(|old| old.id.clone()),
        session: SavedSession::of(session),
        requirements: archives(&session.needs.requirements).map(ByteBuf::from).collect(),
        registrations: saved.collect(),
        gone: Vec::new(),
    }
}

/// Requirements as bytes; one whose files are gone is left out.
fn archives(requirements: &[Arc<Requirement>]) -> impl Iterator<Item = Vec<u8>> {
    requirements
        .iter()
        .filter_map(|requirement| match files_of(requirement) {
            Ok(files) => Some(archive::encode(&files)),
            Err(error) => {
                api::log_warning(&format!(
                    "Failed serializing requirement {}, {error}",
                    requirement.name
                ));
                None
            }
        })
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
