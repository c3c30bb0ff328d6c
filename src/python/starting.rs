//! Whether a thread starts another one in this moment: then no error may be raised in it.
//!
//! Up to Python 3.11 the state of a new thread has the id of the thread that makes it, until it runs by itself; and an error that is raised
//! "in the thread with this id" goes to the newest such state. The new thread would die before it has told that it runs, and who
//! started it waits for that, for ever. From 3.12 on a state has no id until its own thread runs.

#[cfg(not(Py_3_12))]
use pyo3::ffi;
use pyo3::prelude::*;

/// Where the id stands in a state, in words: Python has no function that tells it. What is read there is compared with an id that is known.
#[cfg(not(Py_3_12))]
const ID: usize = if cfg!(Py_3_11) { 19 } else { 22 };

/// True if an error for this thread could hit one that it has just made. Holds until Python is let go; it is true for a moment only.
#[cfg(not(Py_3_12))]
pub fn starts_a_thread(_py: Python<'_>, thread: u64) -> bool {
    // SAFETY: a state is longer than that; an id is a word, which its owner writes while it is attached, as this thread is now.
    let id = |state: *mut ffi::PyThreadState| unsafe { state.cast::<u64>().add(ID).read() };
    // SAFETY: attached. States are unlinked by threads that are attached; one that is linked meanwhile stands before those that are seen here.
    unsafe {
        if id(ffi::PyThreadState_Get()) != ffi::PyThread_get_thread_ident() as u64 {
            return false;
        }
        let mut state = ffi::PyInterpreterState_ThreadHead(ffi::PyInterpreterState_Get());
        let mut found = 0;
        while !state.is_null() {
            found += usize::from(id(state) == thread);
            state = ffi::PyThreadState_Next(state);
        }
        found > 1
    }
}

/// True if an error for this thread could hit one that it has just made: never.
#[cfg(Py_3_12)]
pub fn starts_a_thread(_py: Python<'_>, _thread: u64) -> bool {
    false
}
