//! The KeysOnlyReader: names of keys. Contract: docs/contract/readers-and-events.md chapter 3.
//!
//! A pattern, or a user function that tells it on each shard; then the walk of [`KeysScan`].

use std::sync::Arc;

use super::keys_scan::{Content, KeysScan, Scan};
use crate::engine::{
    language::{Failure, Function},
    record::{Record, Value},
    source::{Reading, Source},
};

/// SCAN's errors for a count that is none.
const NO_NUMBER: &str =
    "Error type: <class 'gears.error'>, Value: ERR value is not an integer or out of range";
const NO_COUNT: &str = "Error type: <class 'gears.error'>, Value: ERR syntax error";
const NO_PATTERN: &str = "Error type: <class 'gears.error'>, Value: patternGenerator must return a tuple of the pattern and noScan";

/// What `run` was asked for.
pub struct Names {
    pub pattern: Vec<u8>,
    /// The pattern is the name of a key.
    pub exact: bool,
    /// How many names are read at once, as text.
    pub count: String,
    /// Called on each shard; returns pattern and `exact`.
    pub generator: Option<Arc<dyn Function>>,
    /// Some step looks at the names.
    pub looked_at: bool,
}

/// Begins the walk when the first name is asked for.
pub enum KeysOnly {
    Waiting(Names),
    Walking(Box<KeysScan>),
    Ended,
}

impl Names {
    fn begin(self) -> Result<KeysScan, Failure> {
        let count: i64 = self.count.trim().parse().map_err(|_| NO_NUMBER)?;
        let ahead = usize::try_from(count)
            .ok()
            .filter(|&count| count > 0)
            .ok_or(NO_COUNT)?;
        let (pattern, exact) = match &self.generator {
            Some(generator) => choice(generator.produce()?)?,
            None => (self.pattern, self.exact),
        };
        let content = if self.looked_at || exact {
            Content::Name
        } else {
            Content::Unseen
        };
        Ok(KeysScan::new(Scan {
            pattern,
            exact,
            content,
            ahead: Some(ahead),
        }))
    }
}

/// `(pattern, noScan)`.
fn choice(value: Value) -> Result<(Vec<u8>, bool), Failure> {
    if let Value::List(items) = value {
        if let [pattern, exact] = items.as_slice() {
            let exact = match exact {
                Value::Int(number) => *number != 0,
                Value::Text(text) => !text.is_empty() && text != b"None",
                _ => false,
            };
            match pattern {
                Value::Text(text) => return Ok((text.clone(), exact)),
                Value::Int(number) => return Ok((number.to_string().into_bytes(), exact)),
                _ => {}
            }
        }
    }
    Err(NO_PATTERN.into())
}

impl Source for KeysOnly {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        if matches!(self, Self::Waiting(_)) {
            if let Self::Waiting(names) = std::mem::replace(self, Self::Ended) {
                *self = Self::Walking(Box::new(names.begin()?));
            }
        }
        match self {
            Self::Walking(walk) => walk.next(reading),
            _ => Ok(None),
        }
    }

    fn buffered(&mut self) -> Option<Record> {
        match self {
            Self::Walking(walk) => walk.buffered(),
            _ => None,
        }
    }

    fn reads_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    #[test]
    fn a_generator_returns_a_pattern_and_a_flag() {
        let pair = |pattern, exact| choice(Value::List(vec![pattern, exact]));
        assert_eq!(pair(text("a*"), Value::Int(0)), Ok((b"a*".to_vec(), false)));
        assert_eq!(pair(Value::Int(7), Value::Int(1)), Ok((b"7".to_vec(), true)));
        assert_eq!(choice(text("a*")), Err(NO_PATTERN.into()));
    }

    #[test]
    fn a_bad_count_is_an_error_of_the_execution() {
        let names = |count: &str| Names {
            pattern: b"*".to_vec(),
            exact: false,
            count: count.into(),
            generator: None,
            looked_at: true,
        };
        assert_eq!(names("many").begin().err(), Some(NO_NUMBER.into()));
        assert_eq!(names("0").begin().err(), Some(NO_COUNT.into()));
        assert!(names("10").begin().is_ok());
    }
}
