//! The commands, one file per family: parse, one call of the engine, reply. Contract:
//! docs/contract/commands.md chapter 1.
//!
//! All run on the server's thread, or on the thread of a function that calls them with `execute`.

/// Defines the commands of a file: what the server is told of each, and its handler. `key` is the place of the only key, `keys_from: 1` says
/// that all words are keys.
macro_rules! commands {
    ($($function:ident {
        name: $name:literal,
        flags: $flags:literal,
        categories: $categories:literal,
        syntax: $syntax:literal,
        summary: $summary:literal,
        $(key: $key:literal,)?
        $(keys_from: $keys:literal,)?
        handler: $handler:expr,
    })*) => {
        $(
            unsafe extern "C" fn $function(
                ctx: *mut crate::server::raw::RedisModuleCtx,
                argv: *mut *mut crate::server::raw::RedisModuleString,
                argc: std::ffi::c_int,
            ) -> std::ffi::c_int {
                // SAFETY: the server calls this with its own arguments.
                unsafe { super::run(ctx, argv, argc, $handler) }
            }
        )*

        /// The commands of this file, as the server is told of them.
        pub const COMMANDS: &[crate::server::command::Definition] = &[
            $(crate::server::command::Definition {
                name: $name,
                flags: $flags,
                categories: $categories,
                syntax: $syntax,
                summary: $summary,
                key: 0 $(+ $key)? $(+ $keys)?,
                last_key: 0 $(+ $key)? $(- $keys)?,
                function: $function,
            }),*
        ];
    };
}

pub mod cluster;
pub mod config;
pub mod executions;
mod internal;
pub mod keyinfo;
pub mod pyexecute;
pub mod refresh;
pub mod registrations;
pub mod requirements;
pub mod session_literal;
pub mod sessions;
pub mod small;
mod stats;
mod triggers;

use std::ffi::c_int;

use crate::{
    error::Error,
    module::Pinion,
    server::{
        command::{self, Answer, Command, Definition},
        raw,
    },
};

/// All commands, file by file.
pub const ALL: &[&[Definition]] = &[
    pyexecute::COMMANDS,
    triggers::COMMANDS,
    executions::COMMANDS,
    registrations::COMMANDS,
    refresh::COMMANDS,
    keyinfo::COMMANDS,
    sessions::COMMANDS,
    requirements::COMMANDS,
    config::COMMANDS,
    cluster::COMMANDS,
    stats::COMMANDS,
    small::COMMANDS,
    internal::COMMANDS,
];

type Handler = fn(&'static Pinion, &Command<'_>) -> Result<Answer, Error>;

/// The frame around a handler.
///
/// # Safety
/// To be called by a command function of the server with its own arguments.
unsafe fn run(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    handler: Handler,
) -> c_int {
    let run = |command: &Command<'_>| match Pinion::get() {
        Some(pinion) => handler(pinion, command),
        None => Err(Error::Text("ERR the module is still loading".into())),
    };
    // SAFETY: by the caller's promise.
    unsafe { command::run(ctx, argv, argc, run) }
}

const CODE_DENIED: &str = "ERR clients may not bring code to this server (RegistrationPolicy is 'deny')";

/// For commands that bring code.
///
/// # Errors
/// `RegistrationPolicy` is `deny`.
fn check_may_bring_code(pinion: &Pinion) -> Result<(), Error> {
    // What is no word of it was refused while the module loaded.
    if pinion.engine.config.denies_code().unwrap_or(true) {
        return Err(Error::Text(CODE_DENIED.into()));
    }
    Ok(())
}

/// For commands that make their caller wait: refused before anything is done.
///
/// # Errors
/// The caller is a transaction, a script, or a function.
fn check_may_block(command: &Command<'_>) -> Result<(), Error> {
    if command.may_block() {
        Ok(())
    } else if command.is_in_transaction() {
        Err(Error::BlockedInTransaction)
    } else {
        Err(Error::BlockedInScript)
    }
}
