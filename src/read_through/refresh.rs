//! Loads that somebody asks for whatever is there: RG.REFRESH, and `refresh` in functions.

use super::{
    Key, ReadThrough, Who, bounds,
    machine::{Ask, Purpose},
};
use crate::{
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
        Ok(match self.ask_refresh(lock, command.db(), &names)? {
            Asked::Number(number) => match self.block(command, number) {
                Wait::No => Reply::Int(0).into(),
                _ => Answer::Done,
            },
            Asked::Decided(reply) => reply.into(),
        })
    }

    /// The same for a function: `done` is told the reply, now or later, under the server's lock, perhaps on the server's thread. It
    /// must not attach to Python.
    ///
    /// # Errors
    /// This is a replica.
    pub fn refresh(
        &self,
        lock: Lock<'_>,
        db: i32,
        names: &[&[u8]],
        done: impl FnOnce(Reply) + Send + 'static,
    ) -> Result<(), Error> {
        match self.ask_refresh(lock, db, names)? {
            Asked::Number(number) => {
                let mut state = self.state.write(lock);
                state.clients.insert(number, Who::Told(Box::new(done)));
                drop(state);
                self.wake();
            }
            Asked::Decided(reply) => done(reply),
        }
        Ok(())
    }

    fn ask_refresh(&self, lock: Lock<'_>, db: i32, names: &[&[u8]]) -> Result<Asked, Error> {
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
        state.machine.bounds = bounds(&self.engine);
        let asked = state.machine.ask(self.now(), &asks, Purpose::Refresh(0));
        Ok(match asked {
            Ok(number) => Asked::Number(number),
            Err((_, why)) => Asked::Decided(why.into()),
        })
    }
}

/// What became of a wish to load keys anew.
enum Asked {
    Number(u64),
    Decided(Reply),
}
