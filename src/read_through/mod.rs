//! `read_through`: values that are loaded when a client misses them. Contract: docs/contract/read-through.md; the way of a load is in
//! `docs/architecture.md`.
//!
//! `machine/` decides; `keys.rs` and `bounded.rs` are its tables, `life.rs` computes lifetimes. All of
//! these are pure, without server or Python. `options.rs`: what a script says; `trigger.rs`: how a registration comes and goes;
//! `refresh.rs`: loads on request; `brought.rs`: what a loader returned; `about.rs`: what is known of one key; `behind.rs`: changes of `write_behind` that are not saved, `elsewhere.rs`: those of
//! other shards; `room.rs`: what rests while memory is short; `figures.rs`: counters. This file is
//! where the server comes in; `pump.rs` does what the machine says, `landing.rs` stores what was loaded, `answer.rs` answers the clients that waited.
//!
//! All state lives under the server's lock, but for the inbox of what loaders have brought.

mod about;
mod answer;
mod behind;
pub mod bounded;
mod brought;
mod elsewhere;
mod figures;
mod happening;
pub mod keys;
mod landing;
mod life;
mod machine;
pub mod options;
mod pump;
mod refresh;
mod room;
mod trigger;

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use smallvec::SmallVec;

pub use about::{Facts, ms};
pub use behind::{Newest, Unsaved};
pub use brought::{Strangers, Values, raised};
pub use elsewhere::Elsewhere;
pub use keys::Key;
pub use life::Lifetime;
pub use pump::check_keys;

use self::{
    bounded::Bounded,
    brought::Brought,
    figures::Figures,
    life::Age,
    machine::{Ask, Bounds, Change, Machine, NoValue, Purpose, Time},
    options::Options,
    room::Room,
};
use crate::{
    clock::Instant,
    config::Number,
    engine::{
        Engine,
        id::{ById, Id},
        language::{Failure, Function},
        prefix::Pattern,
        record::Record,
        registration::Registration,
        reuse::Pool,
    },
    hashing::ByNumber,
    hooks::{Awaiting, Hooks, Hot, Loads, Missing, Wait},
    mutex::Mutex,
    server::{
        command::Command,
        events::Class,
        guarded::Guarded,
        key::Life,
        lock::Lock,
        reply::Reply,
        store::{self, Content},
        string::Held,
        waiting::{self, Note},
    },
};

/// What a loader brought for one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// `None`: there is no such value.
    pub content: Option<Content>,
    pub lifetime: Lifetime,
}

/// Why a load failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedLoad {
    /// The type of what was raised: what clients see.
    pub kind: String,
    /// All of it, for the log.
    pub text: Failure,
}

/// Makes plain values of what a function of the language returned. Called attached to it.
pub trait Unpack: Send + Sync {
    /// One value for each key, in their order. `batch`: the loader got the list of them; it is told of a dict without any. `ttl`: what tells how long a value is
    /// fresh.
    ///
    /// # Errors
    /// What was returned is not what is expected; none of the keys has a value then.
    fn unpack(
        &self,
        keys: &[Key],
        returned: Record,
        batch: Option<&Strangers>,
        ttl: Option<&dyn Function>,
    ) -> Result<Values, FailedLoad>;
}

/// All loads of this server.
pub struct ReadThrough {
    this: Weak<Self>,
    engine: Arc<Engine>,
    hooks: Arc<Hooks>,
    unpack: Arc<dyn Unpack>,
    subscribe: fn(Lock<'_>, Class),
    started: Instant,
    behind: OnceLock<Arc<dyn Unsaved>>,
    way: elsewhere::Way,
    state: Guarded<State>,
    inbox: Mutex<Vec<Brought>>,
    /// There is something in the inbox.
    has_mail: AtomicBool,
    /// When the latest load began no other one was under way.
    is_alone: AtomicBool,
    /// Functions that waited and do so no longer, by their number in the machine.
    given_up: Mutex<Vec<u64>>,
    /// The server was asked to come to [`ReadThrough::pump`] and has not come yet.
    awake: AtomicBool,
}

struct State {
    machine: Machine<Loaded>,
    served: ById<Served>,
    /// What registrations have counted that are gone.
    gone: figures::Totals,
    /// Those who wait, by their number in the machine.
    clients: ByNumber<Who>,
    /// Their numbers by their address.
    numbers: ByNumber<u64>,
    /// Those that are to be let go.
    leaving: VecDeque<(u64, Leave)>,
    /// Those that are let go when the lock is free again; kept empty.
    departing: SmallVec<[(Awaiting, Note); 1]>,
    /// The executions of loads.
    running: ByNumber<Running>,
    apart: elsewhere::Apart,
    /// How long values are fresh that are not kept as long as their registration says.
    lives: Bounded<f64>,
    /// What happens to this key is our own doing.
    storing: bool,
    /// The hash whose last fields have just expired: what deletes it next is no deletion by anybody.
    expired: Option<Key>,
    subscribed: bool,
    pace: answer::Pace,
    /// What loaders have brought while it is looked at; kept empty.
    landing: Vec<Brought>,
    /// When the next wake-up comes, which has not come yet.
    armed: Option<Time>,
}

/// How somebody is let go.
enum Leave {
    /// What he waited for is there: his command runs.
    Served,
    /// His command runs, whatever it finds.
    Plain,
    Reply(Reply),
}

/// Somebody who waits.
enum Who {
    Client(Awaiting),
    /// A function of ours or of the language.
    Told(Box<dyn FnOnce(Reply) + Send>),
}

/// The execution of a load.
struct Running {
    execution: Id,
    /// The name of its only key, where a command has given it.
    name: Option<Held>,
}

/// One registration as it serves.
struct Served {
    registration: Arc<Registration>,
    options: Arc<Options>,
    pattern: Pattern,
    hot: Arc<Hot>,
    figures: Figures,
    room: Room,
    /// Commands that change a part of a value are linked.
    meets_writes: bool,
    /// Executions of loads that have ended.
    pool: Arc<Pool>,
    strangers: Arc<Strangers>,
}

impl ReadThrough {
    pub fn new(
        engine: Arc<Engine>,
        hooks: Arc<Hooks>,
        unpack: Arc<dyn Unpack>,
        subscribe: fn(Lock<'_>, Class),
    ) -> Arc<Self> {
        let bounds = bounds(&engine);
        let seed = std::process::id().into();
        let loads = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            engine,
            hooks,
            unpack,
            subscribe,
            started: Instant::now(),
            behind: OnceLock::new(),
            way: elsewhere::Way::default(),
            state: Guarded::new(State {
                machine: Machine::new(bounds, seed),
                served: ById::default(),
                gone: figures::Totals::default(),
                clients: ByNumber::default(),
                numbers: ByNumber::default(),
                leaving: VecDeque::new(),
                departing: SmallVec::new(),
                running: ByNumber::default(),
                apart: elsewhere::Apart::default(),
                lives: Bounded::default(),
                storing: false,
                expired: None,
                subscribed: false,
                pace: answer::Pace::default(),
                landing: Vec::new(),
                armed: None,
            }),
            inbox: Mutex::default(),
            has_mail: AtomicBool::new(false),
            is_alone: AtomicBool::new(true),
            given_up: Mutex::default(),
            awake: AtomicBool::new(false),
        });
        loads.hooks.connect(Arc::clone(&loads) as _);
        loads.engine.connect_leftover(Arc::clone(&loads) as _);
        waiting::connect(waiting::Awaited::Load, Arc::clone(&loads) as _);
        loads
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }
}

/// What the options of the module allow.
fn bounds(engine: &Engine) -> Bounds {
    let count = |option| usize::try_from(engine.config.number(option)).unwrap_or(0);
    Bounds {
        absent: count(Number::ReadThroughMaxAbsent),
        backoffs: count(Number::ReadThroughMaxBackoffs),
        loads: count(Number::ReadThroughMaxLoads),
    }
}

impl State {
    /// A registration goes, and what it has counted stays.
    fn forget(&mut self, registration: Id) {
        if let (Some(served), Some(rule)) = (self.served.get(registration), self.machine.rule(registration)) {
            self.gone.keep(&served.hot, rule, &served.figures);
        }
        self.served.remove(registration);
        self.machine.remove_rule(registration);
    }

    /// The registration that loads a key.
    fn served_for(&self, name: &[u8]) -> Option<Id> {
        let matching = self
            .served
            .iter()
            .filter(|(_, served)| served.pattern.matches(name));
        let nearest = matching.max_by_key(|(_, served)| crate::hooks::nearness(&served.pattern));
        nearest.map(|(id, _)| id)
    }
}

impl Loads for ReadThrough {
    fn ageing(&self, lock: Lock<'_>, registration: Id, db: i32, name: &[u8], at_ms: i64, left_ms: i64) {
        // What is not saved yet would come back as it was.
        if !life::is_marked(at_ms) || self.is_changed(lock, db, name) {
            return;
        }
        let mut state = self.state.write(lock);
        let chance = state.machine.chance();
        let stored = state.lives.get(db, name).copied();
        let Some(served) = state.served.get_mut(registration) else {
            return;
        };
        let fresh = match served.options.ttl {
            options::Ttl::Seconds(seconds) => Some(stored.unwrap_or(seconds)),
            _ => stored,
        };
        let load_s = served.figures.mean_load_s();
        let age = life::age(&served.options, left_ms, fresh, load_s, 1.0 - chance);
        if age == Age::Fresh {
            return;
        }
        served.figures.stale_hits += u64::from(age == Age::Stale);
        let now = self.now();
        let rests = served.room.rests(now);
        drop(state);
        if rests && !store::has_room(lock, self.engine.features) {
            return;
        }
        let mut state = self.state.write(lock);
        let began = state.machine.refresh(now, registration, &Key::new(db, name));
        drop(state);
        if began {
            self.wake();
        }
    }

    fn is_stale(&self, lock: Lock<'_>, registration: Id, db: i32, name: &[u8], life: Life) -> bool {
        self.is_outdated(lock, registration, (db, name), life)
    }

    fn is_absent(&self, lock: Lock<'_>, registration: Id, db: i32, name: &[u8]) -> bool {
        let mut state = self.state.write(lock);
        if state.machine.absent_count() == 0 {
            return false;
        }
        let absent = state.machine.is_absent(self.now(), db, name);
        if let Some(served) = state.served.get_mut(registration).filter(|_| absent) {
            served.figures.negative_hits += 1;
        }
        absent
    }

    fn restore(&self, lock: Lock<'_>, registration: Id, db: i32, name: &[u8]) -> bool {
        !self.is_own_doubtful(lock, db, name) && self.restore_unsaved(lock, registration, db, name)
    }

    fn minds(&self, lock: Lock<'_>, db: i32, name: &[u8]) -> bool {
        self.state.read(lock).machine.concerns(db, name)
    }

    fn removed(&self, lock: Lock<'_>, db: i32, name: &[u8]) {
        if self.minds(lock, db, name) {
            self.changed(lock, db, name, Change::Removed);
        }
    }

    fn wait(&self, command: &Command<'_>, missing: &[Missing<'_>], writes: bool) -> Wait {
        if !self.engine.is_serving() {
            return Wait::No;
        }
        let lock = command.lock();
        let mut state = self.state.write(lock);
        state.machine.bounds = bounds(&self.engine);
        let db = command.db();
        let asks: SmallVec<[Ask; 1]> = missing
            .iter()
            .map(|missing| Ask {
                rule: missing.registration,
                key: Key::new(db, missing.name),
                present: missing.present,
            })
            .collect();
        let now = self.now();
        let asked = state.machine.ask(now, &asks, Purpose::Command { writes });
        match asked {
            Ok(number) => {
                drop(state);
                let wait = self.block(command, number, missing, writes);
                let name = match missing {
                    [missing] => command.hold(missing.position),
                    _ => None,
                };
                self.begin_at_once(lock, now, name);
                wait
            }
            Err((rule, why)) => match state.refusal(rule, &why, writes) {
                Some(reply) => Wait::Refused(reply.into()),
                None => Wait::No,
            },
        }
    }

    fn count_plain(&self, lock: Lock<'_>, registration: Id) {
        let mut state = self.state.write(lock);
        if let Some(served) = state.served.get_mut(registration) {
            served.figures.plain += 1;
        }
    }

    fn refuse_partial(&self, lock: Lock<'_>, registration: Id) -> Reply {
        self.state.write(lock).machine.count_refusal(registration);
        NoValue::CannotWait.into()
    }
}

impl ReadThrough {
    /// Lets the client of a command wait under its number in the machine. Where the server does not let it, the command runs on what
    /// is there, unless that would be saved.
    fn block(&self, command: &Command<'_>, number: u64, missing: &[Missing<'_>], writes: bool) -> Wait {
        let lock = command.lock();
        let client = self.hooks.block(command, waiting::Awaited::Load, writes);
        let mut state = self.state.write(lock);
        let Some(client) = client else {
            state.machine.release(number);
            drop(state);
            let partial = missing.iter().find(|missing| missing.partial);
            return partial.map_or(Wait::No, |partial| {
                Wait::Refused(self.refuse_partial(lock, partial.registration).into())
            });
        };
        state.numbers.insert(client.address() as u64, number);
        state.clients.insert(number, Who::Client(client));
        drop(state);
        self.come();
        Wait::Waits
    }

    /// Something is to be done. Where the server does not tell when it sleeps, it is asked to come.
    fn come(&self) {
        if !waiting::tells_when_it_sleeps() {
            self.wake();
        }
    }

    /// The server comes to [`ReadThrough::pump`] soon. From any thread.
    fn wake(&self) {
        if self.awake.swap(true, Ordering::AcqRel) {
            return;
        }
        if !waiting::wake() {
            let this = Weak::clone(&self.this);
            self.engine.timers.after(Duration::ZERO, move |_| {
                if let Some(this) = this.upgrade() {
                    crate::server::lock::with_lock(|lock| this.pump(lock));
                }
            });
        }
    }
}
