//! The command filter: sees every command before the server looks it up, and may put another one in front.

use std::{
    ffi::{CStr, c_int},
    ptr,
};

use redis_module::raw;

use super::{
    client::User,
    entry::caught,
    guarded::Plain,
    key::{self, Life},
    lock::Lock,
    refused, rights, string,
};

/// The name of a proxy command as one object of ours.
///
/// Its address is the proof that the filter, and not a client, put it at the front of a command: a client's
/// bytes always arrive in another object. Held for ever, never changed.
pub struct ProxyName(*mut raw::RedisModuleString);

// SAFETY: the pointer is only compared or handed to the server under its lock.
unsafe impl Send for ProxyName {}
// SAFETY: the same.
unsafe impl Sync for ProxyName {}

impl ProxyName {
    /// Made once per proxy command, while the module loads.
    pub fn new(_lock: Lock<'_>, name: &CStr) -> Self {
        // SAFETY: a null context leaves the string to us; it is never freed.
        Self(unsafe {
            api!(RedisModule_CreateString(
                ptr::null_mut(),
                name.as_ptr(),
                name.count_bytes()
            ))
        })
    }

    /// True when the first argument of `argv` is this very object.
    pub fn leads(&self, argv: string::Argv<'_>) -> bool {
        argv.as_raw().first() == Some(&self.0)
    }
}

/// So many words need no allocation.
const FEW: usize = 8;

/// A command on its way to the server, as the filter sees it.
#[derive(Clone, Copy)]
pub struct Passing<'a> {
    filter: *mut raw::RedisModuleCommandFilterCtx,
    lock: Lock<'a>,
}

/// A key of such a command.
pub struct PassedKey<'a> {
    pub name: &'a [u8],
    raw: *mut raw::RedisModuleString,
}

impl<'a> Passing<'a> {
    pub fn lock(self) -> Lock<'a> {
        self.lock
    }

    pub fn len(self) -> usize {
        // SAFETY: the filter context lives as long as the filter runs.
        unsafe { api!(RedisModule_CommandFilterArgsCount(self.filter)) as usize }
    }

    pub fn arg(self, index: usize) -> Option<&'a [u8]> {
        // SAFETY: as above; the strings live while the command does.
        unsafe {
            let arg = self.raw_arg(index);
            (!arg.is_null()).then(|| string::bytes(arg))
        }
    }

    fn raw_arg(self, index: usize) -> *mut raw::RedisModuleString {
        // SAFETY: as above; the server answers null for a position out of range.
        unsafe { api!(RedisModule_CommandFilterArgGet(self.filter, index as c_int)) }
    }

    /// The client that sent the command; 0 where the server cannot tell.
    pub fn client_id(self) -> u64 {
        if !has_api!(RedisModule_CommandFilterGetClientId) {
            return 0;
        }
        // SAFETY: the presence of the function was just checked.
        unsafe { api!(RedisModule_CommandFilterGetClientId(self.filter)) }
    }

    /// The key at `index`.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub fn key(self, index: usize) -> Option<PassedKey<'a>> {
        let raw = self.raw_arg(index);
        if raw.is_null() {
            return None;
        }
        // SAFETY: the strings live while the command does.
        let name = unsafe { string::bytes(raw) };
        Some(PassedKey { name, raw })
    }

    /// Looks how long a key is there in `db`, leaving no trace but that one which has expired is deleted where `Features::quiet_open` is
    /// false, as the command itself would.
    #[allow(clippy::inline_always)] // a command passes it while the server works on nothing else
    #[inline(always)]
    pub fn key_life(self, db: i32, key: &PassedKey<'_>) -> Life {
        // SAFETY: the string is alive.
        unsafe { key::life_quietly(self.lock, db, key.raw) }
    }

    /// Whether the key may be without anything in it when the command runs, although something is there now ([`super::fields`]).
    pub fn may_be_emptied(self, db: i32, key: &PassedKey<'_>) -> bool {
        // SAFETY: the string is alive.
        unsafe { key::may_be_emptied(self.lock, db, key.raw) }
    }

    /// True when the user of client `id` may run the command both as it is and behind `proxy`.
    pub fn user_may_run(self, id: u64, proxy: &ProxyName) -> bool {
        User::of_client(self.lock, id).is_some_and(|user| self.may_run(&user, proxy))
    }

    /// True unless the client has a user who may not run it behind `proxy`: scripts, modules and the master have none.
    pub fn is_free_to_run(self, id: u64, proxy: &ProxyName) -> bool {
        User::of_client(self.lock, id).is_none_or(|user| self.may_run(&user, proxy))
    }

    /// True unless it is a command of code whose user may not run it behind `proxy`.
    pub fn actor_may_run(self, proxy: &ProxyName) -> bool {
        match rights::acting_user(self.lock) {
            Some(user) => user.is_ok_and(|user| self.may_run(&user, proxy)),
            None => true,
        }
    }

    fn may_run(self, user: &User, proxy: &ProxyName) -> bool {
        let len = self.len();
        let words = std::iter::once(proxy.0).chain((0..len).map(|index| self.raw_arg(index)));
        let check = |argv: &mut [_]| user.may_run(argv) && user.may_run(&mut argv[1..]);
        let mut few = [ptr::null_mut(); FEW];
        if let Some(argv) = few.get_mut(..=len) {
            argv.iter_mut().zip(words).for_each(|(place, word)| *place = word);
            return check(argv);
        }
        check(&mut words.collect::<Vec<_>>())
    }

    /// Puts a word in the place of the one at `index`, or behind the last one.
    pub(super) fn put(self, index: usize, word: &[u8]) {
        // SAFETY: the filter context lives as long as the filter runs; the server takes over the string, which nobody else has.
        unsafe {
            let word = api!(RedisModule_CreateString(
                ptr::null_mut(),
                word.as_ptr().cast(),
                word.len()
            ));
            if index < self.len() {
                api!(RedisModule_CommandFilterArgReplace(
                    self.filter,
                    index as c_int,
                    word
                ));
            } else {
                api!(RedisModule_CommandFilterArgInsert(
                    self.filter,
                    index as c_int,
                    word
                ));
            }
        }
    }

    /// Puts `proxy` in front of the command.
    pub fn rewrite(self, proxy: &ProxyName) {
        // SAFETY: the server takes over one reference, which we add first.
        unsafe {
            api!(RedisModule_RetainString(ptr::null_mut(), proxy.0));
            api!(RedisModule_CommandFilterArgInsert(self.filter, 0, proxy.0));
        }
    }
}

/// The C form of a filter function.
pub type Function = unsafe extern "C" fn(*mut raw::RedisModuleCommandFilterCtx);

/// The next command is one that the module runs for itself.
static OWN: Plain<bool> = Plain::new(false);

/// Calls the server, once, for the module itself: the filter does not see that command, so that no function of anybody stands in its
/// place and nobody waits before it.
pub(super) fn unseen<R>(lock: Lock<'_>, call: impl FnOnce() -> R) -> R {
    let before = OWN.replace(lock, true);
    let result = call();
    OWN.set(lock, before);
    result
}

/// The frame around the filter function: proof of the lock, no panic leaves it.
///
/// # Safety
/// To be called by a filter function with the server's own argument.
pub unsafe fn run(filter: *mut raw::RedisModuleCommandFilterCtx, work: impl FnOnce(Passing<'_>)) {
    // SAFETY: the server holds its lock while it filters a command.
    let lock = unsafe { Lock::assume() };
    // A question may come before the command that is meant.
    if refused::is_asking(lock) || OWN.replace(lock, false) {
        return;
    }
    // A panic leaves the command as it is; the panic hook has logged it.
    // SAFETY: by the caller's promise.
    caught((), || unsafe { run_for_all(filter, work) });
}

/// The same for one that sees the module's own commands, too, and catches panics itself.
///
/// # Safety
/// The same.
pub(super) unsafe fn run_for_all(
    filter: *mut raw::RedisModuleCommandFilterCtx,
    work: impl FnOnce(Passing<'_>),
) {
    // SAFETY: the server holds its lock while it filters a command.
    let lock = unsafe { Lock::assume() };
    work(Passing { filter, lock });
}

/// An installed filter; stays until [`Installed::remove`].
pub struct Installed(*mut raw::RedisModuleCommandFilter);

// SAFETY: the handle is only used under the server's lock.
unsafe impl Send for Installed {}

impl Installed {
    /// Installs the filter. While one is installed every command of the server passes it.
    pub fn install(lock: Lock<'_>, function: Function) -> Option<Self> {
        // SAFETY: the context names our module; the function lives as long as the module.
        let handle = unsafe {
            api!(RedisModule_RegisterCommandFilter(
                lock.call_context(0),
                Some(function),
                0
            ))
        };
        (!handle.is_null()).then_some(Self(handle))
    }

    /// The same for commands that do not come from this module.
    pub fn install_outside(lock: Lock<'_>, function: Function) -> Option<Self> {
        // SAFETY: as above.
        let handle = unsafe {
            api!(RedisModule_RegisterCommandFilter(
                lock.call_context(0),
                Some(function),
                raw::REDISMODULE_CMDFILTER_NOSELF as c_int
            ))
        };
        (!handle.is_null()).then_some(Self(handle))
    }

    /// Removes the filter; commands pass untouched from the next one on.
    pub fn remove(self, lock: Lock<'_>) {
        // SAFETY: the handle is alive and used once.
        unsafe { api!(RedisModule_UnregisterCommandFilter(lock.call_context(0), self.0)) };
    }
}
