//! Does what the machine says: calls `save`, takes what has come of it, tells those who wait. On the server's thread, before it
//! sleeps.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    Sink, State, WriteBehind,
    machine::{Change, FailedSave, Settled, Time},
    source::Changes,
};
use crate::{
    engine::{language::Failure, record::Record, registration::Registration, start::Start},
    mutex::Mutex,
    read_through::raised,
    server::{api, audience, lock::Lock, reply::Reply, snapshot::Snapshot},
};

/// How often the log says that changes cannot be saved.
pub(super) const LOG_EVERY: Duration = Duration::from_secs(60);

/// What a call of `save` has come to.
pub(super) struct Brought {
    sink: u64,
    call: u64,
    result: Result<(), FailedSave>,
    took: Duration,
}

/// A call that begins.
struct Begun {
    sink: u64,
    call: u64,
    saver: Arc<Registration>,
    /// The places of changes that are damaged.
    damaged: Vec<u64>,
}

impl WriteBehind {
    /// Does whatever is to be done now. Called in each turn of the server's loop: most of the time that is nothing.
    pub fn pump(&self, lock: Lock<'_>) {
        let is_off = self.is_off();
        let mut state = self.state.write(lock);
        state.turn = None;
        let has_turned = std::mem::replace(&mut state.is_off, is_off) != is_off;
        drop(state);
        if has_turned {
            tell_of_saving(is_off);
        }
        if self.awake.swap(false, Ordering::AcqRel) || self.is_due(lock) {
            self.pump_now(lock);
        }
        self.flush_before(lock);
    }

    fn is_due(&self, lock: Lock<'_>) -> bool {
        let state = self.state.read(lock);
        !state.sinks.is_empty() && state.next_due().is_some_and(|due| due <= self.now())
    }

    fn pump_now(&self, lock: Lock<'_>) {
        let now = self.now();
        if !self.engine.is_serving() || self.role_changed.swap(false, Ordering::AcqRel) {
            self.give_up(lock);
        }
        if !self.engine.is_serving() {
            // Whoever is master now tells what there is. If it comes to none, and this server is master again, it tells that itself.
            self.state.write(lock).unsent.stay_behind();
            return;
        }
        self.capture_tail(lock);
        if lock.may_write() {
            let brought = std::mem::take(&mut *self.inbox.lock());
            for brought in brought {
                self.land(lock, now, brought);
            }
            loop {
                let begun = self.state.write(lock).begin(now);
                let Some(begun) = begun else { break };
                self.call(lock, now, begun);
            }
            self.unlink_where_not_full(lock);
            self.let_in(lock);
        } else {
            // Nothing is handed on meanwhile; the next turn of the loop looks again.
            self.awake.store(true, Ordering::Release);
        }
        let lost = std::mem::take(&mut *self.lost.lock());
        self.lose(lock, lost);
        self.refuse_overdue(lock, now);
        self.stop_overdue(lock, now);
        self.tell(lock, now);
        self.arm(lock, now);
    }

    /// This server is no master any more: nobody waits here, and nothing is called.
    fn give_up(&self, lock: Lock<'_>) {
        let mut state = self.state.write(lock);
        for sink in &mut state.sinks {
            sink.queue.ground();
            sink.running = None;
        }
        let numbers: Vec<u64> = state.waiting.keys().copied().collect();
        let clients: Vec<_> = numbers
            .iter()
            .filter_map(|number| state.waiting.remove(number))
            .collect();
        for number in numbers {
            state.waiters.forget(number);
        }
        drop(state);
        self.inbox.lock().clear();
        for waits in clients {
            waits.lost("RoleChanged");
        }
        self.let_all_in(lock);
    }

    fn call(&self, lock: Lock<'_>, now: Time, begun: Begun) {
        let Begun {
            sink,
            call,
            saver,
            damaged,
        } = begun;
        self.put_damaged_away(lock, now, sink, call, damaged);
        let changes = self.state.write(lock).changes_of(sink, call);
        if changes.is_empty() {
            return;
        }
        if !self.engine.has_room(&saver) {
            let failed = FailedSave {
                kind: "TooManyPending".into(),
                text: "too many executions are pending".into(),
            };
            return self.bring(sink, call, Duration::ZERO, Err(failed));
        }
        let source = Changes {
            changes: Some(changes),
            most: saver.limits.max_memory,
        };
        let start = Start::of_registration(&saver, 0, Box::new(source)).transient();
        let begun = Instant::now();
        let this = self.this.clone();
        // Brought when the execution is counted, so that whoever has a reply sees it counted.
        let made = Arc::new(Mutex::new(None));
        let result = Arc::clone(&made);
        let start = start.collected(Arc::new(move |results: Vec<Record>, errors: &[Failure]| {
            let result = match errors.first() {
                Some(text) => Err(FailedSave {
                    kind: raised().kind().to_owned(),
                    text: text.text().to_owned(),
                }),
                None if results.is_empty() => Err(aborted()),
                None => Ok(()),
            };
            *made.lock() = Some(result);
            Vec::new()
        }));
        let start = start.told(move |_| {
            let result = result.lock().take().unwrap_or_else(|| Err(aborted()));
            if let Some(this) = this.upgrade() {
                this.bring(sink, call, begun.elapsed(), result);
            }
        });
        let execution = self.engine.submit(start, None);
        if let Some(sink) = self.state.write(lock).token(sink) {
            sink.running = Some(execution.id);
        }
    }

    /// A call has ended, on any thread.
    fn bring(&self, sink: u64, call: u64, took: Duration, result: Result<(), FailedSave>) {
        self.inbox.lock().push(Brought {
            sink,
            call,
            result,
            took,
        });
        self.wake();
    }

    fn land(&self, lock: Lock<'_>, now: Time, brought: Brought) {
        let mut state = self.state.write(lock);
        let Some(sink) = state.token(brought.sink) else {
            return;
        };
        if !sink.queue.is_flying(brought.call) {
            return;
        }
        sink.running = None;
        let late = sink.late.take().filter(|(call, _)| *call == brought.call);
        let result = match (brought.result, late) {
            (Err(_), Some((_, limit))) => {
                sink.figures.ended(limit);
                Err(timed_out(limit))
            }
            (result, _) => result,
        };
        match result {
            Ok(()) => {
                let gone = sink.queue.saved(brought.call);
                sink.figures.ended(brought.took);
                if audience::is_there(lock) {
                    let prefix = Arc::clone(&sink.options);
                    state.unsent.frames.gone(&prefix.prefix, &gone);
                }
            }
            Err(failed) => {
                let why = Arc::new(failed);
                let place = sink.queue.failed(now, brought.call, &why);
                sink.complain(now, &why);
                state.may_replace = true;
                drop(state);
                if let Some(place) = place {
                    if !self.put_away(lock, now, brought.sink, place, &why) {
                        if let Some(sink) = self.state.write(lock).token(brought.sink) {
                            sink.queue.not_buried(now);
                        }
                    }
                }
            }
        }
    }

    /// Calls whose time is over are stopped; one that does not end then has failed.
    fn stop_overdue(&self, lock: Lock<'_>, now: Time) {
        let mut hung = Vec::new();
        for sink in &mut self.state.write(lock).sinks {
            let Some(call) = sink.queue.overdue(now) else {
                continue;
            };
            let limit = sink.queue.max_save_time();
            if sink.queue.is_late(now) {
                sink.late = Some((call, limit));
            }
            let late = sink.late.is_some_and(|(late, _)| late == call);
            hung.push((sink.token, call, sink.running.take(), late, limit));
        }
        for (sink, call, running, late, limit) in hung {
            let Some(execution) = running else {
                // It hangs where nothing can stop it.
                self.bring(sink, call, Duration::ZERO, Err(aborted()));
                continue;
            };
            if late {
                api::log_warning(&format!(
                    "write_behind: a call of save has taken longer than its max_save_time ({} ms) and is stopped ({execution})",
                    limit.as_millis()
                ));
            } else {
                api::log_notice(&format!(
                    "write_behind: a call of save is stopped, because another one goes on with its queue ({execution})"
                ));
            }
            // One that has ended in this moment is not there any more.
            let _ = self.engine.abort(execution, || {});
        }
    }

    /// Those whose changes are saved, or will not be, or who have waited long enough.
    fn tell(&self, lock: Lock<'_>, now: Time) {
        let mut state = self.state.write(lock);
        let mut done = Vec::new();
        let settled: Vec<_> = state
            .sinks
            .iter_mut()
            .flat_map(|sink| sink.queue.take_settled())
            .collect();
        for (number, settled) in settled {
            if let Some(settled) = state.waiters.settle(number, settled) {
                done.push((number, settled));
            }
        }
        while let Some(number) = state.waiters.overdue(now) {
            let kind = state.trouble_of(number);
            done.push((
                number,
                Settled::Lost(Arc::new(FailedSave {
                    kind: kind.unwrap_or_else(|| "Timeout".into()),
                    text: String::new(),
                })),
            ));
        }
        let done: Vec<_> = done
            .into_iter()
            .filter_map(|(number, settled)| Some((state.waiting.remove(&number)?, settled)))
            .collect();
        drop(state);
        for (waits, settled) in done {
            match settled {
                Settled::Saved => waits.saved(),
                Settled::Lost(why) => waits.lost(&why.kind),
            }
        }
    }

    /// Sees to it that the server comes when the next time is over.
    fn arm(&self, lock: Lock<'_>, now: Time) {
        let mut state = self.state.write(lock);
        let Some(due) = state.next_due() else { return };
        if state.armed.is_some_and(|armed| armed > now && armed <= due) {
            return;
        }
        state.armed = Some(due);
        drop(state);
        let this = self.this.clone();
        self.engine.timers.after(due.saturating_sub(now), move |_| {
            if let Some(this) = this.upgrade() {
                this.wake();
            }
        });
    }
}

/// A line in the log where the operator has changed his mind; also at the start, if saving is off then.
fn tell_of_saving(is_off: bool) {
    if is_off {
        api::log_warning(
            "write_behind: saving is off (WriteBehindSaving): changes are captured and stay queued, and no save is called until \
             RG.CONFIGSET WriteBehindSaving yes",
        );
    } else {
        api::log_notice("write_behind: saving is on");
    }
}

fn aborted() -> FailedSave {
    FailedSave {
        kind: "Aborted".into(),
        text: "the call of save was aborted".into(),
    }
}

fn timed_out(limit: Duration) -> FailedSave {
    FailedSave {
        kind: "SaveTimedOut".into(),
        text: format!("save took longer than max_save_time ({} ms)", limit.as_millis()),
    }
}

/// What a client hears whose change is not saved.
pub(super) fn save_failed(kind: &str) -> Reply {
    Reply::error(format!("SAVEFAILED {kind}"))
}

impl State {
    pub(super) fn token(&mut self, token: u64) -> Option<&mut Sink> {
        self.sinks.iter_mut().find(|sink| sink.token == token)
    }

    fn next_due(&self) -> Option<Time> {
        let queues = self.sinks.iter().filter(|sink| sink.saves);
        let calls = queues.filter_map(|sink| {
            if self.is_off {
                sink.queue.call_ends()
            } else {
                sink.queue.next_due()
            }
        });
        calls.chain(self.waiters.next_due()).chain(self.held_until).min()
    }

    /// The next call of any registration.
    fn begin(&mut self, now: Time) -> Option<Begun> {
        if self.is_off {
            return None;
        }
        for sink in self.sinks.iter_mut().filter(|sink| sink.saves) {
            let Some((call, places)) = sink.queue.begin(now) else {
                continue;
            };
            let is_damaged = |place: &u64| {
                let entry = sink.queue.entry(*place);
                entry.is_some_and(|entry| entry.change.payload.is_damaged())
            };
            let damaged = places.into_iter().filter(is_damaged).collect();
            return Some(Begun {
                sink: sink.token,
                call,
                saver: Arc::clone(&sink.owner),
                damaged,
            });
        }
        None
    }

    /// What `save` gets by a call.
    fn changes_of(&mut self, sink: u64, call: u64) -> Vec<Change<Snapshot>> {
        let queue = self.token(sink).map(|sink| &mut sink.queue);
        let entries = queue.map(|queue| queue.flying(call)).unwrap_or_default();
        entries.into_iter().map(|entry| entry.change.clone()).collect()
    }

    /// Why the changes of somebody who waits are not saved, as far as that is known.
    fn trouble_of(&self, number: u64) -> Option<String> {
        if self.is_off {
            return Some("SavingIsOff".into());
        }
        let waits = self.waiting.get(&number)?;
        let theirs = self
            .sinks
            .iter()
            .filter(|sink| waits.sinks & (1 << sink.number) != 0);
        let mut failures = theirs.filter_map(|sink| sink.queue.last_failure());
        failures.next().map(|failed| failed.kind.clone())
    }
}

impl Sink {
    /// Says in the log that changes cannot be saved, once a minute.
    fn complain(&mut self, now: Time, why: &FailedSave) {
        if self.logged.is_some_and(|logged| now < logged + LOG_EVERY) {
            return;
        }
        self.logged = Some(now);
        let waiting = self.queue.len();
        let stuck = self.queue.failing();
        api::log_warning(&format!(
            "write_behind: registration {} cannot save {stuck} of {waiting} changes: {}",
            self.owner.id, why.text
        ));
    }
}
