//! A scripting engine of the server (Valkey 8.1 and later): what EVAL, FUNCTION LOAD and FCALL do with code of a language
//! that a module brings. Contract: docs/contract/scripting-engine.md.
//!
//! The structures are those of `valkeymodule.h`. What the server may move or free is allocated by its own allocator; what a
//! compiled function means to us hangs on it by a pointer, which stays where it is.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr, slice,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis_module::raw;

use super::{
    entry::caught,
    flush,
    lock::{Entered, Lock},
    reply::Reply,
    script_call::{self, Abi, ScriptCall},
    string::Argv,
    version::Version,
};

/// Who asks for code to be compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// EVAL, SCRIPT LOAD: one function.
    Eval,
    /// FUNCTION LOAD: a library of functions.
    Library,
}

/// A function that the server can call.
pub trait ScriptFunction: Send + Sync {
    /// Runs it for one EVAL or FCALL; what it answers.
    fn call(&self, call: &ScriptCall<'_>) -> Reply;

    /// The memory that it takes, in bytes.
    fn size(&self) -> usize;
}

/// A function as the code declares it.
pub struct Declared {
    pub name: String,
    pub description: Option<String>,
    pub flags: Flags,
    pub function: Arc<dyn ScriptFunction>,
}

/// The language behind the engine.
pub trait ScriptEngine: Send + Sync {
    /// Makes functions of `code`, which begins behind the shebang's text, with its line end. `limit`: how long it may run.
    ///
    /// # Errors
    /// The text that the client gets, in one line.
    fn compile(
        &self,
        lock: Lock<'_>,
        kind: Kind,
        code: &[u8],
        limit: Option<Duration>,
    ) -> Result<Vec<Declared>, String>;
}

/// Flags of a function, as FUNCTION LIST shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u64);

impl Flags {
    /// Their names, in the order of their bits.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("no-writes", Self(1)),
        ("allow-oom", Self(1 << 1)),
        ("allow-stale", Self(1 << 2)),
        ("no-cluster", Self(1 << 3)),
        ("allow-cross-slot-keys", Self(1 << 5)),
    ];
    pub const NO_WRITES: Self = Self(1);
    pub const ALLOW_OOM: Self = Self(1 << 1);

    /// Flags as they come from [`Flags::bits`].
    pub const fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u64 {
        self.0
    }

    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

#[repr(C)]
struct CompiledFunction {
    version: u64,
    name: *mut raw::RedisModuleString,
    /// A [`Kept`].
    function: *mut c_void,
    description: *mut raw::RedisModuleString,
    flags: u64,
}

/// What a compiled function is to us.
struct Kept {
    function: Arc<dyn ScriptFunction>,
    flags: Flags,
}

#[repr(C)]
struct MemoryInfo {
    version: u64,
    used: usize,
    overhead: usize,
}

type Ctx = *mut raw::RedisModuleCtx;
type Strings = *mut *mut raw::RedisModuleString;
type Compile = unsafe extern "C" fn(
    Ctx,
    *mut c_void,
    c_int,
    *const c_char,
    usize,
    usize,
    *mut usize,
    *mut *mut raw::RedisModuleString,
) -> *mut *mut CompiledFunction;
type Call = unsafe extern "C" fn(
    Ctx,
    *mut c_void,
    *mut c_void,
    *mut CompiledFunction,
    c_int,
    Strings,
    usize,
    Strings,
    usize,
);

/// `ValkeyModuleScriptingEngineMethodsV4`; earlier versions are its beginning.
#[repr(C)]
struct Methods {
    version: u64,
    compile: Compile,
    free: unsafe extern "C" fn(Ctx, *mut c_void, c_int, *mut CompiledFunction),
    call: Call,
    function_overhead: unsafe extern "C" fn(Ctx, *mut CompiledFunction) -> usize,
    /// Its last argument is missing before version 3. It looks at none of them.
    reset: unsafe extern "C" fn(Ctx, *mut c_void, c_int, c_int) -> *mut c_void,
    memory: unsafe extern "C" fn(Ctx, *mut c_void, c_int) -> MemoryInfo,
    /// There is no debugger, which null tells the server.
    debugger: [*const c_void; 4],
}

const EVAL: c_int = 0;
const FUNCTION: c_int = 1;
const STRUCTURE_VERSION: u64 = 1;

static ENGINE: OnceLock<Arc<dyn ScriptEngine>> = OnceLock::new();
/// Bytes of compiled functions, by [`Kind`].
static USED: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// Makes `engine` the server's engine of this name.
///
/// # Errors
/// Why the server has none of it: it is one without this interface, or it refused.
///
/// # Safety
/// `ctx` is the context of `RedisModule_OnLoad`.
pub(super) unsafe fn register(
    ctx: Ctx,
    lock: Lock<'_>,
    name: &CStr,
    engine: Arc<dyn ScriptEngine>,
) -> Result<(), &'static str> {
    type Register = unsafe extern "C" fn(Ctx, *const c_char, *mut c_void, *mut Methods) -> c_int;
    // SAFETY: by the caller's promise; the functions have these types since they exist.
    let (register, state) = unsafe {
        (
            look_up(ctx, c"ValkeyModule_RegisterScriptingEngine"),
            look_up(ctx, c"ValkeyModule_GetFunctionExecutionState"),
        )
    };
    let (Some(register), Some(state)) = (register, state) else {
        return Err("this server takes no scripting engines of modules");
    };
    let version = Version::of_server(lock);
    flush::init(version);
    let abi = match version {
        Version::Valkey(8, ..) => Abi::V2,
        Version::Valkey(9, 0, _) => Abi::V3,
        _ => Abi::V4,
    };
    if ENGINE.set(engine).is_err() {
        return Err("it is registered already");
    }
    let mut methods = Methods {
        version: abi as u64,
        compile: on_compile,
        free: on_free,
        call: on_call,
        function_overhead: on_function_overhead,
        reset: on_reset,
        memory: on_memory,
        debugger: [ptr::null(); 4],
    };
    // SAFETY: by the caller's promise; the server copies the name and the methods.
    let done = unsafe {
        script_call::init(state, abi);
        let register: Register = std::mem::transmute(register);
        register(ctx, name.as_ptr(), ptr::null_mut(), &raw mut methods)
    };
    if done == raw::REDISMODULE_OK as c_int {
        Ok(())
    } else {
        Err("the server refused it: another module has an engine of this name")
    }
}

/// A function of the module API by its full name.
///
/// # Safety
/// `ctx` is a context of the server.
unsafe fn look_up(ctx: Ctx, name: &CStr) -> Option<*mut c_void> {
    type GetApi = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
    let mut function = ptr::null_mut();
    // SAFETY: a context begins with this function, through which modules get all others.
    unsafe {
        let get: GetApi = std::mem::transmute(*ctx.cast::<*mut c_void>());
        get(name.as_ptr(), &raw mut function);
    }
    (!function.is_null()).then_some(function)
}

unsafe extern "C" fn on_compile(
    _ctx: Ctx,
    _engine: *mut c_void,
    kind: c_int,
    code: *const c_char,
    len: usize,
    timeout_ms: usize,
    count: *mut usize,
    error: *mut *mut raw::RedisModuleString,
) -> *mut *mut CompiledFunction {
    // SAFETY: the server holds its lock while it compiles; the text is its own.
    let (entered, code) = unsafe { (Entered::new(), slice::from_raw_parts(code.cast::<u8>(), len)) };
    let kind = if kind == EVAL { Kind::Eval } else { Kind::Library };
    let limit = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms as u64));
    let panicked = Err("internal error, see the server's log".to_owned());
    let compiled = caught(panicked, || match ENGINE.get() {
        Some(engine) => engine.compile(entered.lock(), kind, code, limit),
        None => Err("the module is still loading".to_owned()),
    });
    // SAFETY: the places are the server's; what is put there is its own to free.
    unsafe {
        *count = 0;
        match compiled {
            Ok(functions) => {
                *count = functions.len();
                let made: *mut *mut CompiledFunction = allocate(functions.len());
                for (index, declared) in functions.into_iter().enumerate() {
                    *made.add(index) = keep(kind, declared);
                }
                flush::watch(entered.lock());
                made
            }
            Err(text) => {
                *error = string(&text);
                ptr::null_mut()
            }
        }
    }
}

/// Room for `count` values, which the server frees or we do.
unsafe fn allocate<T>(count: usize) -> *mut T {
    // SAFETY: at least one byte is asked for; the server ends the process if it has no memory.
    unsafe { api!(RedisModule_Alloc((count * size_of::<T>()).max(1))).cast() }
}

unsafe fn string(text: &str) -> *mut raw::RedisModuleString {
    // SAFETY: a null context means that nobody else frees the string.
    unsafe {
        api!(RedisModule_CreateString(
            ptr::null_mut(),
            text.as_ptr().cast(),
            text.len()
        ))
    }
}

unsafe fn keep(kind: Kind, declared: Declared) -> *mut CompiledFunction {
    USED[kind as usize].fetch_add(declared.function.size(), Ordering::Relaxed);
    let Declared {
        name,
        description,
        flags,
        function,
    } = declared;
    let kept = Box::into_raw(Box::new(Kept { function, flags }));
    // SAFETY: the structure is written whole before anybody reads it.
    unsafe {
        let compiled: *mut CompiledFunction = allocate(1);
        compiled.write(CompiledFunction {
            version: STRUCTURE_VERSION,
            name: string(&name),
            function: kept.cast(),
            description: description.map_or(ptr::null_mut(), |text| string(&text)),
            flags: flags.0,
        });
        compiled
    }
}

/// On the server's thread, or on one that frees memory in the background: it may hold the lock (Valkey 9) or not (8.1).
unsafe extern "C" fn on_free(_ctx: Ctx, _engine: *mut c_void, kind: c_int, compiled: *mut CompiledFunction) {
    // SAFETY: the server gives back what `keep` made, once. Nobody else has the strings, so their counts need no lock.
    let kept = unsafe {
        let CompiledFunction {
            name,
            description,
            function,
            ..
        } = compiled.read();
        api!(RedisModule_FreeString(ptr::null_mut(), name));
        if !description.is_null() {
            api!(RedisModule_FreeString(ptr::null_mut(), description));
        }
        api!(RedisModule_Free(compiled.cast()));
        Box::from_raw(function.cast::<Kept>())
    };
    let used = &USED[usize::from(kind == FUNCTION)];
    used.fetch_sub(kept.function.size(), Ordering::Relaxed);
    caught((), || drop(kept));
}

unsafe extern "C" fn on_call(
    ctx: Ctx,
    _engine: *mut c_void,
    server_ctx: *mut c_void,
    compiled: *mut CompiledFunction,
    kind: c_int,
    keys: Strings,
    key_count: usize,
    arguments: Strings,
    argument_count: usize,
) {
    // SAFETY: the server holds its lock while a script runs, and keeps the function and all strings alive. The function may
    // be replaced meanwhile by nobody: there is one script at a time.
    unsafe {
        let entered = Entered::new();
        let kept = &*(*compiled).function.cast::<Kept>();
        let function = Arc::clone(&kept.function);
        let call = ScriptCall::new(
            entered.lock(),
            ctx,
            server_ctx,
            kind == EVAL,
            kept.flags,
            Argv::new(keys, i32::try_from(key_count).unwrap_or_default()),
            Argv::new(arguments, i32::try_from(argument_count).unwrap_or_default()),
        );
        let panicked = Reply::error("ERR internal error, see the server's log");
        let reply = caught(panicked, || function.call(&call));
        drop(call);
        reply.send(ctx);
    }
}

unsafe extern "C" fn on_function_overhead(_ctx: Ctx, compiled: *mut CompiledFunction) -> usize {
    // SAFETY: `keep` made it.
    let kept = unsafe { &*(*compiled).function.cast::<Kept>() };
    caught(0, || {
        size_of::<CompiledFunction>() + size_of::<Kept>() + kept.function.size()
    })
}

/// The functions are freed one by one; nothing else is kept for them.
unsafe extern "C" fn on_reset(_ctx: Ctx, _engine: *mut c_void, _first: c_int, _second: c_int) -> *mut c_void {
    ptr::null_mut()
}

unsafe extern "C" fn on_memory(_ctx: Ctx, _engine: *mut c_void, kind: c_int) -> MemoryInfo {
    let used = |kind: Kind| USED[kind as usize].load(Ordering::Relaxed);
    MemoryInfo {
        version: STRUCTURE_VERSION,
        used: match kind {
            EVAL => used(Kind::Eval),
            FUNCTION => used(Kind::Library),
            _ => used(Kind::Eval) + used(Kind::Library),
        },
        overhead: size_of::<Arc<dyn ScriptEngine>>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_bits() {
        let bits: u64 = Flags::NAMES.iter().map(|(_, flag)| flag.bits()).sum();
        assert_eq!(bits, 0b10_1111, "the bit between them is the server's own");
        assert!(Flags::of_bits(3).contains(Flags::NO_WRITES) && !Flags::NO_WRITES.contains(Flags::ALLOW_OOM));
    }
}
