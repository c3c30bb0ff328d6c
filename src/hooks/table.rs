//! Which commands are linked, and for which keys: what the filter looks up for each command that passes.

use std::{ffi::CStr, sync::Arc};

use super::{
    chain::HookRule,
    clients,
    loads::LoadRule,
    slots, whereabouts,
    writes::{self, WriteRule},
};
use crate::{
    engine::{id::Id, prefix::Pattern},
    error::Error,
    server::{
        api::Features,
        asking::{CommandInfo, Counted},
        call::call,
        filter::Passing,
        lock::Lock,
        reply::Reply,
    },
};

/// The proxy command that stands for an original, chosen so that the server applies the original's checks to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ProxyCommand {
    Read,
    Write,
    /// A write that may need memory.
    WriteMore,
    /// A read whose functions may write: the server lets it wait while clients are paused, as it does with writes.
    ReadLater,
}

impl ProxyCommand {
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::WriteMore, Self::ReadLater];

    pub const fn name(self) -> &'static CStr {
        match self {
            Self::Read => c"RG.INNERREAD",
            Self::Write => c"RG.INNERWRITE",
            Self::WriteMore => c"RG.INNERWRITEMORE",
            Self::ReadLater => c"RG.INNERREADLATER",
        }
    }
}

/// What the server says about a command.
#[derive(Clone, Debug)]
pub struct CommandSpec {
    /// In lower case.
    pub(super) name: Arc<[u8]>,
    pub(super) proxy: ProxyCommand,
    /// Key positions as in COMMAND INFO; `first` 0 if there are none, or if they move.
    first: i64,
    last: i64,
    step: i64,
    /// Those behind their number.
    counted: Option<Counted>,
    /// As in COMMAND INFO: the number of words, or less than the least one with a minus.
    arity: i64,
}

impl CommandSpec {
    /// True if the server would run a command of so many words.
    pub(super) fn takes(&self, len: usize) -> bool {
        let len = len as i64;
        if self.arity < 0 {
            len >= -self.arity
        } else {
            len == self.arity
        }
    }

    pub fn shown_name(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    pub fn writes(&self) -> bool {
        self.proxy != ProxyCommand::Read
    }

    /// True if `name` is its name, in any letter case.
    fn is_called(&self, name: &[u8]) -> bool {
        let letters = || self.name.iter().zip(name);
        self.name.len() == name.len() && letters().all(|(own, given)| *own == given.to_ascii_lowercase())
    }

    /// True if its keys stand at known places, fixed ones or behind their number.
    pub(super) fn has_keys(&self) -> bool {
        self.first > 0 || self.counted.is_some()
    }

    /// Whatever its length, the command names one key.
    pub(super) fn has_one_key(&self) -> bool {
        self.first > 0 && self.first == self.last && self.counted.is_none()
    }

    /// Where the options of a command begin that has them behind its first keys and values.
    pub(super) fn options_at<'w>(&self, len: usize, word: &dyn Fn(usize) -> Option<&'w [u8]>) -> usize {
        self.counted.map_or(3, |counted| counted.end(len, word))
    }

    /// The positions of the keys in a command of `len` words, which `word` gives.
    pub(super) fn key_positions<'w>(
        &self,
        len: usize,
        word: &dyn Fn(usize) -> Option<&'w [u8]>,
    ) -> impl Iterator<Item = usize> + use<> {
        let last = if self.last < 0 {
            len as i64 + self.last
        } else {
            self.last
        };
        let end = if self.first > 0 {
            last.min(len as i64 - 1)
        } else {
            -1
        };
        let (mut next, step) = (self.first, self.step.max(1));
        let mut counted = self.counted.map(|counted| counted.positions(len, word));
        std::iter::from_fn(move || {
            let position = next;
            next += step;
            if position <= end {
                return Some(position as usize);
            }
            counted.as_mut()?.next()
        })
    }
}

/// One registration's interest in a command.
pub(super) struct Rule {
    pub(super) registration: Id,
    pub(super) pattern: Pattern,
    pub(super) only_misses: bool,
}

pub(super) struct Entry {
    /// Its name as [`word_of`] has it, if it is of letters.
    word: Option<u64>,
    pub(super) spec: CommandSpec,
    pub(super) rules: Vec<Rule>,
    /// Functions in its place, in the order of registration.
    pub(super) hooks: Vec<HookRule>,
    /// The server may leave its client in another database (`server::home`).
    pub(super) strays: bool,
    /// Registrations whose keys are loaded when this command misses them, the nearest pattern first.
    pub(super) loads: Vec<LoadRule>,
    /// It removes keys, also some that are not there: those of registrations that load must hear of it.
    pub(super) removers: Vec<Rule>,
    /// Registrations whose changes it makes are saved.
    pub(super) writes: Vec<WriteRule>,
    /// A hit concerns nobody: the filter may look the keys up and leave hits alone.
    pub(super) only_misses: bool,
    /// The place of its only key, where nothing matters but whether that is missing.
    pub(super) plain_key: Option<usize>,
    /// What [`changes_state`] says of it.
    pub(super) changes_state: bool,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
    /// Bit n: some name matters whose place is n.
    mattering: u64,
    /// The places of the entries by [`place_of`] their names: a registration that loads has dozens of them.
    places: Vec<Vec<u16>>,
}

/// Commands after which a client's database, transaction or tracking may be another.
const STATE_CHANGING: [&[u8]; 6] = [b"select", b"multi", b"exec", b"discard", b"reset", b"client"];

/// True for them, in any letter case, and for commands of modules, which may select another database for their client.
pub(super) fn changes_state(name: &[u8]) -> bool {
    name.contains(&b'.')
        || STATE_CHANGING
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
}

/// How many places there are to look for a name.
const PLACES: usize = u64::BITS as usize;

/// Where a name is looked for, in any letter case.
pub(super) fn place_of(name: &[u8]) -> usize {
    let letter = |byte: Option<&u8>| usize::from(byte.copied().unwrap_or(0) | 0x20);
    (name.len() * 5 + letter(name.first()) * 3 + letter(name.last())) % PLACES
}

/// A name of eight bytes at most as a number, which is the same in any letter case: no two names of letters have one.
#[inline]
fn word_of(name: &[u8]) -> Option<u64> {
    let word = |word, byte: &u8| word << 8 | u64::from(byte | 0x20);
    (name.len() <= 8).then(|| name.iter().fold(0, word))
}

fn place_bit(name: &[u8]) -> u64 {
    1 << place_of(name)
}

impl Table {
    /// The entry of a command, made if there is none.
    pub(super) fn entry(&mut self, spec: CommandSpec) -> &mut Entry {
        let place = self.entries.iter().position(|entry| entry.spec.name == spec.name);
        let place = place.unwrap_or_else(|| {
            let letters = spec.name.iter().all(u8::is_ascii_lowercase);
            self.entries.push(Entry {
                word: word_of(&spec.name).filter(|_| letters),
                changes_state: changes_state(&spec.name),
                spec,
                rules: Vec::new(),
                hooks: Vec::new(),
                strays: false,
                loads: Vec::new(),
                removers: Vec::new(),
                writes: Vec::new(),
                only_misses: false,
                plain_key: None,
            });
            self.entries.len() - 1
        });
        &mut self.entries[place]
    }

    /// False if nobody minds a command whose name has this place: most of them.
    pub(super) fn minds(&self, place: usize) -> bool {
        self.mattering & 1 << place != 0
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<&Entry> {
        self.find_at(place_of(name), name)
    }

    /// The same for a name whose place is known. Each command passes here.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(super) fn find_at(&self, place: usize, name: &[u8]) -> Option<&Entry> {
        let places = self.places.get(place)?;
        let word = word_of(name);
        places
            .iter()
            .filter_map(|&place| self.entries.get(usize::from(place)))
            .find(|entry| match entry.word {
                Some(own) => word == Some(own),
                None => entry.spec.is_called(name),
            })
    }

    pub(super) fn recompute(&mut self) {
        self.entries
            .retain(|entry| entry.strays || entry.is_linked() || !entry.hooks.is_empty());
        for entry in &mut self.entries {
            entry.only_misses = entry.spec.has_keys() && entry.rules.iter().all(|rule| rule.only_misses);
            let is_plain = entry.only_misses
                && entry.spec.has_one_key()
                && entry.loads.is_empty()
                && entry.removers.is_empty()
                && entry.writes.is_empty();
            entry.plain_key = is_plain.then_some(entry.spec.first as usize);
        }
        self.places = vec![Vec::new(); PLACES];
        for (place, entry) in self.entries.iter().enumerate() {
            self.places[place_of(&entry.spec.name)].push(place as u16);
        }
        let linked = self.entries.iter().map(|entry| place_bit(&entry.spec.name));
        let changing = STATE_CHANGING.into_iter().chain(clients::names_of_rights());
        let elsewhere = writes::MOVING
            .into_iter()
            .chain([slots::CLUSTER])
            .chain(whereabouts::NAMES);
        let others = changing.chain(elsewhere).map(place_bit);
        self.mattering = linked.chain(others).fold(0, |all, bit| all | bit);
    }
}

impl Entry {
    /// Somebody may want the command put behind a proxy command, besides functions in its place.
    pub(super) fn is_linked(&self) -> bool {
        !self.rules.is_empty()
            || !self.loads.is_empty()
            || !self.removers.is_empty()
            || !self.writes.is_empty()
    }

    /// True if some rule is about one of the command's keys for which `also` holds. A command without key positions
    /// concerns those who asked for every key.
    pub(super) fn concerns(&self, passing: Passing<'_>, also: impl Fn(usize) -> bool) -> bool {
        if !self.spec.has_keys() {
            return !self.rules.is_empty();
        }
        let mut positions = self.spec.key_positions(passing.len(), &|at| passing.arg(at));
        positions.any(|position| {
            let matches = |key: &[u8]| {
                let writes = || self.writes.iter().any(|rule| rule.pattern.matches(key));
                self.links(key) || self.removes(key) || self.load_of(key).is_some() || writes()
            };
            passing.arg(position).is_some_and(matches) && also(position)
        })
    }

    /// The same of those who load or save one of the keys: they want to know of it whoever runs the command.
    #[inline(never)]
    pub(super) fn concerns_more(&self, passing: Passing<'_>) -> bool {
        let matches = |key: &[u8]| {
            let writes = || self.writes.iter().any(|rule| rule.pattern.matches(key));
            self.removes(key) || self.load_of(key).is_some() || writes()
        };
        let mut positions = self.spec.key_positions(passing.len(), &|at| passing.arg(at));
        positions.any(|position| passing.arg(position).is_some_and(matches))
    }

    /// True if some rule is about the key.
    pub(super) fn links(&self, key: &[u8]) -> bool {
        self.rules.iter().any(|rule| rule.pattern.matches(key))
    }

    /// True if it removes keys of some registration that loads, and this may be one.
    pub(super) fn removes(&self, key: &[u8]) -> bool {
        self.removers.iter().any(|rule| rule.pattern.matches(key))
    }

    /// The registration that loads the key.
    pub(super) fn load_of(&self, key: &[u8]) -> Option<&LoadRule> {
        self.loads.iter().find(|rule| rule.pattern.matches(key))
    }
}

/// The server's commands that write keys at known places and wait for nothing. None where it cannot list them (before 7.0).
pub(super) fn look_up_writers(lock: Lock<'_>, features: Features) -> Vec<CommandSpec> {
    let words = ["COMMAND", "LIST", "FILTERBY", "ACLCAT", "write"];
    let listed = call(lock, features, 0, &words.map(|word| word.as_bytes().to_vec()));
    let names = listed.items().iter().filter_map(Reply::as_text);
    names
        .filter_map(|name| {
            let name = String::from_utf8_lossy(name).into_owned();
            let info = CommandInfo::ask(lock, features, &name)?;
            let fixed = info.first > 0 && info.step > 0 && !info.has("movablekeys");
            let known = fixed || info.counted.is_some();
            let plain = info.has("write") && !info.has("blocking") && !is_untouchable(&name, &info);
            (known && plain).then(|| spec(&name, &info))
        })
        .collect()
}

/// Commands that scripts cannot run, and the module's own ones, stay as they are.
fn is_untouchable(name: &str, info: &CommandInfo) -> bool {
    info.has("noscript") || info.has_noscript_part || name.to_ascii_lowercase().starts_with("rg.")
}

/// `name`: what clients call it, which need not be the server's own name.
fn spec(name: &str, info: &CommandInfo) -> CommandSpec {
    let proxy = match (info.has("write"), info.has("denyoom")) {
        (false, _) => ProxyCommand::Read,
        (true, false) => ProxyCommand::Write,
        (true, true) => ProxyCommand::WriteMore,
    };
    let moves = info.has("movablekeys") && info.counted.is_none();
    CommandSpec {
        proxy,
        first: if moves { 0 } else { info.first },
        counted: info.counted,
        last: info.last,
        step: info.step,
        arity: info.arity,
        name: name.to_ascii_lowercase().into_bytes().into(),
    }
}

/// Looks a command up that is to be linked for keys that match `pattern`.
pub(super) fn look_up(
    lock: Lock<'_>,
    features: Features,
    name: &str,
    pattern: &Pattern,
) -> Result<CommandSpec, Error> {
    let info = CommandInfo::ask(lock, features, name).ok_or(Error::UnknownCommand)?;
    if is_untouchable(name, &info) {
        return Err(Error::CommandNotInScripts);
    }
    if *pattern != Pattern::Everything {
        if info.has("movablekeys") {
            return Err(Error::CommandMovesKeys);
        }
        if info.first <= 0 {
            return Err(Error::CommandWithoutKeys);
        }
        if info.step <= 0 {
            return Err(Error::CommandWithoutKeyStep);
        }
    }
    Ok(spec(name, &info))
}

/// Looks a command up in whose place a function is to stand, for some keys only or for all.
pub(super) fn look_up_hook(
    lock: Lock<'_>,
    features: Features,
    name: &str,
    for_some_keys: bool,
) -> Result<CommandSpec, Error> {
    let info = CommandInfo::ask(lock, features, name).ok_or(Error::UnknownHook)?;
    if is_untouchable(name, &info) {
        return Err(Error::HookNotInScripts);
    }
    if for_some_keys {
        if info.has("movablekeys") {
            return Err(Error::HookMovesKeys);
        }
        if info.first <= 0 {
            return Err(Error::HookWithoutKeys);
        }
        if info.step <= 0 {
            return Err(Error::HookWithoutKeyStep);
        }
    }
    Ok(spec(name, &info))
}

#[cfg(test)]
impl CommandSpec {
    /// A command that writes, with the key positions of COMMAND INFO.
    pub(super) fn at(name: &str, first: i64, last: i64, step: i64) -> Self {
        Self {
            name: name.as_bytes().into(),
            proxy: ProxyCommand::WriteMore,
            first,
            last,
            step,
            counted: None,
            arity: -2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_positions_follow_command_info() {
        let spec = |first, last, step| CommandSpec::at("x", first, last, step);
        let positions = |spec: CommandSpec, len| spec.key_positions(len, &|_| None).collect::<Vec<_>>();
        assert_eq!(positions(spec(1, 1, 1), 2), [1]);
        assert_eq!(positions(spec(1, -1, 1), 4), [1, 2, 3]);
        assert_eq!(positions(spec(1, -1, 2), 5), [1, 3]);
        assert_eq!(positions(spec(1, 1, 1), 1), [0; 0]);
        assert_eq!(positions(spec(0, 0, 0), 3), [0; 0]);
        assert_eq!(positions(spec(2, -2, 1), 5), [2, 3]);
    }

    #[test]
    fn a_command_is_found_by_its_name_in_any_letter_case() {
        let mut table = Table::default();
        for name in ["get", "getex", "a.b", "a_b", "georadius_ro", "\u{e9}t\u{e9}"] {
            table.entry(CommandSpec {
                name: name.as_bytes().into(),
                proxy: ProxyCommand::Read,
                first: 1,
                last: 1,
                step: 1,
                counted: None,
                arity: 2,
            });
        }
        let all = std::mem::take(&mut table.entries);
        table.entries = all
            .into_iter()
            .map(|entry| Entry {
                strays: true,
                ..entry
            })
            .collect();
        table.recompute();
        let found = |name: &[u8]| table.find(name).map(|entry| entry.spec.shown_name());
        for name in [
            "get",
            "GET",
            "gEt",
            "GETEX",
            "A.b",
            "A_B",
            "GeoRadius_RO",
            "\u{e9}T\u{e9}",
        ] {
            assert_eq!(found(name.as_bytes()), Some(name.to_ascii_lowercase()));
        }
        let others: [&[u8]; 8] = [
            b"", b"ge", b"gett", b"\x07et", b"g\x05t", b"a\x0eb", b"a\x7fb", b"\0get",
        ];
        assert!(others.iter().all(|name| found(name).is_none()));
    }
}
