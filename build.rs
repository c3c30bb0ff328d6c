//! Ties the module to one Python: the library found at run time (rpath) and the default virtual environment.

use std::{env, path::PathBuf};

fn main() {
    pyo3_build_config::use_pyo3_cfgs();
    println!("cargo:rerun-if-env-changed=PINION_VENV");
    let python = pyo3_build_config::get();
    // The server's own search path may hold another Python (pyenv before /usr): pin ours.
    if let Some(dir) = &python.lib_dir() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
    }
    let venv = env::var_os("PINION_VENV").map_or_else(
        || {
            let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
            root.join(".venv").join(python.version().to_string())
        },
        PathBuf::from,
    );
    println!("cargo:rustc-env=PINION_DEFAULT_VENV={}", venv.display());
}
