//! A run that is distributed over several shards: what this shard knows of it, and what the shards tell each other about it.
//!
//! One shard is the initiator; the others take part. `created -> pending_receive -> running -> pending_cluster -> done`
//! there, `pending_run -> running -> pending_termination -> done` here. The plan may go out several times, as attempts, until
//! all shards have it: to others, when the cluster has changed meanwhile. Contract: docs/contract/commands.md 3.1, 3.5 and
//! 8.3. What is said travels by [`Shards`]; the steps that move records are in `shuffle.rs`.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::mutex::Mutex;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{
    execution::Execution,
    id::{Id, ShardId},
    language::Failure,
    members::Members,
    plan,
    registration::Registration,
    session::Session,
};
use crate::error::MAX_IDLE;

/// What one shard tells another one about a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RunMessage {
    /// To those who take part: what it is about. They wait for [`RunMessage::Go`].
    Plan(Box<SharedPlan>),
    /// To the initiator: the plan of this attempt is there.
    Received { attempt: u32 },
    /// To the initiator: this shard sees another cluster than the plan of this attempt. It may be sent again.
    NotYet { attempt: u32, reason: Failure },
    /// To the initiator: this shard cannot do its part, and why.
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
    /// The same, and it is of no interest any more.
    Forget,
}

/// What those who take part need to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SharedPlan {
    pub attempt: u32,
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

/// What tells a session from others, and makes it where it is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionImage {
    pub id: String,
    /// The same on all shards; another session may have the id by now.
    pub token: String,
    pub generation: u64,
    pub description: Option<String>,
    /// The names of its requirements.
    pub requirements: Vec<String>,
    pub installed: bool,
    /// Where the initiator lists it when the plan is sent.
    pub listing: Listing,
}

/// In which list of sessions one stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listing {
    #[default]
    Unlisted,
    Live,
    Dead,
}

impl SessionImage {
    pub fn of(session: &Session) -> Self {
        let needed = session.needs.requirements.iter();
        Self {
            id: session.id.clone(),
            token: session.token.clone(),
            generation: session.generation,
            description: session.description.clone(),
            requirements: needed.map(|needed| needed.name.clone()).collect(),
            installed: session.needs.installed,
            listing: Listing::default(),
        }
    }
}

/// What the initiator sends, until all shards have it.
#[derive(Clone)]
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

    /// Looks at the cluster soon.
    fn look(&self);

    /// Whether each key is still where `members` say, and none of this shard's slots is on its way: then a walk over the keys
    /// that ends now has left none out and counted none twice. The caller is detached from the language.
    ///
    /// # Errors
    /// What has changed.
    fn confirm(&self, members: &Members) -> Result<(), Failure>;
}

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

#[derive(Default)]
struct Progress {
    /// `None` until the initiator knows the shards.
    place: Option<Place>,
    /// How often the plan was sent.
    attempt: u32,
    /// The initiator's, until all shards have it.
    payload: Option<LaunchPayload>,
    /// The plan is to be sent, for the first time or again.
    to_send: bool,
    /// Since when the initiator tries, and why it has not come further.
    tried_since: Option<Instant>,
    obstacle: Option<Failure>,
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
            progress: Mutex::new(Progress {
                payload: Some(payload),
                to_send: true,
                ..Progress::default()
            }),
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
                ..Progress::default()
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
        if progress.begun {
            progress.idle_since = None;
            return NextAction::Run;
        }
        if !std::mem::take(&mut progress.to_send) {
            return NextAction::TooEarly;
        }
        let now = Instant::now();
        progress.idle_since = Some(now);
        let first = progress.tried_since.is_none();
        progress.tried_since.get_or_insert(now);
        NextAction::Launch { first }
    }

    /// Begins an attempt at this place. `None` if all shards have a plan already.
    pub(super) fn launch(&self, place: Place) -> Option<Launch> {
        let mut progress = self.progress.lock();
        let payload = progress.payload.clone()?;
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
        (self.begun_by.is_some() && !progress.begun).then_some(progress.attempt)
    }

    /// Another shard has the plan. True if it was the last one.
    pub(super) fn received(&self, from: ShardId, attempt: u32) -> bool {
        let mut progress = self.progress.lock();
        if progress.begun || progress.attempt != attempt {
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
        if progress.begun || is_old {
            return false;
        }
        progress.obstacle = Some(reason);
        true
    }

    /// The plan is to be sent anew, if it is not with all shards. True if a thread is to do it.
    pub(super) fn send_again(&self) -> bool {
        let mut progress = self.progress.lock();
        if progress.begun || progress.payload.is_none() || progress.tried_since.is_none() {
            return false;
        }
        !std::mem::replace(&mut progress.to_send, true)
    }

    /// The error of one that has waited too long.
    pub(super) fn idle_error(&self) -> Failure {
        let progress = self.progress.lock();
        let obstacle = progress.obstacle.clone().filter(|_| !progress.begun);
        obstacle.unwrap_or_else(|| MAX_IDLE.to_owned())
    }

    /// The cluster consists of other shards now: `present`, without those in `gone`, to which there is no way any more.
    pub(super) fn lost(&self, gone: &BTreeSet<ShardId>, present: Option<&Members>) -> Loss {
        let progress = self.progress.lock();
        let Some(place) = &progress.place else {
            return Loss::SendAgain;
        };
        if self.is_initiator() && !progress.begun {
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
            Some(initiator) => gone.contains(&initiator) && !progress.finished,
            // One that has done its part has sent all that it had to send.
            None => place
                .others()
                .any(|shard| gone.contains(&shard) && !progress.completed.contains(&shard)),
        };
        if is_lost { Loss::Fatal } else { Loss::Nothing }
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
        match &progress.place {
            Some(place) if self.is_initiator() => {
                place.others().all(|shard| progress.completed.contains(&shard))
            }
            _ => progress.finished,
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
        let since = if progress.begun || progress.obstacle.is_none() {
            progress.idle_since?
        } else {
            progress.tried_since?
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
        match (self.is_initiator(), begun) {
            (true, false) if progress.tried_since.is_some() => Some("pending_receive"),
            (false, false) => Some("pending_run"),
            (true, true) if progress.part_done => Some("pending_cluster"),
            (false, true) if progress.part_done => Some("pending_termination"),
            _ => None,
        }
    }
}

impl Progress {
    fn begin(&mut self) {
        self.begun = true;
        self.idle_since = None;
        self.payload = None;
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(digit: char) -> ShardId {
        ShardId::parse(digit.to_string().repeat(40).as_bytes()).unwrap_or(ShardId::STANDALONE)
    }

    fn distributed() -> DistributedRun {
        let payload = LaunchPayload {
            source: None,
            functions: Functions::Registered(Id {
                number: 1,
                shard: shard('a'),
            }),
        };
        DistributedRun::initiate(Duration::from_secs(5), payload)
    }

    fn place(others: &[char]) -> Place {
        let all = std::iter::once(&'a').chain(others);
        let slots = (0..).zip(all).map(|(slot, &digit)| (shard(digit), (slot, slot)));
        Place {
            me: shard('a'),
            members: Arc::new(Members::new(slots)),
        }
    }

    #[test]
    fn the_initiator_waits_for_all_twice() {
        let (b, c) = (shard('b'), shard('c'));
        let distributed = distributed();
        assert_eq!(distributed.state(false), None);
        assert!(matches!(distributed.turn(), NextAction::Launch { first: true }));
        assert_eq!(distributed.state(false), Some("pending_receive"));
        assert!(matches!(distributed.turn(), NextAction::TooEarly));
        assert!(distributed.launch(place(&['b', 'c'])).is_some());
        assert!(!distributed.received(b, 1) && !distributed.received(b, 1) && !distributed.received(c, 2));
        assert!(distributed.received(c, 1) && !distributed.received(c, 1));
        assert!(matches!(distributed.turn(), NextAction::Run));
        assert!(distributed.patience().is_none() && distributed.launch(place(&['b', 'c'])).is_none());
        distributed.completed(b);
        assert!(distributed.part_done() && !distributed.part_done() && !distributed.may_end());
        distributed.completed(c);
        assert!(distributed.may_end());
        assert_eq!(distributed.counts(), (2, 2));
    }

    #[test]
    fn what_has_not_begun_goes_to_those_who_are_there() {
        let distributed = distributed();
        assert!(!distributed.send_again(), "nobody has tried yet");
        assert!(matches!(distributed.turn(), NextAction::Launch { .. }));
        distributed.launch(place(&['b', 'c']));
        distributed.received(shard('b'), 1);
        let now = place(&['b', 'd']);
        let gone = BTreeSet::from([shard('c')]);
        assert_eq!(distributed.lost(&gone, Some(&now.members)), Loss::SendAgain);
        assert!(distributed.send_again() && !distributed.send_again());
        assert!(matches!(distributed.turn(), NextAction::Launch { first: false }));
        let launch = distributed.launch(now.clone());
        assert_eq!(
            launch.map(|launch| (launch.attempt, launch.left_out)),
            Some((2, vec![shard('c')]))
        );
        assert!(!distributed.received(shard('b'), 1) && !distributed.received(shard('d'), 2));
        assert!(distributed.received(shard('b'), 2));
        assert!(!distributed.send_again(), "all have it");
        assert_eq!(distributed.lost(&BTreeSet::from([shard('d')]), None), Loss::Fatal);
        distributed.completed(shard('d'));
        assert_eq!(
            distributed.lost(&BTreeSet::from([shard('d')]), None),
            Loss::Nothing
        );
        assert_eq!(distributed.idle_error(), MAX_IDLE);
    }

    #[test]
    fn why_it_could_not_begin_is_told() {
        let distributed = distributed();
        distributed.turn();
        assert!(distributed.hindered(None, "why".into()));
        assert_eq!(distributed.idle_error(), "why");
        distributed.launch(place(&[]));
        assert!(
            !distributed.hindered(Some(1), "late".into()),
            "a shard alone begins at once"
        );
        assert_eq!(distributed.idle_error(), MAX_IDLE);
    }
}
