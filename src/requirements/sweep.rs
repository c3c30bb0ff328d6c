//! What a killed process has left in the folder of requirements: files that were being fetched or written, requirements that
//! came too late for any file of the server.
//!
//! Other servers may use the same folder, and not run at the moment. So each leaves a file there with a name of its own, which
//! it keeps locked; only a server that has never seen another one takes all that it does not know as its own.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use crate::mutex::Mutex;
use sha2::{Digest, Sha256};

use crate::engine::requirement::Places;

use super::FOLDER_DIGEST;

/// The folder with one file for each server.
const OWNERS: &str = ".servers";
/// What is being fetched or written is done long before.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);

/// This server among those that use the folder.
#[derive(Default)]
pub struct Owner {
    name: OnceLock<String>,
    /// Its file, locked as long as the process lives.
    file: Mutex<Option<File>>,
}

impl Owner {
    /// Deletes what is left over; the folders that it was. `owner` is different for each server.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn sweep(&self, base: &Path, owner: &str, places: &Places) -> io::Result<Vec<PathBuf>> {
        // Told once.
        let _ = self.name.set(hex::encode(&Sha256::digest(owner)[..8]));
        if base.is_dir() {
            sweep_folder(base, self.announce(base)?, places)
        } else {
            Ok(Vec::new())
        }
    }

    /// Lets others see that this server uses the folder. True if it has never seen another one there.
    pub fn announce(&self, base: &Path) -> io::Result<bool> {
        let Some(name) = self.name.get() else {
            return Ok(false);
        };
        let owners = base.join(OWNERS);
        let mut own = self.file.lock();
        if own.is_none() {
            fs::create_dir_all(&owners)?;
            let file = File::create(owners.join(name))?;
            // SAFETY: an open file of ours.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
                *own = Some(file);
            }
        }
        let mut others = fs::read_dir(&owners)?.filter_map(Result::ok);
        Ok(own.is_some() && others.all(|entry| entry.file_name().to_str() == Some(name)))
    }
}

fn sweep_folder(base: &Path, alone: bool, places: &Places) -> io::Result<Vec<PathBuf>> {
    let mut deleted = Vec::new();
    for entry in fs::read_dir(base)? {
        let (entry, path) = match entry {
            Ok(entry) => (entry.metadata()?, entry.path()),
            Err(error) => return Err(error),
        };
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let is_old = || {
            let age = entry.modified().ok().and_then(|time| time.elapsed().ok());
            age.is_some_and(|age| age > OLD)
        };
        let goes = if is_unfinished(name) {
            alone || is_old()
        } else {
            alone && is_requirement(name, &path)
        };
        if entry.is_dir() && goes && places.delete_unused(&path)? {
            deleted.push(path);
        }
    }
    Ok(deleted)
}

/// A folder whose files were not all there yet.
fn is_unfinished(name: &str) -> bool {
    name.starts_with(".fetching_") || name.starts_with(".storing_")
}

/// Whether a folder looks like one of ours: its name ends with a digest, and it holds wheels only.
fn is_requirement(name: &str, path: &Path) -> bool {
    let digest = name.rsplit_once('_').map_or("", |(_, digest)| digest);
    let is_wheel = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "whl"))
    };
    digest.len() == 2 * FOLDER_DIGEST
        && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
        && fs::read_dir(path).is_ok_and(|mut entries| entries.all(is_wheel))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_what_is_surely_ours_goes() {
        let base = std::env::temp_dir().join(format!("pinion-sweep-{}", std::process::id()));
        let make = || {
            for (folder, file) in [
                (".fetching_1_a", "a.whl"),
                ("used_0123456789", "a.whl"),
                ("unused_0123456789", "a.whl"),
                ("notes_0123456789", "a.txt"),
                ("python-3.11", "a.whl"),
            ] {
                fs::create_dir_all(base.join(folder))?;
                fs::write(base.join(folder).join(file), "")?;
            }
            io::Result::Ok(())
        };
        let left = || {
            let entries = fs::read_dir(&base).into_iter().flatten().flatten();
            let mut names: Vec<_> = entries
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect();
            names.sort();
            names
        };
        let places = Arc::new(Places::default());
        let used = places.take(base.join("used_0123456789"));
        used.keep();
        assert!(make().is_ok());
        let (one, two) = (Owner::default(), Owner::default());
        assert!(
            one.sweep(&base, "one", &places)
                .is_ok_and(|deleted| deleted.len() == 2)
        );
        assert_eq!(
            left(),
            [".servers", "notes_0123456789", "python-3.11", "used_0123456789"]
        );
        // Another server has been here: nobody knows whose the rest is.
        assert!(make().is_ok());
        let before = left();
        for (owner, name) in [(two, "two"), (one, "one")] {
            let deleted = owner.sweep(&base, name, &places);
            assert!(deleted.is_ok_and(|deleted| deleted.is_empty()));
        }
        assert_eq!(left(), before);
        let _ = fs::remove_dir_all(&base);
    }
}
