//! The clock by which the engine measures: as the standard library's `Instant`, of which it has what is needed here, for a third of the
//! instructions. Executions look at it at their beginning and at their end.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// A moment of the clock that never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant {
    /// Since some moment of the system's choice; enough for centuries.
    nanos: u64,
}

impl Instant {
    #[inline]
    pub fn now() -> Self {
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the place is ours; each system has this clock.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        Self {
            nanos: now.tv_sec as u64 * NANOS + now.tv_nsec as u64,
        }
    }

    #[inline]
    pub fn elapsed(self) -> Duration {
        Self::now().saturating_duration_since(self)
    }

    /// Nothing if that one is later.
    #[inline]
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }

    /// `None` if that is beyond what the clock can say.
    pub fn checked_add(self, duration: Duration) -> Option<Self> {
        let nanos = u64::try_from(duration.as_nanos()).ok()?;
        let nanos = self.nanos.checked_add(nanos)?;
        Some(Self { nanos })
    }
}

const NANOS: u64 = 1_000_000_000;

impl Add<Duration> for Instant {
    type Output = Self;

    /// The last moment that there is, if that is beyond it.
    fn add(self, duration: Duration) -> Self {
        self.checked_add(duration).unwrap_or(Self { nanos: u64::MAX })
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_never_overflows() {
        let begin = Instant::now();
        let later = begin + Duration::from_millis(1_500);
        assert_eq!(later - begin, Duration::from_millis(1_500));
        assert_eq!(begin - later, Duration::ZERO);
        assert!(begin.checked_add(Duration::MAX).is_none() && begin + Duration::MAX > later);
        let slept = Duration::from_millis(2);
        std::thread::sleep(slept);
        assert!(begin.elapsed() >= slept && Instant::now() > begin);
    }
}
