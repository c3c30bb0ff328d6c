//! What each operation does with a record. Rules: docs/contract/python-api.md 3.3, 3.4, 3.9 and 6.3.

use super::Pipeline;
use crate::engine::{
    id::ShardId,
    language::{Called, Failure, Function},
    plan::Step,
    record::{Record, Value},
    shuffle::Shuffle,
    step_state::StepState,
    waiting::Flow,
};

impl Pipeline<'_> {
    #[allow(clippy::too_many_lines)] // one arm per operation
    pub(super) fn apply(&mut self, index: usize, record: Record) -> Result<Flow, Failure> {
        let plan = self.plan;
        let call = |function: usize| -> &dyn Function { plan.functions[function].as_ref() };
        let memory = self.state.step_states.get_mut(index);
        match (&plan.steps[index], memory) {
            (Step::Map(function), _) => {
                let called = call(*function).map(record)?;
                Ok(self
                    .now_or_wait(index, called, None)
                    .map_or(Flow::Waiting, Flow::On))
            }
            (Step::FlatMap(function), _) => {
                let called = call(*function).expand(record)?;
                Ok(self
                    .now_or_wait(index, called, None)
                    .map_or(Flow::Waiting, Flow::Apart))
            }
            (Step::Filter(function), _) => {
                let called = call(*function).test(record)?;
                Ok(match self.now_or_wait(index, called, None) {
                    Some((record, true)) => Flow::On(record),
                    Some((_, false)) => Flow::Kept,
                    None => Flow::Waiting,
                })
            }
            (Step::ForEach(function), _) => {
                let called = call(*function).visit(record)?;
                Ok(self
                    .now_or_wait(index, called, None)
                    .map_or(Flow::Waiting, Flow::On))
            }
            (Step::Repartition(function), _) => {
                let (record, key) = call(*function).key(record)?;
                match self.away(&key) {
                    Some(owner) => self.send(index, owner, record),
                    None => Ok(Flow::On(record)),
                }
            }
            (Step::Collect, _) => match self.shuffle.as_ref().and_then(Shuffle::initiator) {
                Some(initiator) => self.send(index, initiator, record),
                None => Ok(Flow::On(record)),
            },
            (Step::Accumulate(function), Some(StepState::Accumulator(held))) => {
                // A failure leaves the accumulator empty: the next record starts a new one.
                let called = call(*function).fold(held.take(), record)?;
                Ok(self.hold(index, called))
            }
            (
                Step::GroupBy {
                    extractor,
                    reducer,
                    local,
                },
                _,
            ) => {
                let (record, key) = keyed(call(*extractor), record)?;
                match self.away(&key).filter(|_| !local) {
                    Some(owner) => self.send_keyed(index, owner, key, record),
                    None => self.fold_group(index, key, record, call(*reducer)),
                }
            }
            (Step::MergeGroups(reducer), _) => {
                let (key, value) = key_and_value(record)?;
                match self.away(&key) {
                    Some(owner) => self.send(index, owner, Record::group(key, value)),
                    None => self.fold_group(index, key, value, call(*reducer)),
                }
            }
            (Step::BatchGroupBy { extractor, .. }, _) => {
                let (record, key) = keyed(call(*extractor), record)?;
                if let Some(owner) = self.away(&key) {
                    return self.send_keyed(index, owner, key, record);
                }
                if let Some(StepState::Batches { groups, .. }) = self.state.step_states.get_mut(index) {
                    groups.entry(key).or_default().push(record);
                }
                Ok(Flow::Kept)
            }
            (Step::CountBy(extractor), Some(StepState::Counts(counts))) => {
                let key = match extractor {
                    Some(extractor) => call(*extractor).key(record)?.1,
                    None => self.language.key_of(&record)?,
                };
                *counts.entry(key).or_default() += 1;
                Ok(Flow::Kept)
            }
            (Step::SumBy, _) => {
                let (key, value) = key_and_value(record)?;
                if let Some(owner) = self.away(&key) {
                    return self.send(index, owner, Record::group(key, value));
                }
                if let (Record::Native(Value::Int(more)), Some(StepState::Counts(counts))) =
                    (value, self.state.step_states.get_mut(index))
                {
                    let count = counts.entry(key).or_default();
                    *count = count.saturating_add(more);
                }
                Ok(Flow::Kept)
            }
            (Step::Count, Some(StepState::Count(count))) => {
                *count += 1;
                Ok(Flow::Kept)
            }
            (Step::Sum, Some(StepState::Sum(sum))) => {
                if let Record::Native(Value::Int(count)) = record {
                    *sum = Some(sum.unwrap_or_default().saturating_add(count));
                }
                Ok(Flow::Kept)
            }
            (Step::Distinct { merging }, Some(StepState::Distinct(seen)))
                if !merging || self.shuffle.is_some() =>
            {
                let new = seen.add(&record)?;
                Ok(if new { Flow::On(record) } else { Flow::Kept })
            }
            (Step::Sort { .. }, Some(StepState::Sorted { records, .. })) => {
                records.push(record);
                Ok(Flow::Kept)
            }
            (Step::Limit { start, length }, Some(StepState::Passed { seen, passed })) => {
                *seen += 1;
                if *seen <= *start || *passed >= *length {
                    return Ok(Flow::Kept);
                }
                *passed += 1;
                if *passed >= *length {
                    self.state.satisfied = self.state.has_passed_enough(plan);
                }
                Ok(Flow::On(record))
            }
            (Step::Text, _) => self.language.to_text(record).map(Flow::On),
            // What one shard has passed once is in no need of a second look.
            _ => Ok(Flow::On(record)),
        }
    }

    /// The shard that goes on with a record of this key, if that is another one.
    fn away(&self, key: &[u8]) -> Option<ShardId> {
        self.shuffle.as_ref()?.away(key)
    }

    /// A record goes on with this step on another shard.
    fn send(&mut self, index: usize, to: ShardId, record: Record) -> Result<Flow, Failure> {
        if let Some(shuffle) = &self.shuffle {
            let sent = shuffle.send(self.state.traffic(), index, to, record);
            self.fail_all(sent);
        }
        Ok(Flow::Kept)
    }

    fn send_keyed(
        &mut self,
        index: usize,
        to: ShardId,
        key: Vec<u8>,
        record: Record,
    ) -> Result<Flow, Failure> {
        let record = Box::new(record);
        self.send(index, to, Record::Keyed { key, record })
    }

    /// Keeps a new accumulator.
    fn hold(&mut self, index: usize, called: Called<Record>) -> Flow {
        let Some(value) = self.now_or_wait(index, called, None) else {
            return Flow::Waiting;
        };
        if let Some(StepState::Accumulator(held)) = self.state.step_states.get_mut(index) {
            *held = Some(value);
        }
        Flow::Kept
    }

    /// Hands the record of a key to the reducer. A failure leaves the group empty: its next record starts a new one.
    fn fold_group(
        &mut self,
        index: usize,
        key: Vec<u8>,
        record: Record,
        reducer: &dyn Function,
    ) -> Result<Flow, Failure> {
        let Some(StepState::Groups(groups)) = self.state.step_states.get_mut(index) else {
            return Ok(Flow::Kept);
        };
        // The usual call has its key there already, and its value at hand.
        if let Some(held) = groups.get_mut(&key) {
            match reducer.fold_group(&key, held.take(), record)? {
                Called::Now(value) => *held = Some(value),
                later @ Called::Later(..) => {
                    self.now_or_wait(index, later, Some(key));
                    return Ok(Flow::Waiting);
                }
            }
            return Ok(Flow::Kept);
        }
        match reducer.fold_group(&key, None, record)? {
            Called::Now(value) => {
                groups.insert(key, Some(value));
            }
            later @ Called::Later(..) => {
                groups.insert(key.clone(), None);
                self.now_or_wait(index, later, Some(key));
                return Ok(Flow::Waiting);
            }
        }
        Ok(Flow::Kept)
    }
}

/// A record with its key, which it brings along if another shard has asked for it already.
fn keyed(extractor: &dyn Function, record: Record) -> Result<(Record, Vec<u8>), Failure> {
    match record {
        Record::Keyed { key, record } => Ok((*record, key)),
        record => extractor.key(record),
    }
}

/// The parts of what the step before has made.
fn key_and_value(record: Record) -> Result<(Vec<u8>, Record), Failure> {
    match record {
        Record::Group { key, value } => Ok((key, *value)),
        // Builders put these steps behind grouping ones only.
        _ => Err("ERR the record is no group".into()),
    }
}
