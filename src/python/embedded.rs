//! Python's half of the module (`python/`): compiled by `build.rs` for the Python that the module is for, and kept in it.

use std::ffi::CStr;

use pyo3::{
    exceptions::PyImportError,
    ffi,
    prelude::*,
    types::{PyBytes, PyDict, PyModule},
};

/// A file of `python/`, by its name with dots in the place of slashes.
macro_rules! compiled {
    ($file:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $file, ".pyc"))
    };
}

/// A module that [`load`] makes.
pub(super) struct Embedded {
    name: &'static CStr,
    code: &'static [u8],
}

impl Embedded {
    const fn new(name: &'static CStr, code: &'static [u8]) -> Self {
        Self { name, code }
    }
}

pub(super) const BUILDER: Embedded = Embedded::new(c"pinion_builder", compiled!("builder"));
pub(super) const BYTECODE: Embedded = Embedded::new(c"pinion_bytecode", compiled!("bytecode"));
pub(super) const CHILDREN: Embedded = Embedded::new(c"pinion_children", compiled!("children"));
pub(super) const INTERRUPT: Embedded = Embedded::new(c"pinion_interrupt", compiled!("interrupt"));
pub(super) const LOOP: Embedded = Embedded::new(c"pinion_loop", compiled!("loop"));
pub(super) const NOT_MAIN: Embedded = Embedded::new(c"pinion_not_main", compiled!("not_main"));
pub(super) const OUTPUT: Embedded = Embedded::new(c"pinion_output", compiled!("output"));
pub(super) const PACKAGES: Embedded = Embedded::new(c"pinion_packages", compiled!("packages"));
pub(super) const PROFILE: Embedded = Embedded::new(c"pinion_profile", compiled!("profile"));
pub(super) const READ_THROUGH: Embedded = Embedded::new(c"pinion_read_through", compiled!("read_through"));
pub(super) const REDIS_AI: Embedded = Embedded::new(c"redisAI", compiled!("redisai"));
pub(super) const SCRIPTING: Embedded = Embedded::new(c"pinion_scripting", compiled!("scripting"));
pub(super) const SHIPPED: Embedded = Embedded::new(c"pinion_shipped", compiled!("shipped"));
pub(super) const SIZES: Embedded = Embedded::new(c"pinion_sizes", compiled!("sizes"));
pub(super) const WRITE_BEHIND: Embedded = Embedded::new(c"pinion_write_behind", compiled!("write_behind"));

/// What fills `__main__`, see [`run`].
pub(super) const NAMESPACE: &[u8] = compiled!("namespace");
/// The program of the process that makes children: a text, since another Python may run it.
pub(super) const NURSERY: &str = include_str!("../../python/nursery.py");

/// Modules that are imported when they are first needed, by names of their own.
const OWN: [(&str, &[u8]); 3] = [
    ("pinion_cloudpickle", compiled!("vendor.cloudpickle.cloudpickle")),
    ("pinion_portable", compiled!("portable")),
    ("pinion_serial", compiled!("serial")),
];
/// Packages that scripts and clients expect, unless others are installed.
const FALLBACKS: [(&str, &[u8]); 5] = [
    ("cloudpickle", compiled!("vendor.cloudpickle.__init__")),
    (
        "cloudpickle.cloudpickle",
        compiled!("vendor.cloudpickle.cloudpickle"),
    ),
    (
        "cloudpickle.cloudpickle_fast",
        compiled!("vendor.cloudpickle.cloudpickle_fast"),
    ),
    ("gearsclient", compiled!("gearsclient.__init__")),
    (
        "gearsclient.redisgears_builder",
        compiled!("gearsclient.redisgears_builder"),
    ),
];

/// Makes a module, which can be imported from here on.
///
/// # Errors
/// What it raised.
pub(super) fn load<'py>(py: Python<'py>, module: &Embedded) -> PyResult<Bound<'py, PyModule>> {
    let code = code(py, module.code)?;
    // SAFETY: attached; the name ends with NUL, the code object is one.
    let made = unsafe {
        let made = ffi::PyImport_ExecCodeModule(module.name.as_ptr(), code.as_ptr());
        Bound::from_owned_ptr_or_err(py, made)?
    };
    made.cast_into::<PyModule>().map_err(PyErr::from)
}

/// Runs code in a namespace.
///
/// # Errors
/// What it raised.
pub(super) fn run(py: Python<'_>, compiled: &[u8], namespace: &Bound<'_, PyDict>) -> PyResult<()> {
    let code = code(py, compiled)?;
    // SAFETY: attached; a code object and a dict.
    let value = unsafe { ffi::PyEval_EvalCode(code.as_ptr(), namespace.as_ptr(), namespace.as_ptr()) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, value) }.map(drop)
}

/// Makes [`OWN`] and [`FALLBACKS`] importable.
///
/// # Errors
/// What Python raised.
pub(super) fn install(py: Python<'_>) -> PyResult<()> {
    let [own, fallbacks] = [&OWN[..], &FALLBACKS[..]].map(|modules| -> PyResult<_> {
        let codes = PyDict::new(py);
        for (name, compiled) in modules {
            codes.set_item(name, PyBytes::new(py, marshalled(compiled)?))?;
        }
        Ok(codes)
    });
    load(py, &SHIPPED)?
        .call_method1("install", (own?, fallbacks?))
        .map(drop)
}

/// The code object of a compiled file.
fn code<'py>(py: Python<'py>, compiled: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let data = marshalled(compiled)?;
    // SAFETY: attached; the text is as long as said.
    unsafe {
        let code = ffi::PyMarshal_ReadObjectFromString(data.as_ptr().cast(), data.len() as ffi::Py_ssize_t);
        Bound::from_owned_ptr_or_err(py, code)
    }
}

/// What stands behind the mark of the compiler, if that is of the Python that runs.
fn marshalled(compiled: &[u8]) -> PyResult<&[u8]> {
    // SAFETY: a constant of Python.
    let magic = unsafe { ffi::PyImport_GetMagicNumber() };
    match compiled.split_first_chunk() {
        Some((mark, data)) if i64::from(u32::from_le_bytes(*mark)) == magic as i64 => Ok(data),
        _ => Err(PyImportError::new_err(
            "the module was built with an early release of this Python, whose bytecode was another one: build it anew",
        )),
    }
}
