//! The server's lock: who holds it, and how a background thread gets it.
//!
//! A [`Lock`] is a proof, not a guard: entry points on the main thread create it (the server holds its lock
//! whenever it calls us), background threads get it from [`with_lock`]. Order: this lock, then Python's, then ours.

use std::{
    cell::Cell,
    marker::PhantomData,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
    thread::{self, ThreadId},
    time::Duration,
};

use redis_module::raw;

use super::{closing, guarded::Plain};
use crate::per_thread::per_thread;

/// The context that every call made for functions goes through. It has a client of its own, so selecting a
/// database on it disturbs nobody; it is only touched under the server's lock.
static CALL_CONTEXT: AtomicPtr<raw::RedisModuleCtx> = AtomicPtr::new(ptr::null_mut());

/// The same for looking at keys inside the command filter, which may run in the middle of a call.
static LOOK_CONTEXT: AtomicPtr<raw::RedisModuleCtx> = AtomicPtr::new(ptr::null_mut());

/// The database that is selected on [`LOOK_CONTEXT`].
static LOOK_DB: Plain<i32> = Plain::new(0);

/// The thread that clients' commands run on.
static SERVER_THREAD: OnceLock<ThreadId> = OnceLock::new();

per_thread! {
    /// How often this thread has entered the server's lock.
    static DEPTH: Cell<u32> = Cell::new(0);
}

/// Proof that this thread holds the server's lock. Neither sendable nor storable beyond `'a`.
#[derive(Clone, Copy)]
pub struct Lock<'a> {
    _held: PhantomData<(&'a (), *mut ())>,
}

/// Makes the two contexts. Called once, while the module loads.
///
/// # Safety
/// `ctx` is the context that the server gave to `RedisModule_OnLoad`.
pub unsafe fn init(ctx: *mut raw::RedisModuleCtx) {
    // Told once.
    let _ = SERVER_THREAD.set(thread::current().id());

    for slot in [&CALL_CONTEXT, &LOOK_CONTEXT] {
        // SAFETY: by the caller's promise; the detached form (6.2) keeps the module's name for the log.
        let made = unsafe {
            match raw::RedisModule_GetDetachedThreadSafeContext {
                Some(detached) => detached(ctx),
                None => api!(RedisModule_GetThreadSafeContext(ptr::null_mut())),
            }
        };
        slot.store(made, Ordering::Release);
    }
}

/// The context for log lines; null before [`init`], which the server accepts.
pub(super) fn log_context() -> *mut raw::RedisModuleCtx {
    CALL_CONTEXT.load(Ordering::Acquire)
}

impl Lock<'_> {
    /// The bare proof, for entry points on the hot path that call nothing which asks [`is_held`].
    ///
    /// # Safety
    /// The server called us and holds its lock for as long as the proof is used.
    pub(super) unsafe fn assume() -> Self {
        Lock { _held: PhantomData }
    }
}

/// Marks the time that the server spends in one of our entry points.
pub struct Entered(PhantomData<*mut ()>);

impl Entered {
    /// # Safety
    /// The server called us and holds its lock until the guard is dropped.
    pub unsafe fn new() -> Self {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self(PhantomData)
    }

    /// The proof, for as long as the guard lives.
    pub fn lock(&self) -> Lock<'_> {
        Lock { _held: PhantomData }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// The server's lock, taken by a background thread and released on drop by the same thread.
pub struct LockGuard(Entered);

impl LockGuard {
    /// Waits for the lock, and until clients are not paused. The caller must be detached from Python unless [`is_held`]
    /// says true.
    pub fn acquire() -> Self {
        if DEPTH.get() == 0 {
            closing::take_lock();
            while clients_are_paused() {
                // SAFETY: this thread holds the lock, and takes it again.
                unsafe { api!(RedisModule_ThreadSafeContextUnlock(log_context())) };
                thread::sleep(WHILE_PAUSED);
                closing::take_lock();
            }
        }
        // SAFETY: the lock is held now, by us or by the entry point below us.
        Self(unsafe { Entered::new() })
    }

    /// The lock, if nobody has it, not even this thread, and clients are not paused. Never waits: the caller may be attached to Python.
    pub fn try_acquire() -> Option<Self> {
        if DEPTH.get() > 0 || !closing::try_lock() {
            return None;
        }
        // SAFETY: the lock is held now.
        let guard = Self(unsafe { Entered::new() });
        (!clients_are_paused()).then_some(guard)
    }

    /// The proof, for as long as the guard lives.
    pub fn lock(&self) -> Lock<'_> {
        self.0.lock()
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if DEPTH.get() == 1 {
            // SAFETY: this guard took the lock on this thread (it is not `Send`).
            unsafe { api!(RedisModule_ThreadSafeContextUnlock(log_context())) };
            closing::lock_comes_free();
        }
    }
}

/// How often a thread looks whether clients are still paused.
const WHILE_PAUSED: Duration = Duration::from_millis(1);

/// True while clients are paused (CLIENT PAUSE, a failover). The server counts on nothing being written then: it ends if
/// something is. The lock is held.
fn clients_are_paused() -> bool {
    // SAFETY: the presence of the function is checked first; it takes no argument.
    has_api!(RedisModule_AvoidReplicaTraffic) && unsafe { api!(RedisModule_AvoidReplicaTraffic()) } != 0
}

/// True where this thread has taken the server's lock for one thing only: nothing was written before in the same unit, which
/// goes to replicas when the lock is released.
pub(super) fn is_held_for_one_call() -> bool {
    DEPTH.get() == 1 && !is_server_thread()
}

/// True when this thread holds the server's lock already: in an entry point, or below a [`LockGuard`].
pub fn is_held() -> bool {
    DEPTH.get() > 0
}

/// True on the thread that clients' commands run on: it may be in the middle of one.
pub fn is_server_thread() -> bool {
    SERVER_THREAD.get() == Some(&thread::current().id())
}

/// Runs `work` under the server's lock, waiting for it if this thread does not hold it.
pub fn with_lock<R>(work: impl FnOnce(Lock<'_>) -> R) -> R {
    let guard = LockGuard::acquire();
    work(guard.lock())
}

impl Lock<'_> {
    /// Whether anything may be written or handed on to replicas now. Whatever writes asks this, see
    /// `docs/architecture.md`, "While clients are paused".
    pub fn may_write(self) -> bool {
        !clients_are_paused()
    }

    /// True while a script runs.
    pub fn is_in_script(self) -> bool {
        self.server_flags() & raw::REDISMODULE_CTX_FLAGS_LUA != 0
    }

    /// The call context, with database `db` selected.
    pub(super) fn call_context(self, db: i32) -> *mut raw::RedisModuleCtx {
        let ctx = CALL_CONTEXT.load(Ordering::Acquire);
        // SAFETY: the context is alive, and the lock is held. A command (SELECT) may have changed the database.
        unsafe {
            if api!(RedisModule_GetSelectedDb(ctx)) != db {
                api!(RedisModule_SelectDb(ctx, db));
            }
        }
        ctx
    }

    /// The context for looking at keys, with database `db` selected.
    pub(super) fn look_context(self, db: i32) -> *mut raw::RedisModuleCtx {
        let ctx = LOOK_CONTEXT.load(Ordering::Acquire);
        if LOOK_DB.replace(self, db) != db {
            // SAFETY: the context is alive, and nobody else selects on it.
            unsafe { api!(RedisModule_SelectDb(ctx, db)) };
        }
        ctx
    }

    /// What the server says about itself now (`REDISMODULE_CTX_FLAGS_*`).
    pub fn server_flags(self) -> u32 {
        // SAFETY: a null context asks for the flags that do not depend on a client.
        unsafe { api!(RedisModule_GetContextFlags(ptr::null_mut())) as u32 }
    }

    pub fn is_master(self) -> bool {
        self.server_flags() & raw::REDISMODULE_CTX_FLAGS_MASTER != 0
    }

    /// True while data are loaded: at the start, from a master, by DEBUG RELOAD.
    pub fn is_loading(self) -> bool {
        let loading = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_ASYNC_LOADING;
        self.server_flags() & loading != 0
    }

    /// True where the server refuses writes of ordinary clients: a read-only replica.
    pub fn refuses_writes(self) -> bool {
        self.server_flags() & raw::REDISMODULE_CTX_FLAGS_READONLY != 0
    }
}
