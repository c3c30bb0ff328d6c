//! The module's own type of keys, whose values are opaque to the server: kept in RDB files, remade by an internal command
//! in AOF files and on replicas.
//!
//! Values hold images of functions, which run code when they are loaded: they come from files and from this server's master
//! only. RESTORE of a client is refused, since anybody can make up its bytes; so is MIGRATE, which uses it.

use std::{
    ffi::{CStr, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use redis_module::raw;
use sha2::{Digest, Sha256};

use super::{
    api,
    call::replicate,
    entry::caught,
    lock::{Entered, Lock},
    store,
    string::RString,
};

/// Nine characters, as the server demands.
const NAME: &CStr = c"rg_timeev";
/// The version of the values in RDB files: the number of words and the words; since 2 a digest of them follows.
const VERSION: c_int = 2;
const FIRST_WITH_DIGEST: c_int = 2;
/// More words than any version has: what says more is damaged.
const MAX_WORDS: u64 = 64;

const DAMAGED: &str = "its bytes are damaged";

static TYPE: AtomicPtr<raw::RedisModuleType> = AtomicPtr::new(ptr::null_mut());
static LOAD: OnceLock<Load> = OnceLock::new();

/// Makes a value of the words that it was saved as.
pub type Load = fn(Lock<'_>, Vec<Vec<u8>>) -> Result<Box<dyn Value>, String>;

/// The value of a key. Dropped when the key is gone, on any thread.
pub trait Value: Send {
    /// What [`Load`] makes it of again.
    fn words(&self) -> Vec<Vec<u8>>;

    /// The internal command that makes it of its key and these words.
    fn command(&self) -> &'static CStr;
}

/// What the server keeps a pointer to.
type Kept = Box<dyn Value>;

/// Tells the server about the type.
///
/// # Errors
/// The server refused it.
///
/// # Safety
/// `ctx` is the context of `RedisModule_OnLoad`.
pub(super) unsafe fn create(ctx: *mut raw::RedisModuleCtx, load: Load) -> Result<(), String> {
    // Told once, while the module loads.
    let _ = LOAD.set(load);
    // SAFETY: an all-zero structure names no function; the first version of it has those below.
    let mut methods: raw::RedisModuleTypeMethods = unsafe { std::mem::zeroed() };
    methods.version = 1;
    methods.rdb_load = Some(on_load);
    methods.rdb_save = Some(on_save);
    methods.aof_rewrite = Some(on_rewrite);
    methods.free = Some(on_free);
    // SAFETY: by the caller's promise.
    let made = unsafe { create_type(ctx, NAME, VERSION, &mut methods)? };
    TYPE.store(made, Ordering::Release);
    Ok(())
}

/// A type of values, or of a section of files, by what the server calls for it.
///
/// # Errors
/// The server refused it.
///
/// # Safety
/// `ctx` is the context of `RedisModule_OnLoad`.
pub(super) unsafe fn create_type(
    ctx: *mut raw::RedisModuleCtx,
    name: &CStr,
    version: c_int,
    methods: &mut raw::RedisModuleTypeMethods,
) -> Result<*mut raw::RedisModuleType, String> {
    // SAFETY: by the caller's promise; the server copies the structure.
    let made = unsafe { api!(RedisModule_CreateDataType(ctx, name.as_ptr(), version, methods)) };
    if made.is_null() {
        return Err(format!("the server refused the type {}", name.to_string_lossy()));
    }
    Ok(made)
}

/// Makes a key of this value. False if there is such a key already.
///
/// The command in its place goes to replicas and the AOF file.
pub fn put(lock: Lock<'_>, name: &[u8], value: Kept) -> bool {
    let string = RString::new(lock, name);
    let words = value.words();
    let command = value.command();
    // SAFETY: under the lock; the name is alive; the key is closed before anything else happens.
    let free = unsafe {
        let key = api!(RedisModule_OpenKey(
            lock.call_context(0),
            string.as_raw(),
            (raw::REDISMODULE_READ | raw::REDISMODULE_WRITE) as c_int
        ))
        .cast();
        let free = api!(RedisModule_KeyType(key)) as isize == raw::REDISMODULE_KEYTYPE_EMPTY;
        if free {
            let value = Box::into_raw(Box::new(value)).cast();
            api!(RedisModule_ModuleTypeSetValue(
                key,
                TYPE.load(Ordering::Acquire),
                value
            ));
        }
        api!(RedisModule_CloseKey(key));
        free
    };
    if free {
        store::signal_modified(lock, 0, name);
        let words = [vec![name.to_vec()], words].concat();
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        replicate(lock, command, &words);
    }
    free
}

unsafe extern "C" fn on_load(io: *mut raw::RedisModuleIO, version: c_int) -> *mut c_void {
    if version > VERSION {
        api::log_warning(&format!(
            "a time event of a newer version ({version}) cannot be loaded: this one is {VERSION}"
        ));
        return ptr::null_mut();
    }
    // SAFETY: the server holds its lock while it loads.
    let entered = unsafe { Entered::new() };
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let lock = entered.lock();
        // A replica gets writes from nobody but its master.
        if !lock.is_loading() && !lock.refuses_writes() {
            return Err("such a key comes from files and masters only, not by RESTORE or MIGRATE".to_owned());
        }
        // SAFETY: the server calls this with its own argument.
        let words = unsafe { read_words(io, version)? };
        LOAD.get()
            .ok_or_else(|| "the module is still loading".to_owned())
            .and_then(|load| load(lock, words))
    }));
    match loaded {
        Ok(Ok(value)) => Box::into_raw(Box::new(value)).cast(),
        Ok(Err(reason)) => {
            api::log_warning(&format!("a time event cannot be loaded: {reason}"));
            ptr::null_mut()
        }
        Err(_) => ptr::null_mut(),
    }
}

/// # Errors
/// The bytes are damaged.
///
/// # Safety
/// `io` is that of a load callback.
unsafe fn read_words(io: *mut raw::RedisModuleIO, version: c_int) -> Result<Vec<Vec<u8>>, String> {
    // SAFETY: by the caller's promise.
    unsafe {
        let count = api!(RedisModule_LoadUnsigned(io));
        if api!(RedisModule_IsIOError(io)) != 0 || count > MAX_WORDS {
            return Err(DAMAGED.to_owned());
        }
        let mut words = Vec::new();
        for _ in 0..count {
            words.push(read_word(io)?);
        }
        if version >= FIRST_WITH_DIGEST && read_word(io)? != digest(&words) {
            return Err(DAMAGED.to_owned());
        }
        Ok(words)
    }
}

/// # Errors
/// There is none.
///
/// # Safety
/// `io` is that of a load callback.
unsafe fn read_word(io: *mut raw::RedisModuleIO) -> Result<Vec<u8>, String> {
    // SAFETY: by the caller's promise; the buffer is copied and freed.
    unsafe {
        let mut len = 0;
        let start = api!(RedisModule_LoadStringBuffer(io, &raw mut len));
        if start.is_null() {
            return Err(DAMAGED.to_owned());
        }
        let word = std::slice::from_raw_parts(start.cast::<u8>(), len).to_vec();
        api!(RedisModule_Free(start.cast()));
        Ok(word)
    }
}

/// Finds damage; it is no proof of where the words come from.
fn digest(words: &[Vec<u8>]) -> Vec<u8> {
    let mut digest = Sha256::new();
    for word in words {
        digest.update((word.len() as u64).to_le_bytes());
        digest.update(word);
    }
    digest.finalize().to_vec()
}

unsafe extern "C" fn on_save(io: *mut raw::RedisModuleIO, value: *mut c_void) {
    caught((), || {
        // SAFETY: the server calls this with a value that we gave it.
        unsafe {
            let Some(value) = value.cast::<Kept>().as_ref() else {
                return;
            };
            let words = value.words();
            api!(RedisModule_SaveUnsigned(io, words.len() as u64));
            let digest = digest(&words);
            for word in words.into_iter().chain([digest]) {
                api!(RedisModule_SaveStringBuffer(io, word.as_ptr().cast(), word.len()));
            }
        }
    });
}

unsafe extern "C" fn on_rewrite(
    io: *mut raw::RedisModuleIO,
    key: *mut raw::RedisModuleString,
    value: *mut c_void,
) {
    caught((), || {
        // SAFETY: as above, with a live name. The server is a child process of its own here: nobody holds our locks.
        unsafe {
            let Some(value) = value.cast::<Kept>().as_ref() else {
                return;
            };
            let words = value.words();
            let strings: Vec<*mut raw::RedisModuleString> = words
                .iter()
                .map(|word| {
                    api!(RedisModule_CreateString(
                        ptr::null_mut(),
                        word.as_ptr().cast(),
                        word.len()
                    ))
                })
                .collect();
            api!(RedisModule_EmitAOF(
                io,
                value.command().as_ptr(),
                c"sv".as_ptr(),
                key,
                strings.as_ptr(),
                strings.len()
            ));
            for string in strings {
                api!(RedisModule_FreeString(ptr::null_mut(), string));
            }
        }
    });
}

unsafe extern "C" fn on_free(value: *mut c_void) {
    caught((), || {
        // SAFETY: made by `put` or `on_load`, freed once.
        drop(unsafe { Box::from_raw(value.cast::<Kept>()) });
    });
}
