//! What a worker leaves until it has run out of jobs: something of the server's that could not be done at once, because somebody had the
//! server's lock. The worker is detached from the language by then, and nobody waits for it.

use std::{cell::Cell, sync::Arc};

use super::{Engine, ending::guarded};
use crate::per_thread::per_thread;

per_thread! {
    /// This thread is a worker, which comes to [`Engine::do_what_is_left`].
    static WORKS: Cell<bool> = Cell::new(false);
    /// There is something for it to do then.
    static LEFT: Cell<bool> = Cell::new(false);
}

/// Who has something to be done. Told on a worker.
pub trait Leftover: Send + Sync {
    /// The worker has run out of jobs; it is detached from the language.
    fn do_it(&self);

    /// The worker goes on with other jobs: somebody else is to do it. It is attached to the language.
    fn hand_on(&self);
}

/// The calling thread comes to [`Engine::do_what_is_left`] from now on.
pub(super) fn this_is_a_worker() {
    WORKS.set(true);
}

impl Engine {
    /// To be called once, while the module loads.
    pub fn connect_leftover(&self, leftover: Arc<dyn Leftover>) {
        // A second call cannot happen: the module cannot be loaded twice.
        let _ = self.leftover.set(leftover);
    }

    /// At the end of a job: leaves something to this thread. False if it is no worker.
    pub fn leave(&self) -> bool {
        let works = WORKS.get();
        if works {
            LEFT.set(true);
        }
        works
    }

    /// There is another job for this worker.
    #[inline]
    pub(super) fn hand_on_what_is_left(&self) {
        if LEFT.get() {
            self.end_left(|leftover| leftover.hand_on());
        }
    }

    /// There is none.
    #[inline]
    pub(super) fn do_what_is_left(&self) {
        if LEFT.get() {
            self.end_left(|leftover| leftover.do_it());
        }
    }

    #[inline(never)]
    fn end_left(&self, end: impl FnOnce(&dyn Leftover)) {
        LEFT.set(false);
        if let Some(leftover) = self.leftover.get() {
            guarded(|| end(&**leftover));
        }
    }
}
