//! Python: the language that functions are written in. Implements the engine's traits; nothing else names Python.
//!
//! Threads: a thread that waits is detached; objects are made and dropped while attached.

mod api;
mod arguments;
mod atomic;
mod attach;
mod audit;
mod builder;
mod callback;
mod children;
mod convert;
mod coroutine;
mod current;
mod embedded;
mod errors;
mod half;
mod held;
mod image;
mod imports;
mod installed;
pub mod interpreter;
mod interrupt;
mod kept;
mod keywords;
mod language;
mod launch;
mod loaded;
pub mod memory;
mod owners;
pub mod profile;
mod read_through;
mod refresh;
mod registering;
mod rows;
mod script;
mod scripting;
mod starting;
mod text;
mod watchdog;
mod write_behind;

use std::sync::{Arc, OnceLock};

pub use children::note_places;
pub use language::CPython;
pub use script::run as run_script;

use pyo3::prelude::*;

use crate::{
    engine::{Engine, registering::Registrar},
    readers::image::Readers,
    server::api::log_warning,
    threads,
};

/// What the functions that scripts call work on. They are free functions of a Python module, hence the static.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// The rest of the module, as Python sees it.
pub struct Runtime {
    pub engine: Arc<Engine>,
    pub readers: Arc<Readers>,
    pub registrar: Arc<dyn Registrar>,
}

/// Connects Python to the engine. Called once, while the module loads, before any script runs.
pub fn connect(runtime: Runtime) {
    // A second call cannot happen: the module cannot be loaded twice.
    let _ = RUNTIME.set(runtime);
}

/// Starts the thread of the event loop, and those that see who keeps Python to itself. Called on the server's own thread.
///
/// # Errors
/// The operating system gave no thread.
pub fn start_threads(engine: &Arc<Engine>) -> std::io::Result<()> {
    let life = || {
        current::mark_loop_thread();
        held::note_this_thread();
        attach::attach(|py| {
            let ended = coroutine::loop_module(py).and_then(|module| module.call_method0("run"));
            if let Err(error) = ended {
                log_warning(&format!("the event loop has ended: {error}"));
            }
        });
    };
    threads::spawn("pinion-loop".into(), life)?;
    held::note_this_thread();
    held::watch(engine)
}

/// # Errors
/// The module has not finished loading.
fn runtime() -> pyo3::PyResult<&'static Runtime> {
    RUNTIME
        .get()
        .ok_or_else(|| errors::gears_error("the module is still loading"))
}
