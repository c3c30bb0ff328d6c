//! The command that runs now, as those see it who are called in the middle of it: notifications, and what they start.
//!
//! It has one owner, the hooks, who run commands in the place of clients. Only under the server's lock.

use std::ffi::c_int;

use redis_module::raw;

use super::{
    command::{Command, allow_blocking},
    guarded::Guarded,
    lock::Lock,
    string::{Argv, Words},
};

/// The command that runs now, if one does, and what its owner notes about it.
pub struct CurrentCommand<T>(Guarded<Option<Running<T>>>);

struct Running<T> {
    ctx: *mut raw::RedisModuleCtx,
    argv: *const *mut raw::RedisModuleString,
    len: usize,
    note: T,
}

// SAFETY: only touched under the server's lock, while the command runs; and what is noted may go to other threads.
unsafe impl<T: Send> Send for Running<T> {}

impl<T> Running<T> {
    fn argv(&self) -> Argv<'_> {
        // SAFETY: the command runs for as long as this is in its place, and the server keeps its arguments until then.
        unsafe { Argv::new(self.argv.cast_mut(), self.len as c_int) }
    }
}

impl<T> Default for CurrentCommand<T> {
    fn default() -> Self {
        Self(Guarded::new(None))
    }
}

impl<T> CurrentCommand<T> {
    /// True while one runs.
    pub fn is_running(&self, lock: Lock<'_>) -> bool {
        self.0.read(lock).is_some()
    }

    /// As [`Command::may_block`]; `None` while no command runs.
    pub fn may_block(&self, lock: Lock<'_>) -> Option<bool> {
        let current = self.0.read(lock);
        current.as_ref().map(|running| {
            // SAFETY: as in `Running::argv`.
            allow_blocking(unsafe { api!(RedisModule_GetContextFlags(running.ctx)) as u32 })
        })
    }

    /// True if one runs whose name is one of `names`, in any letter case.
    pub fn is_one_of(&self, lock: Lock<'_>, names: &[String]) -> bool {
        let current = self.0.read(lock);
        let name = current.as_ref().and_then(|running| running.argv().get(0));
        name.is_some_and(|name| {
            names
                .iter()
                .any(|known| known.as_bytes().eq_ignore_ascii_case(name))
        })
    }

    /// Changes what is noted about the one that runs; `words` copies its words.
    pub fn note<R>(&self, lock: Lock<'_>, change: impl FnOnce(&mut T, &dyn Fn() -> Words) -> R) -> Option<R> {
        let mut current = self.0.write(lock);
        let Running { ctx, argv, len, note } = current.as_mut()?;
        let words = Running {
            ctx: *ctx,
            argv: *argv,
            len: *len,
            note: (),
        };
        Some(change(note, &|| words.argv().to_words()))
    }
}

impl<T: Default> CurrentCommand<T> {
    /// Does `work`, in the middle of which `command` is the current one, from argument `start` on, with what is noted of it by now; also
    /// what was noted in the end. Ends also if `work` panics.
    pub fn during<R>(
        &self,
        command: &Command<'_>,
        start: usize,
        note: T,
        work: impl FnOnce() -> R,
    ) -> (R, T) {
        struct Restore<'a, T>(&'a CurrentCommand<T>, Lock<'a>, Option<Running<T>>);
        impl<T> Drop for Restore<'_, T> {
            fn drop(&mut self) {
                *self.0.0.write(self.1) = self.2.take();
            }
        }
        let (lock, argv) = (command.lock(), command.argv().skip(start));
        let argv = argv.as_raw();
        let running = Running {
            ctx: command.as_raw(),
            argv: argv.as_ptr(),
            len: argv.len(),
            note,
        };
        let before = self.0.write(lock).replace(running);
        let _restore = Restore(self, lock, before);
        let done = work();
        let noted = self.note(lock, |note, _| std::mem::take(note));
        (done, noted.unwrap_or_default())
    }
}
