//! What RG.INFOCLUSTER and INFO show of other shards. Contract: docs/contract/commands.md 1.20.

use std::sync::atomic::Ordering;

use super::{Cluster, Known, topology::Shard};
use crate::{
    engine::{id::ShardId, members::Slots},
    server::reply::Reply,
};

/// One shard, as this one sees it.
pub struct Member {
    pub id: ShardId,
    pub is_me: bool,
    pub host: String,
    pub port: u16,
    pub slots: Vec<Slots>,
    /// The run id of its server; `None` while it has never answered.
    pub run: Option<String>,
    /// There is a link to it. This shard needs none to itself.
    pub connected: bool,
    pub pending_messages: usize,
}

impl Cluster {
    /// All shards, in the order of their ids; none outside of a cluster.
    pub fn members(&self) -> Vec<Member> {
        members(&self.known.lock())
    }

    /// The reply of RG.INFOCLUSTER.
    pub fn info(&self) -> Reply {
        let known = self.known.lock();
        let Some(topology) = known.topology.as_ref().filter(|topology| topology.is_cluster()) else {
            return Reply::bulk("no cluster mode");
        };
        let shards = members(&known).into_iter().map(|member| {
            let (first, last) = member.slots.first().copied().unwrap_or_default();
            Reply::Array(vec![
                Reply::bulk("id"),
                Reply::bulk(member.id.to_string()),
                Reply::bulk("ip"),
                Reply::bulk(member.host),
                Reply::bulk("port"),
                Reply::Int(i64::from(member.port)),
                Reply::bulk("unixSocket"),
                Reply::bulk("None"),
                Reply::bulk("runid"),
                Reply::bulk_or_null(member.run),
                Reply::bulk("minHslot"),
                Reply::Int(i64::from(first)),
                Reply::bulk("maxHslot"),
                Reply::Int(i64::from(last)),
                Reply::bulk("pendingMessages"),
                Reply::Int(member.pending_messages as i64),
            ])
        });
        Reply::Array(vec![
            Reply::bulk("MyId"),
            Reply::bulk(topology.me.to_string()),
            Reply::bulk("MyRunId"),
            Reply::bulk(&known.run),
            Reply::Array(shards.collect()),
        ])
    }

    /// What INFO tells about links and messages.
    pub fn figures(&self) -> [(&'static str, u64); 6] {
        let known = self.known.lock();
        let states: Vec<_> = known.links.values().map(|link| link.state()).collect();
        [
            (
                "shards",
                known
                    .topology
                    .as_ref()
                    .map_or(0, |topology| topology.shards.len()) as u64,
            ),
            (
                "links_connected",
                states.iter().filter(|state| state.connected).count() as u64,
            ),
            (
                "messages_pending",
                states.iter().map(|state| state.pending as u64).sum(),
            ),
            ("messages_sent", self.counts.sent.load(Ordering::Relaxed)),
            (
                "messages_sent_bytes",
                self.counts.sent_bytes.load(Ordering::Relaxed),
            ),
            ("messages_received", self.counts.received.load(Ordering::Relaxed)),
        ]
    }
}

fn members(known: &Known) -> Vec<Member> {
    let Some(topology) = known.topology.as_ref().filter(|topology| topology.is_cluster()) else {
        return Vec::new();
    };
    let member = |(&id, shard): (&ShardId, &Shard)| {
        let is_me = id == topology.me;
        let link = known.links.get(&id).map(|link| link.state());
        Member {
            id,
            is_me,
            host: shard.address.host.clone(),
            port: shard.address.port,
            slots: shard.slots.clone(),
            connected: is_me || link.as_ref().is_some_and(|link| link.connected),
            pending_messages: link.as_ref().map_or(0, |link| link.pending),
            run: if is_me {
                Some(known.run.clone())
            } else {
                link.and_then(|link| link.run)
            },
        }
    };
    topology.shards.iter().map(member).collect()
}
