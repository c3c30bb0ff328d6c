//! `run`: what becomes of the steps of a builder at once; registering.rs has what stays. Contract:
//! docs/contract/readers-and-events.md chapters 1 to 7, docs/contract/python-api.md 3.6 to 3.8.

use std::sync::Arc;

use pyo3::{
    exceptions::PyTypeError,
    prelude::*,
    types::{PyDict, PyList},
};
use serde_bytes::ByteBuf;

use super::{
    arguments::{Given, MODE_TYPE, string, unknown_mode},
    attach::{ObjectRef, attach, in_engine},
    builder::Builder,
    callback::{Callback, Code},
    convert::record_object,
    coroutine::loop_module,
    current, errors,
    keywords::names_of,
    runtime,
};
use crate::{
    engine::{
        id::{STANDALONE_SHARD, ShardId},
        language::{Failure, Function},
        plan::{Plan, Step},
        record::Record,
        registration::Mode,
        run_message::{Functions, LaunchPayload, SessionImage},
        scope::Scope,
        session::Session,
        source::{Once, Source},
        start::Start,
    },
    error::Error,
    mutex::Mutex,
    readers::{Reader, generator::Generator, keys_scan::Content, source::SourceImage},
    server::api,
};

const PATTERN_TYPE: &str = "regex argument must be a string";

/// The steps that `GearsBuilder` adds at the end.
#[derive(Clone, Copy, Default)]
pub struct Implicit {
    pub convert: bool,
    pub collect: bool,
}

/// The steps as they are now, with the implicit ones; later steps change nothing.
pub(super) fn plan(py: Python<'_>, builder: &Builder, implicit: Implicit) -> (Plan, Vec<Arc<Callback>>) {
    let (mut steps, functions) = {
        let draft = builder.draft.lock();
        let functions: Vec<Code> = draft.functions.iter().map(|code| code.clone_ref(py)).collect();
        (draft.steps.clone(), functions)
    };
    if implicit.convert {
        steps.push(Step::Text);
    }
    if implicit.collect {
        steps.push(Step::Collect);
    }
    let callbacks: Vec<_> = functions
        .into_iter()
        .map(|code| Arc::new(Callback::new(py, code)))
        .collect();
    let functions = callbacks
        .iter()
        .map(|callback| Arc::clone(callback) as Arc<dyn Function>)
        .collect();
    (Plan { steps, functions }, callbacks)
}

/// Starts an execution over the records of the reader; at script level, when the script has ended well.
pub fn start<'py>(
    py: Python<'py>,
    builder: &Builder,
    argument: Option<Bound<'py, PyAny>>,
    kwargs: Option<&Bound<'py, PyDict>>,
    implicit: Implicit,
) -> PyResult<Bound<'py, PyAny>> {
    let engine = &runtime()?.engine;
    let scope = scope("Can only run execution on registered gears thread")?;
    if scope
        .script
        .as_ref()
        .is_some_and(|script| script.lock().run.is_some())
    {
        return Err(Error::SecondRun.into());
    }
    let (plan, callbacks) = plan(py, builder, implicit);
    let wanted = source(py, builder.reader, &plan, argument, kwargs)?;
    let payload = if wanted.mode == Mode::Async && engine.is_distributed(&plan, true) {
        Some(payload(&scope.session, &plan, &callbacks, &wanted)?)
    } else {
        None
    };
    let start = Start::of_run(
        Arc::new(plan),
        Arc::clone(&scope.session),
        wanted.open(engine.registry.shard()),
    )
    .acting_as(scope.actor.clone())
    .distributed(payload);
    let event_loop = loop_module(py)?;
    let future = event_loop.call_method0("createFuture")?;
    if let Some(script) = &scope.script {
        script.lock().set_run(start)?;
        // Its results are the client's, and nobody can await them.
        future.call_method0("cancel")?;
        return Ok(future);
    }
    let awaited = Mutex::new(Some(ObjectRef::new(future.clone().unbind())));
    let start = start.collected(Arc::new(move |results: Vec<Record>, errors: &[Failure]| {
        let awaited = awaited.lock().take();
        attach(|py| {
            let Some(awaited) = awaited else { return };
            if let Err(error) = set_results(py, &awaited, results, errors) {
                api::log_warning(&format!("the results of a run were lost: {error}"));
            }
        });
        Vec::new()
    }));
    in_engine(|| drop(engine.submit(start, None)));
    Ok(future)
}

/// Gives whoever awaits a run `[results, errors]`.
fn set_results(py: Python<'_>, future: &ObjectRef, results: Vec<Record>, errors: &[Failure]) -> PyResult<()> {
    let results = results.into_iter().map(|record| record_object(py, record));
    let results = PyList::new(py, results.collect::<PyResult<Vec<_>>>()?)?;
    let errors = PyList::new(py, errors.iter().map(Failure::text))?;
    let both = PyList::new(py, [results, errors])?;
    loop_module(py)?
        .call_method1("setFutureResults", (future.bind(py), both))
        .map(drop)
}

/// What `run` is to read, and where.
struct Wanted {
    mode: Mode,
    /// Without the user's function, if there is one.
    image: SourceImage,
    function: Option<Arc<Callback>>,
}

impl Wanted {
    /// The records on this shard, with the function that the script has.
    fn open(self, me: ShardId) -> Box<dyn Source> {
        match (self.image, self.function) {
            (SourceImage::ShardId, _) if me.is_standalone() => {
                Box::new(Once(Some(Record::text(STANDALONE_SHARD))))
            }
            (SourceImage::Generator(_), Some(function)) => Box::new(Generator::Waiting(function)),
            (image, function) => {
                let generator = function.map(|function| function as Arc<dyn Function>);
                let load = |_: &[u8]| generator.clone().ok_or_else(|| "".into());
                // Only a function that is missing could fail, and there is one where it is asked for.
                image.open(me, &load).unwrap_or_else(|_| Box::new(Once(None)))
            }
        }
    }
}

/// What other shards need for a run: its functions as they are now.
fn payload(
    session: &Arc<Session>,
    plan: &Plan,
    callbacks: &[Arc<Callback>],
    wanted: &Wanted,
) -> PyResult<LaunchPayload> {
    let image = |callback: &Arc<Callback>| {
        let image = callback.image(session).map(ByteBuf::from);
        image.map_err(errors::gears_error)
    };
    let mut source = wanted.image.clone();
    if let (Some(function), SourceImage::Generator(place)) = (&wanted.function, &mut source) {
        *place = image(function)?;
    }
    if let (Some(function), SourceImage::Names { generator, .. }) = (&wanted.function, &mut source) {
        *generator = Some(image(function)?);
    }
    Ok(LaunchPayload {
        source: Some(source.to_bytes()),
        functions: Functions::Sent {
            session: SessionImage::of(session),
            steps: plan.steps.clone(),
            images: callbacks.iter().map(image).collect::<PyResult<_>>()?,
        },
    })
}

/// The records that `run` is about. The reader's first argument is checked first, then `mode`, then the others.
fn source(
    py: Python<'_>,
    reader: Reader,
    plan: &Plan,
    argument: Option<Bound<'_, PyAny>>,
    kwargs: Option<&Bound<'_, PyDict>>,
) -> PyResult<Wanted> {
    let looked_at = plan.looks_at_records();
    let text = |argument: Option<Bound<'_, PyAny>>| match argument {
        Some(text) => string(&text, PATTERN_TYPE),
        None => Ok("*".to_owned()),
    };
    let plain = |mode, image| Wanted {
        mode,
        image,
        function: None,
    };
    match reader {
        Reader::Keys => {
            let given = Given::new("run", kwargs, &["mode", "noScan", "readValue"])?;
            let pattern = text(argument)?.into_bytes();
            let mode = run_mode(&given)?;
            let exact = given.boolean("noScan", false, "exactMatch value is not boolean")?;
            let read_value = given.boolean("readValue", true, "readValue value is not boolean")?;
            let content = match (looked_at, read_value) {
                (false, _) => Content::Unseen,
                (true, false) => Content::Key,
                (true, true) => Content::KeyAndValue,
            };
            let image = SourceImage::Keys {
                pattern: ByteBuf::from(pattern),
                exact,
                content,
            };
            Ok(plain(mode, image))
        }
        Reader::KeysOnly => names(py, argument, kwargs, looked_at),
        Reader::Stream => {
            let given = Given::new("run", kwargs, &["mode", "fromId"])?;
            let key = text(argument)?.into_bytes();
            let mode = run_mode(&given)?;
            let after = given.get("fromId")?.map_or(Ok("0-0".to_owned()), |id| {
                string(&id, "fromId argument must be a string")
            })?;
            let image = SourceImage::Stream {
                key: ByteBuf::from(key),
                after: ByteBuf::from(after.into_bytes()),
            };
            Ok(plain(mode, image))
        }
        Reader::Python => {
            let given = Given::new("run", kwargs, &["mode"])?;
            let function = argument
                .filter(PyAnyMethods::is_callable)
                .ok_or_else(|| errors::gears_error("pyreader argument must be a function"))?;
            let mode = run_mode(&given)?;
            Ok(Wanted {
                mode,
                image: SourceImage::Generator(ByteBuf::new()),
                function: Some(Arc::new(Callback::new(py, Code::new(function)))),
            })
        }
        Reader::ShardsId => {
            let mode = run_mode(&Given::new("run", kwargs, &["mode"])?)?;
            Ok(plain(mode, SourceImage::ShardId))
        }
        Reader::Command => Err(Error::NoBatchSupport.into()),
    }
}

/// `mode`: all shards, or this one alone.
fn run_mode(given: &Given<'_, '_>) -> PyResult<Mode> {
    let Some(given) = given.get("mode")? else {
        return Ok(Mode::Async);
    };
    let name = string(&given, MODE_TYPE)?;
    let mode = Mode::by_name(&name).filter(|&mode| mode != Mode::Sync);
    mode.ok_or_else(|| unknown_mode(&name, "async_local or async"))
}

/// The arguments of the KeysOnlyReader (docs/contract/readers-and-events.md chapter 3), the only ones whose misspelling
/// 1.2 refuses.
fn names(
    py: Python<'_>,
    argument: Option<Bound<'_, PyAny>>,
    kwargs: Option<&Bound<'_, PyDict>>,
    looked_at: bool,
) -> PyResult<Wanted> {
    const KNOWN: [&str; 5] = ["pattern", "count", "noScan", "patternGenerator", "mode"];
    for name in kwargs.iter().flat_map(|kwargs| names_of(kwargs)) {
        if !KNOWN.contains(&name.as_str()) {
            return Err(PyTypeError::new_err(format!(
                "createKeysOnlyReader() got an unexpected keyword argument '{name}'"
            )));
        }
    }
    let given = Given::new("run", kwargs, &KNOWN)?;
    let pattern = match given.get("pattern")?.or(argument) {
        Some(pattern) => string(pattern.str()?.as_any(), "pattern argument")?,
        None => "*".to_owned(),
    };
    let mode = run_mode(&given)?;
    let generator = given.function("patternGenerator", "patternGenerator argument must be a function")?;
    let count = given.get("count")?.map_or(Ok("1000".to_owned()), |count| {
        PyResult::Ok(count.str()?.to_string())
    })?;
    let generator = generator.map(|code| Arc::new(Callback::new(py, code)));
    let image = SourceImage::Names {
        pattern: ByteBuf::from(pattern.into_bytes()),
        exact: given
            .get("noScan")?
            .map_or(Ok(false), |exact| exact.is_truthy())?,
        count,
        generator: generator.as_ref().map(|_| ByteBuf::new()),
        looked_at,
    };
    Ok(Wanted {
        mode,
        image,
        function: generator,
    })
}

/// The scope of the script or function that runs here; `otherwise` tells what it cannot do without one.
///
/// # Errors
/// `gears.error`: there is none, or it is a script of EVAL or FUNCTION LOAD.
pub(super) fn scope(otherwise: &str) -> PyResult<Scope> {
    match current::scope() {
        Some(scope) if scope.server_script.is_some() => Err(errors::gears_error(NOT_IN_SCRIPTS)),
        scope => scope.ok_or_else(|| errors::gears_error(otherwise)),
    }
}

const NOT_IN_SCRIPTS: &str = "scripts of EVAL and FUNCTION LOAD neither run nor register: use RG.PYEXECUTE";
