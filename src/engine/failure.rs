//! Why a function, a step or a whole run failed: the text of the error record (docs/contract/commands.md 0.5), and what it asks
//! for. Made at the border to the language and to other shards, where there is only a text.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// How the text begins by which a function pauses its registration.
const PAUSE: &str = "PAUSE";

/// A failure. Between shards it is its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Failure {
    Plain(String),
    /// A function pauses its registration: nothing more is read then, also where other failures are skipped.
    Pause(String),
}

impl Failure {
    pub fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Pause(text) => text,
        }
    }

    /// True if it pauses the registration.
    pub fn pauses(&self) -> bool {
        matches!(self, Self::Pause(_))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        if text.starts_with(PAUSE) {
            Self::Pause(text)
        } else {
            Self::Plain(text)
        }
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// An error of ours asks for nothing.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Plain(error.to_string())
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Plain(text) | Failure::Pause(text) => text,
        }
    }
}

impl AsRef<[u8]> for Failure {
    fn as_ref(&self) -> &[u8] {
        self.text().as_bytes()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_pauses_by_its_beginning() {
        assert!(Failure::from("PAUSE: enough").pauses() && Failure::from("PAUSED".to_owned()).pauses());
        assert!(!Failure::from("no PAUSE").pauses());
        assert_eq!(Failure::from("PAUSE now").to_string(), "PAUSE now");
    }

    #[test]
    fn it_travels_as_its_text() {
        for text in ["PAUSE", "plain"] {
            let bytes = rmp_serde::to_vec(&Failure::from(text)).unwrap_or_default();
            assert_eq!(bytes, rmp_serde::to_vec(text).unwrap_or_default());
            assert_eq!(rmp_serde::from_slice::<Failure>(&bytes).ok(), Some(text.into()));
        }
    }
}
