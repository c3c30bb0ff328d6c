//! What a step remembers between records, in one run of a plan.

use std::sync::Arc;

use indexmap::IndexMap;

use super::{
    holding::Inventory,
    language::{Distinct, Failure, Function, Language},
    plan::{Plan, Step},
    record::Record,
};

/// The state of one step.
pub enum StepState {
    Nothing,
    Accumulator(Option<Record>),
    Count(i64),
    Sum(Option<i64>),
    Passed {
        seen: u64,
        passed: u64,
    },
    /// By key, in the order of first appearance; no value after a failure.
    Groups(IndexMap<Vec<u8>, Option<Record>>),
    Batches {
        groups: IndexMap<Vec<u8>, Vec<Record>>,
        reducer: Arc<dyn Function>,
    },
    Counts(IndexMap<Vec<u8>, i64>),
    Distinct(Box<dyn Distinct>),
    Sorted {
        records: Vec<Record>,
        descending: bool,
    },
}

impl StepState {
    pub fn new(plan: &Plan, step: &Step, language: &dyn Language) -> Self {
        match *step {
            Step::Accumulate(_) => Self::Accumulator(None),
            Step::Count => Self::Count(0),
            Step::Sum => Self::Sum(None),
            Step::Limit { .. } => Self::Passed { seen: 0, passed: 0 },
            Step::GroupBy { .. } | Step::MergeGroups(_) => Self::Groups(IndexMap::new()),
            Step::BatchGroupBy { reducer, .. } => Self::Batches {
                groups: IndexMap::new(),
                reducer: Arc::clone(&plan.functions[reducer]),
            },
            Step::CountBy(_) | Step::SumBy => Self::Counts(IndexMap::new()),
            Step::Distinct { .. } => Self::Distinct(language.distinct()),
            Step::Sort { descending } => Self::Sorted {
                records: Vec::new(),
                descending,
            },
            Step::Map(_)
            | Step::FlatMap(_)
            | Step::Filter(_)
            | Step::ForEach(_)
            | Step::Repartition(_)
            | Step::Collect
            | Step::Text => Self::Nothing,
        }
    }

    /// True for a step that remembers something.
    pub fn is_needed(step: &Step) -> bool {
        step.is_barrier() || matches!(step, Step::Limit { .. } | Step::Distinct { .. })
    }

    /// Adds what the step remembers.
    ///
    /// # Errors
    /// As of [`Inventory::count`].
    pub fn take_stock<'a>(&'a self, stock: &mut Inventory<'a>) -> Result<(), Failure> {
        match self {
            Self::Accumulator(held) => stock.add_all(held),
            Self::Groups(groups) => {
                for (key, value) in groups {
                    stock.add_bytes(key.len());
                    stock.add_all(value);
                }
            }
            Self::Batches { groups, .. } => {
                for (key, records) in groups {
                    stock.add_bytes(key.len());
                    stock.add_all(records);
                }
            }
            Self::Counts(counts) => {
                for key in counts.keys() {
                    stock.add_bytes(key.len() + size_of::<i64>());
                }
            }
            Self::Distinct(seen) => stock.add_size(seen.size()?),
            Self::Sorted { records, .. } => stock.add_all(records),
            Self::Nothing | Self::Count(_) | Self::Sum(_) | Self::Passed { .. } => {}
        }
        Ok(())
    }

    /// The input has ended: what the step still holds, in its order. Made one by one, because user functions may run.
    pub fn release(&mut self, language: &dyn Language) -> Box<dyn Iterator<Item = Result<Record, Failure>>> {
        match std::mem::replace(self, Self::Nothing) {
            Self::Accumulator(Some(record)) => Box::new(std::iter::once(Ok(record))),
            Self::Count(count) if count > 0 => Box::new(std::iter::once(Ok(Record::int(count)))),
            Self::Sum(Some(sum)) => Box::new(std::iter::once(Ok(Record::int(sum)))),
            Self::Groups(groups) => {
                let held = groups
                    .into_iter()
                    .filter_map(|(key, value)| value.map(|value| Ok(Record::group(key, value))));
                Box::new(held)
            }
            // 1.2 gives the group that appeared last first.
            Self::Batches { groups, reducer } => {
                Box::new(groups.into_iter().rev().map(move |(key, records)| {
                    let value = reducer.reduce_group(&key, records)?;
                    Ok(Record::group(key, value))
                }))
            }
            Self::Counts(counts) => {
                let held = counts
                    .into_iter()
                    .map(|(key, count)| Ok(Record::group(key, Record::int(count))));
                Box::new(held)
            }
            Self::Sorted { records, descending } if !records.is_empty() => {
                match language.sort(records, descending) {
                    Ok(sorted) => Box::new(sorted.into_iter().map(Ok)),
                    Err(failure) => Box::new(std::iter::once(Err(failure))),
                }
            }
            _ => Box::new(std::iter::empty()),
        }
    }
}
