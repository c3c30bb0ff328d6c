//! What follows from the end of an execution: entries are acknowledged and trimmed, or come again.

use std::sync::Arc;

use super::{
    StreamWatch, Watch,
    entries::EntryId,
    group::{self, Groups, trim},
    state::{Policy, Status, Stream, Taken},
};
use crate::{
    engine::{execution::Outcome, language::Failure},
    server::lock::Lock,
};

impl StreamWatch {
    /// An execution has ended: acknowledges what is finished. True if the next one may follow, here or where another
    /// registration has taken over.
    pub(super) fn ended(
        self: &Arc<Self>,
        lock: Lock<'_>,
        watch: &Arc<Watch>,
        key: &[u8],
        epoch: u64,
        taken: &Taken,
        outcome: &Outcome,
    ) -> bool {
        let policy = watch.options.policy;
        let failed = !outcome.errors.is_empty();
        let pauses = outcome.errors.iter().any(Failure::pauses);
        let finished = if failed {
            policy == Policy::Continue && !pauses && !taken.forbidden
        } else {
            !outcome.aborted
        };
        let mut state = watch.shared.lock();
        if state.epoch != epoch {
            return true;
        }
        let serving = self.engine.is_serving();
        let removed = watch.registration.is_removed();
        if taken.refused && !removed {
            drop(state);
            self.ask_again_later(watch, key, epoch);
            return false;
        }
        if finished {
            // An execution that got a full batch is the last one only if nothing more is believed to be there.
            let stream = state.streams.get(key);
            let unread = stream.map(Stream::unread);
            let seems_read =
                taken.full && stream.is_some_and(|stream| stream.next(watch.options.batch).is_none());
            if let (Some(arrived), true) = (taken.arrived, serving && !taken.ids.is_empty()) {
                state.note_lag(arrived.elapsed());
            }
            drop(state);
            if serving {
                let features = self.engine.features;
                let same = watch.group.acknowledge(lock, features, key, &taken.ids);
                let unread = unread.filter(|_| same && taken.full && !removed);
                self.tidy(lock, watch, key, taken, unread, seems_read && !removed);
            }
            return serving;
        }
        if let (Some(stream), false) = (state.streams.get_mut(key), taken.ids.is_empty()) {
            stream.recover();
        }
        if !failed {
            // Aborted: its entries come again with the next recovery.
            return removed;
        }
        // Rights may come back, and nothing was read: it waits for that, whatever becomes of its function's failures.
        let policy = if taken.forbidden { Policy::Retry } else { policy };
        let retries = state.note_failed(policy, pauses) == Status::WaitingForRetry;
        drop(state);
        self.engine.abort_pending(watch.registration.id);
        if retries {
            self.retry_later(watch, epoch);
        }
        removed
    }

    /// What follows when entries are acknowledged: those that every registration on the stream has finished are removed, if
    /// one of them wants that. `unread`: how many more are believed to be there, if it is the stream that they came from;
    /// `seems_read`: nothing follows if that is right.
    fn tidy(
        &self,
        lock: Lock<'_>,
        watch: &Arc<Watch>,
        key: &[u8],
        taken: &Taken,
        unread: Option<u64>,
        seems_read: bool,
    ) {
        let list = Arc::clone(&self.watched.read(lock).list);
        // A registration that ended meanwhile has not left its last entries to the others.
        let leaving = watch.registration.is_removed().then_some(watch);
        let mut readers = list
            .iter()
            .filter(|reader| reader.pattern.matches(key))
            .chain(leaving);
        let trims = !taken.ids.is_empty() && readers.clone().any(|reader| reader.options.trim);
        if !trims && !seems_read {
            return;
        }
        let features = self.engine.features;
        if let (true, Some(unread), 1) = (trims, unread, readers.clone().take(2).count()) {
            // The usual case needs no look at the groups: nobody else reads the stream, and it holds what was read just now
            // and what is believed to be unread, nothing that was left before.
            let last = taken.ids.last().and_then(|id| EntryId::parse(id));
            let held = taken.ids.len() as u64 + unread;
            if let (Some(last), true) = (last, group::length(lock, key) == held) {
                trim(lock, features, key, last.next());
                return;
            }
        }
        let groups = Groups::of(lock, features, key);
        if seems_read {
            self.compare(lock, watch, key, &groups, unread.unwrap_or(0));
        }
        if trims {
            // Whoever has not begun has finished nothing.
            let first = readers.try_fold(None, |first, reader| {
                let standing = reader.group.standing(lock, features, key, &groups)?;
                Some(Some(first.map_or(standing.unfinished, |first| {
                    standing.unfinished.min(first)
                })))
            });
            if let Some(Some(first)) = first {
                trim(lock, features, key, first);
            }
        }
    }
}
