//! Questions to other shards, whose answers are waited for together. Contract: docs/contract/commands.md 8.2.
//!
//! Nobody is blocked: what is to happen with the answers is called when the last one has come, or time is over.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::mutex::Mutex;

use super::{
    Cluster,
    link::KIND,
    message::{Message, Question, Said},
};
use crate::{
    engine::{id::ShardId, run_message::NotSent},
    error::Error,
};

/// The answer of one that is gone.
const NO_SHARD: &str = "the cluster got other shards meanwhile";

/// What came back from each shard; `None` from those that did not answer in time.
pub type Answers = Vec<(ShardId, Option<Result<Said, String>>)>;

/// Called once, with the question's number, on any thread, which may hold the server's lock.
type Done = Box<dyn FnOnce(u64, Answers) + Send>;

/// The questions that wait for answers.
#[derive(Default)]
pub struct Questions {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Open>>,
}

struct Open {
    missing: BTreeSet<ShardId>,
    answers: Answers,
    done: Done,
}

impl Open {
    fn end(self, number: u64) {
        let mut answers = self.answers;
        answers.extend(self.missing.into_iter().map(|shard| (shard, None)));
        (self.done)(number, answers);
    }
}

impl Cluster {
    /// Asks all other shards; `done` gets what they answered within `limit`. One that cannot be asked counts as one that has answered
    /// with an error.
    pub fn ask_all(
        &self,
        question: &Question,
        limit: Duration,
        done: impl FnOnce(u64, Answers) + Send + 'static,
    ) {
        let shards: BTreeSet<_> = self.other_shards().into_iter().collect();
        self.ask(&shards, question, limit, done);
    }

    /// The same for some of them.
    pub fn ask(
        &self,
        shards: &BTreeSet<ShardId>,
        question: &Question,
        limit: Duration,
        done: impl FnOnce(u64, Answers) + Send + 'static,
    ) {
        let questions = &self.questions;
        let number = questions.next.fetch_add(1, Ordering::Relaxed);
        if shards.is_empty() {
            return done(number, Vec::new());
        }
        let open = Open {
            missing: shards.clone(),
            answers: Vec::new(),
            done: Box::new(done),
        };
        questions.open.lock().insert(number, open);
        let message = Message::Ask(number, question.clone()).encode();
        for &shard in shards {
            let link = self.link(shard).ok_or(NotSent::NoWay);
            if let Err(why) = link.and_then(|link| link.offer(KIND, message.clone())) {
                let what = match question {
                    Question::Import { .. } => "the files of a requirement",
                    _ => "a question",
                };
                let error = Error::NotSent {
                    what,
                    shard: shard.to_string(),
                    why: why.to_string(),
                };
                self.answered(shard, number, Err(error.to_string()));
            }
        }
        let cluster: Weak<Self> = self.handle();
        self.engine.timers.after(limit, move |_| {
            let Some(cluster) = cluster.upgrade() else { return };
            let late = cluster.questions.open.lock().remove(&number);
            if let Some(late) = late {
                late.end(number);
            }
        });
    }

    /// An answer has come.
    pub(super) fn answered(&self, from: ShardId, number: u64, answer: Result<Said, String>) {
        let mut open = self.questions.open.lock();
        let Some(question) = open.get_mut(&number) else {
            return;
        };
        if question.missing.remove(&from) {
            question.answers.push((from, Some(answer)));
        }
        if !question.missing.is_empty() {
            return;
        }
        let question = open.remove(&number);
        drop(open);
        if let Some(question) = question {
            question.end(number);
        }
    }

    /// There is no way to these shards any more: nobody waits for their answers.
    pub(super) fn give_up_questions(&self, gone: &BTreeSet<ShardId>) {
        for &shard in gone {
            let waiting: Vec<_> = {
                let open = self.questions.open.lock();
                let waits = |(number, open): (&u64, &Open)| open.missing.contains(&shard).then_some(*number);
                open.iter().filter_map(waits).collect()
            };
            for number in waiting {
                self.answered(shard, number, Err(NO_SHARD.into()));
            }
        }
    }

    /// Sends the answer to a question; of an error the other shard gets the text.
    pub(super) fn reply_to(&self, shard: ShardId, number: u64, answer: Result<Said, Error>) {
        let answer = answer.map_err(|error| error.to_string());
        self.tell_shard(shard, &Message::Answer(number, answer));
    }

    /// What an answer that comes later is sent with.
    pub(super) fn replier(
        &self,
        shard: ShardId,
        number: u64,
    ) -> impl FnOnce(Result<Said, Error>) + Send + use<> {
        let cluster = self.handle();
        move |answer| {
            if let Some(cluster) = cluster.upgrade() {
                cluster.reply_to(shard, number, answer);
            }
        }
    }
}

/// Calls `done` when this shard's own part and the answers of all others are there.
pub struct Both<T> {
    parts: Mutex<(Option<T>, Option<Answers>)>,
    #[allow(clippy::type_complexity)] // called once
    done: Mutex<Option<Box<dyn FnOnce(T, Answers) + Send>>>,
}

impl<T: Send + 'static> Both<T> {
    pub fn new(done: impl FnOnce(T, Answers) + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            parts: Mutex::new((None, None)),
            done: Mutex::new(Some(Box::new(done))),
        })
    }

    pub fn own(&self, own: T) {
        self.parts.lock().0 = Some(own);
        self.check();
    }

    pub fn others(&self, answers: Answers) {
        self.parts.lock().1 = Some(answers);
        self.check();
    }

    fn check(&self) {
        let mut parts = self.parts.lock();
        if parts.0.is_none() || parts.1.is_none() {
            return;
        }
        let both = parts.0.take().zip(parts.1.take());
        drop(parts);
        let done = self.done.lock().take();
        if let (Some((own, answers)), Some(done)) = (both, done) {
            done(own, answers);
        }
    }
}
