//! The event side of the StreamReader: when an execution starts, and what follows from its end. Contract:
//! `readers-and-events.md` 6.3 to 6.13.
//!
//! Each registration has its own position in each stream ([`Group`]) and at most one execution per stream at a time.
//! What is known of streams here is only a memory of what the server holds: a scan finds everything again.

pub mod entries;
mod group;
mod scan;
mod state;
mod trigger;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
pub use state::{Options, Policy};

use self::{
    entries::EntryId,
    group::{Group, Portion, Read, trim},
    state::{State, Status, Stream, Taken},
};
use super::{keys::Subscribe, prefix::Pattern};
use crate::{
    engine::{
        Engine,
        execution::{Outcome, Reading, Source, Start},
        language::{Failure, with_lock},
        record::Record,
        registration::{Mode, Registration, Trigger},
    },
    redis::{after::after_command, events::KeyEvent, guarded::Guarded, lock::Lock},
};

/// The shortest time before a failed batch is tried again.
const MIN_RETRY: Duration = Duration::from_millis(100);
/// How many `sync` executions follow each other before the server does something else.
const SYNC_RUNS: usize = 100;
/// The beginning of an error text by which a function pauses its registration.
const PAUSE: &str = "PAUSE";

/// All StreamReader registrations of this server.
pub struct StreamWatch {
    engine: Arc<Engine>,
    subscribe: Subscribe,
    watched: Guarded<Watched>,
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
    shared: Arc<Mutex<State>>,
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
            scans,
        });
        scan::spawn(&watch, wanted)?;
        Ok(watch)
    }

    /// The trigger of one registration; `place`: which of the consumer groups it had.
    pub fn trigger(self: &Arc<Self>, options: Options, place: Option<usize>) -> Box<dyn Trigger> {
        Box::new(trigger::StreamTrigger::new(Arc::clone(self), options, place))
    }

    /// One notification of the server.
    pub fn notify(self: &Arc<Self>, event: &KeyEvent<'_>) {
        if event.name != "xadd" || event.db != 0 || !self.engine.is_serving() {
            return;
        }
        let list = Arc::clone(&self.watched.read(event.lock).list);
        for watch in list.iter().filter(|watch| watch.pattern.matches(event.key)) {
            self.added(event.lock, watch, event.key);
        }
    }

    /// An entry was added to a stream.
    fn added(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        let sync = watch.registration.mode == Mode::Sync;
        let mut state = watch.shared.lock();
        if state.status != Status::Ok {
            // The scan finds it when the registration goes on.
            return;
        }
        let stream = state.stream(key);
        stream.note_added();
        if !sync {
            drop(state);
            self.go_on(lock, watch, key);
        } else if !stream.running && !stream.job {
            stream.job = true;
            drop(state);
            let (streams, watch, key) = (Arc::clone(self), Arc::clone(watch), key.to_vec());
            after_command(lock, move |lock| streams.run_sync(lock, &watch, &key));
        }
    }

    /// A scan has found a stream.
    fn found(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        if !self.engine.is_serving() || watch.registration.is_removed() {
            return;
        }
        let held = group::length(lock, self.engine.features, key);
        let mut state = watch.shared.lock();
        if state.status != Status::Ok {
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

    /// An execution has ended: the next one follows.
    fn follow(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        if watch.registration.mode != Mode::Sync {
            self.go_on(lock, watch, key);
            return;
        }
        let looping = |stream: &Stream| stream.looping;
        // Where one runs after the other, the next one comes by itself; not so after one that went to the background.
        if !watch.shared.lock().streams.get(key).is_some_and(looping) {
            self.run_sync(lock, watch, key);
        }
    }

    /// Starts the next execution on a stream, if it is time.
    fn go_on(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        if let Some(start) = self.next(watch, key) {
            self.engine.submit(start, None);
        } else {
            self.time_batch(lock, watch, key);
        }
    }

    /// Runs what is to be run on a stream now, on this thread.
    fn run_sync(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        let set_looping = |looping: bool| {
            if let Some(stream) = watch.shared.lock().streams.get_mut(key) {
                stream.job = false;
                stream.looping = looping;
            }
        };
        set_looping(true);
        for _ in 0..SYNC_RUNS {
            let Some(start) = self.next(watch, key) else {
                set_looping(false);
                return self.time_batch(lock, watch, key);
            };
            self.engine.run_now(start);
        }
        set_looping(false);
        // A function that adds to its own stream must not keep the server for ever.
        self.later(Duration::ZERO, watch, key);
    }

    /// The next execution on a stream, if it is time for one.
    fn next(self: &Arc<Self>, watch: &Arc<Watch>, key: &[u8]) -> Option<Start> {
        if watch.registration.is_removed() || !self.engine.is_serving() {
            return None;
        }
        let mut state = watch.shared.lock();
        if state.status != Status::Ok {
            return None;
        }
        let epoch = state.epoch;
        let stream = state.streams.get_mut(key)?;
        let portion = stream.next(watch.options.batch)?;
        stream.running = true;
        drop(state);
        let taken = Arc::new(Mutex::new(Taken::default()));
        let source = Batch {
            watch: Arc::clone(watch),
            key: key.to_vec(),
            portion,
            taken: Arc::clone(&taken),
            epoch,
            entries: None,
        };
        let mut start = Start::of_registration(&watch.registration, 0, Box::new(source));
        start.skips_errors = watch.options.policy == Policy::Continue;
        start.shipment = self.engine.shipment(&watch.registration);
        let (streams, watch, key) = (Arc::clone(self), Arc::clone(watch), key.to_vec());
        start.waiter = Some(Box::new(move |outcome| {
            let language = Arc::clone(&streams.engine.language);
            let taken = std::mem::take(&mut *taken.lock());
            with_lock(language.as_ref(), |lock| {
                let goes_on = streams.ended(lock, &watch, &key, epoch, &taken, outcome);
                if goes_on {
                    streams.follow(lock, &watch, &key);
                }
            });
        }));
        Some(start)
    }

    /// An execution has ended: acknowledges what is finished. True if the next one may follow.
    fn ended(
        self: &Arc<Self>,
        lock: Lock<'_>,
        watch: &Arc<Watch>,
        key: &[u8],
        epoch: u64,
        taken: &Taken,
        outcome: &Outcome,
    ) -> bool {
        let policy = watch.options.policy;
        let failure = outcome.errors.first();
        let pauses = failure.is_some_and(|error| error.starts_with(PAUSE));
        let finished = match failure {
            Some(_) => policy == Policy::Continue && !pauses,
            None => !outcome.aborted,
        };
        let mut state = watch.shared.lock();
        if state.epoch != epoch {
            return false;
        }
        let last = taken.ids.iter().filter_map(|id| EntryId::parse(id)).max();
        if let Some(stream) = state.streams.get_mut(key) {
            stream.running = false;
            if finished {
                stream.done = stream.done.max(last);
            } else if !taken.ids.is_empty() {
                stream.recovered = false;
            }
        }
        let serving = self.engine.is_serving();
        if finished {
            if let (Some(arrived), true) = (taken.arrived, serving && !taken.ids.is_empty()) {
                let lag = arrived.elapsed();
                state.last_lag = lag;
                state.total_lag += lag;
            }
            drop(state);
            if serving {
                let features = self.engine.features;
                watch.group.acknowledge(lock, features, key, &taken.ids);
                if last.is_some() {
                    self.trim_finished(lock, key);
                }
            }
            return serving;
        }
        if failure.is_none() {
            // Aborted: its entries come again with the next recovery.
            return false;
        }
        if state.status == Status::Ok || pauses {
            state.status = match policy {
                _ if pauses => Status::Paused,
                Policy::Retry => Status::WaitingForRetry,
                _ => Status::Aborted,
            };
        }
        let retries = state.status == Status::WaitingForRetry;
        drop(state);
        self.engine.abort_pending(watch.registration.id);
        if retries {
            self.retry_later(watch, epoch);
        }
        false
    }

    /// Removes the entries that every registration on the stream has finished, if one of them wants that.
    fn trim_finished(&self, lock: Lock<'_>, key: &[u8]) {
        let list = Arc::clone(&self.watched.read(lock).list);
        let mut finished: Option<EntryId> = None;
        let mut wanted = false;
        for watch in list.iter().filter(|watch| watch.pattern.matches(key)) {
            let state = watch.shared.lock();
            let Some(done) = state.streams.get(key).and_then(|stream| stream.done) else {
                return;
            };
            finished = Some(finished.map_or(done, |finished| finished.min(done)));
            wanted |= watch.options.trim;
        }
        if let (Some(finished), true) = (finished, wanted) {
            trim(lock, self.engine.features, key, finished);
        }
    }

    /// Gives an incomplete batch its time.
    fn time_batch(self: &Arc<Self>, _lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        let duration = Duration::from_millis(watch.options.duration_ms);
        let mut state = watch.shared.lock();
        let Some(stream) = state.streams.get_mut(key) else {
            return;
        };
        if duration.is_zero() || stream.unread == 0 || stream.timed || stream.running {
            return;
        }
        stream.timed = true;
        let came = stream.arrivals.front().map_or(Duration::ZERO, Instant::elapsed);
        drop(state);
        self.later(duration.saturating_sub(came), watch, key);
    }

    /// Reads a stream to its end after `delay`.
    fn later(self: &Arc<Self>, delay: Duration, watch: &Arc<Watch>, key: &[u8]) {
        let (streams, watch, key) = (Arc::clone(self), Arc::clone(watch), key.to_vec());
        self.engine.timers.after(delay, move |engine| {
            with_lock(engine.language.as_ref(), |lock| {
                let mut state = watch.shared.lock();
                let Some(stream) = state.streams.get_mut(&key) else {
                    return;
                };
                stream.timed = false;
                stream.flush |= stream.unread > 0;
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
        let (streams, watch) = (Arc::clone(self), Arc::clone(watch));
        self.engine.timers.after(delay, move |engine| {
            if !engine.is_serving() || watch.registration.is_removed() {
                return;
            }
            let mut state = watch.shared.lock();
            // Paused or begun again meanwhile.
            if state.epoch != epoch || state.status != Status::WaitingForRetry {
                return;
            }
            state.status = Status::Ok;
            state.recover();
            drop(state);
            streams.scan(&watch);
        });
    }

    /// The server begins to serve: it was loaded or promoted. Nothing that was known holds any more.
    pub fn begin_again(self: &Arc<Self>, lock: Lock<'_>) {
        let list = Arc::clone(&self.watched.read(lock).list);
        for watch in list.iter() {
            watch.shared.lock().status = Status::Ok;
            watch.begin_again();
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
    /// Forgets what is known of streams. A registration that comes back when an upgrade fails stays paused.
    fn begin_again(&self) {
        let mut state = self.shared.lock();
        state.epoch += 1;
        state.streams.clear();
        if state.status == Status::WaitingForRetry {
            state.status = Status::Ok;
        }
    }
}

/// The entries of one execution, read when it begins.
struct Batch {
    watch: Arc<Watch>,
    key: Vec<u8>,
    portion: Portion,
    taken: Arc<Mutex<Taken>>,
    epoch: u64,
    entries: Option<VecDeque<Record>>,
}

impl Batch {
    fn read(&self, engine: &Engine, lock: Lock<'_>) -> VecDeque<Record> {
        let watch = &self.watch;
        if watch.shared.lock().epoch != self.epoch || !engine.is_serving() {
            return VecDeque::new();
        }
        let Read { entries, gone } = watch.group.read(lock, engine.features, &self.key, self.portion);
        let mut state = watch.shared.lock();
        let mut arrived = None;
        if gone {
            // Whatever comes under this name is another stream.
            state.streams.insert(
                self.key.clone(),
                Stream {
                    running: true,
                    recovered: true,
                    ..Stream::default()
                },
            );
        } else if let Some(stream) = state.streams.get_mut(&self.key) {
            arrived = stream.note_read(self.portion, entries.len());
        }
        drop(state);
        *self.taken.lock() = Taken {
            ids: entries.iter().map(|entry| entry.id.clone()).collect(),
            arrived,
        };
        let records = entries.into_iter().map(|entry| entry.record(&self.key));
        records.collect()
    }
}

impl Source for Batch {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        if self.entries.is_none() {
            let engine = reading.engine;
            let entries = with_lock(engine.language.as_ref(), |lock| self.read(engine, lock));
            self.entries = Some(entries);
        }
        Ok(self.buffered())
    }

    fn buffered(&mut self) -> Option<Record> {
        self.entries.as_mut()?.pop_front()
    }
}
