//! Threads of ours, with the stack that Python counts on: its limits on recursion, in C code above all, are made for the
//! 8 MiB that a main thread usually has. Python's own threads get the same size (`python::interpreter`).

use std::{
    io,
    mem::MaybeUninit,
    thread::{Builder, JoinHandle},
};

/// What Python counts on.
const ENOUGH: libc::rlim_t = 8 << 20;
/// No more than this, whatever the limit of the server's process: it is address space, for each thread.
const MOST: libc::rlim_t = 64 << 20;

/// Starts a thread.
///
/// # Errors
/// The operating system gave none.
pub fn spawn(name: String, life: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    // The one place.
    #[allow(clippy::disallowed_methods)]
    Builder::new().name(name).stack_size(stack_size()).spawn(life)
}

/// The size of a thread's stack: that of the server's own thread, within bounds.
pub fn stack_size() -> usize {
    limit().map_or(ENOUGH, |limit| limit.rlim_cur.clamp(ENOUGH, MOST)) as usize
}

/// Gives the server's own thread as much. Its stack grows as it is needed, up to a limit that is looked at then.
///
/// # Errors
/// The limit is lower and cannot be raised; the size that it has.
pub fn enlarge_own_stack() -> Result<(), u64> {
    let Some(mut limit) = limit().filter(|limit| limit.rlim_cur < ENOUGH) else {
        return Ok(());
    };
    let before = limit.rlim_cur;
    limit.rlim_cur = ENOUGH.min(limit.rlim_max);
    // SAFETY: the structure is valid; nothing else of the process is touched.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const limit) } == 0;
    match limit.rlim_cur {
        ENOUGH if raised => Ok(()),
        size if raised => Err(size),
        _ => Err(before),
    }
}

fn limit() -> Option<libc::rlimit> {
    let mut limit = MaybeUninit::uninit();
    // SAFETY: the structure is written where the call succeeds, and read only then.
    unsafe { (libc::getrlimit(libc::RLIMIT_STACK, limit.as_mut_ptr()) == 0).then(|| limit.assume_init()) }
}
