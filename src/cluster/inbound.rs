//! What comes from other shards: who has proved to be one, and which of their messages were seen already. Contract:
//! `commands.md` 1.23 and 8.4. Runs on the server's thread.

use std::collections::HashMap;

use super::{
    Cluster,
    link::{KIND, TEST_KIND},
    message::Message,
    secrets,
};
use crate::{
    engine::id::ShardId,
    error::Error,
    server::{
        api,
        command::{Answer, Command},
        guarded::Guarded,
        reply::Reply,
    },
};

/// The shards that have said hello.
#[derive(Default)]
pub struct Inbound(Guarded<HashMap<ShardId, Sender>>);

struct Sender {
    /// The connection that it talks on.
    client: u64,
    run: Vec<u8>,
    /// The number of its last message.
    last: Option<u64>,
}

impl Cluster {
    /// `RG.HELLO [<shard id> <run id> <secret>]`: this server's run id. With the arguments, which only shards know, the
    /// connection may send messages from now on.
    ///
    /// # Errors
    /// There is no cluster; the secret is another one.
    pub fn hello(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let run = self.run_id().ok_or(Error::NoTopologyForHello)?;
        let words = command.argv().to_vecs();
        if let [_, id, their_run, secret, ..] = words.as_slice() {
            let shard = ShardId::parse(id).ok_or(Error::NotAShard)?;
            if !secrets::same(secret, self.own_secret().as_bytes()) {
                return Err(Error::NotAShard);
            }
            let mut senders = self.inbound.0.write(command.lock());
            let before = senders.remove(&shard);
            let last = before.filter(|before| before.run == *their_run);
            senders.insert(
                shard,
                Sender {
                    client: command.client_id(),
                    run: their_run.clone(),
                    last: last.and_then(|last| last.last),
                },
            );
        }
        Ok(Reply::bulk(run).into())
    }

    /// `RG.INNERMSGCOMMAND <shard id> <run id> <kind> <payload> <number>`, from shards only.
    ///
    /// # Errors
    /// Somebody else sent it; a number, a kind or a payload that is none.
    pub fn inner_message(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let argv = command.argv();
        if argv.len() != 6 {
            return Err(Error::WrongArity);
        }
        if self.run_id().is_none() {
            return Err(Error::NoTopology);
        }
        let word = |place| argv.get(place).unwrap_or_default();
        let lock = command.lock();
        let shard = ShardId::parse(word(1)).ok_or(Error::InnerCommand)?;
        let number: u64 = std::str::from_utf8(word(5))
            .ok()
            .and_then(|number| number.parse().ok())
            .ok_or(Error::BadMessageId)?;
        {
            let mut senders = self.inbound.0.write(lock);
            let client = command.client_id();
            let sender = senders
                .get_mut(&shard)
                .filter(|sender| sender.client == client && sender.run == word(2))
                .ok_or(Error::InnerCommand)?;
            if sender.last.is_some_and(|last| number <= last) {
                return Ok(Reply::status("duplicate message ignored").into());
            }
            sender.last = Some(number);
        }
        self.counts.received();
        match word(3) {
            kind if kind == KIND.as_bytes() => match Message::decode(word(4)) {
                Ok(message) => self.receive(lock, shard, message),
                Err(error) => {
                    api::log_warning(&format!("a message of shard {shard} cannot be read: {error}"));
                }
            },
            kind if kind == TEST_KIND.as_bytes() => {
                api::log_notice(&format!(
                    "got test message from shard {shard}: {}",
                    String::from_utf8_lossy(word(4))
                ));
            }
            _ => return Err(Error::UnknownMessageKind),
        }
        Ok(Reply::ok().into())
    }
}
