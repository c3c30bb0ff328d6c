//! SCRIPT FLUSH and FUNCTION FLUSH on servers that free many scripts of a module on a thread beside their own.
//!
//! Valkey 8.1 does that without its lock, and counts its own units of execution there: whoever runs commands meanwhile ends the server.
//! One function of ours among many of Lua is enough. So from the first one on both commands free them at once, as `SYNC` says, and so does
//! a replica that takes over what its master has.

use std::sync::atomic::{AtomicBool, Ordering};

use redis_module::raw;

use super::{
    api::{self, Features},
    entry::caught,
    filter::{self, Installed, Passing},
    guarded::Guarded,
    lock::Lock,
    refused,
    reply::Reply,
    version::Version,
};

static ELSEWHERE: AtomicBool = AtomicBool::new(false);
static FILTER: Guarded<Option<Installed>> = Guarded::new(None);

/// To be called once, while the module loads.
pub(super) fn init(version: Version) {
    ELSEWHERE.store(version.frees_scripts_beside_itself(), Ordering::Relaxed);
}

/// There is a function of ours.
pub(super) fn watch(lock: Lock<'_>) {
    if !ELSEWHERE.load(Ordering::Relaxed) {
        return;
    }
    let mut filter = FILTER.write(lock);
    if filter.is_none() {
        *filter = Installed::install(lock, on_command);
        drop(filter);
        replace_at_once(lock);
    }
}

/// The option of replicas that says how they free what they had.
const LAZY: &str = "replica-lazy-flush";

fn replace_at_once(lock: Lock<'_>) {
    let words = ["CONFIG", "SET", LAZY, "no"].map(|word| word.as_bytes().to_vec());
    match refused::question(lock, Features::default(), 0, &words) {
        Reply::Error(text) => api::log_warning(&format!(
            "{LAZY} could not be set to no ({}): this server can end when it becomes a replica while it has functions in Python",
            String::from_utf8_lossy(&text)
        )),
        _ => api::log_notice(&format!(
            "{LAZY} is no from now on, since there are functions in Python: see docs/scripting.md"
        )),
    }
}

unsafe extern "C" fn on_command(passing: *mut raw::RedisModuleCommandFilterCtx) {
    // SAFETY: the server's own argument.
    caught((), || unsafe { filter::run_for_all(passing, flush_at_once) });
}

fn flush_at_once(command: Passing<'_>) {
    let is = |index: usize, word: &[u8]| {
        command
            .arg(index)
            .is_some_and(|arg| arg.eq_ignore_ascii_case(word))
    };
    let flushes = (is(0, b"SCRIPT") || is(0, b"FUNCTION")) && is(1, b"FLUSH");
    if flushes && (command.len() == 2 || command.len() == 3 && is(2, b"ASYNC")) {
        command.put(2, b"SYNC");
    }
}
