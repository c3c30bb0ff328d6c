//! The commands about registrations. Contract: `commands.md` 1.10 and 1.11.

use std::{fmt::Write as _, sync::Arc};

use crate::{
    engine::{Engine, id::Id, registration::Registration, session::Session, whole_ms},
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
    Ok(Reply::Array(registrations.iter().map(describe).collect()).into())
}

fn describe(registration: &Arc<Registration>) -> Reply {
    Reply::Array(vec![
        Reply::bulk("id"),
        Reply::bulk(registration.id.to_string()),
        Reply::bulk("reader"),
        Reply::bulk(registration.trigger.reader()),
        Reply::bulk("desc"),
        Reply::bulk_or_null(registration.desc.as_ref()),
        Reply::bulk("RegistrationData"),
        data(registration),
        Reply::bulk("PD"),
        Reply::bulk(session_text(&registration.session)),
        Reply::bulk("ExecutionThreadPool"),
        Reply::bulk("DefaultPool"),
    ])
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

/// The session as a Python literal: clients evaluate it.
fn session_text(session: &Session) -> String {
    let description = session
        .description
        .as_deref()
        .map_or_else(|| "None".to_owned(), literal);
    let registrations: Vec<String> = session
        .registrations()
        .iter()
        .map(|id| literal(&id.to_string()))
        .collect();
    format!(
        "{{'sessionId':{id}, 'sessionName':{id}, 'sessionDescription':{description}, 'refCount': {count}, \
         'linkedTo': 'primary', 'dead': False, 'isInstallationNeeded':0, 'registrationsList':[{registrations}], \
         'depsList':[]}}",
        id = literal(&session.id),
        count = session.ref_count(),
        registrations = registrations.join(","),
    )
}

/// A string literal of Python.
fn literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for character in text.chars() {
        match character {
            '\'' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            plain => quoted.push(plain),
        }
    }
    quoted.push('\'');
    quoted
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_keep_quotes_and_line_ends() {
        assert_eq!(literal("it's a \\ \n\u{1}"), "'it\\'s a \\\\ \\n\\u0001'");
    }

    #[test]
    fn a_session_has_the_documented_keys() {
        let session = Session::new("s".into(), None);
        assert_eq!(
            session_text(&session),
            "{'sessionId':'s', 'sessionName':'s', 'sessionDescription':None, 'refCount': 0, 'linkedTo': 'primary', \
             'dead': False, 'isInstallationNeeded':0, 'registrationsList':[], 'depsList':[]}"
        );
    }
}
