//! The changes of one call as what `save` gets: a list of dicts.

use std::borrow::Cow;

use super::machine::Change;
use crate::{
    engine::{
        holding::HELD_TOO_MUCH,
        language::Failure,
        record::{Record, Value},
        scope::Scope,
        source::{Reading, Source},
    },
    error::Error,
    read_through::check_keys,
    server::{key::Kind, rights::Access, snapshot::Snapshot},
};

/// Makes the list when a worker asks for it.
pub(super) struct Changes {
    pub changes: Option<Vec<Change<Snapshot>>>,
    /// `max_memory` of the registration, in bytes: of what a call gets, too, since it is there while `save` runs.
    pub most: Option<u64>,
}

impl Source for Changes {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        let changes = self.changes.take();
        if let (Some(actor), Some(changes)) = (reading.actor, &changes) {
            let names = changes.iter().map(|change| &*change.key.name);
            check_keys(reading, actor, names, Access::Read)?;
        }
        let record =
            changes.map(|changes| Record::Native(Value::List(changes.into_iter().map(dict).collect())));
        match (self.most, record) {
            (Some(most), Some(record)) if record.bytes() as u64 > most => Err(too_much(most)),
            (_, record) => Ok(record),
        }
    }

    fn is_at_end(&self) -> bool {
        self.changes.is_none()
    }

    fn is_single(&self) -> bool {
        true
    }
}

/// The changes of one call are too large: as if `save` had raised that.
fn too_much(most: u64) -> Failure {
    let scope = Scope::current();
    if let Some(execution) = scope.as_ref().and_then(|scope| scope.execution.as_ref()) {
        execution.note_error_kind(HELD_TOO_MUCH);
    }
    Error::HeldTooMuch(most).into()
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
