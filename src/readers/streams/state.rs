//! What is known of a registration and of its streams: data and their rules, without any call of the server.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::group::Portion;
use crate::hashing::Seeds;

/// How many arrivals are remembered per stream, for the lag.
const MAX_ARRIVALS: usize = 10_000;
/// So many fit into what a stream keeps of them when it has been read.
const FEW_ARRIVALS: usize = 128;
/// With each stream that becomes known so many others are looked at: so those that are gone are never many more than the others.
const LOOKED_AT: usize = 2;

/// What becomes of a batch that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    pub const fn name(self) -> &'static str {
        match self {
            Self::Continue => "continue",
            Self::Abort => "abort",
            Self::Retry => "retry",
        }
    }
}

/// The arguments of a registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// The state of a registration. Only [`RegistrationStreams`] changes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    Ok,
    Paused,
    Aborted,
    WaitingForRetry,
}

impl Status {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Paused => "PAUSED",
            Self::Aborted => "ABORTED",
            Self::WaitingForRetry => "WAITING_FOR_RETRY_ON_FAILURE",
        }
    }
}

/// What changes. Locked for a few moves only, never while the server or a function is called.
#[derive(Default)]
pub struct RegistrationStreams {
    status: Status,
    /// Changes when everything begins again; what an older execution says is no longer true then.
    pub epoch: u64,
    /// Each event asks for its stream several times.
    pub streams: IndexMap<Vec<u8>, Stream, Seeds>,
    /// The place of the next one that is to be looked at.
    look_at: usize,
    pub last_lag: Duration,
    pub total_lag: Duration,
}

impl RegistrationStreams {
    pub fn status(&self) -> Status {
        self.status
    }

    /// What is known of a stream, from now on if nothing was.
    pub fn stream(&mut self, key: &[u8]) -> &mut Stream {
        let known = self.streams.get_index_of(key);
        let place = known.unwrap_or_else(|| self.streams.insert_full(key.to_vec(), Stream::default()).0);
        &mut self.streams[place]
    }

    /// The next streams of which nothing is under way, to be looked at and forgotten if they are gone ([`Self::forget`]). Each of
    /// those that are known comes up again after a while.
    pub fn next_to_look_at(&mut self) -> Vec<Vec<u8>> {
        // From the first one on again, where these were the last.
        let first = Some(self.look_at).filter(|first| *first < self.streams.len());
        let first = first.unwrap_or(0);
        self.look_at = first + LOOKED_AT;
        let next = self.streams.iter().skip(first).take(LOOKED_AT);
        let at_rest = next.filter(|(_, stream)| stream.is_at_rest());
        at_rest.map(|(key, _)| key.clone()).collect()
    }

    /// A stream is gone: whatever comes under its name is another one.
    pub fn forget(&mut self, key: &[u8]) {
        if self.streams.get(key).is_some_and(Stream::is_at_rest) {
            self.remove(key);
        }
    }

    /// Nothing is known of a stream any more.
    pub fn remove(&mut self, key: &[u8]) {
        // The last one comes into its place, and is looked at in the next round if its turn was still to come.
        self.streams.swap_remove(key);
    }

    /// Nothing that was known holds any more.
    pub fn begin_again(&mut self) {
        self.status = Status::Ok;
        self.epoch += 1;
        self.streams.clear();
    }

    /// It is in force again after a moment, because what was to replace it failed. What counted on its timers was lost.
    pub fn come_back(&mut self) {
        if self.status == Status::WaitingForRetry {
            self.status = Status::Ok;
        }
        for stream in self.streams.values_mut() {
            stream.has_timer = false;
            stream.try_again();
        }
        self.recover();
    }

    /// A client pauses it. False if it stands already.
    pub fn pause(&mut self) -> bool {
        let pauses = matches!(self.status, Status::Ok | Status::WaitingForRetry);
        if pauses {
            self.status = Status::Paused;
        }
        pauses
    }

    /// A client lets it go on. False if it does.
    pub fn unpause(&mut self) -> bool {
        self.status != Status::Ok && self.go_on()
    }

    /// The time to try again has come. False if somebody has paused it, or has begun again, meanwhile.
    pub fn retry(&mut self, epoch: u64) -> bool {
        self.epoch == epoch && self.status == Status::WaitingForRetry && self.go_on()
    }

    /// A batch has failed: what becomes of the registration. `pauses`: its function asks for a pause.
    pub fn note_failed(&mut self, policy: Policy, pauses: bool) -> Status {
        if pauses {
            self.status = Status::Paused;
        } else if self.status == Status::Ok {
            self.status = match policy {
                Policy::Retry => Status::WaitingForRetry,
                Policy::Continue | Policy::Abort => Status::Aborted,
            };
        }
        self.status
    }

    /// An execution has finished entries that came so long ago.
    pub fn note_lag(&mut self, lag: Duration) {
        self.last_lag = lag;
        self.total_lag += lag;
    }

    fn go_on(&mut self) -> bool {
        self.status = Status::Ok;
        self.recover();
        true
    }

    /// All entries that were read and not finished come again.
    fn recover(&mut self) {
        for stream in self.streams.values_mut() {
            stream.recover();
        }
    }
}

/// What of the new entries is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Extent {
    /// Batches that are full; an incomplete one waits for more.
    #[default]
    FullBatches,
    /// All of them, the last one also as an incomplete batch.
    ToTheEnd,
}

/// What is read of a stream next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The entries that an earlier life has read and not finished, then new ones.
    Unfinished(Extent),
    New(Extent),
}

impl Default for Next {
    fn default() -> Self {
        Self::Unfinished(Extent::default())
    }
}

/// Whether a thread runs one `sync` execution after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SyncRuns {
    #[default]
    None,
    /// A job will look when the command has ended.
    Queued,
    Running,
}

/// Whether the server lets a stream be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Refusal {
    #[default]
    None,
    /// It did not; a timer will say when to try again.
    Waits,
    /// It did not, and is asked again.
    TriesAgain,
}

/// What is known of one stream.
#[derive(Debug, Default)]
pub struct Stream {
    next: Next,
    refusal: Refusal,
    /// Entries that are believed to be unread.
    unread: u64,
    /// When the unread entries came, as far as that was seen.
    arrivals: VecDeque<Instant>,
    /// An incomplete batch has its time: a timer will say when it is over.
    has_timer: bool,
    sync_runs: SyncRuns,
}

impl Stream {
    /// Entries that are believed to be unread.
    pub fn unread(&self) -> u64 {
        self.unread
    }

    /// No timer and no job will come for it.
    fn is_at_rest(&self) -> bool {
        !self.has_timer && self.refusal == Refusal::None && self.sync_runs == SyncRuns::None
    }

    /// An entry was added.
    pub fn note_added(&mut self) {
        self.unread += 1;
        if self.arrivals.len() < MAX_ARRIVALS {
            self.arrivals.push_back(Instant::now());
        }
    }

    /// True if the entry that was just added is the first one of a batch that waits for more.
    pub fn begins_batch(&self, batch: u64) -> bool {
        batch > 1 && self.unread == 1 && self.next == Next::New(Extent::FullBatches)
    }

    /// A scan has found the stream with that many entries. Those that came before anybody looked are read at once,
    /// also as an incomplete batch; those that were seen coming wait for their batch to be full.
    pub fn note_found(&mut self, held: u64) {
        if held > self.unread {
            self.set_extent(Extent::ToTheEnd);
            self.unread = held;
        }
    }

    /// The position had to be made: the stream holds that many entries, and all of them are new.
    pub fn note_made(&mut self, held: u64) {
        self.note_found(held);
        self.unread = held;
    }

    /// The server was asked how far the group is. `more`: it has more entries than were believed to be unread; `left`: some
    /// were read and never finished.
    pub fn note_standing(&mut self, more: bool, left: bool) {
        if more {
            self.set_extent(Extent::ToTheEnd);
        }
        if left {
            self.recover();
        }
    }

    /// What was read and not finished comes again.
    pub fn recover(&mut self) {
        self.next = Next::Unfinished(self.extent());
    }

    /// What to read next, if it is time to read.
    pub fn next(&self, batch: u64) -> Option<Portion> {
        if self.refusal == Refusal::Waits {
            return None;
        }
        match self.next {
            Next::Unfinished(_) => Some(Portion::Recovery),
            Next::New(Extent::ToTheEnd) => Some(Portion::New(batch)),
            Next::New(Extent::FullBatches) => (self.unread >= batch).then_some(Portion::New(batch)),
        }
    }

    /// The server did not let it be read: nothing of what is known changes, and it is asked again after a while. True if that is
    /// new.
    pub fn note_refused(&mut self) -> bool {
        std::mem::replace(&mut self.refusal, Refusal::Waits) == Refusal::None
    }

    /// It is time to ask the server again.
    pub fn try_again(&mut self) {
        if self.refusal == Refusal::Waits {
            self.refusal = Refusal::TriesAgain;
        }
    }

    /// Entries were read: the time when the first one of them came.
    pub fn note_read(&mut self, portion: Portion, read: usize) -> Option<Instant> {
        self.refusal = Refusal::None;
        let Portion::New(batch) = portion else {
            self.next = Next::New(self.extent());
            return None;
        };
        let first = self.arrivals.front().copied();
        let read = read as u64;
        self.unread = self.unread.saturating_sub(read);
        if read < batch {
            // That was all there is.
            self.unread = 0;
            self.set_extent(Extent::FullBatches);
        }
        while self.arrivals.len() as u64 > self.unread {
            self.arrivals.pop_front();
        }
        // A burst takes no memory for ever.
        if self.arrivals.capacity() > FEW_ARRIVALS && self.arrivals.len() * 4 < self.arrivals.capacity() {
            self.arrivals
                .shrink_to((self.arrivals.len() * 2).max(FEW_ARRIVALS));
        }
        first
    }

    /// Gives an incomplete batch its time, counted from its first entry: how much of it is left. `None` if there is no such
    /// batch, or its time is running.
    pub fn start_timer(&mut self, time: Duration) -> Option<Duration> {
        if self.unread == 0 || std::mem::replace(&mut self.has_timer, true) {
            return None;
        }
        let came = self.arrivals.front().map_or(Duration::ZERO, Instant::elapsed);
        Some(time.saturating_sub(came))
    }

    /// The time of an incomplete batch is over: what has come is read.
    pub fn note_time_over(&mut self) {
        self.has_timer = false;
        if self.unread > 0 {
            self.set_extent(Extent::ToTheEnd);
        }
    }

    /// True if a job is to look at the stream; it counts as queued then.
    pub fn queue_sync(&mut self) -> bool {
        let free = self.sync_runs == SyncRuns::None;
        if free {
            self.sync_runs = SyncRuns::Queued;
        }
        free
    }

    /// A thread begins to run one `sync` execution after the other, or has ended.
    pub fn set_running_sync(&mut self, runs: bool) {
        self.sync_runs = if runs { SyncRuns::Running } else { SyncRuns::None };
    }

    /// True while the next `sync` execution comes by itself.
    pub fn is_running_sync(&self) -> bool {
        self.sync_runs == SyncRuns::Running
    }

    fn extent(&self) -> Extent {
        match self.next {
            Next::Unfinished(extent) | Next::New(extent) => extent,
        }
    }

    fn set_extent(&mut self, extent: Extent) {
        match &mut self.next {
            Next::Unfinished(known) | Next::New(known) => *known = extent,
        }
    }
}

/// What one execution has read.
#[derive(Default)]
pub struct Taken {
    pub ids: Vec<Vec<u8>>,
    /// It got as many new entries as it asked for: there may be more.
    pub full: bool,
    /// When the first entry came, if that was seen.
    pub arrived: Option<Instant>,
    /// The user of the registration may not read the stream: nothing was.
    pub forbidden: bool,
    /// The server did not let the stream be read.
    pub refused: bool,
}

#[cfg(test)]
mod tests;
