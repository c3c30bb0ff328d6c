//! RG.KEYINFO: what the registrations of `write_behind` know of one key. Under the server's lock; nothing is saved or counted.

use super::{
    Sink, State, WriteBehind,
    machine::{Doing, Time},
};
use crate::{
    read_through::{Facts, ms},
    server::{lock::Lock, reply::Reply},
};

impl WriteBehind {
    /// What is known of a key: an entry for each registration whose prefix it has.
    pub fn about(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> Vec<Facts> {
        let (state, now) = (self.state.read(lock), self.now());
        let mut all = Vec::new();
        for sink in state.sinks.iter().filter(|sink| sink.pattern.matches(name)) {
            let mut facts = vec![
                ("id", Reply::bulk(sink.owner.id.to_string())),
                ("prefix", Reply::bulk(&sink.options.prefix)),
                ("session", Reply::bulk(&sink.owner.session.id)),
                ("saves", Reply::bulk(self.saves_now(lock, sink))),
            ];
            facts.extend(sink.facts(&state, now, db, name));
            all.push(facts);
        }
        all
    }

    /// `yes`, or why nothing of a queue is saved.
    fn saves_now(&self, lock: Lock<'_>, sink: &Sink) -> &'static str {
        if !self.engine.is_serving() {
            "no: this is a replica"
        } else if self.is_off() {
            "no: WriteBehindSaving is off"
        } else if !sink.saves {
            "no: its functions are not loaded"
        } else if !lock.may_write() {
            "no: clients are paused"
        } else {
            "yes"
        }
    }
}

fn count(count: usize) -> Reply {
    Reply::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

impl Sink {
    fn facts(&self, state: &State, now: Time, db: i32, name: &[u8]) -> Facts {
        let waiting = state.waiting.values();
        let waiting = waiting.filter(|waits| waits.sinks & self.bit() != 0).count();
        let seen = self.queue.look_at(now, db, name, (&state.waiters, waiting));
        let given_up = self.queue.given_up(db, name);
        let oldest = seen.as_ref().map(|seen| seen.oldest);
        let doing = seen.as_ref().map(|seen| seen.doing);
        let saving = match doing {
            Some(Doing::IsSaved(time)) => Some(time),
            _ => None,
        };
        let of_key = oldest.and_then(|oldest| oldest.last_failure());
        let of_key = of_key.or_else(|| given_up.map(|given_up| &*given_up.why));
        let of_calls = || self.queue.last_failure().filter(|_| seen.is_some());
        let last_error = of_key.or_else(of_calls).map(|failed| failed.text.clone());
        let held = state.held.iter().filter(|held| held.waits_for(self, db, name));
        let newest = seen.as_ref().map(|seen| seen.newest);
        vec![
            (
                "state",
                Reply::bulk(match doing {
                    None => "nothing queued",
                    Some(Doing::Waits) => "waiting",
                    Some(Doing::IsSaved(_)) => "saving",
                    Some(Doing::ComesAgain) => "failed",
                }),
            ),
            ("queued", count(seen.as_ref().map_or(0, |seen| seen.count))),
            (
                "oldestId",
                Reply::bulk_or_null(oldest.map(|oldest| oldest.change.id.to_string())),
            ),
            (
                "oldestMS",
                oldest.map_or(Reply::Null, |oldest| ms(now.saturating_sub(oldest.since))),
            ),
            (
                "oldestEvent",
                Reply::bulk_or_null(oldest.map(|oldest| &*oldest.change.event)),
            ),
            (
                "newestId",
                Reply::bulk_or_null(newest.map(|newest| newest.id.to_string())),
            ),
            (
                "newestEvent",
                Reply::bulk_or_null(newest.map(|newest| &*newest.event)),
            ),
            ("savingMS", saving.map_or(Reply::Null, ms)),
            (
                "tries",
                Reply::Int(oldest.map_or(0, |oldest| oldest.tries.into())),
            ),
            (
                "nextTryMS",
                seen.as_ref()
                    .and_then(|seen| seen.earliest)
                    .map_or(Reply::Null, ms),
            ),
            (
                "givenUpId",
                Reply::bulk_or_null(given_up.map(|given_up| given_up.id.to_string())),
            ),
            ("lastError", Reply::bulk_or_null(last_error)),
            (
                "waitingForSave",
                count(seen.as_ref().map_or(0, |seen| seen.waiting)),
            ),
            ("waitingForRoom", count(held.count())),
        ]
    }
}
