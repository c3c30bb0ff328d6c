//! Where the records of an execution come from. Implemented by the readers and by the language.

use std::sync::Arc;

use super::{
    Engine,
    language::Failure,
    record::{Record, Value},
};
use crate::server::rights::Actor;

/// Where the records of one execution come from. Called on the thread that runs it, attached.
pub trait Source: Send {
    /// The next record, `None` at the end.
    ///
    /// # Errors
    /// The text of an error record; there is no next record then.
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure>;

    /// True if `next` has nothing to read or to wait for: what it takes is not measured.
    fn is_at_hand(&self, _reading: &Reading<'_>) -> bool {
        false
    }

    /// A record that was read ahead, so that `next` need not be asked now.
    fn buffered(&mut self) -> Option<Record> {
        None
    }

    /// True if it is known that there is no next record.
    fn is_at_end(&self) -> bool {
        false
    }

    /// True if there is one record at most, and it is no part of what the keyspace holds.
    fn is_single(&self) -> bool {
        false
    }

    /// True if the records are what the keys hold at this time: then they must stay where they are until all are read.
    fn reads_keys(&self) -> bool {
        false
    }
}

/// What a source may need to know.
pub struct Reading<'a> {
    pub engine: &'a Engine,
    /// The execution had to wait for an earlier one of its lane: what the event said may be out of date.
    pub delayed: bool,
    /// Whose rights the execution has; `None` for all.
    pub actor: Option<&'a Arc<Actor>>,
}

/// A record that the execution may not have: it ends with that.
pub struct Withheld(pub Option<Failure>);

impl Source for Withheld {
    fn next(&mut self, _reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        self.0.take().map_or(Ok(None), Err)
    }
}

/// One record, given before.
pub struct Once(pub Option<Record>);

impl Once {
    /// The words of a command, its name first, as one record.
    pub fn of_words<'a>(words: impl Iterator<Item = &'a [u8]>) -> Self {
        let words = words.map(|word| Value::Text(word.to_vec())).collect();
        Self(Some(Record::Native(Value::List(words))))
    }
}

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

    fn is_single(&self) -> bool {
        true
    }
}
