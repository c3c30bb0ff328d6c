//! What has been captured, on its way to replicas and AOF files. A command of ours in each unit makes a transaction of every write:
//! that costs three times what the write itself does there. So what plain commands have changed is handed on together, at the
//! end of the turn of the server's loop, before anybody has a reply.
//!
//! If the master dies in between, those who heard of the write and not of the change capture it themselves ([`super::tail`]).
//! They see the same keys change, and have the same value as long as nothing changes it: so what they could not make good goes
//! out with its unit, and takes with it whatever waits. That holds for removals, values that change by themselves, events
//! whose command is handed on as another one, and registrations that want to see each change. Before anything happens to a key
//! that is not captured, what waits goes out as well.

use super::{
    State, WriteBehind,
    frame::{self, Follows, Frame, Frames},
    saved::QUEUE,
};
use crate::server::{after, audience, call::replicate, home, lock, lock::Lock};

/// So many bytes wait for no more.
const LARGE: usize = 1 << 20;

/// Events of commands that replicas and files get as they are.
const PLAIN: [&str; 14] = [
    "set", "hset", "incrby", "hincrby", "append", "setrange", "lpush", "rpush", "lset", "sadd", "hdel",
    "lpop", "rpop", "srem",
];

/// See the module.
#[derive(Default)]
pub(super) struct Unsent {
    pub(super) frames: Frames,
    /// The unit that runs does to a key what is no change, though it looks like one.
    pub(super) no_change: bool,
    /// Something went out in the middle of the unit that runs: whoever follows believes that he was told of all before it.
    pub(super) split: bool,
    /// Those who hear of us know that changes may come late: the generation of them ([`audience::generation`]).
    told: Option<u64>,
}

/// True if whoever hears of the command would see this very event.
pub(super) fn is_plain(event: &[u8]) -> bool {
    PLAIN.iter().any(|plain| plain.as_bytes() == event)
}

/// Events whose command is handed on as one of a plain event.
const SEEN_AS_PLAIN: [&str; 4] = ["incrbyfloat", "hincrbyfloat", "spop", "hexpired"];

/// True if whoever hears of the command would take it for a change that comes late.
pub(super) fn seems_plain(event: &[u8]) -> bool {
    is_plain(event) || SEEN_AS_PLAIN.iter().any(|plain| plain.as_bytes() == event)
}

/// True if changes may come late on this server: it tells of the ends of units, and of keys also while data are loaded.
pub(super) fn is_possible() -> bool {
    after::has_units() && !home::is_needed()
}

impl Unsent {
    /// As it is kept in a file: a server that starts with that goes on with the stream of this one, and has to tell of what was not
    /// told any more.
    pub(super) fn kept(&self) -> Follows {
        // They are our own.
        let frames = frame::read(self.frames.as_bytes()).unwrap_or_default();
        let changes = frames.into_iter().filter_map(|frame| match frame {
            Frame::Change { change, .. } => Some((change.key, change.event)),
            _ => None,
        });
        let keys: Vec<_> = changes.collect();
        if keys.is_empty() || !is_possible() {
            Follows::Never
        } else {
            Follows::Following(keys)
        }
    }

    /// This server hands on nothing now. What waits stays, for the case that it goes on with the data that it has.
    pub(super) fn stay_behind(&mut self) {
        self.told = None;
        (self.no_change, self.split) = (false, false);
    }

    fn is_known(&self, lock: Lock<'_>) -> bool {
        self.told.is_some() && self.told == audience::generation(lock)
    }
}

impl State {
    pub(super) fn send(&mut self, lock: Lock<'_>) {
        if !lock.may_write() {
            return;
        }
        if audience::is_there(lock) {
            if is_possible() {
                self.unsent.frames.last(self.ids.last(), &Follows::FromHere);
                self.unsent.told = audience::generation(lock);
            }
            self.handed_on += 1;
            replicate(lock, QUEUE, &[self.unsent.frames.as_bytes()]);
        }
        self.unsent.frames.clear(LARGE);
        self.unsent.split |= !self.notes.is_empty();
    }
}

impl WriteBehind {
    /// What has been added to the frames goes out, now or, if it may come `late`, at the end of this turn.
    pub(super) fn hand_on(&self, lock: Lock<'_>, late: bool) {
        let state = self.state.read(lock);
        let few = state.unsent.frames.len() < LARGE;
        let waits = late && few && state.unsent.is_known(lock) && lock::is_server_thread();
        drop(state);
        if !waits {
            self.flush(lock);
        }
    }

    /// The unit that runs has written what is no change, and whoever follows would take it for one: something goes out with it. There
    /// may be somebody also where this server has told nobody yet: a file of an earlier run, replicas of an earlier master, or
    /// those who were there before it forked.
    pub(super) fn say_no_change(&self, lock: Lock<'_>) {
        self.state.write(lock).send(lock);
    }

    /// Hands on what waits. While clients are paused it stays.
    pub(super) fn flush(&self, lock: Lock<'_>) {
        let mut state = self.state.write(lock);
        if !state.unsent.frames.is_empty() {
            state.send(lock);
        }
    }

    /// A database, or several, will be emptied or have changed places: whoever follows must know of the changes before.
    pub fn flush_before(&self, lock: Lock<'_>) {
        if self.engine.is_serving() {
            self.flush(lock);
        }
    }
}
