//! The event side of the StreamReader: when an execution starts, and what follows from its end. Contract:
//! `readers-and-events.md` 6.3 to 6.13.
//!
//! Each registration has its own position in each stream ([`Group`]) and at most one execution per stream at a time.
//! What is known of streams here is only a memory of what the server holds: a scan finds everything again.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    keys::Subscribe,
    prefix::Pattern,
    stream_batch::EntryId,
    stream_group::{Group, Portion, Read, trim},
    stream_scan,
};
use crate::{
    engine::{
        Engine,
        execution::{Outcome, Reading, Source, Start},
        language::{Failure, with_lock},
        record::Record,
        registration::{Mode, Peers, Registration, Trigger},
        whole_ms,
    },
    error::Error,
    redis::{
        after::after_command,
        events::{Class, KeyEvent},
        guarded::Guarded,
        lock::Lock,
        reply::Reply,
    },
};

/// The shortest time before a failed batch is tried again.
const MIN_RETRY: Duration = Duration::from_millis(100);
/// How many `sync` executions follow each other before the server does something else.
const SYNC_RUNS: usize = 100;
/// How many arrivals are remembered per stream, for the lag.
const MAX_ARRIVALS: usize = 10_000;
/// The beginning of an error text by which a function pauses its registration.
const PAUSE: &str = "PAUSE";

/// What becomes of a batch that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The failed entry is skipped.
    Continue,
    /// The registration stops.
    Abort,
    /// The batch comes again after a while.
    Retry,
}

impl Policy {
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Continue, Self::Abort, Self::Retry]
            .into_iter()
            .find(|policy| policy.name().eq_ignore_ascii_case(name))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Continue => "continue",
            Self::Abort => "abort",
            Self::Retry => "retry",
        }
    }
}

/// The arguments of a registration.
#[derive(Clone, Debug)]
pub struct Options {
    /// As given.
    pub prefix: String,
    /// Entries per execution, at least 1.
    pub batch: u64,
    /// How long an incomplete batch waits for more; 0: for ever.
    pub duration_ms: u64,
    pub policy: Policy,
    pub retry_s: u64,
    /// Entries that every registration has finished are removed.
    pub trim: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Status {
    #[default]
    Ok,
    Paused,
    Aborted,
    WaitingForRetry,
}

impl Status {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Paused => "PAUSED",
            Self::Aborted => "ABORTED",
            Self::WaitingForRetry => "WAITING_FOR_RETRY_ON_FAILURE",
        }
    }
}

/// All StreamReader registrations of this server.
pub struct StreamWatch {
    pub(super) engine: Arc<Engine>,
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
pub(super) struct Watch {
    pub(super) registration: Arc<Registration>,
    pub(super) pattern: Pattern,
    options: Options,
    group: Group,
    /// Which of the groups it is, see [`Group::new`].
    place: usize,
    shared: Arc<Mutex<State>>,
}

/// What changes. Locked for a few moves only, never while the server or a function is called.
#[derive(Default)]
struct State {
    status: Status,
    /// Changes when everything begins again; what an older execution says is no longer true then.
    epoch: u64,
    streams: HashMap<Vec<u8>, Stream>,
    last_lag: Duration,
    total_lag: Duration,
}

/// What is known of one stream.
#[derive(Default)]
struct Stream {
    /// Entries that an earlier life has read and not finished have come again.
    recovered: bool,
    /// An execution is under way.
    running: bool,
    /// Entries that are believed to be unread.
    unread: u64,
    /// Read to the end, also an incomplete batch.
    flush: bool,
    /// When the unread entries came, as far as that was seen.
    arrivals: VecDeque<Instant>,
    /// An incomplete batch has its time.
    timed: bool,
    /// A job of a `sync` registration will look.
    job: bool,
    /// Everything up to here is finished.
    done: Option<EntryId>,
}

impl Stream {
    /// What to read next, if it is time to read.
    fn next(&mut self, batch: u64) -> Option<Portion> {
        if self.running {
            return None;
        }
        if !self.recovered {
            return Some(Portion::Recovery);
        }
        (self.flush || self.unread >= batch).then_some(Portion::New(batch))
    }

    /// Entries were read: the time when the first one of them came.
    fn note_read(&mut self, portion: Portion, read: usize) -> Option<Instant> {
        let Portion::New(batch) = portion else {
            self.recovered = true;
            return None;
        };
        let first = self.arrivals.front().copied();
        let read = read as u64;
        self.unread = self.unread.saturating_sub(read);
        if read < batch {
            // That was all there is.
            self.unread = 0;
            self.flush = false;
        }
        while self.arrivals.len() as u64 > self.unread {
            self.arrivals.pop_front();
        }
        first
    }
}

/// What one execution has read.
#[derive(Default)]
struct Taken {
    ids: Vec<Vec<u8>>,
    /// When the first entry came, if that was seen.
    arrived: Option<Instant>,
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
        stream_scan::spawn(&watch, wanted)?;
        Ok(watch)
    }

    /// The trigger of one registration.
    pub fn trigger(self: &Arc<Self>, options: Options) -> Box<dyn Trigger> {
        Box::new(StreamTrigger {
            streams: Arc::clone(self),
            pattern: Pattern::new(options.prefix.as_bytes()),
            options,
            state: Arc::default(),
        })
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
        if !state.streams.contains_key(key) {
            state.streams.insert(key.to_vec(), Stream::default());
        }
        let Some(stream) = state.streams.get_mut(key) else {
            return;
        };
        stream.unread += 1;
        if stream.arrivals.len() < MAX_ARRIVALS {
            stream.arrivals.push_back(Instant::now());
        }
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
    pub(super) fn found(self: &Arc<Self>, lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        if !self.engine.is_serving() || watch.registration.is_removed() {
            return;
        }
        let mut state = watch.shared.lock();
        if state.status != Status::Ok {
            return;
        }
        state.streams.entry(key.to_vec()).or_default().flush = true;
        drop(state);
        if watch.registration.mode == Mode::Sync {
            self.run_sync(lock, watch, key);
        } else {
            self.go_on(lock, watch, key);
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
    fn run_sync(self: &Arc<Self>, _lock: Lock<'_>, watch: &Arc<Watch>, key: &[u8]) {
        if let Some(stream) = watch.shared.lock().streams.get_mut(key) {
            stream.job = false;
        }
        for _ in 0..SYNC_RUNS {
            let Some(start) = self.next(watch, key) else {
                return self.time_batch(_lock, watch, key);
            };
            self.engine.run_now(start);
        }
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
        let (streams, watch, key) = (Arc::clone(self), Arc::clone(watch), key.to_vec());
        start.waiter = Some(Box::new(move |outcome| {
            let language = Arc::clone(&streams.engine.language);
            let taken = std::mem::take(&mut *taken.lock());
            with_lock(language.as_ref(), |lock| {
                let goes_on = streams.ended(lock, &watch, &key, epoch, &taken, outcome);
                if goes_on && watch.registration.mode != Mode::Sync {
                    streams.go_on(lock, &watch, &key);
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
        let finished = !pauses
            && !(outcome.aborted && failure.is_none())
            && (failure.is_none() || policy == Policy::Continue);
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
            for stream in state.streams.values_mut() {
                stream.recovered = false;
            }
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

/// The trigger of one StreamReader registration.
struct StreamTrigger {
    streams: Arc<StreamWatch>,
    pattern: Pattern,
    options: Options,
    state: Arc<Mutex<State>>,
}

impl StreamTrigger {
    fn watch(&self, lock: Lock<'_>, registration: &Registration) -> Option<Arc<Watch>> {
        let watched = self.streams.watched.read(lock);
        let found = watched
            .list
            .iter()
            .find(|watch| watch.registration.id == registration.id);
        found.cloned()
    }
}

impl Trigger for StreamTrigger {
    fn reader(&self) -> &'static str {
        "StreamReader"
    }

    fn arguments(&self) -> Vec<(&'static str, Reply)> {
        let options = &self.options;
        let number = |number: u64| Reply::Int(i64::try_from(number).unwrap_or(i64::MAX));
        vec![
            ("batchSize", number(options.batch)),
            ("durationMS", number(options.duration_ms)),
            ("stream", Reply::bulk(&options.prefix)),
            ("trimStream", Reply::Int(i64::from(options.trim))),
            ("onFailedPolicy", Reply::bulk(options.policy.name())),
            ("retryInterval", number(options.retry_s)),
        ]
    }

    fn check(&self, _lock: Lock<'_>, _peers: Peers<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn start(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let streams = &self.streams;
        let mut watched = streams.watched.write(lock);
        // The lowest place that nobody has on the same streams: an upgraded registration goes on where the old one was.
        let taken = |place: usize| {
            watched
                .list
                .iter()
                .any(|other| other.place == place && other.pattern.overlaps(&self.pattern))
        };
        let place = (0..).find(|&place| !taken(place)).unwrap_or_default();
        let watch = Arc::new(Watch {
            registration: Arc::clone(registration),
            pattern: self.pattern.clone(),
            options: self.options.clone(),
            group: Group::new(place),
            place,
            shared: Arc::clone(&self.state),
        });
        Arc::make_mut(&mut watched.list).push(Arc::clone(&watch));
        if !watched.subscribed {
            watched.subscribed = true;
            (streams.subscribe)(lock, Class::Stream);
        }
        drop(watched);
        watch.begin_again();
        if streams.engine.is_serving() {
            streams.scan(&watch);
        }
        Ok(())
    }

    fn stop(&self, lock: Lock<'_>, registration: &Registration) {
        let mut watched = self.streams.watched.write(lock);
        Arc::make_mut(&mut watched.list).retain(|watch| watch.registration.id != registration.id);
        drop(watched);
        self.streams.engine.abort_pending(registration.id);
    }

    fn figures(&self, finished: u64) -> Vec<(&'static str, Reply)> {
        let state = self.state.lock();
        let average = if finished == 0 {
            0.0
        } else {
            state.total_lag.as_millis() as f64 / finished as f64
        };
        vec![
            ("lastEstimatedLagMS", Reply::Int(whole_ms(state.last_lag))),
            ("avgEstimatedLagMS", Reply::Double(average)),
        ]
    }

    fn clear_figures(&self) {
        let mut state = self.state.lock();
        (state.last_lag, state.total_lag) = (Duration::ZERO, Duration::ZERO);
    }

    fn status(&self) -> Option<&'static str> {
        Some(self.state.lock().status.name())
    }

    fn pause(&self, _lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let mut state = self.state.lock();
        if matches!(state.status, Status::Ok | Status::WaitingForRetry) {
            state.status = Status::Paused;
            drop(state);
            self.streams.engine.abort_pending(registration.id);
        }
        Ok(())
    }

    fn unpause(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.status == Status::Ok {
            return Ok(());
        }
        state.status = Status::Ok;
        for stream in state.streams.values_mut() {
            stream.recovered = false;
        }
        drop(state);
        if let Some(watch) = self.watch(lock, registration) {
            self.streams.scan(&watch);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_stream_is_recovered_first() {
        let mut stream = Stream {
            unread: 1,
            ..Stream::default()
        };
        assert_eq!(stream.next(1), Some(Portion::Recovery));
        stream.note_read(Portion::Recovery, 0);
        assert_eq!(stream.next(1), Some(Portion::New(1)));
        assert_eq!(stream.next(2), None);
        stream.flush = true;
        assert_eq!(stream.next(2), Some(Portion::New(2)));
        stream.running = true;
        assert_eq!(stream.next(2), None);
    }

    #[test]
    fn an_incomplete_batch_is_the_end() {
        let mut stream = Stream {
            unread: 5,
            flush: true,
            recovered: true,
            arrivals: (0..5).map(|_| Instant::now()).collect(),
            ..Stream::default()
        };
        assert!(stream.note_read(Portion::New(2), 2).is_some());
        assert_eq!((stream.unread, stream.flush, stream.arrivals.len()), (3, true, 3));
        stream.note_read(Portion::New(2), 1);
        assert_eq!(
            (stream.unread, stream.flush, stream.arrivals.len()),
            (0, false, 0)
        );
    }
}
