//! `write_behind`: changes of keys that are saved elsewhere, in batches, by a function. Contract: docs/contract/write-behind.md; the way of
//! a change is in `docs/architecture.md`.
//!
//! `machine/` decides and is pure, without server or Python. `options.rs` is what a script says, `trigger.rs` makes a registration
//! of it. `capture.rs` sees what happens to keys, `event_names.rs` knows the events, `frame.rs` is that as bytes and `saved.rs` keeps it in files and on replicas,
//! `late.rs` decides when they hear of it and `tail.rs` makes good what they did not hear;
//! `pump.rs` does what the machine says, `dead.rs` puts away what cannot be saved, `holding.rs` lets clients wait, `about.rs` says what is
//! known of one key.
//!
//! All state lives under the server's lock, but for the inbox of what calls of `save` have come to.

mod about;
mod capture;
mod dead;
mod event_names;
mod figures;
mod frame;
mod holding;
mod late;
mod machine;
pub mod options;
mod pump;
mod saved;
mod source;
mod tail;
mod trigger;

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use self::{
    capture::Notes,
    figures::Figures,
    holding::{Held, Waits},
    late::Unsent,
    machine::{Ids, Queue, Time, Waiters},
    options::Options,
    pump::Brought,
    tail::Tail,
};
use crate::{
    config::Number,
    engine::{Engine, id::Id, prefix::Pattern, registration::Registration},
    hashing::ByNumber,
    hooks::{CommandSpec, Hooks},
    mutex::Mutex,
    read_through::ReadThrough,
    server::{
        after, api,
        events::{Changes, Class},
        guarded::Guarded,
        lock::{self, Lock},
        snapshot::Snapshot,
        waiting,
    },
};

/// More registrations than that would not be told apart in a note.
const MOST_SINKS: usize = 64;

/// All changes of this server that are to be saved.
pub struct WriteBehind {
    this: Weak<Self>,
    engine: Arc<Engine>,
    hooks: Arc<Hooks>,
    loads: Arc<ReadThrough>,
    subscribe: fn(Lock<'_>, Class),
    started: Instant,
    state: Guarded<State>,
    inbox: Mutex<Vec<Brought>>,
    /// Those who wait for changes of a queue that has ended.
    lost: Mutex<Vec<u64>>,
    /// The server was asked to come to [`WriteBehind::pump`] and has not come yet.
    awake: AtomicBool,
    role_changed: AtomicBool,
}

#[derive(Default)]
struct State {
    sinks: Vec<Sink>,
    last_token: u64,
    ids: Ids,
    notes: Notes,
    unsent: Unsent,
    tail: Tail,
    waiters: Waiters,
    /// Clients whose changes are not saved yet, by their number among the waiters.
    waiting: ByNumber<Waits>,
    /// Clients that wait for room, in their order.
    held: VecDeque<Held>,
    /// None of them has to be refused before.
    held_until: Option<Time>,
    /// Changes that a call had can be replaced again: by one of those, too.
    may_replace: bool,
    /// From so many clients in `waiting` on those are looked for that are gone.
    looked_for_gone: usize,
    /// What the server was asked to notify of.
    subscribed: Changes,
    /// What happens to keys is our own doing.
    quiet: bool,
    /// The commands that write; asked for once.
    writers: Option<Vec<CommandSpec>>,
    armed: Option<Time>,
    /// The operator has saving off: no call begins.
    is_off: bool,
    /// When the first change of this turn of the server's loop was captured.
    turn: Option<Time>,
    /// What registrations have counted that are gone.
    gone: figures::Totals,
    /// How often something was handed on to replicas and files.
    handed_on: u64,
}

/// The queue of one registration. It outlives the registration where another one with its prefix takes over.
struct Sink {
    /// Its bit in a note.
    number: usize,
    /// Tells it from all that were there before.
    token: u64,
    owner: Arc<Registration>,
    /// Its functions are there, and it is in force.
    saves: bool,
    /// Nothing is captured any more; what is there is saved.
    draining: bool,
    options: Arc<Options>,
    pattern: Pattern,
    queue: Queue<Snapshot>,
    figures: Figures,
    /// The execution of the call that runs.
    running: Option<Id>,
    /// The call whose time is over, and that time.
    late: Option<(u64, Duration)>,
    /// Clients that were let go and have not written yet.
    expected: usize,
    /// Commands that write pass the filter.
    linked: bool,
    logged: Option<Time>,
    /// The same, of changes that cannot be put away either.
    letters_logged: Option<Time>,
}

/// Changes of files and masters can be as old as that.
const EARLIER: Time = Time::from_secs(10 * 365 * 24 * 3600);

/// The one that the server's end of a unit is told to.
static THIS: OnceLock<Weak<WriteBehind>> = OnceLock::new();

impl WriteBehind {
    pub fn new(
        engine: Arc<Engine>,
        hooks: Arc<Hooks>,
        loads: Arc<ReadThrough>,
        subscribe: fn(Lock<'_>, Class),
    ) -> Arc<Self> {
        let behind = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            engine,
            hooks,
            loads,
            subscribe,
            started: Instant::now(),
            state: Guarded::default(),
            inbox: Mutex::default(),
            lost: Mutex::default(),
            awake: AtomicBool::new(false),
            role_changed: AtomicBool::new(false),
        });
        // A second call cannot happen: the module cannot be loaded twice.
        let _ = THIS.set(Arc::downgrade(&behind));
        after::connect_units(|lock| {
            if let Some(this) = THIS.get().and_then(Weak::upgrade) {
                this.unit_ended(lock);
            }
        });
        behind.hooks.connect_writes(Arc::clone(&behind) as _);
        behind.loads.connect_behind(Arc::clone(&behind) as _);
        waiting::connect(waiting::Awaited::Room, Arc::clone(&behind) as _);
        behind
    }

    /// Goes on evenly, whatever the clock does; far enough from zero that what is older than this process has a time.
    fn now(&self) -> Time {
        EARLIER + self.started.elapsed()
    }

    fn max_save_time(&self) -> Duration {
        let ms = self.engine.config.number(Number::WriteBehindMaxSaveTime);
        Duration::from_millis(u64::try_from(ms).unwrap_or(1))
    }

    /// The operator has saving off.
    fn is_off(&self) -> bool {
        !self.engine.config.is_on(Number::WriteBehindSaving)
    }

    /// Another role: clients that wait are told so, whatever runs is of no interest. What nobody has told of is captured before
    /// anything else can happen to it, and handed on later: the server would take the command that gave it this role for a write, and
    /// its replicas would get that, too.
    pub fn role_changed(&self, lock: Lock<'_>) {
        if self.engine.is_serving() {
            self.take_tail(lock);
        }
        self.role_changed.store(true, Ordering::Release);
        self.wake();
    }

    /// Something is to be done: the server comes to [`WriteBehind::pump`] before it sleeps.
    fn come(&self) {
        if self.awake.load(Ordering::Acquire) {
            return;
        }
        if waiting::tells_when_it_sleeps() && lock::is_server_thread() {
            self.awake.store(true, Ordering::Release);
        } else {
            self.wake();
        }
    }

    /// The same from any thread, where the server may be asleep.
    fn wake(&self) {
        if self.awake.swap(true, Ordering::AcqRel) {
            return;
        }
        if !waiting::wake() {
            let this = Weak::clone(&self.this);
            self.engine.timers.after(Duration::ZERO, move |_| {
                if let Some(this) = this.upgrade() {
                    lock::with_lock(|lock| this.pump(lock));
                }
            });
        }
    }

    /// The server ends: what is not saved by then is told in the log.
    pub fn closing(&self, lock: Lock<'_>) {
        let state = self.state.read(lock);
        let queued: usize = state.sinks.iter().map(|sink| sink.queue.len()).sum();
        if queued > 0 && self.engine.is_serving() {
            api::log_warning(&format!(
                "write_behind: the server ends with {queued} changes that are not saved: they are saved after the next start if it finds them in \
                 its AOF or RDB file, and lost otherwise"
            ));
        }
    }

    /// The counters of all registrations together, for INFO.
    pub fn totals(&self, lock: Lock<'_>) -> Vec<(&'static str, u64)> {
        let state = self.state.read(lock);
        let mut totals = state.gone.clone();
        for sink in &state.sinks {
            totals.add(&sink.queue, &sink.figures, self.now());
        }
        totals.shown(
            !self.is_off(),
            state.sinks.len(),
            state.held.len(),
            state.waiting.len(),
            state.handed_on,
        )
    }
}

impl State {
    fn sink(&mut self, prefix: &str) -> Option<&mut Sink> {
        self.sinks.iter_mut().find(|sink| sink.options.prefix == prefix)
    }

    /// A number that no sink has.
    fn free_number(&self) -> Option<usize> {
        (0..MOST_SINKS).find(|number| !self.sinks.iter().any(|sink| sink.number == *number))
    }
}
