//! The table of module API functions: how one is called, which must be there, which may be missing.
//!
//! `RedisModule_OnLoad` calls [`check_required`] and [`Features::probe`] once; afterwards the answers are constant.

use std::ffi::CString;

use redis_module::raw;

/// Calls one function of the module API by its name without the prefix.
///
/// Only for functions that [`check_required`] has seen, or whose presence the caller has just checked.
/// Must stand in an `unsafe` block: the caller vouches for the arguments.
macro_rules! api {
    ($name:ident($($arg:expr),* $(,)?)) => {
        match $crate::server::raw::$name {
            Some(function) => function($($arg),*),
            None => $crate::server::api::missing(stringify!($name)),
        }
    };
}

/// True when the server offers the function.
macro_rules! has_api {
    ($name:ident) => {
        // SAFETY: the table is filled once, before any other thread of ours exists.
        unsafe {
            let function = $crate::server::raw::$name;
            function.is_some()
        }
    };
}

/// Reached only when a required function was not in [`check_required`]'s list: an error of ours, never of input.
///
/// # Panics
/// Always; every entry point catches it.
#[cold]
pub fn missing(name: &str) -> ! {
    panic!("the server does not offer {name}")
}

/// The functions without which the module cannot work at all.
///
/// # Errors
/// The name of the first one that the server lacks.
pub fn check_required() -> Result<(), &'static str> {
    macro_rules! require {
        ($($name:ident),* $(,)?) => { $( if !has_api!($name) { return Err(stringify!($name)); } )* };
    }
    require!(
        RedisModule_Alloc,
        RedisModule_Free,
        RedisModule_Realloc,
        RedisModule_BlockClient,
        RedisModule_UnblockClient,
        RedisModule_GetBlockedClientPrivateData,
        RedisModule_Call,
        RedisModule_CallReplyType,
        RedisModule_CallReplyProto,
        RedisModule_CallReplyInteger,
        RedisModule_CallReplyLength,
        RedisModule_CallReplyArrayElement,
        RedisModule_CallReplyStringPtr,
        RedisModule_FreeCallReply,
        RedisModule_CreateCommand,
        RedisModule_CreateDataType,
        RedisModule_DeleteKey,
        RedisModule_EmitAOF,
        RedisModule_GetKeyNameFromIO,
        RedisModule_IsIOError,
        RedisModule_LoadStringBuffer,
        RedisModule_LoadUnsigned,
        RedisModule_ModuleTypeGetType,
        RedisModule_ModuleTypeSetValue,
        RedisModule_Replicate,
        RedisModule_SaveStringBuffer,
        RedisModule_SaveUnsigned,
        RedisModule_CreateString,
        RedisModule_FreeString,
        RedisModule_StringPtrLen,
        RedisModule_RetainString,
        RedisModule_GetContextFlags,
        RedisModule_GetSelectedDb,
        RedisModule_SelectDb,
        RedisModule_GetThreadSafeContext,
        RedisModule_ThreadSafeContextLock,
        RedisModule_ThreadSafeContextUnlock,
        RedisModule_Log,
        RedisModule_Milliseconds,
        RedisModule_OpenKey,
        RedisModule_CloseKey,
        RedisModule_GetExpire,
        RedisModule_GetServerInfo,
        RedisModule_ServerInfoGetFieldC,
        RedisModule_FreeServerInfo,
        RedisModule_KeyType,
        RedisModule_ReplyWithArray,
        RedisModule_ReplyWithCallReply,
        RedisModule_ReplyWithDouble,
        RedisModule_ReplyWithError,
        RedisModule_ReplyWithLongLong,
        RedisModule_ReplyWithNull,
        RedisModule_ReplyWithNullArray,
        RedisModule_ReplyWithSimpleString,
        RedisModule_ReplyWithStringBuffer,
        RedisModule_RegisterCommandFilter,
        RedisModule_UnregisterCommandFilter,
        RedisModule_CommandFilterArgsCount,
        RedisModule_CommandFilterArgGet,
        RedisModule_CommandFilterArgInsert,
        RedisModule_Scan,
        RedisModule_ScanCursorCreate,
        RedisModule_ScanCursorDestroy,
        RedisModule_ScanKey,
        RedisModule_SetModuleOptions,
        RedisModule_SubscribeToKeyspaceEvents,
        RedisModule_SubscribeToServerEvent,
        RedisModule_IsKeysPositionRequest,
        RedisModule_KeyAtPos,
        RedisModule_GetClientId,
        RedisModule_GetClientInfoById,
    );
    Ok(())
}

/// What this server can do beyond the oldest one that we load on. See `docs/architecture.md`, "Optional API".
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// The filter may ask which client sent the command (Redis 7.2, Valkey 7.2).
    pub filter_client_id: bool,
    /// Keys can be looked at without touching statistics, notifications or expiry (the same versions).
    pub quiet_open: bool,
    /// `RM_Call` takes `E` (errors as replies) and `0` (the client's protocol), `M`, `W` (Redis 7.0).
    pub call_options: bool,
    /// Key specifications with flags (Redis 7.0).
    pub key_flags: bool,
    /// Command categories for ACL (Redis 7.2).
    pub acl_categories: bool,
}

impl Features {
    /// Looks at the function table once.
    pub fn probe() -> Self {
        let quiet_open = has_api!(RedisModule_GetOpenKeyModesAll) && has_api!(RedisModule_GetAbsExpire) && {
            // SAFETY: presence was just checked; the function takes no argument.
            let modes = unsafe { api!(RedisModule_GetOpenKeyModesAll()) };
            modes & raw::REDISMODULE_OPEN_KEY_NOEFFECTS as i32 != 0
        };
        Self {
            filter_client_id: has_api!(RedisModule_CommandFilterGetClientId),
            quiet_open,
            call_options: has_api!(RedisModule_SetContextUser),
            key_flags: has_api!(RedisModule_KeyAtPosWithFlags)
                && has_api!(RedisModule_GetCommandKeysWithFlags),
            acl_categories: has_api!(RedisModule_SetCommandACLCategories) && has_api!(RedisModule_GetCommand),
        }
    }
}

/// The level of a line in the server's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Verbose,
    Notice,
    Warning,
}

impl Level {
    const fn name(self) -> &'static std::ffi::CStr {
        match self {
            Self::Debug => c"debug",
            Self::Verbose => c"verbose",
            Self::Notice => c"notice",
            Self::Warning => c"warning",
        }
    }
}

/// Writes one line to the server's log; safe on any thread. A text is cut at its first NUL.
pub fn log(level: Level, text: &str) {
    let text = CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default();
    let ctx = super::lock::log_context();
    // SAFETY: the format takes exactly one C string; the context may be null for logging.
    unsafe {
        api!(RedisModule_Log(
            ctx,
            level.name().as_ptr(),
            c"%s".as_ptr(),
            text.as_ptr()
        ));
    }
}

/// [`log`] at the level `notice`.
pub fn log_notice(text: &str) {
    log(Level::Notice, text);
}

/// [`log`] at the level `warning`.
pub fn log_warning(text: &str) {
    log(Level::Warning, text);
}
