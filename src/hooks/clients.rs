//! What is known of the clients whose commands pass the filter: their database, whether they are in a transaction, and whether
//! their user may do everything.

use smallvec::SmallVec;

use super::{Hooks, Missing, names::changes_state};
use crate::server::{
    client::{self, ClientState, User},
    command::Command,
    key,
    lock::Lock,
};

/// What is known of the clients that sent commands lately. Asking the server costs a system call.
pub(super) struct ClientCache {
    known: [Option<Known>; 256],
    /// Which rights are meant by [`Known::unrestricted_at`]; another number whenever some may have changed.
    rights: u64,
    /// Somebody has changed rights between MULTI and EXEC: they change when that is executed.
    at_exec: bool,
}

#[derive(Clone, Copy)]
struct Known {
    state: ClientState,
    /// Its user may do everything, as far as these rights go.
    unrestricted_at: Option<u64>,
}

/// Commands after which a client's user may be another.
const NAMES_USER: [&[u8]; 2] = [b"auth", b"hello"];
/// The one that changes rights.
const CHANGES_RIGHTS: &[u8] = b"acl";

/// The names by which rights change, which only count where the server knows commands by these names.
pub(super) fn names_of_rights() -> impl Iterator<Item = &'static [u8]> {
    NAMES_USER.into_iter().chain([CHANGES_RIGHTS])
}

impl Hooks {
    /// Where the client of a command is told of changes of what it has read, keys that have expired and are still in memory end now: the
    /// server forgets who tracks a key when it tells of its end, and this client is to hear of the new value behind its reply. What
    /// is there for another moment is missing no more.
    pub(super) fn end_before_read(
        &self,
        command: &Command<'_>,
        db: i32,
        missing: &mut SmallVec<[Missing<'_>; 1]>,
    ) {
        let (lock, id) = (command.lock(), command.client_id());
        let client = if self.features.filter_client_id {
            self.clients.write(lock).look_up(lock, id)
        } else {
            client::state(lock, id)
        };
        if client.is_some_and(|client| client.tracks) {
            missing.retain(|missing| missing.present || !key::is_alive(lock, db, missing.name));
        }
    }
}

impl Default for ClientCache {
    fn default() -> Self {
        Self {
            known: [None; 256],
            rights: 0,
            at_exec: false,
        }
    }
}

impl ClientCache {
    fn slot(&mut self, id: u64) -> &mut Option<Known> {
        &mut self.known[id as usize % 256]
    }

    /// `None` for the clients that scripts and modules use internally.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(super) fn look_up(&mut self, lock: Lock<'_>, id: u64) -> Option<ClientState> {
        match self.slot(id) {
            Some(known) if known.state.id == id => Some(known.state),
            _ => self.ask(lock, id),
        }
    }

    #[inline(never)]
    fn ask(&mut self, lock: Lock<'_>, id: u64) -> Option<ClientState> {
        let known = client::state(lock, id).map(|state| Known {
            state,
            unrestricted_at: None,
        });
        *self.slot(id) = known;
        known.map(|known| known.state)
    }

    /// True if the client, which was looked up, has a user who may do everything. Asked once, until rights change: what another
    /// module does to users is not seen, and the server checks the commands themselves in any case.
    pub(super) fn is_unrestricted(&mut self, lock: Lock<'_>, id: u64) -> bool {
        let rights = self.rights;
        let Some(known) = self.slot(id).as_mut().filter(|known| known.state.id == id) else {
            return false;
        };
        if known.unrestricted_at == Some(rights) {
            return true;
        }
        let unrestricted = User::of_client(lock, id).is_some_and(|user| user.is_unrestricted(lock));
        known.unrestricted_at = unrestricted.then_some(rights);
        unrestricted
    }

    /// The client sends a command after which its state may be another.
    pub(super) fn forget(&mut self, id: u64) {
        *self.slot(id) = None;
    }

    /// The client sends a command that has no entry in the table.
    pub(super) fn passes(&mut self, lock: Lock<'_>, id: u64, name: &[u8]) {
        let is = |known: &[u8]| known.eq_ignore_ascii_case(name);
        if is(CHANGES_RIGHTS) {
            self.rights += 1;
            self.at_exec |= client::state(lock, id).is_none_or(|client| client.in_multi);
        } else if self.at_exec && is(b"exec") {
            self.rights += 1;
        }
        if changes_state(name) || NAMES_USER.into_iter().any(is) {
            self.forget(id);
        }
    }

    pub(super) fn clear(&mut self) {
        self.known = [None; 256];
    }
}
