//! Time events: functions that run again and again (`registerTE`). Contract: `python-api.md` 2.7.
//!
//! One with a key lives as long as that key, over restarts and on replicas; others until the server stops. They run on a
//! master only, on the thread of the timers, under the server's lock.

use std::{
    ffi::CStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    engine::{
        Engine,
        language::{Function, with_lock},
        scope::Scope,
        session::{Needs, Session},
    },
    error::Error,
    redis::{
        api,
        command::{Answer, Command},
        datatype::{self, Value},
        guarded::Guarded,
        lock::Lock,
        reply::Reply,
    },
};

/// The internal command that makes a keyed event: `<key> <period ms> <session id> <image>`.
pub const COMMAND: &CStr = c"RG.INNERTIMEEVENT";

/// What loaded events are started on. The server's callback has no other way to it.
static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();

/// Connects events from RDB files to the engine. Called once, while the module loads.
pub fn connect(engine: &Arc<Engine>) {
    // Told once.
    let _ = ENGINE.set(Arc::clone(engine));
}

/// One event.
struct TimeEvent {
    session: Arc<Session>,
    period: Duration,
    /// `None` while it cannot be loaded.
    function: Guarded<Option<Arc<dyn Function>>>,
    /// What the function is loaded from; of an event without a key nothing.
    image: Vec<u8>,
    /// How often it is still tried.
    attempts: AtomicU32,
    ended: AtomicBool,
}

/// A function may need packages that are being installed: so many periods may go by.
const ATTEMPTS: u32 = 300;

impl TimeEvent {
    fn new(
        session: &Arc<Session>,
        period: Duration,
        function: Option<Arc<dyn Function>>,
        image: Vec<u8>,
    ) -> Arc<Self> {
        Arc::new(Self {
            session: Arc::clone(session),
            period,
            function: Guarded::new(function),
            image,
            attempts: AtomicU32::new(ATTEMPTS),
            ended: AtomicBool::new(false),
        })
    }

    /// Loads what could not be loaded before.
    fn load_again(&self, lock: Lock<'_>, engine: &Engine) -> Option<Arc<dyn Function>> {
        let function = engine.language.load(&self.image, &self.session).ok()?;
        *self.function.write(lock) = Some(Arc::clone(&function));
        Some(function)
    }
}

/// What the key holds: the event ends with it.
struct Keyed(Arc<TimeEvent>);

impl Value for Keyed {
    fn words(&self) -> Vec<Vec<u8>> {
        vec![
            self.0.period.as_millis().to_string().into_bytes(),
            self.0.session.id.clone().into_bytes(),
            self.0.image.clone(),
        ]
    }

    fn command(&self) -> &'static CStr {
        COMMAND
    }
}

impl Drop for Keyed {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

/// Starts an event; with a key, false if there is such a key already.
///
/// # Errors
/// The function cannot be kept.
pub fn start(
    engine: &Arc<Engine>,
    session: &Arc<Session>,
    period: Duration,
    function: Arc<dyn Function>,
    key: Option<Vec<u8>>,
) -> Result<bool, String> {
    let image = key.is_some().then(|| function.image(session)).transpose()?;
    let event = TimeEvent::new(session, period, Some(function), image.unwrap_or_default());
    if let Some(key) = key {
        let keyed = Keyed(Arc::clone(&event));
        let made = with_lock(engine.language.as_ref(), |lock| {
            datatype::put(lock, &key, Box::new(keyed))
        });
        if !made {
            return Ok(false);
        }
    }
    wait(engine, event);
    Ok(true)
}

/// Makes an event of what its key held in a file.
///
/// # Errors
/// The words are none of an event; a function that cannot be loaded is no error, its event is kept and tries again.
pub fn load(_lock: Lock<'_>, words: Vec<Vec<u8>>) -> Result<Box<dyn Value>, String> {
    let engine = ENGINE.get().ok_or("the module is still loading")?;
    let [period, id, image] = <[Vec<u8>; 3]>::try_from(words).map_err(|_| "it is incomplete")?;
    let period_ms = std::str::from_utf8(&period)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|&period| period > 0)
        .ok_or("its period is no number")?;
    let id = String::from_utf8(id).map_err(|_| "its session's id is no text")?;
    let live = engine.registry.sessions(|sessions| sessions.live(&id));
    let session = live.unwrap_or_else(|| Arc::new(Session::new(id, None, Needs::default())));
    let function = match engine.language.load(&image, &session) {
        Ok(function) => Some(function),
        Err(error) => {
            api::log_warning(&format!(
                "a time event cannot run, its function does not load: {error}"
            ));
            None
        }
    };
    let period = Duration::from_millis(period_ms);
    let event = TimeEvent::new(&session, period, function, image);
    wait(engine, Arc::clone(&event));
    Ok(Box::new(Keyed(event)))
}

/// `RG.INNERTIMEEVENT <key> <period ms> <session id> <image>`, from an AOF file or a master only.
///
/// # Errors
/// Somebody else sent it; the words are none of an event.
pub fn inner_time_event(command: &Command<'_>) -> Result<Answer, Error> {
    if !command.comes_from_the_data() {
        return Err(Error::InnerCommand);
    }
    let words = command.argv();
    let key = words.get(1).ok_or(Error::WrongArity)?;
    let value = load(command.lock(), words.skip(2).to_vecs()).map_err(Error::Text)?;
    datatype::put(command.lock(), key, value);
    Ok(Reply::ok().into())
}

/// The next period begins when a run has ended.
fn wait(engine: &Arc<Engine>, event: Arc<TimeEvent>) {
    engine.timers.after(event.period, move |engine| {
        if event.ended.load(Ordering::Relaxed) {
            return;
        }
        let goes_on = with_lock(engine.language.as_ref(), |lock| run(lock, engine, &event));
        if goes_on {
            wait(engine, event);
        }
    });
}

/// False when the event has ended for good.
fn run(lock: Lock<'_>, engine: &Engine, event: &TimeEvent) -> bool {
    if event.ended.load(Ordering::Relaxed) {
        return false;
    }
    if !engine.is_serving() {
        return true;
    }
    let _scope = Scope::of_session(&event.session).enter();
    let function = event.function.read(lock).clone();
    let Some(function) = function.or_else(|| event.load_again(lock, engine)) else {
        return event.attempts.fetch_sub(1, Ordering::Relaxed) > 1;
    };
    let mut ran = Ok(());
    let watched = engine.run_watched(lock, "a time event", &event.session, &mut || ran = function.run());
    if let Err(error) = watched.and(ran) {
        api::log_warning(&format!("Error occured on TimeEvent_Callback, error={error}"));
        return false;
    }
    true
}
