//! What is known of a registration and of its streams: data and their rules, without any call of the server.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::group::Portion;

/// How many arrivals are remembered per stream, for the lag.
const MAX_ARRIVALS: usize = 10_000;

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
    pub status: Status,
    /// Changes when everything begins again; what an older execution says is no longer true then.
    pub epoch: u64,
    pub streams: HashMap<Vec<u8>, Stream>,
    pub last_lag: Duration,
    pub total_lag: Duration,
}

/// What is known of one stream.
#[derive(Default)]
pub struct Stream {
    /// Entries that an earlier life has read and not finished have come again.
    pub recovered: bool,
    /// Entries that are believed to be unread.
    pub unread: u64,
    /// Read to the end, also an incomplete batch.
    pub flush: bool,
    /// When the unread entries came, as far as that was seen.
    pub arrivals: VecDeque<Instant>,
    /// An incomplete batch has its time.
    pub timed: bool,
    /// A job of a `sync` registration will look.
    pub job: bool,
    /// A thread runs one `sync` execution after the other.
    pub looping: bool,
}

impl RegistrationStreams {
    /// What is known of a stream, from now on if nothing was.
    pub fn stream(&mut self, key: &[u8]) -> &mut Stream {
        self.streams.entry(key.to_vec()).or_default()
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
            stream.timed = false;
        }
        self.recover();
    }

    /// True if a job is to look at the stream; it counts as under way then.
    pub fn needs_job(&mut self, key: &[u8]) -> bool {
        !std::mem::replace(&mut self.stream(key).job, true)
    }

    /// All entries that were read and not finished come again.
    pub fn recover(&mut self) {
        for stream in self.streams.values_mut() {
            stream.recovered = false;
        }
    }
}

impl Stream {
    /// An entry was added.
    pub fn note_added(&mut self) {
        self.unread += 1;
        if self.arrivals.len() < MAX_ARRIVALS {
            self.arrivals.push_back(Instant::now());
        }
    }

    /// A scan has found the stream with that many entries. Those that came before anybody looked are read at once,
    /// also as an incomplete batch; those that were seen coming wait for their batch to be full.
    pub fn note_found(&mut self, held: u64) {
        if held > self.unread {
            self.flush = true;
            self.unread = held;
        }
    }

    /// The position had to be made: the stream holds that many entries, and all of them are new.
    pub fn note_made(&mut self, held: u64) {
        self.note_found(held);
        self.unread = held;
    }

    /// What to read next, if it is time to read.
    pub fn next(&self, batch: u64) -> Option<Portion> {
        if !self.recovered {
            return Some(Portion::Recovery);
        }
        (self.flush || self.unread >= batch).then_some(Portion::New(batch))
    }

    /// Entries were read: the time when the first one of them came.
    pub fn note_read(&mut self, portion: Portion, read: usize) -> Option<Instant> {
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
pub struct Taken {
    pub ids: Vec<Vec<u8>>,
    /// It got as many new entries as it asked for: there may be more.
    pub full: bool,
    /// When the first entry came, if that was seen.
    pub arrived: Option<Instant>,
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
    }

    #[test]
    fn a_position_that_had_to_be_made_begins_anew() {
        let mut stream = Stream::default();
        stream.note_added();
        stream.note_made(1);
        assert_eq!((stream.unread, stream.flush), (1, false));
        stream.note_made(6);
        assert_eq!((stream.unread, stream.flush), (6, true));
    }

    #[test]
    fn a_scan_leaves_a_batch_that_fills_alone() {
        let mut stream = Stream::default();
        stream.note_added();
        stream.note_found(1);
        assert!(!stream.flush);
        stream.note_found(2);
        assert_eq!((stream.unread, stream.flush), (2, true));
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
