//! Executions of events on workers that end before anybody looks at them: all that is kept of one is an [`Ended`], and the execution
//! itself is the next one's of its registration.
//!
//! Begun under the server's lock, ended on workers.

use std::{sync::Arc, time::Instant};

use super::{
    Engine, Lane,
    ended::Ended,
    execution::{Execution, Outcome},
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

/// Executions of a registration that have ended and that nobody has a reference to.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Arc<Execution>>>);

impl Pool {
    fn take(&self, renew: impl FnOnce(&mut Execution)) -> Option<Arc<Execution>> {
        let mut execution = self.0.lock().pop()?;
        renew(Arc::get_mut(&mut execution)?);
        Some(execution)
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
        registration.stats.triggered();
        let mut begins = Some((source, link));
        let renewed = pool.take(|execution| {
            if let Some((source, link)) = begins.take() {
                let id = self.registry.next_execution_id();
                execution.renew_queued(id, db, link, source, Instant::now());
            }
        });
        let execution = match (renewed, begins) {
            (Some(execution), None) => execution,
            (_, Some((source, link))) => {
                let start = Start::of_registration(registration, db, source).linked(link);
                let execution = self.registry.create_unlisted(start);
                execution.note_queued(Instant::now());
                execution
            }
            (None, None) => return,
        };
        registration.stats.queued();
        self.registry.list(&execution, self.most_executions());
        self.queue.push(Job {
            execution,
            lane: Some(lane),
            pool: Some(Arc::clone(pool)),
        });
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
            Ok(link) => {
                registration.stats.succeeded(outcome.total);
                drop(link);
                true
            }
            Err(ended) => {
                *outcome = ended.into_outcome();
                false
            }
        }
    }
}
