//! Where whoever runs a piece of code and whoever wants it to end meet.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use crate::{clock::Instant, engine::sleeper::Sleepers, mutex::Mutex};

/// The end of one piece of running code.
#[derive(Default)]
pub struct Stop {
    /// The language's id of the thread that runs it; 0 while none does.
    pub thread: AtomicU64,
    asked: AtomicBool,
    pub(super) timed_out: AtomicBool,
    raised: Raised,
    /// The thread while nothing is to be raised in it, and since when.
    shielded: Mutex<Option<(u64, Instant)>>,
    /// Where it waits for something of ours.
    pub sleepers: Sleepers,
}

/// The threads in which the language has raised the "stop" error, until they look. There may be two: a run that waits can be gone on with by
/// another thread before the first one has left it.
#[derive(Default)]
struct Raised {
    any: AtomicBool,
    threads: Mutex<Vec<u64>>,
}

/// How long code can be shielded: it may be a user's, and never end.
const SHIELD: Duration = Duration::from_millis(500);

impl Stop {
    /// The thread `me` runs the code from now on; what [`Stop::leave`] is to be given.
    pub fn enter(&self, me: u64) -> u64 {
        let before = self.thread.swap(me, Ordering::AcqRel);
        // It may be inside the code already. Another thread is about to leave it, and does not come back.
        if before == me { me } else { 0 }
    }

    /// The thread has left the code, unless another one runs it by now.
    pub fn leave(&self, me: u64, before: u64) {
        let _ = self
            .thread
            .compare_exchange(me, before, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The "stop" error is about to be raised in a thread.
    pub fn note_raised(&self, thread: u64) {
        let mut threads = self.raised.threads.lock();
        if !threads.contains(&thread) {
            threads.push(thread);
        }
        self.raised.any.store(true, Ordering::Release);
    }

    /// True, once, if it was raised in this thread.
    pub fn take_raised(&self, me: u64) -> bool {
        if !self.raised.any.load(Ordering::Acquire) {
            return false;
        }
        let mut threads = self.raised.threads.lock();
        let count = threads.len();
        threads.retain(|&thread| thread != me);
        self.raised.any.store(!threads.is_empty(), Ordering::Release);
        threads.len() < count
    }

    /// Nothing is raised in the thread that runs this code until [`Stop::unshield`], for a while. What is to be given back
    /// then, and the thread.
    pub fn shield(&self) -> (u64, Option<(u64, Instant)>) {
        let thread = self.thread.swap(0, Ordering::AcqRel);
        let shielded = (thread != 0).then(|| (thread, Instant::now()));
        let mut present = self.shielded.lock();
        let before = *present;
        *present = shielded.or(before);
        (thread, before)
    }

    pub fn unshield(&self, thread: u64, before: Option<(u64, Instant)>) {
        *self.shielded.lock() = before;
        self.thread.store(thread, Ordering::Release);
    }

    /// The thread to raise the "stop" error in; 0 for none.
    pub fn target(&self) -> u64 {
        let thread = self.thread.load(Ordering::Acquire);
        if thread != 0 {
            return thread;
        }
        let shielded = *self.shielded.lock();
        shielded.map_or(
            0,
            |(thread, since)| {
                if since.elapsed() > SHIELD { thread } else { 0 }
            },
        )
    }

    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.sleepers.wake();
    }

    /// Somebody asked for its end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// It ran longer than SyncTimeout allows.
    pub fn has_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_has_left_is_no_target() {
        let stop = Stop::default();
        // The first one has given the run away, and is still on its way out.
        let first = stop.enter(1);
        let second = stop.enter(2);
        stop.leave(1, first);
        assert_eq!(stop.target(), 2);
        stop.leave(2, second);
        assert_eq!(stop.target(), 0);
        let second = stop.enter(2);
        let inner = stop.enter(2);
        stop.leave(2, inner);
        assert_eq!(stop.target(), 2);
        stop.leave(2, second);
        assert_eq!(stop.target(), 0);
    }

    #[test]
    fn each_thread_takes_back_what_was_raised_in_it() {
        let stop = Stop::default();
        stop.note_raised(1);
        stop.note_raised(2);
        stop.note_raised(1);
        assert!(!stop.take_raised(3));
        assert!(stop.take_raised(2) && !stop.take_raised(2));
        assert!(stop.take_raised(1) && !stop.take_raised(1));
    }
}
