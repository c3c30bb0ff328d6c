//! A table by key that holds a limited number of entries and forgets the oldest one first: what is known to be absent, what backs off,
//! lifetimes.

use std::collections::VecDeque;

use super::keys::{ByKey, Key};

/// How many notes of entries that are gone may stand in the order before it is put right.
const SURPLUS: usize = 64;

/// A bounded table.
pub struct Bounded<T> {
    entries: ByKey<(u64, T)>,
    /// In the order of insertion; a number that the entry does not have is of one that is gone.
    order: VecDeque<(u64, Key)>,
    next: u64,
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self {
            entries: ByKey::default(),
            order: VecDeque::new(),
            next: 0,
        }
    }
}

impl<T> Bounded<T> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, db: i32, name: &[u8]) -> Option<&T> {
        self.entries.get(db, name).map(|(_, value)| value)
    }

    /// Adds an entry, the newest one from now on. How many had to be forgotten so that there are at most `limit`.
    pub fn insert(&mut self, key: &Key, value: T, limit: usize) -> u64 {
        if limit == 0 {
            return 1;
        }
        let number = self.next;
        self.next += 1;
        self.entries.insert(key, (number, value));
        self.order.push_back((number, key.clone()));
        let mut forgotten = 0;
        while self.entries.len() > limit {
            let Some((number, key)) = self.order.pop_front() else {
                break;
            };
            if self.is_current(number, &key) {
                self.entries.remove(&key);
                forgotten += 1;
            }
        }
        if self.order.len() > 2 * self.entries.len() + SURPLUS {
            let order = std::mem::take(&mut self.order);
            self.order = order
                .into_iter()
                .filter(|(number, key)| self.is_current(*number, key))
                .collect();
        }
        forgotten
    }

    fn is_current(&self, number: u64, key: &Key) -> bool {
        let entry = self.entries.at(key);
        entry.is_some_and(|(known, _)| *known == number)
    }

    pub fn at(&self, key: &Key) -> Option<&T> {
        self.entries.at(key).map(|(_, value)| value)
    }

    pub fn remove(&mut self, key: &Key) -> Option<T> {
        self.entries.remove(key).map(|(_, value)| value)
    }

    /// The same for a key of which only the name is at hand.
    pub fn remove_named(&mut self, db: i32, name: &[u8]) -> Option<T> {
        self.entries.remove_named(db, name).map(|(_, value)| value)
    }

    /// Forgets those of which `keep` says no.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.entries.retain(|(_, value)| keep(value));
    }

    pub fn clear(&mut self, db: Option<i32>) {
        self.entries.clear(db);
        if self.entries.is_empty() {
            self.order.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first_and_notes_of_the_dead_do_not_pile_up() {
        let mut table = Bounded::default();
        let key = |number: usize| Key::new(0, number.to_string().as_bytes());
        for number in 0..5 {
            table.insert(&key(number), number, 3);
        }
        assert_eq!(table.len(), 3);
        assert!(table.get(0, b"1").is_none() && table.get(0, b"2").is_some());
        // One that comes again is the newest.
        table.insert(&key(2), 9, 3);
        table.insert(&key(5), 5, 3);
        assert!(table.get(0, b"3").is_none() && table.get(0, b"2") == Some(&9));
        for _ in 0..10_000 {
            table.insert(&key(7), 7, 3);
            table.remove_named(0, b"7");
        }
        assert!(table.order.len() < 200, "{}", table.order.len());
        table.clear(Some(1));
        assert!(!table.is_empty());
        table.clear(Some(0));
        assert!(table.is_empty() && table.order.is_empty());
        assert_eq!(table.insert(&key(1), 1, 0), 1, "no room at all");
    }
}
