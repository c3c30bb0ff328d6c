//! The event side of the KeysReader: which notification starts which executions. Contract:
//! docs/contract/readers-and-events.md chapters 2 and 9.
//!
//! Called on whichever thread holds the server's lock while the server notifies: it copies bytes into a queue and returns.
//! A `sync` function gets the key as it is now, and runs when the command has ended that caused the event ([`after`]).

use std::{cell::Cell, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    image::Image,
    keys_event::{KEY_MISS, Occurred, Pending},
    reachability,
};
use crate::{
    engine::{
        Engine,
        brief::{Event, Spare},
        prefix::Pattern,
        registration::{Mode, Peers, Registration, Trigger},
        reuse::Pool,
    },
    error::Error,
    hooks::Hooks,
    per_thread::per_thread,
    server::{
        after::{self, after_command},
        events::{Changes, Class, KeyEvent},
        guarded::Guarded,
        key::{self, Kind},
        lock::Lock,
        reply::Reply,
    },
};

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
        watched.misses |= misses;
        watched.changes = watched.changes.and(more);
        drop(watched);
        if misses {
            (self.subscribe)(lock, Class::KeyMiss);
        }
        if more != Changes::NONE {
            (self.subscribe)(lock, Class::Changes(more));
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
        let occurred = Occurred::new(event, watch.conditions.read_value);
        if sync {
            let allowed = occurred.check(event.lock, registration.actor.as_deref());
            let noted = Event {
                db: event.db,
                record: allowed.map(|()| occurred.record(Some(event.lock))),
                link,
                may_wait: self.hooks.may_wait(event.lock).into(),
            };
            let (engine, watch) = (Arc::clone(&self.engine), Arc::clone(watch));
            after_command(event.lock, move |lock| run_sync(&engine, lock, &watch, noted));
            return;
        }
        let coalesced = link.as_ref().filter(|_| watch.conditions.coalesce);
        let source = Box::new(Pending::new(
            occurred,
            coalesced.map(|hold| Arc::clone(hold.link())),
        ));
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
