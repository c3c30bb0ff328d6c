//! The language behind the server's EVAL and FUNCTION LOAD; Python's half of it is `python/scripting.py`. Contract:
//! docs/contract/scripting-engine.md.

use std::{
    ffi::{c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
};

use pyo3::{
    ffi, intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyList, PyModule},
};

use super::{
    CPython,
    attach::{ObjectRef, apart, attach, in_engine},
    children,
    convert::{self, Surrogates},
    coroutine::{Calling, Waits},
    interpreter::script_globals,
    kept::kept,
};
use crate::{
    engine::session::Session,
    scripting::{Body, Function, ScriptLanguage},
    server::{reply::Reply, script_engine::Flags, string::Argv},
};

/// What Python's half says of one function.
type Declaration<'py> = (String, Option<String>, u64, Bound<'py, PyAny>, usize);

const ANSWERS_AT_ONCE: &str = "a script answers at once: it cannot return a coroutine";

impl ScriptLanguage for CPython {
    fn load_library(&self, code: &[u8], session: &Session) -> Result<Vec<Function>, String> {
        attach(|py| {
            let declared = loaded(py, "load_library", code, session)
                .and_then(|declared| declared.extract::<Vec<Declaration<'_>>>());
            match declared {
                Ok(declared) => Ok(declared.into_iter().map(function).collect()),
                Err(error) => Err(explain(py, &error, "")),
            }
        })
    }

    fn load_body(&self, code: &[u8], session: &Session) -> Result<Function, String> {
        attach(|py| {
            let declared = loaded(py, "load_body", code, session)
                .and_then(|declared| declared.extract::<Declaration<'_>>());
            declared.map(function).map_err(|error| explain(py, &error, ""))
        })
    }

    fn between_instructions(&self, work: fn()) {
        // SAFETY: any thread may ask. There is room for a few only: what finds none is asked again.
        unsafe { ffi::Py_AddPendingCall(Some(on_pending), work as *mut c_void) };
        // Python 3.11 looks at what another thread has asked for only when something else makes it look.
        apart(|_| ());
    }
}

/// Called by Python on the thread that it began on, the server's.
extern "C" fn on_pending(work: *mut c_void) -> c_int {
    // SAFETY: `between_instructions` gave it.
    let work: fn() = unsafe { std::mem::transmute(work) };
    let _ = catch_unwind(AssertUnwindSafe(|| attach(|py| in_engine(|| py.detach(work)))));
    0
}

fn module(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module =
        MODULE.get_or_try_init(py, || PyModule::import(py, "pinion_scripting").map(Bound::unbind))?;
    Ok(module.bind(py))
}

/// Gives the code to one of the functions of Python's half, with globals of its own.
fn loaded<'py>(py: Python<'py>, how: &str, code: &[u8], session: &Session) -> PyResult<Bound<'py, PyAny>> {
    let globals = script_globals(py)?;
    *kept(session).globals.lock() = Some(ObjectRef::new(globals.clone().unbind()));
    let loaded = module(py)?.call_method1(how, (PyBytes::new(py, code), globals));
    children::end_if_forked(py, &loaded);
    loaded
}

fn function((name, description, flags, callable, size): Declaration<'_>) -> Function {
    Function {
        body: Box::new(Script {
            name: name.clone(),
            callable: ObjectRef::new(callable.unbind()),
            size,
        }),
        name,
        description,
        flags: Flags::of_bits(flags),
    }
}

/// The text for the client, in words that Python's half finds. `name`: the function, empty if there is none yet.
fn explain(py: Python<'_>, error: &PyErr, name: &str) -> String {
    let explained = module(py)
        .and_then(|module| {
            module.call_method1(
                intern!(py, "explain"),
                (error.value(py), error.traceback(py), name),
            )
        })
        .and_then(|text| {
            Ok(String::from_utf8_lossy(&convert::utf8(text.cast()?, Surrogates::Escape)?).into_owned())
        });
    explained.unwrap_or_else(|_| "ERR the script failed, and the text of its error cannot be made".to_owned())
}

/// A function of a library, or the code of EVAL.
struct Script {
    name: String,
    callable: ObjectRef,
    size: usize,
}

impl Script {
    fn answer(&self, py: Python<'_>, keys: Argv<'_>, arguments: Argv<'_>) -> PyResult<Reply> {
        let list = |words: Argv<'_>| {
            let words: Vec<_> = words.iter().map(|word| convert::name_object(py, word)).collect();
            PyList::new(py, words)
        };
        let arguments = (list(keys)?, list(arguments)?);
        let waits = Waits::Elsewhere(ANSWERS_AT_ONCE);
        let calling = Calling::enter(waits);
        let returned = self.callable.bind(py).call1(arguments);
        children::end_if_forked(py, &returned);
        let returned = returned?;
        if calling.awaitable(waits, &returned)?.is_some() {
            return Err(super::errors::gears_error(ANSWERS_AT_ONCE));
        }
        convert::object_reply(&returned, Surrogates::Raise)
    }
}

impl Body for Script {
    fn call(&self, keys: Argv<'_>, arguments: Argv<'_>) -> Result<Reply, String> {
        attach(|py| {
            self.answer(py, keys, arguments)
                .map_err(|error| explain(py, &error, &self.name))
        })
    }

    fn size(&self) -> usize {
        self.size
    }
}

/// `scriptFlags()`: the flags of functions by their names.
#[pyfunction(name = "scriptFlags")]
pub fn script_flags(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let flags = PyDict::new(py);
    for (name, flag) in Flags::NAMES {
        flags.set_item(name, flag.bits())?;
    }
    Ok(flags)
}
