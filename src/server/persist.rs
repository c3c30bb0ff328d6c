//! What the module keeps in RDB and AOF files besides keys: a list of blobs.
//!
//! In RDB files they stand in a section of the module's own, in front of the keys, which is missing when there are none.
//! Some servers cannot leave a section out (before 7.2), and a rewritten AOF file without RDB preamble has none: there a key
//! carries them, which exists only while the file is written and while it is loaded. Nearly always that is in a process that
//! the server has forked, where nobody else can see it.

use std::{
    ffi::{CStr, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

use redis_module::raw;

use super::{
    api::{self, Features},
    asking::config,
    datatype::create_type,
    events::Mute,
    guarded::Guarded,
    lock::{Entered, Lock},
    string::RString,
};
use crate::error::Error;

/// The name that the section has in files of RedisGears, too.
const NAME: &CStr = c"GEARS_DT0";
/// RedisGears' own versions end at 4; what stands in them is its secret.
const FIRST_VERSION: c_int = 5;
const VERSION: c_int = 5;
const OK: c_int = raw::REDISMODULE_OK as c_int;
const REFUSED: c_int = raw::REDISMODULE_ERR as c_int;
/// The first version of type methods with sections that can be left out.
const OPTIONAL_SECTIONS: c_int = 5;

static TYPE: AtomicPtr<raw::RedisModuleType> = AtomicPtr::new(ptr::null_mut());
static SAVED: OnceLock<Arc<dyn Saved>> = OnceLock::new();
/// The keys that carry blobs now, in database 0.
static CARRIERS: Guarded<Vec<Vec<u8>>> = Guarded::new(Vec::new());

/// A blob, and the internal command that does with it what loading does.
pub struct Blob {
    pub command: &'static CStr,
    pub bytes: Vec<u8>,
}

/// Whoever has something to save.
pub trait Saved: Send + Sync {
    /// How many blobs there are now.
    fn count(&self, lock: Lock<'_>) -> usize;

    /// Calls `save` with one after the other. In a forked process, where no other thread lives: it must not wait for a lock
    /// that one of them may have held.
    fn each(&self, lock: Lock<'_>, save: &mut dyn FnMut(Blob));

    /// One of them, from a file.
    ///
    /// # Errors
    /// Why it cannot be loaded, for the log; the server refuses the whole file.
    fn load(&self, lock: Lock<'_>, blob: &[u8]) -> Result<(), Error>;
}

/// When the server begins to write a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    Rdb,
    /// Perhaps with an RDB preamble.
    Aof,
}

/// Tells the server about the section.
///
/// # Errors
/// The server refused it.
///
/// # Safety
/// `ctx` is the context of `RedisModule_OnLoad`.
pub(super) unsafe fn create(ctx: *mut raw::RedisModuleCtx, saved: Arc<dyn Saved>) -> Result<(), String> {
    // Told once, while the module loads.
    let _ = SAVED.set(saved);
    // SAFETY: an all-zero structure names no function; servers ignore the fields that they do not know.
    let mut methods: raw::RedisModuleTypeMethods = unsafe { std::mem::zeroed() };
    methods.version = OPTIONAL_SECTIONS as u64;
    methods.rdb_load = Some(on_load_key);
    methods.rdb_save = Some(on_save_key);
    methods.aof_rewrite = Some(on_rewrite);
    methods.free = Some(on_free);
    methods.aux_load = Some(on_load);
    methods.aux_save2 = Some(on_save);
    methods.aux_save_triggers = raw::REDISMODULE_AUX_BEFORE_RDB as c_int;
    // SAFETY: by the caller's promise.
    let made = unsafe { create_type(ctx, NAME, VERSION, &mut methods)? };
    TYPE.store(made, Ordering::Release);
    Ok(())
}

/// Whether RDB files of this server have the section.
fn has_section() -> bool {
    // SAFETY: the presence of the function is checked first; it takes no argument.
    has_api!(RedisModule_GetTypeMethodVersion)
        && unsafe { api!(RedisModule_GetTypeMethodVersion()) } >= OPTIONAL_SECTIONS
}

/// To be called when the server begins to write a file, in the process that writes it.
pub fn writing_started(lock: Lock<'_>, writing: Writing) {
    let something = SAVED.get().is_some_and(|saved| saved.count(lock) > 0);
    let by_section = has_section() && (writing == Writing::Rdb || has_preamble(lock));
    if something && !by_section {
        put_carrier(lock);
    }
}

/// To be called when a file is written, or loaded, or could not be.
pub fn ended(lock: Lock<'_>) {
    let carriers = std::mem::take(&mut *CARRIERS.write(lock));
    if carriers.is_empty() {
        return;
    }
    let _mute = Mute::new();
    // What follows in an AOF file may have swapped databases.
    for db in 0.. {
        // SAFETY: the context is alive; the server refuses a database that there is not.
        if unsafe { api!(RedisModule_SelectDb(lock.call_context(0), db)) } != OK {
            return;
        }
        for name in &carriers {
            let name = RString::new(lock, name);
            // SAFETY: under the lock; the name is alive; the key is closed at once.
            unsafe {
                let key = open(lock, db, &name);
                if api!(RedisModule_ModuleTypeGetType(key)) == TYPE.load(Ordering::Acquire) {
                    api!(RedisModule_DeleteKey(key));
                }
                api!(RedisModule_CloseKey(key));
            }
        }
    }
}

fn has_preamble(lock: Lock<'_>) -> bool {
    let preamble = config(lock, Features::probe(), "aof-use-rdb-preamble");
    preamble.iter().any(|(_, value)| value == "yes")
}

/// # Safety
/// The key must be closed before anything else happens.
unsafe fn open(lock: Lock<'_>, db: i32, name: &RString) -> *mut raw::RedisModuleKey {
    // SAFETY: under the lock; the name is alive.
    unsafe {
        api!(RedisModule_OpenKey(
            lock.call_context(db),
            name.as_raw(),
            (raw::REDISMODULE_READ | raw::REDISMODULE_WRITE) as c_int
        ))
        .cast()
    }
}

fn put_carrier(lock: Lock<'_>) {
    let _mute = Mute::new();
    for number in 0.. {
        let text = format!("{{pinion}}:registrations:{number}").into_bytes();
        let name = RString::new(lock, &text);
        // SAFETY: under the lock; the key is closed before anything else happens.
        let put = unsafe {
            let key = open(lock, 0, &name);
            let free = api!(RedisModule_KeyType(key)) as isize == raw::REDISMODULE_KEYTYPE_EMPTY;
            if free {
                api!(RedisModule_ModuleTypeSetValue(
                    key,
                    TYPE.load(Ordering::Acquire),
                    carrier()
                ));
            }
            api!(RedisModule_CloseKey(key));
            free
        };
        if put {
            CARRIERS.write(lock).push(text);
            return;
        }
    }
}

/// The value of a carrier: there is nothing in it, and it is not null.
fn carrier() -> *mut c_void {
    ptr::dangling_mut::<u64>().cast()
}

/// Writes 1 and a blob for each, and 0.
///
/// # Safety
/// `io` is that of a save callback.
unsafe fn write_all(io: *mut raw::RedisModuleIO, lock: Lock<'_>, saved: &dyn Saved) {
    saved.each(lock, &mut |blob| {
        // SAFETY: by the caller's promise.
        unsafe {
            api!(RedisModule_SaveUnsigned(io, 1));
            api!(RedisModule_SaveStringBuffer(
                io,
                blob.bytes.as_ptr().cast(),
                blob.bytes.len()
            ));
        }
    });
    // SAFETY: as above.
    unsafe { api!(RedisModule_SaveUnsigned(io, 0)) };
}

/// # Safety
/// `io` is that of a load callback.
unsafe fn read_all(
    io: *mut raw::RedisModuleIO,
    load: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    // SAFETY: by the caller's promise; each buffer is copied and freed.
    unsafe {
        while api!(RedisModule_LoadUnsigned(io)) == 1 {
            let mut len = 0;
            let start = api!(RedisModule_LoadStringBuffer(io, &raw mut len));
            if start.is_null() {
                break;
            }
            let blob = std::slice::from_raw_parts(start.cast::<u8>(), len).to_vec();
            api!(RedisModule_Free(start.cast()));
            load(&blob)?;
        }
        if api!(RedisModule_IsIOError(io)) != 0 {
            return Err("the file ends early or is damaged".into());
        }
    }
    Ok(())
}

/// The frame around the callbacks: proof of the lock, no panic leaves it.
fn guarded(work: impl FnOnce(Lock<'_>, &dyn Saved) -> Result<(), Error>) -> c_int {
    // SAFETY: the server holds its lock while it saves and loads.
    let entered = unsafe { Entered::new() };
    let done = catch_unwind(AssertUnwindSafe(|| {
        SAVED
            .get()
            .ok_or_else(|| Error::from("the module is still loading"))
            .and_then(|saved| work(entered.lock(), saved.as_ref()))
    }));
    match done {
        Ok(Ok(())) => OK,
        Ok(Err(reason)) => {
            api::log_warning(&format!("the registrations of this file are refused: {reason}"));
            REFUSED
        }
        Err(_) => REFUSED,
    }
}

fn check_version(version: c_int) -> Result<(), String> {
    if version < FIRST_VERSION {
        return Err(format!(
            "they were written by RedisGears (version {version} of GEARS_DT0), whose format is not known to Pinion; \
             register the functions again, with data that were saved without RedisGears"
        ));
    }
    if version > VERSION {
        return Err(format!(
            "could not load rdb created with higher RedisGears version! (GEARS_DT0 {version}, this Pinion reads up to {VERSION})"
        ));
    }
    Ok(())
}

unsafe extern "C" fn on_save(io: *mut raw::RedisModuleIO, _when: c_int) {
    guarded(|lock, saved| {
        if saved.count(lock) > 0 {
            // SAFETY: the server calls this with its own argument.
            unsafe { write_all(io, lock, saved) };
        }
        Ok(())
    });
}

unsafe extern "C" fn on_load(io: *mut raw::RedisModuleIO, version: c_int, _when: c_int) -> c_int {
    guarded(|lock, saved| {
        check_version(version)?;
        // SAFETY: the server calls this with its own argument.
        unsafe { read_all(io, &mut |blob| saved.load(lock, blob)) }
    })
}

unsafe extern "C" fn on_save_key(io: *mut raw::RedisModuleIO, _value: *mut c_void) {
    guarded(|lock, saved| {
        // SAFETY: the server calls this with its own argument.
        unsafe { write_all(io, lock, saved) };
        Ok(())
    });
}

unsafe extern "C" fn on_load_key(io: *mut raw::RedisModuleIO, version: c_int) -> *mut c_void {
    let loaded = guarded(|lock, saved| {
        check_version(version)?;
        if !lock.is_loading() {
            return Err("such a key comes from files only".into());
        }
        // SAFETY: the server calls this with its own argument; the name is its, and lives as long as the call.
        unsafe {
            let name = api!(RedisModule_GetKeyNameFromIO(io));
            let is_first = CARRIERS.read(lock).is_empty();
            if !name.is_null() {
                let name = super::string::bytes(name.cast_mut()).to_vec();
                CARRIERS.write(lock).push(name);
            }
            // Servers of before could leave one behind, and wrote all that is registered into each.
            read_all(io, &mut |blob| {
                if is_first { saved.load(lock, blob) } else { Ok(()) }
            })
        }
    });
    if loaded == OK { carrier() } else { ptr::null_mut() }
}

unsafe extern "C" fn on_rewrite(
    io: *mut raw::RedisModuleIO,
    _key: *mut raw::RedisModuleString,
    _value: *mut c_void,
) {
    guarded(|lock, saved| {
        saved.each(lock, &mut |blob| {
            // SAFETY: the server calls this with its own arguments, and copies the bytes.
            unsafe {
                api!(RedisModule_EmitAOF(
                    io,
                    blob.command.as_ptr(),
                    c"b".as_ptr(),
                    blob.bytes.as_ptr(),
                    blob.bytes.len()
                ));
            }
        });
        Ok(())
    });
}

unsafe extern "C" fn on_free(_value: *mut c_void) {}
