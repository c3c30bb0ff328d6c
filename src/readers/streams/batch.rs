//! The entries that one execution gets.

use std::{collections::VecDeque, sync::Arc};

use crate::mutex::Mutex;

use super::{
    Watch,
    group::{Portion, Read, log},
    state::Taken,
};
use crate::{
    engine::{
        Engine,
        language::{Failure, with_lock},
        record::Record,
        source::{Reading, Source},
    },
    error::Error,
    server::{lock::Lock, rights::Actor},
};

/// The entries of one execution, read when it begins.
pub(super) struct Batch {
    pub(super) watch: Arc<Watch>,
    pub(super) key: Vec<u8>,
    pub(super) portion: Portion,
    pub(super) taken: Arc<Mutex<Taken>>,
    pub(super) epoch: u64,
    pub(super) entries: Option<VecDeque<Record>>,
}

impl Batch {
    /// Whether the user of the registration may do what is done to the stream for it.
    ///
    /// # Errors
    /// He may not. Nothing is read then.
    fn check(&self, lock: Lock<'_>, actor: Option<&Actor>) -> Result<(), Error> {
        let Some(actor) = actor else { return Ok(()) };
        let key = self.key.as_slice();
        actor.check_command(
            lock,
            &[&b"XREADGROUP"[..], b"GROUP", b"g", b"c", b"STREAMS", key, b">"],
        )?;
        actor.check_command(lock, &[&b"XACK"[..], key, b"g", b"0"])?;
        if self.watch.options.trim {
            actor.check_command(lock, &[&b"XTRIM"[..], key, b"MINID", b"0"])?;
        }
        Ok(())
    }

    fn read(&self, engine: &Engine, lock: Lock<'_>) -> VecDeque<Record> {
        let watch = &self.watch;
        let state = watch.shared.lock();
        if state.epoch != self.epoch || !watch.reads(engine, &state) {
            // It was stopped while this waited for the server.
            return VecDeque::new();
        }
        drop(state);
        let read = watch.group.read(lock, engine.features, &self.key, self.portion);
        let Read {
            entries,
            gone,
            refused,
            made,
        } = read;
        let mut state = watch.shared.lock();
        let mut arrived = None;
        if let Some(error) = refused {
            let first = state.stream(&self.key).note_refused();
            drop(state);
            self.taken.lock().refused = true;
            if first {
                log(&self.key, "read", &error);
            }
            return VecDeque::new();
        }
        if gone {
            // Whatever comes under this name is another stream.
            state.remove(&self.key);
        } else if let Some(stream) = state.streams.get_mut(self.key.as_slice()) {
            if let Some(held) = made {
                stream.note_made(held);
            }
            arrived = stream.note_read(self.portion, entries.len());
        }
        drop(state);
        *self.taken.lock() = Taken {
            ids: entries.iter().map(|entry| entry.id.clone()).collect(),
            full: self.portion == Portion::New(entries.len() as u64),
            arrived,
            forbidden: false,
            refused: false,
        };
        let records = entries.into_iter().map(|entry| entry.record(&self.key));
        records.collect()
    }
}

impl Source for Batch {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        if self.entries.is_none() {
            let engine = reading.engine;
            let entries = with_lock(engine.language.as_ref(), |lock| {
                self.check(lock, reading.actor.map(AsRef::as_ref))?;
                Ok::<_, Failure>(self.read(engine, lock))
            });
            match entries {
                Ok(entries) => self.entries = Some(entries),
                Err(refusal) => {
                    self.entries = Some(VecDeque::new());
                    self.taken.lock().forbidden = true;
                    return Err(refusal);
                }
            }
        }
        Ok(self.buffered())
    }

    fn buffered(&mut self) -> Option<Record> {
        self.entries.as_mut()?.pop_front()
    }

    fn is_single(&self) -> bool {
        self.portion == Portion::New(1)
    }
}
