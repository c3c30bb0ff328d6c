//! A user function as the engine calls it: arguments, result, errors, and what it must not leave behind.

use std::sync::atomic::Ordering;

use pyo3::{
    call::PyCallArgs,
    ffi,
    prelude::*,
    sync::PyOnceLock,
    types::{PyList, PyType},
};

use super::{
    atomic,
    convert::{object_record, record_object},
    errors,
};
use crate::engine::{
    execution::Execution,
    language::{Failure, Function},
    record::Record,
    scope::Scope,
};

/// A callable of a script. Where the last handle is dropped detached, PyO3 keeps the object until somebody attaches:
/// the server's thread does not wait for Python to forget a function.
pub struct Callback {
    callable: Py<PyAny>,
    name: String,
    description: String,
}

impl Callback {
    pub fn new(callable: &Bound<'_, PyAny>) -> Self {
        let named = callable.getattr("__name__").and_then(|name| name.extract());
        let described = callable.str().map(|text| text.to_string_lossy().into_owned());
        let description = described.unwrap_or_default();
        Self {
            callable: callable.clone().unbind(),
            name: named.unwrap_or_else(|_| description.clone()),
            description,
        }
    }

    pub fn callable<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.callable.bind(py)
    }

    /// Calls the function and hands its result, or the text of its error, on while attached.
    fn call<R>(
        &self,
        argument: impl FnOnce(Python<'_>) -> PyResult<Call<'_>>,
        result: impl FnOnce(Bound<'_, PyAny>, Option<Bound<'_, PyAny>>) -> PyResult<R>,
    ) -> Result<R, Failure> {
        Python::attach(|py| {
            let outcome = argument(py).and_then(|call| {
                let record = call.record.clone();
                let returned = self.run_interruptible(py, call)?;
                refuse_coroutine(&returned)?;
                result(returned, record)
            });
            outcome.map_err(|error| errors::text(py, &error))
        })
    }

    /// An abort may interrupt the call, and only the call.
    fn run_interruptible<'py>(&self, py: Python<'py>, call: Call<'py>) -> PyResult<Bound<'py, PyAny>> {
        let scope = Scope::current();
        let execution = scope.as_ref().and_then(|scope| scope.execution.as_deref());
        let callable = self.callable.bind(py);
        // A block that the function enters and does not leave would hold the server for ever.
        let _frame = atomic::Frame::enter();
        let interruptible = execution.map(|execution| Interruptible::enter(py, execution));
        let returned = match (call.accumulator, call.record) {
            (Some(accumulator), Some(record)) => returned_by(callable, (accumulator, record)),
            (None, Some(record)) => returned_by(callable, (record,)),
            _ => returned_by(callable, ()),
        };
        drop(interruptible);
        returned
    }
}

fn returned_by<'py>(
    callable: &Bound<'py, PyAny>,
    arguments: impl PyCallArgs<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    callable.call1(arguments)
}

/// The arguments of one call.
#[derive(Default)]
struct Call<'py> {
    accumulator: Option<Bound<'py, PyAny>>,
    record: Option<Bound<'py, PyAny>>,
}

impl<'py> Call<'py> {
    fn with(py: Python<'py>, record: Record) -> PyResult<Self> {
        Ok(Self {
            accumulator: None,
            record: Some(record_object(py, record)?),
        })
    }
}

impl Function for Callback {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn map(&self, record: Record) -> Result<Record, Failure> {
        self.call(
            |py| Call::with(py, record),
            |returned, _| Ok(object_record(returned)),
        )
    }

    fn expand(&self, record: Record) -> Result<Vec<Record>, Failure> {
        self.call(
            |py| Call::with(py, record),
            |returned, _| match returned.cast::<PyList>() {
                Ok(list) => Ok(list.iter().map(object_record).collect()),
                Err(_) => Ok(vec![object_record(returned)]),
            },
        )
    }

    fn test(&self, record: Record) -> Result<(Record, bool), Failure> {
        self.call(
            |py| Call::with(py, record),
            |returned, record| {
                let truth = returned.is_truthy()?;
                Ok((object_record(record.unwrap_or(returned)), truth))
            },
        )
    }

    fn visit(&self, record: Record) -> Result<Record, Failure> {
        self.call(
            |py| Call::with(py, record),
            |returned, record| Ok(object_record(record.unwrap_or(returned))),
        )
    }

    fn fold(&self, accumulator: Option<Record>, record: Record) -> Result<Record, Failure> {
        self.call(
            |py| {
                let accumulator = match accumulator {
                    Some(accumulator) => record_object(py, accumulator)?,
                    None => py.None().into_bound(py),
                };
                Ok(Call {
                    accumulator: Some(accumulator),
                    record: Some(record_object(py, record)?),
                })
            },
            |returned, _| Ok(object_record(returned)),
        )
    }

    fn run(&self) -> Result<(), Failure> {
        self.call(|_| Ok(Call::default()), |_, _| Ok(()))
    }
}

/// # Errors
/// The function was `async`, which no step awaits.
fn refuse_coroutine(returned: &Bound<'_, PyAny>) -> PyResult<()> {
    static COROUTINE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let coroutine = COROUTINE.import(returned.py(), "types", "CoroutineType")?;
    if returned.get_type().is(coroutine) {
        returned.call_method0("close")?;
        return Err(errors::gears_error("Creating async record is not allowed"));
    }
    Ok(())
}

/// While it lives, the thread's id stands in the execution, where an abort finds it.
struct Interruptible<'a> {
    execution: &'a Execution,
    before: u64,
}

impl<'a> Interruptible<'a> {
    fn enter(_py: Python<'_>, execution: &'a Execution) -> Self {
        // SAFETY: needs no state of Python.
        let thread = unsafe { ffi::PyThread_get_thread_ident() };
        Self {
            execution,
            before: execution.callback_thread.swap(thread, Ordering::AcqRel),
        }
    }
}

impl Drop for Interruptible<'_> {
    fn drop(&mut self) {
        let thread = self.execution.callback_thread.swap(self.before, Ordering::AcqRel);
        if self.execution.is_stopping() {
            // The stop may have been raised after the last instruction of the function: it must not hit another one.
            // SAFETY: this thread is attached, as it was when the value was made.
            unsafe { ffi::PyThreadState_SetAsyncExc(thread as _, std::ptr::null_mut()) };
        }
    }
}
