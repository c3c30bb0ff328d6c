//! The PythonReader: a user's generator gives the records. Contract: `readers-and-events.md` chapter 4.
//!
//! Runs on a worker, without the server's lock.

use std::sync::Arc;

use crate::engine::{
    execution::{Reading, Source},
    language::{Failure, Function},
    record::Record,
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

/// One record, given before.
pub struct Once(pub Option<Record>);

impl Source for Once {
    fn next(&mut self, _reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        Ok(self.0.take())
    }

    fn buffered(&mut self) -> Option<Record> {
        self.0.take()
    }

    fn is_at_end(&self) -> bool {
        self.0.is_none()
    }
}
