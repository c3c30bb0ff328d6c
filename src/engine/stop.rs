//! Stopping what runs too long: on request (RG.ABORTEXECUTION), and whatever holds the server past SyncTimeout: `sync`
//! functions, scripts, onRegistered, time events, `atomic` blocks.
//!
//! A [`Stop`] is where whoever runs code of a function and whoever wants it to end meet. The watch is a thread that
//! sleeps while nobody holds the server.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Engine,
    execution::Execution,
    language::{Failure, Language},
    session::Session,
};
use crate::{
    config::Number,
    server::{api, lock::Lock},
};

/// How often a running function is asked to stop, until it has ended.
pub const INTERRUPT_INTERVAL: Duration = Duration::from_millis(1);
/// How often the watch looks at most.
const MAX_TICK: Duration = Duration::from_millis(100);
/// How many looks without any run until the watch goes to sleep.
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

/// Code that can be stopped while it holds the server.
pub trait Stoppable: Send + Sync {
    fn stop(&self) -> &Stop;

    /// What it is, for the log.
    fn describe(&self) -> String;
}

impl Stoppable for Execution {
    fn stop(&self) -> &Stop {
        &self.stop
    }

    fn describe(&self) -> String {
        match &self.registration {
            Some(registration) => format!(
                "a function of registration {} of session {}",
                registration.id, self.session.id
            ),
            None => format!("a function of session {}", self.session.id),
        }
    }
}

/// Code that belongs to no execution.
pub struct Code {
    pub stop: Stop,
    what: &'static str,
    session: Option<Arc<Session>>,
}

impl Code {
    /// `what`: with an article; `session`: the one that it belongs to, if that is known.
    pub fn new(what: &'static str, session: Option<&Arc<Session>>) -> Arc<Self> {
        Arc::new(Self {
            stop: Stop::default(),
            what,
            session: session.map(Arc::clone),
        })
    }
}

impl Stoppable for Code {
    fn stop(&self) -> &Stop {
        &self.stop
    }

    fn describe(&self) -> String {
        match &self.session {
            Some(session) => format!("{} of session {}", self.what, session.id),
            None => self.what.to_owned(),
        }
    }
}

/// Sees to it that no code holds the server for ever. Whoever runs some holds the server's lock, so there is
/// one at a time; what it calls belongs to it.
#[derive(Default)]
pub struct SyncWatch {
    running: Mutex<Option<(Arc<dyn Stoppable>, Instant)>>,
    /// How many runs there were.
    runs: AtomicU64,
    awake: AtomicBool,
    watcher: OnceLock<Thread>,
}

impl SyncWatch {
    /// The time of one run, until the guard is dropped; `None` if it is part of another one. The caller holds the
    /// server's lock for longer than that.
    pub fn enter(&self, code: Arc<dyn Stoppable>, now: Instant) -> Option<Watched<'_>> {
        let mut running = self.running.lock();
        if running.is_some() {
            return None;
        }
        *running = Some((code, now));
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
            if let Some(code) = &late {
                let stop = code.stop();
                if !stop.timed_out.swap(true, Ordering::AcqRel) {
                    api::log_warning(&format!(
                        "{} has held the server for longer than SyncTimeout ({} ms) and is stopped",
                        code.describe(),
                        limit.as_millis()
                    ));
                }
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

    fn late(&self, limit: Duration) -> Option<Arc<dyn Stoppable>> {
        let running = self.running.lock();
        let (code, started) = running.as_ref()?;
        (started.elapsed() > limit).then(|| Arc::clone(code))
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

/// While it lives, a run is watched.
pub struct Watched<'a>(&'a SyncWatch);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        *self.0.running.lock() = None;
    }
}

impl Engine {
    /// From now on until the guard is dropped SyncTimeout counts for `code`, unless it counts already for what calls it.
    pub fn watch_sync(&self, _lock: Lock<'_>, code: Arc<dyn Stoppable>, now: Instant) -> Option<Watched<'_>> {
        self.sync_watch.enter(code, now)
    }

    /// Runs code that belongs to no execution, under the server's lock, attached, watched by SyncTimeout.
    ///
    /// # Errors
    /// It was stopped; the text for whoever waits for it.
    pub fn run_watched(
        &self,
        lock: Lock<'_>,
        what: &'static str,
        session: &Arc<Session>,
        work: &mut dyn FnMut(),
    ) -> Result<(), Failure> {
        let code = Code::new(what, Some(session));
        let watched = self.watch_sync(lock, Arc::clone(&code) as _, Instant::now());
        self.language.interruptible(&code.stop, work);
        drop(watched);
        if code.stop.has_timed_out() {
            return Err(self.sync_timeout_text());
        }
        Ok(())
    }

    /// The error of code that ran longer than SyncTimeout.
    pub fn sync_timeout_text(&self) -> Failure {
        let limit = self.config.number(Number::SyncTimeout);
        format!("ERR the function ran longer than SyncTimeout ({limit} ms) and was stopped")
    }
}
