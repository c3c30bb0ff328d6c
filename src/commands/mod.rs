//! The commands, one file per family: parse, one call of the engine, reply. Contract: `commands.md` chapter 1.
//!
//! All run on the server's thread, or on the thread of a function that calls them with `execute`.

pub mod cluster;
pub mod config;
pub mod executions;
pub mod pyexecute;
pub mod refresh;
pub mod registrations;
pub mod requirements;
pub mod sessions;
pub mod small;

use crate::{error::Error, server::command::Command};

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
