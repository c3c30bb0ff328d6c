//! What is registered comes into force, and goes.

use std::sync::Arc;

use super::{Engine, id::Id, language::Failure, registration::Registration, scope::Scope, session::Session};
use crate::{
    error::Error,
    server::{
        api,
        lock::{self, Lock},
    },
};

/// Puts a registration of a running function in force, on all shards where there are several.
pub trait Registrar: Send + Sync {
    /// # Errors
    /// This is a replica; a reader refuses the registration. Nothing has changed then.
    fn register_here(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error>;
}

impl Engine {
    /// Puts registrations in force, all or none, in the place of those of session `old`, in memory only: called by `Persistence`,
    /// and by nobody else, as replicas and files would not know.
    ///
    /// # Errors
    /// A reader refuses one of them; nothing has changed then.
    pub fn register(
        &self,
        lock: Lock<'_>,
        old: Option<&Arc<Session>>,
        registrations: &[Arc<Registration>],
    ) -> Result<(), Error> {
        let replaced = old.map_or_else(Vec::new, |old| self.registry.registrations_of(old));
        for registration in &replaced {
            registration.trigger.stop(lock, registration);
        }
        for (done, registration) in registrations.iter().enumerate() {
            if registration.disabled.is_some() {
                registration.trigger.hold(lock, registration);
                continue;
            }
            if let Err(error) = registration.trigger.start(lock, registration) {
                for earlier in &registrations[..done] {
                    earlier.trigger.stop(lock, earlier);
                }
                for registration in &replaced {
                    if registration.disabled.is_some() {
                        registration.trigger.hold(lock, registration);
                    } else if let Err(error) = registration.trigger.start(lock, registration) {
                        api::log_warning(&format!("could not take back {}: {error}", registration.id));
                    }
                }
                // Only now: what one of them had taken over is the old one's again.
                for earlier in &registrations[..done] {
                    earlier.trigger.ended(lock, earlier);
                }
                return Err(error);
            }
        }
        if let Some(old) = old {
            self.registry.replace_session(old);
        }
        for registration in &replaced {
            self.registry.remove_registration(registration.id);
            registration.trigger.ended(lock, registration);
            self.abort_pending(registration.id);
        }
        for registration in registrations {
            self.registry.add_registration(registration);
        }
        Ok(())
    }

    /// The server has become a master: what could not prepare itself before, perhaps because it writes, tries again.
    pub fn prepare_again(&self) {
        let unprepared = std::mem::take(&mut *self.unprepared.lock());
        for registration in unprepared
            .into_iter()
            .filter_map(|id| self.registry.registration(id))
        {
            self.call_on_registered(&registration);
        }
    }

    /// Calls what prepares a registration's functions on this server.
    pub fn call_on_registered(&self, registration: &Registration) {
        let Some(function) = &registration.on_registered else {
            return;
        };
        let _scope = Scope::of_registration(registration).enter();
        let mut ran = Ok(());
        let mut prepare = || ran = function.run();
        let session = &registration.session;
        let watched = lock::with_lock(|lock| self.run_watched(lock, "onRegistered", session, &mut prepare));
        if let Err(error) = watched.map_err(Failure::from).and(ran) {
            api::log_warning(&format!(
                "Error occured on RedisGearsPy_OnRegistered of {}, error='{error}'",
                registration.id
            ));
            registration
                .stats
                .in_trouble(format!("onRegistered failed: {error}"));
            if !self.is_serving() {
                self.unprepared.lock().insert(registration.id);
            }
        }
    }

    /// Ends a registration. Running executions go on; with `abort_pending` those not yet begun are aborted.
    ///
    /// # Errors
    /// There is no such registration.
    pub fn unregister(&self, lock: Lock<'_>, id: Id, abort_pending: bool) -> Result<(), Error> {
        let registration = self
            .registry
            .remove_registration(id)
            .ok_or(Error::NotRegistered)?;
        registration.trigger.stop(lock, &registration);
        registration.trigger.ended(lock, &registration);
        if abort_pending {
            self.abort_pending(id);
        }
        Ok(())
    }

    /// Aborts the executions of a registration that no thread has begun yet.
    pub fn abort_pending(&self, id: Id) {
        self.abort_queued(|execution| {
            execution
                .registration
                .as_ref()
                .is_some_and(|owner| owner.id == id)
        });
    }
}
