//! What the machine knows of one registration: its limits, its counters, and the keys whose loads have not begun.

use std::{collections::VecDeque, time::Duration};

use super::{Keys, Time, pace::Breaker};

/// The limits of a registration.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub timeout: Option<Duration>,
    pub negative_ttl: Duration,
    pub max_waiting: usize,
    pub max_loads: usize,
    pub max_load_time: Duration,
    /// Zero: none.
    pub backoff: Duration,
    pub max_backoff: Duration,
    pub breaker: Option<(u32, Duration)>,
    pub batch: usize,
    pub batch_wait: Duration,
    /// A command that only reads finds nothing where a key cannot be loaded, and is not refused for it.
    pub misses: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: None,
            negative_ttl: Duration::ZERO,
            max_waiting: 2000,
            max_loads: usize::MAX,
            max_load_time: Duration::from_secs(30),
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            breaker: None,
            batch: 1,
            batch_wait: Duration::from_millis(1),
            misses: false,
        }
    }
}

/// What has happened so far. All but the last two only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Commands that waited.
    pub misses: u64,
    /// Keys that were loaded, or were to be.
    pub loads: u64,
    /// Calls of the loader.
    pub batches: u64,
    pub load_failures: u64,
    pub timeouts: u64,
    pub refusals: u64,
    pub shared: u64,
    pub refreshes: u64,
    /// Values that were not stored, because something happened to the key.
    pub dropped_by_lease: u64,
    pub waiting: u64,
    pub loading: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.misses += other.misses;
        self.loads += other.loads;
        self.batches += other.batches;
        self.load_failures += other.load_failures;
        self.timeouts += other.timeouts;
        self.refusals += other.refusals;
        self.shared += other.shared;
        self.refreshes += other.refreshes;
        self.dropped_by_lease += other.dropped_by_lease;
        self.waiting += other.waiting;
        self.loading += other.loading;
    }
}

/// So many loads that have ended may stand among the deadlines before they are looked for.
const ENDED: u64 = 64;

/// Keys that go to the loader together.
pub struct Chunk {
    pub db: i32,
    pub keys: Keys,
    /// When it goes although there is room for more.
    pub due: Time,
}

/// Until when the loads of a registration may take, in the order in which they began: all have the same time. Most end long before, and
/// then nobody looks for theirs here.
#[derive(Default)]
pub struct Deadlines {
    times: VecDeque<(Time, u64)>,
    /// The machine comes back when the first one is over.
    is_watched: bool,
}

impl Deadlines {
    /// A load begins. True if nothing tells the machine yet to come back. `runs`: whether a load that began has not ended; `loading`: how
    /// many such there are.
    pub fn begin(&mut self, until: Time, load: u64, loading: u64, runs: impl Fn(u64) -> bool) -> bool {
        if self.times.len() as u64 > 2 * loading + ENDED {
            self.times.retain(|&(_, load)| runs(load));
        }
        self.times.push_back((until, load));
        !std::mem::replace(&mut self.is_watched, true)
    }

    /// The machine is back. A load whose time is over, each time another one; or else when to come back, if any load runs.
    pub fn next(&mut self, now: Time, runs: impl Fn(u64) -> bool) -> Result<u64, Option<Time>> {
        while let Some(&(until, load)) = self.times.front() {
            if runs(load) {
                if until > now {
                    return Err(Some(until));
                }
                self.times.pop_front();
                return Ok(load);
            }
            self.times.pop_front();
        }
        self.is_watched = false;
        Err(None)
    }
}

/// Whether the loader of a registration can be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    #[default]
    Ready,
    /// Its functions are being loaded: who asks for keys waits for that, too.
    Awaited,
    /// They could not be loaded: who asks is refused.
    Missing,
}

/// One registration.
pub struct Rule {
    pub limits: Limits,
    pub standing: Standing,
    pub counts: Counts,
    pub breaker: Breaker,
    queue: VecDeque<Chunk>,
    queued: usize,
    pub deadlines: Deadlines,
}

impl Rule {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            standing: Standing::Ready,
            counts: Counts::default(),
            breaker: Breaker::default(),
            queue: VecDeque::new(),
            queued: 0,
            deadlines: Deadlines::default(),
        }
    }

    /// Keys whose load has not begun.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Adds keys that are missed by one command, of one database. The time at which they go, if that is not now.
    pub fn enqueue(&mut self, now: Time, keys: Keys) -> Option<Time> {
        let db = keys.first()?.db;
        self.queued += keys.len();
        let batch = self.limits.batch.max(1);
        let room = |chunk: &&mut Chunk| chunk.db == db && chunk.keys.len() + keys.len() <= batch;
        if let Some(chunk) = self.queue.back_mut().filter(room) {
            chunk.keys.extend(keys);
            return (chunk.keys.len() < batch).then_some(chunk.due);
        }
        // One that has no room for them waits for no more.
        if let Some(chunk) = self.queue.iter_mut().rfind(|chunk| chunk.db == db) {
            chunk.due = now;
        }
        let due = if batch == 1 {
            now
        } else {
            now.saturating_add(self.limits.batch_wait)
        };
        if keys.len() <= batch {
            self.queue.push_back(Chunk { db, keys, due });
            return (due > now).then_some(due);
        }
        let mut keys = keys.into_iter().peekable();
        while keys.peek().is_some() {
            self.queue.push_back(Chunk {
                db,
                keys: keys.by_ref().take(batch).collect(),
                due,
            });
        }
        (due > now).then_some(due)
    }

    /// All keys whose load has not begun, which are forgotten.
    pub fn take_queued(&mut self) -> Keys {
        self.queued = 0;
        let chunks = std::mem::take(&mut self.queue);
        chunks.into_iter().flat_map(|chunk| chunk.keys).collect()
    }

    fn may_begin(&self) -> bool {
        self.standing == Standing::Ready && self.counts.loading < self.limits.max_loads as u64
    }

    /// The next keys that go now, if another load may run.
    pub fn next_chunk(&mut self, now: Time) -> Option<Chunk> {
        if !self.may_begin() {
            return None;
        }
        let batch = self.limits.batch.max(1);
        let place = self
            .queue
            .iter()
            .position(|chunk| chunk.keys.len() >= batch || chunk.due <= now)?;
        let chunk = self.queue.remove(place)?;
        self.queued -= chunk.keys.len();
        Some(chunk)
    }

    /// When a chunk that waits for more keys goes.
    pub fn next_due(&self) -> Option<Time> {
        if !self.may_begin() {
            return None;
        }
        self.queue.iter().map(|chunk| chunk.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_through::keys::Key;

    fn keys(names: &str) -> Keys {
        names
            .chars()
            .map(|name| Key::new(0, name.to_string().as_bytes()))
            .collect()
    }

    fn ms(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    fn sizes(rule: &mut Rule, now: u64) -> Vec<usize> {
        let now = ms(now);
        std::iter::from_fn(|| rule.next_chunk(now))
            .map(|chunk| chunk.keys.len())
            .collect()
    }

    #[test]
    fn keys_gather_until_a_batch_is_full_or_its_time_has_come() {
        let limits = Limits {
            batch: 4,
            batch_wait: ms(10),
            ..Limits::default()
        };
        let mut rule = Rule::new(limits);
        assert_eq!(rule.enqueue(ms(0), keys("a")), Some(ms(10)));
        assert_eq!(rule.enqueue(ms(5), keys("b")), Some(ms(10)));
        assert_eq!(sizes(&mut rule, 9), [0; 0]);
        assert_eq!(rule.next_due(), Some(ms(10)));
        assert_eq!(sizes(&mut rule, 10), [2]);
        rule.enqueue(ms(20), keys("ab"));
        // The three of one command go together: the two before them wait no longer.
        rule.enqueue(ms(21), keys("cde"));
        assert_eq!(sizes(&mut rule, 21), [2]);
        rule.enqueue(ms(22), keys("f"));
        assert_eq!(sizes(&mut rule, 22), [4]);
        rule.enqueue(ms(30), keys("abcdefghij"));
        assert_eq!(sizes(&mut rule, 30), [4, 4]);
        assert_eq!(sizes(&mut rule, 40), [2]);
        assert_eq!(rule.queued(), 0);
    }

    #[test]
    fn what_has_no_free_load_gathers_meanwhile() {
        let limits = Limits {
            batch: 3,
            max_loads: 1,
            ..Limits::default()
        };
        let mut rule = Rule::new(limits);
        rule.counts.loading = 1;
        for name in ["a", "b", "c", "d"] {
            rule.enqueue(Duration::ZERO, keys(name));
        }
        assert_eq!(sizes(&mut rule, 1000), [0; 0]);
        rule.counts.loading = 0;
        assert_eq!(sizes(&mut rule, 1000), [3, 1]);
    }

    #[test]
    fn what_has_no_loader_yet_waits_for_it() {
        let mut rule = Rule::new(Limits::default());
        rule.standing = Standing::Awaited;
        rule.enqueue(ms(0), keys("a"));
        rule.enqueue(ms(0), keys("b"));
        assert_eq!((sizes(&mut rule, 1000), rule.next_due()), (vec![], None));
        rule.standing = Standing::Ready;
        assert_eq!(sizes(&mut rule, 1000), [1, 1]);
        rule.enqueue(ms(0), keys("cd"));
        assert_eq!(rule.take_queued().len(), 2);
        assert_eq!((rule.queued(), rule.next_due()), (0, None));
    }

    #[test]
    fn late_loads_come_in_their_order_and_those_that_ended_do_not() {
        let mut deadlines = Deadlines::default();
        assert!(
            deadlines.begin(ms(10), 1, 1, |_| true),
            "somebody has to come back"
        );
        assert!(!deadlines.begin(ms(12), 2, 2, |_| true));
        assert!(!deadlines.begin(ms(14), 3, 3, |_| true));
        let runs = |load| load != 1;
        assert_eq!(deadlines.next(ms(10), runs), Err(Some(ms(12))));
        assert_eq!(deadlines.next(ms(13), runs), Ok(2));
        assert_eq!(deadlines.next(ms(13), runs), Err(Some(ms(14))));
        assert_eq!(deadlines.next(ms(14), |_| false), Err(None));
        assert!(deadlines.begin(ms(30), 4, 1, |_| true), "and again");
    }

    #[test]
    fn deadlines_of_loads_that_ended_do_not_pile_up_behind_one_that_hangs() {
        let mut deadlines = Deadlines::default();
        for load in 1..10_000 {
            deadlines.begin(ms(load), load, 2, |other| other == 1 || other == load);
        }
        assert!(deadlines.times.len() < 100);
        assert_eq!(deadlines.next(ms(1), |load| load == 1), Ok(1));
    }
}
