//! What is about one run stays in its order, although some of it waits for the cluster's thread: a plan, whose functions are to be
//! loaded, and whatever comes behind it.

use std::collections::HashMap;

use crate::{engine::id::Id, mutex::Mutex};

/// How many messages about each run wait for the cluster's thread.
#[derive(Default)]
pub(super) struct RunOrder(Mutex<HashMap<Id, usize>>);

impl RunOrder {
    /// True if a message about this run has to go to the cluster's thread, too: an earlier one is there.
    pub fn is_waiting(&self, id: Id) -> bool {
        let waiting = self.0.lock();
        !waiting.is_empty() && waiting.contains_key(&id)
    }

    /// One more goes there.
    pub fn enter(&self, id: Id) {
        *self.0.lock().entry(id).or_default() += 1;
    }

    /// One of them has been dealt with.
    pub fn leave(&self, id: Id) {
        let mut waiting = self.0.lock();
        if let Some(count) = waiting.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::id::ShardId;

    #[test]
    fn what_follows_a_plan_keeps_its_order_when_the_plan_has_been_taken() {
        let (order, id) = (
            RunOrder::default(),
            Id {
                shard: ShardId::STANDALONE,
                number: 7,
            },
        );
        assert!(!order.is_waiting(id));
        // The plan, then a batch of records behind it.
        order.enter(id);
        assert!(order.is_waiting(id));
        order.enter(id);
        order.leave(id);
        assert!(
            order.is_waiting(id),
            "the records still wait: the end must not overtake them"
        );
        order.leave(id);
        assert!(!order.is_waiting(id));
    }
}
