//! A long random run of the machine in a world of sources, caches and clients, against what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// A world around the machine: a source whose version only grows, a cache, clients.
struct World {
    machine: Machine<u32>,
    random: u64,
    now: u64,
    version: u32,
    cache: BTreeMap<Key, u32>,
    /// The version that a reader must get at least who asks now.
    oldest: BTreeMap<Key, u32>,
    /// What each client that waits must get at least, for each of his keys.
    waiting: BTreeMap<u64, BTreeMap<Key, u32>>,
    /// Loads that run, with the version that they have read.
    loads: BTreeMap<u64, (Keys, u32)>,
    ready: BTreeSet<u64>,
    rules: u64,
    answered: usize,
}

impl World {
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn some_key(&mut self) -> Key {
        Key::new(self.below(2) as i32, &[b'a' + self.below(4) as u8])
    }

    fn asks(&self, keys: &BTreeSet<Key>) -> Vec<Ask> {
        keys.iter()
            .map(|key| Ask {
                rule: rule(self.rules),
                key: key.clone(),
                present: self.cache.contains_key(key),
            })
            .collect()
    }

    fn step(&mut self) {
        self.now += self.below(20);
        let now = ms(self.now);
        match self.below(14) {
            0..=3 => {
                let db = self.below(2) as i32;
                let count = 1 + self.below(3);
                let mut keys: BTreeSet<Key> = (0..count)
                    .map(|_| Key::new(db, &[b'a' + self.below(4) as u8]))
                    .collect();
                keys.retain(|key| !self.cache.contains_key(key));
                let refresh = self.below(6) == 0;
                let purpose = if refresh { Purpose::Refresh(0) } else { COMMAND };
                if keys.is_empty() {
                    return;
                }
                if let Ok(waiter) = self.machine.ask(now, &self.asks(&keys), purpose) {
                    // RG.REFRESH wants what is there from now on.
                    let wanted = keys.into_iter().map(|key| {
                        let oldest = self.oldest.get(&key).copied().unwrap_or(0);
                        (key, if refresh { self.version } else { oldest })
                    });
                    self.waiting.insert(waiter, wanted.collect());
                }
            }
            4..=6 => {
                let Some(&load) = self.loads.keys().next() else {
                    return;
                };
                self.land(load);
            }
            7 => self.version += 1,
            8 => {
                let key = self.some_key();
                self.version += 1;
                self.cache.insert(key.clone(), self.version);
                self.oldest.insert(key.clone(), self.version);
                self.machine.changed(key.db, &key.name, Change::Written);
            }
            9 => {
                let key = self.some_key();
                self.cache.remove(&key);
                self.oldest.insert(key.clone(), self.version);
                self.machine.changed(key.db, &key.name, Change::Removed);
            }
            10 => {
                let key = self.some_key();
                if self.cache.remove(&key).is_some() {
                    self.machine.changed(key.db, &key.name, Change::Aged);
                }
            }
            11 => {
                let key = self.some_key();
                if self.cache.contains_key(&key) {
                    self.machine.refresh(now, rule(self.rules), &key);
                }
            }
            12 if self.below(4) == 0 => {
                let db = self.below(2) as i32;
                self.cache.retain(|key, _| key.db != db);
                for name in [b"a", b"b", b"c", b"d"] {
                    self.oldest.insert(Key::new(db, name), self.version);
                }
                self.machine.flushed(Some(db));
            }
            12 if self.below(4) == 0 => {
                self.machine.remove_rule(rule(self.rules));
                self.rules += 1;
                self.machine.add_rule(rule(self.rules), limits(self.rules));
            }
            12 => {
                let count = self.waiting.len() as u64;
                if count == 0 {
                    return;
                }
                let place = self.below(count) as usize;
                let waiter = self.waiting.keys().nth(place).copied().unwrap_or(0);
                self.answer(waiter, false);
            }
            _ => {
                let next: Vec<u64> = self.ready.iter().copied().take(2).collect();
                for waiter in next {
                    self.answer(waiter, true);
                }
            }
        }
        self.machine.tick(ms(self.now));
        self.act();
    }

    fn land(&mut self, load: u64) {
        let Some((keys, version)) = self.loads.remove(&load) else {
            return;
        };
        let fails = self.below(5) == 0;
        for key in keys {
            let absent = self.below(6) == 0;
            let value = match (fails, absent) {
                (true, _) => Err(NoValue::Failed("Error".into())),
                (_, true) => Ok(None),
                _ => Ok(Some(Arc::new(version))),
            };
            let present = self.cache.contains_key(&key);
            let now = ms(self.now);
            let keep = [Keep::Yes, Keep::Yes, Keep::Yes, Keep::No, Keep::Cannot][self.below(5) as usize];
            let found = Found {
                keep,
                present,
                may_delete: true,
            };
            match self.machine.land(now, load, &key, value, found) {
                Landing::Store => {
                    let oldest = self.oldest.get(&key).copied().unwrap_or(0);
                    assert!(version >= oldest, "a lost update of {key:?}");
                    self.cache.insert(key, version);
                }
                Landing::Delete => drop(self.cache.remove(&key)),
                Landing::Nothing | Landing::Unkept => {}
            }
        }
        self.machine.ended(ms(self.now), load);
    }

    fn act(&mut self) {
        loop {
            let actions = self.machine.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Begin { load, keys, .. } => {
                        for key in &keys {
                            let twice = self
                                .loads
                                .iter()
                                .any(|(other, (keys, _))| keys.contains(key) && self.machine.knows(*other));
                            assert!(!twice || self.machine.loading(key.db, &key.name) == Some(load));
                        }
                        self.loads.insert(load, (keys, self.version));
                    }
                    Action::Stop { .. } => {}
                    Action::Ready { waiter } => {
                        assert!(self.ready.insert(waiter), "ready twice");
                    }
                    Action::Refuse { waiter, .. } => self.answer(waiter, false),
                    Action::Again { waiter, keys } => {
                        let keys: BTreeSet<Key> = keys
                            .into_iter()
                            .filter(|key| !self.cache.contains_key(key))
                            .collect();
                        let asks = self.asks(&keys);
                        self.machine.ask_again(ms(self.now), waiter, &asks);
                    }
                }
            }
        }
    }

    /// Somebody gets his reply, or has gone.
    fn answer(&mut self, waiter: u64, served: bool) {
        self.ready.remove(&waiter);
        if served {
            let lost: BTreeSet<Key> = self
                .machine
                .lost_keys(waiter)
                .into_iter()
                .filter(|(key, may_load)| *may_load && !self.cache.contains_key(key))
                .map(|(key, _)| key)
                .collect();
            if !lost.is_empty() {
                let asks = self.asks(&lost);
                self.machine.ask_again(ms(self.now), waiter, &asks);
                return;
            }
        }
        let Some(wanted) = self.waiting.remove(&waiter) else {
            return;
        };
        let (keys, _) = self.machine.release(waiter).unwrap_or_default_keys();
        for (key, oldest) in wanted.iter().filter(|_| served) {
            let landed = self.machine.landed(key).filter(|_| keys.contains(key));
            let at_hand = landed.and_then(|landed| landed.value.as_deref().copied());
            let found = self.cache.get(key).copied().or(at_hand);
            if let Some(found) = found {
                assert!(found >= *oldest, "{key:?} is {found}, older than {oldest}");
            }
        }
        for key in &keys {
            self.machine.replied(key);
        }
        self.answered += 1;
    }
}

fn limits(number: u64) -> Limits {
    Limits {
        timeout: number.is_multiple_of(2).then(|| ms(150)),
        negative_ttl: ms(30),
        max_waiting: 30,
        max_loads: 2 + (number % 3) as usize,
        max_load_time: ms(400),
        backoff: ms(5),
        max_backoff: ms(40),
        breaker: number.is_multiple_of(3).then(|| (4, ms(50))),
        batch: 1 + (number % 3) as usize,
        batch_wait: ms(5),
        misses: number.is_multiple_of(2),
    }
}

#[test]
fn whatever_happens_nobody_gets_what_is_too_old_and_nothing_stays() {
    for seed in 1..200_u64 {
        let mut world = World {
            machine: machine(limits(1)),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            now: 0,
            version: 1,
            cache: BTreeMap::new(),
            oldest: BTreeMap::new(),
            waiting: BTreeMap::new(),
            loads: BTreeMap::new(),
            ready: BTreeSet::new(),
            rules: 1,
            answered: 0,
        };
        for _ in 0..400 {
            world.step();
        }
        // Everything comes to its end.
        for _ in 0..200 {
            world.now += 50;
            while let Some(&load) = world.loads.keys().next() {
                world.land(load);
                world.act();
            }
            world.machine.tick(ms(world.now));
            world.act();
            for waiter in world.ready.clone() {
                world.answer(waiter, true);
            }
            world.act();
        }
        assert!(
            world.waiting.is_empty(),
            "seed {seed}: {:?} wait for ever",
            world.waiting
        );
        assert!(world.answered > 20, "seed {seed}");
        let counts = world.machine.rule(rule(world.rules)).map(|rule| rule.counts);
        assert!(
            counts.is_some_and(|counts| counts.waiting == 0 && counts.loading == 0),
            "seed {seed}: {counts:?}"
        );
        world.machine.absent.clear(None);
        assert!(world.machine.is_idle(), "seed {seed}: flights or values are left");
        assert!(world.machine.next_due().is_none(), "seed {seed}: a time is left");
    }
}
