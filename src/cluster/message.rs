//! What shards say to each other, as data. All shards run the same version of the module.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{
    engine::{id::Id, requirement::Digest, run_message::RunMessage},
    server::reply::Reply,
};

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// About a distributed run.
    Run(Id, RunMessage),
    /// Wants an [`Message::Answer`] with the same number.
    Ask(u64, Question),
    Answer(u64, Result<Said, String>),
    /// A registration has ended.
    Unregister {
        id: Id,
        abort_pending: bool,
    },
    /// A finished execution is of no interest any more.
    Drop(Id),
    /// What was registered inside a function: a step.
    Registered(ByteBuf),
    /// A digest of the registrations here. Whoever has others says so.
    Digest(ByteBuf),
    /// The highest number of the receiver's registrations that the sender knows of. The receiver may have lost it.
    Seen(u64),
    /// The registrations here, and those that have ended.
    Inventory {
        live: Vec<Id>,
        gone: Vec<Id>,
    },
    /// Registrations that the sender would like to have.
    Wanted(Vec<Id>),
    /// A step for each of them.
    Given(Vec<ByteBuf>),
}

/// What one shard asks another one to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Get ready for a step of registrations, and say whether it can be done.
    Prepare(ByteBuf),
    /// Do the step with this question's number, which was prepared.
    Commit(u64),
    /// Forget it.
    Cancel(u64),
    Abort(Id),
    Pause {
        ids: Vec<Id>,
        pause: bool,
    },
    ClearStats,
    /// May these registrations end, or would something be lost with them?
    MayEnd(Vec<Id>),
    Describe(Id),
    /// Which of these requirements are not installed?
    Missing(Vec<(String, Digest)>),
    /// Install a requirement. `keeps_known`: one that is known by its name stays.
    Import {
        archive: ByteBuf,
        keeps_known: bool,
    },
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Said {
    Done,
    /// There is no such execution.
    Unknown,
    Description(Reply),
    Missing(Vec<String>),
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        // Plain data: nothing in it can fail to be written to memory.
        rmp_serde::to_vec(self).unwrap_or_default()
    }

    /// # Errors
    /// The bytes are no message.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        rmp_serde::from_slice(bytes).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::id::ShardId;

    #[test]
    fn messages_read_back() {
        let id = Id {
            number: 7,
            shard: ShardId::STANDALONE,
        };
        let batch = ByteBuf::from(vec![0, 0xff]);
        for message in [
            Message::Run(id, RunMessage::Records { step: 3, batch }),
            Message::Ask(
                9,
                Question::Pause {
                    ids: vec![id],
                    pause: true,
                },
            ),
            Message::Answer(
                9,
                Ok(Said::Description(Reply::Array(vec![Reply::Int(-1), Reply::Null]))),
            ),
            Message::Answer(9, Err("no".into())),
            Message::Inventory {
                live: vec![id],
                gone: vec![],
            },
        ] {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
        assert!(Message::decode(b"\xff").is_err());
    }
}
