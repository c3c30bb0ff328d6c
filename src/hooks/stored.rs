//! Commands that store what they find where an option says so: SORT and GEORADIUS. Where their keys stand is known by reading their
//! options as the server does. Pure.

/// Which of them it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stores {
    /// `SORT key [BY pattern] [LIMIT offset count] [GET pattern ...] [ASC | DESC] [ALPHA] [STORE destination]`
    Sort,
    /// `GEORADIUS key ... [WITHCOORD] [WITHDIST] [WITHHASH] [COUNT count [ANY]] [ASC | DESC] [STORE key | STOREDIST key]`, whose options
    /// begin at that place.
    Radius(usize),
}

/// The key that all of them read.
const SOURCE: usize = 1;

impl Stores {
    /// `name`: the server's own, in lower case.
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"sort" => Some(Self::Sort),
            b"georadius" => Some(Self::Radius(6)),
            b"georadiusbymember" => Some(Self::Radius(5)),
            _ => None,
        }
    }

    /// How many words belong to an option besides itself, and whether the last of them is the destination. `None`: there is no such
    /// option, and the server refuses the command.
    fn option(self, word: &[u8]) -> Option<(usize, bool)> {
        let is = |known: &[&str]| {
            known
                .iter()
                .any(|known| known.as_bytes().eq_ignore_ascii_case(word))
        };
        match self {
            Self::Sort if is(&["asc", "desc", "alpha"]) => Some((0, false)),
            Self::Sort if is(&["by", "get"]) => Some((1, false)),
            Self::Sort if is(&["limit"]) => Some((2, false)),
            Self::Sort if is(&["store"]) => Some((1, true)),
            Self::Radius(_) if is(&["withcoord", "withdist", "withhash", "any", "asc", "desc"]) => {
                Some((0, false))
            }
            Self::Radius(_) if is(&["count"]) => Some((1, false)),
            Self::Radius(_) if is(&["store", "storedist"]) => Some((1, true)),
            _ => None,
        }
    }

    /// The places of the destination and of the source, in this order; zeros if nothing is stored.
    #[inline(never)]
    pub(super) fn positions<'w>(self, len: usize, word: &dyn Fn(usize) -> Option<&'w [u8]>) -> [usize; 2] {
        let destination = self.destination(len, word);
        destination.map_or([0, 0], |destination| [destination, SOURCE])
    }

    fn destination<'w>(self, len: usize, word: &dyn Fn(usize) -> Option<&'w [u8]>) -> Option<usize> {
        let mut at = match self {
            Self::Sort => SOURCE + 1,
            Self::Radius(options) => options,
        };
        let mut destination = None;
        while at < len {
            let (more, stores) = self.option(word(at)?)?;
            at += more + 1;
            if at > len {
                return None;
            }
            if stores {
                // The last one counts.
                destination = Some(at - 1);
            }
        }
        destination
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(text: &str) -> Option<&str> {
        let words: Vec<&str> = text.split(' ').collect();
        let stores = Stores::of(words[0].to_ascii_lowercase().as_bytes())?;
        let word = |at: usize| words.get(at).map(|word| word.as_bytes());
        let [destination, source] = stores.positions(words.len(), &word);
        assert_eq!(source, usize::from(destination > 0));
        (destination > 0).then(|| words[destination])
    }

    #[test]
    fn the_destination_stands_behind_its_option() {
        for text in [
            "SORT a STORE k",
            "sort a store k",
            "SORT a BY w_* LIMIT 0 5 GET x GET y DESC ALPHA STORE k",
            "SORT a STORE x STORE k",
            "SORT store STORE k",
            "SORT a BY store GET STORE STORE k",
            "SORT a LIMIT store store STORE k",
            "GEORADIUS a 1 2 3 km STORE k",
            "GEORADIUS a 1 2 3 km WITHDIST COUNT 3 ANY ASC STOREDIST k",
            "GEORADIUS a store store 3 km STORE x StoreDist k",
            "GEORADIUSBYMEMBER a store 3 km STORE k",
        ] {
            assert_eq!(stored(text), Some("k"), "{text}");
        }
        assert_eq!(stored("SORT a STORE STORE"), Some("STORE"));
    }

    #[test]
    fn what_stores_nothing_has_no_destination() {
        for text in [
            "SORT a",
            "SORT a BY STORE",
            "SORT a GET STORE",
            "SORT a STORE",
            "SORT a LIMIT 1 STORE k x",
            "SORT a wrong STORE k",
            "SORT a STORE k wrong",
            "SORT",
            "GEORADIUS a 1 2 3 km",
            "GEORADIUS a 1 2 3 km COUNT STORE",
            "GEORADIUS a 1 2 STORE k",
            "GEORADIUS",
            "GEORADIUSBYMEMBER a m 3 STORE",
            "SUNIONSTORE k a",
        ] {
            assert_eq!(stored(text), None, "{text}");
        }
    }
}
