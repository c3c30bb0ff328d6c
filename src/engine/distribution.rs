//! The engine's part in runs that are distributed over several shards: begins them, hears what other shards tell, gives up on
//! those that other shards leave alone. Contract: `commands.md` 3.1 to 3.5, 8.3 and 8.5.
//!
//! Messages come on whichever thread the messages come on; whatever takes long is left to the workers.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::RwLock;

use super::{
    Engine,
    distributed_run::{DistributedRun, IDLE, LaunchPayload, RunMessage, Shards, SharedPlan},
    execution::{Execution, Source, Start, Status},
    id::{Id, ShardId},
    members::Members,
    plan::Plan,
    registration::{Mode, Registration},
    session::Session,
};
use crate::{config::Number, server::api};

/// What the engine knows about other shards.
#[derive(Default)]
pub(super) struct Distribution {
    shards: OnceLock<Arc<dyn Shards>>,
    /// The cluster that this shard is a master of, if there are others.
    members: RwLock<Option<Arc<Members>>>,
}

/// The part of another shard's run that is to be done here.
pub struct Participation {
    pub plan: Arc<Plan>,
    pub session: Arc<Session>,
    pub source: Box<dyn Source>,
}

impl Engine {
    /// Told once, while the module loads: the way to other shards.
    pub fn connect_shards(&self, shards: Arc<dyn Shards>) {
        // There is one.
        let _ = self.distribution.shards.set(shards);
    }

    pub(super) fn shards(&self) -> Option<&dyn Shards> {
        self.distribution.shards.get().map(AsRef::as_ref)
    }

    /// The cluster that this shard is a master of; `None` if there is no other shard.
    pub fn members(&self) -> Option<Arc<Members>> {
        self.distribution.members.read().clone()
    }

    /// The cluster has changed.
    pub fn set_members(&self, members: Option<Arc<Members>>) {
        *self.distribution.members.write() = members;
    }

    /// True if a run of this plan concerns other shards. `read_there`: they have records of their own.
    pub fn is_distributed(&self, plan: &Plan, read_there: bool) -> bool {
        (read_there || plan.moves_by_key()) && self.distribution.members.read().is_some()
    }

    /// What other shards need for a run of a registration whose records this shard alone has; `None` if it does not
    /// concern them.
    pub fn payload(&self, registration: &Registration) -> Option<LaunchPayload> {
        let distributed = registration.mode == Mode::Async && self.is_distributed(&registration.plan, false);
        distributed.then(|| LaunchPayload::of_registration(registration, None))
    }

    pub(super) fn distributed(&self, payload: LaunchPayload) -> Option<DistributedRun> {
        let members = self.members()?;
        let me = self.registry.shard();
        Some(DistributedRun::initiate(me, members, self.max_idle(), payload))
    }

    /// How long a run waits for other shards.
    pub fn max_idle(&self) -> Duration {
        let limit = self.config.limit(Number::ExecutionMaxIdleTime);
        Duration::from_millis(limit.unwrap_or(1) as u64)
    }

    pub(super) fn tell_others(
        &self,
        execution: &Execution,
        distributed: &DistributedRun,
        message: &RunMessage,
    ) {
        let Some(shards) = self.shards() else { return };
        for other in distributed.others() {
            shards.tell(other, execution.id, message.clone());
        }
    }

    pub(super) fn tell_initiator(
        &self,
        execution: &Execution,
        distributed: &DistributedRun,
        message: RunMessage,
    ) {
        if let Some(shards) = self.shards() {
            shards.tell(distributed.initiator, execution.id, message);
        }
    }

    /// An execution has ended here: those who take part hear of it.
    pub(super) fn tell_end(&self, execution: &Execution, status: Status) {
        let Some(distributed) = &execution.distributed else {
            return;
        };
        if distributed.is_initiator() && distributed.was_launched() {
            let message = if status == Status::Done && distributed.may_end() {
                RunMessage::Finish
            } else {
                RunMessage::Abort
            };
            self.tell_others(execution, distributed, &message);
        }
    }

    /// Ends the execution when it has waited too long for other shards.
    pub(super) fn watch_idle(&self, execution: &Arc<Execution>) {
        let Some(distributed) = &execution.distributed else {
            return;
        };
        let after = distributed.patience().unwrap_or(distributed.max_idle);
        let watched = Arc::downgrade(execution);
        // The smallest wait lets a clock of coarse steps go on.
        self.timers
            .after(after.max(Duration::from_millis(1)), move |engine| {
                let Some(execution) = watched.upgrade() else {
                    return;
                };
                let Some(distributed) = &execution.distributed else {
                    return;
                };
                if execution.status().is_final() {
                    return;
                }
                if distributed.patience() == Some(Duration::ZERO) {
                    api::log_warning(&format!("{IDLE}, ep_id={}", execution.id));
                    engine.end_waiting(&execution, Some(IDLE));
                }
                if !execution.status().is_final() {
                    engine.watch_idle(&execution);
                }
            });
    }

    /// Makes this shard's part of a run that another shard has begun. It waits for [`RunMessage::Go`].
    pub fn take_part(&self, initiator: ShardId, id: Id, shared: &SharedPlan, part: Participation) {
        let mut start = Start::of_run(part.plan, part.session, part.source);
        start.db = shared.db;
        start.transient = shared.transient;
        start.skips_errors = shared.skips_errors;
        let distributed = DistributedRun::take_part(self.registry.shard(), initiator, shared);
        let limit = self.config.limit(Number::MaxExecutions);
        if let Some(execution) = self.registry.adopt(id, start, distributed, limit) {
            self.watch_idle(&execution);
        }
    }

    /// Another shard tells something about a run. What is about an unknown or a finished one is of no interest any more.
    pub fn hear(&self, from: ShardId, id: Id, message: RunMessage) {
        let Some(execution) = self.registry.execution(id) else {
            return;
        };
        let Some(distributed) = &execution.distributed else {
            return;
        };
        match message {
            RunMessage::Received => {
                if distributed.received(from) {
                    self.tell_others(&execution, distributed, &RunMessage::Go);
                    self.go_on(&execution);
                }
            }
            RunMessage::Go => {
                if distributed.go() {
                    self.go_on(&execution);
                }
            }
            RunMessage::Refused(reason) => {
                let error = format!("ERR shard-{from}: {reason}");
                self.end_waiting(&execution, Some(&error));
            }
            RunMessage::Abort => self.abort_execution(&execution),
            RunMessage::Plan(_) => {}
            message => {
                distributed.heard();
                if execution.arrive((from, message)) {
                    // It waits for a worker from now on.
                    distributed.set_idle(false);
                    self.go_on(&execution);
                }
            }
        }
    }
}
