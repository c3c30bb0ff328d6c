//! Commands that the server cannot run for a function, whatever they are called on it: they wait, change the client that
//! sent them, or take the server away from under the function. [`super::call::call`] asks here first.
//!
//! A client's call of them is checked by the server; one of a module is not, and ends older servers.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    api::Features,
    asking::CommandInfo,
    call,
    guarded::{Guarded, Plain},
    lock::{self, Lock},
    own_thread,
    reply::{Reply, Shape},
    version::Version,
};

/// What is special about a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Runs a script that it brings; there is one script at a time.
    Eval,
    /// Runs one that is there.
    Script,
    /// Changes what scripts there are.
    Scripts,
    Module,
    /// Waits for replicas also where waiting is denied (before 7.2).
    Wait,
    /// Waits for files.
    WaitAof,
    Acl,
    /// Makes the client a replica, or ends the server.
    Never,
    Client,
    Debug,
    /// Pauses clients.
    Failover,
}

impl Kind {
    /// `name`: the command's own name, in lower case.
    fn of(name: &[u8]) -> Self {
        match name {
            b"eval" | b"eval_ro" => Self::Eval,
            b"evalsha" | b"evalsha_ro" | b"fcall" | b"fcall_ro" => Self::Script,
            b"script" | b"function" => Self::Scripts,
            b"module" => Self::Module,
            b"wait" => Self::Wait,
            b"waitaof" => Self::WaitAof,
            b"acl" => Self::Acl,
            b"sync" | b"psync" | b"replconf" | b"shutdown" => Self::Never,
            b"client" => Self::Client,
            b"debug" => Self::Debug,
            b"failover" => Self::Failover,
            _ => Self::Plain,
        }
    }

    const fn is_of_scripts(self) -> bool {
        matches!(self, Self::Eval | Self::Script | Self::Scripts)
    }
}

/// Subcommands of SCRIPT and FUNCTION that may free scripts.
const FREEING: [&[u8]; 4] = [b"delete", b"flush", b"load", b"restore"];
/// So many scripts of EVAL are kept by servers that throw away older ones (Valkey 8.1 and later).
const KEPT_SCRIPTS: u64 = 500;

/// Subcommands of DEBUG that end the server (PROTOCOL: before 7.0), or replace its data while functions run on them.
const FATAL_DEBUG: [&[u8]; 10] = [
    b"assert",
    b"crash-and-recover",
    b"loadaof",
    b"oom",
    b"panic",
    b"protocol",
    b"reload",
    b"restart",
    b"segfault",
    b"sigsegv",
];

/// What is known of a command.
#[derive(Clone, Copy)]
struct Known {
    kind: Kind,
    is_write: bool,
    /// It may write or be handed on to replicas: the server lets a client's wait while clients are paused.
    may_replicate: bool,
    /// The server refuses a client's when memory is short.
    denies_oom: bool,
    /// `None` for commands of modules.
    shape: Option<Shape>,
}

impl Known {
    /// `name`: the command's own, in lower case; `has`: whether it has a flag of COMMAND INFO.
    fn new(kind: Kind, name: &[u8], has: impl Fn(&[u8]) -> bool) -> Self {
        let by_name = match name {
            b"pfcount" | b"publish" | b"spublish" => true,
            // Of another module's command that is not a read it is not known.
            name => name.contains(&b'.') && !has(b"readonly"),
        };
        let is_write = has(b"write");
        Self {
            kind,
            is_write,
            may_replicate: is_write || by_name || (kind.is_of_scripts() && !name.ends_with(b"_ro")),
            denies_oom: has(b"denyoom"),
            shape: (!has(b"module")).then(|| Shape::of_command(name)),
        }
    }
}

/// By the name that it is called with, in lower case: `rename-command` gives others. Only names that the server knows.
static KNOWN: Guarded<BTreeMap<Vec<u8>, Known>> = Guarded::new(BTreeMap::new());

/// This server ends where a function waits for replicas while a script runs.
static WAITS_FOR_SCRIPTS: AtomicBool = AtomicBool::new(false);

/// To be called once, while the module loads.
pub(super) fn init(version: Version) {
    WAITS_FOR_SCRIPTS.store(version.takes_who_waits_for_a_script(), Ordering::Relaxed);
}

/// A question of ours is under way: it is nobody's command.
static ASKING: Plain<bool> = Plain::new(false);

/// True inside a question of ours to the server; filters leave it alone.
pub(super) fn is_asking(lock: Lock<'_>) -> bool {
    ASKING.get(lock)
}

/// Whether the server has a command down as a write; for servers that cannot refuse it by themselves (before 7.0).
pub(super) fn is_write(lock: Lock<'_>, features: Features, name: &[u8]) -> bool {
    known(lock, features, name).is_write
}

/// Whether a command may write, or be handed on to replicas. The server does not tell of those that are no writes.
pub(super) fn may_replicate(lock: Lock<'_>, features: Features, name: &[u8]) -> bool {
    known(lock, features, name).may_replicate
}

/// Whether the server refuses a client's command of this name when memory is short, and whether that depends on its script.
pub(super) fn needs_memory(lock: Lock<'_>, features: Features, name: &[u8]) -> (bool, bool) {
    let known = known(lock, features, name);
    (known.denies_oom, known.kind.is_of_scripts())
}

/// Whether a command runs scripts or changes which there are.
pub(super) fn is_about_scripts(lock: Lock<'_>, features: Features, name: &[u8]) -> bool {
    let kind = known(lock, features, name).kind;
    kind.is_of_scripts() || kind == Kind::Module
}

/// How the reply of a command in RESP3 relates to that in RESP2; `None` if nobody knows: it is a module's.
pub(super) fn resp3_shape(lock: Lock<'_>, features: Features, name: &[u8]) -> Option<Shape> {
    known(lock, features, name).shape
}

/// The command as it may be run.
///
/// # Errors
/// It cannot be run here; the reply says why.
pub(super) fn check<'a>(
    lock: Lock<'_>,
    features: Features,
    argv: &'a [Vec<u8>],
) -> Result<Cow<'a, [Vec<u8>]>, Reply> {
    let Some(name) = argv.first() else {
        return Ok(argv.into());
    };
    let word = |index: usize| argv.get(index).map(Vec::as_slice).unwrap_or_default();
    let is = |known: &[u8]| word(1).eq_ignore_ascii_case(known);
    let kind = known(lock, features, name).kind;
    let reason = match kind {
        kind if kind.is_of_scripts() && lock.is_in_script() => "while a script runs: it was called from one",
        // The user for whom the script runs may be among them, and the server has its rights looked up by now.
        Kind::Acl if lock.is_in_script() && (is(b"deluser") || is(b"load")) => {
            "while a script runs: it was called from one"
        }
        Kind::Eval if own_thread::would_wait_for_itself() && has_many_scripts(lock, features) => {
            "by a function that holds the server, which would throw away an older script: EVALSHA can"
        }
        Kind::Scripts if own_thread::would_wait_for_itself() && FREEING.iter().any(|freeing| is(freeing)) => {
            "by a function that holds the server"
        }
        Kind::Module if own_thread::would_wait_for_itself() => "by a function that holds the server",
        Kind::Wait | Kind::WaitAof if lock.is_in_script() && WAITS_FOR_SCRIPTS.load(Ordering::Relaxed) => {
            "while a script runs: it was called from one"
        }
        Kind::Wait if !word(1).is_empty() && word(1).iter().all(u8::is_ascii_digit) => {
            // As in a transaction: how many replicas there are, at once.
            let mut at_once = argv.to_vec();
            at_once[1] = b"0".to_vec();
            return Ok(at_once.into());
        }
        Kind::Never => "by a function",
        Kind::Client if is(b"reply") => "by a function: it has no client",
        // Valkey 9.1 would tell the debugger's client of the next script, whoever runs it.
        Kind::Scripts if is(b"debug") => "by a function: it has no client",
        // The client whose command this thread is at may be among them.
        Kind::Client if is(b"kill") && lock::is_server_thread() => {
            "by a function on the server's thread: a background function can"
        }
        // What was written before in one go with it is handed on when clients are paused, which ends the server.
        Kind::Client if is(b"pause") && !lock::is_held_for_one_call() => {
            "by a function that holds the server: a background function can"
        }
        Kind::Failover if !lock::is_held_for_one_call() => {
            "by a function that holds the server: a background function can"
        }
        Kind::Debug if FATAL_DEBUG.iter().any(|fatal| is(fatal)) => "by a function",
        _ => return Ok(argv.into()),
    };
    let mut command = name.clone();
    if matches!(
        kind,
        Kind::Acl | Kind::Client | Kind::Debug | Kind::Scripts | Kind::Module
    ) {
        command.push(b' ');
        command.extend_from_slice(word(1));
    }
    let command = String::from_utf8_lossy(&command).to_uppercase();
    Err(Reply::error(format!("ERR {command} cannot be run {reason}")))
}

/// Whether one more script of EVAL would take the place of an older one.
fn has_many_scripts(lock: Lock<'_>, features: Features) -> bool {
    let words = [b"INFO".to_vec(), b"memory".to_vec()];
    let (Reply::Bulk(text) | Reply::Status(text) | Reply::Verbatim { text, .. }) =
        question(lock, features, 0, &words)
    else {
        return true;
    };
    let text = String::from_utf8_lossy(&text);
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("number_of_cached_scripts:"));
    count
        .and_then(|count| count.trim().parse::<u64>().ok())
        .is_none_or(|count| count >= KEPT_SCRIPTS)
}

fn known(lock: Lock<'_>, features: Features, name: &[u8]) -> Known {
    let name = name.to_ascii_lowercase();
    if let Some(known) = KNOWN.read(lock).get(&name) {
        return *known;
    }
    match ask(lock, features, &name) {
        Some(known) => {
            KNOWN.write(lock).insert(name, known);
            known
        }
        None => Known {
            shape: None,
            ..Known::new(Kind::of(&name), &name, |_| false)
        },
    }
}

/// Runs a command of ours that reads: no filter sees it, and it may be run wherever it is asked.
pub(super) fn question(lock: Lock<'_>, features: Features, db: i32, argv: &[Vec<u8>]) -> Reply {
    struct Asking<'a>(Lock<'a>, bool);
    impl Drop for Asking<'_> {
        fn drop(&mut self) {
            ASKING.set(self.0, self.1);
        }
    }
    let before = ASKING.replace(lock, true);
    let _asking = Asking(lock, before);
    call::perform(lock, features, db, argv)
}

/// `None` for an unknown command, and where COMMAND itself is unknown.
fn ask(lock: Lock<'_>, features: Features, name: &[u8]) -> Option<Known> {
    let info = CommandInfo::ask_quietly(lock, features, name)?;
    Some(Known::new(Kind::of(&info.name), &info.name, |flag| {
        info.has(flag)
    }))
}
