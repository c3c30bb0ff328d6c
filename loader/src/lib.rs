//! What `loadmodule` gets: finds the Python that the module is to run, makes its library global, and loads the build of
//! the module for that version, which stands beside this file. Whatever is missing is one line in the server's log.
//!
//! It needs neither the standard library nor the one of the compiler, only what each libc has: so it can say what is
//! wrong where the module itself could not even be opened. All of it runs on the server's thread while the module loads.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod environment;
mod library;
mod probe;
mod server;
mod system;

use alloc::{format, string::String};
use core::{
    ffi::{c_char, c_int, c_void},
    sync::atomic::{AtomicBool, Ordering},
};

use server::Server;

const REFUSED: c_int = 1;

/// True once a build has been asked to load: Python can be started once in a process.
static STARTED: AtomicBool = AtomicBool::new(false);

/// The way into a build: the server's own arguments, then the interpreter's path and the prefix of its environment.
type Load = unsafe extern "C" fn(*mut c_void, *mut *mut c_void, c_int, *const c_char, *const c_char) -> c_int;

/// Its name. The number goes up when the arguments change: a loader never calls what it does not know.
const LOAD: &core::ffi::CStr = c"pinion_load_1";

/// The server's way in.
///
/// # Safety
/// To be called by the server with its own arguments.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn RedisModule_OnLoad(ctx: *mut c_void, argv: *mut *mut c_void, argc: c_int) -> c_int {
    // SAFETY: by the caller's promise.
    unsafe {
        let server = Server::new(ctx);
        match load(&server, ctx, argv, argc) {
            Ok(status) => status,
            Err(reason) => {
                server.warn(&format!("Pinion cannot load: {reason}"));
                REFUSED
            }
        }
    }
}

/// Refuses: threads run in the module, and Python cannot be taken out of a process.
///
/// # Safety
/// To be called by the server.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn RedisModule_OnUnload(_ctx: *mut c_void) -> c_int {
    REFUSED
}

/// # Safety
/// As [`RedisModule_OnLoad`].
unsafe fn load(
    server: &Server,
    ctx: *mut c_void,
    argv: *mut *mut c_void,
    argc: c_int,
) -> Result<c_int, String> {
    if STARTED.load(Ordering::Relaxed) {
        return Err(
            "it is loaded already (MODULE LIST shows it), or it was tried before and needs a new process"
                .into(),
        );
    }
    // SAFETY: by the caller's promise.
    let arguments = unsafe { server.arguments(argv, argc) };
    library::check_libc()?;
    let folder = library::own_folder()?;
    let python = environment::choose(&arguments, &folder)?;
    let python = probe::ask(&python)?;
    let build = library::find_build(&folder, &python.version)?;
    library::open_python(&python)?;
    let load = library::open_build(&build, LOAD)?;
    let program = system::c_string(&python.program);
    let prefix = system::c_string(&python.prefix);
    STARTED.store(true, Ordering::Relaxed);
    // SAFETY: the symbol is the function that its name stands for; the arguments are the server's, and the texts are
    // copied by the callee.
    unsafe {
        let load = core::mem::transmute::<*mut c_void, Load>(load);
        Ok(load(ctx, argv, argc, program.as_ptr(), prefix.as_ptr()))
    }
}
