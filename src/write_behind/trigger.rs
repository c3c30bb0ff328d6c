//! A registration of `write_behind`: how it comes into force and goes. Its changes are captured as soon as it is known, also where
//! its functions are not there yet, and saved from [`Trigger::start`] on.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use serde::Serialize;

use super::{
    MOST_SINKS, Sink, WriteBehind,
    figures::Figures,
    machine::{FailedSave, Queue, Settled},
    options::Options,
};
use crate::{
    engine::{
        doubts,
        registration::{Claim, Peers, Registration, Trigger},
    },
    error::Error,
    server::{
        api,
        events::{Changes, Class},
        home,
        lock::{self, Lock},
        reply::Reply,
        snapshot::Snapshot,
        waiting,
    },
    threads,
};

/// So many changes are freed at once.
const FEW: usize = 10_000;

impl WriteBehind {
    /// The trigger of one registration.
    pub fn trigger(&self, options: Options) -> Box<dyn Trigger> {
        Box::new(SaveTrigger {
            behind: self.this.upgrade(),
            options: Arc::new(options),
        })
    }

    /// Captures changes for a registration, into the queue that its prefix has.
    fn capture(&self, lock: Lock<'_>, owner: &Arc<Registration>, options: &Arc<Options>, saves: bool) {
        let limits = options.limits(self.max_save_time());
        let now = self.now();
        let mut state = self.state.write(lock);
        let mut gone = std::mem::take(&mut state.gone);
        if let Some(sink) = state.sink(&options.prefix) {
            let is_another = sink.owner.id != owner.id;
            sink.owner = Arc::clone(owner);
            sink.options = Arc::clone(options);
            sink.queue.set_limits(limits);
            sink.saves = saves;
            sink.draining = false;
            sink.linked = false;
            if is_another {
                let running = sink.running;
                let has_begun = running.is_some_and(|call| self.engine.has_begun(call));
                sink.queue.hurry(now, has_begun);
                gone.keep(&mut sink.queue, &mut sink.figures);
            }
        } else if let Some(number) = state.free_number() {
            state.last_token += 1;
            let token = state.last_token;
            state.sinks.push(Sink {
                number,
                token,
                owner: Arc::clone(owner),
                saves,
                draining: false,
                options: Arc::clone(options),
                pattern: options.pattern(),
                queue: Queue::new(limits, u64::from(std::process::id()) ^ token),
                figures: Figures::default(),
                running: None,
                late: None,
                expected: 0,
                linked: false,
                logged: None,
                letters_logged: None,
            });
        }
        state.gone = gone;
        drop(state);
        self.hooks.unlink(lock, owner.id);
        // Also where removals are of no interest: the filter knows when keys move between shards.
        self.hooks.link_removals(lock, owner.id, &options.pattern());
        self.link_where_full(lock);
        self.loads.meet_writes(lock);
        if self.state.read(lock).tail.follows() {
            // It comes while data are loaded, behind others whose changes may come late.
            self.subscribe_to_follow(lock);
        }
        self.subscribe_wanted(lock);
        self.come();
    }

    /// Asks the server for the notifications that registrations need and did not need before. Not while data are loaded:
    /// nothing is captured then, and a server that selects databases for notifications would go on loading into the wrong one.
    fn subscribe_wanted(&self, lock: Lock<'_>) {
        if lock.is_loading() {
            return;
        }
        self.subscribe_now(lock);
    }

    /// Changes may come late from here on: what happens to keys is of interest on this server.
    pub(super) fn subscribe_to_follow(&self, lock: Lock<'_>) {
        if !home::is_needed() {
            self.subscribe_now(lock);
        }
    }

    fn subscribe_now(&self, lock: Lock<'_>) {
        let mut state = self.state.write(lock);
        let wanted = state.sinks.iter().map(|sink| sink.options.changes());
        let more = wanted.fold(Changes::NONE, Changes::and).without(state.subscribed);
        state.subscribed = state.subscribed.and(more);
        drop(state);
        if more != Changes::NONE {
            (self.subscribe)(lock, Class::Captured(more));
        }
    }

    /// Frees a queue with all that was not saved. A million changes take a good part of a second, which is a thread's own then.
    /// `waiting`: clients that may wait for one of them.
    fn let_go_of(&self, lock: Lock<'_>, queue: Queue<Snapshot>, waiting: BTreeSet<u64>) {
        if queue.len() <= FEW {
            return self.lose(lock, queue.waiters().collect());
        }
        let this = Weak::clone(&self.this);
        let freed = threads::spawn("pinion-free".into(), move || {
            if let Some(this) = this.upgrade().filter(|_| !waiting.is_empty()) {
                let lost: Vec<_> = queue
                    .waiters()
                    .filter(|number| waiting.contains(number))
                    .collect();
                this.lost.lock().extend(lost);
                this.wake();
            }
            drop(queue);
        });
        if freed.is_err() {
            // It has been freed here, and whoever waits hears that when his time is over.
            api::log_warning("write_behind: no thread could be started to free a queue");
        }
    }

    /// Clients wait for changes that nobody will save.
    pub(super) fn lose(&self, lock: Lock<'_>, numbers: Vec<u64>) {
        let why = Arc::new(FailedSave {
            kind: "Unregistered".into(),
            text: String::new(),
        });
        let mut state = self.state.write(lock);
        let clients: Vec<_> = numbers
            .into_iter()
            .filter_map(|number| {
                state.waiters.settle(number, Settled::Lost(Arc::clone(&why)))?;
                state.waiting.remove(&number)
            })
            .collect();
        drop(state);
        for waits in clients {
            waits.lost(&why.kind);
        }
    }

    /// What was loaded is notified of from now on, and saved.
    pub fn loading_ended(&self, lock: Lock<'_>) {
        self.subscribe_wanted(lock);
        self.come();
    }
}

/// What the readers' images have for this trigger (`readers::image`), which are above this room.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Image<'a> {
    WriteBehind(&'a Options),
}

struct SaveTrigger {
    /// There while the module is.
    behind: Option<Arc<WriteBehind>>,
    options: Arc<Options>,
}

impl Trigger for SaveTrigger {
    fn reader(&self) -> &'static str {
        "WriteBehind"
    }

    fn arguments(&self) -> Vec<(&'static str, Reply)> {
        self.options.shown()
    }

    fn image(&self) -> Vec<u8> {
        // Plain data: nothing in it can fail to be written to memory.
        rmp_serde::to_vec_named(&Image::WriteBehind(&self.options)).unwrap_or_default()
    }

    fn doubts(&self) -> Vec<String> {
        let events = self.options.events.iter().flatten();
        let of_events = events.filter_map(|event| doubts::of_event("events", event));
        doubts::of_prefix("prefix", &self.options.prefix)
            .into_iter()
            .chain(of_events)
            .collect()
    }

    fn check(&self, lock: Lock<'_>, peers: Peers<'_>) -> Result<(), Error> {
        let Some(behind) = &self.behind else { return Ok(()) };
        if !waiting::tells_when_it_sleeps() {
            return Err(Error::no_write_behind_here());
        }
        let prefix = &self.options.prefix;
        let state = behind.state.read(lock);
        let mut sinks = state.sinks.iter();
        let taken = sinks.any(|sink| sink.options.prefix == *prefix && !peers.replace(&sink.owner));
        if taken || peers.claims().any(|claim| claim == Claim::Saves(prefix)) {
            return Err(Error::saved_by_another(prefix));
        }
        let prepared = peers
            .claims()
            .filter(|claim| matches!(claim, Claim::Saves(_)))
            .count();
        if state.sinks.len() + prepared >= MOST_SINKS {
            return Err(Error::too_many_savers(MOST_SINKS));
        }
        Ok(())
    }

    fn start(&self, lock: Lock<'_>, registration: &Arc<Registration>) -> Result<(), Error> {
        if let Some(behind) = &self.behind {
            behind.capture(lock, registration, &self.options, true);
        }
        Ok(())
    }

    fn hold(&self, lock: Lock<'_>, registration: &Arc<Registration>) {
        if let Some(behind) = &self.behind {
            behind.capture(lock, registration, &self.options, false);
        }
    }

    fn stop(&self, lock: Lock<'_>, registration: &Registration) {
        let Some(behind) = &self.behind else { return };
        behind.hooks.unlink(lock, registration.id);
        let mut state = behind.state.write(lock);
        if let Some(sink) = state.sink(&self.options.prefix) {
            sink.saves = false;
            sink.linked = false;
        }
    }

    fn ended(&self, lock: Lock<'_>, registration: &Registration) {
        let Some(behind) = &self.behind else { return };
        // While others know the queue.
        behind.flush_before(lock);
        let mut state = behind.state.write(lock);
        let is_it =
            |sink: &Sink| sink.options.prefix == self.options.prefix && sink.owner.id == registration.id;
        let Some(place) = state.sinks.iter().position(is_it) else {
            return;
        };
        let mut sink = state.sinks.remove(place);
        state.gone.keep(&mut sink.queue, &mut sink.figures);
        state.notes.forget_sink(sink.number);
        state.tail.notes.forget_sink(sink.number);
        let waiting = state.waiting.iter();
        let waiting = waiting.filter(|(_, waits)| waits.sinks & sink.bit() != 0);
        let waiting = waiting.map(|(number, _)| *number).collect();
        drop(state);
        behind.let_go_of(lock, sink.queue, waiting);
        behind.come();
    }

    fn check_end(&self, lock: Lock<'_>) -> Result<(), Error> {
        let Some(behind) = &self.behind else { return Ok(()) };
        let mut state = behind.state.write(lock);
        let queued = state
            .sink(&self.options.prefix)
            .map_or(0, |sink| sink.queue.len());
        if queued > 0 {
            return Err(Error::not_saved_yet(&self.options.prefix, queued));
        }
        Ok(())
    }

    fn drain(&self, lock: Lock<'_>) {
        let Some(behind) = &self.behind else { return };
        if let Some(sink) = behind.state.write(lock).sink(&self.options.prefix) {
            sink.draining = true;
        }
    }

    fn claim(&self) -> Option<Claim<'_>> {
        Some(Claim::Saves(&self.options.prefix))
    }

    fn figures(&self, _finished: u64) -> Vec<(&'static str, Reply)> {
        let Some(behind) = &self.behind else {
            return Vec::new();
        };
        lock::with_lock(|lock| {
            let mut state = behind.state.write(lock);
            let now = behind.now();
            let sink = state.sink(&self.options.prefix);
            sink.map_or_else(Vec::new, |sink| sink.figures.shown(&sink.queue, now))
        })
    }

    fn clear_figures(&self) {
        let Some(behind) = &self.behind else { return };
        lock::with_lock(|lock| {
            let mut state = behind.state.write(lock);
            state.gone = super::figures::Totals::default();
            if let Some(sink) = state.sink(&self.options.prefix) {
                sink.figures = Figures::default();
                sink.queue.counts = super::machine::Counts::default();
            }
        });
    }
}
