//! Does what the machine says: begins loads, lets what they brought land, lets clients go. Under the server's lock, on
//! the server's thread before it sleeps, or on the thread that a load has ended on.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    Key, Leave, ReadThrough, Running,
    brought::{Strangers, Unloading},
    machine::{Action, Ask, Keys, NoValue, Time},
    options::{Options, Ttl, seconds},
};
use crate::{
    engine::{
        id::Id,
        language::{Failure, with_lock},
        record::{Record, Value},
        registration::Registration,
        reuse::Pool,
        scope::Scope,
        source::{Once, Reading, Source},
    },
    server::{
        key::{self, Life},
        lock::Lock,
        rights::{Access, Actor},
        string::Held,
    },
};

/// What `lastError` says of a load that took too long.
const LOAD_TIMED_OUT: &str = "LoadTimedOut: the load took longer than max_load_time";

/// Where the pump runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On the server's thread, before it sleeps.
    Server,
    /// On the thread that a load has ended on.
    Worker,
}

/// The argument of a loader that acts as a user, if he may store what it brings.
struct Wanted {
    record: Option<Record>,
    keys: Keys,
}

impl Source for Wanted {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        let record = self.record.take();
        if let (Some(actor), Some(_)) = (reading.actor, &record) {
            let names = self.keys.iter().map(|key| &*key.name);
            check_keys(reading, actor, names, Access::Write)?;
        }
        Ok(record)
    }

    fn is_at_end(&self) -> bool {
        self.record.is_none()
    }

    fn is_single(&self) -> bool {
        true
    }
}

/// Whether the user of an execution may do that to keys which it is about. What is refused is what its function "raised".
///
/// # Errors
/// He may not.
pub fn check_keys<'a>(
    reading: &Reading<'_>,
    actor: &Actor,
    mut names: impl Iterator<Item = &'a [u8]> + Send,
    access: Access,
) -> Result<(), Failure> {
    let checked = with_lock(reading.engine.language.as_ref(), |lock| {
        names.try_for_each(|name| actor.check_key(lock, name, access))
    });
    if checked.is_err() {
        let scope = Scope::current();
        if let Some(execution) = scope.as_ref().and_then(|scope| scope.execution.as_ref()) {
            execution.note_error_kind("NoPermission");
        }
    }
    Ok(checked?)
}

impl super::State {
    /// The server comes by itself when the next time is over.
    fn is_armed(&self) -> bool {
        let due = self.machine.next_due();
        due.is_none_or(|due| self.armed.is_some_and(|armed| armed <= due))
    }
}

impl ReadThrough {
    /// Does whatever is to be done now. Called in each turn of the server's loop: most of the time that is nothing.
    pub fn pump(&self, lock: Lock<'_>) {
        let is_wanted = self.awake.swap(false, Ordering::AcqRel) || self.has_mail.load(Ordering::Acquire);
        if is_wanted || self.has_more(lock) {
            self.pump_now(lock, self.now(), Place::Server);
        }
    }

    /// Something is to be done, or a time has come up for which nothing wakes the server. No clock is read for that.
    fn has_more(&self, lock: Lock<'_>) -> bool {
        let state = self.state.read(lock);
        state.machine.has_actions() || !state.leaving.is_empty() || !state.is_armed()
    }

    /// A command has asked for keys, and its client waits: what begins with that need not wait for the next turn of the server's loop,
    /// which may have been the last one for a while. `name`: the only key that it asked for.
    pub(super) fn begin_at_once(&self, lock: Lock<'_>, now: Time, mut name: Option<Held>) {
        loop {
            let begin = self.state.write(lock).machine.next_begin();
            let Some(Action::Begin { load, rule, keys }) = begin else {
                break;
            };
            self.begin_load(lock, now, load, rule, keys, name.take());
        }
        self.arm(lock, now);
    }

    fn begin_load(&self, lock: Lock<'_>, now: Time, load: u64, rule: Id, keys: Keys, name: Option<Held>) {
        let keys = self.without_doubtful(lock, now, load, keys);
        if keys.is_empty() {
            return;
        }
        let state = self.state.read(lock);
        let served = state.served.get(rule).map(|served| {
            let (registration, pool) = (Arc::clone(&served.registration), Arc::clone(&served.pool));
            let batch = (served.options.batch > 1).then(|| Arc::clone(&served.strangers));
            (registration, Arc::clone(&served.options), pool, batch)
        });
        drop(state);
        match served {
            Some((registration, options, pool, batch)) => {
                let served = (&registration, &*options, &pool, batch);
                self.begin(lock, now, load, served, keys, name);
            }
            None => {
                self.state.write(lock).machine.ended(now, load);
            }
        }
    }

    pub(super) fn pump_now(&self, lock: Lock<'_>, now: Time, place: Place) {
        let paused = !lock.may_write();
        self.release_given_up(lock);
        if !self.engine.is_serving() {
            self.state.write(lock).machine.let_all_go();
        }
        if !paused && self.has_mail.swap(false, Ordering::AcqRel) {
            // One list comes in the place of the other, so that neither is made anew each time.
            let mut brought = std::mem::take(&mut self.state.write(lock).landing);
            std::mem::swap(&mut *self.inbox.lock(), &mut brought);
            for brought in brought.drain(..) {
                self.land(lock, now, brought);
            }
            self.state.write(lock).landing = brought;
        }
        if !paused {
            self.hear_elsewhere(lock, now);
        }
        self.state.write(lock).machine.tick(now);
        loop {
            let action = self.state.write(lock).machine.next_action();
            let Some(action) = action else { break };
            self.act(lock, now, action);
        }
        self.let_go(lock, paused, place);
        if paused {
            // Nothing is stored meanwhile; the next turn of the loop looks again.
            self.awake.store(true, Ordering::Release);
        }
        self.arm(lock, now);
    }

    fn act(&self, lock: Lock<'_>, now: Time, action: Action) {
        let mut state = self.state.write(lock);
        match action {
            Action::Begin { load, rule, keys } => {
                drop(state);
                self.begin_load(lock, now, load, rule, keys, None);
            }
            Action::Stop { load, rule } => {
                let running = state.running.remove(&load);
                if let Some(served) = state.served.get_mut(rule) {
                    let limit = seconds(served.options.max_load_time);
                    served.figures.gave_up(limit);
                }
                drop(state);
                if let Some(running) = running {
                    self.engine.fail_execution(running.execution, LOAD_TIMED_OUT);
                }
            }
            Action::Ready { waiter } => state.leaving.push_back((waiter, Leave::Served)),
            Action::Refuse { waiter, rule, why } => {
                let writes = state.machine.writes(waiter);
                let leave = state.refusal(rule, &why, writes);
                let leave = leave.map_or(Leave::Plain, Leave::Reply);
                state.leaving.push_back((waiter, leave));
            }
            Action::Again { waiter, keys } => {
                let writes = state.machine.writes(waiter);
                drop(state);
                if writes && keys.iter().any(|key| self.leaves_a_part(lock, key)) {
                    let leave = Leave::Reply(NoValue::Aborted.into());
                    return self.state.write(lock).leaving.push_back((waiter, leave));
                }
                let asks = self.asks_for(lock, now, &keys);
                self.state.write(lock).machine.ask_again(now, waiter, &asks);
            }
        }
    }

    /// Keys of a client that waits have nobody who loads them any more, or their values are gone: whoever has them now does.
    pub(super) fn asks_for(&self, lock: Lock<'_>, now: Time, keys: &[Key]) -> Vec<Ask> {
        let missing: Vec<&Key> = keys
            .iter()
            .filter(|key| key::life(lock, key.db, &key.name) == Life::Missing)
            .collect();
        let mut state = self.state.write(lock);
        let mut asks = Vec::with_capacity(missing.len());
        for key in missing {
            if state.machine.is_absent(now, key.db, &key.name) {
                continue;
            }
            if let Some(rule) = state.served_for(&key.name) {
                asks.push(Ask {
                    rule,
                    key: key.clone(),
                    present: false,
                });
            }
        }
        asks
    }

    /// Whether a command that changes the key would find nothing, nobody loads what it waited for, and what it leaves would be saved.
    fn leaves_a_part(&self, lock: Lock<'_>, key: &Key) -> bool {
        let is_missing = || key::life(lock, key.db, &key.name) == Life::Missing;
        let is_loaded = self.state.read(lock).served_for(&key.name).is_some();
        !is_loaded && self.hooks.saves_write(lock, &key.name) && is_missing()
    }

    /// Calls the loader, as an execution like any other.
    fn begin(
        &self,
        lock: Lock<'_>,
        begun: Time,
        load: u64,
        (registration, options, pool, batch): (
            &Arc<Registration>,
            &Options,
            &Arc<Pool>,
            Option<Arc<Strangers>>,
        ),
        keys: Keys,
        asked: Option<Held>,
    ) {
        let Some(db) = keys.first().map(|key| key.db) else {
            return;
        };
        let name = |key: &Key| Value::Key(key.name.to_vec());
        let argument = if batch.is_some() {
            Value::List(keys.iter().map(name).collect())
        } else {
            keys.first().map_or(Value::None, name)
        };
        if !self.engine.has_room(registration) {
            self.bring(load, Duration::ZERO, Err(NoValue::TooManyPending), begun);
            return;
        }
        // What is loaded of a key with a change that is not saved may be older than that.
        let mut unsaved = Vec::new();
        for key in &keys {
            if self.unsaved(lock, key.db, &key.name).is_some() {
                unsaved.push(key.clone());
            }
        }
        let record = Some(Record::Native(argument));
        let source: Box<dyn Source> = match &registration.actor {
            None => Box::new(Once(record)),
            Some(_) => Box::new(Wanted {
                record,
                keys: keys.clone(),
            }),
        };
        let ttl = match options.ttl {
            Ttl::Function => registration.plan.functions.get(1).cloned(),
            _ => None,
        };
        let is_it = |name: &Held| matches!(keys.as_slice(), [key] if *key.name == *name.bytes());
        let asked = asked.filter(is_it);
        let collector = Unloading::new(self, load, begun, keys, batch, ttl);
        let now = self.started + begun;
        let is_alone = self.state.read(lock).running.is_empty();
        self.is_alone.store(is_alone, Ordering::Relaxed);
        let execution = self
            .engine
            .submit_load(registration, pool, db, source, collector, now);
        let running = Running {
            execution,
            name: asked,
        };
        self.state.write(lock).running.insert(load, running);
        if !unsaved.is_empty() {
            self.break_leases(lock, &unsaved);
        }
    }

    /// Does something to a key that is our own doing.
    pub(super) fn quietly<R>(&self, lock: Lock<'_>, work: impl FnOnce() -> R) -> R {
        let before = std::mem::replace(&mut self.state.write(lock).storing, true);
        let result = work();
        self.state.write(lock).storing = before;
        result
    }

    /// Sees to it that the server comes when the next time is over.
    fn arm(&self, lock: Lock<'_>, now: Time) {
        let mut state = self.state.write(lock);
        state.armed = state.armed.filter(|armed| *armed > now);
        let Some(due) = state.machine.next_due().filter(|_| !state.is_armed()) else {
            return;
        };
        state.armed = Some(due);
        drop(state);
        let this = self.this.clone();
        let delay = due.saturating_sub(now);
        self.engine.timers.after(delay, move |_| {
            if let Some(this) = this.upgrade() {
                this.wake();
            }
        });
    }
}
