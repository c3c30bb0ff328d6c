//! What is known of the clients whose commands pass the filter: their database, and whether they are in a transaction.

use crate::server::{
    client::{self, ClientState},
    lock::Lock,
};

/// What is known of the clients that sent commands lately. Asking the server costs a system call.
pub(super) struct ClientCache([Option<ClientState>; 256]);

impl Default for ClientCache {
    fn default() -> Self {
        Self([None; 256])
    }
}

impl ClientCache {
    fn slot(&mut self, id: u64) -> &mut Option<ClientState> {
        &mut self.0[id as usize % 256]
    }

    /// `None` for the clients that scripts and modules use internally.
    pub(super) fn look_up(&mut self, lock: Lock<'_>, id: u64) -> Option<ClientState> {
        let slot = self.slot(id);
        if slot.is_none_or(|known| known.id != id) {
            *slot = client::state(lock, id);
        }
        *slot
    }

    /// The client sends a command after which its state may be another.
    pub(super) fn forget(&mut self, id: u64) {
        *self.slot(id) = None;
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
