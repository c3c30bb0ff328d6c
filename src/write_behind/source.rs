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
    server::{key::Kind, rights::Access, snapshot::Snapshot},
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
        field("id", Value::Id(change.id.ms, change.id.seq)),
        field("key", Value::SharedKey(change.key.name)),
        field("db", Value::Int(i64::from(change.key.db))),
        field("event", event(change.event)),
        field(
            "type",
            change
                .payload
                .kind()
                .map_or(Value::None, |kind| Value::Name(kind.name())),
        ),
        field("value", Value::Kept(change.payload)),
    ])
}

fn event(event: Cow<'static, str>) -> Value {
    match event {
        Cow::Borrowed(name) => Value::Name(name),
        Cow::Owned(name) => Value::Text(name.into_bytes()),
    }
}

/// The name of a value's type; nothing for a key that is gone.
pub(super) fn type_name(payload: &Snapshot) -> &'static str {
    payload.kind().map_or("", Kind::name)
}
