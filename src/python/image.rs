//! Functions as bytes: what travels to files, replicas and other shards. Contract: `python-api.md` chapter 7; the Python
//! side is `python/serial.py`.

use std::{ffi::CStr, sync::Arc};

use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyModule, PyTuple},
};

use super::{
    callback::{Callback, Code},
    errors,
    interpreter::{cstr, script_globals},
    kept::kept,
};
use crate::engine::{
    language::{Failure, Function},
    session::Session,
};

const SERIAL: &CStr = cstr(concat!(include_str!("../../python/serial.py"), "\0"));

fn serial(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || {
        PyModule::from_code(py, SERIAL, c"<pinion>/serial.py", c"pinion_serial").map(Bound::unbind)
    })?;
    Ok(module.bind(py))
}

/// The globals of a session; those of one that was loaded come into being with its first function.
fn globals<'py>(py: Python<'py>, session: &Session) -> PyResult<Bound<'py, PyDict>> {
    let kept = kept(session);
    if let Some(globals) = kept.globals.lock().as_ref() {
        return Ok(globals.bind(py).clone());
    }
    let fresh = script_globals(py)?;
    // Nobody else loads functions of this session: that happens under the server's lock.
    *kept.globals.lock() = Some(fresh.clone().unbind());
    Ok(fresh)
}

/// A function of `session` with the accumulator that it starts with.
///
/// # Errors
/// It holds something that cannot be pickled.
pub fn dump(py: Python<'_>, code: &Code, session: &Session) -> PyResult<Vec<u8>> {
    let parts = (&code.callable, code.zero.is_some(), &code.zero);
    let image = serial(py)?.call_method1("dump", (parts, globals(py, session)?))?;
    Ok(image.cast::<PyBytes>()?.as_bytes().to_vec())
}

/// Makes the function again, in `session`.
///
/// # Errors
/// Another Python made it; the error string of what unpickling raised.
pub fn load(image: &[u8], session: &Session) -> Result<Arc<dyn Function>, Failure> {
    Python::attach(|py| {
        let callback = load_code(py, image, session).map(|code| Callback::new(py, code));
        callback
            .map(|callback| Arc::new(callback) as Arc<dyn Function>)
            .map_err(|error| {
                format!(
                    "Error occured when deserialized a python callback, error={}",
                    errors::text(py, &error)
                )
            })
    })
}

fn load_code(py: Python<'_>, image: &[u8], session: &Session) -> PyResult<Code> {
    let image = PyBytes::new(py, image);
    let parts = serial(py)?.call_method1("load", (image, globals(py, session)?))?;
    let parts = parts.cast::<PyTuple>()?;
    let mut code = Code::new(parts.get_item(0)?);
    if parts.get_item(1)?.is_truthy()? {
        code.zero = Some(parts.get_item(2)?.unbind());
    }
    Ok(code)
}
