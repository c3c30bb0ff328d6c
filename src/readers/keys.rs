//! The event side of the KeysReader: which notification starts which executions. Contract:
//! docs/contract/readers-and-events.md chapters 2 and 9.
//!
//! Called on whichever thread holds the server's lock while the server notifies: it copies bytes into a queue and returns.
//! A `sync` function gets the key as it is now, and runs when the command has ended that caused the event ([`after`]).

use std::{borrow::Cow, cell::Cell, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{image::Image, reachability};
use crate::{
    engine::{
        Engine,
        brief::{Event, Spare},
        language::{Failure, with_lock},
        linked_command::LinkedCommand,
        prefix::Pattern,
        record::{self, Record},
        registration::{Mode, Peers, Registration, Trigger},
        reuse::Pool,
        source::{Reading, Source},
    },
    error::Error,
    hooks::Hooks,
    per_thread::per_thread,
    server::{
        after::{self, after_command},
        events::{Changes, Class, KeyEvent},
        guarded::Guarded,
        home,
        key::{self, Kind, Value},
        lock::Lock,
        reply::Reply,
        rights::Actor,
    },
};

const KEY_MISS: &str = "keymiss";

per_thread! {
    /// Set while a `sync` function of this reader runs: what it does fires nothing here.
    static IN_SYNC: Cell<bool> = Cell::new(false);
}

/// What must hold for an event to start an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// As given.
    pub prefix: String,
    /// Event names as given; `None` for all.
    pub events: Option<Vec<String>>,
    pub kinds: Option<Vec<Kind>>,
    /// Command names as given; `None` if the registration is not restricted to commands.
    pub commands: Option<Vec<String>>,
    /// Records have a type and a value.
    pub read_value: bool,
    /// An execution that stands behind another one of its key is not run if the key is there by then.
    #[serde(default)]
    pub coalesce: bool,
}

impl Conditions {
    fn names_event(&self, event: &[u8]) -> bool {
        self.events.as_ref().is_none_or(|events| {
            // Nearly always in the server's own letters.
            events
                .iter()
                .any(|name| name.as_bytes() == event || name.as_bytes().eq_ignore_ascii_case(event))
        })
    }

    /// True if nothing but a missed key can fire.
    fn only_misses(&self) -> bool {
        self.events.as_ref().is_some_and(|events| !events.is_empty()) && self.changes() == Changes::NONE
    }

    /// The changes that can fire.
    fn changes(&self) -> Changes {
        let Some(events) = &self.events else {
            return Changes::ALL;
        };
        let changes = events.iter().filter(|name| !name.eq_ignore_ascii_case(KEY_MISS));
        changes.fold(Changes::NONE, |all, name| all.and(Changes::of_event(name)))
    }
}

/// The notifications that are needed, told to the server when first needed.
pub type Subscribe = fn(Lock<'_>, Class);

/// All KeysReader registrations of this server, in their order.
pub struct KeysWatch {
    engine: Arc<Engine>,
    hooks: Arc<Hooks>,
    subscribe: Subscribe,
    watched: Guarded<Watched>,
}

struct Watched {
    /// Shared with a notification under way, which a `sync` function may change the list under.
    list: Arc<Vec<Arc<Watch>>>,
    /// What the server was asked for.
    misses: bool,
    changes: Changes,
}

struct Watch {
    registration: Arc<Registration>,
    conditions: Arc<Conditions>,
    pattern: Pattern,
    /// For `sync` functions.
    spare: Spare,
    /// For others.
    pool: Arc<Pool>,
}

impl KeysWatch {
    pub fn new(engine: Arc<Engine>, hooks: Arc<Hooks>, subscribe: Subscribe) -> Arc<Self> {
        Arc::new(Self {
            engine,
            hooks,
            subscribe,
            watched: Guarded::new(Watched {
                list: Arc::default(),
                misses: false,
                changes: Changes::NONE,
            }),
        })
    }

    /// The trigger of one registration.
    pub fn trigger(self: &Arc<Self>, conditions: Conditions) -> Box<dyn Trigger> {
        Box::new(KeysTrigger {
            watch: Arc::clone(self),
            conditions: Arc::new(conditions),
        })
    }

    /// True if an event of this key may be some registration's.
    pub fn concerns(&self, lock: Lock<'_>, key: &[u8]) -> bool {
        let watched = self.watched.read(lock);
        watched.list.iter().any(|watch| watch.pattern.matches(key))
    }

    /// What was loaded is notified of from now on.
    pub fn loading_ended(&self, lock: Lock<'_>) {
        self.subscribe_wanted(lock);
    }

    /// Asks the server for the notifications that registrations need and did not need before. Not while data are loaded:
    /// nothing fires then, and a server that selects databases for notifications would go on loading into the wrong one.
    fn subscribe_wanted(&self, lock: Lock<'_>) {
        if lock.is_loading() {
            return;
        }
        let mut watched = self.watched.write(lock);
        let wanted = |watch: &Arc<Watch>| watch.conditions.changes();
        let wanted = watched.list.iter().map(wanted).fold(Changes::NONE, Changes::and);
        let names_misses = |watch: &Arc<Watch>| watch.conditions.names_event(KEY_MISS.as_bytes());
        let misses = !watched.misses && watched.list.iter().any(names_misses);
        // The server's own events have one class each, so that none comes twice.
        let more = wanted.without(watched.changes);
        let first = watched.changes == Changes::NONE;
        watched.misses |= misses;
        watched.changes = watched.changes.and(more);
        drop(watched);
        if misses {
            (self.subscribe)(lock, Class::KeyMiss);
        }
        if more != Changes::NONE {
            (self.subscribe)(lock, Class::Changes(more));
            if first && home::is_needed() {
                self.hooks.keep_clients_home(lock);
            }
        }
    }

    /// One notification of the server.
    pub fn notify(&self, event: &KeyEvent<'_>) {
        if IN_SYNC.get() || !self.engine.is_serving() {
            return;
        }
        let list = Arc::clone(&self.watched.read(event.lock).list);
        for watch in list.iter().filter(|watch| watch.matches(&self.hooks, event)) {
            self.fire(watch, event);
        }
    }

    fn fire(&self, watch: &Arc<Watch>, event: &KeyEvent<'_>) {
        let registration = &watch.registration;
        let sync = registration.mode == Mode::Sync;
        if !sync && !self.engine.has_room(registration) {
            return;
        }
        let link = watch
            .conditions
            .commands
            .as_ref()
            .and_then(|_| self.hooks.hold_running(event.lock, sync));
        let occurred = Occurred {
            db: event.db,
            key: event.key.to_vec(),
            event: event_name(event.name),
            read_value: watch.conditions.read_value,
        };
        if sync {
            let allowed = occurred.check(event.lock, registration.actor.as_deref());
            let noted = Event {
                db: event.db,
                record: allowed.map(|()| occurred.record(Some(event.lock))),
                link,
                may_wait: self.hooks.may_wait(event.lock),
            };
            let (engine, watch) = (Arc::clone(&self.engine), Arc::clone(watch));
            after_command(event.lock, move |lock| run_sync(&engine, lock, &watch, noted));
            return;
        }
        let source = Box::new(Pending {
            occurred: Some(occurred),
            coalesced: link
                .as_ref()
                .filter(|_| watch.conditions.coalesce)
                .map(|hold| Arc::clone(hold.link())),
        });
        let lane = registration.lane_of_key(event.db, event.key);
        self.engine
            .submit_event(registration, &watch.pool, event.db, source, link, lane);
    }
}

/// Runs a `sync` function whose event's command has ended.
fn run_sync(engine: &Engine, lock: Lock<'_>, watch: &Watch, event: Event) {
    // The same transaction may have made a replica of the server: the event is lost then.
    if !engine.is_serving() {
        return;
    }
    // What the function causes in other readers follows when it has ended.
    let _alone = after::DeferGuard::enter(lock);
    let before = IN_SYNC.replace(true);
    engine.run_event(lock, &watch.registration, &watch.spare, event);
    IN_SYNC.set(before);
}

impl Watch {
    fn matches(&self, hooks: &Hooks, event: &KeyEvent<'_>) -> bool {
        let conditions = &self.conditions;
        self.pattern.matches(event.key)
            && conditions.names_event(event.name)
            && (conditions.events.is_some() || !event.only_by_name)
            && conditions
                .commands
                .as_deref()
                .is_none_or(|names| hooks.is_running_one_of(event.lock, names))
            && !self.registration.is_removed()
            && conditions
                .kinds
                .as_ref()
                .is_none_or(|kinds| kinds.contains(&key::kind(event.lock, event.db, event.key)))
    }
}

/// The trigger of one KeysReader registration.
struct KeysTrigger {
    watch: Arc<KeysWatch>,
    conditions: Arc<Conditions>,
}

impl KeysTrigger {
    fn pattern(&self) -> Pattern {
        Pattern::new(self.conditions.prefix.as_bytes())
    }
}

impl Trigger for KeysTrigger {
    fn reader(&self) -> &'static str {
        "KeysReader"
    }

    fn arguments(&self) -> Vec<(&'static str, Reply)> {
        let conditions = &self.conditions;
        let list = |names: Option<Vec<&str>>| names.map_or(Reply::Null, Reply::bulks);
        let given = |names: &Option<Vec<String>>| {
            list(
                names
                    .as_ref()
                    .map(|names| names.iter().map(String::as_str).collect()),
            )
        };
        let kinds = conditions.kinds.as_ref();
        let mut shown = vec![
            ("regex", Reply::bulk(&conditions.prefix)),
            ("eventTypes", given(&conditions.events)),
            (
                "keyTypes",
                list(kinds.map(|kinds| kinds.iter().map(|kind| kind.name()).collect())),
            ),
            ("hookCommands", given(&conditions.commands)),
        ];
        // As in 1.2 where it is not used.
        shown.extend(conditions.coalesce.then_some(("coalesce", Reply::Int(1))));
        shown
    }

    fn image(&self) -> Vec<u8> {
        Image::Keys(Conditions::clone(&self.conditions)).to_bytes()
    }

    fn doubts(&self) -> Vec<String> {
        reachability::of_conditions(&self.conditions)
    }

    fn check(&self, lock: Lock<'_>, _peers: Peers<'_>) -> Result<(), Error> {
        if let Some(commands) = &self.conditions.commands {
            self.watch.hooks.look_up(lock, commands, &self.pattern())?;
        }
        Ok(())
    }

    fn start(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        let watch = &self.watch;
        if let Some(commands) = &self.conditions.commands {
            let found = watch.hooks.look_up(lock, commands, &self.pattern())?;
            let only_misses = self.conditions.only_misses();
            watch
                .hooks
                .link(lock, registration.id, found, &self.pattern(), only_misses);
        }
        let mut watched = watch.watched.write(lock);
        let list = Arc::make_mut(&mut watched.list);
        list.push(Arc::new(Watch {
            registration: Arc::clone(registration),
            conditions: Arc::clone(&self.conditions),
            pattern: self.pattern(),
            spare: Spare::default(),
            pool: Arc::default(),
        }));
        // One that comes back when an upgrade fails has its old place.
        list.sort_by_key(|watch| watch.registration.id);
        drop(watched);
        watch.subscribe_wanted(lock);
        Ok(())
    }

    fn stop(&self, lock: Lock<'_>, registration: &Registration) {
        self.watch.hooks.unlink(lock, registration.id);
        let mut watched = self.watch.watched.write(lock);
        Arc::make_mut(&mut watched.list).retain(|watch| watch.registration.id != registration.id);
    }
}

/// One event that matched.
struct Occurred {
    db: i32,
    key: Vec<u8>,
    event: Cow<'static, str>,
    read_value: bool,
}

impl Occurred {
    /// Whether a user may see the record.
    ///
    /// # Errors
    /// He may not read the key.
    fn check(&self, lock: Lock<'_>, actor: Option<&Actor>) -> Result<(), Failure> {
        let Some(actor) = actor else { return Ok(()) };
        let kind = if self.read_value {
            key::kind(lock, self.db, &self.key)
        } else {
            Kind::Empty
        };
        Ok(actor.check_read(lock, &self.key, kind)?)
    }

    /// The record, with the key as it is now if `lock` is given and it must be looked at. A missed key is not there:
    /// it is looked at only if something may have stored it since.
    fn record(self, lock: Option<Lock<'_>>) -> Record {
        let content = match lock {
            _ if !self.read_value => None,
            _ if self.event == KEY_MISS => return Record::Native(record::Value::Missed(self.key)),
            Some(lock) => Some(key::read(lock, self.db, &self.key)),
            None => Some((Kind::Empty, Value::None)),
        };
        Record::Native(key_record(self.key, Some(self.event), content))
    }

    fn record_as_wanted(self, lock: Lock<'_>, delayed: bool) -> Record {
        if !self.read_value || (self.event == KEY_MISS && !delayed) {
            return self.record(None);
        }
        self.record_looked_at(lock)
    }

    fn record_looked_at(self, lock: Lock<'_>) -> Record {
        let content = key::read(lock, self.db, &self.key);
        Record::Native(key_record(self.key, Some(self.event), Some(content)))
    }
}

/// Makes the record when a worker asks for it.
struct Pending {
    occurred: Option<Occurred>,
    /// The link of a client whose command is run again if the key is there by then.
    coalesced: Option<Arc<LinkedCommand>>,
}

impl Source for Pending {
    fn next(&mut self, reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
        let Some(occurred) = self.occurred.take() else {
            return Ok(None);
        };
        if let Some(link) = self.coalesced.take().filter(|_| reading.delayed) {
            let language = reading.engine.language.as_ref();
            let there = with_lock(language, |lock| {
                key::kind(lock, occurred.db, &occurred.key) != Kind::Empty
            });
            if there {
                link.run_again();
                return Ok(None);
            }
        }
        if let Some(actor) = reading.actor {
            let language = reading.engine.language.as_ref();
            return with_lock(language, |lock| {
                occurred.check(lock, Some(actor))?;
                Ok(Some(occurred.record_as_wanted(lock, reading.delayed)))
            });
        }
        let still_missing = occurred.event == KEY_MISS && !reading.delayed;
        if !occurred.read_value || still_missing {
            return Ok(Some(occurred.record(None)));
        }
        let language = reading.engine.language.as_ref();
        Ok(Some(with_lock(language, |lock| occurred.record_looked_at(lock))))
    }

    fn is_at_hand(&self, reading: &Reading<'_>) -> bool {
        let coalesces = self.coalesced.is_some() && reading.delayed;
        let looks =
            |occurred: &Occurred| occurred.read_value && (occurred.event != KEY_MISS || reading.delayed);
        !coalesces && reading.actor.is_none() && !self.occurred.as_ref().is_some_and(looks)
    }

    fn is_at_end(&self) -> bool {
        self.occurred.is_none()
    }

    fn is_single(&self) -> bool {
        true
    }
}

/// Most registrations are about misses: their name needs no allocation.
fn event_name(name: &[u8]) -> Cow<'static, str> {
    if name == KEY_MISS.as_bytes() {
        Cow::Borrowed(KEY_MISS)
    } else {
        Cow::Owned(String::from_utf8_lossy(name).into_owned())
    }
}

/// The record of a key (docs/contract/readers-and-events.md 2.1). Without `content` it has neither type nor value.
pub(super) fn key_record(
    key: Vec<u8>,
    event: Option<Cow<'static, str>>,
    content: Option<(Kind, Value)>,
) -> record::Value {
    let field = |name: &'static str, value| (Cow::Borrowed(name.as_bytes()), value);
    let event = event.map_or(record::Value::None, |event| match event {
        Cow::Borrowed(name) => record::Value::Name(name),
        Cow::Owned(name) => record::Value::Text(name.into_bytes()),
    });
    let mut fields = Vec::with_capacity(4);
    fields.push(field("key", record::Value::Text(key)));
    fields.push(field("event", event));
    if let Some((kind, value)) = content {
        // 1.2 calls the types that it does not know "unknown"; streams are what is left of them.
        let name = if kind == Kind::Stream {
            "unknown"
        } else {
            kind.name()
        };
        fields.push(field("type", record::Value::Name(name)));
        fields.push(field("value", value.into()));
    }
    record::Value::Dict(fields)
}

impl From<Value> for record::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::None => Self::None,
            Value::String(text) => Self::Text(text),
            Value::List(items) => Self::List(items.into_iter().map(Self::Text).collect()),
            Value::Hash(fields) => Self::Dict(
                fields
                    .into_iter()
                    .map(|(name, value)| (Cow::Owned(name), Self::Text(value)))
                    .collect(),
            ),
        }
    }
}
