//! The module's sections of INFO. Contract: docs/contract/commands.md 7.1, with values escaped so that each stays one
//! value.
//!
//! Called on the server's thread.

use std::fmt::Write as _;

use crate::{
    cluster::Cluster,
    commands::{requirements, session_literal, small::PLUGIN},
    engine::{Engine, registration::Registration, session::Session, whole_ms},
    python::memory,
    read_through::ReadThrough,
    server::{info::Info, reply::Reply, rights, room},
    write_behind::WriteBehind,
};

/// Fills the sections that were asked for.
pub fn fill(info: &Info, engine: &Engine, cluster: &Cluster, loads: &ReadThrough, behind: &WriteBehind) {
    if info.section("") {
        info.number("nexecutions", engine.registry.execution_count() as u64);
        info.number("nregistrations", engine.registry.registration_count() as u64);
        info.number("queued_executions", engine.queued() as u64);
        info.number("lost_workers", engine.lost_workers() as u64);
        info.number("linked_commands", engine.stats.linked());
        info.number("hooked_commands", engine.stats.hooked());
        info.number("unlinked_for_acl", engine.stats.acl_unlinked());
        info.number("refused_for_acl", rights::refused());
        info.number("refused_for_memory", room::refusals());
    }
    if info.section("cluster") {
        for (name, figure) in cluster.figures() {
            info.number(name, figure);
        }
    }
    if info.section("read_through") {
        for (name, figure) in loads.totals(info.lock()) {
            info.number(name, figure);
        }
    }
    if info.section("write_behind") {
        for (name, figure) in behind.totals(info.lock()) {
            info.number(name, figure);
        }
    }
    // Spelled as in 1.2.
    if info.section("regisrations") {
        for registration in engine.registry.registrations() {
            info.text(&registration.id.to_string(), &registration_line(&registration));
        }
    }
    if info.section("plugins") {
        let (name, version) = PLUGIN;
        info.text(name, &format!("version={version}"));
    }
    if info.section("python_stats") {
        let figures = memory::figures();
        info.number("TotalAllocated", figures.total);
        info.number("PeakAllocated", figures.peak);
        info.number("CurrAllocated", figures.current);
    }
    if info.section("python_requirements") {
        let lock = info.lock();
        for requirement in engine.requirements.all(lock) {
            let line = requirement_line(&requirements::entry(engine, lock, &requirement));
            info.text(&field_name(&requirement.name), &line);
        }
    }
    if info.section("python_sessions") {
        let (live, dead) = engine
            .registry
            .sessions(|sessions| (sessions.all_live(), sessions.all_dead()));
        for session in live.iter().chain(&dead) {
            info.text(&session.id, &escaped(&session_literal::literal(session), false));
        }
    }
}

/// `name=value` of an entry of RG.PYDUMPREQS, but for its version and its name.
fn requirement_line(entry: &Reply) -> String {
    let Reply::Array(words) = entry else {
        return String::new();
    };
    let pairs = words.chunks_exact(2).skip(2).map(|pair| {
        let value = match &pair[1] {
            Reply::Array(files) => {
                let files = files.iter().map(|file| format!("'{}'", describe(file)));
                format!("[{}]", files.collect::<Vec<_>>().join("|"))
            }
            value => describe(value),
        };
        format!("{}={}", describe(&pair[0]), escaped(&value, true))
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// A text as the name of a field, which ends at the colon.
fn field_name(text: &str) -> String {
    escaped(text, false).replace(':', "\\x3a")
}

fn registration_line(registration: &Registration) -> String {
    let counts = registration.stats.snapshot();
    let mut line = String::new();
    let mut add = |name: &str, value: &str| {
        let separator = if line.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(line, "{separator}{name}={}", escaped(value, true));
    };
    add("desc", registration.desc.as_deref().unwrap_or("None"));
    add("reader", registration.trigger.reader());
    add("mode", registration.mode.name());
    for (name, count) in [
        ("numTriggered", counts.triggered),
        ("numSuccess", counts.succeeded),
        ("numFailures", counts.failed),
        ("numAborted", counts.aborted),
    ] {
        add(name, &count.to_string());
    }
    add("lastRunDurationMS", &whole_ms(counts.last).to_string());
    add("totalRunDurationMS", &whole_ms(counts.total).to_string());
    add("avgRunDurationMS", &counts.average_ms().to_string());
    for (name, value) in registration
        .trigger
        .figures(counts.succeeded + counts.failed + counts.aborted)
    {
        add(name, &describe(&value));
    }
    add("lastError", counts.last_error.as_deref().unwrap_or("None"));
    for (name, value) in registration.trigger.arguments() {
        add(name, &describe(&value));
    }
    if let Some(status) = registration.trigger.status() {
        add("status", status);
    }
    let (running, waiting) = registration.stats.spreads();
    for (name, number) in [
        ("pending", registration.stats.pending()),
        ("runP50US", running.p50_us),
        ("runP99US", running.p99_us),
        ("runMaxUS", running.max_us),
        ("waitP50US", waiting.p50_us),
        ("waitP99US", waiting.p99_us),
        ("waitMaxUS", waiting.max_us),
    ] {
        add(name, &number.to_string());
    }
    let session = session_value(&registration.session);
    let _ = write!(line, ",PD={session}");
    line
}

/// The commas of the literal are bars, as in 1.2.
fn session_value(session: &Session) -> String {
    escaped(&session_literal::literal(session), false).replace(',', "|")
}

/// An argument of a reader: `None`, a number, a text, or `[a|b]`.
fn describe(value: &Reply) -> String {
    match value {
        Reply::Int(number) => number.to_string(),
        Reply::Double(number) => number.to_string(),
        Reply::Bulk(text) | Reply::Status(text) => String::from_utf8_lossy(text).into_owned(),
        Reply::Array(items) => {
            let items: Vec<String> = items.iter().map(describe).collect();
            format!("[{}]", items.join("|"))
        }
        _ => "None".into(),
    }
}

/// A value on one line: backslash, line ends and, where it would end the value, the comma are written as in a string
/// literal of Python.
fn escaped(text: &str, comma: bool) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\0' => line.push_str("\\x00"),
            ',' if comma => line.push_str("\\x2c"),
            plain => line.push(plain),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_on_their_line_and_in_their_field() {
        assert_eq!(escaped("a,b\r\n\\", true), "a\\x2cb\\r\\n\\\\");
        assert_eq!(escaped("a,b", false), "a,b");
        assert_eq!(describe(&Reply::bulks(["set", "del"])), "[set|del]");
        assert_eq!(describe(&Reply::Null), "None");
        assert_eq!(field_name("a @ b:c\n"), "a @ b\\x3ac\\n");
    }
}
