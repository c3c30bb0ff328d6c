//! Who runs on which stream: never two executions with the same position at a time, also where one of them belongs to a
//! registration that was replaced, or to the time before a load or a promotion.

use std::sync::Arc;

use indexmap::{Equivalent, IndexSet};

use crate::{hashing::Seeds, mutex::Mutex};

/// A stream, and which of the groups reads it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Seat(Vec<u8>, usize);

/// The same, to ask for; it has the same hash.
#[derive(Hash)]
struct Place<'a>(&'a [u8], usize);

impl Equivalent<Seat> for Place<'_> {
    fn equivalent(&self, seat: &Seat) -> bool {
        self.1 == seat.1 && self.0 == seat.0
    }
}

/// The leases that are taken.
#[derive(Default)]
pub struct StreamLeases(Mutex<IndexSet<Seat, Seeds>>);

/// The right to run on one stream with one position, until it is dropped.
pub struct StreamLease {
    leases: Arc<StreamLeases>,
    seat: Seat,
}

impl StreamLeases {
    /// Takes the lease, unless somebody has it.
    pub fn take(self: &Arc<Self>, key: &[u8], place: usize) -> Option<StreamLease> {
        let seat = Seat(key.to_vec(), place);
        self.0.lock().insert(seat.clone()).then(|| StreamLease {
            leases: Arc::clone(self),
            seat,
        })
    }

    pub fn is_taken(&self, key: &[u8], place: usize) -> bool {
        self.0.lock().contains(&Place(key, place))
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.leases.0.lock().swap_remove(&self.seat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_taken_once_and_comes_back() {
        let leases = Arc::new(StreamLeases::default());
        let lease = leases.take(b"s", 0);
        assert!(lease.is_some() && leases.is_taken(b"s", 0));
        assert!(leases.take(b"s", 0).is_none());
        assert!(leases.take(b"s", 1).is_some() && leases.take(b"t", 0).is_some());
        drop(lease);
        assert!(leases.take(b"s", 0).is_some());
    }
}
