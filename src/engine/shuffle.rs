//! Records on their way between the shards of one distributed run: gathered for each step and shard, sent in batches.
//!
//! Used by the pipeline, on the thread that runs the execution, attached. Contract: docs/contract/commands.md 8.3,
//! docs/contract/python-api.md 7.7 and chapter 9.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{
    distributed_run::{DistributedRun, Place},
    id::{Id, ShardId},
    language::{Failure, Language},
    plan::Routing,
    record::{IdText, Record, Value},
    run_message::{NotSent, RunMessage, Shards},
};
use crate::error::{Error, MAX_IDLE};

/// How many records are sent at once at most.
const BATCH: usize = 1000;
/// About how many bytes, as far as they are known before they are packed.
const BATCH_BYTES: usize = 256 * 1024;

/// The way out of one run.
pub struct Shuffle<'a> {
    pub distributed: &'a DistributedRun,
    pub place: Place,
    pub id: Id,
    pub shards: &'a dyn Shards,
    pub language: &'a dyn Language,
}

/// What one run remembers about the other shards.
#[derive(Default)]
pub struct Traffic {
    outgoing: BTreeMap<(usize, ShardId), Buffer>,
    /// The steps for which this shard has said that it has no more records.
    announced: BTreeSet<usize>,
    /// Who has said so to this shard.
    ended: BTreeMap<usize, BTreeSet<ShardId>>,
}

#[derive(Default)]
struct Buffer {
    records: Vec<Record>,
    bytes: usize,
}

impl Shuffle<'_> {
    /// The shard that goes on with a record of this key; `None` if that is this one.
    pub fn away(&self, key: &[u8]) -> Option<ShardId> {
        let owner = self.place.members.owner(key)?;
        (owner != self.place.me).then_some(owner)
    }

    /// The initiator; `None` if that is this one.
    pub fn initiator(&self) -> Option<ShardId> {
        self.distributed.initiator()
    }

    /// Whether the keys are still where the plan says: see [`Shards::confirm`].
    ///
    /// # Errors
    /// What has changed.
    pub fn confirm(&self) -> Result<(), Failure> {
        let mut confirmed = Ok(());
        self.language
            .detached(&mut || confirmed = self.shards.confirm(&self.place.members));
        confirmed
    }

    /// Sends a record to a step on another shard, sooner or later.
    ///
    /// # Errors
    /// Records that cannot travel, or could not be sent.
    pub fn send(
        &self,
        traffic: &mut Traffic,
        step: usize,
        to: ShardId,
        record: Record,
    ) -> Result<(), Vec<Failure>> {
        let buffer = traffic.outgoing.entry((step, to)).or_default();
        buffer.bytes += record.bytes();
        buffer.records.push(record);
        if buffer.records.len() < BATCH && buffer.bytes < BATCH_BYTES {
            return Ok(());
        }
        let records = std::mem::take(buffer).records;
        self.dispatch(step, to, records)
    }

    /// Sends what is held back.
    ///
    /// # Errors
    /// As [`Shuffle::send`].
    pub fn flush(&self, traffic: &mut Traffic) -> Result<(), Vec<Failure>> {
        let mut failures = Vec::new();
        for ((step, to), buffer) in std::mem::take(&mut traffic.outgoing) {
            if let Err(more) = self.dispatch(step, to, buffer.records) {
                failures.extend(more);
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }

    /// In as many messages as it takes.
    fn dispatch(&self, step: usize, to: ShardId, records: Vec<Record>) -> Result<(), Vec<Failure>> {
        let mut packing = Packing::new(records);
        let mut failures = Vec::new();
        while let Some(batch) = packing.next(self.language, &mut failures) {
            if let Err(failure) = self.dispatch_batch(step, to, ByteBuf::from(batch)) {
                // What is behind it has no use without it.
                failures.push(failure);
                break;
            }
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }

    fn dispatch_batch(&self, step: usize, to: ShardId, batch: ByteBuf) -> Result<(), Failure> {
        let bytes = batch.len();
        let message = RunMessage::Records { step, batch };
        let deadline = Instant::now() + self.distributed.max_idle;
        loop {
            if !self.shards.has_room(to, bytes) {
                let limit = deadline.saturating_duration_since(Instant::now());
                let mut room = false;
                self.language
                    .detached(&mut || room = self.shards.wait_for_room(to, bytes, limit));
                if !room {
                    return Err(MAX_IDLE.into());
                }
            }
            match self.shards.send(to, self.id, &message) {
                Ok(()) => return Ok(()),
                // Somebody else was quicker.
                Err(NotSent::Full { .. }) if Instant::now() < deadline => {}
                Err(why) => {
                    return Err(Error::NotSent {
                        what: "records",
                        shard: to.to_string(),
                        why: why.to_string(),
                    }
                    .into());
                }
            }
        }
    }

    /// This shard has no more records for a step: tells those who wait for them, once.
    ///
    /// # Errors
    /// As [`Shuffle::send`].
    pub fn end(&self, traffic: &mut Traffic, step: usize, moves: Routing) -> Result<(), Vec<Failure>> {
        if !traffic.announced.insert(step) {
            return Ok(());
        }
        let sent = self.flush(traffic);
        match (moves, self.initiator()) {
            (Routing::ToInitiator, Some(initiator)) => {
                self.shards.tell(initiator, self.id, RunMessage::Ended { step });
            }
            (Routing::ToInitiator, None) => {}
            (Routing::ByKey, _) => {
                for other in self.place.others() {
                    self.shards.tell(other, self.id, RunMessage::Ended { step });
                }
            }
        }
        sent
    }

    /// True if no other shard has a record for a step on this one.
    pub fn has_all(&self, traffic: &Traffic, step: usize, moves: Routing) -> bool {
        if moves == Routing::ToInitiator && !self.distributed.is_initiator() {
            return true;
        }
        let ended = traffic.ended.get(&step);
        self.place
            .others()
            .all(|other| ended.is_some_and(|ended| ended.contains(&other)))
    }
}

impl Traffic {
    /// Another shard has no more records for a step.
    pub fn note_ended(&mut self, step: usize, from: ShardId) {
        self.ended.entry(step).or_default().insert(from);
    }
}

/// Records as bytes.
#[derive(Serialize, Deserialize)]
struct Batch {
    records: Vec<Packed>,
    /// The objects of the language, in the order in which the records name them.
    objects: ByteBuf,
}

#[derive(Serialize, Deserialize)]
enum Packed {
    None,
    Int(i64),
    Text(ByteBuf),
    List(Vec<Packed>),
    Dict(Vec<(ByteBuf, Packed)>),
    Group(ByteBuf, Box<Packed>),
    Keyed(ByteBuf, Box<Packed>),
    /// The next one of the objects.
    Object,
}

impl From<Value> for Packed {
    fn from(value: Value) -> Self {
        match value {
            Value::None => Self::None,
            Value::Int(number) => Self::Int(number),
            Value::Text(text) | Value::Key(text) => Self::Text(ByteBuf::from(text)),
            Value::SharedKey(text) => Self::Text(ByteBuf::from(&*text)),
            Value::Id(first, second) => Self::Text(ByteBuf::from(IdText::new(first, second).as_bytes())),
            Value::Kept(kept) => Value::from(&kept).into(),
            Value::Missed(key) => Value::missed(key).into(),
            Value::Name(name) => Self::Text(ByteBuf::from(name)),
            Value::Float(number) => Self::Text(ByteBuf::from(number.to_string())),
            Value::List(items) | Value::Set(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Value::Dict(fields) => Self::Dict(
                fields
                    .into_iter()
                    .map(|(name, value)| (ByteBuf::from(name.into_owned()), value.into()))
                    .collect(),
            ),
        }
    }
}

/// Records that become bytes, one batch after the other: how many bytes an object of the language has is known when it is packed.
struct Packing {
    /// Those that are left, and whether they have an object: a record has one at most.
    records: VecDeque<(Packed, bool)>,
    objects: Vec<Record>,
    /// How many objects are tried at once: about as many as the batch before could take.
    at_most: usize,
}

impl Packing {
    fn new(records: Vec<Record>) -> Self {
        let mut objects = Vec::new();
        let records = records.into_iter().map(|record| {
            let before = objects.len();
            let packed = pack_one(record, &mut objects);
            (packed, objects.len() > before)
        });
        Self {
            records: records.collect(),
            objects,
            at_most: usize::MAX,
        }
    }

    /// The bytes of the next batch; `None` when there is none. `failures` gets why some records do not travel.
    fn next(&mut self, language: &dyn Language, failures: &mut Vec<Failure>) -> Option<Vec<u8>> {
        if self.records.is_empty() {
            return None;
        }
        let (mut taken, mut objects, mut refused) = (0, Vec::new(), BTreeSet::new());
        if !self.objects.is_empty() {
            let packed = language.pack(&mut self.objects, self.at_most);
            taken = packed.taken;
            self.at_most = taken.saturating_mul(2);
            objects = packed.bytes;
            for (place, failure) in packed.refused {
                refused.insert(place);
                failures.push(failure);
            }
        }
        let mut place = 0;
        let mut records = Vec::new();
        while let Some(&(_, has_object)) = self.records.front() {
            if has_object && place == taken {
                break;
            }
            let Some((packed, _)) = self.records.pop_front() else {
                break;
            };
            let travels = !has_object || !refused.contains(&place);
            place += usize::from(has_object);
            if travels {
                records.push(packed);
            }
        }
        let batch = Batch {
            records,
            objects: ByteBuf::from(objects),
        };
        // Plain data: nothing in it can fail to be written to memory.
        Some(rmp_serde::to_vec(&batch).unwrap_or_default())
    }
}

fn pack_one(record: Record, objects: &mut Vec<Record>) -> Packed {
    match record {
        Record::Native(value) => value.into(),
        Record::Group { key, value } => Packed::Group(key.into(), Box::new(pack_one(*value, objects))),
        Record::Keyed { key, record } => Packed::Keyed(key.into(), Box::new(pack_one(*record, objects))),
        object @ Record::Foreign(_) => {
            objects.push(object);
            Packed::Object
        }
    }
}

/// The records that another shard has sent.
///
/// # Errors
/// They cannot be read here.
pub fn unpack(language: &dyn Language, bytes: &[u8]) -> Result<Vec<Record>, Failure> {
    let damaged = |error: &dyn std::fmt::Display| {
        Failure::from(format!("ERR records of another shard cannot be read: {error}"))
    };
    let batch: Batch = rmp_serde::from_slice(bytes).map_err(|error| damaged(&error))?;
    let objects = if batch.objects.is_empty() {
        Vec::new()
    } else {
        language.unpack(&batch.objects)?
    };
    let mut objects = objects.into_iter();
    let records = batch.records.into_iter();
    records
        .map(|packed| unpack_one(packed, &mut objects).ok_or_else(|| damaged(&"an object is missing")))
        .collect()
}

fn unpack_one(packed: Packed, objects: &mut impl Iterator<Item = Record>) -> Option<Record> {
    Some(match packed {
        Packed::Group(key, value) => Record::group(key.into_vec(), unpack_one(*value, objects)?),
        Packed::Keyed(key, record) => Record::Keyed {
            key: key.into_vec(),
            record: Box::new(unpack_one(*record, objects)?),
        },
        Packed::Object => objects.next()?,
        plain => Record::Native(unpack_value(plain)?),
    })
}

fn unpack_value(packed: Packed) -> Option<Value> {
    Some(match packed {
        Packed::None => Value::None,
        Packed::Int(number) => Value::Int(number),
        Packed::Text(text) => Value::Text(text.into_vec()),
        Packed::List(items) => Value::List(items.into_iter().map(unpack_value).collect::<Option<_>>()?),
        Packed::Dict(fields) => Value::Dict(
            fields
                .into_iter()
                .map(|(name, value)| Some((Cow::Owned(name.into_vec()), unpack_value(value)?)))
                .collect::<Option<_>>()?,
        ),
        Packed::Group(..) | Packed::Keyed(..) | Packed::Object => return None,
    })
}

#[cfg(test)]
#[allow(clippy::expect_used)] // a test may panic
mod tests {
    use super::*;
    use crate::{engine::testing::Plain, fuzz::fuzz};

    fn again(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        unpack(&Plain, bytes).map(pack)
    }

    fn pack(records: Vec<Record>) -> Vec<u8> {
        if records.is_empty() {
            let (records, objects) = (Vec::new(), ByteBuf::new());
            return rmp_serde::to_vec(&Batch { records, objects }).unwrap_or_default();
        }
        let mut packing = Packing::new(records);
        let batch = packing.next(&Plain, &mut Vec::new()).unwrap_or_default();
        assert_eq!(packing.next(&Plain, &mut Vec::new()), None);
        batch
    }

    /// What can be read of a batch is packed as it was.
    #[test]
    fn fuzz_records() {
        let text = || Record::text("text");
        let dict = Value::Dict(vec![(
            b"key".as_slice().into(),
            Value::List(vec![Value::None, Value::Int(-1)]),
        )]);
        let keyed = Record::Keyed {
            key: b"k".to_vec(),
            record: Box::new(Record::group(b"g".to_vec(), text())),
        };
        let seed = pack(vec![text(), Record::Native(dict), keyed]);
        fuzz("records", &[seed], |input| match again(input) {
            Ok(packed) => {
                assert_eq!(again(&packed).expect("it was just packed"), packed);
                packed
                    .iter()
                    .filter(|byte| **byte > 0x80)
                    .map(|byte| char::from(*byte))
                    .collect()
            }
            Err(error) => error.to_string(),
        });
    }
}
