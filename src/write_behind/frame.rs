//! What happens to queues as bytes: in RDB and AOF files, and on the way to replicas.
//!
//! `PINIONQ` and the format's version, then frames: kind, length, digest, body. A change that is damaged is kept as far as it can
//! be read, so that it comes to light; a later version may add kinds and append to bodies.

use std::borrow::Cow;

use super::{
    event_names::event_name,
    machine::{Change, ChangeId, Gone},
};
use crate::{hashing::digest, read_through::keys::Key, server::snapshot::Snapshot};

const MAGIC: &[u8] = b"PINIONQ";
const VERSION: u8 = 1;
const HEAD: usize = 9;
/// About how long a frame is.
const USUAL: usize = 512;

const CHANGE: u8 = 1;
const GONE: u8 = 2;
const LAST: u8 = 3;

/// One of them, read.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Change {
        queue: String,
        change: Change<Snapshot>,
    },
    Gone {
        queue: String,
        gone: Vec<Gone>,
    },
    Last(Last),
    /// Its bytes are damaged beyond reading.
    Unreadable,
}

/// The newest id that was given, and how what comes behind it is to be read.
#[derive(Debug, PartialEq, Eq)]
pub struct Last {
    pub id: ChangeId,
    pub follows: Follows,
}

/// Whether the changes of a unit may come some units behind it ([`super::tail`]).
#[derive(Debug, PartialEq, Eq)]
pub enum Follows {
    /// They come with it.
    Never,
    /// Behind this in an AOF file, or in what a master hands on, they may.
    FromHere,
    /// This server follows a master that does so, and has seen these keys change since it heard of changes: databases, names, events.
    Following(Vec<(Key, Cow<'static, str>)>),
}

const FROM_HERE: u8 = 1;
const FOLLOWING: u8 = 2;

/// Frames, written one after the other.
pub struct Frames(Vec<u8>);

impl Default for Frames {
    fn default() -> Self {
        Self([MAGIC, &[VERSION]].concat())
    }
}

impl Frames {
    pub fn is_empty(&self) -> bool {
        self.0.len() <= MAGIC.len() + 1
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Forgets them, and keeps the room that they had if it is at most so many bytes.
    pub fn clear(&mut self, most: usize) {
        if self.0.capacity() > most {
            *self = Self::default();
        }
        self.0.truncate(MAGIC.len() + 1);
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub fn change(&mut self, queue: &str, change: &Change<Snapshot>) {
        self.frame(CHANGE, |out| {
            put(out, queue.as_bytes());
            put_id(out, change.id);
            out.extend(change.key.db.to_le_bytes());
            put(out, change.event.as_bytes());
            put(out, &change.key.name);
            put(out, change.payload.as_bytes());
        });
    }

    pub fn gone(&mut self, queue: &str, gone: &[Gone]) {
        self.frame(GONE, |out| {
            put(out, queue.as_bytes());
            for gone in gone {
                put_id(out, gone.id);
                out.extend(gone.key.db.to_le_bytes());
                put(out, &gone.key.name);
            }
        });
    }

    pub fn last(&mut self, id: ChangeId, follows: &Follows) {
        self.frame(LAST, |out| {
            put_id(out, id);
            match follows {
                Follows::Never => {}
                Follows::FromHere => out.push(FROM_HERE),
                Follows::Following(tail) => {
                    out.push(FOLLOWING);
                    for (key, event) in tail {
                        out.extend(key.db.to_le_bytes());
                        put(out, &key.name);
                        put(out, event.as_bytes());
                    }
                }
            }
        });
    }

    fn frame(&mut self, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
        let out = &mut self.0;
        let start = out.len();
        // Nearly always enough: one allocation in place of several.
        out.reserve(USUAL);
        out.push(kind);
        out.extend([0; HEAD - 1]);
        body(out);
        let len = (out.len() - start - HEAD) as u32;
        let digest = digest(&out[start + HEAD..]);
        out[start + 1..start + 5].copy_from_slice(&len.to_le_bytes());
        out[start + 5..start + HEAD].copy_from_slice(&digest.to_le_bytes());
    }
}

/// Changes hold keys and values of up to 512 MB: four bytes count them.
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

fn put_id(out: &mut Vec<u8>, id: ChangeId) {
    out.extend(id.ms.to_le_bytes());
    out.extend(id.seq.to_le_bytes());
}

/// True if these bytes are frames.
pub fn are_frames(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// # Errors
/// They are of a later version, or no frames.
pub fn read(bytes: &[u8]) -> Result<Vec<Frame>, String> {
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or("these are no changes of Pinion")?;
    let (&version, mut rest) = rest.split_first().ok_or("it is cut off after its first bytes")?;
    if version > VERSION {
        return Err(format!(
            "changes of a newer version (format {version}) cannot be read: this Pinion reads up to {VERSION}"
        ));
    }
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let Some((kind, said, body, more)) = split(rest) else {
            frames.push(Frame::Unreadable);
            break;
        };
        rest = more;
        let damaged = digest(body) != said;
        let frame = match kind {
            CHANGE => read_change(body, damaged),
            GONE if !damaged => read_gone(body),
            LAST if !damaged => read_last(body),
            _ => None,
        };
        frames.push(frame.unwrap_or(Frame::Unreadable));
    }
    Ok(frames)
}

fn split(rest: &[u8]) -> Option<(u8, u32, &[u8], &[u8])> {
    let mut reader = Reader(rest);
    let kind = *reader.take(1)?.first()?;
    let len = reader.number()?;
    let digest = reader.number()?;
    let body = reader.take(len as usize)?;
    Some((kind, digest, body, reader.0))
}

fn read_change(body: &[u8], damaged: bool) -> Option<Frame> {
    let mut reader = Reader(body);
    let queue = reader.text()?;
    let id = read_id(&mut reader)?;
    let db = reader.db()?;
    let event = event_name(reader.bytes()?);
    let name = reader.bytes()?;
    let payload = Snapshot::of_bytes(reader.bytes()?, damaged);
    Some(Frame::Change {
        queue,
        change: Change {
            id,
            key: Key::new(db, name),
            event,
            size: payload.as_bytes().len(),
            payload,
        },
    })
}

fn read_gone(body: &[u8]) -> Option<Frame> {
    let mut reader = Reader(body);
    let queue = reader.text()?;
    let mut gone = Vec::new();
    while !reader.0.is_empty() {
        let id = read_id(&mut reader)?;
        let db = reader.db()?;
        gone.push(Gone {
            key: Key::new(db, reader.bytes()?),
            id,
        });
    }
    Some(Frame::Gone { queue, gone })
}

fn read_last(body: &[u8]) -> Option<Frame> {
    let mut reader = Reader(body);
    let id = read_id(&mut reader)?;
    let follows = match reader.take(1).and_then(<[u8]>::first) {
        Some(&FROM_HERE) => Follows::FromHere,
        Some(&FOLLOWING) => {
            let mut tail = Vec::new();
            while !reader.0.is_empty() {
                let key = Key::new(reader.db()?, reader.bytes()?);
                tail.push((key, event_name(reader.bytes()?)));
            }
            Follows::Following(tail)
        }
        _ => Follows::Never,
    };
    Some(Frame::Last(Last { id, follows }))
}

fn read_id(reader: &mut Reader<'_>) -> Option<ChangeId> {
    let mut number = || Some(u64::from_le_bytes(reader.take(8)?.try_into().ok()?));
    Some(ChangeId {
        ms: number()?,
        seq: number()?,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn db(&mut self) -> Option<i32> {
        Some(i32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.number()?;
        self.take(len as usize)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

#[cfg(test)]
#[allow(clippy::expect_used)] // a test may panic
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::fuzz::fuzz;

    /// Gives each frame the length and the digest of what is there.
    fn repaired(input: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        let mut at = MAGIC.len() + 1;
        while at + HEAD <= bytes.len() {
            let len = u32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap_or_default()) as usize;
            let end = (at + HEAD).saturating_add(len).min(bytes.len());
            let real = ((end - at - HEAD) as u32).to_le_bytes();
            let digest = digest(&bytes[at + HEAD..end]).to_le_bytes();
            bytes[at + 1..at + 5].copy_from_slice(&real);
            bytes[at + 5..at + HEAD].copy_from_slice(&digest);
            at = end;
        }
        bytes
    }

    /// What is read of frames, with digests that are right and wrong ones, is written and read back as it is.
    #[test]
    fn fuzz_frames() {
        let mut list = Frames::default();
        for value in [
            &b"\x02\x03\0\0\0abc"[..],
            b"\x03\x01\0\0\0a\x01\0\0\0b",
            b"\x05\0\0\0\0\0\0\0\0\x01\0\0\0m",
            b"\0",
            b"\x06",
        ] {
            list.change("q", &change("k", value));
        }
        fuzz("frame", &[sample(), list.into_bytes()], |input| {
            let mut outcome = String::new();
            for bytes in [input.to_vec(), repaired(input)] {
                let frames = match read(&bytes) {
                    Ok(frames) => frames,
                    Err(error) => return error,
                };
                let mut again = Frames::default();
                for frame in &frames {
                    match frame {
                        Frame::Change { queue, change } => {
                            let _ = (change.payload.kind(), change.payload.content());
                            again.change(queue, change);
                            let (kind, damaged) = (change.payload.kind(), change.payload.is_damaged());
                            let _ = write!(outcome, "c{kind:?}{damaged}");
                        }
                        Frame::Gone { queue, gone } => {
                            again.gone(queue, gone);
                            outcome.push('g');
                        }
                        Frame::Last(last) => again.last(last.id, &last.follows),
                        Frame::Unreadable => outcome.push('u'),
                    }
                }
                let expected: Vec<_> = frames
                    .into_iter()
                    .filter(|frame| *frame != Frame::Unreadable)
                    .collect();
                assert_eq!(read(again.as_bytes()).expect("they are frames"), expected);
            }
            outcome
        });
    }

    fn change(name: &str, value: &[u8]) -> Change<Snapshot> {
        let payload = Snapshot::of_bytes(value, false);
        Change {
            id: ChangeId { ms: 17, seq: 3 },
            key: Key::new(2, name.as_bytes()),
            event: event_name(b"set"),
            size: payload.as_bytes().len(),
            payload,
        }
    }

    fn tail() -> Vec<(Key, Cow<'static, str>)> {
        vec![(Key::new(3, b"user:2"), event_name(b"hset"))]
    }

    fn sample() -> Vec<u8> {
        let mut frames = Frames::default();
        frames.change("user:*", &change("user:1", b"\x01Ann"));
        frames.gone(
            "user:*",
            &[Gone {
                key: Key::new(0, b"\xff"),
                id: ChangeId { ms: 9, seq: 0 },
            }],
        );
        frames.last(ChangeId { ms: 20, seq: 1 }, &Follows::Following(tail()));
        frames.into_bytes()
    }

    #[test]
    fn frames_are_read_back() {
        let frames = read(&sample()).expect("they are frames");
        assert_eq!(frames.len(), 3);
        assert_eq!(
            frames[0],
            Frame::Change {
                queue: "user:*".into(),
                change: change("user:1", b"\x01Ann")
            }
        );
        assert!(matches!(&frames[1], Frame::Gone { gone, .. } if gone[0].key.name[..] == *b"\xff"));
        let id = ChangeId { ms: 20, seq: 1 };
        let follows = Follows::Following(tail());
        assert_eq!(frames[2], Frame::Last(Last { id, follows }));
        for follows in [Follows::Never, Follows::FromHere] {
            let mut frames = Frames::default();
            frames.last(id, &follows);
            let again = read(frames.as_bytes()).expect("they are frames");
            assert_eq!(again, [Frame::Last(Last { id, follows })]);
        }
    }

    #[test]
    fn damage_is_noticed_and_the_rest_is_read() {
        let sound = sample();
        let at = sound
            .windows(3)
            .position(|part| part == b"Ann")
            .expect("its value");
        let mut damaged = sound.clone();
        damaged[at] = b'X';
        let frames = read(&damaged).expect("they are frames");
        assert!(matches!(&frames[0], Frame::Change { change, .. } if change.payload.is_damaged()));
        assert_eq!(frames.len(), 3);
        // Whatever is cut off or turned: never a panic.
        for cut in 0..sound.len() {
            let _ = read(&sound[..cut]);
            let mut turned = sound.clone();
            turned[cut] ^= 0x55;
            let _ = read(&turned);
        }
        assert!(read(b"PINIONQ\x09").is_err());
        assert!(!are_frames(b"PINION\x01"));
    }
}
