//! Conversions between Python objects, records, replies and command arguments (docs/contract/python-api.md chapter 4).
//!
//! Byte strings that are valid UTF-8 become `str`, others `bytearray` (`bytes` as names of fields).

use std::{borrow::Cow, ptr, sync::Arc};

use pyo3::{
    ffi, intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PySet, PyString, PyTuple},
};

use super::{attach::ObjectRef, errors, keywords, rows, text};
use crate::{
    engine::{
        language::Shown,
        record::{Foreign, IdText, Record, Value},
    },
    server::{reply::Reply, string::Argv},
};

/// How deep a reply may be nested: deeper ones have no reader, and a list can contain itself.
const MAX_DEPTH: usize = 128;
const TOO_DEEP: &str = "the value is nested too deeply for a reply (does a list contain itself?)";
/// What stands for objects that no reply can carry.
const OPAQUE: &str = "PY RECORD";

/// A byte string of the server.
pub fn text_object<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyAny> {
    if let Some(text) = ascii_object(py, bytes) {
        return text;
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => PyString::new(py, text).into_any(),
        Err(_) => PyByteArray::new(py, bytes).into_any(),
    }
}

/// The text of ASCII only; Python's own way looks at each letter again, and takes twice as long. `None` for anything else.
fn ascii_object<'py>(py: Python<'py>, text: &[u8]) -> Option<Bound<'py, PyAny>> {
    // There is one object for each shorter text.
    if text.len() < 2 || !text.is_ascii() {
        return None;
    }
    // SAFETY: attached; the new object has as many places for letters, which nobody has seen so far.
    unsafe {
        let object = ffi::PyUnicode_New(text.len() as ffi::Py_ssize_t, 127);
        let object = Bound::from_owned_ptr_or_opt(py, object)?;
        let letters = ffi::PyUnicode_1BYTE_DATA(object.as_ptr());
        ptr::copy_nonoverlapping(text.as_ptr(), letters, text.len());
        Some(object)
    }
}

/// The words of a command as a list.
///
/// # Errors
/// Python has no memory.
pub fn words_object<'py>(py: Python<'py>, words: Argv<'_>) -> PyResult<Bound<'py, PyAny>> {
    Ok(PyList::new(py, words.iter().map(|word| text_object(py, word)))?.into_any())
}

/// The same for the name of something, which has to be hashable.
pub fn name_object<'py>(py: Python<'py>, name: &[u8]) -> Bound<'py, PyAny> {
    if let Some(text) = ascii_object(py, name) {
        return text;
    }
    match std::str::from_utf8(name) {
        Ok(text) => PyString::new(py, text).into_any(),
        Err(_) => PyBytes::new(py, name).into_any(),
    }
}

/// A text that every record has: made once where it is one of the usual ones.
pub(super) fn static_name<'py>(py: Python<'py>, name: &[u8]) -> Bound<'py, PyString> {
    let usual = match name {
        b"key" => intern!(py, "key"),
        b"event" => intern!(py, "event"),
        b"type" => intern!(py, "type"),
        b"value" => intern!(py, "value"),
        b"string" => intern!(py, "string"),
        b"hash" => intern!(py, "hash"),
        b"list" => intern!(py, "list"),
        b"empty" => intern!(py, "empty"),
        b"keymiss" => intern!(py, "keymiss"),
        b"id" => intern!(py, "id"),
        b"db" => intern!(py, "db"),
        b"set" => intern!(py, "set"),
        b"hset" => intern!(py, "hset"),
        b"del" => intern!(py, "del"),
        other => return PyString::intern(py, &String::from_utf8_lossy(other)),
    };
    usual.clone()
}

pub(super) fn value_object<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::None => py.None().into_bound(py),
        Value::Int(number) => number.into_pyobject(py)?.into_any(),
        Value::Text(text) => text_object(py, text),
        Value::Key(name) => name_object(py, name),
        Value::SharedKey(name) => name_object(py, name),
        Value::Id(first, second) => text_object(py, IdText::new(*first, *second).as_bytes()),
        Value::Kept(kept) => rows::kept_object(py, kept)?,
        Value::Name(name) => static_name(py, name.as_bytes()).into_any(),
        Value::Float(number) => PyFloat::new(py, *number).into_any(),
        // The words of a command, above all.
        Value::List(items) if !matches!(items.first(), Some(Value::Dict(_))) => {
            PyList::new(py, items.iter().map(Item))?.into_any()
        }
        Value::List(items) => {
            let mut rows = rows::Rows::default();
            let items = items.iter().map(|item| rows.object(py, item));
            PyList::new(py, items.collect::<PyResult<Vec<_>>>()?)?.into_any()
        }
        Value::Set(items) => {
            let items = items.iter().map(|item| value_object(py, item));
            PySet::new(py, items.collect::<PyResult<Vec<_>>>()?)?.into_any()
        }
        Value::Missed(key) => missed_object(py, key)?,
        Value::Dict(fields) => {
            let dict = PyDict::new(py);
            for (name, value) in fields {
                let name = match name {
                    // Names that every record has are made once.
                    Cow::Borrowed(name) => static_name(py, name).into_any(),
                    Cow::Owned(name) => name_object(py, name),
                };
                dict.set_item(name, value_object(py, value)?)?;
            }
            dict.into_any()
        }
    })
}

/// The record of a missed key: a copy of one that has all but the name of the key.
fn missed_object<'py>(py: Python<'py>, key: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    static MISSED: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
    let missed = MISSED.get_or_try_init(py, || {
        let missed = value_object(py, &Value::missed(Vec::new()))?;
        PyResult::Ok(missed.cast_into::<PyDict>()?.unbind())
    })?;
    let record = missed.bind(py).copy()?;
    record.set_item(intern!(py, "key"), text_object(py, key))?;
    Ok(record.into_any())
}

/// A value as part of a list.
struct Item<'a>(&'a Value);

impl<'py> IntoPyObject<'py> for Item<'_> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        value_object(py, self.0)
    }
}

/// A name and what it stands for.
pub(super) type Field = (Cow<'static, [u8]>, Value);

/// The object that a function gets for a record.
pub fn record_object(py: Python<'_>, record: Record) -> PyResult<Bound<'_, PyAny>> {
    match record {
        Record::Foreign(object) => {
            // SAFETY: `object_record` made it.
            let object = unsafe { object.into_inner::<ObjectRef>() };
            Ok(object.into_inner().into_bound(py))
        }
        native => object_of(py, &native),
    }
}

/// The same for a record that stays what it is.
pub fn object_of<'py>(py: Python<'py>, record: &Record) -> PyResult<Bound<'py, PyAny>> {
    match record {
        Record::Native(value) => value_object(py, value),
        Record::Group { key, value } => {
            let group = PyDict::new(py);
            group.set_item(intern!(py, "key"), text_object(py, key))?;
            group.set_item(intern!(py, "value"), object_of(py, value)?)?;
            Ok(group.into_any())
        }
        Record::Keyed { record, .. } => object_of(py, record),
        Record::Foreign(object) => {
            // SAFETY: `object_record` made it.
            let object = unsafe { object.get::<ObjectRef>() };
            Ok(object.bind(py).clone())
        }
    }
}

/// The record that carries an object.
pub fn object_record(object: Bound<'_, PyAny>) -> Record {
    Record::Foreign(Foreign::new(ObjectRef::new(object.unbind())))
}

/// The key of a group: a `str` is the key, anything else stands for its `repr()`.
///
/// # Errors
/// What `repr()` raised.
pub fn group_key(object: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    match object.cast::<PyString>() {
        Ok(text) => utf8(text, Surrogates::Escape),
        Err(_) => utf8(&object.repr()?, Surrogates::Escape),
    }
}

/// The elements of a list; anything else is one record.
pub fn parts(object: Bound<'_, PyAny>) -> Vec<Record> {
    match object.cast::<PyList>() {
        Ok(list) => list.iter().map(object_record).collect(),
        Err(_) => vec![object_record(object)],
    }
}

/// What `execute` returns.
///
/// # Errors
/// The reply is an error: `gears.error` with its text.
pub fn reply_object(py: Python<'_>, reply: Reply) -> PyResult<Bound<'_, PyAny>> {
    match reply {
        Reply::Error(text) => Err(errors::gears_error(String::from_utf8_lossy(
            text.trim_ascii_end(),
        ))),
        other => nested_object(py, other),
    }
}

fn nested_object<'py>(py: Python<'py>, reply: Reply) -> PyResult<Bound<'py, PyAny>> {
    let list = |items: Vec<Reply>| -> PyResult<Bound<'py, PyAny>> {
        let items = items
            .into_iter()
            .map(|item| nested_object(py, item))
            .collect::<PyResult<Vec<_>>>()?;
        Ok(PyList::new(py, items)?.into_any())
    };
    match reply {
        Reply::Null | Reply::NullArray => Ok(py.None().into_bound(py)),
        Reply::Status(text) | Reply::Bulk(text) | Reply::BigNumber(text) | Reply::Verbatim { text, .. } => {
            Ok(text_object(py, &text))
        }
        Reply::Error(text) => Ok(text_object(py, text.trim_ascii_end())),
        Reply::Int(number) => Ok(number.into_pyobject(py)?.into_any()),
        Reply::Bool(flag) => Ok(i64::from(flag).into_pyobject(py)?.into_any()),
        Reply::Double(number) => Ok(text_object(py, number.to_string().as_bytes())),
        Reply::Array(items) | Reply::Set(items) => list(items),
        Reply::Map(pairs) => list(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()),
    }
}

/// The arguments of `call` as words of a command: bytes as they are, everything else as its text.
///
/// # Errors
/// What `str()` raised; `gears.error` that names one with lone surrogates.
pub fn arguments(call: &str, args: &Bound<'_, PyTuple>) -> PyResult<Vec<Vec<u8>>> {
    let words = args.iter().enumerate();
    let words = words.map(|(place, object)| {
        let word = argument(&object)?;
        word.ok_or_else(|| keywords::not_encodable(&format!("{call}: argument {}", place + 1), &object))
    });
    words.collect()
}

/// `None`: UTF-8 does not have its text.
fn argument(object: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u8>>> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(Some(bytes.as_bytes().to_vec()));
    }
    if let Ok(bytes) = object.cast::<PyByteArray>() {
        return Ok(Some(bytes.to_vec()));
    }
    let encoded = |text: &Bound<'_, PyString>| text.to_str().ok().map(|text| text.as_bytes().to_vec());
    if let Ok(text) = object.cast::<PyString>() {
        return Ok(encoded(text));
    }
    Ok(encoded(&object.str()?))
}

/// How a `str` that cannot be encoded is treated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Surrogates {
    /// The caller gets the exception.
    Raise,
    /// There is nobody to raise it to.
    Escape,
}

/// A value as part of a reply: the table of docs/contract/commands.md 0.4 with what docs/contract/README.md says of it.
///
/// # Errors
/// Nested too deeply; an integer with more digits than Python converts; a lone surrogate if they are to be raised.
pub fn object_reply(object: &Bound<'_, PyAny>, surrogates: Surrogates) -> PyResult<Reply> {
    nested_reply(object, surrogates, 0)
}

/// The same for what nobody can have given a meaning of his own: texts, numbers and `None`. `None` for anything else.
#[inline]
pub fn plain_reply(object: &Bound<'_, PyAny>) -> Option<Reply> {
    if let Ok(text) = object.cast_exact::<PyString>() {
        return text
            .to_str()
            .ok()
            .map(|text| marked_text(text.as_bytes().to_vec()));
    }
    if let Ok(number) = object.cast_exact::<PyInt>() {
        return number.extract::<i64>().ok().map(Reply::Int);
    }
    object.is_none().then_some(Reply::Null)
}

/// The text of an object as a result, made later where that is the same.
///
/// # Errors
/// As [`result_reply`].
pub fn shown(object: Bound<'_, PyAny>) -> PyResult<Shown> {
    if text::is_settled(&object) {
        return Ok(Shown::Late(Arc::new(text::Late(ObjectRef::new(object.unbind())))));
    }
    result_reply(&object, true).map(Shown::Now)
}

/// What a function returned, or its text, as a result.
///
/// # Errors
/// As [`object_reply`]; what `str()` raised.
#[inline]
pub fn result_reply(object: &Bound<'_, PyAny>, text: bool) -> PyResult<Reply> {
    if text && !object.is_instance_of::<PyString>() {
        return Ok(Reply::Bulk(match text::plain(object) {
            Some(text) => text,
            None => utf8(&object.str()?, Surrogates::Escape)?,
        }));
    }
    plain_reply(object).map_or_else(|| object_reply(object, Surrogates::Escape), Ok)
}

fn nested_reply(object: &Bound<'_, PyAny>, surrogates: Surrogates, depth: usize) -> PyResult<Reply> {
    if depth > MAX_DEPTH {
        return Err(errors::gears_error(TOO_DEEP));
    }
    let nested = |item: &Bound<'_, PyAny>| nested_reply(item, surrogates, depth + 1);
    if let Ok(text) = object.cast::<PyString>() {
        return Ok(marked_text(utf8(text, surrogates)?));
    }
    if object.is_none() {
        return Ok(Reply::Null);
    }
    if let Ok(flag) = object.cast::<PyBool>() {
        return Ok(Reply::Int(i64::from(flag.is_true())));
    }
    if let Ok(number) = object.cast::<PyInt>() {
        return match number.extract::<i64>() {
            Ok(number) => Ok(Reply::Int(number)),
            Err(_) => Ok(Reply::bulk(number.str()?.to_str()?)),
        };
    }
    if let Ok(number) = object.cast::<PyFloat>() {
        let number = number.value();
        let text = if number.is_nan() {
            "nan".to_owned()
        } else {
            format!("{number:.6}")
        };
        return Ok(Reply::bulk(text));
    }
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(Reply::bulk(bytes.as_bytes()));
    }
    if let Ok(bytes) = object.cast::<PyByteArray>() {
        return Ok(Reply::Bulk(bytes.to_vec()));
    }
    if let Ok(list) = object.cast::<PyList>() {
        let items = list.iter().map(|item| nested(&item)).collect::<PyResult<_>>()?;
        return Ok(Reply::Array(items));
    }
    if let Ok(tuple) = object.cast::<PyTuple>() {
        let items = tuple.iter().map(|item| nested(&item)).collect::<PyResult<_>>()?;
        return Ok(Reply::Array(items));
    }
    if let Ok(dict) = object.cast::<PyDict>() {
        // All of them before one is looked at: the text of a long number may be a user's code, which may change the dict.
        let pairs: Vec<_> = dict.iter().collect();
        let pairs = pairs
            .iter()
            .map(|(key, value)| Ok((nested(key)?, nested(value)?)));
        return Ok(Reply::Map(pairs.collect::<PyResult<_>>()?));
    }
    Ok(Reply::bulk(OPAQUE))
}

/// A `str` of the user: a leading `+` or `-` makes it a simple string or an error.
fn marked_text(text: Vec<u8>) -> Reply {
    match text.as_slice() {
        [b'+', rest @ ..] if !rest.is_empty() => Reply::Status(rest.to_vec()),
        [b'-', rest @ ..] if !rest.is_empty() => Reply::Error(rest.to_vec()),
        _ => Reply::Bulk(text),
    }
}

/// The UTF-8 form of a `str`.
///
/// # Errors
/// A lone surrogate, if it is to be raised.
pub fn utf8(text: &Bound<'_, PyString>, surrogates: Surrogates) -> PyResult<Vec<u8>> {
    match text.to_str() {
        Ok(text) => Ok(text.as_bytes().to_vec()),
        Err(_) if surrogates == Surrogates::Escape => {
            // The method of `str`, whatever a class that is derived from it has.
            let kind = text.py().get_type::<PyString>();
            let encoded = kind.call_method1("encode", (text, "utf-8", "backslashreplace"))?;
            Ok(encoded.cast_into::<PyBytes>()?.as_bytes().to_vec())
        }
        Err(error) => Err(error),
    }
}
