//! Where the server does not tell the filter who sent a command (before 7.2): what holds for all clients alike.
//!
//! While nobody has left database 0 and nobody is between MULTI and EXEC, a command that passes the filter runs next, in database 0,
//! whoever sent it. The filter sees each command by which that ends; that it holds (again) is asked of the server before it sleeps.

use std::time::{Duration, Instant};

use crate::server::{
    api::Features,
    asking::{self, Clients},
    lock::Lock,
};

/// Asking takes this part of the time at most.
const PART: u32 = 100;
/// The rest between two questions doubles up to that while the answer is no.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// The commands that matter for it.
pub(super) const NAMES: [&[u8]; 3] = [b"select", b"multi", b"module"];

#[derive(Default)]
pub(super) struct Whereabouts {
    known: Known,
    /// Not to be asked before.
    ask_at: Option<Instant>,
    /// How often in a row the answer was no.
    in_vain: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Known {
    #[default]
    Nothing,
    /// Commands cannot be told by their names here, or come from other modules, in any database.
    Never,
    /// Everybody is in database 0, nobody in a transaction.
    AllAtHome,
}

impl Whereabouts {
    pub(super) fn all_at_home(&self) -> bool {
        self.known == Known::AllAtHome
    }

    /// A command passes, whose words `word` gives. Whoever sends it, for itself, in a script or in a transaction.
    pub(super) fn passes<'a>(&mut self, name: &[u8], word: impl Fn(usize) -> Option<&'a [u8]>) {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        let leaves = || is(b"multi") || is(b"select") && word(1) != Some(b"0");
        if is(b"module") {
            *self = Self::default();
        } else if self.known == Known::AllAtHome && leaves() {
            self.known = Known::Nothing;
        }
    }

    /// Asks the server, if that is due.
    pub(super) fn before_sleep(&mut self, lock: Lock<'_>, features: Features) {
        if self.known != Known::Nothing || lock.is_in_script() {
            return;
        }
        let now = Instant::now();
        if self.ask_at.is_some_and(|at| now < at) {
            return;
        }
        self.known = ask(lock, features);
        self.in_vain = if self.known == Known::Nothing {
            (self.in_vain + 1).min(16)
        } else {
            0
        };
        let rest = now.elapsed() * PART * (1 << self.in_vain);
        self.ask_at = Some(now + rest.min(LONGEST_REST));
    }
}

fn ask(lock: Lock<'_>, features: Features) -> Known {
    let is_known = |name: &&[u8]| asking::is_known(lock, features, &String::from_utf8_lossy(name));
    if !NAMES.iter().all(is_known) || asking::modules(lock, features) != Some(1) {
        return Known::Never;
    }
    match asking::clients(lock, features) {
        Some(Clients::AllAtHome) => Known::AllAtHome,
        Some(Clients::SomeAway) => Known::Nothing,
        None => Known::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(words: &[&'static [u8]]) -> bool {
        let mut whereabouts = Whereabouts {
            known: Known::AllAtHome,
            ..Whereabouts::default()
        };
        whereabouts.passes(words[0], |at| words.get(at).copied());
        whereabouts.all_at_home()
    }

    #[test]
    fn who_leaves_is_seen() {
        for leaves in [
            &[&b"SELECT"[..], b"1"][..],
            &[b"select"],
            &[b"select", b"00"],
            &[b"Multi"],
            &[b"module", b"load"],
        ] {
            assert!(!after(leaves), "{leaves:?}");
        }
        for stays in [
            &[&b"select"[..], b"0"][..],
            &[b"exec"],
            &[b"get", b"1"],
            &[b"swapdb", b"0", b"1"],
        ] {
            assert!(after(stays), "{stays:?}");
        }
    }

    #[test]
    fn a_module_that_is_loaded_is_asked_about() {
        let mut whereabouts = Whereabouts {
            known: Known::Never,
            ..Whereabouts::default()
        };
        whereabouts.passes(b"multi", |_| None);
        assert_eq!(whereabouts.known, Known::Never);
        whereabouts.passes(b"module", |_| None);
        assert_eq!(whereabouts.known, Known::Nothing);
    }
}
