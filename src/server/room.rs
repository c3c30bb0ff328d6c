//! Room for what functions write at `maxmemory`.
//!
//! For a client's command the server evicts first and refuses only what then has no room. For a module's it does not evict:
//! it would refuse every write from the first byte above the limit on, or let all through. So what a client could write
//! goes through here, and the server evicts it with the next command of any client. Where none comes for a while, what
//! functions write by themselves would grow without end: from [`SLACK`] on the server is asked to evict, and background
//! functions wait for it ([`make`]).

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use redis_module::raw;

use super::{
    after,
    api::{self, Features},
    asking::config_quietly,
    guarded::{Guarded, Plain},
    lock::{self, Lock},
    refused,
    reply::Reply,
    waiting,
};

/// The server's own text.
const OOM: &str = "OOM command not allowed when used memory > 'maxmemory'.";
/// The part of `maxmemory` by which functions may be above it before the server is asked to evict.
const SLACK: f32 = 1.0 / 16.0;
/// How long a background function waits for it at most; then the server cannot keep up, and a client would not wait.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(1);
/// How soon the server may be asked again that has not done what it was asked for. Each time leaves a line in its log.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How long it is believed that there are keys to evict, once some were found.
const STILL_THERE: Duration = Duration::from_millis(10);

static REFUSED: AtomicU64 = AtomicU64::new(0);
static ASKED: Guarded<Asked> = Guarded::new(Asked {
    when: None,
    could: None,
});

/// What is known of the last time that the server was asked to evict.
struct Asked {
    /// `None` when it has evicted.
    when: Option<Instant>,
    /// False: it could not be asked.
    could: Option<bool>,
}

/// The server has no limit, as long as [`may_be_limited`] is not called.
static UNLIMITED: Plain<bool> = Plain::new(false);
static TURNS: Guarded<u32> = Guarded::new(0);
/// Turns of the server's loop, until it is looked at again although no option has changed.
const LOOK_AGAIN: u32 = 64;

/// When there were keys to evict.
static FOUND: Guarded<Option<Instant>> = Guarded::new(None);

/// What a client's command would meet at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// None before the server has evicted.
    AfterEviction,
    /// None for writes; the command is a script, and the server knows what its script does.
    AsServerSays,
    None,
}

/// How many commands of functions were refused because memory was short.
pub fn refusals() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

/// Looks whether a function's command of this name would be refused if a client sent it; `flags`: those of the server now.
pub(super) fn check(lock: Lock<'_>, features: Features, flags: u32, name: &[u8]) -> Room {
    if flags & raw::REDISMODULE_CTX_FLAGS_OOM == 0 {
        return Room::Enough;
    }
    let (denies_oom, is_script) = refused::needs_memory(lock, features, name);
    if !denies_oom && !is_script {
        return Room::Enough;
    }
    // A replica that takes writes does not evict for them.
    if flags & raw::REDISMODULE_CTX_FLAGS_MASTER == 0 {
        return Room::AfterEviction;
    }
    let evicts = flags & raw::REDISMODULE_CTX_FLAGS_EVICT != 0 && can_evict(lock, features);
    if evicts && (is_near(lock) || ask_server(lock, features)) {
        return Room::AfterEviction;
    }
    if is_script {
        return Room::AsServerSays;
    }
    Room::None
}

/// The answer to a command that has no room.
pub(super) fn refusal() -> Reply {
    REFUSED.fetch_add(1, Ordering::Relaxed);
    no_room()
}

/// The same for a client's, which is not counted.
pub fn no_room() -> Reply {
    Reply::error(OOM)
}

/// Whether the server would refuse a client's command of this name for want of memory, after it has evicted what it can.
pub fn is_short_for(lock: Lock<'_>, features: Features, name: &[u8]) -> bool {
    !is_unlimited(lock) && check(lock, features, lock.server_flags(), name) == Room::None
}

/// Whether the server may evict keys before it runs the command that it has just got: a key that is there now may be gone.
pub fn may_evict(lock: Lock<'_>) -> bool {
    !UNLIMITED.get(lock) && look(lock) > 0.0
}

/// True if it is known that there is no limit.
pub(super) fn is_unlimited(lock: Lock<'_>) -> bool {
    UNLIMITED.get(lock) || {
        look(lock);
        UNLIMITED.get(lock)
    }
}

/// An option has changed: there may be a limit.
pub(super) fn may_be_limited(lock: Lock<'_>) {
    UNLIMITED.set(lock, false);
}

/// A turn of the server's loop has ended. Who changes options without a word is seen a few turns later.
pub fn next_turn(lock: Lock<'_>) {
    let mut turns = TURNS.write(lock);
    *turns = (*turns + 1) % LOOK_AGAIN;
    if *turns == 0 {
        may_be_limited(lock);
    }
}

/// As [`excess`]. The server counts its memory for that: where it has no limit now and then is enough.
#[inline(never)]
fn look(lock: Lock<'_>) -> f32 {
    let excess = excess();
    // What is used is never nothing.
    let unlimited = excess <= -1.0 && has_api!(RedisModule_GetUsedMemoryRatio);
    UNLIMITED.set(lock, unlimited && waiting::tells_when_it_sleeps());
    excess
}

/// Takes the server's lock for a command of a function. A background function waits before, if the server has to evict.
pub fn make<R>(features: Features, name: &[u8], mut work: impl FnMut(Lock<'_>) -> R) -> R {
    let deadline = Instant::now() + LONGEST_WAIT;
    loop {
        // Whoever holds the lock already holds the server up.
        let may_wait = !lock::is_held() && Instant::now() < deadline;
        let done = lock::with_lock(|lock| {
            if may_wait && should_wait(lock, features, name) {
                return None;
            }
            Some(work(lock))
        });
        if let Some(result) = done {
            return result;
        }
        thread::sleep(LOOK);
    }
}

fn should_wait(lock: Lock<'_>, features: Features, name: &[u8]) -> bool {
    // The cheapest first: a server without a limit, or below it.
    !is_near(lock)
        && check(lock, features, lock.server_flags(), name) == Room::AfterEviction
        && lock.is_master()
}

/// Whether what the server is above its limit is not worth asking it.
fn is_near(lock: Lock<'_>) -> bool {
    let near = excess() <= SLACK;
    if near {
        ASKED.write(lock).when = None;
    }
    near
}

/// The part of `maxmemory` by which the server is above it.
fn excess() -> f32 {
    // SAFETY: the presence of the function is checked first; it takes no argument.
    let ratio =
        has_api!(RedisModule_GetUsedMemoryRatio).then(|| unsafe { api!(RedisModule_GetUsedMemoryRatio()) });
    ratio.unwrap_or_default() - 1.0
}

/// Whether the policy, which is one that evicts, finds a key.
fn can_evict(lock: Lock<'_>, features: Features) -> bool {
    if FOUND.read(lock).is_some_and(|when| when.elapsed() < STILL_THERE) {
        return true;
    }
    // A line for each database that is not empty, such as `db0:keys=12,expires=0,avg_ttl=0`.
    let keyspace = match ask(lock, features, &[b"INFO", b"keyspace"]) {
        Reply::Bulk(text) | Reply::Status(text) | Reply::Verbatim { text, .. } => text,
        _ => Vec::new(),
    };
    let keyspace = String::from_utf8_lossy(&keyspace);
    let databases = || keyspace.lines().filter(|line| line.contains(":keys="));
    let found = databases().any(|line| !line.contains(",expires=0,"))
        || databases().next().is_some() && !only_expiring(lock, features);
    *FOUND.write(lock) = found.then(Instant::now);
    found
}

/// Whether the policy leaves keys alone that do not expire.
fn only_expiring(lock: Lock<'_>, features: Features) -> bool {
    let policy = config_quietly(lock, features, "maxmemory-policy");
    policy.is_some_and(|policy| policy.starts_with("volatile"))
}

/// Lets the server's own eviction begin, which goes on until memory is below the limit. False if that cannot be done.
///
/// No other way leads there but a client's command, or a change of `maxmemory`: a larger one, and what it was.
fn ask_server(lock: Lock<'_>, features: Features) -> bool {
    let asked = ASKED.read(lock);
    if asked.when.is_some_and(|when| when.elapsed() < ASK_AGAIN) {
        return asked.could == Some(true);
    }
    drop(asked);
    let limit = config_quietly(lock, features, "maxmemory").and_then(|text| text.parse::<u64>().ok());
    let set = |limit: u64| {
        let limit = limit.to_string();
        let words: [&[u8]; 4] = [b"CONFIG", b"SET", b"maxmemory", limit.as_bytes()];
        matches!(ask(lock, features, &words), Reply::Status(_))
    };
    // Above what is used, so that the server has nothing to say about this one.
    let could = limit.is_some_and(|limit| set(limit.saturating_mul(2).max(limit + 1)) && set(limit));
    let now = Asked {
        when: Some(Instant::now()),
        could: Some(could),
    };
    let before = std::mem::replace(&mut *ASKED.write(lock), now);
    if before.could != Some(could) {
        api::log_notice(if could {
            "functions write at maxmemory while no client's command lets the server evict: it is told to by CONFIG SET maxmemory"
        } else {
            "functions write at maxmemory, no client's command lets the server evict, and CONFIG SET maxmemory cannot be used to: \
             they are refused"
        });
    }
    after::wake(lock);
    could
}

fn ask(lock: Lock<'_>, features: Features, words: &[&[u8]]) -> Reply {
    let argv: Vec<_> = words.iter().map(|word| word.to_vec()).collect();
    refused::question(lock, features, 0, &argv)
}
