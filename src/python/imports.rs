//! Whether a thread is inside an import, which nobody may break off: what a module has half done stays done (types that are
//! registered, libraries that are loaded), Python forgets the module all the same, and many cannot be imported twice.
//!
//! Called attached, by whoever is about to stop that thread.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use pyo3::{intern, prelude::*, types::PyModule};

use crate::mutex::Mutex;

/// An import that takes longer than this is broken off after all: a server that nobody can use is worse than a module.
const PATIENCE: Duration = Duration::from_secs(60);

/// Since when the threads that somebody wants to stop are importing. The number is that of the import's frame.
static IMPORTING: Mutex<Option<HashMap<u64, (usize, Instant)>>> = Mutex::new(None);

/// True if `thread` is inside an import that is to be waited for.
pub fn is_importing(py: Python<'_>, thread: u64) -> bool {
    let import = outermost_import(py, thread).ok().flatten();
    let mut importing = IMPORTING.lock();
    let importing = importing.get_or_insert_default();
    importing.retain(|_, (_, since)| since.elapsed() < 2 * PATIENCE);
    let Some(import) = import else {
        importing.remove(&thread);
        return false;
    };
    let (known, since) = importing.entry(thread).or_insert((import, Instant::now()));
    if *known != import {
        (*known, *since) = (import, Instant::now());
    }
    since.elapsed() < PATIENCE
}

/// The address of the frame in which a thread began the import that it is in.
fn outermost_import(py: Python<'_>, thread: u64) -> PyResult<Option<usize>> {
    let frames = PyModule::import(py, intern!(py, "sys"))?.call_method0(intern!(py, "_current_frames"))?;
    let Ok(mut frame) = frames.get_item(thread) else {
        return Ok(None);
    };
    let mut outermost = None;
    while !frame.is_none() {
        let file = frame
            .getattr(intern!(py, "f_code"))?
            .getattr(intern!(py, "co_filename"))?;
        // The file of `_find_and_load`, through which all imports go.
        if file.eq(intern!(py, "<frozen importlib._bootstrap>"))? {
            outermost = Some(frame.as_ptr() as usize);
        }
        frame = frame.getattr(intern!(py, "f_back"))?;
    }
    Ok(outermost)
}
