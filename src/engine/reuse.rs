//! Executions on workers that end before anybody looks at them: all that is kept of one of an event is an [`Ended`], of a load nothing,
//! and the execution itself is the next one's of its registration.
//!
//! Begun under the server's lock, ended on workers.

use std::{sync::Arc, time::Instant};

use super::{
    Engine, Lane,
    ended::Ended,
    ending::guarded,
    execution::{Collector, Execution, Outcome},
    id::Id,
    linked_command::ReplyHold,
    phase::Status,
    queue::Job,
    registration::Registration,
    source::Source,
    start::Start,
};
use crate::{config::Number, mutex::Mutex};

/// How many wait for the next event; of a burst the others go.
const MOST: usize = 64;

/// What is another one in each run of a registration.
pub(super) struct Anew {
    pub db: i32,
    pub source: Box<dyn Source>,
    pub link: Option<ReplyHold>,
    pub collector: Option<Collector>,
}

/// Executions of a registration that have ended and that nobody has a reference to.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Arc<Execution>>>);

impl Pool {
    fn take(&self) -> Option<Arc<Execution>> {
        self.0.lock().pop()
    }

    /// A worker has left it. Whatever does not fit ends behind the mutex.
    pub(super) fn put(&self, mut execution: Arc<Execution>) {
        let fits = Arc::get_mut(&mut execution).is_some_and(Execution::retire);
        if fits {
            let mut pool = self.0.lock();
            if pool.len() < MOST {
                pool.push(execution);
            }
        }
    }
}

impl Engine {
    /// As [`Engine::submit`], for an event of a registration whose executions are of `pool`.
    pub fn submit_event(
        &self,
        registration: &Arc<Registration>,
        pool: &Arc<Pool>,
        db: i32,
        source: Box<dyn Source>,
        link: Option<ReplyHold>,
        lane: Lane,
    ) {
        if let Some(payload) = self.payload(registration) {
            let start = Start::of_registration(registration, db, source).linked(link);
            self.submit(start.distributed(Some(payload)), Some(lane));
            return;
        }
        let anew = Anew {
            db,
            source,
            link,
            collector: None,
        };
        self.submit_anew(registration, pool, anew, Some(lane), Instant::now());
    }

    /// The same for a load: `collector` gets what its function returns, and it is forgotten when it has ended. `now`: when it was asked
    /// for. Its id.
    pub fn submit_load(
        &self,
        registration: &Arc<Registration>,
        pool: &Arc<Pool>,
        db: i32,
        source: Box<dyn Source>,
        collector: Collector,
        now: Instant,
    ) -> Id {
        let anew = Anew {
            db,
            source,
            link: None,
            collector: Some(collector),
        };
        self.submit_anew(registration, pool, anew, None, now)
    }

    fn submit_anew(
        &self,
        registration: &Arc<Registration>,
        pool: &Arc<Pool>,
        anew: Anew,
        lane: Option<Lane>,
        now: Instant,
    ) -> Id {
        registration.stats.triggered();
        let execution = match pool.take() {
            Some(mut alone) => match Arc::get_mut(&mut alone) {
                Some(execution) => {
                    execution.renew_queued(self.registry.next_execution_id(), anew, now);
                    alone
                }
                None => self.make(registration, anew, now),
            },
            None => self.make(registration, anew, now),
        };
        let id = execution.id;
        registration.stats.queued();
        self.registry.list(&execution, self.most_executions());
        self.queue.push(Job {
            execution,
            lane,
            pool: Some(Arc::clone(pool)),
        });
        id
    }

    #[cold]
    fn make(&self, registration: &Arc<Registration>, anew: Anew, now: Instant) -> Arc<Execution> {
        let Anew {
            db,
            source,
            link,
            collector,
        } = anew;
        let mut start = Start::of_registration(registration, db, source).linked(link);
        if let Some(collector) = collector {
            start = start.transient().collected(collector);
        }
        let execution = self.registry.create_unlisted(start);
        execution.note_queued(now);
        execution
    }

    /// Brings an execution to its end that has ended well, if nobody has looked at it. False if that is not so, or if there is more to
    /// keep than an [`Ended`] has: then nothing has changed.
    pub(super) fn finish_unseen(
        &self,
        execution: &Arc<Execution>,
        status: Status,
        outcome: &mut Outcome,
    ) -> bool {
        let registration = match &execution.registration {
            Some(registration) if status == Status::Done && execution.is_usual() => registration,
            _ => return false,
        };
        let Some(ended) = Ended::take(registration, execution.db, outcome) else {
            return false;
        };
        let limit = self.config.limit(Number::MaxExecutionsPerRegistration);
        match self.registry.keep_unseen(execution, ended, limit) {
            Ok(left) => {
                registration.stats.succeeded(outcome.total);
                drop(left.link);
                true
            }
            Err(ended) => {
                *outcome = ended.into_outcome();
                false
            }
        }
    }

    /// The same for a load: nothing is kept, and its collector is told.
    pub(super) fn finish_load(&self, execution: &Arc<Execution>, status: Status, outcome: &Outcome) -> bool {
        let registration = match &execution.registration {
            Some(registration) if status == Status::Done && execution.is_load() => registration,
            _ => return false,
        };
        if !outcome.errors.is_empty() {
            return false;
        }
        let Some(left) = self.registry.drop_unseen(execution, registration) else {
            return false;
        };
        registration.stats.succeeded(outcome.total);
        if let Some(collector) = left.collector {
            guarded(|| collector.ended());
        }
        drop(left.link);
        true
    }
}
