//! Runs one execution from its first record to its outcome, on this thread, attached to the language.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Engine,
    execution::{Execution, Outcome, Reading, Source, Status},
    language::Language,
    pipeline::Pipeline,
    record::Record,
    scope::Scope,
};
use crate::config::Number;

/// Does nothing if the execution was aborted before.
pub(super) fn run(engine: &Engine, execution: &Arc<Execution>, started: Instant) {
    let Some(source) = execution.begin() else {
        return;
    };
    let _scope = Scope::of_execution(execution).enter();
    let ran = catch_unwind(AssertUnwindSafe(|| run_steps(engine, execution, source, started)));
    let (status, outcome) = ran.unwrap_or_else(|_| {
        let outcome = Outcome {
            errors: vec!["ERR internal error, see the server's log".into()],
            ..Outcome::default()
        };
        (Status::Done, outcome)
    });
    engine.finish(execution, status, outcome);
}

fn run_steps(
    engine: &Engine,
    execution: &Arc<Execution>,
    source: Box<dyn Source>,
    started: Instant,
) -> (Status, Outcome) {
    let mut source = Some(source);
    let mut ended = (Status::Done, Outcome::default());
    let language = engine.language.as_ref();
    language.interruptible(&execution.stop, &mut || {
        if let Some(source) = source.take() {
            ended = pass_records(engine, execution, source);
        }
    });
    ended.1.total = started.elapsed();
    if execution.stop.has_timed_out() {
        let limit = engine.config.number(Number::SyncTimeout);
        let text = format!("ERR the function ran longer than SyncTimeout ({limit} ms) and was stopped");
        ended.0 = Status::Done;
        ended.1.errors.insert(0, text);
    }
    ended
}

fn pass_records(
    engine: &Engine,
    execution: &Arc<Execution>,
    mut source: Box<dyn Source>,
) -> (Status, Outcome) {
    let mut reading = Duration::ZERO;
    let language = engine.language.as_ref();
    let profiled = engine.config.is_on(Number::ProfileExecutions);
    let mut pipeline = Pipeline::new(&execution.plan, language, &execution.stop, profiled);
    pipeline.skips_errors = execution.skips_errors;
    let context = Reading {
        engine,
        delayed: execution.is_delayed(),
    };
    while pipeline.wants_more() && !pipeline.is_stopping() {
        if let Some(record) = source.buffered() {
            pipeline.push(record);
            continue;
        }
        if source.is_at_end() {
            break;
        }
        let asked = Instant::now();
        let record = source.next(&context);
        reading += asked.elapsed();
        match record {
            Ok(Some(record)) => pipeline.push(record),
            Ok(None) => break,
            Err(failure) => pipeline.fail(failure),
        }
    }
    drop(source);
    pipeline.end_input();
    // Whoever was stopped inside a function has its error and is done; all others are aborted.
    let aborted = pipeline.is_stopping() && pipeline.errors.is_empty();
    let steps = pipeline.durations();
    let (results, errors) = (
        std::mem::take(&mut pipeline.results),
        std::mem::take(&mut pipeline.errors),
    );
    let mut outcome = Outcome {
        errors,
        reading,
        steps,
        ..Outcome::default()
    };
    convert(language, results, &mut outcome);
    (if aborted { Status::Aborted } else { Status::Done }, outcome)
}

/// Turns results into replies while their objects can still be looked at.
fn convert(language: &dyn Language, results: Vec<Record>, outcome: &mut Outcome) {
    for record in results {
        match language.to_reply(record) {
            Ok(reply) => outcome.results.push(reply),
            Err(failure) => outcome.errors.push(failure),
        }
    }
}
