//! Keys as the room names them, and tables by key and by number. A table by key has one part for each database, so that looking a
//! key up costs no copy of it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use crate::hashing::Seeds;

/// A key of a database. Cheap to copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub db: i32,
    pub name: Arc<[u8]>,
}

impl Key {
    pub fn new(db: i32, name: &[u8]) -> Self {
        Self {
            db,
            name: name.into(),
        }
    }
}

/// The part of one database.
type Names<T> = HashMap<Arc<[u8]>, T, Seeds>;

/// A table by key.
pub struct ByKey<T> {
    /// There are few of them.
    databases: Vec<(i32, Names<T>)>,
    len: usize,
}

impl<T> Default for ByKey<T> {
    fn default() -> Self {
        Self {
            databases: Vec::new(),
            len: 0,
        }
    }
}

impl<T> ByKey<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, db: i32, name: &[u8]) -> Option<&T> {
        let (_, database) = self.databases.iter().find(|(number, _)| *number == db)?;
        database.get(name)
    }

    pub fn get_mut(&mut self, db: i32, name: &[u8]) -> Option<&mut T> {
        self.database(db)?.get_mut(name)
    }

    fn database(&mut self, db: i32) -> Option<&mut Names<T>> {
        let found = self.databases.iter_mut().find(|(number, _)| *number == db);
        found.map(|(_, database)| database)
    }

    pub fn of(&mut self, key: &Key) -> Option<&mut T> {
        self.get_mut(key.db, &key.name)
    }

    /// The value of a key, made if there is none.
    pub fn of_or_default(&mut self, key: &Key) -> &mut T
    where
        T: Default,
    {
        let place = self.databases.iter().position(|(number, _)| *number == key.db);
        let place = place.unwrap_or_else(|| {
            self.databases.push((key.db, Names::default()));
            self.databases.len() - 1
        });
        match self.databases[place].1.entry(Arc::clone(&key.name)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.len += 1;
                entry.insert(T::default())
            }
        }
    }

    /// Changes the value of a key, if it has one; `change` says whether it stays.
    pub fn change(&mut self, key: &Key, change: impl FnOnce(&mut T) -> bool) {
        let Some(database) = self.database(key.db) else {
            return;
        };
        let Entry::Occupied(mut entry) = database.entry(Arc::clone(&key.name)) else {
            return;
        };
        if !change(entry.get_mut()) {
            entry.remove();
            self.len -= 1;
        }
    }

    /// The value that was there before, if any.
    pub fn insert(&mut self, key: &Key, value: T) -> Option<T> {
        if self.database(key.db).is_none() {
            self.databases.push((key.db, Names::default()));
        }
        let database = self.database(key.db)?;
        let before = database.insert(Arc::clone(&key.name), value);
        self.len += usize::from(before.is_none());
        before
    }

    pub fn remove(&mut self, db: i32, name: &[u8]) -> Option<T> {
        let removed = self.database(db)?.remove(name)?;
        self.len -= 1;
        Some(removed)
    }

    /// Those of one database, or of all.
    pub fn values_mut(&mut self, db: Option<i32>) -> impl Iterator<Item = &mut T> {
        self.databases
            .iter_mut()
            .filter(move |(number, _)| db.is_none_or(|db| db == *number))
            .flat_map(|(_, database)| database.values_mut())
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.databases.iter().flat_map(|(db, database)| {
            database.iter().map(move |(name, value)| {
                let name = Arc::clone(name);
                (Key { db: *db, name }, value)
            })
        })
    }

    /// Forgets those of which `keep` says no.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.len = 0;
        for (_, database) in &mut self.databases {
            database.retain(|_, value| keep(value));
            self.len += database.len();
        }
    }

    /// Forgets those of one database, or all.
    pub fn clear(&mut self, db: Option<i32>) {
        match db {
            Some(db) => {
                let removed = self.database(db).map(std::mem::take);
                self.len -= removed.map_or(0, |database| database.len());
            }
            None => *self = Self::default(),
        }
    }
}
