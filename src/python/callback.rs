//! A user function as the engine calls it: arguments, result, errors, and what it must not leave behind.

use pyo3::{
    call::PyCallArgs,
    prelude::*,
    sync::PyOnceLock,
    types::{PyBool, PyInt, PyIterator, PyList, PyTuple, PyType},
};

use super::{
    attach::{ObjectRef, attach, in_engine},
    children,
    convert::{self, Surrogates, object_record, record_object},
    coroutine::{Calling, Waits},
    errors, image,
    interrupt::Interruptible,
    profile,
};
use crate::{
    engine::{
        language::{Awaitable, Called, Failure, Function, Shown},
        record::{Record, Value},
        session::Session,
        source::{Reading, Source},
        stop::Stop,
    },
    server::{reply::Reply, string::Argv},
};

const IN_EXTRACTOR: &str = "coroutine are not allow on extractor";
const IN_BATCH_REDUCER: &str = "coroutine are not allow on reduce";
const ELSEWHERE: &str = "Coroutines are not allow";

/// What a script gave for one function of a step.
pub struct Code {
    pub callable: ObjectRef,
    /// The accumulator that a fold starts with, copied each time; `None` is Python's.
    pub zero: Option<ObjectRef>,
}

impl Code {
    pub fn new(callable: Bound<'_, PyAny>) -> Self {
        Self {
            callable: ObjectRef::new(callable.unbind()),
            zero: None,
        }
    }

    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            callable: ObjectRef::new(self.callable.clone_ref(py)),
            zero: self.zero.as_ref().map(|zero| ObjectRef::new(zero.clone_ref(py))),
        }
    }
}

/// A callable of a script. Where the last handle is dropped detached, PyO3 keeps the object until somebody attaches:
/// the server's thread does not wait for Python to forget a function. Where the engine drops it attached, [`ObjectRef`] does.
pub struct Callback {
    code: Code,
    name: String,
    description: String,
}

impl Callback {
    pub fn new(py: Python<'_>, code: Code) -> Self {
        let callable = code.callable.bind(py);
        let named = callable.getattr("__name__").and_then(|name| name.extract());
        let described = callable.str().map(|text| text.to_string_lossy().into_owned());
        let description = described.unwrap_or_default();
        Self {
            name: named.unwrap_or_else(|_| description.clone()),
            description,
            code,
        }
    }

    /// Does `work` attached; what it raises becomes an error string.
    fn call<R>(&self, work: impl FnOnce(Python<'_>) -> PyResult<R>) -> Result<R, Failure> {
        attach(|py| work(py).map_err(|error| errors::text_of_callback(py, &error)))
    }

    /// Calls the function itself.
    fn invoke<'py>(
        &self,
        py: Python<'py>,
        arguments: impl PyCallArgs<'py>,
        waits: Waits,
    ) -> PyResult<Invoked<'py>> {
        let calling = Calling::enter(waits);
        let callable = self.code.callable.bind(py);
        let returned = profile::call(py, || callable.call1(arguments));
        children::end_if_forked(py, &returned);
        let returned = returned?;
        Ok(match calling.awaitable(waits, &returned)? {
            Some(awaitable) => Invoked::Later(awaitable),
            None => Invoked::Value(returned),
        })
    }

    /// Calls the function where nothing can be waited for; `otherwise`: the error if it wants that.
    fn value<'py>(
        &self,
        py: Python<'py>,
        arguments: impl PyCallArgs<'py>,
        otherwise: &'static str,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.value_of(py, arguments, Waits::No(otherwise), otherwise)
    }

    /// Calls the function where it is no step.
    fn elsewhere<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.value_of(py, (), Waits::Elsewhere(ELSEWHERE), ELSEWHERE)
    }

    fn value_of<'py>(
        &self,
        py: Python<'py>,
        arguments: impl PyCallArgs<'py>,
        waits: Waits,
        otherwise: &'static str,
    ) -> PyResult<Bound<'py, PyAny>> {
        match self.invoke(py, arguments, waits)? {
            Invoked::Value(value) => Ok(value),
            Invoked::Later(_) => Err(errors::gears_error(otherwise)),
        }
    }

    fn accumulator<'py>(&self, py: Python<'py>, accumulator: Option<Record>) -> PyResult<Bound<'py, PyAny>> {
        static DEEPCOPY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        match (accumulator, &self.code.zero) {
            (Some(accumulator), _) => record_object(py, accumulator),
            (None, Some(zero)) => DEEPCOPY.import(py, "copy", "deepcopy")?.call1((zero.bind(py),)),
            (None, None) => Ok(py.None().into_bound(py)),
        }
    }
}

impl Function for Callback {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn image(&self, session: &Session) -> Result<Vec<u8>, Failure> {
        attach(|py| {
            image::dump(py, &self.code, session).map_err(|error| {
                format!(
                    "Error occured when serialized a python callback, callback={} error={}",
                    self.name,
                    errors::text(py, &error)
                )
                .into()
            })
        })
    }

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn map(&self, record: Record) -> Result<Called<Record>, Failure> {
        self.call(|py| {
            let object = record_object(py, record)?;
            Ok(self.invoke(py, (object,), Waits::Yes)?.map(object_record))
        })
    }

    fn answer(&self, stop: &Stop, words: Argv<'_>, text: bool) -> Result<Called<Reply>, Failure> {
        let interruptible = Interruptible::enter(stop);
        attach(move |py| {
            // Ends behind all objects, attached.
            let _interruptible = interruptible;
            let answered = convert::words_object(py, words).and_then(|words| {
                Ok(match self.invoke(py, (words,), Waits::Yes)? {
                    Invoked::Value(value) => Called::Now(convert::result_reply(&value, text)?),
                    Invoked::Later(awaitable) => Called::Later(awaitable, None),
                })
            });
            answered.map_err(|error| errors::text_of_callback(py, &error))
        })
    }

    fn text(
        &self,
        stop: &Stop,
        record: Record,
        visits: bool,
        outdated: Option<Shown>,
    ) -> Result<Called<Shown>, Failure> {
        let interruptible = Interruptible::enter(stop);
        attach(move |py| {
            let _interruptible = interruptible;
            drop(outdated);
            let shown = record_object(py, record).and_then(|object| {
                let value = match self.invoke(py, (&object,), Waits::Yes)? {
                    Invoked::Value(value) => value,
                    Invoked::Later(awaitable) => {
                        let record = visits.then(|| object_record(object));
                        return Ok(Called::Later(awaitable, record));
                    }
                };
                let result = if visits {
                    // It may be the record itself.
                    drop(value);
                    object
                } else {
                    drop(object);
                    value
                };
                convert::shown(result).map(Called::Now)
            });
            shown.map_err(|error| errors::text_of_callback(py, &error))
        })
    }

    fn hand_over(
        &self,
        stop: &Stop,
        record: Record,
        take: &mut dyn FnMut(Record),
    ) -> Result<Called<()>, Failure> {
        let interruptible = Interruptible::enter(stop);
        attach(move |py| {
            let _interruptible = interruptible;
            let invoked = record_object(py, record).and_then(|object| self.invoke(py, (object,), Waits::Yes));
            match invoked {
                Ok(Invoked::Value(value)) => {
                    in_engine(|| take(object_record(value)));
                    Ok(Called::Now(()))
                }
                Ok(Invoked::Later(awaitable)) => Ok(Called::Later(awaitable, None)),
                Err(error) => Err(errors::text_of_callback(py, &error)),
            }
        })
    }

    fn expand(&self, record: Record) -> Result<Called<Vec<Record>>, Failure> {
        self.call(|py| {
            let object = record_object(py, record)?;
            Ok(self.invoke(py, (object,), Waits::Yes)?.map(convert::parts))
        })
    }

    fn test(&self, record: Record) -> Result<Called<(Record, bool)>, Failure> {
        self.call(|py| {
            let object = record_object(py, record)?;
            Ok(match self.invoke(py, (&object,), Waits::Yes)? {
                Invoked::Value(value) => Called::Now((object_record(object), value.is_truthy()?)),
                Invoked::Later(awaitable) => Called::Later(awaitable, Some(object_record(object))),
            })
        })
    }

    fn visit(&self, record: Record) -> Result<Called<Record>, Failure> {
        self.call(|py| {
            let object = record_object(py, record)?;
            Ok(match self.invoke(py, (&object,), Waits::Yes)? {
                Invoked::Value(_) => Called::Now(object_record(object)),
                Invoked::Later(awaitable) => Called::Later(awaitable, Some(object_record(object))),
            })
        })
    }

    fn key(&self, record: Record) -> Result<(Record, Vec<u8>), Failure> {
        self.call(|py| {
            let object = record_object(py, record)?;
            let key = convert::group_key(&self.value(py, (&object,), IN_EXTRACTOR)?)?;
            Ok((object_record(object), key))
        })
    }

    fn fold(&self, accumulator: Option<Record>, record: Record) -> Result<Called<Record>, Failure> {
        self.call(|py| {
            let arguments = (self.accumulator(py, accumulator)?, record_object(py, record)?);
            Ok(self
                .invoke(py, arguments, Waits::Accumulating)?
                .map(object_record))
        })
    }

    fn fold_group(
        &self,
        key: &[u8],
        accumulator: Option<Record>,
        record: Record,
    ) -> Result<Called<Record>, Failure> {
        self.call(|py| {
            let arguments = (
                convert::text_object(py, key),
                self.accumulator(py, accumulator)?,
                record_object(py, record)?,
            );
            Ok(self
                .invoke(py, arguments, Waits::Accumulating)?
                .map(object_record))
        })
    }

    fn reduce_group(&self, key: &[u8], records: Vec<Record>) -> Result<Record, Failure> {
        self.call(|py| {
            let objects = records
                .into_iter()
                .map(|record| record_object(py, record))
                .collect::<PyResult<Vec<_>>>()?;
            let arguments = (convert::text_object(py, key), PyList::new(py, objects)?);
            Ok(object_record(self.value(py, arguments, IN_BATCH_REDUCER)?))
        })
    }

    fn produce(&self) -> Result<Value, Failure> {
        self.call(|py| plain_value(&self.elsewhere(py)?))
    }

    fn generate(&self) -> Result<Box<dyn Source>, Failure> {
        static GENERATOR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        self.call(|py| {
            let generator = self.elsewhere(py)?;
            if !generator.is_instance(GENERATOR.import(py, "types", "GeneratorType")?)? {
                return Err(errors::gears_error("PythonReader function must be a generator"));
            }
            let records = ObjectRef::new(generator.try_iter()?.unbind());
            Ok(Box::new(Generated { records }) as Box<dyn Source>)
        })
    }

    fn run(&self) -> Result<(), Failure> {
        self.call(|py| self.elsewhere(py).map(drop))
    }

    fn tick(&self) -> Result<(), Failure> {
        self.call(|py| self.invoke(py, (), Waits::Nowhere).map(drop))
    }
}

/// What a call of a function gave.
enum Invoked<'py> {
    Value(Bound<'py, PyAny>),
    Later(Box<dyn Awaitable>),
}

impl<'py> Invoked<'py> {
    fn map<T>(self, value: impl FnOnce(Bound<'py, PyAny>) -> T) -> Called<T> {
        match self {
            Self::Value(returned) => Called::Now(value(returned)),
            Self::Later(awaitable) => Called::Later(awaitable, None),
        }
    }
}

/// The values of a generator.
struct Generated {
    records: ObjectRef<PyIterator>,
}

impl Source for Generated {
    fn next(&mut self, _reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        attach(|py| {
            let next = self.records.bind(py).clone().next();
            next.transpose()
                .map(|record| record.map(object_record))
                .map_err(|error| errors::text_of_callback(py, &error))
        })
    }
}

/// Texts, numbers and sequences of these as they are; anything else as its text.
fn plain_value(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(flag) = object.cast::<PyBool>() {
        return Ok(Value::Int(i64::from(flag.is_true())));
    }
    if let Ok(number) = object.cast::<PyInt>() {
        return Ok(Value::Int(number.extract()?));
    }
    let items: Option<Vec<_>> = if let Ok(tuple) = object.cast::<PyTuple>() {
        Some(tuple.iter().collect())
    } else {
        object.cast::<PyList>().ok().map(|list| list.iter().collect())
    };
    match items {
        Some(items) => Ok(Value::List(
            items.iter().map(plain_value).collect::<PyResult<_>>()?,
        )),
        None => Ok(Value::Text(convert::utf8(&object.str()?, Surrogates::Escape)?)),
    }
}
