//! Whether this server knows which shards there are, and what those do who need to know. A server that has just started or
//! got another role asks Redis Cluster when it is asked itself; it never acts as if it were alone.
//!
//! Called on the server's thread by commands, on the thread of the cluster, and by runs.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::{
    Cluster,
    topology::{Topology, moving_slot, owners},
};
use crate::{
    engine::{Shape, id::ShardId, language::Failure, members::Members},
    error::Error,
    mutex::Mutex,
    server::{
        call::call,
        lock::{self, Lock},
        reply::Reply,
    },
};

/// Called once, on any thread, which may hold the server's lock.
type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Those who wait until the shards are known, and until when.
#[derive(Default)]
pub struct Waiting {
    those: Mutex<Vec<(Instant, Done)>>,
    /// This server was a master when it was last looked.
    master: AtomicBool,
}

/// What Redis Cluster tells.
struct Seen {
    topology: Topology,
    shape: Shape,
    /// The epoch of this node.
    epoch: Option<u64>,
}

impl Cluster {
    /// Asks Redis Cluster for the shards. Not on the server's thread.
    pub(super) fn look(&self) {
        lock::with_lock(|lock| self.look_now(lock));
        self.call_waiting();
    }

    fn look_now(&self, lock: Lock<'_>) {
        self.waiting.master.store(lock.is_master(), Ordering::Relaxed);
        // Whoever was told by RG.CLUSTERSET does not ask.
        let told = self.known.lock().told.is_some();
        let Some(seen) = self.see(lock) else { return };
        self.slots_seen(lock, &seen.topology, seen.epoch);
        if !told {
            self.adopt(lock, seen.topology, seen.shape, None, false);
        }
    }

    fn see(&self, lock: Lock<'_>) -> Option<Seen> {
        let me = match self.ask_server(lock, "MYID") {
            Reply::Bulk(id) => ShardId::parse(&id)?,
            _ => return None,
        };
        let topology = Topology::of_slots(me, &self.ask_server(lock, "SLOTS"))?;
        let info = self.ask_server(lock, "INFO");
        let shape = shape(&topology, lock.is_master(), &info);
        Some(Seen {
            topology,
            shape,
            epoch: epoch(&info),
        })
    }

    fn ask_server(&self, lock: Lock<'_>, what: &str) -> Reply {
        let words = ["CLUSTER", what].map(|word| word.as_bytes().to_vec());
        call(lock, self.engine.features, 0, &words)
    }

    /// Master became replica or the reverse, or the server has just started: what was known of the shards is out of date.
    pub fn forget_shape(&self, why: &str) {
        if self.node && self.known.lock().told.is_none() {
            self.set_shape(Shape::Unknown(why.to_owned()), &BTreeSet::new());
            self.later(Self::look);
        }
    }

    pub(super) fn set_shape(&self, shape: Shape, gone: &BTreeSet<ShardId>) {
        self.engine.set_shape(shape, gone);
        self.give_up_questions(gone);
    }

    /// Whether it is known which shards there are, so that a run or a registration may begin.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check_shape(&self, lock: Lock<'_>) -> Result<(), Error> {
        let shape = self.engine.shape();
        let outdated = lock.is_master() != self.waiting.master.load(Ordering::Relaxed);
        let shape = if self.node && (outdated || matches!(shape, Shape::Unknown(_))) {
            self.look_now(lock);
            self.engine.shape()
        } else {
            shape
        };
        match shape {
            Shape::Unknown(reason) => Err(Error::ShardsUnknown(reason)),
            Shape::Alone | Shape::Known(_) => Ok(()),
        }
    }

    /// True if there is a way to that shard; asks Redis Cluster if none is known.
    pub(super) fn knows(&self, lock: Lock<'_>, shard: ShardId) -> bool {
        let knows = || self.known.lock().links.contains_key(&shard);
        if !knows() && self.node {
            self.look_now(lock);
        }
        knows()
    }

    /// Whether it is known whom to tell, although some of them may be gone.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check_place(&self, lock: Lock<'_>) -> Result<(), Error> {
        let checked = self.check_shape(lock);
        if self.has_others() { Ok(()) } else { checked }
    }

    /// Calls `done` as soon as [`Cluster::check_shape`] says yes, or after the idle limit, with the reason.
    pub fn when_shape_known(&self, done: impl FnOnce(Result<(), Error>) + Send + 'static) {
        let until = Instant::now() + self.engine.max_idle();
        self.waiting.those.lock().push((until, Box::new(done)));
        self.later(Self::look);
    }

    fn call_waiting(&self) {
        let result = match self.engine.shape() {
            Shape::Unknown(reason) => Err(Error::ShardsUnknown(reason)),
            Shape::Alone | Shape::Known(_) => Ok(()),
        };
        let ready: Vec<_> = {
            let mut those = self.waiting.those.lock();
            let now = Instant::now();
            let (ready, waiting) = those
                .drain(..)
                .partition(|(until, _)| result.is_ok() || *until <= now);
            *those = waiting;
            ready
        };
        for (_, done) in ready {
            done(result.clone());
        }
    }

    /// See [`crate::engine::run_message::Shards::confirm`].
    pub(super) fn confirm_members(&self, members: &Members) -> Result<(), Failure> {
        let moved = || Err(Error::SlotsMoved.into());
        if self.known.lock().told.is_some() || !self.node {
            let known = self.engine.members();
            return match known {
                Some(known) if *known == *members => Ok(()),
                _ => moved(),
            };
        }
        let reply = lock::with_lock(|lock| self.ask_server(lock, "NODES"));
        let (Reply::Bulk(nodes) | Reply::Verbatim { text: nodes, .. }) = reply else {
            return moved();
        };
        let nodes = String::from_utf8_lossy(&nodes);
        if owners(&nodes) == *members && !moving_slot(&nodes) {
            Ok(())
        } else {
            moved()
        }
    }
}

/// The epoch of this node, by the reply of CLUSTER INFO.
fn epoch(info: &Reply) -> Option<u64> {
    let (Reply::Bulk(info) | Reply::Verbatim { text: info, .. }) = info else {
        return None;
    };
    let info = String::from_utf8_lossy(info);
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("cluster_my_epoch:"))?;
    line.trim_end().parse().ok()
}

/// What the shards are, as far as a server with this topology can know; `info`: the reply of CLUSTER INFO.
fn shape(topology: &Topology, is_master: bool, info: &Reply) -> Shape {
    let (Reply::Bulk(info) | Reply::Verbatim { text: info, .. }) = info else {
        return Shape::Unknown("the server does not tell".into());
    };
    let info = String::from_utf8_lossy(info);
    let says = |line: &str| info.lines().any(|known| known.trim_end() == line);
    // Nobody else can be a shard, and a replica reads its own data.
    if says("cluster_known_nodes:1") || !is_master {
        return Shape::Alone;
    }
    let unknown = |reason: &str| Shape::Unknown(reason.to_owned());
    if !topology.shards.contains_key(&topology.me) {
        return unknown("this master has no slots");
    }
    let slots = topology.slots();
    if let Some(slot) = slots.uncovered() {
        return Shape::Unknown(format!("no shard has slot {slot}"));
    }
    if !says("cluster_state:ok") {
        return unknown("the cluster is down");
    }
    topology
        .members()
        .map_or(Shape::Alone, |members| Shape::Known(Arc::new(members)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(me: &str, ranges: &[(i64, i64, &str)]) -> Topology {
        let id = |digit: &str| ShardId::parse_short(digit.as_bytes()).unwrap_or(ShardId::STANDALONE);
        let range = |&(first, last, digit): &(i64, i64, &str)| {
            let master = vec![
                Reply::bulk("127.0.0.1"),
                Reply::Int(7000),
                Reply::bulk(id(digit).to_string()),
            ];
            Reply::Array(vec![Reply::Int(first), Reply::Int(last), Reply::Array(master)])
        };
        let reply = Reply::Array(ranges.iter().map(range).collect());
        Topology::of_slots(id(me), &reply).unwrap_or_else(|| panic!("no topology"))
    }

    #[test]
    fn who_does_not_know_all_knows_nothing() {
        let info = |state: &str, nodes: u8| {
            Reply::bulk(format!(
                "cluster_state:{state}\r\ncluster_known_nodes:{nodes}\r\n"
            ))
        };
        let whole = [(0, 8191, "1"), (8192, 16383, "2")];
        let (two, other) = (topology("1", &whole), topology("3", &whole));
        assert!(matches!(shape(&two, true, &info("ok", 2)), Shape::Known(_)));
        assert!(matches!(shape(&two, true, &info("fail", 2)), Shape::Unknown(_)));
        assert!(matches!(shape(&other, true, &info("ok", 3)), Shape::Unknown(_)));
        assert_eq!(shape(&other, false, &info("fail", 3)), Shape::Alone);
        let half = topology("1", &[(0, 8191, "1")]);
        assert_eq!(
            shape(&half, true, &info("ok", 2)),
            Shape::Unknown("no shard has slot 8192".into())
        );
        assert_eq!(shape(&half, true, &info("ok", 1)), Shape::Alone);
        let one = topology("1", &[(0, 16383, "1")]);
        assert_eq!(shape(&one, true, &info("ok", 2)), Shape::Alone);
    }
}
