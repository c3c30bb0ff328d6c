//! The batch side of a reader as bytes: what a shard needs to read its own records for a run of another shard. Contract:
//! docs/contract/python-api.md chapter 9, "Readers".

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{
    generator::Generator,
    keys_only::{KeysOnly, Names},
    keys_scan::{Content, KeysScan, Scan},
    streams::entries::StreamEntries,
};
use crate::engine::{
    id::ShardId,
    language::{Failure, Function},
    record::Record,
    source::{Once, Source},
};

/// What a source of records is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceImage {
    Keys {
        pattern: ByteBuf,
        exact: bool,
        content: Content,
    },
    Names {
        pattern: ByteBuf,
        exact: bool,
        count: String,
        generator: Option<ByteBuf>,
        looked_at: bool,
    },
    Stream {
        key: ByteBuf,
        after: ByteBuf,
    },
    Generator(ByteBuf),
    /// The id of the shard that reads.
    ShardId,
    /// The words of a command.
    Words(Vec<ByteBuf>),
}

/// Makes a function of its image.
pub type Load<'a> = &'a dyn Fn(&[u8]) -> Result<Arc<dyn Function>, Failure>;

impl SourceImage {
    /// The words of a command, for a trigger that runs on all shards.
    pub fn of_words<'a>(words: impl Iterator<Item = &'a [u8]>) -> Self {
        Self::Words(words.map(|word| ByteBuf::from(word.to_vec())).collect())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        // Plain data: nothing in it can fail to be written to memory.
        rmp_serde::to_vec_named(self).unwrap_or_default()
    }

    /// # Errors
    /// The bytes are none.
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, String> {
        rmp_serde::from_slice(bytes).map_err(|error| format!("its reader: {error}"))
    }

    /// The records on shard `me`.
    ///
    /// # Errors
    /// A function of the user's cannot be loaded.
    pub fn open(self, me: ShardId, load: Load<'_>) -> Result<Box<dyn Source>, Failure> {
        Ok(match self {
            Self::Keys {
                pattern,
                exact,
                content,
            } => Box::new(KeysScan::new(Scan {
                pattern: pattern.into_vec(),
                exact,
                content,
                ahead: None,
            })),
            Self::Names {
                pattern,
                exact,
                count,
                generator,
                looked_at,
            } => Box::new(KeysOnly::Waiting(Names {
                pattern: pattern.into_vec(),
                exact,
                count,
                generator: generator.map(|image| load(&image)).transpose()?,
                looked_at,
            })),
            Self::Stream { key, after } => Box::new(StreamEntries::new(key.into_vec(), after.into_vec())),
            Self::Generator(image) => Box::new(Generator::Waiting(load(&image)?)),
            Self::ShardId => Box::new(Once(Some(Record::text(me.to_string())))),
            Self::Words(words) => Box::new(Once::of_words(words.iter().map(|word| &word[..]))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_survive_as_bytes() {
        let image = SourceImage::Names {
            pattern: ByteBuf::from(vec![0xff, b'*']),
            exact: false,
            count: "10".into(),
            generator: Some(ByteBuf::from(vec![1, 2])),
            looked_at: true,
        };
        assert_eq!(SourceImage::of_bytes(&image.to_bytes()), Ok(image));
        assert!(SourceImage::of_bytes(b"x").is_err());
    }
}
