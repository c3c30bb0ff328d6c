//! The table of executions: what can be asked for, and which of it goes when there is too much.
//!
//! Retention: docs/contract/commands.md 3.6. Only finished executions are evicted, so nothing that runs is ever lost.

use std::{collections::VecDeque, sync::Arc};

use super::{
    ended::{Ended, Known},
    execution::Execution,
    id::Id,
    registration::Registration,
    table::Table,
};

/// All executions of a server. Under the registry's mutex.
#[derive(Default)]
pub(super) struct Executions {
    pub by_id: Table<Known>,
    /// Those that can be evicted; ids ascend in the order of creation.
    pub finished: Ascending,
    /// Those up to this one are surplus: each is forgotten when it ends. `surplus`: how many there are.
    surplus_up_to: Option<Id>,
    surplus: usize,
}

/// Ids in their order. Nearly all come at the end, and most go at the beginning.
#[derive(Default)]
pub(super) struct Ascending(VecDeque<Id>);

impl Ascending {
    pub fn insert(&mut self, id: Id) {
        if self.0.back().is_none_or(|last| *last < id) {
            self.0.push_back(id);
        } else if let Err(place) = self.0.binary_search(&id) {
            self.0.insert(place, id);
        }
    }

    pub fn remove(&mut self, id: Id) {
        if self.0.front() == Some(&id) {
            self.0.pop_front();
        } else if let Ok(place) = self.0.binary_search(&id) {
            self.0.remove(place);
        }
    }

    fn pop_first(&mut self) -> Option<Id> {
        self.0.pop_front()
    }
}

impl Executions {
    pub fn remove(&mut self, id: Id) -> Option<Known> {
        let known = self.by_id.remove(id)?;
        self.finished.remove(id);
        self.surplus -= usize::from(self.is_surplus(id));
        known.session().remove_execution();
        Some(known)
    }

    /// How many there are that are not surplus.
    pub fn count(&self) -> usize {
        self.by_id.len() - self.surplus
    }

    /// A run that has ended in the place of an older one of its registration.
    pub fn exchange(&mut self, oldest: Id, id: Id, ended: Ended) -> Option<Known> {
        let gone = self.by_id.remove(oldest);
        let session = &ended.registration.session;
        // Nearly always the same, which has as many as before.
        let stays = gone
            .as_ref()
            .is_some_and(|gone| Arc::ptr_eq(gone.session(), session));
        if gone.is_some() {
            self.finished.remove(oldest);
            self.surplus -= usize::from(self.is_surplus(oldest));
        }
        if !stays {
            if let Some(gone) = &gone {
                gone.session().remove_execution();
            }
            session.add_execution();
        }
        // Ids are given once.
        drop(self.by_id.insert(id, Known::Ended(ended)));
        self.finished.insert(id);
        gone
    }

    pub fn is_surplus(&self, id: Id) -> bool {
        self.surplus_up_to.is_some_and(|last| id <= last)
    }

    pub fn insert(&mut self, id: Id, known: Known) {
        known.session().add_execution();
        // Ids are given once.
        drop(self.by_id.insert(id, known));
    }

    /// The execution of a registration has ended and is kept. What goes for it: those beyond `limit`, of which there is one at most
    /// unless the limit was lowered.
    pub fn keep_of(
        &mut self,
        registration: &Registration,
        id: Id,
        limit: Option<usize>,
    ) -> (Option<Known>, Vec<Known>) {
        let (first, more) = registration.keep(id, limit);
        let first = first.and_then(|surplus| self.remove(surplus));
        let more = more.into_iter().filter_map(|surplus| self.remove(surplus));
        (first, more.collect())
    }

    /// The same for one that nobody could ask for so far; not twice.
    pub fn list(&mut self, execution: &Arc<Execution>) {
        if execution.mark_listed() {
            self.insert(execution.id, Known::Whole(Arc::clone(execution)));
        }
    }

    /// Makes room for one more below `limit`: finished ones go now, else the oldest other ones when they end.
    pub fn evict(&mut self, limit: usize) -> Vec<(Id, Known)> {
        let mut evicted = Vec::new();
        while self.by_id.len() - self.surplus >= limit {
            if let Some(oldest) = self.finished.pop_first() {
                evicted.extend(self.remove(oldest).map(|known| (oldest, known)));
                continue;
            }
            let Some(oldest) = self.by_id.first_behind(self.surplus_up_to) else {
                break;
            };
            self.surplus_up_to = Some(oldest);
            self.surplus += 1;
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::id::ShardId;

    #[test]
    fn ids_stay_in_their_order() {
        let id = |number| Id {
            number,
            shard: ShardId::STANDALONE,
        };
        let mut ids = Ascending::default();
        for number in [3, 7, 5, 9, 5, 1] {
            ids.insert(id(number));
        }
        ids.remove(id(7));
        ids.remove(id(8));
        ids.remove(id(1));
        let left: Vec<u64> = std::iter::from_fn(|| ids.pop_first())
            .map(|id| id.number)
            .collect();
        assert_eq!(left, [3, 5, 9]);
    }
}
