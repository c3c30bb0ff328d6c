//! The module `redisgears`: the functions that scripts call. Contract: docs/contract/python-api.md chapter 2.
//!
//! All of them take positional arguments only, except `log`. Called attached, on any thread.

use std::{sync::Arc, time::Duration};

use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyDict, PyInt, PyString, PyTuple},
};

use super::{
    arguments::string,
    atomic,
    attach::in_engine,
    callback::{Callback, Code},
    children, convert,
    coroutine::{self, Future},
    current::{self, ClientHold, GearsSession},
    errors, interrupt, runtime, watchdog,
};
use crate::{
    engine::{
        execution::Next,
        linked_command::LinkedCommand,
        members::tag_of,
        scope::{Acting, Scope, ServerScript},
    },
    error::Error,
    readers::time_events,
    server::{
        api::{self, Level},
        call, lock,
        lock::with_lock,
        own_thread,
        reply::Reply,
        room, script_call,
    },
};

/// The functions, classes and exceptions of the API.
#[pymodule]
pub mod redisgears {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        call_next, config_get, execute, flat_error, gears_config_get, gears_future, get_command,
        get_gears_session, hashtag, hold_client, is_async_allow, is_in_atomic_block, leave_atomic, let_out,
        log, log_printed, override_reply, register_gears_thread, register_time_event, set_gears_session,
        watch_loop,
    };
    #[pymodule_export]
    use crate::python::half::note_decorator;
    #[pymodule_export]
    use crate::python::read_through::register_read_through;
    #[pymodule_export]
    use crate::python::refresh::refresh;
    #[pymodule_export]
    use crate::python::write_behind::register_write_behind;
    #[pymodule_export]
    use crate::python::{
        atomic::Atomic, builder::Builder, children::become_child, current::GearsSession,
        scripting::script_flags,
    };

    /// Names that differ from those of the classes.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        use crate::python::{coroutine::Future, errors};
        let py = module.py();
        module.add("GearsError", errors::gears_error_type(py)?)?;
        module.add("GearsFlatError", errors::flat_error_type(py)?)?;
        // What instances say is `redisgears.Future`, as it was.
        module.add("PyFuture", py.get_type::<Future>())?;
        module.add("GearsForceStopped", errors::force_stopped_type(py)?)?;
        module.add("atomicCtx", module.getattr("PyAtomic")?)?;
        module.add("gearsCtx", module.getattr("PyFlatExecution")?)
    }
}

const NO_COMMANDS: &str =
    "ERR a library runs no commands while FUNCTION LOAD loads it: only its functions do";
const NO_TIME_EVENTS: &str = "time events belong to sessions: use RG.PYEXECUTE";

/// `executeCommand(command, *args)`: runs one command of the server and returns its reply.
///
/// # Errors
/// `gears.error` with the command's error text; whatever `str()` of an argument raised.
#[pyfunction(name = "executeCommand")]
#[pyo3(signature = (*args, **kwargs))]
fn execute<'py>(
    py: Python<'py>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    if kwargs.is_some_and(|kwargs| !kwargs.is_empty()) {
        return Err(PyTypeError::new_err(
            "executeCommand() takes no keyword arguments",
        ));
    }
    if children::is_forked() {
        return Err(errors::gears_error(children::NOT_THE_SERVER));
    }
    if args
        .get_item(0)
        .is_ok_and(|command| !command.is_instance_of::<PyString>())
    {
        return Err(errors::gears_error("the given command must be a string"));
    }
    let argv = convert::arguments("execute", args)?;
    let scope = current::scope();
    note_act();
    // A function in the place of a command that runs this command means what stands behind itself.
    if let (Some(next), Some((command, arguments))) = (next_of(scope.as_ref()), argv.split_first()) {
        if next.stands_for(command) {
            return go_on(py, &next, arguments.to_vec());
        }
    }
    let engine = &runtime()?.engine;
    engine.show(scope.as_ref().and_then(|scope| scope.execution.as_ref()));
    let features = engine.features;
    let script = scope.as_ref().and_then(|scope| scope.server_script);
    if let Some(script) = script.filter(|_| lock::is_held()) {
        let reply = in_engine(|| match script {
            ServerScript::Runs => with_lock(|lock| script_call::execute(lock, features, &argv)),
            ServerScript::Loads => Reply::error(NO_COMMANDS),
        });
        return convert::reply_object(py, reply);
    }
    let db = scope.as_ref().map_or(0, |scope| scope.db);
    let actor = Scope::actor_of(scope.as_ref());
    let run = move || {
        let _acting = Acting::enter(scope.as_ref());
        let name = argv.first().map(Vec::as_slice).unwrap_or_default();
        room::make(features, name, |lock| {
            own_thread::here(lock, features, name, || {
                call::execute(lock, features, db, &argv, actor.as_ref())
            })
        })
    };
    let reply = on_the_server(py, || own_thread::run(run));
    convert::reply_object(py, reply.unwrap_or_else(Into::into))
}

/// `callNext(*args)`: what stands behind the function that hooked a command, with these arguments.
///
/// # Errors
/// `gears.error`: the function hooked no command; what the command answered; whatever `str()` of an argument raised.
#[pyfunction(name = "callNext")]
#[pyo3(signature = (*args))]
fn call_next<'py>(py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    let scope = current::scope();
    let next = next_of(scope.as_ref()).ok_or(Error::NoHookContext)?;
    let arguments = convert::arguments("call_next", args)?;
    go_on(py, &next, arguments)
}

fn next_of(scope: Option<&Scope>) -> Option<Arc<dyn Next>> {
    scope?.execution.as_ref()?.next.clone()
}

fn go_on<'py>(py: Python<'py>, next: &Arc<dyn Next>, arguments: Vec<Vec<u8>>) -> PyResult<Bound<'py, PyAny>> {
    let engine = &runtime()?.engine;
    let reply = on_the_server(py, || with_lock(|lock| next.call(engine, lock, arguments)));
    convert::reply_object(py, reply)
}

/// A script has done something by itself.
fn note_act() {
    Scope::note_of_script(|script| script.has_acted = true);
}

/// Waiting for the server happens detached; where it is held already there is nothing to wait for.
fn on_the_server<R: Send>(py: Python<'_>, run: impl FnOnce() -> R + Send) -> R {
    in_engine(|| if lock::is_held() { run() } else { py.detach(run) })
}

/// `log(message, level='notice')`: writes a line to the server's log.
///
/// # Errors
/// `gears.error`: no message, no `str`, or an unknown level.
#[pyfunction]
#[pyo3(signature = (*args, **kwargs))]
fn log(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    let given_level = match kwargs {
        Some(kwargs) => kwargs.get_item("level")?,
        None => None,
    };
    let (message, level) = match args.len() {
        1 => (args.get_item(0)?, given_level),
        2 => (args.get_item(1)?, Some(args.get_item(0)?)),
        _ => {
            return Err(errors::gears_error(
                "log function must get a log message as input",
            ));
        }
    };
    let message = message
        .cast_into::<PyString>()
        .map_err(|_| errors::gears_error("Log message must be a string"))?;
    let level = match level {
        None => Level::Notice,
        Some(level) => {
            let level = level.cast_into::<PyString>().map_err(|_| {
                errors::gears_error("Log level must be a sting (debug/verbose/notice/warning)")
            })?;
            level_by_name(&level.to_string_lossy()).ok_or_else(|| {
                errors::gears_error("Log level should be one of the following : debug,verbose,notice,warning")
            })?
        }
    };
    if args.len() == 2 {
        api::log_warning(
            "Specify log level as the first argument to log function is depricated, use key argument 'level' instead",
        );
    }
    note_act();
    api::log(level, &format!("GEARS: {}", message.to_string_lossy()));
    Ok(())
}

/// For `print`: writes a line to the server's log, with the name of the session. False in a forked process, which is not the
/// server.
#[pyfunction(name = "logPrinted")]
fn log_printed(line: &Bound<'_, PyString>, is_error: bool) -> bool {
    if children::is_forked() {
        return false;
    }
    note_act();
    let level = if is_error { Level::Warning } else { Level::Notice };
    let line = line.to_string_lossy().replace('\0', "\\x00");
    let source = match Scope::current() {
        Some(scope) => format!("session {}", scope.session.id),
        None => "GEARS".to_owned(),
    };
    for part in parts_of(&line) {
        api::log(level, &format!("{source}: {part}"));
    }
    true
}

/// A text in parts that the server's log does not cut: it ends lines after 1024 bytes.
fn parts_of(text: &str) -> Vec<&str> {
    const LONGEST: usize = 900;
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > LONGEST {
        let end = (1..=LONGEST).rev().find(|&end| rest.is_char_boundary(end));
        let (part, behind) = rest.split_at(end.unwrap_or(LONGEST));
        parts.push(part);
        rest = behind;
    }
    parts.push(rest);
    parts
}

fn level_by_name(name: &str) -> Option<Level> {
    match name {
        "debug" => Some(Level::Debug),
        "verbose" => Some(Level::Verbose),
        "notice" => Some(Level::Notice),
        "warning" => Some(Level::Warning),
        _ => None,
    }
}

/// `config_get(key)`: a value that was given explicitly, or `None`.
///
/// # Errors
/// `gears.error`: not exactly one argument, or no `str`.
#[pyfunction]
#[pyo3(signature = (*args))]
fn config_get<'py>(py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    if args.len() != 1 {
        return Err(errors::gears_error(
            "get_config function must get a single key input",
        ));
    }
    configured(py, &args.get_item(0)?, None)
}

/// `gearsConfigGet(key, default=None)`: the same with a default.
///
/// # Errors
/// `gears.error`: the key is no `str`.
#[pyfunction(name = "gearsConfigGet")]
#[pyo3(signature = (key, default=None))]
fn gears_config_get<'py>(
    py: Python<'py>,
    key: &Bound<'py, PyAny>,
    default: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    configured(py, key, default)
}

fn configured<'py>(
    py: Python<'py>,
    key: &Bound<'py, PyAny>,
    default: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let key = string(key, "get_config key must be a string")?;
    let value = runtime()?.engine.config.explicit(key.as_bytes());
    Ok(match value {
        Some(value) => convert::text_object(py, &value),
        None => default.unwrap_or_else(|| py.None().into_bound(py)),
    })
}

/// `getMyHashTag()`: a string whose hash slot is this shard's lowest one; slot 0 while there is one shard.
#[pyfunction(name = "getMyHashTag")]
#[pyo3(signature = (*_args))]
fn hashtag(_args: &Bound<'_, PyTuple>) -> PyResult<&'static str> {
    let engine = &runtime()?.engine;
    let slots = engine
        .members()
        .and_then(|members| members.first_slots(engine.registry.shard()));
    Ok(tag_of(slots.map_or(0, |(first, _)| first)))
}

/// `isInAtomicBlock()`: whether this thread is inside an `atomic` block.
#[pyfunction(name = "isInAtomicBlock")]
#[pyo3(signature = (*_args))]
fn is_in_atomic_block(_args: &Bound<'_, PyTuple>) -> bool {
    atomic::is_inside()
}

/// `isAsyncAllow()`: whether a coroutine may be returned here, or code runs in one.
#[pyfunction(name = "isAsyncAllow")]
#[pyo3(signature = (*_args))]
fn is_async_allow(py: Python<'_>, _args: &Bound<'_, PyTuple>) -> bool {
    coroutine::is_async_allowed(py)
}

/// `gearsFutureCtx()`: a future to be returned by the callback that makes it.
///
/// # Errors
/// `gears.error`: see [`coroutine::make_future`].
#[pyfunction(name = "gearsFutureCtx")]
#[pyo3(signature = (*args))]
fn gears_future<'py>(py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, Future>> {
    coroutine::make_future(py, args)
}

/// `getGearsSession()`: the session of the running code, or `None`.
#[pyfunction(name = "getGearsSession")]
#[pyo3(signature = (*_args))]
fn get_gears_session(_args: &Bound<'_, PyTuple>) -> Option<GearsSession> {
    current::session()
}

/// `setGearsSession(s)`: makes `s` the session of this thread; `None` removes it.
///
/// # Errors
/// `gears.error`: not exactly one argument, or no session.
#[pyfunction(name = "setGearsSession")]
#[pyo3(signature = (*args))]
fn set_gears_session(py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
    current::set_session(py, args)
}

/// `registerTimeEvent(seconds, callback[, key])`: calls `callback()` every so many seconds. With a `key` (str) as long as
/// that key exists. Returns `False` if it exists already.
///
/// # Errors
/// `gears.error`: a wrong argument, a thread without a session, a function that cannot be kept.
#[pyfunction(name = "registerTimeEvent")]
#[pyo3(signature = (*args))]
fn register_time_event(py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<bool> {
    if !(2..=3).contains(&args.len()) {
        return Err(errors::gears_error("not enough arguments for time event"));
    }
    let callback = args.get_item(1)?;
    if !callback.is_callable() {
        return Err(errors::gears_error("callback must be a function"));
    }
    let seconds = args.get_item(0)?;
    let seconds = seconds
        .cast::<PyInt>()
        .map_err(|_| errors::gears_error("time argument must be a long"))?;
    let seconds = seconds
        .extract()
        .ok()
        .filter(|&seconds: &u32| seconds > 0)
        .ok_or_else(|| errors::gears_error("time argument must be a positive number of seconds"))?;
    let scope = current::scope()
        .ok_or_else(|| errors::gears_error("can not create time event on a python created thread"))?;
    if scope.server_script.is_some() {
        return Err(errors::gears_error(NO_TIME_EVENTS));
    }
    note_act();
    // Anything else than a text is ignored, as in 1.2.
    let key = args
        .get_item(2)
        .ok()
        .filter(PyAnyMethods::is_instance_of::<PyString>);
    let key = key.map(|key| string(&key, "key argument")).transpose()?;
    let key = key.map(String::into_bytes);
    let function = Arc::new(Callback::new(py, Code::new(callback)));
    let period = Duration::from_secs(seconds.into());
    let engine = &runtime()?.engine;
    in_engine(|| time_events::start(engine, &scope, period, function, key)).map_err(errors::gears_error)
}

/// `registerGearsThread()`: announces a thread of the user's. Every thread may call the API without it.
#[pyfunction(name = "registerGearsThread")]
#[pyo3(signature = (*_args))]
fn register_gears_thread(_args: &Bound<'_, PyTuple>) {}

/// For the event loop: keeps the client of the running code waiting.
#[pyfunction(name = "holdClient")]
fn hold_client() -> Option<ClientHold> {
    note_act();
    current::hold_client()
}

/// For the event loop: a coroutine begins.
#[pyfunction(name = "watchLoop")]
fn watch_loop() {
    watchdog::watch();
}

/// For the event loop: ends the atomic block of this thread; true if there was one.
#[pyfunction(name = "leaveAtomic")]
fn leave_atomic() -> bool {
    atomic::leave()
}

/// For the event loop: an exception may be pending in this thread that was meant for a coroutine which has ended.
#[pyfunction(name = "letOut")]
fn let_out(py: Python<'_>) {
    interrupt::let_out(py);
}

/// `flatError(message)`: raises `gears.flat_error`, which clients see without a traceback.
///
/// # Errors
/// Always.
#[pyfunction(name = "flatError")]
#[pyo3(signature = (*args))]
fn flat_error(py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
    if args.len() != 1 {
        return Err(errors::gears_error("not enough arguments for time flat error"));
    }
    let message = args.get_item(0)?.unbind();
    Err(PyErr::from_type(errors::flat_error_type(py)?, (message,)))
}

/// `getCommand()`: the linked command as typed, its name first.
///
/// # Errors
/// `gears.error`: no client waits for this execution.
#[pyfunction(name = "getCommand")]
#[pyo3(signature = (*_args))]
fn get_command<'py>(py: Python<'py>, _args: &Bound<'py, PyTuple>) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let link = linked()?;
    Ok(link
        .command()
        .iter()
        .map(|word| convert::text_object(py, word))
        .collect())
}

/// `overrideReply(value)`: the linked client gets `value` as the reply of its command.
///
/// # Errors
/// `gears.error`: no client waits for this execution, not exactly one argument, or it was done before; what the
/// conversion raised.
#[pyfunction(name = "overrideReply")]
#[pyo3(signature = (*args))]
fn override_reply(args: &Bound<'_, PyTuple>) -> PyResult<()> {
    let link = linked()?;
    if args.len() != 1 {
        return Err(errors::gears_error("Override reply must get a single argument"));
    }
    let reply = convert::object_reply(&args.get_item(0)?, convert::Surrogates::Raise)?;
    Ok(link.replace_reply(reply)?)
}

fn linked() -> PyResult<Arc<LinkedCommand>> {
    let here = Scope::with_execution(|execution| execution.and_then(|execution| execution.link.clone()));
    let link = here.or_else(|| current::scope()?.execution.as_ref()?.link.clone());
    link.filter(|link| link.is_open())
        .ok_or_else(|| Error::NoCommandContext.into())
}
