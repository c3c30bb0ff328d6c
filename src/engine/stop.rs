//! Stopping what runs too long: on request (RG.ABORTEXECUTION), and `sync` functions past SyncTimeout.
//!
//! A [`Stop`] is where whoever runs code of a function and whoever wants it to end meet. The watch is a thread that
//! sleeps while no `sync` function runs.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{execution::Execution, language::Language};

/// How often a running function is asked to stop, until it has ended.
pub const INTERRUPT_INTERVAL: Duration = Duration::from_millis(1);
/// How often the watch looks at most.
const MAX_TICK: Duration = Duration::from_millis(100);
/// How many looks without any `sync` run until the watch goes to sleep.
const LINGER: u32 = 10;

/// The end of one piece of running code.
#[derive(Default)]
pub struct Stop {
    /// The language's id of the thread that runs it; 0 while none does.
    pub thread: AtomicU64,
    asked: AtomicBool,
    timed_out: AtomicBool,
    /// The language has raised the "stop" error in that thread.
    pub raised: AtomicBool,
}

impl Stop {
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
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

/// Sees to it that no `sync` function holds the server for ever. Whoever runs one holds the server's lock, so there is
/// one at a time; what it calls belongs to it.
#[derive(Default)]
pub struct SyncWatch {
    running: Mutex<Option<(Arc<Execution>, Instant)>>,
    /// How many runs there were.
    runs: AtomicU64,
    awake: AtomicBool,
    watcher: OnceLock<Thread>,
}

impl SyncWatch {
    /// The time of one run, until the guard is dropped.
    pub fn enter(&self, execution: &Arc<Execution>, now: Instant) -> Option<Watched<'_>> {
        let mut running = self.running.lock();
        if running.is_some() {
            return None;
        }
        *running = Some((Arc::clone(execution), now));
        drop(running);
        self.runs.fetch_add(1, Ordering::Relaxed);
        if !self.awake.swap(true, Ordering::AcqRel) {
            if let Some(watcher) = self.watcher.get() {
                watcher.unpark();
            }
        }
        Some(Watched(self))
    }

    /// The life of the watch's thread. `timeout`: the limit now, `None` for none.
    pub fn watch(&self, language: &dyn Language, timeout: impl Fn() -> Option<Duration>) {
        // Told once: there is one such thread.
        let _ = self.watcher.set(thread::current());
        let (mut seen, mut quiet) = (0, 0);
        loop {
            let Some(limit) = timeout() else {
                thread::sleep(MAX_TICK);
                continue;
            };
            let late = self.late(limit);
            if let Some(execution) = &late {
                let stop = &execution.stop;
                stop.timed_out.store(true, Ordering::Release);
                stop.ask();
                language.interrupt(stop);
            }
            let runs = self.runs.load(Ordering::Relaxed);
            quiet = if runs == seen { quiet + 1 } else { 0 };
            seen = runs;
            if quiet > LINGER && self.running.lock().is_none() {
                self.sleep();
                quiet = 0;
            } else if late.is_some() {
                thread::sleep(INTERRUPT_INTERVAL);
            } else {
                thread::sleep((limit / 4).clamp(INTERRUPT_INTERVAL, MAX_TICK));
            }
        }
    }

    fn late(&self, limit: Duration) -> Option<Arc<Execution>> {
        let running = self.running.lock();
        let (execution, started) = running.as_ref()?;
        (started.elapsed() > limit).then(|| Arc::clone(execution))
    }

    fn sleep(&self) {
        self.awake.store(false, Ordering::Release);
        // A run that began before this line is seen here; one that begins later wakes this thread.
        if self.running.lock().is_none() {
            thread::park();
        }
        self.awake.store(true, Ordering::Release);
    }
}

/// While it lives, a `sync` run is watched.
pub struct Watched<'a>(&'a SyncWatch);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        *self.0.running.lock() = None;
    }
}
