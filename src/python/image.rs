//! Functions as bytes: what travels to files, replicas and other shards. Contract: `python-api.md` chapter 7.

use std::sync::Arc;

use pyo3::{
    prelude::*,
    types::{PyBytes, PyTuple},
};

use super::{
    callback::{Callback, Code},
    errors,
};
use crate::engine::language::{Failure, Function};

/// The function with the accumulator that it starts with.
///
/// # Errors
/// It holds something that cannot be pickled.
pub fn dump(py: Python<'_>, code: &Code) -> PyResult<Vec<u8>> {
    let dumps = PyModule::import(py, "cloudpickle")?.getattr("dumps")?;
    let bytes = dumps.call1(((&code.callable, code.zero.is_some(), &code.zero),))?;
    Ok(bytes.cast::<PyBytes>()?.as_bytes().to_vec())
}

/// Makes the function again.
///
/// # Errors
/// The error string of what unpickling raised.
pub fn load(image: &[u8]) -> Result<Arc<dyn Function>, Failure> {
    Python::attach(|py| {
        let callback = load_code(py, image).map(|code| Callback::new(py, code));
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

fn load_code(py: Python<'_>, image: &[u8]) -> PyResult<Code> {
    let loads = PyModule::import(py, "pickle")?.getattr("loads")?;
    let parts = loads.call1((PyBytes::new(py, image),))?;
    let parts = parts.cast::<PyTuple>()?;
    let mut code = Code::new(parts.get_item(0)?);
    if parts.get_item(1)?.is_truthy()? {
        code.zero = Some(parts.get_item(2)?.unbind());
    }
    Ok(code)
}
