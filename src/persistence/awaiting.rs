//! Registrations that do not run yet: their requirements are not installed, their functions not loaded, or their name is taken.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{
    Persistence,
    change::SavedRegistration,
    restore::{Functions, log_disabled},
};
use crate::{
    engine::{
        loading_functions::LoadingFunctions,
        registration::{Claim, Disabled, Images, Peers, Registration},
        requirement::Requirement,
        session::Session,
    },
    error::Error,
    requirements::archive,
    server::{
        api,
        lock::{self, Lock},
    },
};

impl Persistence {
    /// What is held takes its names already, though the readers do not know of it.
    pub(super) fn check_awaiting(
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
        for held in kept.awaiting_requirements.iter().filter(stays) {
            for registration in registrations {
                match (held.trigger.claim(), registration.trigger.claim()) {
                    (Some(Claim::Trigger(held)), Some(Claim::Trigger(new))) if held == new => {
                        return Err(Error::TriggerExists);
                    }
                    (Some(Claim::Loads(held)), Some(Claim::Loads(new))) if held == new => {
                        return Err(Error::loaded_by_another(new));
                    }
                    (Some(Claim::Saves(held)), Some(Claim::Saves(new))) if held == new => {
                        return Err(Error::saved_by_another(new));
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

    /// Makes a requirement known that came from a file or the master. What is not installed yet will be, by its thread:
    /// a replica serves its clients meanwhile.
    pub(super) fn take(&self, lock: Lock<'_>, archive: &[u8]) -> Result<(), Error> {
        let header = archive::header(archive)?;
        let loading = self.engine.is_loading();
        // Otherwise the thread for requirements finds out: it takes its time.
        let files = loading.then(|| archive::decode(archive)).transpose()?;
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
    pub(super) fn install_wanted(&self) {
        let Some(this) = self.this.upgrade() else { return };
        self.packages.later(move || {
            let wanted = lock::with_lock(|lock| this.wanted(lock));
            for requirement in wanted {
                let installed = this.unpack(&requirement).and_then(|()| {
                    let requirement = std::slice::from_ref(&requirement);
                    Ok(this.packages.install(requirement)?)
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
        let held = kept
            .awaiting_requirements
            .iter()
            .filter(|held| !held.is_removed());
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
    fn unpack(&self, requirement: &Arc<Requirement>) -> Result<(), Error> {
        let Some(archive) = lock::with_lock(|lock| requirement.archive(lock)) else {
            return Ok(());
        };
        let files = archive::decode(&archive).inspect_err(|_| {
            lock::with_lock(|lock| self.engine.requirements.remove(lock, requirement));
        })?;
        self.packages.store(requirement, &files)?;
        lock::with_lock(|lock| requirement.drop_archive(lock));
        Ok(())
    }

    /// True if registrations of a session are there that do not run yet.
    pub(super) fn has_held(&self, lock: Lock<'_>, session: &Arc<Session>) -> bool {
        let kept = self.kept.read(lock);
        let mut held = kept
            .awaiting_requirements
            .iter()
            .filter(|held| !held.is_removed());
        held.any(|held| Arc::ptr_eq(&held.session, session))
    }

    /// Loads what registrations need whose requirements are installed, or cannot be; then they begin.
    pub(super) fn begin_held(&self, lock: Lock<'_>) {
        if self.engine.is_loading() {
            return;
        }
        let mut kept = self.kept.write(lock);
        kept.awaiting_requirements.retain(|held| !held.is_removed());
        let mut ready: Vec<Arc<Registration>> = Vec::new();
        for held in &kept.awaiting_requirements {
            let same = |other: &&Arc<Registration>| Arc::ptr_eq(&other.session, &held.session);
            // One after the other in a session; what is being loaded begins the rest.
            if !held.session.awaits_requirements() && !kept.loading.iter().any(|other| same(&other)) {
                ready.push(Arc::clone(held));
            }
        }
        drop(kept);
        while let Some(first) = ready.first().cloned() {
            let (group, others) = ready
                .into_iter()
                .partition(|held| Arc::ptr_eq(&held.session, &first.session));
            ready = others;
            let images: Vec<Images> = images_of(&group);
            let loading = self.begin_loading(&images, &first.session);
            self.begin_when_loaded(lock, &loading, group);
        }
    }

    /// Registrations of one session, which are held, begin when their functions are loaded.
    pub(super) fn begin_when_loaded(
        &self,
        lock: Lock<'_>,
        loading: &LoadingFunctions,
        group: Vec<Arc<Registration>>,
    ) {
        self.kept.write(lock).loading.extend(group.iter().cloned());
        let this = Weak::clone(&self.this);
        let named = group
            .iter()
            .map(|held| held.id.to_string())
            .collect::<Vec<_>>()
            .join(", ");
        api::log_notice(&format!(
            "registrations begin when their functions are loaded: {named}"
        ));
        loading.when_done(move |loaded| {
            let functions = Functions::of_each(&images_of(&group), loaded);
            Self::begin_loaded(&this, group.into_iter().zip(functions).collect());
        });
    }

    /// Begins registrations whose functions are there. While data are loaded, nothing begins.
    fn begin_loaded(this: &Weak<Self>, loaded: Vec<(Arc<Registration>, Result<Functions, Disabled>)>) {
        let Some(persistence) = this.upgrade() else { return };
        let mut loaded = Some(loaded);
        lock::with_lock(|lock| {
            if persistence.engine.is_loading() {
                return;
            }
            for (held, functions) in loaded.take().into_iter().flatten() {
                let mut kept = persistence.kept.write(lock);
                kept.loading.retain(|other| !Arc::ptr_eq(other, &held));
                kept.awaiting_requirements
                    .retain(|other| !Arc::ptr_eq(other, &held));
                drop(kept);
                // Functions of one that began before may have removed it.
                if !held.is_removed() {
                    persistence.begin(lock, &held, functions);
                }
            }
            persistence.begin_held(lock);
        });
        if let Some(loaded) = loaded {
            let this = Weak::clone(this);
            persistence
                .engine
                .timers
                .after(AGAIN, move |_| Self::begin_loaded(&this, loaded));
        }
    }

    /// Puts a registration that runs in the place of one that was held. One that cannot run stays, and tells why.
    fn begin(&self, lock: Lock<'_>, held: &Registration, functions: Result<Functions, Disabled>) {
        let make = |functions, disabled| {
            self.rebuild(SavedRegistration::of(held), &held.session, functions, disabled)
                .map(Arc::new)
        };
        let (functions, disabled) = Functions::or_reason(functions);
        let started = make(functions, disabled).and_then(|registration| {
            if registration.disabled.is_some() {
                registration.trigger.hold(lock, &registration);
                return Ok(registration);
            }
            let Err(error) = registration.trigger.start(lock, &registration) else {
                return Ok(registration);
            };
            // Its functions stay: it begins when what it wants is free.
            let refused = Disabled::Refused(error.to_string());
            make(Functions::of(&registration), Some(refused))
        });
        let registration = match started {
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
}

impl Persistence {
    /// A registration has ended. Those that its name kept from running begin, a moment later.
    pub(super) fn name_is_free(&self, lock: Lock<'_>) {
        if self.refused(lock).is_empty() {
            return;
        }
        let this = Weak::clone(&self.this);
        self.engine.timers.after(Duration::ZERO, move |_| {
            let Some(this) = this.upgrade() else { return };
            lock::with_lock(|lock| this.begin_refused(lock));
        });
    }

    /// Those whose functions are there, but whose trigger could not be started.
    fn refused(&self, lock: Lock<'_>) -> Vec<Arc<Registration>> {
        let kept = self.kept.read(lock);
        let refused = |one: &&Arc<Registration>| {
            matches!(one.disabled, Some(Disabled::Refused(_))) && !one.is_removed()
        };
        kept.registrations.iter().filter(refused).cloned().collect()
    }

    fn begin_refused(&self, lock: Lock<'_>) {
        if self.engine.is_loading() {
            return;
        }
        for one in self.refused(lock) {
            // Functions of one that began before may have removed it.
            if !one.is_removed() && one.trigger.check(lock, Peers::default()).is_ok() {
                self.begin(lock, &one, Ok(Functions::of(&one)));
            }
        }
    }
}

/// How long after a look at data that are still loaded the next one comes.
const AGAIN: Duration = Duration::from_millis(100);

fn images_of(registrations: &[Arc<Registration>]) -> Vec<Images> {
    let images = registrations
        .iter()
        .map(|registration| registration.images.clone());
    images.collect()
}
