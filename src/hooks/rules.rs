//! Who is interested in a command: registrations that link it, functions in its place, registrations that load its keys.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use crate::engine::{id::Id, prefix::Pattern, registration::Registration};

/// A registration that links it.
pub(super) struct Rule {
    pub(super) registration: Id,
    pub(super) pattern: Pattern,
    pub(super) only_misses: bool,
}

/// One function in the place of a command.
pub(super) struct HookRule {
    pub(super) registration: Arc<Registration>,
    /// At least one key of the command must begin with it; bytewise, `*` is nothing special.
    pub(super) prefix: Option<Vec<u8>>,
}

/// What a hit looks at. Changed and counted under the server's lock only, so that plain loads and stores do.
#[derive(Default)]
pub struct Hot {
    hits: AtomicU64,
    /// A value that lives for less than so many milliseconds is to be looked at.
    below_ms: AtomicI64,
}

impl Hot {
    pub fn set_below(&self, ms: i64) {
        self.below_ms.store(ms, Ordering::Relaxed);
    }

    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub fn clear(&self) {
        self.hits.store(0, Ordering::Relaxed);
    }

    /// True for a value that is to be looked at, because it does not live for long any more.
    pub(super) fn is_below(&self, left_ms: i64) -> bool {
        left_ms < self.below_ms.load(Ordering::Relaxed)
    }

    pub(super) fn count_hit(&self) {
        self.hits.store(self.hits() + 1, Ordering::Relaxed);
    }
}

/// One registration that loads the keys of a command.
pub(super) struct LoadRule {
    pub(super) registration: Id,
    pub(super) pattern: Pattern,
    pub(super) hot: Arc<Hot>,
}
