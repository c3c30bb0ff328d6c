//! The frame of what the server calls besides commands: callbacks of options, data types, walks, jobs. No panic crosses into the
//! server, which would end with it. `scripts/rules.py` finds an entry without such a frame.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does `work`; `otherwise` if it panics, which the panic hook has logged.
pub(super) fn caught<R>(otherwise: R, work: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::caught;

    #[test]
    fn a_panic_ends_here() {
        assert_eq!(caught(1, || 2), 2);
        assert_eq!(caught(1, || panic!("for a test")), 1);
    }
}
