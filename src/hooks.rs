//! Linked and hooked commands: which commands are put behind a proxy command, and how the client then gets its reply.
//!
//! The filter decides ([`Hooks::filter`]); the proxy command runs the function that stands in the place of the original
//! (`chain.rs`), or the original, and links the client to the executions that it started ([`Hooks::run_proxy`]).
//! Contract: docs/contract/readers-and-events.md chapters 8 and 10. All of it happens under the server's lock.

mod chain;
mod loads;
mod passed;
mod table;
mod writes;

use std::sync::{Arc, OnceLock};

use chain::HookRule;
pub use loads::{Hot, Loads, Missing, Wait, nearness};
pub use table::{CommandSpec, ProxyCommand};
use table::{Entry, Rule, Table, changes_state, length_bit, look_up};
pub use writes::Writes;

use crate::{
    engine::{
        Engine,
        id::Id,
        linked_command::{LinkedCommand, ReplyHold, StillHeld},
        prefix::Pattern,
        registration::Registration,
    },
    error::Error,
    server::{
        api::{self, Features},
        call::{CallReply, PAUSED, Refusal, SEVERAL_SLOTS, call_original, must_wait},
        client::{self, ClientState},
        command::{self, Answer, Command},
        filter::{Function, Installed, Passing, ProxyName},
        guarded::Guarded,
        home,
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
    proxy: [ProxyName; 4],
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
    /// The command that runs moves keys between the shards of a cluster.
    moving: Guarded<bool>,
    /// Who loads keys that are missed.
    loads: OnceLock<Arc<dyn Loads>>,
    /// Who saves changes of keys.
    writes: OnceLock<Arc<dyn Writes>>,
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
            moving: Guarded::new(false),
            loads: OnceLock::new(),
            writes: OnceLock::new(),
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
    /// One of them cannot be linked (docs/contract/readers-and-events.md 10.1).
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

    /// Sees each command of the server while something is linked, and puts a proxy command in front where needed.
    pub fn filter(&self, engine: &Engine, passing: Passing<'_>) {
        let Some(name) = passing.arg(0) else { return };
        let lock = passing.lock();
        *self.moving.write(lock) = writes::moves_keys(name);
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
        let word = |position| passing.arg(position);
        if entry.hook(None, passing.len(), word).is_some() && applies_hooks(engine, entry) {
            let client = native.then(|| passing.client_id());
            let client = client.and_then(|id| self.clients.write(lock).look_up(lock, id));
            self.rewrite(engine, passing, entry.spec.proxy, client, native);
            return;
        }
        if entry.strays && self.keep_home(passing, &self.proxy[entry.spec.proxy as usize]) {
            return;
        }
        if !entry.is_linked() {
            return;
        }
        if !engine.is_serving() || self.running.read(lock).is_some() {
            return;
        }
        let client = native.then(|| passing.client_id());
        let client = client.and_then(|id| self.clients.write(lock).look_up(lock, id));
        let wanted = match client.filter(|client| !client.in_multi) {
            Some(client) => self.wants_proxy(entry, passing, client),
            // A script, a function, a transaction: that is decided when the command runs.
            None => entry.concerns(passing, |_| true),
        };
        if wanted {
            self.rewrite(engine, passing, entry.spec.proxy, client, native);
        }
    }

    /// Sees to it that a COPY, which may name another database, leaves its client where it is ([`home`]). A client outside
    /// of transactions is noted with its database. Of others that is not known yet: true if the command was put behind an
    /// proxy one, whose call has a client of its own. Who may not run that is left to the server.
    fn keep_home(&self, passing: Passing<'_>, proxy: &ProxyName) -> bool {
        let lock = passing.lock();
        if home::is_ours(lock) {
            return false;
        }
        let is_db = |word: &[u8]| word.eq_ignore_ascii_case(b"db");
        let leads_away = (3..passing.len()).any(|position| passing.arg(position).is_some_and(is_db));
        let id = passing.client_id();
        let client = if leads_away { client::state(lock, id) } else { None };
        let client = client.filter(|client| !client.in_multi);
        home::note(lock, client.map(|client| (client.id, client.db)));
        let is_behind = leads_away && client.is_none() && passing.is_free_to_run(id, proxy);
        if is_behind {
            *self.cleared.write(lock) = None;
            passing.rewrite(proxy);
        }
        is_behind
    }

    /// Puts the proxy command in front, unless the client's user may not run it. `client`: who sent the command; `None` for
    /// scripts and functions, and where the server does not tell (`native` is false): then the proxy command checks the rights.
    fn rewrite(
        &self,
        engine: &Engine,
        passing: Passing<'_>,
        proxy: ProxyCommand,
        client: Option<ClientState>,
        native: bool,
    ) {
        let lock = passing.lock();
        *self.cleared.write(lock) = None;
        let in_multi = client.is_some_and(|client| client.in_multi);
        // A script cannot wait, and one that only reads is refused whatever may write.
        let can_wait = || client.is_some() || !native && !lock.is_in_script();
        let later = proxy == ProxyCommand::Read && (in_multi || !lock.may_write()) && can_wait();
        let Some(client) = client else {
            passing.rewrite(&self.proxy[if later { ProxyCommand::ReadLater } else { proxy } as usize]);
            return;
        };
        let name = |proxy: ProxyCommand| &self.proxy[proxy as usize];
        if later && passing.user_may_run(client.id, name(ProxyCommand::ReadLater)) {
            passing.rewrite(name(ProxyCommand::ReadLater));
        } else if passing.user_may_run(client.id, name(proxy)) {
            passing.rewrite(name(proxy));
            *self.cleared.write(lock) = (!in_multi).then_some(client.id);
        } else {
            engine.stats.count_acl_unlinked();
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
        // The server has looked at the others itself, and lets them through in a transaction that pauses clients.
        if proxy == ProxyCommand::Read && must_wait(command.lock(), self.features, name) {
            return Err(Error::Text(PAUSED.into()));
        }
        let refused = |refusal| match refusal {
            Refusal::NotPermitted => not_permitted(),
            Refusal::SeveralSlots => Error::Text(SEVERAL_SLOTS.into()),
        };
        if let Some(answer) = self.wait_for_loads(command, cleared).map_err(refused)? {
            return Ok(answer);
        }
        if let Some(answer) = self.wait_for_room(command, cleared).map_err(refused)? {
            return Ok(answer);
        }
        let behind = self.begin_write(command);
        let absent = self.absent_removals(command);
        let (reply, link) = command.as_current(1, || {
            let running = RunningGuard::enter(self, command.lock());
            let reply = call_original(command, self.features, original, cleared);
            (reply, running.leave())
        });
        let reply = match reply {
            Ok(reply) => self.end_write(command, behind, reply),
            Err(refusal) => {
                // Nothing was changed, so nobody waits.
                return Err(refused(refusal));
            }
        };
        engine.stats.count_linked();
        self.tell_removed(command);
        let Some(reply) = reply else {
            return Ok(Answer::Done);
        };
        if !reply.is_error() {
            self.tell_writes_removed(command, &absent);
        }
        match link.as_ref().map_or(Ok(None), |link| link.close_if_free()) {
            Ok(None) => reply.forward(command),
            Ok(Some(replacement)) => command.send(&replacement),
            // Functions wait until clients are not paused, and a script that only reads cannot wait for them.
            Err(StillHeld) if !command.may_block() => reply.forward(command),
            Err(StillHeld) => {
                if let Some(link) = link {
                    wait(command, &link, reply);
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

/// The client waits for whoever holds the link. One that the server does not let wait is answered at once.
fn wait(command: &Command<'_>, link: &LinkedCommand, reply: CallReply) {
    match command.block() {
        Ok(client) => link.wait(client, reply.into_reply()),
        Err(_) => match link.close() {
            Some(replacement) => command.send(&replacement),
            None => reply.forward(command),
        },
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
