//! Identifiers of executions and registrations: `<shard id>-<sequence>`. Contract: `commands.md` chapter 2.

use std::fmt;

/// The id of this shard while it is in no cluster.
pub const STANDALONE: &str = "0000000000000000000000000000000000000000";

/// How the ShardsIDReader calls this shard while it is in no cluster.
pub const STANDALONE_SHARD: &str = "1";

/// An execution's or a registration's number on this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

impl Id {
    /// Reads an id as a client sends it. Strict: nothing before, nothing after, no sign, no leading zero.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let sequence = text.strip_prefix(STANDALONE.as_bytes())?.strip_prefix(b"-")?;
        let canonical = match sequence {
            [b'0'] => true,
            [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        let sequence = canonical.then(|| std::str::from_utf8(sequence).ok()).flatten()?;
        sequence.parse().ok().map(Self)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STANDALONE}-{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_strictly() {
        let id = |sequence: &str| Id::parse(format!("{STANDALONE}-{sequence}").as_bytes());
        assert_eq!(id("10"), Some(Id(10)));
        assert_eq!(Id::parse(Id(7).to_string().as_bytes()), Some(Id(7)));
        for bad in ["", "10abc", "+1", "01", "-1", "99999999999999999999999"] {
            assert_eq!(id(bad), None, "{bad}");
        }
        assert_eq!(Id::parse(b"1"), None);
    }
}
