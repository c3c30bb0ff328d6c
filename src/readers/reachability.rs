//! Registrations that can never fire, or not for what they seem to be about: what to tell whoever makes one. They are accepted
//! all the same, as 1.2 did.

use super::keys::Conditions;
use crate::server::key::Kind;

/// The names of the events that the servers report by themselves, up to Redis 8.2 and Valkey 9.1. Other modules may report
/// further ones.
const EVENTS: [&str; 67] = [
    "append",
    "copy_to",
    "del",
    "evicted",
    "expire",
    "expired",
    "georadiusstore",
    "geosearchstore",
    "hdel",
    "hexpire",
    "hexpired",
    "hincrby",
    "hincrbyfloat",
    "hpersist",
    "hset",
    "incrby",
    "incrbyfloat",
    "keymiss",
    "linsert",
    "lpop",
    "lpush",
    "lrem",
    "lset",
    "ltrim",
    "move_from",
    "move_to",
    "new",
    "overwritten",
    "persist",
    "pfadd",
    "rename_from",
    "rename_to",
    "restore",
    "rpop",
    "rpush",
    "sadd",
    "sdiffstore",
    "set",
    "setbit",
    "setrange",
    "sinterstore",
    "sortstore",
    "spop",
    "srem",
    "sunionstore",
    "type_changed",
    "xadd",
    "xdel",
    "xgroup-create",
    "xgroup-createconsumer",
    "xgroup-delconsumer",
    "xgroup-destroy",
    "xgroup-setid",
    "xsetid",
    "xtrim",
    "zadd",
    "zdiffstore",
    "zincr",
    "zinterstore",
    "zpopmax",
    "zpopmin",
    "zrangestore",
    "zrem",
    "zremrangebylex",
    "zremrangebyrank",
    "zremrangebyscore",
    "zunionstore",
];

/// Events after which the key is gone: it has no type then.
const GONE: [&str; 6] = ["del", "evicted", "expired", "keymiss", "move_from", "rename_from"];

/// What is doubtful about the conditions of a KeysReader registration, each a sentence.
pub fn of_conditions(conditions: &Conditions) -> Vec<String> {
    let mut doubts: Vec<String> = of_prefix("prefix", &conditions.prefix).into_iter().collect();
    let events = conditions.events.as_deref().unwrap_or_default();
    doubts.extend(events.iter().filter_map(|event| of_event(event)));
    let types = conditions.kinds.as_deref().unwrap_or_default();
    if !events.is_empty() && !types.is_empty() && !types.contains(&Kind::Empty) {
        let is_gone = |event: &&String| GONE.iter().any(|gone| gone.eq_ignore_ascii_case(event));
        for event in events.iter().filter(is_gone) {
            doubts.push(format!(
                "eventTypes '{event}' with keyTypes never fires: the key is gone then, and of the type 'empty'"
            ));
        }
    }
    doubts
}

/// A prefix with a star that is not at its end, which people take for a pattern. `argument`: its name.
pub fn of_prefix(argument: &str, prefix: &str) -> Option<String> {
    let literal = prefix.strip_suffix('*').unwrap_or(prefix);
    literal.contains('*').then(|| {
        format!(
            "{argument} '{prefix}' is no pattern: only a '*' at the end stands for other characters, so it means keys that \
             begin with '{literal}', star and all"
        )
    })
}

/// A prefix whose last star is taken as it is, too.
pub fn of_literal_prefix(argument: &str, prefix: &str) -> Option<String> {
    prefix.contains('*').then(|| {
        format!("{argument} '{prefix}' is no pattern: it means keys that begin with these characters, star and all")
    })
}

fn of_event(event: &str) -> Option<String> {
    let lower = event.to_ascii_lowercase();
    if EVENTS.contains(&lower.as_str()) {
        return None;
    }
    let distance = |known: &&str| strsim::osa_distance(known, &lower);
    let near = EVENTS.into_iter().min_by_key(|known| distance(known));
    let near = near.filter(|known| distance(known) <= 2 && distance(known) < lower.chars().count());
    let advice = near.map_or(String::new(), |known| format!("; did you mean '{known}'?"));
    Some(format!(
        "eventTypes '{event}' never fires unless a module reports such an event: the server has none of this name{advice}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(prefix: &str, events: &[&str], kinds: &[Kind]) -> Vec<String> {
        let texts = |items: &[&str]| {
            (!items.is_empty()).then(|| items.iter().map(|item| (*item).to_owned()).collect())
        };
        of_conditions(&Conditions {
            prefix: prefix.into(),
            events: texts(events),
            kinds: (!kinds.is_empty()).then(|| kinds.to_vec()),
            commands: None,
            read_value: true,
            coalesce: false,
        })
    }

    #[test]
    fn what_can_fire_raises_no_doubt() {
        assert!(of("user:*", &["set", "DEL", "keymiss", "zadd", "New"], &[]).is_empty());
        assert!(of("*", &["set"], &[Kind::String]).is_empty());
        assert!(of("*", &["del"], &[Kind::Empty]).is_empty());
        assert!(of("x", &[], &[Kind::String]).is_empty());
    }

    #[test]
    fn unknown_events_name_the_nearest_one() {
        for (event, near) in [("keymis", "keymiss"), ("expried", "expired"), ("hsett", "hset")] {
            let found = of("*", &[event], &[]);
            assert!(
                found.len() == 1 && found[0].ends_with(&format!("did you mean '{near}'?")),
                "{found:?}"
            );
        }
        let far = of("*", &["something-else"], &[]);
        assert!(far.len() == 1 && far[0].ends_with("none of this name"), "{far:?}");
    }

    #[test]
    fn stars_inside_a_prefix_are_literal() {
        for prefix in ["*stream*", "a*b", "a*b*", "**x"] {
            assert_eq!(of(prefix, &[], &[]).len(), 1, "{prefix}");
        }
        assert!(of_literal_prefix("keyprefix", "user:*").is_some());
        assert!(of_literal_prefix("keyprefix", "user:").is_none());
    }

    #[test]
    fn a_key_that_is_gone_has_no_type() {
        assert_eq!(of("*", &["expired", "set"], &[Kind::String]).len(), 1);
    }
}
