//! The ids of changes: they ascend, whatever the clock does.

use std::fmt;

/// Milliseconds of Unix time, and a number that tells changes of one millisecond apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeId {
    pub ms: u64,
    pub seq: u64,
}

impl ChangeId {
    /// As [`fmt::Display`] has it: each change that is saved has one.
    pub fn text(self) -> Vec<u8> {
        // Two numbers of 20 digits at most, and what stands between them.
        let mut digits = [b'-'; 41];
        let mut start = put(&mut digits, 41, self.seq) - 1;
        start = put(&mut digits, start, self.ms);
        digits[start..].to_vec()
    }
}

/// Writes a number so that it ends before `end`; where it begins.
fn put(digits: &mut [u8; 41], end: usize, mut number: u64) -> usize {
    let mut start = end;
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return start;
        }
    }
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
        for (ms, seq) in [(0, 0), (1_764_000_000_123, 10), (u64::MAX, u64::MAX)] {
            let id = ChangeId { ms, seq };
            assert_eq!(id.text(), id.to_string().into_bytes());
        }
    }
}
