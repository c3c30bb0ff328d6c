//! Which commands are linked, and for which keys: what the filter looks up for each command that passes.

use std::{cell::Cell, ptr};

use super::{
    chain::HookRule,
    clients,
    loads::LoadRule,
    names::{PLACES, STATE_CHANGING, Word, changes_state, place_bit, place_of, word_of},
    slots,
    spec::CommandSpec,
    whereabouts,
    writes::{self, WriteRule},
};
use crate::{
    engine::{id::Id, prefix::Pattern},
    server::filter::Passing,
};

/// One registration's interest in a command.
pub(super) struct Rule {
    pub(super) registration: Id,
    pub(super) pattern: Pattern,
    pub(super) only_misses: bool,
}

pub(super) struct Entry {
    /// Its name as [`word_of`] has it, if it is of letters.
    word: Option<Word>,
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
    /// Nothing matters but whether its only key is missing.
    is_quick: bool,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
    /// Bit n: some name matters whose place is n.
    mattering: u64,
    /// The places of the entries by [`place_of`] their names: a registration that loads has dozens of them.
    places: Vec<Vec<u16>>,
    /// The last command that was looked at which a glance is enough for, and where its entry is.
    last: Cell<Option<(Word, usize)>>,
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
                is_quick: false,
            });
            self.last.set(None);
            self.entries.len() - 1
        });
        &mut self.entries[place]
    }

    /// False if nobody minds a command whose name has this place: most of them.
    pub(super) fn minds(&self, place: usize) -> bool {
        self.mattering & 1 << place != 0
    }

    /// The entry of a command that was [remembered](Self::remember), if that is this one.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(super) fn quick(&self, name: &[u8]) -> Option<&Entry> {
        let (word, place) = self.last.get()?;
        if word_of(name) == Some(word) {
            self.entries.get(place)
        } else {
            None
        }
    }

    /// The command was looked at. If nothing matters of it but whether its only key is missing, the next one of its name is found at once.
    #[inline]
    pub(super) fn remember(&self, entry: &Entry) {
        if let (true, Some(word)) = (entry.is_quick, entry.word) {
            let place = self.entries.iter().position(|other| ptr::eq(other, entry));
            self.last.set(place.map(|place| (word, place)));
        }
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
            entry.is_quick = is_plain
                && entry.is_linked()
                && entry.hooks.is_empty()
                && !entry.strays
                && !entry.changes_state;
        }
        self.last.set(None);
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
        if !self.spec.has_keys() && !self.rules.is_empty() {
            return true;
        }
        self.spec
            .any_key(passing.len(), &|at| passing.arg(at), |position| {
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
        let concerned = |position| passing.arg(position).is_some_and(matches);
        self.spec.any_key(passing.len(), &|at| passing.arg(at), concerned)
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
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_found_by_its_name_in_any_letter_case() {
        let mut table = Table::default();
        for name in ["get", "getex", "a.b", "a_b", "georadius_ro", "\u{e9}t\u{e9}"] {
            table.entry(CommandSpec::at(name, 1, 1, 1));
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
