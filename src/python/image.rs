//! Functions and records as bytes: what travels to files, replicas and other shards. Contract:
//! docs/contract/python-api.md chapter 7; the Python side is `python/serial.py`.

use std::sync::Arc;

use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyBytes, PyDict, PyList, PyModule, PyTuple},
};

use super::{
    attach::{ObjectRef, attach},
    callback::{Callback, Code},
    convert::{object_of, object_record},
    errors,
    interpreter::script_globals,
    kept::kept,
};
use crate::engine::{
    language::{Failure, Function, PIECE, Packed},
    record::Record,
    session::Session,
};

fn serial(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || PyModule::import(py, "pinion_serial").map(Bound::unbind))?;
    Ok(module.bind(py))
}

/// The globals of a session; those of one that was loaded come into being with its first function.
fn globals<'py>(py: Python<'py>, session: &Session) -> PyResult<Bound<'py, PyDict>> {
    let kept = kept(session);
    if let Some(globals) = kept.globals.lock().as_ref() {
        return Ok(globals.bind(py).clone());
    }
    let fresh = script_globals(py)?;
    // Python may have let another thread make them meanwhile.
    let mut globals = kept.globals.lock();
    let globals = globals.get_or_insert_with(|| ObjectRef::new(fresh.unbind()));
    Ok(globals.bind(py).clone())
}

/// A function of `session` with the accumulator that it starts with.
///
/// # Errors
/// It holds something that cannot be pickled.
pub fn dump(py: Python<'_>, code: &Code, session: &Session) -> PyResult<Vec<u8>> {
    let zero = code.zero.as_ref().map(|zero| zero.bind(py));
    let parts = (code.callable.bind(py), zero.is_some(), zero);
    let image = serial(py)?.call_method1("dump", (parts, globals(py, session)?))?;
    Ok(image.cast::<PyBytes>()?.as_bytes().to_vec())
}

/// Makes the function again, in `session`.
///
/// # Errors
/// Another Python made it; the error string of what unpickling raised.
pub fn load(image: &[u8], session: &Session) -> Result<Arc<dyn Function>, Failure> {
    attach(|py| {
        let callback = load_code(py, image, session).map(|code| Callback::new(py, code));
        callback
            .map(|callback| Arc::new(callback) as Arc<dyn Function>)
            .map_err(|error| {
                format!(
                    "Error occured when deserialized a python callback, error={}",
                    errors::text(py, &error)
                )
                .into()
            })
    })
}

fn load_code(py: Python<'_>, image: &[u8], session: &Session) -> PyResult<Code> {
    let image = PyBytes::new(py, image);
    let parts = serial(py)?.call_method1("load", (image, globals(py, session)?))?;
    let parts = parts.cast::<PyTuple>()?;
    let mut code = Code::new(parts.get_item(0)?);
    if parts.get_item(1)?.is_truthy()? {
        code.zero = Some(ObjectRef::new(parts.get_item(2)?.unbind()));
    }
    Ok(code)
}

/// Objects as bytes for another shard: the first ones, see [`Packed`].
///
/// # Errors
/// What the language says of all of them.
pub fn pack(py: Python<'_>, records: &[Record]) -> PyResult<Packed> {
    type Parts<'py> = (Bound<'py, PyBytes>, usize, Vec<(usize, Bound<'py, PyAny>)>);
    let objects = records.iter().map(|record| object_of(py, record));
    let objects = PyList::new(py, objects.collect::<PyResult<Vec<_>>>()?)?;
    let packed = serial(py)?.call_method1("pack", (objects, PIECE))?;
    let (bytes, taken, refused): Parts<'_> = packed.extract()?;
    let refused = refused.into_iter().map(|(place, error)| {
        let failure = errors::text(py, &PyErr::from_value(error)).into();
        (place, failure)
    });
    Ok(Packed {
        bytes: bytes.as_bytes().to_vec(),
        taken: taken.clamp(1, records.len().max(1)),
        refused: refused.collect(),
    })
}

/// The objects that another shard has packed.
pub fn unpack(py: Python<'_>, bytes: &[u8]) -> PyResult<Vec<Record>> {
    let objects = serial(py)?.call_method1("unpack", (PyBytes::new(py, bytes),))?;
    Ok(objects.cast::<PyList>()?.iter().map(object_record).collect())
}
