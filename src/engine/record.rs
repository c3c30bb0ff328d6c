//! What flows through the steps: a record, native until a user function looks at it.
//!
//! Made by readers, carried by the pipeline, turned into a reply when it has passed the last step.

use std::{
    borrow::Cow,
    mem::{ManuallyDrop, MaybeUninit},
    sync::Arc,
};

use crate::server::{
    reply::Reply,
    snapshot::{Parts, Snapshot},
};

/// A value that the engine understands without the language. Byte strings are never assumed to be UTF-8.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Int(i64),
    Text(Vec<u8>),
    /// A key: a `str`, or where it is no UTF-8 immutable bytes.
    Key(Vec<u8>),
    /// The same, of which somebody else has a part.
    SharedKey(Arc<[u8]>),
    /// Two numbers with a dash between them: an id.
    Id(u64, u64),
    /// The value that a key had at some moment. Byte strings in it are as keys.
    Kept(Snapshot),
    /// A text of ours, which many records have.
    Name(&'static str),
    Float(f64),
    List(Vec<Value>),
    Set(Vec<Value>),
    /// In order of insertion; names are distinct.
    Dict(Vec<(Cow<'static, [u8]>, Value)>),
    /// The record of a missed key, of which nothing else is known: [`Value::missed`] has it in single values.
    Missed(Vec<u8>),
}

impl Value {
    /// The record of a missed key in single values.
    pub fn missed(key: Vec<u8>) -> Self {
        let field = |name: &'static str, value| (Cow::Borrowed(name.as_bytes()), value);
        Self::Dict(vec![
            field("key", Self::Text(key)),
            field("event", Self::Name("keymiss")),
            field("type", Self::Name("empty")),
            field("value", Self::None),
        ])
    }

    /// About how many bytes it has.
    fn bytes(&self) -> usize {
        match self {
            Self::None | Self::Int(_) | Self::Float(_) => 9,
            Self::Id(..) => 17,
            Self::Text(text) | Self::Key(text) => text.len() + 5,
            Self::SharedKey(text) => text.len() + 5,
            Self::Kept(value) => value.as_bytes().len(),
            Self::Name(name) => name.len() + 5,
            Self::List(items) | Self::Set(items) => items.iter().map(Self::bytes).sum::<usize>() + 5,
            Self::Dict(fields) => fields
                .iter()
                .map(|(name, value)| name.len() + 5 + value.bytes())
                .sum(),
            // As the same in single values.
            Self::Missed(key) => key.len() + 73,
        }
    }
}

impl From<&Snapshot> for Value {
    /// In single values. Streams and values of modules have none.
    fn from(kept: &Snapshot) -> Self {
        let key = |part: &[u8]| Self::Key(part.to_vec());
        match kept.parts() {
            Parts::None => Self::None,
            Parts::String(text) => key(text),
            Parts::List(items) => Self::List(items.map(key).collect()),
            Parts::Set(items) => Self::Set(items.map(key).collect()),
            Parts::Hash(fields) => Self::Dict(
                fields
                    .map(|(name, value)| (Cow::Owned(name.to_vec()), key(value)))
                    .collect(),
            ),
            Parts::Sorted(members) => Self::Dict(
                members
                    .map(|(member, score)| (Cow::Owned(member.to_vec()), Self::Float(score)))
                    .collect(),
            ),
        }
    }
}

/// The text of an id, which takes no memory of its own: each change has one.
pub struct IdText {
    /// Two numbers of 20 digits at most, and what stands between them.
    digits: [u8; 41],
    start: usize,
}

impl IdText {
    pub fn new(first: u64, second: u64) -> Self {
        let mut text = Self {
            digits: [b'-'; 41],
            start: 41,
        };
        text.put(second);
        text.start -= 1;
        text.put(first);
        text
    }

    /// Writes a number in front of what is there.
    fn put(&mut self, mut number: u64) {
        loop {
            self.start -= 1;
            self.digits[self.start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return;
            }
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }
}

/// One record.
pub enum Record {
    Native(Value),
    /// `{'key': key, 'value': value}`: what grouping makes of the records of one key.
    Group {
        key: Vec<u8>,
        value: Box<Record>,
    },
    /// A record on its way to the shard of its key.
    Keyed {
        key: Vec<u8>,
        record: Box<Record>,
    },
    /// An object of the language, opaque to the engine.
    Foreign(Foreign),
}

/// One object of the language, without an allocation of its own: records are made by the million.
pub struct Foreign {
    object: MaybeUninit<*mut ()>,
    drop: unsafe fn(*mut MaybeUninit<*mut ()>),
}

// SAFETY: [`Foreign::new`] takes what may go to other threads and be looked at there.
unsafe impl Send for Foreign {}
// SAFETY: the same.
unsafe impl Sync for Foreign {}

impl Foreign {
    /// Takes an object, which is as large as a pointer: a reference.
    pub fn new<T: Send + Sync>(object: T) -> Self {
        const { assert!(size_of::<T>() == size_of::<*mut ()>() && align_of::<T>() <= align_of::<*mut ()>()) };
        let mut place = MaybeUninit::<*mut ()>::uninit();
        // SAFETY: it has the size, as was checked.
        unsafe { place.as_mut_ptr().cast::<T>().write(object) };
        Self {
            object: place,
            drop: drop_as::<T>,
        }
    }

    /// The object.
    ///
    /// # Safety
    /// `T` is what [`Foreign::new`] was given.
    pub unsafe fn get<T>(&self) -> &T {
        // SAFETY: by the caller's promise.
        unsafe { &*self.object.as_ptr().cast::<T>() }
    }

    /// The object itself.
    ///
    /// # Safety
    /// `T` is what [`Foreign::new`] was given.
    pub unsafe fn into_inner<T>(self) -> T {
        let kept = ManuallyDrop::new(self);
        // SAFETY: by the caller's promise; what is left is not dropped.
        unsafe { kept.object.as_ptr().cast::<T>().read() }
    }
}

/// # Safety
/// A `T` stands there, which nobody uses afterwards.
unsafe fn drop_as<T>(place: *mut MaybeUninit<*mut ()>) {
    // SAFETY: by the caller's promise.
    unsafe { place.cast::<T>().drop_in_place() };
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: [`Foreign::new`] chose the function by what it put there; nobody has taken it.
        unsafe { (self.drop)(&raw mut self.object) };
    }
}

/// What an object of the language counts for where only that one knows its size.
const OBJECT_BYTES: usize = 64;

impl Record {
    /// About how many bytes it has.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Native(value) => value.bytes(),
            Self::Group { key, value } => key.len() + value.bytes(),
            Self::Keyed { key, record } => key.len() + record.bytes(),
            Self::Foreign(_) => OBJECT_BYTES,
        }
    }

    pub const fn int(number: i64) -> Self {
        Self::Native(Value::Int(number))
    }

    pub fn text(text: impl Into<Vec<u8>>) -> Self {
        Self::Native(Value::Text(text.into()))
    }

    pub fn group(key: Vec<u8>, value: Self) -> Self {
        Self::Group {
            key,
            value: Box::new(value),
        }
    }
}

impl From<Value> for Reply {
    fn from(value: Value) -> Self {
        match value {
            Value::None => Self::Null,
            Value::Int(number) => Self::Int(number),
            Value::Text(text) | Value::Key(text) => Self::Bulk(text),
            Value::SharedKey(text) => Self::bulk(&*text),
            Value::Id(first, second) => Self::Bulk(IdText::new(first, second).as_bytes().to_vec()),
            Value::Kept(kept) => Value::from(&kept).into(),
            Value::Name(name) => Self::bulk(name),
            Value::Float(number) => Self::Double(number),
            Value::List(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Value::Set(items) => Self::Set(items.into_iter().map(Self::from).collect()),
            Value::Missed(key) => Value::missed(key).into(),
            Value::Dict(fields) => Self::Map(
                fields
                    .into_iter()
                    .map(|(name, value)| (Self::Bulk(name.into_owned()), value.into()))
                    .collect(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_key_is_as_large_as_its_single_values() {
        let key = b"user:1".to_vec();
        assert_eq!(Value::Missed(key.clone()).bytes(), Value::missed(key).bytes());
    }

    #[test]
    fn ids_have_a_text() {
        for (first, second) in [(0, 0), (1_764_000_000_123, 10), (u64::MAX, u64::MAX)] {
            let text = IdText::new(first, second);
            assert_eq!(text.as_bytes(), format!("{first}-{second}").as_bytes());
        }
    }
}
