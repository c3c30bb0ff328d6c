//! A registration's position in a stream, kept by the server as a consumer group: reading, acknowledging, trimming.
//! Contract: docs/contract/readers-and-events.md 6.4 to 6.6, 6.10.
//!
//! All of it are ordinary commands, so replicas and files know the position. What may be removed, and whether there is more
//! to read, is asked of the server each time: a key can hold another stream than it did a moment ago. Called under the
//! server's lock.

use std::fmt::Write;

use smallvec::SmallVec;

use super::{
    DB,
    entries::{Entry, EntryId, entries_of_one},
};
use crate::server::{
    api::{self, Features},
    call::perform,
    events::Mute,
    key::{self, Kind},
    lock::Lock,
    reply::Reply,
    string::{AnyWord, FixedWord, Word},
};

/// The names of 1.2, so that its positions go on.
const GROUP: &str = "__gears_consumer_group__";
const CONSUMER: &[u8] = b"__gears_client__";

/// The words of a command; most have no more.
type Words<'a> = SmallVec<[AnyWord<'a>; 12]>;

/// What each batch says to the server.
static XREADGROUP: FixedWord = FixedWord::new(b"XREADGROUP");
static READS_GROUP: FixedWord = FixedWord::new(b"GROUP");
static FIRST_GROUP: FixedWord = FixedWord::new(GROUP.as_bytes());
static IS_CONSUMER: FixedWord = FixedWord::new(CONSUMER);
static COUNT: FixedWord = FixedWord::new(b"COUNT");
static STREAMS: FixedWord = FixedWord::new(b"STREAMS");
static NEW_ONES: FixedWord = FixedWord::new(b">");
static XACK: FixedWord = FixedWord::new(b"XACK");
static XTRIM: FixedWord = FixedWord::new(b"XTRIM");
static MINID: FixedWord = FixedWord::new(b"MINID");

/// What an id of an entry takes at most: two numbers.
const AN_ID: usize = 41;

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
    /// The server did not let it be read, and says why: a cluster that is down, too few replicas, a disk that is full.
    pub refused: Option<Vec<u8>>,
    /// The group had to be made, so nothing that was known of the stream holds: how many entries there are.
    pub made: Option<u64>,
}

impl Read {
    fn failed(lock: Lock<'_>, key: &[u8], error: Vec<u8>) -> Self {
        let gone = key::kind(lock, DB, key) != Kind::Stream;
        Self {
            gone,
            refused: (!gone).then_some(error),
            ..Self::default()
        }
    }
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

    fn word(&self) -> AnyWord<'_> {
        if self.0 == GROUP.as_bytes() {
            AnyWord::Fixed(&FIRST_GROUP)
        } else {
            AnyWord::Bytes(&self.0)
        }
    }

    /// Reads entries of a stream; they count as delivered. A missing group is made, from the stream's beginning.
    pub fn read(&self, lock: Lock<'_>, features: Features, key: &[u8], portion: Portion) -> Read {
        let count = match portion {
            Portion::Recovery => None,
            Portion::New(count) => Some(count.to_string()),
        };
        let fixed = AnyWord::Fixed;
        let mut words = Words::from_slice(&[
            fixed(&XREADGROUP),
            fixed(&READS_GROUP),
            self.word(),
            fixed(&IS_CONSUMER),
        ]);
        if let Some(count) = &count {
            words.extend([fixed(&COUNT), AnyWord::Bytes(count.as_bytes())]);
        }
        let from = count.as_ref().map_or(AnyWord::Bytes(b"0"), |_| fixed(&NEW_ONES));
        words.extend([fixed(&STREAMS), AnyWord::Bytes(key), from]);
        let mut reply = run(lock, features, &words);
        let mut made = None;
        if reply.error_code() == Some(b"NOGROUP") {
            let create: [&[u8]; 5] = [b"XGROUP", b"CREATE", key, &self.0, b"0"];
            let created = run(lock, features, &create);
            if let Reply::Error(text) = created {
                return Read::failed(lock, key, text);
            }
            made = Some(length(lock, key));
            reply = run(lock, features, &words);
        }
        match entries_of_one(reply) {
            Ok(entries) => Read {
                entries,
                made,
                ..Read::default()
            },
            Err(text) => Read::failed(lock, key, text),
        }
    }

    /// How far the group is with a stream; `None` if it has not begun.
    pub fn standing(
        &self,
        lock: Lock<'_>,
        features: Features,
        key: &[u8],
        groups: &Groups,
    ) -> Option<Standing> {
        let about = groups.find(&self.0)?;
        let number = |name| {
            about
                .field(name)?
                .as_int()
                .and_then(|number| u64::try_from(number).ok())
        };
        let delivered = about
            .field(b"last-delivered-id")?
            .as_text()
            .and_then(EntryId::parse)?;
        let mut standing = Standing {
            delivered,
            lag: number(b"lag"),
            unfinished: delivered.next(),
            left: false,
        };
        if number(b"pending") != Some(0) {
            let pending: [&[u8]; 3] = [b"XPENDING", key, &self.0];
            let Reply::Array(pending) = run(lock, features, &pending) else {
                return None;
            };
            if let Some(first) = pending.get(1).and_then(Reply::as_text) {
                standing.unfinished = EntryId::parse(first)?;
            }
            let ours = |consumer: &Reply| consumer.items().first().and_then(Reply::as_text) == Some(CONSUMER);
            standing.left = pending.get(3).is_some_and(|list| list.items().iter().any(ours));
        }
        Some(standing)
    }

    /// Acknowledges entries. True if all of them were waiting for that: the key holds the stream that they came from.
    pub fn acknowledge(&self, lock: Lock<'_>, features: Features, key: &[u8], ids: &[Vec<u8>]) -> bool {
        if ids.is_empty() {
            return true;
        }
        let mut words = Words::from_slice(&[AnyWord::Fixed(&XACK), AnyWord::Bytes(key), self.word()]);
        words.extend(ids.iter().map(|id| AnyWord::Bytes(id)));
        match run(lock, features, &words) {
            Reply::Int(acknowledged) => usize::try_from(acknowledged) == Ok(ids.len()),
            Reply::Error(text) => {
                log(key, "acknowledge entries of", &text);
                false
            }
            _ => false,
        }
    }
}

/// What the server tells of all groups of a stream.
pub struct Groups(Vec<Reply>);

/// How far a group is with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Nothing below it is unfinished.
    pub unfinished: EntryId,
    /// Entries were delivered to us and not acknowledged.
    pub left: bool,
    delivered: EntryId,
    /// How many entries are behind the last one that was delivered, where the server counts them (7.0).
    lag: Option<u64>,
}

impl Groups {
    pub fn of(lock: Lock<'_>, features: Features, key: &[u8]) -> Self {
        let words: [&[u8]; 3] = [b"XINFO", b"GROUPS", key];
        Self(run(lock, features, &words).into_items())
    }

    fn find(&self, name: &[u8]) -> Option<&Reply> {
        let named = |group: &&Reply| group.field(b"name").and_then(Reply::as_text) == Some(name);
        self.0.iter().find(named)
    }
}

impl Standing {
    /// True if more than that many entries were not delivered yet.
    pub fn has_more_than(&self, lock: Lock<'_>, features: Features, key: &[u8], believed: u64) -> bool {
        if self.lag == Some(believed) {
            return false;
        }
        // The server's own count is wrong where entries were removed before they were read.
        let (after, count) = (
            format!("({}", self.delivered),
            believed.saturating_add(1).to_string(),
        );
        let words: [&[u8]; 6] = [b"XRANGE", key, after.as_bytes(), b"+", b"COUNT", count.as_bytes()];
        matches!(run(lock, features, &words), Reply::Array(found) if found.len() as u64 > believed)
    }
}

/// How many entries a stream holds; 0 if it is gone. Looks at the key itself: a cluster that is down answers no command.
pub fn length(lock: Lock<'_>, key: &[u8]) -> u64 {
    key::stream_length(lock, DB, key)
}

/// Removes all entries below `first`.
pub fn trim(lock: Lock<'_>, features: Features, key: &[u8], first: EntryId) {
    let mut text = String::with_capacity(AN_ID);
    // Writing to a text cannot fail.
    let _ = write!(text, "{first}");
    let words = [
        AnyWord::Fixed(&XTRIM),
        AnyWord::Bytes(key),
        AnyWord::Fixed(&MINID),
        AnyWord::Bytes(text.as_bytes()),
    ];
    if let Reply::Error(text) = run(lock, features, &words) {
        log(key, "trim", &text);
    }
}

fn run(lock: Lock<'_>, features: Features, words: &[impl Word]) -> Reply {
    // What this causes is nobody's event.
    let _mute = Mute::new();
    perform(lock, features, DB, words)
}

/// Tells that the server did not let a stream be read, acknowledged or trimmed.
pub fn log(key: &[u8], action: &str, error: &[u8]) {
    api::log_warning(&format!(
        "could not {action} the stream {}: {}",
        String::from_utf8_lossy(key),
        String::from_utf8_lossy(error)
    ));
}
