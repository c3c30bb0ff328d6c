//! What the shards of a distributed run tell each other, and the way on which it travels. Contract: docs/contract/commands.md
//! 8.3.
//!
//! Data only: what follows from a message is in `distributed_run.rs` (the state) and `distribution.rs` (what is done).

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{
    id::{Id, ShardId},
    language::Failure,
    members::Members,
    plan,
    registration::Registration,
    session::Session,
};
use crate::server::rights::Owner;

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
    /// Who is behind its functions.
    #[serde(default)]
    pub owner: Owner,
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
    pub description: Option<ByteBuf>,
    /// The names of its requirements.
    pub requirements: Vec<String>,
    pub installed: bool,
    /// Where the initiator lists it when the plan is sent.
    pub listing: Listing,
    /// Who sent its script.
    #[serde(default)]
    pub made_by: Option<String>,
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
            made_by: session.owner.made_by.clone(),
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

/// Why a message was not taken for another shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// So much waits for that shard already, in bytes.
    Full { limit: usize },
    /// So many bytes are more than one message can have.
    TooLarge { bytes: usize, limit: usize },
    /// There is no way to that shard.
    NoWay,
}

impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { limit } => write!(f, "more than {} MiB wait for it", limit >> 20),
            Self::TooLarge { bytes, limit } => write!(
                f,
                "{} MiB in one piece are more than the {} MiB that a message can have",
                bytes >> 20,
                limit >> 20
            ),
            Self::NoWay => f.write_str("there is no way to it any more"),
        }
    }
}

/// The way to other shards.
pub trait Shards: Send + Sync {
    /// Queues a message about a run for another shard; they arrive in order and once. Where one is lost, both sides end what it may have
    /// been about. Waits for nothing.
    fn tell(&self, to: ShardId, id: Id, message: RunMessage);

    /// The same for records, for which there may be no room: then the run is to end with an error.
    ///
    /// # Errors
    /// Why they were not taken.
    fn send(&self, to: ShardId, id: Id, message: &RunMessage) -> Result<(), NotSent>;

    /// True if so many bytes may be sent to another shard now.
    fn has_room(&self, to: ShardId, bytes: usize) -> bool;

    /// Waits until that is true; false when `limit` is over. The caller is detached from the language.
    fn wait_for_room(&self, to: ShardId, bytes: usize, limit: Duration) -> bool;

    /// Looks at the cluster soon.
    fn look(&self);

    /// Whether each key is still where `members` say, and none of this shard's slots is on its way: then a walk over the keys
    /// that ends now has left none out and counted none twice. The caller is detached from the language.
    ///
    /// # Errors
    /// What has changed.
    fn confirm(&self, members: &Members) -> Result<(), Failure>;
}
