//! What `str()` makes of plain values, without asking Python: an event's record becomes a text when it has passed the last
//! step, and most records hold nothing but names, numbers and short texts.

use std::{io::Write, ptr};

use pyo3::{
    Borrowed, ffi,
    prelude::*,
    types::{PyBool, PyByteArray, PyDict, PyInt, PyList, PyString, PyTuple},
};

use super::{
    attach::{ObjectRef, attach},
    convert::{self, Surrogates},
};
use crate::engine::language::LateText;

/// Deeper values are Python's: a list can contain itself.
const MAX_DEPTH: usize = 8;

/// The text of a number, of `None`, or of lists, tuples and dicts of such and of ASCII texts. `None` for anything else, of
/// which only Python knows the text.
pub fn plain(object: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(96);
    write_value(&mut text, object, 0).then_some(text)
}

/// A dict of which [`is_settled`] was true, and which nobody has got since.
pub struct Late(pub ObjectRef);

impl LateText for Late {
    fn text(&self) -> Vec<u8> {
        attach(|py| {
            let object = self.0.bind(py);
            let by_python = || convert::utf8(&object.str().ok()?, Surrogates::Escape).ok();
            plain(object).or_else(by_python).unwrap_or_default()
        })
    }
}

/// True for a dict that only its one reference leads to, of values that never change, or that it alone leads to: its text is the same
/// whenever it is made, runs no code of users and raises nothing.
pub fn is_settled(object: &Bound<'_, PyAny>) -> bool {
    object.is_exact_instance_of::<PyDict>() && is_fixed(object.as_borrowed(), 0)
}

fn is_fixed(object: Borrowed<'_, '_, PyAny>, depth: usize) -> bool {
    if never_changes(object) {
        return true;
    }
    if let Ok(number) = object.cast_exact::<PyInt>() {
        // Of longer ones Python does not tell the text.
        return number.extract::<i64>().is_ok();
    }
    // SAFETY: the object is alive.
    if unsafe { ffi::Py_REFCNT(object.as_ptr()) } > 1 || depth > MAX_DEPTH {
        return false;
    }
    if let Ok(dict) = object.cast_exact::<PyDict>() {
        return are_fixed(&dict, depth + 1);
    }
    if let Ok(list) = object.cast_exact::<PyList>() {
        // Whoever goes through a list has a reference to the item that he is at.
        let plain = |item: Bound<'_, PyAny>| !is_container(&item) && is_fixed(item.as_borrowed(), depth + 1);
        return list.iter().all(plain);
    }
    object.is_exact_instance_of::<PyByteArray>()
}

/// True for most of what records hold. By the addresses of types, since asking for each of them costs more than all of this.
#[inline]
fn never_changes(object: Borrowed<'_, '_, PyAny>) -> bool {
    // SAFETY: the object is alive; of the types only the addresses are taken.
    unsafe {
        let kind = ffi::Py_TYPE(object.as_ptr()).cast_const();
        ptr::eq(kind, &raw const ffi::PyUnicode_Type)
            || ptr::eq(object.as_ptr(), ffi::Py_None())
            || ptr::eq(kind, &raw const ffi::PyBytes_Type)
            || ptr::eq(kind, &raw const ffi::PyFloat_Type)
            || ptr::eq(kind, &raw const ffi::PyBool_Type)
    }
}

fn is_container(object: &Bound<'_, PyAny>) -> bool {
    object.is_exact_instance_of::<PyDict>() || object.is_exact_instance_of::<PyList>()
}

/// The same of all names and values of a dict, without a reference to any of them.
fn are_fixed(dict: &Bound<'_, PyDict>, depth: usize) -> bool {
    let (mut place, mut name, mut value) = (0, ptr::null_mut(), ptr::null_mut());
    // SAFETY: attached; nothing of what is done here changes the dict, so that its names and values stay.
    unsafe {
        while ffi::PyDict_Next(dict.as_ptr(), &raw mut place, &raw mut name, &raw mut value) != 0 {
            let py = dict.py();
            let (name, value) = (Borrowed::from_ptr(py, name), Borrowed::from_ptr(py, value));
            let is_fixed = |object| never_changes(object) || is_fixed(object, depth);
            if !(is_fixed(name) && is_fixed(value)) {
                return false;
            }
        }
    }
    true
}

/// Appends `repr()` of a value; false if Python is to be asked, which leaves half of it behind.
fn write_value(text: &mut Vec<u8>, object: &Bound<'_, PyAny>, depth: usize) -> bool {
    if depth > MAX_DEPTH {
        return false;
    }
    if let Ok(string) = object.cast_exact::<PyString>() {
        return string.to_str().is_ok_and(|string| write_string(text, string));
    }
    if let Ok(number) = object.cast_exact::<PyInt>() {
        return number
            .extract::<i64>()
            .is_ok_and(|number| write!(text, "{number}").is_ok());
    }
    if object.is_none() {
        text.extend_from_slice(b"None");
        return true;
    }
    if let Ok(dict) = object.cast_exact::<PyDict>() {
        let pairs = dict.iter();
        return write_items(text, b'{', pairs, b'}', |text, (name, value)| {
            write_value(text, &name, depth + 1) && {
                text.extend_from_slice(b": ");
                write_value(text, &value, depth + 1)
            }
        });
    }
    if let Ok(list) = object.cast_exact::<PyList>() {
        return write_items(text, b'[', list.iter(), b']', |text, item| {
            write_value(text, &item, depth + 1)
        });
    }
    if let Ok(tuple) = object.cast_exact::<PyTuple>() {
        let alone = tuple.len() == 1;
        return write_items(text, b'(', tuple.iter(), b')', |text, item| {
            let written = write_value(text, &item, depth + 1);
            if alone {
                text.push(b',');
            }
            written
        });
    }
    if let Ok(flag) = object.cast_exact::<PyBool>() {
        text.extend_from_slice(if flag.is_true() { b"True" } else { b"False" });
        return true;
    }
    false
}

fn write_items<T>(
    text: &mut Vec<u8>,
    begin: u8,
    items: impl Iterator<Item = T>,
    end: u8,
    mut write: impl FnMut(&mut Vec<u8>, T) -> bool,
) -> bool {
    text.push(begin);
    for (place, item) in items.enumerate() {
        if place > 0 {
            text.extend_from_slice(b", ");
        }
        if !write(text, item) {
            return false;
        }
    }
    text.push(end);
    true
}

/// Appends a text in quotes; false if it is not ASCII: what of the rest can be printed is a large table.
fn write_string(text: &mut Vec<u8>, string: &str) -> bool {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'\'' && byte != b'\\';
    if string.bytes().all(is_plain) {
        text.reserve(string.len() + 2);
        text.push(b'\'');
        text.extend_from_slice(string.as_bytes());
        text.push(b'\'');
        return true;
    }
    if !string.is_ascii() {
        return false;
    }
    let quote = if string.contains('\'') && !string.contains('"') {
        b'"'
    } else {
        b'\''
    };
    text.push(quote);
    for &byte in string.as_bytes() {
        match byte {
            b'\\' => text.extend_from_slice(b"\\\\"),
            b'\t' => text.extend_from_slice(b"\\t"),
            b'\n' => text.extend_from_slice(b"\\n"),
            b'\r' => text.extend_from_slice(b"\\r"),
            _ if byte == quote => text.extend_from_slice(&[b'\\', quote]),
            b' '..=b'~' => text.push(byte),
            _ => text.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    text.push(quote);
    true
}

#[cfg(test)]
mod tests {
    use super::write_string;

    #[test]
    fn texts_are_quoted_as_python_does() {
        let quoted = |string: &str| {
            let mut text = Vec::new();
            let plain = write_string(&mut text, string);
            plain.then(|| String::from_utf8(text).unwrap_or_default())
        };
        assert_eq!(quoted("a b").as_deref(), Some("'a b'"));
        assert_eq!(quoted("it's").as_deref(), Some("\"it's\""));
        assert_eq!(quoted("'\"").as_deref(), Some("'\\'\"'"));
        assert_eq!(quoted("\t\\\0\x7f").as_deref(), Some("'\\t\\\\\\x00\\x7f'"));
        assert_eq!(quoted("\u{e4}"), None);
    }
}
