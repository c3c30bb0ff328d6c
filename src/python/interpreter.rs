//! The one interpreter, of the Python and the virtual environment that the loader has chosen.
//!
//! Started once, on the server's thread, while the module loads. Whatever is missing is a text for the log, never a
//! crash.

use std::{
    ffi::{CStr, CString},
    fs,
    mem::MaybeUninit,
    path::{Path, PathBuf},
};

use pyo3::{
    ffi,
    prelude::*,
    types::{PyDict, PyModule},
};

use super::{api, attach, audit, embedded, errors, memory};
use crate::threads;

/// How long a thread that computes keeps Python from others. The server's own thread may be one of them: Python's 5 ms would
/// hold up all clients.
const SWITCH_INTERVAL_S: f64 = 0.0005;

/// The Python that the loader has found.
pub struct Environment {
    /// The interpreter's path.
    pub program: String,
    /// The virtual environment, or the installation if it is in none.
    pub prefix: String,
}

/// What was started.
pub struct Started {
    /// The interpreter's path.
    pub program: PathBuf,
    /// E.g. `3.11.2`.
    pub version: String,
    /// The virtual environment, as Python sees it.
    pub prefix: String,
    /// The installation that it stands on.
    pub base_prefix: String,
}

/// Starts the Python that the loader has found, with memory of the server's if `server_memory`, and an event loop of the
/// kind `loop_kind`. `wanted`: the environment as the options say; the server's own configuration, which the loader cannot
/// see, may name another one.
///
/// # Errors
/// What is missing or wrong, in one line for the log.
pub fn start(
    environment: &Environment,
    wanted: &str,
    server_memory: bool,
    loop_kind: &str,
) -> Result<Started, String> {
    let program = if wanted == environment.prefix {
        PathBuf::from(&environment.program)
    } else {
        check_venv(Path::new(wanted))?
    };
    pyo3::append_to_inittab!(redisgears);
    initialize(&program, server_memory)?;
    let started = attach::bare(|py| prepare(py, program, loop_kind))
        .map_err(|error| format!("Python did not start: {error}"));
    // SAFETY: this thread initialised Python and is attached; from here on everybody attaches when needed.
    unsafe { ffi::PyEval_SaveThread() };
    started
}

use api::redisgears;

/// The interpreter of a virtual environment that fits the Python that is loaded.
fn check_venv(venv: &Path) -> Result<PathBuf, String> {
    let shown = venv.display();
    let hint = "give it as the module argument PythonVenv <dir>, from which the Python is chosen";
    let config = fs::read_to_string(venv.join("pyvenv.cfg"))
        .map_err(|error| format!("{shown} is no Python virtual environment (pyvenv.cfg: {error}): {hint}"))?;
    let program = venv.join("bin/python");
    if !program.exists() {
        return Err(format!(
            "the virtual environment {shown} has no bin/python: {hint}"
        ));
    }
    let linked = minor_version(&version());
    let made_for = config
        .lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| matches!(key.trim(), "version" | "version_info"))
        .map(|(_, value)| minor_version(value.trim()));
    match made_for {
        Some(version) if version == linked => Ok(program),
        Some(version) => Err(format!(
            "the virtual environment {shown} is for Python {version}, the module for Python {linked}: {hint}"
        )),
        None => Err(format!(
            "{shown}/pyvenv.cfg does not tell its Python version: {hint}"
        )),
    }
}

/// The version of the Python that runs, e.g. `3.11.2`.
pub fn version() -> String {
    // SAFETY: returns a static text, also before Python is initialised.
    let text = unsafe { CStr::from_ptr(ffi::Py_GetVersion()) }.to_string_lossy();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// `3.11` of `3.11.2 (main, ...)`.
fn minor_version(text: &str) -> String {
    let version = text
        .split(|c: char| c != '.' && !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Initialises Python; this thread is attached afterwards.
fn initialize(program: &Path, server_memory: bool) -> Result<(), String> {
    let program = CString::new(program.as_os_str().as_encoded_bytes())
        .map_err(|_| "the path of the virtual environment holds NUL".to_owned())?;
    // SAFETY: the structures are initialised by Python before anything reads them, and cleared after use.
    unsafe {
        let mut early = MaybeUninit::<ffi::PyPreConfig>::zeroed();
        ffi::PyPreConfig_InitPythonConfig(early.as_mut_ptr());
        let mut early = early.assume_init();
        early.use_environment = 0;
        early.utf8_mode = 1;
        check(ffi::Py_PreInitialize(&raw const early))?;
        if server_memory {
            memory::take_from_server();
        }

        let mut config = MaybeUninit::<ffi::PyConfig>::zeroed();
        ffi::PyConfig_InitPythonConfig(config.as_mut_ptr());
        let mut config = config.assume_init();
        // The server's environment variables and signals are the server's.
        config.use_environment = 0;
        config.user_site_directory = 0;
        config.install_signal_handlers = 0;
        config.parse_argv = 0;
        let mut arguments = [c"Embeded".as_ptr()];
        let config_at = &raw mut config;
        let status = [
            ffi::PyConfig_SetBytesString(config_at, &raw mut (*config_at).program_name, program.as_ptr()),
            ffi::PyConfig_SetBytesArgv(config_at, 1, arguments.as_mut_ptr()),
        ]
        .into_iter()
        .try_for_each(|status| check(status))
        .and_then(|()| check(ffi::Py_InitializeFromConfig(config_at)));
        ffi::PyConfig_Clear(config_at);
        status
    }
}

/// # Safety
/// `status` was returned by Python just now.
unsafe fn check(status: ffi::PyStatus) -> Result<(), String> {
    // SAFETY: by the caller's promise; the message is a static text of Python.
    unsafe {
        if ffi::PyStatus_Exception(status) == 0 {
            return Ok(());
        }
        let message = if status.err_msg.is_null() {
            "no reason given".into()
        } else {
            CStr::from_ptr(status.err_msg).to_string_lossy()
        };
        Err(format!("Python did not start: {message}"))
    }
}

/// Loads Python's part of the module and fills `__main__`, the template of every script's globals.
fn prepare(py: Python<'_>, program: PathBuf, loop_kind: &str) -> PyResult<Started> {
    errors::init(py)?;
    embedded::install(py)?;
    embedded::load(py, &embedded::NOT_MAIN)?;
    embedded::load(py, &embedded::OUTPUT)?.call_method0("install")?;
    embedded::load(py, &embedded::BUILDER)?;
    embedded::load(py, &embedded::CHILDREN)?.call_method1("install", (embedded::NURSERY,))?;
    embedded::load(py, &embedded::LOOP)?.call_method1("prepare", (loop_kind,))?;
    for module in [
        &embedded::INTERRUPT,
        &embedded::PROFILE,
        &embedded::READ_THROUGH,
        // It knows what loaders return.
        &embedded::SIZES,
        &embedded::WRITE_BEHIND,
        &embedded::SCRIPTING,
        &embedded::REDIS_AI,
    ] {
        embedded::load(py, module)?;
    }
    embedded::run(py, embedded::NAMESPACE, &PyModule::import(py, "__main__")?.dict())?;
    let sys = PyModule::import(py, "sys")?;
    sys.call_method1("setswitchinterval", (SWITCH_INTERVAL_S,))?;
    PyModule::import(py, "threading")?.call_method1("stack_size", (threads::stack_size(),))?;
    // Integers of any length become digits. (Python 3.11 and later, and old releases with the fix.)
    if sys.hasattr("set_int_max_str_digits")? {
        sys.call_method1("set_int_max_str_digits", (0,))?;
    }
    audit::install(py)?;
    Ok(Started {
        program,
        version: version(),
        prefix: sys.getattr("prefix")?.extract()?,
        base_prefix: sys.getattr("base_prefix")?.extract()?,
    })
}

/// Fresh globals for a script: a copy of the template.
pub(super) fn script_globals(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let globals = PyModule::import(py, "__main__")?.dict().copy()?;
    globals.set_item("__name__", "not_main")?;
    Ok(globals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_minor() {
        assert_eq!(minor_version("3.11.2 (main, Apr 28 2025)"), "3.11");
        assert_eq!(minor_version("3.13.0rc1"), "3.13");
        assert_eq!(minor_version(""), "");
    }

    #[test]
    fn a_missing_environment_is_one_clear_line() {
        let text = check_venv(Path::new("/nowhere/venv")).err().unwrap_or_default();
        assert!(
            text.starts_with("/nowhere/venv is no Python virtual environment"),
            "{text}"
        );
        assert!(!text.contains('\n'));
    }
}
