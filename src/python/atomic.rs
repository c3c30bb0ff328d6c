//! `atomic()`: holds the server for a block of a function (docs/contract/python-api.md 2.2), for as long as SyncTimeout
//! allows.

use std::{cell::RefCell, sync::Arc};

use pyo3::{ffi, prelude::*, types::PyTuple};

use super::{attach, children, current, errors, interrupt, runtime};
use crate::{
    clock::Instant,
    engine::stop::{Code, Stoppable, Watched},
    per_thread::per_thread,
    server::{api, lock, lock::LockGuard},
};

per_thread! {
    /// The block that this thread is in.
    static BLOCK: RefCell<Option<Box<Block>>> = RefCell::new(None);
}

/// The time of one block. Its fields are dropped in their order.
struct Block {
    /// SyncTimeout counts, unless it did so before.
    watched: Option<Watched<'static>>,
    /// What is stopped, where that is not the execution of this thread.
    own: Option<Own>,
    guard: LockGuard,
}

/// The end of a block outside of an execution: in a coroutine, or on a thread that user code made.
struct Own(Arc<Code>);

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: needs no state of Python. A thread that ends in its block is detached for good.
        if unsafe { ffi::PyGILState_Check() } == 1 {
            attach::bare(|py| interrupt::end(py, &self.0.stop));
        }
    }
}

impl Block {
    fn new(guard: LockGuard) -> Self {
        Self {
            watched: None,
            own: None,
            guard,
        }
    }

    /// From now on SyncTimeout counts. An execution that runs on this thread ends with its block.
    fn watch(&mut self, py: Python<'_>) -> PyResult<()> {
        let engine = &runtime()?.engine;
        let scope = current::scope();
        let execution = scope
            .as_ref()
            .and_then(|scope| scope.execution.as_ref())
            .filter(|execution| interrupt::is_here(&execution.stop));
        let own = match execution {
            Some(_) => None,
            None => Some(Code::new(
                "an atomic block",
                scope.as_ref().map(|scope| &scope.session),
            )),
        };
        let code: Option<Arc<dyn Stoppable>> = match (&own, execution) {
            (Some(own), _) => Some(Arc::clone(own) as _),
            (None, execution) => execution.map(|execution| Arc::clone(execution) as _),
        };
        let Some(code) = code else { return Ok(()) };
        if let Some(own) = &own {
            interrupt::begin(py, &own.stop);
        }
        self.watched = engine.watch_sync(self.guard.lock(), code, Instant::now());
        if self.watched.is_some() {
            self.own = own.map(Own);
        }
        Ok(())
    }
}

/// The context manager that `atomic()` returns.
#[pyclass(frozen, name = "PyAtomic", module = "redisgears")]
pub struct Atomic;

#[pymethods]
impl Atomic {
    /// Surplus arguments are ignored.
    #[new]
    #[pyo3(signature = (*_args))]
    fn new(_args: &Bound<'_, PyTuple>) -> Self {
        Self
    }

    /// Waits for the server and holds it.
    ///
    /// # Errors
    /// This thread is in such a block already.
    fn __enter__(this: PyRef<'_, Self>) -> PyResult<PyRef<'_, Self>> {
        if is_inside() {
            return Err(errors::gears_error("Already inside an atomic block"));
        }
        if children::is_forked() {
            return Err(errors::gears_error(children::NOT_THE_SERVER));
        }
        let enter = || BLOCK.set(Some(Box::new(Block::new(LockGuard::acquire()))));
        if lock::is_held() {
            enter();
        } else {
            this.py().detach(enter);
        }
        BLOCK.with_borrow_mut(|block| match block {
            Some(block) => block.watch(this.py()),
            None => Ok(()),
        })?;
        Ok(this)
    }

    /// Lets the server go. Any number of arguments, also none.
    ///
    /// # Errors
    /// This thread is in no such block; it held the server for longer than SyncTimeout.
    #[pyo3(signature = (*args))]
    fn __exit__(&self, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        match BLOCK.take() {
            Some(block) => {
                let timed_out = block.own.as_ref().is_some_and(|own| own.0.stop.has_timed_out());
                drop(block);
                let others = args
                    .get_item(0)
                    .is_ok_and(|error| !error.is_none() && !is_force_stopped(&error));
                if timed_out && !others {
                    return Err(runtime()?.engine.sync_timeout().into());
                }
                Ok(())
            }
            // The block was ended because a coroutine waited in it: the error that says so is on its way.
            None if args.get_item(0).is_ok_and(|error| !error.is_none()) => Ok(()),
            None => Err(errors::gears_error("Not inside an atomic block")),
        }
    }
}

fn is_force_stopped(kind: &Bound<'_, PyAny>) -> bool {
    errors::force_stopped_type(kind.py()).is_ok_and(|stopped| kind.is(&stopped))
}

/// True inside a block of this thread.
pub fn is_inside() -> bool {
    BLOCK.with_borrow(Option::is_some)
}

/// Ends the block of this thread; true if there was one.
pub fn leave() -> bool {
    BLOCK.take().is_some()
}

/// The time that a thread is attached: its blocks are its own, and one that is not left ends with it.
pub struct Frame(Option<Box<Block>>);

impl Frame {
    #[inline]
    pub fn enter() -> Self {
        Self(BLOCK.take())
    }

    /// Ends a block that was left open so far.
    #[inline]
    pub fn end_leaked() {
        if let Some(leaked) = BLOCK.take() {
            end(leaked);
        }
    }
}

impl Drop for Frame {
    #[inline]
    fn drop(&mut self) {
        if let Some(leaked) = BLOCK.replace(self.0.take()) {
            end(leaked);
        }
    }
}

#[cold]
fn end(leaked: Box<Block>) {
    drop(leaked);
    api::log_warning("a function ended inside an atomic block: the block was ended");
}
