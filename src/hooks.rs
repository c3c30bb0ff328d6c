//! Linked and hooked commands: which commands are put behind a proxy command, and how the client then gets its reply.
//!
//! The filter decides (`filter.rs`); the proxy command runs the function that stands in the place of the original (`chain.rs`),
//! or the original, and links the client to the executions that it started (`proxy.rs`). This file knows what is linked and
//! hooked. Contract: docs/contract/readers-and-events.md chapters 8 and 10. All of it happens under the server's lock.

mod awaited;
mod chain;
mod clients;
mod filter;
mod loads;
mod names;
mod parts;
mod passed;
mod proxy;
mod slots;
mod spec;
mod stored;
mod table;
mod whereabouts;
mod writes;

use std::sync::{Arc, OnceLock};

pub use awaited::{Awaited, Awaiting, Block, forgotten_meanwhile};
use chain::HookRule;
use clients::{ClientCache, names_of_rights};
pub use loads::{Hot, Loads, Missing, Wait, nearness};
use proxy::Concerns;
pub use slots::MovingSlots;
use spec::look_up;
pub use spec::{CommandSpec, ProxyCommand};
use table::{Entry, Rule, Table};
use whereabouts::Whereabouts;
pub use writes::{Place, Writes};

use crate::{
    engine::{
        Engine,
        id::Id,
        linked_command::{LinkedCommand, ReplyHold},
        prefix::Pattern,
        registration::Registration,
    },
    error::Error,
    server::{
        api::{self, Features},
        asking,
        current::CurrentCommand,
        filter::{Function, Installed, ProxyName},
        guarded::{Guarded, Plain},
        lock::Lock,
    },
};

/// The linked commands of this server.
pub struct Hooks {
    features: Features,
    filter: Function,
    proxy: [ProxyName; 4],
    table: Guarded<Table>,
    installed: Guarded<Option<Installed>>,
    clients: Guarded<ClientCache>,
    /// The same where the server does not tell who sent a command.
    whereabouts: Guarded<Whereabouts>,
    /// What the filter has seen of the command that has just passed it.
    noted: Plain<Noted>,
    /// The client whose command the filter has just put behind a proxy command, having asked for its user's rights. The
    /// command runs next, unless the server refuses it; the next one that is put behind a proxy command takes this back.
    cleared: Plain<Option<Cleared>>,
    /// The linked command that runs now, and its link, made when the first event fires. Whoever runs one holds the server's
    /// lock until it has run.
    current: CurrentCommand<Linked>,
    /// The next command is what `call_next` or a proxy command runs: it is left alone.
    bypass: Plain<bool>,
    /// Commands that change rights are known by their names here.
    knows_rights: OnceLock<bool>,
    /// Who loads keys that are missed.
    loads: OnceLock<Arc<dyn Loads>>,
    /// Who saves changes of keys.
    writes: OnceLock<Arc<dyn Writes>>,
    slots: OnceLock<Arc<dyn MovingSlots>>,
}

/// What the filter has seen of a command.
#[derive(Clone, Copy, Default)]
struct Noted {
    /// It moves keys between the shards of a cluster.
    moving: bool,
    /// The filter has looked at its keys, and counted what it saw.
    looked: bool,
    /// Its only key is to be loaded, and is missing.
    seen_missing: bool,
}

/// A command that its client may run, outside of transactions.
#[derive(Clone, Copy)]
struct Cleared {
    client: u64,
    concerns: Concerns,
}

/// What is noted of a linked command while it runs.
#[derive(Default)]
struct Linked {
    link: Option<Arc<LinkedCommand>>,
    /// Its caller can wait, if that is known.
    may_wait: Option<bool>,
}

impl Hooks {
    pub fn new(lock: Lock<'_>, features: Features, filter: Function) -> Arc<Self> {
        Arc::new(Self {
            features,
            filter,
            proxy: ProxyCommand::ALL.map(|proxy| ProxyName::new(lock, proxy.name())),
            table: Guarded::default(),
            installed: Guarded::new(None),
            clients: Guarded::default(),
            whereabouts: Guarded::default(),
            noted: Plain::default(),
            cleared: Plain::new(None),
            current: CurrentCommand::default(),
            bypass: Plain::new(false),
            knows_rights: OnceLock::new(),
            loads: OnceLock::new(),
            writes: OnceLock::new(),
            slots: OnceLock::new(),
        })
    }

    /// True while a linked command runs that `names` has, in any letter case.
    pub fn is_running_one_of(&self, lock: Lock<'_>, names: &[String]) -> bool {
        self.current.is_one_of(lock, names)
    }

    /// True unless a linked command runs now whose caller cannot wait.
    pub fn may_wait(&self, lock: Lock<'_>) -> bool {
        self.running_may_wait(lock).unwrap_or(true)
    }

    /// Whether the caller of the linked command that runs now can wait; `None` if there is none.
    fn running_may_wait(&self, lock: Lock<'_>) -> Option<bool> {
        let known = self.current.note(lock, |linked, _| linked.may_wait)?;
        known.or_else(|| {
            let may_wait = self.current.may_block(lock)?;
            self.current
                .note(lock, |linked, _| linked.may_wait = Some(may_wait));
            Some(may_wait)
        })
    }

    /// A hold on the linked command that runs now. `None` if there is none, or if its caller cannot wait for an
    /// execution in the background.
    pub fn hold_running(&self, lock: Lock<'_>, sync: bool) -> Option<ReplyHold> {
        if !sync && !self.running_may_wait(lock)? {
            return None;
        }
        self.current.note(lock, |linked, words| {
            let link = &mut linked.link;
            link.get_or_insert_with(|| LinkedCommand::new(words())).hold()
        })
    }

    /// Asks the server about commands that a registration wants to link.
    ///
    /// # Errors
    /// One of them cannot be linked (docs/contract/readers-and-events.md 10.1).
    pub fn look_up(
        &self,
        lock: Lock<'_>,
        names: &[String],
        pattern: &Pattern,
    ) -> Result<Vec<CommandSpec>, Error> {
        let mut found = Vec::new();
        for name in names {
            let spec = look_up(lock, self.features, name, pattern)?;
            if !found.iter().any(|known: &CommandSpec| known.name == spec.name) {
                found.push(spec);
            }
        }
        if matches!(pattern, Pattern::Exactly(name) if name.is_empty()) {
            return Err(Error::EmptyPrefix);
        }
        Ok(found)
    }

    /// A command whose keys move, because they stand behind their number.
    fn look_up_counted(&self, lock: Lock<'_>, name: &str) -> Option<Vec<CommandSpec>> {
        let found = self
            .look_up(lock, &[name.to_owned()], &Pattern::Everything)
            .ok()?;
        found.iter().all(CommandSpec::has_keys).then_some(found)
    }

    /// Links commands for a registration; the first one installs the filter.
    pub fn link(
        &self,
        lock: Lock<'_>,
        registration: Id,
        commands: Vec<CommandSpec>,
        pattern: &Pattern,
        only_misses: bool,
    ) {
        let mut table = self.table.write(lock);
        for spec in commands {
            let rule = Rule {
                registration,
                pattern: pattern.clone(),
                only_misses,
            };
            table.entry(spec).rules.push(rule);
        }
        table.recompute();
        drop(table);
        self.install(lock);
    }

    /// Keeps clients in the databases that they have selected, now that the server notifies ([`home`]).
    pub fn keep_clients_home(&self, lock: Lock<'_>) {
        let Ok(spec) = look_up(lock, self.features, "copy", &Pattern::Everything) else {
            return;
        };
        let mut table = self.table.write(lock);
        table.entry(spec).strays = true;
        table.recompute();
        drop(table);
        self.install(lock);
    }

    /// Puts a function in the place of a command; it comes before the older ones.
    pub fn put_hook(
        &self,
        lock: Lock<'_>,
        registration: &Arc<Registration>,
        spec: CommandSpec,
        prefix: Option<Vec<u8>>,
    ) {
        let mut table = self.table.write(lock);
        let hooks = &mut table.entry(spec).hooks;
        hooks.push(HookRule {
            registration: Arc::clone(registration),
            prefix,
        });
        // One that comes back when an upgrade fails has its old place.
        hooks.sort_by_key(|rule| rule.registration.id);
        table.recompute();
        drop(table);
        self.install(lock);
    }

    /// Asks the server about a command in whose place a function is to stand.
    ///
    /// # Errors
    /// It cannot be hooked (docs/contract/readers-and-events.md 8.1).
    pub fn look_up_hook(
        &self,
        lock: Lock<'_>,
        name: &str,
        for_some_keys: bool,
    ) -> Result<CommandSpec, Error> {
        spec::look_up_hook(lock, self.features, name, for_some_keys)
    }

    /// The function that was last put in the place of a command.
    pub fn newest_hook(&self, lock: Lock<'_>, name: &str) -> Option<Arc<Registration>> {
        let table = self.table.read(lock);
        let newest = table.find(name.as_bytes())?.hooks.last()?;
        Some(Arc::clone(&newest.registration))
    }

    /// Changes what is noted of the command that passes.
    #[inline]
    fn note(&self, lock: Lock<'_>, change: impl FnOnce(&mut Noted)) {
        let mut noted = self.noted.get(lock);
        change(&mut noted);
        self.noted.set(lock, noted);
    }

    /// Lets the next command pass the filter untouched, and only that one, if it comes while the guard lives.
    fn bypass<'a>(&'a self, lock: Lock<'a>) -> Bypass<'a> {
        self.bypass.set(lock, true);
        Bypass { hooks: self, lock }
    }

    fn install(&self, lock: Lock<'_>) {
        self.knows_rights.get_or_init(|| {
            names_of_rights()
                .all(|name| asking::is_known(lock, self.features, &String::from_utf8_lossy(name)))
        });
        self.clients.write(lock).clear();
        *self.whereabouts.write(lock) = Whereabouts::default();
        let mut installed = self.installed.write(lock);
        if installed.is_none() {
            *installed = Installed::install(lock, self.filter);
            if installed.is_none() {
                api::log_warning("the server refused the command filter: commands are not linked");
            }
        }
    }

    /// The server has done what its clients asked for.
    pub fn before_sleep(&self, lock: Lock<'_>) {
        if !self.features.filter_client_id && self.installed.read(lock).is_some() {
            self.whereabouts.write(lock).before_sleep(lock, self.features);
        }
    }

    /// Undoes [`Hooks::link`]; the last one removes the filter.
    pub fn unlink(&self, lock: Lock<'_>, registration: Id) {
        self.take_out(lock, |entry| {
            entry.rules.retain(|rule| rule.registration != registration);
            entry.hooks.retain(|rule| rule.registration.id != registration);
            entry.loads.retain(|rule| rule.registration != registration);
            entry.removers.retain(|rule| rule.registration != registration);
            entry.writes.retain(|rule| rule.registration != registration);
        });
    }

    fn take_out(&self, lock: Lock<'_>, change: impl Fn(&mut Entry)) {
        let mut table = self.table.write(lock);
        table.entries.iter_mut().for_each(change);
        table.recompute();
        if table.entries.is_empty() {
            if let Some(installed) = self.installed.write(lock).take() {
                installed.remove(lock);
            }
        }
    }
}

/// Functions stand in the place of commands also on a replica, for its own clients; what comes from its master is left alone. Its
/// master sends writes, and commands about the connection: where the server does not tell the sender, commands without a key are
/// left alone, too. While data are loaded, no hook applies.
fn applies_hooks(engine: &Engine, entry: &Entry) -> bool {
    if entry.hooks.is_empty() || engine.is_loading() {
        return false;
    }
    let reads =
        entry.spec.proxy == ProxyCommand::Read && (entry.spec.has_keys() || engine.features.filter_client_id);
    engine.is_serving() || reads
}

/// Ends [`Hooks::bypass`] if no command came.
struct Bypass<'a> {
    hooks: &'a Hooks,
    lock: Lock<'a>,
}

impl Drop for Bypass<'_> {
    fn drop(&mut self) {
        self.hooks.bypass.set(self.lock, false);
    }
}
