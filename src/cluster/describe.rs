//! What RG.INFOCLUSTER and INFO show of other shards. Contract: docs/contract/commands.md 1.20.

use std::sync::atomic::Ordering;

use super::Cluster;
use crate::server::reply::Reply;

impl Cluster {
    /// The reply of RG.INFOCLUSTER.
    pub fn info(&self) -> Reply {
        let known = self.known.lock();
        let Some(topology) = known.topology.as_ref().filter(|topology| topology.is_cluster()) else {
            return Reply::bulk("no cluster mode");
        };
        let shards = topology.shards.iter().map(|(id, shard)| {
            let link = known.links.get(id).map(|link| link.state());
            let run = if *id == topology.me {
                Some(known.run.clone())
            } else {
                link.as_ref().and_then(|link| link.run.clone())
            };
            let pending = link.map_or(0, |link| link.pending);
            let (first, last) = shard.slots.first().copied().unwrap_or_default();
            Reply::Array(vec![
                Reply::bulk("id"),
                Reply::bulk(id.to_string()),
                Reply::bulk("ip"),
                Reply::bulk(&shard.address.host),
                Reply::bulk("port"),
                Reply::Int(i64::from(shard.address.port)),
                Reply::bulk("unixSocket"),
                Reply::bulk("None"),
                Reply::bulk("runid"),
                Reply::bulk_or_null(run),
                Reply::bulk("minHslot"),
                Reply::Int(i64::from(first)),
                Reply::bulk("maxHslot"),
                Reply::Int(i64::from(last)),
                Reply::bulk("pendingMessages"),
                Reply::Int(pending as i64),
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
