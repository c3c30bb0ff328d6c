//! The shards of a cluster as data: who they are, and which of them owns a key. Contract:
//! docs/contract/python-api.md chapter 9.

use std::{collections::BTreeMap, sync::OnceLock};

use serde::{Deserialize, Serialize};

use super::id::ShardId;
pub use crate::server::slots::{SLOTS, slot_of};

/// Nobody owns the slot.
const NOBODY: u16 = u16::MAX;

/// The first text, by length and then by digits, small and capital letters, whose hash slot is `slot`. Users store keys
/// under it, so it never changes.
pub fn tag_of(slot: u16) -> &'static str {
    static TAGS: OnceLock<Vec<String>> = OnceLock::new();
    let tags = TAGS.get_or_init(|| {
        const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let mut tags = vec![String::new(); usize::from(SLOTS)];
        let mut words = vec![Vec::new()];
        // Three letters reach every slot.
        for _ in 0..3 {
            words = words
                .iter()
                .flat_map(|word| LETTERS.iter().map(move |&letter| [word, &[letter][..]].concat()))
                .collect();
            for word in &words {
                let tag = &mut tags[usize::from(slot_of(word))];
                if tag.is_empty() {
                    *tag = String::from_utf8_lossy(word).into_owned();
                }
            }
        }
        tags
    });
    &tags[usize::from(slot % SLOTS)]
}

/// The slots from the first one to the last one.
pub type Slots = (u16, u16);

/// The masters with their slots, as one of them sees it. All shards of one run go by the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(ShardId, Vec<Slots>)>", into = "Vec<(ShardId, Vec<Slots>)>")]
pub struct Members {
    shards: Vec<(ShardId, Vec<Slots>)>,
    /// For each slot the place of its owner in the list.
    owners: Vec<u16>,
}

impl From<Vec<(ShardId, Vec<Slots>)>> for Members {
    fn from(shards: Vec<(ShardId, Vec<Slots>)>) -> Self {
        let mut owners = vec![NOBODY; usize::from(SLOTS)];
        for (place, (_, ranges)) in shards.iter().enumerate() {
            for &(first, last) in ranges {
                for owner in owners
                    .iter_mut()
                    .take(usize::from(last) + 1)
                    .skip(usize::from(first))
                {
                    *owner = place as u16;
                }
            }
        }
        Self { shards, owners }
    }
}

impl From<Members> for Vec<(ShardId, Vec<Slots>)> {
    fn from(members: Members) -> Self {
        members.shards
    }
}

impl Members {
    /// Of the slots that each shard owns; the shards are in the order of their ids.
    pub fn new(slots: impl IntoIterator<Item = (ShardId, Slots)>) -> Self {
        let mut shards: BTreeMap<ShardId, Vec<Slots>> = BTreeMap::new();
        for (shard, range) in slots {
            shards.entry(shard).or_default().push(range);
        }
        Self::from(shards.into_iter().collect::<Vec<_>>())
    }

    /// One shard, which has all slots.
    pub fn alone(shard: ShardId) -> Self {
        Self::new([(shard, (0, SLOTS - 1))])
    }

    /// A slot that nobody owns.
    pub fn uncovered(&self) -> Option<u16> {
        let place = self.owners.iter().position(|&owner| owner == NOBODY)?;
        u16::try_from(place).ok()
    }

    pub fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.shards.iter().map(|(shard, _)| *shard)
    }

    pub fn contains(&self, shard: ShardId) -> bool {
        self.shards().any(|member| member == shard)
    }

    /// All but one.
    pub fn others(&self, me: ShardId) -> impl Iterator<Item = ShardId> {
        self.shards().filter(move |&shard| shard != me)
    }

    /// The shard that owns a key; the first one for a slot that nobody owns.
    pub fn owner(&self, key: &[u8]) -> Option<ShardId> {
        let place = usize::from(self.owners[usize::from(slot_of(key))]);
        let owner = self.shards.get(place).or_else(|| self.shards.first());
        owner.map(|(shard, _)| *shard)
    }

    /// The first range of slots of a shard.
    pub fn first_slots(&self, shard: ShardId) -> Option<Slots> {
        let (_, ranges) = self.shards.iter().find(|(member, _)| *member == shard)?;
        ranges.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(digit: char) -> ShardId {
        ShardId::parse(digit.to_string().repeat(40).as_bytes()).unwrap_or(ShardId::STANDALONE)
    }

    #[test]
    fn tags_belong_to_their_slots() {
        assert_eq!(["06S", "Qi", "5L5"], [tag_of(0), tag_of(1), tag_of(2)]);
        assert_eq!(["8M", "63n"], [tag_of(5461), tag_of(10923)]);
        assert!((0..SLOTS).all(|slot| slot_of(tag_of(slot).as_bytes()) == slot));
    }

    #[test]
    fn keys_have_owners() {
        let members = Members::new([
            (shard('b'), (8192, 12181)),
            (shard('a'), (0, 8191)),
            (shard('a'), (12182, 12182)),
        ]);
        assert_eq!(members.owner(b"foo"), Some(shard('a')));
        assert_eq!(
            members.owner(b"6"),
            Some(shard('a')),
            "slot 16095, which nobody owns"
        );
        assert_eq!(members.owner(b"hello"), Some(shard('a')));
        assert_eq!(members.first_slots(shard('b')), Some((8192, 12181)));
        assert_eq!(members.others(shard('a')).collect::<Vec<_>>(), [shard('b')]);
        let copy = Members::from(Vec::from(members.clone()));
        assert_eq!(copy, members);
        assert_eq!(members.uncovered(), Some(12183));
        assert_eq!(Members::alone(shard('a')).uncovered(), None);
    }
}
