//! A registration's position in a stream, kept by the server as a consumer group: reading, acknowledging, trimming.
//! Contract: `readers-and-events.md` 6.4 to 6.6, 6.10.
//!
//! All of it are ordinary commands, so replicas and files know the position. Called under the server's lock.

use super::entries::{Entry, EntryId, entries};
use crate::redis::{
    api::{self, Features},
    call::call,
    events::Mute,
    lock::Lock,
    reply::Reply,
};

/// The names of 1.2, so that its positions go on.
const GROUP: &str = "__gears_consumer_group__";
const CONSUMER: &[u8] = b"__gears_client__";
/// Registrations read database 0.
const DB: i32 = 0;

/// Which entries to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Portion {
    /// All that were delivered and not acknowledged.
    Recovery,
    /// That many new ones at most.
    New(u64),
}

/// What was read.
#[derive(Default)]
pub struct Read {
    pub entries: Vec<Entry>,
    /// There is no such stream any more.
    pub gone: bool,
}

/// The consumer group of one registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(Vec<u8>);

impl Group {
    /// `place`: 0 for the only registration on its streams; others have numbers, so that each sees all entries.
    pub fn new(place: usize) -> Self {
        Self(if place == 0 {
            GROUP.into()
        } else {
            format!("{GROUP}:{place}").into()
        })
    }

    /// Reads entries of a stream; they count as delivered. A missing group is made, from the stream's beginning.
    pub fn read(&self, lock: Lock<'_>, features: Features, key: &[u8], portion: Portion) -> Read {
        let count = match portion {
            Portion::Recovery => None,
            Portion::New(count) => Some(count.to_string()),
        };
        let mut words: Vec<&[u8]> = vec![b"XREADGROUP", b"GROUP", &self.0, CONSUMER];
        if let Some(count) = &count {
            words.extend([b"COUNT", count.as_bytes()]);
        }
        let from: &[u8] = if count.is_some() { b">" } else { b"0" };
        words.extend([&b"STREAMS"[..], key, from]);
        let mut reply = run(lock, features, &words);
        if is_error(&reply, b"NOGROUP") {
            let made = run(lock, features, &[b"XGROUP", b"CREATE", key, &self.0, b"0"]);
            if let Reply::Error(_) = made {
                return Read {
                    gone: true,
                    ..Read::default()
                };
            }
            reply = run(lock, features, &words);
        }
        match reply {
            Reply::Array(mut streams) => {
                let stream = match streams.pop() {
                    Some(Reply::Array(mut parts)) => parts.pop(),
                    _ => None,
                };
                Read {
                    entries: entries(stream.unwrap_or(Reply::Null)),
                    gone: false,
                }
            }
            Reply::Error(text) => {
                log(key, "read", &text);
                Read {
                    gone: true,
                    ..Read::default()
                }
            }
            _ => Read::default(),
        }
    }

    /// Acknowledges entries.
    pub fn acknowledge(&self, lock: Lock<'_>, features: Features, key: &[u8], ids: &[Vec<u8>]) {
        if ids.is_empty() {
            return;
        }
        let mut words: Vec<&[u8]> = vec![b"XACK", key, &self.0];
        words.extend(ids.iter().map(Vec::as_slice));
        if let Reply::Error(text) = run(lock, features, &words) {
            log(key, "acknowledge entries of", &text);
        }
    }
}

/// How many entries a stream holds; 0 if it is gone.
pub fn length(lock: Lock<'_>, features: Features, key: &[u8]) -> u64 {
    match run(lock, features, &[b"XLEN", key]) {
        Reply::Int(length) => length.unsigned_abs(),
        _ => 0,
    }
}

/// Removes all entries up to `last`.
pub fn trim(lock: Lock<'_>, features: Features, key: &[u8], last: EntryId) {
    let first = last.next().to_string();
    if let Reply::Error(text) = run(lock, features, &[b"XTRIM", key, b"MINID", first.as_bytes()]) {
        log(key, "trim", &text);
    }
}

fn run(lock: Lock<'_>, features: Features, words: &[&[u8]]) -> Reply {
    // What this causes is nobody's event.
    let _mute = Mute::new();
    let argv: Vec<_> = words.iter().map(|word| word.to_vec()).collect();
    call(lock, features, DB, &argv)
}

fn is_error(reply: &Reply, code: &[u8]) -> bool {
    matches!(reply, Reply::Error(text) if text.starts_with(code))
}

fn log(key: &[u8], action: &str, error: &[u8]) {
    api::log_warning(&format!(
        "could not {action} the stream {}: {}",
        String::from_utf8_lossy(key),
        String::from_utf8_lossy(error)
    ));
}
