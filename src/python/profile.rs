//! Profiles of sessions (RG.PYPROFILE, docs/contract/commands.md 1.15): the standard library's profiler around each
//! callback.
//!
//! One profiler per session and thread, because a profiler follows one thread's calls. From Python 3.12 on only one can
//! be at work in the whole interpreter: callbacks that run at the same time as a measured one are not measured.

use std::{
    cell::Cell,
    collections::HashMap,
    thread::{self, ThreadId},
};

use pyo3::{prelude::*, types::PyList};

use super::{
    RUNTIME,
    attach::{ObjectRef, attach},
    errors,
    kept::kept,
};
use crate::{
    config::Number,
    engine::{scope::Scope, session::Session},
    error::Error,
    mutex::Mutex,
    per_thread::per_thread,
};

per_thread! {
    /// A callback of this thread is being measured, with all that it calls.
    static MEASURING: Cell<bool> = Cell::new(false);
}

/// The profilers of one session.
pub type Profilers = Mutex<HashMap<ThreadId, ObjectRef>>;

/// Does `work`, a call of a user function, and measures it if ProfileExecutions is on.
pub fn call<'py>(
    py: Python<'py>,
    work: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let is_on = RUNTIME
        .get()
        .is_some_and(|runtime| runtime.engine.config.is_on(Number::ProfileExecutions));
    if !is_on || MEASURING.get() {
        return work();
    }
    let Some(profiler) = Scope::current().and_then(|scope| profiler(py, &scope.session).ok()) else {
        return work();
    };
    // Refused where another one is at work.
    if profiler.call_method0("enable").is_err() {
        return work();
    }
    MEASURING.set(true);
    let result = work();
    MEASURING.set(false);
    let stopped = profiler.call_method0("disable");
    result.and_then(|returned| stopped.map(|_| returned))
}

fn profiler<'py>(py: Python<'py>, session: &Session) -> PyResult<Bound<'py, PyAny>> {
    let kept = kept(session);
    let this = thread::current().id();
    let known = kept
        .profilers
        .lock()
        .get(&this)
        .map(|profiler| profiler.clone_ref(py));
    if let Some(profiler) = known {
        return Ok(profiler.into_bound(py));
    }
    let made = PyModule::import(py, "cProfile")?.call_method0("Profile")?;
    kept.profilers
        .lock()
        .insert(this, ObjectRef::new(made.clone().unbind()));
    Ok(made)
}

/// The text of `pstats` for a session: statistics, callers, callees, sorted by `order`.
///
/// # Errors
/// The error string of what Python raised, e.g. for an unknown order.
pub fn report(session: &Session, order: &str) -> Result<Vec<u8>, Error> {
    let kept = kept(session);
    attach(|py| {
        let profilers: Vec<_> = kept
            .profilers
            .lock()
            .values()
            .map(|profiler| profiler.clone_ref(py))
            .collect();
        let report = PyList::new(py, profilers).and_then(|profilers| {
            let text = PyModule::import(py, "pinion_profile")?.call_method1("report", (profilers, order))?;
            text.extract::<String>()
        });
        report
            .map(String::into_bytes)
            .map_err(|error| Error::Text(errors::text(py, &error)))
    })
}

/// Forgets what was measured for a session.
pub fn reset(session: &Session) {
    let forgotten = std::mem::take(&mut *kept(session).profilers.lock());
    attach(|_| drop(forgotten));
}
