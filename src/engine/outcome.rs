//! What an execution has when it is finished, and who gets it in another form.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    language::{Failure, LateText, Shown},
    phase::Status,
    record::Record,
};
use crate::{server::reply::Reply, stats::Ending};

/// What an execution has when it is finished.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub results: Vec<Reply>,
    /// The only result, in the place of `results`; only where nobody who looks at it waited.
    pub late: Option<Late>,
    pub errors: Vec<Failure>,
    pub total: Duration,
    pub reading: Duration,
    /// One for each step; empty if it never ran.
    pub steps: Vec<Duration>,
    pub aborted: bool,
}

/// A result whose text is not made yet.
#[derive(Clone)]
pub struct Late(pub(super) Arc<dyn LateText>);

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Late")
    }
}

impl Outcome {
    /// How many results there are.
    pub fn count(&self) -> usize {
        self.results.len() + usize::from(self.late.is_some())
    }

    /// `[results, errors]`.
    pub fn to_reply(&self) -> Reply {
        let late = self.late.iter().map(|late| Reply::Bulk(late.0.text()));
        Reply::Array(vec![
            Reply::Array(self.results.iter().cloned().chain(late).collect()),
            Reply::bulks(&self.errors),
        ])
    }

    /// The outcome of one that has ended well, with one result.
    pub(super) fn of_result(result: Shown, total: Duration) -> Self {
        let mut outcome = Self {
            total,
            ..Self::default()
        };
        match result {
            Shown::Late(text) => outcome.late = Some(Late(text)),
            Shown::Now(reply) => outcome.results.push(reply),
        }
        outcome
    }

    /// The outcome of one that could not run.
    pub fn of_error(text: impl Into<Failure>) -> Self {
        Self {
            errors: vec![text.into()],
            ..Self::default()
        }
    }

    /// How the counters see it.
    pub(super) fn ending(&self, status: Status) -> Ending {
        match (self.errors.first(), status) {
            (Some(error), _) => Ending::Failure(error.to_string()),
            (None, Status::Aborted) => Ending::Aborted,
            (None, _) => Ending::Success,
        }
    }
}

/// Who gets the results as the objects that they are, in the place of those who look at the outcome.
pub trait Collects: Send + Sync {
    /// Takes the results, and gives what is wrong with them, which the execution then ended with. Called once, attached, on the thread
    /// that finished the execution.
    fn collect(&self, results: &mut dyn Iterator<Item = Record>, errors: &[Failure]) -> Vec<Failure>;

    /// The execution is counted and kept, behind [`Collects::collect`]; as a [`Waiter`].
    fn ended(&self) {}
}

/// Who need not hear more.
impl<F: Fn(Vec<Record>, &[Failure]) -> Vec<Failure> + Send + Sync> Collects for F {
    fn collect(&self, results: &mut dyn Iterator<Item = Record>, errors: &[Failure]) -> Vec<Failure> {
        self(results.collect(), errors)
    }
}

/// See [`Collects`]. It holds no object that nothing else holds once it has collected.
pub type Collector = Arc<dyn Collects>;
