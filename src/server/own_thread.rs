//! Commands that only the server's own thread may run.
//!
//! Valkey 9 takes its lock to free a script, unless it is on its own thread. A thread of ours that runs a command which does that has the
//! lock already, and would wait for itself for ever. So these commands are handed over, and the thread waits for what they answer. A
//! function that holds the server for longer cannot wait: what could free a script is refused there ([`super::refused`]).

use std::{
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, Result as Caught},
    time::Duration,
};

use crossbeam_channel::bounded;

use super::{
    api::Features,
    entry::caught,
    lock::{self, Entered, Lock},
    refused,
    reply::Reply,
    version::Version,
};

/// This server is one of them.
static LOCKS: AtomicBool = AtomicBool::new(false);
/// How often a thread looks whether the server can do it now.
const LATER: Duration = Duration::from_millis(1);

type Job = Box<dyn FnOnce(Lock<'_>) + Send>;

/// Nothing was done: this is not the thread for it.
#[derive(Debug)]
pub struct Elsewhere;

impl From<Elsewhere> for Reply {
    fn from(_: Elsewhere) -> Self {
        Self::error("ERR only the server's own thread can run this")
    }
}

/// To be called once, while the module loads.
pub(super) fn init(version: Version) {
    LOCKS.store(version.locks_where_it_frees_scripts(), Ordering::Relaxed);
}

/// True if this thread, which has the lock, would wait for itself where the server frees a script.
pub(super) fn would_wait_for_itself() -> bool {
    LOCKS.load(Ordering::Relaxed) && !lock::is_server_thread()
}

/// Runs the command `name` by `work` if it may be run on this thread, or if it is too late to choose.
///
/// # Errors
/// It is for the server's thread; `work` was not called.
pub fn here<R>(
    lock: Lock<'_>,
    features: Features,
    name: &[u8],
    work: impl FnOnce() -> R,
) -> Result<R, Elsewhere> {
    let may_choose = would_wait_for_itself() && lock::is_held_for_one_call();
    if may_choose && refused::is_about_scripts(lock, features, name) {
        return Err(Elsewhere);
    }
    Ok(work())
}

/// What `attempt` gives, which is made on this thread first, and on the server's if it says so. The caller is detached from Python, unless
/// it holds the server's lock.
pub fn run<R: Send + 'static>(
    attempt: impl Fn() -> Result<R, Elsewhere> + Send + 'static,
) -> Result<R, Elsewhere> {
    let mut attempt = attempt;
    match attempt() {
        Err(Elsewhere) if !lock::is_held() => {}
        done => return done,
    }
    loop {
        match hand_over(attempt) {
            Ok(done) => return done.unwrap_or_else(|panic| resume_unwind(panic)),
            Err(later) => attempt = later,
        }
        thread::sleep(LATER);
    }
}

/// `Err`: the server cannot do it now.
fn hand_over<R: Send + 'static, W>(attempt: W) -> Result<Caught<R>, W>
where
    W: Fn() -> R + Send + 'static,
{
    let (sender, receiver) = bounded(1);
    let job: Job = Box::new(move |lock| {
        // The server may be in the middle of a script that takes long, or load.
        let can = lock.may_write() && !lock.is_in_script() && !lock.is_loading();
        let done = if can {
            Ok(catch_unwind(AssertUnwindSafe(&attempt)))
        } else {
            Err(attempt)
        };
        // Nobody waits any more only where the process ends.
        let _ = sender.send(done);
    });
    let job = Box::into_raw(Box::new(job));
    // SAFETY: every server of these has the function, which may be called on any thread; the job is taken once.
    unsafe { api!(RedisModule_EventLoopAddOneShot(Some(on_turn), job.cast())) };
    receiver.recv().unwrap_or_else(|_| {
        // The process ends.
        loop {
            thread::park();
        }
    })
}

unsafe extern "C" fn on_turn(job: *mut c_void) {
    caught((), || {
        // SAFETY: the server holds its lock when it calls this; `hand_over` made the job, and it is called once.
        let (entered, job) = unsafe { (Entered::new(), Box::from_raw(job.cast::<Job>())) };
        job(entered.lock());
    });
}
