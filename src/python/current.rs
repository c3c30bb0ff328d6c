//! Which session the running code belongs to: that of the callback on this thread, else that of the coroutine, else the
//! one that the thread was given (docs/contract/python-api.md 2.10, 6.6).

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::mutex::Mutex;
use pyo3::{ffi, prelude::*, sync::PyOnceLock, types::PyTuple};

use super::{
    attach::{self, in_engine},
    coroutine::loop_module,
    errors, interrupt,
};
use crate::engine::{execution::Execution, linked_command::ReplyHold, scope::Scope};

thread_local! {
    /// This thread runs the event loop.
    static IS_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// The thread of the event loop.
static LOOP: AtomicU64 = AtomicU64::new(0);

/// Marks this thread as the one of the event loop.
pub fn mark_loop_thread() {
    IS_LOOP.set(true);
    LOOP.store(interrupt::this_thread(), Ordering::Release);
}

/// Python's id of the thread of the event loop.
pub fn loop_thread() -> u64 {
    LOOP.load(Ordering::Acquire)
}

/// The session of the running code, with its command.
pub fn scope() -> Option<Scope> {
    Scope::current().or_else(|| attach::bare(|py| Some(of_context(py)?.get().0.clone())))
}

/// True in a coroutine of a session.
pub fn is_in_coroutine(py: Python<'_>) -> bool {
    IS_LOOP.get() && of_context(py).is_some()
}

/// What the context of the running coroutine or thread says.
fn of_context(py: Python<'_>) -> Option<Bound<'_, GearsSession>> {
    static SESSION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let variable = SESSION
        .get_or_try_init(py, || {
            Ok::<_, PyErr>(loop_module(py)?.getattr("session")?.unbind())
        })
        .ok()?;
    let mut value = std::ptr::null_mut();
    // SAFETY: attached; the variable is a ContextVar; a value is a new reference.
    let value = unsafe {
        if ffi::PyContextVar_Get(variable.as_ptr(), std::ptr::null_mut(), &raw mut value) != 0 {
            drop(PyErr::take(py));
            return None;
        }
        Bound::from_owned_ptr_or_opt(py, value)?
    };
    value.cast_into::<GearsSession>().ok()
}

/// A session as scripts hold it. Opaque.
#[pyclass(frozen, name = "PyExecutionSession", module = "redisgears")]
pub struct GearsSession(Scope);

impl GearsSession {
    /// A script ends before what it starts: the session goes on without it.
    pub fn new(scope: Scope) -> Self {
        if scope.script.is_some() || scope.server_script.is_some() {
            return Self(Scope::of_session(&scope.session));
        }
        Self(scope)
    }
}

#[pymethods]
impl GearsSession {
    fn __repr__(&self) -> &'static str {
        "PyExecutionSession"
    }
}

/// `getGearsSession()`: the session of the running code, or `None`.
pub fn session() -> Option<GearsSession> {
    scope().map(GearsSession::new)
}

/// `setGearsSession(s)`: makes `s` the session of this thread, `None` removes it.
///
/// # Errors
/// `gears.error`: not exactly one argument, or no session.
pub fn set_session(py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
    if args.len() != 1 {
        return Err(errors::gears_error(
            "Wrong number of args given to setGearsSession",
        ));
    }
    let session = args.get_item(0)?;
    let scope = if session.is_none() {
        None
    } else {
        let session = session
            .cast::<GearsSession>()
            .map_err(|_| errors::gears_error("Given object is not of type GearsSession"))?;
        Some(session.get().0.clone())
    };
    if Scope::current().is_some() {
        Scope::replace_current(scope);
        return Ok(());
    }
    if let (None, true) = (&scope, is_in_coroutine(py)) {
        // Without a session it would have all rights, where RunAs is 'all'.
        if let Some(actor) = of_context(py).and_then(|session| session.get().0.actor.clone()) {
            return Err(errors::gears_error(format!(
                "setGearsSession: a coroutine that acts as user '{}' keeps its session",
                actor.owner().user().unwrap_or_default()
            )));
        }
    }
    loop_module(py)?
        .getattr("session")?
        .call_method1("set", (session,))
        .map(drop)
}

/// What keeps the client of a linked command waiting while a coroutine runs.
#[pyclass(frozen, module = "redisgears")]
pub struct ClientHold(Mutex<Option<ReplyHold>>);

#[pymethods]
impl ClientHold {
    fn release(&self) {
        let hold = self.0.lock().take();
        in_engine(|| drop(hold));
    }
}

/// A hold on the client that waits for the execution of the running code, if there is one.
pub fn hold_client() -> Option<ClientHold> {
    let scope = scope()?;
    let link = scope.execution.as_ref()?.link.as_ref()?;
    Some(ClientHold(Mutex::new(Some(link.hold_open()?))))
}

/// The execution that a session object stands for.
pub fn execution_of(session: &Bound<'_, PyAny>) -> Option<Arc<Execution>> {
    session.cast::<GearsSession>().ok()?.get().0.execution.clone()
}

/// True if a session object stands for this execution.
pub fn is_of_execution(session: &Bound<'_, PyAny>, execution: &Arc<Execution>) -> bool {
    execution_of(session).is_some_and(|its| Arc::ptr_eq(&its, execution))
}

/// The session's name, or what it was registered for, for the log.
pub fn description(session: &Bound<'_, PyAny>) -> Option<String> {
    let scope = &session.cast::<GearsSession>().ok()?.get().0;
    let registration = scope
        .execution
        .as_ref()
        .and_then(|execution| execution.registration.as_ref());
    Some(match registration {
        Some(registration) => format!("registration {} of session {}", registration.id, scope.session.id),
        None => format!("session {}", scope.session.id),
    })
}
