//! Commands that we run: for a function's `execute`, and the original of a linked command.

use std::{
    ffi::{CStr, CString},
    io, slice,
};

use redis_module::raw;

use super::{
    after::Caused,
    api::Features,
    command::Command,
    guarded::Guarded,
    lock::Lock,
    refused,
    reply::Reply,
    string::{Argv, RString},
};

/// How the server words a refused write where `W` was given (7.0 and later); a client knows the other text.
const REFUSED_WRITE: &[u8] = b"ERR Write command '";
const READONLY: &str = "READONLY You can't write against a read only replica.";
/// What a function hears of a key of another shard.
pub const NOT_LOCAL: &str = "Operation not permitted";
/// How the server words a key of another shard when a module asks.
const FOREIGN_KEY: &[u8] = b"Attempted to access a non local key in a cluster node";

/// Runs a command for a function, with what its events cause in `sync` functions. Otherwise as [`call`].
pub fn execute(lock: Lock<'_>, features: Features, db: i32, argv: &[Vec<u8>]) -> Reply {
    let caused = Caused::enter(lock);
    let reply = call(lock, features, db, argv);
    caused.done();
    reply
}

/// Runs a command: database `db`, full rights, RESP2 form, effects replicated.
///
/// `argv` is the command and its arguments. Errors are replies; writes are refused on a read-only replica
/// and above `maxmemory`, like a client's, and so is what the server could not run ([`refused`]).
pub fn call(lock: Lock<'_>, features: Features, db: i32, argv: &[Vec<u8>]) -> Reply {
    match refused::check(lock, features, argv) {
        Ok(argv) => perform(lock, features, db, &argv),
        Err(refusal) => refusal,
    }
}

/// [`call`] for what is known to be no such command.
pub(super) fn perform(lock: Lock<'_>, features: Features, db: i32, argv: &[Vec<u8>]) -> Reply {
    let Some((name, args)) = argv.split_first() else {
        return Reply::Array(Vec::new());
    };
    let Ok(name) = CString::new(name.as_slice()) else {
        return Reply::error("ERR unknown command: its name contains NUL");
    };
    let refuses_writes = lock.refuses_writes();
    let asks = refused::is_asking(lock);
    if !features.call_options && refuses_writes && !asks && refused::is_write(lock, features, &argv[0]) {
        return Reply::error(READONLY);
    }
    let format = match (features.call_options, refuses_writes) {
        (true, true) => c"!vEMW",
        (true, false) => c"!vEM",
        (false, _) => c"!v",
    };
    let strings: Vec<RString<'_>> = args.iter().map(|arg| RString::new(lock, arg)).collect();
    let raw: Vec<_> = strings.iter().map(RString::as_raw).collect();
    let _under_way = UnderWay::enter(lock);
    // SAFETY: the context is selected under the lock; `v` takes a pointer and a length.
    let reply = unsafe {
        let ctx = lock.call_context(db);
        CallReply(api!(RedisModule_Call(
            ctx,
            name.as_ptr(),
            format.as_ptr(),
            raw.as_ptr(),
            raw.len()
        )))
    };
    reply.into_reply()
}

/// Sends an internal command to replicas and the AOF file, in database 0.
pub fn replicate(lock: Lock<'_>, command: &CStr, arguments: &[&[u8]]) {
    let words: Vec<_> = arguments.iter().map(|word| RString::new(lock, word)).collect();
    let words: Vec<_> = words.iter().map(RString::as_raw).collect();
    // SAFETY: the context is selected under the lock; the strings are alive.
    unsafe {
        api!(RedisModule_Replicate(
            lock.call_context(0),
            command.as_ptr(),
            c"v".as_ptr(),
            words.as_ptr(),
            words.len()
        ));
    }
}

/// How many calls of [`call`] are under way, one inside the other.
static CALLS: Guarded<u32> = Guarded::new(0);

/// True inside a command that a function runs.
pub(super) fn is_under_way(lock: Lock<'_>) -> bool {
    *CALLS.read(lock) > 0
}

struct UnderWay<'a>(Lock<'a>);

impl<'a> UnderWay<'a> {
    fn enter(lock: Lock<'a>) -> Self {
        *CALLS.write(lock) += 1;
        Self(lock)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *CALLS.write(self.0) -= 1;
    }
}

/// Runs the command that stands in `argv` as the client of `command` would have: in its database, with its
/// protocol version and its cluster flags, with what its events cause in `sync` functions.
///
/// # Errors
/// The user who sent `command` may not run this one. `cleared`: that is known to be no matter.
pub fn call_original(
    command: &Command<'_>,
    features: Features,
    argv: Argv<'_>,
    cleared: bool,
) -> Result<CallReply, NotPermitted> {
    // The server looks the user up faster than we do, and commands that look at more keys by themselves (SORT) ask for it.
    let mut server_checks = features.call_options && command.has_client();
    if !cleared && !server_checks && !command.sender_may_run(argv) {
        return Err(NotPermitted);
    }
    let format = match (features.call_options, server_checks) {
        (true, true) => c"!v0EC",
        (true, false) => c"!v0E",
        (false, _) => c"!v",
    };
    let name = argv.name().unwrap_or_default();
    let args = argv.skip(1).as_raw();
    let run = |format: &CStr| {
        // SAFETY: as in `call`, with the context of the running command.
        CallReply(unsafe {
            api!(RedisModule_Call(
                command.as_raw(),
                name.as_ptr(),
                format.as_ptr(),
                args.as_ptr(),
                args.len()
            ))
        })
    };
    let caused = Caused::enter(command.lock());
    let mut reply = run(format);
    if server_checks && reply.begins_with(NO_USER) {
        // Another module's call. The server has not run the command.
        server_checks = false;
        reply = run(c"!v0E");
    }
    caused.done();
    // Servers word this refusal in several ways. Whoever may not run the command has got no other error.
    if server_checks && reply.begins_with(b"-") && !command.sender_may_run(argv) {
        return Err(NotPermitted);
    }
    Ok(reply)
}

/// How the server begins its refusal where `C` was given and there is no user.
const NO_USER: &[u8] = b"-ERR cannot run as user";

/// Somebody's rights are not enough.
pub struct NotPermitted;

/// A command's reply as the server keeps it; freed on drop, within the entry point that made the call.
pub struct CallReply(*mut raw::RedisModuleCallReply);

impl CallReply {
    /// Sends the reply on as it is.
    pub fn forward(self, command: &Command<'_>) {
        if self.0.is_null() {
            command.send(&refusal());
            return;
        }
        if let Some(error) = self.reworded() {
            command.send(&error);
            return;
        }
        // SAFETY: the reply is alive, and nothing else was sent to the client.
        unsafe { api!(RedisModule_ReplyWithCallReply(command.as_raw(), self.0)) };
    }

    /// True if the server refused the command because a key is served by another node of the cluster.
    pub fn is_foreign(&self) -> bool {
        if self.0.is_null() {
            return io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
        }
        self.reworded() == Some(Reply::error(NOT_LOCAL))
    }

    /// The reply as data.
    pub fn into_reply(self) -> Reply {
        if self.0.is_null() {
            return refusal();
        }
        self.reworded().unwrap_or_else(|| {
            // SAFETY: the reply is alive until `self` is dropped.
            unsafe { Reply::read(self.0) }
        })
    }

    /// True if the reply in the form of the protocol, which costs nothing to look at, begins with this.
    fn begins_with(&self, bytes: &[u8]) -> bool {
        if self.0.is_null() {
            return false;
        }
        let mut len = 0;
        // SAFETY: the reply is alive, and its protocol form with it.
        unsafe {
            let start = api!(RedisModule_CallReplyProto(self.0, &raw mut len));
            !start.is_null() && slice::from_raw_parts(start.cast::<u8>(), len).starts_with(bytes)
        }
    }

    /// Errors that the server words for module authors, in the words that a client knows.
    fn reworded(&self) -> Option<Reply> {
        if !self.begins_with(b"-") {
            return None;
        }
        // SAFETY: the reply is alive.
        let error = unsafe {
            if api!(RedisModule_CallReplyType(self.0)) as isize != raw::REDISMODULE_REPLY_ERROR {
                return None;
            }
            Reply::read(self.0)
        };
        match error {
            Reply::Error(text) if text.starts_with(REFUSED_WRITE) => Some(Reply::error(READONLY)),
            Reply::Error(text) if text.windows(FOREIGN_KEY.len()).any(|part| part == FOREIGN_KEY) => {
                Some(Reply::error(NOT_LOCAL))
            }
            _ => None,
        }
    }
}

impl Drop for CallReply {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: we own the reply, and its context is still alive.
            unsafe { api!(RedisModule_FreeCallReply(self.0)) };
        }
    }
}

/// Servers before 7.0 say only by `errno` why they did not run a command.
fn refusal() -> Reply {
    let text = match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOENT) => "ERR unknown command",
        Some(libc::EINVAL) => "ERR wrong number of arguments",
        Some(libc::EPERM) => NOT_LOCAL,
        Some(libc::ENETDOWN) => "Network is down",
        Some(libc::EROFS) => "Read-only file system",
        _ => "Failed executing command",
    };
    Reply::error(text)
}
