//! Which server this is, for what it offers no function to ask about: known faults, and how it lays out what it keeps.

use std::ffi::CStr;

use super::lock::Lock;

/// A server and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Redis(u32, u32, u32),
    Valkey(u32, u32, u32),
    Unknown,
}

impl Version {
    /// Asks the server. Valkey calls itself a Redis, too, for the sake of clients: its own name comes first.
    pub fn of_server(lock: Lock<'_>) -> Self {
        let ctx = lock.call_context(0);
        // SAFETY: under the lock; the texts are copied before the information is freed.
        let (valkey, redis) = unsafe {
            let info = api!(RedisModule_GetServerInfo(ctx, c"server".as_ptr()));
            let field = |name: &CStr| {
                let text = api!(RedisModule_ServerInfoGetFieldC(info, name.as_ptr()));
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            };
            let found = (field(c"valkey_version"), field(c"redis_version"));
            api!(RedisModule_FreeServerInfo(ctx, info));
            found
        };
        match (valkey, redis) {
            (Some(version), _) => parse(&version).map_or(Self::Unknown, |(a, b, c)| Self::Valkey(a, b, c)),
            (None, Some(version)) => parse(&version).map_or(Self::Unknown, |(a, b, c)| Self::Redis(a, b, c)),
            (None, None) => Self::Unknown,
        }
    }

    /// Where the value of a key lies was looked up in the source of these, and tried (`tests/test_values.py`).
    pub(super) const fn has_known_layout(self) -> bool {
        match self {
            Self::Redis(major, minor, _) => major == 7 || (major == 8 && minor <= 2),
            Self::Valkey(major, minor, _) => major == 7 || major == 8 || (major == 9 && minor <= 1),
            Self::Unknown => false,
        }
    }

    /// Fields of hashes may expire.
    pub(super) const fn knows_lives_of_fields(self) -> bool {
        match self {
            Self::Redis(major, minor, _) => major >= 8 || (major == 7 && minor >= 4),
            Self::Valkey(major, ..) => major >= 9,
            Self::Unknown => true,
        }
    }

    /// A notification selects the event's database for the client whose command runs, and leaves it there. Since 8.1;
    /// 9.1.2 has mended it.
    pub const fn leaves_clients_in_other_databases(self) -> bool {
        match self {
            Self::Valkey(8, minor, _) => minor >= 1,
            Self::Valkey(9, minor, patch) => minor == 0 || (minor == 1 && patch < 2),
            _ => false,
        }
    }

    /// Transactions of an AOF file whose commands the default user may not run are refused when the file is loaded. 9.1.2 has mended it.
    pub const fn loads_transactions_as_default_user(self) -> bool {
        !matches!(self, Self::Valkey(9.., 1.., 2..) | Self::Valkey(10.., ..))
    }

    /// It releases its lock while it ends, where threads of modules must not get it.
    pub(super) const fn gives_its_lock_away_at_its_end(self) -> bool {
        matches!(self, Self::Valkey(9.., ..))
    }

    /// It takes its lock to free a script, unless it is on its own thread.
    pub(super) const fn locks_where_it_frees_scripts(self) -> bool {
        matches!(self, Self::Valkey(9.., ..))
    }

    /// It frees many scripts of modules at once on a thread beside its own, without its lock, and counts there what only one thread may
    /// count. 9.1 does not.
    pub(super) const fn frees_scripts_beside_itself(self) -> bool {
        matches!(self, Self::Valkey(8, ..))
    }

    /// It ends where a module's command waits for replicas while a script runs: it takes the one who waits for the script. 9.1 does not.
    pub(super) const fn takes_who_waits_for_a_script(self) -> bool {
        matches!(self, Self::Valkey(8, ..) | Self::Valkey(9, 0, _))
    }

    /// A call by a module with keys of several slots spoils the server's next calls by modules.
    pub(super) const fn is_spoiled_by_several_slots(self) -> bool {
        matches!(self, Self::Valkey(9.., ..))
    }
}

/// E.g. `7.0.15`; whatever follows the third number is left out.
fn parse(version: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = version.trim().split('.').map(|part| {
        let digits = part
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some((
        numbers.next()??,
        numbers.next()??,
        numbers.next().flatten().unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_numbers() {
        assert_eq!(parse("7.0.15"), Some((7, 0, 15)));
        assert_eq!(parse("9.2-rc1"), Some((9, 2, 0)));
        assert_eq!(parse("255.255.255\r"), Some((255, 255, 255)));
        assert_eq!(parse("unstable"), None);
    }
}
