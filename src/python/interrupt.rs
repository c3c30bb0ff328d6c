//! How a running function is stopped: an exception raised in its thread by another one.
//!
//! An execution holds the id of the thread that runs it; whoever aborts it finds the thread there. All reads and
//! changes happen attached, so an id never outlives what it stands for.

use std::sync::atomic::Ordering;

use pyo3::{ffi, prelude::*};

use super::errors;
use crate::engine::stop::Stop;

/// While it lives, the thread's id stands in `stop`.
pub struct Interruptible<'a> {
    stop: &'a Stop,
    before: u64,
}

impl<'a> Interruptible<'a> {
    pub fn enter(_py: Python<'_>, stop: &'a Stop) -> Self {
        Self {
            stop,
            before: stop.thread.swap(this_thread(), Ordering::AcqRel),
        }
    }
}

impl Drop for Interruptible<'_> {
    fn drop(&mut self) {
        self.stop.thread.store(self.before, Ordering::Release);
        if self.stop.is_asked() {
            // The stop may have been raised after the last instruction of a function: it must not hit another one.
            take_back();
        }
    }
}

/// While it lives, nothing is raised in this thread through `stop`.
pub struct Shield<'a> {
    stop: &'a Stop,
    before: u64,
}

impl<'a> Shield<'a> {
    pub fn raise(_py: Python<'_>, stop: &'a Stop) -> Self {
        let before = stop.thread.swap(0, Ordering::AcqRel);
        if before != 0 {
            take_back();
        }
        Self { stop, before }
    }
}

impl Drop for Shield<'_> {
    fn drop(&mut self) {
        self.stop.thread.store(self.before, Ordering::Release);
    }
}

/// Raises the "stop" error in the thread whose id stands in `stop`.
pub fn raise(py: Python<'_>, stop: &Stop) {
    let thread = stop.thread.load(Ordering::Acquire);
    if let (true, Ok(stopped)) = (thread != 0, errors::force_stopped_type(py)) {
        // SAFETY: attached; an unknown thread is ignored.
        unsafe { ffi::PyThreadState_SetAsyncExc(thread as _, stopped.as_ptr()) };
    }
}

fn take_back() {
    // SAFETY: whoever calls this is attached.
    unsafe { ffi::PyThreadState_SetAsyncExc(this_thread() as _, std::ptr::null_mut()) };
}

fn this_thread() -> u64 {
    // SAFETY: needs no state of Python.
    unsafe { ffi::PyThread_get_thread_ident() }
}
