//! What the shards of a cluster do with each other's registrations: a change is prepared on all of them before any of them
//! does it; a shard that missed some gets them later. Called by `cluster/registrations.rs`, under the server's lock.
//!
//! Shards may get the same changes in different orders, and some of them not at all. So what wins is not what comes last: of
//! two sessions with one id the later one ([`Session::rank`]) stays, wherever they meet, and the other one has ended.

use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::{
    Persistence, REGISTER, RegistrationChange, SavedRegistration, SavedSession, change_of,
    files::{archive_of, files_of},
    restore::Functions,
    triggers,
};
use crate::{
    engine::{
        id::{Id, ShardId},
        loading_functions::{LoadedFunctions, LoadingFunctions},
        registration::{Disabled, Images, Peers, Registration},
        requirement::Digest,
        session::{Needs, Session},
    },
    error::Error,
    requirements::archive,
    server::{
        api,
        call::replicate,
        lock::{self, Lock},
        rights::Owner,
    },
};

/// A change of another shard that can be done.
pub struct PreparedChange {
    change: RegistrationChange,
    pub registrations: Vec<Arc<Registration>>,
}

/// A change of another shard whose functions are being loaded.
pub struct LoadingChange {
    change: RegistrationChange,
    session: Arc<Session>,
    images: Vec<Images>,
    pub loading: LoadingFunctions,
}

impl Persistence {
    /// Registrations that take the place of session `old`, as other shards get them. `None` if there is nothing to tell.
    pub fn change(&self, old: Option<&Arc<Session>>, registrations: &[Arc<Registration>]) -> Option<Vec<u8>> {
        let owner = registrations.first().map(|registration| &registration.session);
        let session = owner.or(old)?;
        Some(change_of(session, old, registrations).encode())
    }

    /// Installs the requirement that an archive holds, and makes it known, here and on replicas. On the thread for
    /// requirements. `keeps_known`: one that is known by that name keeps its files, and is installed again.
    ///
    /// # Errors
    /// The archive is damaged, or not allowed here; its files cannot be stored or installed; this is a replica by now.
    pub fn install_archive(&self, archive: Vec<u8>, keeps_known: bool) -> Result<(), Error> {
        let files = archive::decode(&archive)?;
        self.packages.check(std::slice::from_ref(&files.name))?;
        let known = lock::with_lock(|lock| self.known(lock, &files.name)).filter(|_| keeps_known);
        let known = known
            .filter(|known| known.is_installed())
            .and_then(|known| Some((files_of(&known).ok()?, known)));
        let (requirement, archive) = if let Some((files, known)) = known {
            (known, archive::encode(&files))
        } else {
            let requirement = Arc::new(self.packages.requirement(&archive::header(&archive)?));
            self.packages.store(&requirement, &files)?;
            (requirement, archive)
        };
        self.packages
            .install(std::slice::from_ref(&requirement))
            .map_err(|error| {
                api::log_warning(&format!("a requirement was not installed: {error}"));
                Error::ImportNotInstalled
            })?;
        lock::with_lock(|lock| self.import(lock, &requirement, &archive))
    }

    /// True if a requirement with these files is installed here.
    pub fn has_installed(&self, lock: Lock<'_>, name: &str, digest: &Digest) -> bool {
        let known = self.known(lock, name);
        known.is_some_and(|known| known.is_installed() && known.digest == *digest)
    }

    /// Begins to load the functions of another shard's change.
    ///
    /// # Errors
    /// Why the change cannot be done here.
    pub fn begin_to_prepare(&self, lock: Lock<'_>, change: Vec<u8>) -> Result<LoadingChange, Error> {
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        let change = RegistrationChange::decode(&change)?;
        self.replaced_by(&change)?;
        let replaces_it = change.replaces.as_ref() == Some(&change.session.id);
        if !replaces_it && !change.registrations.is_empty() && self.live(&change.session.id).is_some() {
            return Err(Error::SessionExists(change.session.id));
        }
        for name in &change.session.requirements {
            if !self.known(lock, name).is_some_and(|known| known.is_installed()) {
                let reason = format!("Failed deserializing session, requirement {name} is not installed");
                return Err(reason.into());
            }
        }
        let saved = change.registrations.iter();
        let images: Vec<_> = saved.map(|saved| saved.images.clone()).collect();
        let session = Arc::new(self.session_of(lock, change.session.clone()));
        Ok(LoadingChange {
            change,
            loading: self.begin_loading(&images, &session),
            session,
            images,
        })
    }

    /// Makes the registrations of another shard's change, without putting them in force. `claimed`: what other changes that
    /// are prepared take.
    ///
    /// # Errors
    /// Why the change cannot be done here.
    pub fn prepare(
        &self,
        lock: Lock<'_>,
        loading_change: LoadingChange,
        loaded: LoadedFunctions,
        claimed: &[Arc<Registration>],
    ) -> Result<PreparedChange, Error> {
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        let LoadingChange { change, session, .. } = loading_change;
        let old = self.replaced_by(&change)?;
        let mut registrations: Vec<Arc<Registration>> = Vec::new();
        let functions = Functions::of_each(&loading_change.images, loaded);
        for (saved, functions) in change.registrations.iter().zip(functions) {
            if Id::parse(saved.id.as_bytes()).is_some_and(|id| self.kept.read(lock).tombstones.contains(id)) {
                return Err(format!("there was a registration {} already", saved.id).into());
            }
            let prepared = [claimed, registrations.as_slice()].concat();
            let peers = Peers {
                replaced: old.as_deref(),
                prepared: &prepared,
            };
            let restored = self.restore(lock, saved.clone(), &session, functions, peers)?;
            match &restored.disabled {
                Some(Disabled::Refused(reason)) => return Err(reason.clone().into()),
                Some(why) => {
                    let reason = why.reason();
                    return Err(format!("Failed deserializing flat execution, {reason}").into());
                }
                None => {}
            }
            registrations.push(restored);
        }
        self.check_ends(lock, old.as_ref(), &triggers(&registrations))?;
        Ok(PreparedChange {
            change,
            registrations,
        })
    }

    fn live(&self, id: &str) -> Option<Arc<Session>> {
        self.engine.registry.sessions(|sessions| sessions.live(id))
    }

    /// The session whose place that of a change takes here, whatever the script that made the change saw.
    ///
    /// # Errors
    /// It is later than that of the change.
    fn replaced_by(&self, change: &RegistrationChange) -> Result<Option<Arc<Session>>, Error> {
        let new = &change.session;
        let live = self.live(change.replaces.as_ref().unwrap_or(&new.id));
        match live {
            Some(live) if live.rank() > new.rank() => Err(Error::LaterSession(live.id.clone())),
            // A change without registrations only ends the session that it names.
            live => Ok(live.filter(|live| live.token != new.token || change.registrations.is_empty())),
        }
    }

    /// The session that was saved or sent.
    pub(super) fn session_of(&self, lock: Lock<'_>, saved: SavedSession) -> Session {
        let known = |name: &String| self.engine.requirements.get(lock, name);
        let needs = Needs {
            requirements: saved.requirements.iter().filter_map(known).collect(),
            installed: saved.installed,
        };
        Session::new(saved.id, saved.description, needs)
            .owned_by(Owner::of_user(saved.made_by))
            .known_as(saved.token, saved.generation)
    }

    /// Makes a change that was prepared, here and on replicas. Nothing happens if it was done otherwise meanwhile.
    ///
    /// # Errors
    /// Why it cannot be done any more.
    pub fn commit(&self, lock: Lock<'_>, prepared: PreparedChange) -> Result<(), Error> {
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        let PreparedChange {
            mut change,
            registrations,
        } = prepared;
        let done =
            |registration: &Arc<Registration>| self.engine.registry.registration(registration.id).is_some();
        if !registrations.is_empty() && registrations.iter().all(done) {
            return Ok(());
        }
        // Meanwhile another one may have come, or the same one anew, when data were loaded.
        let put = self.replaced_by(&change).and_then(|old| {
            self.check_awaiting(lock, old.as_ref(), &registrations)?;
            // What has changed since it was prepared would be lost. What it makes comes when shards compare what they have.
            self.check_ends(lock, old.as_ref(), &triggers(&registrations))?;
            self.put_in_force(lock, old.as_ref(), &registrations)?;
            Ok(old)
        });
        change.replaces = put?.map(|old| old.id.clone());
        replicate(lock, REGISTER, &[&change.encode()]);
        for registration in &registrations {
            self.engine.call_on_registered(registration);
        }
        Ok(())
    }

    /// Makes a change that another shard has done before, here and on replicas. If what it needs is to be installed first, its
    /// registrations begin to run then.
    ///
    /// # Errors
    /// Why it cannot be done here.
    pub fn accept(&self, lock: Lock<'_>, change: &[u8]) -> Result<(), Error> {
        if !lock.is_master() {
            return Err(Error::ReadOnly);
        }
        let mut change = RegistrationChange::decode(change)?;
        let saved = change.registrations.iter();
        let ids: Vec<_> = saved.filter_map(|saved| Id::parse(saved.id.as_bytes())).collect();
        let known = ids.iter().any(|&id| {
            self.engine.registry.registration(id).is_some() || self.kept.read(lock).tombstones.contains(id)
        });
        if known {
            return Ok(());
        }
        let Ok(old) = self.replaced_by(&change) else {
            api::log_notice(&format!(
                "a registration of session {} has come after it was replaced: it has ended",
                change.session.id
            ));
            self.note_gone(lock, &ids);
            return Ok(());
        };
        // It comes again when shards compare what they have: until then what would be lost is saved.
        let new = change.registrations.iter();
        let new = new
            .map(|saved| self.readers.trigger(&saved.trigger))
            .collect::<Result<Vec<_>, _>>()?;
        let new: Vec<_> = new.iter().map(AsRef::as_ref).collect();
        self.check_ends(lock, old.as_ref(), &new)?;
        change.replaces = old.map(|old| old.id.clone());
        let bytes = change.encode();
        self.apply_change(lock, change)?;
        replicate(lock, REGISTER, &[&bytes]);
        Ok(())
    }

    /// The registrations here that other shards have, too, or should have.
    pub fn shared_ids(&self, lock: Lock<'_>) -> Vec<Id> {
        let kept = self.kept.read(lock);
        let ids = kept.registrations.iter().map(|registration| registration.id);
        ids.filter(|id| !id.shard.is_standalone()).collect()
    }

    /// Those that have ended.
    pub fn gone_ids(&self, lock: Lock<'_>) -> Vec<Id> {
        self.kept.read(lock).tombstones.iter().collect()
    }

    /// These have ended elsewhere: that is remembered here, on replicas and in files.
    pub fn note_gone(&self, lock: Lock<'_>, ids: &[Id]) {
        let mut kept = self.kept.write(lock);
        let new = ids.iter().filter(|id| !kept.tombstones.contains(**id));
        let new: Vec<_> = new.copied().collect();
        kept.tombstones.extend(new.iter().copied());
        drop(kept);
        if new.is_empty() {
            return;
        }
        self.saw_ids(&new);
        let change = RegistrationChange {
            gone: new.iter().map(Id::to_string).collect(),
            ..RegistrationChange::default()
        };
        replicate(lock, REGISTER, &[&change.encode()]);
    }

    /// What is registered here from now on has other numbers than these.
    pub(super) fn saw_ids(&self, ids: &[Id]) {
        if let Some(highest) = ids.iter().map(|id| id.number).max() {
            self.engine.registry.saw_registration(highest);
        }
    }

    /// The highest number of what that shard has registered, as far as it is known here.
    pub fn highest_number_of(&self, lock: Lock<'_>, shard: ShardId) -> Option<u64> {
        let kept = self.kept.read(lock);
        let live = kept.registrations.iter().map(|registration| registration.id);
        let all = live.chain(kept.tombstones.iter());
        all.filter(|id| id.shard == shard).map(|id| id.number).max()
    }

    /// A change for each of these registrations, with whatever it needs.
    pub fn changes_of(&self, lock: Lock<'_>, ids: &[Id]) -> Vec<Vec<u8>> {
        let kept = self.kept.read(lock);
        let wanted = kept
            .registrations
            .iter()
            .filter(|registration| ids.contains(&registration.id));
        wanted
            .map(|registration| {
                let session = &registration.session;
                let needs = session.needs.requirements.iter();
                let change = RegistrationChange {
                    session: SavedSession::of(session),
                    requirements: needs
                        .filter_map(|requirement| archive_of(lock, requirement).ok())
                        .map(ByteBuf::from)
                        .collect(),
                    registrations: vec![SavedRegistration::of(registration)],
                    ..RegistrationChange::default()
                };
                change.encode()
            })
            .collect()
    }
}
