//! The reply of a command that we ran, as the server keeps it, and what clients and functions hear of the server's errors.

use std::{io, iter, slice};

use redis_module::raw;

use super::{
    command::Command,
    reply::{Reply, Shape},
};

/// How the server words a refused write where `W` was given (7.0 and later); a client knows the other text.
const REFUSED_WRITE: &[u8] = b"ERR Write command '";
pub(super) const READONLY: &str = "READONLY You can't write against a read only replica.";
/// What it hears of a key of another shard: in the server's words where a module asks.
const FOREIGN: &str = "Operation not permitted: Attempted to access a non local key in a cluster node";
const FOREIGN_KEY: &[u8] = b"Attempted to access a non local key in a cluster node";
/// What a client hears while the cluster is down, by which it knows that it may try again; a module hears it in a sentence of its own.
const CLUSTER_DOWN: [(&[u8], &str); 2] = [
    (
        b"while the cluster is down and readonly",
        "CLUSTERDOWN The cluster is down and only accepts read commands",
    ),
    (b"while the cluster is down", "CLUSTERDOWN The cluster is down"),
];
/// How the server begins its refusal where `C` was given and there is no user.
const NO_USER: &[u8] = b"-ERR cannot run as user";

/// What Valkey 8.1 to 9.1 keeps to itself where a module asks: its GETSET and GETDEL put their refusal of another type aside, and
/// forget it there, while the keyspace is watched. The reply that they give is empty, and a client would wait for ever.
const KEPT_BACK: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// Both forms of a command's reply.
pub struct Forms {
    pub resp2: Reply,
    /// That of RESP3, if it is another one and the server gave it.
    pub resp3: Option<Reply>,
}

impl From<Reply> for Forms {
    fn from(resp2: Reply) -> Self {
        Self { resp2, resp3: None }
    }
}

/// A command's reply as the server keeps it; freed on drop, within the entry point that made the call.
pub struct CallReply(*mut raw::RedisModuleCallReply);

impl CallReply {
    /// # Safety
    /// The server gave it as the reply of a call, or null; nobody else frees it.
    pub(super) unsafe fn new(reply: *mut raw::RedisModuleCallReply) -> Self {
        Self(reply)
    }

    /// True if the server was to check the rights of a user and there is none: it has not run the command.
    pub(super) fn has_no_user(&self) -> bool {
        self.begins_with(NO_USER)
    }

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
        let is_foreign = |text: &[u8]| text.windows(FOREIGN_KEY.len()).any(|part| part == FOREIGN_KEY);
        matches!(self.reworded(), Some(Reply::Error(text)) if is_foreign(&text))
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

    /// A reply in RESP3 as data, in both forms.
    pub(super) fn into_forms(self, shape: Shape) -> Forms {
        if self.0.is_null() {
            return refusal().into();
        }
        if let Some(error) = self.reworded() {
            return error.into();
        }
        // SAFETY: the reply is alive until `self` is dropped.
        let (resp2, resp3) = unsafe { (Reply::read_as_resp2(self.0, shape), Reply::read(self.0)) };
        let differs = resp2 != resp3;
        Forms {
            resp2,
            resp3: differs.then_some(resp3),
        }
    }

    pub fn is_error(&self) -> bool {
        self.0.is_null() || self.proto().first().is_none_or(|&kind| kind == b'-')
    }

    /// True if the reply in the form of the protocol begins with this.
    pub(super) fn begins_with(&self, bytes: &[u8]) -> bool {
        self.proto().starts_with(bytes)
    }

    /// The reply in the form of the protocol, which costs nothing to look at. Never empty but for [`KEPT_BACK`].
    fn proto(&self) -> &[u8] {
        if self.0.is_null() {
            return &[];
        }
        let mut len = 0;
        // SAFETY: the reply is alive, and its protocol form with it.
        unsafe {
            let start = api!(RedisModule_CallReplyProto(self.0, &raw mut len));
            if start.is_null() {
                return &[];
            }
            slice::from_raw_parts(start.cast::<u8>(), len)
        }
    }

    /// Errors that the server words for module authors, in the words that a client knows.
    fn reworded(&self) -> Option<Reply> {
        match self.proto().first() {
            None => return Some(Reply::error(KEPT_BACK)),
            Some(b'-') => {}
            Some(_) => return None,
        }
        // SAFETY: the reply is alive.
        let error = unsafe {
            if api!(RedisModule_CallReplyType(self.0)) as isize != raw::REDISMODULE_REPLY_ERROR {
                return None;
            }
            Reply::read(self.0)
        };
        let Reply::Error(text) = error else { return None };
        if text.starts_with(REFUSED_WRITE) {
            return Some(Reply::error(READONLY));
        }
        let mut known = iter::once(&(FOREIGN_KEY, FOREIGN)).chain(&CLUSTER_DOWN);
        let found = known.find(|(part, _)| text.windows(part.len()).any(|window| window == *part));
        found.map(|(_, reply)| Reply::error(*reply))
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

/// True if the command was about a key of another shard.
pub fn is_foreign(reply: &Reply) -> bool {
    reply.as_error() == Some(FOREIGN.as_bytes())
}

/// Servers before 7.0 say only by `errno` why they did not run a command.
fn refusal() -> Reply {
    let text = match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOENT) => "ERR unknown command",
        Some(libc::EINVAL) => "ERR wrong number of arguments",
        Some(libc::EPERM) => FOREIGN,
        Some(libc::ENETDOWN) => CLUSTER_DOWN[1].1,
        Some(libc::EROFS) => "Read-only file system",
        _ => "Failed executing command",
    };
    Reply::error(text)
}
