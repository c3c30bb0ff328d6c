//! What is kept of a run that nobody looked at before it had ended well: what it takes to make the execution of it when somebody asks,
//! which hardly anybody does. Filed by the registry, under its mutex.

use std::{sync::Arc, time::Duration};

use super::{
    execution::{Execution, Outcome},
    id::Id,
    language::Shown,
    registration::Registration,
    session::Session,
    source::Once,
    start::Start,
};

/// What a run of one record has come to that has ended well.
pub(super) struct Single {
    /// Its only result.
    pub result: Shown,
    pub total: Duration,
    pub reading: Duration,
}

impl Single {
    /// Takes the result out of what a run has come to. `None` if that is not one result, and no more.
    pub fn take(outcome: &mut Outcome) -> Option<Self> {
        if outcome.count() != 1 || !outcome.errors.is_empty() || !outcome.steps.is_empty() {
            return None;
        }
        let late = outcome.late.take().map(|late| Shown::Late(late.0));
        Some(Self {
            result: late.or_else(|| outcome.results.pop().map(Shown::Now))?,
            total: outcome.total,
            reading: outcome.reading,
        })
    }

    pub fn into_outcome(self) -> Outcome {
        Outcome {
            reading: self.reading,
            ..Outcome::of_result(self.result, self.total)
        }
    }
}

/// One run of one record that has ended well.
pub(super) struct Ended {
    pub registration: Arc<Registration>,
    pub db: i32,
    pub run: Single,
}

impl Ended {
    /// The execution as it would be if it had been one from the beginning.
    fn execution(&self, id: Id) -> Arc<Execution> {
        let start = Start::of_registration(&self.registration, self.db, Box::new(Once(None)));
        let run = Single {
            result: self.run.result.clone(),
            ..self.run
        };
        Arc::new(Execution::ended(id, start, run.into_outcome()))
    }
}

/// What the registry has of an execution.
pub(super) enum Known {
    Whole(Arc<Execution>),
    /// Nobody has asked for it yet.
    Ended(Ended),
}

impl Known {
    /// The execution; from now on there is one. Nothing that ends here is the last of its kind.
    pub fn execution(&mut self, id: Id) -> Arc<Execution> {
        let execution = match self {
            Self::Whole(execution) => return Arc::clone(execution),
            Self::Ended(ended) => ended.execution(id),
        };
        *self = Self::Whole(Arc::clone(&execution));
        execution
    }

    pub fn session(&self) -> &Arc<Session> {
        match self {
            Self::Whole(execution) => &execution.session,
            Self::Ended(ended) => &ended.registration.session,
        }
    }

    /// The registration that it is a run of, here.
    pub fn registration(&self) -> Option<&Arc<Registration>> {
        match self {
            Self::Whole(execution) => execution.registration.as_ref(),
            Self::Ended(ended) => Some(&ended.registration),
        }
    }

    /// The same for what may be a part of a run on another shard.
    pub fn owner(&self) -> Option<&Arc<Registration>> {
        match self {
            Self::Whole(execution) => execution.owner(),
            Self::Ended(ended) => Some(&ended.registration),
        }
    }
}
