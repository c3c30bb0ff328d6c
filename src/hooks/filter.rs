//! The filter: sees each command of the server, and puts those behind a proxy command that somebody is to hear of. Contract:
//! docs/contract/readers-and-events.md chapters 8 and 10. Under the server's lock; what is not linked must cost next to nothing.

use super::{
    Cleared, Hooks, Noted, applies_hooks,
    names::place_of,
    proxy::Concerns,
    spec::ProxyCommand,
    table::{Entry, Table},
    writes,
};
use crate::{
    engine::Engine,
    server::{
        call,
        client::{self, ClientState},
        filter::{Passing, ProxyName},
        home,
        key::Life,
        lock::Lock,
        room,
    },
};

/// What a glance at a command says.
enum Glance {
    /// It is to be looked at.
    Nothing,
    /// It concerns nobody.
    Passes,
    /// It goes behind a proxy command; its client, where the server tells.
    Wanted(Option<ClientState>),
}

impl Hooks {
    /// Sees each command of the server while something is linked, and puts a proxy command in front where needed.
    pub fn filter(&self, engine: &Engine, passing: Passing<'_>) {
        let Some(name) = passing.arg(0) else { return };
        let lock = passing.lock();
        let table = self.table.read(lock);
        self.noted.set(lock, Noted::default());
        if let Some(entry) = table.quick(name) {
            match self.glance(engine, passing, entry) {
                Glance::Passes => return,
                Glance::Wanted(client) => {
                    if entry.spec.takes(passing.len()) {
                        self.rewrite(engine, passing, entry, client, self.tells_who_sends());
                    }
                    return;
                }
                Glance::Nothing => {}
            }
        }
        let place = place_of(name);
        // Most names end here.
        if !table.minds(place) && !name.contains(&b'.') {
            return;
        }
        if writes::moves_keys(name) {
            self.note(lock, |noted| noted.moving = true);
        }
        if !self.features.filter_client_id {
            self.note_whereabouts(passing, name);
        }
        if let Some(entry) = table.find_at(place, name) {
            return self.look_at(engine, passing, &table, entry);
        }
        if self.tells_who_sends() {
            self.clients.write(lock).passes(lock, passing.client_id(), name);
        }
        self.tell_of_slot(passing, name);
    }

    #[inline(never)]
    fn note_whereabouts(&self, passing: Passing<'_>, name: &[u8]) {
        let word = |position| passing.arg(position);
        self.whereabouts.write(passing.lock()).passes(name, word);
    }

    /// The server tells who sent a command, and shows keys without any effect: it need not be put behind a proxy command to learn that
    /// it is a hit.
    #[inline]
    fn tells_who_sends(&self) -> bool {
        self.features.filter_client_id && self.features.quiet_open
    }

    /// A glance at a command of which nothing matters but whether its only key is missing, see [`Table::quick`]: most of them are hits.
    /// The same as [`Hooks::look_at`] where that is known.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn glance(&self, engine: &Engine, passing: Passing<'_>, entry: &Entry) -> Glance {
        let lock = passing.lock();
        // What is rare is not for a glance.
        let Some(position) = entry.plain_key.filter(|_| !self.bypass.get(lock)) else {
            return Glance::Nothing;
        };
        if call::is_under_way(lock) || !engine.is_serving() || self.current.is_running(lock) {
            return Glance::Nothing;
        }
        let client = if self.tells_who_sends() {
            let client = self.clients.write(lock).look_up(lock, passing.client_id());
            match client.filter(|client| !client.in_multi) {
                Some(client) => Some(client),
                None => return Glance::Nothing,
            }
        } else if self.whereabouts.read(lock).all_at_home() && !entry.spec.writes() {
            None
        } else {
            return Glance::Nothing;
        };
        let Some(key) = passing.key(position) else {
            return Glance::Nothing;
        };
        if !entry.links(key.name) {
            return Glance::Passes;
        }
        let db = client.map_or(0, |client| client.db);
        // What is there may be gone when the command runs, which looks again.
        if passing.key_life(db, &key) == Life::Missing || room::may_evict(lock) {
            Glance::Wanted(client)
        } else {
            Glance::Passes
        }
    }

    #[inline(never)]
    fn look_at(&self, engine: &Engine, passing: Passing<'_>, table: &Table, entry: &Entry) {
        let (lock, native) = (passing.lock(), self.tells_who_sends());
        if native && entry.changes_state {
            self.clients.write(lock).forget(passing.client_id());
        }
        if self.bypass.replace(lock, false) {
            return;
        }
        let word = |position| passing.arg(position);
        if !entry.hooks.is_empty()
            && entry.hook(None, passing.len(), word).is_some()
            && applies_hooks(engine, entry)
        {
            self.rewrite_hooked(engine, passing, entry, native);
            return;
        }
        if entry.strays && self.keep_home(passing, &self.proxy[entry.spec.proxy as usize]) {
            return;
        }
        if !entry.is_linked() {
            return;
        }
        if !engine.is_serving() {
            return;
        }
        if self.current.is_running(lock) && !entry.concerns_more(passing) {
            // What a function runs in the middle of a linked command is linked to nothing else.
            return;
        }
        table.remember(entry);
        let client = self.sender(passing, native);
        let db = client.filter(|client| !client.in_multi).map(|client| client.db);
        let db = db.or_else(|| self.everybodys_db(lock, entry));
        if !entry.loads.is_empty() {
            self.note(lock, |noted| noted.looked = db.is_some());
        }
        let wanted = match db {
            Some(db) => self.wants_proxy(entry, passing, db),
            // A script, a function, a transaction: that is decided when the command runs.
            None => entry.concerns(passing, |_| true),
        };
        // The server refuses a wrong number of words, in a transaction at once: then nothing of that runs.
        if wanted && entry.spec.takes(passing.len()) {
            self.rewrite(engine, passing, entry, client, native);
        }
    }

    /// A function stands in the place of the command.
    #[inline(never)]
    fn rewrite_hooked(&self, engine: &Engine, passing: Passing<'_>, entry: &Entry, native: bool) {
        let client = self.sender(passing, native);
        self.rewrite(engine, passing, entry, client, native);
    }

    /// The client that sent the command; `None` for scripts and functions, and where the server does not tell (`native` is false). Each
    /// command of interest passes here.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    fn sender(&self, passing: Passing<'_>, native: bool) -> Option<ClientState> {
        let lock = passing.lock();
        // The server lends functions clients that once stood for one that waited, and still have its id.
        if !native || call::is_under_way(lock) {
            return None;
        }
        self.clients.write(lock).look_up(lock, passing.client_id())
    }

    /// The database in which the command runs next, whoever sent it, where the server does not tell. Only for commands that read.
    fn everybodys_db(&self, lock: Lock<'_>, entry: &Entry) -> Option<i32> {
        let reads = entry.writes.is_empty() && entry.removers.is_empty();
        let known = reads && self.whereabouts.read(lock).all_at_home();
        // What functions run, they run in the database of their event.
        (known && !call::is_under_way(lock)).then_some(0)
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
        let is_behind = leads_away
            && client.is_none()
            && passing.is_free_to_run(id, proxy)
            && passing.actor_may_run(proxy);
        if is_behind {
            self.cleared.set(lock, None);
            passing.rewrite(proxy);
        }
        is_behind
    }

    /// Puts the proxy command in front, unless the client's user may not run it: then only where a change would be lost otherwise,
    /// so that the server refuses it. `client`: who sent the command; `None` for scripts and functions, and where the server does
    /// not tell (`native` is false): then the proxy command checks the rights.
    fn rewrite(
        &self,
        engine: &Engine,
        passing: Passing<'_>,
        entry: &Entry,
        client: Option<ClientState>,
        native: bool,
    ) {
        let (lock, proxy) = (passing.lock(), entry.spec.proxy);
        let unlinked = |rewrite: &dyn Fn()| {
            if self.is_saved(passing, entry) {
                rewrite();
            } else {
                engine.stats.count_acl_unlinked();
            }
        };
        self.cleared.set(lock, None);
        let in_multi = client.is_some_and(|client| client.in_multi);
        // A script cannot wait, and one that only reads is refused whatever may write.
        let can_wait = || client.is_some() || !native && !lock.is_in_script();
        let later = proxy == ProxyCommand::Read && (in_multi || !lock.may_write()) && can_wait();
        let Some(client) = client else {
            let proxy = &self.proxy[if later { ProxyCommand::ReadLater } else { proxy } as usize];
            if passing.actor_may_run(proxy) {
                passing.rewrite(proxy);
            } else {
                unlinked(&|| passing.rewrite(proxy));
            }
            return;
        };
        let name = |proxy: ProxyCommand| &self.proxy[proxy as usize];
        let cleared = || Cleared {
            client: client.id,
            concerns: Concerns::of(entry),
        };
        let known = self.knows_rights.get().copied().unwrap_or_default();
        if known && self.clients.write(lock).is_unrestricted(lock, client.id) {
            passing.rewrite(name(if later { ProxyCommand::ReadLater } else { proxy }));
            self.cleared.set(lock, (!in_multi && !later).then(cleared));
        } else if later && passing.user_may_run(client.id, name(ProxyCommand::ReadLater)) {
            passing.rewrite(name(ProxyCommand::ReadLater));
        } else if passing.user_may_run(client.id, name(proxy)) {
            passing.rewrite(name(proxy));
            self.cleared.set(lock, (!in_multi).then(cleared));
        } else {
            unlinked(&|| passing.rewrite(name(proxy)));
        }
    }

    /// Whether the command writes keys whose changes are saved.
    fn is_saved(&self, passing: Passing<'_>, entry: &Entry) -> bool {
        let (Some(writes), true) = (self.writes.get(), entry.spec.writes()) else {
            return false;
        };
        let saves = |key| writes.saves(passing.lock(), key);
        let is_saved = |position| passing.arg(position).is_some_and(saves);
        entry.spec.any_key(passing.len(), &|at| passing.arg(at), is_saved)
    }
}
