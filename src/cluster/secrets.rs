//! How a shard proves that it is one: it knows a secret of the shard that it talks to. Contract:
//! docs/contract/commands.md 9.4 and 9.15.
//!
//! In a Redis Cluster secrets go over the bus between the nodes, which clients cannot reach: whoever needs one asks for it
//! there, and asks again until it comes. With RG.CLUSTERSET there is no bus: the secret comes from the shard's password.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use sha2::{Digest, Sha256};

use super::{Cluster, SECRET, WANTS_SECRET};
use crate::{
    engine::id::ShardId,
    server::{
        bus,
        lock::{self, Lock},
    },
};

/// How long one look for a secret takes at most; the link tries again later.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long nothing comes before it is asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The secrets of this shard and of others.
pub struct Secrets {
    own: String,
    others: Mutex<HashMap<ShardId, String>>,
    came: Condvar,
}

impl Secrets {
    /// # Errors
    /// The operating system has no random numbers.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            own: random_hex(32)?,
            others: Mutex::default(),
            came: Condvar::new(),
        })
    }

    /// The one that others must know.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// Another shard has told its secret.
    pub fn learn(&self, shard: ShardId, secret: &[u8]) {
        let secret = String::from_utf8_lossy(secret).into_owned();
        self.others.lock().insert(shard, secret);
        self.came.notify_all();
    }

    /// It was of no use.
    pub fn forget(&self, shard: ShardId) {
        self.others.lock().remove(&shard);
    }

    /// The secret of another shard; `ask` asks for it.
    ///
    /// # Errors
    /// It did not come.
    pub fn of(&self, shard: ShardId, ask: impl Fn()) -> Result<String, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(secret) = self.others.lock().get(&shard) {
                return Ok(secret.clone());
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "shard {shard} did not tell its secret over the cluster's bus"
                ));
            }
            ask();
            let mut others = self.others.lock();
            if !others.contains_key(&shard) {
                self.came.wait_for(&mut others, ASK_AGAIN);
            }
        }
    }
}

impl Cluster {
    /// What another shard must know to send messages to this one.
    pub(super) fn own_secret(&self) -> String {
        let known = self.known.lock();
        let topology = known.topology.as_ref().filter(|_| known.told.is_some());
        let own = topology.and_then(|topology| Some((topology.me, topology.shards.get(&topology.me)?)));
        match own {
            Some((me, shard)) => of_password(me, shard.address.password.as_deref().unwrap_or_default()),
            None => self.secrets.own().to_owned(),
        }
    }

    /// The secret of another shard; waits for it.
    pub(super) fn secret_of(&self, shard: ShardId) -> Result<String, String> {
        let password = {
            let known = self.known.lock();
            let other = known
                .topology
                .as_ref()
                .and_then(|topology| topology.shards.get(&shard));
            other.and_then(|other| other.address.password.clone())
        };
        match password {
            Some(password) => Ok(of_password(shard, &password)),
            None => self.secrets.of(shard, || {
                lock::with_lock(|lock| bus::send(lock, &shard.to_string(), WANTS_SECRET, b"?"));
            }),
        }
    }

    pub(super) fn forget_secret(&self, shard: ShardId) {
        self.secrets.forget(shard);
    }

    /// A message from the bus.
    pub fn bus_message(&self, lock: Lock<'_>, kind: u8, sender: &[u8], message: &[u8]) {
        let Some(shard) = ShardId::parse(sender) else {
            return;
        };
        match kind {
            WANTS_SECRET => bus::send(lock, &shard.to_string(), SECRET, self.secrets.own().as_bytes()),
            SECRET => self.secrets.learn(shard, message),
            _ => {}
        }
    }
}

/// The secret of a shard that RG.CLUSTERSET told of.
pub fn of_password(shard: ShardId, password: &str) -> String {
    hex::encode(Sha256::digest(format!("pinion {shard} {password}")))
}

/// Compares without telling by the time it takes where the difference is.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    Sha256::digest(one) == Sha256::digest(other)
}

/// `bytes` random bytes as hexadecimal digits.
///
/// # Errors
/// The operating system has no random numbers.
pub fn random_hex(bytes: usize) -> std::io::Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(std::io::Error::other)?;
    Ok(hex::encode(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_come_when_asked_for() {
        let (Ok(one), Ok(other)) = (Secrets::new(), Secrets::new()) else {
            panic!("no random numbers")
        };
        assert_ne!(one.own(), other.own());
        let shard = ShardId::STANDALONE;
        let came = one.of(shard, || one.learn(shard, other.own().as_bytes()));
        assert_eq!(came.as_deref(), Ok(other.own()));
        assert!(same(b"a", b"a") && !same(b"a", b"b"));
    }
}
