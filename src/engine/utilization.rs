//! How busy the workers are: what tells whether one more of them would help. Most functions need the interpreter, which one
//! thread has at a time; several that want it only take it from each other.

use crate::clock::Instant;
use std::time::Duration;

/// How long is measured before a figure is told.
const WINDOW: Duration = Duration::from_millis(5);
/// The interpreter has time for one more: the workers wait for something else.
const IDLE: f64 = 0.6;
/// It has no time for several.
const BUSY: f64 = 0.85;
/// Workers that are so busy, each of them, do without the interpreter and hold nobody up.
const ALONE: f64 = 0.75;

/// The processor time that the workers have used lately.
#[derive(Default)]
pub struct Utilization {
    clocks: Vec<libc::clockid_t>,
    /// When the window began, and what the clocks showed then.
    since: Option<(Instant, Duration)>,
}

/// What is to be done about the number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing, or not yet.
    Stay,
    More,
    Fewer,
}

impl Utilization {
    /// Counts the time of this thread, which never ends.
    pub fn count_this_thread(&mut self) {
        let mut clock = 0;
        // SAFETY: asks for the clock of the calling thread.
        let known = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        if known == 0 {
            self.clocks.push(clock);
        }
    }

    /// The workers begin after a rest, which is not to count.
    pub fn restart(&mut self) {
        self.since = None;
    }

    /// Looks whether `workers` are too few or too many, if the window is over.
    pub fn advice(&mut self, workers: usize) -> Advice {
        let now = Instant::now();
        let Some((since, before)) = self.since else {
            self.since = Some((now, self.used()));
            return Advice::Stay;
        };
        let passed = now - since;
        if passed < WINDOW {
            return Advice::Stay;
        }
        let used = self.used();
        self.since = Some((now, used));
        advice(used.saturating_sub(before), passed, workers)
    }

    fn used(&self) -> Duration {
        self.clocks.iter().map(|&clock| used(clock)).sum()
    }
}

fn used(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock is that of a thread that never ends; zero stays where it cannot be read.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn advice(used: Duration, passed: Duration, workers: usize) -> Advice {
    let busy = used.as_secs_f64() / passed.as_secs_f64();
    if busy < IDLE {
        Advice::More
    } else if workers > 1 && busy > BUSY && busy < ALONE * workers as f64 {
        Advice::Fewer
    } else {
        Advice::Stay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_wait_get_help_and_those_that_compete_get_less() {
        let of = |used, workers| advice(Duration::from_millis(used), Duration::from_millis(100), workers);
        assert_eq!(of(20, 1), Advice::More, "it waits for a database");
        assert_eq!(of(98, 1), Advice::Stay, "it computes");
        assert_eq!(of(70, 2), Advice::Stay);
        assert_eq!(
            of(95, 2),
            Advice::Fewer,
            "they take the interpreter from each other"
        );
        assert_eq!(of(190, 2), Advice::Stay, "they compute without it");
    }

    #[test]
    fn a_thread_that_computes_is_busy() {
        let mut utilization = Utilization::default();
        utilization.count_this_thread();
        assert_eq!(utilization.clocks.len(), 1, "it has a clock of its own");
        let begun = utilization.used();
        assert_eq!(utilization.advice(1), Advice::Stay, "the window begins");
        let started = Instant::now();
        while utilization.used() < begun + 2 * WINDOW && started.elapsed() < Duration::from_secs(20) {}
        let _ = utilization.advice(1);
        assert!(utilization.since.is_some_and(|(_, used)| used >= begun + WINDOW));
        utilization.restart();
        assert_eq!(utilization.advice(1), Advice::Stay, "another window begins");
    }
}
