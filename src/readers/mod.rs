//! The readers: where records come from. Each has a batch side (`run`), an event side (`register`), or both.

pub mod command;
pub mod generator;
pub mod glob;
pub mod image;
pub mod keys;
mod keys_event;
pub mod keys_only;
pub mod keys_scan;
mod reachability;
pub mod source;
pub mod streams;
pub mod time_events;

/// The readers by their names in scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Keys,
    KeysOnly,
    Stream,
    Python,
    ShardsId,
    Command,
}

impl Reader {
    const NAMES: [(&'static str, Self); 6] = [
        ("KeysReader", Self::Keys),
        ("KeysOnlyReader", Self::KeysOnly),
        ("StreamReader", Self::Stream),
        ("PythonReader", Self::Python),
        ("ShardsIDReader", Self::ShardsId),
        ("CommandReader", Self::Command),
    ];

    /// Names are case-sensitive.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, reader)| reader)
    }
}
