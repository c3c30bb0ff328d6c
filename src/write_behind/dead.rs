//! Changes that cannot be saved go into a stream, with whatever is known of them.

use std::{fmt::Write as _, sync::Arc};

use super::{
    Sink, WriteBehind,
    machine::{Change, FailedSave, Queue, Time},
    pump::LOG_EVERY,
    source::type_name,
};
use crate::{
    engine::{members::tag_of, record::Value},
    server::{api, bus, call::perform, lock::Lock, reply::Reply, rights::Actor, snapshot::Snapshot},
};

impl WriteBehind {
    /// Puts a change away that is given up. False: that failed, and it stays.
    pub(super) fn put_away(
        &self,
        lock: Lock<'_>,
        now: Time,
        token: u64,
        place: u64,
        why: &Arc<FailedSave>,
    ) -> bool {
        let mut state = self.state.write(lock);
        let Some(sink) = state.token(token) else {
            return false;
        };
        let Some(entry) = sink.queue.entry(place) else {
            return false;
        };
        let (change, tries) = (entry.change.clone(), entry.tries);
        let (stream, prefix) = (sink.options.dead_letter.clone(), sink.options.prefix.clone());
        let owner = Arc::clone(&sink.owner);
        drop(state);
        let name = String::from_utf8_lossy(&change.key.name).into_owned();
        let put = match &stream {
            Some(stream) => {
                let words = words(&owner.id.to_string(), &change, tries, why);
                let put = self.append(lock, stream, words, owner.actor.as_deref());
                put.map_err(|reason| format!("cannot be put into '{stream}' either: {reason}"))
            }
            None => Err("stays where it is: there is no dead_letter".into()),
        };
        let mut state = self.state.write(lock);
        let Some(sink) = state.token(token) else {
            return false;
        };
        if let Err(reason) = put {
            let kind = &why.kind;
            let text = format!(
                "the change {} of '{name}' cannot be saved ({kind}), and {reason}",
                change.id
            );
            sink.complain_of_letters(now, &text);
            owner.stats.in_trouble(text);
            return false;
        }
        let Some(entry) = sink.queue.bury(place, why) else {
            return true;
        };
        state.unsent.frames.gone(&prefix, &[Queue::gone_with(&entry)]);
        drop(state);
        api::log_warning(&format!(
            "write_behind: the change {} of '{name}' cannot be saved and is in '{}': {}",
            change.id,
            stream.unwrap_or_default(),
            why.kind
        ));
        true
    }

    /// Puts those changes of a call away that are damaged. What cannot be put away stays, and comes again.
    pub(super) fn put_damaged_away(
        &self,
        lock: Lock<'_>,
        now: Time,
        token: u64,
        call: u64,
        mut damaged: Vec<u64>,
    ) {
        if damaged.is_empty() {
            return;
        }
        let why = Arc::new(FailedSave {
            kind: "Damaged".into(),
            text: "the bytes of this change are damaged".into(),
        });
        damaged.retain(|place| !self.put_away(lock, now, token, *place, &why));
        if let Some(sink) = self.state.write(lock).token(token) {
            sink.queue.held_back(now, call, &damaged);
        }
    }

    fn append(
        &self,
        lock: Lock<'_>,
        stream: &str,
        words: Vec<Vec<u8>>,
        actor: Option<&Actor>,
    ) -> Result<(), String> {
        let stream = self.stream_here(lock, stream)?;
        let argv = [vec![b"XADD".to_vec(), stream, b"*".to_vec()], words].concat();
        if let Some(actor) = actor {
            let allowed = actor.check_command(lock, &argv);
            allowed.map_err(|refusal| refusal.to_string())?;
        }
        // What happens to the stream is no change, whatever it is called.
        let before = std::mem::replace(&mut self.state.write(lock).quiet, true);
        let reply = perform(lock, self.engine.features, 0, &argv);
        self.state.write(lock).quiet = before;
        match reply {
            Reply::Error(text) => Err(String::from_utf8_lossy(&text).into_owned()),
            _ => Ok(()),
        }
    }

    /// The stream's name on this shard: with a tag of one of its slots, where there are several.
    fn stream_here(&self, lock: Lock<'_>, stream: &str) -> Result<Vec<u8>, String> {
        if !bus::is_cluster_node(lock) {
            return Ok(stream.as_bytes().to_vec());
        }
        let members = self.engine.members();
        let slots = members.and_then(|members| members.first_slots(self.engine.registry.shard()));
        let (first, _) = slots.ok_or("it is not known which slots this shard has")?;
        Ok(format!("{stream}{{{}}}", tag_of(first)).into_bytes())
    }
}

impl Sink {
    /// Says in the log that a change cannot be put away either, once a minute.
    fn complain_of_letters(&mut self, now: Time, text: &str) {
        if self.letters_logged.is_some_and(|logged| now < logged + LOG_EVERY) {
            return;
        }
        self.letters_logged = Some(now);
        api::log_warning(&format!("write_behind: {text}; it is tried again"));
    }
}

/// The fields of a dead letter and their values.
fn words(registration: &str, change: &Change<Snapshot>, tries: u32, why: &FailedSave) -> Vec<Vec<u8>> {
    let payload = &change.payload;
    let (kind, value) = if payload.is_damaged() {
        ("damaged", payload.damaged_bytes().to_vec())
    } else {
        (type_name(payload), text(&Value::from(payload)))
    };
    let pairs: [(&str, Vec<u8>); 10] = [
        ("id", change.id.to_string().into_bytes()),
        ("registration", registration.as_bytes().to_vec()),
        ("db", change.key.db.to_string().into_bytes()),
        ("key", change.key.name.to_vec()),
        ("event", change.event.as_bytes().to_vec()),
        ("type", kind.as_bytes().to_vec()),
        ("value", value),
        ("error", why.kind.as_bytes().to_vec()),
        ("traceback", why.text.as_bytes().to_vec()),
        ("tries", tries.to_string().into_bytes()),
    ];
    pairs
        .into_iter()
        .flat_map(|(name, value)| [name.as_bytes().to_vec(), value])
        .collect()
}

/// A string as it is, anything else as JSON; bytes that are not UTF-8 are written there as Python's `surrogateescape` has them.
fn text(value: &Value) -> Vec<u8> {
    match value {
        Value::None => Vec::new(),
        Value::Key(text) | Value::Text(text) => text.clone(),
        Value::SharedKey(text) => text.to_vec(),
        Value::Kept(kept) => text(&Value::from(kept)),
        other => json(other).into_bytes(),
    }
}

fn json(value: &Value) -> String {
    match value {
        Value::None => "null".into(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) if number.is_finite() => number.to_string(),
        Value::Float(number) => quoted(number.to_string().as_bytes()),
        Value::Text(text) | Value::Key(text) => quoted(text),
        Value::SharedKey(text) => quoted(text),
        Value::Id(first, second) => format!("\"{first}-{second}\""),
        Value::Kept(kept) => json(&Value::from(kept)),
        Value::Missed(key) => json(&Value::missed(key.clone())),
        Value::Name(name) => quoted(name.as_bytes()),
        Value::List(items) | Value::Set(items) => {
            let items: Vec<String> = items.iter().map(json).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Dict(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| format!("{}: {}", quoted(name), json(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

fn quoted(text: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in text.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                letter if letter < ' ' => {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{:04x}", u32::from(letter));
                }
                letter => out.push(letter),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\udc{byte:02x}");
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn values_are_shown_as_text_or_json() {
        assert_eq!(text(&Value::Key(b"a\xff".to_vec())), b"a\xff");
        let hash = Value::Dict(vec![
            (Cow::Borrowed(b"a\"b"), Value::Key(b"x\n\xff".to_vec())),
            (Cow::Borrowed(b"n"), Value::Float(1.5)),
        ]);
        assert_eq!(
            String::from_utf8(text(&hash)).unwrap_or_default(),
            "{\"a\\\"b\": \"x\\u000a\\udcff\", \"n\": 1.5}"
        );
        let set = Value::Set(vec![Value::Key(b"a\xfe".to_vec()), Value::Key(b"a\xff".to_vec())]);
        assert_eq!(text(&set), br#"["a\udcfe", "a\udcff"]"#);
        assert_eq!(
            text(&Value::List(vec![Value::Key(b"a".to_vec()), Value::None])),
            b"[\"a\", null]"
        );
    }
}
