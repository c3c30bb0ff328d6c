//! What is counted of one registration beside its queue, and how all of it is shown.

use std::time::Duration;

use super::machine::{Counts, Queue, Time};
use crate::{
    server::{reply::Reply, snapshot::Snapshot},
    stats::Durations,
};

/// The counters of one registration.
#[derive(Default)]
pub struct Figures {
    /// Commands that waited for room.
    pub held: u64,
    /// Commands that were refused because there was none.
    pub refused: u64,
    times: Durations,
}

impl Figures {
    /// A call has ended well, or was given up after so long.
    pub fn ended(&mut self, took: Duration) {
        self.times.record(took);
    }

    /// All of them, names with units.
    pub fn shown(&self, queue: &Queue<Snapshot>, now: Time) -> Vec<(&'static str, Reply)> {
        let number = |number: u64| Reply::Int(i64::try_from(number).unwrap_or(i64::MAX));
        let counts = &queue.counts;
        let times = self.times.spread();
        vec![
            ("queued", number(queue.len() as u64)),
            ("queuedBytes", number(queue.bytes() as u64)),
            ("oldestMS", number(queue.age(now).as_millis() as u64)),
            ("captured", number(counts.captured)),
            ("saved", number(counts.saved)),
            ("coalesced", number(counts.coalesced)),
            ("retried", number(counts.retried)),
            ("dead", number(counts.dead)),
            ("batches", number(counts.batches)),
            ("saveFailures", number(counts.failures)),
            ("failuresInRow", number(queue.failures_in_a_row().into())),
            ("savingMS", number(queue.saving_for(now).as_millis() as u64)),
            ("waitedForRoom", number(self.held)),
            ("refusals", number(self.refused)),
            ("saveP50US", number(times.p50_us)),
            ("saveP99US", number(times.p99_us)),
            ("saveMaxUS", number(times.max_us)),
        ]
    }
}

/// The counters of all registrations together.
#[derive(Clone, Default)]
pub struct Totals {
    queued: u64,
    bytes: u64,
    oldest_ms: u64,
    held: u64,
    refused: u64,
    counts: Counts,
}

impl Totals {
    /// A registration goes, or another one goes on with its queue: what it has counted stays.
    pub fn keep(&mut self, queue: &mut Queue<Snapshot>, figures: &mut Figures) {
        let (counts, figures) = (std::mem::take(&mut queue.counts), std::mem::take(figures));
        self.held += figures.held;
        self.refused += figures.refused;
        self.counts.add(&counts);
    }

    pub fn add(&mut self, queue: &Queue<Snapshot>, figures: &Figures, now: Time) {
        self.queued += queue.len() as u64;
        self.bytes += queue.bytes() as u64;
        self.oldest_ms = self.oldest_ms.max(queue.age(now).as_millis() as u64);
        self.held += figures.held;
        self.refused += figures.refused;
        self.counts.add(&queue.counts);
    }

    /// As fields of INFO: plain numbers, `_total` for what only grows.
    pub fn shown(
        &self,
        saving: bool,
        registrations: usize,
        held: usize,
        waiting: usize,
        handed_on: u64,
    ) -> Vec<(&'static str, u64)> {
        let counts = &self.counts;
        vec![
            ("write_behind_saving", saving.into()),
            ("write_behind_registrations", registrations as u64),
            ("write_behind_queued", self.queued),
            ("write_behind_queued_bytes", self.bytes),
            ("write_behind_oldest_ms", self.oldest_ms),
            ("write_behind_captured_total", counts.captured),
            ("write_behind_saved_total", counts.saved),
            ("write_behind_coalesced_total", counts.coalesced),
            ("write_behind_retried_total", counts.retried),
            ("write_behind_dead_total", counts.dead),
            ("write_behind_batches_total", counts.batches),
            ("write_behind_save_failures_total", counts.failures),
            ("write_behind_waited_for_room_total", self.held),
            ("write_behind_refusals_total", self.refused),
            ("write_behind_handed_on_total", handed_on),
            ("write_behind_clients_waiting_for_room", held as u64),
            ("write_behind_clients_waiting_for_save", waiting as u64),
        ]
    }
}
