//! Code of a function that waits for something of ours, detached, and is to stop meanwhile: what is raised in its thread does not
//! reach it there, so it is woken.
//!
//! The function's thread calls [`Sleepers::enter`] and waits; whoever asks for its end calls [`Sleepers::wake`], on any thread.

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::mutex::Mutex;

/// Those who wait in one piece of running code: its own thread, and others that it has started.
#[derive(Default)]
pub struct Sleepers(Mutex<Vec<Sender<()>>>);

/// Somebody who waits, now and then, until it is dropped.
pub struct Sleeper<'a> {
    sleepers: &'a Sleepers,
    wakes: Sender<()>,
    woken: Receiver<()>,
}

impl Sleepers {
    /// Somebody is about to wait. What wakes him from here on is not lost.
    pub fn enter(&self) -> Sleeper<'_> {
        let (wakes, woken) = bounded(1);
        self.0.lock().push(wakes.clone());
        Sleeper {
            sleepers: self,
            wakes,
            woken,
        }
    }

    /// Wakes all of them.
    pub fn wake(&self) {
        for wakes in &*self.0.lock() {
            // Full: he will wake up anyway.
            let _ = wakes.try_send(());
        }
    }
}

impl Sleeper<'_> {
    /// Waits for what comes, or until he is woken.
    pub fn wait<T>(&self, comes: &Receiver<T>) -> Waited<T> {
        select! {
            recv(comes) -> came => came.map_or(Waited::Never, Waited::Came),
            recv(self.woken) -> _ => Waited::Woken,
        }
    }
}

/// How somebody's wait has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited<T> {
    Came(T),
    /// Perhaps he is to stop.
    Woken,
    /// Nobody sends it any more.
    Never,
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        let mut sleepers = self.sleepers.0.lock();
        sleepers.retain(|wakes| !wakes.same_channel(&self.wakes));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_wakes_before_the_wait_is_not_lost_and_wakes_once() {
        let sleepers = Sleepers::default();
        let (sends, comes) = bounded(1);
        let sleeper = sleepers.enter();
        sleepers.wake();
        sleepers.wake();
        assert_eq!(sleeper.wait(&comes), Waited::Woken);
        // Another thread wakes while this one waits, or before.
        thread::scope(|scope| {
            scope.spawn(|| sleepers.wake());
            assert_eq!(sleeper.wait(&comes), Waited::Woken);
        });
        assert_eq!(sends.send(7), Ok(()));
        assert_eq!(sleeper.wait(&comes), Waited::Came(7));
        drop(sends);
        assert_eq!(sleeper.wait(&comes), Waited::Never);
    }

    #[test]
    fn who_waits_no_longer_is_forgotten() {
        let sleepers = Sleepers::default();
        let (first, second) = (sleepers.enter(), sleepers.enter());
        drop(first);
        let (_sends, comes) = bounded::<()>(1);
        sleepers.wake();
        assert_eq!(second.wait(&comes), Waited::Woken);
        drop(second);
        assert!(sleepers.0.lock().is_empty());
    }
}
