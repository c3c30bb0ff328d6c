//! Identifiers: of shards, and of executions and registrations (`<shard id>-<sequence>`). Contract:
//! docs/contract/commands.md chapter 2.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
};

use serde::{Deserialize, Serialize};

/// How the ShardsIDReader calls this shard while it is in no cluster.
pub const STANDALONE_SHARD: &str = "1";

/// The id of a shard: forty hexadecimal digits, all of them `0` while a server is in no cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShardId([u8; 20]);

impl ShardId {
    pub const STANDALONE: Self = Self([0; 20]);
    const DIGITS: usize = 40;

    /// Reads forty lower-case hexadecimal digits, nothing else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        if text.len() != Self::DIGITS {
            return None;
        }
        let mut bytes = [0; 20];
        for (byte, digits) in bytes.iter_mut().zip(text.chunks(2)) {
            *byte = value(digits[0])? << 4 | value(digits[1])?;
        }
        Some(Self(bytes))
    }

    /// The same for ids that may be shorter, as Redis Enterprise sends them: zeros are put in front.
    pub fn parse_short(text: &[u8]) -> Option<Self> {
        let missing = Self::DIGITS.checked_sub(text.len())?;
        let mut padded = vec![b'0'; missing];
        padded.extend(text.to_ascii_lowercase());
        Self::parse(&padded)
    }

    pub fn is_standalone(self) -> bool {
        self == Self::STANDALONE
    }

    /// The bytes as numbers of the same order.
    fn words(self) -> (u64, u64, u64) {
        // A number behind the last byte is nothing but zeros.
        let mut padded = [0; 24];
        padded[..20].copy_from_slice(&self.0);
        let ([first, second, third], _) = padded.as_chunks::<8>() else {
            return (0, 0, 0);
        };
        (
            u64::from_be_bytes(*first),
            u64::from_be_bytes(*second),
            u64::from_be_bytes(*third),
        )
    }
}

/// As the bytes are ordered. Tables look ids up by it: nearly always it is the same shard, and comparing numbers takes a third of what
/// the bytes do.
impl Ord for ShardId {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        if self == other {
            return Ordering::Equal;
        }
        self.words().cmp(&other.words())
    }
}

impl PartialOrd for ShardId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; Self::DIGITS];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

/// The id of an execution or a registration. The order is that of the numbers: whoever sees a number from elsewhere
/// goes on above it, so this is nearly the order of creation, on all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub number: u64,
    /// Where it was made.
    pub shard: ShardId,
}

/// Few shards give the same number.
impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.number);
    }
}

impl Id {
    /// Reads an id as a client sends it. Strict: nothing before, nothing after, no sign, no leading zero.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (shard, sequence) = text.split_at_checked(ShardId::DIGITS)?;
        let shard = ShardId::parse(shard)?;
        let sequence = sequence.strip_prefix(b"-")?;
        let canonical = match sequence {
            [b'0'] => true,
            [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
            _ => false,
        };
        let sequence = canonical.then(|| std::str::from_utf8(sequence).ok()).flatten()?;
        Some(Self {
            number: sequence.parse().ok()?,
            shard,
        })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.shard, self.number)
    }
}

/// A table by id, in their order, of the few things that there is one of for a registration: who has one or two looks at a list.
pub struct ById<T>(Vec<(Id, T)>);

impl<T> Default for ById<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> ById<T> {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn place(&self, id: Id) -> Result<usize, usize> {
        match self.0.first() {
            // Nearly always the only one.
            Some((first, _)) if *first == id => Ok(0),
            _ => self.search(id),
        }
    }

    #[inline(never)]
    fn search(&self, id: Id) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(&id))
    }

    #[inline]
    pub fn get(&self, id: Id) -> Option<&T> {
        self.place(id).ok().map(|place| &self.0[place].1)
    }

    #[inline]
    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.place(id).ok().map(|place| &mut self.0[place].1)
    }

    /// The value that was there before, if any.
    pub fn insert(&mut self, id: Id, value: T) -> Option<T> {
        match self.place(id) {
            Ok(place) => Some(std::mem::replace(&mut self.0[place].1, value)),
            Err(place) => {
                self.0.insert(place, (id, value));
                None
            }
        }
    }

    pub fn remove(&mut self, id: Id) -> Option<T> {
        self.place(id).ok().map(|place| self.0.remove(place).1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.0.iter().map(|(id, value)| (*id, value))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Id, &mut T)> {
        self.0.iter_mut().map(|(id, value)| (*id, value))
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }
}

/// As text, as clients see it.
impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(text.as_bytes()).ok_or_else(|| serde::de::Error::custom("no id"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    /// One id, one text.
    #[test]
    fn fuzz_ids() {
        let shard = "0123456789abcdef".repeat(2) + "01234567";
        let seeds = [
            format!("{shard}-10"),
            format!("{shard}-18446744073709551615"),
            "7Fa".into(),
        ];
        fuzz("id", &seeds.map(String::into_bytes), |input| {
            let _ = ShardId::parse_short(input)
                .map(|short| assert_eq!(ShardId::parse(short.to_string().as_bytes()), Some(short)));
            match Id::parse(input) {
                Some(id) => {
                    assert_eq!(id.to_string().as_bytes(), input);
                    "id".to_owned()
                }
                None => format!("{}", ShardId::parse(input).is_some()),
            }
        });
    }

    #[test]
    fn ids_read_back_strictly() {
        for shard in ["0".repeat(40), "0123456789abcdef".repeat(2) + "01234567"] {
            let id = |sequence: &str| Id::parse(format!("{shard}-{sequence}").as_bytes());
            let ten = id("10");
            assert_eq!(ten.map(|id| id.number), Some(10));
            assert_eq!(ten.map(|id| id.to_string()), Some(format!("{shard}-10")));
            for bad in ["", "10abc", "+1", "01", "-1", "99999999999999999999999"] {
                assert_eq!(id(bad), None, "{bad}");
            }
        }
        let capital = "A".repeat(40) + "-1";
        assert_eq!(Id::parse(capital.as_bytes()), None);
        assert_eq!(Id::parse(b"1"), None);
    }

    #[test]
    fn a_table_by_id_is_in_their_order() {
        let id = |number, last| Id {
            number,
            shard: ShardId(
                [[0; 19].as_slice(), &[last]]
                    .concat()
                    .try_into()
                    .unwrap_or([9; 20]),
            ),
        };
        let mut table = ById::default();
        for (place, number) in [5, 1, 3].into_iter().enumerate() {
            assert_eq!(table.insert(id(number, 0), place), None);
            assert_eq!(table.insert(id(number, 1), place + 10), None);
        }
        assert_eq!(table.insert(id(3, 1), 7), Some(12));
        let shown: Vec<_> = table.iter().map(|(id, value)| (id.number, *value)).collect();
        assert_eq!(shown, [(1, 1), (1, 11), (3, 2), (3, 7), (5, 0), (5, 10)]);
        assert_eq!(
            (table.get(id(3, 0)), table.get(id(3, 2)), table.get(id(4, 0))),
            (Some(&2), None, None)
        );
        assert_eq!((table.remove(id(3, 0)), table.remove(id(3, 0))), (Some(2), None));
        assert_eq!(table.len(), 5);
        assert_eq!(table.get_mut(id(5, 1)).copied(), Some(10));
    }

    #[test]
    fn short_ids_of_shards_are_padded() {
        assert_eq!(
            ShardId::parse_short(b"1A").map(|id| id.to_string()),
            Some("0".repeat(38) + "1a")
        );
        assert_eq!(ShardId::parse_short("0".repeat(41).as_bytes()), None);
        assert_eq!(ShardId::parse_short(b"x"), None);
        assert_eq!(ShardId::parse_short(b""), Some(ShardId::STANDALONE));
    }
}
