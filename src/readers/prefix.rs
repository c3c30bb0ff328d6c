//! The prefix rule of events and linked commands (`readers-and-events.md` 1.5): one trailing `*` and nothing else.

/// Which keys a registration is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `*`
    Everything,
    /// `user:*`
    Prefix(Vec<u8>),
    /// `user:1`
    Exactly(Vec<u8>),
}

impl Pattern {
    pub fn new(text: &[u8]) -> Self {
        match text.strip_suffix(b"*") {
            Some(b"") => Self::Everything,
            Some(prefix) => Self::Prefix(prefix.to_vec()),
            None => Self::Exactly(text.to_vec()),
        }
    }

    /// Bytewise; keys may hold any byte.
    pub fn matches(&self, key: &[u8]) -> bool {
        match self {
            Self::Everything => true,
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Exactly(name) => key == name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn only_one_trailing_star_is_special() {
        let matches = |pattern: &str, key: &str| Pattern::new(pattern.as_bytes()).matches(key.as_bytes());
        for (pattern, key) in [
            ("*", ""),
            ("user:*", "user:"),
            ("user:*", "user:7"),
            ("a**", "a*b"),
            ("[ab]*", "[ab]c"),
            ("a?", "a?"),
            ("**", "*x"),
        ] {
            assert!(matches(pattern, key), "{pattern} {key}");
        }
        for (pattern, key) in [
            ("user:*", "user"),
            ("a?", "ab"),
            ("*a", "ba"),
            ("a*b", "axb"),
            ("a**", "ab"),
        ] {
            assert!(!matches(pattern, key), "{pattern} {key}");
        }
    }
}
