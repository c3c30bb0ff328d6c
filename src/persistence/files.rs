//! What is saved: in RDB files, and in AOF files that are rewritten.

use super::{
    IMPORT, Persistence, REGISTER,
    change::{RegistrationChange, SavedRegistration, SavedSession},
};
use crate::{
    config::Number,
    engine::requirement::Requirement,
    error::Error,
    requirements::{Files, archive},
    server::{
        api,
        lock::Lock,
        persist::{Blob, Saved},
    },
    write_behind::WriteBehind,
};

impl Saved for Persistence {
    fn count(&self, lock: Lock<'_>) -> usize {
        if !self.engine.config.is_on(Number::SaveRegistrations) {
            return 0;
        }
        let kept = self.kept.read(lock);
        let gone = usize::from(!kept.tombstones.is_empty());
        kept.registrations.len() + gone + self.engine.requirements.all(lock).len()
    }

    fn each(&self, lock: Lock<'_>, save: &mut dyn FnMut(Blob)) {
        if !self.engine.config.is_on(Number::SaveRegistrations) {
            return;
        }
        for requirement in self.engine.requirements.all(lock) {
            match archive_of(lock, &requirement) {
                Ok(bytes) => save(Blob {
                    command: IMPORT,
                    bytes,
                }),
                Err(error) => api::log_warning(&format!(
                    "Failed serializing requirement {}, {error}",
                    requirement.name
                )),
            }
        }
        let kept = self.kept.read(lock);
        if !kept.tombstones.is_empty() {
            let change = RegistrationChange {
                gone: kept.tombstones.iter().map(|id| id.to_string()).collect(),
                ..RegistrationChange::default()
            };
            save(Blob {
                command: REGISTER,
                bytes: change.encode(),
            });
        }
        for registration in &kept.registrations {
            let change = RegistrationChange {
                session: SavedSession::of(&registration.session),
                registrations: vec![SavedRegistration::of(registration)],
                ..RegistrationChange::default()
            };
            save(Blob {
                command: REGISTER,
                bytes: change.encode(),
            });
        }
        drop(kept);
        self.readers.behind.save_all(lock, save);
    }

    fn load(&self, lock: Lock<'_>, blob: &[u8]) -> Result<(), Error> {
        if archive::is_one(blob) {
            return self.take(lock, blob);
        }
        if WriteBehind::is_one(blob) {
            return Ok(self.readers.behind.load(lock, blob)?);
        }
        self.apply_change(lock, RegistrationChange::decode(blob)?)
    }
}

/// A requirement as bytes.
///
/// # Errors
/// One of its files is gone; the bytes that came are damaged, which its thread has not noticed yet.
pub(super) fn archive_of(lock: Lock<'_>, requirement: &Requirement) -> Result<Vec<u8>, String> {
    match requirement.archive(lock) {
        Some(archive) => match archive::decode(&archive) {
            Ok(_) => Ok(archive.to_vec()),
            Err(error) => Err(error.to_string()),
        },
        None => files_of(requirement).map(|files| archive::encode(&files)),
    }
}

/// The files of a requirement, read from the disk.
///
/// # Errors
/// One of them is gone.
pub fn files_of(requirement: &Requirement) -> Result<Files, String> {
    let read = |wheel: &String| Ok((wheel.clone(), requirement.read(wheel)?));
    Ok(Files {
        name: requirement.name.clone(),
        platform: requirement.platform.clone(),
        wheels: requirement
            .wheels
            .iter()
            .map(read)
            .collect::<Result<_, String>>()?,
    })
}
