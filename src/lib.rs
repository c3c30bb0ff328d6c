//! Pinion: Python functions inside Redis and Valkey. This file is the module's table: its rooms, and the server's way in.

#[cfg(feature = "bench")]
pub mod bench_api;
mod callbacks;
mod cluster;
mod commands;
mod config;
mod engine;
mod error;
mod hooks;
mod module;
mod mutex;
mod persistence;
mod python;
mod read_through;
mod readers;
mod report;
mod requirements;
mod server;
mod stats;
mod threads;
mod write_behind;

use std::ffi::{CStr, c_int};

use crate::{
    module::Callbacks,
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

/// The server's way in.
///
/// # Safety
/// To be called by the server, once, with its own arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RedisModule_OnLoad(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    let start = |loading: &load::Loading<'_>| module::start(loading, &CALLBACKS);
    // SAFETY: the server calls this with its own arguments.
    unsafe { load::run(ctx, argv, argc, NAME, VERSION, start) }
}

/// Refuses: threads run in the module, and Python cannot be taken out of a process.
///
/// # Safety
/// To be called by the server.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RedisModule_OnUnload(_ctx: *mut raw::RedisModuleCtx) -> c_int {
    raw::REDISMODULE_ERR as c_int
}
