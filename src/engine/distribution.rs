//! The engine's part in runs that are distributed over several shards: begins them, hears what other shards tell, gives up on
//! those that other shards leave alone, or that the cluster has changed under. Contract: docs/contract/commands.md 3.1 to
//! 3.5, 8.3 and 8.5.
//!
//! Messages come on whichever thread the messages come on; whatever takes long is left to the workers.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::RwLock;

use super::{
    Engine,
    distributed_run::{self, DistributedRun, Loss, NextAction, Place},
    execution::Execution,
    id::{Id, ShardId},
    language::Failure,
    members::Members,
    phase::Status,
    plan::Plan,
    registration::{Mode, Registration},
    run_message::{LaunchPayload, Listing, RunMessage, Shards, SharedPlan},
    session::Session,
    source::Source,
    start::Start,
};
use crate::{config::Number, error::Error, server::api};

/// How long after a vain attempt to begin a run the next one is made.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// What this server knows of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// There is no other shard.
    #[default]
    Alone,
    /// This is one of these masters.
    Known(Arc<Members>),
    /// There are others, but it is not known which ones; why.
    Unknown(String),
}

/// What the engine knows about other shards.
#[derive(Default)]
pub(super) struct Distribution {
    shards: OnceLock<Arc<dyn Shards>>,
    shape: RwLock<Shape>,
}

/// The part of another shard's run that is to be done here.
pub struct Participation {
    pub plan: Arc<Plan>,
    pub session: Arc<Session>,
    pub source: Box<dyn Source>,
    /// The registration that it is a run of.
    pub owner: Option<Arc<Registration>>,
    /// Where the initiator lists the session.
    pub listing: Listing,
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

    pub fn shape(&self) -> Shape {
        self.distribution.shape.read().clone()
    }

    /// The cluster that this shard is a master of; `None` if there is no other shard, or none is known.
    pub fn members(&self) -> Option<Arc<Members>> {
        match &*self.distribution.shape.read() {
            Shape::Known(members) => Some(Arc::clone(members)),
            Shape::Alone | Shape::Unknown(_) => None,
        }
    }

    /// The cluster looks like this now; `gone`: shards to which there is no way any more. Runs that have not begun are begun
    /// with the shards that there are; those that need one that is gone end with an error.
    pub fn set_shape(&self, shape: Shape, gone: &BTreeSet<ShardId>) {
        let members = match &shape {
            Shape::Known(members) => Some(Arc::clone(members)),
            Shape::Alone | Shape::Unknown(_) => None,
        };
        let before = std::mem::replace(&mut *self.distribution.shape.write(), shape.clone());
        if before == shape && gone.is_empty() {
            return;
        }
        for execution in self.registry.whole_executions().0 {
            let Some(distributed) = &execution.distributed else {
                continue;
            };
            if execution.status().is_final() {
                continue;
            }
            let loss = distributed.lost(gone, members.as_deref());
            self.take_loss(&execution, distributed, loss, || Error::ShardsChanged);
        }
    }

    /// Messages of another shard have not come, whatever they said: what they may have been about is begun again, or ends with an error.
    pub fn messages_lost(&self, of: ShardId) {
        for execution in self.registry.whole_executions().0 {
            if let Some(distributed) = &execution.distributed {
                if !execution.status().is_final() {
                    let loss = distributed.lost_messages(of);
                    self.take_loss(&execution, distributed, loss, || {
                        Error::MessagesLost(of.to_string())
                    });
                }
            }
        }
    }

    fn take_loss(
        &self,
        execution: &Arc<Execution>,
        distributed: &DistributedRun,
        loss: Loss,
        error: impl FnOnce() -> Error,
    ) {
        match loss {
            Loss::Nothing => {}
            Loss::SendAgain => self.send_again(execution, distributed),
            Loss::Fatal => self.fail(execution, error().into()),
        }
    }

    fn send_again(&self, execution: &Arc<Execution>, distributed: &DistributedRun) {
        if distributed.send_again() {
            self.go_on(execution);
        }
    }

    /// True if a run of this plan concerns other shards. `read_there`: they have records of their own.
    pub fn is_distributed(&self, plan: &Plan, read_there: bool) -> bool {
        (read_there || plan.moves_by_key()) && *self.distribution.shape.read() != Shape::Alone
    }

    /// What other shards need for a run of a registration whose records this shard alone has; `None` if it does not
    /// concern them.
    pub fn payload(&self, registration: &Registration) -> Option<LaunchPayload> {
        let distributed = registration.mode == Mode::Async && self.is_distributed(&registration.plan, false);
        distributed.then(|| LaunchPayload::of_registration(registration, None))
    }

    /// What a thread that has taken up a distributed run is to do with it. True if it can be run.
    pub(super) fn may_run(&self, execution: &Arc<Execution>, distributed: &DistributedRun) -> bool {
        match distributed.turn() {
            NextAction::Run => return true,
            NextAction::TooEarly => return false,
            NextAction::Launch { first: true } => self.watch_idle(execution),
            NextAction::Launch { first: false } => {}
        }
        let me = self.registry.shard();
        let members = match self.shape() {
            Shape::Known(members) if execution.id.shard == me => members,
            Shape::Alone if self.is_serving() => Arc::new(Members::alone(me)),
            // It has an id of a server on its own, or this is no shard any more.
            Shape::Known(_) | Shape::Alone => {
                self.fail(execution, Error::ShardsChanged.into());
                return false;
            }
            Shape::Unknown(reason) => {
                // Whoever learns it begins the run.
                distributed.hindered(None, Error::ShardsUnknown(reason).into());
                return false;
            }
        };
        let Some(launch) = distributed.launch(Place { me, members }) else {
            return false;
        };
        if let Some(shards) = self.shards() {
            for &shard in &launch.left_out {
                shards.tell(shard, execution.id, RunMessage::Abort);
            }
        }
        let listing = self
            .registry
            .sessions(|sessions| sessions.listing(&execution.session));
        let plan = distributed_run::shared(execution, distributed, launch, listing);
        self.tell_others(execution, distributed, &RunMessage::Plan(Box::new(plan)));
        if execution.status().is_final() {
            // It was aborted in this moment: what the others were told of that came before the plan.
            let known = self.registry.execution(execution.id).is_some();
            let message = if known {
                RunMessage::Abort
            } else {
                RunMessage::Forget
            };
            self.tell_others(execution, distributed, &message);
            return false;
        }
        // Where there is no other shard, it has begun.
        matches!(distributed.turn(), NextAction::Run)
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
        let (Some(shards), Some(place)) = (self.shards(), distributed.place()) else {
            return;
        };
        for other in place.others() {
            shards.tell(other, execution.id, message.clone());
        }
    }

    pub(super) fn tell_initiator(
        &self,
        execution: &Execution,
        distributed: &DistributedRun,
        message: RunMessage,
    ) {
        if let (Some(shards), Some(initiator)) = (self.shards(), distributed.initiator()) {
            shards.tell(initiator, execution.id, message);
        }
    }

    /// An execution has ended here: those who take part hear of it, or the initiator of what went wrong.
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
        if let Some(reason) = execution.fate() {
            self.tell_initiator(execution, distributed, RunMessage::Refused(reason.clone()));
        }
    }

    /// Ends an execution that cannot come to a right result any more. One that runs is stopped.
    pub(super) fn fail(&self, execution: &Arc<Execution>, error: Failure) {
        if !execution.status().is_final() {
            execution.set_fate(error);
            self.abort_execution(execution);
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
                    let error = distributed.idle_error();
                    api::log_warning(&format!("{error}, ep_id={}", execution.id));
                    engine.end_waiting(&execution, Some(&error));
                }
                if !execution.status().is_final() {
                    engine.watch_idle(&execution);
                }
            });
    }

    /// Makes this shard's part of a run that another shard has begun. It waits for [`RunMessage::Go`]. A part of an earlier attempt,
    /// which waits still, is gone with that.
    pub fn take_part(&self, initiator: ShardId, id: Id, shared: &SharedPlan, part: Participation) {
        let session = Arc::clone(&part.session);
        let actor = match &part.owner {
            Some(registration) => registration.actor.clone(),
            None => shared.owner.actor(|| format!("session {}", session.id)),
        };
        let start = Start::of_part(part.plan, part.session, part.source, actor, shared);
        if let Some(earlier) = self.registry.execution(id) {
            let attempt = earlier
                .distributed
                .as_ref()
                .and_then(|distributed| distributed.attempt_waiting());
            if attempt.is_some_and(|attempt| attempt < shared.attempt) {
                self.abort_execution(&earlier);
                self.registry.drop_execution(id);
            }
        }
        let distributed = DistributedRun::take_part(self.registry.shard(), initiator, shared, part.owner);
        let limit = self.config.limit(Number::MaxExecutions);
        if let Some(execution) = self.registry.adopt(id, start, distributed, limit) {
            self.registry.list_session(&session, part.listing);
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
            RunMessage::Received { attempt } => {
                if distributed.received(from, attempt) {
                    self.tell_others(&execution, distributed, &RunMessage::Go);
                    self.go_on(&execution);
                }
            }
            RunMessage::NotYet { attempt, reason } => {
                let reason = Error::ShardsUnknown(format!("shard {from}: {reason}"));
                if distributed.hindered(Some(attempt), reason.into()) {
                    let again = Arc::downgrade(&execution);
                    self.timers.after(TRY_AGAIN, move |engine| {
                        let Some(execution) = again.upgrade() else { return };
                        if let Some(shards) = engine.shards() {
                            shards.look();
                        }
                        if let Some(distributed) = &execution.distributed {
                            engine.send_again(&execution, distributed);
                        }
                    });
                }
            }
            RunMessage::Go => {
                if distributed.go() {
                    self.go_on(&execution);
                }
            }
            RunMessage::Refused(reason) => {
                self.fail(&execution, format!("ERR shard-{from}: {reason}").into());
            }
            RunMessage::Abort => self.abort_execution(&execution),
            RunMessage::Forget => {
                self.abort_execution(&execution);
                Self::drop_when_finished(&self.handle(), id);
            }
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
