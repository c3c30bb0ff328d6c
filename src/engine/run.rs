//! Runs one execution from its first record to its outcome, on this thread, attached to the language; or up to where it
//! waits, and from there on later.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Engine,
    execution::{Execution, Outcome, Parked, Reading, Status},
    language::Completion,
    pipeline::{Flowing, Pipeline},
    scope::Scope,
};
use crate::config::Number;

/// The error of an execution that panicked.
pub(super) const INTERNAL: &str = "ERR internal error, see the server's log";

/// What became of a run.
pub(super) enum Ran {
    Ended(Status, Outcome),
    /// It waits; whatever it waits for wakes it.
    Waits,
    /// It was ended by somebody else before.
    Gone,
}

/// Begins an execution, or goes on with one that waited.
pub(super) fn run(engine: &Engine, execution: &Arc<Execution>, started: Instant) -> Ran {
    let parked = if let Some(source) = execution.begin() {
        let profiled = engine.config.is_on(Number::ProfileExecutions);
        Parked {
            source: Some(source),
            flowing: Flowing::new(&execution.plan, engine.language.as_ref(), profiled),
            total: Duration::ZERO,
            reading: Duration::ZERO,
        }
    } else if let Some(parked) = execution.unpark() {
        *parked
    } else {
        return Ran::Gone;
    };
    let _scope = Scope::of_execution(execution).enter();
    let ran = catch_unwind(AssertUnwindSafe(|| run_steps(engine, execution, parked, started)));
    ran.unwrap_or_else(|_| Ran::Ended(Status::Done, Outcome::of_error(INTERNAL)))
}

fn run_steps(engine: &Engine, execution: &Arc<Execution>, parked: Parked, started: Instant) -> Ran {
    let mut parked = Some(parked);
    let mut ran = Ran::Gone;
    engine.language.interruptible(&execution.stop, &mut || {
        if let Some(parked) = parked.take() {
            ran = pass_records(engine, execution, parked, started);
        }
    });
    if let (true, Ran::Ended(status, outcome)) = (execution.stop.has_timed_out(), &mut ran) {
        let limit = engine.config.number(Number::SyncTimeout);
        let text = format!("ERR the function ran longer than SyncTimeout ({limit} ms) and was stopped");
        *status = Status::Done;
        outcome.errors.insert(0, text);
    }
    ran
}

fn pass_records(
    engine: &Engine,
    execution: &Arc<Execution>,
    mut parked: Parked,
    mut started: Instant,
) -> Ran {
    let language = engine.language.as_ref();
    let ticket = |step, number| ticket(engine, execution, step, number);
    let context = Reading {
        engine,
        delayed: execution.is_delayed(),
    };
    loop {
        let flowing = std::mem::take(&mut parked.flowing);
        let mut pipeline = Pipeline::new(&execution.plan, language, &execution.stop, &ticket, flowing);
        pipeline.skips_errors = execution.skips_errors;
        for (step, number, value) in execution.take_completions() {
            pipeline.complete(step, number, value);
        }
        while !pipeline.is_stopping() && !pipeline.is_full() && pipeline.wants_more() {
            let Some(source) = &mut parked.source else { break };
            if let Some(record) = source.buffered() {
                pipeline.push(record);
                continue;
            }
            if source.is_at_end() {
                break;
            }
            let asked = Instant::now();
            let record = source.next(&context);
            parked.reading += asked.elapsed();
            match record {
                Ok(Some(record)) => pipeline.push(record),
                Ok(None) => break,
                Err(failure) => pipeline.fail(failure),
            }
        }
        if pipeline.is_stopping() || !pipeline.is_full() {
            // Nothing is read any more: the input has ended, or a limit or an error has ended it.
            parked.source = None;
            pipeline.end_input();
        }
        let finished = pipeline.is_finished();
        parked.flowing = pipeline.flowing;
        if finished {
            parked.total += started.elapsed();
            return ended(engine, execution, parked);
        }
        parked.total += started.elapsed();
        match execution.park(Box::new(parked)) {
            Ok(()) => return Ran::Waits,
            Err(more) => parked = *more,
        }
        started = Instant::now();
    }
}

/// What tells the execution the value that it waits for, and wakes a worker for it.
fn ticket(engine: &Engine, execution: &Arc<Execution>, step: usize, number: u64) -> Completion {
    let (engine, execution) = (engine.handle(), Arc::clone(execution));
    Box::new(move |value| {
        if execution.complete((step, number, value)) {
            engine.go_on(&execution);
        }
    })
}

/// The outcome of a run that has come to its end, or is broken off where it waits.
pub(super) fn ended(engine: &Engine, execution: &Execution, parked: Parked) -> Ran {
    let language = engine.language.as_ref();
    let mut flowing = parked.flowing;
    // Whoever was stopped inside a function has its error and is done; all others are aborted.
    let aborted = execution.stop.is_asked() && flowing.errors.is_empty();
    let steps = flowing.take_durations();
    let mut outcome = Outcome {
        errors: flowing.errors,
        reading: parked.reading,
        total: parked.total,
        steps,
        ..Outcome::default()
    };
    if let Some(collector) = execution.take_collector() {
        collector(flowing.results, &outcome.errors);
    } else {
        // Results become replies while their objects can still be looked at.
        outcome.results.reserve(flowing.results.len());
        for record in flowing.results {
            match language.to_reply(record) {
                Ok(reply) => outcome.results.push(reply),
                Err(failure) => outcome.errors.push(failure),
            }
        }
    }
    let status = if aborted { Status::Aborted } else { Status::Done };
    Ran::Ended(status, outcome)
}
