//! The script that the server runs now through an engine of ours: its keys and arguments, the commands that it runs, and
//! whether somebody has killed it. The server runs one at a time. Contract: docs/contract/scripting-engine.md.

use std::{
    ffi::{CStr, CString, c_int, c_void},
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use redis_module::raw;

use super::{
    after::Caused,
    api::Features,
    call,
    call_reply::CallReply,
    guarded::Guarded,
    home,
    lock::{self, Lock},
    refused,
    reply::Reply,
    script_engine::Flags,
    string::{Argv, RString},
};

/// The interface between the server and an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum Abi {
    /// Valkey 8.1.
    V2 = 2,
    /// Valkey 9.0.
    V3 = 3,
    /// Valkey 9.1: the server knows that what a module calls is a script's.
    V4 = 4,
}

impl Abi {
    /// The server itself enforces the script's flags, rights and slots in calls of ours.
    fn server_checks(self) -> bool {
        self >= Self::V4
    }
}

const READ_ONLY: &str = "ERR Write commands are not allowed from read-only scripts.";
const KILLED: c_int = 1;

static ABI: OnceLock<Abi> = OnceLock::new();
/// `GetFunctionExecutionState` of the server.
static STATE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Called once, while the module loads.
pub(super) fn init(state: *mut c_void, abi: Abi) {
    // A second call cannot happen: the module cannot be loaded twice.
    let _ = ABI.set(abi);
    STATE.store(state, Ordering::Release);
}

/// What is known of the running script.
#[derive(Clone, Copy)]
struct Running {
    ctx: *mut raw::RedisModuleCtx,
    server_ctx: *mut c_void,
    /// On servers that do not enforce it in calls of ours.
    read_only: bool,
    allow_oom: bool,
    has_written: bool,
    /// It runs a command now.
    is_in_command: bool,
}

// SAFETY: only touched under the server's lock, while the script runs.
unsafe impl Send for Running {}

static RUNNING: Guarded<Option<Running>> = Guarded::new(None);

/// One EVAL or FCALL, while its function runs.
pub struct ScriptCall<'a> {
    lock: Lock<'a>,
    ctx: *mut raw::RedisModuleCtx,
    db: c_int,
    is_eval: bool,
    keys: Argv<'a>,
    arguments: Argv<'a>,
}

impl<'a> ScriptCall<'a> {
    /// # Safety
    /// The pointers are those that the server gave for this call, and alive for `'a`.
    pub(super) unsafe fn new(
        lock: Lock<'a>,
        ctx: *mut raw::RedisModuleCtx,
        server_ctx: *mut c_void,
        is_eval: bool,
        flags: Flags,
        keys: Argv<'a>,
        arguments: Argv<'a>,
    ) -> Self {
        // SAFETY: by the caller's promise; the name of a command is a text that lives as long as the command.
        let (db, read_only) = unsafe {
            let is_read_only = || {
                let name = api!(RedisModule_GetCurrentCommandName(ctx));
                !name.is_null() && CStr::from_ptr(name).to_bytes().ends_with(b"_ro")
            };
            (
                api!(RedisModule_GetSelectedDb(ctx)),
                flags.contains(Flags::NO_WRITES) || is_read_only(),
            )
        };
        *RUNNING.write(lock) = Some(Running {
            ctx,
            server_ctx,
            read_only,
            allow_oom: flags.contains(Flags::ALLOW_OOM),
            has_written: false,
            is_in_command: false,
        });
        Self {
            lock,
            ctx,
            db,
            is_eval,
            keys,
            arguments,
        }
    }

    pub fn lock(&self) -> Lock<'a> {
        self.lock
    }

    /// True for EVAL and EVALSHA, false for FCALL.
    pub fn is_eval(&self) -> bool {
        self.is_eval
    }

    pub fn keys(&self) -> Argv<'a> {
        self.keys
    }

    pub fn arguments(&self) -> Argv<'a> {
        self.arguments
    }

    /// The database of whoever called it.
    pub fn db(&self) -> i32 {
        self.db
    }
}

impl Drop for ScriptCall<'_> {
    fn drop(&mut self) {
        *RUNNING.write(self.lock) = None;
        // SAFETY: the context is alive. A script's SELECT is not its caller's.
        unsafe {
            if api!(RedisModule_GetSelectedDb(self.ctx)) != self.db {
                api!(RedisModule_SelectDb(self.ctx, self.db));
            }
        }
    }
}

/// Runs a command of the running script, as its caller: with that user's rights, in its database, with the script's flags.
/// Effects are replicated, errors are replies, in the form of RESP2.
pub fn execute(lock: Lock<'_>, features: Features, argv: &[Vec<u8>]) -> Reply {
    let (Some(running), Some(abi)) = (*RUNNING.read(lock), ABI.get()) else {
        return Reply::error("ERR no script runs");
    };
    let argv = match refused::check(lock, features, argv) {
        Ok(argv) => argv,
        Err(refusal) => return refusal,
    };
    let Some(name) = argv.first() else {
        return Reply::Array(Vec::new());
    };
    if running.read_only && refused::may_replicate(lock, features, name) {
        return Reply::error(READ_ONLY);
    }
    if call::must_wait(lock, features, name) {
        return Reply::error(call::PAUSED);
    }
    let may_need_memory = abi.server_checks() || !(running.allow_oom || running.has_written);
    let mut format = String::from("!vES");
    format.push_str(if may_need_memory { "M" } else { "" });
    let as_user = format!("{format}C");
    let checks = if abi.server_checks() { &format } else { &as_user };
    let _in_command = InCommand::enter(lock);
    let caused = Caused::enter(lock);
    let mut reply = send(lock, running, checks, &argv);
    if !abi.server_checks() && reply.as_ref().is_ok_and(CallReply::has_no_user) {
        // A function of ours calls this script: it has all rights.
        reply = send(lock, running, &format, &argv);
    }
    let reply = reply.map_or_else(|refusal| refusal, CallReply::into_reply);
    if !matches!(reply, Reply::Error(_)) {
        note(lock, features, *abi, &argv);
    }
    caused.done();
    call::explained(lock, &argv, reply)
}

/// The time of one command of the script, with what it causes.
struct InCommand<'a>(Lock<'a>);

impl<'a> InCommand<'a> {
    fn enter(lock: Lock<'a>) -> Self {
        Self::set(lock, true);
        Self(lock)
    }

    fn set(lock: Lock<'_>, is_in_command: bool) {
        if let Some(running) = RUNNING.write(lock).as_mut() {
            running.is_in_command = is_in_command;
        }
    }
}

impl Drop for InCommand<'_> {
    fn drop(&mut self) {
        Self::set(self.0, false);
    }
}

fn send(lock: Lock<'_>, running: Running, format: &str, argv: &[Vec<u8>]) -> Result<CallReply, Reply> {
    let (Ok(name), Ok(format)) = (CString::new(argv[0].as_slice()), CString::new(format)) else {
        return Err(Reply::error("ERR unknown command: its name contains NUL"));
    };
    let strings: Vec<RString<'_>> = argv.iter().map(|word| RString::new(lock, word)).collect();
    let words: Vec<_> = strings.iter().map(RString::as_raw).collect();
    // SAFETY: the strings are alive.
    if unsafe { call::spoils(lock, &words) } {
        return Err(Reply::error(call::SEVERAL_SLOTS));
    }
    let arguments = &words[1..];
    // SAFETY: the context is alive while the script runs.
    let db = || unsafe { api!(RedisModule_GetSelectedDb(running.ctx)) };
    let _home = home::Ours::enter(lock, &argv[0], db);
    // SAFETY: the same; `v` takes a pointer and a length.
    Ok(unsafe {
        CallReply::new(api!(RedisModule_Call(
            running.ctx,
            name.as_ptr(),
            format.as_ptr(),
            arguments.as_ptr(),
            arguments.len()
        )))
    })
}

/// What the script has done by a command that went well.
fn note(lock: Lock<'_>, features: Features, abi: Abi, argv: &[Vec<u8>]) {
    if refused::is_write(lock, features, &argv[0]) {
        if let Some(running) = RUNNING.write(lock).as_mut() {
            running.has_written = true;
        }
    }
    if abi.server_checks() || !argv[0].eq_ignore_ascii_case(b"select") {
        return;
    }
    // The server has selected it for a client of its own only.
    let db = argv
        .get(1)
        .and_then(|db| std::str::from_utf8(db).ok()?.parse().ok());
    if let (Some(db), Some(running)) = (db, *RUNNING.read(lock)) {
        // SAFETY: the context is alive while the script runs.
        unsafe { api!(RedisModule_SelectDb(running.ctx, db)) };
    }
}

/// Lets the server do what it does while a script is slow: from busy-reply-threshold on it answers its clients that it is busy,
/// and takes SCRIPT KILL, FUNCTION KILL and SHUTDOWN. True if the script is to end now. Called in the middle of the script on the
/// server's thread, detached from Python; elsewhere it does nothing.
pub fn is_killed(lock: Lock<'_>) -> bool {
    type State = unsafe extern "C" fn(*mut c_void) -> c_int;
    let state = STATE.load(Ordering::Acquire);
    let running = *RUNNING.read(lock);
    let (Some(running), false) = (running, state.is_null()) else {
        return false;
    };
    if running.is_in_command || !lock::is_server_thread() {
        return false;
    }
    // SAFETY: the function has this type since it exists; the script runs, on this thread.
    let killed = unsafe {
        let state: State = std::mem::transmute(state);
        state(running.server_ctx) == KILLED
    };
    // A server that does not know of our writes lets such a script be killed, too.
    killed && !running.has_written
}
