//! RG.STATS: all figures of a server as one JSON document. Its schema stands in docs/commands.md; a field is only ever
//! added, and [`SCHEMA`] goes up when one changes its meaning or goes.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    engine::{Engine, phase::Status, registration::Registration, session::Session},
    error::Error,
    module::Pinion,
    python::{interpreter, memory},
    server::{
        command::{Answer, Command},
        figures,
        lock::Lock,
        reply::Reply,
        rights, room,
    },
    stats::Percentiles,
};

commands! {
    stats_command {
        name: c"rg.stats",
        flags: c"readonly",
        categories: c"read gears gears-look",
        syntax: "",
        summary: c"Shows all figures of this server as a JSON document.",
        handler: stats,
    }
}

/// The version of the document.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document {
    schema: u32,
    pinion: &'static str,
    python: String,
    shard: String,
    role: &'static str,
    uptime_s: Option<u64>,
    memory: Memory,
    executions: Executions,
    commands: Commands,
    registrations: Vec<RegistrationFigures>,
    sessions: Vec<SessionFigures>,
    cluster: ClusterFigures,
    read_through: BTreeMap<&'static str, u64>,
    write_behind: BTreeMap<&'static str, u64>,
}

/// Bytes.
#[derive(Serialize)]
struct Memory {
    server_used: Option<u64>,
    server_max: Option<u64>,
    python_current: u64,
    python_peak: u64,
    python_total: u64,
}

#[derive(Serialize)]
struct Executions {
    queued: usize,
    lost_workers: usize,
    kept: usize,
    by_status: BTreeMap<&'static str, usize>,
}

#[derive(Serialize)]
struct Commands {
    linked: u64,
    hooked: u64,
    unlinked_for_acl: u64,
    refused_for_acl: u64,
    refused_for_memory: u64,
}

#[derive(Serialize)]
struct RegistrationFigures {
    id: String,
    reader: &'static str,
    description: Option<String>,
    session: String,
    mode: &'static str,
    arguments: Map<String, Value>,
    status: Option<&'static str>,
    triggered: u64,
    succeeded: u64,
    failed: u64,
    aborted: u64,
    pending: u64,
    run_total_ms: u64,
    run_us: Times,
    wait_us: Times,
    last_error: Option<String>,
    warnings: Vec<String>,
    figures: Map<String, Value>,
}

/// Microseconds.
#[derive(Serialize)]
struct Times {
    p50: u64,
    p99: u64,
    max: u64,
}

impl From<Percentiles> for Times {
    fn from(times: Percentiles) -> Self {
        Self {
            p50: times.p50_us,
            p99: times.p99_us,
            max: times.max_us,
        }
    }
}

#[derive(Serialize)]
struct SessionFigures {
    id: String,
    description: Option<String>,
    replaced: bool,
    references: usize,
    registrations: Vec<String>,
    requirements: Vec<String>,
}

#[derive(Serialize)]
struct ClusterFigures {
    enabled: bool,
    links_connected: u64,
    messages_pending: u64,
    messages_sent: u64,
    messages_sent_bytes: u64,
    messages_received: u64,
    shards: Vec<ShardFigures>,
}

#[derive(Serialize)]
struct ShardFigures {
    id: String,
    me: bool,
    host: String,
    port: u16,
    slots: Vec<(u16, u16)>,
    connected: bool,
    messages_pending: usize,
}

/// `RG.STATS`
///
/// # Errors
/// An argument.
fn stats(pinion: &Pinion, command: &Command<'_>) -> Result<Answer, Error> {
    if command.argv().len() != 1 {
        return Err(Error::WrongArity);
    }
    let document = document(pinion, command.lock());
    let text = serde_json::to_vec(&document)
        .map_err(|error| Error::Text(format!("ERR could not write the figures: {error}")))?;
    Ok(Reply::Bulk(text).into())
}

fn document(pinion: &Pinion, lock: Lock<'_>) -> Document {
    let engine = &pinion.engine;
    let (live, dead) = engine
        .registry
        .sessions(|sessions| (sessions.all_live(), sessions.all_dead()));
    let [uptime_s] = figures::read(lock, c"server", [c"uptime_in_seconds"]);
    Document {
        schema: SCHEMA,
        pinion: env!("CARGO_PKG_VERSION"),
        python: interpreter::version(),
        shard: engine.registry.shard().to_string(),
        role: if lock.is_master() { "master" } else { "replica" },
        uptime_s,
        memory: memory_figures(lock),
        executions: executions(engine),
        commands: Commands {
            linked: engine.stats.linked(),
            hooked: engine.stats.hooked(),
            unlinked_for_acl: engine.stats.acl_unlinked(),
            refused_for_acl: rights::refused(),
            refused_for_memory: room::refusals(),
        },
        registrations: engine.registry.registrations().iter().map(registration).collect(),
        sessions: live.iter().chain(&dead).map(session).collect(),
        cluster: cluster(pinion),
        read_through: without_prefix("read_through_", pinion.loads.totals(lock)),
        write_behind: without_prefix("write_behind_", pinion.behind.totals(lock)),
    }
}

/// Sums as INFO has them, by shorter names.
fn without_prefix(prefix: &str, totals: Vec<(&'static str, u64)>) -> BTreeMap<&'static str, u64> {
    let short = |(name, figure): (&'static str, u64)| (name.strip_prefix(prefix).unwrap_or(name), figure);
    totals.into_iter().map(short).collect()
}

fn memory_figures(lock: Lock<'_>) -> Memory {
    let [server_used, server_max] = figures::read(lock, c"memory", [c"used_memory", c"maxmemory"]);
    let python = memory::figures();
    Memory {
        server_used,
        server_max: server_max.filter(|&bytes| bytes > 0),
        python_current: python.current,
        python_peak: python.peak,
        python_total: python.total,
    }
}

fn executions(engine: &Engine) -> Executions {
    let (whole, done) = engine.registry.whole_executions();
    let mut by_status = BTreeMap::new();
    for execution in &whole {
        *by_status.entry(execution.state_name()).or_default() += 1;
    }
    if done > 0 {
        *by_status.entry(Status::Done.name()).or_default() += done;
    }
    Executions {
        queued: engine.queued(),
        lost_workers: engine.lost_workers(),
        kept: whole.len() + done,
        by_status,
    }
}

fn registration(registration: &Arc<Registration>) -> RegistrationFigures {
    let counts = registration.stats.snapshot();
    let (running, waiting) = registration.stats.spreads();
    let trigger = &registration.trigger;
    let finished = counts.succeeded + counts.failed + counts.aborted;
    RegistrationFigures {
        id: registration.id.to_string(),
        reader: trigger.reader(),
        description: registration.desc.clone(),
        session: registration.session.id.clone(),
        mode: registration.mode.name(),
        arguments: object(trigger.arguments()),
        status: trigger.status(),
        triggered: counts.triggered,
        succeeded: counts.succeeded,
        failed: counts.failed,
        aborted: counts.aborted,
        pending: registration.stats.pending(),
        run_total_ms: u64::try_from(counts.total.as_millis()).unwrap_or(u64::MAX),
        run_us: running.into(),
        wait_us: waiting.into(),
        last_error: counts.last_error.or_else(|| {
            registration
                .disabled
                .as_ref()
                .map(|disabled| disabled.reason().to_owned())
        }),
        warnings: trigger.doubts(),
        figures: object(trigger.figures(finished)),
    }
}

fn session(session: &Arc<Session>) -> SessionFigures {
    let registrations = session.registrations();
    let requirements = &session.needs.requirements;
    SessionFigures {
        id: session.id.clone(),
        description: session
            .description
            .as_ref()
            .map(|text| String::from_utf8_lossy(text).into_owned()),
        replaced: session.is_replaced(),
        references: session.ref_count(),
        registrations: registrations.iter().map(ToString::to_string).collect(),
        requirements: requirements.iter().map(|needed| needed.name.clone()).collect(),
    }
}

fn cluster(pinion: &Pinion) -> ClusterFigures {
    let shards: Vec<ShardFigures> = pinion
        .cluster
        .members()
        .into_iter()
        .map(|member| ShardFigures {
            id: member.id.to_string(),
            me: member.is_me,
            host: member.host,
            port: member.port,
            slots: member.slots,
            connected: member.connected,
            messages_pending: member.pending_messages,
        })
        .collect();
    let figures = BTreeMap::from(pinion.cluster.figures());
    let figure = |name| figures.get(name).copied().unwrap_or_default();
    ClusterFigures {
        enabled: !shards.is_empty(),
        links_connected: figure("links_connected"),
        messages_pending: figure("messages_pending"),
        messages_sent: figure("messages_sent"),
        messages_sent_bytes: figure("messages_sent_bytes"),
        messages_received: figure("messages_received"),
        shards,
    }
}

fn object(pairs: Vec<(&'static str, Reply)>) -> Map<String, Value> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), json(&value)))
        .collect()
}

/// A figure or an argument of a reader: none of them has a form of RESP3. Bytes that are no text are shown as one.
fn json(reply: &Reply) -> Value {
    match reply {
        Reply::Int(number) => Value::from(*number),
        Reply::Double(number) => Value::from(*number),
        Reply::Bool(value) => Value::from(*value),
        Reply::Bulk(text) | Reply::Status(text) => Value::from(String::from_utf8_lossy(text)),
        Reply::Array(items) => items.iter().map(json).collect(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_plain_json() {
        let pairs = vec![
            ("regex", Reply::bulk(b"a\xff\"*")),
            ("commands", Reply::bulks(["get", "mget"])),
            ("ttl", Reply::Double(0.5)),
            ("none", Reply::Null),
        ];
        let text = Value::Object(object(pairs)).to_string();
        assert_eq!(
            text,
            "{\"commands\":[\"get\",\"mget\"],\"none\":null,\"regex\":\"a\u{fffd}\\\"*\",\"ttl\":0.5}"
        );
    }
}
