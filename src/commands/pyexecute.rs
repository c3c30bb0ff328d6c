//! RG.PYEXECUTE: runs a script and does what it asked for. Contract: `commands.md` 1.2.

use std::sync::Arc;

use crate::{
    engine::{Engine, registration::Registration, scope::Prepared, session::Session},
    error::Error,
    python,
    redis::{
        command::{Answer, Command},
        lock::Lock,
        reply::Reply,
        string::Argv,
    },
};

/// Options that are parsed and refused by name until their part of the contract is there.
const REFUSED: [&str; 2] = ["UPGRADE", "FORCE_REINSTALL_REQUIREMENTS"];

struct Options {
    unblocking: bool,
    session: Session,
}

/// `RG.PYEXECUTE <script> [UNBLOCKING] [ID <id>] [DESCRIPTION <text>]`
///
/// # Errors
/// A wrong argument; the error string of the script; what a registration was refused for.
pub fn pyexecute(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    if !command.may_block() {
        return Err(Error::CannotRunHere);
    }
    let script = command.argv().get(1).ok_or(Error::WrongArity)?;
    let options = parse(command.argv().skip(2))?;
    engine.registry.check_session_id(&options.session.id)?;
    let session = Arc::new(options.session);
    let lock = command.lock();
    let prepared = python::run_script(lock, script, &session).map_err(Error::Text)?;
    register_all(engine, lock, &prepared.registrations)?;
    Ok(start_run(engine, command, prepared, options.unblocking))
}

fn parse(words: Argv<'_>) -> Result<Options, Error> {
    let mut unblocking = false;
    let (mut id, mut description) = (None, None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let is = |option: &str| word.eq_ignore_ascii_case(option.as_bytes());
        let mut value = |option: &'static str| words.next().ok_or(Error::ValueMissing(option));
        if is("UNBLOCKING") {
            unblocking = true;
        } else if is("ID") {
            let given = value("ID")?;
            if !Session::is_valid_id(given) {
                return Err(Error::BadSessionId);
            }
            id = Some(String::from_utf8_lossy(given).into_owned());
        } else if is("DESCRIPTION") {
            description = Some(String::from_utf8_lossy(value("DESCRIPTION")?).into_owned());
        } else if is("REPLACE_WITH") {
            value("REPLACE_WITH")?;
            return Err(Error::OptionRefused("REPLACE_WITH"));
        } else if is("REQUIREMENTS") {
            // Without any requirement there is nothing to install.
            if words.next().is_some() {
                return Err(Error::OptionRefused("REQUIREMENTS"));
            }
        } else if let Some(option) = REFUSED.into_iter().find(|option| is(option)) {
            return Err(Error::OptionRefused(option));
        } else {
            return Err(Error::UnknownArgument(String::from_utf8_lossy(word).into_owned()));
        }
    }
    let session = Session::new(id.unwrap_or_else(random_id), description);
    Ok(Options { unblocking, session })
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

/// All or none: what is refused takes the earlier ones back.
fn register_all(engine: &Engine, lock: Lock<'_>, registrations: &[Arc<Registration>]) -> Result<(), Error> {
    for (done, registration) in registrations.iter().enumerate() {
        if let Err(error) = engine.register(lock, registration) {
            for earlier in &registrations[..done] {
                // It was registered a moment ago, so it is there.
                let _ = engine.unregister(lock, earlier.id, true);
            }
            return Err(error);
        }
    }
    Ok(())
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
