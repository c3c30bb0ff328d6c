//! What a script says about a registration: the arguments of `write_behind`, as data that travels to files and replicas.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::Limits;
use crate::{
    engine::prefix::Pattern,
    read_through::options::seconds,
    server::{events::Changes, reply::Reply},
};

/// What happens to a writing command while the queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    #[default]
    Wait,
    Error,
}

/// Which changes are saved in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ordered {
    #[default]
    Key,
    All,
}

/// All of them. Durations in seconds, as given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    pub prefix: String,
    /// Names of events in lower case; `None`: all that change a value, but for what a cache forgets.
    pub events: Option<Vec<String>>,
    pub batch: u64,
    pub interval: f64,
    pub coalesce: bool,
    pub backoff: f64,
    pub max_backoff: f64,
    pub max_tries: Option<u32>,
    pub dead_letter: Option<String>,
    pub max_queue: u64,
    pub max_queue_bytes: u64,
    pub on_full: OnFull,
    /// How long a client waits for room; `None`: until there is some.
    pub full_timeout: Option<f64>,
    pub wait: bool,
    pub timeout: f64,
    pub ordered: Ordered,
    /// `None`: as long as WriteBehindMaxSaveTime says.
    pub max_save_time: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: "*".into(),
            events: None,
            batch: 100,
            interval: 0.0,
            coalesce: true,
            backoff: 0.1,
            max_backoff: 30.0,
            max_tries: None,
            dead_letter: None,
            max_queue: 1_000_000,
            max_queue_bytes: 256 << 20,
            on_full: OnFull::Wait,
            full_timeout: None,
            wait: false,
            timeout: 5.0,
            ordered: Ordered::Key,
            max_save_time: None,
        }
    }
}

/// What a cache does by itself, or what leaves a value as it is.
const NO_CHANGES: [&[u8]; 11] = [
    b"expire",
    b"expired",
    b"evicted",
    b"persist",
    b"hexpire",
    b"hexpired",
    b"hpersist",
    b"keymiss",
    b"new",
    b"overwritten",
    b"type_changed",
];

/// Calls that take less time than that gather changes meanwhile: each costs two changes of thread.
const PACE: Duration = Duration::from_millis(2);

/// Whether a key that is not there behind this event was taken away, and not forgotten by the cache. Modules may report any name.
pub fn removes(event: &[u8]) -> bool {
    let takes_away = matches!(event, b"del" | b"rename_from" | b"move_from");
    takes_away || matches!(event, b"expired" | b"evicted") || !is_of_values(event)
}

/// One of the server's own events of a value that is there.
fn is_of_values(event: &[u8]) -> bool {
    super::event_names::usual_name(event).is_some()
}

impl Options {
    pub fn pattern(&self) -> Pattern {
        Pattern::new(self.prefix.as_bytes())
    }

    /// Whether changes by this event are captured. `is_usual`: it is known to be one that changes a value.
    pub fn wants(&self, event: &[u8], is_usual: bool) -> bool {
        match &self.events {
            None => is_usual || !NO_CHANGES.contains(&event),
            Some(events) => events.iter().any(|name| name.as_bytes() == event),
        }
    }

    /// Whether whoever hears of a write could make the change of it himself, and only the newest one of a key matters.
    pub fn may_come_late(&self) -> bool {
        self.events.is_none() && self.coalesce && self.ordered == Ordered::Key
    }

    /// Whether keys that are deleted without being there are of interest.
    pub fn wants_removals(&self) -> bool {
        self.wants(b"del", true)
    }

    /// The classes of notifications that are needed.
    pub fn changes(&self) -> Changes {
        match &self.events {
            // Before the cache forgets a key whatever waits is handed on.
            None => Changes::ALL,
            Some(events) => {
                let named = events.iter().map(|name| Changes::of_event(name));
                // The server tells by `hexpired` why a hash is deleted.
                let why = self.wants_removals().then(|| Changes::of_event("hset"));
                named.chain(why).fold(Changes::NONE, Changes::and)
            }
        }
    }

    /// What the machine goes by. `max_save_time`: of a call, where the script does not say.
    pub fn limits(&self, max_save_time: Duration) -> Limits {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Limits {
            batch: count(self.batch).max(1),
            interval: seconds(self.interval),
            coalesce: self.coalesce,
            backoff: seconds(self.backoff),
            max_backoff: seconds(self.max_backoff),
            max_tries: self.max_tries,
            has_dead_letters: self.dead_letter.is_some(),
            max_entries: count(self.max_queue),
            max_bytes: count(self.max_queue_bytes),
            ordered: self.ordered == Ordered::All,
            max_save_time: self.max_save_time.map_or(max_save_time, seconds),
            pace: if self.wait { Duration::ZERO } else { PACE },
        }
    }

    /// As RG.DUMPREGISTRATIONS shows them.
    pub fn shown(&self) -> Vec<(&'static str, Reply)> {
        let number = |number: u64| Reply::Int(i64::try_from(number).unwrap_or(i64::MAX));
        let time = |seconds: f64| Reply::bulk(seconds.to_string());
        let flag = |flag: bool| Reply::Int(i64::from(flag));
        vec![
            ("prefix", Reply::bulk(&self.prefix)),
            ("events", self.events.as_ref().map_or(Reply::Null, Reply::bulks)),
            ("batch", number(self.batch)),
            ("interval", time(self.interval)),
            ("coalesce", flag(self.coalesce)),
            ("backoff", time(self.backoff)),
            ("max_backoff", time(self.max_backoff)),
            (
                "max_tries",
                self.max_tries.map_or(Reply::Null, |tries| number(tries.into())),
            ),
            ("dead_letter", Reply::bulk_or_null(self.dead_letter.as_ref())),
            ("max_queue", number(self.max_queue)),
            ("max_queue_bytes", number(self.max_queue_bytes)),
            (
                "on_full",
                Reply::bulk(match self.on_full {
                    OnFull::Wait => "wait",
                    OnFull::Error => "error",
                }),
            ),
            ("full_timeout", self.full_timeout.map_or(Reply::Null, time)),
            ("wait", flag(self.wait)),
            ("timeout", time(self.timeout)),
            (
                "ordered",
                Reply::bulk(match self.ordered {
                    Ordered::Key => "key",
                    Ordered::All => "all",
                }),
            ),
            ("max_save_time", self.max_save_time.map_or(Reply::Null, time)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_behind::event_names::usual_name;

    #[test]
    fn usual_names_are_of_changes() {
        for event in NO_CHANGES {
            assert_eq!(usual_name(event), None);
            assert!(!Options::default().wants(event, false));
        }
        assert!(Options::default().wants(b"set", usual_name(b"set").is_some()));
    }
}
