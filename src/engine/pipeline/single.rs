//! One record through steps that remember nothing: what most events are. The same as a [`Pipeline`](super::Pipeline) does with it, without
//! what a run needs that has more records, waits, or takes part in a larger one.

use std::sync::Arc;

use super::{PipelineState, Tickets};
use crate::engine::{
    language::{Awaitable, Called, Failure, Language, LateText},
    plan::{Plan, Step},
    record::Record,
    waiting::Slot,
};

/// What became of the record.
pub enum Passed {
    /// It has passed all steps; `None` if one has dropped it.
    Through(Result<Option<Record>, Failure>),
    /// It has, and its text is the result.
    Text(Arc<dyn LateText>),
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

/// Passes the record through all steps of such a plan, on a shard alone. `kept`: nobody waits for the result, which is kept for those
/// who may ask for it.
pub fn pass(
    plan: &Plan,
    language: &dyn Language,
    tickets: Tickets<'_>,
    mut record: Record,
    kept: bool,
) -> Passed {
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
            Step::Text => {
                // On a shard alone nothing moves.
                if kept && plan.steps[index + 1..].iter().all(|step| *step == Step::Collect) {
                    match language.to_late_text(record) {
                        Ok(text) => return Passed::Text(text),
                        Err(other) => record = other,
                    }
                }
                language.to_text(record).map(Called::Now)
            }
            // On a shard alone nothing moves.
            _ => Ok(Called::Now(record)),
        };
        match called {
            Ok(Called::Now(next)) => record = next,
            Ok(Called::Later(awaitable, record)) => {
                return Passed::Waits(waiting_at(index, awaitable, record, tickets));
            }
            Err(failure) => return Passed::Through(Err(failure)),
        }
    }
    Passed::Through(Ok(Some(record)))
}

/// The state of a run whose only record waits at a step.
pub fn waiting_at(
    index: usize,
    awaitable: Box<dyn Awaitable>,
    record: Option<Record>,
    tickets: Tickets<'_>,
) -> PipelineState {
    let mut state = PipelineState::default();
    let queue = state.waiting.of(index);
    let number = queue.next_number();
    queue.push(Slot::Waiting { record, key: None });
    awaitable.start(tickets(index, number));
    state
}
