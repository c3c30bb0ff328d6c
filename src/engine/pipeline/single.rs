//! One record through steps that remember nothing: what most events are. The same as a [`Pipeline`](super::Pipeline) does with it, without
//! what a run needs that has more records, waits, or takes part in a larger one.

use super::{PipelineState, Tickets};
use crate::engine::{
    language::{Called, Failure, Language},
    plan::{Plan, Step},
    record::Record,
    waiting::Slot,
};

/// What became of the record.
pub enum Passed {
    /// It has passed all steps; `None` if one has dropped it.
    Through(Result<Option<Record>, Failure>),
    /// It waits at a step: the run goes on with that.
    Waits(PipelineState),
}

/// True for a plan whose steps make at most one record of one, at once.
pub fn takes_one_by_one(plan: &Plan) -> bool {
    plan.steps.iter().all(|step| {
        matches!(
            step,
            Step::Map(_)
                | Step::Filter(_)
                | Step::ForEach(_)
                | Step::Repartition(_)
                | Step::Collect
                | Step::Text
        )
    })
}

/// Passes the record through all steps of such a plan, on a shard alone.
pub fn pass(plan: &Plan, language: &dyn Language, tickets: Tickets<'_>, mut record: Record) -> Passed {
    for (index, step) in plan.steps.iter().enumerate() {
        let called = match step {
            Step::Map(function) => plan.functions[*function].map(record),
            Step::ForEach(function) => plan.functions[*function].visit(record),
            Step::Filter(function) => match plan.functions[*function].test(record) {
                Ok(Called::Now((record, true))) => Ok(Called::Now(record)),
                Ok(Called::Now((_, false))) => return Passed::Through(Ok(None)),
                Ok(Called::Later(awaitable, record)) => Ok(Called::Later(awaitable, record)),
                Err(failure) => Err(failure),
            },
            Step::Repartition(function) => plan.functions[*function]
                .key(record)
                .map(|(record, _)| Called::Now(record)),
            Step::Text => language.to_text(record).map(Called::Now),
            // On a shard alone nothing moves.
            _ => Ok(Called::Now(record)),
        };
        match called {
            Ok(Called::Now(next)) => record = next,
            Ok(Called::Later(awaitable, record)) => {
                let mut state = PipelineState::default();
                let queue = state.waiting.of(index);
                let number = queue.next_number();
                queue.push(Slot::Waiting { record, key: None });
                awaitable.start(tickets(index, number));
                return Passed::Waits(state);
            }
            Err(failure) => return Passed::Through(Err(failure)),
        }
    }
    Passed::Through(Ok(Some(record)))
}
