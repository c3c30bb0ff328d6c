//! The event side of a registration as bytes: what is saved of a trigger, and the trigger made of it again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    command::Commands,
    keys::{Conditions, KeysWatch},
    streams::{Options as StreamOptions, StreamWatch},
};
use crate::{
    engine::registration::{Mode, Trigger},
    read_through::{ReadThrough, options::Options},
    write_behind::{self, WriteBehind},
};

/// What the readers need to know to make a trigger. Fields may be added with a default, never taken away: older files
/// hold them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Image {
    Keys(Conditions),
    Stream {
        options: StreamOptions,
        /// Which of the consumer groups is its own.
        place: usize,
    },
    Trigger {
        name: String,
        in_order: bool,
    },
    Hook {
        command: String,
        prefix: Option<String>,
        mode: Mode,
        in_order: bool,
    },
    ReadThrough(Options),
    WriteBehind(write_behind::options::Options),
}

impl Image {
    pub fn to_bytes(&self) -> Vec<u8> {
        // Plain data: nothing in it can fail to be written to memory.
        rmp_serde::to_vec_named(self).unwrap_or_default()
    }
}

/// The event sides of all readers.
pub struct Readers {
    pub keys: Arc<KeysWatch>,
    pub commands: Arc<Commands>,
    pub streams: Arc<StreamWatch>,
    pub loads: Arc<ReadThrough>,
    pub behind: Arc<WriteBehind>,
}

impl Readers {
    /// Makes a trigger of [`Trigger::image`].
    ///
    /// # Errors
    /// The bytes are none.
    pub fn trigger(&self, image: &[u8]) -> Result<Box<dyn Trigger>, String> {
        let image: Image = rmp_serde::from_slice(image).map_err(|error| format!("its trigger: {error}"))?;
        Ok(match image {
            Image::Keys(conditions) => self.keys.trigger(conditions),
            Image::Stream { options, place } => self.streams.trigger(options, Some(place)),
            Image::Trigger { name, in_order } => self.commands.trigger(name, in_order),
            Image::Hook {
                command,
                prefix,
                mode,
                in_order,
            } => self.commands.hook(command, prefix, mode, in_order),
            Image::ReadThrough(options) => self.loads.trigger(options),
            Image::WriteBehind(options) => self.behind.trigger(options),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{read_through::options::Ttl, readers::streams::Policy, server::key::Kind};

    #[test]
    fn triggers_survive_as_bytes() {
        let images = [
            Image::Keys(Conditions {
                prefix: "a*".into(),
                events: Some(vec!["set".into()]),
                kinds: Some(vec![Kind::Stream, Kind::Empty]),
                commands: None,
                read_value: true,
                coalesce: false,
            }),
            Image::Stream {
                options: StreamOptions {
                    prefix: "s".into(),
                    batch: 3,
                    duration_ms: 10,
                    policy: Policy::Retry,
                    retry_s: 7,
                    trim: false,
                },
                place: 2,
            },
            Image::ReadThrough(Options {
                ttl: Ttl::Seconds(1.5),
                breaker: Some((3, 0.5)),
                commands: Some(vec!["get".into()]),
                ..Options::default()
            }),
            Image::WriteBehind(write_behind::options::Options {
                events: Some(vec!["set".into()]),
                max_tries: Some(3),
                dead_letter: Some("dead".into()),
                ..Default::default()
            }),
            Image::Hook {
                command: "HSET".into(),
                prefix: Some("p*".into()),
                mode: Mode::AsyncLocal,
                in_order: true,
            },
        ];
        for image in images {
            let read: Result<Image, _> = rmp_serde::from_slice(&image.to_bytes());
            assert!(read.is_ok_and(|read| read == image), "{image:?}");
        }
    }
}
