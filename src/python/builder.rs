//! `gearsCtx`: collects steps and makes executions and registrations of them. Contract: `readers-and-events.md`
//! chapters 1 and 2, `python-api.md` chapter 3. `GearsBuilder` (python/builder.py) is a thin class on top.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use super::{
    arguments::{Given, arguments, conditions, count, mode_by_name, string},
    callback::Callback,
    errors, runtime,
};
use crate::{
    engine::{
        Engine,
        execution::Start,
        language::{self, Function},
        plan::{FunctionIndex, Plan, Step},
        registration::{Life, Mode, Registration},
        scope::Scope,
    },
    error::Error,
    readers::keys_scan::{KeysScan, Scan},
    stats::RunStats,
};

/// A function under construction.
#[pyclass(frozen, subclass, name = "PyFlatExecution", module = "redisgears")]
pub struct Builder {
    desc: Option<String>,
    steps: Mutex<Steps>,
}

/// The steps so far, with the callables of the functions they call.
#[derive(Default)]
struct Steps {
    plan: Plan,
    callbacks: Vec<Arc<Callback>>,
}

#[pymethods]
impl Builder {
    /// # Errors
    /// `gears.error`: a thread without a session, a wrong argument, an unknown reader.
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let [reader, desc] = arguments(
            ["reader", "desc"],
            args,
            kwargs,
            "wrong number of args to gearsCtx",
        )?;
        if Scope::current().is_none() {
            return Err(errors::gears_error(
                "Can not create a gearsCtx on a python created thread",
            ));
        }
        let reader = match reader {
            None => "KeysReader".to_owned(),
            Some(reader) => string(&reader, "reader argument must be a string")?,
        };
        let desc = match desc {
            Some(desc) if !desc.is_none() => Some(string(&desc, "desc argument must be a string")?),
            _ => None,
        };
        if reader != "KeysReader" {
            return Err(errors::gears_error("The given reader does not exists"));
        }
        // Each builder uses up a registration number (`commands.md` chapter 2).
        runtime()?.engine.registry.next_registration_id();
        Ok(Self {
            desc,
            steps: Mutex::default(),
        })
    }

    /// Each record becomes what `f(record)` returns.
    #[pyo3(signature = (*args, **kwargs))]
    fn map<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        add_call(slf, "map", Step::Map, args, kwargs)
    }

    /// As `map`; a list that `f` returns is replaced by its elements, in their order.
    #[pyo3(signature = (*args, **kwargs))]
    fn flatmap<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        add_call(slf, "flatmap", Step::FlatMap, args, kwargs)
    }

    /// Records for which `f(record)` is truthy pass.
    #[pyo3(signature = (*args, **kwargs))]
    fn filter<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        add_call(slf, "filter", Step::Filter, args, kwargs)
    }

    /// Calls `f(record)` and passes the record on.
    #[pyo3(signature = (*args, **kwargs))]
    fn foreach<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        add_call(slf, "foreach", Step::ForEach, args, kwargs)
    }

    /// All records become one: the last value of `f(accumulator, record)`, `None` at first.
    #[pyo3(signature = (*args, **kwargs))]
    fn accumulate<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        add_call(slf, "accumulate", Step::Accumulate, args, kwargs)
    }

    /// Skips `start` records and passes the next `length`.
    #[pyo3(signature = (*args, **kwargs))]
    fn limit<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        const WRONG_COUNT: &str = "wrong number of args to limit function";
        let [length, start] = arguments(["length", "start"], args, kwargs, WRONG_COUNT)?;
        let length = count(&length.ok_or_else(|| errors::gears_error(WRONG_COUNT))?)?;
        let start = start.map_or(Ok(0), |start| count(&start))?;
        slf.get().steps.lock().plan.push(Step::Limit { start, length });
        Ok(slf)
    }

    /// Moves all records to the initiating shard.
    #[pyo3(signature = (*args))]
    fn collect<'py>(slf: Bound<'py, Self>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, Self>> {
        if !args.is_empty() {
            return Err(errors::gears_error("wrong number of args to collect function"));
        }
        slf.get().steps.lock().plan.push(Step::Collect);
        Ok(slf)
    }

    /// All records become their number.
    fn count(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        let mut steps = slf.get().steps.lock();
        for step in [Step::Count, Step::Collect, Step::Sum] {
            steps.plan.push(step);
        }
        drop(steps);
        slf
    }

    /// Runs the steps over the records of the reader.
    ///
    /// # Errors
    /// `gears.error` that names the argument.
    #[pyo3(signature = (*args, **kwargs))]
    fn run(&self, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
        self.start(args, kwargs, false, false)
    }

    /// Runs the steps on each event of the reader. Returns the registration's id.
    ///
    /// # Errors
    /// `gears.error` that names the argument.
    #[pyo3(signature = (**kwargs))]
    fn register(&self, py: Python<'_>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<String> {
        self.listen(py, kwargs, false, false)
    }

    /// `run` with the implicit steps of `GearsBuilder`.
    #[pyo3(signature = (arg, convert, collect, kwargs))]
    fn _run(
        &self,
        arg: Bound<'_, PyAny>,
        convert: bool,
        collect: bool,
        kwargs: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let args = PyTuple::new(arg.py(), [arg])?;
        self.start(&args, Some(kwargs), convert, collect)
    }

    /// `register` with the implicit steps of `GearsBuilder`.
    #[pyo3(signature = (convert, collect, kwargs))]
    fn _register(
        &self,
        py: Python<'_>,
        convert: bool,
        collect: bool,
        kwargs: &Bound<'_, PyDict>,
    ) -> PyResult<String> {
        self.listen(py, Some(kwargs), convert, collect)
    }
}

impl Builder {
    /// The steps as they are now, with the implicit ones; later steps change nothing.
    fn snapshot(&self, convert: bool, collect: bool) -> Plan {
        let mut plan = self.steps.lock().plan.clone();
        if convert {
            plan.push(Step::Text);
        }
        if collect {
            plan.push(Step::Collect);
        }
        plan
    }

    fn start(
        &self,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        convert: bool,
        collect: bool,
    ) -> PyResult<()> {
        let engine = &runtime()?.engine;
        let scope = scope("Can only run execution on registered gears thread")?;
        if scope
            .script
            .as_ref()
            .is_some_and(|script| script.lock().run.is_some())
        {
            return Err(Error::SecondRun.into());
        }
        let given = Given::new("run", kwargs, &["mode", "noScan", "readValue"])?;
        let pattern = match args.get_item(0) {
            Ok(pattern) => string(&pattern, "regex argument must be a string")?,
            Err(_) => "*".to_owned(),
        };
        if let Some(mode) = given.get("mode")? {
            if mode_by_name(&mode)? == Mode::Sync {
                return Err(errors::gears_error("unknown execution mode"));
            }
        }
        let exact = given.boolean("noScan", false, "exactMatch value is not boolean")?;
        let read_value = given.boolean("readValue", true, "readValue value is not boolean")?;
        let plan = self.snapshot(convert, collect);
        let scan = Scan {
            pattern: pattern.into_bytes(),
            exact,
            read_value,
            looked_at: plan.looks_at_records(),
        };
        let start = Start {
            plan: Arc::new(plan),
            session: Arc::clone(&scope.session),
            registration: None,
            db: 0,
            transient: true,
            source: Box::new(KeysScan::new(scan)),
            link: None,
            waiter: None,
        };
        match &scope.script {
            Some(script) => script.lock().set_run(start)?,
            None => {
                engine.submit(start, None);
            }
        }
        Ok(())
    }

    fn listen(
        &self,
        py: Python<'_>,
        kwargs: Option<&Bound<'_, PyDict>>,
        convert: bool,
        collect: bool,
    ) -> PyResult<String> {
        let runtime = runtime()?;
        let engine = &runtime.engine;
        let scope = scope("Can only register execution on registered gears thread")?;
        let given = Given::new("register", kwargs, &KNOWN_TO_REGISTER)?;
        let mode = given
            .get("mode")?
            .map_or(Ok(Mode::Async), |mode| mode_by_name(&mode))?;
        let on_registered = given.function("onRegistered", "OnRegistered argument must be a function")?;
        let conditions = conditions(&given)?;
        let in_order = given.boolean("inorder", false, "inorder argument must be boolean")?;
        let trigger = runtime.keys.trigger(conditions);
        language::with_lock(engine.language.as_ref(), |lock| trigger.check(lock))?;
        let callbacks = self.steps.lock().callbacks.clone();
        for callback in callbacks.iter().chain(&on_registered) {
            check_serializable(py, callback)?;
        }
        let registration = Arc::new(Registration {
            id: engine.registry.next_registration_id(),
            desc: self.desc.clone(),
            mode,
            in_order,
            plan: Arc::new(self.snapshot(convert, collect)),
            session: Arc::clone(&scope.session),
            trigger,
            on_registered: on_registered.map(|function| function as Arc<dyn Function>),
            stats: RunStats::default(),
            life: Life::default(),
        });
        let id = registration.id.to_string();
        match &scope.script {
            Some(script) => script.lock().registrations.push(registration),
            None => register_now(engine, &registration)?,
        }
        Ok(id)
    }
}

/// Inside a function a registration takes effect at once.
fn register_now(engine: &Arc<Engine>, registration: &Arc<Registration>) -> PyResult<()> {
    let registered = language::with_lock(engine.language.as_ref(), |lock| {
        engine.register(lock, registration)
    });
    Ok(registered?)
}

const KNOWN_TO_REGISTER: [&str; 9] = [
    "mode",
    "onRegistered",
    "prefix",
    "regex",
    "eventTypes",
    "keyTypes",
    "readValue",
    "commands",
    "inorder",
];

fn scope(otherwise: &str) -> PyResult<Arc<Scope>> {
    Scope::current().ok_or_else(|| errors::gears_error(otherwise))
}

fn add_call<'py>(
    slf: Bound<'py, Builder>,
    operation: &str,
    step: fn(FunctionIndex) -> Step,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, Builder>> {
    let wrong_count = format!("wrong number of args to {operation} function");
    let [function] = arguments(["f"], args, kwargs, &wrong_count)?;
    let function = function.ok_or_else(|| errors::gears_error(wrong_count))?;
    if !function.is_callable() {
        return Err(errors::gears_error(format!(
            "{operation} argument must be a function"
        )));
    }
    let callback = Arc::new(Callback::new(&function));
    let mut steps = slf.get().steps.lock();
    steps
        .plan
        .push_call(step, Arc::clone(&callback) as Arc<dyn Function>);
    steps.callbacks.push(callback);
    drop(steps);
    Ok(slf)
}

/// A registration must be able to travel: to a file, a replica, another shard.
fn check_serializable(py: Python<'_>, callback: &Callback) -> PyResult<()> {
    let dumps = PyModule::import(py, "cloudpickle")?.getattr("dumps")?;
    dumps.call1((callback.callable(py),)).map(drop).map_err(|error| {
        errors::gears_error(format!(
            "Error occured when serialized a python callback, callback={} error={}",
            callback.name(),
            errors::text(py, &error)
        ))
    })
}
