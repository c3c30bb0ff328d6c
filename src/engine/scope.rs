//! What the code that runs on this thread belongs to: session, execution, database.
//!
//! Entered by whoever calls into the language, asked by the functions that scripts call.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

use crate::mutex::Mutex;

use super::{
    execution::{Execution, MayWait},
    id::Id,
    registration::Registration,
    session::Session,
    start::Start,
};
use crate::{
    error::Error,
    per_thread::per_thread,
    server::rights::{self, Actor, Owner},
};

per_thread! {
    static CURRENT: RefCell<Current> = RefCell::new(Current::Nothing);
    /// The execution whose function runs a command now.
    static ACTING: Cell<Option<Id>> = Cell::new(None);
}

/// What is known of the code that runs on a thread.
enum Current {
    Nothing,
    /// In a box: an execution is entered and left with each event, and that moves what is known.
    In(Box<Scope>),
    /// A function of an execution, as [`Scope::of_execution`].
    Of(Arc<Execution>),
    /// It has given its session away, but not the rights that it had.
    Left(Arc<Actor>),
}

impl Current {
    fn scope(&self) -> Option<&Scope> {
        match self {
            Self::In(scope) => Some(&**scope),
            Self::Nothing | Self::Of(_) | Self::Left(_) => None,
        }
    }

    fn execution(&self) -> Option<&Arc<Execution>> {
        match self {
            Self::In(scope) => scope.execution.as_ref(),
            Self::Of(execution) => Some(execution),
            Self::Nothing | Self::Left(_) => None,
        }
    }
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
    /// Whose rights the code has; `None` for all.
    pub actor: Option<Arc<Actor>>,
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
    /// Decorators that it made and has put in front of no function yet, as it would write them.
    pub unapplied: Vec<String>,
}

impl Scope {
    /// The scope of a callback.
    pub fn of_execution(execution: &Arc<Execution>) -> Self {
        Self {
            session: Arc::clone(&execution.session),
            execution: Some(Arc::clone(execution)),
            actor: execution.actor.clone(),
            db: execution.db,
            server_script: None,
            script: None,
        }
    }

    /// The scope of onRegistered.
    pub fn of_registration(registration: &Registration) -> Self {
        Self::of_session(&registration.session).acting_as(registration.actor.clone())
    }

    /// The same with other rights.
    #[must_use]
    pub fn acting_as(mut self, actor: Option<Arc<Actor>>) -> Self {
        self.actor = actor;
        self
    }

    /// Who is behind what the code makes.
    pub fn owner(&self) -> Owner {
        let registration = self.execution.as_ref().and_then(|execution| execution.owner());
        match (&self.actor, registration) {
            (Some(actor), _) => actor.owner().clone(),
            (None, Some(registration)) => registration.owner.clone(),
            (None, None) => self.session.owner.clone(),
        }
    }

    /// The scope of what belongs to a session and to no registration.
    pub fn of_session(session: &Arc<Session>) -> Self {
        Self {
            session: Arc::clone(session),
            execution: None,
            actor: session.actor.clone(),
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
            actor: session.actor.clone(),
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
        Entered(CURRENT.replace(Current::In(Box::new(self))))
    }

    /// The same for the functions of an execution.
    #[inline]
    pub fn enter_execution(execution: &Arc<Execution>) -> Entered {
        Entered(CURRENT.replace(Current::Of(Arc::clone(execution))))
    }

    /// Looks at the execution whose function runs on this thread, if one does; `looks` neither calls the language nor ends anything.
    pub fn with_execution<R>(looks: impl FnOnce(Option<&Arc<Execution>>) -> R) -> R {
        CURRENT.with_borrow(|current| looks(current.execution()))
    }

    /// Whose rights code has in this scope, or without one: that of a thread that code made, or that has left its session. `None`
    /// for all.
    pub fn actor_of(scope: Option<&Self>) -> Option<Arc<Actor>> {
        match scope {
            Some(scope) => scope.actor.clone(),
            None => CURRENT.with_borrow(|current| match current {
                Current::Left(actor) => Some(Arc::clone(actor)),
                _ => rights::are_owners().then(|| Actor::unknown("a thread without a session")),
            }),
        }
    }

    /// Notes something about the script that runs on this thread, if one does.
    pub fn note_of_script(note: impl FnOnce(&mut Prepared)) {
        let script = CURRENT.with_borrow(|current| current.scope().and_then(|scope| scope.script.clone()));
        if let Some(script) = script {
            note(&mut script.lock());
        }
    }

    /// Makes another one the scope of this thread, for as long as the present one would be.
    pub fn replace_current(scope: Option<Self>) {
        let present = scope.map_or(Current::Nothing, |scope| Current::In(Box::new(scope)));
        let gone = CURRENT.replace(present);
        // Who leaves a session is not free of its user.
        let actor = match gone {
            Current::In(gone) => gone.actor,
            Current::Of(gone) => gone.actor.clone(),
            Current::Left(actor) => Some(actor),
            Current::Nothing => None,
        };
        CURRENT.with_borrow_mut(|current| {
            if let (Current::Nothing, Some(actor)) = (&*current, actor) {
                *current = Current::Left(actor);
            }
        });
    }

    /// The scope of this thread; `None` on threads that user code made.
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(|current| match current {
            Current::Of(execution) => Some(Self::of_execution(execution)),
            other => other.scope().cloned(),
        })
    }

    /// True if the execution whose callback runs on this thread may go to the background.
    pub fn may_wait() -> bool {
        let may_wait = CURRENT.with_borrow(|current| current.execution().map(|execution| execution.may_wait));
        may_wait.is_some_and(MayWait::is_true)
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
pub struct Entered(Current);

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        let ended = CURRENT.replace(std::mem::replace(&mut self.0, Current::Nothing));
        // Mostly this kind.
        if let Current::Of(execution) = ended {
            drop(execution);
        } else {
            end(ended);
        }
    }
}

#[inline(never)]
fn end(ended: Current) {
    drop(ended);
}
