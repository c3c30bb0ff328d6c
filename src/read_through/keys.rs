//! Keys as the room names them, and tables by key. A key is hashed once, when it is named, and so is a name that is only looked
//! up: a load looks at tables of keys a dozen times.

use std::{
    cmp::Ordering,
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use hashbrown::{HashTable, hash_table::Entry};

use crate::hashing::Seeds;

/// A key of a database. Cheap to copy.
#[derive(Clone, Debug)]
pub struct Key {
    pub db: i32,
    pub name: Arc<[u8]>,
    hash: u64,
}

impl Key {
    pub fn new(db: i32, name: &[u8]) -> Self {
        Self {
            db,
            name: name.into(),
            hash: hash_of(db, name),
        }
    }

    fn is(&self, db: i32, name: &[u8]) -> bool {
        self.db == db && *self.name == *name
    }
}

fn hash_of(db: i32, name: &[u8]) -> u64 {
    let mut hasher = Seeds::default().build_hasher();
    hasher.write_usize(name.len() ^ (db as usize).rotate_left(32));
    hasher.write(name);
    hasher.finish()
}

/// Nearly always two copies of one key.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.db == other.db && (Arc::ptr_eq(&self.name, &other.name) || self.name == other.name)
    }
}

impl Eq for Key {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.db, &self.name).cmp(&(other.db, &other.name))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A table by key.
pub struct ByKey<T>(HashTable<(Key, T)>);

impl<T> Default for ByKey<T> {
    fn default() -> Self {
        Self(HashTable::new())
    }
}

fn rehash<T>((key, _): &(Key, T)) -> u64 {
    key.hash
}

impl<T> ByKey<T> {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key of which only the name is at hand.
    pub fn get(&self, db: i32, name: &[u8]) -> Option<&T> {
        if self.0.is_empty() {
            return None;
        }
        let found = self.0.find(hash_of(db, name), |(key, _)| key.is(db, name));
        found.map(|(_, value)| value)
    }

    pub fn get_mut(&mut self, db: i32, name: &[u8]) -> Option<&mut T> {
        if self.0.is_empty() {
            return None;
        }
        let found = self.0.find_mut(hash_of(db, name), |(key, _)| key.is(db, name));
        found.map(|(_, value)| value)
    }

    /// The value of a key.
    pub fn at(&self, key: &Key) -> Option<&T> {
        let found = self.0.find(key.hash, |(known, _)| known == key);
        found.map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn of(&mut self, key: &Key) -> Option<&mut T> {
        let found = self.0.find_mut(key.hash, |(known, _)| known == key);
        found.map(|(_, value)| value)
    }

    fn entry(&mut self, key: &Key) -> Entry<'_, (Key, T)> {
        self.0.entry(key.hash, |(known, _)| known == key, rehash)
    }

    /// The value of a key, made if there is none.
    pub fn of_or_default(&mut self, key: &Key) -> &mut T
    where
        T: Default,
    {
        let entry = self.entry(key).or_insert_with(|| (key.clone(), T::default()));
        &mut entry.into_mut().1
    }

    /// Changes the value of a key, if it has one; `change` says whether it stays.
    pub fn change(&mut self, key: &Key, change: impl FnOnce(&mut T) -> bool) {
        if let Entry::Occupied(mut entry) = self.entry(key) {
            if !change(&mut entry.get_mut().1) {
                entry.remove();
            }
        }
    }

    /// The value that was there before, if any.
    pub fn insert(&mut self, key: &Key, value: T) -> Option<T> {
        match self.entry(key) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(&mut entry.get_mut().1, value)),
            Entry::Vacant(entry) => {
                entry.insert((key.clone(), value));
                None
            }
        }
    }

    pub fn remove(&mut self, key: &Key) -> Option<T> {
        if self.0.is_empty() {
            return None;
        }
        let entry = self.0.find_entry(key.hash, |(known, _)| known == key).ok()?;
        let ((_, value), _) = entry.remove();
        Some(value)
    }

    /// The same for a key of which only the name is at hand.
    pub fn remove_named(&mut self, db: i32, name: &[u8]) -> Option<T> {
        if self.0.is_empty() {
            return None;
        }
        let entry = self.0.find_entry(hash_of(db, name), |(key, _)| key.is(db, name));
        let ((_, value), _) = entry.ok()?.remove();
        Some(value)
    }

    /// Those of one database, or of all.
    pub fn values_mut(&mut self, db: Option<i32>) -> impl Iterator<Item = &mut T> {
        self.0
            .iter_mut()
            .filter(move |(key, _)| db.is_none_or(|db| db == key.db))
            .map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &T)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Forgets those of which `keep` says no.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.0.retain(|(_, value)| keep(value));
    }

    /// Forgets those of one database, or all.
    pub fn clear(&mut self, db: Option<i32>) {
        match db {
            Some(db) => self.0.retain(|(key, _)| key.db != db),
            None => *self = Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_name_in_its_database() {
        let mut table = ByKey::default();
        for number in 0..100 {
            let name = format!("user:{number}");
            assert_eq!(table.insert(&Key::new(0, name.as_bytes()), number), None);
            assert_eq!(table.insert(&Key::new(1, name.as_bytes()), -number), None);
        }
        assert_eq!(
            (table.get(0, b"user:7"), table.get(1, b"user:7")),
            (Some(&7), Some(&-7))
        );
        let key = Key::new(1, b"user:7");
        assert_eq!((table.at(&key), table.at(&key.clone())), (Some(&-7), Some(&-7)));
        assert_eq!(table.insert(&key, 5), Some(-7));
        assert_eq!(table.len(), 200);
        table.change(&key, |value| {
            *value += 1;
            *value < 7
        });
        assert_eq!(table.get(1, b"user:7"), Some(&6));
        table.change(&key, |_| false);
        assert!(table.at(&key).is_none() && table.remove(&key).is_none() && table.len() == 199);
        assert_eq!(table.remove_named(0, b"user:8"), Some(8));
        table.clear(Some(0));
        assert_eq!(
            (table.len(), table.get(0, b"user:9"), table.get(1, b"user:9")),
            (99, None, Some(&-9))
        );
        *table.of_or_default(&key) += 1;
        assert_eq!(table.at(&key), Some(&1));
        assert_eq!(table.values_mut(Some(1)).count(), 100);
    }
}
