//! What keeps a source that fails from being asked too often: the back-off of one key, the breaker of a registration.

use std::time::Duration;

use super::Time;
use crate::backoff;

/// What is known of a key whose loads failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    until: Time,
}

impl Backoff {
    /// One more failure. `jitter`: from 0 to 1.
    pub fn after_failure(
        before: Option<Self>,
        now: Time,
        first: Duration,
        most: Duration,
        jitter: f64,
    ) -> Self {
        let failures = before.map_or(1, |before| before.failures.saturating_add(1));
        let delay = backoff::delay(failures, first, most, jitter);
        Self {
            failures,
            until: now.saturating_add(delay),
        }
    }

    pub fn is_over(&self, now: Time) -> bool {
        now >= self.until
    }

    /// How many loads have failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long it goes on; zero when it is over.
    pub fn rest(&self, now: Time) -> Duration {
        self.until.saturating_sub(now)
    }
}

/// After so many failed loads in a row none is begun for a while, but one trial at its end.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    open_until: Option<Time>,
    trial: Option<u64>,
}

impl Breaker {
    /// True if a load may begin now.
    pub fn allows(&self, now: Time) -> bool {
        self.open_until
            .is_none_or(|until| now >= until && self.trial.is_none())
    }

    /// Load `number` begins, which was allowed.
    pub fn begun(&mut self, number: u64) {
        if self.open_until.is_some() {
            self.trial = Some(number);
        }
    }

    /// It ended. `limit`: how many failures in a row open the breaker, and for how long.
    pub fn ended(&mut self, number: u64, failed: bool, now: Time, limit: (u32, Duration)) {
        let was_trial = self.trial == Some(number);
        if was_trial {
            self.trial = None;
        }
        if !failed {
            // One that began before it opened tells nothing new while it is open.
            if self.open_until.is_none() || was_trial {
                *self = Self::default();
            }
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if was_trial || (self.open_until.is_none() && self.failures >= limit.0) {
            self.open_until = Some(now.saturating_add(limit.1));
        }
    }

    /// The trial ended without telling anything.
    pub fn forget(&mut self, number: u64) {
        if self.trial == Some(number) {
            self.trial = None;
        }
    }

    /// True until a trial ends well.
    pub fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// How long no load begins, if it is open.
    pub fn rest(&self, now: Time) -> Option<Duration> {
        self.open_until.map(|until| until.saturating_sub(now))
    }

    pub fn state(&self, now: Time) -> &'static str {
        match self.open_until {
            None => "closed",
            Some(until) if now < until => "open",
            Some(_) => "half-open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_back_off_grows_with_each_failure_and_ends() {
        let mut known = None;
        let mut delays = Vec::new();
        for _ in 0..6 {
            let next = Backoff::after_failure(known, ms(0), ms(100), ms(1000), 0.0);
            delays.push(next.until.as_millis());
            known = Some(next);
        }
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        let early = Backoff::after_failure(None, ms(0), ms(100), ms(1000), 1.0);
        assert!(!early.is_over(ms(49)) && early.is_over(ms(50)));
        let many = Backoff {
            failures: u32::MAX,
            until: ms(0),
        };
        let next = Backoff::after_failure(Some(many), ms(0), ms(100), ms(1000), 0.0);
        assert_eq!((next.failures, next.until), (u32::MAX, ms(1000)));
    }

    #[test]
    fn a_breaker_opens_tries_once_and_closes() {
        let limit = (2, ms(1000));
        let mut breaker = Breaker::default();
        breaker.ended(1, true, ms(0), limit);
        breaker.ended(2, false, ms(0), limit);
        breaker.ended(3, true, ms(0), limit);
        assert!(breaker.allows(ms(0)), "not in a row");
        breaker.ended(4, true, ms(0), limit);
        assert_eq!(breaker.state(ms(0)), "open");
        assert!(!breaker.allows(ms(999)));
        breaker.ended(5, false, ms(10), limit);
        assert!(!breaker.allows(ms(999)), "it began before");
        assert!(breaker.allows(ms(1000)));
        breaker.begun(6);
        assert!(!breaker.allows(ms(1001)), "one trial");
        breaker.ended(6, true, ms(1500), limit);
        assert!(!breaker.allows(ms(2499)) && breaker.allows(ms(2500)));
        breaker.begun(7);
        breaker.forget(7);
        assert!(breaker.allows(ms(2500)), "a trial that was dropped makes room");
        breaker.begun(8);
        breaker.ended(8, false, ms(2600), limit);
        assert_eq!(breaker.state(ms(2600)), "closed");
    }
}
