//! `gearsCtx`: collects the steps of a function. Contract: docs/contract/python-api.md chapter 3. What becomes of them
//! is in `launch.rs`; `GearsBuilder` (python/builder.py) is a thin class on top.

use crate::mutex::Mutex;
use pyo3::{
    PyTraverseError, PyVisit,
    prelude::*,
    types::{PyDict, PyTuple},
};

use super::{
    arguments::{arguments, count, string},
    attach::ObjectRef,
    callback::Code,
    current, errors, launch, registering, runtime,
};
use crate::{
    engine::{
        plan::{FunctionIndex, Step},
        scope::Scope,
    },
    readers::Reader,
};

/// A function under construction.
#[pyclass(frozen, subclass, name = "PyFlatExecution", module = "redisgears")]
pub struct Builder {
    pub(super) reader: Reader,
    pub(super) desc: Option<String>,
    /// Never locked while Python runs.
    pub(super) draft: Mutex<Draft>,
}

/// The steps so far, with the functions that they call.
#[derive(Default)]
pub struct Draft {
    pub steps: Vec<Step>,
    /// The builder's own references: a script that keeps it in a global variable makes a circle, which Python's
    /// collector must be able to see.
    pub functions: Vec<Code>,
    /// The `onRegistered` that a registration has given; those that give none have it, too.
    pub on_registered: Option<Code>,
}

impl Draft {
    fn add(&mut self, code: Code) -> FunctionIndex {
        self.functions.push(code);
        self.functions.len() - 1
    }
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
        if current::scope().is_none() {
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
        let reader = Reader::by_name(&reader)
            .ok_or_else(|| errors::gears_error("The given reader does not exists"))?;
        Scope::note_of_script(|script| script.has_builder = true);
        // Each builder uses up a registration number (docs/contract/commands.md chapter 2).
        runtime()?.engine.registry.next_registration_id();
        Ok(Self {
            reader,
            desc,
            draft: Mutex::default(),
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

    /// Moves each record to the shard that owns the key `extractor(record)`.
    #[pyo3(signature = (*args, **kwargs))]
    fn repartition<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        const WRONG_COUNT: &str = "wrong number of args to repartition function";
        let [extractor] = required(arguments(["extractor"], args, kwargs, WRONG_COUNT)?, WRONG_COUNT)?;
        let extractor = code(extractor, "repartition argument must be a function")?;
        let mut draft = slf.get().draft.lock();
        let extractor = draft.add(extractor);
        draft.steps.push(Step::Repartition(extractor));
        drop(draft);
        Ok(slf)
    }

    /// The records of one key, `extractor(record)`, become one: `{'key': key, 'value': v}` with the last value of
    /// `reducer(key, accumulator, record)`, the accumulator `None` at first.
    #[pyo3(signature = (*args, **kwargs))]
    fn groupby<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        let group = |extractor, reducer| Step::GroupBy {
            extractor,
            reducer,
            local: false,
        };
        add_grouping(slf, "groupby", group, args, kwargs)
    }

    /// `groupby` of the records on each shard for itself.
    #[pyo3(signature = (*args, **kwargs))]
    fn localgroupby<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        let group = |extractor, reducer| Step::GroupBy {
            extractor,
            reducer,
            local: true,
        };
        add_grouping(slf, "groupby", group, args, kwargs)
    }

    /// `groupby` with `reducer(key, records)`, called once for each key when the input has ended.
    #[pyo3(signature = (*args, **kwargs))]
    fn batchgroupby<'py>(
        slf: Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, Self>> {
        let group = |extractor, reducer| Step::BatchGroupBy { extractor, reducer };
        add_grouping(slf, "batchgroupby", group, args, kwargs)
    }

    /// All records become one: `seqOp(accumulator, record)` on each shard, then `combOp(accumulator, partial)`. Both
    /// begin with a copy of `zero`.
    #[pyo3(signature = (zero, seqOp, combOp))]
    #[allow(non_snake_case)]
    fn aggregate<'py>(
        slf: Bound<'py, Self>,
        zero: Bound<'py, PyAny>,
        seqOp: Bound<'py, PyAny>,
        combOp: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        let first = seeded(seqOp, &zero, "aggregate seqOp argument must be a function")?;
        let second = seeded(combOp, &zero, "aggregate combOp argument must be a function")?;
        let mut draft = slf.get().draft.lock();
        let (first, second) = (draft.add(first), draft.add(second));
        let steps = [Step::Accumulate(first), Step::Collect, Step::Accumulate(second)];
        draft.steps.extend(steps);
        drop(draft);
        Ok(slf)
    }

    /// The records of each key become one, as `groupby` says it: `seqOp(key, accumulator, record)` on each shard, then
    /// `combOp(key, accumulator, partial)`. Both begin with a copy of `zero`.
    #[pyo3(signature = (extractor, zero, seqOp, combOp))]
    #[allow(non_snake_case)]
    fn aggregateby<'py>(
        slf: Bound<'py, Self>,
        extractor: Bound<'py, PyAny>,
        zero: Bound<'py, PyAny>,
        seqOp: Bound<'py, PyAny>,
        combOp: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        let extractor = code(extractor, "aggregateby extractor argument must be a function")?;
        let first = seeded(seqOp, &zero, "aggregateby seqOp argument must be a function")?;
        let second = seeded(combOp, &zero, "aggregateby combOp argument must be a function")?;
        let mut draft = slf.get().draft.lock();
        let group = Step::GroupBy {
            extractor: draft.add(extractor),
            reducer: draft.add(first),
            local: true,
        };
        let second = draft.add(second);
        draft.steps.extend([group, Step::MergeGroups(second)]);
        drop(draft);
        Ok(slf)
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
        Ok(add(slf, [Step::Limit { start, length }]))
    }

    /// Moves all records to the initiating shard.
    #[pyo3(signature = (*args))]
    fn collect<'py>(slf: Bound<'py, Self>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, Self>> {
        if !args.is_empty() {
            return Err(errors::gears_error("wrong number of args to collect function"));
        }
        Ok(add(slf, [Step::Collect]))
    }

    /// All records become their number.
    fn count(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        add(slf, [Step::Count, Step::Collect, Step::Sum])
    }

    /// The records of each key become `{'key': key, 'value': number}`; without an extractor the record is the key.
    #[pyo3(signature = (extractor=None))]
    fn countby<'py>(
        slf: Bound<'py, Self>,
        extractor: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, Self>> {
        let extractor = extractor
            .map(|extractor| code(extractor, "countby extractor argument must be a function"))
            .transpose()?;
        let mut draft = slf.get().draft.lock();
        let extractor = extractor.map(|extractor| draft.add(extractor));
        draft.steps.extend([Step::CountBy(extractor), Step::SumBy]);
        drop(draft);
        Ok(slf)
    }

    /// Passes each record once; records must be hashable.
    fn distinct(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        let steps = [
            Step::Distinct { merging: false },
            Step::Collect,
            Step::Distinct { merging: true },
        ];
        add(slf, steps)
    }

    /// All records of all shards in ascending order, with `reverse=False` in descending order.
    #[pyo3(signature = (reverse=None))]
    fn sort<'py>(slf: Bound<'py, Self>, reverse: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, Self>> {
        let ascending = reverse.map_or(Ok(true), |reverse| reverse.is_truthy())?;
        let descending = !ascending;
        Ok(add(slf, [Step::Collect, Step::Sort { descending }]))
    }

    /// Runs the steps over the records of the reader. Returns a future: in a coroutine it gives `[results, errors]`.
    ///
    /// # Errors
    /// `gears.error` that names the argument.
    #[pyo3(signature = (*args, **kwargs))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        launch::start(
            py,
            self,
            args.get_item(0).ok(),
            kwargs,
            launch::Implicit::default(),
        )
    }

    /// Runs the steps on each event of the reader. Returns the registration's id.
    ///
    /// # Errors
    /// `gears.error` that names the argument.
    #[pyo3(signature = (**kwargs))]
    fn register(&self, py: Python<'_>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<String> {
        registering::register(py, self, kwargs, launch::Implicit::default())
    }

    /// `run` with the implicit steps of `GearsBuilder`.
    #[pyo3(signature = (arg, convert, collect, kwargs))]
    fn _run<'py>(
        &self,
        arg: Bound<'py, PyAny>,
        convert: bool,
        collect: bool,
        kwargs: &Bound<'py, PyDict>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let implicit = launch::Implicit { convert, collect };
        launch::start(arg.py(), self, Some(arg), Some(kwargs), implicit)
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
        registering::register(py, self, Some(kwargs), launch::Implicit { convert, collect })
    }

    fn __str__(&self) -> &'static str {
        "PyFlatExecution"
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Locked only where a collection starts inside a change of the draft: then nothing of it is garbage.
        let Some(draft) = self.draft.try_lock() else {
            return Ok(());
        };
        for code in draft.functions.iter().chain(&draft.on_registered) {
            visit.call(&*code.callable)?;
            if let Some(zero) = &code.zero {
                visit.call(&**zero)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let dropped = self.draft.try_lock().map(|mut draft| std::mem::take(&mut *draft));
        drop(dropped);
    }
}

fn add<const N: usize>(slf: Bound<'_, Builder>, steps: [Step; N]) -> Bound<'_, Builder> {
    slf.get().draft.lock().steps.extend(steps);
    slf
}

fn add_call<'py>(
    slf: Bound<'py, Builder>,
    operation: &str,
    step: fn(FunctionIndex) -> Step,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, Builder>> {
    let wrong_count = format!("wrong number of args to {operation} function");
    let [function] = required(arguments(["f"], args, kwargs, &wrong_count)?, &wrong_count)?;
    let function = code(function, &format!("{operation} argument must be a function"))?;
    let mut draft = slf.get().draft.lock();
    let function = draft.add(function);
    draft.steps.push(step(function));
    drop(draft);
    Ok(slf)
}

fn add_grouping<'py>(
    slf: Bound<'py, Builder>,
    operation: &str,
    step: impl FnOnce(FunctionIndex, FunctionIndex) -> Step,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, Builder>> {
    let wrong_count = format!("wrong number of args to {operation} function");
    let given = arguments(["extractor", "reducer"], args, kwargs, &wrong_count)?;
    let [extractor, reducer] = required(given, &wrong_count)?;
    let extractor = code(
        extractor,
        &format!("{operation} extractor argument must be a function"),
    )?;
    let reducer = code(
        reducer,
        &format!("{operation} reducer argument must be a function"),
    )?;
    let mut draft = slf.get().draft.lock();
    let (extractor, reducer) = (draft.add(extractor), draft.add(reducer));
    draft.steps.push(step(extractor, reducer));
    drop(draft);
    Ok(slf)
}

/// All of the arguments, or the error for a wrong number of them.
fn required<'py, const N: usize>(
    given: [Option<Bound<'py, PyAny>>; N],
    wrong_count: &str,
) -> PyResult<[Bound<'py, PyAny>; N]> {
    let all: Option<Vec<_>> = given.into_iter().collect();
    all.and_then(|all| all.try_into().ok())
        .ok_or_else(|| errors::gears_error(wrong_count))
}

fn code(function: Bound<'_, PyAny>, otherwise: &str) -> PyResult<Code> {
    if function.is_callable() {
        Ok(Code::new(function))
    } else {
        Err(errors::gears_error(otherwise))
    }
}

fn seeded(function: Bound<'_, PyAny>, zero: &Bound<'_, PyAny>, otherwise: &str) -> PyResult<Code> {
    let mut code = code(function, otherwise)?;
    code.zero = Some(ObjectRef::new(zero.clone().unbind()));
    Ok(code)
}
