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
    /// What was registered inside a function: a change.
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
    /// A change for each of them.
    Given(Vec<ByteBuf>),
}

/// What one shard asks another one to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Get ready for a change of registrations, and say whether it can be done.
    Prepare(ByteBuf),
    /// Make the change with this question's number, which was prepared.
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
    /// Of which of these keys, with their databases, are changes not saved?
    Unsaved(Vec<(i32, ByteBuf)>),
    /// In which of these slots are there such keys, or can they come to be?
    Unsettled(Vec<(u16, u16)>),
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Said {
    Done,
    /// There is no such execution.
    Unknown,
    Description(Reply),
    Missing(Vec<String>),
    /// For each key.
    Unsaved(Vec<bool>),
    Unsettled(Vec<u16>),
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        // Plain data: nothing in it can fail to be written to memory.
        rmp_serde::to_vec(self).unwrap_or_default()
    }

    /// [`Message::Run`] as bytes.
    pub fn encode_run(id: Id, message: &RunMessage) -> Vec<u8> {
        #[derive(Serialize)]
        enum Message<'a> {
            Run(Id, &'a RunMessage),
        }
        rmp_serde::to_vec(&Message::Run(id, message)).unwrap_or_default()
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
    use crate::{
        engine::{
            id::ShardId,
            members::Members,
            plan,
            run_message::{Functions, SessionImage, SharedPlan},
        },
        fuzz::fuzz,
    };

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
            Message::Ask(9, Question::Unsaved(vec![(0, ByteBuf::from(vec![0xff]))])),
            Message::Answer(9, Ok(Said::Unsaved(vec![true, false]))),
            Message::Ask(9, Question::Unsettled(vec![(0, 16383)])),
            Message::Answer(9, Ok(Said::Unsettled(vec![7]))),
            Message::Inventory {
                live: vec![id],
                gone: vec![],
            },
        ] {
            if let Message::Run(id, run) = &message {
                assert_eq!(message.encode(), Message::encode_run(*id, run));
            }
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
        assert!(Message::decode(b"\xff").is_err());
    }
    /// A plan as one shard sends it to another one.
    fn plan() -> Message {
        let id = Id {
            number: 1,
            shard: ShardId::STANDALONE,
        };
        let session = SessionImage {
            id: "session".into(),
            token: "token".into(),
            generation: 1,
            description: None,
            requirements: vec!["redis".into()],
            installed: true,
            listing: crate::engine::run_message::Listing::Live,
            made_by: Some("alice".into()),
        };
        let functions = Functions::Sent {
            session,
            steps: vec![plan::Step::Map(0), plan::Step::Limit { start: 0, length: 1 }],
            images: vec![ByteBuf::from(vec![1; 9])],
        };
        let plan = SharedPlan {
            attempt: 1,
            members: Members::alone(ShardId::STANDALONE),
            max_idle_ms: 5000,
            db: 0,
            transient: true,
            registered: false,
            skips_errors: false,
            source: Some(ByteBuf::from(vec![2; 9])),
            functions,
            owner: crate::server::rights::Owner::of_user(Some("alice".into())),
        };
        Message::Run(id, RunMessage::Plan(Box::new(plan)))
    }

    #[test]
    fn fuzz_messages() {
        let id = Id {
            number: 7,
            shard: ShardId::STANDALONE,
        };
        let reply = Reply::Array(vec![Reply::Int(-1), Reply::Null, Reply::Array(vec![])]);
        let messages = [
            plan(),
            Message::Run(id, RunMessage::Failures(vec!["no".into()])),
            Message::Ask(
                1,
                Question::Import {
                    archive: ByteBuf::from(vec![0; 5]),
                    keeps_known: true,
                },
            ),
            Message::Answer(1, Ok(Said::Description(reply))),
            Message::Given(vec![ByteBuf::from(vec![0; 5])]),
            Message::Inventory {
                live: vec![id],
                gone: vec![id],
            },
        ];
        fuzz(
            "message",
            &messages.map(|message| message.encode()),
            |input| match Message::decode(input) {
                Ok(message) => {
                    if let Message::Run(_, RunMessage::Plan(plan)) = &message {
                        // Which slots whoever has sent it wants to have is asked of each key.
                        let owners = ["", "a", "{b}c"].map(|key| plan.members.owner(key.as_bytes()));
                        assert!(owners.iter().flatten().all(|owner| plan.members.contains(*owner)));
                        let _ = plan.members.uncovered();
                    }
                    assert_eq!(Message::decode(&message.encode()).as_ref(), Ok(&message));
                    format!("{message:?}")
                        .chars()
                        .filter(|c| c.is_alphabetic() || "[]".contains(*c))
                        .collect()
                }
                Err(error) => error,
            },
        );
    }
}
