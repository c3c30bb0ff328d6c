//! Who waits until changes are saved (write-through), of any queue: a client with a number.

use std::{collections::BTreeSet, sync::Arc};

use super::{FailedSave, Time};
use crate::hashing::ByNumber;

/// What became of a change that somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is saved, or replaced by one that is.
    Saved,
    /// It will not be.
    Lost(Arc<FailedSave>),
}

struct Waiter {
    open: usize,
    deadline: Time,
}

/// See the module.
#[derive(Default)]
pub struct Waiters {
    known: ByNumber<Waiter>,
    due: BTreeSet<(Time, u64)>,
    last: u64,
}

impl Waiters {
    /// Somebody who waits until `deadline` at most, for no change so far. His number.
    pub fn add(&mut self, deadline: Time) -> u64 {
        self.last += 1;
        self.known.insert(self.last, Waiter { open: 0, deadline });
        self.due.insert((deadline, self.last));
        self.last
    }

    /// He waits for one more change.
    pub fn expect(&mut self, number: u64) {
        if let Some(waiter) = self.known.get_mut(&number) {
            waiter.open += 1;
        }
    }

    /// For how many changes he waits.
    pub fn open(&self, number: u64) -> usize {
        self.known.get(&number).map_or(0, |waiter| waiter.open)
    }

    /// True while he waits.
    pub fn knows(&self, number: u64) -> bool {
        self.known.contains_key(&number)
    }

    /// One of the changes is decided. `Some`: his waiting has an end.
    pub fn settle(&mut self, number: u64, settled: Settled) -> Option<Settled> {
        let waiter = self.known.get_mut(&number)?;
        waiter.open = waiter.open.saturating_sub(1);
        if settled == Settled::Saved && waiter.open > 0 {
            return None;
        }
        self.forget(number);
        Some(settled)
    }

    pub fn forget(&mut self, number: u64) {
        if let Some(waiter) = self.known.remove(&number) {
            self.due.remove(&(waiter.deadline, number));
        }
    }

    /// The next one whose time is over.
    pub fn overdue(&mut self, now: Time) -> Option<u64> {
        let &(_, number) = self.due.first().filter(|(deadline, _)| *deadline <= now)?;
        self.forget(number);
        Some(number)
    }

    pub fn next_due(&self) -> Option<Time> {
        self.due.first().map(|&(deadline, _)| deadline)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_waiter_waits_for_all_of_its_changes_or_for_the_first_that_is_lost() {
        let mut waiters = Waiters::default();
        let second = Duration::from_secs(1);
        let (one, two) = (waiters.add(second), waiters.add(second));
        for number in [one, two, one, two] {
            waiters.expect(number);
        }
        assert_eq!(waiters.open(one), 2);
        assert_eq!(waiters.settle(one, Settled::Saved), None);
        assert_eq!(waiters.settle(one, Settled::Saved), Some(Settled::Saved));
        assert_eq!(waiters.settle(one, Settled::Saved), None);
        let lost = Settled::Lost(Arc::default());
        assert_eq!(waiters.settle(two, lost.clone()), Some(lost));
        assert_eq!((waiters.len(), waiters.next_due()), (0, None));
    }

    #[test]
    fn waiting_has_an_end() {
        let mut waiters = Waiters::default();
        let late = waiters.add(Duration::from_secs(2));
        let early = waiters.add(Duration::from_secs(1));
        assert_eq!(waiters.overdue(Duration::from_millis(999)), None);
        assert_eq!(waiters.overdue(Duration::from_secs(1)), Some(early));
        assert_eq!(waiters.overdue(Duration::from_secs(1)), None);
        assert_eq!(waiters.next_due(), Some(Duration::from_secs(2)));
        waiters.forget(late);
        assert_eq!(waiters.overdue(Duration::from_secs(9)), None);
    }
}
