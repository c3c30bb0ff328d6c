//! Keyspace notifications and server events, turned into plain calls.

use std::{
    cell::Cell,
    ffi::{CStr, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
};

use redis_module::raw;

use super::{
    after::DeferGuard,
    audience, fields, home,
    lock::{Entered, Lock},
    persist::Writing,
    room,
    string::{self, Held},
};
use crate::per_thread::per_thread;

per_thread! {
    /// Set while we look at keys ourselves: what the server reports of that is nobody's event.
    static MUTED: Cell<bool> = Cell::new(false);
}

/// Drops the notifications of this thread while it lives. Nested use keeps the outer one's state.
pub struct Mute(bool);

impl Mute {
    pub fn new() -> Self {
        Self(MUTED.replace(true))
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        MUTED.set(self.0);
    }
}

/// One keyspace notification.
pub struct KeyEvent<'a> {
    pub lock: Lock<'a>,
    pub db: i32,
    /// The event's name as the server reports it, e.g. `set`.
    pub name: &'a [u8],
    /// It is not among those that whoever asks for all events gets.
    pub only_by_name: bool,
    pub key: &'a [u8],
    raw: *mut raw::RedisModuleString,
}

impl KeyEvent<'_> {
    /// The key, to be kept beyond the notification.
    pub fn hold(&self) -> Held {
        // SAFETY: the server keeps it alive while it notifies.
        unsafe { Held::new(self.lock, self.raw) }
    }
}

/// The classes of notifications that can be asked for one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A read of a key that does not exist. Not part of the server's "all".
    KeyMiss,
    /// Changes that a KeysReader can see.
    Changes(Changes),
    /// Changes of streams.
    Stream,
    /// Changes of keys that are loaded when they are missed, and misses.
    Loaded,
    /// Changes that are written behind.
    Captured(Changes),
}

/// Classes of changes. The server notifies of those that somebody asked for, and each one costs every command of its class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes(i32);

impl Changes {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(raw::REDISMODULE_NOTIFY_ALL);
    /// Not part of "all": only those get them who name them. The last two are known to Redis 8.2 and later.
    const BY_NAME: [(&'static str, i32); 3] = [
        ("new", raw::REDISMODULE_NOTIFY_NEW),
        ("overwritten", raw::REDISMODULE_NOTIFY_OVERWRITTEN),
        ("type_changed", raw::REDISMODULE_NOTIFY_TYPE_CHANGED),
    ];
    /// Modules may report any name as one of these.
    const ANY_NAME: Self = Self(raw::REDISMODULE_NOTIFY_GENERIC | raw::REDISMODULE_NOTIFY_MODULE);

    /// The classes in which an event of this name, in any letter case, can come.
    pub fn of_event(name: &str) -> Self {
        let class = match name.to_ascii_lowercase().as_str() {
            "del" | "expire" | "persist" | "rename_from" | "rename_to" | "move_from" | "move_to"
            | "copy_to" | "restore" => return Self::ANY_NAME,
            "set" | "setrange" | "incrby" | "incrbyfloat" | "append" => raw::REDISMODULE_NOTIFY_STRING,
            "lpush" | "rpush" | "lpop" | "rpop" | "linsert" | "lset" | "lrem" | "ltrim" => {
                raw::REDISMODULE_NOTIFY_LIST
            }
            "sadd" | "srem" | "spop" | "sinterstore" | "sunionstore" | "sdiffstore" => {
                raw::REDISMODULE_NOTIFY_SET
            }
            "hset" | "hincrby" | "hincrbyfloat" | "hdel" => raw::REDISMODULE_NOTIFY_HASH,
            "zadd" | "zincr" | "zrem" => raw::REDISMODULE_NOTIFY_ZSET,
            "xadd" => raw::REDISMODULE_NOTIFY_STREAM,
            "expired" => raw::REDISMODULE_NOTIFY_EXPIRED,
            "evicted" => raw::REDISMODULE_NOTIFY_EVICTED,
            name => match Self::BY_NAME.iter().find(|(known, _)| *known == name) {
                Some((_, class)) => *class,
                None => return Self::ALL,
            },
        };
        Self(class).and(Self::ANY_NAME)
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// The C form of a notification function.
pub type Function = unsafe extern "C" fn(
    *mut raw::RedisModuleCtx,
    c_int,
    *const std::ffi::c_char,
    *mut raw::RedisModuleString,
) -> c_int;

/// Asks for the notifications of some classes. Cannot be taken back on most servers, so it is done when first needed, and
/// once for each: the server notifies whoever asked twice twice.
pub fn subscribe(lock: Lock<'_>, class: Class, function: Function) {
    let mask = match class {
        Class::KeyMiss => raw::REDISMODULE_NOTIFY_KEY_MISS,
        Class::Changes(changes) | Class::Captured(changes) => changes.0,
        Class::Stream => raw::REDISMODULE_NOTIFY_STREAM,
        Class::Loaded => raw::REDISMODULE_NOTIFY_ALL | raw::REDISMODULE_NOTIFY_KEY_MISS,
    };
    // SAFETY: the context names our module; the function lives as long as the module.
    unsafe {
        api!(RedisModule_SubscribeToKeyspaceEvents(
            lock.call_context(0),
            mask,
            Some(function)
        ));
    }
}

/// The frame around a notification function: proof of the lock, no panic leaves it. `concerns`: a glance at the key, which
/// calls nothing of the server; most changes end there.
///
/// # Safety
/// To be called by a notification function with the server's own arguments.
pub unsafe fn run_notification(
    ctx: *mut raw::RedisModuleCtx,
    class: c_int,
    event: *const std::ffi::c_char,
    key: *mut raw::RedisModuleString,
    concerns: impl FnOnce(Lock<'_>, &[u8]) -> bool,
    work: impl FnOnce(&KeyEvent<'_>),
) -> c_int {
    if event.is_null() || key.is_null() {
        return raw::REDISMODULE_OK as c_int;
    }
    // A panic loses this event only; the panic hook has logged it.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the server holds its lock while it notifies, and keeps the texts alive.
        unsafe {
            fields::hear(class, event);
            let (raw, key) = (key, string::bytes(key));
            let _stays = home::Stays::enter(Lock::assume(), ctx, event);
            if !concerns(Lock::assume(), key) || MUTED.get() {
                return;
            }
            let entered = Entered::new();
            let _in_the_middle = DeferGuard::enter(entered.lock());
            let by_name = |(_, known): &(_, c_int)| class & known != 0;
            work(&KeyEvent {
                lock: entered.lock(),
                db: api!(RedisModule_GetSelectedDb(ctx)),
                name: CStr::from_ptr(event).to_bytes(),
                only_by_name: Changes::BY_NAME.iter().any(by_name),
                key,
                raw,
            });
        }
    }));
    raw::REDISMODULE_OK as c_int
}

/// The C form of a server event function.
pub type ServerFunction =
    unsafe extern "C" fn(*mut raw::RedisModuleCtx, raw::RedisModuleEvent, u64, *mut c_void);

/// What the server tells about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// Master became replica or the reverse.
    RoleChanged,
    /// Data begin to be replaced: start-up, full resynchronisation, DEBUG RELOAD.
    LoadingStarted,
    /// Loading ended well.
    LoadingEnded,
    /// Loading ended badly: there are no data, or half of them.
    LoadingFailed,
    /// The server, or a process that it forked for that, begins to write a file of its data.
    WritingStarted(Writing),
    /// It has written it, well or badly.
    WritingEnded,
    /// It listens elsewhere than before.
    PortsChanged,
    /// It writes an AOF file from now on, or does not any more.
    AppendOnlyChanged,
    /// All keys of a database, or of all databases, were removed.
    Flushed(Option<i32>),
    /// Two databases have changed places.
    Swapped(i32, i32),
    /// The server ends, and does not come back.
    Closing,
    /// The server has done what its clients asked for and is about to wait for more.
    BeforeSleep,
}

/// Asks for the server events that [`ServerEvent`] names. False if the server has no `BeforeSleep` (before 7.0).
///
/// # Safety
/// `ctx` is the context of `RedisModule_OnLoad`.
pub unsafe fn subscribe_server(ctx: *mut raw::RedisModuleCtx, function: ServerFunction) -> bool {
    let subscribe = |id| {
        let event = raw::RedisModuleEvent { id, dataver: 1 };
        // SAFETY: by the caller's promise.
        let done = unsafe { api!(RedisModule_SubscribeToServerEvent(ctx, event, Some(function))) };
        done == raw::REDISMODULE_OK as c_int
    };
    subscribe(raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED);
    subscribe(raw::REDISMODULE_EVENT_LOADING);
    subscribe(raw::REDISMODULE_EVENT_PERSISTENCE);
    // Before 7.0 nobody tells.
    subscribe(raw::REDISMODULE_EVENT_CONFIG);
    subscribe(raw::REDISMODULE_EVENT_FLUSHDB);
    subscribe(raw::REDISMODULE_EVENT_SWAPDB);
    subscribe(raw::REDISMODULE_EVENT_SHUTDOWN);
    if subscribe(raw::REDISMODULE_EVENT_FORK_CHILD) {
        // SAFETY: the server holds its lock while it loads a module.
        audience::is_told(unsafe { Lock::assume() });
    }
    has_api!(RedisModule_EventLoopAdd) && subscribe(raw::REDISMODULE_EVENT_EVENTLOOP)
}

/// False for what comes all the time and is nobody's: the server has slept.
#[inline]
pub fn is_told(event: &raw::RedisModuleEvent, sub_event: u64) -> bool {
    event.id != raw::REDISMODULE_EVENT_EVENTLOOP
        || sub_event == raw::REDISMODULE_SUBEVENT_EVENTLOOP_BEFORE_SLEEP
}

/// The frame around a server event function, for what [`is_told`].
///
/// # Safety
/// To be called by a server event function with the server's own arguments.
pub unsafe fn run_server_event(
    event: raw::RedisModuleEvent,
    sub_event: u64,
    data: *mut c_void,
    work: impl FnOnce(Lock<'_>, ServerEvent),
) {
    if event.id == raw::REDISMODULE_EVENT_CONFIG {
        // SAFETY: the server holds its lock while it fires events.
        room::may_be_limited(unsafe { Lock::assume() });
    }
    // SAVE writes a file without a process of its own, and a replica may begin with that.
    let writes_itself = matches!(
        sub_event,
        raw::REDISMODULE_SUBEVENT_PERSISTENCE_SYNC_RDB_START
            | raw::REDISMODULE_SUBEVENT_PERSISTENCE_SYNC_AOF_START
    );
    if match event.id {
        raw::REDISMODULE_EVENT_FORK_CHILD
        | raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED
        | raw::REDISMODULE_EVENT_LOADING => true,
        raw::REDISMODULE_EVENT_PERSISTENCE => writes_itself,
        _ => false,
    } {
        // SAFETY: the server holds its lock while it fires events.
        audience::may_have_come(unsafe { Lock::assume() });
    }
    let what = match event.id {
        raw::REDISMODULE_EVENT_REPLICATION_ROLE_CHANGED => ServerEvent::RoleChanged,
        raw::REDISMODULE_EVENT_LOADING => match sub_event {
            raw::REDISMODULE_SUBEVENT_LOADING_ENDED => ServerEvent::LoadingEnded,
            raw::REDISMODULE_SUBEVENT_LOADING_FAILED => ServerEvent::LoadingFailed,
            _ => ServerEvent::LoadingStarted,
        },
        raw::REDISMODULE_EVENT_PERSISTENCE => match sub_event {
            raw::REDISMODULE_SUBEVENT_PERSISTENCE_RDB_START
            | raw::REDISMODULE_SUBEVENT_PERSISTENCE_SYNC_RDB_START => {
                ServerEvent::WritingStarted(Writing::Rdb)
            }
            raw::REDISMODULE_SUBEVENT_PERSISTENCE_AOF_START
            | raw::REDISMODULE_SUBEVENT_PERSISTENCE_SYNC_AOF_START => {
                ServerEvent::WritingStarted(Writing::Aof)
            }
            _ => ServerEvent::WritingEnded,
        },
        // SAFETY: that is what the server gives with this event.
        raw::REDISMODULE_EVENT_CONFIG if unsafe { names(data.cast(), b"port") } => ServerEvent::PortsChanged,
        // SAFETY: the same.
        raw::REDISMODULE_EVENT_CONFIG if unsafe { names(data.cast(), b"appendonly") } => {
            ServerEvent::AppendOnlyChanged
        }
        raw::REDISMODULE_EVENT_EVENTLOOP => ServerEvent::BeforeSleep,
        raw::REDISMODULE_EVENT_SHUTDOWN => ServerEvent::Closing,
        raw::REDISMODULE_EVENT_FLUSHDB => {
            // SAFETY: what the server passes on with this event; both its beginning and its end are of interest.
            let Some(info) = (unsafe { data.cast::<raw::RedisModuleFlushInfo>().as_ref() }) else {
                return;
            };
            ServerEvent::Flushed((info.dbnum >= 0).then_some(info.dbnum))
        }
        raw::REDISMODULE_EVENT_SWAPDB => {
            // SAFETY: as above.
            let Some(info) = (unsafe { data.cast::<raw::RedisModuleSwapDbInfo>().as_ref() }) else {
                return;
            };
            ServerEvent::Swapped(info.dbnum_first, info.dbnum_second)
        }
        _ => return,
    };
    // SAFETY: the server holds its lock while it fires events.
    let entered = unsafe { Entered::new() };
    let _ = catch_unwind(AssertUnwindSafe(|| work(entered.lock(), what)));
}

/// Whether the name of one of the options that changed ends like that.
///
/// # Safety
/// `changed` is null, or what the server gives with a change of its configuration.
unsafe fn names(changed: *const raw::RedisModuleConfigChange, end: &[u8]) -> bool {
    // SAFETY: by the caller's promise; the names live as long as the event.
    unsafe {
        changed.as_ref().is_some_and(|changed| {
            (0..changed.num_changes as usize).any(|at| {
                CStr::from_ptr(*changed.config_names.add(at))
                    .to_bytes()
                    .ends_with(end)
            })
        })
    }
}
