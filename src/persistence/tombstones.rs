//! Registrations of a cluster that have ended: a shard that was away meanwhile still has them, and must not bring them
//! back. The oldest ones are forgotten when there are too many.

use std::collections::{HashSet, VecDeque};

use crate::engine::id::Id;

/// How many are remembered.
const MOST: usize = 10_000;

#[derive(Default)]
pub struct Tombstones {
    /// Oldest first.
    order: VecDeque<Id>,
    known: HashSet<Id>,
}

impl Tombstones {
    /// Notes more of them. What was registered outside of a cluster is nobody else's.
    pub fn extend(&mut self, ids: impl IntoIterator<Item = Id>) {
        for id in ids.into_iter().filter(|id| !id.shard.is_standalone()) {
            if self.known.insert(id) {
                self.order.push_back(id);
            }
        }
        while self.order.len() > MOST {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    pub fn contains(&self, id: Id) -> bool {
        self.known.contains(&id)
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Id> {
        self.order.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::id::ShardId;

    #[test]
    fn the_oldest_are_forgotten() {
        let shard = ShardId::parse_short(b"1").unwrap_or(ShardId::STANDALONE);
        let id = |number| Id { number, shard };
        let mut gone = Tombstones::default();
        gone.extend([Id {
            number: 1,
            shard: ShardId::STANDALONE,
        }]);
        assert!(gone.is_empty());
        gone.extend((0..MOST as u64 + 5).chain(0..2).map(id));
        assert_eq!(gone.iter().count(), MOST);
        assert!(!gone.contains(id(4)) && gone.contains(id(5)));
    }
}
