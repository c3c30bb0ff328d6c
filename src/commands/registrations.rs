//! The commands about registrations. Contract: docs/contract/commands.md 1.10 and 1.11.

use std::sync::Arc;

use super::{check_may_block, session_literal::literal};
use crate::{
    cluster::{Cluster, local},
    engine::{Engine, id::Id, registration::Registration, whole_ms},
    error::Error,
    server::{
        command::{Answer, Command},
        reply::Reply,
    },
    stats::Percentiles,
};

commands! {
    dump_registrations_command {
        name: c"rg.dumpregistrations",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "[VERBOSE]",
        summary: c"Lists the registered functions with their statistics.",
        handler: |pinion, command| dump_registrations(&pinion.engine, command),
    }
    unregister_command {
        name: c"rg.unregister",
        flags: c"write",
        categories: c"write admin dangerous gears gears-register",
        syntax: "<registration id> [ABORTPENDING]",
        summary: c"Removes a registered function.",
        handler: |pinion, command| unregister(&pinion.cluster, command),
    }
    unregister_session_command {
        name: c"rg.unregistersession",
        flags: c"write",
        categories: c"write admin dangerous gears gears-register",
        syntax: "<session id> [ABORTPENDING]",
        summary: c"Removes the registered functions of a session.",
        handler: |pinion, command| unregister_session(&pinion.cluster, command),
    }
    pause_command {
        name: c"rg.pauseregistrations",
        flags: c"readonly may-replicate deny-script",
        categories: c"admin dangerous gears gears-register",
        syntax: "[ABORTPENDING] <registration id> [<registration id> ...]",
        summary: c"Lets registered functions read no more.",
        handler: |pinion, command| pause(&pinion.cluster, command, true),
    }
    unpause_command {
        name: c"rg.unpauseregistrations",
        flags: c"readonly may-replicate deny-script",
        categories: c"admin dangerous gears gears-register",
        syntax: "<registration id> [<registration id> ...]",
        summary: c"Lets registered functions read again.",
        handler: |pinion, command| pause(&pinion.cluster, command, false),
    }
    clear_stats_command {
        name: c"rg.clearregistrationsstats",
        flags: c"readonly deny-script",
        categories: c"admin dangerous gears",
        syntax: "",
        summary: c"Sets the statistics of all registered functions to zero.",
        handler: |pinion, command| clear_stats(&pinion.cluster, command),
    }
}

/// `RG.DUMPREGISTRATIONS [VERBOSE]`; other words are ignored.
///
/// # Errors
/// None.
fn dump_registrations(engine: &Engine, command: &Command<'_>) -> Result<Answer, Error> {
    let verbose = command
        .argv()
        .get(1)
        .is_some_and(|word| word.eq_ignore_ascii_case(b"VERBOSE"));
    let registrations = engine.registry.registrations();
    let entries = registrations.iter().map(|registration| {
        let mut entry = describe(registration);
        let session = [Reply::bulk("PD"), Reply::bulk(literal(&registration.session))];
        entry.splice(8..8, session);
        if verbose {
            entry.extend(details(registration));
        }
        Reply::Array(entry)
    });
    Ok(Reply::Array(entries.collect()).into())
}

/// What only VERBOSE shows; times in microseconds.
fn details(registration: &Registration) -> [Reply; 18] {
    let (running, waiting) = registration.stats.spreads();
    let spread = |spread: Percentiles| {
        let pairs = [
            ("p50", spread.p50_us),
            ("p99", spread.p99_us),
            ("max", spread.max_us),
        ];
        Reply::Array(
            pairs
                .into_iter()
                .flat_map(|(name, us)| [Reply::bulk(name), count(us)])
                .collect(),
        )
    };
    [
        Reply::bulk("pending"),
        count(registration.stats.pending()),
        Reply::bulk("runTimeUS"),
        spread(running),
        Reply::bulk("waitTimeUS"),
        spread(waiting),
        Reply::bulk("warnings"),
        Reply::bulks(registration.doubts()),
        Reply::bulk("owner"),
        Reply::bulk_or_null(registration.owner.made_by.as_ref()),
        Reply::bulk("actsAs"),
        Reply::bulk_or_null(registration.actor.as_ref().and_then(|actor| actor.owner().user())),
        Reply::bulk("timeoutMS"),
        limit(registration.limits.timeout_ms),
        Reply::bulk("maxConcurrent"),
        limit(registration.limits.max_concurrent),
        Reply::bulk("maxMemory"),
        limit(registration.limits.max_memory),
    ]
}

fn limit(limit: Option<u64>) -> Reply {
    limit.map_or(Reply::Null, count)
}

fn count(count: u64) -> Reply {
    Reply::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

/// The entry of a registration but for its session.
pub(super) fn describe(registration: &Arc<Registration>) -> Vec<Reply> {
    vec![
        Reply::bulk("id"),
        Reply::bulk(registration.id.to_string()),
        Reply::bulk("reader"),
        Reply::bulk(registration.trigger.reader()),
        Reply::bulk("desc"),
        Reply::bulk_or_null(registration.desc.as_ref()),
        Reply::bulk("RegistrationData"),
        data(registration),
        Reply::bulk("ExecutionThreadPool"),
        Reply::bulk("DefaultPool"),
    ]
}

fn data(registration: &Registration) -> Reply {
    let counts = registration.stats.snapshot();
    let finished = counts.succeeded + counts.failed + counts.aborted;
    let trigger = &registration.trigger;
    let mut pairs = vec![
        ("mode", Reply::bulk(registration.mode.name())),
        ("numTriggered", count(counts.triggered)),
        ("numSuccess", count(counts.succeeded)),
        ("numFailures", count(counts.failed)),
        ("numAborted", count(counts.aborted)),
        ("lastRunDurationMS", Reply::Int(whole_ms(counts.last))),
        ("totalRunDurationMS", Reply::Int(whole_ms(counts.total))),
        ("avgRunDurationMS", Reply::Double(counts.average_ms())),
    ];
    pairs.extend(trigger.figures(finished));
    let last_error = counts.last_error.or_else(|| {
        registration
            .disabled
            .as_ref()
            .map(|disabled| disabled.reason().to_owned())
    });
    pairs.push(("lastError", Reply::bulk_or_null(last_error)));
    pairs.push(("args", flat(trigger.arguments())));
    pairs.extend(trigger.status().map(|status| ("status", Reply::bulk(status))));
    flat(pairs)
}

fn flat(pairs: Vec<(&'static str, Reply)>) -> Reply {
    let flat = pairs
        .into_iter()
        .flat_map(|(name, value)| [Reply::bulk(name), value]);
    Reply::Array(flat.collect())
}

/// `RG.UNREGISTER <registration id> [ABORTPENDING]`
///
/// # Errors
/// No such registration; this is a replica; a shard has changes that are not saved yet.
fn unregister(cluster: &Cluster, command: &Command<'_>) -> Result<Answer, Error> {
    let argv = command.argv();
    if !(2..=3).contains(&argv.len()) {
        return Err(Error::WrongArity);
    }
    let id = argv.get(1).and_then(Id::parse).ok_or(Error::NotRegistered)?;
    let abort_pending = argv
        .get(2)
        .is_some_and(|word| word.eq_ignore_ascii_case(b"ABORTPENDING"));
    cluster.check_place(command.lock())?;
    end(cluster, command, vec![id], abort_pending, Reply::ok())
}

/// Ends registrations. Where other shards may have something to say to that, the client waits for them, if it can.
fn end(
    cluster: &Cluster,
    command: &Command<'_>,
    ids: Vec<Id>,
    abort_pending: bool,
    reply: Reply,
) -> Result<Answer, Error> {
    let lock = command.lock();
    let asks = !abort_pending && lock.is_master() && cluster.others_may_mind(&ids);
    if !asks || check_may_block(command).is_err() {
        cluster.unregister(lock, &ids, abort_pending)?;
        return Ok(reply.into());
    }
    cluster.check_end_here(lock, &ids)?;
    let client = command.block()?;
    cluster.unregister_if_all_agree(ids, move |agreed| {
        client.answer(agreed.map_or_else(|refusal| refusal, |()| reply));
    });
    Ok(Answer::Done)
}

/// `RG.UNREGISTERSESSION <session id> [ABORTPENDING]`: RG.UNREGISTER of all that the session has registered.
///
/// # Errors
/// No such session; this is a replica.
fn unregister_session(cluster: &Cluster, command: &Command<'_>) -> Result<Answer, Error> {
    let argv = command.argv();
    if !(2..=3).contains(&argv.len()) {
        return Err(Error::WrongArity);
    }
    let id = String::from_utf8_lossy(argv.get(1).unwrap_or_default()).into_owned();
    let abort_pending = match argv.get(2) {
        Some(word) if !word.eq_ignore_ascii_case(b"ABORTPENDING") => {
            return Err(Error::UnknownArgument(String::from_utf8_lossy(word).into_owned()));
        }
        word => word.is_some(),
    };
    let session = cluster.engine.registry.sessions(|sessions| sessions.live(&id));
    let session = session.ok_or(Error::NoSuchSession)?;
    cluster.check_place(command.lock())?;
    let registrations = session.registrations();
    let number = Reply::Int(i64::try_from(registrations.len()).unwrap_or(i64::MAX));
    end(cluster, command, registrations, abort_pending, number)
}

/// `RG.PAUSEREGISTRATIONS [ABORTPENDING] <id> [<id> ...]`, and RG.UNPAUSEREGISTRATIONS: all or none.
///
/// # Errors
/// The caller cannot wait; no id; an unknown one; a reader that cannot be paused.
fn pause(cluster: &Cluster, command: &Command<'_>, pause: bool) -> Result<Answer, Error> {
    let words = command.argv().skip(1);
    let first = words.get(0).ok_or(Error::WrongArity)?;
    check_may_block(command)?;
    // Pausing discards what is pending in any case.
    let ids = words.skip(usize::from(first.eq_ignore_ascii_case(b"ABORTPENDING")));
    if ids.len() == 0 {
        return Err(Error::NothingToPause);
    }
    let engine = &cluster.engine;
    let parse = |id: &[u8]| {
        let unknown = || Error::NoSuchRegistrationHere {
            id: String::from_utf8_lossy(id).into_owned(),
            shard: engine.registry.shard().to_string(),
        };
        Id::parse(id).ok_or_else(unknown)
    };
    let ids = ids.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    cluster.check_place(command.lock())?;
    if !cluster.has_others() {
        local::pause(engine, command.lock(), &ids, pause)?;
        return Ok(Reply::ok().into());
    }
    let client = command.block()?;
    cluster.pause(command.lock(), ids, pause, move |reply| client.answer(reply));
    Ok(Answer::Done)
}

/// `RG.CLEARREGISTRATIONSSTATS`
///
/// # Errors
/// An argument; the caller cannot wait.
fn clear_stats(cluster: &Cluster, command: &Command<'_>) -> Result<Answer, Error> {
    if command.argv().len() != 1 {
        return Err(Error::WrongArity);
    }
    check_may_block(command)?;
    cluster.check_place(command.lock())?;
    if !cluster.has_others() {
        local::clear_stats(&cluster.engine);
        return Ok(Reply::ok().into());
    }
    let client = command.block()?;
    cluster.clear_stats(move |reply| client.answer(reply));
    Ok(Answer::Done)
}
