//! Work that must not be done while the server notifies: writes made there would reach replicas before the command that
//! caused them.
//!
//! Where the server has jobs for that (7.2), they run when the command has ended, before its client gets the reply.
//! Elsewhere they run on the server's thread a moment later.

use std::{
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
};

use redis_module::raw;

use super::lock::{Entered, Lock};

type Job = Box<dyn FnOnce(Lock<'_>) + Send>;

/// Does `job` when the command has ended whose notification is under way.
pub fn after_command(lock: Lock<'_>, job: impl FnOnce(Lock<'_>) + Send + 'static) {
    let job: Box<Job> = Box::new(Box::new(job));
    let job = Box::into_raw(job).cast::<c_void>();
    let done = if has_api!(RedisModule_AddPostNotificationJob) {
        // SAFETY: the presence of the function was just checked; the server owns the job if it takes it.
        unsafe {
            api!(RedisModule_AddPostNotificationJob(
                lock.call_context(0),
                Some(run_after_command),
                job,
                None
            ))
        }
    } else if has_api!(RedisModule_EventLoopAddOneShot) {
        // SAFETY: as above.
        unsafe { api!(RedisModule_EventLoopAddOneShot(Some(run_in_loop), job)) }
    } else {
        // SAFETY: the server's lock is held; the timer owns the job.
        unsafe {
            api!(RedisModule_CreateTimer(
                lock.call_context(0),
                0,
                Some(run_after_command),
                job
            ))
        };
        raw::REDISMODULE_OK as i32
    };
    if done != raw::REDISMODULE_OK as i32 {
        // SAFETY: the server refused it, so it is still ours.
        drop(unsafe { Box::from_raw(job.cast::<Job>()) });
    }
}

unsafe extern "C" fn run_after_command(_ctx: *mut raw::RedisModuleCtx, job: *mut c_void) {
    // SAFETY: called once with the job that was given, under the server's lock.
    unsafe { run(job) };
}

unsafe extern "C" fn run_in_loop(job: *mut c_void) {
    // SAFETY: the same.
    unsafe { run(job) };
}

/// # Safety
/// `job` was made by [`after_command`] and is run once; the server's lock is held.
unsafe fn run(job: *mut c_void) {
    // SAFETY: by the caller's promise.
    let (job, entered) = unsafe { (Box::from_raw(job.cast::<Job>()), Entered::new()) };
    // A panic loses this job only; the panic hook has logged it.
    let _ = catch_unwind(AssertUnwindSafe(|| job(entered.lock())));
}
