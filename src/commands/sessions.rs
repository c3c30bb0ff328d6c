//! The commands about sessions. Contract: docs/contract/commands.md 1.14 and 1.15.

use std::sync::Arc;

use super::{registrations::describe, requirements, session_literal::link};
use crate::{
    engine::{Engine, session::Session},
    error::Error,
    python::profile,
    server::{
        command::{Answer, Command},
        lock::Lock,
        reply::Reply,
    },
};

commands! {
    dump_sessions_command {
        name: c"rg.pydumpsessions",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "[VERBOSE] [DEAD|TS] [SESSIONS [<id> ...]]",
        summary: c"Lists the sessions that scripts made.",
        handler: |pinion, command| dump_sessions(&pinion.engine, command),
    }
    py_profile_command {
        name: c"rg.pyprofile",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "STATS|RESET <session id> [<order>]",
        summary: c"Shows or resets the profile of a session's functions.",
        handler: |pinion, command| profile(&pinion.engine, command),
    }
}

/// The order of a profile if none is asked for.
const DEFAULT_ORDER: &str = "tottime";

/// `RG.PYDUMPSESSIONS [VERBOSE] [DEAD] [SESSIONS <id> ...]`; `TS` is another word for `DEAD`.
///
/// # Errors
/// An unknown word.
fn dump_sessions(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let words = command.argv().skip(1);
    let (mut verbose, mut dead) = (false, false);
    for (place, word) in words.iter().enumerate() {
        let is = |option: &[u8]| word.eq_ignore_ascii_case(option);
        if is(b"VERBOSE") {
            verbose = true;
        } else if is(b"DEAD") || is(b"TS") {
            dead = true;
        } else if is(b"SESSIONS") {
            let asked = words.skip(place + 1);
            let entries = asked.iter().map(|id| named(engine, command.lock(), id, verbose));
            return Ok(Reply::Array(entries.collect()).into());
        } else {
            return Err(Error::UnknownOption(String::from_utf8_lossy(word).into_owned()));
        }
    }
    let sessions = engine.registry.sessions(|sessions| {
        if dead {
            sessions.all_dead()
        } else {
            sessions.all_live()
        }
    });
    let entries = sessions
        .iter()
        .map(|session| entry(engine, command.lock(), session, verbose));
    Ok(Reply::Array(entries.collect()).into())
}

fn named(engine: &Engine, lock: Lock<'_>, name: &[u8], verbose: bool) -> Reply {
    let id = String::from_utf8_lossy(name);
    match engine.registry.sessions(|sessions| sessions.live(&id)) {
        Some(session) => entry(engine, lock, &session, verbose),
        None => Reply::bulk([b"Session ", name, b" does not exists"].concat()),
    }
}

fn entry(engine: &Engine, lock: Lock<'_>, session: &Arc<Session>, verbose: bool) -> Reply {
    let needed = &session.needs.requirements;
    let requirements = if verbose {
        let entries = needed
            .iter()
            .map(|needed| requirements::entry(engine, lock, needed));
        Reply::Array(entries.collect())
    } else {
        Reply::bulks(needed.iter().map(|needed| &needed.name))
    };
    let registrations = if verbose {
        let registrations = engine.registry.registrations_of(session);
        Reply::Array(
            registrations
                .iter()
                .map(|registration| Reply::Array(describe(registration)))
                .collect(),
        )
    } else {
        Reply::bulks(session.registrations().iter().map(ToString::to_string))
    };
    let dead = session.is_replaced();
    Reply::Array(vec![
        Reply::bulk("ID"),
        Reply::bulk(&session.id),
        Reply::bulk("sessionDescription"),
        Reply::bulk_or_null(session.description.as_ref()),
        Reply::bulk("refCount"),
        Reply::Int(session.ref_count() as i64),
        Reply::bulk("linked"),
        Reply::bulk(link(dead)),
        Reply::bulk("dead"),
        Reply::bulk(if dead { "true" } else { "false" }),
        Reply::bulk("requirementInstallationNeeded"),
        Reply::Int(i64::from(session.needs.installed)),
        Reply::bulk("requirements"),
        requirements,
        Reply::bulk("registrations"),
        registrations,
    ])
}

/// `RG.PYPROFILE STATS <session id> [<order>]`, `RG.PYPROFILE RESET <session id>`
///
/// # Errors
/// A wrong subcommand; no such session; what Python raised, e.g. for an unknown order.
fn profile(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let argv = command.argv();
    let subcommand = argv.get(1).ok_or(Error::WrongArity)?;
    let is = |word: &[u8]| subcommand.eq_ignore_ascii_case(word);
    let allowed = if is(b"STATS") {
        3..=4
    } else if is(b"RESET") {
        3..=3
    } else {
        return Err(Error::WrongProfileSubcommand);
    };
    if !allowed.contains(&argv.len()) {
        return Err(Error::WrongArity);
    }
    let id = String::from_utf8_lossy(argv.get(2).unwrap_or_default());
    let session = engine
        .registry
        .sessions(|sessions| sessions.live(&id))
        .ok_or(Error::NoSuchSession)?;
    if is(b"RESET") {
        profile::reset(&session);
        return Ok(Reply::ok().into());
    }
    let order = argv.get(3).map_or(DEFAULT_ORDER.into(), String::from_utf8_lossy);
    let text = profile::report(&session, &order)?;
    Ok(Reply::Bulk(text).into())
}
