//! The syntax of a command as people write it, turned into what COMMAND DOCS shows.
//!
//! `<script> [UNBLOCKING] [ID <id>] [SHARD|CLUSTER] [<key> <value> ...]`: `<name>` is an argument, capitals are words of
//! the command, brackets mean "optional", dots "several times", a bar "one of".

use std::{
    ffi::{CString, c_char},
    ptr,
};

use redis_module::raw;

/// One argument.
#[derive(Debug, PartialEq, Eq)]
struct Argument {
    name: String,
    /// The word in front of it.
    token: Option<String>,
    optional: bool,
    multiple: bool,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Word,
    OneOf(Vec<Argument>),
    Block(Vec<Argument>),
}

impl Argument {
    fn of(word: &str) -> Self {
        let kind = if word.starts_with('<') {
            Kind::Text
        } else if word.contains('|') {
            Kind::OneOf(word.split('|').map(Self::of).collect())
        } else {
            Kind::Word
        };
        let name = match &kind {
            Kind::OneOf(_) => "choice".to_owned(),
            _ => word.trim_matches(['<', '>']).to_lowercase().replace(' ', "-"),
        };
        Self {
            name,
            token: (kind == Kind::Word).then(|| word.to_owned()),
            optional: false,
            multiple: false,
            kind,
        }
    }
}

fn parse(syntax: &str) -> Vec<Argument> {
    let mut rest = syntax.trim();
    let mut arguments = Vec::new();
    while !rest.is_empty() {
        let end = match rest.as_bytes()[0] {
            b'[' => closing(rest),
            b'<' => rest.find('>').map_or(rest.len(), |at| at + 1),
            _ => rest.find(' ').unwrap_or(rest.len()),
        };
        let (part, after) = rest.split_at(end);
        rest = after.trim_start();
        if let Some(inner) = part.strip_prefix('[') {
            arguments.push(optional(inner.strip_suffix(']').unwrap_or(inner)));
        } else {
            arguments.push(Argument::of(part));
        }
    }
    arguments
}

/// Where the bracket that opens `text` is closed, behind it.
fn closing(text: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'[' => depth += 1,
            b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

/// What stands in brackets, as one argument.
fn optional(inner: &str) -> Argument {
    let multiple = inner.ends_with("...");
    let mut parts = parse(inner.trim_end_matches("...").trim_end());
    let mut argument = match parts.len() {
        1 => parts.remove(0),
        2 if parts[0].kind == Kind::Word && parts[1].kind == Kind::Text => {
            let mut value = parts.remove(1);
            value.token = parts.remove(0).token;
            value
        }
        _ => Argument {
            name: parts.first().map_or_else(String::new, |first| first.name.clone()),
            token: None,
            optional: false,
            multiple: false,
            kind: Kind::Block(parts),
        },
    };
    argument.optional = true;
    argument.multiple |= multiple;
    argument
}

/// The arguments in the server's form. What it points at is kept for ever: commands are registered once.
pub(super) fn arguments(syntax: &str) -> *mut raw::RedisModuleCommandArg {
    list(&parse(syntax))
}

fn list(arguments: &[Argument]) -> *mut raw::RedisModuleCommandArg {
    if arguments.is_empty() {
        return ptr::null_mut();
    }
    let mut all: Vec<_> = arguments.iter().map(raw_argument).collect();
    // SAFETY: an all-zero structure marks the end.
    all.push(unsafe { std::mem::zeroed() });
    Box::leak(all.into_boxed_slice()).as_mut_ptr()
}

fn raw_argument(argument: &Argument) -> raw::RedisModuleCommandArg {
    let (kind, parts) = match &argument.kind {
        Kind::Text => (
            raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_STRING,
            ptr::null_mut(),
        ),
        Kind::Word => (
            raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_PURE_TOKEN,
            ptr::null_mut(),
        ),
        Kind::OneOf(parts) => (
            raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_ONEOF,
            list(parts),
        ),
        Kind::Block(parts) => (
            raw::RedisModuleCommandArgType_REDISMODULE_ARG_TYPE_BLOCK,
            list(parts),
        ),
    };
    let mut flags = raw::REDISMODULE_CMD_ARG_NONE;
    if argument.optional {
        flags |= raw::REDISMODULE_CMD_ARG_OPTIONAL;
    }
    if argument.multiple {
        flags |= raw::REDISMODULE_CMD_ARG_MULTIPLE;
    }
    raw::RedisModuleCommandArg {
        name: text(&argument.name),
        type_: kind,
        key_spec_index: -1,
        token: argument.token.as_deref().map_or(ptr::null(), text),
        summary: ptr::null(),
        since: ptr::null(),
        flags: flags as i32,
        deprecated_since: ptr::null(),
        subargs: parts,
        display_text: ptr::null(),
    }
}

fn text(text: &str) -> *const c_char {
    CString::new(text).unwrap_or_default().into_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    /// A syntax that somebody writes wrong gives some arguments, each with a name of its own.
    #[test]
    fn fuzz_syntax() {
        let seeds = [
            "<script> [UNBLOCKING] [ID <id>] [SHARD|CLUSTER] [<key> <value> ...]",
            "[a [b|c <d>]...]",
        ];
        fuzz("syntax", &seeds.map(|seed| seed.as_bytes().to_vec()), |input| {
            let text = String::from_utf8_lossy(&input[..input.len().min(1000)]);
            let arguments = parse(&text);
            assert!(arguments.len() <= text.len());
            format!("{arguments:?}")
                .chars()
                .filter(|c| "[({Tru".contains(*c))
                .collect()
        });
    }

    fn names(syntax: &str) -> Vec<String> {
        let shown = |argument: &Argument| {
            let token = argument
                .token
                .as_ref()
                .map_or_else(String::new, |token| format!("{token}:"));
            let flags = match (argument.optional, argument.multiple) {
                (true, true) => "*",
                (true, false) => "?",
                (false, true) => "+",
                (false, false) => "",
            };
            format!("{token}{}{flags}", argument.name)
        };
        parse(syntax).iter().map(shown).collect()
    }

    #[test]
    fn syntax_is_read_as_people_write_it() {
        assert_eq!(
            names("<script> [UNBLOCKING] [ID <id>] [REQUIREMENTS [<requirement> ...]]"),
            [
                "script",
                "UNBLOCKING:unblocking?",
                "ID:id?",
                "REQUIREMENTS:requirement*"
            ]
        );
        assert_eq!(
            names("<execution id> [SHARD|CLUSTER]"),
            ["execution-id", "choice?"]
        );
        assert_eq!(names("[<key> <value> ...]"), ["key*"]);
        assert_eq!(names("STATS <session id>"), ["STATS:stats", "session-id"]);
        assert_eq!(names(""), [""; 0]);
    }
}
