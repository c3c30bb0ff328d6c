//! Where threads attach to Python, and where its objects end.
//!
//! Code of users runs wherever Python looks at an object (`__str__`, `__bool__`, `__eq__`, ...) and wherever one ends
//! (`__del__`, a callback of a weak reference). So three rules hold for [`attach`], not for calls of functions: an atomic
//! block that was left open ends there; SyncTimeout counts for what holds the server; no mutex of ours is held. And code of
//! the engine that runs on an attached thread ([`in_engine`]) ends no object: what it drops waits until Python's side
//! goes on.

// The one place where threads attach.
#![allow(clippy::disallowed_methods)]

use std::{
    cell::{Cell, RefCell},
    ffi::c_int,
    mem::ManuallyDrop,
    ops::Deref,
    sync::atomic::{AtomicBool, Ordering},
};

use pyo3::{ffi, prelude::*};

use super::{RUNTIME, atomic::Frame, interrupt::Armed};
use crate::{
    clock::Instant,
    engine::{scope::Scope, stop::Code},
    mutex,
    per_thread::per_thread,
    server::{api, lock},
};

per_thread! {
    /// This thread runs code of the engine or of the server.
    static IN_ENGINE: Cell<bool> = Cell::new(false);
    /// What that code has dropped.
    static LATER: RefCell<Vec<Py<PyAny>>> = RefCell::new(Vec::new());
}

/// For so many objects the place is kept.
const FEW: usize = 64;

/// The code that runs on this thread, until the guard is dropped.
struct Side(bool);

impl Side {
    fn enter(engine: bool) -> Self {
        Self(IN_ENGINE.replace(engine))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        IN_ENGINE.set(self.0);
    }
}

/// Does `work` attached to Python. May be nested. Whatever looks at objects, calls functions or ends objects does it here.
pub fn attach<R>(work: impl for<'py> FnOnce(Python<'py>) -> R) -> R {
    check_mutexes();
    let _side = Side::enter(false);
    let frame = Frame::enter();
    // Before this thread is attached: PyO3 ends then what others have dropped.
    let armed = arm();
    Python::attach(|py| {
        // They end attached, the frame first.
        let _armed = armed;
        let _frame = frame;
        Frame::end_leaked();
        end_later();
        work(py)
    })
}

/// Does `work` attached, where no code of users can run: it looks at objects of ours only, and ends none. Costs less than
/// [`attach`], and may be done while a mutex is held.
pub fn bare<R>(work: impl for<'py> FnOnce(Python<'py>) -> R) -> R {
    Python::attach(work)
}

/// Does `work`, which is the engine's or the server's, on a thread that may be attached.
pub fn in_engine<R>(work: impl FnOnce() -> R) -> R {
    let side = Side::enter(true);
    let result = work();
    drop(side);
    settle();
    result
}

/// Does `work` of the engine attached, so that each [`attach`] in it is cheap. `guard` is dropped attached, when what the work has
/// dropped has ended: code of users runs there, and is to be stopped as any.
pub fn attached<G>(guard: G, work: impl FnOnce(Python<'_>)) {
    let side = Side::enter(true);
    let frame = Frame::enter();
    let armed = arm();
    Python::attach(|py| {
        let _armed = armed;
        let _frame = frame;
        let _guard = guard;
        Frame::end_leaked();
        work(py);
        drop(side);
        // Unless code of the engine called this.
        if !IN_ENGINE.get() {
            check_mutexes();
            end_later();
        }
    });
}

/// Does `work` of the engine detached, on a thread that stays known to Python meanwhile.
pub fn detached(work: impl FnOnce() + Send) {
    let _frame = Frame::enter();
    Python::attach(|py| {
        Frame::end_leaked();
        py.detach(work);
    });
}

/// Does `work` attached without ending any object: for threads that must not run code of users, because they stop it.
pub fn apart<R>(work: impl FnOnce(Python<'_>) -> R) -> R {
    struct Ensured(ffi::PyGILState_STATE, #[cfg(Py_3_10)] c_int);
    impl Drop for Ensured {
        fn drop(&mut self) {
            // SAFETY: attached since the guard was made, on this thread.
            unsafe {
                #[cfg(Py_3_10)]
                if self.1 == 1 {
                    ffi::PyGC_Enable();
                }
                ffi::PyGILState_Release(self.0);
            }
        }
    }
    // SAFETY: Python is initialised: only threads of ours call this, which start behind that. Not PyO3's way, which ends what
    // others have dropped; nor may the collector.
    let (_ensured, py) = unsafe {
        let state = ffi::PyGILState_Ensure();
        let ensured = Ensured(
            state,
            #[cfg(Py_3_10)]
            ffi::PyGC_Disable(),
        );
        (ensured, Python::assume_attached())
    };
    work(py)
}

/// Ends what code of the engine has dropped, unless such code called this.
fn settle() {
    let waits = !IN_ENGINE.get() && LATER.with_borrow(|later| !later.is_empty());
    if waits {
        attach(|_| ());
    }
}

#[inline]
fn end_later() {
    if LATER.with_borrow(|later| !later.is_empty()) {
        end_them();
    }
}

#[inline(never)]
fn end_them() {
    // What ends may drop more.
    while LATER.with_borrow(|later| !later.is_empty()) {
        let mut ending = LATER.take();
        ending.clear();
        if ending.capacity() <= FEW {
            LATER.with_borrow_mut(|later| {
                if later.is_empty() {
                    *later = ending;
                }
            });
        }
    }
}

/// Where this thread holds the server and nothing says how it is to be stopped: SyncTimeout counts from here.
#[inline]
fn arm() -> Option<Armed> {
    if lock::is_held() { arm_here() } else { None }
}

#[inline(never)]
fn arm_here() -> Option<Armed> {
    let engine = &RUNTIME.get()?.engine;
    if Armed::is_here() && engine.is_watching() {
        return None;
    }
    let (code, watched) = engine.watch_any(
        || {
            let scope = Scope::current();
            Code::new(
                "code that looks at an object",
                scope.as_ref().map(|scope| &scope.session),
            )
        },
        Instant::now(),
    );
    Some(Armed::new(code, watched))
}

/// A mutex of ours that is held here is an error of ours, which may hang the server: the log says so, and the tests look there.
#[inline]
fn check_mutexes() {
    if mutex::is_any_held() {
        say_so();
    }
}

#[cold]
fn say_so() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        let place = std::backtrace::Backtrace::force_capture();
        api::log_warning(&format!("attached to Python while a mutex is held:\n{place}"));
    }
}

/// A reference that the engine may hold, and drop on any thread and in any place.
pub struct ObjectRef<T = PyAny>(ManuallyDrop<Py<T>>);

impl<T> ObjectRef<T> {
    pub fn new(object: Py<T>) -> Self {
        Self(ManuallyDrop::new(object))
    }

    /// The reference itself.
    pub fn into_inner(self) -> Py<T> {
        let mut kept = ManuallyDrop::new(self);
        // SAFETY: taken once: what is left is not dropped.
        unsafe { ManuallyDrop::take(&mut kept.0) }
    }
}

impl<T> Deref for ObjectRef<T> {
    type Target = Py<T>;

    fn deref(&self) -> &Py<T> {
        &self.0
    }
}

impl<T> Drop for ObjectRef<T> {
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let object = unsafe { ManuallyDrop::take(&mut self.0) };
        let in_engine = IN_ENGINE.try_with(Cell::get).unwrap_or(false);
        // SAFETY: needs no state of Python. Where a thread is detached, PyO3 keeps the object until one attaches.
        if (in_engine || mutex::is_any_held()) && unsafe { ffi::PyGILState_Check() } == 1 {
            let mut object = Some(object.into_any());
            // Nobody drops any while the thread's own values end.
            let _ = LATER.try_with(|later| later.borrow_mut().extend(object.take()));
        }
    }
}
