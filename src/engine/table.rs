//! A table of executions by id, in the order of their ids: a queue, because nearly all come at its end and most go at its beginning.
//! Ids of one shard nearly always follow each other, so an id says where it stands; where that is wrong, a search does.

use std::collections::VecDeque;

use super::id::Id;

/// So many empty places are of no concern.
const FEW: usize = 64;

/// A table of what ids stand for. What is taken out of its middle leaves an empty place for a while.
pub(super) struct Table<T> {
    places: VecDeque<(Id, Option<T>)>,
    len: usize,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            places: VecDeque::new(),
            len: 0,
        }
    }
}

impl<T> Table<T> {
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the id stands, or where it would.
    #[inline]
    fn place(&self, id: Id) -> Result<usize, usize> {
        let first = self.places.front().map_or(0, |(first, _)| first.number);
        let likely = id.number.wrapping_sub(first) as usize;
        match self.places.get(likely) {
            Some((there, _)) if *there == id => Ok(likely),
            _ => self.places.binary_search_by(|(there, _)| there.cmp(&id)),
        }
    }

    #[inline]
    pub fn contains(&self, id: Id) -> bool {
        self.place(id).is_ok_and(|place| self.places[place].1.is_some())
    }

    #[inline]
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let place = self.place(id).ok()?;
        self.places[place].1.as_mut()
    }

    /// What stood for the id before, if anything did.
    pub fn insert(&mut self, id: Id, value: T) -> Option<T> {
        self.len += 1;
        if self.places.back().is_none_or(|(last, _)| *last < id) {
            self.places.push_back((id, Some(value)));
            return None;
        }
        match self.place(id) {
            Err(place) => {
                self.places.insert(place, (id, Some(value)));
                None
            }
            Ok(place) => {
                let before = self.places[place].1.replace(value);
                self.len -= usize::from(before.is_some());
                before
            }
        }
    }

    #[inline]
    pub fn remove(&mut self, id: Id) -> Option<T> {
        let removed = if self.places.front().is_some_and(|(first, _)| *first == id) {
            self.places.pop_front()?.1?
        } else {
            let place = self.place(id).ok()?;
            self.places[place].1.take()?
        };
        self.len -= 1;
        while self.places.front().is_some_and(|(_, value)| value.is_none()) {
            self.places.pop_front();
        }
        if self.places.len() > 2 * self.len + FEW {
            self.places.retain(|(_, value)| value.is_some());
        }
        Some(removed)
    }

    /// The first id behind this one, or of all.
    pub fn first_behind(&self, id: Option<Id>) -> Option<Id> {
        let begin = id.map_or(0, |id| {
            self.place(id).map_or_else(|place| place, |place| place + 1)
        });
        let mut behind = self.places.range(begin..);
        behind.find_map(|(id, value)| value.as_ref().map(|_| *id))
    }

    /// In the order of the ids.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        let places = self.places.iter();
        places.filter_map(|(id, value)| value.as_ref().map(|value| (*id, value)))
    }

    /// In the order of the ids.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Id, &mut T)> {
        let places = self.places.iter_mut();
        places.filter_map(|(id, value)| value.as_mut().map(|value| (*id, value)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::id::ShardId;

    #[test]
    fn it_is_what_a_tree_would_be() {
        let shards = [
            ShardId::STANDALONE,
            ShardId::parse_short(b"7").unwrap_or(ShardId::STANDALONE),
        ];
        let mut random = fastrand::Rng::with_seed(21);
        let (mut table, mut tree) = (Table::default(), BTreeMap::new());
        let mut next = 0;
        for turn in 0..20_000_u32 {
            // Numbers follow each other, but for those that were used up elsewhere; what is old may come, too.
            next += if random.u32(..100) == 0 {
                random.u64(..5_000)
            } else {
                1
            };
            let number = if random.u32(..20) == 0 {
                random.u64(..=next)
            } else {
                next
            };
            let id = Id {
                number,
                shard: shards[usize::from(random.u32(..10) == 0)],
            };
            assert_eq!(table.insert(id, turn), tree.insert(id, turn));
            let known: Vec<Id> = tree.keys().copied().collect();
            // Of the few that stay, some stay for long.
            let wanted = if turn % 4_000 < 3_000 { 100 } else { 5 };
            while tree.len() > wanted {
                let at = if random.bool() {
                    3.min(tree.len() - 1)
                } else {
                    random.usize(..known.len())
                };
                let id = known[at];
                assert_eq!(table.remove(id), tree.remove(&id), "twice is once");
                if !tree.contains_key(&id) && random.bool() {
                    break;
                }
            }
            let some = known[random.usize(..known.len())];
            assert_eq!(table.contains(some), tree.contains_key(&some));
            assert_eq!(table.get_mut(some), tree.get_mut(&some));
            let behind = tree.range(some..).map(|(id, _)| *id).find(|id| *id != some);
            assert_eq!(table.first_behind(Some(some)), behind);
            assert_eq!(table.len(), tree.len());
            assert!(table.places.len() <= 2 * tree.len() + FEW + 1, "{turn}");
        }
        assert_eq!(table.first_behind(None), tree.keys().next().copied());
        assert!(table.iter().eq(tree.iter().map(|(id, value)| (*id, value))));
        assert!(
            table
                .iter_mut()
                .eq(tree.iter_mut().map(|(id, value)| (*id, value)))
        );
    }
}
