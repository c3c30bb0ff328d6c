//! The proxy command: runs the function in the place of the original, or the original, and links the client to the executions
//! that it started. Contract: docs/contract/readers-and-events.md chapters 8 and 10. Under the server's lock.

use std::sync::Arc;

use super::{Hooks, Linked, applies_hooks, spec::ProxyCommand, table::Entry};
use crate::{
    engine::{
        Engine,
        linked_command::{LinkedCommand, StillHeld},
        registration::Registration,
    },
    error::Error,
    server::{
        call::{PAUSED, Refusal, SEVERAL_SLOTS, call_original, must_wait},
        call_reply::CallReply,
        command::{Answer, Command},
    },
};

impl Hooks {
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
        let cleared = self.cleared.replace(command.lock(), None);
        // Other modules are lent such clients, too (`Hooks::sender`), and cannot wait.
        let cleared = cleared.filter(|cleared| cleared.client == command.client_id() && command.may_block());
        // What the filter has seen a moment ago.
        let concerns = cleared.map_or_else(|| self.concerns_of(command), |cleared| cleared.concerns);
        let cleared = cleared.is_some();
        let not_permitted = || {
            let name = name.to_ascii_lowercase();
            Error::NotPermitted(String::from_utf8_lossy(&name).into_owned())
        };
        let hook = if concerns.hooks {
            self.hook_for(engine, command)
        } else {
            None
        };
        if let Some(registration) = hook {
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
        // A replica takes what its master sends, whatever it has itself.
        if concerns.loads && engine.is_serving() {
            if let Some(answer) = self.wait_for_loads(command, cleared).map_err(refused)? {
                return Ok(answer);
            }
        }
        if concerns.writes {
            if let Some(answer) = self.wait_for_room(command, cleared).map_err(refused)? {
                return Ok(answer);
            }
        }
        let write = concerns
            .writes
            .then(|| self.begin_write(command, command.may_block() && command.has_client()));
        let linked = Linked {
            // It has a client outside of transactions and scripts.
            may_wait: cleared.then_some(true),
            ..Linked::default()
        };
        let call = || {
            // What is cleared the filter has seen a moment ago.
            let _bypass = (!cleared).then(|| self.bypass(command.lock()));
            call_original(command, self.features, original, cleared, cleared)
        };
        let (reply, linked) = if self.current.is_running(command.lock()) {
            // A function runs it in the middle of a linked command, which goes on to be the one that its events are linked to.
            (call(), Linked::default())
        } else {
            self.current.during(command, 1, linked, call)
        };
        let reply = match &write {
            Some(write) => {
                let block = &mut || command.block().ok();
                self.end_write(command, write, reply, linked.link.as_ref(), block)
            }
            None => reply.map(Some),
        };
        let reply = reply.map_err(refused)?;
        engine.stats.count_linked();
        if concerns.removals {
            self.tell_removed(command);
        }
        let Some(reply) = reply else {
            return Ok(Answer::Done);
        };
        let link = linked.link;
        match link.as_ref().map_or(Ok(None), |link| link.close_if_free()) {
            Ok(None) => reply.forward(command),
            Ok(Some(replacement)) => command.send(&replacement),
            // Functions wait until clients are not paused, and a script that only reads cannot wait for them.
            Err(StillHeld) if !linked.may_wait.unwrap_or_else(|| command.may_block()) => {
                reply.forward(command);
            }
            Err(StillHeld) => {
                if let Some(link) = link {
                    wait(command, &link, reply);
                }
            }
        }
        Ok(Answer::Done)
    }

    /// What registrations besides those that are linked want to know of the command.
    pub(super) fn concerns_of(&self, command: &Command<'_>) -> Concerns {
        let table = self.table.read(command.lock());
        let entry = command.argv().get(1).and_then(|name| table.find(name));
        entry.map_or_else(Concerns::default, Concerns::of)
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
        let original = command.argv().skip(1);
        let positions = entry.spec.key_positions(original.len(), &|at| original.get(at));
        for position in positions {
            command.declare_key(position + 1);
        }
    }
}

/// Which kinds of registrations have rules for a command.
#[derive(Clone, Copy, Default)]
pub(super) struct Concerns {
    hooks: bool,
    loads: bool,
    pub(super) writes: bool,
    pub(super) removals: bool,
}

impl Concerns {
    #[inline]
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            hooks: !entry.hooks.is_empty(),
            loads: !entry.loads.is_empty(),
            writes: !entry.writes.is_empty(),
            removals: !entry.removers.is_empty(),
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
