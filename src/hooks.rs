//! Linked and hooked commands: which commands are put behind a proxy command, and how the client then gets its reply.
//!
//! The filter decides ([`Hooks::filter`]); the proxy command runs the function that stands in the place of the original
//! (`chain.rs`), or the original, and links the client to the executions that it started ([`Hooks::run_proxy`]).
//! Contract: `readers-and-events.md` chapters 8 and 10. All of it happens under the server's lock.

mod chain;
mod loads;
mod table;

use std::sync::{Arc, OnceLock};

use chain::HookRule;
pub use loads::{Hot, Loads, Missing, Wait, nearness};
pub use table::{CommandSpec, ProxyCommand};
use table::{Entry, Rule, Table, changes_state, length_bit, look_up};

use crate::{
    engine::{
        Engine,
        id::Id,
        linked_command::{LinkedCommand, ReplyHold, StillHeld},
        registration::Registration,
    },
    error::Error,
    readers::prefix::Pattern,
    server::{
        api::{self, Features},
        call::{NotPermitted, call_original},
        client::{self, ClientState},
        command::{self, Answer, Command},
        filter::{Function, Installed, Passing, ProxyName},
        guarded::Guarded,
        lock::Lock,
    },
};

/// What is known of the clients that sent commands lately. Asking the server costs a system call.
struct ClientCache([Option<ClientState>; 256]);

impl Default for ClientCache {
    fn default() -> Self {
        Self([None; 256])
    }
}

impl ClientCache {
    fn slot(&mut self, id: u64) -> &mut Option<ClientState> {
        &mut self.0[id as usize % 256]
    }

    /// `None` for the clients that scripts and modules use internally.
    fn look_up(&mut self, lock: Lock<'_>, id: u64) -> Option<ClientState> {
        let slot = self.slot(id);
        if slot.is_none_or(|known| known.id != id) {
            *slot = client::state(lock, id);
        }
        *slot
    }

    /// The client sends a command after which its state may be another.
    fn forget(&mut self, id: u64) {
        *self.slot(id) = None;
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The linked commands of this server.
pub struct Hooks {
    features: Features,
    filter: Function,
    proxy: [ProxyName; 3],
    table: Guarded<Table>,
    installed: Guarded<Option<Installed>>,
    clients: Guarded<ClientCache>,
    /// The client whose command the filter has just put behind a proxy command, having asked for its user's rights. The
    /// command runs next, unless the server refuses it; the next one that is put behind a proxy command takes this back.
    cleared: Guarded<Option<u64>>,
    /// The linked command that runs now: whoever runs one holds the server's lock until it has run.
    running: Guarded<Option<Running>>,
    /// The next command is what `call_next` runs: it is left alone.
    bypass: Guarded<bool>,
    /// Who loads keys that are missed.
    loads: OnceLock<Arc<dyn Loads>>,
}

/// The linked command that runs now, which is the server's current one (`server::command`).
#[derive(Default)]
struct Running {
    /// Made when the first event fires.
    link: Option<Arc<LinkedCommand>>,
}

/// The time that a linked command runs; ends also if something fails.
struct RunningGuard<'a> {
    hooks: &'a Hooks,
    lock: Lock<'a>,
    before: Option<Running>,
}

impl<'a> RunningGuard<'a> {
    fn enter(hooks: &'a Hooks, lock: Lock<'a>) -> Self {
        Self {
            hooks,
            lock,
            before: hooks.running.write(lock).replace(Running::default()),
        }
    }

    /// The link of the command, if an event fired.
    fn leave(self) -> Option<Arc<LinkedCommand>> {
        let mut running = self.hooks.running.write(self.lock);
        running.as_mut().and_then(|running| running.link.take())
    }
}

impl Drop for RunningGuard<'_> {
    fn drop(&mut self) {
        *self.hooks.running.write(self.lock) = self.before.take();
    }
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
            cleared: Guarded::new(None),
            running: Guarded::new(None),
            bypass: Guarded::new(false),
            loads: OnceLock::new(),
        })
    }

    /// True while a linked command runs that `names` has, in any letter case.
    pub fn is_running_one_of(&self, lock: Lock<'_>, names: &[String]) -> bool {
        self.running.read(lock).is_some() && command::current_is_one_of(lock, names)
    }

    /// True unless a linked command runs now whose caller cannot wait.
    pub fn may_wait(&self, lock: Lock<'_>) -> bool {
        self.running.read(lock).is_none() || command::current_may_block(lock)
    }

    /// A hold on the linked command that runs now. `None` if there is none, or if its caller cannot wait for an
    /// execution in the background.
    pub fn hold_running(&self, lock: Lock<'_>, sync: bool) -> Option<ReplyHold> {
        let mut running = self.running.write(lock);
        let running = running.as_mut()?;
        if !sync && !command::current_may_block(lock) {
            return None;
        }
        let link = running
            .link
            .get_or_insert_with(|| LinkedCommand::new(command::current_words(lock)));
        Some(link.hold())
    }

    /// Asks the server about commands that a registration wants to link.
    ///
    /// # Errors
    /// One of them cannot be linked (`readers-and-events.md` 10.1).
    pub fn look_up(
        &self,
        lock: Lock<'_>,
        names: &[String],
        pattern: &Pattern,
    ) -> Result<Vec<CommandSpec>, Error> {
        let mut found = Vec::new();
        for name in names {
            let _bypass = self.bypass(lock);
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
    /// It cannot be hooked (`readers-and-events.md` 8.1).
    pub fn look_up_hook(
        &self,
        lock: Lock<'_>,
        name: &str,
        for_some_keys: bool,
    ) -> Result<CommandSpec, Error> {
        let _bypass = self.bypass(lock);
        table::look_up_hook(lock, self.features, name, for_some_keys)
    }

    /// The function that was last put in the place of a command.
    pub fn newest_hook(&self, lock: Lock<'_>, name: &str) -> Option<Arc<Registration>> {
        let table = self.table.read(lock);
        let newest = table.find(name.as_bytes())?.hooks.last()?;
        Some(Arc::clone(&newest.registration))
    }

    /// Lets the next command pass the filter untouched, and only that one.
    fn bypass<'a>(&'a self, lock: Lock<'a>) -> Bypass<'a> {
        *self.bypass.write(lock) = true;
        Bypass { hooks: self, lock }
    }

    fn install(&self, lock: Lock<'_>) {
        self.clients.write(lock).clear();
        let mut installed = self.installed.write(lock);
        if installed.is_none() {
            *installed = Installed::install(lock, self.filter);
            if installed.is_none() {
                api::log_warning("the server refused the command filter: commands are not linked");
            }
        }
    }

    /// Undoes [`Hooks::link`]; the last one removes the filter.
    pub fn unlink(&self, lock: Lock<'_>, registration: Id) {
        let mut table = self.table.write(lock);
        for entry in &mut table.entries {
            entry.rules.retain(|rule| rule.registration != registration);
            entry.hooks.retain(|rule| rule.registration.id != registration);
            entry.loads.retain(|rule| rule.registration != registration);
            entry.removers.retain(|rule| rule.registration != registration);
        }
        table.recompute();
        if table.entries.is_empty() {
            if let Some(installed) = self.installed.write(lock).take() {
                installed.remove(lock);
            }
        }
    }

    /// Sees each command of the server while something is linked, and puts a proxy command in front where needed.
    pub fn filter(&self, engine: &Engine, passing: Passing<'_>) {
        let Some(name) = passing.arg(0) else { return };
        let lock = passing.lock();
        let table = self.table.read(lock);
        if table.lengths & length_bit(name) == 0 && !name.contains(&b'.') {
            return;
        }
        let native = self.features.filter_client_id && self.features.quiet_open;
        let found = table.find(name);
        if native && found.map_or_else(|| changes_state(name), |entry| entry.changes_state) {
            self.clients.write(lock).forget(passing.client_id());
        }
        let Some(entry) = found else { return };
        if std::mem::take(&mut *self.bypass.write(lock)) {
            return;
        }
        let proxy = &self.proxy[entry.spec.proxy as usize];
        let word = |position| passing.arg(position);
        if entry.hook(None, passing.len(), word).is_some() && applies_hooks(engine, entry) {
            self.rewrite(engine, passing, proxy, native);
            return;
        }
        if !entry.is_linked() {
            return;
        }
        if !engine.is_serving() || self.running.read(lock).is_some() {
            return;
        }
        if !native {
            if entry.concerns(passing, |_| true) {
                passing.rewrite(proxy);
            }
            return;
        }
        let id = passing.client_id();
        let Some(client) = self.clients.write(lock).look_up(lock, id) else {
            // A script or a module: it has the rights of its caller, which the proxy command checks.
            *self.cleared.write(lock) = None;
            if entry.concerns(passing, |_| true) {
                passing.rewrite(proxy);
            }
            return;
        };
        if self.wants_inner(entry, passing, client) {
            *self.cleared.write(lock) = None;
            if passing.user_may_run(id, proxy) {
                passing.rewrite(proxy);
                *self.cleared.write(lock) = (!client.in_multi).then_some(id);
            } else {
                engine.stats.count_acl_unlinked();
            }
        }
    }

    /// Puts the proxy command in front whatever the keys, unless the client's user may not run it.
    fn rewrite(&self, engine: &Engine, passing: Passing<'_>, proxy: &ProxyName, native: bool) {
        let lock = passing.lock();
        let client = native.then(|| passing.client_id());
        let client = client.and_then(|id| self.clients.write(lock).look_up(lock, id));
        *self.cleared.write(lock) = None;
        match client {
            Some(client) if !passing.user_may_run(client.id, proxy) => engine.stats.count_acl_unlinked(),
            Some(client) => {
                passing.rewrite(proxy);
                *self.cleared.write(lock) = (!client.in_multi).then_some(client.id);
            }
            // Scripts, functions, and servers that cannot tell: the proxy command checks the rights.
            None => passing.rewrite(proxy),
        }
    }

    /// The function that stands in the place of this command now.
    fn hook_for(&self, engine: &Engine, command: &Command<'_>) -> Option<Arc<Registration>> {
        let original = command.argv().skip(1);
        let table = self.table.read(command.lock());
        let entry = table.find(original.get(0)?)?;
        if !applies_hooks(engine, entry) {
            return None;
        }
        let word = |position| original.get(position);
        entry.hook(None, original.len(), word).cloned()
    }

    /// Runs the command behind the proxy command and answers the client, now or when its executions have ended.
    ///
    /// # Errors
    /// It was not the filter that put the proxy command there, or the user may not run the original.
    pub fn run_proxy(
        self: &Arc<Self>,
        engine: &Engine,
        command: &Command<'_>,
        proxy: ProxyCommand,
    ) -> Result<Answer, Error> {
        let genuine = self.proxy[proxy as usize].leads(command.argv());
        let original = command.argv().skip(1);
        if command.asks_for_keys() {
            if genuine {
                self.declare_keys(command);
            }
            return Ok(Answer::Done);
        }
        if !genuine {
            return Err(Error::InnerCommand);
        }
        let name = original.get(0).unwrap_or_default();
        let cleared = self.cleared.write(command.lock()).take();
        let cleared = cleared.is_some_and(|id| id == command.client_id());
        let not_permitted = || {
            let name = name.to_ascii_lowercase();
            Error::NotPermitted(String::from_utf8_lossy(&name).into_owned())
        };
        if let Some(registration) = self.hook_for(engine, command) {
            if !cleared && !command.sender_may_run(original) {
                return Err(not_permitted());
            }
            return self.run_hook(engine, command, name, &registration);
        }
        if let Some(answer) = self
            .wait_for_loads(command, cleared)
            .map_err(|NotPermitted| not_permitted())?
        {
            return Ok(answer);
        }
        let (reply, link) = command.as_current(1, || {
            let running = RunningGuard::enter(self, command.lock());
            let reply = call_original(command, self.features, original, cleared);
            (reply, running.leave())
        });
        let reply = reply.map_err(|_| not_permitted())?;
        engine.stats.count_linked();
        self.tell_removed(command);
        match link.as_ref().map_or(Ok(None), |link| link.close_if_free()) {
            Ok(None) => reply.forward(command),
            Ok(Some(replacement)) => command.send(&replacement),
            Err(StillHeld) => {
                if let Some(link) = link {
                    let original = reply.into_reply();
                    link.wait(command.block(), original);
                }
            }
        }
        Ok(Answer::Done)
    }

    fn declare_keys(&self, command: &Command<'_>) {
        if self.features.key_flags {
            command.declare_keys_of(self.features, 1);
            return;
        }
        let name = command.argv().get(1).unwrap_or_default();
        let table = self.table.read(command.lock());
        let Some(entry) = table.find(name) else {
            return;
        };
        for position in entry.spec.key_positions(command.argv().len() - 1) {
            command.declare_key(position + 1);
        }
    }
}

/// Functions stand in the place of commands also on a replica, for its own clients; what comes from its master is left
/// alone. That are writes, and commands about the connection: where the server does not tell who sent a command, those
/// without a key are left alone too. Nowhere while data are loaded.
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
        *self.hooks.bypass.write(self.lock) = false;
    }
}
