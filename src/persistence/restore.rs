//! What comes in, from a file or a master, becomes sessions and registrations.

use std::sync::Arc;

use super::{
    Persistence,
    change::{RegistrationChange, SavedRegistration},
};
use crate::{
    engine::{
        id::Id,
        language::{Failure, Function},
        loading_functions::{LoadedFunctions, LoadingFunctions},
        plan::Plan,
        registration::{Disabled, Images, Life, Peers, Registration},
        session::Session,
    },
    error::Error,
    server::{api, lock::Lock},
    stats::RunStats,
};

/// Why a registration does not run yet: what a client sees as its last error.
const HELD: &str = "its requirements are being installed";
const LOADING: &str = "its functions are being loaded";

/// The functions of a registration, loaded.
#[derive(Default)]
pub(super) struct Functions {
    /// In the order of the plan's table.
    table: Vec<Arc<dyn Function>>,
    on_registered: Option<Arc<dyn Function>>,
}

impl Functions {
    /// Those of one registration, the next ones of what was loaded.
    fn take(
        images: &Images,
        loaded: &mut impl Iterator<Item = Result<Arc<dyn Function>, Failure>>,
    ) -> Result<Self, String> {
        let mut next = || {
            loaded
                .next()
                .unwrap_or_else(|| Err("a function is missing".into()))
        };
        let table: Vec<_> = images.functions.iter().map(|_| next()).collect();
        let on_registered = images.on_registered.as_ref().map(|_| next());
        Ok(Self {
            table: table.into_iter().collect::<Result<_, _>>()?,
            on_registered: on_registered.transpose()?,
        })
    }

    /// They are there, or the registration is without them and tells why.
    pub(super) fn or_reason(functions: Result<Self, Disabled>) -> (Self, Option<Disabled>) {
        match functions {
            Ok(functions) => (functions, None),
            Err(why) => (Self::default(), Some(why)),
        }
    }

    /// Those that a registration has loaded.
    pub(super) fn of(registration: &Registration) -> Self {
        Self {
            table: registration.plan.functions.clone(),
            on_registered: registration.on_registered.clone(),
        }
    }

    /// Those of several registrations of one session.
    pub(super) fn of_each(images: &[Images], loaded: LoadedFunctions) -> Vec<Result<Self, Disabled>> {
        let mut loaded = loaded.into_iter();
        let mut take = |images| Self::take(images, &mut loaded).map_err(Disabled::NotLoaded);
        images.iter().map(&mut take).collect()
    }
}

impl Persistence {
    /// Does what came from elsewhere. Registrations whose requirements are not installed yet are there, with their numbers,
    /// their names and their session, and begin to run later.
    pub(super) fn apply_change(&self, lock: Lock<'_>, change: RegistrationChange) -> Result<(), Error> {
        // Earlier versions sent them along.
        for archive in &change.requirements {
            if let Err(error) = self.take(lock, archive) {
                api::log_warning(&format!("a requirement could not be restored: {error}"));
            }
        }
        let gone = change.gone.iter().filter_map(|id| Id::parse(id.as_bytes()));
        let gone: Vec<_> = gone.collect();
        self.saw_ids(&gone);
        self.kept.write(lock).tombstones.extend(gone);
        let live = |id: &str| self.engine.registry.sessions(|sessions| sessions.live(id));
        let old = change.replaces.as_deref().and_then(live);
        let same =
            live(&change.session.id).filter(|same| !old.as_ref().is_some_and(|old| Arc::ptr_eq(old, same)));
        let session = same.unwrap_or_else(|| Arc::new(self.session_of(lock, change.session)));
        let images: Vec<Images> = change
            .registrations
            .iter()
            .map(|saved| saved.images.clone())
            .collect();
        // Whatever is loaded for the session comes before.
        let waits = session.awaits_requirements() || self.has_held(lock, &session);
        let loading = (!waits).then(|| self.begin_loading(&images, &session));
        let loaded = loading
            .as_ref()
            .and_then(|loading| loading.wait(self.engine.patience()));
        let in_time = loaded.is_some();
        let functions: Vec<Result<Functions, Disabled>> = if let Some(loaded) = loaded {
            Functions::of_each(&images, loaded)
        } else {
            let reason = if session.awaits_requirements() {
                HELD
            } else {
                LOADING
            };
            images.iter().map(|_| Err(Disabled::Awaited(reason))).collect()
        };
        let mut registrations = Vec::new();
        for (saved, functions) in change.registrations.into_iter().zip(functions) {
            let peers = Peers {
                replaced: old.as_deref(),
                prepared: &registrations,
            };
            let restored = self.restore(lock, saved, &session, functions, peers)?;
            if in_time {
                log_disabled(&restored);
            }
            registrations.push(restored);
        }
        self.put_in_force(lock, old.as_ref(), &registrations)?;
        if !in_time {
            self.kept
                .write(lock)
                .awaiting_requirements
                .extend(registrations.iter().cloned());
            if let Some(loading) = loading {
                self.begin_when_loaded(lock, &loading, registrations);
            }
        } else if self.engine.is_loading() {
            self.kept.write(lock).loaded.extend(registrations);
        } else {
            for registration in &registrations {
                self.engine.call_on_registered(registration);
            }
        }
        Ok(())
    }

    /// Makes a registration of what was saved of it, and of its functions. If these could not be loaded, or not yet, or its
    /// trigger not be started, it is there without running, and tells why.
    pub(super) fn restore(
        &self,
        lock: Lock<'_>,
        saved: SavedRegistration,
        session: &Arc<Session>,
        functions: Result<Functions, Disabled>,
        peers: Peers<'_>,
    ) -> Result<Arc<Registration>, Error> {
        let (functions, disabled) = Functions::or_reason(functions);
        let mut registration = self.rebuild(saved, session, functions, disabled)?;
        let id = registration.id;
        if self.engine.registry.registration(id).is_some() {
            return Err(format!("there is a registration {id} already").into());
        }
        if registration.disabled.is_none() {
            let refused = registration.trigger.check(lock, peers).err();
            registration.disabled = refused.map(|error| Disabled::Refused(error.to_string()));
        }
        Ok(Arc::new(registration))
    }

    /// Begins to load the functions of registrations of one session.
    pub(super) fn begin_loading(&self, images: &[Images], session: &Arc<Session>) -> LoadingFunctions {
        let each = images
            .iter()
            .flat_map(|images| images.functions.iter().chain(&images.on_registered));
        self.engine
            .load_functions(each.map(|image| image.to_vec()).collect(), session)
    }

    /// # Errors
    /// What was saved is no registration.
    pub(super) fn rebuild(
        &self,
        saved: SavedRegistration,
        session: &Arc<Session>,
        functions: Functions,
        disabled: Option<Disabled>,
    ) -> Result<Registration, Error> {
        let id = Id::parse(saved.id.as_bytes()).ok_or_else(|| format!("its id {} is none", saved.id))?;
        let trigger = self.readers.trigger(&saved.trigger)?;
        let plan = Plan {
            steps: saved.steps,
            functions: functions.table,
        };
        let has_functions = matches!(disabled, None | Some(Disabled::Refused(_)));
        if has_functions && !plan.is_complete() {
            return Err(format!("registration {id} names a function that it does not have").into());
        }
        Ok(Registration {
            actor: Registration::actor_of(&saved.owner, id),
            owner: saved.owner,
            limits: saved.limits,
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
            doubts: Vec::new(),
            stats: RunStats::default(),
            life: Life::default(),
        })
    }
}

pub(super) fn log_disabled(registration: &Registration) {
    if let Some(disabled) = &registration.disabled {
        api::log_warning(&format!(
            "registration {} is there but does not run: {}",
            registration.id,
            disabled.reason()
        ));
    }
}
