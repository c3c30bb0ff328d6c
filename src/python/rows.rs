//! Lists whose items are rows that are alike: what a batch of changes, or of a stream, is. Whoever makes the objects of a record calls it
//! (`convert`), attached.
//!
//! A row is a copy of the one before it, in which what differs is put anew: that takes Python a third of what it takes to put a dict
//! together. So do hashes with the same fields; the names of those are made once, too.

use std::borrow::Cow;

use pyo3::{
    prelude::*,
    types::{PyDict, PyList, PySet, PyString},
};

use super::convert::{Field, name_object, static_name, value_object};
use crate::{
    engine::record::Value,
    server::snapshot::{Fields, Parts, Snapshot},
};

/// The items of one list.
#[derive(Default)]
pub struct Rows<'v, 'py> {
    last: Option<Row<'v, 'py>>,
    last_hash: Option<Hash<'v, 'py>>,
}

/// A row whose names are ours.
struct Row<'v, 'py> {
    fields: &'v [Field],
    names: Vec<Bound<'py, PyString>>,
    dict: Bound<'py, PyDict>,
}

/// A hash that is in a row.
struct Hash<'v, 'py> {
    fields: Fields<'v>,
    names: Vec<Bound<'py, PyAny>>,
    dict: Bound<'py, PyDict>,
}

impl<'v, 'py> Rows<'v, 'py> {
    /// The next item.
    ///
    /// # Errors
    /// Python has no memory.
    pub fn object(&mut self, py: Python<'py>, item: &'v Value) -> PyResult<Bound<'py, PyAny>> {
        let Value::Dict(fields) = item else {
            return value_object(py, item);
        };
        if let Some(mut last) = self.last.take_if(|last| are_alike(last.fields, fields)) {
            let dict = last.dict.copy()?;
            for ((name, (_, before)), (_, value)) in last.names.iter().zip(last.fields).zip(fields) {
                if !is_same(before, value) {
                    dict.set_item(name, self.cell(py, value)?)?;
                }
            }
            last.fields = fields;
            last.dict = dict.clone();
            self.last = Some(last);
            return Ok(dict.into_any());
        }
        let ours = |(name, _): &Field| match name {
            Cow::Borrowed(name) => Some(static_name(py, name)),
            Cow::Owned(_) => None,
        };
        let Some(names) = fields.iter().map(ours).collect::<Option<Vec<_>>>() else {
            return value_object(py, item);
        };
        let dict = PyDict::new(py);
        for (name, (_, value)) in names.iter().zip(fields) {
            dict.set_item(name, self.cell(py, value)?)?;
        }
        self.last = Some(Row {
            fields,
            names,
            dict: dict.clone(),
        });
        Ok(dict.into_any())
    }

    fn cell(&mut self, py: Python<'py>, value: &'v Value) -> PyResult<Bound<'py, PyAny>> {
        match value {
            Value::Kept(kept) => match kept.parts() {
                Parts::Hash(fields) => self.hash(py, fields),
                _ => value_object(py, value),
            },
            _ => value_object(py, value),
        }
    }

    fn hash(&mut self, py: Python<'py>, fields: Fields<'v>) -> PyResult<Bound<'py, PyAny>> {
        if let Some(last) = &mut self.last_hash {
            if have_same_names(last.fields.clone(), fields.clone()) {
                let dict = last.dict.copy()?;
                for (name, (_, value)) in last.names.iter().zip(fields) {
                    dict.set_item(name, name_object(py, value))?;
                }
                last.dict = dict.clone();
                return Ok(dict.into_any());
            }
        }
        let dict = PyDict::new(py);
        let mut names = Vec::new();
        for (name, value) in fields.clone() {
            let name = name_object(py, name);
            dict.set_item(&name, name_object(py, value))?;
            names.push(name);
        }
        self.last_hash = Some(Hash {
            fields,
            names,
            dict: dict.clone(),
        });
        Ok(dict.into_any())
    }
}

/// The value that a key had.
///
/// # Errors
/// Python has no memory.
pub fn kept_object<'py>(py: Python<'py>, kept: &Snapshot) -> PyResult<Bound<'py, PyAny>> {
    let key = |part| name_object(py, part);
    Ok(match kept.parts() {
        Parts::None => py.None().into_bound(py),
        Parts::String(text) => key(text),
        Parts::List(items) => PyList::new(py, items.map(key).collect::<Vec<_>>())?.into_any(),
        Parts::Set(items) => PySet::new(py, items.map(key))?.into_any(),
        Parts::Hash(fields) => {
            let dict = PyDict::new(py);
            for (name, value) in fields {
                dict.set_item(key(name), key(value))?;
            }
            dict.into_any()
        }
        Parts::Sorted(members) => {
            let dict = PyDict::new(py);
            for (member, score) in members {
                dict.set_item(key(member), score)?;
            }
            dict.into_any()
        }
    })
}

/// True if both have the same names, all of them ours.
fn are_alike(one: &[Field], other: &[Field]) -> bool {
    let same = |((one, _), (other, _)): (&Field, &Field)| match (one, other) {
        (Cow::Borrowed(one), Cow::Borrowed(other)) => std::ptr::eq(*one, *other),
        _ => false,
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

/// True if both are the same value, which nobody can change, as far as that is seen at once.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::None, Value::None) => true,
        (Value::Int(one), Value::Int(other)) => one == other,
        (Value::Name(one), Value::Name(other)) => one == other,
        _ => false,
    }
}

/// True if two hashes have the same fields in the same order.
fn have_same_names(mut one: Fields<'_>, mut other: Fields<'_>) -> bool {
    loop {
        match (one.next(), other.next()) {
            (Some((one, _)), Some((other, _))) if one == other => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}
