//! Storing whole values natively: without the way of a command, and without the signal that a key was modified, which whoever
//! stores gives when it is time for it ([`signal_modified`]). Under the server's lock.

use std::{
    ffi::{CStr, c_int},
    ptr,
};

use redis_module::raw;

use super::{
    api::{self, Features},
    audience, bus,
    call::call,
    call_reply::{CallReply, is_foreign},
    command::Command,
    events::Mute,
    fields, filter,
    key::{self, Life, Opened},
    lock::Lock,
    reply::Reply,
    room::{self, Room},
    string::{Held, RString},
};

/// A value as a key can hold it. Containers are not empty.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    String(Vec<u8>),
    /// In its order; fields are distinct.
    Hash(Vec<(Vec<u8>, Vec<u8>)>),
    List(Vec<Vec<u8>>),
    Set(Vec<Vec<u8>>),
    /// Members are distinct, scores are numbers.
    Sorted(Vec<(Vec<u8>, f64)>),
}

impl Content {
    /// The name of the command that makes it.
    pub fn command(&self) -> &'static [u8] {
        self.made_by().0.to_bytes()
    }

    /// The command that makes it, the class and the name of its event.
    fn made_by(&self) -> (&'static CStr, c_int, &'static CStr) {
        match self {
            Self::String(_) => (c"SET", raw::REDISMODULE_NOTIFY_STRING, c"set"),
            Self::Hash(_) => (c"HSET", raw::REDISMODULE_NOTIFY_HASH, c"hset"),
            Self::List(_) => (c"RPUSH", raw::REDISMODULE_NOTIFY_LIST, c"rpush"),
            Self::Set(_) => (c"SADD", raw::REDISMODULE_NOTIFY_SET, c"sadd"),
            Self::Sorted(_) => (c"ZADD", raw::REDISMODULE_NOTIFY_ZSET, c"zadd"),
        }
    }

    /// The words of that command behind the key.
    fn words(&self) -> Vec<Vec<u8>> {
        match self {
            Self::String(text) => vec![text.clone()],
            Self::Hash(fields) => fields
                .iter()
                .flat_map(|(name, value)| [name.clone(), value.clone()])
                .collect(),
            Self::List(items) | Self::Set(items) => items.clone(),
            Self::Sorted(members) => members
                .iter()
                .flat_map(|(member, score)| [score_text(*score), member.clone()])
                .collect(),
        }
    }
}

fn score_text(score: f64) -> Vec<u8> {
    if score.is_infinite() {
        return if score > 0.0 {
            b"inf".to_vec()
        } else {
            b"-inf".to_vec()
        };
    }
    // The shortest text that reads back as the same number.
    format!("{score:?}").into_bytes()
}

/// A key that is open for a value to be put there. Nothing may happen to the key meanwhile.
pub struct Open<'a> {
    lock: Lock<'a>,
    db: i32,
    name: RString<'a>,
    /// Null when it is closed.
    key: *mut raw::RedisModuleKey,
}

impl<'a> Open<'a> {
    pub fn new(lock: Lock<'a>, db: i32, name: &[u8]) -> Self {
        Self::named(lock, db, RString::new(lock, name))
    }

    /// The same for a name that the server has by now.
    pub fn of_held(lock: Lock<'a>, db: i32, name: &Held) -> Self {
        Self::named(lock, db, RString::of_held(lock, name))
    }

    fn named(lock: Lock<'a>, db: i32, name: RString<'a>) -> Self {
        Self {
            // SAFETY: the name is alive as long as the key is open.
            key: unsafe { open(lock, db, &name) },
            lock,
            db,
            name,
        }
    }

    /// True if it holds something. What has expired is gone.
    fn holds_something(&self) -> bool {
        // SAFETY: the key is open.
        unsafe { api!(RedisModule_KeyType(self.key)) as isize != raw::REDISMODULE_KEYTYPE_EMPTY }
    }

    /// True if it holds something for longer than this moment: whoever loads a key in its last milliseconds found it missing
    /// ([`key::life`]), and what it held then is no newer value.
    pub fn is_there(&self) -> bool {
        // SAFETY: the key is open, and is closed by `self`.
        self.holds_something()
            && unsafe { key::life_of(self.lock, &Opened::shown(self.key)) } != Life::Missing
    }

    /// Puts a value in the place of whatever the key holds, with the moment (Unix time in milliseconds) at which it expires. It
    /// goes to replicas and files as one step, and fires its usual events.
    pub fn put(mut self, content: &Content, expires_ms: Option<i64>) {
        let Some(existed) = self.place(content, expires_ms) else {
            return;
        };
        let (lock, db, name) = (self.lock, self.db, &self.name);
        let (_, class, event) = content.made_by();
        if audience::is_there(lock) {
            hand_on(lock, db, name, existed, content, expires_ms);
        } else {
            count(lock, db);
        }
        if !matches!(content, Content::Set(_)) {
            notify(lock, db, class, event, name);
        }
        if expires_ms.is_some() {
            notify(lock, db, raw::REDISMODULE_NOTIFY_GENERIC, c"expire", name);
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.key.is_null() {
            // SAFETY: opened by us, closed once.
            unsafe { api!(RedisModule_CloseKey(self.key)) };
        }
    }
}

/// Puts a value into a key, see [`Open::put`].
pub fn put(lock: Lock<'_>, db: i32, name: &[u8], content: &Content, expires_ms: Option<i64>) {
    Open::new(lock, db, name).put(content, expires_ms);
}

/// The server counts by what modules hand on how much has changed since it wrote its last RDB file. Where nobody hears of it, that
/// the context has no command to be handed on does not matter: the server counts it, and looks no further.
fn count(lock: Lock<'_>, db: i32) {
    // SAFETY: the context is selected under the lock.
    unsafe { api!(RedisModule_ReplicateVerbatim(lock.call_context(db))) };
}

/// Sends a value that was put there to replicas and files. `existed`: the key held something before.
fn hand_on(
    lock: Lock<'_>,
    db: i32,
    key: &RString<'_>,
    existed: bool,
    content: &Content,
    expires_ms: Option<i64>,
) {
    let (command, ..) = content.made_by();
    let words: Vec<RString<'_>> = content
        .words()
        .iter()
        .map(|word| RString::new(lock, word))
        .collect();
    let mut argv = vec![key.as_raw()];
    argv.extend(words.iter().map(RString::as_raw));
    let expires = expires_ms.map(|ms| RString::new(lock, ms.to_string().as_bytes()));
    let is_string = matches!(content, Content::String(_));
    if existed && !is_string {
        replicate(lock, db, c"DEL", &argv[..1]);
    }
    if let (true, Some(expires)) = (is_string, &expires) {
        let option = RString::new(lock, b"PXAT");
        argv.extend([option.as_raw(), expires.as_raw()]);
        replicate(lock, db, command, &argv);
    } else {
        replicate(lock, db, command, &argv);
        if let Some(expires) = &expires {
            replicate(lock, db, c"PEXPIREAT", &[key.as_raw(), expires.as_raw()]);
        }
    }
}

/// Puts a value there for a moment: nobody else hears of it, but for what the server tells of a set, which has no native way.
pub fn put_quietly(lock: Lock<'_>, db: i32, name: &[u8], content: &Content) {
    let _mute = Mute::new();
    Open::new(lock, db, name).place(content, None);
}

/// Takes a hash away that has nothing in it but fields that have expired.
pub fn delete_emptied(lock: Lock<'_>, db: i32, name: &[u8]) {
    let open = Open::new(lock, db, name);
    // SAFETY: the key is open, and is closed by `open`.
    let is_emptied = unsafe { fields::is_emptied(lock, &Opened::shown(open.key)) };
    drop(open);
    if is_emptied {
        delete(lock, db, name);
    }
}

/// Takes away what [`put_quietly`] put there.
pub fn take_quietly(lock: Lock<'_>, db: i32, name: &[u8]) {
    let _mute = Mute::new();
    let opened = Open::new(lock, db, name);
    // SAFETY: the key is open for writing.
    unsafe { api!(RedisModule_DeleteKey(opened.key)) };
}

/// Takes a value away for good.
pub fn delete(lock: Lock<'_>, db: i32, name: &[u8]) {
    let key = RString::new(lock, name);
    take_quietly(lock, db, name);
    replicate(lock, db, c"DEL", &[key.as_raw()]);
    notify(lock, db, raw::REDISMODULE_NOTIFY_GENERIC, c"del", &key);
}

/// Tells clients that watch or cache the key that it was modified.
pub fn signal_modified(lock: Lock<'_>, db: i32, name: &[u8]) {
    let key = RString::new(lock, name);
    // SAFETY: the name is alive.
    unsafe { signal(lock, db, key.as_raw()) };
}

/// The same for a key that stands among the words of a command.
pub fn signal_modified_of(command: &Command<'_>, db: i32, name: &[u8]) {
    // Behind the names of the proxy command and of the command itself.
    let (lock, words) = (command.lock(), command.argv().skip(2));
    match words.iter().position(|word| word == name) {
        // SAFETY: the server keeps the words while it calls us back for the command.
        Some(place) => unsafe { signal(lock, db, words.as_raw()[place]) },
        None => signal_modified(lock, db, name),
    }
}

/// # Safety
/// `name` is alive.
unsafe fn signal(lock: Lock<'_>, db: i32, name: *mut raw::RedisModuleString) {
    // SAFETY: the context is selected under the lock; by the caller's promise.
    unsafe { api!(RedisModule_SignalModifiedKey(lock.call_context(db), name)) };
}

/// Whether a value may be stored now: not above `maxmemory`, unless the server evicts.
pub fn has_room(lock: Lock<'_>, features: Features) -> bool {
    let check = || room::check(lock, features, lock.server_flags(), b"SET");
    room::is_unlimited(lock) || matches!(check(), Room::Enough | Room::AfterEviction)
}

/// False if the key's slot is served by another node of the cluster. For keys that are not there.
pub fn is_local(lock: Lock<'_>, features: Features, db: i32, name: &[u8]) -> bool {
    if !bus::is_cluster_node(lock) {
        return true;
    }
    // Does nothing to a key that is not there, and is not counted as a look at it.
    let words = [b"PERSIST".to_vec(), name.to_vec()];
    // Any other error says nothing of that: the cluster is down, the command has another name here.
    !is_foreign(&call(lock, features, db, &words))
}

/// What a client hears whose key is served elsewhere by now: where, or that it is on the way. The server says that to no client
/// that a module blocks.
pub fn redirection(lock: Lock<'_>, features: Features, slot: u16) -> Reply {
    const ON_ITS_WAY: &str = "TRYAGAIN Multiple keys request during rehashing of slot";
    let ask = |word: &[u8]| call(lock, features, 0, &[b"CLUSTER".to_vec(), word.to_vec()]);
    let me = match ask(b"MYID") {
        Reply::Bulk(id) | Reply::Status(id) => id,
        _ => Vec::new(),
    };
    let Reply::Array(ranges) = ask(b"SLOTS") else {
        return Reply::error(ON_ITS_WAY);
    };
    for range in &ranges {
        let Reply::Array(range) = range else { continue };
        let [Reply::Int(first), Reply::Int(last), Reply::Array(owner), ..] = range.as_slice() else {
            continue;
        };
        if !(*first..=*last).contains(&i64::from(slot)) {
            continue;
        }
        let [host, Reply::Int(port), Reply::Bulk(id), ..] = owner.as_slice() else {
            break;
        };
        // Who asks for a slot that is coming here (ASKING) would be sent to and fro.
        if *id == me || is_coming(&ask(b"NODES"), slot) {
            break;
        }
        let host = match host {
            Reply::Bulk(host) => String::from_utf8_lossy(host).into_owned(),
            _ => String::new(),
        };
        return Reply::error(format!("MOVED {slot} {host}:{port}"));
    }
    Reply::error(ON_ITS_WAY)
}

/// Whether a slot is on its way to this node, by the reply of CLUSTER NODES.
fn is_coming(nodes: &Reply, slot: u16) -> bool {
    let text = nodes.as_text().unwrap_or_default();
    let mut lines = text.split(|&byte| byte == b'\n');
    let myself = lines.find(|line| line.windows(6).any(|part| part == b"myself"));
    let coming = format!("[{slot}-<-");
    myself.is_some_and(|line| line.windows(coming.len()).any(|part| part == coming.as_bytes()))
}

impl Open<'_> {
    /// Whether the key held something before; `None`: the server has refused the value, and the key holds nothing. It is closed then.
    fn place(&mut self, content: &Content, expires_ms: Option<i64>) -> Option<bool> {
        let (lock, db) = (self.lock, self.db);
        let string = |bytes: &[u8]| RString::new(lock, bytes);
        let knows_moments = has_api!(RedisModule_SetAbsExpire);
        let existed = self.holds_something();
        // SAFETY: the key is open for writing while it is used, the strings outlive the calls, which copy them or count their
        // references.
        unsafe {
            let mut opened = std::mem::replace(&mut self.key, ptr::null_mut());
            api!(RedisModule_DeleteKey(opened));
            match content {
                Content::String(text) => {
                    api!(RedisModule_StringSet(opened, string(text).as_raw()));
                }
                Content::Hash(fields) => {
                    for (name, value) in fields {
                        api!(RedisModule_HashSet(
                            opened,
                            raw::REDISMODULE_HASH_NONE as c_int,
                            string(name).as_raw(),
                            string(value).as_raw(),
                            ptr::null_mut::<raw::RedisModuleString>()
                        ));
                    }
                }
                Content::List(items) => {
                    for item in items {
                        api!(RedisModule_ListPush(
                            opened,
                            raw::REDISMODULE_LIST_TAIL as c_int,
                            string(item).as_raw()
                        ));
                    }
                }
                Content::Sorted(members) => {
                    for (member, score) in members {
                        api!(RedisModule_ZsetAdd(
                            opened,
                            *score,
                            string(member).as_raw(),
                            ptr::null_mut()
                        ));
                    }
                }
                Content::Set(members) => {
                    // The module API has no access to sets.
                    api!(RedisModule_CloseKey(opened));
                    if !add_members(lock, db, &self.name, members) {
                        return None;
                    }
                    opened = open(lock, db, &self.name);
                }
            }
            if let Some(ms) = expires_ms {
                if knows_moments {
                    api!(RedisModule_SetAbsExpire(opened, ms));
                } else {
                    api!(RedisModule_SetExpire(
                        opened,
                        ms - api!(RedisModule_Milliseconds())
                    ));
                }
            }
            api!(RedisModule_CloseKey(opened));
            Some(existed)
        }
    }
}

/// # Safety
/// As of `RM_OpenKey`.
unsafe fn open(lock: Lock<'_>, db: i32, key: &RString<'_>) -> *mut raw::RedisModuleKey {
    // SAFETY: by the caller's promise; the context is selected under the lock.
    unsafe {
        api!(RedisModule_OpenKey(
            lock.call_context(db),
            key.as_raw(),
            (raw::REDISMODULE_READ | raw::REDISMODULE_WRITE) as c_int
        ))
        .cast()
    }
}

/// False if the server has refused it.
fn add_members(lock: Lock<'_>, db: i32, key: &RString<'_>, members: &[Vec<u8>]) -> bool {
    let members: Vec<RString<'_>> = members.iter().map(|member| RString::new(lock, member)).collect();
    let mut words = vec![key.as_raw()];
    words.extend(members.iter().map(RString::as_raw));
    // SAFETY: the context is selected under the lock; without `!` nothing is replicated. The reply is nobody else's.
    let reply = filter::unseen(lock, || unsafe {
        CallReply::new(api!(RedisModule_Call(
            lock.call_context(db),
            c"SADD".as_ptr(),
            c"v".as_ptr(),
            words.as_ptr(),
            words.len()
        )))
    });
    let is_made = !reply.is_error();
    if !is_made {
        let said = reply.into_reply();
        let said = String::from_utf8_lossy(said.as_error().unwrap_or_default()).into_owned();
        api::log_warning(&format!(
            "the server has not made a set of what was loaded: {said}"
        ));
    }
    is_made
}

fn replicate(lock: Lock<'_>, db: i32, command: &CStr, words: &[*mut raw::RedisModuleString]) {
    // SAFETY: the context is selected under the lock; the strings are alive.
    unsafe {
        api!(RedisModule_Replicate(
            lock.call_context(db),
            command.as_ptr(),
            c"v".as_ptr(),
            words.as_ptr(),
            words.len()
        ));
    }
}

fn notify(lock: Lock<'_>, db: i32, class: c_int, event: &CStr, key: &RString<'_>) {
    // SAFETY: the context is selected under the lock; the texts are alive.
    unsafe {
        api!(RedisModule_NotifyKeyspaceEvent(
            lock.call_context(db),
            class,
            event.as_ptr(),
            key.as_raw()
        ));
    }
}
