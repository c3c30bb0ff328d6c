//! A reply as data: read from a command's result, made by a function, sent to a client.
//!
//! The crate's own conversion loses types (bulk becomes simple, array errors become strings), hence this one.

use std::{borrow::Cow, ffi::CString};

use redis_module::raw;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Anything that the protocol can say. Byte strings are never assumed to be UTF-8.
// Whatever was read of bytes is as good a reply as any other: no method counts on more than its type says.
#[allow(clippy::unsafe_derive_deserialize)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Null,
    /// RESP2's `*-1`; the same as [`Reply::Null`] for a RESP3 client.
    NullArray,
    Status(Vec<u8>),
    /// The text after the dash, with its code word if it has one.
    Error(Vec<u8>),
    Int(i64),
    Double(f64),
    Bool(bool),
    Bulk(Vec<u8>),
    BigNumber(Vec<u8>),
    Verbatim {
        format: Vec<u8>,
        text: Vec<u8>,
    },
    Array(Vec<Reply>),
    Set(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
}

/// How the reply of a command in RESP3 relates to that in RESP2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Each part by itself: a map is an array with names and values in turn, a double a text.
    Plain,
    /// Its arrays of two are in one array, one after the other.
    Pairs,
    /// Its map is an array of arrays of two.
    Streams,
}

impl Shape {
    /// That of a command of the server, by its own name in lower case.
    pub(super) fn of_command(name: &[u8]) -> Self {
        match name {
            b"zrange" | b"zrevrange" | b"zrangebyscore" | b"zrevrangebyscore" | b"zrandmember"
            | b"zunion" | b"zinter" | b"zdiff" | b"zpopmin" | b"zpopmax" | b"hrandfield" => Self::Pairs,
            b"xread" | b"xreadgroup" => Self::Streams,
            _ => Self::Plain,
        }
    }
}

impl Reply {
    pub fn ok() -> Self {
        Self::Status(b"OK".to_vec())
    }

    pub fn status(text: &str) -> Self {
        Self::Status(text.into())
    }

    pub fn error(text: impl AsRef<[u8]>) -> Self {
        Self::Error(text.as_ref().to_vec())
    }

    pub fn bulk(text: impl AsRef<[u8]>) -> Self {
        Self::Bulk(text.as_ref().to_vec())
    }

    /// A bulk string, or nil.
    pub fn bulk_or_null(text: Option<impl AsRef<[u8]>>) -> Self {
        text.map_or(Self::Null, Self::bulk)
    }

    pub fn bulks<T: AsRef<[u8]>>(items: impl IntoIterator<Item = T>) -> Self {
        Self::Array(items.into_iter().map(Self::bulk).collect())
    }

    /// Reads a call's reply, nested ones included.
    ///
    /// # Safety
    /// `reply` is null or alive.
    pub(super) unsafe fn read(reply: *mut raw::RedisModuleCallReply) -> Self {
        if reply.is_null() {
            return Self::Null;
        }
        // SAFETY: by the caller's promise; elements live as long as their parent.
        unsafe {
            let items = |element: &dyn Fn(usize) -> *mut raw::RedisModuleCallReply| {
                let len = api!(RedisModule_CallReplyLength(reply));
                (0..len).map(|index| Self::read(element(index))).collect()
            };
            match api!(RedisModule_CallReplyType(reply)) as isize {
                raw::REDISMODULE_REPLY_STRING => string(reply),
                raw::REDISMODULE_REPLY_ERROR => Self::Error(buffer(reply)),
                raw::REDISMODULE_REPLY_INTEGER => Self::Int(api!(RedisModule_CallReplyInteger(reply))),
                raw::REDISMODULE_REPLY_ARRAY => Self::Array(items(&|index| {
                    api!(RedisModule_CallReplyArrayElement(reply, index))
                })),
                raw::REDISMODULE_REPLY_SET => Self::Set(items(&|index| {
                    api!(RedisModule_CallReplySetElement(reply, index))
                })),
                raw::REDISMODULE_REPLY_MAP => {
                    let len = api!(RedisModule_CallReplyLength(reply));
                    let read = |reply| Self::read(reply);
                    Self::Map((0..len).map(|index| pair(reply, index, &read)).collect())
                }
                raw::REDISMODULE_REPLY_DOUBLE => Self::Double(api!(RedisModule_CallReplyDouble(reply))),
                raw::REDISMODULE_REPLY_BOOL => Self::Bool(api!(RedisModule_CallReplyBool(reply)) != 0),
                raw::REDISMODULE_REPLY_BIG_NUMBER => {
                    let mut len = 0;
                    let text = api!(RedisModule_CallReplyBigNumber(reply, &raw mut len));
                    Self::BigNumber(copy(text, len))
                }
                raw::REDISMODULE_REPLY_VERBATIM_STRING => {
                    let (mut len, mut format) = (0, std::ptr::null());
                    let text = api!(RedisModule_CallReplyVerbatim(
                        reply,
                        &raw mut len,
                        &raw mut format
                    ));
                    Self::Verbatim {
                        format: copy(format, 3),
                        text: copy(text, len),
                    }
                }
                _ if first_bytes(reply).starts_with(b"*") => Self::NullArray,
                _ => Self::Null,
            }
        }
    }

    /// Reads a call's reply in RESP3 as the server would have given it in RESP2.
    ///
    /// # Safety
    /// `reply` is null or alive.
    pub(super) unsafe fn read_as_resp2(reply: *mut raw::RedisModuleCallReply, shape: Shape) -> Self {
        if reply.is_null() {
            return Self::Null;
        }
        // SAFETY: by the caller's promise; elements live as long as their parent.
        unsafe {
            let plain = |reply| Self::read_as_resp2(reply, Shape::Plain);
            let len = || api!(RedisModule_CallReplyLength(reply));
            match api!(RedisModule_CallReplyType(reply)) as isize {
                raw::REDISMODULE_REPLY_ARRAY => {
                    let items =
                        (0..len()).map(|index| plain(api!(RedisModule_CallReplyArrayElement(reply, index))));
                    let flat = |item| match item {
                        Self::Array(pair) if shape == Shape::Pairs => pair,
                        item => vec![item],
                    };
                    Self::Array(items.flat_map(flat).collect())
                }
                raw::REDISMODULE_REPLY_SET => {
                    let items =
                        (0..len()).map(|index| plain(api!(RedisModule_CallReplySetElement(reply, index))));
                    Self::Array(items.collect())
                }
                raw::REDISMODULE_REPLY_MAP => {
                    let pairs = (0..len()).map(|index| pair(reply, index, &plain));
                    Self::Array(match shape {
                        Shape::Streams => pairs.map(|(key, value)| Self::Array(vec![key, value])).collect(),
                        _ => pairs.flat_map(|(key, value)| [key, value]).collect(),
                    })
                }
                // The digits are the same; what they are read as may have others.
                raw::REDISMODULE_REPLY_DOUBLE => Self::Bulk(digits(reply)),
                _ => match Self::read(reply) {
                    Self::Bool(flag) => Self::Int(i64::from(flag)),
                    Self::BigNumber(text) | Self::Verbatim { text, .. } => Self::Bulk(text),
                    other => other,
                },
            }
        }
    }

    /// Sends the reply to the client of `ctx`, in that client's protocol.
    ///
    /// # Safety
    /// `ctx` is the context of a command or of a reply callback, with no other reply begun.
    pub(super) unsafe fn send(&self, ctx: *mut raw::RedisModuleCtx) {
        let resp3 = has_api!(RedisModule_ReplyWithMap);
        // SAFETY: by the caller's promise; every buffer outlives the call, which copies it.
        unsafe {
            match self {
                Self::Null => api!(RedisModule_ReplyWithNull(ctx)),
                Self::NullArray => api!(RedisModule_ReplyWithNullArray(ctx)),
                Self::Status(text) => {
                    api!(RedisModule_ReplyWithSimpleString(ctx, line(text).as_ptr()))
                }
                Self::Error(text) => api!(RedisModule_ReplyWithError(ctx, line(text).as_ptr())),
                Self::Int(number) => api!(RedisModule_ReplyWithLongLong(ctx, *number)),
                Self::Double(number) => api!(RedisModule_ReplyWithDouble(ctx, *number)),
                Self::Bool(flag) if resp3 => {
                    api!(RedisModule_ReplyWithBool(ctx, i32::from(*flag)))
                }
                Self::Bool(flag) => api!(RedisModule_ReplyWithLongLong(ctx, i64::from(*flag))),
                Self::BigNumber(text) if resp3 => {
                    api!(RedisModule_ReplyWithBigNumber(
                        ctx,
                        text.as_ptr().cast(),
                        text.len()
                    ))
                }
                Self::Verbatim { format, text } if resp3 => {
                    let format = line(format);
                    api!(RedisModule_ReplyWithVerbatimStringType(
                        ctx,
                        text.as_ptr().cast(),
                        text.len(),
                        format.as_ptr()
                    ))
                }
                Self::Bulk(text) | Self::BigNumber(text) | Self::Verbatim { text, .. } => {
                    api!(RedisModule_ReplyWithStringBuffer(
                        ctx,
                        text.as_ptr().cast(),
                        text.len()
                    ))
                }
                Self::Set(items) if resp3 => {
                    let begun = api!(RedisModule_ReplyWithSet(ctx, items.len() as _));
                    for item in items {
                        item.send(ctx);
                    }
                    begun
                }
                Self::Array(items) | Self::Set(items) => {
                    let begun = api!(RedisModule_ReplyWithArray(ctx, items.len() as _));
                    for item in items {
                        item.send(ctx);
                    }
                    begun
                }
                Self::Map(pairs) => {
                    let begun = if resp3 {
                        api!(RedisModule_ReplyWithMap(ctx, pairs.len() as _))
                    } else {
                        api!(RedisModule_ReplyWithArray(ctx, pairs.len() as i64 * 2))
                    };
                    for (key, value) in pairs {
                        key.send(ctx);
                        value.send(ctx);
                    }
                    begun
                }
            };
        }
    }
}

/// A simple string or an error cannot hold line ends or NUL: blanks, respectively an end.
fn line(text: &[u8]) -> CString {
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let needs_change = text.iter().any(|byte| matches!(byte, b'\r' | b'\n'));
    let text: Cow<'_, [u8]> = if needs_change {
        text.iter()
            .map(|&byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte })
            .collect()
    } else {
        Cow::Borrowed(text)
    };
    CString::new(text).unwrap_or_default()
}

/// # Safety
/// `text` is null or points at `len` bytes.
unsafe fn copy(text: *const std::ffi::c_char, len: usize) -> Vec<u8> {
    if text.is_null() {
        return Vec::new();
    }
    // SAFETY: by the caller's promise.
    unsafe { std::slice::from_raw_parts(text.cast(), len).to_vec() }
}

/// # Safety
/// `reply` is alive and a string or an error.
unsafe fn buffer(reply: *mut raw::RedisModuleCallReply) -> Vec<u8> {
    let mut len = 0;
    // SAFETY: by the caller's promise.
    unsafe {
        let text = api!(RedisModule_CallReplyStringPtr(reply, &raw mut len));
        copy(text, len)
    }
}

/// # Safety
/// `reply` is alive.
unsafe fn first_bytes<'a>(reply: *mut raw::RedisModuleCallReply) -> &'a [u8] {
    // SAFETY: by the caller's promise.
    let text = unsafe { protocol(reply) };
    &text[..text.len().min(3)]
}

/// A reply as the protocol has it.
///
/// # Safety
/// `reply` is alive.
unsafe fn protocol<'a>(reply: *mut raw::RedisModuleCallReply) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: by the caller's promise; the protocol text lives as long as the reply.
    unsafe {
        let text = api!(RedisModule_CallReplyProto(reply, &raw mut len));
        if text.is_null() {
            &[]
        } else {
            std::slice::from_raw_parts(text.cast(), len)
        }
    }
}

/// The digits of a double.
///
/// # Safety
/// `reply` is alive and a double.
unsafe fn digits(reply: *mut raw::RedisModuleCallReply) -> Vec<u8> {
    // SAFETY: by the caller's promise.
    let text = unsafe { protocol(reply) };
    text.strip_prefix(b",").unwrap_or(text).trim_ascii_end().to_vec()
}

/// The API calls simple and bulk strings both "string"; the protocol text tells them apart.
///
/// # Safety
/// `reply` is alive and a string.
unsafe fn string(reply: *mut raw::RedisModuleCallReply) -> Reply {
    // SAFETY: by the caller's promise.
    unsafe {
        if first_bytes(reply).starts_with(b"+") {
            Reply::Status(buffer(reply))
        } else {
            Reply::Bulk(buffer(reply))
        }
    }
}

/// # Safety
/// `reply` is alive and a map with more than `index` entries.
unsafe fn pair(
    reply: *mut raw::RedisModuleCallReply,
    index: usize,
    read: &dyn Fn(*mut raw::RedisModuleCallReply) -> Reply,
) -> (Reply, Reply) {
    let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: by the caller's promise.
    unsafe {
        api!(RedisModule_CallReplyMapElement(
            reply,
            index,
            &raw mut key,
            &raw mut value
        ));
        (read(key), read(value))
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Self::error(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_to_one_line() {
        assert_eq!(line(b"a\r\nb").as_bytes(), b"a  b");
        assert_eq!(line(b"a\0b").as_bytes(), b"a");
        assert_eq!(line(b"plain").as_bytes(), b"plain");
    }

    #[test]
    fn nil_stands_for_no_text() {
        assert_eq!(Reply::bulk_or_null(None::<&str>), Reply::Null);
        assert_eq!(Reply::bulk_or_null(Some("x")), Reply::bulk("x"));
    }
}
