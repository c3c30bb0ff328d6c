//! Commands that we run: for a function's `execute`, and the original of a linked command.

use std::{
    ffi::CStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use redis_module::raw;
use smallvec::SmallVec;

use super::{
    after::{Caused, when_writes_are_allowed},
    api::Features,
    bus,
    call_reply::{CallReply, Forms, READONLY, is_foreign},
    command::Command,
    filter,
    guarded::Plain,
    home,
    lock::Lock,
    refused,
    reply::Reply,
    rights::{self, Acting, Actor},
    room::{self, Room},
    slots,
    string::{Argv, RString, Word},
    version::Version,
};

/// What a function hears that cannot wait until clients are not paused any more.
pub const PAUSED: &str = "ERR clients are paused: nothing can be written now, and this function cannot wait";
/// What it hears of keys of several slots, in the server's words for a client.
pub const SEVERAL_SLOTS: &str =
    "Operation not permitted: CROSSSLOT Keys in request don't hash to the same slot";

/// Most commands have no more words, and no longer name: they need no memory of their own.
const WORDS: usize = 10;
const A_NAME: usize = 32;

/// Runs a command for a function, with what its events cause in `sync` functions, and the rights of `actor`; all without one.
/// Otherwise as [`call`].
pub fn execute(
    lock: Lock<'_>,
    features: Features,
    db: i32,
    argv: &[Vec<u8>],
    actor: Option<&Arc<Actor>>,
) -> Reply {
    let caused = Caused::enter(lock);
    let reply = call_as(lock, features, db, argv, actor);
    caused.done();
    reply
}

fn call_as(
    lock: Lock<'_>,
    features: Features,
    db: i32,
    argv: &[Vec<u8>],
    actor: Option<&Arc<Actor>>,
) -> Reply {
    match refused::check(lock, features, argv) {
        Ok(argv) => run(lock, features, db, &argv, Memory::AsClient, actor),
        Err(refusal) => refusal,
    }
}

/// As [`execute`], for a client of RESP3. In RESP2 only: what servers before 7.0 answer, and commands of modules, which may
/// have any shape in RESP3.
pub fn execute_for_resp3(
    lock: Lock<'_>,
    features: Features,
    db: i32,
    argv: &[Vec<u8>],
    actor: Option<&Arc<Actor>>,
) -> Forms {
    let shape = argv
        .first()
        .and_then(|name| refused::resp3_shape(lock, features, name));
    let Some(shape) = shape.filter(|_| features.call_options) else {
        return execute(lock, features, db, argv, actor).into();
    };
    let argv = match refused::check(lock, features, argv) {
        Ok(argv) => argv,
        Err(refusal) => return refusal.into(),
    };
    let caused = Caused::enter(lock);
    let forms = match send(
        lock,
        features,
        db,
        &argv,
        Protocol::Resp3,
        Memory::AsClient,
        actor,
    ) {
        Ok(reply) => reply.into_forms(shape),
        Err(refusal) => refusal.into(),
    };
    caused.done();
    Forms {
        resp2: explained(lock, &argv, forms.resp2),
        ..forms
    }
}

/// Runs a command for the module itself, which nobody's function stands in the place of: database `db`, full rights, RESP2 form, effects
/// replicated.
///
/// `argv` is the command and its arguments. Errors are replies; writes are refused on a read-only replica
/// and where memory is short and nothing can be evicted ([`room`]), like a client's, and so are what the server could not run
/// ([`refused`]) and, by a function that cannot wait, writes while clients are paused.
pub fn call(lock: Lock<'_>, features: Features, db: i32, argv: &[Vec<u8>]) -> Reply {
    call_for(lock, features, db, argv, None)
}

/// [`call`] with the rights of `actor`.
pub fn call_for(
    lock: Lock<'_>,
    features: Features,
    db: i32,
    argv: &[Vec<u8>],
    actor: Option<&Arc<Actor>>,
) -> Reply {
    filter::unseen(lock, || call_as(lock, features, db, argv, actor))
}

/// [`call`] for what is known to be no such command, and is not refused for want of memory either: what the module notes for
/// itself.
pub fn perform(lock: Lock<'_>, features: Features, db: i32, argv: &[impl Word]) -> Reply {
    filter::unseen(lock, || run(lock, features, db, argv, Memory::Always, None))
}

/// Whether a command has to wait because clients are paused: it may write or be handed on to replicas.
pub fn must_wait(lock: Lock<'_>, features: Features, name: &[u8]) -> bool {
    !lock.may_write() && refused::may_replicate(lock, features, name)
}

fn run(
    lock: Lock<'_>,
    features: Features,
    db: i32,
    argv: &[impl Word],
    memory: Memory,
    actor: Option<&Arc<Actor>>,
) -> Reply {
    match send(lock, features, db, argv, Protocol::Resp2, memory, actor) {
        Ok(reply) => explained(lock, argv, reply.into_reply()),
        Err(refusal) => refusal,
    }
}

/// Who may run a command above `maxmemory`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    AsClient,
    Always,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Resp2,
    /// From 7.0 on.
    Resp3,
}

fn send(
    lock: Lock<'_>,
    features: Features,
    db: i32,
    argv: &[impl Word],
    protocol: Protocol,
    memory: Memory,
    actor: Option<&Arc<Actor>>,
) -> Result<CallReply, Reply> {
    let Some(command) = argv.first().map(AsRef::as_ref) else {
        return Err(Reply::Array(Vec::new()));
    };
    let mut name = SmallVec::<[u8; A_NAME]>::from_slice(command);
    name.push(0);
    let Ok(name) = CStr::from_bytes_with_nul(&name) else {
        return Err(Reply::error("ERR unknown command: its name contains NUL"));
    };
    let flags = lock.server_flags();
    let refuses_writes = flags & raw::REDISMODULE_CTX_FLAGS_READONLY != 0;
    let asks = refused::is_asking(lock);
    if !asks && must_wait(lock, features, command) {
        return Err(Reply::error(PAUSED));
    }
    if !features.call_options && refuses_writes && !asks && refused::is_write(lock, features, command) {
        return Err(Reply::error(READONLY));
    }
    let room = match memory {
        Memory::AsClient => room::check(lock, features, flags, command),
        Memory::Always => Room::Enough,
    };
    if room == Room::None {
        return Err(room::refusal());
    }
    // With `M` the server looks by itself, also at what the arguments take that are made below.
    let format = match (features.call_options, refuses_writes, room, protocol) {
        (true, true, _, Protocol::Resp2) => c"!vEW",
        (true, true, _, Protocol::Resp3) => c"!v3EW",
        (true, false, Room::AsServerSays, Protocol::Resp2) => c"!vEM",
        (true, false, Room::AsServerSays, Protocol::Resp3) => c"!v3EM",
        (true, false, _, Protocol::Resp2) => c"!vE",
        (true, false, _, Protocol::Resp3) => c"!v3E",
        (false, ..) => c"!v",
    };
    let strings: SmallVec<[RString<'_>; WORDS]> = argv.iter().map(|word| word.string(lock)).collect();
    let mut words: SmallVec<[_; WORDS]> = strings.iter().map(RString::as_raw).collect();
    // SAFETY: the strings are alive.
    if unsafe { spoils(lock, &words) } {
        return Err(Reply::error(SEVERAL_SLOTS));
    }
    let ctx = lock.call_context(db);
    let acting = Acting::enter(lock, ctx, actor, &mut words, argv)?;
    let as_user;
    let format = if acting.as_user() {
        as_user = [format.to_bytes(), b"C\0"].concat();
        CStr::from_bytes_with_nul(&as_user).unwrap_or(format)
    } else {
        format
    };
    let arguments = &words[1..];
    let _home = home::Ours::enter(lock, command, || db);
    let _under_way = UnderWay::enter(lock);
    // SAFETY: the context is selected under the lock; `v` takes a pointer and a length. The reply is nobody else's.
    Ok(unsafe {
        CallReply::new(api!(RedisModule_Call(
            ctx,
            name.as_ptr(),
            format.as_ptr(),
            arguments.as_ptr(),
            arguments.len()
        )))
    })
}

/// The server has one text for keys of other shards and for those of several slots.
pub(super) fn explained(lock: Lock<'_>, argv: &[impl AsRef<[u8]>], reply: Reply) -> Reply {
    if !is_foreign(&reply) {
        return reply;
    }
    let strings: Vec<RString<'_>> = argv
        .iter()
        .map(|word| RString::new(lock, word.as_ref()))
        .collect();
    let words: Vec<_> = strings.iter().map(RString::as_raw).collect();
    // SAFETY: the strings are alive.
    if unsafe { slots::are_several(lock, &words) } {
        Reply::error(SEVERAL_SLOTS)
    } else {
        reply
    }
}

/// True if the server must not be asked to run a command, its name first: its keys have several slots, which it refuses, and
/// the clients that it lends to modules would remember that for all later commands (Valkey 9).
///
/// # Safety
/// The strings are alive.
pub(super) unsafe fn spoils(lock: Lock<'_>, words: &[*mut raw::RedisModuleString]) -> bool {
    // SAFETY: by the caller's promise.
    SPOILED_BY_SLOTS.load(Ordering::Relaxed)
        && bus::is_cluster_node(lock)
        && unsafe { slots::are_several(lock, words) }
}

/// True after [`init`] if this server is one of them.
static SPOILED_BY_SLOTS: AtomicBool = AtomicBool::new(false);

/// Called once, while the module loads.
pub(super) fn init(version: Version) {
    SPOILED_BY_SLOTS.store(version.is_spoiled_by_several_slots(), Ordering::Relaxed);
}

/// Sends an internal command to replicas and the AOF file, in database 0; while clients are paused, when they are not any more.
pub fn replicate(lock: Lock<'_>, command: &'static CStr, arguments: &[&[u8]]) {
    if lock.may_write() {
        return replicate_now(lock, command, arguments);
    }
    let arguments: Vec<_> = arguments.iter().map(|word| word.to_vec()).collect();
    when_writes_are_allowed(lock, move |lock| {
        let words: Vec<_> = arguments.iter().map(Vec::as_slice).collect();
        replicate_now(lock, command, &words);
    });
}

fn replicate_now(lock: Lock<'_>, command: &CStr, arguments: &[&[u8]]) {
    let words: Vec<_> = arguments.iter().map(|word| RString::new(lock, word)).collect();
    let words: Vec<_> = words.iter().map(RString::as_raw).collect();
    // SAFETY: the context is selected under the lock; the strings are alive.
    unsafe {
        api!(RedisModule_Replicate(
            lock.call_context(0),
            command.as_ptr(),
            c"v".as_ptr(),
            words.as_ptr(),
            words.len()
        ));
    }
}

/// How many calls of [`call`] are under way, one inside the other.
static CALLS: Plain<u32> = Plain::new(0);

/// True inside a command that a function runs.
pub fn is_under_way(lock: Lock<'_>) -> bool {
    CALLS.get(lock) > 0
}

struct UnderWay<'a>(Lock<'a>);

impl<'a> UnderWay<'a> {
    fn enter(lock: Lock<'a>) -> Self {
        CALLS.set(lock, CALLS.get(lock) + 1);
        Self(lock)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        CALLS.set(self.0, CALLS.get(self.0) - 1);
    }
}

/// Runs the command that stands in `argv` as the client of `command` would have: in its database, with its
/// protocol version and its cluster flags, with what its events cause in `sync` functions.
/// `unseen`: our filter has nothing to learn from it.
///
/// # Errors
/// The user who sent `command` may not run this one (`cleared`: that is known to be no matter), or the server must not be
/// asked to.
pub fn call_original(
    command: &Command<'_>,
    features: Features,
    argv: Argv<'_>,
    cleared: bool,
    unseen: bool,
) -> Result<CallReply, Refusal> {
    // The server looks the user up faster than we do, and commands that look at more keys by themselves (SORT) ask for it.
    // A function's command that was put behind a proxy one has the function's user.
    let has_actor = || rights::acting(command.lock()).is_some();
    let mut server_checks = features.call_options && (command.has_client() || has_actor());
    // Before 7.2 a server that refuses this ends: it notes whose client it is, and the one that it has for a client that waits is nobody's.
    let ends_server = server_checks && command.has_waited() && !features.filter_client_id;
    if (ends_server || !cleared && !server_checks) && !command.sender_may_run(argv) {
        return Err(Refusal::NotPermitted);
    }
    let format = match (features.call_options, server_checks) {
        (true, true) => c"!v0EC",
        (true, false) => c"!v0E",
        (false, _) => c"!v",
    };
    let name = argv.name().unwrap_or_default();
    let args = argv.skip(1).as_raw();
    // SAFETY: the arguments of a running command are alive.
    if unsafe { spoils(command.lock(), argv.as_raw()) } {
        return Err(Refusal::SeveralSlots);
    }
    let run = |format: &CStr| {
        // SAFETY: as in `call`, with the context of the running command.
        let call = || unsafe {
            CallReply::new(api!(RedisModule_Call(
                command.as_raw(),
                name.as_ptr(),
                format.as_ptr(),
                args.as_ptr(),
                args.len()
            )))
        };
        if unseen {
            filter::unseen(command.lock(), call)
        } else {
            call()
        }
    };
    let _home = home::Ours::enter(command.lock(), name.to_bytes(), || command.db());
    let caused = Caused::enter(command.lock());
    let mut reply = run(format);
    if server_checks && reply.has_no_user() {
        // Another module's call.
        server_checks = false;
        reply = run(c"!v0E");
    }
    caused.done();
    // Servers word this refusal in several ways. Whoever may not run the command has got no other error.
    if server_checks && reply.begins_with(b"-") && !command.sender_may_run(argv) {
        return Err(Refusal::NotPermitted);
    }
    Ok(reply)
}

/// Why a command was not run.
pub enum Refusal {
    /// The user's rights are not enough.
    NotPermitted,
    /// See [`SEVERAL_SLOTS`].
    SeveralSlots,
}
