//! What the module asks the server by ordinary commands, read once: options (CONFIG GET) and commands (COMMAND INFO).

use std::{iter::StepBy, ops::Range};

use super::{api::Features, call::call, lock::Lock, refused::question, reply::Reply};

/// The options of the server whose names match `pattern`, with their values, in the server's order. None where CONFIG is
/// unknown.
pub fn config(lock: Lock<'_>, features: Features, pattern: &str) -> Vec<(String, String)> {
    pairs(&call(lock, features, 0, &config_get(pattern)))
}

/// The value of one option; filters do not see the question, and it may be asked wherever functions write.
pub(super) fn config_quietly(lock: Lock<'_>, features: Features, name: &str) -> Option<String> {
    let reply = question(lock, features, 0, &config_get(name));
    pairs(&reply).pop().map(|(_, value)| value)
}

/// Whether the server knows a command by this name; filters do not see the question.
pub fn is_known(lock: Lock<'_>, features: Features, name: &str) -> bool {
    CommandInfo::ask_quietly(lock, features, name.as_bytes()).is_some()
}

/// How many modules there are, this one among them. `None` where that cannot be asked. Filters do not see the question.
pub fn modules(lock: Lock<'_>, features: Features) -> Option<usize> {
    match question(
        lock,
        features,
        0,
        &["MODULE", "LIST"].map(|word| word.as_bytes().to_vec()),
    ) {
        Reply::Array(modules) => Some(modules.len()),
        _ => None,
    }
}

/// Where all clients are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// In database 0, outside of transactions.
    AllAtHome,
    SomeAway,
}

/// Where clients are. `None` where that cannot be asked. Filters do not see the question.
pub fn clients(lock: Lock<'_>, features: Features) -> Option<Clients> {
    let list = question(
        lock,
        features,
        0,
        &["CLIENT", "LIST"].map(|word| word.as_bytes().to_vec()),
    );
    where_are(list.as_text()?)
}

fn where_are(list: &[u8]) -> Option<Clients> {
    let list = String::from_utf8_lossy(list);
    let mut found = Clients::AllAtHome;
    for line in list.lines() {
        let field = |name: &str| {
            line.split(' ')
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        if (field("db")?, field("multi")?) != ("0", "-1") {
            found = Clients::SomeAway;
        }
    }
    Some(found)
}

/// Whether a user may run all commands on all keys, by ACL GETUSER. `None` where that cannot be asked, or has another form. Filters do not
/// see the question.
pub fn may_run_everything(lock: Lock<'_>, features: Features, user: &str) -> Option<bool> {
    let words = ["ACL", "GETUSER", user].map(|word| word.as_bytes().to_vec());
    let reply = question(lock, features, 0, &words);
    let fields = reply.pairs();
    let field = |name: &[u8]| {
        let found = fields.iter().find(|(known, _)| known.as_text() == Some(name))?;
        // A list of patterns before 7.0.
        Some(match found.1 {
            Reply::Array(patterns) => patterns.first()?.as_text()?.to_vec(),
            text => text.as_text()?.to_vec(),
        })
    };
    let commands = field(b"commands")?;
    let keys = field(b"keys").unwrap_or_default();
    Some(commands == b"+@all" && (keys == b"~*" || keys == b"*"))
}

fn config_get(pattern: &str) -> [Vec<u8>; 3] {
    ["CONFIG", "GET", pattern].map(|word| word.as_bytes().to_vec())
}

fn pairs(reply: &Reply) -> Vec<(String, String)> {
    let text = |reply: &Reply| Some(String::from_utf8_lossy(reply.as_text()?).into_owned());
    let pairs = reply.pairs().into_iter();
    pairs
        .filter_map(|(name, value)| Some((text(name)?, text(value)?)))
        .collect()
}

/// Keys that stand behind their number, as those of MSETEX and ZUNIONSTORE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The position of the number.
    number: usize,
    first: usize,
    step: usize,
}

impl Counted {
    /// The positions of the keys in a command of `len` words. None if there are fewer words than the number says, or if it is none:
    /// then the server refuses the command.
    pub fn positions<'w>(self, len: usize, word: &dyn Fn(usize) -> Option<&'w [u8]>) -> StepBy<Range<usize>> {
        let count = word(self.number).and_then(|word| std::str::from_utf8(word).ok()?.parse::<usize>().ok());
        let end = count.and_then(|count| count.checked_mul(self.step)?.checked_add(self.first));
        let end = end.filter(|&end| end <= len).unwrap_or(self.first);
        (self.first..end).step_by(self.step)
    }

    /// Where what stands behind the keys begins.
    pub fn end<'w>(self, len: usize, word: &dyn Fn(usize) -> Option<&'w [u8]>) -> usize {
        self.first + self.positions(len, word).len() * self.step
    }
}

/// Reads the key specifications of COMMAND INFO: the keys that stand behind their number, if no others move.
fn counted(specs: &[Reply]) -> Option<Counted> {
    let place = |reply: &Reply, name| usize::try_from(field(reply, name)?.as_int()?).ok();
    let mut found = None;
    for spec in specs {
        let (begin, find) = (field(spec, b"begin_search")?, field(spec, b"find_keys")?);
        let is = |part, kind: &[u8]| field(part, b"type").and_then(Reply::as_text) == Some(kind);
        if !is(begin, b"index") {
            return None;
        }
        if is(find, b"range") {
            continue;
        }
        if !is(find, b"keynum") || found.is_some() {
            return None;
        }
        let (index, find) = (place(field(begin, b"spec")?, b"index")?, field(find, b"spec")?);
        found = Some(Counted {
            number: index.checked_add(place(find, b"keynumidx")?)?,
            first: index.checked_add(place(find, b"firstkey")?)?,
            step: place(find, b"keystep")?.max(1),
        });
    }
    found
}

fn field<'r>(reply: &'r Reply, name: &[u8]) -> Option<&'r Reply> {
    let mut fields = reply.pairs().into_iter();
    fields
        .find(|(known, _)| known.as_text() == Some(name))
        .map(|(_, value)| value)
}

/// What COMMAND INFO says about a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandInfo {
    /// The server's own name, in lower case.
    pub name: Vec<u8>,
    /// In lower case.
    flags: Vec<Vec<u8>>,
    /// The number of words, or less than the least one with a minus.
    pub arity: i64,
    /// The positions of keys; 0 if there are none.
    pub first: i64,
    pub last: i64,
    pub step: i64,
    /// Further keys, or all of them, that stand behind their number.
    pub counted: Option<Counted>,
    /// Some subcommand cannot be run by scripts; before 7.0 the command itself is marked then.
    pub has_noscript_part: bool,
}

impl CommandInfo {
    /// `None` for an unknown command, and where COMMAND itself is unknown.
    pub fn ask(lock: Lock<'_>, features: Features, name: &str) -> Option<Self> {
        Self::read(&call(lock, features, 0, &command_info(name.as_bytes())))
    }

    /// The same; filters do not see the question, and it may be asked wherever functions run commands.
    pub(super) fn ask_quietly(lock: Lock<'_>, features: Features, name: &[u8]) -> Option<Self> {
        Self::read(&question(lock, features, 0, &command_info(name)))
    }

    fn read(reply: &Reply) -> Option<Self> {
        let info = reply.items().first()?.items();
        let number = |index: usize| info.get(index).and_then(Reply::as_int).unwrap_or(0);
        let mut parts = info.get(9).map_or(&[][..], Reply::items).iter();
        Some(Self {
            name: info.first()?.as_text()?.to_ascii_lowercase(),
            flags: flags(info),
            arity: number(1),
            first: number(3),
            last: number(4),
            step: number(5),
            counted: counted(info.get(8).map_or(&[][..], Reply::items)),
            has_noscript_part: parts.any(|part| flags(part.items()).iter().any(|flag| flag == b"noscript")),
        })
    }

    /// True if it has this flag.
    pub fn has(&self, flag: impl AsRef<[u8]>) -> bool {
        self.flags.iter().any(|known| known == flag.as_ref())
    }
}

fn command_info(name: &[u8]) -> [Vec<u8>; 3] {
    [b"COMMAND".to_vec(), b"INFO".to_vec(), name.to_vec()]
}

fn flags(info: &[Reply]) -> Vec<Vec<u8>> {
    let flags = info.get(2).map_or(&[][..], Reply::items).iter();
    flags
        .filter_map(Reply::as_text)
        .map(<[u8]>::to_ascii_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_in_both_protocols() {
        let expected = vec![
            ("port".to_owned(), "1".to_owned()),
            ("tls-port".to_owned(), "0".to_owned()),
        ];
        assert_eq!(pairs(&Reply::bulks(["port", "1", "tls-port", "0"])), expected);
        let map = ["port", "tls-port"].into_iter().zip(["1", "0"]);
        let map = map.map(|(name, value)| (Reply::bulk(name), Reply::bulk(value)));
        assert_eq!(pairs(&Reply::Map(map.collect())), expected);
        assert_eq!(pairs(&Reply::error("ERR unknown command")), []);
    }

    #[test]
    fn clients_are_at_home_or_not() {
        let line = |db, multi| {
            format!("id=3 addr=127.0.0.1:1 laddr= name= db={db} sub=0 multi={multi} user=default\n")
        };
        let found = |lines: &[String]| where_are(lines.concat().as_bytes());
        assert_eq!(found(&[line(0, -1), line(0, -1)]), Some(Clients::AllAtHome));
        assert_eq!(found(&[line(0, -1), line(1, -1)]), Some(Clients::SomeAway));
        assert_eq!(found(&[line(0, 0), line(0, -1)]), Some(Clients::SomeAway));
        assert_eq!(found(&["id=3 cmd=get\n".to_owned()]), None);
    }

    #[test]
    fn commands_are_read_with_their_parts() {
        let flags = |flags: &[&str]| Reply::Set(flags.iter().map(|flag| Reply::status(flag)).collect());
        let part = Reply::Array(vec![
            Reply::bulk("client|kill"),
            Reply::Int(-3),
            flags(&["NOSCRIPT"]),
        ]);
        let mut info = vec![
            Reply::bulk("CLIENT"),
            Reply::Int(-2),
            flags(&["admin", "Loading"]),
        ];
        info.extend([0, 0, 0].map(Reply::Int));
        info.extend([
            Reply::Array(vec![]),
            Reply::Array(vec![]),
            Reply::Array(vec![]),
            Reply::Array(vec![part]),
        ]);
        let read = CommandInfo::read(&Reply::Array(vec![Reply::Array(info)]));
        let read = read.unwrap_or_default();
        assert_eq!((&read.name[..], read.arity), (&b"client"[..], -2));
        assert!(read.has("loading") && !read.has("noscript") && read.has_noscript_part);
        assert_eq!(CommandInfo::read(&Reply::Array(vec![Reply::Null])), None);
    }

    /// A key specification whose keys begin at `index`.
    fn keys_at(index: i64, kind: &str, spec: &[(&str, i64)]) -> Reply {
        let map = |fields: Vec<(&str, Reply)>| {
            let fields = fields.into_iter();
            Reply::Array(
                fields
                    .flat_map(|(name, value)| [Reply::bulk(name), value])
                    .collect(),
            )
        };
        let numbers = |spec: &[(&'static str, i64)]| {
            let fields = spec.iter().map(|&(name, number)| (name, Reply::Int(number)));
            map(fields.collect())
        };
        let part = |kind: &str, spec| map(vec![("type", Reply::bulk(kind)), ("spec", spec)]);
        let find = spec.iter().map(|&(name, number)| (name, Reply::Int(number)));
        map(vec![
            ("begin_search", part("index", numbers(&[("index", index)]))),
            ("find_keys", part(kind, map(find.collect()))),
        ])
    }

    #[test]
    fn keys_are_counted_where_their_number_says_how_many() {
        let found = |specs: &[Reply], words: &str| {
            let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
            let counted = counted(specs)?;
            let word = |at: usize| words.get(at).copied();
            Some((
                counted.positions(words.len(), &word).collect::<Vec<_>>(),
                counted.end(words.len(), &word),
            ))
        };
        let range = keys_at(1, "range", &[("lastkey", 0), ("keystep", 1), ("limit", 0)]);
        let number = |index, step| {
            keys_at(
                index,
                "keynum",
                &[("keynumidx", 0), ("firstkey", 1), ("keystep", step)],
            )
        };
        let pairs = [number(1, 2)];
        assert_eq!(found(&pairs, "MSETEX 2 a 1 b 2 NX"), Some((vec![2, 4], 6)));
        assert_eq!(found(&pairs, "MSETEX 2 a 1 b 2"), Some((vec![2, 4], 6)));
        for wrong in [
            "MSETEX 2 a 1 b",
            "MSETEX x a 1",
            "MSETEX -1 a 1",
            "MSETEX 9999999999999999999 a 1",
            "MSETEX",
        ] {
            assert_eq!(found(&pairs, wrong), Some((vec![], 2)), "{wrong}");
        }
        let union = [range.clone(), number(2, 1)];
        assert_eq!(
            found(&union, "ZUNIONSTORE a 2 b c WEIGHTS 1 2"),
            Some((vec![3, 4], 5))
        );
        assert_eq!(found(std::slice::from_ref(&range), "GET a"), None);
        assert_eq!(found(&[range, keys_at(1, "unknown", &[])], "SORT a"), None);
    }
}
