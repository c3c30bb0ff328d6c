//! Runs a script once, as a module body named `<string>`. Contract: docs/contract/commands.md 1.2,
//! docs/contract/python-api.md 1.1.

use std::sync::Arc;

use pyo3::{
    prelude::*,
    types::{PyBytes, PyModule},
};

use super::{
    attach::{ObjectRef, attach},
    children, errors,
    interpreter::script_globals,
    kept::kept,
    runtime,
};
use crate::{
    engine::{
        scope::{Prepared, Scope},
        session::Session,
    },
    error::Error,
    server::lock::Lock,
};

/// Runs `source` in `session`, which is to take the place of `replaces`, with fresh globals, on this thread, which
/// has the server's lock; attaches. Nothing that it prepared has taken effect yet.
///
/// # Errors
/// The error string of what it raised; it ran longer than SyncTimeout.
pub fn run(
    lock: Lock<'_>,
    source: &[u8],
    session: &Arc<Session>,
    replaces: Option<Arc<Session>>,
) -> Result<Prepared, Error> {
    let scope = Scope::of_script(session, replaces);
    let engine = &runtime().map_err(|error| Error::Text(error.to_string()))?.engine;
    let entered = scope.clone().enter();
    let mut ran = Ok(());
    let watched = engine.run_watched(lock, "the script", session, &mut || {
        ran = attach(|py| {
            let executed = execute(py, source, session);
            children::end_if_forked(py, &executed);
            executed.map_err(|error| Error::Text(errors::text(py, &error)))
        });
    });
    drop(entered);
    watched.and(ran)?;
    let prepared = scope
        .script
        .as_ref()
        .map(|script| std::mem::take(&mut *script.lock()));
    Ok(prepared.unwrap_or_default())
}

fn execute(py: Python<'_>, source: &[u8], session: &Session) -> PyResult<()> {
    let globals = script_globals(py)?;
    *kept(session).globals.lock() = Some(ObjectRef::new(globals.clone().unbind()));
    let builtins = PyModule::import(py, "builtins")?;
    let code = builtins
        .getattr("compile")?
        .call1((PyBytes::new(py, source), "<string>", "exec"))?;
    builtins.getattr("exec")?.call1((code, globals)).map(drop)
}
