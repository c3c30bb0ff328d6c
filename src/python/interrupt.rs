//! How a running function is stopped: an exception raised in its thread by another one.
//!
//! An execution holds the id of the thread that runs it; whoever aborts it finds the thread there. All reads and
//! changes happen attached, so an id never outlives what it stands for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pyo3::{ffi, prelude::*};

use super::errors;

/// While it lives, the thread's id stands in `thread`.
pub struct Interruptible<'a> {
    thread: &'a AtomicU64,
    stopping: &'a AtomicBool,
    before: u64,
}

impl<'a> Interruptible<'a> {
    pub fn enter(_py: Python<'_>, thread: &'a AtomicU64, stopping: &'a AtomicBool) -> Self {
        Self {
            thread,
            stopping,
            before: thread.swap(this_thread(), Ordering::AcqRel),
        }
    }
}

impl Drop for Interruptible<'_> {
    fn drop(&mut self) {
        self.thread.store(self.before, Ordering::Release);
        if self.stopping.load(Ordering::Acquire) {
            // The stop may have been raised after the last instruction of a function: it must not hit another one.
            take_back();
        }
    }
}

/// While it lives, nothing is raised in this thread through `thread`.
pub struct Shield<'a> {
    thread: &'a AtomicU64,
    before: u64,
}

impl<'a> Shield<'a> {
    pub fn raise(_py: Python<'_>, thread: &'a AtomicU64) -> Self {
        let before = thread.swap(0, Ordering::AcqRel);
        if before != 0 {
            take_back();
        }
        Self { thread, before }
    }
}

impl Drop for Shield<'_> {
    fn drop(&mut self) {
        self.thread.store(self.before, Ordering::Release);
    }
}

/// Raises the "stop" error in the thread whose id stands in `thread`.
pub fn raise(py: Python<'_>, thread: &AtomicU64) {
    let thread = thread.load(Ordering::Acquire);
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
