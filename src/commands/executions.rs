//! The commands about executions. Contract: `commands.md` 1.4 to 1.9.

use std::sync::Arc;

use super::check_may_block;
use crate::{
    engine::{
        Engine,
        execution::Execution,
        id::{Id, STANDALONE},
        whole_ms,
    },
    error::Error,
    redis::{
        command::{Answer, Command},
        reply::Reply,
    },
};

/// `RG.GETRESULTS <execution id>`
///
/// # Errors
/// No such execution, or it is not finished.
pub fn get_results(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let execution = find(engine, command)?;
    let outcome = execution.outcome().ok_or(Error::StillRunning)?;
    Ok(outcome.to_reply().into())
}

/// `RG.GETRESULTSBLOCKING <execution id>`
///
/// # Errors
/// No such execution; it is not finished and the caller cannot wait.
pub fn get_results_blocking(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    check_length(command, 2..=2)?;
    let execution = find(engine, command)?;
    if let Some(outcome) = execution.outcome() {
        return Ok(outcome.to_reply().into());
    }
    check_may_block(command)?;
    let client = command.block();
    execution.when_finished(Box::new(move |outcome| client.answer(outcome.to_reply())));
    Ok(Answer::Done)
}

/// `RG.GETEXECUTION <execution id> [SHARD|CLUSTER]`
///
/// # Errors
/// No such execution, an unknown word, or CLUSTER where there is none.
pub fn get_execution(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    check_length(command, 2..=3)?;
    let execution = find(engine, command)?;
    match command.argv().get(2) {
        None => {}
        Some(word) if word.eq_ignore_ascii_case(b"SHARD") => {}
        Some(word) if word.eq_ignore_ascii_case(b"CLUSTER") => return Err(Error::NoCluster),
        Some(_) => return Err(Error::UnknownSubcommand),
    }
    let shard = Reply::Array(vec![
        Reply::bulk("shard_id"),
        Reply::bulk(STANDALONE),
        Reply::bulk("execution_plan"),
        describe(&execution),
    ]);
    Ok(Reply::Array(vec![shard]).into())
}

fn describe(execution: &Execution) -> Reply {
    let outcome = execution.outcome();
    let outcome = outcome.as_deref();
    let count = outcome.map_or(-1, |outcome| outcome.results.len() as i64);
    let errors = outcome
        .map(|outcome| outcome.errors.as_slice())
        .unwrap_or_default();
    let duration = |of: fn(&crate::engine::execution::Outcome) -> std::time::Duration| {
        Reply::Int(outcome.map_or(0, |outcome| whole_ms(of(outcome))))
    };
    Reply::Array(vec![
        Reply::bulk("status"),
        Reply::bulk(execution.status().name()),
        Reply::bulk("shards_received"),
        Reply::Int(0),
        Reply::bulk("shards_completed"),
        Reply::Int(0),
        Reply::bulk("results"),
        Reply::Int(count),
        Reply::bulk("errors"),
        Reply::bulks(errors),
        Reply::bulk("total_duration"),
        duration(|outcome| outcome.total),
        Reply::bulk("read_duration"),
        duration(|outcome| outcome.reading),
        Reply::bulk("steps"),
        steps(execution),
    ])
}

/// The last operation first. The reader is not listed; the conversion of its records, which 1.2 counts as the first
/// step of every plan, is.
fn steps(execution: &Execution) -> Reply {
    let outcome = execution.outcome();
    let durations = outcome
        .as_deref()
        .map(|outcome| outcome.steps.as_slice())
        .unwrap_or_default();
    let mut shown = vec![describe_step("map", 0, "convert", "")];
    for (index, step) in execution.plan.steps.iter().enumerate() {
        let mut duration = durations.get(index).copied().map_or(0, whole_ms);
        for (kind, function) in step.shown() {
            let function = function.and_then(|function| execution.plan.functions.get(function));
            let name = function.map_or_else(|| kind.to_owned(), |function| function.name());
            let argument = function.map(|function| function.describe()).unwrap_or_default();
            // Where a step shows as several, the first one has its time.
            shown.push(describe_step(
                kind,
                std::mem::take(&mut duration),
                &name,
                &argument,
            ));
        }
    }
    shown.reverse();
    Reply::Array(shown)
}

fn describe_step(kind: &str, duration_ms: i64, name: &str, argument: &str) -> Reply {
    Reply::Array(vec![
        Reply::bulk("type"),
        Reply::bulk(kind),
        Reply::bulk("duration"),
        Reply::Int(duration_ms),
        Reply::bulk("name"),
        Reply::bulk(name),
        Reply::bulk("arg"),
        Reply::bulk(argument),
    ])
}

/// `RG.DUMPEXECUTIONS`
///
/// # Errors
/// None.
pub fn dump_executions(engine: &Engine, _command: &Command<'_>) -> Result<Answer, Error> {
    let entry = |execution: &Arc<Execution>| {
        Reply::Array(vec![
            Reply::bulk("executionId"),
            Reply::bulk(execution.id.to_string()),
            Reply::bulk("status"),
            Reply::bulk(execution.status().name()),
            Reply::bulk("registered"),
            Reply::Int(i64::from(execution.registration.is_some())),
        ])
    };
    Ok(Reply::Array(engine.registry.executions().iter().map(entry).collect()).into())
}

/// `RG.ABORTEXECUTION <execution id>`
///
/// # Errors
/// No such execution; the caller cannot wait.
pub fn abort_execution(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    check_length(command, 2..=2)?;
    check_may_block(command)?;
    let id = command
        .argv()
        .get(1)
        .and_then(Id::parse)
        .ok_or(Error::NoSuchExecution)?;
    engine.registry.execution(id).ok_or(Error::NoSuchExecution)?;
    let client = command.block();
    engine.abort(id, move || client.answer(Reply::ok()))?;
    Ok(Answer::Done)
}

/// `RG.DROPEXECUTION <execution id>`
///
/// # Errors
/// No such execution, or it is not finished.
pub fn drop_execution(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    check_length(command, 2..=2)?;
    engine.drop_execution(find(engine, command)?.id)?;
    Ok(Reply::ok().into())
}

fn check_length(command: &Command<'_>, allowed: std::ops::RangeInclusive<usize>) -> Result<(), Error> {
    if allowed.contains(&command.argv().len()) {
        Ok(())
    } else {
        Err(Error::WrongArity)
    }
}

fn find(engine: &Engine, command: &Command<'_>) -> Result<Arc<Execution>, Error> {
    let id = command.argv().get(1).ok_or(Error::WrongArity)?;
    Id::parse(id)
        .and_then(|id| engine.registry.execution(id))
        .ok_or(Error::NoSuchPlan)
}
