//! Pinion: Python functions inside Redis and Valkey. This file is the module's table: its rooms, and the way in.

mod backoff;
#[cfg(feature = "bench")]
pub mod bench_api;
mod callbacks;
mod clock;
mod cluster;
mod commands;
mod config;
mod engine;
mod error;
#[cfg(test)]
#[allow(clippy::expect_used)] // a test may panic
mod fuzz;
mod hashing;
mod hooks;
mod module;
mod mutex;
mod per_thread;
mod persistence;
mod python;
mod read_through;
mod readers;
mod report;
mod requirements;
mod scripting;
mod server;
mod stats;
mod threads;
mod waits;
mod write_behind;

use std::ffi::{CStr, c_char, c_int};

use crate::{
    module::Callbacks,
    python::interpreter::Environment,
    server::{load, raw},
};

/// The name that clients look for in MODULE LIST.
const NAME: &CStr = c"rg";
/// That of the RedisGears release whose contract this is: 1.2.13.
const VERSION: c_int = 10213;

const CALLBACKS: Callbacks = Callbacks {
    commands: commands::ALL,
    filter: callbacks::on_command_filter,
    subscribe: callbacks::subscribe,
    server_event: callbacks::on_server_event,
    bus_message: callbacks::on_bus_message,
    info: callbacks::on_info,
};

#[cfg(not(any(test, feature = "bench")))]
#[global_allocator]
static ALLOCATOR: server::alloc::ServerAlloc = server::alloc::ServerAlloc;

/// The loader's way in: it has found Python, made its library global, and opened this file (see loader/). The number in the name
/// goes up when the arguments change.
///
/// # Safety
/// To be called once, while the module loads, with the server's own arguments, and the paths of an interpreter and of
/// its prefix.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinion_load_1(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    program: *const c_char,
    prefix: *const c_char,
) -> c_int {
    let start = |loading: &load::Loading<'_>| {
        // Made here: before the function table is filled, memory would come from another allocator than it goes back to.
        // SAFETY: the loader gives texts.
        let environment = unsafe {
            Environment {
                program: CStr::from_ptr(program).to_string_lossy().into_owned(),
                prefix: CStr::from_ptr(prefix).to_string_lossy().into_owned(),
            }
        };
        module::start(loading, &CALLBACKS, &environment)
    };
    // SAFETY: the loader passes on what it got from the server.
    unsafe { load::run(ctx, argv, argc, NAME, VERSION, start) }
}
