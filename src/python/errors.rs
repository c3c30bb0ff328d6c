//! The exceptions of the API, and the error strings that clients see (docs/contract/commands.md 0.5,
//! docs/contract/python-api.md 4.6).

use pyo3::{
    exceptions::{PyBaseException, PyException},
    intern,
    prelude::*,
    sync::PyOnceLock,
    types::{PyList, PyType},
};

use super::{RUNTIME, attach, interrupt};
use crate::{
    config::Number,
    engine::{language::Failure, scope::Scope},
    error::Error,
};

static GEARS_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static FLAT_ERROR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static FORCE_STOPPED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static FORMAT_EXCEPTION: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// The longest error string. Where functions call each other, each one quotes the error of the next one, which doubles
/// its quotation marks: without a limit a deep error takes all memory.
const MAX_LENGTH: usize = 1 << 16;
/// How much of a longer one is kept.
const KEPT_LENGTH: usize = 1 << 12;

/// What the names of Python's half of the module begin with, as `build.rs` has it.
const EMBEDDED: &str = "<pinion>/";

/// Makes what [`text`] needs, so that it does not have to be made while an error is handled.
pub fn init(py: Python<'_>) -> PyResult<()> {
    gears_error_type(py)?;
    flat_error_type(py)?;
    force_stopped_type(py)?;
    FORMAT_EXCEPTION.import(py, "traceback", "format_exception")?;
    Ok(())
}

fn exception<'py>(
    py: Python<'py>,
    slot: &'static PyOnceLock<Py<PyType>>,
    name: &'static std::ffi::CStr,
    doc: &'static std::ffi::CStr,
) -> PyResult<Bound<'py, PyType>> {
    let made = slot.get_or_try_init(py, || {
        PyErr::new_type(py, name, Some(doc), Some(&py.get_type::<PyException>()), None)
    })?;
    Ok(made.bind(py).clone())
}

/// `gears.error`: whatever the API refuses.
pub fn gears_error_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    exception(
        py,
        &GEARS_ERROR,
        c"gears.error",
        c"An error of the API or of a command.",
    )
}

/// `gears.flat_error`: raised by `flat_error`, shown without a traceback.
pub fn flat_error_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    exception(
        py,
        &FLAT_ERROR,
        c"gears.flat_error",
        c"An error whose text is the whole reply.",
    )
}

/// `gears.forcestopped`: raised inside a function that RG.ABORTEXECUTION stops.
pub fn force_stopped_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    exception(
        py,
        &FORCE_STOPPED,
        c"gears.forcestopped",
        c"The execution was aborted.",
    )
}

/// A `gears.error` with this text.
pub fn gears_error(text: impl Into<String>) -> PyErr {
    let text = text.into();
    attach::bare(|py| match gears_error_type(py) {
        Ok(kind) => PyErr::from_type(kind, (text,)),
        Err(error) => error,
    })
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        gears_error(error.to_string())
    }
}

/// The error string of what a callback raised. An abort must not hit the code that makes it.
pub fn text_of_callback(py: Python<'_>, error: &PyErr) -> Failure {
    let scope = Scope::current();
    let execution = scope.as_ref().and_then(|scope| scope.execution.as_deref());
    let _shield = execution.map(|execution| interrupt::Shield::raise(py, &execution.stop));
    if let Some(execution) = execution {
        execution.note_error_kind(&kind(py, error));
    }
    text(py, error).into()
}

/// The error string of what ended a coroutine or a future: the text of `error` (docs/contract/python-api.md 4.6). Where that says
/// nothing, because it is empty or cannot be made, it is the string that other exceptions have.
pub fn text_of_ended(error: &Bound<'_, PyAny>) -> Failure {
    let said = error.str().ok().map(|text| text.to_string_lossy().into_owned());
    let text = match said.filter(|said| !said.is_empty()) {
        Some(said) => said,
        None if error.is_instance_of::<PyBaseException>() => {
            text(error.py(), &PyErr::from_value(error.clone()))
        }
        None => describe(error),
    };
    text.into()
}

/// The name of the type of an exception.
pub fn kind(py: Python<'_>, error: &PyErr) -> String {
    let name = error.get_type(py).name();
    name.map_or_else(|_| "Error".into(), |name| name.to_string_lossy().into_owned())
}

/// The error string of an exception that nobody caught.
pub fn text(py: Python<'_>, error: &PyErr) -> String {
    if flat_error_type(py).is_ok_and(|flat| error.is_instance(py, &flat)) {
        return describe(error.value(py).as_any());
    }
    let wants_traceback = RUNTIME
        .get()
        .is_none_or(|runtime| runtime.engine.config.is_on(Number::PythonAttemptTraceback));
    if wants_traceback {
        if let Some(lines) = traceback_lines(py, error).filter(|lines| lines.len() <= MAX_LENGTH) {
            return lines;
        }
    }
    format!(
        "Error type: {}, Value: {}",
        describe(error.get_type(py).as_any()),
        shortened(describe(error.value(py).as_any()))
    )
}

/// The end of a text that is too long: what came first stands there.
fn shortened(text: String) -> String {
    if text.len() <= MAX_LENGTH {
        return text;
    }
    let mut start = text.len() - KEPT_LENGTH;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!("...{}", &text[start..])
}

/// The `repr` of the list of lines that the standard library makes; a valid Python literal.
fn traceback_lines(py: Python<'_>, error: &PyErr) -> Option<String> {
    let traceback = of_users(error.traceback(py)?.into_any()).ok()?;
    let format = FORMAT_EXCEPTION.get(py)?.bind(py);
    let lines = format
        .call1((error.get_type(py), error.value(py), traceback))
        .ok()?;
    let lines = PyList::new(py, lines.try_iter().ok()?.collect::<PyResult<Vec<_>>>().ok()?).ok()?;
    Some(lines.repr().ok()?.to_string_lossy().into_owned())
}

/// A traceback without the frames at its beginning that are ours; Python's `None` if there are no others.
fn of_users(mut traceback: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let py = traceback.py();
    while !traceback.is_none() {
        let code = traceback
            .getattr(intern!(py, "tb_frame"))?
            .getattr(intern!(py, "f_code"))?;
        let file: String = code.getattr(intern!(py, "co_filename"))?.extract()?;
        if !file.starts_with(EMBEDDED) {
            break;
        }
        traceback = traceback.getattr(intern!(py, "tb_next"))?;
    }
    Ok(traceback)
}

/// What matters of an error string, in one short line: of a traceback the last line.
pub fn in_one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let last = last_element(text).unwrap_or_else(|| text.to_owned());
    let mut line: String = last.lines().next().unwrap_or_default().into();
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

/// The last text of a list of texts as Python writes it.
fn last_element(text: &str) -> Option<String> {
    let list = text.strip_prefix('[')?.strip_suffix(']')?;
    let quote = list
        .chars()
        .next_back()
        .filter(|quote| matches!(quote, '\'' | '"'))?;
    let body = &list[..list.len() - 1];
    let is_escaped = |at: usize| body[..at].chars().rev().take_while(|&c| c == '\\').count() % 2 == 1;
    let start = body
        .rmatch_indices(quote)
        .map(|(at, _)| at)
        .find(|&at| !is_escaped(at))?;
    let mut plain = String::new();
    let mut rest = body[start + 1..].chars();
    while let Some(c) = rest.next() {
        match (c, if c == '\\' { rest.next() } else { None }) {
            (_, None) => plain.push(c),
            (_, Some('n')) => plain.push('\n'),
            (_, Some(escaped @ ('\'' | '"' | '\\'))) => plain.push(escaped),
            (_, Some(other)) => plain.extend([c, other]),
        }
    }
    Some(plain)
}

/// `str(object)`, whatever happens.
pub fn describe(object: &Bound<'_, PyAny>) -> String {
    match object.str() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => object
            .get_type()
            .name()
            .map_or_else(|_| "<unprintable>".into(), |name| format!("<unprintable {name}>")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_traceback_the_last_line_matters() {
        for (text, line) in [
            (
                r"['Traceback (most recent call last):\n', '  File <string>\n', 'ValueError: x\n']",
                "ValueError: x",
            ),
            (r#"['a\n', "KeyError: 'it'\n"]"#, "KeyError: 'it'"),
            (r#"['a\n', 'E: \'a\' "b", c\\\n']"#, r#"E: 'a' "b", c\"#),
            (r"['E: one\n  two\n']", "E: one"),
            ("plain [text]", "plain [text]"),
            ("[", "["),
            ("[]", "[]"),
            ("[']", "[']"),
            ("", ""),
        ] {
            assert_eq!(in_one_line(text), line, "{text}");
        }
        assert_eq!(in_one_line(&"ä".repeat(1000)).chars().count(), 303);
    }
}
