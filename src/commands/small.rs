//! Commands that say one thing. Contract: `commands.md` 1.16 and 1.23.

use crate::{
    error::Error,
    python::memory,
    server::{
        after,
        command::{Answer, Command},
        reply::Reply,
    },
};

/// The name and the version of the language, as 1.2 shows its plugin.
pub const PLUGIN: (&str, i64) = ("GearsPythonPlugin", 10000);

/// `RG.PYSTATS`
///
/// # Errors
/// None; the same for the commands below. Their arguments are ignored.
pub fn py_stats() -> Result<Answer, Error> {
    let figures = memory::figures();
    let pairs = [
        ("TotalAllocated", figures.total),
        ("PeakAllocated", figures.peak),
        ("CurrAllocated", figures.current),
    ];
    let pairs = pairs
        .into_iter()
        .flat_map(|(name, bytes)| [Reply::bulk(name), Reply::Int(bytes as i64)]);
    Ok(Reply::Array(pairs.collect()).into())
}

/// `RG.INNERAFTER`, from the command filter only.
///
/// # Errors
/// Somebody else sent it.
pub fn inner_after(command: &Command<'_>) -> Result<Answer, Error> {
    if !after::run_command(command.lock()) {
        return Err(Error::InnerCommand);
    }
    Ok(Reply::ok().into())
}

/// `RG.DUMPPLUGINS`
pub fn dump_plugins() -> Result<Answer, Error> {
    let (name, version) = PLUGIN;
    let plugin = Reply::Array(vec![Reply::bulk(name), Reply::Int(version)]);
    Ok(Reply::Array(vec![plugin]).into())
}

/// `RG.PYEXECUTEREMOTE`
pub fn no_execute_remote() -> Result<Answer, Error> {
    Ok(Reply::bulk("Execute remote is not longer supported").into())
}

/// `RG.PYFREEINTERPRETER`
pub fn no_free_interpreter() -> Result<Answer, Error> {
    Ok(Reply::bulk("Free interpreter is not longer supported").into())
}
