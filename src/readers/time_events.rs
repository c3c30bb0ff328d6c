//! Time events: functions that run again and again (`registerTE`). Contract: docs/contract/python-api.md 2.7.
//!
//! One with a key lives as long as that key, over restarts and on replicas; others until the server stops. They run on a
//! master only, on the thread of the timers, under the server's lock.
//!
//! The function of an event that comes from a file or a master is loaded when it is to run for the first time: by then its
//! session is there, if it has registrations, and what it imports is installed.

use std::{
    collections::HashMap,
    ffi::CStr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::mutex::Mutex;

use crate::{
    engine::{
        Engine,
        language::{Failure, Function, with_lock},
        loading_functions::LoadingFunctions,
        scope::Scope,
        session::{Needs, Session},
    },
    error::Error,
    server::{
        api,
        call::PAUSED,
        command::{Answer, Command},
        datatype::{self, Value},
        guarded::Guarded,
        lock::Lock,
        reply::Reply,
        rights::{Access, Actor, Owner},
    },
};

/// The internal command that makes a keyed event: `<key> <period ms> <session id> <image> [<owner>]`.
pub const COMMAND: &CStr = c"RG.INNERTIMEEVENT";

/// What loaded events are started on. The server's callback has no other way to it.
static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();

/// Connects events from RDB files to the engine. Called once, while the module loads.
pub fn connect(engine: &Arc<Engine>) {
    // Told once.
    let _ = ENGINE.set(Arc::clone(engine));
}

/// The sessions that have loaded events and nothing else, by id: events of one session share its globals.
static SESSIONS: Guarded<Option<HashMap<String, Weak<Session>>>> = Guarded::new(None);

/// The data are about to be replaced: what is loaded begins anew.
pub fn loading_started(lock: Lock<'_>) {
    drop(SESSIONS.write(lock).take());
}

/// One event.
struct TimeEvent {
    session_id: String,
    owner: Owner,
    /// Whose rights its function has; `None` for all.
    actor: Option<Arc<Actor>>,
    period: Duration,
    /// What the function is loaded of, where it comes from a file or a master.
    image: Option<Arc<[u8]>>,
    /// `None` until the function is loaded.
    ready: Mutex<Option<Ready>>,
    /// The function while it is being loaded, with its session.
    loading: Mutex<Option<(Arc<Session>, LoadingFunctions)>>,
    /// The log has said why it is not.
    complained: AtomicBool,
    ended: AtomicBool,
}

/// What runs, and where.
#[derive(Clone)]
struct Ready {
    session: Arc<Session>,
    function: Arc<dyn Function>,
}

impl TimeEvent {
    fn new(
        session_id: String,
        owner: Owner,
        period: Duration,
        ready: Option<Ready>,
        image: Option<Arc<[u8]>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            actor: owner.actor(|| format!("a time event of session {session_id}")),
            session_id,
            owner,
            period,
            image,
            ready: Mutex::new(ready),
            loading: Mutex::default(),
            complained: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }
}

/// What the key holds: the event ends with it.
struct Keyed {
    event: Arc<TimeEvent>,
    image: Arc<[u8]>,
}

impl Value for Keyed {
    fn words(&self) -> Vec<Vec<u8>> {
        let mut words = vec![
            self.event.period.as_millis().to_string().into_bytes(),
            self.event.session_id.clone().into_bytes(),
            self.image.to_vec(),
        ];
        if self.event.owner != Owner::default() {
            words.push(saved_owner(&self.event.owner));
        }
        words
    }

    fn command(&self) -> &'static CStr {
        COMMAND
    }
}

impl Drop for Keyed {
    fn drop(&mut self) {
        self.event.ended.store(true, Ordering::Relaxed);
    }
}

/// Starts an event; with a key, false if there is such a key already.
///
/// # Errors
/// The function cannot be kept.
pub fn start(
    engine: &Arc<Engine>,
    scope: &Scope,
    period: Duration,
    function: Arc<dyn Function>,
    key: Option<Vec<u8>>,
) -> Result<bool, String> {
    let session = &scope.session;
    let image = key.is_some().then(|| function.image(session)).transpose()?;
    let ready = Ready {
        session: Arc::clone(session),
        function,
    };
    let event = TimeEvent::new(session.id.clone(), scope.owner(), period, Some(ready), None);
    let has_key = key.is_some();
    if let (Some(key), Some(image)) = (key, image) {
        let keyed = Keyed {
            event: Arc::clone(&event),
            image: image.into(),
        };
        let made = with_lock(engine.language.as_ref(), |lock| {
            if let Some(actor) = &scope.actor {
                let allowed = actor.check_key(lock, &key, Access::Write);
                allowed.map_err(|refusal| refusal.to_string())?;
            }
            let made = lock
                .may_write()
                .then(|| datatype::put(lock, &key, Box::new(keyed)));
            made.ok_or_else(|| PAUSED.to_owned())
        });
        if !made? {
            return Ok(false);
        }
    }
    wait(engine, event, has_key);
    Ok(true)
}

/// Makes an event of what its key held in a file.
///
/// # Errors
/// The words are none of an event.
pub fn load(_lock: Lock<'_>, words: Vec<Vec<u8>>) -> Result<Box<dyn Value>, String> {
    let engine = ENGINE.get().ok_or("the module is still loading")?;
    let Parts {
        period,
        session_id,
        owner,
        image,
    } = parts(words)?;
    let image: Arc<[u8]> = image.into();
    let event = TimeEvent::new(session_id, owner, period, None, Some(Arc::clone(&image)));
    wait(engine, Arc::clone(&event), true);
    Ok(Box::new(Keyed { event, image }))
}

fn saved_owner(owner: &Owner) -> Vec<u8> {
    // Plain data: nothing in it can fail to be written to memory.
    rmp_serde::to_vec_named(owner).unwrap_or_default()
}

/// What stands in a file.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    period: Duration,
    session_id: String,
    owner: Owner,
    /// Of the function.
    image: Vec<u8>,
}

/// The period, the session's id, the image of the function, and who made it, which earlier versions do not say.
fn parts(mut words: Vec<Vec<u8>>) -> Result<Parts, String> {
    let owner = match words.get(3) {
        Some(owner) => rmp_serde::from_slice(owner).map_err(|_| "its owner cannot be read")?,
        None => Owner::default(),
    };
    if words.len() == 4 {
        words.truncate(3);
    }
    let [period, id, image] = <[Vec<u8>; 3]>::try_from(words).map_err(|_| "it is incomplete")?;
    let period_ms = std::str::from_utf8(&period)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|&period| period > 0)
        .ok_or("its period is no number")?;
    let id = String::from_utf8(id).map_err(|_| "its session's id is no text")?;
    Ok(Parts {
        period: Duration::from_millis(period_ms),
        session_id: id,
        owner,
        image,
    })
}

/// `RG.INNERTIMEEVENT <key> <period ms> <session id> <image> [<owner>]`, from an AOF file or a master only.
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

/// The next period begins when a run has ended. One with a key is the key's: until the next period, however long that is, the timer
/// keeps nothing of an event that has ended.
fn wait(engine: &Arc<Engine>, event: Arc<TimeEvent>, has_key: bool) {
    let (period, known) = (event.period, Arc::downgrade(&event));
    let kept = (!has_key).then_some(event);
    engine.timers.after(period, move |engine| {
        let Some(event) = kept.or_else(|| known.upgrade()) else {
            return;
        };
        if event.ended.load(Ordering::Relaxed) {
            return;
        }
        let goes_on = with_lock(engine.language.as_ref(), |lock| run(engine, lock, &event));
        if goes_on {
            wait(engine, event, has_key);
        }
    });
}

/// False when the event has ended for good.
fn run(engine: &Engine, lock: Lock<'_>, event: &TimeEvent) -> bool {
    if event.ended.load(Ordering::Relaxed) {
        return false;
    }
    if !engine.is_serving() {
        return true;
    }
    let image = event.image.as_deref();
    let ready = event.ready.lock().clone();
    let ready = ready.or_else(|| make_ready(engine, lock, event, image?));
    let Some(Ready { session, function }) = ready else {
        // What it needs may come.
        return image.is_some();
    };
    let _scope = Scope::of_session(&session).acting_as(event.actor.clone()).enter();
    let mut ran = Ok(());
    let watched = engine.run_watched(lock, "a time event", &session, &mut || ran = function.tick());
    if let Err(error) = watched.map_err(Failure::from).and(ran) {
        api::log_warning(&format!("Error occured on TimeEvent_Callback, error={error}"));
        return false;
    }
    true
}

/// Loads the function of an event in its session. If that takes long, the next period finds it.
fn make_ready(engine: &Engine, lock: Lock<'_>, event: &TimeEvent, image: &[u8]) -> Option<Ready> {
    let begun = event.loading.lock().take();
    // Only the first one waits for it.
    let limit = begun.as_ref().map_or(engine.patience(), |_| Duration::ZERO);
    let (session, loading) = begun.unwrap_or_else(|| {
        let session = session(engine, lock, event);
        let loading = engine.load_functions(vec![image.to_vec()], &session);
        (session, loading)
    });
    let Some(loaded) = loading.wait(limit) else {
        *event.loading.lock() = Some((session, loading));
        return None;
    };
    match loaded.into_iter().next()? {
        Ok(function) => {
            let ready = Ready { session, function };
            *event.ready.lock() = Some(ready.clone());
            Some(ready)
        }
        Err(error) => {
            if !event.complained.swap(true, Ordering::Relaxed) {
                api::log_warning(&format!(
                    "a time event cannot run, its function does not load: {error}"
                ));
            }
            None
        }
    }
}

/// The session with an id: that of registrations, or of other loaded events, or a new one.
fn session(engine: &Engine, lock: Lock<'_>, event: &TimeEvent) -> Arc<Session> {
    let id = event.session_id.as_str();
    if let Some(session) = engine.registry.sessions(|sessions| sessions.live(id)) {
        return session;
    }
    let mut sessions = SESSIONS.write(lock);
    let sessions = sessions.get_or_insert_default();
    if let Some(session) = sessions.get(id).and_then(Weak::upgrade) {
        return session;
    }
    sessions.retain(|_, session| session.strong_count() > 0);
    let session = Session::new(id.to_owned(), None, Needs::default());
    let session = Arc::new(session.owned_by(Owner::of_user(event.owner.made_by.clone())));
    sessions.insert(id.to_owned(), Arc::downgrade(&session));
    session
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    #[test]
    fn fuzz_time_events() {
        let seeds = [
            &b"1000\0session\0image"[..],
            b"1\0\0",
            b"18446744073709551615\0s\0i",
        ];
        let owner = Owner {
            made_by: Some("alice".into()),
            acts_as: Some("app".into()),
        };
        let owned = [&b"1\0s\0i\0"[..], &saved_owner(&owner)].concat();
        let seeds: Vec<Vec<u8>> = seeds.map(<[u8]>::to_vec).into_iter().chain([owned]).collect();
        fuzz("time-event", &seeds, |input| {
            let words: Vec<_> = input.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
            match parts(words.clone()) {
                Ok(read) => {
                    assert!(!read.period.is_zero());
                    assert_eq!(
                        [read.session_id.as_bytes(), &read.image],
                        [&words[1][..], &words[2]]
                    );
                    // What it is saved as is read back.
                    let saved = vec![
                        read.period.as_millis().to_string().into_bytes(),
                        read.session_id.clone().into_bytes(),
                        read.image.clone(),
                        saved_owner(&read.owner),
                    ];
                    assert_eq!(parts(saved), Ok(read));
                    "read".to_owned()
                }
                Err(error) => error,
            }
        });
    }
}
