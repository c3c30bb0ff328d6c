//! The way to the server's lock on servers that give it away once more while they end.
//!
//! Valkey 9 unloads its own Lua at its end and releases its lock in the middle of that, inside a unit of execution. Whoever waits for the
//! lock gets it then, and the server's check of that very thing (`execution_nesting == 0`) ends it with a crash report. So on
//! these servers no thread of ours sleeps in the server's lock: it tries, and waits for its turn outside, where it can be told that
//! there is none any more. Elsewhere the server's lock is simply taken.

use std::{
    ffi::c_int,
    hint,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use redis_module::raw;

use super::{lock, version::Version};

/// The lock can be tried (6.2).
static HAS_TRY: AtomicBool = AtomicBool::new(false);

/// This server gives its lock away at its end.
static CAREFUL: AtomicBool = AtomicBool::new(false);

/// The server ends: nobody gets the lock any more.
static CLOSING: AtomicBool = AtomicBool::new(false);

/// How many threads are between their look at [`CLOSING`] and what came of their attempt.
static TRYING: AtomicUsize = AtomicUsize::new(0);

/// How often the lock has come free.
static TURNS: AtomicUsize = AtomicUsize::new(0);

/// How many threads wait for their turn.
static WAITING: AtomicUsize = AtomicUsize::new(0);
static TURN: Mutex<()> = Mutex::new(());
static CAME: Condvar = Condvar::new();

/// How often a thread tries before it waits: the lock comes right after it is told so.
const ATTEMPTS: usize = 20;

/// A pause between two attempts, less than a microsecond.
const PAUSE: usize = 10;

/// A turn that nobody tells of comes after this time at the latest.
const LONGEST: Duration = Duration::from_millis(1);

/// To be called once, while the module loads.
pub(super) fn init(version: Version) {
    let has_try = has_api!(RedisModule_ThreadSafeContextTryLock);
    HAS_TRY.store(has_try, Ordering::Relaxed);
    CAREFUL.store(
        version.gives_its_lock_away_at_its_end() && has_try,
        Ordering::Relaxed,
    );
}

/// Takes the server's lock, which this thread does not hold.
pub(super) fn take_lock() {
    if !CAREFUL.load(Ordering::Relaxed) {
        // SAFETY: the context lives as long as the process; this thread does not hold the lock.
        unsafe { api!(RedisModule_ThreadSafeContextLock(lock::log_context())) };
        return;
    }
    loop {
        let seen = TURNS.load(Ordering::SeqCst);
        for _ in 0..ATTEMPTS {
            match attempt() {
                Attempt::Got => return,
                Attempt::Held => {}
                // The process ends.
                Attempt::Never => loop {
                    thread::park();
                },
            }
            for _ in 0..PAUSE {
                hint::spin_loop();
            }
        }
        let mut turn = TURN.lock();
        WAITING.fetch_add(1, Ordering::SeqCst);
        // One that has come since is not to be waited for.
        if TURNS.load(Ordering::SeqCst) == seen {
            CAME.wait_for(&mut turn, LONGEST);
        }
        WAITING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Takes the server's lock, which this thread does not hold, if nobody has it. Never waits, so it may be called attached to Python.
pub(super) fn try_lock() -> bool {
    if CAREFUL.load(Ordering::Relaxed) {
        return matches!(attempt(), Attempt::Got);
    }
    // SAFETY: as in `take_lock`; `init` has looked whether the server has the function.
    HAS_TRY.load(Ordering::Relaxed)
        && unsafe { api!(RedisModule_ThreadSafeContextTryLock(lock::log_context())) }
            == raw::REDISMODULE_OK as c_int
}

/// What became of one attempt.
enum Attempt {
    Got,
    Held,
    /// The server ends.
    Never,
}

fn attempt() -> Attempt {
    TRYING.fetch_add(1, Ordering::SeqCst);
    let closing = CLOSING.load(Ordering::SeqCst);
    // SAFETY: as in `take_lock`; `init` has looked whether the server has the function.
    let got = !closing
        && unsafe { api!(RedisModule_ThreadSafeContextTryLock(lock::log_context())) }
            == raw::REDISMODULE_OK as c_int;
    TRYING.fetch_sub(1, Ordering::SeqCst);
    match (closing, got) {
        (true, _) => Attempt::Never,
        (false, true) => Attempt::Got,
        (false, false) => Attempt::Held,
    }
}

/// The lock is about to be released, or has just been.
pub fn lock_comes_free() {
    if !CAREFUL.load(Ordering::Relaxed) {
        return;
    }
    TURNS.fetch_add(1, Ordering::SeqCst);
    if WAITING.load(Ordering::SeqCst) > 0 {
        drop(TURN.lock());
        CAME.notify_all();
    }
}

/// The server ends. To be called under its lock, when it does not come back.
pub fn close() {
    CLOSING.store(true, Ordering::SeqCst);
    // An attempt ends at once: the lock is held here.
    while TRYING.load(Ordering::SeqCst) > 0 {
        hint::spin_loop();
    }
}
