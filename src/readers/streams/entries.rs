//! The batch side of the StreamReader: the entries of one stream. Contract:
//! docs/contract/readers-and-events.md 6.1 and 6.2.
//!
//! Runs on a worker and takes the server's lock for one portion of entries at a time.

use std::{borrow::Cow, collections::VecDeque, fmt};

use crate::{
    engine::{
        language::{Failure, with_lock},
        record::{Record, Value},
        source::{Reading, Source},
    },
    server::{call::call_for, call_reply::is_foreign, events::Mute, lock::Lock, reply::Reply},
};

/// How many entries are read at once.
const PORTION: &str = "200";
/// Readers read database 0.
const DB: i32 = 0;

/// The entries of one stream that are there when the first one is asked for.
pub struct StreamEntries {
    key: Vec<u8>,
    /// Entries up to this one are not delivered.
    after: Vec<u8>,
    /// The last entry to deliver.
    last: Option<EntryId>,
    begun: bool,
    ended: bool,
    ready: VecDeque<Record>,
}

/// `<ms>-<seq>`, in the order of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(pub u64, pub u64);

impl EntryId {
    /// Reads an id as the server writes it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (ms, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self(ms.parse().ok()?, sequence.parse().ok()?))
    }

    /// The lowest one above it.
    #[must_use]
    pub fn next(self) -> Self {
        match self.1.checked_add(1) {
            Some(sequence) => Self(self.0, sequence),
            None => Self(self.0.saturating_add(1), 0),
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// One entry as the server sends it: its id, and its fields with their values.
pub struct Entry {
    pub id: Vec<u8>,
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Reads `[id, [field, value, ...]]`; an entry that was deleted meanwhile has no fields.
    pub fn read(reply: Reply) -> Option<Self> {
        let Reply::Array(parts) = reply else { return None };
        let mut parts = parts.into_iter();
        let Some(Reply::Bulk(id) | Reply::Status(id)) = parts.next() else {
            return None;
        };
        let mut fields = Vec::new();
        if let Some(Reply::Array(words)) = parts.next() {
            let mut words = words.into_iter().filter_map(|word| match word {
                Reply::Bulk(text) => Some(text),
                _ => None,
            });
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                fields.push((name, value));
            }
        }
        Some(Self { id, fields })
    }

    /// `{'key': ..., 'id': ..., 'value': {...}}`. Of a field that occurs several times the last one wins.
    pub fn record(self, key: &[u8]) -> Record {
        let fields = self
            .fields
            .into_iter()
            .map(|(name, value)| (Cow::Owned(name), Value::Text(value)));
        let field = |name: &'static str, value| (Cow::Borrowed(name.as_bytes()), value);
        Record::Native(Value::Dict(vec![
            field("key", Value::Text(key.to_vec())),
            field("id", Value::Text(self.id)),
            field("value", Value::Dict(fields.collect())),
        ]))
    }
}

impl StreamEntries {
    pub fn new(key: Vec<u8>, after: Vec<u8>) -> Self {
        Self {
            key,
            after,
            last: None,
            begun: false,
            ended: false,
            ready: VecDeque::new(),
        }
    }

    fn read_portion(&mut self, reading: &Reading<'_>, lock: Lock<'_>) -> Result<(), Failure> {
        // A look at a missing stream is nobody's miss.
        let _mute = Mute::new();
        let run = |words: &[&[u8]]| {
            let argv: Vec<_> = words.iter().map(|word| word.to_vec()).collect();
            call_for(lock, reading.engine.features, DB, &argv, reading.actor)
        };
        if !self.begun {
            self.begun = true;
            // What is added while this runs belongs to the next run: a fast producer must not keep it from ending.
            let newest = run(&[b"XREVRANGE", &self.key, b"+", b"-", b"COUNT", b"1"]);
            self.last = entries(newest).pop().and_then(|entry| EntryId::parse(&entry.id));
        }
        let portion = PORTION.as_bytes();
        let reply = run(&[b"XREAD", b"COUNT", portion, b"STREAMS", &self.key, &self.after]);
        if is_foreign(&reply) {
            // Its shard delivers it.
            self.ended = true;
            return Ok(());
        }
        match entries_of_one(reply) {
            Ok(entries) => {
                self.take(entries);
                Ok(())
            }
            Err(text) => {
                self.ended = true;
                Err(String::from_utf8_lossy(&text).into_owned().into())
            }
        }
    }

    fn take(&mut self, entries: Vec<Entry>) {
        self.ended = entries.is_empty();
        for entry in entries {
            let id = EntryId::parse(&entry.id);
            if id > self.last {
                self.ended = true;
                return;
            }
            self.after.clone_from(&entry.id);
            self.ready.push_back(entry.record(&self.key));
        }
    }
}

/// The entries in a reply of XREAD or XREADGROUP about one stream; none where there was nothing to read.
///
/// # Errors
/// The text of an error reply.
pub fn entries_of_one(reply: Reply) -> Result<Vec<Entry>, Vec<u8>> {
    if let Reply::Error(text) = reply {
        return Err(text);
    }
    let stream = reply.into_items().pop().unwrap_or(Reply::Null);
    Ok(entries(stream.into_items().pop().unwrap_or(Reply::Null)))
}

/// The entries of a reply; none for anything else.
fn entries(reply: Reply) -> Vec<Entry> {
    match reply {
        Reply::Array(entries) => entries.into_iter().filter_map(Entry::read).collect(),
        _ => Vec::new(),
    }
}

impl Source for StreamEntries {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        while self.ready.is_empty() && !self.ended {
            let language = reading.engine.language.as_ref();
            with_lock(language, |lock| self.read_portion(reading, lock))?;
        }
        Ok(self.ready.pop_front())
    }

    fn buffered(&mut self) -> Option<Record> {
        self.ready.pop_front()
    }

    fn reads_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_as_in_the_stream() {
        assert!(EntryId::parse(b"9-10") > EntryId::parse(b"9-9"));
        assert!(EntryId::parse(b"10-0") > EntryId::parse(b"9-9"));
        assert_eq!(EntryId::parse(b"9"), None);
        assert_eq!(EntryId(7, u64::MAX).next().to_string(), "8-0");
    }

    #[test]
    fn an_entry_without_fields_is_read() {
        let entry = Entry::read(Reply::Array(vec![Reply::bulk("1-1"), Reply::Null]));
        assert!(entry.is_some_and(|entry| entry.fields.is_empty()));
        assert!(Entry::read(Reply::Null).is_none());
    }
}
