//! The event side of the StreamReader: when an execution starts, and what follows from its end. Contract:
//! docs/contract/readers-and-events.md 6.3 to 6.13.
//!
//! Each registration has its own position in each stream ([`Group`]) and at most one execution per stream at a time
//! ([`StreamLease`]). What is known of streams here is only a memory of what the server holds: a scan finds everything again.

mod batch;
mod ended;
pub mod entries;
mod group;
mod lease;
mod scan;
mod state;
mod trigger;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::mutex::Mutex;
pub use state::{Options, Policy};

use self::{
    batch::Batch,
    group::{Group, Groups},
    lease::{StreamLease, StreamLeases},
    state::{RegistrationStreams, Status, Stream, Taken},
};
use super::keys::Subscribe;
use crate::{
    engine::{
        Engine,
        language::with_lock,
        prefix::Pattern,
        registration::{Mode, Registration, Trigger},
        start::Start,
    },
    server::{
        after::after_command,
        events::KeyEvent,
        guarded::Guarded,
        key::{self, Kind},
        lock::Lock,
    },
};

/// Registrations read database 0.
const DB: i32 = 0;
/// The shortest time before a failed batch is tried again.
const MIN_RETRY: Duration = Duration::from_millis(100);
/// After how long a stream is read again that the server did not let be read.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How many `sync` executions follow each other before the server does something else.
const SYNC_RUNS: usize = 100;

/// All StreamReader registrations of this server.
pub struct StreamWatch {
    engine: Arc<Engine>,
    subscribe: Subscribe,
    watched: Guarded<Watched>,
    leases: Arc<StreamLeases>,
    scans: crossbeam_channel::Sender<Arc<Watch>>,
}

#[derive(Default)]
struct Watched {
    list: Arc<Vec<Arc<Watch>>>,
    subscribed: bool,
}

/// One registration.
struct Watch {
    registration: Arc<Registration>,
    pattern: Pattern,
    options: Options,
    group: Group,
    /// Which of the groups it is, see [`Group::new`].
    place: usize,
    shared: Arc<Mutex<RegistrationStreams>>,
}

impl StreamWatch {
    /// # Errors
    /// The operating system gave no thread for the scans.
    pub fn new(engine: Arc<Engine>, subscribe: Subscribe) -> std::io::Result<Arc<Self>> {
        let (scans, wanted) = crossbeam_channel::unbounded();
        let watch = Arc::new(Self {
            engine,
            subscribe,
            watched: Guarded::default(),
            leases: Arc::default(),
            scans,
        });
        scan::spawn(&watch, wanted)?;
        Ok(watch)
    }

    /// The trigger of one registration; `place`: which of the consumer groups it had.
    pub fn trigger(self: &Arc<Self>, options: Options, place: Option<usize>) -> Box<dyn Trigger> {
        Box::new(trigger::StreamTrigger::new(Arc::clone(self), options, place))
    }

    /// True if a change of this key may be some registration's event.
    pub fn concerns(&self, lock: Lock<'_>, key: &[u8]) -> bool {
        let watched = self.watched.read(lock);
        watched.list.iter().any(|watch| watch.pattern.matches(key))
    }

    /// One notification of the server.
    pub fn notify(self: &Arc<Self>, event: &KeyEvent<'_>) {
        if event.name != b"xadd" || event.db != 0 || !self.engine.is_serving() {
            return;
        }
        let list = Arc::clone(&self.watched.read(event.lock).list);
        for watch in list.iter().filter(|watch| watch.pattern.matches(event.key)) {
            self.added(event.lock, watch, event.key);
        }
    }

    /// An entry was added to a stream.
    fn added(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        let mut state = watch.shared.lock();
        if state.status() != Status::Ok {
            // The scan finds it when the registration goes on.
            return;
        }
        let known = state.streams.len();
        let stream = state.stream(key);
        stream.note_added();
        let begins_batch = stream.begins_batch(watch.options.batch);
        let looked_at = if state.streams.len() > known {
            state.next_to_look_at()
        } else {
            Vec::new()
        };
        let taken = self.leases.is_taken(key, watch.place);
        drop(state);
        Self::forget_gone(lock, watch, looked_at);
        if begins_batch && !taken {
            // It may be another stream than the one that was read to its end; nothing else tells before the batch is full.
            self.look_again(lock, watch, key, 1);
        }
        if watch.registration.mode != Mode::Sync {
            self.go_on(lock, watch, key);
        } else if !taken && watch.shared.lock().stream(key).queue_sync() {
            let (streams, watch, key) = (Arc::clone(self), Arc::clone(watch), key.to_vec());
            after_command(lock, move |lock| streams.run_sync(lock, &watch, &key));
        }
    }

    /// Forgets those of some streams that are gone: deleted, expired, evicted.
    fn forget_gone(lock: Lock<'_>, watch: &Arc<Watch>, keys: Vec<Vec<u8>>) {
        if keys.is_empty() {
            return;
        }
        let watch = Arc::clone(watch);
        after_command(lock, move |lock| {
            for key in keys {
                if key::kind(lock, DB, &key) != Kind::Stream {
                    watch.shared.lock().forget(&key);
                }
            }
        });
    }

    /// Compares what is believed of a stream with what the server knows: that many entries are unread.
    fn look_again(&self, lock: Lock<'_>, watch: &Watch, key: &[u8], believed: u64) {
        let groups = Groups::of(lock, self.engine.features, key);
        self.compare(lock, watch, key, &groups, believed);
    }

    fn compare(&self, lock: Lock<'_>, watch: &Watch, key: &[u8], groups: &Groups, believed: u64) {
        let features = self.engine.features;
        let standing = watch.group.standing(lock, features, key, groups);
        let more = standing.is_some_and(|standing| standing.has_more_than(lock, features, key, believed));
        if let Some(stream) = watch.shared.lock().streams.get_mut(key) {
            // Nobody has the lease now: what is not acknowledged was left by an earlier life of another stream.
            stream.note_standing(more, standing.is_none_or(|standing| standing.left));
        }
    }

    /// A scan has found a stream.
    fn found(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        if !self.engine.is_serving() || watch.registration.is_removed() {
            return;
        }
        let held = group::length(lock, key);
        let mut state = watch.shared.lock();
        if state.status() != Status::Ok {
            return;
        }
        state.stream(key).note_found(held);
        drop(state);
        if watch.registration.mode == Mode::Sync {
            self.run_sync(lock, watch, key);
        } else {
            self.go_on(lock, watch, key);
        }
    }

    /// An execution has ended and its lease is over: whoever has its position now goes on.
    fn pass_on(self: &Arc<Self>, lock: Lock<'_>, watch: &Watch, key: &[u8]) {
        let list = Arc::clone(&self.watched.read(lock).list);
        let heir = list
            .iter()
            .find(|heir| heir.place == watch.place && heir.pattern.matches(key));
        if let Some(heir) = heir {
            self.follow(lock, heir, key);
        }
    }

    /// The next execution follows.
    fn follow(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        if watch.registration.mode != Mode::Sync {
            self.go_on(lock, watch, key);
            return;
        }
        // Where one runs after the other, the next one comes by itself; not so after one that went to the background.
        let comes = watch
            .shared
            .lock()
            .streams
            .get(key)
            .is_some_and(Stream::is_running_sync);
        if !comes {
            self.run_sync(lock, watch, key);
        }
    }

    /// Starts the next execution on a stream, if it is time.
    fn go_on(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        if let Some(start) = self.next(watch, key) {
            let limited = watch.registration.limits.max_concurrent.is_some();
            let lane = limited.then(|| watch.registration.lane_of_key(0, key));
            self.engine.submit(start, lane);
        } else {
            self.time_batch(lock, watch, key);
        }
    }

    /// Runs what is to be run on a stream now, on this thread.
    fn run_sync(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        let set_running = |runs: bool| {
            if let Some(stream) = watch.shared.lock().streams.get_mut(key) {
                stream.set_running_sync(runs);
            }
        };
        set_running(true);
        for _ in 0..SYNC_RUNS {
            let Some(start) = self.next(watch, key) else {
                set_running(false);
                return self.time_batch(lock, watch, key);
            };
            self.engine.run_now(start);
        }
        set_running(false);
        // A function that adds to its own stream must not keep the server for ever.
        let epoch = watch.shared.lock().epoch;
        self.later(Duration::ZERO, watch, key, epoch);
    }

    /// The next execution on a stream, if it is time for one.
    fn next(self: &Arc<Self>, watch: &Arc<Watch>, key: &[u8]) -> Option<Start> {
        let state = watch.shared.lock();
        if !watch.reads(&self.engine, &state) {
            return None;
        }
        let epoch = state.epoch;
        let portion = state.streams.get(key)?.next(watch.options.batch)?;
        drop(state);
        let lease = self.leases.take(key, watch.place)?;
        let taken = Arc::new(Mutex::new(Taken::default()));
        let source = Batch {
            watch: Arc::clone(watch),
            key: key.to_vec(),
            portion,
            taken: Arc::clone(&taken),
            epoch,
            entries: None,
        };
        let start = Start::of_registration(&watch.registration, 0, Box::new(source))
            .skipping_errors(watch.options.policy == Policy::Continue)
            .distributed(self.engine.payload(&watch.registration));
        let (streams, watch, key) = (Arc::clone(self), Arc::clone(watch), key.to_vec());
        Some(start.told_of_end(move |outcome| {
            let language = Arc::clone(&streams.engine.language);
            let taken = std::mem::take(&mut *taken.lock());
            with_lock(language.as_ref(), |lock| {
                let goes_on = streams.ended(lock, &watch, &key, epoch, &taken, outcome);
                drop::<StreamLease>(lease);
                if goes_on {
                    streams.pass_on(lock, &watch, &key);
                }
            });
        }))
    }

    /// Gives an incomplete batch its time.
    fn time_batch(self: &Arc<Self>, _lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        let duration = Duration::from_millis(watch.options.duration_ms);
        let mut state = watch.shared.lock();
        if duration.is_zero() || !watch.reads(&self.engine, &state) {
            // Whatever lets it read again scans.
            return;
        }
        let epoch = state.epoch;
        let Some(stream) = state.streams.get_mut(key) else {
            return;
        };
        if self.leases.is_taken(key, watch.place) {
            return;
        }
        if let Some(left) = stream.start_timer(duration) {
            drop(state);
            self.later(left, watch, key, epoch);
        }
    }

    /// Reads a stream to its end after `delay`, if nothing has begun again meanwhile.
    fn later(self: &Arc<Self>, delay: Duration, watch: &Arc<Watch>, key: &[u8], epoch: u64) {
        self.change_later(delay, watch, key, epoch, Stream::note_time_over);
    }

    /// Reads a stream again that the server did not let be read.
    fn ask_again_later(self: &Arc<Self>, watch: &Arc<Watch>, key: &[u8], epoch: u64) {
        self.change_later(ASK_AGAIN, watch, key, epoch, Stream::try_again);
    }

    /// Changes what is known of a stream after `delay`, if nothing has begun again meanwhile, and goes on with it.
    fn change_later(
        self: &Arc<Self>,
        delay: Duration,
        watch: &Arc<Watch>,
        key: &[u8],
        epoch: u64,
        change: fn(&mut Stream),
    ) {
        let (streams, watch, key) = (Arc::clone(self), Arc::downgrade(watch), key.to_vec());
        self.engine.timers.after(delay, move |engine| {
            let Some(watch) = Weak::upgrade(&watch) else {
                return;
            };
            with_lock(engine.language.as_ref(), |lock| {
                let mut state = watch.shared.lock();
                if state.epoch != epoch {
                    return;
                }
                let Some(stream) = state.streams.get_mut(key.as_slice()) else {
                    return;
                };
                change(stream);
                drop(state);
                if watch.registration.mode == Mode::Sync {
                    streams.run_sync(lock, &watch, &key);
                } else {
                    streams.go_on(lock, &watch, &key);
                }
            });
        });
    }

    fn retry_later(self: &Arc<Self>, watch: &Arc<Watch>, epoch: u64) {
        let delay = Duration::from_secs(watch.options.retry_s).max(MIN_RETRY);
        let (streams, watch) = (Arc::clone(self), Arc::downgrade(watch));
        self.engine.timers.after(delay, move |engine| {
            let Some(watch) = Weak::upgrade(&watch) else {
                return;
            };
            if !engine.is_serving() || watch.registration.is_removed() {
                return;
            }
            let goes_on = watch.shared.lock().retry(epoch);
            if goes_on {
                streams.scan(&watch);
            }
        });
    }

    /// The server begins to serve: it was loaded or promoted. Nothing that was known holds any more.
    pub fn begin_again(self: &Arc<Self>, lock: Lock<'_>) {
        let list = Arc::clone(&self.watched.read(lock).list);
        for watch in list.iter() {
            watch.shared.lock().begin_again();
            self.scan(watch);
        }
    }

    /// Looks for the streams of a registration, in the background.
    fn scan(&self, watch: &Arc<Watch>) {
        // The receiver lives as long as the process.
        let _ = self.scans.send(Arc::clone(watch));
    }
}

impl Watch {
    /// Whether it may start executions now.
    fn reads(&self, engine: &Engine, state: &RegistrationStreams) -> bool {
        state.status() == Status::Ok && !self.registration.is_removed() && engine.is_serving()
    }
}
