//! What flows through the steps: a record, native until a user function looks at it.
//!
//! Made by readers, carried by the pipeline, turned into a reply when it has passed the last step.

use std::{borrow::Cow, ffi::c_void, mem::ManuallyDrop, ptr::NonNull};

use crate::server::reply::Reply;

/// A value that the engine understands without the language. Byte strings are never assumed to be UTF-8.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Int(i64),
    Text(Vec<u8>),
    /// A key: a `str`, or where it is no UTF-8 immutable bytes.
    Key(Vec<u8>),
    /// A text of ours, which many records have.
    Name(&'static str),
    List(Vec<Value>),
    /// In order of insertion; names are distinct.
    Dict(Vec<(Cow<'static, [u8]>, Value)>),
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

/// One reference to an object of the language, without an allocation of its own: records are made by the million.
pub struct Foreign {
    object: NonNull<c_void>,
    drop: unsafe fn(NonNull<c_void>),
}

// SAFETY: by the promise of [`Foreign::new`].
unsafe impl Send for Foreign {}

impl Foreign {
    /// # Safety
    /// The reference may be given to another thread, and `drop` gives it back, on any thread.
    pub unsafe fn new(object: NonNull<c_void>, drop: unsafe fn(NonNull<c_void>)) -> Self {
        Self { object, drop }
    }

    /// The object, still referred to by this record.
    pub fn object(&self) -> NonNull<c_void> {
        self.object
    }

    /// The reference itself, which is the caller's now.
    pub fn into_object(self) -> NonNull<c_void> {
        ManuallyDrop::new(self).object
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: by the promise of [`Foreign::new`]; the reference was not given away.
        unsafe { (self.drop)(self.object) };
    }
}

impl Record {
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
            Value::Name(name) => Self::bulk(name),
            Value::List(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Value::Dict(fields) => Self::Map(
                fields
                    .into_iter()
                    .map(|(name, value)| (Self::Bulk(name.into_owned()), value.into()))
                    .collect(),
            ),
        }
    }
}
