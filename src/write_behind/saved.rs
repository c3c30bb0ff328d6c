//! The queues outside of this process: in files, and on replicas, which follow by one internal command.

use std::ffi::CStr;

use super::{
    WriteBehind,
    frame::{self, Follows, Frame, Frames},
    late::Unsent,
    machine::{Settled, Time},
};
use crate::{
    error::Error,
    server::{
        api,
        call::replicate,
        command::{Answer, Command},
        key,
        lock::Lock,
        persist::Blob,
    },
};

/// The internal command that carries what happens to queues.
pub(super) const QUEUE: &CStr = c"RG.INNERQUEUE";

/// About how many bytes a blob of a file has.
const BLOB: usize = 1 << 20;

impl WriteBehind {
    /// Calls `save` with one blob after the other. In a forked process.
    pub fn save_all(&self, lock: Lock<'_>, save: &mut dyn FnMut(Blob)) {
        let state = self.state.read(lock);
        if state.sinks.is_empty() {
            return;
        }
        let mut frames = Frames::default();
        let serves = self.engine.is_serving();
        let follows = if serves {
            state.unsent.kept()
        } else {
            state.tail.kept()
        };
        frames.last(state.ids.last(), &follows);
        let mut flush = |frames: &mut Frames| {
            save(Blob {
                command: QUEUE,
                bytes: std::mem::take(frames).into_bytes(),
            });
        };
        for sink in &state.sinks {
            for change in sink.queue.changes() {
                frames.change(&sink.options.prefix, change);
                if frames.len() > BLOB {
                    flush(&mut frames);
                }
            }
        }
        if !frames.is_empty() {
            flush(&mut frames);
        }
    }

    /// True if a blob of a file is one of [`WriteBehind::save_all`].
    pub fn is_one(blob: &[u8]) -> bool {
        frame::are_frames(blob)
    }

    /// What an RDB file says.
    ///
    /// # Errors
    /// The bytes are of a later version.
    pub fn load(&self, lock: Lock<'_>, blob: &[u8]) -> Result<(), String> {
        if let Some(Follows::Following(keys)) = self.apply(lock, blob)? {
            self.state.write(lock).go_on_following(lock, keys);
            self.subscribe_to_follow(lock);
        }
        Ok(())
    }

    /// What a master or an AOF file says has happened. All that happened before was told by that, too.
    fn heard(&self, lock: Lock<'_>, blob: &[u8]) -> Result<(), String> {
        let follows = self.apply(lock, blob)? == Some(Follows::FromHere);
        let mut state = self.state.write(lock);
        state.tail.told(follows);
        // What this server did not tell while it was a master itself.
        state.unsent = Unsent::default();
        drop(state);
        if follows {
            self.subscribe_to_follow(lock);
        }
        Ok(())
    }

    /// How what comes behind it is to be read, as far as it says so.
    fn apply(&self, lock: Lock<'_>, blob: &[u8]) -> Result<Option<Follows>, String> {
        let mut follows = None;
        let (now, now_ms) = (self.now(), u64::try_from(key::now_ms(lock)).unwrap_or(0));
        let mut unreadable = 0_u64;
        let mut strangers = 0_u64;
        let frames = frame::read(blob)?;
        let mut state = self.state.write(lock);
        for frame in frames {
            match frame {
                Frame::Last(last) => {
                    state.ids.seen(last.id);
                    follows = Some(last.follows);
                }
                Frame::Unreadable => unreadable += 1,
                Frame::Change { queue, mut change } => {
                    let damaged = change.payload.is_damaged();
                    if damaged {
                        // Its id may be what is damaged: nothing is left out for it, and it for nothing.
                        change.id = state.ids.believable(change.id);
                    } else {
                        state.ids.seen(change.id);
                    }
                    match state.sink(&queue) {
                        Some(sink) if !damaged && sink.queue.has(&change) => {}
                        Some(sink) => {
                            let age_ms = now_ms.saturating_sub(change.id.ms);
                            let since = now.saturating_sub(Time::from_millis(age_ms));
                            sink.queue.add(since, change, None);
                        }
                        None => strangers += 1,
                    }
                }
                Frame::Gone { queue, gone } => {
                    if let Some(sink) = state.sink(&queue) {
                        for gone in gone {
                            sink.queue.remove_up_to(&gone);
                        }
                    }
                }
            }
        }
        // Nobody waits on a replica, or while data are loaded.
        for sink in &mut state.sinks {
            let settled = sink.queue.take_settled();
            debug_assert!(settled.iter().all(|(_, settled)| *settled == Settled::Saved));
        }
        drop(state);
        if unreadable > 0 {
            api::log_warning(&format!(
                "write_behind: {unreadable} changes are damaged so that they cannot be read, and are lost"
            ));
        }
        if strangers > 0 {
            api::log_warning(&format!(
                "write_behind: {strangers} changes belong to no registration, and are dropped"
            ));
        }
        Ok(follows)
    }

    /// `RG.INNERQUEUE <blob>`, from an AOF file or a master only.
    ///
    /// # Errors
    /// Somebody else sent it; not one argument.
    pub fn inner_queue(&self, command: &Command<'_>) -> Result<Answer, Error> {
        if !command.comes_from_the_data() {
            return Err(Error::InnerCommand);
        }
        let argv = command.argv();
        let blob = argv.get(1).filter(|_| argv.len() == 2).ok_or(Error::WrongArity)?;
        let lock = command.lock();
        if let Err(reason) = self.heard(lock, blob) {
            api::log_warning(&format!("write_behind: {reason}"));
        }
        replicate(lock, QUEUE, &[blob]);
        Ok(Answer::Done)
    }
}
