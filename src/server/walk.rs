//! The walk over all keys of a database, and what it shows of each.
//!
//! As in `key.rs`, nothing here is seen from outside, and no key changes its encoding.

use std::{
    ffi::{CStr, CString, c_void},
    mem::ManuallyDrop,
};

use redis_module::raw;

use super::{
    entry::caught,
    events::Mute,
    key::{self, Kind, Opened, Value},
    lock::Lock,
    string::bytes,
    text,
};

/// How many keys a database has, if none of them expires: then the server knows it without a walk.
pub fn count_of_lasting(lock: Lock<'_>, db: i32) -> Option<u64> {
    if !has_api!(RedisModule_DbSize) {
        return None;
    }
    // SAFETY: under the lock; the information is freed below.
    unsafe {
        let info = api!(RedisModule_GetServerInfo(
            lock.look_context(db),
            c"keyspace".as_ptr()
        ));
        let field = CString::new(format!("db{db}")).unwrap_or_default();
        let keys = api!(RedisModule_ServerInfoGetFieldC(info, field.as_ptr()));
        // E.g. `keys=12,expires=0,avg_ttl=0`; nothing at all for an empty database.
        let expires = keys.is_null() || !CStr::from_ptr(keys).to_string_lossy().contains("expires=0,");
        api!(RedisModule_FreeServerInfo(lock.look_context(db), info));
        (!expires).then(|| api!(RedisModule_DbSize(lock.look_context(db))))
    }
}

/// A walk over all keys of a database, with SCAN's guarantees.
pub struct Walk {
    cursor: *mut raw::RedisModuleScanCursor,
    db: i32,
    ended: bool,
}

// SAFETY: the cursor is plain data of ours, used by one thread at a time and only under the server's lock.
unsafe impl Send for Walk {}

impl Walk {
    pub fn new(db: i32) -> Self {
        // SAFETY: takes no argument; freed on drop.
        let cursor = unsafe { api!(RedisModule_ScanCursorCreate()) };
        Self {
            cursor,
            db,
            ended: false,
        }
    }

    /// Takes one step and shows `visit` the keys found, but for expired ones. False when the walk has ended.
    ///
    /// `visit` must not call the server but through what it is shown.
    pub fn step(&mut self, lock: Lock<'_>, visit: &mut dyn FnMut(&Found<'_>)) -> bool {
        struct Visit<'a> {
            lock: Lock<'a>,
            db: i32,
            show: &'a mut dyn FnMut(&Found<'_>),
            /// Keys that are looked at when the server has shown all of this step: commands must not run in the middle.
            later: Vec<Vec<u8>>,
        }
        unsafe extern "C" fn on_key(
            _ctx: *mut raw::RedisModuleCtx,
            name: *mut raw::RedisModuleString,
            key: *mut raw::RedisModuleKey,
            visit: *mut c_void,
        ) {
            caught((), || {
                // SAFETY: the server passes on the pointer given below, a live string, and a key that it closes itself.
                unsafe {
                    let Some(visit) = visit.cast::<Visit<'_>>().as_mut() else {
                        return;
                    };
                    if api!(RedisModule_GetExpire(key)) == 0 {
                        return;
                    }
                    if !text::can_peek() {
                        visit.later.push(bytes(name).to_vec());
                        return;
                    }
                    (visit.show)(&Found {
                        lock: visit.lock,
                        db: visit.db,
                        name: bytes(name),
                        key: Some(Opened::shown(key)),
                    });
                }
            });
        }
        if self.ended {
            return false;
        }
        let _mute = Mute::new();
        let mut visit = Visit {
            lock,
            db: self.db,
            show: visit,
            later: Vec::new(),
        };
        // SAFETY: under the lock; the structure outlives the call.
        let more = unsafe {
            api!(RedisModule_Scan(
                lock.look_context(self.db),
                self.cursor,
                Some(on_key),
                (&raw mut visit).cast()
            ))
        };
        for name in &visit.later {
            (visit.show)(&Found {
                lock,
                db: self.db,
                name,
                key: None,
            });
        }
        self.ended = more == 0;
        !self.ended
    }
}

/// One key that a walk has come to.
pub struct Found<'a> {
    lock: Lock<'a>,
    db: i32,
    pub name: &'a [u8],
    /// Open for as long as it is shown, where that is enough to read it.
    key: Option<ManuallyDrop<Opened<'a>>>,
}

impl Found<'_> {
    pub fn kind(&self) -> Kind {
        match &self.key {
            Some(opened) => Kind::of(opened),
            None => key::kind(self.lock, self.db, self.name),
        }
    }

    /// Its type and its value.
    pub fn read(&self) -> (Kind, Value) {
        let shown = self.key.as_ref().and_then(|opened| {
            let kind = Kind::of(opened);
            key::value(self.lock, kind, opened).map(|value| (kind, value))
        });
        shown.unwrap_or_else(|| key::read(self.lock, self.db, self.name))
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        // SAFETY: created by us, destroyed once; the server only frees memory here.
        unsafe { api!(RedisModule_ScanCursorDestroy(self.cursor)) };
    }
}
