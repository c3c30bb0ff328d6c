//! Hash slots of keys, and which of them a command is about.

use crc::{CRC_16_XMODEM, Crc};
use redis_module::raw;

use super::{lock::Lock, string};

/// How many hash slots there are.
pub const SLOTS: u16 = 16384;

const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// The hash slot of a key: of what stands between its first `{` and the next `}`, if that is something.
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    CRC.checksum(tag.unwrap_or(key)) % SLOTS
}

/// True if the keys of a command, its name first, have several hash slots. False where the server does not tell which words
/// are keys (before 7.0).
///
/// # Safety
/// The strings are alive.
pub(super) unsafe fn are_several(lock: Lock<'_>, words: &[*mut raw::RedisModuleString]) -> bool {
    if !has_api!(RedisModule_GetCommandKeysWithFlags) || words.len() < 3 {
        return false;
    }
    let mut count = 0;
    // SAFETY: by the caller's promise. The positions are within the command, and ours to free.
    unsafe {
        let positions = api!(RedisModule_GetCommandKeysWithFlags(
            lock.call_context(0),
            words.as_ptr().cast_mut(),
            words.len() as i32,
            &raw mut count,
            std::ptr::null_mut()
        ));
        if positions.is_null() {
            return false;
        }
        let positions_of_keys = std::slice::from_raw_parts(positions, count.max(0) as usize);
        let mut slots = positions_of_keys
            .iter()
            .filter_map(|&position| words.get(position as usize))
            .map(|&key| slot_of(string::bytes(key)));
        let first = slots.next();
        let several = slots.any(|slot| Some(slot) != first);
        api!(RedisModule_Free(positions.cast()));
        several
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_server() {
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"x{foo}y{bar}"), 12182);
        assert_eq!(slot_of(b"{}foo"), CRC.checksum(b"{}foo") % SLOTS);
        assert_eq!(slot_of(b"{foo"), CRC.checksum(b"{foo") % SLOTS);
    }
}
