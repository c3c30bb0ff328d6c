//! Work that must not be done while the server notifies: writes made there would reach replicas before the command that
//! caused them. It waits in one queue for the first moment after that command:
//!
//! - a command that we run ([`Caused`]): right after it, before whoever asked for it goes on;
//! - any other: before its client gets the reply. From 7.2 on the server has jobs for that; before, it tells when it has
//!   done what its clients asked for, and a filter sees the next command. The filter comes between the commands of a script
//!   on all servers. Redis 6.2 may have replied a moment before.
//!
//! All of it happens under the server's lock, on whichever thread has it.

use std::{
    collections::VecDeque,
    ffi::{CStr, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::OnceLock,
    thread::{self, ThreadId},
};

use redis_module::raw;

use super::{
    entry::caught,
    filter::Installed,
    guarded::Guarded,
    lock::{self, Entered, Lock},
};

/// What the filter runs where the server hands on the writes of modules only at the end of something of the module (before
/// 7.2).
pub const COMMAND: &CStr = c"RG.INNERAFTER";
/// How often work that causes more work is followed at once; what is left then comes a moment later.
const ROUNDS: usize = 100;
/// How often a timer looks whether clients are still paused.
const WHILE_PAUSED_MS: i64 = 10;
const OK: i32 = raw::REDISMODULE_OK as i32;

type Job = Box<dyn FnOnce(Lock<'_>) + Send>;

struct Queue {
    jobs: VecDeque<Job>,
    /// How many commands run of which [`Caused`] takes care, one inside the other.
    commands: u32,
    /// How many [`DeferGuard`]s there are.
    holds: u32,
    /// The server was asked for a job of its own and has not come yet.
    asked: bool,
    /// The filter runs [`COMMAND`].
    filtering: bool,
    filter: Option<Installed>,
}

static QUEUE: Guarded<Queue> = Guarded::new(Queue {
    jobs: VecDeque::new(),
    commands: 0,
    holds: 0,
    asked: false,
    filtering: false,
    filter: None,
});

static SERVERS_THREAD: OnceLock<ThreadId> = OnceLock::new();

/// To be called once, on the server's thread.
pub(super) fn init() {
    let _ = SERVERS_THREAD.set(thread::current().id());
}

/// Does `job` when the command has ended whose notification is under way. It is lost if the server takes no more work: it
/// has just become a replica, or begins to load.
pub fn after_command(lock: Lock<'_>, job: impl FnOnce(Lock<'_>) + Send + 'static) {
    let mut queue = QUEUE.write(lock);
    queue.jobs.push_back(Box::new(job));
    let taken_care_of = queue.commands > 0 || queue.asked;
    if queue.filter.is_none() {
        queue.filter = Installed::install_outside(lock, on_command);
    }
    drop(queue);
    if !taken_care_of && !ask(lock) {
        let lost = QUEUE.write(lock).jobs.pop_back();
        drop(lost);
    }
}

/// Does `job` when writes are allowed: at once, or when clients are not paused any more and what waits by then is done.
pub fn when_writes_are_allowed(lock: Lock<'_>, job: impl FnOnce(Lock<'_>) + Send + 'static) {
    if lock.may_write() && QUEUE.read(lock).jobs.is_empty() {
        return job(lock);
    }
    QUEUE.write(lock).jobs.push_back(Box::new(job));
    look_again(lock);
}

/// What is called at the end of units. Set once.
static UNITS: OnceLock<fn(Lock<'_>)> = OnceLock::new();

/// To be called once, while the module loads.
pub fn connect_units(ended: fn(Lock<'_>)) {
    // A second call cannot happen: the module cannot be loaded twice.
    let _ = UNITS.set(ended);
}

/// True if the server has units of which it tells the end, in one step with them.
pub fn has_units() -> bool {
    has_api!(RedisModule_AddPostNotificationJob)
}

/// Calls what [`connect_units`] was given when the command, transaction or script has ended that runs now, in one step with it for
/// replicas and files; before 7.2, where the server has no such thing, as [`after_command`] does. False if the server takes no
/// more work.
pub fn at_end_of_unit(lock: Lock<'_>) -> bool {
    if !has_units() {
        after_command(lock, end_unit);
        return true;
    }
    // SAFETY: the presence of the function was just checked; the job needs no data.
    unsafe {
        api!(RedisModule_AddPostNotificationJob(
            lock.call_context(0),
            Some(on_end_of_unit),
            ptr::null_mut(),
            None
        )) == OK
    }
}

unsafe extern "C" fn on_end_of_unit(_ctx: *mut raw::RedisModuleCtx, _data: *mut c_void) {
    // SAFETY: the server holds its lock when it calls this.
    let entered = unsafe { Entered::new() };
    caught((), || end_unit(entered.lock()));
}

fn end_unit(lock: Lock<'_>) {
    if let Some(ended) = UNITS.get() {
        ended(lock);
    }
}

/// Where the server does not tell when it sleeps, a timer looks whether clients are still paused.
fn look_again(lock: Lock<'_>) {
    if !has_api!(RedisModule_EventLoopAdd) {
        set_timer(lock, WHILE_PAUSED_MS);
    }
}

/// Sees to it that somebody runs what waits. False if the server refuses.
fn ask(lock: Lock<'_>) -> bool {
    if has_api!(RedisModule_AddPostNotificationJob) {
        // SAFETY: the presence of the function was just checked; the job needs no data.
        let asked = unsafe {
            api!(RedisModule_AddPostNotificationJob(
                lock.call_context(0),
                Some(on_job),
                ptr::null_mut(),
                None
            ))
        };
        QUEUE.write(lock).asked = asked == OK;
        return asked == OK;
    }
    let will_sleep =
        has_api!(RedisModule_EventLoopAdd) && SERVERS_THREAD.get() == Some(&thread::current().id());
    if !will_sleep {
        wake(lock);
    }
    true
}

/// The server's thread comes to [`before_sleep`], or to [`on_job`] where it does not tell when it sleeps.
pub(super) fn wake(lock: Lock<'_>) {
    if has_api!(RedisModule_EventLoopAddOneShot) {
        // SAFETY: the presence of the function was just checked; it needs no data.
        unsafe { api!(RedisModule_EventLoopAddOneShot(Some(on_wake), ptr::null_mut())) };
    } else {
        set_timer(lock, 0);
    }
}

fn set_timer(lock: Lock<'_>, delay_ms: i64) {
    // SAFETY: the server's lock is held; the timer needs no data.
    unsafe {
        api!(RedisModule_CreateTimer(
            lock.call_context(0),
            delay_ms,
            Some(on_job),
            ptr::null_mut()
        ))
    };
}

/// The time of a command that we run: what it causes is done at its end, before whoever asked for it goes on.
pub struct Caused<'a> {
    lock: Lock<'a>,
    /// The jobs in front of it are of others, who wait for them.
    first: usize,
}

impl<'a> Caused<'a> {
    pub fn enter(lock: Lock<'a>) -> Self {
        let mut queue = QUEUE.write(lock);
        queue.commands += 1;
        let first = queue.jobs.len();
        Self { lock, first }
    }

    /// The command has run.
    pub fn done(self) {
        // While clients are paused it waits: somebody runs the rest when the guard is dropped.
        if QUEUE.read(self.lock).holds == 0 && self.lock.may_write() {
            run_from(self.lock, self.first);
        }
    }
}

impl Drop for Caused<'_> {
    fn drop(&mut self) {
        let mut queue = QUEUE.write(self.lock);
        queue.commands -= 1;
        // Whoever holds it looks again; what else is left came of a failure, or while clients are paused.
        let left = queue.commands == 0 && queue.holds == 0 && !queue.jobs.is_empty() && !queue.asked;
        drop(queue);
        if left {
            ask(self.lock);
        }
    }
}

/// Nothing of this is done while it lives: the server is in the middle of something, or whoever runs wants to be alone.
pub struct DeferGuard<'a>(Lock<'a>);

impl<'a> DeferGuard<'a> {
    pub fn enter(lock: Lock<'a>) -> Self {
        QUEUE.write(lock).holds += 1;
        Self(lock)
    }
}

impl Drop for DeferGuard<'_> {
    fn drop(&mut self) {
        QUEUE.write(self.0).holds -= 1;
    }
}

/// The server has done what its clients asked for; they have no reply yet.
pub fn before_sleep(lock: Lock<'_>) {
    if is_due(lock) {
        run_from(lock, 0);
    }
}

/// [`COMMAND`]; false if it is not the filter that runs it.
pub fn run_command(lock: Lock<'_>) -> bool {
    let genuine = std::mem::take(&mut QUEUE.write(lock).filtering);
    if genuine {
        run_from(lock, 0);
    }
    genuine
}

/// Something waits, nothing is under way, and writes are allowed.
fn is_due(lock: Lock<'_>) -> bool {
    let queue = QUEUE.read(lock);
    if queue.jobs.is_empty() || queue.commands > 0 || queue.holds > 0 {
        return false;
    }
    lock.may_write()
}

/// Does what waits from position `first` on, and what follows from it.
fn run_from(lock: Lock<'_>, first: usize) {
    for _ in 0..ROUNDS {
        let mut queue = QUEUE.write(lock);
        match queue.jobs.len().saturating_sub(first) {
            0 => return,
            1 => {
                let only = queue.jobs.pop_back();
                drop(queue);
                if let Some(job) = only {
                    run_job(lock, job);
                }
            }
            _ => {
                let several = queue.jobs.split_off(first);
                drop(queue);
                for job in several {
                    run_job(lock, job);
                }
            }
        }
    }
    if QUEUE.read(lock).jobs.len() > first {
        wake(lock);
    }
}

/// A panic loses this job only; the panic hook has logged it.
#[inline]
fn run_job(lock: Lock<'_>, job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(|| job(lock)));
}

unsafe extern "C" fn on_job(_ctx: *mut raw::RedisModuleCtx, _data: *mut c_void) {
    caught((), || {
        // SAFETY: the server holds its lock when it calls this.
        let entered = unsafe { Entered::new() };
        let lock = entered.lock();
        QUEUE.write(lock).asked = false;
        // What is not due now comes before the server sleeps.
        if is_due(lock) {
            run_from(lock, 0);
        } else if !lock.may_write() && !QUEUE.read(lock).jobs.is_empty() {
            look_again(lock);
        }
    });
}

/// Nothing: the server is awake, and comes to [`before_sleep`].
unsafe extern "C" fn on_wake(_data: *mut c_void) {}

/// A command that is not one of ours is about to run, of a client or of a script: whatever came before it has ended.
unsafe extern "C" fn on_command(_passing: *mut raw::RedisModuleCommandFilterCtx) {
    // SAFETY: the server holds its lock while it filters a command.
    let lock = unsafe { Lock::assume() };
    if QUEUE.read(lock).jobs.is_empty() || lock::is_held() || !is_due(lock) {
        return;
    }
    caught((), || run_inner(lock));
}

/// Runs the command that runs the jobs.
fn run_inner(lock: Lock<'_>) {
    // SAFETY: under the server's lock; what runs now may ask whether it is held.
    let entered = unsafe { Entered::new() };
    QUEUE.write(lock).filtering = true;
    // SAFETY: the context is selected under the lock; the command has no arguments. Without `!` nothing that runs inside
    // would be replicated.
    unsafe {
        let reply = api!(RedisModule_Call(
            entered.lock().call_context(0),
            COMMAND.as_ptr(),
            c"!".as_ptr()
        ));
        if !reply.is_null() {
            api!(RedisModule_FreeCallReply(reply));
        }
    }
    QUEUE.write(lock).filtering = false;
}
