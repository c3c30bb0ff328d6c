//! What two shards say when a link comes about: who that is, up to where the other one has seen its messages, and whether a link that is
//! in the place of another goes on where that one has ended. Contract: docs/contract/commands.md 8.4. Knows neither server nor
//! connection.

use redis::Value;

use crate::error::Error;

/// A link that has ended, by which the other shard sees whether it has all that it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// This server's run id on it; empty if it never came about.
    pub run: String,
    pub epoch: u64,
    /// How many messages it had.
    pub sent: u64,
}

/// How a link has ended.
pub struct Closed {
    /// What the link in its place tells; `None` if something was dropped that had never been sent.
    pub before: Option<Before>,
    /// The other shard has acknowledged all there was.
    pub all_there: bool,
}

impl Before {
    /// A link that ends, for the one in its place. `told`: the one before it; `run`: this server's run id in its last greeting that
    /// was answered; `sent`: how many messages it had.
    pub fn this(told: Option<&Self>, run: Option<&String>, epoch: u64, sent: u64) -> Option<Self> {
        match run {
            Some(run) => Some(Self {
                run: run.clone(),
                epoch,
                sent,
            }),
            // The other shard has never heard of them.
            None if sent > 0 => None,
            // It may be about to come about all the same.
            None => Some(told.cloned().unwrap_or(Self {
                run: String::new(),
                epoch,
                sent,
            })),
        }
    }

    /// What a greeting tells of it; `words`: those behind the link's own.
    pub fn of(words: &[Vec<u8>]) -> Option<Self> {
        let [run, epoch, sent, ..] = words else {
            return None;
        };
        Some(Self {
            run: String::from_utf8(run.clone()).ok()?,
            epoch: number(epoch)?,
            sent: number(sent)?,
        })
    }
}

/// What the other side answers a link that proves to be a shard's.
pub struct Welcome {
    /// Its run id.
    pub run: String,
    /// The number of the first message of this link that it has not seen.
    pub next: u64,
}

impl Welcome {
    pub fn of(reply: &Value) -> Option<Self> {
        let Value::Array(words) = reply else { return None };
        let [Value::BulkString(run), Value::Int(next)] = words.as_slice() else {
            return None;
        };
        Some(Self {
            run: String::from_utf8_lossy(run).into_owned(),
            next: u64::try_from(*next).ok()?,
        })
    }
}

/// A shard that has said hello.
pub struct Sender {
    /// The connection that it talks on.
    pub client: u64,
    pub run: Vec<u8>,
    /// Which of its links that is.
    pub epoch: u64,
    /// The number of the first message of that link that was not seen.
    next: u64,
}

impl Sender {
    /// A shard says hello; `before`: what was known of it.
    ///
    /// # Errors
    /// A later link of that shard was here: the thread of this one is about to end.
    pub fn greeting(before: Option<&Self>, client: u64, run: &[u8], epoch: u64) -> Result<Self, Error> {
        let before = before.filter(|before| before.run == run);
        let next = match before {
            Some(before) if before.epoch > epoch => return Err(Error::NotAShard),
            Some(before) if before.epoch == epoch => before.next,
            _ => 0,
        };
        Ok(Self {
            client,
            run: run.to_vec(),
            epoch,
            next,
        })
    }

    /// Nothing is lost between this and a link of that run and epoch, which tells what was before it. Links that were closed
    /// before they had any message may have come about late.
    pub fn goes_on_in(&self, run: &[u8], epoch: u64, told: &Before) -> bool {
        if self.run == told.run.as_bytes() && self.epoch == told.epoch {
            return self.next >= told.sent;
        }
        let between = told.epoch..epoch;
        self.run == run && between.contains(&self.epoch) && self.next == 0
    }

    /// The number of the first message of the link that was not seen.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A message has come.
    pub fn takes(&mut self, number: u64) -> Taken {
        if number < self.next {
            return Taken::Seen;
        }
        let taken = if number == self.next {
            Taken::Next
        } else {
            Taken::BehindLost
        };
        self.next = number.saturating_add(1);
        taken
    }
}

/// How a message stands to those that were seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was seen already.
    Seen,
    Next,
    /// Some before it will not come any more: the sender has given them up, or could not keep them.
    BehindLost,
}

pub fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(run: &str, epoch: u64, sent: u64) -> Before {
        Before {
            run: run.into(),
            epoch,
            sent,
        }
    }

    #[test]
    fn a_link_in_the_place_of_another_loses_what_that_had_not_sent() {
        let mut sender = Sender::greeting(None, 1, b"a", 3).unwrap_or_else(|_| panic!("refused"));
        assert!(sender.goes_on_in(b"b", 7, &told("a", 3, 0)));
        assert_eq!(sender.takes(0), Taken::Next);
        assert!(sender.goes_on_in(b"b", 7, &told("a", 3, 1)));
        assert!(!sender.goes_on_in(b"b", 7, &told("a", 3, 2)), "one has not come");
        assert!(
            !sender.goes_on_in(b"b", 7, &told("c", 3, 1)),
            "another run of that server"
        );
        assert!(
            !sender.goes_on_in(b"a", 7, &told("a", 2, 0)),
            "a link between them had messages"
        );
    }

    #[test]
    fn a_link_without_messages_may_come_late() {
        // It was closed before it came about, and has greeted under the run id of the next one.
        let sender = Sender::greeting(None, 1, b"b", 5).unwrap_or_else(|_| panic!("refused"));
        assert!(sender.goes_on_in(b"b", 7, &told("a", 3, 9)));
        assert!(sender.goes_on_in(b"b", 7, &told("", 5, 0)), "the first of all");
        assert!(!sender.goes_on_in(b"c", 7, &told("a", 3, 9)));
        assert!(!sender.goes_on_in(b"b", 5, &told("a", 3, 9)));
    }
}
