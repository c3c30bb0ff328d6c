//! What is doubtful about the prefixes and the names of events that a registration is given, each a sentence: it is accepted all the
//! same.

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

/// A prefix with a star that is not at its end, or with what else stands for characters in patterns, for which people take it.
/// `argument`: its name.
pub fn of_prefix(argument: &str, prefix: &str) -> Option<String> {
    let literal = prefix.strip_suffix('*').unwrap_or(prefix);
    let has_set = literal
        .split_once('[')
        .is_some_and(|(_, rest)| rest.contains(']'));
    let what = if literal.contains('*') {
        "star"
    } else if has_set {
        "brackets"
    } else if literal.ends_with('?') {
        "question mark"
    } else {
        return None;
    };
    let keys = if literal.len() < prefix.len() {
        "keys that begin with"
    } else {
        "the key"
    };
    Some(format!(
        "{argument} '{prefix}' is no pattern: only a '*' at the end stands for other characters, so it means {keys} '{literal}', \
         {what} and all"
    ))
}

/// A prefix whose last star is taken as it is, too.
pub fn of_literal_prefix(argument: &str, prefix: &str) -> Option<String> {
    prefix.contains('*').then(|| {
        format!("{argument} '{prefix}' is no pattern: it means keys that begin with these characters, star and all")
    })
}

/// An event that the server does not report. `argument`: the name of the list.
pub fn of_event(argument: &str, event: &str) -> Option<String> {
    let lower = event.to_ascii_lowercase();
    if EVENTS.contains(&lower.as_str()) {
        return None;
    }
    let distance = |known: &&str| strsim::osa_distance(known, &lower);
    let near = EVENTS.into_iter().min_by_key(|known| distance(known));
    let near = near.filter(|known| distance(known) <= 2 && distance(known) < lower.chars().count());
    let advice = near.map_or(String::new(), |known| format!("; did you mean '{known}'?"));
    Some(format!(
        "{argument} '{event}' never fires unless a module reports such an event: the server has none of this name{advice}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_fire_raises_no_doubt() {
        for event in ["set", "DEL", "keymiss", "zadd", "New"] {
            assert_eq!(of_event("events", event), None);
        }
        for prefix in ["user:*", "*", "x", "page:/search?q=*", "a[b"] {
            assert_eq!(of_prefix("prefix", prefix), None);
        }
    }

    #[test]
    fn unknown_events_name_the_nearest_one() {
        for (event, near) in [("keymis", "keymiss"), ("expried", "expired"), ("hsett", "hset")] {
            let found = of_event("events", event);
            let end = format!("did you mean '{near}'?");
            assert!(
                found.as_ref().is_some_and(|found| found.ends_with(&end)),
                "{found:?}"
            );
        }
        let far = of_event("events", "something-else");
        assert!(
            far.as_ref().is_some_and(|far| far.ends_with("none of this name")),
            "{far:?}"
        );
    }

    #[test]
    fn what_stands_for_characters_elsewhere_is_literal() {
        for prefix in ["*stream*", "a*b", "a*b*", "**x", "w:[ab]*", "w:?", "w:?*"] {
            assert!(of_prefix("prefix", prefix).is_some(), "{prefix}");
        }
        assert!(of_literal_prefix("keyprefix", "user:*").is_some());
        assert!(of_literal_prefix("keyprefix", "user:").is_none());
    }
}
