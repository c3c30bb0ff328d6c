//! What becomes of the result of a loader: plain values are made of it, attached to Python, on the thread that ends the execution;
//! they are brought to the pump when the execution is counted, so that whoever has a reply sees it counted.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    FailedLoad, Loaded, ReadThrough, Unpack,
    machine::{Keys, NoValue, Time},
};
use crate::{
    clock::Instant,
    engine::{
        execution::Collects,
        holding::HELD_TOO_MUCH,
        id::Id,
        language::{Failure, Function},
        record::Record,
        scope::Scope,
    },
    mutex::Mutex,
    server::api,
};

/// How often the log says so of one registration.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// A value for each key of a load: nearly always one.
pub type Values = SmallVec<[Result<Loaded, FailedLoad>; 1]>;

/// The same, or why there is none.
pub(super) type Brings = Result<Values, NoValue>;

/// What a load has brought.
pub(super) struct Brought {
    pub load: u64,
    pub values: Brings,
    pub took: Duration,
}

/// Who unloads what a loader returned.
pub(super) struct Unloading {
    loads: Weak<ReadThrough>,
    unpack: Arc<dyn Unpack>,
    load: u64,
    begun: Time,
    keys: Keys,
    batch: Option<Arc<Strangers>>,
    /// What tells how long a value is fresh.
    ttl: Option<Arc<dyn Function>>,
    made: Mutex<Option<Brings>>,
}

impl Unloading {
    pub fn new(
        loads: &ReadThrough,
        load: u64,
        begun: Time,
        keys: Keys,
        batch: Option<Arc<Strangers>>,
        ttl: Option<Arc<dyn Function>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            loads: loads.this.clone(),
            unpack: Arc::clone(&loads.unpack),
            load,
            begun,
            keys,
            batch,
            ttl,
            made: Mutex::new(None),
        })
    }
}

impl Collects for Unloading {
    /// Attached; it must not take the server's lock.
    fn collect(&self, results: &mut dyn Iterator<Item = Record>, errors: &[Failure]) -> Vec<Failure> {
        let (unpacked, wrong) = match (errors.first(), results.next()) {
            (None, Some(returned)) => {
                let unpacked =
                    self.unpack
                        .unpack(&self.keys, returned, self.batch.as_deref(), self.ttl.as_deref());
                let wrong = wrong(&unpacked);
                let unpacked = unpacked.map_err(|failed| NoValue::Failed(failed.kind.into()));
                (unpacked, wrong)
            }
            _ => (Err(raised()), Vec::new()),
        };
        *self.made.lock() = Some(unpacked);
        wrong
    }

    fn ended(&self) {
        let values = self.made.lock().take();
        let values = values.unwrap_or(Err(NoValue::Aborted));
        if let Some(loads) = self.loads.upgrade() {
            let now = loads.now();
            loads.bring(self.load, now.saturating_sub(self.begun), values, now);
        }
    }
}

/// Says in the log that a loader of batches returned none of the keys that it got, but others, once a minute: they are spelt in another
/// way, most likely. One for each registration.
pub struct Strangers {
    registration: Id,
    said: Mutex<Option<Instant>>,
}

impl Strangers {
    pub(super) fn of(registration: Id) -> Self {
        Self {
            registration,
            said: Mutex::new(None),
        }
    }

    /// `got`, `expected`: the types of keys, as Python names them.
    pub fn report(&self, got: &str, expected: &str) {
        let mut said = self.said.lock();
        if said.is_some_and(|said| said.elapsed() < LOG_EVERY) {
            return;
        }
        *said = Some(Instant::now());
        drop(said);
        api::log_warning(&format!(
            "read_through: the loader of registration {} returned a dict with none of the keys that it got ({expected}), but with \
             others ({got}): all that it was asked for counts as absent",
            self.registration
        ));
    }
}

/// What the function raised whose execution ends on this thread; nothing: it was ended by somebody.
pub fn raised() -> NoValue {
    let scope = Scope::current();
    let execution = scope.as_ref().and_then(|scope| scope.execution.as_deref());
    let kind = execution.and_then(|execution| {
        let kind = execution.error_kind();
        // Whoever held too much was stopped for what it did by itself.
        kind.filter(|kind| !execution.stop.is_asked() || *kind == HELD_TOO_MUCH)
    });
    kind.map_or(NoValue::Aborted, |kind| NoValue::Failed(kind.into()))
}

/// What the execution has to answer for besides what its function raised: values that are none.
fn wrong(values: &Result<Values, FailedLoad>) -> Vec<Failure> {
    match values {
        Err(failed) => vec![failed.text.clone()],
        Ok(values) => values
            .iter()
            .filter_map(|value| value.as_ref().err().map(|failed| failed.text.clone()))
            .collect(),
    }
}
