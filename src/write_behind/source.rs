//! The changes of one call as what `save` gets: a list of dicts.

use std::borrow::Cow;

use super::machine::Change;
use crate::{
    engine::{
        language::Failure,
        record::{Record, Value},
        source::{Reading, Source},
    },
    read_through::check_keys,
    server::{key::Kind, rights::Access, snapshot::Snapshot, store::Content},
};

/// Makes the list when a worker asks for it.
pub(super) struct Changes(pub(super) Option<Vec<Change<Snapshot>>>);

impl Source for Changes {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        let changes = self.0.take();
        if let (Some(actor), Some(changes)) = (reading.actor, &changes) {
            let names = changes.iter().map(|change| &*change.key.name);
            check_keys(reading, actor, names, Access::Read)?;
        }
        Ok(changes.map(|changes| Record::Native(Value::List(changes.into_iter().map(dict).collect()))))
    }

    fn is_at_end(&self) -> bool {
        self.0.is_none()
    }

    fn is_single(&self) -> bool {
        true
    }
}

fn dict(change: Change<Snapshot>) -> Value {
    let field = |name: &'static str, value| (Cow::Borrowed(name.as_bytes()), value);
    Value::Dict(vec![
        field("id", Value::Text(change.id.text())),
        field("key", Value::Key(change.key.name.to_vec())),
        field("db", Value::Int(i64::from(change.key.db))),
        field("event", event(change.event)),
        field(
            "type",
            change
                .payload
                .kind()
                .map_or(Value::None, |kind| Value::Name(kind.name())),
        ),
        field("value", value(&change.payload)),
    ])
}

fn event(event: Cow<'static, str>) -> Value {
    match event {
        Cow::Borrowed(name) => Value::Name(name),
        Cow::Owned(name) => Value::Text(name.into_bytes()),
    }
}

/// Streams and values of modules have none.
pub(super) fn value(payload: &Snapshot) -> Value {
    let keys = |items: Vec<Vec<u8>>| items.into_iter().map(Value::Key).collect();
    match payload.content() {
        None => Value::None,
        Some(Content::String(text)) => Value::Key(text),
        Some(Content::List(items)) => Value::List(keys(items)),
        Some(Content::Set(items)) => Value::Set(keys(items)),
        Some(Content::Hash(fields)) => Value::Dict(
            fields
                .into_iter()
                .map(|(name, value)| (Cow::Owned(name), Value::Key(value)))
                .collect(),
        ),
        Some(Content::Sorted(members)) => Value::Dict(
            members
                .into_iter()
                .map(|(member, score)| (Cow::Owned(member), Value::Float(score)))
                .collect(),
        ),
    }
}

/// The name of a value's type; nothing for a key that is gone.
pub(super) fn type_name(payload: &Snapshot) -> &'static str {
    payload.kind().map_or("", Kind::name)
}
