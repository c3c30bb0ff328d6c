//! Packages that were installed while the interpreter runs become importable. Called by the room `requirements`.

use std::path::{Path, PathBuf};

use pyo3::{prelude::*, sync::PyOnceLock, types::PyModule};

use super::embedded;

/// Puts `folder` first in the import path, and forgets the modules that `archives` have brought anew.
///
/// # Errors
/// What Python raised, e.g. an archive that cannot be read.
pub fn use_packages(py: Python<'_>, folder: &Path, archives: &[PathBuf]) -> PyResult<()> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || embedded::load(py, &embedded::PACKAGES).map(Bound::unbind))?;
    let folder = folder.to_string_lossy().into_owned();
    module.bind(py).call_method1("use", (folder, archives)).map(drop)
}
