//! The database that a client has selected, over notifications.
//!
//! Some servers (`Version::leaves_clients_in_other_databases`) select an event's database for the client whose command
//! runs, and leave it selected: what the client does next, and what replicas and the AOF file get of this command, is in
//! another database then. MOVE and COPY report such events. A notification cannot tell where the client was. Before MOVE
//! reports the other database it reports the client's own; COPY does not, so its client is noted before: when the
//! command passes the filter ([`note`]), or when we run it ([`Ours`]). All of it happens under the server's lock.

use std::{
    ffi::{CStr, c_char},
    sync::atomic::{AtomicBool, Ordering},
};

use redis_module::raw;

use super::{guarded::Guarded, lock::Lock, version::Version};

/// True after [`init`] if this server is one of them.
static NEEDED: AtomicBool = AtomicBool::new(false);

/// Whose MOVE or COPY comes next, or is under way, and in which database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    Unknown,
    /// That of a client, by its id.
    Client(u64, i32),
    /// One that we run: the server takes any client for it.
    Ours(i32),
}

static HOME: Guarded<Home> = Guarded::new(Home::Unknown);

/// Called once, while the module loads.
pub(super) fn init(version: Version) {
    NEEDED.store(version.leaves_clients_in_other_databases(), Ordering::Relaxed);
}

/// True if clients must be kept in their databases.
pub fn is_needed() -> bool {
    NEEDED.load(Ordering::Relaxed)
}

/// True if the COPY that passes the filter is one that we run.
pub fn is_ours(lock: Lock<'_>) -> bool {
    matches!(*HOME.read(lock), Home::Ours(_))
}

/// A COPY comes next, by this client in this database; `None` if that is not known.
pub fn note(lock: Lock<'_>, client: Option<(u64, i32)>) {
    *HOME.write(lock) = client.map_or(Home::Unknown, |(id, db)| Home::Client(id, db));
}

/// The time of a COPY that we run.
pub(super) struct Ours<'a>(Lock<'a>);

impl<'a> Ours<'a> {
    /// `None` if the command `name` needs no care.
    pub(super) fn enter(lock: Lock<'a>, name: &[u8], db: impl FnOnce() -> i32) -> Option<Self> {
        (is_needed() && name.eq_ignore_ascii_case(b"copy")).then(|| {
            *HOME.write(lock) = Home::Ours(db());
            Self(lock)
        })
    }
}

impl Drop for Ours<'_> {
    fn drop(&mut self) {
        note(self.0, None);
    }
}

/// Sees to it that a notification leaves its client where it was.
pub(super) struct Stays(Option<(*mut raw::RedisModuleCtx, i32)>);

impl Stays {
    /// # Safety
    /// `ctx` is the context of a notification under way, `event` the name of its event.
    #[inline]
    pub(super) unsafe fn enter(lock: Lock<'_>, ctx: *mut raw::RedisModuleCtx, event: *const c_char) -> Self {
        if !is_needed() {
            return Self(None);
        }
        // SAFETY: by the caller's promise.
        let (name, client, db) = unsafe {
            let name = CStr::from_ptr(event).to_bytes();
            (
                name,
                api!(RedisModule_GetClientId(ctx)),
                api!(RedisModule_GetSelectedDb(ctx)),
            )
        };
        match name {
            b"move_from" => note(lock, Some((client, db))),
            // Each of our notifications is told of it, one behind the other.
            b"move_to" | b"copy_to" => match *HOME.read(lock) {
                Home::Client(id, db) if id == client => return Self(Some((ctx, db))),
                Home::Ours(db) => return Self(Some((ctx, db))),
                _ => {}
            },
            _ => {}
        }
        Self(None)
    }
}

impl Drop for Stays {
    fn drop(&mut self) {
        if let Some((ctx, db)) = self.0 {
            // SAFETY: the notification is still under way.
            unsafe { api!(RedisModule_SelectDb(ctx, db)) };
        }
    }
}
