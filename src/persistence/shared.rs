//! What the shards of a cluster do with each other's registrations: a step is prepared on all of them before any of them
//! does it; a shard that missed some gets them later. Called by `cluster/registrations.rs`, under the server's lock.

use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::{
    Change, Persistence, REGISTER, SavedRegistration, SavedSession, Step, archive, archives, step_of,
};
use crate::{
    engine::{
        id::Id,
        registration::{Peers, Registration},
        requirement::Requirement,
        session::{Needs, Session},
    },
    error::Error,
    redis::{
        call::replicate,
        lock::{self, Lock},
    },
};

/// A step of another shard that can be done.
pub struct Prepared {
    step: Vec<u8>,
    old: Option<Arc<Session>>,
    pub registrations: Vec<Arc<Registration>>,
}

impl Persistence {
    /// Registrations that take the place of session `old`, as other shards get them. `None` if there is nothing to tell.
    pub fn step(&self, old: Option<&Arc<Session>>, registrations: &[Arc<Registration>]) -> Option<Vec<u8>> {
        let owner = registrations.first().map(|registration| &registration.session);
        let session = owner.or(old)?;
        Some(step_of(session, old, registrations).encode())
    }

    /// Sees to it that what a step of another shard needs is installed; calls `then`, under the lock, now or later.
    pub fn install_for(
        &self,
        lock: Lock<'_>,
        step: &[u8],
        then: impl FnOnce(Lock<'_>, Result<(), String>) + Send + 'static,
    ) {
        let change = Change::Step(step.into());
        if !self.needs_installation(lock, &change) {
            return then(lock, Ok(()));
        }
        let Some(this) = self.this.upgrade() else { return };
        self.packages.later(move || {
            let installed = change
                .archives()
                .and_then(|archives| this.install_archives(&archives));
            lock::with_lock(|lock| {
                let installed = installed.map(|requirements| {
                    for requirement in &requirements {
                        this.engine.requirements.put(lock, requirement);
                    }
                });
                then(lock, installed);
            });
        });
    }

    /// Stores and installs requirements; not under the lock.
    fn install_archives(&self, archives: &[ByteBuf]) -> Result<Vec<Arc<Requirement>>, String> {
        let stored = archives
            .iter()
            .map(|bytes| archive::decode(bytes).and_then(|files| self.packages.store(&files)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?;
        self.packages.restore(&stored)?;
        Ok(stored)
    }

    /// Makes the registrations of another shard's step, without putting them in force. `claimed`: what other steps that
    /// are prepared take.
    ///
    /// # Errors
    /// Why the step cannot be done here.
    pub fn prepare_step(
        &self,
        lock: Lock<'_>,
        step: Vec<u8>,
        claimed: &[Arc<Registration>],
    ) -> Result<Prepared, String> {
        if !lock.is_master() {
            return Err(Error::ReadOnly.to_string());
        }
        let decoded = Step::decode(&step)?;
        let live = |id: &str| self.engine.registry.sessions(|sessions| sessions.live(id));
        let old = decoded.replaces.as_deref().and_then(live);
        let id = decoded.session.id.clone();
        let same = live(&id).is_some_and(|same| !old.as_ref().is_some_and(|old| Arc::ptr_eq(old, &same)));
        if same && !decoded.registrations.is_empty() {
            return Err(Error::SessionExists(id).to_string());
        }
        let session = Arc::new(self.session_of(lock, decoded.session));
        let mut registrations: Vec<Arc<Registration>> = Vec::new();
        for saved in decoded.registrations {
            let prepared = [claimed, registrations.as_slice()].concat();
            let peers = Peers {
                replaced: old.as_deref(),
                prepared: &prepared,
            };
            let restored = self.restore(lock, saved, &session, peers)?;
            if let Some(reason) = &restored.disabled {
                return Err(if restored.plan.is_complete() {
                    reason.clone()
                } else {
                    format!("Failed deserializing flat execution, {reason}")
                });
            }
            registrations.push(restored);
        }
        Ok(Prepared {
            step,
            old,
            registrations,
        })
    }

    fn session_of(&self, lock: Lock<'_>, saved: SavedSession) -> Session {
        let known = |name: &String| self.engine.requirements.get(lock, name);
        let needs = Needs {
            requirements: saved.requirements.iter().filter_map(known).collect(),
            installed: false,
        };
        Session::new(saved.id, saved.description, needs)
    }

    /// Does a step that was prepared, here and on replicas. Nothing happens if it was done otherwise meanwhile.
    ///
    /// # Errors
    /// Why it cannot be done any more.
    pub fn commit(&self, lock: Lock<'_>, prepared: Prepared) -> Result<(), String> {
        if !lock.is_master() {
            return Err(Error::ReadOnly.to_string());
        }
        let done =
            |registration: &Arc<Registration>| self.engine.registry.registration(registration.id).is_some();
        if !prepared.registrations.is_empty() && prepared.registrations.iter().all(done) {
            return Ok(());
        }
        self.put_in_force(lock, prepared.old.as_ref(), &prepared.registrations)
            .map_err(|error| error.to_string())?;
        replicate(lock, REGISTER, &[&prepared.step]);
        for registration in &prepared.registrations {
            self.engine.call_on_registered(registration);
        }
        Ok(())
    }

    /// Does a step that another shard has done before, here and on replicas. What it needs is installed.
    ///
    /// # Errors
    /// Why it cannot be done here.
    pub fn accept(&self, lock: Lock<'_>, step: &[u8]) -> Result<(), String> {
        if !lock.is_master() {
            return Err(Error::ReadOnly.to_string());
        }
        let decoded = Step::decode(step)?;
        let known = decoded
            .registrations
            .iter()
            .filter_map(|saved| Id::parse(saved.id.as_bytes()))
            .any(|id| {
                self.engine.registry.registration(id).is_some() || self.kept.read(lock).gone.contains(id)
            });
        if known {
            return Ok(());
        }
        self.apply_step(lock, decoded, None)?;
        replicate(lock, REGISTER, &[step]);
        Ok(())
    }

    /// The registrations here that other shards have, too, or should have.
    pub fn shared_ids(&self, lock: Lock<'_>) -> Vec<Id> {
        let kept = self.kept.read(lock);
        let ids = kept.registrations.iter().map(|registration| registration.id);
        ids.filter(|id| !id.shard.is_standalone()).collect()
    }

    /// Those that have ended.
    pub fn gone_ids(&self, lock: Lock<'_>) -> Vec<Id> {
        self.kept.read(lock).gone.iter().collect()
    }

    /// Other shards know that these have ended; replicas learn it with the next file.
    pub fn note_gone(&self, lock: Lock<'_>, ids: &[Id]) {
        self.kept.write(lock).gone.extend(ids.iter().copied());
    }

    /// A step for each of these registrations, with whatever it needs.
    pub fn steps_of(&self, lock: Lock<'_>, ids: &[Id]) -> Vec<Vec<u8>> {
        let kept = self.kept.read(lock);
        let wanted = kept
            .registrations
            .iter()
            .filter(|registration| ids.contains(&registration.id));
        wanted
            .map(|registration| {
                let session = &registration.session;
                let step = Step {
                    session: SavedSession::of(session),
                    requirements: archives(&session.needs.requirements).map(ByteBuf::from).collect(),
                    registrations: vec![SavedRegistration::of(registration)],
                    ..Step::default()
                };
                step.encode()
            })
            .collect()
    }
}
