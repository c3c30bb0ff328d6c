//! One event of a key that a registration waits for: the record that is made of it, and whether its user may see it. Contract:
//! docs/contract/readers-and-events.md 2.1.
//!
//! Noted under the server's lock; the record is made there for a `sync` function, for others when a worker asks for it.

use std::{borrow::Cow, sync::Arc};

use crate::{
    engine::{
        language::{Failure, with_lock},
        linked_command::LinkedCommand,
        record::{self, Record},
        source::{Reading, Source},
    },
    server::{
        events::KeyEvent,
        key::{self, Kind, Value},
        lock::Lock,
        rights::Actor,
    },
};

pub(super) const KEY_MISS: &str = "keymiss";

/// One event that matched.
pub(super) struct Occurred {
    db: i32,
    key: Vec<u8>,
    event: Cow<'static, str>,
    read_value: bool,
}

impl Occurred {
    /// `read_value`: the record has a type and a value.
    pub(super) fn new(event: &KeyEvent<'_>, read_value: bool) -> Self {
        Self {
            db: event.db,
            key: event.key.to_vec(),
            event: event_name(event.name),
            read_value,
        }
    }

    /// Whether a user may see the record.
    ///
    /// # Errors
    /// He may not read the key.
    pub(super) fn check(&self, lock: Lock<'_>, actor: Option<&Actor>) -> Result<(), Failure> {
        let Some(actor) = actor else { return Ok(()) };
        let kind = if self.read_value {
            key::kind(lock, self.db, &self.key)
        } else {
            Kind::Empty
        };
        Ok(actor.check_read(lock, &self.key, kind)?)
    }

    /// The record, with the key as it is now if `lock` is given and it must be looked at. A missed key is not there:
    /// it is looked at only if something may have stored it since.
    pub(super) fn record(self, lock: Option<Lock<'_>>) -> Record {
        let content = match lock {
            _ if !self.read_value => None,
            _ if self.event == KEY_MISS => return Record::Native(record::Value::Missed(self.key)),
            Some(lock) => Some(key::read(lock, self.db, &self.key)),
            None => Some((Kind::Empty, Value::None)),
        };
        Record::Native(key_record(self.key, Some(self.event), content))
    }

    fn record_as_wanted(self, lock: Lock<'_>, delayed: bool) -> Record {
        if !self.read_value || (self.event == KEY_MISS && !delayed) {
            return self.record(None);
        }
        self.record_looked_at(lock)
    }

    fn record_looked_at(self, lock: Lock<'_>) -> Record {
        let content = key::read(lock, self.db, &self.key);
        Record::Native(key_record(self.key, Some(self.event), Some(content)))
    }
}

/// Makes the record when a worker asks for it.
pub(super) struct Pending {
    occurred: Option<Occurred>,
    coalesced: Option<Arc<LinkedCommand>>,
}

impl Pending {
    /// `coalesced`: the link of a client whose command is run again if the key is there by then.
    pub(super) fn new(occurred: Occurred, coalesced: Option<Arc<LinkedCommand>>) -> Self {
        Self {
            occurred: Some(occurred),
            coalesced,
        }
    }
}

impl Source for Pending {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        let Some(occurred) = self.occurred.take() else {
            return Ok(None);
        };
        if let Some(link) = self.coalesced.take().filter(|_| reading.delayed) {
            let language = reading.engine.language.as_ref();
            let there = with_lock(language, |lock| {
                key::kind(lock, occurred.db, &occurred.key) != Kind::Empty
            });
            if there {
                link.run_again();
                return Ok(None);
            }
        }
        if let Some(actor) = reading.actor {
            let language = reading.engine.language.as_ref();
            return with_lock(language, |lock| {
                occurred.check(lock, Some(actor))?;
                Ok(Some(occurred.record_as_wanted(lock, reading.delayed)))
            });
        }
        let still_missing = occurred.event == KEY_MISS && !reading.delayed;
        if !occurred.read_value || still_missing {
            return Ok(Some(occurred.record(None)));
        }
        let language = reading.engine.language.as_ref();
        Ok(Some(with_lock(language, |lock| occurred.record_looked_at(lock))))
    }

    fn is_at_hand(&self, reading: &Reading<'_>) -> bool {
        let coalesces = self.coalesced.is_some() && reading.delayed;
        let looks =
            |occurred: &Occurred| occurred.read_value && (occurred.event != KEY_MISS || reading.delayed);
        !coalesces && reading.actor.is_none() && !self.occurred.as_ref().is_some_and(looks)
    }

    fn is_at_end(&self) -> bool {
        self.occurred.is_none()
    }

    fn is_single(&self) -> bool {
        true
    }
}

/// Most registrations are about misses: their name needs no allocation.
fn event_name(name: &[u8]) -> Cow<'static, str> {
    if name == KEY_MISS.as_bytes() {
        Cow::Borrowed(KEY_MISS)
    } else {
        Cow::Owned(String::from_utf8_lossy(name).into_owned())
    }
}

/// The record of a key (docs/contract/readers-and-events.md 2.1). Without `content` it has neither type nor value.
pub(super) fn key_record(
    key: Vec<u8>,
    event: Option<Cow<'static, str>>,
    content: Option<(Kind, Value)>,
) -> record::Value {
    let field = |name: &'static str, value| (Cow::Borrowed(name.as_bytes()), value);
    let event = event.map_or(record::Value::None, |event| match event {
        Cow::Borrowed(name) => record::Value::Name(name),
        Cow::Owned(name) => record::Value::Text(name.into_bytes()),
    });
    let mut fields = Vec::with_capacity(4);
    fields.push(field("key", record::Value::Text(key)));
    fields.push(field("event", event));
    if let Some((kind, value)) = content {
        // 1.2 calls the types that it does not know "unknown"; streams are what is left of them.
        let name = if kind == Kind::Stream {
            "unknown"
        } else {
            kind.name()
        };
        fields.push(field("type", record::Value::Name(name)));
        fields.push(field("value", value.into()));
    }
    record::Value::Dict(fields)
}

impl From<Value> for record::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::None => Self::None,
            Value::String(text) => Self::Text(text),
            Value::List(items) => Self::List(items.into_iter().map(Self::Text).collect()),
            Value::Hash(fields) => Self::Dict(
                fields
                    .into_iter()
                    .map(|(name, value)| (Cow::Owned(name), Self::Text(value)))
                    .collect(),
            ),
        }
    }
}
