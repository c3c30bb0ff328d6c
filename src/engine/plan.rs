//! A plan: what a function does to records, as data. Made by a builder, shared by all its executions.
//!
//! Steps name user functions by their place in the plan's table, so that the data stay apart from the code.

use std::sync::Arc;

use super::language::Function;

/// The place of a user function in [`Plan::functions`].
pub type FunctionIndex = usize;

/// One operation on records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Map(FunctionIndex),
    FlatMap(FunctionIndex),
    Filter(FunctionIndex),
    ForEach(FunctionIndex),
    Accumulate(FunctionIndex),
    /// Skips `start` records, passes `length`, then wants no more.
    Limit {
        start: u64,
        length: u64,
    },
    /// Moves records to the initiator; nothing to do on one shard.
    Collect,
    /// Counts records, natively. No input, no record.
    Count,
    /// Adds up the counts of the shards, natively. No input, no record.
    Sum,
    /// Turns each record into its text.
    Text,
}

impl Step {
    /// The type that RG.GETEXECUTION shows.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Map(_) | Self::Text => "map",
            Self::FlatMap(_) => "flatmap",
            Self::Filter(_) => "filter",
            Self::ForEach(_) => "foreach",
            Self::Accumulate(_) | Self::Count | Self::Sum => "accumulate",
            Self::Limit { .. } => "limit",
            Self::Collect => "collect",
        }
    }

    /// The user function that it calls.
    pub fn function(&self) -> Option<FunctionIndex> {
        match self {
            Self::Map(function)
            | Self::FlatMap(function)
            | Self::Filter(function)
            | Self::ForEach(function)
            | Self::Accumulate(function) => Some(*function),
            _ => None,
        }
    }

    /// True where records wait until the input ends.
    pub fn is_barrier(&self) -> bool {
        matches!(self, Self::Accumulate(_) | Self::Count | Self::Sum)
    }
}

/// The steps with the functions that they call.
#[derive(Clone, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub functions: Vec<Arc<dyn Function>>,
}

impl Plan {
    /// Adds a step that calls no function.
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Adds a step that calls `function`.
    pub fn push_call(&mut self, step: fn(FunctionIndex) -> Step, function: Arc<dyn Function>) {
        self.steps.push(step(self.functions.len()));
        self.functions.push(function);
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
}
