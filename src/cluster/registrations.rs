//! Registrations on all shards. Contract: docs/contract/commands.md 1.2, 4.3, 4.4 and 8.5.
//!
//! What a script registers comes into force everywhere or nowhere: all shards prepare the change, then the initiator does it,
//! then all others do. What was missed meanwhile, by a shard that was down or that joined later, is made good: shards
//! compare what they have every few seconds. A registration that has ended is remembered, so that nobody brings it back.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::{
    Cluster,
    broadcast::first_error,
    message::{Message, Question, Said},
    questions::Answers,
};
use crate::{
    config::Number,
    engine::{
        id::{Id, ShardId},
        loading_functions::LoadedFunctions,
        registering::Registrar,
        registration::{Claim, Registration},
        session::Session,
    },
    error::Error,
    persistence::{LoadingChange, PreparedChange},
    server::{
        api,
        lock::{self, Lock},
        reply::Reply,
    },
};

/// A change of another shard: who initiates it, and the number of the question to prepare it.
type Asked = (ShardId, u64);

/// What is prepared here for others.
#[derive(Default)]
pub struct PreparedChanges {
    ready: HashMap<Asked, (PreparedChange, Instant)>,
    /// Their functions are loaded. Those that are cancelled meanwhile are here no more.
    loading: BTreeSet<Asked>,
}

impl PreparedChanges {
    /// Forgets some; they are dropped by whoever called, without our lock.
    #[must_use]
    fn take(&mut self, is_one: impl Fn(&Asked, Option<&Instant>) -> bool) -> Vec<(PreparedChange, Instant)> {
        self.loading.retain(|asked| !is_one(asked, None));
        let ready = self.ready.iter();
        let gone: Vec<_> = ready
            .filter(|(asked, (_, since))| is_one(asked, Some(since)))
            .map(|(asked, _)| *asked)
            .collect();
        gone.iter().filter_map(|asked| self.ready.remove(asked)).collect()
    }
}

/// What comes of a registration on all shards: the errors, one for each shard that failed.
pub type Registered = Result<(), Vec<Reply>>;

impl Registrar for Cluster {
    /// Here at once, on other shards a moment later.
    fn register_here(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let registrations = std::slice::from_ref(registration);
        self.persistence.register(lock, None, registrations)?;
        if !self.other_shards().is_empty() {
            if let Some(change) = self.persistence.change(None, registrations) {
                self.tell_all(&Message::Registered(ByteBuf::from(change)));
            }
        }
        Ok(())
    }
}

impl Cluster {
    /// Puts what a script registered in force on all shards, all or none, in the place of session `old`. `wanted`: whether it is
    /// still to be done when all of them are ready. Both closures are called once, on any thread, which may hold the server's lock.
    pub fn register_on_all_shards(
        &self,
        lock: Lock<'_>,
        old: Option<Arc<Session>>,
        registrations: Vec<Arc<Registration>>,
        wanted: impl Fn() -> bool + Send + 'static,
        done: impl FnOnce(Registered) + Send + 'static,
    ) {
        let Some(change) = self.persistence.change(old.as_ref(), &registrations) else {
            return done(Ok(()));
        };
        if !lock.is_master() {
            return done(Err(vec![Error::ReadOnly.into()]));
        }
        let Some(this) = self.handle().upgrade() else {
            return;
        };
        let limit = self.install_limit();
        self.ask_all(
            &Question::Prepare(ByteBuf::from(change)),
            limit,
            move |number, answers| {
                let failures = failures(answers);
                if !failures.is_empty() || !wanted() {
                    this.ask_all(&Question::Cancel(number), limit, |_, _| {});
                    return done(Err(failures));
                }
                let registered =
                    lock::with_lock(|lock| this.register_prepared(lock, old.as_ref(), &registrations));
                if let Err(error) = registered {
                    this.ask_all(&Question::Cancel(number), limit, |_, _| {});
                    return done(Err(vec![failure(
                        this.engine.registry.shard(),
                        &error.to_string(),
                    )]));
                }
                // Whoever does not answer now catches up later.
                this.ask_all(&Question::Commit(number), limit, move |_, answers| {
                    let failures = self::failures(answers);
                    done(if failures.is_empty() {
                        Ok(())
                    } else {
                        Err(failures)
                    });
                });
            },
        );
    }

    /// The initiator's own part. Time has passed since the script ran.
    fn register_prepared(
        &self,
        lock: Lock<'_>,
        old: Option<&Arc<Session>>,
        registrations: &[Arc<Registration>],
    ) -> Result<(), Error> {
        if let Some(first) = registrations.first() {
            let id = &first.session.id;
            let live = self.engine.registry.sessions(|sessions| sessions.live(id));
            if live.is_some_and(|live| !old.is_some_and(|old| Arc::ptr_eq(old, &live))) {
                return Err(Error::SessionExists(id.clone()));
            }
        }
        self.persistence.register(lock, old, registrations)
    }

    /// Ends registrations, all or none: here at once, on other shards a moment later.
    ///
    /// # Errors
    /// There is no such registration; this is a replica; something would be lost with one of them.
    pub fn unregister(&self, lock: Lock<'_>, ids: &[Id], abort_pending: bool) -> Result<(), Error> {
        self.persistence.unregister(lock, ids, abort_pending)?;
        for &id in ids {
            self.tell_all(&Message::Unregister { id, abort_pending });
        }
        Ok(())
    }

    /// True if other shards may have something that would be lost with one of these registrations.
    pub fn others_may_mind(&self, ids: &[Id]) -> bool {
        let saves = |id: &Id| {
            let registration = self.engine.registry.registration(*id);
            registration.is_some_and(|found| matches!(found.trigger.claim(), Some(Claim::Saves(_))))
        };
        self.has_others() && ids.iter().any(saves)
    }

    /// The same as [`Cluster::unregister`], unless another shard minds or does not answer.
    pub fn unregister_if_all_agree(
        &self,
        ids: Vec<Id>,
        done: impl FnOnce(Result<(), Reply>) + Send + 'static,
    ) {
        let question = Question::MayEnd(ids.clone());
        let cluster = self.handle();
        self.ask_all(&question, self.engine.max_idle(), move |_, answers| {
            let Some(this) = cluster.upgrade() else { return };
            let said = first_error(answers);
            if said.as_error().is_some() {
                return done(Err(said));
            }
            let ended = lock::with_lock(|lock| this.unregister(lock, &ids, false));
            done(ended.map_err(Reply::from));
        });
    }

    /// Whether anything would be lost here with these registrations.
    ///
    /// # Errors
    /// It would; the text says what.
    pub fn check_end_here(&self, lock: Lock<'_>, ids: &[Id]) -> Result<(), Error> {
        let known = ids.iter().filter_map(|id| self.engine.registry.registration(*id));
        for registration in known {
            registration.trigger.check_end(lock)?;
        }
        Ok(())
    }

    pub(super) fn install_limit(&self) -> Duration {
        let limit = self.engine.config.limit(Number::PythonInstallReqMaxIdleTime);
        Duration::from_millis(limit.unwrap_or(1) as u64)
    }

    /// Another shard asks to prepare a change. `None`: the answer is sent later, when its functions are loaded.
    pub(super) fn prepare(
        &self,
        lock: Lock<'_>,
        from: ShardId,
        number: u64,
        change: Vec<u8>,
    ) -> Option<Result<Said, Error>> {
        let loading_change = match self.persistence.begin_to_prepare(lock, change) {
            Ok(loading_change) => loading_change,
            Err(reason) => return Some(Err(reason)),
        };
        let loading = loading_change.loading.clone();
        self.prepared.write(lock).loading.insert((from, number));
        if let Some(loaded) = loading.wait(self.engine.patience()) {
            return Some(self.keep_prepared(lock, from, number, loading_change, loaded));
        }
        let (this, reply) = (self.handle(), self.replier(from, number));
        loading.when_done(move |loaded| {
            let Some(this) = this.upgrade() else { return };
            reply(lock::with_lock(|lock| {
                this.keep_prepared(lock, from, number, loading_change, loaded)
            }));
        });
        None
    }

    fn keep_prepared(
        &self,
        lock: Lock<'_>,
        from: ShardId,
        number: u64,
        loading_change: LoadingChange,
        loaded: LoadedFunctions,
    ) -> Result<Said, Error> {
        let limit = self.install_limit() * 2;
        let mut changes = self.prepared.write(lock);
        let awaited = changes.loading.remove(&(from, number));
        // The initiator of such a one is gone.
        let late = changes.take(|_, since| since.is_some_and(|since| since.elapsed() > limit));
        drop(changes);
        drop(late);
        if !awaited {
            return Err("the change was cancelled while its functions were loaded".into());
        }
        let claimed: Vec<_> = {
            let changes = self.prepared.read(lock);
            let ready = changes.ready.values();
            ready
                .flat_map(|(prepared, _)| &prepared.registrations)
                .cloned()
                .collect()
        };
        let prepared = self.persistence.prepare(lock, loading_change, loaded, &claimed)?;
        let mut changes = self.prepared.write(lock);
        changes.ready.insert((from, number), (prepared, Instant::now()));
        Ok(Said::Done)
    }

    /// These shards will not say what becomes of the changes that are prepared for them: they are gone, or have started anew.
    pub(super) fn drop_prepared_of(&self, lock: Lock<'_>, shards: &BTreeSet<ShardId>) {
        let mut changes = self.prepared.write(lock);
        let dropped = changes.take(|(from, _), _| shards.contains(from));
        drop(changes);
        drop(dropped);
    }

    pub(super) fn commit(&self, lock: Lock<'_>, from: ShardId, number: u64) -> Result<Said, Error> {
        let prepared = self.prepared.write(lock).ready.remove(&(from, number));
        let (prepared, _) = prepared.ok_or("what was prepared is not there any more")?;
        self.persistence.commit(lock, prepared).map(|()| Said::Done)
    }

    pub(super) fn cancel(&self, lock: Lock<'_>, from: ShardId, number: u64) -> Result<Said, Error> {
        let mut changes = self.prepared.write(lock);
        let cancelled = changes.take(|asked, _| *asked == (from, number));
        drop(changes);
        drop(cancelled);
        Ok(Said::Done)
    }

    /// Tells all others, or one of them, what is registered here.
    pub(super) fn compare_registrations(&self, to: Option<ShardId>) {
        let told = lock::with_lock(|lock| {
            let seen = to.and_then(|to| self.persistence.highest_number_of(lock, to));
            let ids = lock.is_master().then(|| self.persistence.shared_ids(lock))?;
            Some((ids, seen))
        });
        let Some((ids, seen)) = told else { return };
        let digest = digest(&ids);
        match to {
            Some(shard) => {
                if let Some(number) = seen {
                    self.tell_shard(shard, &Message::Seen(number));
                }
                self.tell_shard(shard, &Message::Digest(digest));
            }
            None => self.tell_all(&Message::Digest(digest)),
        }
    }

    /// Another shard tells what is registered there.
    pub(super) fn compare_with(&self, lock: Lock<'_>, from: ShardId, theirs: &[u8]) {
        let live = self.persistence.shared_ids(lock);
        if lock.is_master() && digest(&live) != theirs {
            let gone = self.persistence.gone_ids(lock);
            self.tell_shard(from, &Message::Inventory { live, gone });
        }
    }

    /// Another shard has other registrations: takes over what is missing here, and ends what has ended there.
    pub(super) fn make_good(&self, lock: Lock<'_>, from: ShardId, live: Vec<Id>, gone: &[Id]) {
        if !lock.is_master() {
            return;
        }
        for &id in gone {
            if self.engine.registry.registration(id).is_some() {
                api::log_notice(&format!(
                    "registration {id} has ended on shard {from}: it ends here, too"
                ));
                self.persistence.end(lock, id, false);
            }
        }
        self.persistence.note_gone(lock, gone);
        let known_gone = self.persistence.gone_ids(lock);
        let missing: Vec<_> = live
            .into_iter()
            .filter(|id| self.engine.registry.registration(*id).is_none() && !known_gone.contains(id))
            .collect();
        if !missing.is_empty() {
            self.tell_shard(from, &Message::Wanted(missing));
        }
    }

    /// Another shard has missed some.
    pub(super) fn give(&self, lock: Lock<'_>, to: ShardId, wanted: &[Id]) {
        let changes = self.persistence.changes_of(lock, wanted);
        let changes = changes.into_iter().map(ByteBuf::from).collect();
        self.tell_shard(to, &Message::Given(changes));
    }

    /// Registrations of another shard come into force here.
    pub(super) fn take_over(&self, lock: Lock<'_>, from: ShardId, change: &[u8]) {
        if let Err(error) = self.persistence.accept(lock, change) {
            api::log_warning(&format!(
                "a registration of shard {from} is not in force here: {error}"
            ));
        }
    }
}

fn digest(ids: &[Id]) -> ByteBuf {
    let mut ids: Vec<_> = ids.iter().map(Id::to_string).collect();
    ids.sort_unstable();
    ByteBuf::from(Sha256::digest(ids.join(" ")).to_vec())
}

/// The errors that a client gets: one for each shard that failed.
fn failures(answers: Answers) -> Vec<Reply> {
    let failed = answers.into_iter().filter_map(|(shard, answer)| match answer {
        Some(Ok(_)) => None,
        Some(Err(reason)) => Some(failure(shard, &reason)),
        None => Some(Error::MaxIdle.into()),
    });
    failed.collect()
}

/// On the wire it has a second dash, as in 1.2.
fn failure(shard: ShardId, reason: &str) -> Reply {
    Reply::error(format!("-ERR shard-{shard}: {reason}"))
}
