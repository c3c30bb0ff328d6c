//! RG.REFRESH. Contract: docs/contract/read-through.md chapter 3.

use super::check_may_block;
use crate::{
    error::Error,
    read_through::ReadThrough,
    server::command::{Answer, Command},
};

commands! {
    refresh_command {
        name: c"rg.refresh",
        flags: c"write",
        categories: c"write blocking gears gears-call",
        syntax: "<key> [<key> ...]",
        summary: c"Loads keys anew that read_through has a loader for, and says how many were loaded.",
        keys_from: 1,
        handler: |pinion, command| refresh(&pinion.loads, command),
    }
}

/// `RG.REFRESH <key> [<key> ...]`: how many of them were loaded. Keys that no registration loads are left out.
///
/// # Errors
/// No key; the caller cannot wait; this is a replica; the loads are refused.
fn refresh(loads: &ReadThrough, command: &Command<'_>) -> Result<Answer, Error> {
    if command.argv().len() < 2 {
        return Err(Error::WrongArity);
    }
    check_may_block(command)?;
    loads.refresh_for(command)
}
