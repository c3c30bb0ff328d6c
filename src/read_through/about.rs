//! RG.KEYINFO: what the registrations of `read_through` know of one key. Under the server's lock; nothing is loaded or counted.

use super::{
    ReadThrough, Served, life,
    machine::{Rule, Seen, SeenLoad, Standing, Time},
};
use crate::server::{
    key::{self, Life},
    lock::Lock,
    reply::Reply,
};

/// Names and values of one registration.
pub type Facts = Vec<(&'static str, Reply)>;

/// A duration in milliseconds.
pub fn ms(duration: std::time::Duration) -> Reply {
    Reply::Int(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX))
}

fn ms_or_null(duration: Option<std::time::Duration>) -> Reply {
    duration.map_or(Reply::Null, ms)
}

impl ReadThrough {
    /// What is known of a key: an entry for each registration whose prefix it has, the one that loads it first.
    pub fn about(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> Vec<Facts> {
        let life = key::life(lock, db, name);
        let is_unsaved = self.is_changed(lock, db, name);
        let (state, now) = (self.state.read(lock), self.now());
        let Some(loader) = state.served_for(name) else {
            return Vec::new();
        };
        let seen = state.machine.look_at(now, db, name);
        let mut all = Vec::new();
        for (id, served) in state
            .served
            .iter()
            .filter(|(_, served)| served.pattern.matches(name))
        {
            let registration = &served.registration;
            let mut facts = vec![
                ("id", Reply::bulk(registration.id.to_string())),
                ("prefix", Reply::bulk(&served.options.prefix)),
                ("session", Reply::bulk(&registration.session.id)),
            ];
            match state.machine.rule(id) {
                Some(rule) if id == loader => {
                    facts.extend(served.facts(rule, now, life, &seen, is_unsaved));
                    all.insert(0, facts);
                }
                _ => {
                    facts.push(("state", Reply::bulk("shadowed")));
                    all.push(facts);
                }
            }
        }
        all
    }
}

impl Served {
    fn facts(&self, rule: &Rule, now: Time, life: Life, seen: &Seen, is_unsaved: bool) -> Facts {
        let options = &self.options;
        let left = match life {
            Life::Until { at_ms, left_ms } => Some((left_ms, life::is_marked(at_ms))),
            Life::Missing | Life::Endless => None,
        };
        // What is not marked is a client's own, where values are marked at all.
        let ours = left.filter(|(_, marked)| *marked || !life::marks(options));
        let fresh_ms = ours.map(|(left_ms, _)| life::fresh_left_ms(options, left_ms));
        let state = match (life, fresh_ms) {
            (Life::Missing, _) if is_unsaved => "unsaved",
            (Life::Missing, _) if seen.absent_for.is_some() => "absent",
            (Life::Missing, _) => "missing",
            (Life::Endless, _) => "endless",
            (Life::Until { .. }, None) => "own",
            (Life::Until { .. }, Some(fresh)) if fresh <= 0 && options.stale > 0.0 => "stale",
            (Life::Until { .. }, Some(_)) => "fresh",
        };
        let is_stale = state == "stale";
        let number = |ms: Option<i64>| ms.map_or(Reply::Null, Reply::Int);
        let (load, load_for) = match seen.load {
            None => ("none", None),
            Some(SeenLoad::Queued) => ("queued", None),
            Some(SeenLoad::Running(time)) => ("running", Some(time)),
        };
        let registration = &self.registration;
        let last_error = registration.stats.snapshot().last_error;
        let disabled = registration.disabled.as_ref();
        let last_error = last_error.or_else(|| disabled.map(|disabled| disabled.reason().to_owned()));
        vec![
            ("state", Reply::bulk(state)),
            ("freshMS", number(fresh_ms.filter(|_| !is_stale))),
            (
                "staleMS",
                number(fresh_ms.filter(|_| is_stale).map(|fresh| -fresh)),
            ),
            (
                "absentMS",
                ms_or_null(seen.absent_for.filter(|_| state == "absent")),
            ),
            ("load", Reply::bulk(load)),
            ("loadMS", ms_or_null(load_for)),
            (
                "waiting",
                Reply::Int(i64::try_from(seen.waiting).unwrap_or(i64::MAX)),
            ),
            ("failures", Reply::Int(seen.failures.into())),
            ("backoffMS", ms_or_null(seen.backs_off_for)),
            ("breaker", Reply::bulk(rule.breaker.state(now))),
            ("breakerMS", ms_or_null(rule.breaker.rest(now))),
            (
                "loader",
                Reply::bulk(match rule.standing {
                    Standing::Ready => "ready",
                    Standing::Awaited => "being loaded",
                    Standing::Missing => "not loaded",
                }),
            ),
            ("lastError", Reply::bulk_or_null(last_error)),
        ]
    }
}
