//! What comes from other shards is sorted out here, on the server's thread; and the way on which the engine talks to them.
//! Contract: docs/contract/commands.md 8.3.

use std::time::Duration;

use super::{Cluster, link::KIND, message::Message};
use crate::{
    engine::{
        Engine,
        id::{Id, ShardId},
        language::Failure,
        members::Members,
        run_message::{NotSent, RunMessage, Shards},
    },
    server::lock::Lock,
};

impl Cluster {
    /// Deals with something about a run on the cluster's thread, behind what is there of that run.
    fn in_order(&self, id: Id, work: impl FnOnce(&Self) + Send + 'static) {
        self.run_order.enter(id);
        self.later(move |cluster| {
            work(cluster);
            cluster.run_order.leave(id);
        });
    }

    /// A message of another shard. On the server's thread.
    pub(super) fn receive(&self, lock: Lock<'_>, from: ShardId, message: Message) {
        match message {
            Message::Run(id, RunMessage::Plan(plan)) => {
                self.in_order(id, move |cluster| cluster.take_part(from, id, *plan));
            }
            // What is about a run goes behind its plan, and behind what went there before: else the end of a step could
            // overtake its last records.
            Message::Run(id, message) if self.run_order.is_waiting(id) => {
                self.in_order(id, move |cluster| cluster.engine.hear(from, id, message));
            }
            Message::Run(id, message) => self.engine.hear(from, id, message),
            Message::Ask(number, question) => self.answer(lock, from, number, question),
            Message::Answer(number, answer) => self.answered(from, number, answer),
            Message::Unregister { id, abort_pending } => {
                self.persistence.end(lock, id, abort_pending);
                self.persistence.note_gone(lock, &[id]);
            }
            Message::Drop(id) if self.run_order.is_waiting(id) => {
                self.in_order(id, move |cluster| Engine::drop_when_finished(&cluster.engine, id));
            }
            Message::Drop(id) => Engine::drop_when_finished(&self.engine, id),
            Message::Registered(change) => self.take_over(lock, from, &change),
            Message::Digest(digest) => self.compare_with(lock, from, &digest),
            Message::Seen(number) => self.engine.registry.saw_registration(number),
            Message::Inventory { live, gone } => self.make_good(lock, from, live, &gone),
            Message::Wanted(ids) => self.give(lock, from, &ids),
            Message::Given(changes) => {
                for change in changes {
                    self.take_over(lock, from, &change);
                }
            }
        }
    }
}

impl Shards for Cluster {
    fn tell(&self, to: ShardId, id: Id, message: RunMessage) {
        self.tell_shard(to, &Message::Run(id, message));
    }

    fn send(&self, to: ShardId, id: Id, message: &RunMessage) -> Result<(), NotSent> {
        let link = self.link(to).ok_or(NotSent::NoWay)?;
        link.offer(KIND, Message::encode_run(id, message))
    }

    fn has_room(&self, to: ShardId, bytes: usize) -> bool {
        self.link(to).is_none_or(|link| link.has_room(bytes))
    }

    fn wait_for_room(&self, to: ShardId, bytes: usize, limit: Duration) -> bool {
        self.link(to).is_none_or(|link| link.wait_for_room(bytes, limit))
    }

    fn look(&self) {
        if self.node {
            self.later(Self::look);
        }
    }

    fn confirm(&self, members: &Members) -> Result<(), Failure> {
        self.confirm_members(members)
    }
}
