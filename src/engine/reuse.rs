//! Executions on workers that end before anybody looks at them: all that is kept of one of an event is an `Ended`, of a load nothing,
//! and the execution itself is the next one's of its registration.
//!
//! Begun under the server's lock, ended on workers.

use std::sync::Arc;

use super::{
    Engine, Lane,
    ended::Single,
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
use crate::{clock::Instant, config::Number, mutex::Mutex};

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

    /// Brings an execution to its end, if it has ended well and nobody has looked at it. False if that is not so, or if there is more to
    /// keep than an [`Ended`](super::ended::Ended) has: then nothing has changed.
    pub(super) fn finish_unseen(
        &self,
        execution: &Arc<Execution>,
        status: Status,
        outcome: &mut Outcome,
    ) -> bool {
        let is_usual = status == Status::Done && execution.registration.is_some() && execution.is_usual();
        let Some(run) = is_usual.then(|| Single::take(outcome)).flatten() else {
            return false;
        };
        match self.keep_unseen(execution, run) {
            Ok(()) => true,
            Err(run) => {
                *outcome = run.into_outcome();
                false
            }
        }
    }

    /// The same where it is known what the run has come to.
    pub(super) fn finish_well(&self, execution: &Arc<Execution>, run: Single) {
        let unkept = if execution.is_usual() {
            self.keep_unseen(execution, run)
        } else {
            Err(run)
        };
        if let Err(run) = unkept {
            self.finish_seen(execution, Status::Done, run.into_outcome());
        }
    }

    fn keep_unseen(&self, execution: &Arc<Execution>, run: Single) -> Result<(), Single> {
        let Some(registration) = &execution.registration else {
            return Err(run);
        };
        let (limit, total) = (self.config.limit(Number::MaxExecutionsPerRegistration), run.total);
        let left = self.registry.keep_unseen(execution, registration, run, limit)?;
        registration.stats.succeeded(total);
        drop(left.link);
        Ok(())
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
