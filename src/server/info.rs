//! The module's part of INFO.

use std::{
    ffi::{CString, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
};

use redis_module::raw;

use super::lock::{Entered, Lock};

/// The C form of an INFO function.
pub type Function = unsafe extern "C" fn(*mut raw::RedisModuleInfoCtx, c_int);

/// Tells the server which function fills our sections.
///
/// # Safety
/// `ctx` is the context of `RedisModule_OnLoad`.
pub unsafe fn register(ctx: *mut raw::RedisModuleCtx, function: Function) {
    if has_api!(RedisModule_RegisterInfoFunc) {
        // SAFETY: by the caller's promise.
        unsafe { api!(RedisModule_RegisterInfoFunc(ctx, Some(function))) };
    }
}

/// One INFO request being answered.
pub struct Info {
    request: *mut raw::RedisModuleInfoCtx,
    entered: Entered,
}

impl Info {
    pub fn lock(&self) -> Lock<'_> {
        self.entered.lock()
    }

    /// Begins a section; the server adds the module's prefix. False when it was not asked for.
    pub fn section(&self, name: &str) -> bool {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the request is alive while this value is.
        unsafe {
            api!(RedisModule_InfoAddSection(self.request, name.as_ptr())) == raw::REDISMODULE_OK as c_int
        }
    }

    /// Adds a number to the section.
    pub fn number(&self, name: &str, value: u64) {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: as above.
        unsafe {
            api!(RedisModule_InfoAddFieldULongLong(
                self.request,
                name.as_ptr(),
                value
            ))
        };
    }

    /// Adds a text to the section. Whoever calls has made sure that it is one line.
    pub fn text(&self, name: &str, value: &str) {
        let (name, value) = (
            CString::new(name).unwrap_or_default(),
            CString::new(value).unwrap_or_default(),
        );
        // SAFETY: as above.
        unsafe {
            api!(RedisModule_InfoAddFieldCString(
                self.request,
                name.as_ptr(),
                value.as_ptr()
            ))
        };
    }
}

/// The frame around the INFO function.
///
/// # Safety
/// To be called by an INFO function with the server's own argument.
pub unsafe fn run(info: *mut raw::RedisModuleInfoCtx, work: impl FnOnce(&Info)) {
    // SAFETY: the server holds its lock while it answers a request; crash reports are left out before.
    let entered = unsafe { Entered::new() };
    let info = Info {
        request: info,
        entered,
    };
    let _ = catch_unwind(AssertUnwindSafe(|| work(&info)));
}
