//! Other shards: who they are, the links to them, and what is said over these. Implements the engine's trait [`Shards`].
//! Contract: docs/contract/commands.md chapter 8.
//!
//! `pinion-cluster` looks at the topology and does what takes long for other shards; each link has a thread of its own; what
//! other shards send comes on the server's thread (`inbound.rs`) and is sorted out in [`Cluster::receive`].

mod broadcast;
mod connect;
mod describe;
mod greeting;
mod inbound;
mod link;
pub mod local;
mod message;
mod moved;
mod participant;
mod questions;
mod receiving;
mod registrations;
mod run_order;
mod secrets;
mod shape;
pub mod topology;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::mutex::Mutex;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use redis::{Cmd, Connection, Value};

pub use self::registrations::Registered;
use self::{
    inbound::Inbound,
    link::{KIND, Link, TEST_KIND},
    message::Message,
    moved::Moved,
    questions::Questions,
    registrations::PreparedChanges,
    run_order::RunOrder,
    secrets::Secrets,
    shape::Waiting,
    topology::Topology,
};
use crate::{
    engine::{Engine, Shape, id::ShardId},
    persistence::Persistence,
    requirements::Packages,
    server::{
        api, bus,
        guarded::Guarded,
        lock::{self, Lock},
    },
    threads,
};

/// How often the topology is looked at, and how often by a node that does not know the others.
const LOOK: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_millis(100);
/// How often shards compare what is registered.
const COMPARE: Duration = Duration::from_secs(3);

/// How long RG.REFRESHCLUSTER waits for its new links.
const LINKING: Duration = Duration::from_secs(3);

/// Messages on the bus: somebody wants the receiver's secret; the sender's secret.
pub const WANTS_SECRET: u8 = 0x50;
pub const SECRET: u8 = 0x51;

type Task = Box<dyn FnOnce(&Cluster) + Send>;
/// Called once, on the thread of the cluster.
type Done = Box<dyn FnOnce() + Send>;

/// What this server knows about other shards.
pub struct Cluster {
    this: Weak<Self>,
    pub engine: Arc<Engine>,
    persistence: Arc<Persistence>,
    packages: Arc<Packages>,
    known: Mutex<Known>,
    inbound: Inbound,
    secrets: Secrets,
    questions: Questions,
    prepared: Guarded<PreparedChanges>,
    run_order: RunOrder,
    moved: Moved,
    /// This server is a node of a Redis Cluster.
    node: bool,
    /// Who waits until the shards are known.
    waiting: Waiting,
    /// Who waits until all links have come about, and until when.
    linking: Mutex<Vec<(Instant, Done)>>,
    tasks: Sender<Task>,
    pub counts: Counts,
}

#[derive(Default)]
struct Known {
    topology: Option<Topology>,
    run: String,
    links: BTreeMap<ShardId, Arc<Link>>,
    /// The words of RG.CLUSTERSET, if that is where the topology comes from.
    told: Option<Vec<Vec<u8>>>,
    /// The next topology opens all links anew. Until then the present one holds: other shards go on talking to this one.
    renewing: bool,
}

/// How much was said.
#[derive(Default)]
pub struct Counts {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    received: AtomicU64,
}

impl Counts {
    fn sent(&self, messages: usize, bytes: usize) {
        self.sent.fetch_add(messages as u64, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn received(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }
}

/// Who this server is on its links.
#[derive(Clone)]
struct Identity {
    shard: ShardId,
    run: String,
}

impl Cluster {
    /// Starts the thread that looks for other shards.
    ///
    /// # Errors
    /// The operating system gave no thread, or no random numbers.
    pub fn start(
        lock: Lock<'_>,
        engine: Arc<Engine>,
        persistence: Arc<Persistence>,
        packages: Arc<Packages>,
    ) -> std::io::Result<Arc<Self>> {
        let (tasks, to_do) = crossbeam_channel::unbounded();
        let node = bus::is_cluster_node(lock);
        let secrets = Secrets::new()?;
        let run = secrets::random_hex(20)?;
        let cluster = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            engine,
            persistence,
            packages,
            known: Mutex::new(Known {
                run,
                ..Known::default()
            }),
            inbound: Inbound::default(),
            secrets,
            questions: Questions::default(),
            prepared: Guarded::default(),
            run_order: RunOrder::default(),
            moved: Moved::default(),
            node,
            waiting: Waiting::default(),
            linking: Mutex::default(),
            tasks,
            counts: Counts::default(),
        });
        cluster.engine.connect_shards(Arc::clone(&cluster) as _);
        cluster.forget_shape("this server has just started");
        let life = Arc::clone(&cluster);
        threads::spawn("pinion-cluster".into(), move || {
            let language = Arc::clone(&life.engine.language);
            language.thread(&mut || life.live(&to_do));
        })?;
        Ok(cluster)
    }

    fn handle(&self) -> Weak<Self> {
        Weak::clone(&self.this)
    }

    /// Does `task` on the thread of the cluster, detached from the language.
    fn later(&self, task: impl FnOnce(&Self) + Send + 'static) {
        // The receiver lives as long as the process.
        let _ = self.tasks.send(Box::new(task));
    }

    fn live(&self, to_do: &Receiver<Task>) {
        let (mut looked, mut compared) = (None::<Instant>, Instant::now());
        loop {
            let interval = match (self.node, self.engine.shape()) {
                (false, _) => COMPARE,
                (true, Shape::Unknown(_)) => SOON,
                (true, Shape::Alone) if self.run_id().is_none() => SOON,
                (true, _) => LOOK,
            };
            match to_do.recv_timeout(interval) {
                Ok(task) => {
                    if catch_unwind(AssertUnwindSafe(|| task(self))).is_err() {
                        api::log_warning("a task for another shard failed");
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.node && looked.is_none_or(|looked| looked.elapsed() >= interval) {
                self.look();
                looked = Some(Instant::now());
            }
            self.call_linking();
            if compared.elapsed() >= COMPARE {
                compared = Instant::now();
                if !self.other_shards().is_empty() {
                    self.settle();
                    self.compare_registrations(None);
                }
            }
        }
    }

    /// RG.REFRESHCLUSTER: looks at once, opens all links anew and forgets what was not sent. Calls `done` when they have come about; a
    /// shard that cannot be reached is waited for [`LINKING`] at most.
    pub fn refresh(&self, done: impl FnOnce() + Send + 'static) {
        api::log_notice("Got cluster refresh command");
        self.later(move |cluster| {
            if cluster.node {
                cluster.known.lock().told = None;
                cluster.renew();
                cluster.look();
            }
            let until = Instant::now() + LINKING;
            cluster.linking.lock().push((until, Box::new(done)));
            cluster.call_linking();
        });
    }

    /// Calls those who wait for the links.
    fn call_linking(&self) {
        if self.linking.lock().is_empty() {
            return;
        }
        let links: Vec<_> = self.known.lock().links.values().cloned().collect();
        let linked = !self.node || links.iter().all(|link| link.state().connected);
        let now = Instant::now();
        let ready: Vec<_> = {
            let mut those = self.linking.lock();
            let (ready, waiting) = those.drain(..).partition(|(until, _)| linked || *until <= now);
            *those = waiting;
            ready
        };
        for (_, done) in ready {
            done();
        }
    }

    /// RG.CLUSTERSET, or RG.CLUSTERSETFROMSHARD if `unless_known`: `words` are those of the command.
    pub fn set(
        &self,
        topology: Topology,
        words: Vec<Vec<u8>>,
        unless_known: bool,
        done: impl FnOnce() + Send + 'static,
    ) {
        api::log_notice("Got cluster set command");
        self.later(move |cluster| {
            if !(unless_known && cluster.run_id().is_some()) {
                cluster.renew();
                let shape = topology
                    .members()
                    .map_or(Shape::Alone, |members| Shape::Known(Arc::new(members)));
                lock::with_lock(|lock| cluster.adopt(lock, topology, shape, Some(words), true));
            }
            done();
        });
    }

    /// A new run id and new links.
    fn renew(&self) {
        let run = secrets::random_hex(20);
        let mut known = self.known.lock();
        if let Ok(run) = run {
            known.run = run;
        }
        known.renewing = true;
    }

    /// The shards are these from now on; `shape` is what the engine goes by.
    fn adopt(
        &self,
        lock: Lock<'_>,
        topology: Topology,
        shape: Shape,
        told: Option<Vec<Vec<u8>>>,
        report: bool,
    ) {
        let mut known = self.known.lock();
        if !known.renewing && known.topology.as_ref() == Some(&topology) {
            drop(known);
            return self.set_shape(shape, &BTreeSet::new());
        }
        let mut old = std::mem::take(&mut known.links);
        // Where nothing is known any more, all links are opened anew.
        let renewed = std::mem::take(&mut known.renewing) || known.topology.is_none();
        let mut gone: BTreeSet<ShardId> = old.keys().copied().collect();
        if topology.members().is_some() {
            for (&id, shard) in topology.shards.iter().filter(|(id, _)| **id != topology.me) {
                let kept = old.get(&id).filter(|_| !renewed).cloned();
                let link = if let Some(link) = kept {
                    old.remove(&id);
                    gone.remove(&id);
                    link.set_address(&shard.address);
                    link
                } else {
                    let closed = old.remove(&id).map(|link| link.close());
                    if closed.as_ref().is_some_and(|closed| closed.all_there) {
                        // What is under way has lost nothing.
                        gone.remove(&id);
                    }
                    let before = closed.and_then(|closed| closed.before);
                    Link::open(self.handle(), id, shard.address.clone(), before)
                };
                known.links.insert(id, link);
            }
        }
        for link in old.values() {
            link.close();
        }
        let shard = if topology.is_cluster() {
            topology.me
        } else {
            ShardId::STANDALONE
        };
        let count = topology.shards.len();
        let changed = report
            || renewed
            || known
                .topology
                .as_ref()
                .is_none_or(|before| before.shards.len() != count);
        known.topology = Some(topology);
        known.told = told;
        drop(known);
        self.engine.registry.set_shard(shard);
        if changed && count > 1 {
            api::log_notice(&format!("this is shard {shard} of a cluster of {count}"));
        }
        self.set_shape(shape, &gone);
        self.drop_prepared_of(lock, &gone);
    }

    fn identity(&self) -> Identity {
        let known = self.known.lock();
        Identity {
            shard: known
                .topology
                .as_ref()
                .map_or(ShardId::STANDALONE, |topology| topology.me),
            run: known.run.clone(),
        }
    }

    /// The run id; `None` while there is no cluster.
    fn run_id(&self) -> Option<String> {
        let known = self.known.lock();
        let is_cluster = known.topology.as_ref().is_some_and(Topology::is_cluster);
        is_cluster.then(|| known.run.clone())
    }

    fn other_shards(&self) -> Vec<ShardId> {
        self.known.lock().links.keys().copied().collect()
    }

    /// True if there are other shards that this one talks to.
    pub fn has_others(&self) -> bool {
        !self.known.lock().links.is_empty()
    }

    fn link(&self, shard: ShardId) -> Option<Arc<Link>> {
        self.known.lock().links.get(&shard).cloned()
    }

    fn tell_shard(&self, shard: ShardId, message: &Message) {
        if let Some(link) = self.link(shard) {
            link.push(KIND, message.encode());
        }
    }

    fn tell_all(&self, message: &Message) {
        let links: Vec<_> = self.known.lock().links.values().cloned().collect();
        if links.is_empty() {
            return;
        }
        let bytes = message.encode();
        for link in links {
            link.push(KIND, bytes.clone());
        }
    }

    /// RG.NETWORKTEST: a message to each other shard, which writes it to its log.
    pub fn network_test(&self) {
        let links: Vec<_> = self.known.lock().links.values().cloned().collect();
        for link in links {
            link.push(TEST_KIND, b"test".to_vec());
        }
    }

    /// A link has come about: the other shard hears what is registered here.
    fn linked(&self, shard: ShardId) {
        self.later(move |cluster| cluster.compare_registrations(Some(shard)));
    }

    /// The other shard knows nothing any more of what is under way.
    fn restarted(&self, shard: ShardId) {
        self.set_shape(self.engine.shape(), &BTreeSet::from([shard]));
    }

    /// The other shard has lost its topology: gets this one's, if that comes from RG.CLUSTERSET.
    fn send_topology(&self, shard: ShardId, connection: &mut Connection) {
        let Some(mut words) = self.known.lock().told.clone() else {
            return;
        };
        words[0] = b"RG.CLUSTERSETFROMSHARD".to_vec();
        words[6] = shard.to_string().into_bytes();
        let mut command = Cmd::new();
        for word in &words {
            command.arg(&word[..]);
        }
        // The next greeting shows whether it was of use.
        let _ = command.query::<Value>(connection);
    }
}
