//! Fields of hashes that expire: whether a hash has any left. Servers take such fields away a moment after they have expired, and the
//! hash with the last of them; until then the key is there, and nothing is in it.
//!
//! Nobody pays for that where no field expires: the server says by an event that one will, and is asked once what it has when all of
//! its data may be others.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    sync::atomic::{AtomicU8, Ordering},
};

use redis_module::raw;

use super::{
    api::Features,
    entry::caught,
    key::{Kind, Opened},
    lock::Lock,
    refused::question,
    reply::Reply,
    text,
    version::Version,
};

/// No hash has a field that expires. Also where the server knows no such fields.
const NONE: u8 = 0;
/// The server is to be asked.
const UNKNOWN: u8 = 1;
const SOME: u8 = 2;

/// One of the three.
static EXPIRING: AtomicU8 = AtomicU8::new(NONE);
/// Whether the server knows fields that expire; constant after [`init`].
static POSSIBLE: AtomicU8 = AtomicU8::new(NONE);

/// What ends within so many milliseconds may have ended when a command runs that the filter sees.
const NEAR_END_MS: i64 = 1000;

/// Called once, while the module loads.
pub(super) fn init(version: Version) {
    if version.knows_lives_of_fields() {
        POSSIBLE.store(SOME, Ordering::Relaxed);
        EXPIRING.store(UNKNOWN, Ordering::Relaxed);
    }
}

/// Other data are there, or notifications were not asked for until now.
pub fn forget(_lock: Lock<'_>) {
    if POSSIBLE.load(Ordering::Relaxed) != NONE {
        EXPIRING.store(UNKNOWN, Ordering::Relaxed);
    }
}

/// A notification, of any key.
///
/// # Safety
/// `event` is a text that ends.
#[inline]
pub(super) unsafe fn hear(class: c_int, event: *const c_char) {
    if class & (raw::REDISMODULE_NOTIFY_HASH | raw::REDISMODULE_NOTIFY_GENERIC) == 0 {
        return;
    }
    // SAFETY: by the caller's promise.
    unsafe { hear_name(event) }
}

/// # Safety
/// As of [`hear`].
#[inline(never)]
unsafe fn hear_name(event: *const c_char) {
    if EXPIRING.load(Ordering::Relaxed) == SOME || POSSIBLE.load(Ordering::Relaxed) == NONE {
        return;
    }
    // SAFETY: by the caller's promise.
    let event = unsafe { CStr::from_ptr(event) };
    if event == c"hexpire" {
        EXPIRING.store(SOME, Ordering::Relaxed);
    } else if event == c"restore" {
        // What is restored may have such fields.
        EXPIRING.store(UNKNOWN, Ordering::Relaxed);
    }
}

/// A hash with nothing in it but fields that have expired: to commands that read it is empty.
///
/// # Safety
/// The key is open, and what it opened is still there.
#[inline]
pub(super) unsafe fn is_emptied(lock: Lock<'_>, opened: &Opened<'_>) -> bool {
    // SAFETY: by the caller's promise.
    EXPIRING.load(Ordering::Relaxed) != NONE && unsafe { is_emptied_hash(lock, opened) }
}

/// Whether the hash may be emptied by the time at which a command runs that is on its way.
///
/// # Safety
/// As of [`is_emptied`].
#[inline]
pub(super) unsafe fn may_be_emptied(lock: Lock<'_>, opened: &Opened<'_>) -> bool {
    // SAFETY: by the caller's promise.
    EXPIRING.load(Ordering::Relaxed) != NONE && unsafe { may_have_expired(lock, opened, NEAR_END_MS) }
}

/// # Safety
/// As of [`is_emptied`].
#[cold]
#[inline(never)]
unsafe fn is_emptied_hash(lock: Lock<'_>, opened: &Opened<'_>) -> bool {
    // SAFETY: by the caller's promise.
    unsafe { may_have_expired(lock, opened, 0) && !has_field(opened) }
}

/// Whether some field of it has expired within so many milliseconds from now: whether it is worth looking for one that has not.
///
/// # Safety
/// As of [`is_emptied`].
unsafe fn may_have_expired(lock: Lock<'_>, opened: &Opened<'_>, within_ms: i64) -> bool {
    // What is not known is asked here, whatever the key holds: then nobody looks any further.
    if !is_any(lock) || opened.as_raw().is_null() || Kind::of(opened) != Kind::Hash {
        return false;
    }
    let tells_first = has_api!(RedisModule_HashFieldMinExpire);
    // SAFETY: the key is open, and a hash.
    unsafe {
        if tells_first {
            let first_ms = api!(RedisModule_HashFieldMinExpire(opened.as_raw()));
            return first_ms != i64::from(raw::REDISMODULE_NO_EXPIRE)
                && first_ms <= api!(RedisModule_Milliseconds()) + within_ms;
        }
        // Valkey keeps no small hash that has such fields in one piece.
        !(text::can_peek() && text::is_listpack(opened.as_raw()))
    }
}

/// Whether any hash of the server may have fields that expire.
fn is_any(lock: Lock<'_>) -> bool {
    if EXPIRING.load(Ordering::Relaxed) == UNKNOWN {
        let words = ["INFO", "keyspace"].map(|word| word.as_bytes().to_vec());
        let found = match question(lock, Features::default(), 0, &words) {
            Reply::Bulk(text) | Reply::Verbatim { text, .. } => counts_some(&text),
            // It cannot be asked.
            _ => true,
        };
        EXPIRING.store(if found { SOME } else { NONE }, Ordering::Relaxed);
    }
    EXPIRING.load(Ordering::Relaxed) == SOME
}

/// Whether some database has such hashes, by INFO. One that is not counted there may have them.
fn counts_some(keyspace: &[u8]) -> bool {
    let text = String::from_utf8_lossy(keyspace);
    let mut databases = text.lines().filter(|line| line.starts_with("db"));
    databases.any(|line| {
        let field = |name| {
            line.split([',', ':'])
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let count = field("subexpiry").or_else(|| field("keys_with_volatile_items"));
        count != Some("0")
    })
}

/// Whether a hash has a field that has not expired. Looks no further than the first one.
///
/// # Safety
/// The key is open, and a hash.
unsafe fn has_field(opened: &Opened<'_>) -> bool {
    unsafe extern "C" fn found(
        _key: *mut raw::RedisModuleKey,
        _field: *mut raw::RedisModuleString,
        _value: *mut raw::RedisModuleString,
        is_any: *mut c_void,
    ) {
        // SAFETY: the server passes on the pointer given below.
        caught((), || unsafe {
            if let Some(is_any) = is_any.cast::<bool>().as_mut() {
                *is_any = true;
            }
        });
    }
    let mut is_any = false;
    // SAFETY: the cursor is freed below; the flag outlives the calls.
    unsafe {
        let cursor = api!(RedisModule_ScanCursorCreate());
        while api!(RedisModule_ScanKey(
            opened.as_raw(),
            cursor,
            Some(found),
            (&raw mut is_any).cast()
        )) as c_int
            != 0
            && !is_any
        {}
        api!(RedisModule_ScanCursorDestroy(cursor));
    }
    is_any
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_counts_hashes_whose_fields_expire() {
        let redis = |count| {
            format!(
                "# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0,subexpiry=0\r\ndb3:keys=9,expires=1,avg_ttl=5,subexpiry={count}\r\n"
            )
        };
        assert!(!counts_some(redis(0).as_bytes()) && counts_some(redis(10).as_bytes()));
        let valkey = |count| {
            format!("# Keyspace\r\ndb0:keys=2,expires=0,avg_ttl=0,keys_with_volatile_items={count}\r\n")
        };
        assert!(!counts_some(valkey(0).as_bytes()) && counts_some(valkey(1).as_bytes()));
        assert!(!counts_some(b"# Keyspace\r\n"));
        assert!(counts_some(b"db0:keys=1,expires=0,avg_ttl=0\r\n"));
    }
}
