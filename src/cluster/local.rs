//! What one shard does by itself for a command that all shards carry out: for its own client, or for another shard.
//! Contract: docs/contract/commands.md 1.6, 1.12 and 1.13.

use std::{sync::Arc, time::Duration};

use crate::{
    engine::{
        Engine,
        execution::{Execution, Outcome},
        id::Id,
        registration::Registration,
        whole_ms,
    },
    error::Error,
    server::{lock::Lock, reply::Reply},
};

/// The entry of this shard in the reply of RG.GETEXECUTION.
pub fn describe(engine: &Engine, execution: &Execution) -> Reply {
    Reply::Array(vec![
        Reply::bulk("shard_id"),
        Reply::bulk(engine.registry.shard().to_string()),
        Reply::bulk("execution_plan"),
        plan(execution),
        Reply::bulk("records_read"),
        Reply::Int(i64::try_from(execution.records_read()).unwrap_or(i64::MAX)),
    ])
}

/// The same without what 1.2 does not have.
pub fn brief(entry: Reply) -> Reply {
    match entry {
        Reply::Array(mut fields) => {
            fields.truncate(4);
            Reply::Array(fields)
        }
        other => other,
    }
}

fn plan(execution: &Execution) -> Reply {
    let outcome = execution.outcome();
    let outcome = outcome.as_deref();
    let count = outcome.map_or(-1, |outcome| outcome.count() as i64);
    let errors = outcome
        .map(|outcome| outcome.errors.as_slice())
        .unwrap_or_default();
    let duration =
        |of: fn(&Outcome) -> Duration| Reply::Int(outcome.map_or(0, |outcome| whole_ms(of(outcome))));
    let (received, completed) = execution
        .distributed
        .as_ref()
        .map_or((0, 0), |distributed| distributed.counts());
    Reply::Array(vec![
        Reply::bulk("status"),
        Reply::bulk(execution.state_name()),
        Reply::bulk("shards_received"),
        Reply::Int(received as i64),
        Reply::bulk("shards_completed"),
        Reply::Int(completed as i64),
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
    let mut shown = vec![step("map", 0, "convert", "")];
    for (index, operation) in execution.plan.steps.iter().enumerate() {
        let mut duration = durations.get(index).copied().map_or(0, whole_ms);
        for (kind, function) in operation.describe() {
            let function = function.and_then(|function| execution.plan.functions.get(function));
            let name = function.map_or_else(|| kind.to_owned(), |function| function.name());
            let argument = function.map(|function| function.describe()).unwrap_or_default();
            // Where a step shows as several, the first one has its time.
            shown.push(step(kind, std::mem::take(&mut duration), &name, &argument));
        }
    }
    shown.reverse();
    Reply::Array(shown)
}

fn step(kind: &str, duration_ms: i64, name: &str, argument: &str) -> Reply {
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

/// Pauses registrations, or lets them go on (`pause` is false): all or none.
///
/// # Errors
/// One of them does not exist; its reader cannot be paused.
pub fn pause(engine: &Engine, lock: Lock<'_>, ids: &[Id], pause: bool) -> Result<(), Error> {
    let find = |id: &Id| {
        let unknown = || Error::NoSuchRegistrationHere {
            id: id.to_string(),
            shard: engine.registry.shard().to_string(),
        };
        engine.registry.registration(*id).ok_or_else(unknown)
    };
    let registrations = ids.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let change = |registration: &Arc<Registration>| {
        let trigger = &registration.trigger;
        if pause {
            trigger.pause(lock, registration)
        } else {
            trigger.unpause(lock, registration)
        }
    };
    if let Some(fixed) = registrations
        .iter()
        .find(|registration| registration.trigger.status().is_none())
    {
        // Says why, and changes nothing.
        change(fixed)?;
    }
    registrations.iter().try_for_each(change)
}

/// Forgets the statistics of all registrations.
pub fn clear_stats(engine: &Engine) {
    for registration in engine.registry.registrations() {
        registration.stats.clear();
        registration.trigger.clear_figures();
    }
}
