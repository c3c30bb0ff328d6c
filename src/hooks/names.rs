//! Names of commands as the filter compares them: in any letter case, for next to nothing. Pure.

/// Commands after which a client's database, transaction or tracking may be another.
pub(super) const STATE_CHANGING: [&[u8]; 6] = [b"select", b"multi", b"exec", b"discard", b"reset", b"client"];

/// True for them, in any letter case, and for commands of modules, which may select another database for their client.
pub(super) fn changes_state(name: &[u8]) -> bool {
    name.contains(&b'.')
        || STATE_CHANGING
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
}

/// How many places there are to look for a name.
pub(super) const PLACES: usize = u64::BITS as usize;

/// Where a name is looked for, in any letter case.
pub(super) fn place_of(name: &[u8]) -> usize {
    let letter = |byte: Option<&u8>| usize::from(byte.copied().unwrap_or(0) | 0x20);
    (name.len() * 5 + letter(name.first()) * 3 + letter(name.last())) % PLACES
}

/// A name of two to eight bytes as numbers, its length the second one.
pub(super) type Word = (u64, usize);

/// It is the same in any letter case: no two names of letters have one.
#[allow(clippy::inline_always)] // each command passes it
#[inline(always)]
pub(super) fn word_of(name: &[u8]) -> Option<Word> {
    const CASE: u64 = 0x2020_2020_2020_2020;
    // Both ends; in short names they overlap.
    let ends = if name.len() <= 3 {
        let (first, last) = (name.first_chunk()?, name.last_chunk()?);
        u64::from(u16::from_le_bytes(*first)) | u64::from(u16::from_le_bytes(*last)) << 32
    } else if name.len() <= 8 {
        let (first, last) = (name.first_chunk()?, name.last_chunk()?);
        u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32
    } else {
        return None;
    };
    Some((ends | CASE, name.len()))
}

pub(super) fn place_bit(name: &[u8]) -> u64 {
    1 << place_of(name)
}
