//! What a loader returned, as values that the server can store. Contract: docs/contract/read-through.md chapter 1.
//!
//! Called attached, on the thread that finished the load: the text of an object may run code of users.

use pyo3::{
    exceptions::{PyOverflowError, PyTypeError},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{
        PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple,
        PyType,
    },
};

use super::{
    attach::{attach, bare},
    convert::{name_object, object_record, record_object},
    errors,
    keywords::number,
    language::CPython,
};
use crate::{
    engine::{
        language::{Called, Function},
        record::{Record, Value},
        scope::Scope,
    },
    read_through::{FailedLoad, Key, Lifetime, Loaded, Strangers, Unpack, Values},
    server::store::Content,
};

impl Unpack for CPython {
    fn unpack(
        &self,
        keys: &[Key],
        returned: Record,
        batch: Option<&Strangers>,
        ttl: Option<&dyn Function>,
    ) -> Result<Values, FailedLoad> {
        let returned = if batch.is_some() || ttl.is_some() || keys.len() != 1 {
            returned
        } else {
            match one_text(returned) {
                Ok(text) => {
                    let loaded = Loaded {
                        content: Some(Content::String(text)),
                        lifetime: Lifetime::Default,
                    };
                    return Ok(Values::from_iter([Ok(loaded)]));
                }
                Err(returned) => returned,
            }
        };
        attach(|py| {
            let returned = record_object(py, returned).map_err(|error| failed(py, &error))?;
            if let Some(strangers) = batch {
                let values = of_batch(py, keys, &returned, strangers).map_err(|error| failed(py, &error))?;
                let values = keys.iter().zip(values);
                return Ok(values
                    .map(|(key, value)| match value {
                        Some(value) => loaded(py, key, &value, ttl),
                        None => Ok(Loaded {
                            content: None,
                            lifetime: Lifetime::Default,
                        }),
                    })
                    .collect());
            }
            let values = keys.iter().map(|key| loaded(py, key, &returned, ttl));
            Ok(values.collect())
        })
    }
}

/// A text as nearly all loaders return one: nobody's code runs where it is looked at and where it ends, which costs a third of
/// [`attach`].
///
/// # Errors
/// It is something else, or has lone surrogates.
fn one_text(returned: Record) -> Result<Vec<u8>, Record> {
    bare(|py| {
        let object = match returned {
            // Only what is made can fail.
            Record::Foreign(_) => record_object(py, returned).map_err(|_| Record::Native(Value::None))?,
            native => return Err(native),
        };
        let text = object.cast_exact::<PyString>().ok();
        let text = text.and_then(|text| Some(text.to_str().ok()?.as_bytes().to_vec()));
        text.ok_or_else(|| object_record(object))
    })
}

fn failed(py: Python<'_>, error: &PyErr) -> FailedLoad {
    FailedLoad {
        kind: errors::kind(py, error),
        text: errors::text_of_callback(py, error),
    }
}

fn wrong(text: String) -> PyErr {
    PyTypeError::new_err(text)
}

fn name_of(object: &Bound<'_, PyAny>) -> String {
    let name = object.get_type().fully_qualified_name();
    name.map_or_else(|_| "an object".into(), |name| name.to_string_lossy().into_owned())
}

/// The values of a batch, in the order of the keys; `None` for those that the dict does not have.
fn of_batch<'py>(
    py: Python<'py>,
    keys: &[Key],
    returned: &Bound<'py, PyAny>,
    strangers: &Strangers,
) -> PyResult<Vec<Option<Bound<'py, PyAny>>>> {
    if let Ok(dict) = returned.cast::<PyDict>() {
        let names: Vec<_> = keys.iter().map(|key| name_object(py, &key.name)).collect();
        let values = names.iter().map(|name| dict.get_item(name));
        let values = values.collect::<PyResult<Vec<_>>>()?;
        if let (true, Some(name)) = (values.iter().all(Option::is_none), names.first()) {
            if let Some(other) = dict.iter().next().map(|(other, _)| other) {
                strangers.report(&name_of(&other), &name_of(name));
            }
        }
        return Ok(values);
    }
    let values: Vec<_> = if let Ok(list) = returned.cast::<PyList>() {
        list.iter().collect()
    } else if let Ok(tuple) = returned.cast::<PyTuple>() {
        tuple.iter().collect()
    } else {
        return Err(wrong(format!(
            "read_through: batch: expected a loader that returns a dict or a list, got {}",
            name_of(returned)
        )));
    };
    if values.len() != keys.len() {
        return Err(wrong(format!(
            "read_through: batch: expected a list of {} values, one for each key, got {}",
            keys.len(),
            values.len()
        )));
    }
    Ok(values.into_iter().map(Some).collect())
}

fn is_a(object: &Bound<'_, PyAny>, slot: &'static PyOnceLock<Py<PyType>>, name: &str) -> PyResult<bool> {
    object.is_instance(slot.import(object.py(), "pinion_read_through", name)?)
}

/// What most loaders return, which is certainly none of our classes: Python looks for the class of an object that is no instance twice.
fn is_plain(value: &Bound<'_, PyAny>) -> bool {
    value.is_exact_instance_of::<PyString>() || value.is_exact_instance_of::<PyDict>() || value.is_none()
}

fn loaded(
    py: Python<'_>,
    key: &Key,
    value: &Bound<'_, PyAny>,
    ttl: Option<&dyn Function>,
) -> Result<Loaded, FailedLoad> {
    let mut refused = None;
    let made = made(py, key, value, ttl, &mut refused);
    made.map_err(|error| refused.unwrap_or_else(|| failed(py, &error)))
}

/// `refused`: what the function raised that is to tell the lifetime.
fn made(
    py: Python<'_>,
    key: &Key,
    value: &Bound<'_, PyAny>,
    ttl: Option<&dyn Function>,
    refused: &mut Option<FailedLoad>,
) -> PyResult<Loaded> {
    static LOADED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if !is_plain(value) && is_a(value, &LOADED, "Loaded")? {
        let content = content(&value.getattr(intern!(py, "value"))?)?;
        let lifetime = lifetime(&value.getattr(intern!(py, "ttl"))?, "Loaded's ttl")?;
        return Ok(Loaded { content, lifetime });
    }
    let content = content(value)?;
    let lifetime = match ttl {
        Some(function) if content.is_some() => {
            let name = Record::Native(Value::Key(key.name.to_vec()));
            let called = function.fold(Some(name), object_record(value.clone()));
            let called = called.map_err(|text| {
                let error = errors::gears_error(text.text());
                let kind = noted_kind().unwrap_or_else(|| errors::kind(py, &error));
                *refused = Some(FailedLoad { kind, text });
                error
            });
            let seconds = match called? {
                Called::Now(seconds) => record_object(py, seconds)?,
                Called::Later(..) => {
                    return Err(wrong("read_through: ttl: expected a plain function".into()));
                }
            };
            lifetime(&seconds, "the function given as ttl")?
        }
        _ => Lifetime::Default,
    };
    Ok(Loaded { content, lifetime })
}

/// The type of what a function of the execution has raised.
fn noted_kind() -> Option<String> {
    let scope = Scope::current()?;
    scope.execution.as_ref()?.error_kind().map(Into::into)
}

/// 0 is not kept, `None` is endless.
fn lifetime(seconds: &Bound<'_, PyAny>, whose: &str) -> PyResult<Lifetime> {
    if seconds.is_none() {
        return Ok(Lifetime::Endless);
    }
    match number(seconds) {
        Some(0.0) => Ok(Lifetime::NotKept),
        Some(number) if number > 0.0 => Ok(Lifetime::Seconds(number)),
        _ => Err(wrong(format!(
            "read_through: expected seconds above 0, 0 or None of {whose}, got {}",
            seconds.repr()?.to_string_lossy()
        ))),
    }
}

/// `None` for what stands for "there is no such value".
fn content(value: &Bound<'_, PyAny>) -> PyResult<Option<Content>> {
    static SORTED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    if value.is_none() {
        return Ok(None);
    }
    if let Some(text) = text(value)? {
        return Ok(Some(Content::String(text)));
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        if !is_plain(value) && is_a(value, &SORTED, "Sorted")? {
            return sorted(dict);
        }
        let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::with_capacity(dict.len());
        for (name, value) in items_of(dict) {
            if !value.is_none() {
                fields.push((item(&name, "a hash's field")?, item(&value, "a hash's value")?));
            }
        }
        return Ok(not_empty(fields, Content::Hash));
    }
    let items = |items: Vec<Bound<'_, PyAny>>, what: &str| -> PyResult<Vec<Vec<u8>>> {
        items.iter().map(|value| item(value, what)).collect()
    };
    if let Ok(list) = value.cast::<PyList>() {
        return Ok(not_empty(
            items(list.iter().collect(), "a list's item")?,
            Content::List,
        ));
    }
    if let Ok(tuple) = value.cast::<PyTuple>() {
        return Ok(not_empty(
            items(tuple.iter().collect(), "a list's item")?,
            Content::List,
        ));
    }
    if value.is_instance_of::<PySet>() || value.is_instance_of::<PyFrozenSet>() {
        let members = members_of(value)?;
        return Ok(not_empty(
            items(members.iter().collect(), "a set's member")?,
            Content::Set,
        ));
    }
    Err(wrong(format!(
        "read_through: expected None, a text, bytes, a number, a date, a dict, a list, a set, Sorted or Loaded of the loader, got {}",
        name_of(value)
    )))
}

/// All of them before one is looked at: the code that does that is a user's, and may change the dict.
fn items_of<'py>(dict: &Bound<'py, PyDict>) -> Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    dict.iter().collect()
}

/// The members that a set holds itself, as `PyList` and `PyDict` have what lists and dicts hold: the `__iter__` of a class that is
/// derived from it may be anything.
fn members_of<'py>(set: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    let py = set.py();
    let plain = py.get_type::<PySet>().call1((set,))?;
    Ok(py.get_type::<PyList>().call1((plain,))?.cast_into::<PyList>()?)
}

fn not_empty<T>(items: Vec<T>, content: impl FnOnce(Vec<T>) -> Content) -> Option<Content> {
    (!items.is_empty()).then(|| content(items))
}

fn sorted(dict: &Bound<'_, PyDict>) -> PyResult<Option<Content>> {
    let mut members = Vec::with_capacity(dict.len());
    for (member, score) in items_of(dict) {
        let Some(number) = score_of(&score)? else {
            return Err(wrong(format!(
                "read_through: expected a number as a score of Sorted, got {}",
                name_of(&score)
            )));
        };
        members.push((item(&member, "a member of Sorted")?, number));
    }
    Ok(not_empty(members, Content::Sorted))
}

/// A number, also of a class that says so itself.
fn score_of(score: &Bound<'_, PyAny>) -> PyResult<Option<f64>> {
    if score.is_instance_of::<PyBool>() {
        return Ok(None);
    }
    let py = score.py();
    match score.extract::<f64>() {
        Ok(number) => Ok(Some(number).filter(|number| !number.is_nan())),
        // So Python says of what is none.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => Ok(None),
        Err(error) if error.is_instance_of::<PyOverflowError>(py) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A part of a container.
fn item(value: &Bound<'_, PyAny>, what: &str) -> PyResult<Vec<u8>> {
    text(value)?.ok_or_else(|| {
        wrong(format!(
            "read_through: expected a text, bytes, a number or a date as {what}, got {}",
            name_of(value)
        ))
    })
}

/// The bytes of what is a string value; `None` for anything else.
fn text(value: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u8>>> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Some(text.to_str()?.as_bytes().to_vec()));
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(Some(bytes.as_bytes().to_vec()));
    }
    if let Ok(bytes) = value.cast::<PyByteArray>() {
        return Ok(Some(bytes.to_vec()));
    }
    if value.is_instance_of::<PyBool>() {
        return Ok(None);
    }
    if value.is_instance_of::<PyInt>() || value.is_instance_of::<PyFloat>() || has_a_text(value)? {
        return Ok(Some(value.str()?.to_str()?.as_bytes().to_vec()));
    }
    Ok(None)
}

/// Types whose `str()` is the value.
fn has_a_text(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    static TYPES: PyOnceLock<Py<PyTuple>> = PyOnceLock::new();
    let py = value.py();
    let types = TYPES.get_or_try_init(py, || {
        let types = [
            ("decimal", "Decimal"),
            ("uuid", "UUID"),
            ("datetime", "date"),
            ("datetime", "time"),
            ("datetime", "timedelta"),
        ];
        let types = types
            .into_iter()
            .map(|(module, name)| PyModule::import(py, module)?.getattr(name))
            .collect::<PyResult<Vec<_>>>()?;
        Ok::<_, PyErr>(PyTuple::new(py, types)?.unbind())
    })?;
    value.is_instance(types.bind(py).as_any())
}
