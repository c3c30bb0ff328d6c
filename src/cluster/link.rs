//! The way to one other shard: a queue of messages, and a thread that sends them over one connection. Contract:
//! docs/contract/commands.md 8.4.
//!
//! Messages have numbers, which begin with 0 for each link and are never used twice. A link has a number of its own, by which
//! the other side knows it again: whenever a connection comes about, that one tells up to where it has seen the messages of
//! this very link, and what is behind that is sent. Any thread may queue; nobody waits but the thread of the link.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{Cmd, Connection, Value};

use super::{
    Cluster, connect,
    greeting::{Before, Closed, Welcome},
    topology::Address,
};
use crate::{
    config::Number,
    engine::{id::ShardId, run_message::NotSent},
    error::NO_CLUSTER,
    server::api,
    threads,
    waits::{Condvar, Mutex, MutexGuard},
};

#[cfg(all(test, feature = "model"))]
mod model;
#[cfg(test)]
mod tests;

/// The kind of our own messages.
pub const KIND: &str = "pinion1";
/// The kind of RG.NETWORKTEST.
pub const TEST_KIND: &str = "RG_NetworkTest";

/// In tests it is one byte.
const MIB: usize = if cfg!(test) { 1 } else { 1 << 20 };
/// From this many bytes on senders of records should wait.
const FULL: usize = if cfg!(feature = "model") { 2 } else { 64 * MIB };
/// From this many bytes on nothing large is taken: the other shard is gone, or far too slow. What is offered to an empty queue is.
const OVERFLOW: usize = 256 * MIB;
/// So many bytes more are for what is not offered, but has to come.
const RESERVE: usize = 64 * MIB;
/// What a server takes as one argument (`proto-max-bulk-len`).
const LARGEST: usize = 512 * MIB;
/// How much is sent at once at most.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 4 << 20;
/// How long after a failure the next connection is tried: each time twice as long, up to the last one.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// How long nothing is sent before the thread looks whether the other shard is still there.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The way to one shard.
pub struct Link {
    pub shard: ShardId,
    /// Later links of one run of the server have higher ones.
    epoch: u64,
    /// The link in whose place this one is.
    before: Option<Before>,
    state: Mutex<Outbox>,
    /// There is something to do for the thread.
    work: Condvar,
    /// Something was acknowledged.
    room: Condvar,
}

struct Outbox {
    address: Address,
    /// Not acknowledged yet, in order.
    queue: VecDeque<Item>,
    bytes: usize,
    next_number: u64,
    /// The run id of the other shard; `None` until it has answered.
    run: Option<String>,
    connected: bool,
    /// The present connection is of no use any more.
    reset: bool,
    closed: bool,
    overflowing: bool,
    /// This server's run id in the last greeting that was answered.
    greeted_as: Option<String>,
}

#[derive(Clone)]
struct Item {
    number: u64,
    kind: &'static str,
    payload: Arc<[u8]>,
    /// How often it was sent.
    attempts: i64,
}

/// What RG.INFOCLUSTER tells about the other shard.
pub struct LinkState {
    pub run: Option<String>,
    pub pending: usize,
    pub connected: bool,
}

impl Link {
    fn new(shard: ShardId, address: Address, before: Option<Before>) -> Self {
        static EPOCHS: AtomicU64 = AtomicU64::new(0);
        Self {
            shard,
            epoch: EPOCHS.fetch_add(1, Ordering::Relaxed),
            before,
            state: Mutex::new(Outbox {
                address,
                queue: VecDeque::new(),
                bytes: 0,
                next_number: 0,
                run: None,
                connected: false,
                reset: false,
                closed: false,
                overflowing: false,
                greeted_as: None,
            }),
            work: Condvar::new(),
            room: Condvar::new(),
        }
    }

    /// Starts the thread of a link; `before`: the one in whose place it is.
    pub fn open(
        cluster: Weak<Cluster>,
        shard: ShardId,
        address: Address,
        before: Option<Before>,
    ) -> Arc<Self> {
        let link = Arc::new(Self::new(shard, address, before));
        let life = Arc::clone(&link);
        let started = threads::spawn("pinion-link".into(), move || life.live(&cluster));
        if let Err(error) = started {
            api::log_warning(&format!("no thread for the link to shard {shard}: {error}"));
        }
        link
    }

    /// Queues a message that has to come, without waiting. What is too much is lost, says the log, and its number is missing.
    pub fn push(&self, kind: &'static str, payload: Vec<u8>) {
        if self.queue_or_lose(kind, payload) == Kept::LostFirst {
            api::log_warning(&format!(
                "messages to shard {} are lost: more than {} MiB wait for it, or one is larger than {} MiB",
                self.shard,
                (OVERFLOW + RESERVE) / MIB,
                LARGEST / MIB
            ));
        }
    }

    fn queue_or_lose(&self, kind: &'static str, payload: Vec<u8>) -> Kept {
        let mut state = self.state.lock();
        if state.closed {
            return Kept::Lost;
        }
        if payload.len() <= LARGEST && state.takes(payload.len(), OVERFLOW + RESERVE) {
            self.queue(state, kind, payload);
            return Kept::Queued;
        }
        state.next_number += 1;
        if std::mem::replace(&mut state.overflowing, true) {
            Kept::Lost
        } else {
            Kept::LostFirst
        }
    }

    /// Queues a message, if there is room for it. Never waits.
    ///
    /// # Errors
    /// There is none, or no way any more: the caller has to tell those who wait for it.
    pub fn offer(&self, kind: &'static str, payload: Vec<u8>) -> Result<(), NotSent> {
        let bytes = payload.len();
        if bytes > LARGEST {
            return Err(NotSent::TooLarge {
                bytes,
                limit: LARGEST,
            });
        }
        let state = self.state.lock();
        if state.closed {
            return Err(NotSent::NoWay);
        }
        if !state.takes(bytes, OVERFLOW) {
            return Err(NotSent::Full { limit: OVERFLOW });
        }
        self.queue(state, kind, payload);
        Ok(())
    }

    fn queue(&self, mut state: MutexGuard<'_, Outbox>, kind: &'static str, payload: Vec<u8>) {
        state.bytes += payload.len();
        let number = state.next_number;
        state.next_number += 1;
        state.queue.push_back(Item {
            number,
            kind,
            payload: payload.into(),
            attempts: 0,
        });
        drop(state);
        self.work.notify_one();
    }

    /// True if nothing large has to wait, and so many bytes are taken.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.state.lock().has_room(bytes)
    }

    /// Waits until there is room, for `limit` at most. True if there is, or if the link is closed.
    pub fn wait_for_room(&self, bytes: usize, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        while !state.has_room(bytes) && !state.closed {
            if self.room.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// The shard listens elsewhere now.
    pub fn set_address(&self, address: &Address) {
        let mut state = self.state.lock();
        if state.address != *address {
            state.address = address.clone();
            state.reset = true;
            drop(state);
            self.work.notify_one();
        }
    }

    /// Ends the thread, sooner or later. What is queued is dropped.
    pub fn close(&self) -> Closed {
        let mut state = self.state.lock();
        let closed = Closed {
            before: Before::this(
                self.before.as_ref(),
                state.greeted_as.as_ref(),
                self.epoch,
                state.next_number,
            ),
            all_there: state.connected && state.queue.is_empty(),
        };
        state.closed = true;
        state.queue.clear();
        state.bytes = 0;
        drop(state);
        self.work.notify_one();
        self.room.notify_all();
        closed
    }

    pub fn state(&self) -> LinkState {
        let state = self.state.lock();
        LinkState {
            run: state.run.clone(),
            pending: state.queue.len(),
            connected: state.connected,
        }
    }

    fn live(&self, cluster: &Weak<Cluster>) {
        let mut reported = false;
        let mut retry = FIRST_RETRY;
        while let Some(cluster) = cluster.upgrade() {
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            state.reset = false;
            let address = state.address.clone();
            drop(state);
            let Address { host, port, .. } = &address;
            match self.greet(&cluster, &address) {
                Ok(mut connection) => {
                    reported = false;
                    retry = FIRST_RETRY;
                    api::log_notice(&format!("connected : {host}:{port}, status = 0"));
                    self.state.lock().connected = true;
                    cluster.linked(self.shard);
                    let reason = self.serve(&cluster, &mut connection).err();
                    let mut state = self.state.lock();
                    state.connected = false;
                    if state.closed {
                        return;
                    }
                    drop(state);
                    let reason = reason.unwrap_or_else(|| "its address has changed".into());
                    api::log_notice(&format!(
                        "disconnected : {host}:{port}, status : -1, will try to reconnect. ({reason})"
                    ));
                }
                Err(reason) if !reported => {
                    reported = true;
                    api::log_notice(&format!(
                        "disconnected : {host}:{port}, status : -1, will try to reconnect. ({reason})"
                    ));
                }
                Err(_) => {}
            }
            drop(cluster);
            let mut state = self.state.lock();
            if !state.closed && !state.reset {
                let deadline = Instant::now() + retry;
                retry = (retry * 2).min(LAST_RETRY);
                // Messages that come meanwhile do not make the other shard come back sooner.
                while !state.closed && !state.reset && !self.work.wait_until(&mut state, deadline).timed_out()
                {
                }
            }
        }
    }

    /// Connects, proves that this is a shard, and learns whether the other one still knows what it was sent.
    fn greet(&self, cluster: &Cluster, address: &Address) -> Result<Connection, String> {
        let mut connection = connect::connect(cluster, address)?;
        let limit = Some(cluster.engine.max_idle());
        connection
            .set_read_timeout(limit)
            .and_then(|()| connection.set_write_timeout(limit))
            .map_err(|error| error.to_string())?;
        let Welcome { run, next } = self.hello(cluster, &mut connection)?;
        self.acknowledged_below(next);
        let before = self.state.lock().run.replace(run.clone());
        if before.is_some_and(|before| before != run) {
            cluster.restarted(self.shard);
            // Nothing was tried there.
            for item in &mut self.state.lock().queue {
                item.attempts = 0;
            }
        }
        let mut state = self.state.lock();
        let limit = cluster.engine.config.number(Number::SendMsgRetries);
        if limit > 0 {
            let before = state.queue.len();
            state.queue.retain(|item| item.attempts < limit);
            if state.queue.len() < before {
                state.bytes = state.queue.iter().map(|item| item.payload.len()).sum();
                // The other shard sees that their numbers are missing.
                api::log_warning(&format!(
                    "Gave up of message because failed to send it for more than {limit} time"
                ));
            }
        }
        Ok(connection)
    }

    fn hello(&self, cluster: &Cluster, connection: &mut Connection) -> Result<Welcome, String> {
        let me = cluster.identity();
        let secret = cluster.secret_of(self.shard)?;
        let mut hello = Cmd::new();
        hello
            .arg("RG.HELLO")
            .arg(me.shard.to_string())
            .arg(&me.run)
            .arg(secret)
            .arg(self.epoch);
        if let Some(Before { run, epoch, sent }) = &self.before {
            hello.arg(run).arg(*epoch).arg(*sent);
        }
        match hello.query::<Value>(connection) {
            Ok(reply) => {
                self.state.lock().greeted_as = Some(me.run);
                Welcome::of(&reply).ok_or_else(|| format!("unexpected reply to RG.HELLO: {reply:?}"))
            }
            Err(error) => {
                if error.code() == Some(NO_CLUSTER) {
                    cluster.send_topology(self.shard, connection);
                } else {
                    cluster.forget_secret(self.shard);
                }
                Err(error.to_string())
            }
        }
    }

    /// Sends what is queued until the connection is of no use any more.
    fn serve(&self, cluster: &Cluster, connection: &mut Connection) -> Result<(), String> {
        let (me, greeted_as) = (cluster.identity(), self.state.lock().greeted_as.clone());
        let (id, run) = (me.shard.to_string(), greeted_as.unwrap_or(me.run));
        loop {
            let batch = match self.next_batch() {
                Next::Batch(batch) => batch,
                Next::Nothing => {
                    Cmd::new()
                        .arg("RG.HELLO")
                        .query::<Value>(connection)
                        .map_err(|error| error.to_string())?;
                    continue;
                }
                Next::Reset => return Ok(()),
            };
            let mut bytes = Vec::new();
            for item in &batch {
                let mut command = Cmd::new();
                command
                    .arg("RG.INNERMSGCOMMAND")
                    .arg(&id)
                    .arg(&run)
                    .arg(item.kind)
                    .arg(&item.payload[..])
                    .arg(item.number);
                bytes.extend(command.get_packed_command());
            }
            cluster.counts.sent(batch.len(), bytes.len());
            connection
                .send_packed_command(&bytes)
                .map_err(|error| error.to_string())?;
            for item in &batch {
                match connection.recv_response() {
                    Ok(Value::Okay | Value::SimpleString(_)) => self.acknowledged_below(item.number + 1),
                    Ok(other) => return Err(format!("unexpected reply to a message: {other:?}")),
                    Err(error) => return Err(error.to_string()),
                }
            }
        }
    }

    /// What is to be sent next; waits for it.
    fn next_batch(&self) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.closed || state.reset {
                return Next::Reset;
            }
            if !state.queue.is_empty() {
                break;
            }
            if self.work.wait_for(&mut state, HEARTBEAT).timed_out() {
                return Next::Nothing;
            }
        }
        let mut bytes = 0;
        let mut batch = Vec::new();
        for item in state.queue.iter_mut().take(BATCH) {
            if bytes > 0 && bytes + item.payload.len() > BATCH_BYTES {
                break;
            }
            bytes += item.payload.len();
            item.attempts += 1;
            batch.push(item.clone());
        }
        Next::Batch(batch)
    }

    /// The other side has all messages whose numbers are lower.
    fn acknowledged_below(&self, number: u64) {
        let mut state = self.state.lock();
        while state.queue.front().is_some_and(|item| item.number < number) {
            if let Some(item) = state.queue.pop_front() {
                state.bytes = state.bytes.saturating_sub(item.payload.len());
            }
        }
        state.overflowing = false;
        let room = state.bytes <= FULL;
        drop(state);
        if room {
            self.room.notify_all();
        }
    }
}

impl Outbox {
    /// An empty queue takes everything.
    fn takes(&self, bytes: usize, limit: usize) -> bool {
        self.queue.is_empty() || self.bytes.saturating_add(bytes) <= limit
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes <= FULL && self.takes(bytes, OVERFLOW)
    }
}

/// What has become of a message that has to come.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    Queued,
    Lost,
    /// It is the first one since messages were taken.
    LostFirst,
}

enum Next {
    Batch(Vec<Item>),
    /// There was nothing to send for a while.
    Nothing,
    /// The connection is of no use any more.
    Reset,
}
