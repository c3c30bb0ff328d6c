//! Counters and durations: of one registration (RG.DUMPREGISTRATIONS) and of the whole module (INFO).
//!
//! Contract: docs/contract/readers-and-events.md 11.2, docs/contract/commands.md 7.1. Updated on any thread.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::mutex::Mutex;
use hdrhistogram::Histogram;

/// How an execution ended, for the counters: exactly one of them goes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Success,
    /// With the first error.
    Failure(String),
    Aborted,
}

/// What is known of a registration's executions so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunCounts {
    pub triggered: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub aborted: u64,
    pub last: Duration,
    pub total: Duration,
    pub last_error: Option<String>,
}

impl RunCounts {
    /// Mean duration of the finished executions in milliseconds, 0 if none.
    pub fn average_ms(&self) -> f64 {
        match self.succeeded + self.failed + self.aborted {
            0 => 0.0,
            finished => self.total.as_millis() as f64 / finished as f64,
        }
    }
}

/// How long something took: microseconds, exact to one per cent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_field_names)] // the unit
pub struct Percentiles {
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// Longer durations count as that long: a day.
const LONGEST_US: u64 = 24 * 3600 * 1_000_000;

/// The distribution behind a [`Percentiles`]; takes no memory before the first value.
#[derive(Default)]
pub struct Durations {
    /// How many took so many microseconds, where that is less than [`SHORT`]; added to the histogram when somebody looks.
    short: Box<[u32]>,
    histogram: Option<Histogram<u64>>,
}

/// A hundred or so is what most functions take at most.
const SHORT: usize = 128;

impl Durations {
    #[inline]
    pub fn record(&mut self, duration: Duration) {
        if duration.as_secs() == 0 {
            if let Some(count) = self.short.get_mut(duration.subsec_micros() as usize) {
                if let Some(more) = count.checked_add(1) {
                    *count = more;
                    return;
                }
            }
        }
        self.record_in_histogram(duration);
    }

    #[cold]
    fn record_in_histogram(&mut self, duration: Duration) {
        if self.histogram.is_none() {
            // Valid bounds and a valid precision; without a histogram nothing is recorded.
            self.histogram = Histogram::new_with_bounds(1, LONGEST_US, 2).ok();
            self.short = vec![0; SHORT].into();
        }
        if let Some(histogram) = &mut self.histogram {
            histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        }
    }

    pub fn spread(&self) -> Percentiles {
        let Some(mut histogram) = self.histogram.clone() else {
            return Percentiles::default();
        };
        for (us, count) in (0..).zip(&self.short) {
            histogram.saturating_record_n(us, u64::from(*count));
        }
        Percentiles {
            p50_us: histogram.value_at_quantile(0.5),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

/// The counters of one registration.
#[derive(Default)]
pub struct RunStats {
    state: Mutex<Counters>,
    triggered: AtomicU64,
    /// Executions that no thread has begun yet.
    pending: AtomicU64,
    /// The last second in which a dropped event was logged.
    logged_second: AtomicU64,
    /// The last second in which a failure was logged.
    failure_second: AtomicU64,
    /// Failures that were not logged since.
    unlogged_failures: AtomicU64,
}

#[derive(Default)]
struct Counters {
    counts: RunCounts,
    running: Durations,
    waiting: Durations,
}

impl Counters {
    #[inline]
    fn ended(&mut self, duration: Duration) {
        self.running.record(duration);
        self.counts.last = duration;
        self.counts.total += duration;
    }

    #[inline]
    fn succeeded(&mut self, duration: Duration) {
        self.ended(duration);
        self.counts.succeeded += 1;
        self.counts.last_error = None;
    }
}

impl RunStats {
    /// An execution is about to be started.
    pub fn triggered(&self) {
        self.triggered.fetch_add(1, Ordering::Relaxed);
    }

    /// An execution stands in the queue.
    pub fn queued(&self) {
        self.pending.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread has begun one that stood in the queue for `waited`, or it was aborted.
    pub fn taken(&self, waited: Duration) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        self.state.lock().waiting.record(waited);
    }

    /// Executions that no thread has begun yet.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// An event was dropped because too many are pending. True if that is to be logged: once per second.
    pub fn dropped(&self, now: Duration) -> bool {
        self.triggered();
        self.state.lock().counts.aborted += 1;
        // 0 stands for "never".
        let second = now.as_secs() + 1;
        self.logged_second.swap(second, Ordering::Relaxed) != second
    }

    /// An execution failed. How many did since the last line about that, if one is to be logged: once per second.
    pub fn failures_to_log(&self, now: Duration) -> Option<u64> {
        self.unlogged_failures.fetch_add(1, Ordering::Relaxed);
        // 0 stands for "never".
        let second = now.as_secs() + 1;
        let is_due = self.failure_second.swap(second, Ordering::Relaxed) != second;
        is_due.then(|| self.unlogged_failures.swap(0, Ordering::Relaxed))
    }

    /// What was to prepare the functions failed, or what is to follow from an end of theirs: this is told until one of them ends.
    pub fn in_trouble(&self, error: String) {
        self.state.lock().counts.last_error = Some(error);
    }

    /// An execution ended well after running for `duration`.
    #[inline]
    pub fn succeeded(&self, duration: Duration) {
        self.state.lock().succeeded(duration);
    }

    /// An execution ended after running for `duration`.
    pub fn ended(&self, ending: Ending, duration: Duration) {
        let mut state = self.state.lock();
        match ending {
            Ending::Success => state.succeeded(duration),
            Ending::Failure(error) => {
                state.ended(duration);
                state.counts.failed += 1;
                state.counts.last_error = Some(error);
            }
            Ending::Aborted => {
                state.ended(duration);
                state.counts.aborted += 1;
            }
        }
    }

    pub fn snapshot(&self) -> RunCounts {
        let counts = self.state.lock().counts.clone();
        RunCounts {
            triggered: self.triggered.load(Ordering::Relaxed),
            ..counts
        }
    }

    /// How long executions ran, and how long they waited in the queue before.
    pub fn spreads(&self) -> (Percentiles, Percentiles) {
        let state = self.state.lock();
        (state.running.spread(), state.waiting.spread())
    }

    /// Forgets everything but the executions that are under way.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        let counts = &state.counts;
        let ended = counts.succeeded + counts.failed + counts.aborted;
        *state = Counters::default();
        // Others may be triggered in this moment.
        self.triggered.fetch_sub(
            ended.min(self.triggered.load(Ordering::Relaxed)),
            Ordering::Relaxed,
        );
    }
}

/// Counters of the whole module.
#[derive(Default)]
pub struct ServerStats {
    /// Misses that were served unlinked because the client's user may not run the proxy command.
    acl_unlinked: AtomicU64,
    /// Commands that were put behind a proxy command.
    linked: AtomicU64,
    /// Commands in whose place a function ran.
    hooked: AtomicU64,
}

impl ServerStats {
    pub fn count_acl_unlinked(&self) {
        self.acl_unlinked.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_linked(&self) {
        self.linked.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_hooked(&self) {
        self.hooked.fetch_add(1, Ordering::Relaxed);
    }

    pub fn hooked(&self) -> u64 {
        self.hooked.load(Ordering::Relaxed)
    }

    pub fn acl_unlinked(&self) -> u64 {
        self.acl_unlinked.load(Ordering::Relaxed)
    }

    pub fn linked(&self) -> u64 {
        self.linked.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_counts_once() {
        let stats = RunStats::default();
        for ending in [Ending::Failure("e".into()), Ending::Aborted, Ending::Success] {
            stats.triggered();
            stats.ended(ending.clone(), Duration::from_millis(3));
            let error = stats.snapshot().last_error;
            assert_eq!(
                error.is_some(),
                ending != Ending::Success,
                "an abort leaves the last error"
            );
        }
        let counts = stats.snapshot();
        assert_eq!(
            (counts.triggered, counts.succeeded, counts.failed, counts.aborted),
            (3, 1, 1, 1)
        );
        assert!((counts.average_ms() - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn clearing_keeps_what_is_under_way() {
        let stats = RunStats::default();
        stats.triggered();
        stats.triggered();
        stats.ended(Ending::Success, Duration::from_millis(25));
        assert_eq!(stats.spreads().0.max_us / 1000, 25);
        stats.clear();
        let counts = stats.snapshot();
        assert_eq!((counts.triggered, counts.succeeded), (1, 0));
        assert_eq!(stats.spreads().0, Percentiles::default());
    }

    #[test]
    fn dropped_events_are_logged_once_per_second() {
        let stats = RunStats::default();
        let at = |ms| stats.dropped(Duration::from_millis(ms));
        assert_eq!([at(0), at(900), at(6000)], [true, false, true]);
        assert_eq!(stats.snapshot().aborted, 3);
    }

    #[test]
    fn short_durations_count_as_others_do() {
        let (mut durations, mut all) = (
            Durations::default(),
            Histogram::<u64>::new_with_bounds(1, LONGEST_US, 2).unwrap_or_else(|error| panic!("{error:?}")),
        );
        for us in (0..400).chain([5_000, 3_000_000]) {
            durations.record(Duration::from_micros(us));
            all.saturating_record(us);
        }
        let expected = Percentiles {
            p50_us: all.value_at_quantile(0.5),
            p99_us: all.value_at_quantile(0.99),
            max_us: all.max(),
        };
        assert_eq!(durations.spread(), expected);
    }
}
