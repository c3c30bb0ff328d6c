//! Data that only threads holding the server's lock touch: the server's lock is its mutex.
//!
//! Used for what the hot paths read (filter table, registrations): reading costs no atomic operation.

use std::cell::{Cell, Ref, RefCell, RefMut};

use super::lock::Lock;

/// A value that is shared between threads under the server's lock.
#[derive(Default)]
pub struct Guarded<T>(RefCell<T>);

// SAFETY: every access needs a `Lock`, which only one thread can have at a time.
unsafe impl<T: Send> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// Reads the value.
    ///
    /// # Panics
    /// When the same thread is changing it, which callers avoid by not calling the server meanwhile.
    pub fn read<'a>(&'a self, _lock: Lock<'a>) -> Ref<'a, T> {
        self.0.borrow()
    }

    /// Changes the value.
    ///
    /// # Panics
    /// When the same thread is reading it, see [`Guarded::read`].
    pub fn write<'a>(&'a self, _lock: Lock<'a>) -> RefMut<'a, T> {
        self.0.borrow_mut()
    }
}

/// The same of a few bytes, which are copied in and out: nobody can be in the middle of changing them.
#[derive(Default)]
pub struct Plain<T>(Cell<T>);

// SAFETY: as above.
unsafe impl<T: Send> Sync for Plain<T> {}

impl<T: Copy> Plain<T> {
    pub const fn new(value: T) -> Self {
        Self(Cell::new(value))
    }

    #[inline]
    pub fn get(&self, _lock: Lock<'_>) -> T {
        self.0.get()
    }

    #[inline]
    pub fn set(&self, _lock: Lock<'_>, value: T) {
        self.0.set(value);
    }

    /// What was there before.
    #[inline]
    pub fn replace(&self, _lock: Lock<'_>, value: T) -> T {
        self.0.replace(value)
    }
}
