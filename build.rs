//! Tells which Python the module is built for (it is not linked by its path: the loader has opened it before, see loader/), and
//! compiles Python's half of the module with it: a server that starts has no time for that.

use std::{env, path::Path, process::Command};

/// Compiles each file below the first argument into a file like `loop.pyc` or `vendor.cloudpickle.__init__.pyc` below the second.
const COMPILE: &str = "
import importlib.util, marshal, pathlib, sys
source, out = map(pathlib.Path, sys.argv[1:])
for file in sorted(source.rglob('*.py')):
    name = '.'.join(file.relative_to(source).with_suffix('').parts)
    code = compile(file.read_bytes(), f'<pinion>/{file.name}', 'exec', dont_inherit=True, optimize=0)
    (out / f'{name}.pyc').write_bytes(importlib.util.MAGIC_NUMBER + marshal.dumps(code))
";

fn main() -> Result<(), String> {
    pyo3_build_config::use_pyo3_cfgs();
    println!("cargo::rerun-if-changed=python");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PYO3_PYTHON");
    let python = pyo3_build_config::get().executable().unwrap_or("python3");
    let out = env::var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?;
    // Of this checkout, which may share a target folder, and so this program, with others.
    let here = env::var("CARGO_MANIFEST_DIR").map_err(|error| format!("CARGO_MANIFEST_DIR: {error}"))?;
    let source = Path::new(&here).join("python");
    let status = Command::new(python)
        .args(["-I", "-c", COMPILE])
        .args([source.as_path(), Path::new(&out)])
        .status()
        .map_err(|error| format!("{python} cannot be run: {error}"))?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| format!("{python} could not compile python/: {status}"))
}
