//! A requirement: packages that functions need, as files that can be installed here and elsewhere. Contract:
//! docs/contract/commands.md 4.6.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use crate::mutex::Mutex;
use indexmap::IndexMap;

use super::session::Session;
use crate::server::{api, guarded::Guarded, lock::Lock};

/// Tells requirements with the same name apart: the digest at the end of their archive.
pub type Digest = [u8; 32];

/// Identified by the exact text that asked for it.
pub struct Requirement {
    pub name: String,
    /// Where its files are.
    pub place: Arc<Place>,
    /// Their names, sorted.
    pub wheels: Vec<String>,
    /// What kind of machine the files are for.
    pub platform: String,
    pub digest: Digest,
    progress: AtomicU8,
    /// What came from a file or the master, until its files are on the disk. Saved in their place, by a process that
    /// was forked, too: hence no mutex.
    archive: Guarded<Option<Arc<[u8]>>>,
}

/// [`Requirement::progress`]
const WANTED: u8 = 0;
const INSTALLED: u8 = 1;
const FAILED: u8 = 2;

impl fmt::Debug for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requirement")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Requirement {
    pub fn new(
        name: String,
        place: Arc<Place>,
        wheels: Vec<String>,
        platform: String,
        digest: Digest,
    ) -> Self {
        Self {
            name,
            place,
            wheels,
            platform,
            digest,
            progress: AtomicU8::new(WANTED),
            archive: Guarded::default(),
        }
    }

    /// The same with its files as bytes, which are not on the disk yet.
    pub fn with_archive(mut self, archive: Arc<[u8]>) -> Self {
        self.archive = Guarded::new(Some(archive));
        self
    }

    pub fn directory(&self) -> &Path {
        &self.place.directory
    }

    /// Whether it is neither installed nor known to be impossible to install: somebody is to do it.
    pub fn is_wanted(&self) -> bool {
        self.progress.load(Ordering::Relaxed) == WANTED
    }

    pub fn is_installed(&self) -> bool {
        self.progress.load(Ordering::Relaxed) == INSTALLED
    }

    pub fn set_wanted(&self) {
        self.progress.store(WANTED, Ordering::Relaxed);
    }

    pub fn set_installed(&self) {
        self.progress.store(INSTALLED, Ordering::Relaxed);
    }

    pub fn set_failed(&self) {
        self.progress.store(FAILED, Ordering::Relaxed);
    }

    /// Its bytes while its files are not on the disk.
    pub fn archive(&self, lock: Lock<'_>) -> Option<Arc<[u8]>> {
        self.archive.read(lock).clone()
    }

    /// Whether its files are still there, in one form or the other.
    pub fn has_files(&self, lock: Lock<'_>) -> bool {
        let is_there = |wheel: &String| self.directory().join(wheel).exists();
        self.archive.read(lock).is_some() || self.wheels.iter().all(is_there)
    }

    /// Its files are on the disk.
    pub fn drop_archive(&self, lock: Lock<'_>) {
        let archive = self.archive.write(lock).take();
        drop(archive);
    }

    /// The content of one of its files.
    ///
    /// # Errors
    /// What the operating system says, with the path.
    pub fn read(&self, wheel: &str) -> Result<Vec<u8>, String> {
        let path = self.directory().join(wheel);
        fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// The folders that are in use, by path: two requirements with the same files have the same one.
#[derive(Default)]
pub struct Places(Mutex<HashMap<PathBuf, Weak<Place>>>);

/// The folder of a requirement. Its files go when nobody uses it any more, unless it is to stay: whatever is fetched and then
/// not wanted leaves nothing behind.
pub struct Place {
    pub directory: PathBuf,
    stays: AtomicBool,
    places: Arc<Places>,
}

impl Places {
    pub fn take(self: &Arc<Self>, directory: PathBuf) -> Arc<Place> {
        let mut places = self.0.lock();
        if let Some(place) = places.get(&directory).and_then(Weak::upgrade) {
            return place;
        }
        // What is there already may be another server's, which uses the same folder.
        let stays = AtomicBool::new(directory.exists());
        let place = Arc::new(Place {
            directory,
            stays,
            places: Arc::clone(self),
        });
        places.insert(place.directory.clone(), Arc::downgrade(&place));
        place
    }

    /// Deletes a folder that nobody uses, and that nobody begins to use meanwhile. False if somebody does.
    pub fn delete_unused(&self, directory: &Path) -> std::io::Result<bool> {
        let places = self.0.lock();
        match places.get(directory).and_then(Weak::upgrade) {
            // Dropped after the mutex: it may be the last one.
            Some(used) => {
                drop(places);
                drop(used);
                Ok(false)
            }
            None => fs::remove_dir_all(directory).map(|()| true),
        }
    }
}

impl Place {
    /// A requirement with these files is known by its name: they stay when the server ends.
    pub fn keep(&self) {
        self.stays.store(true, Ordering::Relaxed);
    }

    /// The files go when nobody uses them any more.
    pub fn forget(&self) {
        self.stays.store(false, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.0.lock();
        let again = places.get(&self.directory).and_then(Weak::upgrade);
        if again.is_some() {
            // Somebody has taken the folder since. Dropped after the mutex: it may be the last one.
            drop(places);
            return;
        }
        places.remove(&self.directory);
        if *self.stays.get_mut() {
            return;
        }
        let deleted = fs::remove_dir_all(&self.directory);
        drop(places);
        match deleted {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                api::log_warning(&format!("could not delete {}: {error}", self.directory.display()));
            }
            _ => {}
        }
    }
}

/// The requirements that are known by name, in the order of their installation. Read while the server saves its data, in a
/// process of its own: hence no lock of ours.
#[derive(Default)]
pub struct Requirements(Guarded<IndexMap<String, Arc<Requirement>>>);

impl Requirements {
    pub fn all(&self, lock: Lock<'_>) -> Vec<Arc<Requirement>> {
        self.0.read(lock).values().cloned().collect()
    }

    pub fn get(&self, lock: Lock<'_>, name: &str) -> Option<Arc<Requirement>> {
        self.0.read(lock).get(name).cloned()
    }

    /// Takes the place of one with the same name, and stands last.
    pub fn put(&self, lock: Lock<'_>, requirement: &Arc<Requirement>) {
        let mut known = self.0.write(lock);
        let old = known.shift_remove(&requirement.name);
        known.insert(requirement.name.clone(), Arc::clone(requirement));
        drop(known);
        if let Some(old) = old {
            old.place.forget();
        }
        requirement.place.keep();
    }

    /// This very one is not known any more.
    pub fn remove(&self, lock: Lock<'_>, requirement: &Arc<Requirement>) {
        let is_it = |known: &Arc<Requirement>| Arc::ptr_eq(known, requirement);
        if self.get(lock, &requirement.name).as_ref().is_some_and(is_it) {
            self.0.write(lock).shift_remove(&requirement.name);
            requirement.place.forget();
        }
    }

    /// A session was replaced: what only it used goes.
    pub fn forget_unused(&self, lock: Lock<'_>, replaced: &Session, sessions: &[Arc<Session>]) {
        for requirement in &replaced.needs.requirements {
            let used = sessions.iter().any(|session| {
                session
                    .needs
                    .requirements
                    .iter()
                    .any(|used| used.name == requirement.name)
            });
            if !used {
                self.remove(lock, requirement);
            }
        }
    }

    /// All data are about to be replaced: none is known any more.
    pub fn clear(&self, lock: Lock<'_>) -> Vec<Arc<Requirement>> {
        self.0
            .write(lock)
            .drain(..)
            .map(|(_, requirement)| requirement)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_last_user_unless_it_is_kept() {
        let directory = std::env::temp_dir().join(format!("pinion-place-{}", std::process::id()));
        let places = Arc::new(Places::default());
        let make = || fs::create_dir_all(&directory);
        let first = places.take(directory.clone());
        let second = places.take(directory.clone());
        assert!(Arc::ptr_eq(&first, &second) && make().is_ok());
        drop(first);
        assert!(places.delete_unused(&directory).is_ok_and(|deleted| !deleted) && directory.exists());
        drop(second);
        assert!(!directory.exists());
        let kept = places.take(directory.clone());
        kept.keep();
        assert!(make().is_ok());
        drop(kept);
        assert!(directory.exists());
        assert!(places.delete_unused(&directory).is_ok_and(|deleted| deleted) && !directory.exists());
    }
}
