//! The bytes of a string key, or of a small container, read without a trace.
//!
//! The module API has one function for that, StringDMA. It first turns whatever the server keeps as a number, or in one
//! piece with its object, into a plain string: the key takes more memory from then on, and the value that the command
//! under way still holds is freed. So the value is looked at where it lies ([`peek`]), through the server's own function
//! for strings. Where it lies is known of servers that were tried; others are asked by command (`key::by_command`).

use std::{
    ffi::c_void,
    sync::atomic::{AtomicBool, Ordering},
};

use redis_module::raw;

use super::{
    key::Kind,
    listpack,
    lock::Lock,
    string::{RString, bytes},
    version::Version,
};

/// True after [`init`] if this server's values can be looked at.
static KNOWN: AtomicBool = AtomicBool::new(false);

/// How the handle of an open key begins.
#[repr(C)]
struct Handle {
    context: *mut c_void,
    db: *mut c_void,
    name: *const raw::RedisModuleString,
    value: *const raw::RedisModuleString,
}

/// The first byte of a value: its type (0: string) in the lower half, in the upper half one of these.
const PLAIN: u8 = 0;
const NUMBER: u8 = 1;
const EMBEDDED: u8 = 8;
const LISTPACK: u8 = 11;

/// The pointer to what the value is, or a number in its place.
const INNER_OFFSET: usize = 8;

/// Decides how strings are read. Called once, while the module loads.
pub(super) fn init(lock: Lock<'_>, version: Version) {
    let known = version.has_known_layout()
        && cfg!(target_pointer_width = "64")
        && has_api!(RedisModule_GetKeyNameFromModuleKey)
        && has_api!(RedisModule_ValueLength)
        && head(lock, b"short") == EMBEDDED << 4
        && head(lock, &[b'x'; 4096]) == PLAIN << 4;
    KNOWN.store(known, Ordering::Relaxed);
}

/// The first byte of a string that the server makes for us.
fn head(lock: Lock<'_>, text: &[u8]) -> u8 {
    let string = RString::new(lock, text);
    // SAFETY: the object is alive, and longer than a byte.
    unsafe { string.as_raw().cast::<u8>().read() }
}

/// True if [`peek`] works on this server.
pub(super) fn can_peek() -> bool {
    KNOWN.load(Ordering::Relaxed)
}

/// The bytes of the value of a key, which is left as it is. `None` if it does not look as expected: nothing but its length,
/// which the server tells, proves what was read.
///
/// # Safety
/// [`can_peek`] says true; `key` is open and a string.
pub(super) unsafe fn peek(key: *mut raw::RedisModuleKey) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    // SAFETY: by the caller's promise.
    unsafe { peek_into(key, &mut text) }.then_some(text)
}

/// Appends the same to `out`; false if it does not look as expected.
///
/// # Safety
/// As of [`peek`].
pub(super) unsafe fn peek_into(key: *mut raw::RedisModuleKey, out: &mut Vec<u8>) -> bool {
    // SAFETY: by the caller's promise. The handle begins as on all servers of `Version::has_known_layout`, which its name
    // shows; a value has a head, and a number behind it where the head says so.
    unsafe {
        let Some(value) = value_of(key) else { return false };
        let before = out.len();
        match value.cast::<u8>().read() {
            head if head == PLAIN << 4 || head == EMBEDDED << 4 => out.extend(bytes(value)),
            head if head == NUMBER << 4 => {
                let number = value
                    .cast::<u8>()
                    .add(INNER_OFFSET)
                    .cast::<i64>()
                    .read_unaligned();
                out.extend(number.to_string().into_bytes());
            }
            _ => return false,
        }
        out.len() - before == api!(RedisModule_ValueLength(key))
    }
}

/// Appends the items of a small list or set, or the fields and values of a small hash, each behind its length; false if the
/// server keeps the value in another way, then `out` may have some of them.
///
/// # Safety
/// [`can_peek`] says true; `key` is open, and of this kind.
pub(super) unsafe fn peek_parts_into(key: *mut raw::RedisModuleKey, kind: Kind, out: &mut Vec<u8>) -> bool {
    let (tag, parts_each) = match kind {
        Kind::List => (1, 1),
        Kind::Set => (2, 1),
        Kind::Hash => (4, 2),
        _ => return false,
    };
    // SAFETY: as in `peek_into`; a value whose head says so has a pointer to its listpack behind it.
    unsafe {
        let Some(value) = value_of(key) else { return false };
        if value.cast::<u8>().read() != LISTPACK << 4 | tag {
            return false;
        }
        let inner = value.cast::<u8>().add(INNER_OFFSET);
        let parts = listpack::at(inner.cast::<*const u8>().read_unaligned());
        let number = parts.and_then(|parts| listpack::copy_parts(parts, out));
        number == Some(api!(RedisModule_ValueLength(key)) * parts_each)
    }
}

/// True if the value is kept as one listpack whose parts do not expire.
///
/// # Safety
/// [`can_peek`] says true; `key` is open.
pub(super) unsafe fn is_listpack(key: *mut raw::RedisModuleKey) -> bool {
    // SAFETY: by the caller's promise; a value has a head.
    unsafe { value_of(key).is_some_and(|value| value.cast::<u8>().read() >> 4 == LISTPACK) }
}

/// Where the value of an open key lies.
///
/// # Safety
/// [`can_peek`] says true; `key` is open.
unsafe fn value_of(key: *mut raw::RedisModuleKey) -> Option<*const raw::RedisModuleString> {
    let handle = key.cast::<Handle>();
    // SAFETY: by the caller's promise. The handle begins as on all servers of `Version::has_known_layout`, which its name shows.
    unsafe {
        if !std::ptr::eq((*handle).name, api!(RedisModule_GetKeyNameFromModuleKey(key))) {
            return None;
        }
        let value = (*handle).value;
        (!value.is_null()).then_some(value)
    }
}
