//! Commands by which hash slots of a cluster go to another shard, or come from there.

use std::sync::Arc;

use super::Hooks;
use crate::server::{filter::Passing, lock::Lock};

/// The command, and the first of its words that matters.
pub(super) const CLUSTER: &[u8] = b"cluster";
const SET_SLOT: &[u8] = b"setslot";

/// Who wants to know. Called under the server's lock.
pub trait MovingSlots: Send + Sync {
    /// A slot goes or comes, or may have been elsewhere.
    fn moves(&self, lock: Lock<'_>, slot: u16);
}

impl Hooks {
    /// Told once who wants to know.
    pub fn connect_slots(&self, slots: Arc<dyn MovingSlots>) {
        // A second call cannot happen: the module cannot be loaded twice.
        let _ = self.slots.set(slots);
    }

    /// A command passes the filter: is it `CLUSTER SETSLOT <slot> ...`?
    #[inline(never)]
    pub(super) fn tell_of_slot(&self, passing: Passing<'_>, name: &[u8]) {
        if !name.eq_ignore_ascii_case(CLUSTER) {
            return;
        }
        let is_set_slot = |word: &[u8]| word.eq_ignore_ascii_case(SET_SLOT);
        let Some(slots) = self
            .slots
            .get()
            .filter(|_| passing.arg(1).is_some_and(is_set_slot))
        else {
            return;
        };
        let word = passing.arg(2).and_then(|word| std::str::from_utf8(word).ok());
        if let Some(slot) = word.and_then(|word| word.parse().ok()) {
            slots.moves(passing.lock(), slot);
        }
    }
}
