//! The value of a key at one moment, as one piece of bytes: cheap to take, to keep, to send and to copy.
//!
//! The first byte is the kind. A string follows as it is; items of a list or set, fields and values of a hash each behind their
//! length; members of a sorted set behind their score. Of streams and values of modules there is the kind only.

use std::{
    ffi::{c_int, c_void},
    sync::Arc,
};

use redis_module::raw;

use super::{
    entry::caught,
    events::Mute,
    key::{self, Kind, Opened, Value},
    lock::Lock,
    store::Content,
    string::{Held, bytes},
    text,
};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(Arc<[u8]>);

const GONE: u8 = 0;
/// Behind that: see [`Snapshot::is_emptied`].
const EMPTIED: u8 = 1;
/// The time of expiry of a key that has none.
const NEVER: i64 = raw::REDISMODULE_NO_EXPIRE as i64;
/// What is left of bytes that were damaged.
const DAMAGED: u8 = 255;
const KINDS: [(u8, Kind); 7] = [
    (1, Kind::String),
    (2, Kind::List),
    (3, Kind::Hash),
    (4, Kind::Set),
    (5, Kind::Zset),
    (6, Kind::Stream),
    (7, Kind::Module),
];

fn tag_of(kind: Kind) -> u8 {
    KINDS
        .iter()
        .find(|(_, known)| *known == kind)
        .map_or(GONE, |(tag, _)| *tag)
}

impl Snapshot {
    /// The value of a key now; an expired one is gone. `out`: room to work in. True if it stays as it is until a command changes it:
    /// it is small, has no time of expiry, and none of its parts has.
    pub fn take(lock: Lock<'_>, db: i32, name: &Held, out: &mut Vec<u8>) -> (Self, bool) {
        let _mute = Mute::new();
        // SAFETY: the string lives to the end of this function.
        let opened = unsafe { key::open(lock, db, name.as_raw()) };
        let kind = Kind::of(&opened);
        out.clear();
        out.push(tag_of(kind));
        // SAFETY: the key is open and of this kind.
        let peeked = text::can_peek()
            && unsafe {
                match kind {
                    Kind::String => text::peek_into(opened.as_raw(), out),
                    Kind::Hash | Kind::Set | Kind::List => text::peek_parts_into(opened.as_raw(), kind, out),
                    _ => false,
                }
            };
        let taken = peeked
            || match kind {
                Kind::Empty | Kind::Stream | Kind::Module => true,
                Kind::Hash | Kind::Set | Kind::Zset => {
                    out.truncate(1);
                    scan(&opened, kind, out);
                    // All of its fields have expired, and the server has not cleared them away yet.
                    if out.len() == 1 {
                        out[0] = GONE;
                        out.push(EMPTIED);
                    }
                    true
                }
                Kind::String | Kind::List => false,
            };
        // SAFETY: the key is open. Fields that expire are kept in other ways than those that are looked at.
        let stays = peeked && unsafe { api!(RedisModule_GetExpire(opened.as_raw())) } == NEVER;
        drop(opened);
        if !taken {
            out.truncate(1);
            match key::read(lock, db, name.bytes()).1 {
                Value::String(text) => out.extend(text),
                Value::List(items) => items.iter().for_each(|item| put(out, item)),
                _ => {}
            }
        }
        (Self(out.as_slice().into()), stays)
    }

    pub fn is_gone(&self) -> bool {
        self.0.first() == Some(&GONE)
    }

    /// There is a key without anything in it: all that was left of it has expired, and the server has not taken it away yet.
    pub fn is_emptied(&self) -> bool {
        *self.0 == [GONE, EMPTIED]
    }

    pub fn is_damaged(&self) -> bool {
        self.0.first() == Some(&DAMAGED)
    }

    /// `None` if there is no value.
    pub fn kind(&self) -> Option<Kind> {
        let tag = self.0.first()?;
        KINDS
            .iter()
            .find(|(known, _)| known == tag)
            .map(|(_, kind)| *kind)
    }

    /// What [`Snapshot::of_bytes`] makes it of again.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Bytes that are no value, or are known to be damaged, are kept as what they are.
    pub fn of_bytes(given: &[u8], damaged: bool) -> Self {
        let snapshot = Self(given.into());
        let known = snapshot.is_gone() || snapshot.kind().is_some() || snapshot.is_damaged();
        if !damaged && known && read(given).is_ok() {
            return snapshot;
        }
        Self([&[DAMAGED], given].concat().into())
    }

    /// The value as a key can hold it; `None` if there is none, or none that could be stored.
    pub fn content(&self) -> Option<Content> {
        read(&self.0).ok().flatten()
    }

    /// The value, to be looked at where it is.
    pub fn parts(&self) -> Parts<'_> {
        let rest = self.0.get(1..).unwrap_or_default();
        match self.kind() {
            Some(Kind::String) => Parts::String(rest),
            Some(Kind::List) => Parts::List(Items(rest)),
            Some(Kind::Set) => Parts::Set(Items(rest)),
            Some(Kind::Hash) => Parts::Hash(Fields(rest)),
            Some(Kind::Zset) => Parts::Sorted(Members(rest)),
            _ => Parts::None,
        }
    }

    /// The bytes that are damaged.
    pub fn damaged_bytes(&self) -> &[u8] {
        self.0.get(1..).unwrap_or_default()
    }
}

/// A value that is looked at, without copies.
pub enum Parts<'a> {
    None,
    String(&'a [u8]),
    List(Items<'a>),
    Set(Items<'a>),
    Hash(Fields<'a>),
    Sorted(Members<'a>),
}

/// See [`Parts`].
#[derive(Clone)]
pub struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        next(&mut self.0)
    }
}

/// The fields of a hash with their values.
#[derive(Clone)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        Some((next(&mut self.0)?, next(&mut self.0)?))
    }
}

/// The members of a sorted set with their scores.
#[derive(Clone)]
pub struct Members<'a>(&'a [u8]);

impl<'a> Iterator for Members<'a> {
    type Item = (&'a [u8], f64);

    fn next(&mut self) -> Option<(&'a [u8], f64)> {
        let (score, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some((next(&mut self.0)?, f64::from_le_bytes(*score)))
    }
}

/// The bytes end early, or are none of a value.
struct Damaged;

fn read(given: &[u8]) -> Result<Option<Content>, Damaged> {
    let (&tag, rest) = given.split_first().ok_or(Damaged)?;
    let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == tag) else {
        return Ok(None);
    };
    let content = match kind {
        Kind::String => Some(Content::String(rest.to_vec())),
        Kind::List => items(rest).map(Content::List),
        Kind::Set => items(rest).map(Content::Set),
        Kind::Hash => fields(rest).map(Content::Hash),
        Kind::Zset => members(rest).map(Content::Sorted),
        _ => return Ok(None),
    };
    content.map(Some).ok_or(Damaged)
}

fn fields(mut rest: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let name = next(&mut rest)?;
        fields.push((name.to_vec(), next(&mut rest)?.to_vec()));
    }
    Some(fields)
}

fn members(mut rest: &[u8]) -> Option<Vec<(Vec<u8>, f64)>> {
    let mut members = Vec::new();
    while !rest.is_empty() {
        let (score, more) = rest.split_first_chunk::<8>()?;
        rest = more;
        members.push((next(&mut rest)?.to_vec(), f64::from_le_bytes(*score)));
    }
    Some(members)
}

fn items(mut rest: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut items = Vec::new();
    while !rest.is_empty() {
        items.push(next(&mut rest)?.to_vec());
    }
    Some(items)
}

fn next<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, more) = rest.split_first_chunk::<4>()?;
    let (item, more) = more.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *rest = more;
    Some(item)
}

/// A value's part is never longer than the server allows, which is less than what four bytes count.
fn put(out: &mut Vec<u8>, item: &[u8]) {
    out.extend((item.len() as u32).to_le_bytes());
    out.extend(item);
}

/// Appends the parts of a hash, a set or a sorted set.
fn scan(opened: &Opened<'_>, kind: Kind, out: &mut Vec<u8>) {
    struct Scan<'a> {
        kind: Kind,
        out: &'a mut Vec<u8>,
    }
    unsafe extern "C" fn collect(
        _key: *mut raw::RedisModuleKey,
        field: *mut raw::RedisModuleString,
        value: *mut raw::RedisModuleString,
        scan: *mut c_void,
    ) {
        // SAFETY: the server passes on the pointer given below, and live strings.
        caught((), || unsafe {
            let Some(scan) = scan.cast::<Scan<'_>>().as_mut() else {
                return;
            };
            let value = if value.is_null() { &[][..] } else { bytes(value) };
            if scan.kind == Kind::Zset {
                let score = std::str::from_utf8(value)
                    .ok()
                    .and_then(|score| score.parse::<f64>().ok());
                scan.out.extend(score.unwrap_or(f64::NAN).to_le_bytes());
            }
            put(scan.out, bytes(field));
            if scan.kind == Kind::Hash {
                put(scan.out, value);
            }
        });
    }
    let mut scan = Scan { kind, out };
    // SAFETY: the cursor is freed below; the structure outlives the calls.
    unsafe {
        let cursor = api!(RedisModule_ScanCursorCreate());
        while api!(RedisModule_ScanKey(
            opened.as_raw(),
            cursor,
            Some(collect),
            (&raw mut scan).cast()
        )) as c_int
            != 0
        {}
        api!(RedisModule_ScanCursorDestroy(cursor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![tag];
        for part in parts {
            put(&mut out, part);
        }
        out
    }

    #[test]
    fn values_are_read_back() {
        let content = |bytes: &[u8]| Snapshot::of_bytes(bytes, false).content();
        assert_eq!(content(b"\x01text"), Some(Content::String(b"text".to_vec())));
        assert_eq!(
            content(&packed(3, &[b"name", b"", b"", b"x"])),
            Some(Content::Hash(vec![
                (b"name".to_vec(), Vec::new()),
                (Vec::new(), b"x".to_vec())
            ]))
        );
        assert_eq!(
            content(&packed(2, &[b"a", b"b"])),
            Some(Content::List(vec![b"a".to_vec(), b"b".to_vec()]))
        );
        let mut sorted = vec![5];
        sorted.extend(f64::NEG_INFINITY.to_le_bytes());
        put(&mut sorted, b"m");
        assert_eq!(
            content(&sorted),
            Some(Content::Sorted(vec![(b"m".to_vec(), f64::NEG_INFINITY)]))
        );
        let gone = Snapshot::of_bytes(&[0], false);
        assert!(gone.is_gone() && gone.kind().is_none());
        assert_eq!(Snapshot::of_bytes(&[6], false).kind(), Some(Kind::Stream));
        assert_eq!(Snapshot::of_bytes(&[6], false).content(), None);
    }

    #[test]
    fn damaged_bytes_are_known_and_kept() {
        let mut cut = packed(2, &[b"abc"]);
        cut.pop();
        for bytes in [&cut[..], &[9, 1][..], &[][..]] {
            let snapshot = Snapshot::of_bytes(bytes, false);
            assert!(snapshot.is_damaged());
            assert_eq!((snapshot.damaged_bytes(), snapshot.content()), (bytes, None));
            assert_eq!(Snapshot::of_bytes(snapshot.as_bytes(), false), snapshot);
        }
        assert!(Snapshot::of_bytes(b"\x01text", true).is_damaged());
    }
}
