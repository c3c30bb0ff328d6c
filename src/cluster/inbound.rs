//! What comes from other shards: who has proved to be one, and which of their messages were seen already. Contract:
//! docs/contract/commands.md 1.23 and 8.4. Runs on the server's thread.

use std::collections::{BTreeSet, HashMap};

use super::{
    Cluster,
    greeting::{Before, Sender, Taken, number},
    link::{KIND, TEST_KIND},
    message::Message,
    secrets,
};
use crate::{
    engine::id::ShardId,
    error::Error,
    server::{
        after::when_writes_are_allowed,
        api,
        command::{Answer, Command},
        guarded::Guarded,
        reply::Reply,
    },
};

/// The shards that have said hello.
#[derive(Default)]
pub struct Inbound(Guarded<HashMap<ShardId, Sender>>);

impl Cluster {
    /// `RG.HELLO`: this server's run id. `RG.HELLO <shard id> <run id> <secret> <link> [<run id> <link> <messages>]`, which
    /// only shards can say: the connection may send messages from now on; the reply is the run id with the number of the first
    /// message of that link that was not seen. The last three words are about the link in whose place it is.
    ///
    /// # Errors
    /// There is no cluster; the secret is another one; a later link of that shard was here; this server does not know of that
    /// shard yet, and could not answer it.
    pub fn hello(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let run = self.run_id().ok_or(Error::NoTopologyForHello)?;
        let words = command.argv().to_vecs();
        let [_, id, their_run, secret, epoch, told @ ..] = words.as_slice() else {
            return Ok(Reply::bulk(run).into());
        };
        let shard = ShardId::parse(id).ok_or(Error::NotAShard)?;
        if !secrets::same(secret, self.own_secret().as_bytes()) {
            return Err(Error::NotAShard);
        }
        let epoch = number(epoch).ok_or(Error::NotAShard)?;
        let told = Before::of(told);
        if !self.knows(command.lock(), shard) {
            return Err(Error::ShardUnknown(shard.to_string()));
        }
        let mut senders = self.inbound.0.write(command.lock());
        let before = senders.get(&shard);
        let goes_on = |before: &Sender| {
            told.as_ref()
                .is_some_and(|told| before.goes_on_in(their_run, epoch, told))
        };
        let broken = before.filter(|before| !goes_on(before));
        let is_new = broken.is_some_and(|before| before.run != *their_run);
        // What the link before had not sent does not come any more.
        let is_later = broken.is_some_and(|before| before.run == *their_run && before.epoch < epoch);
        let sender = Sender::greeting(before, command.client_id(), their_run, epoch)?;
        let next = sender.next();
        senders.insert(shard, sender);
        drop(senders);
        if is_new {
            self.drop_prepared_of(command.lock(), &BTreeSet::from([shard]));
        }
        if is_later {
            self.messages_lost(shard);
        }
        let next = i64::try_from(next).unwrap_or(i64::MAX);
        Ok(Reply::Array(vec![Reply::bulk(run), Reply::Int(next)]).into())
    }

    /// Runs that may have needed what another shard has sent end with an error: nobody knows what it was.
    fn messages_lost(&self, of: ShardId) {
        api::log_warning(&format!("messages of shard {of} were lost"));
        self.engine.messages_lost(of);
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
        let number = number(word(5)).ok_or(Error::BadMessageId)?;
        let taken = {
            let mut senders = self.inbound.0.write(lock);
            let client = command.client_id();
            let sender = senders
                .get_mut(&shard)
                .filter(|sender| sender.client == client && sender.run == word(2))
                .ok_or(Error::InnerCommand)?;
            sender.takes(number)
        };
        match taken {
            Taken::Seen => return Ok(Reply::status("duplicate message ignored").into()),
            Taken::Next => {}
            Taken::BehindLost => self.messages_lost(shard),
        }
        self.counts.received();
        match word(3) {
            kind if kind == KIND.as_bytes() => match Message::decode(word(4)) {
                // It may write, and those behind it keep their order.
                Ok(message) => {
                    let this = self.handle();
                    when_writes_are_allowed(lock, move |lock| {
                        if let Some(this) = this.upgrade() {
                            this.receive(lock, shard, message);
                        }
                    });
                }
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
