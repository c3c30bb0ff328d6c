//! Clients: one that waits for a reply, and what can be asked about the one that sent a command.

use std::{
    collections::HashMap,
    ffi::c_int,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::mutex::Mutex;
use redis_module::raw;

use super::{
    entry::caught,
    lock::{Entered, Lock},
    reply::Reply,
    string::{RString, bytes},
    waiting,
};

/// A client that waits for exactly one reply. Dropping it unanswered sends an error, so none waits for ever.
pub struct BlockedClient(Arc<Handle>);

/// The server's handle; null once the client is unblocked, because the server frees it then.
struct Handle(Mutex<BlockedState>);

struct BlockedState {
    client: *mut raw::RedisModuleBlockedClient,
    /// It waited for its command to run first: its callbacks are those of [`waiting`], which take notes.
    takes_notes: bool,
    /// How many pieces of work for the client are being measured.
    at_work: usize,
}

// SAFETY: the server documents `UnblockClient` as callable from any thread, and the functions that measure time as callable
// by one thread at a time: all are called under the mutex, and none after the client is unblocked.
unsafe impl Send for BlockedState {}

impl BlockedClient {
    /// Blocks the client of a running command, without a time limit. `None` if the server does not let it wait: Valkey 8.1
    /// and later have reasons that no flag tells, e.g. that the client is subscribed to channels.
    ///
    /// # Safety
    /// `ctx` is the context of a running command that may block and has not replied.
    pub(super) unsafe fn block(ctx: *mut raw::RedisModuleCtx) -> Option<Self> {
        // SAFETY: by the caller's promise. Without a timeout callback, CLIENT UNBLOCK leaves the client alone.
        let client = unsafe {
            api!(RedisModule_BlockClient(
                ctx,
                Some(on_reply),
                None,
                Some(on_free),
                0
            ))
        };
        (!client.is_null()).then(|| Self::of(client, false))
    }

    /// A client that [`waiting::WaitingClient`] has blocked, and does not let go any more.
    ///
    /// # Safety
    /// The client is blocked, and unblocked by nobody else.
    pub(super) unsafe fn of_waiting(client: *mut raw::RedisModuleBlockedClient) -> Self {
        Self::of(client, true)
    }

    fn of(client: *mut raw::RedisModuleBlockedClient, takes_notes: bool) -> Self {
        Self(Arc::new(Handle(Mutex::new(BlockedState {
            client,
            takes_notes,
            at_work: 0,
        }))))
    }

    /// What measures the work that is done for the client.
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.0))
    }

    /// Answers the client, on the main thread a moment later. Nothing happens if the client is gone.
    pub fn answer(self, reply: Reply) {
        self.unblock(Some(reply));
    }

    /// The client's command is run again, on the main thread a moment later, and is the reply ([`super::waiting`]).
    pub fn run_again(self) {
        self.unblock(None);
    }

    fn unblock(&self, reply: Option<Reply>) {
        let mut state = self.0.0.lock();
        if state.at_work > 0 {
            state.measure(false);
        }
        let client = std::mem::replace(&mut state.client, ptr::null_mut());
        let takes_notes = state.takes_notes;
        drop(state);
        if !client.is_null() {
            let data = match reply {
                None => ptr::null_mut(),
                Some(reply) if takes_notes => waiting::note_of(reply),
                Some(reply) => Box::into_raw(Box::new(reply)).cast(),
            };
            // SAFETY: the handle is unblocked once, because it is null from here on. `on_free` owns the box.
            unsafe { api!(RedisModule_UnblockClient(client, data)) };
        }
    }
}

impl Drop for BlockedClient {
    fn drop(&mut self) {
        if self.0.0.lock().client.is_null() {
            return;
        }
        self.unblock(Some(Reply::error(
            "ERR the execution was lost before it could reply",
        )));
    }
}

impl BlockedState {
    /// The server's clock for the client goes, or stands.
    fn measure(&self, goes: bool) {
        // 6.2 and later.
        if self.client.is_null() || !has_api!(RedisModule_BlockedClientMeasureTimeStart) {
            return;
        }
        // SAFETY: the presence of the functions was just checked; the client is still blocked, see `BlockedState`.
        unsafe {
            if goes {
                api!(RedisModule_BlockedClientMeasureTimeStart(self.client));
            } else {
                api!(RedisModule_BlockedClientMeasureTimeEnd(self.client));
            }
        }
    }
}

/// The clients that are looked after, by the server's handle.
static WATCHED: LazyLock<Mutex<HashMap<usize, Arc<AtomicBool>>>> = LazyLock::new(Mutex::default);

/// A client of which it is known whether it still waits: it may have left, and the server answers by itself, with an error, when
/// its role changes or its cluster is down. What has no effect by then is to have none any more.
pub struct WatchedClient {
    client: BlockedClient,
    watched: Watched,
}

struct Watched {
    handle: usize,
    gone: Arc<AtomicBool>,
}

impl BlockedClient {
    /// To be called by the command that blocked the client.
    pub fn watched(self, _lock: Lock<'_>) -> WatchedClient {
        let gone = Arc::new(AtomicBool::new(false));
        let state = self.0.0.lock();
        let handle = state.client as usize;
        WATCHED.lock().insert(handle, Arc::clone(&gone));
        if !state.client.is_null() {
            // SAFETY: the client is still blocked, see `BlockedState`.
            unsafe {
                api!(RedisModule_SetDisconnectCallback(
                    state.client,
                    Some(on_disconnect)
                ));
            }
        }
        drop(state);
        WatchedClient {
            client: self,
            watched: Watched { handle, gone },
        }
    }
}

impl WatchedClient {
    /// True if it has left, or has got an error of the server's.
    pub fn is_gone(&self) -> bool {
        self.watched.gone.load(Ordering::Acquire)
    }

    /// Tells the same as long as the client is not answered.
    pub fn still_waits(&self) -> impl Fn() -> bool + Send + use<> {
        let gone = Arc::clone(&self.watched.gone);
        move || !gone.load(Ordering::Acquire)
    }

    /// See [`BlockedClient::answer`].
    pub fn answer(self, reply: Reply) {
        self.client.answer(reply);
    }

    /// The client, of which nobody needs to know any more whether it waits.
    pub fn blocked(self) -> BlockedClient {
        self.client
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut watched = WATCHED.lock();
        // The server may have given the handle to another one.
        if watched
            .get(&self.handle)
            .is_some_and(|gone| Arc::ptr_eq(gone, &self.gone))
        {
            watched.remove(&self.handle);
        }
    }
}

unsafe extern "C" fn on_disconnect(
    _ctx: *mut raw::RedisModuleCtx,
    client: *mut raw::RedisModuleBlockedClient,
) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if let Some(gone) = WATCHED.lock().get(&(client as usize)) {
            gone.store(true, Ordering::Release);
        }
    }));
}

/// Tells the server how long the work for a client takes, without the time that it waits: for SLOWLOG, the statistics of
/// commands, and LATENCY. Of pieces of work that overlap the time counts once.
#[derive(Clone)]
pub struct Meter(Arc<Handle>);

impl Meter {
    /// A piece of work begins; it ends when the guard is dropped, or the client is answered.
    pub fn start(&self) -> Measured<'_> {
        let mut state = self.0.0.lock();
        state.at_work += 1;
        if state.at_work == 1 {
            state.measure(true);
        }
        Measured(&self.0)
    }
}

/// The time of one piece of work.
pub struct Measured<'a>(&'a Handle);

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.at_work -= 1;
        if state.at_work == 0 {
            state.measure(false);
        }
    }
}

unsafe extern "C" fn on_reply(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
) -> c_int {
    // SAFETY: the server calls this with the data that `answer` gave, before it calls `on_free`, and with the arguments of the
    // client's command.
    caught((), || unsafe {
        let reply = api!(RedisModule_GetBlockedClientPrivateData(ctx)).cast::<Reply>();
        if let Some(reply) = reply.as_ref() {
            let _entered = Entered::new();
            reply.send(ctx);
        } else {
            waiting::run(ctx, argv, argc, None);
        }
    });
    raw::REDISMODULE_OK as c_int
}

unsafe extern "C" fn on_free(_ctx: *mut raw::RedisModuleCtx, data: *mut std::ffi::c_void) {
    caught((), || {
        if !data.is_null() {
            // SAFETY: made by `answer`, freed here once.
            drop(unsafe { Box::from_raw(data.cast::<Reply>()) });
        }
    });
}

/// What the filter needs to know of a client: its database, whether it is between MULTI and EXEC, and told of changes (CLIENT TRACKING).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientState {
    pub id: u64,
    pub db: i32,
    pub in_multi: bool,
    pub tracks: bool,
}

/// Asks for a client by its id; `None` for the clients that scripts and modules use internally.
pub fn state(_lock: Lock<'_>, id: u64) -> Option<ClientState> {
    // SAFETY: an all-zero structure of plain numbers is valid; the version tells the server its layout.
    unsafe {
        let mut info: raw::RedisModuleClientInfoV1 = std::mem::zeroed();
        info.version = 1;
        let found = api!(RedisModule_GetClientInfoById((&raw mut info).cast(), id));
        (found == raw::REDISMODULE_OK as c_int).then(|| ClientState {
            id,
            db: i32::from(info.db),
            in_multi: info.flags & u64::from(raw::REDISMODULE_CLIENTINFO_FLAG_MULTI) != 0,
            tracks: info.flags & u64::from(raw::REDISMODULE_CLIENTINFO_FLAG_TRACKING) != 0,
        })
    }
}

/// The name of the user that the client `id` is authenticated as; `None` where the server does not tell.
pub fn user_name(lock: Lock<'_>, id: u64) -> Option<String> {
    if !has_api!(RedisModule_GetClientUserNameById) {
        return None;
    }
    // SAFETY: the presence of the function was just checked; the context belongs to us.
    let name = unsafe { api!(RedisModule_GetClientUserNameById(lock.call_context(0), id)) };
    let name = RString::adopt(lock, name)?;
    // SAFETY: the string is alive.
    Some(String::from_utf8_lossy(unsafe { bytes(name.as_raw()) }).into_owned())
}

/// A user of the server's access control lists.
pub struct User(*mut raw::RedisModuleUser);

impl User {
    /// The user that the client `id` is authenticated as.
    pub fn of_client(lock: Lock<'_>, id: u64) -> Option<Self> {
        if !has_api!(RedisModule_GetClientUserNameById) {
            return None;
        }
        // SAFETY: the presence of the function was just checked; the context belongs to us.
        let name = unsafe { api!(RedisModule_GetClientUserNameById(lock.call_context(0), id)) };
        Self::by_name(&RString::adopt(lock, name)?)
    }

    pub(super) fn by_name(name: &RString<'_>) -> Option<Self> {
        if !has_api!(RedisModule_GetModuleUserFromUserName) {
            return None;
        }
        // SAFETY: the presence of the function was just checked.
        let user = unsafe { api!(RedisModule_GetModuleUserFromUserName(name.as_raw())) };
        (!user.is_null()).then(|| Self(user))
    }

    pub(super) fn as_raw(&self) -> *mut raw::RedisModuleUser {
        self.0
    }

    /// False if the user is switched off, which no check of rights sees. Only where [`super::rights::are_offered`].
    pub(super) fn is_on(&self, lock: Lock<'_>) -> bool {
        // SAFETY: the server's user is there as long as its lock is held; the text is a new reference.
        let rules = unsafe { RString::adopt(lock, api!(RedisModule_GetModuleUserACLString(self.0))) };
        // SAFETY: the string is alive.
        rules.is_some_and(|rules| unsafe { bytes(rules.as_raw()) }.starts_with(b"on "))
    }

    /// True if nothing is forbidden to the user. False where that cannot be told: only where [`super::rights::are_offered`].
    pub fn is_unrestricted(&self, lock: Lock<'_>) -> bool {
        if !has_api!(RedisModule_GetModuleUserACLString) {
            return false;
        }
        // SAFETY: the presence of the function was just checked; as in `is_on`.
        let rules = unsafe { RString::adopt(lock, api!(RedisModule_GetModuleUserACLString(self.0))) };
        // SAFETY: the string is alive.
        rules.is_some_and(|rules| forbids_nothing(unsafe { bytes(rules.as_raw()) }))
    }

    /// Whether the user may do that to a key: flags of key specifications. Only where [`super::rights::are_offered`].
    pub(super) fn may_access(&self, key: &RString<'_>, flags: c_int) -> bool {
        // SAFETY: the string is alive.
        let checked = unsafe { api!(RedisModule_ACLCheckKeyPermissions(self.0, key.as_raw(), flags)) };
        checked == raw::REDISMODULE_OK as c_int
    }

    /// The place of the first key of a command that the user may not access that way. Only where [`super::rights::are_offered`].
    pub(super) fn denied_key(
        &self,
        lock: Lock<'_>,
        argv: &mut [*mut raw::RedisModuleString],
    ) -> Option<usize> {
        const ACCESS: u32 = raw::REDISMODULE_CMD_KEY_ACCESS
            | raw::REDISMODULE_CMD_KEY_INSERT
            | raw::REDISMODULE_CMD_KEY_UPDATE
            | raw::REDISMODULE_CMD_KEY_DELETE;
        let (mut count, mut flags) = (0, ptr::null_mut());
        // SAFETY: the strings are alive; the two arrays are ours to free.
        unsafe {
            let positions = api!(RedisModule_GetCommandKeysWithFlags(
                lock.call_context(0),
                argv.as_mut_ptr(),
                argv.len() as c_int,
                &raw mut count,
                &raw mut flags
            ));
            if positions.is_null() {
                return None;
            }
            let mut denied = None;
            for index in 0..count.max(0) as usize {
                let (position, flags) = (*positions.add(index) as usize, *flags.add(index));
                let access = flags & ACCESS as c_int;
                let checked = api!(RedisModule_ACLCheckKeyPermissions(self.0, argv[position], access));
                if checked != raw::REDISMODULE_OK as c_int {
                    denied = Some(position);
                    break;
                }
            }
            api!(RedisModule_Free(positions.cast()));
            api!(RedisModule_Free(flags.cast()));
            denied
        }
    }

    pub(super) fn is_denied_channel(&self, channel: *mut raw::RedisModuleString) -> bool {
        has_api!(RedisModule_ACLCheckChannelPermissions)
            // SAFETY: the presence of the function was just checked; the string is alive.
            && unsafe { api!(RedisModule_ACLCheckChannelPermissions(self.0, channel, 0)) }
                != raw::REDISMODULE_OK as c_int
    }

    /// True when the user may run this command with these keys and channels.
    pub(super) fn may_run(&self, argv: &mut [*mut raw::RedisModuleString]) -> bool {
        if !has_api!(RedisModule_ACLCheckCommandPermissions) {
            return true;
        }
        // SAFETY: the presence of the function was just checked; the strings are alive.
        let checked = unsafe {
            api!(RedisModule_ACLCheckCommandPermissions(
                self.0,
                argv.as_mut_ptr(),
                argv.len() as c_int
            ))
        };
        checked == raw::REDISMODULE_OK as c_int
    }

    /// The same; `None` if the server knows no such command or subcommand.
    pub(super) fn may_run_known(&self, argv: &mut [*mut raw::RedisModuleString]) -> Option<bool> {
        // SAFETY: the number of this thread. One that was left by something else must not pass for the server's.
        unsafe { *libc::__errno_location() = 0 };
        let may = self.may_run(argv);
        let unknown = !may && io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT);
        (!unknown).then_some(may)
    }
}

/// What the server says of users who may do everything; whatever else it says may forbid something.
fn forbids_nothing(rules: &[u8]) -> bool {
    const NEEDED: [&[u8]; 3] = [b"~*", b"&*", b"+@all"];
    const HARMLESS: [&[u8]; 6] = [
        b"on",
        b"off",
        b"nopass",
        b"sanitize-payload",
        b"skip-sanitize-payload",
        b"alldbs",
    ];
    let words = || rules.split(|byte| *byte == b' ');
    let is_harmless =
        |word: &[u8]| NEEDED.contains(&word) || HARMLESS.contains(&word) || word.starts_with(b"#");
    NEEDED.iter().all(|needed| words().any(|word| word == *needed)) && words().all(is_harmless)
}

impl Drop for User {
    fn drop(&mut self) {
        // SAFETY: we own the handle; the server's user itself stays.
        unsafe { api!(RedisModule_FreeModuleUser(self.0)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_may_do_everything_is_unrestricted() {
        for rules in [
            "on nopass sanitize-payload ~* &* +@all",
            "on #5e88 skip-sanitize-payload ~* &* alldbs +@all",
        ] {
            assert!(forbids_nothing(rules.as_bytes()), "{rules}");
        }
        for rules in [
            "",
            "on nopass ~* &* -@all +get",
            "on nopass ~* &* +@all -get",
            "on nopass ~* &* +@all -@admin",
            "on nopass ~cache:* &* +@all",
            "on nopass %R~* &* +@all",
            "on nopass ~* resetchannels +@all",
            "on nopass ~* &* +@all db=0",
            "on nopass ~* &* +@all (~x +get)",
        ] {
            assert!(!forbids_nothing(rules.as_bytes()), "{rules}");
        }
    }
}
