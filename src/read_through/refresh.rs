//! Loads that somebody asks for whatever is there: RG.REFRESH, and `refresh` in functions.

use super::{
    Key, ReadThrough, State, Who, bounds,
    machine::{Ask, Purpose},
};
use crate::{
    engine::id::Id,
    error::Error,
    hooks::Wait,
    server::{
        command::{Answer, Command},
        key::{self, Life},
        lock::Lock,
        reply::Reply,
    },
};

impl ReadThrough {
    /// Loads keys anew, for RG.REFRESH. The client waits for their number.
    ///
    /// # Errors
    /// This is a replica.
    pub fn refresh_for(&self, command: &Command<'_>) -> Result<Answer, Error> {
        let lock = command.lock();
        let names: Vec<&[u8]> = command.argv().skip(1).iter().collect();
        Ok(match self.ask_refresh(lock, command.db(), &names, None)? {
            Asked::Number(number) => match self.block(command, number, &[], false) {
                Wait::No => Reply::Int(0).into(),
                _ => Answer::Done,
            },
            Asked::Decided(reply) => reply.into(),
        })
    }

    /// The same for a function, that of `execution`: `done` is told the reply, now or later, under the server's lock, perhaps on the
    /// server's thread. It must not attach to Python. The number of the function that waits, for [`ReadThrough::give_up`], if it
    /// has to.
    ///
    /// # Errors
    /// This is a replica; a load could only end when the function has, because that is, or waits for, its loader.
    pub fn refresh(
        &self,
        lock: Lock<'_>,
        db: i32,
        names: &[&[u8]],
        execution: Option<Id>,
        done: impl FnOnce(Reply) + Send + 'static,
    ) -> Result<Option<u64>, Error> {
        match self.ask_refresh(lock, db, names, execution)? {
            Asked::Number(number) => {
                let mut state = self.state.write(lock);
                state.clients.insert(number, Who::Told(Box::new(done)));
                drop(state);
                self.wake();
                Ok(Some(number))
            }
            Asked::Decided(reply) => {
                done(reply);
                Ok(None)
            }
        }
    }

    /// A function waits no longer. From any thread, with or without the server's lock.
    pub fn give_up(&self, number: u64) {
        self.given_up.lock().push(number);
        self.wake();
    }

    /// Those who wait no longer are let go: what is loaded for nobody else does not begin.
    pub(super) fn release_given_up(&self, lock: Lock<'_>) {
        let given_up = std::mem::take(&mut *self.given_up.lock());
        for number in given_up {
            let mut state = self.state.write(lock);
            let told = state.clients.remove(&number);
            let released = state.machine.release(number);
            drop(state);
            drop(told);
            if let Some((keys, _)) = released {
                self.replied(lock, &keys);
            }
        }
    }

    fn ask_refresh(
        &self,
        lock: Lock<'_>,
        db: i32,
        names: &[&[u8]],
        execution: Option<Id>,
    ) -> Result<Asked, Error> {
        if !self.engine.is_serving() {
            return Err(Error::ReadOnly);
        }
        let present: Vec<bool> = names
            .iter()
            .map(|name| key::life(lock, db, name) != Life::Missing)
            .collect();
        let mut state = self.state.write(lock);
        let mut asks: Vec<Ask> = Vec::with_capacity(names.len());
        for (name, present) in names.iter().zip(present) {
            let known = asks.iter().any(|ask| *ask.key.name == **name);
            if let (false, Some(rule)) = (known, state.served_for(name)) {
                asks.push(Ask {
                    rule,
                    key: Key::new(db, name),
                    present,
                });
            }
        }
        if asks.is_empty() {
            return Ok(Asked::Decided(Reply::Int(0)));
        }
        // A loader that asks for keys itself.
        let load = execution.and_then(|execution| state.load_of(execution));
        if let Some(key) = load.and_then(|load| state.machine.circle(load, &asks)) {
            return Err(Error::waits_for_itself(&key.name));
        }
        state.machine.bounds = bounds(&self.engine);
        let asked = state.machine.ask(self.now(), &asks, Purpose::Refresh(0));
        Ok(match asked {
            Ok(number) => {
                if let Some(load) = load {
                    state.machine.asked_by(number, load);
                }
                Asked::Number(number)
            }
            Err((_, why)) => Asked::Decided(why.into()),
        })
    }
}

impl State {
    /// The load whose loader an execution runs.
    fn load_of(&self, execution: Id) -> Option<u64> {
        let is_it = |(_, running): &(&u64, &super::Running)| running.execution == execution;
        self.running.iter().find(is_it).map(|(&load, _)| load)
    }
}

/// What became of a wish to load keys anew.
enum Asked {
    Number(u64),
    Decided(Reply),
}
