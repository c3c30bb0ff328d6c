//! A plan: what a function does to records, as data. Made by a builder, shared by all its executions.
//!
//! Steps name user functions by their place in the plan's table, so that the data stay apart from the code.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::language::Function;

/// The place of a user function in [`Plan::functions`].
pub type FunctionIndex = usize;

/// One operation on records. Meaning: docs/contract/python-api.md 3.3 and 3.5.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Map(FunctionIndex),
    FlatMap(FunctionIndex),
    Filter(FunctionIndex),
    ForEach(FunctionIndex),
    /// All records become one. No input, no record.
    Accumulate(FunctionIndex),
    /// Records of one key become one group.
    GroupBy {
        extractor: FunctionIndex,
        reducer: FunctionIndex,
        /// Records stay on the shard where they are.
        local: bool,
    },
    /// Groups of one key, as [`Step::GroupBy`] makes them on each shard, become one group.
    MergeGroups(FunctionIndex),
    /// The same, with all records of a group at once, when the input has ended.
    BatchGroupBy {
        extractor: FunctionIndex,
        reducer: FunctionIndex,
    },
    /// Counts the records of each key, natively; without an extractor the record is the key.
    CountBy(Option<FunctionIndex>),
    /// Adds up the groups of [`Step::CountBy`].
    SumBy,
    /// Moves a record to the shard that owns its key.
    Repartition(FunctionIndex),
    /// Skips `start` records, passes `length`, then wants no more.
    Limit {
        start: u64,
        length: u64,
    },
    /// Moves records to the initiator.
    Collect,
    /// Counts records, natively. No input, no record.
    Count,
    /// Adds up the counts of the shards, natively. No input, no record.
    Sum,
    /// Passes each record once. `merging`: of those that other shards have passed.
    Distinct {
        merging: bool,
    },
    /// All records in order, when the input has ended.
    Sort {
        descending: bool,
    },
    /// Turns each record into its text.
    Text,
}

/// Where a step moves records to, before it does anything else with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    ToInitiator,
    /// To the shard that owns the key.
    ByKey,
}

/// A plan that is one call for each record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnlyCall {
    pub function: FunctionIndex,
    /// The record is the result, and not what the function returns.
    pub visits: bool,
    /// The result is its text.
    pub text: bool,
}

impl Plan {
    /// The only call of a plan that has no other steps but those that come by themselves; on a shard alone.
    pub fn only_call(&self) -> Option<OnlyCall> {
        let (first, rest) = self.steps.split_first()?;
        let (function, visits) = match first {
            Step::Map(function) => (*function, false),
            Step::ForEach(function) => (*function, true),
            _ => return None,
        };
        let text = match rest {
            [] | [Step::Collect] => false,
            [Step::Text] | [Step::Text, Step::Collect] => true,
            _ => return None,
        };
        Some(OnlyCall {
            function,
            visits,
            text,
        })
    }
}

impl OnlyCall {
    /// What the function returns is the result as it is.
    pub fn returns(&self) -> bool {
        !self.visits && !self.text
    }
}

impl Step {
    /// Where it moves records to, if it does.
    pub fn routing(&self) -> Option<Routing> {
        match self {
            Self::Collect => Some(Routing::ToInitiator),
            Self::GroupBy { local: false, .. }
            | Self::BatchGroupBy { .. }
            | Self::MergeGroups(_)
            | Self::SumBy
            | Self::Repartition(_) => Some(Routing::ByKey),
            _ => None,
        }
    }

    /// The user functions that it calls.
    fn functions(&self) -> [Option<FunctionIndex>; 2] {
        match *self {
            Self::Map(function)
            | Self::FlatMap(function)
            | Self::Filter(function)
            | Self::ForEach(function)
            | Self::Accumulate(function)
            | Self::MergeGroups(function)
            | Self::Repartition(function) => [Some(function), None],
            Self::GroupBy {
                extractor, reducer, ..
            }
            | Self::BatchGroupBy { extractor, reducer } => [Some(extractor), Some(reducer)],
            Self::CountBy(extractor) => [extractor, None],
            Self::SumBy
            | Self::Limit { .. }
            | Self::Collect
            | Self::Count
            | Self::Sum
            | Self::Distinct { .. }
            | Self::Sort { .. }
            | Self::Text => [None, None],
        }
    }

    /// The types that RG.GETEXECUTION shows for it, in their order, each with the user function it stands for.
    pub fn describe(&self) -> Vec<(&'static str, Option<FunctionIndex>)> {
        let [first, second] = self.functions();
        match self {
            Self::Map(_) | Self::Text => vec![("map", first)],
            Self::FlatMap(_) => vec![("map", first), ("flatmap", None)],
            Self::Filter(_) => vec![("filter", first)],
            Self::ForEach(_) => vec![("foreach", first)],
            Self::Accumulate(_) | Self::Count | Self::Sum | Self::Distinct { .. } | Self::Sort { .. } => {
                vec![("accumulate", first)]
            }
            Self::GroupBy { local: true, .. } => by_key(false, first, second),
            Self::GroupBy { local: false, .. } => by_key(true, first, second),
            Self::CountBy(_) => by_key(false, first, None),
            Self::MergeGroups(_) => by_key(true, None, first),
            Self::SumBy => by_key(true, None, None),
            Self::BatchGroupBy { .. } => vec![
                ("extractkey", first),
                ("repartition", None),
                ("group", None),
                ("reduce", second),
                ("map", None),
            ],
            Self::Repartition(_) => vec![("extractkey", first), ("repartition", None), ("map", None)],
            Self::Limit { .. } => vec![("limit", None)],
            Self::Collect => vec![("collect", None)],
        }
    }

    /// True where a record needs what became of the one before it.
    pub fn takes_one_at_a_time(&self) -> bool {
        matches!(
            self,
            Self::Accumulate(_) | Self::GroupBy { .. } | Self::MergeGroups(_)
        )
    }

    /// True where records wait until the input ends.
    pub fn is_barrier(&self) -> bool {
        matches!(
            self,
            Self::Accumulate(_)
                | Self::GroupBy { .. }
                | Self::MergeGroups(_)
                | Self::BatchGroupBy { .. }
                | Self::CountBy(_)
                | Self::SumBy
                | Self::Count
                | Self::Sum
                | Self::Sort { .. }
        )
    }
}

/// What RG.GETEXECUTION shows for an accumulation by key.
fn by_key(
    moves: bool,
    extractor: Option<FunctionIndex>,
    reducer: Option<FunctionIndex>,
) -> Vec<(&'static str, Option<FunctionIndex>)> {
    let mut shown = vec![("extractkey", extractor)];
    if moves {
        shown.push(("repartition", None));
    }
    shown.extend([("accumulatebykey", reducer), ("map", None)]);
    shown
}

/// The steps with the functions that they call.
#[derive(Clone, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub functions: Vec<Arc<dyn Function>>,
}

impl Plan {
    /// True if every function that a step names is there.
    pub fn is_complete(&self) -> bool {
        let named = self.steps.iter().flat_map(Step::functions).flatten();
        named.max().is_none_or(|last| last < self.functions.len())
    }

    /// True if other shards have something to do even if the initiator alone has records.
    pub fn moves_by_key(&self) -> bool {
        self.steps
            .iter()
            .any(|step| step.routing() == Some(Routing::ByKey))
    }

    /// True if all records end up on the initiator.
    pub fn collects(&self) -> bool {
        let last = self.steps.iter().filter_map(Step::routing).next_back();
        last == Some(Routing::ToInitiator)
    }

    /// True when some step sees what is in a record, so that its value must be read.
    pub fn looks_at_records(&self) -> bool {
        !matches!(
            self.steps
                .iter()
                .find(|step| !matches!(step, Step::Collect | Step::Limit { .. })),
            Some(Step::Count)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_looks_at_no_record() {
        let plan = |steps: &[Step]| Plan {
            steps: steps.to_vec(),
            functions: Vec::new(),
        };
        assert!(!plan(&[Step::Collect, Step::Count, Step::Text]).looks_at_records());
        assert!(plan(&[Step::Text, Step::Count]).looks_at_records());
        assert!(plan(&[]).looks_at_records());
    }

    #[test]
    fn grouping_shows_its_parts() {
        let kinds = |step: Step| step.describe().iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
        let group = |local| Step::GroupBy {
            extractor: 0,
            reducer: 1,
            local,
        };
        assert_eq!(kinds(group(true)), ["extractkey", "accumulatebykey", "map"]);
        assert_eq!(
            kinds(group(false)),
            ["extractkey", "repartition", "accumulatebykey", "map"]
        );
    }

    #[test]
    fn one_call_is_a_map_or_foreach_and_what_follows_by_itself() {
        let call = |steps: &[Step]| {
            let plan = Plan {
                steps: steps.to_vec(),
                functions: Vec::new(),
            };
            let call = plan.only_call()?;
            Some((call.function, call.visits, call.text))
        };
        assert_eq!(call(&[Step::Map(3)]), Some((3, false, false)));
        assert_eq!(
            call(&[Step::ForEach(0), Step::Text, Step::Collect]),
            Some((0, true, true))
        );
        assert_eq!(call(&[Step::Map(0), Step::Collect, Step::Text]), None);
        assert_eq!(call(&[Step::Map(0), Step::Map(1)]), None);
        assert_eq!(call(&[Step::Filter(0)]), None);
        assert_eq!(call(&[]), None);
    }
}
