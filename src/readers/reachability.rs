//! Registrations that can never fire, or not for what they seem to be about: what to tell whoever makes one. They are accepted
//! all the same, as 1.2 did.

use super::keys::Conditions;
use crate::{
    engine::doubts::{of_event, of_prefix},
    server::key::Kind,
};

/// Events after which the key is gone: it has no type then.
const GONE: [&str; 6] = ["del", "evicted", "expired", "keymiss", "move_from", "rename_from"];

/// What is doubtful about the conditions of a KeysReader registration, each a sentence.
pub fn of_conditions(conditions: &Conditions) -> Vec<String> {
    let mut doubts: Vec<String> = of_prefix("prefix", &conditions.prefix).into_iter().collect();
    let events = conditions.events.as_deref().unwrap_or_default();
    doubts.extend(events.iter().filter_map(|event| of_event("eventTypes", event)));
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
    fn a_key_that_is_gone_has_no_type() {
        assert_eq!(of("*", &["expired", "set"], &[Kind::String]).len(), 1);
    }
}
