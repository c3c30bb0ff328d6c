//! [`CPython`]: the engine's view of the interpreter.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::{ffi, prelude::*, types::PyString};

use super::{
    convert::{Surrogates, object_record, object_reply, record_object, utf8},
    errors,
};
use crate::{
    engine::{
        language::{Failure, Language},
        record::{Record, Value},
    },
    redis::reply::Reply,
};

/// The interpreter of this process.
pub struct CPython;

/// Carries a closure into `detach`, which asks for `Send` to keep Python objects out.
struct Detached<'a>(&'a mut dyn FnMut());

// SAFETY: the closure stays on this thread. The engine, which makes it, holds no Python object outside of a record,
// and records are only touched attached.
unsafe impl Send for Detached<'_> {}

impl Language for CPython {
    fn thread(&self, body: &mut dyn FnMut()) {
        // The outer attachment keeps the thread's state alive, so that later ones are cheap.
        Python::attach(|py| {
            let body = Detached(body);
            py.detach(move || {
                let body = body;
                (body.0)();
            });
        });
    }

    fn attached(&self, work: &mut dyn FnMut()) {
        Python::attach(|_| work());
    }

    fn detached(&self, work: &mut dyn FnMut()) {
        self.thread(work);
    }

    fn to_text(&self, record: Record) -> Result<Record, Failure> {
        match record {
            Record::Native(Value::Int(number)) => Ok(Record::text(number.to_string())),
            Record::Native(Value::Text(text)) if std::str::from_utf8(&text).is_ok() => Ok(Record::text(text)),
            other => Python::attach(|py| {
                let text = record_object(py, other).and_then(|object| {
                    if object.is_instance_of::<PyString>() {
                        // The user's own text: a leading `+` or `-` keeps its meaning.
                        return Ok(object_record(object));
                    }
                    Ok(Record::text(utf8(&object.str()?, Surrogates::Escape)?))
                });
                text.map_err(|error| errors::text(py, &error))
            }),
        }
    }

    fn to_reply(&self, record: Record) -> Result<Reply, Failure> {
        match record {
            Record::Native(value) => Ok(value.into()),
            foreign @ Record::Foreign(_) => Python::attach(|py| {
                record_object(py, foreign)
                    .and_then(|object| object_reply(&object, Surrogates::Escape))
                    .map_err(|error| errors::text(py, &error))
            }),
        }
    }

    fn interrupt(&self, thread: &AtomicU64) {
        Python::attach(|py| {
            // Callbacks set and clear their thread's id while attached, so it cannot change now.
            let thread = thread.load(Ordering::Acquire);
            if let (true, Ok(stopped)) = (thread != 0, errors::force_stopped_type(py)) {
                // SAFETY: attached; an unknown thread is ignored.
                unsafe { ffi::PyThreadState_SetAsyncExc(thread as _, stopped.as_ptr()) };
            }
        });
    }
}
