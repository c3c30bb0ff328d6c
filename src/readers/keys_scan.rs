//! The batch side of the KeysReader and the KeysOnlyReader: walks over database 0. Contract:
//! docs/contract/readers-and-events.md 2.1, 2.2 and chapter 3.
//!
//! Runs on a worker and takes the server's lock for small portions, so that other clients are served meanwhile.

use std::{
    collections::VecDeque,
    mem, thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{glob, keys_event::key_record};
use crate::{
    engine::{
        language::{Failure, with_lock},
        record::{self, Record},
        source::{Reading, Source},
    },
    error::Error,
    server::{
        key::{self, Kind},
        lock::Lock,
        rights::Actor,
        walk::{self, Found, Walk},
    },
};

/// How long the server's lock is held at most, but for one value.
const PORTION: Duration = Duration::from_micros(300);
/// How long the lock is left alone at least between two portions: a thread that lets it go and takes it again at once
/// would keep the server's thread from getting it.
const PAUSE: Duration = Duration::from_micros(100);
/// How many bytes are read ahead at most, but for one value.
const AHEAD_BYTES: usize = 1 << 20;
/// How many records are read ahead at most.
const AHEAD: usize = 1000;
/// Readers read database 0.
const DB: i32 = 0;

/// What the records of a walk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Nothing: no step looks at them.
    Unseen,
    /// The name of the key.
    Name,
    /// A dictionary without type and value.
    Key,
    /// A dictionary with type and value.
    KeyAndValue,
}

/// What `run` was asked for.
#[derive(Clone, Debug)]
pub struct Scan {
    /// A glob, or the name of the key if `exact`.
    pub pattern: Vec<u8>,
    pub exact: bool,
    pub content: Content,
    /// How many records are read ahead at most; `None` for the usual number.
    pub ahead: Option<usize>,
}

/// The walk of one execution.
pub struct KeysScan {
    scan: Scan,
    everything: bool,
    /// `None` before the first portion and after the last one.
    walk: Option<Walk>,
    begun: bool,
    released: Option<Instant>,
    ready: VecDeque<Record>,
    /// Records without content that are still to be given.
    unseen: u64,
    /// Why the walk has ended early: the execution's user may not read a key.
    refused: Option<Failure>,
}

impl KeysScan {
    pub fn new(scan: Scan) -> Self {
        Self {
            everything: scan.pattern == b"*",
            scan,
            walk: None,
            begun: false,
            released: None,
            ready: VecDeque::new(),
            unseen: 0,
            refused: None,
        }
    }

    fn read_portion(&mut self, lock: Lock<'_>, actor: Option<&Actor>) {
        if let Err(refusal) = self.read_allowed(lock, actor) {
            self.walk = None;
            self.refused = Some(refusal.into());
        }
    }

    /// # Errors
    /// The user may not read what comes next.
    fn read_allowed(&mut self, lock: Lock<'_>, actor: Option<&Actor>) -> Result<(), Error> {
        if !mem::replace(&mut self.begun, true) {
            if self.scan.exact {
                check_exactly(lock, &self.scan, actor)?;
                self.ready.extend(read_exactly(lock, &self.scan));
                return Ok(());
            }
            // Names of keys are what SCAN shows.
            actor.map_or(Ok(()), |actor| actor.check_command(lock, &[&b"SCAN"[..], b"0"]))?;
            if self.everything && self.scan.content == Content::Unseen {
                if let Some(count) = walk::count_of_lasting(lock, DB) {
                    self.unseen = count;
                    return Ok(());
                }
            }
            self.walk = Some(Walk::new(DB));
        }
        let ahead = self.scan.ahead.unwrap_or(AHEAD).max(1);
        let until = Instant::now() + PORTION;
        let mut size = 0;
        let mut steps = 0_u32;
        let mut allowed = Ok(());
        while let Some(walk) = &mut self.walk {
            let more = walk.step(lock, &mut |found| {
                if self.everything || glob::matches(&self.scan.pattern, found.name) {
                    if let (Some(actor), Content::KeyAndValue) = (actor, self.scan.content) {
                        if allowed.is_ok() {
                            allowed = actor.check_read(lock, found.name, found.kind());
                        }
                        if allowed.is_err() {
                            return;
                        }
                    }
                    let (record, bytes) = read(found, self.scan.content);
                    size += bytes;
                    self.ready.push_back(record);
                }
            });
            if !more {
                self.walk = None;
            }
            mem::replace(&mut allowed, Ok(()))?;
            steps += 1;
            // Records that nobody sees take no room; asking for the time takes longer than a step over an empty place.
            let is_full = self.scan.content != Content::Unseen && self.ready.len() >= ahead;
            if is_full || size >= AHEAD_BYTES || (steps.is_multiple_of(8) && Instant::now() >= until) {
                break;
            }
        }
        Ok(())
    }

    /// How long the lock is still to be left alone.
    fn rest(&self) -> Option<Duration> {
        PAUSE.checked_sub(self.released?.elapsed())
    }
}

/// The record of a key, and about how many bytes it takes.
fn read(found: &Found<'_>, content: Content) -> (Record, usize) {
    match content {
        Content::Unseen => (Record::Native(record::Value::None), 0),
        Content::Name => (Record::text(found.name), found.name.len()),
        Content::Key => (
            Record::Native(key_record(found.name.to_vec(), None, None)),
            found.name.len(),
        ),
        Content::KeyAndValue => {
            let (kind, value) = found.read();
            let size = found.name.len() + value.size();
            let record = key_record(found.name.to_vec(), None, Some((kind, value)));
            (Record::Native(record), size)
        }
    }
}

/// # Errors
/// The user may not read the one key.
fn check_exactly(lock: Lock<'_>, scan: &Scan, actor: Option<&Actor>) -> Result<(), Error> {
    let Some(actor) = actor else { return Ok(()) };
    let kind = match scan.content {
        Content::KeyAndValue => key::kind(lock, DB, &scan.pattern),
        _ => Kind::Empty,
    };
    actor.check_read(lock, &scan.pattern, kind)
}

/// One key by its name: the KeysReader shows a missing one as `empty`, the KeysOnlyReader not at all.
fn read_exactly(lock: Lock<'_>, scan: &Scan) -> Option<Record> {
    let name = scan.pattern.clone();
    let record = match scan.content {
        Content::Name => {
            return (key::kind(lock, DB, &name) != Kind::Empty).then(|| Record::text(name));
        }
        Content::Unseen => record::Value::None,
        Content::Key => key_record(name, None, None),
        Content::KeyAndValue => {
            let content = key::read(lock, DB, &name);
            key_record(name, None, Some(content))
        }
    };
    Some(Record::Native(record))
}

impl Source for KeysScan {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        while self.ready.is_empty() && self.unseen == 0 && (!self.begun || self.walk.is_some()) {
            let language = reading.engine.language.as_ref();
            if let Some(rest) = self.rest() {
                language.detached(&mut || thread::sleep(rest));
            }
            with_lock(language, |lock| {
                self.read_portion(lock, reading.actor.map(AsRef::as_ref));
            });
            self.released = Some(Instant::now());
        }
        match self.buffered() {
            None => self.refused.take().map_or(Ok(None), Err),
            record => Ok(record),
        }
    }

    fn buffered(&mut self) -> Option<Record> {
        if self.unseen > 0 {
            self.unseen -= 1;
            return Some(Record::Native(record::Value::None));
        }
        self.ready.pop_front()
    }

    fn reads_keys(&self) -> bool {
        true
    }
}
