//! What makes an [`Execution`](super::execution::Execution): which plan runs over which records, and who gets the outcome.
//!
//! Each constructor says what is started; the methods behind it add what only some have. Only the engine looks inside.

use std::sync::Arc;

use super::{
    execution::{Collector, MayWait, Next, Outcome, Waiter},
    linked_command::ReplyHold,
    plan::Plan,
    registration::Registration,
    run_message::{LaunchPayload, SharedPlan},
    session::Session,
    source::Source,
};
use crate::server::{
    client::{BlockedClient, Meter},
    reply::Reply,
    rights::Actor,
};

/// An execution that is to begin.
pub struct Start {
    pub(super) plan: Arc<Plan>,
    pub(super) session: Arc<Session>,
    pub(super) registration: Option<Arc<Registration>>,
    /// Whose rights its functions have; `None` for all.
    pub(super) actor: Option<Arc<Actor>>,
    pub(super) db: i32,
    /// Forget it as soon as it is finished and its waiters are answered.
    pub(super) transient: bool,
    pub(super) source: Box<dyn Source>,
    /// Lets go the client that waits for this execution, when it ends.
    pub(super) link: Option<ReplyHold>,
    pub(super) waiter: Option<Waiter>,
    /// The waiter does not look at the results.
    pub(super) ignores_results: bool,
    /// Of the client that the waiter answers.
    pub(super) meter: Option<Meter>,
    pub(super) next: Option<Arc<dyn Next>>,
    pub(super) skips_errors: bool,
    pub(super) may_wait: MayWait,
    /// Gets the results in the place of those who look at the outcome.
    pub(super) collector: Option<Collector>,
    /// What other shards need to take part; `None` if the run is this shard's alone.
    pub(super) payload: Option<Box<LaunchPayload>>,
}

/// What is started.
impl Start {
    /// A run of a plan that no registration asked for: nobody can read its results but whoever waits for it.
    #[inline]
    pub fn of_run(plan: Arc<Plan>, session: Arc<Session>, source: Box<dyn Source>) -> Self {
        Self {
            plan,
            actor: session.actor.clone(),
            session,
            registration: None,
            db: 0,
            transient: true,
            source,
            link: None,
            waiter: None,
            ignores_results: false,
            meter: None,
            next: None,
            skips_errors: false,
            may_wait: MayWait::Yes,
            collector: None,
            payload: None,
        }
    }

    /// A run of a registration, for an event in database `db`; kept when it has ended.
    #[inline]
    pub fn of_registration(registration: &Arc<Registration>, db: i32, source: Box<dyn Source>) -> Self {
        let (plan, session) = (Arc::clone(&registration.plan), Arc::clone(&registration.session));
        Self {
            actor: registration.actor.clone(),
            registration: Some(Arc::clone(registration)),
            db,
            transient: false,
            ..Self::of_run(plan, session, source)
        }
    }

    /// A run of a registration whose function a client calls, by its name or in the place of a command: whoever called it gets
    /// the results. `next`: what `call_next` does.
    #[inline]
    pub fn of_call(
        registration: &Arc<Registration>,
        db: i32,
        source: Box<dyn Source>,
        next: Arc<dyn Next>,
    ) -> Self {
        Self {
            next: Some(next),
            ..Self::of_registration(registration, db, source).transient()
        }
    }

    /// This shard's part of a run that another shard has begun.
    pub(super) fn of_part(
        plan: Arc<Plan>,
        session: Arc<Session>,
        source: Box<dyn Source>,
        actor: Option<Arc<Actor>>,
        shared: &SharedPlan,
    ) -> Self {
        Self {
            actor,
            db: shared.db,
            transient: shared.transient,
            skips_errors: shared.skips_errors,
            ..Self::of_run(plan, session, source)
        }
    }
}

/// What some have besides. Inline, since one is large and is not to be moved for each of them.
impl Start {
    /// Its functions have these rights, in the place of those of its session.
    #[must_use]
    #[inline]
    pub fn acting_as(mut self, actor: Option<Arc<Actor>>) -> Self {
        self.actor = actor;
        self
    }

    /// It is forgotten when it has ended and its waiter has been told.
    #[must_use]
    #[inline]
    pub fn transient(mut self) -> Self {
        self.transient = true;
        self
    }

    /// It is kept when it has ended, for those who ask for its results.
    #[must_use]
    #[inline]
    pub fn kept(mut self) -> Self {
        self.transient = false;
        self
    }

    /// It belongs to a linked command, whose client waits until it has ended.
    #[must_use]
    #[inline]
    pub fn linked(mut self, link: Option<ReplyHold>) -> Self {
        self.link = link;
        self
    }

    /// `waiter` gets the outcome.
    #[must_use]
    #[inline]
    pub fn told(mut self, waiter: impl FnOnce(&Outcome) + Send + 'static) -> Self {
        self.waiter = Some(Box::new(waiter));
        self
    }

    /// The same for one who does not look at the results.
    #[must_use]
    #[inline]
    pub fn told_of_end(mut self, waiter: impl FnOnce(&Outcome) + Send + 'static) -> Self {
        self.ignores_results = true;
        self.told(waiter)
    }

    /// `client` waits for it; `reply` makes its reply of the outcome. What the execution works counts as the client's.
    #[must_use]
    #[inline]
    pub fn answering(
        mut self,
        client: BlockedClient,
        reply: impl FnOnce(&Outcome) -> Reply + Send + 'static,
    ) -> Self {
        self.meter = Some(client.meter());
        self.told(move |outcome| client.answer(reply(outcome)))
    }

    /// The reader goes on after an error, if `skips`.
    #[must_use]
    #[inline]
    pub fn skipping_errors(mut self, skips: bool) -> Self {
        self.skips_errors = skips;
        self
    }

    /// Whether its functions may return something to wait for.
    #[must_use]
    #[inline]
    pub fn waiting(mut self, may_wait: impl Into<MayWait>) -> Self {
        self.may_wait = may_wait.into();
        self
    }

    /// `collector` gets the results as objects.
    #[must_use]
    #[inline]
    pub fn collected(mut self, collector: Collector) -> Self {
        self.collector = Some(collector);
        self
    }

    /// Other shards take part, if there is something that they need for that.
    #[must_use]
    #[inline]
    pub fn distributed(mut self, payload: Option<LaunchPayload>) -> Self {
        self.payload = payload.map(Box::new);
        self
    }
}
