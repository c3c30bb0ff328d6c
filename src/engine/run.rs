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
pub(super) fn run(engine: &Engine, execution: &Arc<Execution>) {
    let Some(source) = execution.begin() else {
        return;
    };
    let _scope = Scope::of_execution(execution).enter();
    let ran = catch_unwind(AssertUnwindSafe(|| run_steps(engine, execution, source)));
    let (status, outcome) = ran.unwrap_or_else(|_| {
        let outcome = Outcome {
            errors: vec!["ERR internal error, see the server's log".into()],
            ..Outcome::default()
        };
        (Status::Done, outcome)
    });
    engine.finish(execution, status, outcome);
}

fn run_steps(engine: &Engine, execution: &Arc<Execution>, mut source: Box<dyn Source>) -> (Status, Outcome) {
    let started = Instant::now();
    let mut reading = Duration::ZERO;
    let language = engine.language.as_ref();
    let profiled = engine.config.is_on(Number::ProfileExecutions);
    let mut pipeline = Pipeline::new(&execution.plan, language, profiled);
    let context = Reading {
        engine,
        delayed: execution.is_delayed(),
    };
    let mut stopped = false;
    while pipeline.wants_more() {
        if execution.is_stopping() {
            stopped = true;
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
    if !stopped {
        pipeline.end_input();
    }
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
    outcome.total = started.elapsed();
    let status = if stopped { Status::Aborted } else { Status::Done };
    (status, outcome)
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
