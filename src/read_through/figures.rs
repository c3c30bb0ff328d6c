//! What is counted of one registration beside the machine, and how all of it is shown.

use std::time::Duration;

use super::{
    ReadThrough,
    machine::{Counts, Rule, Time},
};
use crate::{
    hooks::Hot,
    server::{lock::Lock, reply::Reply},
    stats::Durations,
};

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

    /// A load was given up after so long: it says nothing of how long loads take that end.
    pub fn gave_up(&mut self, after: Duration) {
        self.times.record(after);
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
        let times = self.times.spread();
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
            ("loadP50US", number(times.p50_us)),
            ("loadP99US", number(times.p99_us)),
            ("loadMaxUS", number(times.max_us)),
        ]
    }
}

/// The counters of all registrations together.
#[derive(Clone, Default)]
pub struct Totals {
    hits: u64,
    plain: u64,
    negative_hits: u64,
    stale_hits: u64,
    not_stored: u64,
    queued: u64,
    counts: Counts,
}

impl Totals {
    /// A registration goes: what it has counted stays.
    pub fn keep(&mut self, hot: &Hot, rule: &Rule, figures: &Figures) {
        let queued = self.queued;
        self.add(hot, rule, figures);
        self.queued = queued;
        (self.counts.waiting, self.counts.loading) = (0, 0);
        hot.clear();
    }

    pub fn add(&mut self, hot: &Hot, rule: &Rule, figures: &Figures) {
        self.hits += hot.hits();
        self.plain += figures.plain;
        self.negative_hits += figures.negative_hits;
        self.stale_hits += figures.stale_hits;
        self.not_stored += figures.not_stored;
        self.queued += rule.queued() as u64;
        self.counts.add(&rule.counts);
    }

    /// As fields of INFO: plain numbers, `_total` for what only grows.
    pub fn shown(
        &self,
        registrations: usize,
        absent: usize,
        backoffs: usize,
        slices: u64,
        forgotten: u64,
    ) -> Vec<(&'static str, u64)> {
        let counts = &self.counts;
        vec![
            ("read_through_registrations", registrations as u64),
            ("read_through_hits_total", self.hits),
            ("read_through_misses_total", counts.misses),
            ("read_through_plain_misses_total", self.plain),
            ("read_through_loads_total", counts.batches),
            ("read_through_loaded_keys_total", counts.loads),
            ("read_through_load_failures_total", counts.load_failures),
            ("read_through_timeouts_total", counts.timeouts),
            ("read_through_refusals_total", counts.refusals),
            ("read_through_shared_loads_total", counts.shared),
            ("read_through_negative_hits_total", self.negative_hits),
            ("read_through_stale_hits_total", self.stale_hits),
            ("read_through_background_refreshes_total", counts.refreshes),
            ("read_through_dropped_by_lease_total", counts.dropped_by_lease),
            ("read_through_not_stored_total", self.not_stored),
            ("read_through_slices_total", slices),
            ("read_through_forgotten_entries_total", forgotten),
            ("read_through_waiting_clients", counts.waiting),
            ("read_through_loading", counts.loading),
            ("read_through_queued_keys", self.queued),
            ("read_through_absent_entries", absent as u64),
            ("read_through_backoff_entries", backoffs as u64),
        ]
    }
}

impl ReadThrough {
    /// The counters of all registrations together, for INFO.
    pub fn totals(&self, lock: Lock<'_>) -> Vec<(&'static str, u64)> {
        let state = self.state.read(lock);
        let mut totals = state.gone.clone();
        for (id, served) in state.served.iter() {
            if let Some(rule) = state.machine.rule(id) {
                totals.add(&served.hot, rule, &served.figures);
            }
        }
        totals.shown(
            state.served.len(),
            state.machine.absent_count(),
            state.machine.backoff_count(),
            state.pace.slices,
            state.machine.forgotten,
        )
    }
}
