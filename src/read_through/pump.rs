//! Does what the machine says: begins loads, lands what they brought, lets clients go. Under the server's lock, on
//! the server's thread before it sleeps, or where a load has ended while it sleeps.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    Key, Leave, Lifetime, Loaded, ReadThrough, Running,
    brought::{Brings, Brought, Unloading},
    life,
    machine::{Action, Ask, Keys, Landing, NoValue, Time},
    options::{Options, Ttl},
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
        api,
        key::{self, Life},
        lock::{Lock, LockGuard},
        rights::{Access, Actor},
        store::{self, Content, Open},
        string::Held,
    },
};

/// What `lastError` says of a load that took too long.
const LOAD_TIMED_OUT: &str = "LoadTimedOut: the load took longer than max_load_time";

/// So many values are stored by a thread that is attached to Python, which others wait for meanwhile.
const FEW: usize = 4;

/// Where the pump runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On the server's thread, before it sleeps.
    Server,
    /// On the thread that a load has ended on, while the server sleeps.
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
        if self.awake.swap(false, Ordering::AcqRel) || self.has_more(lock) {
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
        let state = self.state.read(lock);
        let served = state.served.get(rule).map(|served| {
            let (registration, pool) = (Arc::clone(&served.registration), Arc::clone(&served.pool));
            (registration, Arc::clone(&served.options), pool)
        });
        drop(state);
        match served {
            Some((registration, options, pool)) => {
                self.begin(lock, now, load, (&registration, &options, &pool), keys, name);
            }
            None => {
                self.state.write(lock).machine.ended(now, load);
            }
        }
    }

    fn pump_now(&self, lock: Lock<'_>, now: Time, place: Place) {
        let paused = !lock.may_write();
        self.release_given_up(lock);
        if !self.engine.is_serving() {
            self.state.write(lock).machine.let_all_go();
        }
        if !paused {
            // One list comes in the place of the other, so that neither is made anew each time.
            let mut brought = std::mem::take(&mut self.state.write(lock).landing);
            std::mem::swap(&mut *self.inbox.lock(), &mut brought);
            for brought in brought.drain(..) {
                self.land(lock, now, brought);
            }
            self.state.write(lock).landing = brought;
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
            Action::Stop { load } => {
                let running = state.running.remove(&load);
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
        (registration, options, pool): (&Arc<Registration>, &Options, &Arc<Pool>),
        keys: Keys,
        asked: Option<Held>,
    ) {
        let Some(db) = keys.first().map(|key| key.db) else {
            return;
        };
        let batch = options.batch > 1;
        let name = |key: &Key| Value::Key(key.name.to_vec());
        let argument = if batch {
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

    /// A load has ended: on any thread, with or without the server's lock.
    pub(super) fn bring(&self, load: u64, took: Duration, values: Brings, now: Time) {
        let few = values.as_ref().map_or(1, SmallVec::len) <= FEW;
        self.inbox.lock().push(Brought { load, values, took });
        if !few || !self.pump_here(now) {
            self.wake();
        }
    }

    /// Where nobody has the server's lock, because the server sleeps, this thread does what is to be done: to wake the server only for that
    /// is a turn of its loop more, since what it does then ends with waking it for the clients that are let go. False if somebody has it.
    fn pump_here(&self, now: Time) -> bool {
        let Some(guard) = LockGuard::try_acquire() else {
            return false;
        };
        self.pump_now(guard.lock(), now, Place::Worker);
        true
    }

    /// A load has ended: its values are stored, or not, and whoever waited for them is served.
    fn land(&self, lock: Lock<'_>, now: Time, brought: Brought) {
        let Brought { load, values, took } = brought;
        let mut state = self.state.write(lock);
        let running = state.running.remove(&load);
        let name = running.and_then(|running| running.name);
        let Some((rule, keys)) = state.machine.take_keys(load) else {
            return;
        };
        if let Some(served) = state.served.get_mut(rule).filter(|_| values.is_ok()) {
            served.figures.loaded(took);
            if life::follows_load_time(&served.options) {
                let below = life::interesting_below_ms(&served.options, served.figures.mean_load_s());
                served.hot.set_below(below);
            }
        }
        drop(state);
        match values {
            Ok(values) => {
                for (key, value) in keys.iter().zip(values) {
                    let value = value.map_err(|failed| NoValue::Failed(failed.kind.into()));
                    self.land_one(lock, now, load, rule, (key, name.as_ref()), value);
                }
            }
            Err(why) => {
                for key in &keys {
                    self.land_one(lock, now, load, rule, (key, None), Err(why.clone()));
                }
            }
        }
        let turned = self.state.write(lock).machine.ended(now, load);
        if let Some(open) = turned {
            let what = if open {
                "opens: so many loads have failed in a row that none is begun for a while, but one trial at its end"
            } else {
                "closes: the source answers again"
            };
            api::log_warning(&format!(
                "read_through: the breaker of registration {rule} {what}"
            ));
        }
    }

    fn land_one(
        &self,
        lock: Lock<'_>,
        now: Time,
        load: u64,
        rule: Id,
        (key, name): (&Key, Option<&Held>),
        value: Result<Loaded, NoValue>,
    ) {
        let value = self.newer_than(lock, rule, load, key, value);
        let is_kept = |loaded: &Loaded| loaded.content.is_some() && loaded.lifetime != Lifetime::NotKept;
        // Whoever is to store opens the key for that, and sees whether it is there.
        let open = value
            .as_ref()
            .is_ok_and(is_kept)
            .then(|| self.open(lock, key, name));
        let present = match &open {
            Some(open) => open.is_there(),
            None => key::life(lock, key.db, &key.name) != Life::Missing,
        };
        // What is there may go before it is replaced.
        let open = open.filter(|_| !present);
        if !present && !store::is_local(lock, self.engine.features, key.db, &key.name) {
            self.state.write(lock).machine.moved_away(load, key);
            return;
        }
        let (value, keep) = match value {
            Ok(loaded) if loaded.content.is_none() => (Ok(None), false),
            Ok(loaded) => {
                let keep = loaded.lifetime != Lifetime::NotKept;
                (Ok(Some(Arc::new(loaded))), keep)
            }
            Err(why) => (Err(why), false),
        };
        let loaded = value.as_ref().ok().and_then(Option::clone);
        let landing = self
            .state
            .write(lock)
            .machine
            .land(now, load, key, value, keep, present);
        match (landing, loaded) {
            (Landing::Store, Some(loaded)) => {
                // Where it cannot be stored, it answers without being kept.
                self.store(lock, rule, key, &loaded, open);
            }
            (Landing::Delete, _) if self.may_delete(lock, rule, key) => {
                self.quietly(lock, || store::delete(lock, key.db, &key.name));
                store::signal_modified(lock, key.db, &key.name);
            }
            _ => {}
        }
    }

    /// Whether the user of a registration may take a value away, if it has one.
    fn may_delete(&self, lock: Lock<'_>, rule: Id, key: &Key) -> bool {
        let state = self.state.read(lock);
        let served = state.served.get(rule);
        let actor = served.and_then(|served| served.registration.actor.clone());
        drop(state);
        actor.is_none_or(|actor| actor.check_command(lock, &[b"DEL", &*key.name]).is_ok())
    }

    /// Stores a value with its lifetime; false if the memory limit forbids it, or its user's rights do.
    /// `open`: the key, if it is open by now, and not there.
    pub(super) fn store(
        &self,
        lock: Lock<'_>,
        rule: Id,
        key: &Key,
        loaded: &Loaded,
        open: Option<Open<'_>>,
    ) -> bool {
        let now_ms = key::now_ms(lock);
        let mut state = self.state.write(lock);
        let Some(served) = state.served.get(rule) else {
            return false;
        };
        let options = Arc::clone(&served.options);
        let may = match served.registration.actor.clone() {
            None => true,
            Some(actor) => {
                drop(state);
                let command = loaded.content.as_ref().map_or(&b"DEL"[..], Content::command);
                let may = actor.check_command(lock, &[command, &key.name]).is_ok();
                state = self.state.write(lock);
                may
            }
        };
        if !may || !store::has_room(lock, self.engine.features) {
            if let Some(served) = state.served.get_mut(rule) {
                served.figures.not_stored += 1;
            }
            return false;
        }
        let chance = state.machine.chance();
        let fresh = loaded.lifetime.fresh_s(&options);
        if let (Lifetime::Seconds(seconds), true) = (loaded.lifetime, life::marks(&options)) {
            let limit = state.machine.bounds.absent;
            state.lives.insert(key, seconds, limit);
        }
        let unwaited = state.machine.landed(key).is_none();
        drop(state);
        let expires = fresh.map(|fresh| life::expires_ms(&options, fresh, now_ms, chance));
        if let Some(content) = &loaded.content {
            let open = open.unwrap_or_else(|| self.open(lock, key, None));
            self.quietly(lock, || open.put(content, expires));
            let until_ms = expires.unwrap_or(i64::MAX);
            self.state.write(lock).machine.stored(key, until_ms);
        }
        if unwaited {
            store::signal_modified(lock, key.db, &key.name);
        }
        true
    }

    /// `name`: the key's name as the server has it, if that is at hand.
    fn open<'a>(&self, lock: Lock<'a>, key: &Key, name: Option<&Held>) -> Open<'a> {
        self.quietly(lock, || match name {
            Some(name) => Open::of_held(lock, key.db, name),
            None => Open::new(lock, key.db, &key.name),
        })
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
