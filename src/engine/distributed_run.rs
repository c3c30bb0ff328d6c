//! A run that is distributed over several shards: what this shard knows of it.
//!
//! One shard is the initiator; the others take part. `created -> pending_receive -> running -> pending_cluster -> done`
//! there, `pending_run -> running -> pending_termination -> done` here. The plan may go out several times, as attempts, until
//! all shards have it: to others, when the cluster has changed meanwhile. Contract: docs/contract/commands.md 3.1, 3.5 and
//! 8.3. What the shards tell each other is in `run_message.rs`; the steps that move records are in `shuffle.rs`.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::mutex::Mutex;
use serde_bytes::ByteBuf;

use super::{
    execution::Execution,
    id::ShardId,
    language::Failure,
    members::Members,
    registration::Registration,
    run_message::{Functions, LaunchPayload, Listing, SharedPlan},
};
use crate::error::MAX_IDLE;

/// What this shard knows of a distributed run.
pub struct DistributedRun {
    /// The shard that began it, if that is another one.
    begun_by: Option<ShardId>,
    pub max_idle: Duration,
    /// A registration started it.
    pub registered: bool,
    /// The registration here, where another shard's one started it.
    pub owner: Option<Arc<Registration>>,
    progress: Mutex<Progress>,
}

/// Where a run takes place.
#[derive(Clone)]
pub struct Place {
    pub me: ShardId,
    pub members: Arc<Members>,
}

impl Place {
    pub fn others(&self) -> impl Iterator<Item = ShardId> {
        self.members.others(self.me)
    }
}

/// How far a run has come on this shard.
enum Phase {
    /// The initiator's: not all shards have the plan.
    Launching {
        payload: Box<LaunchPayload>,
        tries: Tries,
        /// Why it has not come further.
        obstacle: Option<Failure>,
    },
    /// Of those who take part: the plan is here, but not with all shards.
    Prepared,
    /// All shards have the plan.
    Running,
    /// This shard has done its part.
    PartDone,
    /// Of those who took part: the initiator says that all have done their part.
    Finished,
}

/// How often the plan was sent, and whether it is to be sent again.
#[derive(Clone, Copy)]
enum Tries {
    None,
    /// It was sent, the first time then; now the others are asked for.
    Sent {
        first: Instant,
    },
    /// It is to be sent again.
    Due {
        first: Instant,
    },
}

struct Progress {
    phase: Phase,
    /// `None` until the initiator knows the shards.
    place: Option<Place>,
    /// How often the plan was sent.
    attempt: u32,
    received: BTreeSet<ShardId>,
    completed: BTreeSet<ShardId>,
    /// Since when it has waited for other shards; `None` while it does something else.
    idle_since: Option<Instant>,
}

/// What is to be done with a run that a thread has taken up.
pub enum NextAction {
    /// Send the plan; it goes on when all shards have it. `first`: that was not tried before.
    Launch {
        first: bool,
    },
    /// Not all shards have the plan.
    TooEarly,
    Run,
}

/// One attempt of the initiator.
pub struct Launch {
    pub attempt: u32,
    pub place: Place,
    pub payload: LaunchPayload,
    /// Those who have an earlier plan and are not to have this one.
    pub left_out: Vec<ShardId>,
}

/// What the loss of a shard means for a run.
#[derive(Debug, PartialEq, Eq)]
pub enum Loss {
    Nothing,
    /// Nothing has begun: the plan can be sent to others.
    SendAgain,
    Fatal,
}

impl DistributedRun {
    /// The initiator's side. Where it takes place is found out when the plan is sent.
    pub fn initiate(max_idle: Duration, payload: LaunchPayload) -> Self {
        let registered = matches!(payload.functions, Functions::Registered(_));
        Self {
            begun_by: None,
            max_idle,
            registered,
            owner: None,
            progress: Mutex::new(Progress::new(Phase::Launching {
                payload: Box::new(payload),
                tries: Tries::None,
                obstacle: None,
            })),
        }
    }

    /// The side of a shard that takes part. It waits from now on.
    pub fn take_part(
        me: ShardId,
        initiator: ShardId,
        plan: &SharedPlan,
        owner: Option<Arc<Registration>>,
    ) -> Self {
        let members = Arc::new(plan.members.clone());
        Self {
            begun_by: Some(initiator),
            max_idle: Duration::from_millis(plan.max_idle_ms),
            registered: plan.registered,
            owner,
            progress: Mutex::new(Progress {
                place: Some(Place { me, members }),
                attempt: plan.attempt,
                idle_since: Some(Instant::now()),
                ..Progress::new(Phase::Prepared)
            }),
        }
    }

    pub fn is_initiator(&self) -> bool {
        self.begun_by.is_none()
    }

    /// The shard that began it; `None` if that is this one.
    pub fn initiator(&self) -> Option<ShardId> {
        self.begun_by
    }

    /// Where it takes place, if that is known yet.
    pub fn place(&self) -> Option<Place> {
        self.progress.lock().place.clone()
    }

    /// What the thread that has taken it up is to do.
    pub(super) fn turn(&self) -> NextAction {
        let mut progress = self.progress.lock();
        let now = Instant::now();
        let first = match &mut progress.phase {
            Phase::Running | Phase::PartDone | Phase::Finished => {
                progress.idle_since = None;
                return NextAction::Run;
            }
            Phase::Launching { tries, .. } => match *tries {
                Tries::None => {
                    *tries = Tries::Sent { first: now };
                    true
                }
                Tries::Due { first } => {
                    *tries = Tries::Sent { first };
                    false
                }
                Tries::Sent { .. } => return NextAction::TooEarly,
            },
            Phase::Prepared => return NextAction::TooEarly,
        };
        progress.idle_since = Some(now);
        NextAction::Launch { first }
    }

    /// Begins an attempt at this place. `None` if all shards have a plan already.
    pub(super) fn launch(&self, place: Place) -> Option<Launch> {
        let mut progress = self.progress.lock();
        let Phase::Launching { payload, .. } = &progress.phase else {
            return None;
        };
        let payload = LaunchPayload::clone(payload);
        let earlier = progress.place.replace(place.clone());
        let left_out = earlier.map_or_else(Vec::new, |earlier| {
            let others = earlier.others();
            others.filter(|&shard| !place.members.contains(shard)).collect()
        });
        progress.attempt += 1;
        progress.received.clear();
        if place.others().next().is_none() {
            progress.begin();
        }
        Some(Launch {
            attempt: progress.attempt,
            place,
            payload,
            left_out,
        })
    }

    /// True if others may know of it.
    pub(super) fn was_launched(&self) -> bool {
        self.progress.lock().attempt > 0
    }

    /// Which attempt of another shard this is a part of, if it has not begun yet.
    pub(super) fn attempt_waiting(&self) -> Option<u32> {
        let progress = self.progress.lock();
        matches!(progress.phase, Phase::Prepared).then_some(progress.attempt)
    }

    /// Another shard has the plan. True if it was the last one.
    pub(super) fn received(&self, from: ShardId, attempt: u32) -> bool {
        let mut progress = self.progress.lock();
        if !progress.is_launching() || progress.attempt != attempt {
            return false;
        }
        progress.idle_since = progress.idle_since.map(|_| Instant::now());
        progress.received.insert(from);
        let Some(place) = &progress.place else {
            return false;
        };
        if !place.others().all(|shard| progress.received.contains(&shard)) {
            return false;
        }
        progress.begin();
        true
    }

    /// The plan cannot be sent now, or could not be used. True if it is to be tried again a little later. `attempt`: the one
    /// that came to nothing, if one was made.
    pub(super) fn hindered(&self, attempt: Option<u32>, reason: Failure) -> bool {
        let mut progress = self.progress.lock();
        let is_old = attempt.is_some_and(|attempt| progress.attempt != attempt);
        match &mut progress.phase {
            Phase::Launching { obstacle, .. } if !is_old => {
                *obstacle = Some(reason);
                true
            }
            _ => false,
        }
    }

    /// The plan is to be sent anew, if it is not with all shards. True if a thread is to do it.
    pub(super) fn send_again(&self) -> bool {
        match &mut self.progress.lock().phase {
            Phase::Launching { tries, .. } => match *tries {
                Tries::Sent { first } => {
                    *tries = Tries::Due { first };
                    true
                }
                Tries::None | Tries::Due { .. } => false,
            },
            _ => false,
        }
    }

    /// The error of one that has waited too long.
    pub(super) fn idle_error(&self) -> Failure {
        match &self.progress.lock().phase {
            Phase::Launching {
                obstacle: Some(obstacle),
                ..
            } => obstacle.clone(),
            _ => MAX_IDLE.into(),
        }
    }

    /// The cluster consists of other shards now: `present`, without those in `gone`, to which there is no way any more.
    pub(super) fn lost(&self, gone: &BTreeSet<ShardId>, present: Option<&Members>) -> Loss {
        let progress = self.progress.lock();
        let Some(place) = &progress.place else {
            return Loss::SendAgain;
        };
        if progress.is_launching() {
            let same = present.is_some_and(|present| *present == *place.members);
            let lost = place.others().any(|shard| gone.contains(&shard));
            return if same && !lost {
                Loss::Nothing
            } else {
                Loss::SendAgain
            };
        }
        // Those who take part leave it to the initiator what becomes of the run, as long as there is one.
        let is_lost = match self.begun_by {
            Some(initiator) => gone.contains(&initiator) && !matches!(progress.phase, Phase::Finished),
            // One that has done its part has sent all that it had to send.
            None => place
                .others()
                .any(|shard| gone.contains(&shard) && !progress.completed.contains(&shard)),
        };
        if is_lost { Loss::Fatal } else { Loss::Nothing }
    }

    /// Messages of a shard have not come. Who takes part cannot tell the initiator's from others' either: records go between all.
    pub(super) fn lost_messages(&self, of: ShardId) -> Loss {
        let progress = self.progress.lock();
        let takes_part = |place: &Place| place.members.contains(of);
        if !progress.place.as_ref().is_some_and(takes_part) || matches!(progress.phase, Phase::Finished) {
            return Loss::Nothing;
        }
        match (
            progress.is_launching(),
            self.is_initiator() && progress.completed.contains(&of),
        ) {
            (true, _) => Loss::SendAgain,
            // It has sent all that it had to send.
            (false, true) => Loss::Nothing,
            (false, false) => Loss::Fatal,
        }
    }

    /// The initiator says that all have the plan. True if that was not known.
    pub(super) fn go(&self) -> bool {
        let mut progress = self.progress.lock();
        progress.idle_since = None;
        let waited = matches!(progress.phase, Phase::Prepared);
        if waited {
            progress.phase = Phase::Running;
        }
        waited
    }

    /// Something came from another shard.
    pub(super) fn heard(&self) {
        let mut progress = self.progress.lock();
        progress.idle_since = progress.idle_since.map(|_| Instant::now());
    }

    pub(super) fn completed(&self, from: ShardId) {
        self.progress.lock().completed.insert(from);
    }

    pub(super) fn finish(&self) {
        self.progress.lock().phase = Phase::Finished;
    }

    /// This shard has done its part. True the first time.
    pub(super) fn part_done(&self) -> bool {
        let mut progress = self.progress.lock();
        let first = matches!(progress.phase, Phase::Running);
        if first {
            progress.phase = Phase::PartDone;
        }
        first
    }

    /// True when all shards have done their part.
    pub(super) fn may_end(&self) -> bool {
        let progress = self.progress.lock();
        match &progress.place {
            Some(place) if self.is_initiator() => {
                place.others().all(|shard| progress.completed.contains(&shard))
            }
            _ => matches!(progress.phase, Phase::Finished),
        }
    }

    /// It begins, or ceases, to wait for other shards.
    pub(super) fn set_idle(&self, idle: bool) {
        self.progress.lock().idle_since = idle.then(Instant::now);
    }

    /// How long it may still wait; `None` while it does something else. As long as the plan is not with all shards, the
    /// first attempt counts.
    pub(super) fn patience(&self) -> Option<Duration> {
        let progress = self.progress.lock();
        let since = match progress.phase {
            Phase::Launching {
                obstacle: Some(_),
                tries,
                ..
            } => tries.first()?,
            _ => progress.idle_since?,
        };
        Some(self.max_idle.saturating_sub(since.elapsed()))
    }

    /// How many other shards have acknowledged the plan, and how many have done their part.
    pub fn counts(&self) -> (usize, usize) {
        let progress = self.progress.lock();
        (progress.received.len(), progress.completed.len())
    }

    /// The name of the state that only distributed runs have. `begun`: a thread has begun it.
    pub(super) fn state(&self, begun: bool) -> Option<&'static str> {
        let progress = self.progress.lock();
        match (&progress.phase, begun) {
            (Phase::Launching { tries, .. }, false) => tries.first().map(|_| "pending_receive"),
            (_, false) if self.is_initiator() => Some("pending_receive"),
            (_, false) => Some("pending_run"),
            (Phase::PartDone | Phase::Finished, true) if self.is_initiator() => Some("pending_cluster"),
            (Phase::PartDone | Phase::Finished, true) => Some("pending_termination"),
            (_, true) => None,
        }
    }
}

impl Progress {
    fn new(phase: Phase) -> Self {
        Self {
            phase,
            place: None,
            attempt: 0,
            received: BTreeSet::new(),
            completed: BTreeSet::new(),
            idle_since: None,
        }
    }

    /// True until all shards have the initiator's plan.
    fn is_launching(&self) -> bool {
        matches!(self.phase, Phase::Launching { .. })
    }

    /// All shards have the plan.
    fn begin(&mut self) {
        self.phase = Phase::Running;
        self.idle_since = None;
    }
}

impl Tries {
    /// When the plan was sent for the first time.
    fn first(self) -> Option<Instant> {
        match self {
            Self::None => None,
            Self::Sent { first } | Self::Due { first } => Some(first),
        }
    }
}

/// What the plan of a run says to those who take part. `listing`: of its session.
pub(super) fn shared(
    execution: &Execution,
    distributed: &DistributedRun,
    launch: Launch,
    listing: Listing,
) -> SharedPlan {
    let mut functions = launch.payload.functions;
    if let Functions::Sent { session, .. } = &mut functions {
        session.listing = listing;
    }
    SharedPlan {
        attempt: launch.attempt,
        members: Members::clone(&launch.place.members),
        max_idle_ms: u64::try_from(distributed.max_idle.as_millis()).unwrap_or(u64::MAX),
        db: execution.db,
        transient: execution.transient,
        registered: distributed.registered,
        skips_errors: execution.skips_errors,
        source: launch.payload.source.map(ByteBuf::from),
        functions,
        owner: execution
            .actor
            .as_ref()
            .map_or_else(|| execution.session.owner.clone(), |actor| actor.owner().clone()),
    }
}

#[cfg(test)]
mod tests;
