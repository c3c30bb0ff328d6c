//! How a running function is stopped: an exception raised in its thread by another one.
//!
//! An execution holds the id of the thread that runs it; whoever aborts it finds the thread there. All reads and
//! changes happen attached, so an id never outlives what it stands for.

use std::{
    cell::Cell,
    sync::{Arc, atomic::Ordering},
};

use pyo3::{ffi, prelude::*, sync::PyOnceLock};

use super::{attach, coroutine::loop_module, current, errors, imports, starting};
use crate::{
    clock::Instant,
    engine::{
        execution::Execution,
        stop::{Interrupted, Stop, Stoppable, Watched},
    },
    per_thread::per_thread,
};

/// While it lives, the thread's id stands in `stop`; from before this thread is attached, to be dropped while it still is.
pub struct Interruptible<'a> {
    stop: &'a Stop,
    before: u64,
}

impl<'a> Interruptible<'a> {
    pub fn enter(stop: &'a Stop) -> Self {
        ARMED.with(|armed| armed.set(armed.get() + 1));
        Self {
            stop,
            before: stop.enter(this_thread()),
        }
    }
}

impl Drop for Interruptible<'_> {
    fn drop(&mut self) {
        ARMED.with(|armed| armed.set(armed.get() - 1));
        let me = this_thread();
        self.stop.leave(me, self.before);
        // The stop may have been raised after the last instruction of a function: it must not hit another one.
        if self.stop.take_raised(me) {
            attach::bare(let_out);
        }
    }
}

per_thread! {
    /// How many times this thread's id stands in some [`Stop`].
    static ARMED: Cell<u32> = Cell::new(0);
}

/// The same for code that holds the server, from before this thread is attached.
pub struct Armed {
    code: Arc<dyn Stoppable>,
    before: u64,
    _watched: Option<Watched<'static>>,
}

impl Armed {
    pub fn new(code: Arc<dyn Stoppable>, watched: Option<Watched<'static>>) -> Self {
        ARMED.with(|armed| armed.set(armed.get() + 1));
        Self {
            before: code.stop().enter(this_thread()),
            code,
            _watched: watched,
        }
    }

    /// True if the code that runs on this thread can be stopped.
    pub fn is_here() -> bool {
        ARMED.get() > 0
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        ARMED.with(|armed| armed.set(armed.get() - 1));
        let stop = self.code.stop();
        stop.leave(this_thread(), self.before);
        // SAFETY: needs no state of Python.
        if unsafe { ffi::PyGILState_Check() } == 1 {
            attach::bare(|py| take_back(py, stop));
        }
    }
}

/// Puts this thread's id into `stop`, which nobody else uses. Attached.
pub fn begin(_py: Python<'_>, stop: &Stop) {
    stop.thread.store(this_thread(), Ordering::Release);
}

/// Ends what [`begin`] began.
pub fn end(py: Python<'_>, stop: &Stop) {
    stop.thread.store(0, Ordering::Release);
    take_back(py, stop);
}

/// True if this thread runs the code of `stop`.
pub fn is_here(stop: &Stop) -> bool {
    stop.thread.load(Ordering::Acquire) == this_thread()
}

/// While it lives, nothing is raised in this thread through `stop`; for a while, since code of users may run meanwhile.
pub struct Shield<'a, 'py> {
    py: Python<'py>,
    stop: &'a Stop,
    thread: u64,
    before: Option<(u64, Instant)>,
}

impl<'a, 'py> Shield<'a, 'py> {
    pub fn raise(py: Python<'py>, stop: &'a Stop) -> Self {
        let (thread, before) = stop.shield();
        if thread != 0 {
            take_back(py, stop);
        }
        Self {
            py,
            stop,
            thread,
            before,
        }
    }
}

impl Drop for Shield<'_, '_> {
    fn drop(&mut self) {
        self.stop.unshield(0, self.before);
        // It took too long, and was stopped.
        take_back(self.py, self.stop);
        self.stop.unshield(self.thread, self.before);
    }
}

/// Raises the "stop" error in the thread whose id stands in `stop`.
pub fn raise(py: Python<'_>, stop: &Stop) -> Interrupted {
    let thread = stop.target();
    let (true, Ok(stopped)) = (thread != 0, errors::force_stopped_type(py)) else {
        return Interrupted::Nothing;
    };
    if imports::is_importing(py, thread) {
        return Interrupted::AfterImport;
    }
    // To look for imports may have run code of users.
    if stop.target() != thread {
        return Interrupted::Nothing;
    }
    if starting::starts_a_thread(py, thread) {
        return Interrupted::Later;
    }
    stop.note_raised(thread);
    // SAFETY: attached; an unknown thread is ignored.
    unsafe { ffi::PyThreadState_SetAsyncExc(thread as _, stopped.as_ptr()) };
    stop.sleepers.wake();
    Interrupted::Now
}

/// Raises the "stop" error in the thread of the event loop if it runs a coroutine of `execution` now. Whoever runs there
/// lets out what comes too late (`python/loop.py`).
pub fn raise_in_coroutine(py: Python<'_>, execution: &Arc<Execution>) -> PyResult<bool> {
    let event_loop = loop_module(py)?;
    let runs = || {
        PyResult::Ok(current::is_of_execution(
            &event_loop.getattr("_running")?,
            execution,
        ))
    };
    if !runs()? {
        return Ok(false);
    }
    let stopped = errors::force_stopped_type(py)?;
    if imports::is_importing(py, current::loop_thread()) {
        return Ok(true);
    }
    // To look for imports may have run code of users, and let the loop go on.
    if !runs()? {
        return Ok(false);
    }
    if starting::starts_a_thread(py, current::loop_thread()) {
        return Ok(true);
    }
    event_loop.setattr("_interrupted", true)?;
    // SAFETY: attached; an unknown thread is ignored.
    unsafe { ffi::PyThreadState_SetAsyncExc(current::loop_thread() as _, stopped.as_ptr()) };
    Ok(true)
}

/// Makes sure that nothing raised through `stop` is pending in this thread. Python forgets a pending error on request,
/// but not that there was one, which slows the thread down for ever and hangs Python 3.11 under a profiler. So the error
/// is let out where it hits nobody.
fn take_back(py: Python<'_>, stop: &Stop) {
    if stop.take_raised(this_thread()) {
        let_out(py);
    }
}

/// Lets out what is pending in this thread.
pub fn let_out(py: Python<'_>) {
    let Ok(stopped) = errors::force_stopped_type(py) else {
        return;
    };
    if starting::starts_a_thread(py, this_thread()) {
        drop(raise_pending(py));
        return;
    }
    // SAFETY: attached. Whatever is pending is replaced.
    let raised = unsafe { ffi::PyThreadState_SetAsyncExc(this_thread() as _, stopped.as_ptr()) };
    if raised == 1 {
        // It is not waited for: what Python does before it raises (calls that another thread has asked for) may have let it out.
        drop(raise_pending(py));
    }
}

/// What was raised in this thread by another one comes out here, for code of ours that is about to wait, or was woken.
///
/// # Errors
/// What was raised.
pub fn raise_pending(py: Python<'_>) -> PyResult<()> {
    static LOOK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOOK.import(py, "pinion_interrupt", "raise_pending")?.call0()?;
    Ok(())
}

/// Python's id of this thread.
pub fn this_thread() -> u64 {
    per_thread! {
        /// 0 while it is not known.
        static ME: Cell<u64> = Cell::new(0);
    }
    let me = ME.here();
    if me.get() == 0 {
        // SAFETY: needs no state of Python.
        me.set(unsafe { ffi::PyThread_get_thread_ident() });
    }
    me.get()
}
