//! A quick hash for tables whose keys clients choose: seeded anew for each table, so that nobody can choose keys that meet.

use std::hash::{BuildHasher, Hasher};

/// Makes the hashes of one table.
#[derive(Clone, Copy)]
pub struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Self(fastrand::u64(..))
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.0)
    }
}

/// The state of one hash: each word is multiplied into it, and the halves of the product are folded.
pub struct Folded(u64);

/// Odd, with as many ones as zeros (digits of pi and of e).
const FACTOR: u64 = 0x243f_6a88_85a3_08d3;
const LAST: u64 = 0xb7e1_5162_8aed_2a6b;

impl Folded {
    #[inline]
    fn fold(&mut self, word: u64, factor: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(factor);
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}

impl Hasher for Folded {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let mut whole = [0; 8];
            whole.copy_from_slice(word);
            self.fold(u64::from_le_bytes(whole), FACTOR);
        }
        let rest = words.remainder();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.fold(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56), FACTOR);
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.fold(number, FACTOR);
    }

    #[inline]
    fn write_usize(&mut self, number: usize) {
        self.fold(number as u64, FACTOR);
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.fold(u64::from(number), FACTOR);
    }

    #[inline]
    fn write_u8(&mut self, number: u8) {
        self.fold(u64::from(number), FACTOR);
    }

    #[inline]
    fn finish(&self) -> u64 {
        let mut folded = Self(self.0);
        folded.fold(0, LAST);
        folded.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_are_spread_over_all_bits() {
        let seeded = Seeded::default();
        let keys = (0..4096).map(|number| format!("user:{number}"));
        let hashes: Vec<u64> = keys.map(|key| seeded.hash_one(key.as_bytes())).collect();
        for part in [0, 26, 52] {
            let places: HashSet<u64> = hashes.iter().map(|hash| (hash >> part) & 0xfff).collect();
            // Of 4096 random ones about 63 in a hundred differ.
            assert!(
                places.len() > 2300,
                "{} places by bits {part} to {}",
                places.len(),
                part + 12
            );
        }
    }

    #[test]
    fn a_hash_depends_on_its_seed_and_its_length() {
        let (one, other) = (Seeded(1), Seeded(2));
        assert_ne!(one.hash_one(b"key"), other.hash_one(b"key"));
        assert_ne!(one.hash_one([0_u8; 3]), one.hash_one([0_u8; 4]));
        assert_eq!(one.hash_one(b"key"), one.hash_one(b"key"));
    }
}
