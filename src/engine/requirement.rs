//! A requirement: packages that functions need, as files that can be installed here and elsewhere. Contract: `commands.md`
//! 4.6.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use indexmap::IndexMap;

use super::session::Session;
use crate::redis::{api, guarded::Guarded, lock::Lock};

/// Identified by the exact text that asked for it.
#[derive(Debug)]
pub struct Requirement {
    pub name: String,
    /// Where its files are.
    pub directory: PathBuf,
    /// Their names, sorted.
    pub wheels: Vec<String>,
    /// What kind of machine the files are for.
    pub platform: String,
    installed: AtomicBool,
    forgotten: AtomicBool,
}

impl Requirement {
    pub fn new(name: String, directory: PathBuf, wheels: Vec<String>, platform: String) -> Self {
        Self {
            name,
            directory,
            wheels,
            platform,
            installed: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
        }
    }

    pub fn is_installed(&self) -> bool {
        self.installed.load(Ordering::Relaxed)
    }

    pub fn set_installed(&self) {
        self.installed.store(true, Ordering::Relaxed);
    }

    /// Its files go when nobody uses it any more.
    pub fn forget(&self) {
        self.forgotten.store(true, Ordering::Relaxed);
    }

    /// The content of one of its files.
    ///
    /// # Errors
    /// What the operating system says, with the path.
    pub fn read(&self, wheel: &str) -> Result<Vec<u8>, String> {
        let path = self.directory.join(wheel);
        fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
    }
}

impl Drop for Requirement {
    fn drop(&mut self) {
        if *self.forgotten.get_mut() {
            if let Err(error) = fs::remove_dir_all(&self.directory) {
                api::log_warning(&format!("could not delete {}: {error}", self.directory.display()));
            }
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
        if let Some(old) = old.filter(|old| old.directory != requirement.directory) {
            old.forget();
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
            let is_it = |known: &Arc<Requirement>| Arc::ptr_eq(known, requirement);
            if !used && self.get(lock, &requirement.name).as_ref().is_some_and(is_it) {
                self.0.write(lock).shift_remove(&requirement.name);
                requirement.forget();
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
