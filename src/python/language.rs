//! [`CPython`]: the engine's view of the interpreter.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyList, PySet, PyString, PyType},
};

use super::{
    RUNTIME,
    attach::{ObjectRef, apart, attach, attached, bare, detached},
    convert::{
        self, Surrogates, group_key, object_of, object_record, object_reply, parts, record_object, utf8,
    },
    errors, held, image, installed,
    interrupt::{self, Interruptible},
    text,
};
use crate::{
    clock::Instant,
    engine::{
        holding::Size,
        language::{Distinct, Failure, Function, Language, LateText, Packed},
        record::{Record, Value},
        session::Session,
        stop::{Code, Interrupted, Stop},
    },
    server::{lock, reply::Reply},
};

/// The interpreter of this process.
pub struct CPython;

impl Language for CPython {
    fn thread(&self, body: &mut (dyn FnMut() + Send)) {
        held::note_this_thread();
        // The outer attachment keeps the thread's state alive, so that later ones are cheap.
        detached(body);
    }

    fn attached(&self, work: &mut dyn FnMut()) {
        attached((), |_| work());
    }

    fn detached(&self, work: &mut (dyn FnMut() + Send)) {
        detached(work);
    }

    fn in_one_line(&self, failure: &str) -> String {
        errors::in_one_line(failure)
    }

    fn to_text(&self, record: Record) -> Result<Record, Failure> {
        match record {
            Record::Native(Value::Int(number)) => Ok(Record::text(number.to_string())),
            Record::Native(Value::Text(text)) if std::str::from_utf8(&text).is_ok() => Ok(Record::text(text)),
            other => match plainly(other, |object| {
                // The user's own text: a leading `+` or `-` keeps its meaning.
                let is_text = object.is_instance_of::<PyString>();
                (!is_text).then(|| text::plain(object)).flatten()
            }) {
                Ok(text) => Ok(Record::text(text)),
                Err(other) => attach(|py| {
                    let made = record_object(py, other).and_then(|object| {
                        if object.is_instance_of::<PyString>() {
                            return Ok(object_record(object));
                        }
                        Ok(Record::text(utf8(&object.str()?, Surrogates::Escape)?))
                    });
                    made.map_err(|error| errors::text_of_callback(py, &error))
                }),
            },
        }
    }

    fn to_reply(&self, record: Record) -> Result<Reply, Failure> {
        match record {
            Record::Native(value) => Ok(value.into()),
            other => match plainly(other, convert::plain_reply) {
                Ok(reply) => Ok(reply),
                Err(other) => attach(|py| {
                    record_object(py, other)
                        .and_then(|object| object_reply(&object, Surrogates::Escape))
                        .map_err(|error| errors::text_of_callback(py, &error))
                }),
            },
        }
    }

    fn to_late_text(&self, record: Record) -> Result<Arc<dyn LateText>, Record> {
        let Record::Foreign(object) = record else {
            return Err(record);
        };
        // SAFETY: `object_record` made it.
        if bare(|py| text::is_settled(unsafe { object.get::<ObjectRef>() }.bind(py))) {
            // SAFETY: the same.
            return Ok(Arc::new(text::Late(unsafe { object.into_inner::<ObjectRef>() })));
        }
        Err(Record::Foreign(object))
    }

    fn interruptible(&self, stop: &Stop, work: &mut dyn FnMut()) {
        attached(Interruptible::enter(stop), |_| work());
    }

    fn interrupt(&self, stop: &Stop) -> Interrupted {
        apart(|py| interrupt::raise(py, stop))
    }

    fn key_of(&self, record: &Record) -> Result<Vec<u8>, Failure> {
        match record {
            Record::Native(Value::Text(text)) if std::str::from_utf8(text).is_ok() => Ok(text.clone()),
            Record::Native(Value::Int(number)) => Ok(number.to_string().into_bytes()),
            other => attach(|py| {
                let key = object_of(py, other).and_then(|object| group_key(&object));
                key.map_err(|error| errors::text_of_callback(py, &error))
            }),
        }
    }

    fn use_packages(&self, folder: &Path, archives: &[PathBuf]) -> Result<(), Failure> {
        attach(|py| installed::use_packages(py, folder, archives).map_err(|error| error.to_string().into()))
    }

    fn load(&self, image: &[u8], session: &Session) -> Result<Arc<dyn Function>, Failure> {
        let load = || image::load(image, session);
        // It imports modules, and runs what they and the image say.
        let (Some(runtime), true) = (RUNTIME.get(), lock::is_held()) else {
            return load();
        };
        let code = Code::new("a function that is loaded", None);
        let mut loaded = Err(Failure::from(""));
        let watched = lock::with_lock(|lock| {
            let _watched = runtime
                .engine
                .watch_sync(lock, Arc::clone(&code) as _, Instant::now());
            self.interruptible(&code.stop, &mut || loaded = load());
            code.stop.has_timed_out()
        });
        if watched {
            return Err(runtime.engine.sync_timeout().into());
        }
        loaded
    }

    fn pack(&self, objects: &mut Vec<Record>, at_most: usize) -> Packed {
        let count = at_most.min(objects.len());
        attach(|py| {
            let packed = image::pack(py, &objects[..count]).unwrap_or_else(|error| {
                let failure: Failure = errors::text(py, &error).into();
                Packed {
                    bytes: Vec::new(),
                    taken: count,
                    refused: (0..count).map(|place| (place, failure.clone())).collect(),
                }
            });
            // They end here, where their code can be stopped.
            objects.drain(..packed.taken);
            packed
        })
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Vec<Record>, Failure> {
        attach(|py| image::unpack(py, bytes).map_err(|error| errors::text(py, &error).into()))
    }

    fn parts(&self, record: Record) -> Vec<Record> {
        attach(|py| match record_object(py, record) {
            Ok(object) => parts(object),
            Err(_) => Vec::new(),
        })
    }

    fn is_true(&self, record: &Record) -> Result<bool, Failure> {
        attach(|py| {
            let truth = object_of(py, record).and_then(|object| object.is_truthy());
            truth.map_err(|error| errors::text_of_callback(py, &error))
        })
    }

    fn size_of(&self, objects: &[&Record]) -> Result<Size, Failure> {
        attach(|py| {
            let objects = objects.iter().map(|object| object_of(py, object));
            let counted = objects
                .collect::<PyResult<Vec<_>>>()
                .and_then(|objects| size_of(py, objects));
            counted.map_err(|error| errors::text_of_callback(py, &error))
        })
    }

    fn distinct(&self) -> Box<dyn Distinct> {
        Box::new(Seen::default())
    }

    fn sort(&self, records: Vec<Record>, descending: bool) -> Result<Vec<Record>, Failure> {
        if let Some(mut texts) = plain_texts(&records) {
            texts.sort_unstable();
            if descending {
                texts.reverse();
            }
            return Ok(texts.into_iter().map(Record::text).collect());
        }
        attach(|py| {
            let sorted = sort_objects(py, records, descending);
            sorted.map_err(|error| errors::text_of_callback(py, &error))
        })
    }
}

/// What `make` makes of an object at which it can look without running code of users, and which can end without that.
///
/// # Errors
/// `make` gave nothing, or it is no object: the record.
fn plainly<T>(record: Record, make: impl FnOnce(&Bound<'_, PyAny>) -> Option<T>) -> Result<T, Record> {
    let Record::Foreign(object) = record else {
        return Err(record);
    };
    bare(|py| {
        // SAFETY: `object_record` made it.
        let made = make(unsafe { object.get::<ObjectRef>() }.bind(py));
        match made {
            Some(made) => {
                // SAFETY: the same.
                drop(unsafe { object.into_inner::<ObjectRef>() }.into_inner());
                Ok(made)
            }
            None => Err(Record::Foreign(object)),
        }
    })
}

/// Copies of the texts, if all records are texts: their bytes sort as Python sorts their characters.
fn plain_texts(records: &[Record]) -> Option<Vec<Vec<u8>>> {
    let text = |record: &Record| match record {
        Record::Native(Value::Text(text)) if std::str::from_utf8(text).is_ok() => Some(text.clone()),
        _ => None,
    };
    records.iter().map(text).collect()
}

/// There is at least one record.
fn sort_objects(py: Python<'_>, records: Vec<Record>, descending: bool) -> PyResult<Vec<Record>> {
    static KEYED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let objects = records.into_iter().map(|record| record_object(py, record));
    let list = PyList::new(py, objects.collect::<PyResult<Vec<_>>>()?)?;
    let options = PyDict::new(py);
    let keyed = KEYED.import(py, "pinion_builder", "Keyed")?;
    if list.get_item(0)?.is_exact_instance(keyed) {
        // As Python sorts with a key.
        options.set_item("reverse", descending)?;
        list.call_method("sort", (), Some(&options))?;
    } else {
        // As 1.2 sorts: equal records come in the reverse of their order.
        options.set_item("reverse", !descending)?;
        list.call_method("sort", (), Some(&options))?;
        list.reverse()?;
    }
    Ok(list.iter().map(object_record).collect())
}

/// Texts are compared here, everything else by Python.
#[derive(Default)]
struct Seen {
    texts: HashSet<Vec<u8>>,
    objects: Option<ObjectRef<PySet>>,
}

impl Distinct for Seen {
    fn add(&mut self, record: &Record) -> Result<bool, Failure> {
        if let Record::Native(Value::Text(text)) = record {
            if std::str::from_utf8(text).is_ok() {
                return Ok(self.texts.insert(text.clone()));
            }
        }
        attach(|py| {
            let added = object_of(py, record).and_then(|object| self.add_object(&object));
            added.map_err(|error| errors::text_of_callback(py, &error))
        })
    }

    fn size(&self) -> Result<Size, Failure> {
        let mut size = Size {
            bytes: self.texts.iter().map(Vec::len).sum(),
            objects: self.texts.len(),
        };
        if let Some(set) = &self.objects {
            size += attach(|py| {
                let counted = size_of(py, vec![set.bind(py).clone().into_any()]);
                counted.map_err(|error| errors::text_of_callback(py, &error))
            })?;
        }
        Ok(size)
    }
}

/// How much memory objects take.
fn size_of(py: Python<'_>, objects: Vec<Bound<'_, PyAny>>) -> PyResult<Size> {
    static SIZE_OF: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let size_of = SIZE_OF.import(py, "pinion_sizes", "size_of")?;
    let (bytes, objects) = size_of.call1((PyList::new(py, objects)?,))?.extract()?;
    Ok(Size { bytes, objects })
}

impl Seen {
    fn add_object(&mut self, object: &Bound<'_, PyAny>) -> PyResult<bool> {
        if let Ok(Ok(text)) = object.cast::<PyString>().map(|text| text.to_str()) {
            return Ok(self.texts.insert(text.as_bytes().to_vec()));
        }
        let py = object.py();
        if self.objects.is_none() {
            self.objects = Some(ObjectRef::new(PySet::empty(py)?.unbind()));
        }
        let Some(set) = self.objects.as_ref().map(|set| set.bind(py)) else {
            return Ok(true);
        };
        let before = set.len();
        set.add(object)?;
        Ok(set.len() > before)
    }
}
