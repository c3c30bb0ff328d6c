//! Arguments of the builder's methods: by place or by name, checked one by one with the texts of the contract.

use std::ops::RangeInclusive;

use pyo3::{
    prelude::*,
    types::{PyBool, PyDict, PyInt, PyString, PyTuple},
};

use super::{
    callback::Code,
    errors,
    keywords::{BYTES, MOST_NAMES, expected, iterate, names_of, not_encodable, whole},
};
use crate::{
    engine::registration::{Limits, Mode},
    readers::{
        keys::Conditions,
        streams::{Options, Policy},
    },
    server::{api, key::Kind},
};

/// The error for a `mode` that is no text.
pub const MODE_TYPE: &str = "execution mode must be a string";

/// Keyword arguments, with a warning for those that nobody knows.
pub struct Given<'a, 'py> {
    arguments: Option<&'a Bound<'py, PyDict>>,
    /// What is said about those that nobody knows.
    pub doubt: Option<String>,
}

impl<'a, 'py> Given<'a, 'py> {
    pub fn new(method: &str, kwargs: Option<&'a Bound<'py, PyDict>>, known: &[&str]) -> PyResult<Self> {
        let mut unknown = Vec::new();
        for name in kwargs.iter().flat_map(|kwargs| names_of(kwargs)) {
            if !known.contains(&name.as_str()) {
                unknown.push(name);
            }
        }
        let doubt = (!unknown.is_empty())
            .then(|| format!("{method}: unknown arguments are ignored: {}", unknown.join(", ")));
        if let Some(doubt) = &doubt {
            api::log_warning(doubt);
        }
        Ok(Self {
            arguments: kwargs,
            doubt,
        })
    }

    pub fn get(&self, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.arguments.map_or(Ok(None), |kwargs| kwargs.get_item(name))
    }

    /// A real `bool`.
    pub fn boolean(&self, name: &str, default: bool, otherwise: &str) -> PyResult<bool> {
        let Some(value) = self.get(name)? else {
            return Ok(default);
        };
        let value = value
            .cast::<PyBool>()
            .map_err(|_| errors::gears_error(otherwise))?;
        Ok(value.is_true())
    }

    /// A `str`, or `None`.
    pub fn text(&self, name: &str, otherwise: &str) -> PyResult<Option<String>> {
        let given = self.get(name)?.filter(|given| !given.is_none());
        given.map(|given| string(&given, otherwise)).transpose()
    }

    /// A callable, or `None`.
    pub fn function(&self, name: &str, otherwise: &str) -> PyResult<Option<Code>> {
        match self.get(name)? {
            Some(function) if function.is_callable() => Ok(Some(Code::new(function))),
            Some(function) if !function.is_none() => Err(errors::gears_error(otherwise)),
            _ => Ok(None),
        }
    }

    /// An iterable of `str`, or `None`.
    fn strings(&self, name: &str, not_iterable: &str, no_string: &str) -> PyResult<Option<Vec<String>>> {
        let Some(value) = self.get(name)?.filter(|value| !value.is_none()) else {
            return Ok(None);
        };
        if value.is_instance_of::<PyString>() {
            // Taken apart it would be its letters, of which none is a name.
            return Err(errors::gears_error(format!(
                "{name} must be a list of texts, not a text: {name}=[{}]",
                value.repr()?
            )));
        }
        let items = iterate(&value, || errors::gears_error(not_iterable))?;
        // Nothing stops an iterator that never ends and runs no code of Python's.
        let items = items.take(MOST_NAMES + 1);
        let names: Vec<_> = items
            .map(|item| string(&item?, no_string))
            .collect::<PyResult<_>>()?;
        if names.len() > MOST_NAMES {
            return Err(expected(
                "register",
                name,
                &format!("at most {MOST_NAMES} names"),
                &value,
            ));
        }
        Ok(Some(names))
    }
}

/// What a registration may use.
///
/// # Errors
/// `gears.error` that names the argument and what was expected.
pub fn limits(given: &Given<'_, '_>) -> PyResult<Limits> {
    let count = |name: &str, what: &str| {
        let Some(value) = given.get(name)?.filter(|value| !value.is_none()) else {
            return Ok(None);
        };
        let number = whole(&value).filter(|&number| number > 0);
        number
            .map(Some)
            .ok_or_else(|| expected("register", name, what, &value))
    };
    Ok(Limits {
        timeout_ms: count("timeout", "a whole number of milliseconds from 1 on")?,
        max_concurrent: count("max_concurrent", "a whole number from 1 on")?,
        max_memory: count("max_memory", BYTES)?,
    })
}

/// The arguments of a KeysReader registration, checked in the order of docs/contract/readers-and-events.md 2.3.
pub fn conditions(given: &Given<'_, '_>) -> PyResult<Conditions> {
    let prefix = prefix(given)?;
    let events = given.strings(
        "eventTypes",
        "given eventTypes is not iterable",
        "given event type is not string",
    )?;
    let kinds = given.strings(
        "keyTypes",
        "given keyTypes is not iterable",
        "given key type is not string",
    )?;
    let by_name = |name: &String| Kind::by_name(name).ok_or_else(|| errors::gears_error("unknown key type"));
    let kinds = kinds
        .map(|kinds| kinds.iter().map(by_name).collect::<PyResult<_>>())
        .transpose()?;
    let read_value = given.boolean("readValue", true, "readValue is not boolean")?;
    let commands = given.strings(
        "commands",
        "given commands is not iterable",
        "given command type is not string",
    )?;
    let commands = commands.filter(|commands| !commands.is_empty());
    let coalesce = given.boolean("coalesce", false, "coalesce: expected True or False")?;
    if coalesce && commands.is_none() {
        return Err(errors::gears_error(
            "coalesce: expected commands beside it, whose clients wait, got none",
        ));
    }
    if prefix.is_empty() && commands.is_none() {
        return Err(errors::gears_error("prefix argument must not be empty"));
    }
    Ok(Conditions {
        prefix,
        events,
        kinds,
        commands,
        read_value,
        coalesce,
    })
}

/// Which keys a registration is about, also by the old name of the argument.
fn prefix(given: &Given<'_, '_>) -> PyResult<String> {
    const PREFIX_TYPE: &str = "regex argument must be a string";
    match (given.get("regex")?, given.get("prefix")?) {
        (Some(regex), _) => {
            api::log_warning(
                "Using regex argument with register is deprecated and missleading, use prefix instead.",
            );
            string(&regex, PREFIX_TYPE)
        }
        (None, Some(prefix)) => string(&prefix, PREFIX_TYPE),
        (None, None) => Ok("*".to_owned()),
    }
}

/// What a CommandReader registration is to stand for.
pub enum Place {
    Named(String),
    Hook { command: String, prefix: Option<String> },
}

/// The arguments of a CommandReader registration.
pub struct Wanted {
    pub place: Place,
    pub in_order: bool,
}

/// Checks them in the order of docs/contract/readers-and-events.md chapter 7.
pub fn command(given: &Given<'_, '_>) -> PyResult<Wanted> {
    let text = |name: &str, otherwise: &str| {
        given
            .get(name)?
            .map(|value| string(&value, otherwise))
            .transpose()
    };
    let trigger = text("trigger", "trigger argument is not string")?;
    let in_order = given.boolean("inorder", false, "inorder argument is be boolean")?;
    let prefix = text("keyprefix", "keyprefix argument is not string")?;
    let hook = text("hook", "hook argument is not string")?;
    let place = match (trigger, hook) {
        (Some(_), hook) if hook.is_some() || prefix.is_some() => {
            return Err(errors::gears_error(
                "trigger argument can not be given with keyprefix or hook",
            ));
        }
        (Some(name), _) => Place::Named(name),
        (None, Some(command)) => Place::Hook { command, prefix },
        (None, None) => return Err(errors::gears_error("no trigger or hook argument was given")),
    };
    Ok(Wanted { place, in_order })
}

/// The arguments of a StreamReader registration, checked in the order of docs/contract/readers-and-events.md 6.3.
pub fn stream_options(given: &Given<'_, '_>, mode: Mode) -> PyResult<Options> {
    const POLICY: &str = "onFailedPolicy must be Continue/Abort/Retry";
    /// Longer than anything that one can mean, and short enough for every clock.
    const CENTURY_S: u64 = 100 * 366 * 24 * 3600;
    let prefix = prefix(given)?;
    if prefix.is_empty() {
        return Err(errors::gears_error("prefix argument must not be empty"));
    }
    let number = |name: &str, default: u64, allowed: RangeInclusive<u64>, shown: &str| {
        let Some(value) = given.get(name)? else {
            return Ok(default);
        };
        let number = value.cast::<PyInt>().ok();
        let number = number.and_then(|number| number.extract::<i128>().ok());
        match number {
            Some(number) if number > i128::from(*allowed.end()) => Err(errors::gears_error(format!(
                "{shown} argument must not be above {}",
                allowed.end()
            ))),
            number => number
                .and_then(|number| u64::try_from(number).ok())
                .filter(|number| allowed.contains(number))
                .ok_or_else(|| errors::gears_error(format!("{shown} argument must be a number"))),
        }
    };
    let batch = number("batch", 1, 1..=i64::MAX as u64, "batch")?;
    let duration_ms = number("duration", 0, 0..=CENTURY_S * 1000, "duration")?;
    let policy = match given.get("onFailedPolicy")? {
        None => Policy::Continue,
        Some(policy) => {
            let name = string(&policy, "onFailedPolicy must be a string (Continue/Abort/Retry)")?;
            Policy::by_name(&name).ok_or_else(|| errors::gears_error(POLICY))?
        }
    };
    if mode == Mode::Sync && policy != Policy::Continue {
        return Err(errors::gears_error(
            "ExecutionMode sync can only be combined with OnFailedPolicy Continue",
        ));
    }
    let retry_s = number("onFailedRetryInterval", 1, 0..=CENTURY_S, "retryInterval")?;
    let trim = given.boolean("trimStream", true, "pyTrimmStream argument must be a boolean")?;
    Ok(Options {
        prefix,
        batch,
        duration_ms,
        policy,
        retry_s,
        trim,
    })
}

/// A `str`. `otherwise`: the error for anything else.
///
/// # Errors
/// `gears.error`: it is none, or UTF-8 does not have it.
pub fn string(object: &Bound<'_, PyAny>, otherwise: &str) -> PyResult<String> {
    let text = object
        .cast::<PyString>()
        .map_err(|_| errors::gears_error(otherwise))?;
    match text.to_str() {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(not_encodable(otherwise, object)),
    }
}

pub fn mode_by_name(mode: &Bound<'_, PyAny>) -> PyResult<Mode> {
    let name = string(mode, MODE_TYPE)?;
    Mode::by_name(&name).ok_or_else(|| unknown_mode(&name, Mode::NAMES))
}

/// The error for a `mode` that is none; `expected`: those that are.
pub fn unknown_mode(given: &str, expected: &str) -> PyErr {
    errors::gears_error(format!(
        "unknown execution mode: expected {expected}, got {given}"
    ))
}

/// A count of records: `bool` and `int`, not negative, 64 bit.
pub fn count(object: &Bound<'_, PyAny>) -> PyResult<u64> {
    let number = object
        .cast::<PyInt>()
        .map_err(|_| errors::gears_error("limit argument must be a number"))?;
    number
        .extract()
        .map_err(|_| errors::gears_error("limit argument must be a number between 0 and 2^64 - 1"))
}

/// The arguments of an operation, by place or by name.
pub fn arguments<'py, const N: usize>(
    names: [&str; N],
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
    wrong_count: &str,
) -> PyResult<[Option<Bound<'py, PyAny>>; N]> {
    let mut found = std::array::from_fn(|index| args.get_item(index).ok());
    let mut surplus = args.len() > N;
    let given = kwargs
        .iter()
        .flat_map(|kwargs| names_of(kwargs).zip(kwargs.values()));
    for (name, value) in given {
        match names.iter().position(|known| *known == name) {
            Some(place) if found[place].is_none() => found[place] = Some(value),
            _ => surplus = true,
        }
    }
    if surplus {
        return Err(errors::gears_error(wrong_count));
    }
    Ok(found)
}
