//! What is counted of one registration beside the machine, and how all of it is shown.

use std::time::Duration;

use super::{machine::Time, rule::Rule};
use crate::{hooks::Hot, redis::reply::Reply, stats::Durations};

/// How much the newest load time weighs in the mean.
const WEIGHT: f64 = 0.1;

/// The counters of one registration.
#[derive(Default)]
pub struct Figures {
    /// Commands that missed a key where nobody can wait.
    pub plain: u64,
    pub negative_hits: u64,
    pub stale_hits: u64,
    /// Stores that the memory limit forbade.
    pub not_stored: u64,
    times: Durations,
    mean_load_s: f64,
}

impl Figures {
    /// A load has ended well.
    pub fn loaded(&mut self, took: Duration) {
        self.times.record(took);
        let took = took.as_secs_f64();
        self.mean_load_s = if self.mean_load_s == 0.0 {
            took
        } else {
            self.mean_load_s + (took - self.mean_load_s) * WEIGHT
        };
    }

    pub fn mean_load_s(&self) -> f64 {
        self.mean_load_s
    }

    /// Forgets all but how long a load takes, which decides when values are loaded anew.
    pub fn clear(&mut self) {
        *self = Self {
            mean_load_s: self.mean_load_s,
            ..Self::default()
        };
    }

    /// All of them, names with units.
    pub fn shown(&self, hot: &Hot, rule: &Rule, now: Time) -> Vec<(&'static str, Reply)> {
        let number = |number: u64| Reply::Int(i64::try_from(number).unwrap_or(i64::MAX));
        let counts = &rule.counts;
        let spread = self.times.spread();
        vec![
            ("hits", number(hot.hits())),
            ("misses", number(counts.misses)),
            ("plainMisses", number(self.plain)),
            ("loads", number(counts.batches)),
            ("loadedKeys", number(counts.loads)),
            ("loadFailures", number(counts.load_failures)),
            ("timeouts", number(counts.timeouts)),
            ("refusals", number(counts.refusals)),
            ("sharedLoads", number(counts.shared)),
            ("negativeHits", number(self.negative_hits)),
            ("staleHits", number(self.stale_hits)),
            ("backgroundRefreshes", number(counts.refreshes)),
            ("droppedByLease", number(counts.dropped_by_lease)),
            ("notStored", number(self.not_stored)),
            ("waiting", number(counts.waiting)),
            ("loading", number(counts.loading)),
            ("queued", number(rule.queued() as u64)),
            ("breaker", Reply::bulk(rule.breaker.state(now))),
            ("loadP50US", number(spread.p50_us)),
            ("loadP99US", number(spread.p99_us)),
            ("loadMaxUS", number(spread.max_us)),
        ]
    }
}
