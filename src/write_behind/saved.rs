//! The queues outside of this process: in files, and on replicas, which follow by one internal command.

use std::ffi::CStr;

use super::{
    WriteBehind,
    frame::{self, Follows, Frame, Frames},
    machine::{Change, Settled},
};
use crate::{
    error::Error,
    read_through::keys::Key,
    server::{
        api,
        call::replicate,
        command::{Answer, Command},
        lock::Lock,
        persist::Blob,
        snapshot::Snapshot,
        string::Held,
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
        self.state.write(lock).tail.told(follows);
        if follows {
            self.subscribe_to_follow(lock);
        }
        Ok(())
    }

    /// How what comes behind it is to be read, as far as it says so.
    fn apply(&self, lock: Lock<'_>, blob: &[u8]) -> Result<Option<Follows>, String> {
        let mut follows = None;
        let mut lost = Lost::default();
        let mut room = Vec::new();
        for frame in frame::read(blob)? {
            match frame {
                Frame::Last(last) => {
                    self.state.write(lock).ids.seen(last.id);
                    follows = Some(last.follows);
                }
                Frame::Unreadable => lost.unreadable += 1,
                Frame::Change { queue, change } => self.add(lock, &queue, change, &mut lost),
                Frame::Bare { queue, change } => {
                    let name = Held::of_bytes(lock, &change.key.name);
                    let (value, _) = Snapshot::take(lock, change.key.db, &name, &mut room);
                    if value.is_gone() {
                        self.state.write(lock).ids.seen(change.id);
                        lost.valueless.push(change.key);
                    } else {
                        self.add(lock, &queue, change.with(value), &mut lost);
                    }
                }
                Frame::Gone { queue, gone } => {
                    if let Some(sink) = self.state.write(lock).sink(&queue) {
                        for gone in gone {
                            sink.queue.remove_up_to(&gone);
                        }
                    }
                }
            }
        }
        // Nobody waits on a replica, or while data are loaded.
        for sink in &mut self.state.write(lock).sinks {
            let settled = sink.queue.take_settled();
            debug_assert!(settled.iter().all(|(_, settled)| *settled == Settled::Saved));
        }
        lost.tell();
        Ok(follows)
    }

    /// A change of elsewhere goes into its queue, unless that has it or a newer one.
    fn add(&self, lock: Lock<'_>, queue: &str, change: Change<Snapshot>, lost: &mut Lost) {
        let now = self.now();
        let mut state = self.state.write(lock);
        state.ids.seen(change.id);
        lost.valueless.retain(|key| *key != change.key);
        match state.sink(queue) {
            Some(sink) if sink.queue.has(&change) => {}
            Some(sink) => sink.queue.add(now, change, None),
            None => lost.strangers += 1,
        }
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

/// What could not be taken into the queues.
#[derive(Default)]
struct Lost {
    unreadable: u64,
    strangers: u64,
    /// Their values were to be those of their keys, which are not there. A later change of the same key is as good.
    valueless: Vec<Key>,
}

impl Lost {
    fn tell(&self) {
        let warn = |count, what| {
            if count > 0 {
                api::log_warning(&format!("write_behind: {count} changes {what}"));
            }
        };
        warn(
            self.unreadable,
            "are damaged so that they cannot be read, and are lost",
        );
        warn(self.strangers, "belong to no registration, and are dropped");
        warn(
            self.valueless.len() as u64,
            "are lost, as their keys are gone here: a replica that evicts keys by itself (replica-ignore-maxmemory no) does that",
        );
    }
}
