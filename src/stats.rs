//! Counters and durations: of one registration (RG.DUMPREGISTRATIONS) and of the whole module (INFO).
//!
//! Contract: `readers-and-events.md` 11.2, `commands.md` 7.1. Updated on any thread.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

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

/// The counters of one registration.
#[derive(Default)]
pub struct RunStats(Mutex<RunCounts>);

impl RunStats {
    /// An execution is about to be started.
    pub fn triggered(&self) {
        self.0.lock().triggered += 1;
    }

    /// It ended after running for `duration`.
    pub fn ended(&self, ending: Ending, duration: Duration) {
        let mut counts = self.0.lock();
        counts.last = duration;
        counts.total += duration;
        match ending {
            Ending::Success => {
                counts.succeeded += 1;
                counts.last_error = None;
            }
            Ending::Failure(error) => {
                counts.failed += 1;
                counts.last_error = Some(error);
            }
            Ending::Aborted => counts.aborted += 1,
        }
    }

    pub fn snapshot(&self) -> RunCounts {
        self.0.lock().clone()
    }
}

/// Counters of the whole module.
#[derive(Default)]
pub struct ServerStats {
    /// Misses that were served unlinked because the client's user may not run the inner command.
    acl_unlinked: AtomicU64,
    /// Commands that were put behind an inner command.
    linked: AtomicU64,
}

impl ServerStats {
    pub fn count_acl_unlinked(&self) {
        self.acl_unlinked.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_linked(&self) {
        self.linked.fetch_add(1, Ordering::Relaxed);
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
}
