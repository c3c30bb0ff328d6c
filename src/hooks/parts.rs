//! Which keys of a writing command have to be whole before it runs, where changes are saved: those of which it keeps a part, on which
//! it depends, or of which it makes something that is saved. Asked by `loads.rs`, for keys that are missing. Pure.

use std::ops::Range;

use smallvec::SmallVec;

use super::spec::CommandSpec;

/// Commands that remove keys, in lower case; what they remove matters also where it is not there. Those behind the first two do so if
/// what they make of other keys is nothing.
pub(super) const REMOVERS: [&str; 14] = [
    "del",
    "unlink",
    "bitop",
    "geosearchstore",
    "georadius",
    "georadiusbymember",
    "sdiffstore",
    "sinterstore",
    "sort",
    "sunionstore",
    "zdiffstore",
    "zinterstore",
    "zrangestore",
    "zunionstore",
];

/// Whether what the command leaves behind depends on what `key` had. `word`: its words, of which there are `len`.
pub(super) fn needs<'w>(
    spec: &CommandSpec,
    key: &[u8],
    len: usize,
    word: impl Fn(usize) -> Option<&'w [u8]>,
) -> bool {
    let (is_source, is_destination) = (|| word(1) == Some(key), || word(2) == Some(key));
    let has = |options: &[&[u8]]| has_option(spec.options_at(len, &word)..len, &word, options);
    match &*spec.name {
        b"set" => has(&CONDITIONS),
        b"msetex" => has(&[b"nx", b"xx"]),
        // One that names a database is not looked at in this one.
        b"copy" => is_source() || is_destination() && !has(&[b"replace", b"db"]),
        b"rename" => is_source(),
        b"blmove" | b"brpoplpush" => is_destination(),
        // They change no value.
        b"getex" | b"hgetex" => false,
        _ if makes_a_value(spec) => {
            let mut sources = spec.key_positions(len, &word).skip(1);
            sources.any(|position| word(position) == Some(key))
        }
        _ => true,
    }
}

/// Its first key gets a whole value, made of the others, or is removed if that is nothing.
fn makes_a_value(spec: &CommandSpec) -> bool {
    REMOVERS[2..].iter().any(|name| name.as_bytes() == &*spec.name)
}

/// The positions of the keys that a command removes which is one of [`REMOVERS`].
pub(super) fn removed_keys<'w>(
    spec: &CommandSpec,
    len: usize,
    word: &dyn Fn(usize) -> Option<&'w [u8]>,
) -> impl Iterator<Item = usize> + use<> {
    let most = if makes_a_value(spec) { 1 } else { usize::MAX };
    spec.key_positions(len, word).take(most)
}

/// What a command changes, or may change: positions with the database in which their key is meant. `db`: the one in which it runs.
pub(super) fn changed<'w>(
    spec: &CommandSpec,
    db: i32,
    len: usize,
    word: &dyn Fn(usize) -> Option<&'w [u8]>,
) -> SmallVec<[(i32, usize); 2]> {
    let mut positions = spec.key_positions(len, word);
    let here = |position| (db, position);
    match &*spec.name {
        b"copy" => positions
            .skip(1)
            .map(|position| (elsewhere(spec, len, word).unwrap_or(db), position))
            .collect(),
        b"move" => {
            let there = elsewhere(spec, len, word).map(|db| (db, 1));
            positions.map(here).chain(there).collect()
        }
        _ if makes_a_value(spec) => positions.next().map(here).into_iter().collect(),
        _ => positions.map(here).collect(),
    }
}

/// The other database that a command names, to which a key goes.
pub(super) fn elsewhere<'w>(
    spec: &CommandSpec,
    len: usize,
    word: &dyn Fn(usize) -> Option<&'w [u8]>,
) -> Option<i32> {
    let number = |at| std::str::from_utf8(word(at)?).ok()?.parse().ok();
    match &*spec.name {
        b"move" => number(2),
        b"copy" => {
            let is_db = |at: &usize| word(*at).is_some_and(|option| option.eq_ignore_ascii_case(b"db"));
            // The only other option is one word.
            (3..len).rfind(is_db).and_then(|at| number(at + 1))
        }
        _ => None,
    }
}

/// SET depends by them on what is there, or returns it.
const CONDITIONS: [&[u8]; 7] = [b"nx", b"xx", b"get", b"ifeq", b"ifne", b"ifdeq", b"ifdne"];

/// True if one of the options, in any letter case, stands at one of these places.
fn has_option<'w>(
    mut places: Range<usize>,
    word: &impl Fn(usize) -> Option<&'w [u8]>,
    options: &[&[u8]],
) -> bool {
    places.any(|at| {
        let option = word(at).unwrap_or_default();
        options.iter().any(|known| known.eq_ignore_ascii_case(option))
    })
}

/// Commands that wait by themselves for what is missing. Behind a proxy command they do not: they go there only where they must.
pub(super) fn waits_by_itself(spec: &CommandSpec) -> bool {
    matches!(&*spec.name, b"blmove" | b"brpoplpush")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of a command, whose positions are those of COMMAND INFO, that have to be whole.
    fn needed(text: &str, first: i64, last: i64) -> Vec<&str> {
        let words: Vec<&str> = text.split(' ').collect();
        let spec = CommandSpec::at(&words[0].to_ascii_lowercase(), first, last, 1);
        let word = |at: usize| words.get(at).map(|word| word.as_bytes());
        let positions = spec.key_positions(words.len(), &word);
        positions
            .map(|position| words[position])
            .filter(|key| needs(&spec, key.as_bytes(), words.len(), word))
            .collect()
    }

    #[test]
    fn a_set_needs_what_its_condition_is_about() {
        assert_eq!(needed("SET a nx", 1, 1), [""; 0]);
        assert_eq!(needed("SET a b EX 10", 1, 1), [""; 0]);
        for option in ["nx", "XX", "EX 10 Get", "IFEQ c"] {
            assert_eq!(needed(&format!("SET a b {option}"), 1, 1), ["a"], "{option}");
        }
    }

    #[test]
    fn what_must_not_be_there_has_to_be_known() {
        assert_eq!(needed("COPY a b", 1, 2), ["a", "b"]);
        assert_eq!(needed("RENAMENX a b", 1, 2), ["a", "b"]);
    }

    #[test]
    fn what_goes_to_another_name_has_to_be_there() {
        assert_eq!(needed("COPY a b Replace", 1, 2), ["a"]);
        assert_eq!(needed("COPY a b DB 1", 1, 2), ["a"]);
        assert_eq!(needed("RENAME a b", 1, 2), ["a"]);
        assert_eq!(needed("MOVE a 1", 1, 1), ["a"]);
    }

    #[test]
    fn what_something_is_made_of_is_needed_and_not_what_it_replaces() {
        assert_eq!(needed("SUNIONSTORE a b c", 1, -1), ["b", "c"]);
        assert_eq!(needed("SINTERSTORE a b a", 1, -1), ["a", "b", "a"]);
        assert_eq!(needed("BITOP AND a b", 2, -1), ["b"]);
        assert_eq!(needed("ZRANGESTORE a b 0 -1", 1, 2), ["b"]);
    }

    #[test]
    fn what_becomes_nothing_is_removed() {
        let removed = |name, first, len| {
            let spec = CommandSpec::at(name, first, -1, 1);
            removed_keys(&spec, len, &|_| None).collect::<Vec<_>>()
        };
        assert_eq!(removed("del", 1, 4), [1, 2, 3]);
        assert_eq!(removed("sunionstore", 1, 4), [1]);
        assert_eq!(removed("bitop", 2, 5), [2]);
    }

    #[test]
    fn what_is_made_is_changed_and_not_what_it_is_made_of() {
        let of = |text: &str, first, last| {
            let words: Vec<&str> = text.split(' ').collect();
            let spec = CommandSpec::at(&words[0].to_ascii_lowercase(), first, last, 1);
            let word = |at: usize| words.get(at).map(|word| word.as_bytes());
            changed(&spec, 3, words.len(), &word).into_vec()
        };
        assert_eq!(of("MSET a 1", 1, 1), [(3, 1)]);
        assert_eq!(of("SUNIONSTORE a b c", 1, -1), [(3, 1)]);
        assert_eq!(of("SORT a STORE b", 0, 0), [(3, 3)]);
        assert_eq!(of("SORT a", 0, 0), []);
        assert_eq!(of("COPY a b REPLACE", 1, 2), [(3, 2)]);
        assert_eq!(of("COPY a b db 1 REPLACE", 1, 2), [(1, 2)]);
        assert_eq!(of("MOVE a 5", 1, 1), [(3, 1), (5, 1)]);
        assert_eq!(of("MOVE a x", 1, 1), [(3, 1)]);
    }

    #[test]
    fn what_is_added_to_is_needed() {
        assert_eq!(needed("BLMOVE a b LEFT LEFT 0", 1, 2), ["b"]);
        assert_eq!(needed("LMOVE a b LEFT LEFT", 1, 2), ["a", "b"]);
        assert_eq!(needed("HSET a b c", 1, 1), ["a"]);
    }
}
