//! The batch side of the KeysReader: walks over database 0. Contract: `readers-and-events.md` 2.1 and 2.2.
//!
//! Runs on a worker and takes the server's lock for small portions, so that other clients are served meanwhile.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{glob, keys::key_record};
use crate::{
    engine::{
        execution::{Reading, Source},
        language::{Failure, with_lock},
        record::Record,
    },
    redis::{
        key::{self, Kind, Value, Walk},
        lock::Lock,
    },
};

/// How long the server's lock is held at most, but for one value.
const PORTION: Duration = Duration::from_micros(500);
/// How many records are read ahead at most.
const AHEAD: usize = 256;
/// Readers read database 0.
const DB: i32 = 0;

/// What `run` was asked for.
#[derive(Clone, Debug)]
pub struct Scan {
    /// A glob, or the name of the key if `exact`.
    pub pattern: Vec<u8>,
    pub exact: bool,
    /// Records have a type and a value.
    pub read_value: bool,
    /// Some step sees the records; if none does, values are not fetched.
    pub looked_at: bool,
}

/// The walk of one execution.
pub struct KeysScan {
    scan: Scan,
    /// `None` before the first portion and after the last one.
    walk: Option<Walk>,
    begun: bool,
    names: Vec<Vec<u8>>,
    ready: VecDeque<Record>,
}

impl KeysScan {
    pub fn new(scan: Scan) -> Self {
        Self {
            scan,
            walk: None,
            begun: false,
            names: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    fn read_portion(&mut self, lock: Lock<'_>) {
        if !self.begun {
            self.begun = true;
            if self.scan.exact {
                let (kind, value) = key::read(lock, DB, &self.scan.pattern);
                self.ready.push_back(self.record(&self.scan.pattern, kind, value));
                return;
            }
            self.walk = Some(Walk::new(DB));
        }
        let until = Instant::now() + PORTION;
        while self.ready.len() < AHEAD && Instant::now() < until {
            if self.names.is_empty() {
                let Some(walk) = &mut self.walk else { return };
                if !walk.step(lock, &mut self.names) {
                    self.walk = None;
                }
            }
            if let Some(name) = self.names.pop() {
                if glob::matches(&self.scan.pattern, &name) {
                    self.read_key(lock, &name);
                }
            }
        }
    }

    /// Appends the record of one key. A key that has expired or gone since is none.
    fn read_key(&mut self, lock: Lock<'_>, name: &[u8]) {
        let (kind, value) = if self.scan.read_value && self.scan.looked_at {
            key::read(lock, DB, name)
        } else {
            (key::kind(lock, DB, name), Value::None)
        };
        if kind != Kind::Empty {
            self.ready.push_back(self.record(name, kind, value));
        }
    }

    fn record(&self, name: &[u8], kind: Kind, value: Value) -> Record {
        let content = self.scan.read_value.then_some((kind, value));
        Record::Native(key_record(name.to_vec(), None, content))
    }
}

impl Source for KeysScan {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        while self.ready.is_empty() && (!self.begun || self.walk.is_some() || !self.names.is_empty()) {
            with_lock(reading.engine.language.as_ref(), |lock| self.read_portion(lock));
        }
        Ok(self.ready.pop_front())
    }
}
