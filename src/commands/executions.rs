//! The commands about executions. Contract: docs/contract/commands.md 1.4 to 1.9.

use std::sync::Arc;

use super::check_may_block;
use crate::{
    cluster::{Cluster, local},
    engine::{Engine, execution::Execution, id::Id},
    error::Error,
    server::{
        command::{Answer, Command},
        reply::Reply,
    },
};

commands! {
    get_results_command {
        name: c"rg.getresults",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "<execution id>",
        summary: c"Gets the results and the errors of a finished execution.",
        handler: |pinion, command| get_results(&pinion.engine, command),
    }
    get_results_blocking_command {
        name: c"rg.getresultsblocking",
        flags: c"readonly",
        categories: c"read blocking gears gears-look",
        syntax: "<execution id>",
        summary: c"Waits for the end of an execution and gets its results and errors.",
        handler: |pinion, command| get_results_blocking(&pinion.engine, command),
    }
    get_execution_command {
        name: c"rg.getexecution",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "<execution id> [SHARD|CLUSTER] [VERBOSE]",
        summary: c"Shows the status, the durations and the steps of an execution.",
        handler: |pinion, command| get_execution(&pinion.cluster, command),
    }
    dump_executions_command {
        name: c"rg.dumpexecutions",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "",
        summary: c"Lists the executions.",
        handler: |pinion, command| dump_executions(&pinion.engine, command),
    }
    abort_execution_command {
        name: c"rg.abortexecution",
        flags: c"readonly may-replicate deny-script",
        categories: c"admin dangerous blocking gears",
        syntax: "<execution id>",
        summary: c"Stops an execution and waits until it has ended.",
        handler: |pinion, command| abort_execution(&pinion.cluster, command),
    }
    drop_execution_command {
        name: c"rg.dropexecution",
        flags: c"readonly may-replicate",
        categories: c"admin dangerous gears",
        syntax: "<execution id>",
        summary: c"Forgets a finished execution.",
        handler: |pinion, command| drop_execution(&pinion.cluster, command),
    }
}

/// `RG.GETRESULTS <execution id>`
///
/// # Errors
/// No such execution, or it is not finished.
fn get_results(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let execution = find(engine, command)?;
    let outcome = execution.outcome().ok_or(Error::StillRunning)?;
    Ok(outcome.to_reply().into())
}

/// `RG.GETRESULTSBLOCKING <execution id>`
///
/// # Errors
/// No such execution; it is not finished and the caller cannot wait.
fn get_results_blocking(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    check_length(command, 2..=2)?;
    let execution = find(engine, command)?;
    if let Some(outcome) = execution.outcome() {
        return Ok(outcome.to_reply().into());
    }
    check_may_block(command)?;
    let client = command.block()?;
    execution.when_finished(Box::new(move |outcome| client.answer(outcome.to_reply())));
    Ok(Answer::Done)
}

/// `RG.GETEXECUTION <execution id> [SHARD|CLUSTER] [VERBOSE]`
///
/// # Errors
/// No such execution, an unknown word, or CLUSTER where there is none.
fn get_execution(cluster: &Cluster, command: &Command<'_>) -> Result<Answer, Error> {
    check_length(command, 2..=4)?;
    let engine = &cluster.engine;
    let execution = find(engine, command)?;
    let mut words: Vec<&[u8]> = command.argv().iter().skip(2).collect();
    let is_verbose = words
        .pop_if(|word| word.eq_ignore_ascii_case(b"VERBOSE"))
        .is_some();
    if words.len() > 1 {
        return Err(Error::UnknownSubcommand);
    }
    let place = words.first().copied();
    let only_here = place.is_some_and(|word| word.eq_ignore_ascii_case(b"SHARD"));
    if !only_here {
        cluster.check_place(command.lock())?;
    }
    let everywhere = match place {
        None => cluster.has_others(),
        Some(word) if word.eq_ignore_ascii_case(b"SHARD") => false,
        Some(word) if word.eq_ignore_ascii_case(b"CLUSTER") && cluster.has_others() => true,
        Some(word) if word.eq_ignore_ascii_case(b"CLUSTER") => return Err(Error::NoCluster),
        Some(_) => return Err(Error::UnknownSubcommand),
    };
    let shown = move |entry: Reply| if is_verbose { entry } else { local::brief(entry) };
    if !everywhere {
        return Ok(Reply::Array(vec![shown(local::describe(engine, &execution))]).into());
    }
    check_may_block(command)?;
    let client = command.block()?;
    cluster.describe_everywhere(&execution, move |entries| {
        client.answer(Reply::Array(entries.into_iter().map(shown).collect()));
    });
    Ok(Answer::Done)
}

/// `RG.DUMPEXECUTIONS`
///
/// # Errors
/// None.
fn dump_executions(engine: &Engine, _command: &Command<'_>) -> Result<Answer, Error> {
    let entry = |execution: &Arc<Execution>| {
        Reply::Array(vec![
            Reply::bulk("executionId"),
            Reply::bulk(execution.id.to_string()),
            Reply::bulk("status"),
            Reply::bulk(execution.state_name()),
            Reply::bulk("registered"),
            Reply::Int(i64::from(execution.is_registered())),
        ])
    };
    Ok(Reply::Array(engine.registry.executions().iter().map(entry).collect()).into())
}

/// `RG.ABORTEXECUTION <execution id>`
///
/// # Errors
/// No such execution; the caller cannot wait.
fn abort_execution(cluster: &Cluster, command: &Command<'_>) -> Result<Answer, Error> {
    check_length(command, 2..=2)?;
    check_may_block(command)?;
    let id = command
        .argv()
        .get(1)
        .and_then(Id::parse)
        .ok_or(Error::NoSuchExecution)?;
    cluster.check_place(command.lock())?;
    if !cluster.has_others() {
        let known = cluster.engine.registry.execution(id);
        known.ok_or(Error::NoSuchExecution)?;
    }
    let client = command.block()?;
    cluster.abort(id, move |reply| client.answer(reply));
    Ok(Answer::Done)
}

/// `RG.DROPEXECUTION <execution id>`
///
/// # Errors
/// No such execution, or it is not finished.
fn drop_execution(cluster: &Cluster, command: &Command<'_>) -> Result<Answer, Error> {
    check_length(command, 2..=2)?;
    let execution = find(&cluster.engine, command)?;
    if execution.distributed.is_some() {
        cluster.check_place(command.lock())?;
    }
    cluster.engine.drop_execution(execution.id)?;
    cluster.drop_elsewhere(&execution);
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
