//! Numbers that the server tells about itself in INFO.

use std::ffi::CStr;

use super::lock::Lock;

/// The fields `names` of a section of INFO; `None` for those that the server does not tell as a whole number.
pub fn read<const N: usize>(lock: Lock<'_>, section: &CStr, names: [&CStr; N]) -> [Option<u64>; N] {
    let ctx = lock.call_context(0);
    // SAFETY: under the lock; the texts are read before the information is freed.
    unsafe {
        let info = api!(RedisModule_GetServerInfo(ctx, section.as_ptr()));
        let found = names.map(|name| {
            let text = api!(RedisModule_ServerInfoGetFieldC(info, name.as_ptr()));
            if text.is_null() {
                return None;
            }
            CStr::from_ptr(text).to_string_lossy().trim().parse().ok()
        });
        api!(RedisModule_FreeServerInfo(ctx, info));
        found
    }
}
