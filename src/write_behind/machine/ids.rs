//! The ids of changes: they ascend, whatever the clock does.

use std::fmt;

/// Milliseconds of Unix time, and a number that tells changes of one millisecond apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeId {
    pub ms: u64,
    pub seq: u64,
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// Gives ids.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ids {
    last: ChangeId,
}

impl Ids {
    pub fn last(&self) -> ChangeId {
        self.last
    }

    /// An id above all that were given or seen.
    pub fn next(&mut self, now_ms: u64) -> ChangeId {
        self.last = if now_ms > self.last.ms {
            ChangeId { ms: now_ms, seq: 0 }
        } else {
            match self.last.seq.checked_add(1) {
                Some(seq) => ChangeId { seq, ..self.last },
                None => ChangeId {
                    ms: self.last.ms.saturating_add(1),
                    seq: 0,
                },
            }
        };
        self.last
    }

    /// What an id is taken for that may be damaged: none that later ones would have to be above.
    pub fn believable(&self, id: ChangeId) -> ChangeId {
        id.min(self.last)
    }

    /// An id that was given elsewhere, or earlier.
    pub fn seen(&mut self, id: ChangeId) {
        self.last = self.last.max(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_ascend_whatever_the_clock_does() {
        let mut ids = Ids::default();
        let given: Vec<_> = [5, 5, 4, 6, 6].map(|now| ids.next(now)).to_vec();
        assert!(given.is_sorted_by(|a, b| a < b), "{given:?}");
        assert_eq!(ids.last().to_string(), "6-1");
        ids.seen(ChangeId { ms: 9, seq: 7 });
        ids.seen(ChangeId { ms: 2, seq: 0 });
        assert_eq!(ids.next(8).to_string(), "9-8");
        ids.seen(ChangeId { ms: 9, seq: u64::MAX });
        assert_eq!(ids.next(8).to_string(), "10-0");
    }

    #[test]
    fn a_damaged_id_is_above_none_that_follows() {
        let mut ids = Ids::default();
        let last = ids.next(7);
        let far = ChangeId {
            ms: 7 | 1 << 63,
            seq: 0,
        };
        assert_eq!(ids.believable(far), last);
        assert!(ids.believable(far) < ids.next(7));
        let old = ChangeId { ms: 3, seq: 1 };
        assert_eq!(ids.believable(old), old);
    }
}
