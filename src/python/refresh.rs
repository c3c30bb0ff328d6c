//! `refresh` as functions call it: loads keys anew, and waits. Contract: docs/contract/read-through.md chapter 3.
//!
//! A plain function waits on its thread, detached, and hears there when it is to stop; in a coroutine a future of the loop is
//! resolved, from the thread of the timers.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::Receiver;
use pyo3::{
    prelude::*,
    types::{PyCFunction, PyDict, PyTuple},
};

use super::{
    Runtime,
    attach::{ObjectRef, attach},
    convert,
    coroutine::loop_module,
    current, errors, interrupt, runtime,
};
use crate::{
    engine::{scope::Scope, sleeper::Waited, stop::Stop},
    server::{api, lock, reply::Reply},
};

/// `refresh(key, ...)`: loads keys anew that `read_through` has a loader for, waits, and returns how many were loaded. In a
/// coroutine it returns at once what is to be awaited for that.
///
/// # Errors
/// `gears.error`: no key, whatever `str()` of one raised, a `sync` function or an atomic block, a replica, refused loads, a load
/// that waits for the caller itself. `gears.forcestopped` and the like: the function was to stop while it waited.
#[pyfunction(name = "refresh")]
#[pyo3(signature = (*keys))]
pub fn refresh<'py>(py: Python<'py>, keys: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    const NOBODY_CAN_WAIT: &str =
        "read_through: refresh: expected a background function, which can wait for a load";
    if keys.is_empty() {
        return Err(errors::gears_error(
            "read_through: refresh: expected at least one key, got none",
        ));
    }
    if lock::is_held() {
        return Err(errors::gears_error(NOBODY_CAN_WAIT));
    }
    let keys = convert::arguments("read_through: refresh", keys)?;
    let runtime = runtime()?;
    let scope = current::scope();
    let event_loop = loop_module(py)?;
    if event_loop.call_method0("runs_here")?.is_truthy()? {
        return in_coroutine(py, runtime, scope.as_ref(), &keys);
    }
    let (told, reply) = crossbeam_channel::bounded(1);
    let number = ask(py, runtime, scope.as_ref(), &keys, move |reply| {
        // Whoever waited may be gone.
        let _ = told.send(reply);
    })?;
    let execution = scope.as_ref().and_then(|scope| scope.execution.as_ref());
    let waited = wait(py, runtime, execution.map(|execution| &execution.stop), &reply);
    if let (Err(_), Some(number)) = (&waited, number) {
        runtime.readers.loads.give_up(number);
    }
    convert::reply_object(py, waited?)
}

/// Waits for the reply. `stop`: of the function that waits, if it belongs to an execution.
fn wait(py: Python<'_>, runtime: &Runtime, stop: Option<&Stop>, reply: &Receiver<Reply>) -> PyResult<Reply> {
    const GONE: Reply = Reply::Int(0);
    let Some(stop) = stop else {
        let wait = || reply.recv().unwrap_or(GONE);
        return Ok(py.detach(|| runtime.engine.wait_on_worker(wait)));
    };
    let sleeper = stop.sleepers.enter();
    loop {
        // Also what was raised before anybody could be woken.
        interrupt::raise_pending(py)?;
        if stop.is_asked() && !interrupt::is_here(stop) {
            // A thread that the function has started: nothing is raised in it.
            return Err(PyErr::from_type(errors::force_stopped_type(py)?, ()));
        }
        match py.detach(|| runtime.engine.wait_on_worker(|| sleeper.wait(reply))) {
            Waited::Came(reply) => return Ok(reply),
            Waited::Never => return Ok(GONE),
            Waited::Woken => {}
        }
    }
}

/// What is awaited in a coroutine.
fn in_coroutine<'py>(
    py: Python<'py>,
    runtime: &'static Runtime,
    scope: Option<&Scope>,
    keys: &[Vec<u8>],
) -> PyResult<Bound<'py, PyAny>> {
    let future = loop_module(py)?.call_method0("createFuture")?;
    let awaited = ObjectRef::new(future.clone().unbind());
    let engine = Arc::clone(&runtime.engine);
    let number = ask(py, runtime, scope, keys, move |reply| {
        // Not here, where the server waits.
        engine
            .timers
            .after(Duration::ZERO, move |_| tell(&awaited, reply));
    })?;
    if let Some(number) = number {
        let ended = move |ended: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| {
            if ended.get_item(0)?.call_method0("cancelled")?.is_truthy()? {
                runtime.readers.loads.give_up(number);
            }
            Ok::<_, PyErr>(())
        };
        let ended = PyCFunction::new_closure(py, None, None, ended)?;
        future.call_method1("add_done_callback", (ended,))?;
    }
    Ok(future)
}

/// The number of the one who waits, if he does.
fn ask(
    py: Python<'_>,
    runtime: &Runtime,
    scope: Option<&Scope>,
    keys: &[Vec<u8>],
    done: impl FnOnce(Reply) + Send + 'static,
) -> PyResult<Option<u64>> {
    let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let db = scope.map_or(0, |scope| scope.db);
    let execution = scope.and_then(|scope| scope.execution.as_ref()).map(|its| its.id);
    let actor = Scope::actor_of(scope);
    let asked = py.detach(|| {
        lock::with_lock(|lock| {
            if let Some(actor) = actor {
                let words = [&[&b"RG.REFRESH"[..]], &names[..]].concat();
                actor.check_command(lock, &words)?;
            }
            let loads = &runtime.readers.loads;
            loads.refresh(lock, db, &names, execution, done)
        })
    });
    Ok(asked?)
}
/// Gives whoever awaits a refresh its reply, or raises it there.
fn tell(future: &ObjectRef, reply: Reply) {
    attach(|py| {
        let told = loop_module(py).and_then(|event_loop| {
            let (method, value) = match convert::reply_object(py, reply) {
                Ok(value) => ("setFutureResults", value),
                Err(error) => (
                    "setFutureException",
                    error.into_value(py).into_bound(py).into_any(),
                ),
            };
            event_loop.call_method1(method, (future.bind(py), value))
        });
        if let Err(error) = told {
            api::log_warning(&format!("the reply of a refresh was lost: {error}"));
        }
    });
}
