//! Keys that are loaded when a command misses them: what the filter and the proxy command ask about them. Who loads is in the
//! room `read_through`, behind [`Loads`].

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use smallvec::SmallVec;

use super::{
    Hooks,
    parts::{self, REMOVERS},
    spec::CommandSpec,
    table::{Entry, Rule},
};
use crate::{
    engine::{id::Id, prefix::Pattern},
    error::Error,
    server::{
        api,
        call::Refusal,
        command::{Answer, Command},
        filter::Passing,
        key::{self, Life},
        lock::Lock,
        reply::Reply,
        room,
    },
};

/// What a hit looks at. Changed and counted under the server's lock only, so that plain loads and stores do.
#[derive(Default)]
pub struct Hot {
    hits: AtomicU64,
    /// A value that lives for less than so many milliseconds is to be looked at.
    below_ms: AtomicI64,
}

impl Hot {
    pub fn set_below(&self, ms: i64) {
        self.below_ms.store(ms, Ordering::Relaxed);
    }

    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub fn clear(&self) {
        self.hits.store(0, Ordering::Relaxed);
    }

    fn count_hit(&self) {
        self.hits.store(self.hits() + 1, Ordering::Relaxed);
    }
}

/// One registration's interest in a command.
pub(super) struct LoadRule {
    pub(super) registration: Id,
    pub(super) pattern: Pattern,
    hot: Arc<Hot>,
    /// Only for keys whose changes are saved: what the command leaves of a value must not be saved in its place.
    partial: bool,
}

/// A missing key of a command, and the registration that loads it.
#[derive(Clone, Copy, Debug)]
pub struct Missing<'a> {
    pub registration: Id,
    pub name: &'a [u8],
    /// Where it stands among the words of the proxy command.
    pub position: usize,
    /// It is there, but stale, and a part of it is to be changed.
    pub present: bool,
    /// What the command leaves of the key would be saved in the place of what is not loaded.
    pub partial: bool,
}

/// What becomes of a command whose keys are missing.
pub enum Wait {
    /// It runs at once.
    No,
    /// Its client waits, and is answered later.
    Waits,
    Refused(Answer),
}

/// Who loads keys. Called under the server's lock.
pub trait Loads: Send + Sync {
    /// A hit showed that a value is near its end.
    fn ageing(&self, lock: Lock<'_>, registration: Id, db: i32, name: &[u8], at_ms: i64, left_ms: i64);

    /// A value with that life is stale, and has no change that is newer than what a load would bring.
    fn is_stale(&self, lock: Lock<'_>, registration: Id, db: i32, name: &[u8], life: Life) -> bool;

    /// The key is known to be absent: nobody waits for it. Counted.
    fn is_absent(&self, lock: Lock<'_>, registration: Id, db: i32, name: &[u8]) -> bool;

    /// Whether it matters that the key is removed.
    fn minds(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> bool;

    /// The key was removed, whether it was there or not.
    fn removed(&self, lock: Lock<'_>, db: i32, name: &[u8]);

    /// Keys of a command that is about to run are missing. `writes`: it is a writing one.
    fn wait(&self, command: &Command<'_>, missing: &[Missing<'_>], writes: bool) -> Wait;

    /// Puts a value back that is gone, if it is not saved yet. True if it was, or if the key is deleted and that is not saved yet.
    fn restore(&self, lock: Lock<'_>, registration: Id, db: i32, name: &[u8]) -> bool;

    /// A command missed keys whose caller cannot wait.
    fn count_plain(&self, lock: Lock<'_>, registration: Id);

    /// The same of a command that would leave a part of a value behind, which would be saved: what its caller gets instead.
    fn refuse_partial(&self, lock: Lock<'_>, registration: Id) -> Reply;
}

/// A value that ends within so many milliseconds may be gone when a command runs that the filter sees: how long that takes nobody knows.
const NEAR_END_MS: i64 = 1000;

impl Hooks {
    /// Told once who loads.
    pub fn connect(&self, loads: Arc<dyn Loads>) {
        // A second call cannot happen: the module cannot be loaded twice.
        let _ = self.loads.set(loads);
    }

    /// Asks the server about the commands of a registration that loads: those that were named, or else those of `default`
    /// that the server has.
    ///
    /// # Errors
    /// One that was named cannot be linked (docs/contract/readers-and-events.md 10.1).
    pub fn look_up_loads(
        &self,
        lock: Lock<'_>,
        named: Option<&[String]>,
        default: &[&str],
        pattern: &Pattern,
    ) -> Result<Vec<CommandSpec>, Error> {
        if let Some(named) = named {
            let mut found = Vec::new();
            for name in named {
                let known = self.look_up(lock, std::slice::from_ref(name), pattern);
                let known = known.or_else(|why| self.look_up_counted(lock, name).ok_or(why));
                let known = known.and_then(|known| {
                    let has_keys = known.iter().all(CommandSpec::has_keys);
                    has_keys.then_some(known).ok_or(Error::CommandWithoutKeys)
                });
                found.extend(known.map_err(|why| Error::wrong_command("read_through", name, &why))?);
            }
            return Ok(found);
        }
        let mut found = Vec::new();
        for name in default {
            let known = self.look_up(lock, &[(*name).to_owned()], &Pattern::Everything);
            found.extend(known.into_iter().flatten().filter(CommandSpec::has_written_keys));
        }
        Ok(found)
    }

    /// Loads the keys of a registration when one of the commands misses them.
    pub fn link_loads(
        &self,
        lock: Lock<'_>,
        registration: Id,
        commands: Vec<CommandSpec>,
        pattern: &Pattern,
        hot: &Arc<Hot>,
    ) {
        self.link_loading(lock, registration, commands, pattern, hot, false);
        let mut removers = Vec::new();
        for name in REMOVERS {
            match self.look_up(lock, &[name.to_owned()], &Pattern::Everything) {
                Ok(found) => removers.extend(found),
                Err(error) => api::log_warning(&format!(
                    "read_through does not notice {name} of a key that is not there: {error}"
                )),
            }
        }
        let mut table = self.table.write(lock);
        for spec in removers {
            table.entry(spec).removers.push(Rule {
                registration,
                pattern: pattern.clone(),
                only_misses: true,
            });
        }
        table.recompute();
        drop(table);
        self.install(lock);
    }

    /// The same for commands that change a part of a value, for keys whose changes are saved.
    pub fn link_partial_writers(
        &self,
        lock: Lock<'_>,
        registration: Id,
        default: &[&str],
        pattern: &Pattern,
        hot: &Arc<Hot>,
    ) {
        let Ok(commands) = self.look_up_loads(lock, None, default, pattern) else {
            return;
        };
        self.link_loading(lock, registration, commands, pattern, hot, true);
        self.install(lock);
    }

    fn link_loading(
        &self,
        lock: Lock<'_>,
        registration: Id,
        commands: Vec<CommandSpec>,
        pattern: &Pattern,
        hot: &Arc<Hot>,
        partial: bool,
    ) {
        let mut table = self.table.write(lock);
        let near = nearness(pattern);
        for spec in commands {
            let loads = &mut table.entry(spec).loads;
            // The nearest one comes first, of those that are as near the eldest.
            let place = loads.partition_point(|rule| nearness(&rule.pattern) >= near);
            loads.insert(
                place,
                LoadRule {
                    registration,
                    pattern: pattern.clone(),
                    hot: Arc::clone(hot),
                    partial,
                },
            );
        }
        table.recompute();
    }

    /// The registration that loads a key before the command runs, whose words `word` gives.
    #[inline]
    pub(super) fn load_before<'a, 'w>(
        &self,
        lock: Lock<'_>,
        entry: &'a Entry,
        key: &[u8],
        len: usize,
        word: impl Fn(usize) -> Option<&'w [u8]>,
    ) -> Option<&'a LoadRule> {
        let rule = entry.load_of(key)?;
        (!rule.partial || self.leaves_a_part(lock, entry, key, len, word)).then_some(rule)
    }

    /// Whether the command changes a part of a value whose changes are saved.
    #[inline(never)]
    fn leaves_a_part<'w>(
        &self,
        lock: Lock<'_>,
        entry: &Entry,
        key: &[u8],
        len: usize,
        word: impl Fn(usize) -> Option<&'w [u8]>,
    ) -> bool {
        entry.spec.writes() && self.saves_write(lock, key) && parts::needs(&entry.spec, key, len, word)
    }

    /// Whether a writing command changes a part of a value that is stale: its rest would be saved over what is newer.
    pub(super) fn is_too_old<'w>(
        &self,
        lock: Lock<'_>,
        (entry, rule): (&Entry, &LoadRule),
        (db, key, life): (i32, &[u8], Life),
        len: usize,
        word: impl Fn(usize) -> Option<&'w [u8]>,
    ) -> bool {
        let below_ms = rule.hot.below_ms.load(Ordering::Relaxed);
        let stale = |loads: &dyn Loads| loads.is_stale(lock, rule.registration, db, key, life);
        life.ends_within(below_ms)
            && self.leaves_a_part(lock, entry, key, len, word)
            && self.loads.get().is_some_and(|loads| stale(&**loads))
    }

    /// Whether a command that runs next, in database `db`, goes behind a proxy command. The usual case stands in the filter itself.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(super) fn wants_proxy(&self, entry: &Entry, passing: Passing<'_>, db: i32) -> bool {
        let lock = passing.lock();
        if let Some(position) = entry.plain_key {
            return passing.key(position).is_some_and(|key| {
                // What is there may be gone when the command runs, which looks again.
                entry.links(key.name)
                    && (passing.key_life(db, &key) == Life::Missing || room::may_evict(lock))
            });
        }
        self.wants_proxy_for_any(entry, passing, db)
    }

    /// The same whatever the rules are.
    #[inline(never)]
    fn wants_proxy_for_any(&self, entry: &Entry, passing: Passing<'_>, db: i32) -> bool {
        if !entry.spec.has_keys() && !entry.rules.is_empty() {
            return true;
        }
        let (lock, loads) = (passing.lock(), self.loads.get());
        let word = |at| passing.arg(at);
        entry.spec.key_positions(passing.len(), &word).any(|position| {
            let Some(passed) = passing.key(position) else {
                return false;
            };
            let key = passed.name;
            if !entry.writes.is_empty() && self.wants_write_proxy(entry, passing, db, &passed) {
                return true;
            }
            let linked = entry.links(key);
            if linked && !entry.only_misses {
                return true;
            }
            if entry.removes(key) && loads.is_some_and(|loads| loads.minds(lock, db, key)) {
                return true;
            }
            let load = self.load_before(lock, entry, key, passing.len(), word);
            if !linked && load.is_none() {
                return false;
            }
            let life = passing.key_life(db, &passed);
            let is_part = load.is_some() && entry.spec.writes();
            let ends = is_part && (life.ends_within(NEAR_END_MS) || passing.may_be_emptied(db, &passed));
            if life != Life::Missing
                && (ends || room::may_evict(lock))
                && !parts::waits_by_itself(&entry.spec)
            {
                // It may be gone when the command runs, which looks again.
                return true;
            }
            if life == Life::Missing && load.is_some() && entry.spec.has_one_key() {
                self.note(lock, |noted| noted.seen_missing = true);
            }
            if let Some(rule) = load {
                let (rules, found) = ((entry, rule), (db, key, life));
                let writes = entry.spec.writes();
                if writes && self.is_too_old(lock, rules, found, passing.len(), word) {
                    return true;
                }
                return self.wants_load(lock, rule, db, key, life) || (linked && life == Life::Missing);
            }
            life == Life::Missing
        })
    }

    /// Counts a hit; true if the key is to be loaded before the command runs.
    fn wants_load(&self, lock: Lock<'_>, rule: &LoadRule, db: i32, key: &[u8], life: Life) -> bool {
        let loads = self.loads.get();
        match life {
            Life::Missing => loads.is_some_and(|loads| !loads.is_absent(lock, rule.registration, db, key)),
            Life::Endless => {
                rule.hot.count_hit();
                false
            }
            Life::Until { at_ms, left_ms } => {
                rule.hot.count_hit();
                if left_ms < rule.hot.below_ms.load(Ordering::Relaxed) {
                    if let Some(loads) = loads {
                        loads.ageing(lock, rule.registration, db, key, at_ms, left_ms);
                    }
                }
                false
            }
        }
    }

    /// Lets the client of a command wait whose keys are to be loaded. `None`: the command runs.
    ///
    /// # Errors
    /// The user may not run it.
    pub(super) fn wait_for_loads(
        &self,
        command: &Command<'_>,
        cleared: bool,
    ) -> Result<Option<Answer>, Refusal> {
        let (lock, original) = (command.lock(), command.argv().skip(1));
        let Some(loads) = self.loads.get() else {
            return Ok(None);
        };
        let table = self.table.read(lock);
        let entry = original.get(0).and_then(|name| table.find(name));
        let Some(entry) = entry.filter(|entry| !entry.loads.is_empty() && entry.spec.takes(original.len()))
        else {
            return Ok(None);
        };
        let (db, writes) = (command.db(), entry.spec.writes());
        let noted = self.noted.get(lock);
        let looked = noted.looked && (cleared || !self.features.filter_client_id);
        self.note(lock, |noted| noted.looked = false);
        let seen_missing = looked && entry.spec.has_one_key() && noted.seen_missing;
        let mut missing: SmallVec<[Missing<'_>; 1]> = SmallVec::new();
        let word = |at| original.get(at);
        for position in entry.spec.key_positions(original.len(), &word) {
            let Some(name) = original.get(position) else {
                continue;
            };
            let rule = self.load_before(lock, entry, name, original.len(), word);
            let Some(rule) = rule else { continue };
            // The filter has just looked, and no command came since.
            let life = if seen_missing {
                Life::Missing
            } else {
                key::life(lock, db, name)
            };
            let (rules, found) = ((entry, rule), (db, name, life));
            let present = writes && self.is_too_old(lock, rules, found, original.len(), word);
            // Where the filter looked, it has counted what it saw.
            let wanted = if present {
                true
            } else if looked {
                life == Life::Missing && !loads.is_absent(lock, rule.registration, db, name)
            } else {
                self.wants_load(lock, rule, db, name, life)
            };
            if wanted && !missing.iter().any(|other| other.name == name) {
                missing.push(Missing {
                    registration: rule.registration,
                    name,
                    position: position + 1,
                    present,
                    partial: self.leaves_a_part(lock, entry, name, original.len(), word),
                });
            }
        }
        drop(table);
        // What is not saved yet is put back whoever asks, but for a script that only reads while clients are paused: nothing may be
        // handed on then.
        if writes || lock.may_write() {
            missing.retain(|missing| !loads.restore(lock, missing.registration, db, missing.name));
        }
        let Some(first) = missing.first() else {
            return Ok(None);
        };
        // What the filter has cleared has a client outside of transactions and scripts.
        let can_wait = cleared || (command.may_block() && command.has_client());
        if !can_wait {
            if let Some(missing) = missing.iter().find(|missing| missing.partial) {
                return Ok(Some(loads.refuse_partial(lock, missing.registration).into()));
            }
            loads.count_plain(lock, first.registration);
            return Ok(None);
        }
        self.end_before_read(command, db, &mut missing);
        if missing.is_empty() {
            return Ok(None);
        }
        if !cleared && !command.sender_may_run(original) {
            return Err(Refusal::NotPermitted);
        }
        Ok(match loads.wait(command, &missing, writes) {
            Wait::No => None,
            Wait::Waits => Some(Answer::Done),
            Wait::Refused(answer) => Some(answer),
        })
    }

    /// A command that removes keys has run.
    pub(super) fn tell_removed(&self, command: &Command<'_>) {
        let (lock, original) = (command.lock(), command.argv().skip(1));
        let Some(loads) = self.loads.get() else { return };
        let table = self.table.read(lock);
        let entry = original.get(0).and_then(|name| table.find(name));
        let Some(entry) = entry.filter(|entry| !entry.removers.is_empty()) else {
            return;
        };
        let positions: SmallVec<[usize; 1]> =
            parts::removed_keys(&entry.spec, original.len(), &|at| original.get(at)).collect();
        drop(table);
        let names = positions
            .into_iter()
            .filter_map(|position| original.get(position));
        for name in names.filter(|name| key::life(lock, command.db(), name) == Life::Missing) {
            loads.removed(lock, command.db(), name);
        }
    }
}

/// An exact name is nearest, then the longest prefix.
pub fn nearness(pattern: &Pattern) -> usize {
    match pattern {
        Pattern::Everything => 0,
        Pattern::Prefix(prefix) => prefix.len(),
        Pattern::Exactly(_) => usize::MAX,
    }
}
