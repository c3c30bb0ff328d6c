//! Values of which each thread has its own, as by `thread_local!`; those of the server's own thread and of the first workers are found at
//! once.
//!
//! A shared object that is loaded at run time asks the loader where a thread's values are: eleven instructions and more, each time. A
//! command passes dozens of them. Which thread this is stands in a register.

// A call would cost as much as is saved.
#![allow(clippy::inline_always)]

use std::{
    cell::{Cell, RefCell},
    ops::Deref,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
    thread::LocalKey,
};

/// How many other threads can have a place, where their values are found at once.
pub const PLACES: usize = 16;

/// What [`pointer`] says on the server's own thread; until that is known, what it says nowhere.
static SERVER: AtomicUsize = AtomicUsize::new(1);

/// The same of the threads that have a place.
static PLACED: [AtomicUsize; PLACES] = [const { AtomicUsize::new(1) }; PLACES];

/// This thread is the server's own from now on. To be called once, before any value is changed on it.
pub fn this_is_the_servers() {
    if pointer() != 0 {
        SERVER.store(pointer(), Ordering::Relaxed);
    }
}

/// Gives this thread a place, if one of its two is free. To be called before any value is changed on it, and only where it lives as long as
/// the process: the values of a place are not dropped.
pub fn take_place() {
    if pointer() != 0 {
        let mut places = [place_of(pointer()), second_of(place_of(pointer()))].into_iter();
        // Where other threads have both, this one has its values where others have theirs.
        let _ = places.any(|place| {
            let place = &PLACED[place];
            let taken = place.compare_exchange(1, pointer(), Ordering::Relaxed, Ordering::Relaxed);
            taken.is_ok()
        });
    }
}

/// Threads have their blocks at the ends of their stacks, which lie one behind the other: 8 MiB, and perhaps a page, apart.
#[inline(always)]
fn place_of(pointer: usize) -> usize {
    ((pointer >> 12) + (pointer >> 23)) % PLACES
}

/// Where a thread is found, less fast, if another one has its place. Such ones are an even number apart.
#[inline(always)]
fn second_of(place: usize) -> usize {
    (place + PLACES / 2 - 1) % PLACES
}

#[inline(always)]
fn is_servers() -> bool {
    pointer() == SERVER.load(Ordering::Relaxed)
}

#[inline(always)]
fn own_place() -> Option<usize> {
    let place = place_of(pointer());
    (PLACED[place].load(Ordering::Relaxed) == pointer()).then_some(place)
}

#[inline(always)]
fn second_place() -> Option<usize> {
    let place = second_of(place_of(pointer()));
    (PLACED[place].load(Ordering::Relaxed) == pointer()).then_some(place)
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

/// The values of the server's own thread, and of those that have a place.
pub struct Found<T>(T, [T; PLACES]);

// SAFETY: `PerThread` alone looks at them, each on one thread.
unsafe impl<T> Sync for Found<T> {}

impl<T> Found<T> {
    pub const fn new(servers: T, placed: [T; PLACES]) -> Self {
        Self(servers, placed)
    }
}

/// A value of each thread. Made by [`per_thread!`].
pub struct PerThread<T: 'static> {
    found: &'static Found<T>,
    others: &'static LocalKey<T>,
}

impl<T> PerThread<T> {
    pub const fn new(found: &'static Found<T>, others: &'static LocalKey<T>) -> Self {
        Self { found, others }
    }

    #[inline(always)]
    fn at_once(&self) -> Option<&T> {
        if is_servers() {
            return Some(&self.found.0);
        }
        own_place().map(|place| &self.found.1[place])
    }

    /// # Panics
    /// The thread is about to end, and has dropped the value.
    #[inline(always)]
    pub fn with<R>(&self, work: impl FnOnce(&T) -> R) -> R {
        match self.at_once() {
            Some(value) => work(value),
            None => self.elsewhere(work),
        }
    }

    /// Apart, since the compiler takes the question to the loader for something that it may ask in any case.
    #[cold]
    #[inline(never)]
    fn elsewhere<R>(&self, work: impl FnOnce(&T) -> R) -> R {
        match second_place() {
            Some(place) => work(&self.found.1[place]),
            None => self.others.with(work),
        }
    }

    /// `None` if the thread is about to end, and has dropped the value.
    #[inline(always)]
    pub fn try_with<R>(&self, work: impl FnOnce(&T) -> R) -> Option<R> {
        match self.at_once() {
            Some(value) => Some(work(value)),
            None => self.try_elsewhere(work),
        }
    }
}

impl<T> PerThread<T> {
    #[cold]
    #[inline(never)]
    fn try_elsewhere<R>(&self, work: impl FnOnce(&T) -> R) -> Option<R> {
        match second_place() {
            Some(place) => Some(work(&self.found.1[place])),
            None => self.others.try_with(work).ok(),
        }
    }
}

/// Where this thread has a value that needs no end. It stays on the thread, and the value lives as long as that.
pub struct Here<T: 'static>(NonNull<T>);

impl<T> Deref for Here<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: it never leaves its thread, and nothing drops what needs no drop before the thread is gone.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Copy> PerThread<Cell<T>> {
    /// For whoever looks at it again in a moment.
    #[inline(always)]
    pub fn here(&self) -> Here<Cell<T>> {
        self.with(|value| Here(NonNull::from(value)))
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
            static FOUND: $crate::per_thread::Found<$type> =
                $crate::per_thread::Found::new($value, [const { $value }; $crate::per_thread::PLACES]);
            thread_local! {
                static OTHERS: $type = const { $value };
            }
            $crate::per_thread::PerThread::new(&FOUND, &OTHERS)
        };
    )* };
}
pub(crate) use per_thread;

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

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
        for places in [0, 9] {
            // All of them live at the same time, since a place is never given back.
            let together = Barrier::new(places + 1);
            let together = &together;
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..=places)
                    .map(|number| {
                        scope.spawn(move || {
                            if number < places {
                                take_place();
                            }
                            together.wait();
                            let done = work();
                            together.wait();
                            done
                        })
                    })
                    .collect();
                for thread in threads {
                    assert_eq!(thread.join().ok(), Some((2, vec![2])));
                }
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
