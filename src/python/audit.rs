//! What Python tells before it makes a code object: code that another version has compiled is refused there, whoever makes
//! it (`python/bytecode.py`). Set up once, when the interpreter starts; called attached, on any thread.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use pyo3::{exceptions::PyRuntimeError, ffi, prelude::*, types::PyTuple};

use super::embedded;

unsafe extern "C" {
    fn PySys_AddAuditHook(
        hook: unsafe extern "C" fn(*const c_char, *mut ffi::PyObject, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
}

/// From now on code is looked at.
///
/// # Errors
/// Somebody else's hook does not allow it.
pub fn install(py: Python<'_>) -> PyResult<()> {
    embedded::load(py, &embedded::BYTECODE)?;
    // SAFETY: attached; the function lives as long as the process, and takes no data.
    if unsafe { PySys_AddAuditHook(on_event, ptr::null_mut()) } != 0 {
        let error = PyErr::take(py);
        return Err(error.unwrap_or_else(|| PyRuntimeError::new_err("no audit hook can be added")));
    }
    Ok(())
}

/// Called by Python for each of its audit events, of which nearly all are others.
unsafe extern "C" fn on_event(event: *const c_char, arguments: *mut ffi::PyObject, _: *mut c_void) -> c_int {
    // SAFETY: Python gives the name of the event, a text.
    let look: fn(&Bound<'_, PyTuple>) -> PyResult<()> = match unsafe { CStr::from_ptr(event) }.to_bytes() {
        b"code.__new__" => check_code,
        b"pickle.find_class" => guard_pickles,
        _ => return 0,
    };
    let looked = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: Python tells these events attached.
        #[allow(clippy::disallowed_methods)]
        let py = unsafe { Python::assume_attached() };
        // SAFETY: Python gives the arguments as a tuple, which outlives the call.
        let arguments = unsafe { Bound::from_borrowed_ptr(py, arguments) };
        match arguments.cast::<PyTuple>().map_err(PyErr::from).and_then(look) {
            Ok(()) => 0,
            Err(error) => {
                error.restore(py);
                -1
            }
        }
    }));
    // The panic hook has logged it; the event is none of ours then.
    looked.unwrap_or(0)
}

fn check_code(arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
    let (code, name) = (arguments.get_item(0)?, arguments.get_item(2)?);
    let module = PyModule::import(arguments.py(), "pinion_bytecode")?;
    module.call_method1("check", (code, name)).map(drop)
}

/// Pickles of cloudpickle, of any version and under any name, make code by what a function of this name returns.
fn guard_pickles(arguments: &Bound<'_, PyTuple>) -> PyResult<()> {
    if !arguments.get_item(1)?.eq("_builtin_type")? {
        return Ok(());
    }
    let py = arguments.py();
    let name: String = arguments.get_item(0)?.extract()?;
    // Where there is no such module, whoever reads the pickle is told so.
    let Ok(module) = PyModule::import(py, name.as_str()) else {
        return Ok(());
    };
    let own = PyModule::import(py, "pinion_bytecode")?;
    own.call_method1("guard", (module,)).map(drop)
}
