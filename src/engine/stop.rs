//! Stopping what runs too long: on request (RG.ABORTEXECUTION), and whatever holds the server past SyncTimeout: `sync`
//! functions, scripts, onRegistered, time events, `atomic` blocks.
//!
//! The watch is a thread that sleeps while nobody holds the server.

mod point;

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use crate::mutex::Mutex;

pub use point::Stop;

use super::{Engine, execution::Execution, language::Language, session::Session};
use crate::{
    clock::Instant,
    config::Number,
    error::Error,
    server::{api, lock::Lock},
};

/// How often a running function is asked to stop, until it has ended.
pub const INTERRUPT_INTERVAL: Duration = Duration::from_millis(1);
/// How often the watch looks at most.
const MAX_TICK: Duration = Duration::from_millis(100);
/// How many looks without any run until the watch goes to sleep.
const LINGER: u32 = 10;
/// The same while it cannot stop, because it imports a module.
const WHILE_IMPORTING: Duration = Duration::from_millis(20);
/// How often it looks at what holds the server for long.
const WHILE_SLOW: Duration = Duration::from_millis(10);
/// What holds the server for longer than that is named in the log.
const SLOW: Duration = Duration::from_millis(100);
/// How often, for the same code.
const REPEAT: Duration = Duration::from_secs(60);

/// Code that can be stopped while it holds the server.
pub trait Stoppable: Send + Sync {
    fn stop(&self) -> &Stop;

    /// What it is, for the log.
    fn describe(&self) -> String;

    /// The same with the names of its functions.
    fn describe_fully(&self) -> String {
        self.describe()
    }

    /// A limit of its own, besides SyncTimeout.
    fn limit(&self) -> Option<Duration> {
        None
    }

    /// Called by the watch, now and then, while it holds the server for long. True if somebody wants it to end.
    fn is_unwanted(&self) -> bool {
        false
    }
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

    fn describe_fully(&self) -> String {
        let functions = self.plan.functions.iter();
        let names: Vec<_> = functions.map(|function| function.name()).collect();
        format!("{} ({})", self.describe(), names.join(", "))
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
    /// [`SyncWatch::running`] holds something, for a look that costs nothing.
    is_running: AtomicBool,
    /// The log has named what is running. Changes under `running` only.
    named: AtomicBool,
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
        Some(self.entered())
    }

    /// What runs now; if nothing does, what `make` makes runs until the guard is dropped.
    fn enter_or_join(
        &self,
        make: impl FnOnce() -> Arc<Code>,
        now: Instant,
    ) -> (Arc<dyn Stoppable>, Option<Watched<'_>>) {
        let mut running = self.running.lock();
        if let Some((code, _)) = running.as_ref() {
            return (Arc::clone(code), None);
        }
        let code: Arc<dyn Stoppable> = make();
        *running = Some((Arc::clone(&code), now));
        drop(running);
        (code, Some(self.entered()))
    }

    /// Behind the mutex: the watch, which was about to sleep before, is seen to be.
    fn entered(&self) -> Watched<'_> {
        self.is_running.store(true, Ordering::Relaxed);
        // One run at a time changes it.
        let runs = self.runs.load(Ordering::Relaxed);
        self.runs.store(runs + 1, Ordering::Relaxed);
        if !self.awake.load(Ordering::Relaxed) {
            self.awake.store(true, Ordering::Relaxed);
            if let Some(watcher) = self.watcher.get() {
                watcher.unpark();
            }
        }
        Watched(self)
    }

    /// The life of the watch's thread. `timeout`: the limit now, `None` for none.
    pub fn watch(&self, language: &dyn Language, timeout: impl Fn() -> Option<Duration>) {
        // Told once: there is one such thread.
        let _ = self.watcher.set(thread::current());
        let (mut seen, mut quiet) = (0, 0);
        let mut slow = Slow::default();
        loop {
            let limit = timeout();
            slow.look(self);
            let late = self.late(limit);
            let mut rest = INTERRUPT_INTERVAL;
            if let Some((code, passed)) = &late {
                let stop = code.stop();
                if let Some((name, limit)) = passed {
                    if !stop.timed_out.swap(true, Ordering::AcqRel) {
                        api::log_warning(&format!(
                            "{} has held the server for longer than {name} ({} ms) and is stopped",
                            code.describe(),
                            limit.as_millis()
                        ));
                    }
                }
                stop.ask();
                if language.interrupt(stop) == Interrupted::AfterImport {
                    slow.importing(code.as_ref());
                    // Each look takes Python away from the import.
                    rest = WHILE_IMPORTING;
                }
            }
            let runs = self.runs.load(Ordering::Relaxed);
            quiet = if runs == seen { quiet + 1 } else { 0 };
            seen = runs;
            if quiet > LINGER && self.running.lock().is_none() {
                self.sleep();
                quiet = 0;
            } else if late.is_some() {
                thread::sleep(rest);
            } else if self.longer_than(SLOW).is_some() {
                thread::sleep(WHILE_SLOW);
            } else {
                let own = self.running.lock().as_ref().and_then(|(code, _)| code.limit());
                let limit = own.into_iter().chain(limit).min();
                let tick = limit.map_or(MAX_TICK, |limit| limit / 4);
                thread::sleep(tick.clamp(INTERRUPT_INTERVAL, MAX_TICK));
            }
        }
    }

    /// What is to end now, and the limit that it has passed, with its name; `None` there if somebody wants it to end.
    fn late(&self, limit: Option<Duration>) -> Option<(Arc<dyn Stoppable>, Option<Passed>)> {
        let (code, elapsed) = self.longer_than(Duration::ZERO)?;
        let own = code.limit().map(|own| ("its limit", own));
        let limits = limit.map(|limit| ("SyncTimeout", limit)).into_iter().chain(own);
        let passed = limits.into_iter().find(|(_, limit)| elapsed > *limit);
        let unwanted = elapsed > SLOW && code.is_unwanted();
        (passed.is_some() || unwanted).then_some((code, passed))
    }

    /// What has run for longer than that by now, and how long.
    fn longer_than(&self, limit: Duration) -> Option<(Arc<dyn Stoppable>, Duration)> {
        let running = self.running.lock();
        let (code, started) = running.as_ref()?;
        let elapsed = started.elapsed();
        (elapsed > limit).then(|| (Arc::clone(code), elapsed))
    }

    /// The log names this code: it tells its end, too, if it has not ended yet.
    fn note_named(&self, named: &Arc<dyn Stoppable>) {
        let running = self.running.lock();
        if running.as_ref().is_some_and(|(code, _)| Arc::ptr_eq(code, named)) {
            self.named.store(true, Ordering::Relaxed);
        }
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

/// What became of the wish to interrupt code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    Now,
    /// It is inside an import, which is not broken off: what a module has half done cannot be done again. It is asked again.
    AfterImport,
    /// It cannot be interrupted in this very moment. It is asked again.
    Later,
    /// Nothing to interrupt.
    Nothing,
}

/// What the log says about code that keeps the server busy: each kind of code once in a while.
#[derive(Default)]
struct Slow(HashMap<String, Instant>);

impl Slow {
    fn look(&mut self, watch: &SyncWatch) {
        let Some((code, elapsed)) = watch.longer_than(SLOW) else {
            return;
        };
        let name = code.describe_fully();
        if self.is_new(name.clone()) {
            watch.note_named(&code);
            api::log_warning(&format!(
                "{name} has blocked the server for {} ms: no client is served until it ends or gives the server back. \
                 Functions that wait (for a socket, a database, a lock) are better async",
                elapsed.as_millis()
            ));
        }
    }

    fn importing(&mut self, code: &dyn Stoppable) {
        let code = code.describe();
        if self.is_new(format!("the import of {code}")) {
            api::log_warning(&format!(
                "{code} imports a module: it is stopped when the import has ended"
            ));
        }
    }

    fn is_new(&mut self, what: String) -> bool {
        self.0.retain(|_, said| said.elapsed() < REPEAT);
        let is_new = !self.0.contains_key(&what);
        if is_new {
            self.0.insert(what, Instant::now());
        }
        is_new
    }
}

/// The name of a limit, and what it is.
type Passed = (&'static str, Duration);

/// While it lives, a run is watched.
pub struct Watched<'a>(&'a SyncWatch);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.is_running.store(false, Ordering::Relaxed);
        // Dropped behind the guard: it may be the last reference to a whole session.
        let mut running = self.0.running.lock();
        let ended = running.take();
        let named = self.0.named.load(Ordering::Relaxed);
        if named {
            self.0.named.store(false, Ordering::Relaxed);
        }
        drop(running);
        if let (true, Some((code, started))) = (named, &ended) {
            log_end(code.as_ref(), started.elapsed());
        }
        drop(ended);
    }
}

#[cold]
fn log_end(code: &dyn Stoppable, held: Duration) {
    let (code, held) = (code.describe_fully(), held.as_millis());
    api::log_warning(&format!("{code} has given the server back after {held} ms"));
}

impl Engine {
    /// From now on until the guard is dropped SyncTimeout counts for `code`, unless it counts already for what calls it.
    pub fn watch_sync(&self, _lock: Lock<'_>, code: Arc<dyn Stoppable>, now: Instant) -> Option<Watched<'_>> {
        self.sync_watch.enter(code, now)
    }

    /// The code for which SyncTimeout counts now; if there is none, what `make` makes is it until the guard is dropped. The
    /// server's lock is held.
    pub fn watch_any(
        &self,
        make: impl FnOnce() -> Arc<Code>,
        now: Instant,
    ) -> (Arc<dyn Stoppable>, Option<Watched<'_>>) {
        self.sync_watch.enter_or_join(make, now)
    }

    /// What SyncTimeout counts for now, with the language's id of its thread.
    pub fn holds_server(&self) -> Option<(u64, String)> {
        let (code, _) = self.sync_watch.longer_than(Duration::ZERO)?;
        Some((code.stop().thread.load(Ordering::Acquire), code.describe_fully()))
    }

    /// True while SyncTimeout counts for anything.
    pub fn is_watching(&self) -> bool {
        self.sync_watch.is_running.load(Ordering::Relaxed)
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
    ) -> Result<(), Error> {
        let code = Code::new(what, Some(session));
        let watched = self.watch_sync(lock, Arc::clone(&code) as _, Instant::now());
        self.language.interruptible(&code.stop, work);
        drop(watched);
        if code.stop.has_timed_out() {
            return Err(self.sync_timeout());
        }
        Ok(())
    }

    /// The error of code that ran longer than SyncTimeout.
    pub fn sync_timeout(&self) -> Error {
        Error::RanTooLong(self.config.number(Number::SyncTimeout))
    }
}
