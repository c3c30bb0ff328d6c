//! The mutex of this module: parking_lot's, with a count of those that a thread holds.
//!
//! User code runs wherever Python looks at an object or forgets one, and may come back to whatever is locked. So nothing
//! attaches to Python and no Python object ends on a thread that holds one: `python::attach` asks here.

use std::{
    cell::Cell,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
};

use parking_lot::lock_api;

use crate::{
    per_thread::{Here, per_thread},
    waits::RawMutex,
};

per_thread! {
    static HELD: Cell<u32> = Cell::new(0);
}

/// True while this thread holds a [`Mutex`].
pub fn is_any_held() -> bool {
    HELD.get() > 0
}

/// A mutex that is counted while it is held.
#[derive(Default)]
pub struct Mutex<T>(lock_api::Mutex<RawMutex, T>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(lock_api::Mutex::new(value))
    }

    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard::of(self.0.lock())
    }

    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().map(MutexGuard::of)
    }

    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

/// Holds a [`Mutex`] until it is dropped, on the thread that has locked it: it knows where that counts.
pub struct MutexGuard<'a, T> {
    value: ManuallyDrop<lock_api::MutexGuard<'a, RawMutex, T>>,
    held: Here<Cell<u32>>,
}

impl<'a, T> MutexGuard<'a, T> {
    #[inline]
    fn of(value: lock_api::MutexGuard<'a, RawMutex, T>) -> Self {
        let held = HELD.here();
        held.set(held.get() + 1);
        Self {
            value: ManuallyDrop::new(value),
            held,
        }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.held.set(self.held.get() - 1);
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.value) };
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
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
