//! The commands about registrations. Contract: `commands.md` 1.10 and 1.11.

use std::sync::Arc;

use super::sessions::literal;
use crate::{
    engine::{Engine, id::Id, registration::Registration, whole_ms},
    error::Error,
    redis::{
        command::{Answer, Command},
        reply::Reply,
    },
};

/// `RG.DUMPREGISTRATIONS`
///
/// # Errors
/// None.
pub fn dump_registrations(engine: &Engine, _command: &Command<'_>) -> Result<Answer, Error> {
    let registrations = engine.registry.registrations();
    let entries = registrations.iter().map(|registration| {
        let mut entry = describe(registration);
        let session = [Reply::bulk("PD"), Reply::bulk(literal(&registration.session))];
        entry.splice(8..8, session);
        Reply::Array(entry)
    });
    Ok(Reply::Array(entries.collect()).into())
}

/// The entry of a registration but for its session.
pub(super) fn describe(registration: &Arc<Registration>) -> Vec<Reply> {
    vec![
        Reply::bulk("id"),
        Reply::bulk(registration.id.to_string()),
        Reply::bulk("reader"),
        Reply::bulk(registration.trigger.reader()),
        Reply::bulk("desc"),
        Reply::bulk_or_null(registration.desc.as_ref()),
        Reply::bulk("RegistrationData"),
        data(registration),
        Reply::bulk("ExecutionThreadPool"),
        Reply::bulk("DefaultPool"),
    ]
}

fn data(registration: &Registration) -> Reply {
    let counts = registration.stats.snapshot();
    let count = |count: u64| Reply::Int(i64::try_from(count).unwrap_or(i64::MAX));
    let arguments = registration.trigger.arguments();
    Reply::Array(vec![
        Reply::bulk("mode"),
        Reply::bulk(registration.mode.name()),
        Reply::bulk("numTriggered"),
        count(counts.triggered),
        Reply::bulk("numSuccess"),
        count(counts.succeeded),
        Reply::bulk("numFailures"),
        count(counts.failed),
        Reply::bulk("numAborted"),
        count(counts.aborted),
        Reply::bulk("lastRunDurationMS"),
        Reply::Int(whole_ms(counts.last)),
        Reply::bulk("totalRunDurationMS"),
        Reply::Int(whole_ms(counts.total)),
        Reply::bulk("avgRunDurationMS"),
        Reply::Double(counts.average_ms()),
        Reply::bulk("lastError"),
        Reply::bulk_or_null(counts.last_error),
        Reply::bulk("args"),
        Reply::Array(
            arguments
                .into_iter()
                .flat_map(|(name, value)| [Reply::bulk(name), value])
                .collect(),
        ),
    ])
}

/// `RG.UNREGISTER <registration id> [ABORTPENDING]`
///
/// # Errors
/// No such registration.
pub fn unregister(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let argv = command.argv();
    if !(2..=3).contains(&argv.len()) {
        return Err(Error::WrongArity);
    }
    let id = argv.get(1).and_then(Id::parse).ok_or(Error::NotRegistered)?;
    let abort_pending = argv
        .get(2)
        .is_some_and(|word| word.eq_ignore_ascii_case(b"ABORTPENDING"));
    engine.unregister(command.lock(), id, abort_pending)?;
    Ok(Reply::ok().into())
}
