//! The names of events of which a change may be: the server's own ones, and whatever modules call theirs.

use std::borrow::Cow;

/// The usual names need no allocation.
const EVENTS: [&str; 42] = [
    "set",
    "hset",
    "del",
    "hdel",
    "hincrby",
    "hincrbyfloat",
    "incrby",
    "incrbyfloat",
    "append",
    "setrange",
    "lpush",
    "rpush",
    "lpop",
    "rpop",
    "lset",
    "lrem",
    "linsert",
    "ltrim",
    "sadd",
    "srem",
    "spop",
    "sinterstore",
    "sunionstore",
    "sdiffstore",
    "zadd",
    "zincr",
    "zrem",
    "zremrangebyscore",
    "zremrangebyrank",
    "zremrangebylex",
    "zpopmin",
    "zpopmax",
    "zunionstore",
    "zinterstore",
    "zdiffstore",
    "rename_from",
    "rename_to",
    "restore",
    "copy_to",
    "move_to",
    "move_from",
    "xadd",
];

/// The name of an event.
pub fn event_name(name: &[u8]) -> Cow<'static, str> {
    match usual_name(name) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(String::from_utf8_lossy(name).into_owned()),
    }
}

/// The same, if it is one of the server's own that change a value.
pub fn usual_name(name: &[u8]) -> Option<&'static str> {
    EVENTS.iter().find(|known| known.as_bytes() == name).copied()
}
