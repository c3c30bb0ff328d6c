//! A run that is distributed over several shards: what this shard knows of it, and what the shards tell each other about it.
//!
//! One shard is the initiator; the others take part. `created -> pending_receive -> running -> pending_cluster -> done`
//! there, `pending_run -> running -> pending_termination -> done` here. Contract: `commands.md` 3.1, 3.5 and 8.3. What is
//! said travels by [`Shards`]; the steps that move records are in `shuffle.rs`.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{
    execution::Execution,
    id::{Id, ShardId},
    language::Failure,
    members::Members,
    plan,
    registration::Registration,
};

/// What an idle run ends with.
pub const IDLE: &str = "Execution max idle reached";

/// What one shard tells another one about a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RunMessage {
    /// To those who take part: what it is about. They wait for [`RunMessage::Go`].
    Plan(Box<SharedPlan>),
    /// To the initiator: the plan is there.
    Received,
    /// To the initiator: this shard cannot take part, and why.
    Refused(Failure),
    /// To those who take part: all of them have the plan.
    Go,
    /// Records for a step.
    Records { step: usize, batch: ByteBuf },
    /// This shard has no more records for a step.
    Ended { step: usize },
    /// To the initiator: errors of this shard.
    Failures(Vec<Failure>),
    /// To the initiator: this shard has done its part.
    Completed,
    /// To those who took part: all have done their part.
    Finish,
    /// To those who take part: the run has ended before its end.
    Abort,
}

/// What those who take part need to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SharedPlan {
    pub members: Members,
    pub max_idle_ms: u64,
    pub db: i32,
    /// It is forgotten when it has ended.
    pub transient: bool,
    /// A registration started it.
    pub registered: bool,
    pub skips_errors: bool,
    /// What the readers make the source of records of; `None` where only the initiator has some.
    pub source: Option<ByteBuf>,
    pub functions: Functions,
}

/// Where the functions of a plan are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Functions {
    /// Everybody has them with this registration.
    Registered(Id),
    Sent {
        session: SessionImage,
        steps: Vec<plan::Step>,
        images: Vec<ByteBuf>,
    },
}

/// What tells a session from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionImage {
    pub id: String,
    pub description: Option<String>,
}

/// What the initiator sends, until it is sent.
pub struct LaunchPayload {
    pub source: Option<Vec<u8>>,
    pub functions: Functions,
}

impl LaunchPayload {
    /// For a run of a registration, which all shards have.
    pub fn of_registration(registration: &Registration, source: Option<Vec<u8>>) -> Self {
        Self {
            source,
            functions: Functions::Registered(registration.id),
        }
    }
}

/// The way to other shards.
pub trait Shards: Send + Sync {
    /// Queues a message about a run for another shard; they arrive in order and once, or not at all. Waits for nothing.
    fn tell(&self, to: ShardId, id: Id, message: RunMessage);

    /// True if so much is queued for another shard that more records should wait.
    fn is_full(&self, to: ShardId) -> bool;

    /// Waits until that is false; true if it is, false when `limit` is over. The caller is detached from the language.
    fn wait_for_room(&self, to: ShardId, limit: Duration) -> bool;
}

/// What this shard knows of a distributed run.
pub struct DistributedRun {
    pub initiator: ShardId,
    pub me: ShardId,
    pub members: Arc<Members>,
    pub max_idle: Duration,
    /// A registration started it.
    pub registered: bool,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The initiator's, until it is sent.
    payload: Option<LaunchPayload>,
    received: BTreeSet<ShardId>,
    completed: BTreeSet<ShardId>,
    /// All shards have the plan.
    begun: bool,
    /// This shard has done its part.
    part_done: bool,
    /// The initiator says that all have done their part.
    finished: bool,
    /// Since when it has waited for other shards; `None` while it does something else.
    idle_since: Option<Instant>,
}

/// What is to be done with a run that a thread has taken up.
pub enum NextAction {
    /// Send the plan; it goes on when all shards have it.
    Launch(LaunchPayload),
    /// Not all shards have the plan.
    TooEarly,
    Run,
}

impl DistributedRun {
    /// The initiator's side.
    pub fn initiate(me: ShardId, members: Arc<Members>, max_idle: Duration, payload: LaunchPayload) -> Self {
        let registered = matches!(payload.functions, Functions::Registered(_));
        Self {
            initiator: me,
            me,
            members,
            max_idle,
            registered,
            progress: Mutex::new(Progress {
                payload: Some(payload),
                ..Progress::default()
            }),
        }
    }

    /// The side of a shard that takes part. It waits from now on.
    pub fn take_part(me: ShardId, initiator: ShardId, plan: &SharedPlan) -> Self {
        Self {
            initiator,
            me,
            members: Arc::new(plan.members.clone()),
            max_idle: Duration::from_millis(plan.max_idle_ms),
            registered: plan.registered,
            progress: Mutex::new(Progress {
                idle_since: Some(Instant::now()),
                ..Progress::default()
            }),
        }
    }

    pub fn is_initiator(&self) -> bool {
        self.me == self.initiator
    }

    pub fn others(&self) -> impl Iterator<Item = ShardId> {
        self.members.others(self.me)
    }

    /// What the thread that has taken it up is to do.
    pub(super) fn turn(&self) -> NextAction {
        let mut progress = self.progress.lock();
        if let Some(payload) = progress.payload.take() {
            progress.idle_since = Some(Instant::now());
            return NextAction::Launch(payload);
        }
        if !progress.begun {
            return NextAction::TooEarly;
        }
        progress.idle_since = None;
        NextAction::Run
    }

    /// True if others may know of it.
    pub(super) fn was_launched(&self) -> bool {
        self.progress.lock().payload.is_none()
    }

    /// Another shard has the plan. True if it was the last one.
    pub(super) fn received(&self, from: ShardId) -> bool {
        let mut progress = self.progress.lock();
        progress.idle_since = progress.idle_since.map(|_| Instant::now());
        progress.received.insert(from);
        if progress.begun || !self.others().all(|shard| progress.received.contains(&shard)) {
            return false;
        }
        progress.begun = true;
        progress.idle_since = None;
        true
    }

    /// The initiator says that all have the plan. True if that was not known.
    pub(super) fn go(&self) -> bool {
        let mut progress = self.progress.lock();
        progress.idle_since = None;
        !std::mem::replace(&mut progress.begun, true)
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
        self.progress.lock().finished = true;
    }

    /// This shard has done its part. True the first time.
    pub(super) fn part_done(&self) -> bool {
        !std::mem::replace(&mut self.progress.lock().part_done, true)
    }

    /// True when all shards have done their part.
    pub(super) fn may_end(&self) -> bool {
        let progress = self.progress.lock();
        if self.is_initiator() {
            self.others().all(|shard| progress.completed.contains(&shard))
        } else {
            progress.finished
        }
    }

    /// It begins, or ceases, to wait for other shards.
    pub(super) fn set_idle(&self, idle: bool) {
        self.progress.lock().idle_since = idle.then(Instant::now);
    }

    /// How long it may still wait; `None` while it does something else.
    pub(super) fn patience(&self) -> Option<Duration> {
        let since = self.progress.lock().idle_since?;
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
        match (self.is_initiator(), begun) {
            (true, false) if progress.payload.is_none() => Some("pending_receive"),
            (false, false) => Some("pending_run"),
            (true, true) if progress.part_done => Some("pending_cluster"),
            (false, true) if progress.part_done => Some("pending_termination"),
            _ => None,
        }
    }
}

/// What the plan of a run says to those who take part.
pub(super) fn shared(
    execution: &Execution,
    distributed: &DistributedRun,
    payload: LaunchPayload,
) -> SharedPlan {
    SharedPlan {
        members: Members::clone(&distributed.members),
        max_idle_ms: u64::try_from(distributed.max_idle.as_millis()).unwrap_or(u64::MAX),
        db: execution.db,
        transient: execution.transient,
        registered: distributed.registered,
        skips_errors: execution.skips_errors,
        source: payload.source.map(ByteBuf::from),
        functions: payload.functions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(digit: char) -> ShardId {
        ShardId::parse(digit.to_string().repeat(40).as_bytes()).unwrap_or(ShardId::STANDALONE)
    }

    fn payload() -> LaunchPayload {
        LaunchPayload {
            source: None,
            functions: Functions::Registered(Id {
                number: 1,
                shard: shard('a'),
            }),
        }
    }

    #[test]
    fn the_initiator_waits_for_all_twice() {
        let (a, b, c) = (shard('a'), shard('b'), shard('c'));
        let members = Arc::new(Members::new([(a, (0, 1)), (b, (2, 3)), (c, (4, 5))]));
        let distributed = DistributedRun::initiate(a, members, Duration::from_secs(5), payload());
        assert_eq!(distributed.state(false), None);
        assert!(matches!(distributed.turn(), NextAction::Launch(_)));
        assert_eq!(distributed.state(false), Some("pending_receive"));
        assert!(matches!(distributed.turn(), NextAction::TooEarly));
        assert!(
            !distributed.received(b)
                && !distributed.received(b)
                && distributed.received(c)
                && !distributed.received(c)
        );
        assert!(matches!(distributed.turn(), NextAction::Run));
        assert!(distributed.patience().is_none());
        distributed.completed(b);
        assert!(distributed.part_done() && !distributed.part_done() && !distributed.may_end());
        distributed.completed(c);
        assert!(distributed.may_end());
        assert_eq!(distributed.counts(), (2, 2));
    }
}
