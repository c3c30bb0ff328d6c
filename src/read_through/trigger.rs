//! A registration of `read_through`: how it comes into force and goes.

use std::sync::Arc;

use serde::Serialize;

use super::{
    ReadThrough, Served, Strangers,
    figures::Figures,
    life,
    machine::Standing,
    options::{OnError, Options},
};
use crate::{
    engine::{
        doubts,
        registration::{Claim, Disabled, Peers, Registration, Trigger},
    },
    error::Error,
    hooks::Hot,
    server::{
        api,
        events::Class,
        fields,
        lock::{self, Lock},
        reply::Reply,
    },
};

impl ReadThrough {
    /// The trigger of one registration.
    pub fn trigger(&self, options: Options) -> Box<dyn Trigger> {
        Box::new(LoadTrigger {
            loads: self.this.upgrade(),
            options: Arc::new(options),
            hot: Arc::default(),
        })
    }
}

/// What the readers' images have for this trigger (`readers::image`), which are above this room.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Image<'a> {
    ReadThrough(&'a Options),
}

struct LoadTrigger {
    /// There while the module is.
    loads: Option<Arc<ReadThrough>>,
    options: Arc<Options>,
    hot: Arc<Hot>,
}

impl LoadTrigger {
    fn commands(&self, lock: Lock<'_>, loads: &ReadThrough) -> Result<Vec<crate::hooks::CommandSpec>, Error> {
        let named = self.options.commands.as_deref();
        let default = self.options.default_commands();
        loads
            .hooks
            .look_up_loads(lock, named, default, &self.options.pattern())
    }
}

impl LoadTrigger {
    /// Commands that miss its keys are the registration's from here on, also where its loader is not there yet: a key that is not
    /// loaded is not one that does not exist.
    fn serve(
        &self,
        lock: Lock<'_>,
        registration: &Arc<Registration>,
        standing: Standing,
    ) -> Result<(), Error> {
        let Some(loads) = &self.loads else { return Ok(()) };
        let commands = self.commands(lock, loads)?;
        let (id, pattern) = (registration.id, self.options.pattern());
        // What stood there while it was held.
        loads.hooks.unlink(lock, id);
        loads.hooks.link_loads(lock, id, commands, &pattern, &self.hot);
        let mut state = loads.state.write(lock);
        self.hot.set_below(life::interesting_below_ms(&self.options, 0.0));
        if state.machine.rule(id).is_none() {
            state.machine.add_rule(id, self.options.limits());
        }
        state.served.insert(
            id,
            Served {
                registration: Arc::clone(registration),
                options: Arc::clone(&self.options),
                pattern,
                hot: Arc::clone(&self.hot),
                figures: Figures::default(),
                meets_writes: false,
                pool: Arc::default(),
                strangers: Arc::new(Strangers::of(id)),
            },
        );
        let first = !std::mem::replace(&mut state.subscribed, true);
        let now = loads.now();
        state.machine.set_standing(now, id, standing);
        drop(state);
        if first {
            (loads.subscribe)(lock, Class::Loaded);
            // Now the server tells of them.
            fields::forget(lock);
        }
        if loads.hooks.saves_writes(lock) {
            loads.meet_writes(lock);
        }
        loads.come();
        Ok(())
    }
}

impl Trigger for LoadTrigger {
    fn reader(&self) -> &'static str {
        "ReadThrough"
    }

    fn doubts(&self) -> Vec<String> {
        doubts::of_prefix("prefix", &self.options.prefix)
            .into_iter()
            .collect()
    }

    fn arguments(&self) -> Vec<(&'static str, Reply)> {
        self.options.shown()
    }

    fn image(&self) -> Vec<u8> {
        // Plain data: nothing in it can fail to be written to memory.
        rmp_serde::to_vec_named(&Image::ReadThrough(&self.options)).unwrap_or_default()
    }

    fn check(&self, lock: Lock<'_>, peers: Peers<'_>) -> Result<(), Error> {
        let Some(loads) = &self.loads else { return Ok(()) };
        let commands = self.commands(lock, loads)?;
        if let (OnError::Miss, Some(writing)) =
            (self.options.on_error, commands.iter().find(|spec| spec.writes()))
        {
            return Err(Error::no_miss_for_writes(&writing.shown_name()));
        }
        let prefix = &self.options.prefix;
        let state = loads.state.read(lock);
        let taken = state
            .served
            .values()
            .any(|served| served.options.prefix == *prefix && !peers.replace(&served.registration));
        if taken || peers.claims().any(|claim| claim == Claim::Loads(prefix)) {
            return Err(Error::loaded_by_another(prefix));
        }
        Ok(())
    }

    fn start(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        self.serve(lock, registration, Standing::Ready)
    }

    fn hold(&self, lock: Lock<'_>, registration: &Arc<Registration>) {
        let standing = match registration.disabled {
            Some(Disabled::Awaited(_)) => Standing::Awaited,
            Some(Disabled::NotLoaded(_)) => Standing::Missing,
            // Another one has its keys.
            Some(Disabled::Refused(_)) | None => return,
        };
        if let Err(error) = self.serve(lock, registration, standing) {
            api::log_warning(&format!(
                "read_through: keys of registration {} are not waited for: {error}",
                registration.id
            ));
        }
    }

    fn stop(&self, lock: Lock<'_>, registration: &Registration) {
        let Some(loads) = &self.loads else { return };
        loads.hooks.unlink(lock, registration.id);
        loads.state.write(lock).forget(registration.id);
        loads.come();
    }

    fn claim(&self) -> Option<Claim<'_>> {
        Some(Claim::Loads(&self.options.prefix))
    }

    fn figures(&self, _finished: u64) -> Vec<(&'static str, Reply)> {
        let Some(loads) = &self.loads else {
            return Vec::new();
        };
        lock::with_lock(|lock| {
            let state = loads.state.read(lock);
            let served = state
                .served
                .iter()
                .find(|(_, served)| Arc::ptr_eq(&served.hot, &self.hot));
            let Some((id, served)) = served else {
                return Vec::new();
            };
            let rule = state.machine.rule(id);
            rule.map_or_else(Vec::new, |rule| {
                served.figures.shown(&self.hot, rule, loads.now())
            })
        })
    }

    fn clear_figures(&self) {
        let Some(loads) = &self.loads else { return };
        lock::with_lock(|lock| {
            let mut state = loads.state.write(lock);
            let found = state
                .served
                .iter()
                .find(|(_, served)| Arc::ptr_eq(&served.hot, &self.hot));
            let Some(id) = found.map(|(id, _)| id) else {
                return;
            };
            self.hot.clear();
            state.gone = super::figures::Totals::default();
            if let Some(served) = state.served.get_mut(id) {
                served.figures.clear();
            }
            state.machine.clear_counts(id);
        });
    }
}
