//! Commands that say one thing. Contract: docs/contract/commands.md 1.16 and 1.23.

use crate::{
    error::Error,
    python::memory,
    server::{command::Answer, reply::Reply},
};

commands! {
    py_stats_command {
        name: c"rg.pystats",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "",
        summary: c"Shows how much memory Python takes.",
        handler: |_, _| py_stats(),
    }
    dump_plugins_command {
        name: c"rg.dumpplugins",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "",
        summary: c"Lists the languages that functions can be written in.",
        handler: |_, _| dump_plugins(),
    }
    py_execute_remote_command {
        name: c"rg.pyexecuteremote",
        flags: c"readonly",
        categories: c"read gears",
        syntax: "",
        summary: c"Says that this command is no longer supported.",
        handler: |_, _| no_execute_remote(),
    }
    py_free_interpreter_command {
        name: c"rg.pyfreeinterpreter",
        flags: c"readonly",
        categories: c"read gears",
        syntax: "",
        summary: c"Says that this command is no longer supported.",
        handler: |_, _| no_free_interpreter(),
    }
}

/// The name and the version of the language, as 1.2 shows its plugin.
pub const PLUGIN: (&str, i64) = ("GearsPythonPlugin", 10000);

/// `RG.PYSTATS`
///
/// # Errors
/// None; the same for the commands below. Their arguments are ignored.
fn py_stats() -> Result<Answer, Error> {
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

/// `RG.DUMPPLUGINS`
fn dump_plugins() -> Result<Answer, Error> {
    let (name, version) = PLUGIN;
    let plugin = Reply::Array(vec![Reply::bulk(name), Reply::Int(version)]);
    Ok(Reply::Array(vec![plugin]).into())
}

/// `RG.PYEXECUTEREMOTE`
fn no_execute_remote() -> Result<Answer, Error> {
    Ok(Reply::bulk("Execute remote is not longer supported").into())
}

/// `RG.PYFREEINTERPRETER`
fn no_free_interpreter() -> Result<Answer, Error> {
    Ok(Reply::bulk("Free interpreter is not longer supported").into())
}
