//! The mutex of this module: parking_lot's, with a count of those that a thread holds.
//!
//! User code runs wherever Python looks at an object or forgets one, and may come back to whatever is locked. So nothing
//! attaches to Python and no Python object ends on a thread that holds one: `python::attach` asks here.

use std::cell::Cell;

use parking_lot::lock_api;

use crate::{per_thread::per_thread, waits::RawMutex};

per_thread! {
    static HELD: Cell<u32> = Cell::new(0);
}

pub type Mutex<T> = lock_api::Mutex<Counted, T>;

/// True while this thread holds a [`Mutex`].
pub fn is_any_held() -> bool {
    HELD.get() > 0
}

/// A raw mutex that is counted.
pub struct Counted(RawMutex);

// SAFETY: parking_lot's mutex does it. Guards stay on their thread (`GuardMarker`), so each count goes down where it went up.
unsafe impl lock_api::RawMutex for Counted {
    // What the trait asks for: a value to begin with.
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self(<RawMutex as lock_api::RawMutex>::INIT);

    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        lock_api::RawMutex::lock(&self.0);
        HELD.with(|held| held.set(held.get() + 1));
    }

    fn try_lock(&self) -> bool {
        let locked = lock_api::RawMutex::try_lock(&self.0);
        if locked {
            HELD.with(|held| held.set(held.get() + 1));
        }
        locked
    }

    unsafe fn unlock(&self) {
        HELD.with(|held| held.set(held.get() - 1));
        // SAFETY: by the caller's promise.
        unsafe { lock_api::RawMutex::unlock(&self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_knows_whether_it_holds_any() {
        let (one, other) = (Mutex::new(1), Mutex::new(2));
        let first = one.lock();
        let second = other.try_lock();
        assert!(is_any_held() && second.is_some() && one.try_lock().is_none());
        drop((first, second));
        assert!(!is_any_held());
        let guard = one.lock();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(!is_any_held()));
        });
        drop(guard);
        assert!(!is_any_held());
    }
}
