//! The prefix rule of events and linked commands (docs/contract/readers-and-events.md 1.5): one trailing `*` and
//! nothing else.

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

    /// True if some key matches both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everything, _) | (_, Self::Everything) => true,
            (Self::Prefix(one), Self::Prefix(two)) => one.starts_with(two) || two.starts_with(one),
            (Self::Exactly(name), pattern) | (pattern, Self::Exactly(name)) => pattern.matches(name),
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
    fn patterns_overlap_if_a_key_matches_both() {
        let overlap = |one: &str, two: &str| {
            let (one, two) = (Pattern::new(one.as_bytes()), Pattern::new(two.as_bytes()));
            assert_eq!(one.overlaps(&two), two.overlaps(&one));
            one.overlaps(&two)
        };
        for (one, two) in [("*", "a"), ("a*", "ab*"), ("a*", "a"), ("a", "a")] {
            assert!(overlap(one, two), "{one} {two}");
        }
        for (one, two) in [("a*", "b*"), ("a", "b"), ("ab*", "a")] {
            assert!(!overlap(one, two), "{one} {two}");
        }
    }

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
