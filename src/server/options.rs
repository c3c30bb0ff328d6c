//! Options as the server's own configuration (`CONFIG SET rg.max-executions 5`), on servers that let modules have some
//! (7.0).
//!
//! Registered while the module loads. The server calls back on its own thread.

use std::{
    cell::RefCell,
    ffi::{CString, c_char, c_int, c_longlong, c_void},
    ptr,
};

use redis_module::raw;

use super::entry::caught;

/// One option. `fixed` ones can be given at start only.
pub struct ServerOption {
    /// Without the module's prefix.
    pub name: String,
    pub fixed: bool,
    pub kind: Kind,
}

type Get<T> = Box<dyn Fn() -> T>;
type Set<T> = Box<dyn Fn(T)>;

/// Its type, with what reads and changes it. The value at the time of registration is the default.
pub enum Kind {
    Number {
        min: i64,
        get: Get<i64>,
        set: Set<i64>,
    },
    Switch {
        get: Get<bool>,
        set: Set<bool>,
    },
    /// Always fixed.
    Text {
        get: Get<String>,
        set: Set<String>,
    },
}

/// True if the server has such options.
pub fn are_offered() -> bool {
    has_api!(RedisModule_RegisterNumericConfig)
        && has_api!(RedisModule_RegisterBoolConfig)
        && has_api!(RedisModule_RegisterStringConfig)
        && has_api!(RedisModule_LoadConfigs)
}

/// Registers the options and takes over what the configuration file says about them.
///
/// # Errors
/// The server refused one of them, or a value; the text is for the log.
///
/// # Safety
/// `ctx` is the context of `RedisModule_OnLoad`, and [`are_offered`].
pub(super) unsafe fn register(
    ctx: *mut raw::RedisModuleCtx,
    options: Vec<ServerOption>,
) -> Result<(), String> {
    for option in options {
        let shown = option.name.clone();
        // SAFETY: by the caller's promise.
        if unsafe { register_one(ctx, option) } != raw::REDISMODULE_OK as c_int {
            return Err(format!("the server refused the option {shown}"));
        }
    }
    // SAFETY: as above.
    if unsafe { api!(RedisModule_LoadConfigs(ctx)) } != raw::REDISMODULE_OK as c_int {
        return Err("the server refused a value of the module's options".into());
    }
    Ok(())
}

/// # Safety
/// As [`register`].
unsafe fn register_one(ctx: *mut raw::RedisModuleCtx, option: ServerOption) -> c_int {
    let name = CString::new(option.name).unwrap_or_default();
    let flags = if option.fixed {
        raw::REDISMODULE_CONFIG_IMMUTABLE
    } else {
        raw::REDISMODULE_CONFIG_DEFAULT
    };
    // The server keeps the pointers for ever: what they point at is never freed.
    // SAFETY: by the caller's promise; the functions get back the pointer of their own type.
    unsafe {
        match option.kind {
            Kind::Number { min, get, set } => api!(RedisModule_RegisterNumericConfig(
                ctx,
                name.as_ptr(),
                get(),
                flags,
                min,
                i64::MAX,
                Some(get_number),
                Some(set_number),
                None,
                leak(Accessors { get, set })
            )),
            Kind::Switch { get, set } => api!(RedisModule_RegisterBoolConfig(
                ctx,
                name.as_ptr(),
                c_int::from(get()),
                flags,
                Some(get_switch),
                Some(set_switch),
                None,
                leak(Accessors { get, set })
            )),
            Kind::Text { get, set } => {
                let default = CString::new(get()).unwrap_or_default();
                api!(RedisModule_RegisterStringConfig(
                    ctx,
                    name.as_ptr(),
                    default.as_ptr(),
                    flags,
                    Some(get_text),
                    Some(set_text),
                    None,
                    leak(Text {
                        accessors: Accessors { get, set },
                        shown: RefCell::default()
                    })
                ))
            }
        }
    }
}

struct Accessors<T> {
    get: Get<T>,
    set: Set<T>,
}

struct Text {
    accessors: Accessors<String>,
    /// The server borrows the string that it gets. Made again when the value has changed, which happens during the load
    /// only: the few old ones are kept for ever.
    shown: RefCell<Option<(String, *mut raw::RedisModuleString)>>,
}

fn leak<T>(value: T) -> *mut c_void {
    Box::into_raw(Box::new(value)).cast()
}

unsafe extern "C" fn get_number(_name: *const c_char, option: *mut c_void) -> c_longlong {
    caught(0, || {
        // SAFETY: the pointer that was registered with this function.
        unsafe { option.cast::<Accessors<i64>>().as_ref() }.map_or(0, |option| (option.get)())
    })
}

unsafe extern "C" fn set_number(
    _name: *const c_char,
    value: c_longlong,
    option: *mut c_void,
    _error: *mut *mut raw::RedisModuleString,
) -> c_int {
    caught(raw::REDISMODULE_OK as c_int, || {
        // SAFETY: as above.
        if let Some(option) = unsafe { option.cast::<Accessors<i64>>().as_ref() } {
            (option.set)(value);
        }
        raw::REDISMODULE_OK as c_int
    })
}

unsafe extern "C" fn get_switch(_name: *const c_char, option: *mut c_void) -> c_int {
    caught(0, || {
        // SAFETY: as above.
        unsafe { option.cast::<Accessors<bool>>().as_ref() }.map_or(0, |option| c_int::from((option.get)()))
    })
}

unsafe extern "C" fn set_switch(
    _name: *const c_char,
    value: c_int,
    option: *mut c_void,
    _error: *mut *mut raw::RedisModuleString,
) -> c_int {
    caught(raw::REDISMODULE_OK as c_int, || {
        // SAFETY: as above.
        if let Some(option) = unsafe { option.cast::<Accessors<bool>>().as_ref() } {
            (option.set)(value != 0);
        }
        raw::REDISMODULE_OK as c_int
    })
}

unsafe extern "C" fn get_text(_name: *const c_char, option: *mut c_void) -> *mut raw::RedisModuleString {
    caught(ptr::null_mut(), || {
        // SAFETY: as above.
        let Some(option) = (unsafe { option.cast::<Text>().as_ref() }) else {
            return ptr::null_mut();
        };
        let text = (option.accessors.get)();
        let mut shown = option.shown.borrow_mut();
        if let Some((made_for, string)) = shown.as_ref() {
            if *made_for == text {
                return *string;
            }
        }
        // SAFETY: a null context leaves the string to us; it is kept for ever.
        let string = unsafe {
            api!(RedisModule_CreateString(
                ptr::null_mut(),
                text.as_ptr().cast(),
                text.len()
            ))
        };
        *shown = Some((text, string));
        string
    })
}

unsafe extern "C" fn set_text(
    _name: *const c_char,
    value: *mut raw::RedisModuleString,
    option: *mut c_void,
    _error: *mut *mut raw::RedisModuleString,
) -> c_int {
    caught(raw::REDISMODULE_OK as c_int, || {
        // SAFETY: as above; the string is alive.
        unsafe {
            if let Some(option) = option.cast::<Text>().as_ref() {
                let text = super::string::bytes(value);
                (option.accessors.set)(String::from_utf8_lossy(text).into_owned());
            }
        }
        raw::REDISMODULE_OK as c_int
    })
}
