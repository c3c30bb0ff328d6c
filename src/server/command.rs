//! A running command of ours, and how commands are registered.
//!
//! Every command enters through [`run`], which catches panics, so that none crosses into the server.

use std::{
    cell::Cell,
    ffi::{CStr, CString, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use redis_module::raw;

use super::{
    api::{self, Features},
    call,
    client::{BlockedClient, User},
    entry::caught,
    guarded::Plain,
    lock::{self, Entered, Lock},
    reply::Reply,
    string::{Argv, Held, RString},
    syntax,
    waiting::{self, WaitingClient},
};
use crate::error::Error;

/// What a handler did about the reply.
pub enum Answer {
    /// To be sent now.
    Reply(Reply),
    /// Sent already, or the client is blocked and will be answered.
    Done,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// A command that a client, a transaction, a script or another module runs now.
pub struct Command<'a> {
    ctx: *mut raw::RedisModuleCtx,
    argv: Argv<'a>,
    lock: Lock<'a>,
    /// Its client has waited: the server runs it by a client of its own.
    has_waited: bool,
}

impl<'a> Command<'a> {
    pub fn lock(&self) -> Lock<'a> {
        self.lock
    }

    /// The command of a client that waited, in whose place the server calls us back.
    ///
    /// # Safety
    /// The context and the arguments are those of the server's call, under its lock.
    pub(super) unsafe fn of(
        ctx: *mut raw::RedisModuleCtx,
        argv: *mut *mut raw::RedisModuleString,
        argc: c_int,
        lock: Lock<'a>,
    ) -> Self {
        Self {
            ctx,
            // SAFETY: by the caller's promise.
            argv: unsafe { Argv::new(argv, argc) },
            lock,
            has_waited: true,
        }
    }

    pub(super) fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// The arguments, the command's own name first.
    pub fn argv(&self) -> Argv<'a> {
        self.argv
    }

    /// One of its words, to be kept beyond it.
    pub fn hold(&self, position: usize) -> Option<Held> {
        let word = self.argv.as_raw().get(position)?;
        // SAFETY: the server keeps the words while the command runs.
        Some(unsafe { Held::new(self.lock, *word) })
    }

    pub(super) fn as_raw(&self) -> *mut raw::RedisModuleCtx {
        self.ctx
    }

    /// False inside MULTI, scripts and other callers that cannot wait for a reply.
    pub fn may_block(&self) -> bool {
        allow_blocking(self.flags())
    }

    /// While the guard lives, [`caller_may_wait`] is about this command.
    pub fn is_asked(&self) -> Asked<'_> {
        Asked(self.lock, ASKED.replace(self.lock, self.ctx as usize))
    }

    /// True for a command that an AOF file or this server's master holds.
    pub fn comes_from_the_data(&self) -> bool {
        let data = raw::REDISMODULE_CTX_FLAGS_LOADING | raw::REDISMODULE_CTX_FLAGS_REPLICATED;
        self.flags() & data != 0
    }

    /// True between MULTI and EXEC.
    pub fn is_in_transaction(&self) -> bool {
        self.flags() & raw::REDISMODULE_CTX_FLAGS_MULTI != 0
    }

    /// True if its client has chosen RESP3.
    pub fn is_resp3(&self) -> bool {
        self.flags() & raw::REDISMODULE_CTX_FLAGS_RESP3 != 0
    }

    fn flags(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { api!(RedisModule_GetContextFlags(self.ctx)) as u32 }
    }

    /// Suspends the client until the returned handle answers it. Only where [`Command::may_block`] is true.
    ///
    /// # Errors
    /// The server does not let this client wait; it is to be answered now. So nothing should have been begun before.
    pub fn block(&self) -> Result<BlockedClient, Error> {
        // SAFETY: the context is that of a running command, and handlers reply after blocking only by the handle.
        unsafe { BlockedClient::block(self.ctx) }.ok_or(Error::ClientCannotWait)
    }

    /// Suspends the client until its command can be run. `None` if the server does not let it wait. Only where
    /// [`Command::may_block`] is true.
    pub fn wait(&self, awaited: waiting::Awaited) -> Option<WaitingClient> {
        // SAFETY: as above.
        unsafe { WaitingClient::block(self.ctx, awaited) }
    }

    /// Sends a reply now.
    pub fn send(&self, reply: &Reply) {
        // SAFETY: the context is that of a running command.
        unsafe { reply.send(self.ctx) };
    }

    /// Sends an array that holds this reply only.
    pub fn send_only(&self, reply: &Reply) {
        // SAFETY: as above.
        unsafe {
            api!(RedisModule_ReplyWithArray(self.ctx, 1));
            reply.send(self.ctx);
        }
    }

    /// True when the server only asks where the keys are.
    pub fn asks_for_keys(&self) -> bool {
        // SAFETY: the context is alive.
        unsafe { api!(RedisModule_IsKeysPositionRequest(self.ctx)) != 0 }
    }

    /// Declares the keys of the command that stands from argument `start` on, at their places in this one.
    pub fn declare_keys_of(&self, features: Features, start: usize) {
        let inner = self.argv.skip(start).as_raw();
        if !features.key_flags || inner.is_empty() {
            return;
        }
        let (mut count, mut flags) = (0, std::ptr::null_mut());
        // SAFETY: the presence of the functions was probed; the two arrays are ours to free.
        unsafe {
            let positions = api!(RedisModule_GetCommandKeysWithFlags(
                self.ctx,
                inner.as_ptr().cast_mut(),
                inner.len() as c_int,
                &raw mut count,
                &raw mut flags
            ));
            if positions.is_null() {
                return;
            }
            for index in 0..count.max(0) as usize {
                api!(RedisModule_KeyAtPosWithFlags(
                    self.ctx,
                    *positions.add(index) + start as c_int,
                    *flags.add(index)
                ));
            }
            api!(RedisModule_Free(positions.cast()));
            api!(RedisModule_Free(flags.cast()));
        }
    }

    /// The same for servers without key flags: positions only.
    pub fn declare_key(&self, position: usize) {
        // SAFETY: called while the server asks for keys.
        unsafe { api!(RedisModule_KeyAtPos(self.ctx, position as c_int)) };
    }

    /// The database that its client has selected.
    pub fn db(&self) -> i32 {
        // SAFETY: the context is alive.
        unsafe { api!(RedisModule_GetSelectedDb(self.ctx)) }
    }

    /// The client that sent this command; meaningless for scripts, functions and modules.
    pub fn client_id(&self) -> u64 {
        // SAFETY: the context is alive.
        unsafe { api!(RedisModule_GetClientId(self.ctx)) }
    }

    /// True if a client sent it, by itself or in a script, which has its client's user. Not so for functions, and for clients
    /// that the server uses by itself.
    pub fn has_client(&self) -> bool {
        let id = self.client_id();
        id != 0 && id < INTERNAL_CLIENTS && !call::is_under_way(self.lock)
    }

    /// True when the user who sent this command may run the one that stands in `argv`. Functions and other modules
    /// have no user and may run everything. A subcommand that the server does not know takes the rights to its command: a hook gets it.
    pub fn sender_may_run(&self, argv: Argv<'_>) -> bool {
        if call::is_under_way(self.lock) {
            return true;
        }
        let user = User::of_client(self.lock, self.client_id()).or_else(|| self.script_user());
        user.is_none_or(|user| {
            let mut words = argv.as_raw().to_vec();
            user.may_run_known(&mut words)
                .unwrap_or_else(|| words.len() > 1 && user.may_run(&mut words[..1]))
        })
    }

    /// The user who runs the script that runs this command.
    fn script_user(&self) -> Option<User> {
        let in_script = self.flags() & raw::REDISMODULE_CTX_FLAGS_LUA != 0;
        if !in_script || !has_api!(RedisModule_GetCurrentUserName) {
            return None;
        }
        // SAFETY: the presence of the function was just checked. The client of a script has its caller's user; only
        // that of a function or a module has none, which 7.0 does not check.
        let name = unsafe { api!(RedisModule_GetCurrentUserName(self.ctx)) };
        User::by_name(&RString::adopt(self.lock, name)?)
    }
}

/// The context of the command in whose time a function runs at once; 0 for none.
static ASKED: Plain<usize> = Plain::new(0);

/// See [`Command::is_asked`].
pub struct Asked<'a>(Lock<'a>, usize);

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        ASKED.set(self.0, self.1);
    }
}

/// As [`Command::may_block`] of the command in whose time a function runs on this thread. Hardly any function wants to know, and for the
/// server it is more work than to run a short one.
pub fn caller_may_wait() -> bool {
    if !lock::is_held() {
        return false;
    }
    lock::with_lock(|lock| {
        let ctx = ASKED.get(lock) as *mut raw::RedisModuleCtx;
        // SAFETY: the command runs for as long as its context is in this place.
        !ctx.is_null() && allow_blocking(unsafe { api!(RedisModule_GetContextFlags(ctx)) as u32 })
    })
}

pub(super) fn allow_blocking(flags: u32) -> bool {
    let denied = raw::REDISMODULE_CTX_FLAGS_MULTI
        | raw::REDISMODULE_CTX_FLAGS_LUA
        | raw::REDISMODULE_CTX_FLAGS_DENY_BLOCKING;
    flags & denied == 0
}

/// The ids of clients that the server uses by itself begin here: they count down from the highest.
const INTERNAL_CLIENTS: u64 = u64::MAX - 0xffff;

/// The frame around every handler: proof of the lock, reply, errors, panics.
///
/// # Safety
/// To be called by a command function of the server with its own arguments.
pub unsafe fn run(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    handler: impl FnOnce(&Command<'_>) -> Result<Answer, Error>,
) -> c_int {
    // SAFETY: the server holds its lock while it runs a command, and keeps the arguments alive.
    unsafe {
        let entered = Entered::new();
        let command = Command {
            ctx,
            argv: Argv::new(argv, argc),
            lock: entered.lock(),
            has_waited: false,
        };
        let replies = Cell::new(false);
        let handled = catch_unwind(AssertUnwindSafe(|| {
            let reply = match handler(&command) {
                Ok(Answer::Done) => return,
                Ok(Answer::Reply(reply)) => reply,
                Err(error) => Reply::error(error.text(&command.name())),
            };
            replies.set(true);
            command.send(&reply);
        }));
        if handled.is_err() && !replies.get() {
            caught((), || {
                command.send(&Reply::error("ERR internal error, see the server's log"));
            });
        }
    }
    raw::REDISMODULE_OK as c_int
}

impl Command<'_> {
    fn name(&self) -> String {
        let name = self.argv.get(0).unwrap_or_default();
        String::from_utf8_lossy(name).to_lowercase()
    }
}

/// The C form of a command function.
pub type Function =
    unsafe extern "C" fn(*mut raw::RedisModuleCtx, *mut *mut raw::RedisModuleString, c_int) -> c_int;

/// The release of RedisGears whose contract the commands follow.
const SINCE: &CStr = c"1.2.13";
/// Handlers count their arguments themselves: their errors come in the order of the contract.
const ANY_ARITY: c_int = -1;

/// Our own ACL categories: all commands, and the three rights.
const OWN_CATEGORIES: [&CStr; 4] = [c"gears", c"gears-register", c"gears-call", c"gears-look"];
/// The server has them.
static OWN_CATEGORIES_MADE: AtomicBool = AtomicBool::new(false);

/// Makes [`OWN_CATEGORIES`], where the server lets a module do that (7.4).
///
/// # Safety
/// `ctx` is the context of `RedisModule_OnLoad`; no command was made yet.
pub(super) unsafe fn make_categories(ctx: *mut raw::RedisModuleCtx) {
    if !has_api!(RedisModule_AddACLCategory) {
        return;
    }
    for name in OWN_CATEGORIES {
        // SAFETY: by the caller's promise; the presence of the function was just checked.
        let made = unsafe { api!(RedisModule_AddACLCategory(ctx, name.as_ptr())) };
        if made != raw::REDISMODULE_OK as c_int {
            api::log_warning(&format!(
                "the server refused the ACL category {}: there are none of Pinion's",
                name.to_string_lossy()
            ));
            return;
        }
    }
    OWN_CATEGORIES_MADE.store(true, Ordering::Relaxed);
}

/// What the server is told about a command. Syntax and meaning stand at the handler.
#[derive(Clone, Copy)]
pub struct Definition {
    pub name: &'static CStr,
    /// Flags of `RM_CreateCommand`.
    pub flags: &'static CStr,
    /// ACL categories, where the server lets a module say them (7.2); those of ours ([`OWN_CATEGORIES`]) where it lets a module
    /// make some.
    pub categories: &'static CStr,
    /// The arguments as in `syntax.rs`.
    pub syntax: &'static str,
    /// The place of the first key, 0 if there is none.
    pub key: c_int,
    /// That of the last one; -1 is the last word.
    pub last_key: c_int,
    /// One sentence.
    pub summary: &'static CStr,
    pub function: Function,
}

impl Definition {
    /// Registers the command.
    ///
    /// # Errors
    /// The server refused it; the text names the command.
    ///
    /// # Safety
    /// `ctx` is the context of `RedisModule_OnLoad`.
    pub unsafe fn create(self, ctx: *mut raw::RedisModuleCtx, features: Features) -> Result<(), String> {
        let can_describe = has_api!(RedisModule_GetCommand);
        // SAFETY: by the caller's promise; the texts are static.
        unsafe {
            let created = api!(RedisModule_CreateCommand(
                ctx,
                self.name.as_ptr(),
                Some(self.function),
                self.flags.as_ptr(),
                self.key,
                self.last_key,
                c_int::from(self.key > 0)
            ));
            if created != raw::REDISMODULE_OK as c_int {
                return Err(format!(
                    "the server refused the command {}",
                    self.name.to_string_lossy()
                ));
            }
            if !can_describe {
                return Ok(());
            }
            let command = api!(RedisModule_GetCommand(ctx, self.name.as_ptr()));
            let refused = command.is_null()
                || !self.document(command)
                || (features.acl_categories && !self.set_categories(command));
            if refused {
                api::log_warning(&format!(
                    "the server refused the description of {}",
                    self.name.to_string_lossy()
                ));
            }
        }
        Ok(())
    }

    /// # Safety
    /// `command` was created a moment ago.
    unsafe fn set_categories(self, command: *mut raw::RedisModuleCommand) -> bool {
        let has_own = OWN_CATEGORIES_MADE.load(Ordering::Relaxed);
        let words = self.categories.to_str().unwrap_or_default().split(' ');
        let known: Vec<_> = words
            .filter(|word| has_own || OWN_CATEGORIES.iter().all(|own| own.to_bytes() != word.as_bytes()))
            .collect();
        let Ok(categories) = CString::new(known.join(" ")) else {
            return false;
        };
        // SAFETY: by the caller's promise; the server only reads the text.
        categories.is_empty()
            || unsafe { api!(RedisModule_SetCommandACLCategories(command, categories.as_ptr())) }
                == raw::REDISMODULE_OK as c_int
    }

    /// Fills in COMMAND DOCS.
    ///
    /// # Safety
    /// `command` was created a moment ago.
    unsafe fn document(self, command: *mut raw::RedisModuleCommand) -> bool {
        if !has_api!(RedisModule_SetCommandInfo) {
            return true;
        }
        let version = raw::RedisModuleCommandInfoVersion {
            version: 1,
            sizeof_historyentry: size_of::<raw::RedisModuleCommandHistoryEntry>(),
            sizeof_keyspec: size_of::<raw::RedisModuleCommandKeySpec>(),
            sizeof_arg: size_of::<raw::RedisModuleCommandArg>(),
        };
        let info = raw::RedisModuleCommandInfo {
            version: &raw const version,
            summary: self.summary.as_ptr(),
            complexity: ptr::null(),
            since: SINCE.as_ptr(),
            history: ptr::null_mut(),
            tips: ptr::null(),
            arity: ANY_ARITY,
            key_specs: ptr::null_mut(),
            args: syntax::arguments(self.syntax),
        };
        // SAFETY: by the caller's promise; the server copies the structure.
        unsafe { api!(RedisModule_SetCommandInfo(command, &raw const info)) == raw::REDISMODULE_OK as c_int }
    }
}
