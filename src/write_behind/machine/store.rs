//! What stands at the places of a queue. Places ascend and most of them are left soon, so neighbours lie beside each other, in chunks
//! that go when they are empty: a call takes hundreds of neighbours, and each step of a hash table would be a miss of the
//! processor's cache. The few that stay while the others come and go are put aside.

use std::{
    array,
    collections::{BTreeMap, VecDeque},
};

/// Places of a chunk.
const WIDE: usize = 128;
/// From so many chunks on, those that are nearly empty are looked for.
const MANY: usize = 8;

struct Chunk<T> {
    slots: [Option<T>; WIDE],
    /// How many of them are taken.
    live: usize,
}

/// See the module.
pub struct Store<T> {
    /// The first place of the first chunk.
    base: u64,
    chunks: VecDeque<Box<Chunk<T>>>,
    /// What was left of chunks that are gone.
    aside: BTreeMap<u64, T>,
    len: usize,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            base: 0,
            chunks: VecDeque::new(),
            aside: BTreeMap::new(),
            len: 0,
        }
    }
}

impl<T> Store<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    fn at(&self, place: u64) -> Option<(usize, usize)> {
        let offset = usize::try_from(place.checked_sub(self.base)?).ok()?;
        (offset / WIDE < self.chunks.len()).then_some((offset / WIDE, offset % WIDE))
    }

    pub fn get(&self, place: u64) -> Option<&T> {
        match self.at(place) {
            Some((chunk, slot)) => self.chunks[chunk].slots[slot].as_ref(),
            None => self.aside.get(&place),
        }
    }

    pub fn get_mut(&mut self, place: u64) -> Option<&mut T> {
        match self.at(place) {
            Some((chunk, slot)) => self.chunks[chunk].slots[slot].as_mut(),
            None => self.aside.get_mut(&place),
        }
    }

    /// `place` is above all that there were.
    pub fn push(&mut self, place: u64, value: T) {
        if self.chunks.is_empty() {
            self.base = place;
        }
        while self.at(place).is_none() {
            self.put_aside();
            self.chunks.push_back(Box::new(Chunk {
                slots: array::from_fn(|_| None),
                live: 0,
            }));
        }
        if let Some((chunk, slot)) = self.at(place) {
            let chunk = &mut self.chunks[chunk];
            chunk.slots[slot] = Some(value);
            chunk.live += 1;
            self.len += 1;
        }
    }

    /// A chunk that is nearly empty gives way when there are many and most of their places are left.
    fn put_aside(&mut self) {
        let inside = self.len - self.aside.len();
        if self.chunks.len() < MANY || inside > self.chunks.len() * WIDE / 4 {
            return;
        }
        if let Some(chunk) = self.chunks.pop_front() {
            let places = self.base..;
            let taken = places
                .zip(chunk.slots)
                .filter_map(|(place, value)| Some((place, value?)));
            self.aside.extend(taken);
            self.base += WIDE as u64;
        }
    }

    pub fn remove(&mut self, place: u64) -> Option<T> {
        let Some((chunk, slot)) = self.at(place) else {
            let removed = self.aside.remove(&place)?;
            self.len -= 1;
            return Some(removed);
        };
        let chunk = &mut self.chunks[chunk];
        let removed = chunk.slots[slot].take()?;
        chunk.live -= 1;
        self.len -= 1;
        // The last one is still being filled.
        while self.chunks.len() > 1 && self.chunks.front().is_some_and(|chunk| chunk.live == 0) {
            self.chunks.pop_front();
            self.base += WIDE as u64;
        }
        Some(removed)
    }

    /// All of them with their places, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let aside = self.aside.iter().map(|(place, value)| (*place, value));
        let slots = self.chunks.iter().flat_map(|chunk| chunk.slots.iter());
        let inside = (self.base..).zip(slots);
        aside.chain(inside.filter_map(|(place, value)| Some((place, value.as_ref()?))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_a_map_would_hold() {
        let mut random = 7_u64;
        let mut below = move |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % limit
        };
        let (mut store, mut model) = (Store::default(), BTreeMap::new());
        for place in 1..20_000_u64 {
            store.push(place, place * 3);
            model.insert(place, place * 3);
            // Now and then all but a few leave.
            let leaving = if place % 3_000 < 1_500 { below(3) } else { 0 };
            for _ in 0..leaving {
                let at = 1 + below(place);
                let first = model.range(at..).next().map(|(place, _)| *place);
                let Some(gone) = first else { continue };
                assert_eq!(store.remove(gone), model.remove(&gone));
                assert_eq!(store.remove(gone), None);
            }
            if let Some(value) = store.get_mut(place / 2) {
                *value += 1;
                model.entry(place / 2).and_modify(|value| *value += 1);
            }
            assert_eq!(store.get(place / 3), model.get(&(place / 3)));
            assert_eq!(store.len(), model.len());
        }
        assert!(
            store
                .iter()
                .eq(model.iter().map(|(place, value)| (*place, value)))
        );
    }

    #[test]
    fn one_that_stays_costs_nothing_that_grows() {
        let mut store = Store::default();
        for place in 1..=100_000_u64 {
            store.push(place, ());
            if place > 1 {
                store.remove(place);
            }
        }
        assert_eq!((store.len(), store.get(1)), (1, Some(&())));
        assert!(store.chunks.len() <= MANY + 1, "{} chunks", store.chunks.len());
        store.remove(1);
        assert_eq!(store.iter().count(), 0);
    }
}
