//! What comes in, from a file or a master, becomes sessions and registrations.

use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::{
    Persistence,
    awaiting::awaits_requirements,
    change::{RegistrationChange, SavedRegistration},
};
use crate::{
    engine::{
        id::Id,
        language::Function,
        plan::Plan,
        registration::{Life, Peers, Registration},
        session::{Needs, Session},
    },
    server::{api, lock::Lock},
    stats::RunStats,
};

/// Why a registration does not run yet: what a client sees as its last error.
const HELD: &str = "its requirements are being installed";

/// The functions of a registration, loaded.
#[derive(Default)]
pub(super) struct Functions {
    /// In the order of the plan's table.
    table: Vec<Arc<dyn Function>>,
    on_registered: Option<Arc<dyn Function>>,
}

impl Persistence {
    /// Does what came from elsewhere. Registrations whose requirements are not installed yet are there, with their numbers,
    /// their names and their session, and begin to run later.
    pub(super) fn apply_change(&self, lock: Lock<'_>, step: RegistrationChange) -> Result<(), String> {
        // Earlier versions sent them along.
        for archive in &step.requirements {
            if let Err(error) = self.take(lock, archive) {
                api::log_warning(&format!("a requirement could not be restored: {error}"));
            }
        }
        let gone = step.gone.iter().filter_map(|id| Id::parse(id.as_bytes()));
        self.kept.write(lock).tombstones.extend(gone);
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
        if awaits_requirements(&session) {
            self.kept.write(lock).awaiting_requirements.extend(registrations);
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
    pub(super) fn restore(
        &self,
        lock: Lock<'_>,
        saved: SavedRegistration,
        session: &Arc<Session>,
        peers: Peers<'_>,
    ) -> Result<Arc<Registration>, String> {
        let held = awaits_requirements(session);
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

    pub(super) fn load(
        &self,
        saved: &SavedRegistration,
        session: &Arc<Session>,
    ) -> Result<Functions, String> {
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
    pub(super) fn rebuild(
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
}

pub(super) fn log_disabled(registration: &Registration) {
    if let Some(reason) = &registration.disabled {
        api::log_warning(&format!(
            "registration {} is there but does not run: {reason}",
            registration.id
        ));
    }
}
