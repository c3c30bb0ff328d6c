//! The engine's part in runs that are spread over several shards: begins them, hears what other shards tell, gives up on
//! those that other shards leave alone. Contract: docs/contract/commands.md 3.1 to 3.5, 8.3 and 8.5.
//!
//! News come on whichever thread the messages come on; whatever takes long is left to the workers.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::RwLock;

use super::{
    Engine,
    execution::{Execution, Start, Status},
    id::{Id, ShardId},
    members::Members,
    plan::Plan,
    registration::{Mode, Registration},
    session::Session,
    source::Source,
    spread::{News, Shards, SharedPlan, Shipment, Spread},
};
use crate::{config::Number, error::MAX_IDLE, redis::api};

/// What the engine knows about other shards.
#[derive(Default)]
pub(super) struct Distribution {
    shards: OnceLock<Arc<dyn Shards>>,
    /// The cluster that this shard is a master of, if there are others.
    members: RwLock<Option<Arc<Members>>>,
}

/// The part of another shard's run that is to be done here.
pub struct Part {
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
    pub fn is_spread(&self, plan: &Plan, read_there: bool) -> bool {
        (read_there || plan.moves_by_key()) && self.distribution.members.read().is_some()
    }

    /// What other shards need for a run of a registration whose records this shard alone has; `None` if it does not
    /// concern them.
    pub fn shipment(&self, registration: &Registration) -> Option<Shipment> {
        let spread = registration.mode == Mode::Async && self.is_spread(&registration.plan, false);
        spread.then(|| Shipment::of_registration(registration, None))
    }

    pub(super) fn spread(&self, shipment: Shipment) -> Option<Spread> {
        let members = self.members()?;
        let me = self.registry.shard();
        Some(Spread::initiate(me, members, self.max_idle(), shipment))
    }

    /// How long a run waits for other shards.
    pub fn max_idle(&self) -> Duration {
        let limit = self.config.limit(Number::ExecutionMaxIdleTime);
        Duration::from_millis(limit.unwrap_or(1) as u64)
    }

    pub(super) fn tell_others(&self, execution: &Execution, spread: &Spread, news: &News) {
        let Some(shards) = self.shards() else { return };
        for other in spread.others() {
            shards.tell(other, execution.id, news.clone());
        }
    }

    pub(super) fn tell_initiator(&self, execution: &Execution, spread: &Spread, news: News) {
        if let Some(shards) = self.shards() {
            shards.tell(spread.initiator, execution.id, news);
        }
    }

    /// An execution has ended here: those who take part hear of it.
    pub(super) fn tell_end(&self, execution: &Execution, status: Status) {
        let Some(spread) = &execution.spread else { return };
        if spread.is_initiator() && spread.was_launched() {
            let news = if status == Status::Done && spread.may_end() {
                News::Finish
            } else {
                News::Abort
            };
            self.tell_others(execution, spread, &news);
        }
    }

    /// Ends the execution when it has waited too long for other shards.
    pub(super) fn watch_idle(&self, execution: &Arc<Execution>) {
        let Some(spread) = &execution.spread else { return };
        let after = spread.patience().unwrap_or(spread.max_idle);
        let watched = Arc::downgrade(execution);
        // The smallest wait lets a clock of coarse steps go on.
        self.timers
            .after(after.max(Duration::from_millis(1)), move |engine| {
                let Some(execution) = watched.upgrade() else {
                    return;
                };
                let Some(spread) = &execution.spread else { return };
                if execution.status().is_final() {
                    return;
                }
                if spread.patience() == Some(Duration::ZERO) {
                    api::log_warning(&format!("{MAX_IDLE}, ep_id={}", execution.id));
                    engine.end_waiting(&execution, Some(MAX_IDLE));
                }
                if !execution.status().is_final() {
                    engine.watch_idle(&execution);
                }
            });
    }

    /// Makes this shard's part of a run that another shard has begun. It waits for [`News::Go`].
    pub fn take_part(&self, initiator: ShardId, id: Id, shared: &SharedPlan, part: Part) {
        let mut start = Start::of_run(part.plan, part.session, part.source);
        start.db = shared.db;
        start.transient = shared.transient;
        start.skips_errors = shared.skips_errors;
        let spread = Spread::take_part(self.registry.shard(), initiator, shared);
        let limit = self.config.limit(Number::MaxExecutions);
        if let Some(execution) = self.registry.adopt(id, start, spread, limit) {
            self.watch_idle(&execution);
        }
    }

    /// Another shard tells something about a run. What is about an unknown or a finished one is of no interest any more.
    pub fn hear(&self, from: ShardId, id: Id, news: News) {
        let Some(execution) = self.registry.execution(id) else {
            return;
        };
        let Some(spread) = &execution.spread else { return };
        match news {
            News::Received => {
                if spread.received(from) {
                    self.tell_others(&execution, spread, &News::Go);
                    self.go_on(&execution);
                }
            }
            News::Go => {
                if spread.go() {
                    self.go_on(&execution);
                }
            }
            News::Refused(reason) => {
                let error = format!("ERR shard-{from}: {reason}");
                self.end_waiting(&execution, Some(&error));
            }
            News::Abort => self.abort_execution(&execution),
            News::Plan(_) => {}
            news => {
                spread.heard();
                if execution.arrive((from, news)) {
                    // It waits for a worker from now on.
                    spread.set_idle(false);
                    self.go_on(&execution);
                }
            }
        }
    }
}
