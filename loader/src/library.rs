//! The files that are opened: Python's library for everybody, and the build of the module for this version.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{
    ffi::{CStr, c_char, c_void},
    mem,
    mem::MaybeUninit,
};

use crate::{probe::Python, system};

/// Where an ELF file tells for which machine it is.
const MACHINE: usize = 18;
const HEAD: usize = 20;

/// # Errors
/// The server's C library is not glibc, which the builds need.
pub fn check_libc() -> Result<(), String> {
    // SAFETY: looks for a name.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"gnu_get_libc_version".as_ptr()) };
    if found.is_null() {
        return Err("this server's C library is not glibc (Alpine and its musl are not supported): use a server for Debian, Ubuntu or another system with glibc".into());
    }
    Ok(())
}

/// The folder that this very file is in, without links.
///
/// # Errors
/// The dynamic linker does not know.
pub fn own_folder() -> Result<String, String> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let own = own_folder as fn() -> Result<String, String>;
    // SAFETY: the address is that of a function; the structure is filled or left zeroed, which is valid.
    let path = unsafe {
        let found = libc::dladdr(own as *const c_void, info.as_mut_ptr());
        let name = info.assume_init().dli_fname;
        (found != 0 && !name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy().into_owned())
    };
    let path = path.and_then(|path| system::real_path(&path));
    let folder = path.as_deref().and_then(|path| path.rsplit_once('/'));
    folder
        .map(|(folder, _)| folder.to_string())
        .ok_or_else(|| "the folder of the module's file is not known".into())
}

/// The build for a version of Python, `3.11`.
///
/// # Errors
/// There is none.
pub fn find_build(folder: &str, version: &str) -> Result<String, String> {
    let path = format!("{folder}/{}", build_name(version));
    if system::exists(&path) {
        return Ok(path);
    }
    let names = system::names(folder);
    let versions: Vec<String> = names.iter().filter_map(|name| version_of(name)).collect();
    let there = match versions.as_slice() {
        [] => "there is none for any version".to_string(),
        versions => format!("there are builds for {}", versions.join(", ")),
    };
    Err(format!(
        "{folder} has no build for Python {version} ({there}): install pinion-redis with that Python, or name an environment of another one with the module argument PythonVenv <dir>"
    ))
}

/// `pinion-cp311.so`
fn build_name(version: &str) -> String {
    format!("pinion-cp{}.so", version.replace('.', ""))
}

fn version_of(name: &str) -> Option<String> {
    let minor = name.strip_prefix("pinion-cp3")?.strip_suffix(".so")?;
    minor.parse::<u8>().ok().map(|minor| format!("3.{minor}"))
}

/// Opens Python's library for everybody: the module and all C extensions look for its symbols.
///
/// # Errors
/// There is none, it cannot be opened, or it is another Python's.
pub fn open_python(python: &Python) -> Result<(), String> {
    let Python {
        program,
        version,
        base_prefix,
        ..
    } = python;
    let name = format!("libpython{version}.so.1.0");
    let paths = python.folders.iter().map(|folder| format!("{folder}/{name}"));
    let Some(path) = paths.into_iter().find(|path| system::exists(path)) else {
        let advice = if base_prefix == "/usr" {
            format!("install it, on Debian and Ubuntu: apt-get install libpython{version}")
        } else if python.shared {
            "repair this installation of Python".to_string()
        } else {
            "it was built without one: take a Python that was configured with --enable-shared".to_string()
        };
        return Err(format!(
            "Python {version} at {base_prefix} ({program}) has no shared library {name}: {advice}"
        ));
    };
    let library = open(&path, libc::RTLD_NOW | libc::RTLD_GLOBAL)?;
    // SAFETY: the function takes nothing and returns a static text, also before Python is initialised.
    let found = unsafe {
        let function = libc::dlsym(library, c"Py_GetVersion".as_ptr());
        if function.is_null() {
            return Err(format!("{path} is no library of Python"));
        }
        let text = mem::transmute::<*mut c_void, extern "C" fn() -> *const c_char>(function)();
        CStr::from_ptr(text).to_string_lossy().into_owned()
    };
    let rest = found.strip_prefix(version.as_str());
    if rest.is_none_or(|rest| rest.starts_with(|next: char| next.is_ascii_digit())) {
        return Err(format!(
            "{path} is of Python {found}, {program} is Python {version}"
        ));
    }
    Ok(())
}

/// Opens a build and gives the address of its way in.
///
/// # Errors
/// It cannot be opened, or is of another release than this loader.
pub fn open_build(path: &str, entry: &CStr) -> Result<*mut c_void, String> {
    let build = open(path, libc::RTLD_NOW | libc::RTLD_LOCAL)?;
    // SAFETY: looks for a name.
    let found = unsafe { libc::dlsym(build, entry.as_ptr()) };
    if found.is_null() {
        return Err(format!(
            "{path} is of another release of Pinion than the file that loads it: install all files of one release"
        ));
    }
    Ok(found)
}

/// The handle is kept for ever.
fn open(path: &str, flags: i32) -> Result<*mut c_void, String> {
    // A file that is shorter is no library, either.
    let file = system::head::<HEAD>(path).unwrap_or([0; HEAD]);
    if let Some(server) = system::head::<HEAD>("/proc/self/exe") {
        if file.first_chunk() != Some(b"\x7fELF") {
            return Err(format!("{path} is damaged: it is no shared library"));
        }
        if file[MACHINE..] != server[MACHINE..] {
            return Err(format!(
                "{path} is for another kind of processor ({}) than this server ({})",
                machine(&file),
                machine(&server)
            ));
        }
    }
    // SAFETY: the path is a text; what is opened is a library of Python or a build of ours.
    let handle = unsafe { libc::dlopen(system::c_string(path).as_ptr(), flags) };
    if handle.is_null() {
        // SAFETY: there was an error just now, so there is a text.
        let reason = unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy();
        return Err(format!("could not open {path}: {reason}"));
    }
    Ok(handle)
}

fn machine(head: &[u8; HEAD]) -> String {
    match u16::from_le_bytes([head[MACHINE], head[MACHINE + 1]]) {
        3 => "x86, 32 bits".into(),
        40 => "ARM, 32 bits".into(),
        62 => "x86-64".into(),
        183 => "ARM, 64 bits".into(),
        243 => "RISC-V".into(),
        other => format!("number {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_have_names_by_version() {
        assert_eq!(build_name("3.11"), "pinion-cp311.so");
        assert_eq!(version_of("pinion-cp39.so").as_deref(), Some("3.9"));
        assert_eq!(version_of("libpinion.so"), None);
    }

    #[test]
    fn a_missing_build_names_those_that_are_there() {
        let error = find_build("/usr/lib", "3.12").err().unwrap_or_default();
        assert!(
            error.starts_with("/usr/lib has no build for Python 3.12 (there is none"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_no_library_is_called_damaged() {
        let error = open("/etc/passwd", libc::RTLD_NOW).err().unwrap_or_default();
        assert_eq!(error, "/etc/passwd is damaged: it is no shared library");
    }
}
