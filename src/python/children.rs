//! Processes that functions fork. The Python side is `python/children.py`.

use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::{prelude::*, types::PyList};

use super::attach::attach;
use crate::server::{
    api::{self, Features},
    asking::config,
    lock::Lock,
};

/// This process is a child of the server: it has none of its threads, and must not act as the server.
static FORKED: AtomicBool = AtomicBool::new(false);

/// The error of what only the server can do.
pub const NOT_THE_SERVER: &str =
    "this process was forked from the server: it cannot run commands, expected e.g. a client's connection";

/// Called in a process that was forked.
#[pyfunction(name = "becomeChild")]
pub fn become_child() {
    FORKED.store(true, Ordering::Relaxed);
}

pub fn is_forked() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Ends a forked process where its function has ended: what called the function is the server's.
#[inline]
pub fn end_if_forked<T>(py: Python<'_>, ended: &PyResult<T>) {
    if is_forked() {
        end_child(py, ended.as_ref().err());
    }
}

#[cold]
fn end_child(py: Python<'_>, error: Option<&PyErr>) {
    if let Some(error) = error {
        error.clone_ref(py).print(py);
    }
    if let Ok(output) = py.import("sys").and_then(|sys| sys.getattr("stdout")) {
        // Nobody is there to be told.
        let _ = output.call_method0("flush");
    }
    // SAFETY: ends the process at once, without the exit handlers of the server.
    unsafe { libc::_exit(i32::from(error.is_some())) };
}

/// Tells Python where the server listens, at the start and when that changes: forked processes close those sockets.
pub fn note_places(lock: Lock<'_>, features: Features) {
    let ask = |pattern: &str| {
        config(lock, features, pattern)
            .into_iter()
            .map(|(_, value)| value)
    };
    let ports = ask("*port").filter_map(|port| port.parse::<u32>().ok());
    // The bus of a cluster has a port of its own, by default 10000 above.
    let ports: Vec<u32> = ports
        .filter(|&port| port > 0)
        .flat_map(|port| [port, port + 10_000])
        .collect();
    let mut sockets = ask("unixsocket").filter(|path| !path.is_empty());
    attach(|py| {
        let told = PyList::new(py, ports).and_then(|places| {
            sockets.try_for_each(|path| places.append(path))?;
            py.import("pinion_children")?.call_method1("listen_at", (places,))
        });
        if let Err(error) = told {
            api::log_warning(&format!(
                "forked processes will keep the server's sockets: {error}"
            ));
        }
    });
}
