//! RG.CONFIGGET and RG.CONFIGSET. Contract: docs/contract/commands.md 1.19.

use crate::{
    config::{Change, Current},
    engine::Engine,
    error::Error,
    server::{
        command::{Answer, Command},
        reply::Reply,
    },
};

commands! {
    config_get_command {
        name: c"rg.configget",
        flags: c"readonly",
        categories: c"read gears",
        syntax: "[<key> ...]",
        summary: c"Shows options of the module.",
        handler: |pinion, command| config_get(&pinion.engine, command),
    }
    config_set_command {
        name: c"rg.configset",
        flags: c"readonly",
        categories: c"admin dangerous gears",
        syntax: "[<key> <value> ...]",
        summary: c"Changes options of the module.",
        handler: |pinion, command| config_set(&pinion.engine, command),
    }
}

/// `RG.CONFIGGET [<key> ...]`: one element for each key.
///
/// # Errors
/// None; an unknown key is an error element.
fn config_get(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let element = |key: &[u8]| match engine.config.get(key) {
        Current::Number(number) => Reply::Int(number),
        Current::Text(text) => Reply::Bulk(text),
        Current::List(items) => Reply::bulks(items),
        Current::Unknown => {
            Reply::error([b"(error) Unsupported config parameter: ".as_slice(), key].concat())
        }
    };
    Ok(Reply::Array(command.argv().skip(1).iter().map(element).collect()).into())
}

/// `RG.CONFIGSET [<key> <value> ...]`: one element for each key, from left to right, no way back.
///
/// # Errors
/// None; whatever is refused is an error element.
fn config_set(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let words = command.argv().skip(1);
    let element = |place: usize| {
        let key = words.get(place).unwrap_or_default();
        match engine.config.set(key, words.get(place + 1)) {
            Change::Set => Reply::ok(),
            Change::SavedExtra => Reply::status("OK - value was saved in extra config dictionary"),
            Change::Refused(text) => Reply::error(text),
        }
    };
    Ok(Reply::Array((0..words.len()).step_by(2).map(element).collect()).into())
}
