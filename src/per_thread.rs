//! Values of which each thread has its own, as by `thread_local!`; those of the server's own thread are found at once.
//!
//! A shared object that is loaded at run time asks the loader where a thread's values are: eleven instructions and more, each time. A
//! command passes dozens of them. Which thread this is stands in a register.

// A call would cost as much as is saved.
#![allow(clippy::inline_always)]

use std::{
    cell::{Cell, RefCell},
    sync::atomic::{AtomicUsize, Ordering},
    thread::LocalKey,
};

/// What [`pointer`] says on the server's own thread; until that is known, what it says nowhere.
static SERVER: AtomicUsize = AtomicUsize::new(1);

/// This thread is the server's own from now on. To be called once, before any value is changed on it.
pub fn this_is_the_servers() {
    if pointer() != 0 {
        SERVER.store(pointer(), Ordering::Relaxed);
    }
}

#[inline(always)]
fn is_servers() -> bool {
    pointer() == SERVER.load(Ordering::Relaxed)
}

/// What tells threads from each other; 0 where the way to it is not known.
#[inline(always)]
fn pointer() -> usize {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        let pointer: usize;
        // SAFETY: the first word of a thread's block is its own address, in each C library of Linux; nobody changes it.
        unsafe {
            std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(pure, nomem, nostack, preserves_flags));
        }
        pointer
    }
    #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
    {
        let pointer: usize;
        // SAFETY: a register is read, which nobody changes while the thread lives.
        unsafe {
            std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(pure, nomem, nostack, preserves_flags));
        }
        pointer
    }
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    0
}

/// The value of the server's own thread.
pub struct Servers<T>(T);

// SAFETY: `PerThread` alone looks at it, on one thread.
unsafe impl<T> Sync for Servers<T> {}

impl<T> Servers<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

/// A value of each thread. Made by [`per_thread!`].
pub struct PerThread<T: 'static> {
    servers: &'static Servers<T>,
    others: &'static LocalKey<T>,
}

impl<T> PerThread<T> {
    pub const fn new(servers: &'static Servers<T>, others: &'static LocalKey<T>) -> Self {
        Self { servers, others }
    }

    /// # Panics
    /// The thread is about to end, and has dropped the value.
    #[inline(always)]
    pub fn with<R>(&self, work: impl FnOnce(&T) -> R) -> R {
        if is_servers() {
            work(&self.servers.0)
        } else {
            self.others.with(work)
        }
    }

    /// `None` if the thread is about to end, and has dropped the value.
    #[inline(always)]
    pub fn try_with<R>(&self, work: impl FnOnce(&T) -> R) -> Option<R> {
        if is_servers() {
            Some(work(&self.servers.0))
        } else {
            self.others.try_with(work).ok()
        }
    }
}

impl<T> PerThread<Cell<T>> {
    #[inline(always)]
    pub fn set(&self, value: T) {
        self.with(|cell| cell.set(value));
    }

    #[inline(always)]
    pub fn replace(&self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

impl<T: Copy> PerThread<Cell<T>> {
    #[inline(always)]
    pub fn get(&self) -> T {
        self.with(Cell::get)
    }
}

impl<T> PerThread<RefCell<T>> {
    /// # Panics
    /// It is borrowed.
    #[inline(always)]
    pub fn replace(&self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }

    /// # Panics
    /// It is borrowed.
    #[inline(always)]
    pub fn set(&self, value: T) {
        drop(self.replace(value));
    }

    /// # Panics
    /// It is borrowed.
    #[inline(always)]
    pub fn with_borrow<R>(&self, work: impl FnOnce(&T) -> R) -> R {
        self.with(|cell| work(&cell.borrow()))
    }

    /// # Panics
    /// It is borrowed.
    #[inline(always)]
    pub fn with_borrow_mut<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        self.with(|cell| work(&mut cell.borrow_mut()))
    }
}

impl<T: Default> PerThread<RefCell<T>> {
    /// # Panics
    /// It is borrowed.
    #[inline(always)]
    pub fn take(&self) -> T {
        self.with(RefCell::take)
    }
}

/// `per_thread! { static NAME: Cell<u32> = Cell::new(0); }`: a [`PerThread`] with a value that is known when it is compiled.
macro_rules! per_thread {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;)*) => { $(
        $(#[$attribute])*
        static $name: $crate::per_thread::PerThread<$type> = {
            static SERVERS: $crate::per_thread::Servers<$type> = $crate::per_thread::Servers::new($value);
            thread_local! {
                static OTHERS: $type = const { $value };
            }
            $crate::per_thread::PerThread::new(&SERVERS, &OTHERS)
        };
    )* };
}
pub(crate) use per_thread;

#[cfg(test)]
mod tests {
    use super::*;

    per_thread! {
        static NUMBER: Cell<u32> = Cell::new(1);
        static NUMBERS: RefCell<Vec<u32>> = RefCell::new(Vec::new());
    }

    #[test]
    fn each_thread_has_its_own() {
        let work = || {
            NUMBER.set(NUMBER.get() + 1);
            NUMBERS.with_borrow_mut(|numbers| numbers.push(NUMBER.get()));
            (NUMBER.replace(7), NUMBERS.take())
        };
        for _ in 0..2 {
            // One of them may be the one that is called the server's.
            std::thread::scope(|scope| {
                assert_eq!(scope.spawn(work).join().ok(), Some((2, vec![2])));
            });
        }
    }

    #[test]
    fn threads_are_told_from_each_other() {
        let here = pointer();
        let there = std::thread::scope(|scope| scope.spawn(pointer).join());
        assert!(here == 0 || there.is_ok_and(|there| there != here));
    }
}
