//! An execution that ends before anybody looks at it, and what makes it the next one's of its registration; or one that is made when
//! somebody looks, of what was kept of such a run. Called by `brief.rs`, `reuse.rs`, `ended.rs` and the registry.

use crate::clock::Instant;
use std::sync::Arc;

use super::{
    super::{
        id::Id,
        linked_command::ReplyHold,
        phase::{Phase, Status},
        reuse::Anew,
        start::Start,
    },
    Collector, Execution, MayWait, Outcome,
};

/// [`Execution::end_unseen`] found somebody who waits.
#[derive(Debug)]
pub(in super::super) struct AwaitedEnd;

/// What is to be done behind [`Execution::end_unseen`].
pub(in super::super) struct Left {
    pub link: Option<ReplyHold>,
    pub collector: Option<Collector>,
}

impl Execution {
    /// One that has ended well, and is listed.
    pub(in super::super) fn ended(id: Id, start: Start, outcome: Outcome) -> Self {
        let mut execution = Self::new(id, start, None);
        *execution.unlisted.get_mut() = false;
        *execution.records_read.get_mut() = 1;
        execution.state.get_mut().phase = Phase::Ended(Status::Done, Some(Arc::new(outcome)));
        execution
    }

    /// It begins anew as another run of the same registration, which nobody knows of.
    pub(in super::super) fn renew(&mut self, id: Id, db: i32, may_wait: MayWait, link: Option<ReplyHold>) {
        self.id = id;
        self.db = db;
        self.may_wait = may_wait;
        self.link = link.as_ref().map(|hold| Arc::clone(hold.link()));
        self.state.get_mut().link = link;
        *self.records_read.get_mut() = 0;
    }

    /// The same of one that begins in the queue.
    pub(in super::super) fn renew_queued(&mut self, id: Id, anew: Anew, now: Instant) {
        self.renew(id, anew.db, MayWait::Yes, anew.link);
        let state = self.state.get_mut();
        state.phase = Phase::Created(anew.source);
        state.collector = anew.collector;
        state.collected = false;
        state.queued_at = Some(now);
        *self.delayed.get_mut() = false;
        *self.unlisted.get_mut() = true;
    }

    /// Nothing has happened in it that the next run must not know of: it may be renewed.
    pub(in super::super) fn is_as_new(&self) -> bool {
        !self.stop.is_asked() && self.error_kind.get().is_none() && !self.has_news()
    }

    /// It has ended. True if it may be renewed: of its run only an `Ended` is left.
    pub(in super::super) fn retire(&mut self) -> bool {
        let unseen = matches!(self.state.get_mut().phase, Phase::Ended(_, None));
        drop(self.unlink());
        unseen && self.is_as_new() && self.meter.get().is_none() && !self.has_overrun()
    }

    /// It is one like most: of a registration, of this shard alone, of one record.
    pub(in super::super) fn is_usual(&self) -> bool {
        let is_kept = !self.transient && !self.is_collected && self.fate().is_none();
        is_kept && self.distributed.is_none() && self.records_read() == 1
    }

    /// It is a run of a registration, of this shard alone, whose results only its collector gets.
    pub(in super::super) fn is_load(&self) -> bool {
        self.transient && self.is_collected && self.distributed.is_none() && self.fate().is_none()
    }

    /// It has ended well.
    ///
    /// # Errors
    /// Somebody waits for its end.
    pub(in super::super) fn end_unseen(&self) -> Result<Left, AwaitedEnd> {
        let mut state = self.state.lock();
        if !state.waiters.is_empty() || state.phase.end(Status::Done, None).is_none() {
            return Err(AwaitedEnd);
        }
        Ok(Left {
            link: state.link.take(),
            collector: state.collector.take(),
        })
    }

    /// It knows of no linked command any more.
    pub(in super::super) fn unlink(&mut self) -> Option<ReplyHold> {
        self.link = None;
        self.state.get_mut().link.take()
    }
}
