//! A client that waits until its own command can be run: the server calls back with the client's arguments, and the command
//! runs there as the client, with its rights, in its database and protocol. Or it is run before the client is let go
//! ([`AwaitedCommand`]): the server lets nobody wait a second time.
//!
//! All of it happens under the server's lock, the callbacks on the server's thread.

use std::{
    any::Any,
    ffi::{c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::OnceLock,
};

use redis_module::raw;

use super::{
    client::{BlockedClient, User},
    command::Command,
    entry::caught,
    lock::{Entered, Lock},
    reply::Reply,
    string::{RString, Words},
};

/// What is told of clients that wait. Set once.
pub trait Waiting: Send + Sync {
    /// The client's command is to be answered now; `note` is what it was let go with, if that is something.
    fn answer(&self, command: &Command<'_>, note: Option<&Note>);

    /// The client with this address went away before it was let go.
    fn gone(&self, lock: Lock<'_>, address: usize);

    /// The client has its reply, or is gone.
    fn answered(&self, lock: Lock<'_>, note: Note);
}

/// What a client is let go with.
pub struct Note {
    /// The reply; without one the command is run.
    pub reply: Option<Reply>,
    /// What is to be known then.
    pub more: Box<dyn Any + Send>,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Awaited {
    /// Keys that are loaded.
    Load,
    /// Room in a queue of changes.
    Room,
}

static WAITING: [OnceLock<std::sync::Arc<dyn Waiting>>; 2] = [OnceLock::new(), OnceLock::new()];

/// To be called once for each, while the module loads.
pub fn connect(awaited: Awaited, waiting: std::sync::Arc<dyn Waiting>) {
    // A second call cannot happen: the module cannot be loaded twice.
    let _ = WAITING[awaited as usize].set(waiting);
}

/// A client that waits. Let go once, by [`WaitingClient::let_go`].
pub struct WaitingClient(*mut raw::RedisModuleBlockedClient);

// SAFETY: only used under the server's lock.
unsafe impl Send for WaitingClient {}

impl WaitingClient {
    /// # Safety
    /// `ctx` is the context of a running command that may block and has not replied.
    pub(super) unsafe fn block(ctx: *mut raw::RedisModuleCtx, awaited: Awaited) -> Option<Self> {
        const LOAD: usize = Awaited::Load as usize;
        const ROOM: usize = Awaited::Room as usize;
        let (reply, free, disconnect): (ReplyFunction, FreeFunction, DisconnectFunction) = match awaited {
            Awaited::Load => (on_reply::<LOAD>, on_free::<LOAD>, on_disconnect::<LOAD>),
            Awaited::Room => (on_reply::<ROOM>, on_free::<ROOM>, on_disconnect::<ROOM>),
        };
        // SAFETY: by the caller's promise. Without a timeout callback, CLIENT UNBLOCK leaves the client alone.
        unsafe {
            let client = api!(RedisModule_BlockClient(ctx, Some(reply), None, Some(free), 0));
            if client.is_null() {
                return None;
            }
            api!(RedisModule_SetDisconnectCallback(client, Some(disconnect)));
            Some(Self(client))
        }
    }

    /// Tells this client from others, for as long as it waits.
    pub fn address(&self) -> usize {
        self.0 as usize
    }

    /// It gets its reply when the server comes to it: in this turn of its loop, or the next. From any thread: whoever is let go without the
    /// lock is known to nobody else any more, so that nobody else gives the handle back.
    pub fn let_go(self, note: Note) {
        // SAFETY: the handle is unblocked once, because it is moved, and lives until then; the server lets any thread do that. `on_free`
        // owns the box.
        unsafe {
            api!(RedisModule_UnblockClient(
                self.0,
                Box::into_raw(Box::new(note)).cast()
            ))
        };
    }
}

type ReplyFunction =
    unsafe extern "C" fn(*mut raw::RedisModuleCtx, *mut *mut raw::RedisModuleString, c_int) -> c_int;
type FreeFunction = unsafe extern "C" fn(*mut raw::RedisModuleCtx, *mut c_void);
type DisconnectFunction = unsafe extern "C" fn(*mut raw::RedisModuleCtx, *mut raw::RedisModuleBlockedClient);

unsafe extern "C" fn on_reply<const WHY: usize>(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the server calls this with the data that `let_go` gave, before it calls `on_free`, and with the arguments of the
    // client's command.
    caught((), || unsafe {
        let note = api!(RedisModule_GetBlockedClientPrivateData(ctx)).cast::<Note>();
        run_for(WHY, ctx, argv, argc, note.as_ref());
    });
    raw::REDISMODULE_OK as c_int
}

/// Answers a client that has waited for a load, or stood behind one, by its own command.
///
/// # Safety
/// To be called by a reply callback with the server's own arguments.
pub(super) unsafe fn run(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    note: Option<&Note>,
) {
    // SAFETY: by the caller's promise.
    unsafe { run_for(Awaited::Load as usize, ctx, argv, argc, note) };
}

/// Answers a client that has waited by its own command.
///
/// # Safety
/// To be called by a reply callback with the server's own arguments.
unsafe fn run_for(
    awaited: usize,
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    note: Option<&Note>,
) {
    let Some(waiting) = WAITING.get(awaited).and_then(OnceLock::get) else {
        return;
    };
    // SAFETY: by the caller's promise; the server holds its lock.
    let entered = unsafe { Entered::new() };
    // SAFETY: as above.
    let command = unsafe { Command::of(ctx, argv, argc, entered.lock()) };
    if catch_unwind(AssertUnwindSafe(|| waiting.answer(&command, note))).is_err() {
        command.send(&Reply::error("ERR internal error, see the server's log"));
    }
}

unsafe extern "C" fn on_free<const WHY: usize>(_ctx: *mut raw::RedisModuleCtx, data: *mut c_void) {
    if data.is_null() {
        return;
    }
    // SAFETY: made by `let_go`, freed here once; the server holds its lock.
    let (note, entered) = unsafe { (Box::from_raw(data.cast::<Note>()), Entered::new()) };
    if let Some(waiting) = WAITING.get(WHY).and_then(OnceLock::get) {
        caught((), || waiting.answered(entered.lock(), *note));
    }
}

unsafe extern "C" fn on_disconnect<const WHY: usize>(
    _ctx: *mut raw::RedisModuleCtx,
    client: *mut raw::RedisModuleBlockedClient,
) {
    // SAFETY: the server holds its lock.
    let entered = unsafe { Entered::new() };
    let Some(waiting) = WAITING.get(WHY).and_then(OnceLock::get) else {
        return;
    };
    caught((), || waiting.gone(entered.lock(), client as usize));
}

/// What a client is let go with whose reply is all there is to know.
pub(super) fn note_of(reply: Reply) -> *mut c_void {
    let note = Note {
        reply: Some(reply),
        more: Box::new(()),
    };
    Box::into_raw(Box::new(note)).cast()
}

/// The command of a client that waits, to be run before the client is let go: as the client, with its rights, in its database and
/// protocol.
pub struct AwaitedCommand<'a> {
    ctx: *mut raw::RedisModuleCtx,
    argv: Vec<*mut raw::RedisModuleString>,
    /// What `argv` consists of.
    _words: Vec<RString<'a>>,
    /// Whom the context has: it lives as long.
    _user: Option<User>,
    lock: Lock<'a>,
}

impl<'a> AwaitedCommand<'a> {
    /// `words`: those that the server has for the client's command.
    pub fn new(lock: Lock<'a>, client: &WaitingClient, words: &Words) -> Self {
        let words: Vec<_> = words.iter().map(|word| RString::new(lock, word)).collect();
        let users_are_set = has_api!(RedisModule_SetContextUser);
        // SAFETY: the client is blocked, and the server frees it later than the context: not under this lock. The user lives as long
        // as the context.
        let (ctx, user) = unsafe {
            let ctx = api!(RedisModule_GetThreadSafeContext(client.0));
            let user = User::of_client(lock, api!(RedisModule_GetClientId(ctx)));
            if let Some(user) = user.as_ref().filter(|_| users_are_set) {
                api!(RedisModule_SetContextUser(ctx, user.as_raw()));
            }
            (ctx, user)
        };
        Self {
            ctx,
            argv: words.iter().map(RString::as_raw).collect(),
            _words: words,
            _user: user,
            lock,
        }
    }

    pub fn as_command(&mut self) -> Command<'_> {
        // SAFETY: context and words live as long as this.
        unsafe {
            Command::of(
                self.ctx,
                self.argv.as_mut_ptr(),
                self.argv.len() as c_int,
                self.lock,
            )
        }
    }
}

impl Drop for AwaitedCommand<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { api!(RedisModule_FreeThreadSafeContext(self.ctx)) };
    }
}

impl WaitingClient {
    /// The same client, whose command has been run: it waits for its reply only.
    pub fn into_blocked(self, _lock: Lock<'_>) -> BlockedClient {
        // SAFETY: it is blocked, and moved.
        unsafe { BlockedClient::of_waiting(self.0) }
    }

    /// The client is gone: the handle is given back.
    pub fn forget(self, _lock: Lock<'_>) {
        // SAFETY: as in `let_go`; without data nothing is called back.
        unsafe { api!(RedisModule_UnblockClient(self.0, ptr::null_mut())) };
    }
}

/// True if the server tells when it is about to sleep (7.0).
pub fn tells_when_it_sleeps() -> bool {
    has_api!(RedisModule_EventLoopAddOneShot)
}

/// The server comes out of its sleep, and tells so before the next one. From any thread; false if it has no such thing (6.2).
pub fn wake() -> bool {
    if !tells_when_it_sleeps() {
        return false;
    }
    // SAFETY: the presence of the function was just checked; the server lets any thread call it, and it needs no data.
    unsafe { api!(RedisModule_EventLoopAddOneShot(Some(on_wake), ptr::null_mut())) };
    true
}

/// Nothing: the server is awake.
unsafe extern "C" fn on_wake(_data: *mut c_void) {}
