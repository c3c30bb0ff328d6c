//! `write_behind` as scripts call it: its arguments, checked one by one, and the registration that it makes. The decorator is
//! python/write_behind.py. Contract: docs/contract/write-behind.md chapter 1.

use pyo3::{
    prelude::*,
    types::{PyDict, PyString},
};

use super::{
    errors,
    half::Half,
    keywords::{Keywords, whole},
};
use crate::write_behind::options::{OnFull, Options, Ordered};

const NAME: &str = "write_behind";

/// `registerWriteBehind(prefix, save, options)`: see `write_behind`.
///
/// # Errors
/// `gears.error` that names the argument and what was expected.
#[pyfunction(name = "registerWriteBehind")]
pub fn register_write_behind(
    py: Python<'_>,
    prefix: &Bound<'_, PyAny>,
    save: &Bound<'_, PyAny>,
    options: &Bound<'_, PyDict>,
) -> PyResult<String> {
    let (half, prefix) = Half::new(NAME, &KNOWN, prefix, ("save", save, "changes"), options)?;
    let options = read(&half.given, prefix)?;
    let trigger = half.runtime.readers.behind.trigger(options);
    half.enlist(py, None, trigger)
}

const KNOWN: [&str; 20] = [
    "events",
    "batch",
    "interval",
    "coalesce",
    "backoff",
    "max_backoff",
    "max_tries",
    "dead_letter",
    "max_queue",
    "max_queue_bytes",
    "on_full",
    "full_timeout",
    "wait",
    "timeout",
    "ordered",
    "max_save_time",
    "max_memory",
    "user",
    "onRegistered",
    "desc",
];

fn read(given: &Keywords<'_, '_>, prefix: String) -> PyResult<Options> {
    let default = Options::default();
    let options = Options {
        prefix,
        events: given.names("events", "events")?,
        batch: given.count("batch")?.unwrap_or(default.batch),
        interval: given.seconds("interval", default.interval)?,
        coalesce: given.flag("coalesce")?.unwrap_or(default.coalesce),
        backoff: given.seconds("backoff", default.backoff)?,
        max_backoff: given.seconds("max_backoff", default.max_backoff)?,
        max_tries: given.read("max_tries", "a whole number from 1 on", |value| {
            u32::try_from(whole(value)?).ok().filter(|&tries| tries > 0)
        })?,
        dead_letter: given.read(
            "dead_letter",
            "the name of a stream (a str that is not empty)",
            |value| {
                let text = value.cast::<PyString>().ok()?;
                Some(text.to_str().ok()?.to_owned()).filter(|text| !text.is_empty())
            },
        )?,
        max_queue: given.count("max_queue")?.unwrap_or(default.max_queue),
        max_queue_bytes: given.count("max_queue_bytes")?.unwrap_or(default.max_queue_bytes),
        on_full: given
            .word("on_full", [("wait", OnFull::Wait), ("error", OnFull::Error)])?
            .unwrap_or_default(),
        full_timeout: given.positive_seconds("full_timeout")?,
        wait: given.flag("wait")?.unwrap_or(default.wait),
        timeout: given.positive_seconds("timeout")?.unwrap_or(default.timeout),
        ordered: given
            .word("ordered", [("key", Ordered::Key), ("all", Ordered::All)])?
            .unwrap_or_default(),
        max_save_time: given.positive_seconds("max_save_time")?,
    };
    if options.dead_letter.is_some() && options.max_tries.is_none() {
        return Err(errors::gears_error(format!(
            "{NAME}: dead_letter: expected max_tries beside it, got none"
        )));
    }
    Ok(options)
}
