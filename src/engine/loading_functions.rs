//! Functions are loaded on threads of their own: they import modules, which may take longer than anybody may hold the server, and
//! an import that is broken off fails for ever. Whoever needs them waits for a moment, and otherwise goes on without them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    Engine,
    language::{Failure, Function},
    session::Session,
};
use crate::{config::Number, server::api, threads};

/// How long the server waits for functions: nearly all are there in a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was loaded of each image, in their order.
pub type LoadedFunctions = Vec<Result<Arc<dyn Function>, Failure>>;

type Then = Box<dyn FnOnce(LoadedFunctions) + Send>;

enum State {
    Busy,
    /// Nobody waits any more; this is to be called.
    Left(Then),
    Done(LoadedFunctions),
    Taken,
}

/// Functions of one session that are being loaded.
#[derive(Clone)]
pub struct LoadingFunctions(Arc<(Mutex<State>, Condvar)>);

impl Engine {
    /// Begins to load functions of a session.
    pub fn load_functions(&self, images: Vec<Vec<u8>>, session: &Arc<Session>) -> LoadingFunctions {
        let loading = LoadingFunctions(Arc::new((Mutex::new(State::Busy), Condvar::new())));
        let (this, language, session) = (loading.clone(), Arc::clone(&self.language), Arc::clone(session));
        let count = images.len();
        let work = move || {
            let load = |image: &Vec<u8>| language.load(image, &session);
            let loaded = catch_unwind(AssertUnwindSafe(|| images.iter().map(load).collect()));
            this.end(loaded.unwrap_or_else(|_| failed(count, "loading it failed")));
        };
        if let Err(error) = threads::spawn("pinion-load".into(), work) {
            api::log_warning(&format!("could not start a thread to load functions: {error}"));
            loading.end(failed(count, &format!("there was no thread to load it: {error}")));
        }
        loading
    }

    /// How long whoever holds the server may wait for functions.
    pub fn patience(&self) -> Duration {
        let limit = self.config.limit(Number::SyncTimeout);
        limit.map_or(PATIENCE, |ms| PATIENCE.min(Duration::from_millis(ms as u64)))
    }
}

fn failed(count: usize, reason: &str) -> LoadedFunctions {
    (0..count).map(|_| Err(reason.into())).collect()
}

impl LoadingFunctions {
    fn end(&self, loaded: LoadedFunctions) {
        let (state, changed) = &*self.0;
        let mut state = state.lock();
        if let State::Left(then) = std::mem::replace(&mut *state, State::Taken) {
            drop(state);
            then(loaded);
        } else {
            *state = State::Done(loaded);
            changed.notify_all();
        }
    }

    /// What was loaded, if it is there within `limit`. Whoever calls is detached.
    pub fn wait(&self, limit: Duration) -> Option<LoadedFunctions> {
        let (state, changed) = &*self.0;
        let deadline = Instant::now() + limit;
        let mut state = state.lock();
        while matches!(*state, State::Busy) {
            if changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        match std::mem::replace(&mut *state, State::Taken) {
            State::Done(loaded) => Some(loaded),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Calls `then` when it is there: on this thread if it is there already, else on that which loads.
    pub fn when_done(&self, then: impl FnOnce(LoadedFunctions) + Send + 'static) {
        let mut state = self.0.0.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Done(loaded) => {
                drop(state);
                then(loaded);
            }
            State::Busy => *state = State::Left(Box::new(then)),
            // Told to somebody else: that is not done.
            other => *state = other,
        }
    }
}
