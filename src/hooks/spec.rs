//! What the server says about a command: how it is run, and where its keys stand. Asked once for each that somebody is interested in.

use std::{ffi::CStr, sync::Arc};

use super::stored::Stores;
use crate::{
    engine::prefix::Pattern,
    error::Error,
    server::{
        api::Features,
        asking::{CommandInfo, Counted},
        call::call,
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
    pub(super) first: i64,
    last: i64,
    step: i64,
    /// Those behind their number.
    counted: Option<Counted>,
    /// Those that an option names.
    stores: Option<Stores>,
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
    pub(super) fn is_called(&self, name: &[u8]) -> bool {
        let letters = || self.name.iter().zip(name);
        self.name.len() == name.len() && letters().all(|(own, given)| *own == given.to_ascii_lowercase())
    }

    /// True if its keys stand at known places, fixed ones or behind their number.
    pub(super) fn has_keys(&self) -> bool {
        self.first > 0 || self.counted.is_some()
    }

    /// True if it writes no other keys than those whose places are known.
    pub(super) fn has_written_keys(&self) -> bool {
        self.has_keys() || self.stores.is_some()
    }

    /// Whatever its length, the command names one key.
    pub(super) fn has_one_key(&self) -> bool {
        self.first > 0 && self.first == self.last && self.counted.is_none()
    }

    /// Where the options of a command begin that has them behind its first keys and values.
    pub(super) fn options_at<'w>(&self, len: usize, word: &dyn Fn(usize) -> Option<&'w [u8]>) -> usize {
        self.counted.map_or(3, |counted| counted.end(len, word))
    }

    /// The positions of the keys in a command of `len` words, which `word` gives. Of those that an option names only what is stored
    /// matters, and what it is made of.
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
        // Position 0 is the command's name: no key.
        let [mut stored, mut then] = self.stores.map_or([0, 0], |stores| stores.positions(len, word));
        std::iter::from_fn(move || {
            let position = next;
            next += step;
            if position <= end {
                return Some(position as usize);
            }
            if let Some(counted) = &mut counted {
                return counted.next();
            }
            let position = std::mem::replace(&mut stored, std::mem::take(&mut then));
            (position > 0).then_some(position)
        })
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
            let plain = info.has("write") && !info.has("blocking") && !is_untouchable(&name, &info);
            let spec = spec(&name, &info);
            let known = fixed || info.counted.is_some() || spec.stores.is_some();
            (known && plain).then_some(spec)
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
        stores: Stores::of(&info.name),
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
            stores: Stores::of(name.as_bytes()),
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
}
