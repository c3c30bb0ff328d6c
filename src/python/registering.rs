//! `register`: what stays of the steps of a builder, and what `read_through` and `write_behind` make of theirs. Contract:
//! docs/contract/readers-and-events.md chapters 4 to 7, docs/contract/python-api.md 3.7.

use std::sync::Arc;

use pyo3::{prelude::*, types::PyDict};
use serde_bytes::ByteBuf;

use super::{
    Runtime,
    arguments::{Given, Place, command, conditions, limits, mode_by_name, stream_options},
    attach::in_engine,
    builder::Builder,
    callback::{Callback, Code},
    errors,
    launch::{Implicit, plan, scope},
    owners::{check_owner, owner_of},
    runtime,
};
use crate::{
    engine::{
        language::{self, Function},
        plan::Plan,
        registration::{Images, Life, Limits, Mode, Peers, Registration, Trigger},
        scope::Scope,
    },
    error::Error,
    readers::Reader,
    server::api,
    stats::RunStats,
};

/// Makes a registration; at script level it takes effect when the script has ended well.
pub fn register(
    py: Python<'_>,
    builder: &Builder,
    kwargs: Option<&Bound<'_, PyDict>>,
    implicit: Implicit,
) -> PyResult<String> {
    let runtime = runtime()?;
    let readers = &runtime.readers;
    let scope = registering_scope()?;
    if !matches!(builder.reader, Reader::Keys | Reader::Stream | Reader::Command) {
        return Err(Error::NoEventSupport.into());
    }
    let given = Given::new("register", kwargs, &KNOWN_TO_REGISTER)?;
    let mode = given
        .get("mode")?
        .map_or(Ok(Mode::Async), |mode| mode_by_name(&mode))?;
    let limits = limits(&given)?;
    let user = given.text("user", "user argument must be a string")?;
    let given_now = given.function("onRegistered", "OnRegistered argument must be a function")?;
    let on_registered = on_registered(py, builder, given_now);
    let on_registered = on_registered.map(|code| Arc::new(Callback::new(py, code)));
    let (trigger, in_order) = match builder.reader {
        Reader::Command => {
            let wanted = command(&given)?;
            let in_order = wanted.in_order;
            let trigger = match wanted.place {
                Place::Named(name) => readers.commands.trigger(name, in_order),
                Place::Hook { command, prefix } => readers.commands.hook(command, prefix, mode, in_order),
            };
            (trigger, in_order)
        }
        Reader::Stream => (
            readers.streams.trigger(stream_options(&given, mode)?, None),
            false,
        ),
        _ => {
            let conditions = conditions(&given)?;
            let in_order = given.boolean("inorder", false, "inorder argument must be boolean")?;
            (readers.keys.trigger(conditions), in_order)
        }
    };
    let (plan, callbacks) = plan(py, builder, implicit);
    let new = NewRegistration {
        desc: builder.desc.clone(),
        mode,
        in_order,
        plan,
        callbacks,
        trigger,
        on_registered,
        doubts: given.doubt.into_iter().collect(),
        user,
        limits,
    };
    enlist(runtime, &scope, new)
}

/// What is called when a registration is in force: what it has given, else what the builder's registrations before it have.
fn on_registered(py: Python<'_>, builder: &Builder, given: Option<Code>) -> Option<Code> {
    let mut draft = builder.draft.lock();
    let Some(given) = given else {
        return draft.on_registered.as_ref().map(|code| code.clone_ref(py));
    };
    let before = draft.on_registered.replace(given.clone_ref(py));
    drop(draft);
    // Its end may run code of users.
    drop(before);
    Some(given)
}

/// What a registration is made of.
pub struct NewRegistration {
    pub desc: Option<String>,
    pub mode: Mode,
    pub in_order: bool,
    pub plan: Plan,
    /// The functions of the plan.
    pub callbacks: Vec<Arc<Callback>>,
    pub trigger: Box<dyn Trigger>,
    pub on_registered: Option<Arc<Callback>>,
    /// What was said of its arguments.
    pub doubts: Vec<String>,
    /// The user that its functions act as.
    pub user: Option<String>,
    pub limits: Limits,
}

/// The scope of a script or a function that may register something.
///
/// # Errors
/// `gears.error`: none, or its session was replaced.
pub fn registering_scope() -> PyResult<Scope> {
    let scope = scope("Can only register execution on registered gears thread")?;
    if scope.session.is_replaced() {
        return Err(Error::SessionReplaced.into());
    }
    Ok(scope)
}

/// Checks the trigger under the server's lock, makes the images, and adds the registration to the script; inside a function it is
/// in force when this returns. Called attached. Its id.
///
/// # Errors
/// `gears.error`: the trigger cannot be started, or a function cannot travel.
pub fn enlist(runtime: &Runtime, scope: &Scope, new: NewRegistration) -> PyResult<String> {
    let engine = &runtime.engine;
    let (replaced, prepared) = match &scope.script {
        Some(script) => {
            let script = script.lock();
            (script.replaces.clone(), script.registrations.clone())
        }
        None => (None, Vec::new()),
    };
    let peers = Peers {
        replaced: replaced.as_deref(),
        prepared: &prepared,
    };
    let owner = owner_of(scope, new.user);
    in_engine(|| {
        language::with_lock(engine.language.as_ref(), |lock| {
            check_owner(lock, scope, &owner)?;
            new.trigger.check(lock, peers)
        })
    })?;
    for doubt in new.trigger.doubts() {
        api::log_warning(&format!("session {}: {doubt}", scope.session.id));
    }
    // It must be able to travel: to a file, a replica, another shard.
    let image = |callback: &Arc<Callback>| {
        let image = callback.image(&scope.session).map(ByteBuf::from);
        image.map_err(errors::gears_error)
    };
    let images = Images {
        functions: new.callbacks.iter().map(image).collect::<PyResult<_>>()?,
        on_registered: new.on_registered.as_ref().map(image).transpose()?,
    };
    let id = engine.registry.next_registration_id();
    let registration = Arc::new(Registration {
        id,
        desc: new.desc,
        mode: new.mode,
        in_order: new.in_order,
        plan: Arc::new(new.plan),
        session: Arc::clone(&scope.session),
        actor: Registration::actor_of(&owner, id),
        owner,
        limits: new.limits,
        trigger: new.trigger,
        on_registered: new.on_registered.map(|function| function as Arc<dyn Function>),
        images,
        disabled: None,
        doubts: new.doubts,
        stats: RunStats::default(),
        life: Life::default(),
    });
    let id = id.to_string();
    match &scope.script {
        Some(script) => script.lock().registrations.push(registration),
        None => register_now(runtime, &registration)?,
    }
    Ok(id)
}

/// Inside a function a registration takes effect at once.
fn register_now(runtime: &Runtime, registration: &Arc<Registration>) -> PyResult<()> {
    let registered = in_engine(|| {
        language::with_lock(runtime.engine.language.as_ref(), |lock| {
            runtime.registrar.register_here(lock, registration)
        })
    });
    Ok(registered?)
}

const KNOWN_TO_REGISTER: [&str; 22] = [
    "timeout",
    "max_concurrent",
    "max_memory",
    "user",
    "mode",
    "onRegistered",
    "prefix",
    "regex",
    "eventTypes",
    "keyTypes",
    "readValue",
    "commands",
    "inorder",
    "trigger",
    "keyprefix",
    "hook",
    "batch",
    "duration",
    "onFailedPolicy",
    "onFailedRetryInterval",
    "trimStream",
    "coalesce",
];
