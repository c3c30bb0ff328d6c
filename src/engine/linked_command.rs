//! The link between a client's command and the executions that it started.
//!
//! Made by the hooks when a linked command fires its first event; held by each of those executions. When the last
//! hold is gone, the client gets exactly one reply: the override, else the command's own. Contract:
//! docs/contract/readers-and-events.md 10.3 to 10.5.

use std::sync::Arc;

use crate::mutex::Mutex;

use crate::{
    error::Error,
    server::{
        client::{BlockedClient, Meter},
        reply::Reply,
        string::Words,
    },
};

/// A client that waits for its reply: each of the two ends that.
pub trait Waits: Send {
    /// It gets this reply.
    fn answer(self, reply: Reply);

    /// Its command is run again, and is the reply.
    fn run_again(self);
}

impl Waits for BlockedClient {
    fn answer(self, reply: Reply) {
        Self::answer(self, reply);
    }

    fn run_again(self) {
        Self::run_again(self);
    }
}

/// One linked command.
pub struct LinkedCommand<C: Waits = BlockedClient> {
    /// As typed, its name first.
    command: Words,
    state: Mutex<ReplyState<C>>,
}

struct ReplyState<C> {
    holds: usize,
    replacement: Option<Reply>,
    /// The command is run again and is the reply, unless there is a replacement.
    again: bool,
    /// The client and the command's own reply, once the client waits.
    waiting: Option<(C, Reply)>,
    /// The reply is decided; nothing can change it any more.
    closed: bool,
}

impl LinkedCommand {
    pub fn new(command: Words) -> Arc<Self> {
        Self::of(command)
    }

    /// What measures the work for the client, once it waits.
    pub fn meter(&self) -> Option<Meter> {
        let state = self.state.lock();
        state.waiting.as_ref().map(|(client, _)| client.meter())
    }
}

impl<C: Waits> LinkedCommand<C> {
    fn of(command: Words) -> Arc<Self> {
        let state = ReplyState {
            holds: 0,
            replacement: None,
            again: false,
            waiting: None,
            closed: false,
        };
        Arc::new(Self {
            command,
            state: Mutex::new(state),
        })
    }

    /// Keeps the client waiting until the hold is dropped.
    pub fn hold(self: &Arc<Self>) -> ReplyHold<C> {
        self.state.lock().holds += 1;
        ReplyHold(Arc::clone(self))
    }

    /// The same, unless the client has its reply already.
    pub fn hold_open(self: &Arc<Self>) -> Option<ReplyHold<C>> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        state.holds += 1;
        Some(ReplyHold(Arc::clone(self)))
    }

    /// True while the client has no reply.
    pub fn is_open(&self) -> bool {
        !self.state.lock().closed
    }

    pub fn command(&self) -> &Words {
        &self.command
    }

    /// Sets the reply that takes the place of the command's own.
    ///
    /// # Errors
    /// Somebody did so before, or the client has its reply already.
    pub fn replace_reply(&self, reply: Reply) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::NoCommandContext);
        }
        if state.replacement.is_some() {
            return Err(Error::OverriddenAlready);
        }
        state.replacement = Some(reply);
        Ok(())
    }

    /// What the command found is out of date: it is run again when the client has waited.
    pub fn run_again(&self) {
        self.state.lock().again = true;
    }

    /// The command has run. `Ok` if nobody holds the link: the override, if there is one, is the reply now.
    ///
    /// # Errors
    /// Executions are under way: block the client and [`LinkedCommand::wait`].
    pub fn close_if_free(&self) -> Result<Option<Reply>, StillHeld> {
        let mut state = self.state.lock();
        if state.holds > 0 {
            return Err(StillHeld);
        }
        state.closed = true;
        Ok(state.replacement.take())
    }

    /// The client waits for the holds, with the command's own reply. Answers at once if they are gone by now.
    pub fn wait(&self, client: C, original: Reply) {
        self.state.lock().waiting = Some((client, original));
        self.answer_if_free();
    }

    /// Who holds the link has no say any more: the client cannot wait. The override that there is by now is the reply.
    pub fn close(&self) -> Option<Reply> {
        let mut state = self.state.lock();
        state.closed = true;
        state.replacement.take()
    }

    fn answer_if_free(&self) {
        let mut state = self.state.lock();
        if state.holds > 0 || state.waiting.is_none() {
            return;
        }
        state.closed = true;
        let replacement = state.replacement.take();
        let (waiting, again) = (state.waiting.take(), state.again);
        drop(state);
        match (waiting, replacement) {
            (Some((client, _)), None) if again => client.run_again(),
            (Some((client, original)), replacement) => client.answer(replacement.unwrap_or(original)),
            (None, _) => {}
        }
    }
}

/// [`LinkedCommand::close_if_free`] found executions under way.
#[derive(Debug)]
pub struct StillHeld;

/// One execution's part in a link; dropping it lets the client go, if it is the last one.
pub struct ReplyHold<C: Waits = BlockedClient>(Arc<LinkedCommand<C>>);

impl<C: Waits> ReplyHold<C> {
    pub fn link(&self) -> &Arc<LinkedCommand<C>> {
        &self.0
    }
}

impl<C: Waits> Drop for ReplyHold<C> {
    fn drop(&mut self) {
        self.0.state.lock().holds -= 1;
        self.0.answer_if_free();
    }
}

#[cfg(all(test, feature = "model"))]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_override_wins_until_the_link_is_closed() {
        let link = LinkedCommand::new(Words::default());
        let hold = link.hold();
        assert!(link.close_if_free().is_err());
        assert_eq!(link.replace_reply(Reply::Int(1)), Ok(()));
        assert_eq!(link.replace_reply(Reply::Int(2)), Err(Error::OverriddenAlready));
        drop(hold);
        assert_eq!(link.close_if_free().ok().flatten(), Some(Reply::Int(1)));
        assert_eq!(link.replace_reply(Reply::Int(3)), Err(Error::NoCommandContext));
    }

    #[test]
    fn whoever_holds_a_closed_link_has_no_say() {
        let link = LinkedCommand::new(Words::default());
        let hold = link.hold();
        assert_eq!(link.replace_reply(Reply::Int(1)), Ok(()));
        assert_eq!(link.close(), Some(Reply::Int(1)));
        assert_eq!(link.replace_reply(Reply::Int(2)), Err(Error::NoCommandContext));
        assert!(link.hold_open().is_none());
        drop(hold);
    }
}
