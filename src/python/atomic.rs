//! `atomic()`: holds the server for a block of a function (`python-api.md` 2.2).

use std::cell::RefCell;

use pyo3::{prelude::*, types::PyTuple};

use super::errors;
use crate::redis::{api, lock, lock::LockGuard};

thread_local! {
    /// The lock of the block that this thread is in.
    static BLOCK: RefCell<Option<LockGuard>> = const { RefCell::new(None) };
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
        if lock::is_held() {
            BLOCK.set(Some(LockGuard::acquire()));
        } else {
            this.py().detach(|| BLOCK.set(Some(LockGuard::acquire())));
        }
        Ok(this)
    }

    /// Lets the server go. Any number of arguments, also none.
    ///
    /// # Errors
    /// This thread is in no such block.
    #[pyo3(signature = (*args))]
    fn __exit__(&self, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        match BLOCK.take() {
            Some(guard) => {
                drop(guard);
                Ok(())
            }
            // The block was ended because a coroutine waited in it: the error that says so is on its way.
            None if args.get_item(0).is_ok_and(|error| !error.is_none()) => Ok(()),
            None => Err(errors::gears_error("Not inside an atomic block")),
        }
    }
}

/// True inside a block of this thread.
pub fn is_inside() -> bool {
    BLOCK.with_borrow(Option::is_some)
}

/// Ends the block of this thread; true if there was one.
pub fn leave() -> bool {
    BLOCK.take().is_some()
}

/// The time of one callback or script: its blocks are its own, and one that it does not leave ends with it.
pub struct Frame(Option<LockGuard>);

impl Frame {
    pub fn enter() -> Self {
        Self(BLOCK.take())
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if let Some(leaked) = BLOCK.replace(self.0.take()) {
            drop(leaked);
            api::log_warning("a function ended inside an atomic block: the block was ended");
        }
    }
}
