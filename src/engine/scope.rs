//! What the code that runs on this thread belongs to: session, execution, database.
//!
//! Entered by whoever calls into the language, asked by the functions that scripts call.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use crate::mutex::Mutex;

use super::{execution::Execution, id::Id, registration::Registration, session::Session, start::Start};
use crate::{error::Error, per_thread::per_thread};

per_thread! {
    static CURRENT: RefCell<Option<Scope>> = RefCell::new(None);
    /// The execution whose function runs a command now.
    static ACTING: Cell<Option<Id>> = Cell::new(None);
}

/// The execution whose function runs a command on this thread now: what happens to keys is its doing.
pub fn acting() -> Option<Id> {
    ACTING.get()
}

/// The time of a command that a function runs.
pub struct Acting(Option<Id>);

impl Acting {
    pub fn enter(scope: Option<&Scope>) -> Self {
        let execution = scope.and_then(|scope| scope.execution.as_ref());
        Self(ACTING.replace(execution.map(|execution| execution.id)))
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        ACTING.set(self.0);
    }
}

/// The surroundings of a callback or a script.
#[derive(Clone)]
pub struct Scope {
    pub session: Arc<Session>,
    /// The execution whose callback runs; `None` at script level and in onRegistered.
    pub execution: Option<Arc<Execution>>,
    /// The database that commands of the code run in.
    pub db: i32,
    /// It is code of the server's EVAL or FCALL.
    pub server_script: Option<ServerScript>,
    /// Present at script level: what is to happen when the script has ended well.
    pub script: Option<Arc<Mutex<Prepared>>>,
}

/// Code that the server has as a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerScript {
    /// It declares functions: FUNCTION LOAD.
    Loads,
    /// It runs for a client: EVAL, FCALL.
    Runs,
}

/// What a script has asked for so far.
#[derive(Default)]
pub struct Prepared {
    pub run: Option<Start>,
    pub registrations: Vec<Arc<Registration>>,
    /// The session whose place the script's one takes, if it ends well.
    pub replaces: Option<Arc<Session>>,
    /// It made a builder.
    pub has_builder: bool,
    /// It did something by itself: ran a command, wrote to the log, began a coroutine.
    pub has_acted: bool,
}

impl Scope {
    /// The scope of a callback.
    pub fn of_execution(execution: &Arc<Execution>) -> Self {
        Self {
            session: Arc::clone(&execution.session),
            execution: Some(Arc::clone(execution)),
            db: execution.db,
            server_script: None,
            script: None,
        }
    }

    /// The scope of onRegistered.
    pub fn of_session(session: &Arc<Session>) -> Self {
        Self {
            session: Arc::clone(session),
            execution: None,
            db: 0,
            server_script: None,
            script: None,
        }
    }

    /// The scope of a script.
    pub fn of_script(session: &Arc<Session>, replaces: Option<Arc<Session>>) -> Self {
        let prepared = Prepared {
            replaces,
            ..Prepared::default()
        };
        Self {
            session: Arc::clone(session),
            execution: None,
            db: 0,
            server_script: None,
            script: Some(Arc::new(Mutex::new(prepared))),
        }
    }

    /// The scope of a script of the server's; `db`: that of its caller.
    pub fn of_server_script(session: &Arc<Session>, script: ServerScript, db: i32) -> Self {
        Self {
            db,
            server_script: Some(script),
            ..Self::of_session(session)
        }
    }

    /// Makes it the scope of this thread until the guard is dropped.
    pub fn enter(self) -> Entered {
        Entered(CURRENT.replace(Some(self)))
    }

    /// Notes something about the script that runs on this thread, if one does.
    pub fn note_of_script(note: impl FnOnce(&mut Prepared)) {
        let script = CURRENT.with_borrow(|scope| scope.as_ref().and_then(|scope| scope.script.clone()));
        if let Some(script) = script {
            note(&mut script.lock());
        }
    }

    /// Makes another one the scope of this thread, for as long as the present one would be.
    pub fn replace_current(scope: Option<Self>) {
        CURRENT.set(scope);
    }

    /// The scope of this thread; `None` on threads that user code made.
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// True if the execution whose callback runs on this thread may go to the background.
    pub fn may_wait() -> bool {
        CURRENT.with_borrow(|scope| {
            let execution = scope.as_ref().and_then(|scope| scope.execution.as_ref());
            execution.is_some_and(|execution| execution.may_wait)
        })
    }
}

impl Prepared {
    /// True if nothing comes of the script, which is hardly what was meant.
    pub fn is_idle(&self) -> bool {
        let leaves = self.run.is_some() || !self.registrations.is_empty();
        !leaves && (self.has_builder || !self.has_acted)
    }

    /// Notes the run of a script.
    ///
    /// # Errors
    /// It has one already.
    pub fn set_run(&mut self, start: Start) -> Result<(), Error> {
        if self.run.is_some() {
            return Err(Error::SecondRun);
        }
        self.run = Some(start);
        Ok(())
    }
}

/// Restores the scope that was there before.
pub struct Entered(Option<Scope>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}
