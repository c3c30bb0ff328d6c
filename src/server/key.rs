//! Looking at keys: type, value, existence, life.
//!
//! Nothing here is seen from outside, and no key changes its encoding. On servers before 7.2 a look deletes an expired key,
//! as any look there does. Redis 6.2 is asked for strings and lists by command, which it counts.

use std::{
    ffi::{c_int, c_void},
    mem::ManuallyDrop,
    sync::atomic::{AtomicI32, Ordering},
};

use redis_module::raw;
use serde::{Deserialize, Serialize};

use super::{
    api::Features,
    call, closing,
    entry::caught,
    events::Mute,
    fields, home,
    lock::Lock,
    own_thread, refused,
    reply::Reply,
    string::{RString, bytes},
    text,
    version::Version,
};

/// How a key is opened without any effect, where the server knows how (7.2 and later).
const QUIET: u32 = raw::REDISMODULE_READ
    | raw::REDISMODULE_OPEN_KEY_NOTOUCH
    | raw::REDISMODULE_OPEN_KEY_NONOTIFY
    | raw::REDISMODULE_OPEN_KEY_NOSTATS
    | raw::REDISMODULE_OPEN_KEY_NOEXPIRE
    | raw::REDISMODULE_OPEN_KEY_NOEFFECTS;

/// Older servers count a look for reading as a hit or a miss and report it; not so one for writing. What is written
/// that way is signalled on closing, unless the module says that it signals by itself (see [`init`]).
const QUIET_BEFORE_7_2: u32 =
    raw::REDISMODULE_READ | raw::REDISMODULE_WRITE | raw::REDISMODULE_OPEN_KEY_NOTOUCH;

/// One of the two, constant after [`init`].
static MODE: AtomicI32 = AtomicI32::new(QUIET as i32);

/// Chooses how keys are opened and read. Called once, while the module loads.
pub(super) fn init(lock: Lock<'_>, features: Features) {
    let version = Version::of_server(lock);
    text::init(lock, version);
    home::init(version);
    call::init(version);
    closing::init(version);
    own_thread::init(version);
    fields::init(version);
    refused::init(version);
    if features.quiet_open {
        return;
    }
    MODE.store(QUIET_BEFORE_7_2 as i32, Ordering::Relaxed);
}

/// The type of a key. The names are those of the `keyTypes` argument.
#[allow(clippy::unsafe_derive_deserialize)] // every value is a valid one; what is unsafe asks the server
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Empty,
    String,
    List,
    Hash,
    Set,
    Zset,
    Module,
    Stream,
}

impl Kind {
    /// All of them, by name.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("empty", Self::Empty),
        ("string", Self::String),
        ("list", Self::List),
        ("hash", Self::Hash),
        ("set", Self::Set),
        ("zset", Self::Zset),
        ("module", Self::Module),
        ("stream", Self::Stream),
    ];

    pub fn by_name(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, kind)| kind)
    }

    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("unknown", |&(name, _)| name)
    }

    pub(super) fn of(opened: &Opened<'_>) -> Self {
        // SAFETY: the key is open; the server answers "empty" for null.
        match unsafe { api!(RedisModule_KeyType(opened.0)) } as isize {
            raw::REDISMODULE_KEYTYPE_EMPTY => Self::Empty,
            raw::REDISMODULE_KEYTYPE_STRING => Self::String,
            raw::REDISMODULE_KEYTYPE_LIST => Self::List,
            raw::REDISMODULE_KEYTYPE_HASH => Self::Hash,
            raw::REDISMODULE_KEYTYPE_SET => Self::Set,
            raw::REDISMODULE_KEYTYPE_ZSET => Self::Zset,
            raw::REDISMODULE_KEYTYPE_STREAM => Self::Stream,
            _ => Self::Module,
        }
    }
}

/// The value of a key, for the types whose values functions get.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    String(Vec<u8>),
    List(Vec<Vec<u8>>),
    Hash(Vec<(Vec<u8>, Vec<u8>)>),
}

impl Value {
    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        match self {
            Self::None => 0,
            Self::String(text) => text.len(),
            Self::List(items) => items.iter().map(Vec::len).sum(),
            Self::Hash(fields) => fields.iter().map(|(name, value)| name.len() + value.len()).sum(),
        }
    }
}

/// An open key; closed on drop.
pub(super) struct Opened<'a>(*mut raw::RedisModuleKey, std::marker::PhantomData<Lock<'a>>);

impl Opened<'_> {
    pub(super) fn as_raw(&self) -> *mut raw::RedisModuleKey {
        self.0
    }

    /// A key that the server shows, and closes itself.
    ///
    /// # Safety
    /// The key is open for as long as this is used, under the server's lock.
    pub(super) unsafe fn shown(key: *mut raw::RedisModuleKey) -> ManuallyDrop<Self> {
        ManuallyDrop::new(Self(key, std::marker::PhantomData))
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: opened by us, closed once.
            unsafe { api!(RedisModule_CloseKey(self.0)) };
        }
    }
}

/// # Safety
/// `name` is alive.
pub(super) unsafe fn open(lock: Lock<'_>, db: i32, name: *mut raw::RedisModuleString) -> Opened<'_> {
    // SAFETY: by the caller's promise, under the lock.
    let key = unsafe {
        api!(RedisModule_OpenKey(
            lock.look_context(db),
            name,
            MODE.load(Ordering::Relaxed)
        ))
    };
    Opened(key.cast(), std::marker::PhantomData)
}

/// Nobody is told but of the end of one that has expired.
const AS_A_READ: u32 = raw::REDISMODULE_READ
    | raw::REDISMODULE_OPEN_KEY_NOTOUCH
    | raw::REDISMODULE_OPEN_KEY_NONOTIFY
    | raw::REDISMODULE_OPEN_KEY_NOSTATS;

const OK: c_int = raw::REDISMODULE_OK as c_int;

/// A command's clock may be that much ahead of the one that a look before it goes by.
const CLOCK_MARGIN_MS: i64 = 10;

/// How long a key is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is not there, or will not be when the command that names it runs; or it is a hash whose fields have all expired.
    Missing,
    Endless,
    /// The moment at which it expires (Unix time), and the time until then, both in milliseconds.
    Until {
        at_ms: i64,
        left_ms: i64,
    },
}

impl Life {
    /// True if the key is there and expires within so many milliseconds.
    pub fn ends_within(self, ms: i64) -> bool {
        matches!(self, Self::Until { left_ms, .. } if left_ms <= ms)
    }
}

/// How long the key is there. Where the server does not know the quiet flags, one that has expired is deleted, and that is notified of,
/// as the command would do that comes next.
///
/// # Safety
/// `name` is alive.
#[allow(clippy::inline_always)]
#[inline(always)]
pub(super) unsafe fn life_quietly(lock: Lock<'_>, db: i32, name: *mut raw::RedisModuleString) -> Life {
    // SAFETY: by the caller's promise. An expired key reads as absent.
    unsafe { life_of(lock, &open(lock, db, name)) }
}

/// Whether the key may be a hash by the time at which a command runs that is on its way whose fields have all expired.
///
/// # Safety
/// `name` is alive.
pub(super) unsafe fn may_be_emptied(lock: Lock<'_>, db: i32, name: *mut raw::RedisModuleString) -> bool {
    // SAFETY: by the caller's promise.
    unsafe { fields::may_be_emptied(lock, &open(lock, db, name)) }
}

/// Looks at a key as a command that reads does, which deletes it if it has expired and is still in memory, and tells of that. True if it
/// is there for the command that runs now, also for its last milliseconds, with something in it.
pub fn is_alive(lock: Lock<'_>, db: i32, name: &[u8]) -> bool {
    let mode = MODE.load(Ordering::Relaxed);
    let mode = if mode == QUIET as i32 {
        AS_A_READ as i32
    } else {
        mode
    };
    let name = RString::new(lock, name);
    // SAFETY: the context is selected under the lock, and the name is alive.
    let key = unsafe { api!(RedisModule_OpenKey(lock.look_context(db), name.as_raw(), mode)) };
    let opened = Opened(key.cast(), std::marker::PhantomData);
    // SAFETY: the key is open.
    !opened.0.is_null() && Kind::of(&opened) != Kind::Empty && !unsafe { fields::is_emptied(lock, &opened) }
}

/// # Safety
/// The server's lock is held, and the key belongs to what is there now.
#[allow(clippy::inline_always)]
#[inline(always)]
pub(super) unsafe fn life_of(lock: Lock<'_>, opened: &Opened<'_>) -> Life {
    // A look for writing at a key that is not there gives a key, too.
    let may_be_empty = MODE.load(Ordering::Relaxed) != QUIET as i32;
    if opened.0.is_null() || (may_be_empty && Kind::of(opened) == Kind::Empty) {
        return Life::Missing;
    }
    // SAFETY: by the caller's promise.
    if unsafe { fields::is_emptied(lock, opened) } {
        return Life::Missing;
    }
    let knows_moments = has_api!(RedisModule_GetAbsExpire);
    // SAFETY: the key is open.
    unsafe {
        if !knows_moments {
            // Before 6.2.2.
            return match api!(RedisModule_GetExpire(opened.0)) {
                left if left == i64::from(raw::REDISMODULE_NO_EXPIRE) => Life::Endless,
                left_ms => Life::Until {
                    at_ms: left_ms + api!(RedisModule_Milliseconds()),
                    left_ms,
                },
            };
        }
        let at_ms = api!(RedisModule_GetAbsExpire(opened.0));
        if at_ms == i64::from(raw::REDISMODULE_NO_EXPIRE) {
            return Life::Endless;
        }
        let left_ms = at_ms - api!(RedisModule_Milliseconds());
        if left_ms > CLOCK_MARGIN_MS {
            Life::Until { at_ms, left_ms }
        } else {
            Life::Missing
        }
    }
}

/// The Unix time in milliseconds.
pub fn now_ms(_lock: Lock<'_>) -> i64 {
    // SAFETY: takes no argument.
    unsafe { api!(RedisModule_Milliseconds()) }
}

/// The same as the server has it for the command that runs, where it tells (7.2): without a look at the clock.
pub fn command_ms(lock: Lock<'_>) -> i64 {
    if !has_api!(RedisModule_CachedMicroseconds) {
        return now_ms(lock);
    }
    // SAFETY: the presence of the function was just checked; it takes no argument.
    unsafe { api!(RedisModule_CachedMicroseconds()) / 1000 }
}

/// How long a key is there, on any server.
pub fn life(lock: Lock<'_>, db: i32, name: &[u8]) -> Life {
    let _mute = Mute::new();
    let name = RString::new(lock, name);
    // SAFETY: the string lives to the end of this function.
    unsafe { life_of(lock, &open(lock, db, name.as_raw())) }
}

/// The type of a key now.
pub fn kind(lock: Lock<'_>, db: i32, name: &[u8]) -> Kind {
    let _mute = Mute::new();
    let name = RString::new(lock, name);
    // SAFETY: the string lives to the end of this function.
    Kind::of(&unsafe { open(lock, db, name.as_raw()) })
}

/// There is a hash without a field, for the moment in which the server tells that the last ones have expired: it is deleted next.
pub fn is_left_empty(lock: Lock<'_>, db: i32, name: &[u8]) -> bool {
    let _mute = Mute::new();
    let name = RString::new(lock, name);
    // SAFETY: the string lives to the end of this function; the key is open.
    unsafe {
        let opened = open(lock, db, name.as_raw());
        Kind::of(&opened) == Kind::Hash && api!(RedisModule_ValueLength(opened.0)) == 0
    }
}

/// How many entries a stream holds; 0 if the key is no stream.
pub fn stream_length(lock: Lock<'_>, db: i32, name: &[u8]) -> u64 {
    let _mute = Mute::new();
    let name = RString::new(lock, name);
    // SAFETY: the string lives to the end of this function.
    let opened = unsafe { open(lock, db, name.as_raw()) };
    match Kind::of(&opened) {
        // SAFETY: the key is open.
        Kind::Stream => unsafe { api!(RedisModule_ValueLength(opened.0)) as u64 },
        _ => 0,
    }
}

/// The type and the value of a key now. An expired key is empty.
pub fn read(lock: Lock<'_>, db: i32, name: &[u8]) -> (Kind, Value) {
    let _mute = Mute::new();
    let string = RString::new(lock, name);
    // SAFETY: the string lives to the end of this function.
    let opened = unsafe { open(lock, db, string.as_raw()) };
    let kind = Kind::of(&opened);
    let value = value(lock, kind, &opened).unwrap_or_else(|| {
        // A command may find that the key has expired by now.
        drop(opened);
        by_command(lock, db, name, kind)
    });
    (kind, value)
}

/// The value of an open key; `None` if the server must be asked by command.
pub(super) fn value(lock: Lock<'_>, kind: Kind, opened: &Opened<'_>) -> Option<Value> {
    match kind {
        // SAFETY: the key is open and a string.
        Kind::String if text::can_peek() => unsafe { text::peek(opened.0) }.map(Value::String),
        Kind::List if has_api!(RedisModule_ListGet) => Some(Value::List(list_value(lock, opened))),
        Kind::String | Kind::List => None,
        Kind::Hash => Some(Value::Hash(hash_value(opened))),
        _ => Some(Value::None),
    }
}

fn list_value(lock: Lock<'_>, opened: &Opened<'_>) -> Vec<Vec<u8>> {
    // SAFETY: the key is open and a list; null marks the end. Each element is a new string of ours.
    let element = |index| unsafe {
        RString::adopt(lock, api!(RedisModule_ListGet(opened.0, index)))
            .map(|element| bytes(element.as_raw()).to_vec())
    };
    (0..).map_while(element).collect()
}

/// For servers that give modules no access to elements of lists (before 7.0), or to strings without changing them
/// ([`text`]). No value if the server does not answer: the key belongs to another shard by now, or the command has
/// another name.
pub(super) fn by_command(lock: Lock<'_>, db: i32, name: &[u8], kind: Kind) -> Value {
    let use_before = Use::of(lock, db, name);
    let words: &[&[u8]] = match kind {
        Kind::String => &[b"GET", name],
        _ => &[b"LRANGE", name, b"0", b"-1"],
    };
    let argv: Vec<_> = words.iter().map(|word| word.to_vec()).collect();
    let value = match refused::question(lock, Features::default(), db, &argv) {
        Reply::Bulk(text) => Value::String(text),
        Reply::Array(items) => {
            let text = |item| match item {
                Reply::Bulk(text) => Some(text),
                _ => None,
            };
            Value::List(items.into_iter().filter_map(text).collect())
        }
        _ => Value::None,
    };
    use_before.restore(lock, db, name);
    value
}

/// How recently and how often a key was used, by which the server chooses what to evict.
enum Use {
    Unknown,
    /// Milliseconds ago.
    Last(i64),
    Often(i64),
}

impl Use {
    fn of(lock: Lock<'_>, db: i32, name: &[u8]) -> Self {
        let known = has_api!(RedisModule_GetLRU) && has_api!(RedisModule_GetLFU);
        let name = RString::new(lock, name);
        let mut figure = 0;
        // SAFETY: the string lives to the end of this function; the server writes one number.
        unsafe {
            let opened = open(lock, db, name.as_raw());
            if opened.0.is_null() || !known {
                Self::Unknown
            } else if api!(RedisModule_GetLFU(opened.0, &raw mut figure)) == OK && figure >= 0 {
                Self::Often(figure)
            } else if api!(RedisModule_GetLRU(opened.0, &raw mut figure)) == OK && figure >= 0 {
                Self::Last(figure)
            } else {
                Self::Unknown
            }
        }
    }

    fn restore(self, lock: Lock<'_>, db: i32, name: &[u8]) {
        let name = RString::new(lock, name);
        // SAFETY: as in `of`; the functions of one pair come with those of the other.
        unsafe {
            let opened = open(lock, db, name.as_raw());
            match self {
                Self::Last(idle_ms) if !opened.0.is_null() => api!(RedisModule_SetLRU(opened.0, idle_ms)),
                Self::Often(frequency) if !opened.0.is_null() => {
                    api!(RedisModule_SetLFU(opened.0, frequency))
                }
                _ => OK,
            };
        }
    }
}

fn hash_value(opened: &Opened<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    unsafe extern "C" fn collect(
        _key: *mut raw::RedisModuleKey,
        field: *mut raw::RedisModuleString,
        value: *mut raw::RedisModuleString,
        pairs: *mut c_void,
    ) {
        caught((), || {
            // SAFETY: the server passes on the pointer given below, and live strings.
            unsafe {
                if let Some(pairs) = pairs.cast::<Vec<(Vec<u8>, Vec<u8>)>>().as_mut() {
                    let value = if value.is_null() { &[][..] } else { bytes(value) };
                    pairs.push((bytes(field).to_vec(), value.to_vec()));
                }
            }
        });
    }
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    // SAFETY: the cursor is freed below; the vector outlives the calls.
    unsafe {
        let cursor = api!(RedisModule_ScanCursorCreate());
        while api!(RedisModule_ScanKey(
            opened.0,
            cursor,
            Some(collect),
            (&raw mut pairs).cast()
        )) != 0
        {}
        api!(RedisModule_ScanCursorDestroy(cursor));
    }
    pairs
}
