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
            ChangeId {
                ms: self.last.ms,
                seq: self.last.seq + 1,
            }
        };
        self.last
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
    }
}
