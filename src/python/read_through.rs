//! `read_through` as scripts call it: its arguments, checked one by one, and the registration that it makes. The decorator is
//! python/read_through.py. Contract: docs/contract/read-through.md chapter 1.

use pyo3::{
    prelude::*,
    types::{PyDict, PyString, PyTuple},
};

use super::{
    callback::Code,
    errors,
    half::Half,
    keywords::{Keywords, LONGEST_S, number, takes, whole},
};
use crate::read_through::options::{Ahead, OnError, Options, Ttl};

const NAME: &str = "read_through";

/// `registerReadThrough(prefix, loader, options)`: see `read_through`.
///
/// # Errors
/// `gears.error` that names the argument and what was expected.
#[pyfunction(name = "registerReadThrough")]
pub fn register_read_through(
    py: Python<'_>,
    prefix: &Bound<'_, PyAny>,
    loader: &Bound<'_, PyAny>,
    options: &Bound<'_, PyDict>,
) -> PyResult<String> {
    let gets = if options.get_item("batch")?.is_none() {
        "key"
    } else {
        "keys"
    };
    let (half, prefix) = Half::new(NAME, &KNOWN, prefix, ("loader", loader, gets), options)?;
    let (options, ttl) = Arguments(&half.given).options(prefix)?;
    let trigger = half.runtime.readers.loads.trigger(options);
    half.enlist(py, ttl, trigger)
}

const KNOWN: [&str; 20] = [
    "commands",
    "ttl",
    "jitter",
    "negative_ttl",
    "stale",
    "refresh_ahead",
    "timeout",
    "on_error",
    "max_waiting",
    "max_loads",
    "max_load_time",
    "max_memory",
    "backoff",
    "max_backoff",
    "breaker",
    "batch",
    "batch_wait",
    "user",
    "onRegistered",
    "desc",
];

/// Keyword arguments.
struct Arguments<'k, 'a, 'py>(&'k Keywords<'a, 'py>);

impl Arguments<'_, '_, '_> {
    fn options(&self, prefix: String) -> PyResult<(Options, Option<Code>)> {
        let default = Options::default();
        let (ttl, function) = self.ttl()?;
        let options = Options {
            prefix,
            commands: self.0.names("commands", "commands")?,
            ttl,
            jitter: self
                .0
                .read("jitter", "a number from 0 to 1", |value| {
                    number(value).filter(|number| (0.0..=1.0).contains(number))
                })?
                .unwrap_or(0.0),
            negative_ttl: self.0.seconds("negative_ttl", default.negative_ttl)?,
            stale: self.0.seconds("stale", default.stale)?,
            refresh_ahead: self.ahead()?,
            timeout: self.0.positive_seconds("timeout")?,
            on_error: self
                .0
                .word("on_error", [("error", OnError::Error), ("miss", OnError::Miss)])?
                .unwrap_or_default(),
            max_waiting: self.0.count("max_waiting")?.unwrap_or(default.max_waiting),
            max_loads: self.0.count("max_loads")?,
            max_load_time: self
                .0
                .positive_seconds("max_load_time")?
                .unwrap_or(default.max_load_time),
            backoff: self.0.seconds("backoff", default.backoff)?,
            max_backoff: self.0.seconds("max_backoff", default.max_backoff)?,
            breaker: self.0.read(
                "breaker",
                "a pair of failures (a whole number from 1 on) and seconds above 0",
                breaker,
            )?,
            batch: self.0.count("batch")?.unwrap_or(default.batch),
            batch_wait: self.0.seconds("batch_wait", default.batch_wait)?,
        };
        if options.ttl == Ttl::Endless {
            let needs = [
                ("stale", options.stale > 0.0),
                ("refresh_ahead", options.refresh_ahead != Ahead::Never),
                ("jitter", options.jitter > 0.0),
            ];
            if let Some((name, _)) = needs.iter().find(|(_, given)| *given) {
                return Err(errors::gears_error(format!(
                    "read_through: {name}: expected ttl beside it, got none"
                )));
            }
        }
        Ok((options, function))
    }

    fn ttl(&self) -> PyResult<(Ttl, Option<Code>)> {
        let Some(value) = self.0.get("ttl")? else {
            return Ok((Ttl::Endless, None));
        };
        if value.is_callable() {
            takes(NAME, "ttl", &value, &["key", "value"])?;
            return Ok((Ttl::Function, Some(Code::new(value))));
        }
        let seconds = number(&value).filter(|&seconds| seconds > 0.0 && seconds <= LONGEST_S);
        let seconds = seconds.ok_or_else(|| {
            self.0
                .expected("ttl", "a number of seconds above 0 or a function", &value)
        })?;
        Ok((Ttl::Seconds(seconds), None))
    }

    fn ahead(&self) -> PyResult<Ahead> {
        let ahead = self
            .0
            .read("refresh_ahead", "a number from 0 to 1 or 'xfetch'", |value| {
                if let Ok(text) = value.cast::<PyString>() {
                    return (text.to_str().ok()? == "xfetch").then_some(Ahead::Xfetch);
                }
                let share = number(value).filter(|share| (0.0..=1.0).contains(share))?;
                Some(if share > 0.0 {
                    Ahead::Share(share)
                } else {
                    Ahead::Never
                })
            })?;
        Ok(ahead.unwrap_or_default())
    }
}

fn breaker(value: &Bound<'_, PyAny>) -> Option<(u32, f64)> {
    let pair = value.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2)?;
    let failures = whole(&pair.get_item(0).ok()?)?;
    let failures = u32::try_from(failures).ok().filter(|&failures| failures > 0)?;
    let seconds = number(&pair.get_item(1).ok()?)?;
    (seconds > 0.0 && seconds <= LONGEST_S).then_some((failures, seconds))
}
