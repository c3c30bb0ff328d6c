//! RG.PYEXECUTE: runs a script and does what it asked for. Contract: `commands.md` 1.2.

use std::sync::Arc;

use crate::{
    engine::{Engine, scope::Prepared, session::Session},
    error::Error,
    python,
    redis::{
        command::{Answer, Command},
        reply::Reply,
        string::Argv,
    },
};

#[derive(Default)]
struct Options {
    unblocking: bool,
    id: Option<String>,
    description: Option<String>,
    upgrade: bool,
    replace_with: Option<String>,
}

/// `RG.PYEXECUTE <script> [UNBLOCKING] [ID <id>] [DESCRIPTION <text>] [UPGRADE] [REPLACE_WITH <id>]`
///
/// # Errors
/// A wrong argument; the error string of the script; what a registration was refused for.
pub fn pyexecute(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    if !command.may_block() {
        return Err(Error::CannotRunHere);
    }
    let script = command.argv().get(1).ok_or(Error::WrongArity)?;
    let options = parse(command.argv().skip(2))?;
    let unblocking = options.unblocking;
    let old = session_to_replace(engine, &options)?;
    let session = Arc::new(Session::new(
        options.id.unwrap_or_else(random_id),
        options.description,
    ));
    let lock = command.lock();
    let prepared = python::run_script(lock, script, &session, old).map_err(Error::Text)?;
    engine.register(lock, prepared.replaces.as_ref(), &prepared.registrations)?;
    Ok(start_run(engine, command, prepared, unblocking))
}

fn parse(words: Argv<'_>) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut words = words.iter();
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    while let Some(word) = words.next() {
        let is = |option: &str| word.eq_ignore_ascii_case(option.as_bytes());
        let mut value = |option: &'static str| words.next().ok_or(Error::ValueMissing(option));
        if is("UNBLOCKING") {
            options.unblocking = true;
        } else if is("ID") {
            let id = value("ID")?;
            if !Session::is_valid_id(id) {
                return Err(Error::BadSessionId);
            }
            options.id = Some(text(id));
        } else if is("DESCRIPTION") {
            options.description = Some(text(value("DESCRIPTION")?));
        } else if is("UPGRADE") {
            options.upgrade = true;
        } else if is("REPLACE_WITH") {
            options.replace_with = Some(text(value("REPLACE_WITH")?));
        } else if is("FORCE_REINSTALL_REQUIREMENTS") {
            // Installs what REQUIREMENTS names.
        } else if is("REQUIREMENTS") {
            // Without any requirement there is nothing to install.
            if words.next().is_some() {
                return Err(Error::OptionRefused("REQUIREMENTS"));
            }
        } else {
            return Err(Error::UnknownArgument(text(word)));
        }
    }
    Ok(options)
}

/// The session whose place the new one takes.
///
/// # Errors
/// The id is taken, or what is to be replaced does not exist.
fn session_to_replace(engine: &Engine, options: &Options) -> Result<Option<Arc<Session>>, Error> {
    engine.registry.sessions(|sessions| {
        let same = options.id.as_ref().and_then(|id| sessions.live(id));
        match (&options.replace_with, same) {
            (Some(other), Some(same)) => Err(Error::CannotReplaceExisting {
                id: same.id.clone(),
                old: other.clone(),
            }),
            (Some(other), None) => match sessions.live(other) {
                Some(old) => Ok(Some(old)),
                None => Err(Error::NothingToReplace(other.clone())),
            },
            (None, Some(same)) if !options.upgrade => Err(Error::SessionExists(same.id.clone())),
            (None, same) => Ok(same),
        }
    })
}

/// Forty lower-case hexadecimal digits.
fn random_id() -> String {
    use std::{
        collections::hash_map::RandomState,
        fmt::Write as _,
        hash::{BuildHasher as _, Hasher as _},
    };
    let mut id = String::with_capacity(48);
    while id.len() < 40 {
        // Each state is seeded by the operating system's random numbers, or differs from the last one by a counter.
        let digits = RandomState::new().build_hasher().finish();
        let _ = write!(id, "{digits:016x}");
    }
    id.truncate(40);
    id
}

fn start_run(engine: &Engine, command: &Command<'_>, prepared: Prepared, unblocking: bool) -> Answer {
    let Some(mut start) = prepared.run else {
        return Reply::ok().into();
    };
    if !prepared.registrations.is_empty() || unblocking {
        start.transient = false;
        let execution = engine.submit(start, None);
        let registered = !prepared.registrations.is_empty();
        return if registered {
            Reply::ok()
        } else {
            Reply::bulk(execution.id.to_string())
        }
        .into();
    }
    let client = command.block();
    start.waiter = Some(Box::new(move |outcome| client.answer(outcome.to_reply())));
    engine.submit(start, None);
    Answer::Done
}

#[cfg(test)]
mod tests {
    use super::random_id;

    #[test]
    fn random_ids_differ() {
        let (first, second) = (random_id(), random_id());
        assert_eq!(first.len(), 40);
        assert!(
            first
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
        );
        assert_ne!(first, second);
    }
}
