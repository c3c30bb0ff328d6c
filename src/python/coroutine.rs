//! What a callback returns that has no value yet: a coroutine, or the future of `gearsFuture`. Contract:
//! docs/contract/python-api.md 6.1 to 6.5.

use std::{cell::Cell, ptr, sync::Arc};

use crate::mutex::Mutex;
use pyo3::{ffi, prelude::*, types::PyTuple};

use super::{
    attach::{ObjectRef, attach, in_engine},
    convert::object_record,
    current::{self, GearsSession},
    errors,
};
use crate::{
    engine::{
        execution::Execution,
        language::{Awaitable, Completion, Failure},
        record::Record,
        scope::Scope,
    },
    per_thread::per_thread,
    server::api,
};

const NOT_ALLOWED: &str = "Creating async record is not allowed";
const NOT_RETURNED: &str = "a future of gearsFuture was made and not returned";
const LOST: &str = "Async record did not called continue";

/// Whether the step whose callback runs can wait for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// If its execution may go to the background.
    Yes,
    /// The same, and a future that is made and not returned is an error: the step would go on with a value that means nothing.
    Accumulating,
    /// Never; the text for a coroutine.
    No(&'static str),
    /// It is no step at all; the text for a coroutine.
    Elsewhere(&'static str),
    /// The same, and whatever is returned is dropped.
    Nowhere,
}

impl Waits {
    /// Whether it is a step that may wait.
    fn is_step(self) -> bool {
        matches!(self, Self::Yes | Self::Accumulating)
    }
}

per_thread! {
    /// Whether the step can wait whose callback runs on this thread.
    static STEP: Cell<Option<Waits>> = Cell::new(None);
    /// The future that the callback made.
    static FUTURE: Cell<Option<Py<Future>>> = Cell::new(None);
}

/// The time of one callback; what was there before.
pub struct Calling(Option<Waits>, Option<Py<Future>>);

impl Calling {
    #[inline]
    pub fn enter(waits: Waits) -> Self {
        Self(STEP.replace(Some(waits)), FUTURE.replace(None))
    }

    /// The future that the callback made, if it did.
    #[inline]
    fn leave(mut self) -> Option<Py<Future>> {
        STEP.set(self.0);
        let made = FUTURE.replace(self.1.take());
        std::mem::forget(self);
        made
    }

    /// What the callback's value is to wait for, if it is something to wait for.
    ///
    /// # Errors
    /// Nothing can wait here.
    pub fn awaitable(
        self,
        waits: Waits,
        returned: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Box<dyn Awaitable>>> {
        let py = returned.py();
        let future = self.leave();
        if let Some(future) = future {
            if returned.is(future.bind(py)) {
                return Ok(Some(Box::new(Returned(ObjectRef::new(future)))));
            }
            if waits == Waits::Accumulating {
                return Err(errors::gears_error(NOT_RETURNED));
            }
            api::log_warning(&format!("an api violation: {NOT_RETURNED}"));
        }
        // SAFETY: the object is alive; of the type only the address is taken.
        let is_coroutine = unsafe { ptr::eq(ffi::Py_TYPE(returned.as_ptr()), &raw const ffi::PyCoro_Type) };
        if !is_coroutine {
            return Ok(None);
        }
        if waits == Waits::Nowhere {
            // Nobody awaits it: Python would warn.
            returned.call_method0("close")?;
            return Ok(None);
        }
        let refused = match waits {
            Waits::No(text) | Waits::Elsewhere(text) => Some(text),
            Waits::Yes | Waits::Accumulating if !Scope::may_wait() => Some(NOT_ALLOWED),
            Waits::Yes | Waits::Accumulating | Waits::Nowhere => None,
        };
        if let Some(text) = refused {
            returned.call_method0("close")?;
            return Err(errors::gears_error(text));
        }
        let scope = Scope::current();
        Ok(Some(Box::new(Coroutine {
            coroutine: Some(ObjectRef::new(returned.clone().unbind())),
            scope,
        })))
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        STEP.set(self.0);
        drop(FUTURE.replace(self.1.take()));
    }
}

/// `isAsyncAllow()`: true where a coroutine may be returned, and in coroutines.
pub fn is_async_allowed(py: Python<'_>) -> bool {
    let in_step = STEP.get().is_some_and(Waits::is_step);
    (in_step && Scope::may_wait()) || current::is_in_coroutine(py)
}

/// A coroutine that a step returned.
struct Coroutine {
    coroutine: Option<ObjectRef>,
    scope: Option<Scope>,
}

impl Awaitable for Coroutine {
    fn start(mut self: Box<Self>, completion: Completion) {
        attach(|py| {
            let scope = self.scope.take();
            let continuation = Continuation {
                completion: Mutex::new(Some(completion)),
                execution: scope.as_ref().and_then(|scope| scope.execution.clone()),
            };
            let started = Bound::new(py, continuation).and_then(|continuation| {
                let session = scope.map(GearsSession::new);
                let coroutine = self.coroutine.take().map(ObjectRef::into_inner);
                let arguments = (coroutine, continuation, session);
                loop_module(py)?.call_method1("start", arguments)
            });
            if let Err(error) = started {
                // The continuation was dropped, which told the execution.
                api::log_warning(&format!("a coroutine could not be started: {error}"));
            }
        });
    }
}

impl Drop for Coroutine {
    fn drop(&mut self) {
        if let Some(coroutine) = self.coroutine.take() {
            // Nobody awaits it: Python would warn.
            attach(|py| drop(coroutine.call_method0(py, "close")));
        }
    }
}

/// The module of the event loop.
pub fn loop_module(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    PyModule::import(py, "pinion_loop")
}

/// Told the end of a coroutine by the loop.
#[pyclass(frozen, module = "redisgears")]
struct Continuation {
    completion: Mutex<Option<Completion>>,
    execution: Option<Arc<Execution>>,
}

impl Continuation {
    fn take(&self) -> Option<Completion> {
        self.completion.lock().take()
    }
}

#[pymethods]
impl Continuation {
    fn done(&self, value: Bound<'_, PyAny>) {
        if let Some(completion) = self.take() {
            let record = object_record(value);
            in_engine(|| completion(Ok(record)));
        }
    }

    fn failed(&self, error: &Bound<'_, PyAny>) {
        if let Some(completion) = self.take() {
            if let (Some(execution), Ok(kind)) = (&self.execution, error.get_type().name()) {
                execution.note_error_kind(&kind.to_string_lossy());
            }
            let failure = errors::text_of_ended(error);
            in_engine(|| completion(Err(failure)));
        }
    }
}

impl Drop for Continuation {
    fn drop(&mut self) {
        if let Some(completion) = self.take() {
            in_engine(|| completion(Err(LOST.into())));
        }
    }
}

/// The future of `gearsFuture`: whoever has it continues the record.
#[pyclass(frozen, name = "Future", module = "redisgears")]
pub struct Future(Mutex<FutureState>);

enum FutureState {
    /// Not returned yet.
    Made,
    /// Resolved before it was returned.
    Early(Result<Record, Failure>),
    Awaited(Completion),
    Continued,
}

#[pymethods]
impl Future {
    /// The record goes on with `value`.
    ///
    /// # Errors
    /// `gears.error`: not exactly one argument, not returned yet, continued already.
    #[pyo3(name = "continueRun", signature = (*args))]
    fn continue_run(&self, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        let value = only(args)?;
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, FutureState::Continued) {
            FutureState::Awaited(completion) => {
                drop(state);
                let record = object_record(value);
                in_engine(|| completion(Ok(record)));
                Ok(())
            }
            made @ FutureState::Made => {
                *state = made;
                Err(errors::gears_error(
                    "Can not handle future untill it returned from the callback",
                ))
            }
            other => {
                *state = other;
                Err(errors::gears_error("Can not continue with the same future twice"))
            }
        }
    }

    /// For the event loop: a coroutine has ended with `value`, or with `error`; it may have ended before the callback has
    /// returned this future.
    #[pyo3(signature = (value, error))]
    fn resolve(&self, value: Bound<'_, PyAny>, error: Option<Bound<'_, PyAny>>) {
        let value = match error {
            None => Ok(object_record(value)),
            Some(error) => Err(errors::text_of_ended(&error)),
        };
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, FutureState::Continued) {
            FutureState::Awaited(completion) => {
                drop(state);
                in_engine(|| completion(value));
            }
            FutureState::Made => *state = FutureState::Early(value),
            // Somebody else was faster.
            other => *state = other,
        }
    }

    /// The record becomes an error with the text of `error`.
    ///
    /// # Errors
    /// `gears.error`: not exactly one argument, continued already.
    #[pyo3(name = "continueFailed", signature = (*args))]
    fn continue_failed(&self, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        let text = errors::text_of_ended(&only(args)?);
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, FutureState::Continued) {
            FutureState::Awaited(completion) => {
                drop(state);
                in_engine(|| completion(Err(text)));
                Ok(())
            }
            FutureState::Made => {
                *state = FutureState::Early(Err(text));
                Ok(())
            }
            other => {
                *state = other;
                Err(errors::gears_error("Can not continue with the same future twice"))
            }
        }
    }
}

impl Drop for Future {
    fn drop(&mut self) {
        if let FutureState::Awaited(completion) = std::mem::replace(self.0.get_mut(), FutureState::Continued)
        {
            in_engine(|| completion(Err(LOST.into())));
        }
    }
}

fn only<'py>(args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    if args.len() == 1 {
        args.get_item(0)
    } else {
        Err(errors::gears_error("Continue function expect an object"))
    }
}

/// A future that its callback returned.
struct Returned(ObjectRef<Future>);

impl Awaitable for Returned {
    fn start(self: Box<Self>, completion: Completion) {
        let mut state = self.0.get().0.lock();
        match std::mem::replace(&mut *state, FutureState::Continued) {
            FutureState::Early(value) => {
                drop(state);
                completion(value);
            }
            _ => *state = FutureState::Awaited(completion),
        }
    }
}

/// `gearsFuture()`: a future to be returned by the callback that makes it.
///
/// # Errors
/// `gears.error`: an argument, no step runs, the step cannot wait, the second one in one call.
pub fn make_future<'py>(py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, Future>> {
    if !args.is_empty() {
        return Err(errors::gears_error("Future gets no arguments"));
    }
    let waits = STEP
        .get()
        .filter(|waits| !matches!(waits, Waits::Elsewhere(_) | Waits::Nowhere))
        .ok_or_else(|| {
            errors::gears_error("Future object can only be created inside certain execution steps")
        })?;
    let before = FUTURE.replace(None);
    let made = before.is_some();
    FUTURE.set(before);
    if made {
        return Err(errors::gears_error(
            "Can not create async record twice on the same step",
        ));
    }
    if !waits.is_step() {
        return Err(errors::gears_error("Step does not support async"));
    }
    if !Scope::may_wait() {
        return Err(errors::gears_error(NOT_ALLOWED));
    }
    let future = Bound::new(py, Future(Mutex::new(FutureState::Made)))?;
    let kept = future.clone().unbind();
    FUTURE.set(Some(kept));
    Ok(future)
}
