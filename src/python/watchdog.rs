//! Says in the log whose code holds the event loop up, and ends it if it was aborted. Looks once a second while coroutines are alive.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use pyo3::prelude::*;

use super::{RUNTIME, attach::attach, coroutine::loop_module, current, interrupt};
use crate::server::api;

const INTERVAL: Duration = Duration::from_secs(1);

static WATCHING: AtomicBool = AtomicBool::new(false);
/// The present standstill was logged.
static LOGGED: AtomicBool = AtomicBool::new(false);

/// A coroutine was started: looks until none is alive.
pub fn watch() {
    if !WATCHING.swap(true, Ordering::SeqCst) {
        look_later();
    }
}

fn look_later() {
    if let Some(runtime) = RUNTIME.get() {
        runtime.engine.timers.after(INTERVAL, |_| look());
    }
}

fn look() {
    let goes_on = attach(|py| {
        let Ok(blocked) = loop_module(py).and_then(|module| module.call_method0("blocked")) else {
            return !rests(py);
        };
        if blocked.is_none() {
            LOGGED.store(false, Ordering::Relaxed);
            return true;
        }
        if blocked.extract::<bool>().is_ok_and(|alive| !alive) {
            return !rests(py);
        }
        if let Some(aborted) = current::execution_of(&blocked).filter(|its| its.stop.is_asked()) {
            // It was stopped before it came to this, or it has caught the exception.
            drop(interrupt::raise_in_coroutine(py, &aborted));
        }
        if !LOGGED.swap(true, Ordering::Relaxed) {
            let whose = current::description(&blocked).unwrap_or_else(|| "unknown code".into());
            api::log_warning(&format!(
                "the event loop has been blocked for more than a second by {whose}: all coroutines wait"
            ));
        }
        true
    });
    if goes_on {
        look_later();
    }
}

/// No coroutine is alive: the next one that begins is watched again. False if one has begun in this moment, which has seen somebody watch.
fn rests(py: Python<'_>) -> bool {
    LOGGED.store(false, Ordering::Relaxed);
    WATCHING.store(false, Ordering::SeqCst);
    let alive = loop_module(py).and_then(|module| module.call_method0("is_alive")?.extract::<bool>());
    !alive.unwrap_or(false) || WATCHING.swap(true, Ordering::SeqCst)
}
