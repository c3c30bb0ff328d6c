//! The load of the module: arguments, commands, subscriptions; and what becomes of a failure.

use std::{
    ffi::{CStr, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use redis_module::raw;

use crate::per_thread;

use super::{
    after,
    api::{self, Features},
    asking::config,
    command::{self, Definition},
    datatype,
    events::{self, ServerFunction},
    info, key,
    lock::{self, Entered, Lock},
    options::{self, ServerOption},
    persist,
    script_engine::{self, ScriptEngine},
    string::Argv,
};

/// The module while it loads.
pub struct Loading<'a> {
    ctx: *mut raw::RedisModuleCtx,
    argv: Argv<'a>,
    lock: Lock<'a>,
}

impl<'a> Loading<'a> {
    pub fn lock(&self) -> Lock<'a> {
        self.lock
    }

    /// The module arguments.
    pub fn arguments(&self) -> Vec<Vec<u8>> {
        self.argv.to_vecs()
    }

    /// Makes options part of the server's configuration and takes over what its file says. Nothing happens where the
    /// server has no such thing.
    ///
    /// # Errors
    /// The server refused one of them, or a value.
    pub fn offer(&self, options: Vec<ServerOption>) -> Result<(), String> {
        if !options::are_offered() {
            return Ok(());
        }
        // SAFETY: the context is that of `RedisModule_OnLoad`.
        unsafe { options::register(self.ctx, options) }
    }

    /// Registers the module's type of keys.
    ///
    /// # Errors
    /// The server refused it.
    pub fn create_type(&self, load: datatype::Load) -> Result<(), String> {
        // SAFETY: the context is that of `RedisModule_OnLoad`.
        unsafe { datatype::create(self.ctx, load) }
    }

    /// Registers what is kept in files besides keys.
    ///
    /// # Errors
    /// The server refused it.
    pub fn keep_in_files(&self, saved: Arc<dyn persist::Saved>) -> Result<(), String> {
        // SAFETY: the context is that of `RedisModule_OnLoad`.
        unsafe { persist::create(self.ctx, saved) }
    }

    /// Makes `engine` the server's scripting engine of this name.
    ///
    /// # Errors
    /// Why the server has none of it.
    pub fn offer_engine(&self, name: &CStr, engine: Arc<dyn ScriptEngine>) -> Result<(), &'static str> {
        // SAFETY: the context is that of `RedisModule_OnLoad`.
        unsafe { script_engine::register(self.ctx, self.lock, name, engine) }
    }

    /// The port that this server listens on, for TLS if there is no other; 0 if neither is known.
    pub fn port(&self) -> u16 {
        let of = |option: &str| -> Option<u16> {
            let (_, value) = config(self.lock, Features::probe(), option).pop()?;
            value.parse().ok()
        };
        let port = of("port").filter(|&port| port != 0);
        port.or_else(|| of("tls-port")).unwrap_or_default()
    }

    /// Makes the ACL categories that commands are in. To be called before the first [`Loading::create`].
    pub fn make_categories(&self) {
        // SAFETY: the context is that of `RedisModule_OnLoad`.
        unsafe { command::make_categories(self.ctx) }
    }

    /// Registers a command.
    ///
    /// # Errors
    /// The server refused it.
    pub fn create(&self, command: Definition, features: Features) -> Result<(), String> {
        // SAFETY: the context is that of `RedisModule_OnLoad`.
        unsafe { command.create(self.ctx, features) }
    }

    /// Asks for server events, and registers the module's part of INFO. False if the server does not tell when it is
    /// about to sleep.
    pub fn subscribe(&self, on_event: ServerFunction, on_info: info::Function) -> bool {
        // SAFETY: the context is that of `RedisModule_OnLoad`.
        unsafe {
            info::register(self.ctx, on_info);
            events::subscribe_server(self.ctx, on_event)
        }
    }
}

/// The frame around the load: the function table first, then `start`. A failure is a log line and a refused load.
///
/// # Safety
/// To be called by `RedisModule_OnLoad` with the server's own arguments.
pub unsafe fn run(
    ctx: *mut raw::RedisModuleCtx,
    argv: *mut *mut raw::RedisModuleString,
    argc: c_int,
    name: &CStr,
    version: c_int,
    start: impl FnOnce(&Loading<'_>) -> Result<(), String>,
) -> c_int {
    const REFUSED: c_int = raw::REDISMODULE_ERR as c_int;
    // SAFETY: by the caller's promise. Nothing is allocated before the function table is filled.
    let entered = unsafe {
        let registered =
            raw::Export_RedisModule_Init(ctx, name.as_ptr(), version, raw::REDISMODULE_APIVER_1 as c_int);
        per_thread::this_is_the_servers();
        let entered = Entered::new();
        if registered != raw::REDISMODULE_OK as c_int {
            // The function table is there by now; what the server refuses is the name.
            let name = name.to_string_lossy();
            api::log_warning(&format!(
                "a module named {name} is loaded already, so this one is not: Pinion is loaded once in a server"
            ));
            return REFUSED;
        }
        entered
    };
    if let Err(missing) = api::check_required() {
        api::log_warning(&format!(
            "this server is too old for Pinion: it has no {missing}; Redis 6.2 or newer is needed"
        ));
        return REFUSED;
    }
    log_panics();
    // SAFETY: the context and the arguments are the server's; it holds its lock while a module loads.
    let loading = unsafe {
        lock::init(ctx);
        after::init();
        // Damaged files are refused with a reason of ours instead of ending the server on the spot.
        // Whoever writes to a key natively signals that by himself, when it is time for it.
        let options =
            raw::REDISMODULE_OPTIONS_HANDLE_IO_ERRORS | raw::REDISMODULE_OPTION_NO_IMPLICIT_SIGNAL_MODIFIED;
        key::init(entered.lock(), Features::probe());
        api!(RedisModule_SetModuleOptions(ctx, options as c_int));
        Loading {
            ctx,
            argv: Argv::new(argv, argc),
            lock: entered.lock(),
        }
    };
    match catch_unwind(AssertUnwindSafe(|| start(&loading))) {
        Ok(Ok(())) => raw::REDISMODULE_OK as c_int,
        Ok(Err(reason)) => {
            api::log_warning(&reason);
            REFUSED
        }
        Err(_) => REFUSED,
    }
}

/// Panics are caught at every entry; this says where they came from.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        api::log_warning(&format!("internal error on thread {name}: {panic}"));
    }));
}
