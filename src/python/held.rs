//! Says in the log which function keeps Python to itself: C code that does not let go, e.g. a long `re.match`. No limit can end it, and
//! all other functions wait.
//!
//! One thread asks for Python now and then; another one, which never does, sees that it does not get it. Who waits for Python wakes each
//! half-millisecond, to ask for it again. So of those whose functions run now it is one that sleeps, or computes, without that.

use std::{
    fs, io,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    attach::{apart, detached},
    current, interrupt,
};
use crate::{
    engine::{Engine, execution::Execution, phase::Status, stop::Stoppable},
    mutex::Mutex,
    server::api,
    threads,
};

/// What holds Python for longer than that is named.
const LIMIT: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(500);
/// How long threads are looked at.
const SAMPLE: Duration = Duration::from_millis(100);
/// Who wakes that often meanwhile waits for Python: a twentieth of what it would be with nobody else on the machine.
const WAKES: u64 = 10;
/// Processor time of one that computes, in hundredths of a second.
const COMPUTES: u64 = 3;

/// When Python was asked for, in milliseconds from [`START`] on; 0 while nobody waits.
static ASKED: AtomicU64 = AtomicU64::new(0);
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// Python's id and the operating system's of threads that run functions.
static THREADS: Mutex<Vec<(u64, libc::pid_t)>> = Mutex::new(Vec::new());

/// This thread, which lives as long as the process, runs functions.
pub fn note_this_thread() {
    // SAFETY: asks for a number.
    let system = unsafe { libc::gettid() };
    THREADS.lock().push((interrupt::this_thread(), system));
}

/// Starts the two threads.
///
/// # Errors
/// The operating system gave none.
pub fn watch(engine: &Arc<Engine>) -> io::Result<()> {
    let asks = || {
        detached(|| {
            loop {
                thread::sleep(TICK);
                ASKED.store(now(), Ordering::Release);
                apart(|_| ());
                ASKED.store(0, Ordering::Release);
            }
        });
    };
    threads::spawn("pinion-ask".into(), asks)?;
    let engine = Arc::clone(engine);
    let looks = move || {
        let mut said = 0;
        loop {
            thread::sleep(TICK);
            let asked = ASKED.load(Ordering::Acquire);
            let waits = now().saturating_sub(asked);
            if asked == 0 || asked == said || u128::from(waits) < LIMIT.as_millis() {
                continue;
            }
            let culprits = culprits(&engine);
            // It may have let go while we looked.
            if ASKED.load(Ordering::Acquire) == asked {
                said = asked;
                api::log_warning(&line(&culprits, LIMIT));
            }
        }
    };
    threads::spawn("pinion-held".into(), looks).map(drop)
}

fn now() -> u64 {
    START.elapsed().as_millis() as u64 + 1
}

fn line(culprits: &[String], limit: Duration) -> String {
    let who = match culprits {
        [] => "code of no function that runs now (a thread that one has started?)".into(),
        [one] => one.clone(),
        several => format!("one of: {}", several.join("; ")),
    };
    format!(
        "Python has been held for more than {} ms by {who}: all other functions wait until it lets go. C code does so that computes, or \
         waits, without giving Python to others (a long re.match, an extension)",
        limit.as_millis()
    )
}

/// Those that run now and do not wait for Python.
fn culprits(engine: &Engine) -> Vec<String> {
    let mut running: Vec<_> = engine
        .registry
        .whole_executions()
        .0
        .iter()
        .filter(|execution| execution.status() == Status::Running)
        .map(|execution| {
            (
                execution.stop.thread.load(Ordering::Acquire),
                described(execution),
            )
        })
        .collect();
    running.extend(engine.holds_server());
    let of_loop = (current::loop_thread(), "a coroutine".to_owned());
    let threads = THREADS.lock().clone();
    let system = |id: u64| {
        threads
            .iter()
            .find(|(known, _)| *known == id)
            .map(|(_, system)| *system)
    };
    let known = |(id, what): (u64, String)| Some((system(id)?, what));
    let running: Vec<_> = running.into_iter().filter_map(known).collect();
    let of_loop = known(of_loop);
    let look = |&(thread, _): &(libc::pid_t, String)| Look::at(thread);
    let before: Vec<_> = running.iter().chain(&of_loop).map(look).collect();
    thread::sleep(SAMPLE);
    let mut names = Vec::new();
    for (index, (thread, what)) in running.iter().chain(&of_loop).enumerate() {
        let (Some(before), Some(after)) = (before[index], Look::at(*thread)) else {
            continue;
        };
        let waits = after.wakes.saturating_sub(before.wakes) >= WAKES;
        let computes = after.time.saturating_sub(before.time) >= COMPUTES;
        // The loop sleeps when it has nothing to do.
        let is_idle = index == running.len() && !computes;
        if !waits && !is_idle && !names.contains(what) {
            names.push(what.clone());
        }
    }
    names
}

fn described(execution: &Execution) -> String {
    let desc = execution
        .owner()
        .and_then(|registration| registration.desc.as_ref());
    match desc {
        Some(desc) => format!("{}, '{desc}'", execution.describe_fully()),
        None => execution.describe_fully(),
    }
}

/// What a thread has done so far.
#[derive(Clone, Copy)]
struct Look {
    /// How often it has slept and woken.
    wakes: u64,
    /// In hundredths of a second.
    time: u64,
}

impl Look {
    fn at(thread: libc::pid_t) -> Option<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/self/task/{thread}/{file}")).ok();
        Self::parse(&read("status")?, &read("stat")?)
    }

    fn parse(status: &str, stat: &str) -> Option<Self> {
        let wakes = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut times = fields.split_whitespace().skip(11);
        let mut time = || times.next()?.parse::<u64>().ok();
        Some(Self {
            wakes: wakes.trim().parse().ok()?,
            time: time()? + time()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sleeps_is_seen_to_wake() {
        // SAFETY: asks for a number.
        let this = unsafe { libc::gettid() };
        let before = Look::at(this);
        for _ in 0..20 {
            thread::sleep(Duration::from_micros(500));
        }
        let (Some(before), Some(after)) = (before, Look::at(this)) else {
            panic!("this system does not tell")
        };
        assert!(after.wakes - before.wakes >= WAKES);
    }

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "7 (a) b (c) S 1 1 1 0 -1 4 0 0 0 0 30 12 0 0 20 0 1";
        let look = Look::parse("Name: x\nvoluntary_ctxt_switches:\t9\n", stat);
        assert_eq!(look.map(|look| (look.wakes, look.time)), Some((9, 42)));
    }

    #[test]
    fn one_line_names_all_that_it_may_be() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert!(
            line(&names, LIMIT).starts_with("Python has been held for more than 1000 ms by one of: a; b: ")
        );
        assert!(line(&[], LIMIT).contains("no function"));
    }
}
