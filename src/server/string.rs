//! Strings of the server: an owned one, and the arguments of a running command.

use std::{ffi::CStr, marker::PhantomData, mem::ManuallyDrop, ptr, slice, sync::OnceLock};

use redis_module::raw;
use smallvec::SmallVec;

use super::lock::Lock;

/// A string owned by us. Made and dropped under the server's lock, because its reference count is not atomic.
pub struct RString<'a> {
    raw: *mut raw::RedisModuleString,
    _lock: PhantomData<Lock<'a>>,
}

impl<'a> RString<'a> {
    /// Copies `bytes` into a new string.
    pub fn new(_lock: Lock<'a>, bytes: &[u8]) -> Self {
        // SAFETY: a null context means that nobody else frees the string.
        let raw = unsafe {
            api!(RedisModule_CreateString(
                ptr::null_mut(),
                bytes.as_ptr().cast(),
                bytes.len()
            ))
        };
        Self {
            raw,
            _lock: PhantomData,
        }
    }

    /// Takes over a string that the server made for us; `None` for null.
    pub(super) fn adopt(_lock: Lock<'a>, raw: *mut raw::RedisModuleString) -> Option<Self> {
        (!raw.is_null()).then(|| Self {
            raw,
            _lock: PhantomData,
        })
    }

    /// The same string as that which is held.
    pub fn of_held(lock: Lock<'a>, held: &Held) -> Self {
        // SAFETY: what is held is alive.
        let Held(raw) = *ManuallyDrop::new(unsafe { Held::new(lock, held.0) });
        Self {
            raw,
            _lock: PhantomData,
        }
    }

    pub(super) fn as_raw(&self) -> *mut raw::RedisModuleString {
        self.raw
    }
}

impl Drop for RString<'_> {
    fn drop(&mut self) {
        // SAFETY: we own one reference, and the lock is held for `'a`.
        unsafe { api!(RedisModule_FreeString(ptr::null_mut(), self.raw)) };
    }
}

/// A string of the server that we keep for a while: only in what the server's lock guards, and dropped there.
pub struct Held(*mut raw::RedisModuleString);

// SAFETY: it is used and dropped under the server's lock, whichever thread has that.
unsafe impl Send for Held {}
// SAFETY: as above.
unsafe impl Sync for Held {}

impl Held {
    /// # Safety
    /// `string` is alive.
    pub(super) unsafe fn new(_lock: Lock<'_>, string: *mut raw::RedisModuleString) -> Self {
        // SAFETY: by the caller's promise; a null context means that nobody else lets go of it.
        Self(unsafe { api!(RedisModule_HoldString(ptr::null_mut(), string)) })
    }

    pub fn of_bytes(lock: Lock<'_>, bytes: &[u8]) -> Self {
        let made = RString::new(lock, bytes);
        let raw = made.raw;
        std::mem::forget(made);
        Self(raw)
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: we hold the string, which nobody changes.
        unsafe { bytes(self.0) }
    }

    pub(super) fn as_raw(&self) -> *mut raw::RedisModuleString {
        self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: we have one reference, and the lock is held (see the type).
        unsafe { api!(RedisModule_FreeString(ptr::null_mut(), self.0)) };
    }
}

/// A word that many commands of ours have: the server's string of it is made once, and never dropped.
pub struct FixedWord {
    bytes: &'static [u8],
    held: OnceLock<Held>,
}

impl FixedWord {
    pub const fn new(bytes: &'static [u8]) -> Self {
        Self {
            bytes,
            held: OnceLock::new(),
        }
    }
}

/// A word of a command that we run.
pub trait Word: AsRef<[u8]> {
    /// As a string of the server.
    fn string<'a>(&self, lock: Lock<'a>) -> RString<'a> {
        RString::new(lock, self.as_ref())
    }
}

impl Word for Vec<u8> {}
impl Word for &[u8] {}

/// One of either kind.
#[derive(Clone, Copy)]
pub enum AnyWord<'w> {
    Fixed(&'static FixedWord),
    Bytes(&'w [u8]),
}

impl AsRef<[u8]> for AnyWord<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Fixed(word) => word.bytes,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Word for AnyWord<'_> {
    fn string<'a>(&self, lock: Lock<'a>) -> RString<'a> {
        match self {
            Self::Fixed(word) => {
                let held = word.held.get_or_init(|| Held::of_bytes(lock, word.bytes));
                RString::of_held(lock, held)
            }
            Self::Bytes(bytes) => RString::new(lock, bytes),
        }
    }
}

/// The bytes of a string of the server, for as long as the caller's borrow lasts.
///
/// # Safety
/// `string` is alive and unchanged for `'a`.
#[inline]
pub(super) unsafe fn bytes<'a>(string: *const raw::RedisModuleString) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: by the caller's promise.
    unsafe {
        let start = api!(RedisModule_StringPtrLen(string, &raw mut len));
        if start.is_null() {
            &[]
        } else {
            slice::from_raw_parts(start.cast(), len)
        }
    }
}

/// The arguments of a command, its name first.
#[derive(Clone, Copy)]
pub struct Argv<'a> {
    raw: &'a [*mut raw::RedisModuleString],
}

impl<'a> Argv<'a> {
    /// # Safety
    /// `argv` holds `argc` strings that stay alive and unchanged for `'a`.
    pub(super) unsafe fn new(argv: *mut *mut raw::RedisModuleString, argc: i32) -> Self {
        let raw = if argv.is_null() {
            &[]
        } else {
            // SAFETY: by the caller's promise.
            unsafe { slice::from_raw_parts(argv, argc.max(0) as usize) }
        };
        Self { raw }
    }

    pub fn len(self) -> usize {
        self.raw.len()
    }

    /// The argument at `index`, or `None` past the end.
    pub fn get(self, index: usize) -> Option<&'a [u8]> {
        // SAFETY: the strings live for `'a`.
        self.raw.get(index).map(|&string| unsafe { bytes(string) })
    }

    /// The command's name as C knows it; `None` without one, or if it contains NUL.
    pub(super) fn name(self) -> Option<&'a CStr> {
        let name = self.get(0).filter(|name| !name.is_empty())?;
        // SAFETY: the server ends its strings with a NUL that it does not count.
        let with_end = unsafe { slice::from_raw_parts(name.as_ptr(), name.len() + 1) };
        CStr::from_bytes_with_nul(with_end).ok()
    }

    /// All arguments from `index` on.
    pub fn skip(self, index: usize) -> Self {
        Self {
            raw: self.raw.get(index..).unwrap_or_default(),
        }
    }

    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> {
        // SAFETY: the strings live for `'a`.
        self.raw.iter().map(|&string| unsafe { bytes(string) })
    }

    /// Copies of all arguments.
    pub fn to_vecs(self) -> Vec<Vec<u8>> {
        self.iter().map(<[u8]>::to_vec).collect()
    }

    /// Copies of all arguments, in one piece.
    pub fn to_words(self) -> Words {
        let mut words = Words::default();
        for word in self.iter() {
            words.push(word);
        }
        words
    }

    pub(super) fn as_raw(self) -> &'a [*mut raw::RedisModuleString] {
        self.raw
    }
}

/// What a command of a name and a key has, or less: it needs no memory of its own.
const USUAL_BYTES: usize = 48;

/// The words of a command, in one piece.
#[derive(Debug, Default)]
pub struct Words {
    bytes: SmallVec<[u8; USUAL_BYTES]>,
    /// Where each of them ends.
    ends: SmallVec<[usize; 4]>,
}

impl<'a> FromIterator<&'a [u8]> for Words {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(words: I) -> Self {
        let mut all = Self::default();
        words.into_iter().for_each(|word| all.push(word));
        all
    }
}

impl Words {
    #[inline]
    fn push(&mut self, word: &[u8]) {
        let end = self.bytes.len() + word.len();
        if end <= USUAL_BYTES && !self.bytes.spilled() {
            // SAFETY: there is room for so many without memory of its own, and all of them are written.
            unsafe {
                let place = self.bytes.as_mut_ptr().add(self.bytes.len());
                ptr::copy_nonoverlapping(word.as_ptr(), place, word.len());
                self.bytes.set_len(end);
            }
        } else {
            self.bytes.extend_from_slice(word);
        }
        self.ends.push(end);
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let word = &self.bytes[start..end];
            start = end;
            word
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_one_piece_are_told_apart() {
        for words in [
            &[][..],
            &[&b"get"[..], b"key"],
            &[&b"mget"[..], b"", b"a", b"b", b"", b"c"],
            // As much as needs no memory of its own, and more.
            &[&[b'k'; 40][..], &[b'v'; 8], b"", b"w"],
            &[&[b'k'; 47][..], b"ab", b"c"],
        ] {
            let kept: Words = words.iter().copied().collect();
            assert!(kept.iter().eq(words.iter().copied()), "{words:?}");
        }
    }
}
