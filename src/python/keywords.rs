//! Keyword arguments of what scripts register by one call (`read_through`, `write_behind`): each is checked, and an error names it and
//! what was expected.

use pyo3::{
    exceptions::{PyException, PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyBool, PyDict, PyFloat, PyInt, PyIterator, PyString, PyTuple},
};

use super::{callback::Code, errors};

/// Longer than anything that one can mean, and short enough for every clock: a century.
pub const LONGEST_S: f64 = 100.0 * 366.0 * 24.0 * 3600.0;

/// What `max_memory` is.
pub const BYTES: &str = "a whole number of bytes from 1 on";

/// More names than a server has commands, or events.
pub const MOST_NAMES: usize = 1000;

/// The keyword arguments of one call.
pub struct Keywords<'a, 'py> {
    /// The function that was called.
    call: &'static str,
    given: &'a Bound<'py, PyDict>,
}

impl<'a, 'py> Keywords<'a, 'py> {
    /// # Errors
    /// One of them is none of `known`.
    pub fn new(call: &'static str, given: &'a Bound<'py, PyDict>, known: &[&str]) -> PyResult<Self> {
        for name in names_of(given) {
            if !known.contains(&name.as_str()) {
                return Err(errors::gears_error(format!(
                    "{call}: {name}: expected one of {}",
                    known.join(", ")
                )));
            }
        }
        Ok(Self { call, given })
    }

    /// The function that was called.
    pub fn call(&self) -> &'static str {
        self.call
    }

    /// An error that names an argument and what was expected.
    pub fn expected(&self, name: &str, what: &str, got: &Bound<'_, PyAny>) -> PyErr {
        expected(self.call, name, what, got)
    }

    /// `None` is as good as nothing.
    pub fn get(&self, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(self.given.get_item(name)?.filter(|value| !value.is_none()))
    }

    /// The value of an argument as `read` has it.
    pub fn read<T>(
        &self,
        name: &str,
        what: &str,
        read: impl FnOnce(&Bound<'py, PyAny>) -> Option<T>,
    ) -> PyResult<Option<T>> {
        let Some(value) = self.get(name)? else {
            return Ok(None);
        };
        read(&value)
            .map(Some)
            .ok_or_else(|| self.expected(name, what, &value))
    }

    pub fn text(&self, name: &str) -> PyResult<Option<String>> {
        self.read(name, "a str", |value| {
            Some(value.cast::<PyString>().ok()?.to_str().ok()?.to_owned())
        })
    }

    pub fn function(&self, name: &str) -> PyResult<Option<Code>> {
        self.read(name, "a function", |value| {
            value.is_callable().then(|| Code::new(value.clone()))
        })
    }

    pub fn flag(&self, name: &str) -> PyResult<Option<bool>> {
        self.read(name, "True or False", |value| {
            Some(value.cast::<PyBool>().ok()?.is_true())
        })
    }

    /// One of these words.
    pub fn word<T: Copy>(&self, name: &str, words: [(&str, T); 2]) -> PyResult<Option<T>> {
        let what = format!("'{}' or '{}'", words[0].0, words[1].0);
        self.read(name, &what, |value| {
            let text = value.cast::<PyString>().ok()?;
            let text = text.to_str().ok()?;
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, meant)| *meant)
        })
    }

    /// Seconds, or `default`.
    pub fn seconds(&self, name: &str, default: f64) -> PyResult<f64> {
        let given = self.read(name, "a number of seconds that is not negative", |value| {
            number(value).filter(|number| (0.0..=LONGEST_S).contains(number))
        })?;
        Ok(given.unwrap_or(default))
    }

    pub fn positive_seconds(&self, name: &str) -> PyResult<Option<f64>> {
        self.read(name, "a number of seconds above 0", |value| {
            number(value).filter(|&number| number > 0.0 && number <= LONGEST_S)
        })
    }

    pub fn count(&self, name: &str) -> PyResult<Option<u64>> {
        self.read(name, "a whole number from 1 on", |value| {
            whole(value).filter(|&number| number > 0)
        })
    }

    /// How much an execution may hold, in bytes.
    pub fn max_memory(&self) -> PyResult<Option<u64>> {
        self.read("max_memory", BYTES, |value| {
            whole(value).filter(|&bytes| bytes > 0)
        })
    }

    /// A list of names, in lower case. `what`: what they are names of.
    pub fn names(&self, name: &str, what: &str) -> PyResult<Option<Vec<String>>> {
        let Some(value) = self.get(name)? else {
            return Ok(None);
        };
        let what = format!("a list of names of {what} (str), at least one");
        let wrong = || self.expected(name, &what, &value);
        // The letters of a text are no names.
        if value.is_instance_of::<PyString>() {
            return Err(wrong());
        }
        let mut names = Vec::new();
        for item in iterate(&value, wrong)? {
            // Nothing stops an iterator that never ends and runs no code of Python's.
            if names.len() == MOST_NAMES {
                return Err(self.expected(name, &format!("at most {MOST_NAMES} names"), &value));
            }
            let item = item?;
            let text = item.cast::<PyString>().map_err(|_| wrong())?;
            let text = text.to_str().map_err(|_| self.expected(name, &what, &item))?;
            names.push(text.to_lowercase());
        }
        if names.is_empty() {
            return Err(wrong());
        }
        Ok(Some(names))
    }
}

/// The first argument: which keys.
///
/// # Errors
/// `gears.error` that says what was expected.
pub fn prefix(call: &str, given: &Bound<'_, PyAny>) -> PyResult<String> {
    let wrong = || expected(call, "prefix", "a str that is not empty", given);
    let prefix = given.cast::<PyString>().map_err(|_| wrong())?;
    let prefix = prefix.to_str().map_err(|_| wrong())?;
    if prefix.is_empty() {
        return Err(wrong());
    }
    Ok(prefix.to_owned())
}

/// The names of keyword arguments. One that is no UTF-8 is none that anybody knows, whatever stands in its place.
pub fn names_of<'a>(given: &'a Bound<'_, PyDict>) -> impl Iterator<Item = String> + 'a {
    let names = given.keys().into_iter();
    names.map(|name| {
        let name = name
            .cast::<PyString>()
            .map(|name| name.to_string_lossy().into_owned());
        name.unwrap_or_default()
    })
}

/// Goes through the items of an argument. `wrong` makes the error for one that has none.
///
/// # Errors
/// What `__iter__` raised, unless that is what Python says of a value without items.
pub fn iterate<'py>(
    value: &Bound<'py, PyAny>,
    wrong: impl FnOnce() -> PyErr,
) -> PyResult<Bound<'py, PyIterator>> {
    value.try_iter().map_err(|error| {
        let is_type = error.is_instance_of::<PyTypeError>(value.py());
        if is_type { wrong() } else { error }
    })
}

/// An error that names an argument and what was expected. Of a text that is none of UTF-8's, that as well. What stops the script that
/// asks, while it shows the value, is that itself.
pub fn expected(call: &str, name: &str, what: &str, got: &Bound<'_, PyAny>) -> PyErr {
    let also = match got.cast::<PyString>().map(|text| text.to_str()) {
        Ok(Err(_)) => format!(", {ENCODABLE}"),
        _ => String::new(),
    };
    match shown(got) {
        Ok(got) => errors::gears_error(format!("{call}: {name}: expected {what}{also}, got {got}")),
        Err(error) => error,
    }
}

/// What every text is that goes to the server. One with lone surrogates is not.
const ENCODABLE: &str = "of characters that UTF-8 has";

/// The error for a text with lone surrogates. `of`: the argument, in the words of its errors.
pub fn not_encodable(of: &str, got: &Bound<'_, PyAny>) -> PyErr {
    match shown(got) {
        Ok(got) => errors::gears_error(format!("{of}: expected a str {ENCODABLE}, got {got}")),
        Err(error) => error,
    }
}

/// A value as errors show it.
///
/// # Errors
/// What its `repr()` raised, if that is no `Exception`.
fn shown(value: &Bound<'_, PyAny>) -> PyResult<String> {
    match value.repr() {
        Ok(text) => Ok(text.to_string_lossy().chars().take(100).collect()),
        Err(error) if error.is_instance_of::<PyException>(value.py()) => Ok("something else".into()),
        Err(error) => Err(error),
    }
}

/// A function that gets so many arguments, named for the error.
///
/// # Errors
/// `gears.error` that says what was expected: it cannot be called so, or it is a generator, whose body would never run.
pub fn takes(call: &str, name: &str, function: &Bound<'_, PyAny>, arguments: &[&str]) -> PyResult<()> {
    let py = function.py();
    let inspect = py.import(intern!(py, "inspect"))?;
    let is = |kind| inspect.call_method1(kind, (function,))?.is_truthy();
    if is("isgeneratorfunction")? || is("isasyncgenfunction")? {
        return Err(expected(call, name, "a function without yield", function));
    }
    let signature = match inspect.call_method1(intern!(py, "signature"), (function,)) {
        Ok(signature) => signature,
        // Some functions in C have none that one could ask for.
        Err(error) if is_answer(py, &error) => return Ok(()),
        Err(error) => return Err(error),
    };
    match signature.call_method1(intern!(py, "bind"), PyTuple::new(py, arguments)?) {
        Ok(_) => return Ok(()),
        Err(error) if is_answer(py, &error) => {}
        Err(error) => return Err(error),
    }
    let what = match arguments {
        [] => "a function without arguments".to_owned(),
        [one] => format!("a function of one argument ({one})"),
        more => format!("a function of {} arguments ({})", more.len(), more.join(", ")),
    };
    Err(expected(call, name, &what, function))
}

/// What `inspect` says of a function, and not what stops the script that asks.
fn is_answer(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyTypeError>(py) || error.is_instance_of::<PyValueError>(py)
}

/// An `int` or a `float`, as it is, whatever `__float__` its class has.
pub fn number(value: &Bound<'_, PyAny>) -> Option<f64> {
    if value.is_instance_of::<PyBool>() {
        return None;
    }
    let float = if value.is_instance_of::<PyInt>() {
        let plain = value.py().get_type::<PyInt>().call_method1("__float__", (value,));
        plain.ok()?.cast_into::<PyFloat>().ok()?
    } else {
        value.cast::<PyFloat>().ok()?.clone()
    };
    Some(float.value()).filter(|number| number.is_finite())
}

pub fn whole(value: &Bound<'_, PyAny>) -> Option<u64> {
    if !value.is_instance_of::<PyInt>() || value.is_instance_of::<PyBool>() {
        return None;
    }
    value.extract().ok()
}
