//! Loads that have ended: who lands what they brought, on which thread, and what is stored. A load ends on any thread; its values land under
//! the server's lock.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    Key, Lifetime, Loaded, ReadThrough,
    brought::{Brings, Brought},
    life,
    machine::{Found, Keep, Landing, NoValue, Time},
    pump::Place,
    room::Room,
};
use crate::{
    engine::{id::Id, leftover::Leftover},
    server::{
        api,
        key::{self, Life},
        lock::{self, Lock, LockGuard},
        store::{self, Content, Open},
        string::Held,
    },
};

/// So many values are stored by a thread that is attached to Python, which others wait for meanwhile.
const FEW: usize = 4;

/// How often a worker that has nothing else to do asks for the server's lock. Where there are few processors, the server was interrupted on
/// its way to sleep by that worker, which it has just woken.
const ATTEMPTS: usize = 3;

/// Somebody had the server's lock when a load ended: the server, if it is awake, comes to the inbox before it sleeps.
impl Leftover for ReadThrough {
    fn do_it(&self) {
        let has_mail = || self.has_mail.load(Ordering::Acquire);
        for _ in 0..ATTEMPTS {
            if !has_mail() {
                return;
            }
            thread::yield_now();
            if self.pump_here(self.now()) {
                return;
            }
        }
        if has_mail() {
            self.wake();
        }
    }

    fn hand_on(&self) {
        if self.has_mail.load(Ordering::Acquire) {
            self.wake();
        }
    }
}

impl ReadThrough {
    /// A load has ended: on any thread, with or without the server's lock.
    pub(super) fn bring(&self, load: u64, took: Duration, values: Brings, now: Time) {
        let is_small = values.as_ref().map_or(1, SmallVec::len) <= FEW;
        self.inbox.lock().push(Brought { load, values, took });
        self.has_mail.store(true, Ordering::Release);
        // In the middle of something of the server's it is the server's own thread that goes on. Where there are more loads it lands what has
        // come of them together, and has its lock to itself.
        let may_land = is_small && self.is_alone.load(Ordering::Relaxed) && !lock::is_held();
        if !may_land || !self.pump_here(now) && !self.engine.leave() {
            self.wake();
        }
    }

    /// Where nobody has the server's lock, because the server sleeps, this thread does what is to be done. To wake the server for it would
    /// be a turn of its loop for nothing, since what it does then ends with waking it for the clients that are let go. False if somebody has
    /// the lock.
    fn pump_here(&self, now: Time) -> bool {
        let Some(guard) = LockGuard::try_acquire() else {
            return false;
        };
        self.pump_now(guard.lock(), now, Place::Worker);
        let departing = std::mem::take(&mut self.state.write(guard.lock()).departing);
        drop(guard);
        // The server wakes up by that, and finds its lock free.
        for (client, note) in departing {
            client.let_go(note);
        }
        true
    }

    /// A load has ended: its values are stored, or not, and whoever waited for them is served.
    pub(super) fn land(&self, lock: Lock<'_>, now: Time, brought: Brought) {
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
            Ok(loaded) if loaded.content.is_none() => (Ok(None), Keep::No),
            Ok(loaded) => {
                let keep = match loaded.lifetime {
                    Lifetime::NotKept => Keep::No,
                    _ if self.may_store(lock, rule, key, &loaded) => Keep::Yes,
                    _ => Keep::Cannot,
                };
                (Ok(Some(Arc::new(loaded))), keep)
            }
            Err(why) => (Err(why), Keep::No),
        };
        let loaded = value.as_ref().ok().and_then(Option::clone);
        let may_delete = present && keep != Keep::Yes && value.is_ok() && self.may_delete(lock, rule, key);
        let found = Found {
            keep,
            present,
            may_delete,
        };
        let landing = self.state.write(lock).machine.land(now, load, key, value, found);
        match (landing, loaded) {
            (Landing::Store, Some(loaded)) => self.put(lock, rule, key, &loaded, open),
            (Landing::Delete, _) => {
                drop(open);
                self.count_unkept(lock, rule, keep, now);
                self.quietly(lock, || store::delete(lock, key.db, &key.name));
                store::signal_modified(lock, key.db, &key.name);
            }
            // Where it cannot be stored, it answers without being kept.
            (Landing::Unkept, _) => self.count_unkept(lock, rule, keep, now),
            _ => {}
        }
    }

    /// A value could not be stored: loads in the background rest for a while.
    fn count_unkept(&self, lock: Lock<'_>, rule: Id, keep: Keep, now: Time) {
        let mut state = self.state.write(lock);
        let chance = state.machine.chance();
        if let Some(served) = state.served.get_mut(rule).filter(|_| keep == Keep::Cannot) {
            served.figures.not_stored += 1;
            served.room.lacks(now, &served.options, chance);
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
        if !self.may_store(lock, rule, key, loaded) {
            if let Some(served) = self.state.write(lock).served.get_mut(rule) {
                served.figures.not_stored += 1;
            }
            return false;
        }
        self.put(lock, rule, key, loaded, open);
        true
    }

    /// Whether the memory limit and its user's rights let a value be stored.
    fn may_store(&self, lock: Lock<'_>, rule: Id, key: &Key, loaded: &Loaded) -> bool {
        let state = self.state.read(lock);
        let Some(served) = state.served.get(rule) else {
            return false;
        };
        let actor = served.registration.actor.clone();
        drop(state);
        let command = || loaded.content.as_ref().map_or(&b"DEL"[..], Content::command);
        let may = actor.is_none_or(|actor| actor.check_command(lock, &[command(), &key.name]).is_ok());
        may && store::has_room(lock, self.engine.features)
    }

    fn put(&self, lock: Lock<'_>, rule: Id, key: &Key, loaded: &Loaded, open: Option<Open<'_>>) {
        let now_ms = key::now_ms(lock);
        let mut state = self.state.write(lock);
        let Some(served) = state.served.get_mut(rule) else {
            return;
        };
        served.room = Room::default();
        let options = Arc::clone(&served.options);
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
    }

    /// `name`: the key's name as the server has it, if that is at hand.
    fn open<'a>(&self, lock: Lock<'a>, key: &Key, name: Option<&Held>) -> Open<'a> {
        self.quietly(lock, || match name {
            Some(name) => Open::of_held(lock, key.db, name),
            None => Open::new(lock, key.db, &key.name),
        })
    }
}
