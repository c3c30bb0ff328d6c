//! The PythonReader: a user's generator gives the records. Contract: docs/contract/readers-and-events.md chapter 4.
//!
//! Runs on a worker, without the server's lock.

use std::sync::Arc;

use crate::engine::{
    language::{Failure, Function},
    record::Record,
    source::{Reading, Source},
};

/// Calls the function when the first record is asked for.
pub enum Generator {
    Waiting(Arc<dyn Function>),
    Running(Box<dyn Source>),
    Ended,
}

impl Source for Generator {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        if let Self::Waiting(function) = self {
            let started = function.generate();
            *self = Self::Ended;
            *self = Self::Running(started?);
        }
        match self {
            Self::Running(records) => records.next(reading),
            _ => Ok(None),
        }
    }
}
