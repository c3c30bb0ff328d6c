//! Whose rights code has: the one place that decides whether the user that a function acts as may do what it wants.
//!
//! The server checks a module's call only where it is asked to, takes a user for present that is off, and checks nothing where
//! a key is opened. So the user is looked up by name for each call, `off` counts, and what is read or stored without a command
//! is asked about here before. Refusals are in ACL LOG, with the function's id. Under the server's lock.

use std::{
    ffi::c_int,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use redis_module::raw;
use serde::{Deserialize, Serialize};

use super::{client::User, guarded::Guarded, key::Kind, lock::Lock, string::RString};
use crate::error::Error;

/// `RunAs owner`: code has the rights of who brought it. Set once, while the module loads.
static OWNERS: AtomicBool = AtomicBool::new(false);
/// How often an actor was refused something.
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// Whose command runs now, if it is that of code with a user.
static ACTING: Guarded<Option<Arc<Actor>>> = Guarded::new(None);

/// Whether this server has what code with a user needs (7.0.6 and later).
pub fn are_offered() -> bool {
    has_api!(RedisModule_SetContextUser)
        && has_api!(RedisModule_GetModuleUserFromUserName)
        && has_api!(RedisModule_GetModuleUserACLString)
        && has_api!(RedisModule_ACLCheckCommandPermissions)
        && has_api!(RedisModule_ACLCheckKeyPermissions)
        && has_api!(RedisModule_GetCommandKeysWithFlags)
}

/// Chooses `RunAs`. Called once, while the module loads.
///
/// # Errors
/// The server cannot do that.
pub fn init(owners: bool) -> Result<(), String> {
    if owners && !are_offered() {
        return Err(format!("RunAs: expected 'all', got 'owner': {TOO_OLD}"));
    }
    OWNERS.store(owners, Ordering::Relaxed);
    Ok(())
}

/// Why a server has no code with a user.
pub const TOO_OLD: &str = "this server does not let modules check the rights of a user (7.0.6 and later do)";

/// True if code has the rights of who brought it.
pub fn are_owners() -> bool {
    OWNERS.load(Ordering::Relaxed)
}

/// How often code was refused something for want of its user's rights.
pub fn refused() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}

/// Who is behind a piece of code; travels with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Who sent the script; `None` if that is not known: it comes from an earlier version, or from a server that does not tell.
    #[serde(default)]
    pub made_by: Option<String>,
    /// The user that was named with `user=`.
    #[serde(default)]
    pub acts_as: Option<String>,
}

impl Owner {
    /// The owner of what this user brings.
    pub fn of_user(made_by: Option<String>) -> Self {
        Self {
            made_by,
            acts_as: None,
        }
    }

    /// The user who is behind it.
    pub fn user(&self) -> Option<&str> {
        self.acts_as
            .as_ref()
            .or(self.made_by.as_ref())
            .map(String::as_str)
    }

    /// Whose rights the code has; `None` for all rights. `what` describes it: "registration 1-1".
    pub fn actor(&self, what: impl FnOnce() -> String) -> Option<Arc<Actor>> {
        (self.acts_as.is_some() || are_owners()).then(|| {
            Arc::new(Actor {
                owner: self.clone(),
                what: what(),
            })
        })
    }

    /// Whether who is behind it may make code that acts as `user`: it is himself, or he may change that user (`ACL SETUSER`),
    /// and so could give himself its rights anyway.
    ///
    /// # Errors
    /// He may not, or there is no such user.
    pub fn check_named(&self, lock: Lock<'_>, user: &str) -> Result<(), Error> {
        let wrong = |why: &str| Err(Error::Text(format!("user: expected {why}, got '{user}'")));
        if !are_offered() {
            return Err(Error::Text(format!(
                "user: expected none, got '{user}': {TOO_OLD}"
            )));
        }
        if User::by_name(&RString::new(lock, user.as_bytes())).is_none() {
            return wrong("the name of a user of the server");
        }
        let maker = Actor {
            owner: self.clone(),
            what: "this script".into(),
        };
        if self.user() == Some(user) {
            return Ok(());
        }
        match maker.check_command(lock, &[&b"ACL"[..], b"SETUSER", user.as_bytes()]) {
            Ok(()) => Ok(()),
            Err(_) => wrong("your own user, or one that you may change (ACL SETUSER)"),
        }
    }
}

/// Code with the rights of a user, instead of all.
#[derive(Debug, PartialEq, Eq)]
pub struct Actor {
    owner: Owner,
    what: String,
}

/// What is done to a key without a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

impl Access {
    fn flags(self) -> c_int {
        let flags = match self {
            Self::Read => raw::REDISMODULE_CMD_KEY_ACCESS,
            Self::Write => {
                raw::REDISMODULE_CMD_KEY_INSERT
                    | raw::REDISMODULE_CMD_KEY_UPDATE
                    | raw::REDISMODULE_CMD_KEY_DELETE
            }
        };
        flags as c_int
    }
}

/// What a user was refused.
enum Denied<'a> {
    Command(&'a [u8]),
    Key(&'a [u8]),
    Channel(&'a [u8]),
}

impl Actor {
    /// Code of which nobody knows whose it is. Under `RunAs owner` it may do nothing.
    pub fn unknown(what: &str) -> Arc<Self> {
        Arc::new(Self {
            owner: Owner::default(),
            what: what.to_owned(),
        })
    }

    /// Who is behind it.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Whether it may run a command.
    ///
    /// # Errors
    /// It may not; noted in ACL LOG.
    pub fn check_command(&self, lock: Lock<'_>, argv: &[impl AsRef<[u8]>]) -> Result<(), Error> {
        let strings: Vec<RString<'_>> = argv
            .iter()
            .map(|word| RString::new(lock, word.as_ref()))
            .collect();
        let mut words: Vec<_> = strings.iter().map(RString::as_raw).collect();
        self.check_words(lock, &mut words, argv)
    }

    fn check_words(
        &self,
        lock: Lock<'_>,
        words: &mut [*mut raw::RedisModuleString],
        argv: &[impl AsRef<[u8]>],
    ) -> Result<(), Error> {
        let user = self.user(lock)?;
        if user.may_run_known(words).unwrap_or(true) {
            // The server has a text for unknown commands.
            return Ok(());
        }
        let word = |index: usize| argv.get(index).map(AsRef::as_ref).unwrap_or_default();
        let key = user.denied_key(lock, words).map(|index| Denied::Key(word(index)));
        let is_channel = || {
            let name = word(0);
            name.eq_ignore_ascii_case(b"publish") || name.eq_ignore_ascii_case(b"spublish")
        };
        let channel = || {
            let channel = words.get(1).filter(|_| is_channel())?;
            user.is_denied_channel(*channel).then(|| Denied::Channel(word(1)))
        };
        let denied = key.or_else(channel).unwrap_or(Denied::Command(word(0)));
        Err(self.refuse(lock, &denied))
    }

    /// Whether it may do something to a key without a command.
    ///
    /// # Errors
    /// It may not; noted in ACL LOG.
    pub fn check_key(&self, lock: Lock<'_>, key: &[u8], access: Access) -> Result<(), Error> {
        let user = self.user(lock)?;
        let name = RString::new(lock, key);
        if user.may_access(&name, access.flags()) {
            return Ok(());
        }
        Err(self.refuse(lock, &Denied::Key(key)))
    }

    /// Whether it may see what a key of this type holds: as much as by the command that shows all of it.
    ///
    /// # Errors
    /// It may not; noted in ACL LOG.
    pub fn check_read(&self, lock: Lock<'_>, key: &[u8], kind: Kind) -> Result<(), Error> {
        let command: &[&[u8]] = match kind {
            Kind::String => &[b"GET", key],
            Kind::List => &[b"LRANGE", key, b"0", b"-1"],
            Kind::Hash => &[b"HGETALL", key],
            // Functions get no value of others.
            _ => return self.check_key(lock, key, Access::Read),
        };
        self.check_command(lock, command)
    }

    fn user(&self, lock: Lock<'_>) -> Result<User, Error> {
        let Some(name) = self.owner.user() else {
            REFUSED.fetch_add(1, Ordering::Relaxed);
            return Err(Error::Text(format!(
                "NOPERM it is not known who made {}, and RunAs is 'owner': run its script again",
                self.what
            )));
        };
        let why = match User::by_name(&RString::new(lock, name.as_bytes())) {
            Some(user) if user.is_on(lock) => return Ok(user),
            Some(_) => "is off",
            None => "does not exist",
        };
        REFUSED.fetch_add(1, Ordering::Relaxed);
        let object = RString::new(lock, self.what.as_bytes());
        note(
            lock,
            name,
            &object,
            raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_AUTH,
        );
        Err(Error::Text(format!(
            "NOPERM {} acts as user '{name}', who {why}",
            self.what
        )))
    }

    fn refuse(&self, lock: Lock<'_>, denied: &Denied<'_>) -> Error {
        REFUSED.fetch_add(1, Ordering::Relaxed);
        let name = self.owner.user().unwrap_or_default();
        let (object, reason) = match denied {
            Denied::Command(command) => (
                String::from_utf8_lossy(command).to_lowercase(),
                raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_CMD,
            ),
            Denied::Key(key) => (
                String::from_utf8_lossy(key).into_owned(),
                raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_KEY,
            ),
            Denied::Channel(channel) => (
                String::from_utf8_lossy(channel).into_owned(),
                raw::RedisModuleACLLogEntryReason_REDISMODULE_ACL_LOG_CHANNEL,
            ),
        };
        let noted = format!("{object} ({})", self.what);
        note(lock, name, &RString::new(lock, noted.as_bytes()), reason);
        let (what, object) = match denied {
            Denied::Command(_) => ("run the command", object),
            Denied::Key(_) => ("access the key", object),
            Denied::Channel(_) => ("access the channel", object),
        };
        Error::Text(format!(
            "NOPERM {} acts as user '{name}', who has no permissions to {what} '{object}'",
            self.what
        ))
    }
}

/// Adds an entry to ACL LOG, where the server lets a module do that by a name (7.2), or the user is there.
fn note(lock: Lock<'_>, user: &str, object: &RString<'_>, reason: raw::RedisModuleACLLogEntryReason) {
    let name = RString::new(lock, user.as_bytes());
    let ctx = lock.call_context(0);
    if has_api!(RedisModule_ACLAddLogEntryByUserName) {
        let name = name.as_raw();
        // SAFETY: the presence of the function was just checked; the strings are alive, and the server copies them.
        unsafe {
            api!(RedisModule_ACLAddLogEntryByUserName(
                ctx,
                name,
                object.as_raw(),
                reason
            ));
        };
    } else if let (true, Some(user)) = (has_api!(RedisModule_ACLAddLogEntry), User::by_name(&name)) {
        // SAFETY: the same.
        unsafe {
            api!(RedisModule_ACLAddLogEntry(
                ctx,
                user.as_raw(),
                object.as_raw(),
                reason
            ));
        };
    }
}

/// The time of one call with an actor, or with all rights: the server knows the user, and filters do.
pub(super) struct Acting<'a> {
    lock: Lock<'a>,
    before: Option<Arc<Actor>>,
    user: Option<User>,
    ctx: *mut raw::RedisModuleCtx,
}

impl<'a> Acting<'a> {
    /// `ctx`: what the call goes through.
    ///
    /// # Errors
    /// The actor may not run the command `words`.
    pub(super) fn enter(
        lock: Lock<'a>,
        ctx: *mut raw::RedisModuleCtx,
        actor: Option<&Arc<Actor>>,
        words: &mut [*mut raw::RedisModuleString],
        argv: &[impl AsRef<[u8]>],
    ) -> Result<Self, Error> {
        let mut user = None;
        if let Some(actor) = actor {
            actor.check_words(lock, words, argv)?;
            // What changes users may free this one while it runs.
            let changes_users = argv
                .first()
                .is_some_and(|name| name.as_ref().eq_ignore_ascii_case(b"acl"));
            if !changes_users {
                user = Some(actor.user(lock)?);
            }
        }
        if let Some(user) = &user {
            // SAFETY: the presence of the function goes with that of an actor; the user lives until `drop`.
            unsafe { api!(RedisModule_SetContextUser(ctx, user.as_raw())) };
        }
        let before = std::mem::replace(&mut *ACTING.write(lock), actor.cloned());
        Ok(Self {
            lock,
            before,
            user,
            ctx,
        })
    }

    /// The server is to check the user's rights, too, in what the command does by itself.
    pub(super) fn as_user(&self) -> bool {
        self.user.is_some()
    }
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        *ACTING.write(self.lock) = self.before.take();
        if self.user.is_some() {
            // SAFETY: as in `enter`.
            unsafe { api!(RedisModule_SetContextUser(self.ctx, ptr::null())) };
        }
    }
}

/// Who runs the command that is under way, if it is code with a user.
pub(super) fn acting(lock: Lock<'_>) -> Option<Arc<Actor>> {
    ACTING.read(lock).clone()
}

/// The user who runs the command that is under way; `None` if it is not that of code with a user.
pub(super) fn acting_user(lock: Lock<'_>) -> Option<Result<User, Error>> {
    acting(lock).map(|actor| actor.user(lock))
}
