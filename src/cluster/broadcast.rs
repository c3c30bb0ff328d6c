//! Commands that all shards carry out: asks the others, does this shard's own part, and puts the answers together.
//! Contract: docs/contract/commands.md 8.2.

use std::sync::Arc;

use serde_bytes::ByteBuf;

use super::{
    Cluster, local,
    message::{Message, Question, Said},
    questions::{Answers, Both},
};
use crate::{
    engine::{
        execution::Execution,
        id::{Id, ShardId},
        requirement::Requirement,
    },
    error::Error,
    persistence::files_of,
    requirements::archive,
    server::{api, lock::Lock, reply::Reply},
};

impl Cluster {
    /// RG.ABORTEXECUTION: `done` gets the reply when the execution has ended on all shards that have it.
    pub fn abort(&self, id: Id, done: impl FnOnce(Reply) + Send + 'static) {
        let both = Both::new(move |own: bool, answers: Answers| {
            let silent = answers.iter().any(|(_, answer)| answer.is_none());
            let found = own || answers.iter().any(|(_, answer)| answer == &Some(Ok(Said::Done)));
            done(match (silent, found) {
                (true, _) => Error::MaxIdle.into(),
                (false, true) => Reply::ok(),
                (false, false) => Error::NoSuchExecution.into(),
            });
        });
        let others = Arc::clone(&both);
        self.ask_all(&Question::Abort(id), self.engine.max_idle(), move |_, answers| {
            others.others(answers);
        });
        let own = Arc::clone(&both);
        if self.engine.abort(id, move || own.own(true)).is_err() {
            both.own(false);
        }
    }

    /// RG.GETEXECUTION with CLUSTER: `done` gets the entries of all shards that know it and answer.
    pub fn describe_everywhere(&self, execution: &Execution, done: impl FnOnce(Vec<Reply>) + Send + 'static) {
        let own = local::describe(&self.engine, execution);
        let question = Question::Describe(execution.id);
        self.ask_all(&question, self.engine.max_idle(), move |_, answers| {
            let entries = answers.into_iter().filter_map(|(_, answer)| match answer {
                Some(Ok(Said::Description(entry))) => Some(entry),
                _ => None,
            });
            done(std::iter::once(own).chain(entries).collect());
        });
    }

    /// RG.PAUSEREGISTRATIONS and RG.UNPAUSEREGISTRATIONS: all or none on each shard.
    pub fn pause(
        &self,
        lock: Lock<'_>,
        ids: Vec<Id>,
        pause: bool,
        done: impl FnOnce(Reply) + Send + 'static,
    ) {
        let own = local::pause(&self.engine, lock, &ids, pause);
        let question = Question::Pause { ids, pause };
        self.ask_all(&question, self.engine.max_idle(), move |_, answers| {
            done(own.map_or_else(Reply::from, |()| first_error(answers)));
        });
    }

    /// RG.CLEARREGISTRATIONSSTATS.
    pub fn clear_stats(&self, done: impl FnOnce(Reply) + Send + 'static) {
        local::clear_stats(&self.engine);
        self.ask_all(
            &Question::ClearStats,
            self.engine.max_idle(),
            move |_, answers| {
                done(first_error(answers));
            },
        );
    }

    /// RG.DROPEXECUTION on the other shards, a moment later.
    pub fn drop_elsewhere(&self, execution: &Execution) {
        if execution.distributed.is_some() {
            self.tell_all(&Message::Drop(execution.id));
        }
    }

    /// Sees to it that all other shards have these requirements. Not under the lock; `done` gets the first failure.
    pub fn ensure_requirements(
        &self,
        requirements: Vec<Arc<Requirement>>,
        done: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let names = requirements
            .iter()
            .map(|requirement| (requirement.name.clone(), requirement.digest));
        let question = Question::Missing(names.collect());
        let Some(this) = self.handle().upgrade() else {
            return;
        };
        self.ask_all(&question, self.engine.max_idle(), move |_, answers| {
            let missing: Vec<_> = answers
                .into_iter()
                .filter_map(|(shard, answer)| match answer {
                    Some(Ok(Said::Missing(names))) if names.is_empty() => None,
                    Some(Ok(Said::Missing(names))) => Some((shard, names)),
                    // It may have none of them.
                    _ => Some((
                        shard,
                        requirements.iter().map(|known| known.name.clone()).collect(),
                    )),
                })
                .collect();
            if missing.is_empty() {
                return done(Ok(()));
            }
            // The files are read on a thread that may take its time.
            let packages = Arc::clone(&this.packages);
            packages.later(move || this.ship(&requirements, missing, Box::new(done)));
        });
    }

    fn ship(
        self: &Arc<Self>,
        requirements: &[Arc<Requirement>],
        mut missing: Vec<(ShardId, Vec<String>)>,
        done: Box<dyn FnOnce(Result<(), Error>) + Send>,
    ) {
        let next = missing
            .iter_mut()
            .find_map(|(shard, names)| names.pop().map(|name| (*shard, name)));
        let Some((shard, name)) = next else {
            return done(Ok(()));
        };
        let known = requirements.iter().find(|requirement| requirement.name == name);
        let files = known.ok_or_else(|| format!("{name} is not known any more"));
        let files = match files.and_then(|requirement| files_of(requirement)) {
            Ok(files) => files,
            Err(reason) => return done(Err(Error::RequirementsNotInstalled(reason))),
        };
        let question = Question::Import {
            archive: ByteBuf::from(archive::encode(&files)),
            keeps_known: false,
        };
        let (this, requirements) = (Arc::clone(self), requirements.to_vec());
        let shards = std::iter::once(shard).collect();
        self.ask(
            &shards,
            &question,
            self.install_limit(),
            move |_, answers| match answers.into_iter().next() {
                Some((_, Some(Ok(_)))) => {
                    let packages = Arc::clone(&this.packages);
                    packages.later(move || this.ship(&requirements, missing, done));
                }
                Some((_, Some(Err(error)))) => {
                    api::log_warning(&format!("shard {shard} could not install {name}: {error}"));
                    done(Err(Error::RequirementsNotInstalled(format!(
                        "shard {shard}: {error}"
                    ))));
                }
                _ => done(Err(Error::MaxIdle)),
            },
        );
    }

    /// Installs a requirement on all other shards (RG.PYIMPORTREQ).
    pub fn import_elsewhere(&self, archive: Vec<u8>, done: impl FnOnce(Reply) + Send + 'static) {
        let question = Question::Import {
            archive: ByteBuf::from(archive),
            keeps_known: true,
        };
        self.ask_all(&question, self.install_limit(), move |_, answers| {
            let silent = answers.iter().any(|(_, answer)| answer.is_none());
            let failed = answers
                .into_iter()
                .find_map(|(_, answer)| answer.and_then(Result::err));
            done(match (failed, silent) {
                // Nobody else's log says that.
                (Some(reason), _) if Error::is_not_sent(&reason) => Reply::error(reason),
                (Some(_), _) => Error::ImportNotInstalled.into(),
                (None, true) => Error::MaxIdle.into(),
                (None, false) => Reply::bulk("OK"),
            });
        });
    }

    /// Another shard asks for something.
    pub(super) fn answer(&self, lock: Lock<'_>, from: ShardId, number: u64, question: Question) {
        let answer = match question {
            Question::Prepare(change) => match self.prepare(lock, from, number, change.into_vec()) {
                Some(answer) => answer,
                None => return,
            },
            Question::Import { archive, keeps_known } => {
                let reply = self.replier(from, number);
                let persistence = Arc::clone(&self.persistence);
                self.packages.later(move || {
                    let installed = persistence.install_archive(archive.into_vec(), keeps_known);
                    reply(installed.map(|()| Said::Done));
                });
                return;
            }
            Question::Abort(id) => {
                let reply = self.replier(from, number);
                if self.engine.abort(id, move || reply(Ok(Said::Done))).is_err() {
                    self.reply_to(from, number, Ok(Said::Unknown));
                }
                return;
            }
            Question::Commit(prepared) => self.commit(lock, from, prepared),
            Question::Cancel(prepared) => self.cancel(lock, from, prepared),
            Question::Pause { ids, pause } => {
                local::pause(&self.engine, lock, &ids, pause).map(|()| Said::Done)
            }
            Question::ClearStats => {
                local::clear_stats(&self.engine);
                Ok(Said::Done)
            }
            Question::MayEnd(ids) => self.check_end_here(lock, &ids).map(|()| Said::Done),
            Question::Describe(id) => Ok(match self.engine.registry.execution(id) {
                Some(execution) => Said::Description(local::describe(&self.engine, &execution)),
                None => Said::Unknown,
            }),
            Question::Unsaved(keys) => Ok(Said::Unsaved(self.unsaved(lock, &keys))),
            Question::Unsettled(slots) => Ok(Said::Unsettled(self.unsettled(lock, &slots))),
            Question::Missing(names) => {
                let is_missing =
                    |(name, digest): &(String, _)| !self.persistence.has_installed(lock, name, digest);
                let missing = names.into_iter().filter(is_missing);
                Ok(Said::Missing(missing.map(|(name, _)| name).collect()))
            }
        };
        self.reply_to(from, number, answer);
    }
}

/// OK, or the first error.
pub(super) fn first_error(answers: Answers) -> Reply {
    let error = answers.into_iter().find_map(|(_, answer)| match answer {
        Some(Ok(_)) => None,
        Some(Err(reason)) => Some(Reply::error(reason)),
        None => Some(Error::MaxIdle.into()),
    });
    error.unwrap_or_else(Reply::ok)
}
