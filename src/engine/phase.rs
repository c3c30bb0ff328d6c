//! How far an execution has come on this shard: `created -> running -> done | aborted`, and where a running one is while it
//! waits. Data and their rules; [`Execution`](super::execution::Execution) keeps it under its mutex. Contract:
//! docs/contract/commands.md chapter 3.

use std::{sync::Arc, time::Duration};

use super::{execution::Outcome, pipeline::PipelineState, source::Source};

/// The states of an execution as clients see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Created,
    Running,
    Done,
    Aborted,
}

impl Status {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Done => "done",
            Self::Aborted => "aborted",
        }
    }

    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }
}

/// A run that waits: where it goes on.
#[derive(Default)]
pub struct Parked {
    pub(super) source: Option<Box<dyn Source>>,
    pub(super) state: PipelineState,
    /// How often data had been loaded when it began, see [`Engine::loads`](super::Engine::loads).
    pub(super) loads: u64,
    /// How long it has run so far, and how much of that it read.
    pub(super) total: Duration,
    pub(super) reading: Duration,
}

/// What an execution is doing.
pub(super) enum Phase {
    Created(Box<dyn Source>),
    /// A thread is at it.
    Running,
    /// No thread is at it: it waits for something.
    Parked(Box<Parked>),
    /// Something has come: a job that goes on with it stands in the queue.
    Resuming(Box<Parked>),
    /// With an outcome if anybody can ask for it.
    Ended(Status, Option<Arc<Outcome>>),
}

impl Phase {
    pub fn status(&self) -> Status {
        match self {
            Self::Created(_) => Status::Created,
            Self::Running | Self::Parked(_) | Self::Resuming(_) => Status::Running,
            Self::Ended(status, _) => *status,
        }
    }

    pub fn outcome(&self) -> Option<&Arc<Outcome>> {
        match self {
            Self::Ended(_, outcome) => outcome.as_ref(),
            _ => None,
        }
    }

    /// A thread begins it: the source of its records. `None` if it has begun before.
    pub fn begin(&mut self) -> Option<Box<dyn Source>> {
        match std::mem::replace(self, Self::Running) {
            Self::Created(source) => Some(source),
            other => {
                *self = other;
                None
            }
        }
    }

    /// The thread leaves it until something comes.
    ///
    /// # Errors
    /// It has ended meanwhile.
    pub fn park(&mut self, parked: Box<Parked>) -> Result<(), Box<Parked>> {
        if self.status().is_final() {
            return Err(parked);
        }
        *self = Self::Parked(parked);
        Ok(())
    }

    /// Something has come. True if a thread is to go on with it.
    pub fn wake(&mut self) -> bool {
        match std::mem::replace(self, Self::Running) {
            Self::Parked(parked) => {
                *self = Self::Resuming(parked);
                true
            }
            other => {
                *self = other;
                false
            }
        }
    }

    /// A thread goes on with it, or ends it. `None` if it does not wait.
    pub fn unpark(&mut self) -> Option<Box<Parked>> {
        match std::mem::replace(self, Self::Running) {
            Self::Parked(parked) | Self::Resuming(parked) => Some(parked),
            other => {
                *self = other;
                None
            }
        }
    }

    /// It ends: what it was doing, to be dropped behind all locks. `None` if it has ended before.
    pub fn end(&mut self, status: Status, outcome: Option<&Arc<Outcome>>) -> Option<Self> {
        (!self.status().is_final()).then(|| std::mem::replace(self, Self::Ended(status, outcome.cloned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::source::Once;

    fn created() -> Phase {
        Phase::Created(Box::new(Once(None)))
    }

    #[test]
    fn it_begins_once_and_ends_once() {
        let mut phase = created();
        assert_eq!(phase.status(), Status::Created);
        assert!(phase.begin().is_some() && phase.begin().is_none());
        assert_eq!(phase.status(), Status::Running);
        let outcome = Arc::new(Outcome::default());
        assert!(phase.end(Status::Done, Some(&outcome)).is_some());
        assert!(phase.end(Status::Aborted, None).is_none());
        assert_eq!((phase.status(), phase.outcome().is_some()), (Status::Done, true));
        assert!(phase.park(Box::default()).is_err() && phase.unpark().is_none() && phase.begin().is_none());
    }

    #[test]
    fn what_waits_is_woken_once() {
        let mut phase = created();
        assert!(!phase.wake(), "nobody is to go on with what has not begun");
        phase.begin();
        assert!(!phase.wake() && phase.unpark().is_none(), "a thread is at it");
        assert!(phase.park(Box::default()).is_ok());
        assert!(phase.wake() && !phase.wake());
        assert_eq!(phase.status(), Status::Running);
        assert!(phase.unpark().is_some() && phase.unpark().is_none());
        assert!(phase.park(Box::default()).is_ok() && phase.wake());
    }

    #[test]
    fn what_is_aborted_before_it_begins_runs_never() {
        let mut phase = created();
        assert!(matches!(
            phase.end(Status::Aborted, None),
            Some(Phase::Created(_))
        ));
        assert!(phase.begin().is_none() && phase.outcome().is_none());
    }
}
