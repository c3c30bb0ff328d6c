//! RG.REFRESH. Contract: `read-through.md` chapter 3.

use super::check_may_block;
use crate::{
    error::Error,
    read_through::ReadThrough,
    server::command::{Answer, Command},
};

/// `RG.REFRESH <key> [<key> ...]`: how many of them were loaded. Keys that no registration loads are left out.
///
/// # Errors
/// No key; the caller cannot wait; this is a replica; the loads are refused.
pub fn refresh(loads: &ReadThrough, command: &Command<'_>) -> Result<Answer, Error> {
    if command.argv().len() < 2 {
        return Err(Error::WrongArity);
    }
    check_may_block(command)?;
    loads.refresh_for(command)
}
