//! RG.KEYINFO: what is known of one key by both halves of the cache. Contract: docs/contract/read-through.md chapter 4.

use crate::{
    error::Error,
    module::Pinion,
    read_through::Facts,
    server::{
        command::{Answer, Command},
        key::{self, Life},
        reply::Reply,
    },
};

commands! {
    key_info_command {
        name: c"rg.keyinfo",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "<key>",
        summary: c"Shows what read_through and write_behind know of a key.",
        key: 1,
        handler: key_info,
    }
}

/// `RG.KEYINFO <key>`, of the selected database. No function runs, and nothing is loaded, counted or touched.
///
/// # Errors
/// No key, or more than one.
fn key_info(pinion: &Pinion, command: &Command<'_>) -> Result<Answer, Error> {
    let (Some(name), 2) = (command.argv().get(1), command.argv().len()) else {
        return Err(Error::WrongArity);
    };
    let (lock, db) = (command.lock(), command.db());
    let loads = pinion.loads.about(lock, db, name);
    let saves = pinion.behind.about(lock, db, name);
    let life = key::life(lock, db, name);
    let registered = match (loads.is_empty(), saves.is_empty()) {
        (true, true) => "no",
        (false, true) => "read_through",
        (true, false) => "write_behind",
        (false, false) => "both",
    };
    let left = match life {
        Life::Until { left_ms, .. } => Reply::Int(left_ms),
        Life::Missing | Life::Endless => Reply::Null,
    };
    let role = if lock.is_master() { "master" } else { "replica" };
    Ok(map(vec![
        ("key", Reply::bulk(name)),
        ("db", Reply::Int(db.into())),
        ("role", Reply::bulk(role)),
        ("registered", Reply::bulk(registered)),
        ("inCache", Reply::Int((life != Life::Missing).into())),
        ("leftMS", left),
        ("read_through", maps(loads)),
        ("write_behind", maps(saves)),
    ])
    .into())
}

fn maps(all: Vec<Facts>) -> Reply {
    Reply::Array(all.into_iter().map(map).collect())
}

/// A map for clients of RESP3; names and values in turn for others.
fn map(facts: Facts) -> Reply {
    Reply::Map(
        facts
            .into_iter()
            .map(|(name, value)| (Reply::bulk(name), value))
            .collect(),
    )
}
