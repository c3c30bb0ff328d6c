//! Lifetimes: when a loaded value expires, how it is known again as one of ours, and when it is to be loaded anew.
//!
//! A value of `read_through` that may become stale or be refreshed carries a mark in its expiry, whose milliseconds
//! then have one certain remainder. That costs nothing and is there after a restart and on a new master. A value of a client has it by
//! chance, one in 64, and may then be loaded anew.

use super::options::{Ahead, Options, Ttl};

/// The remainder that marks, and what it is the remainder of: two milliseconds.
const MARK: i64 = 41;
const GRAIN: i64 = 64;
/// A shorter life is not marked: it would become noticeably another one.
const SHORTEST_MARKED_MS: i64 = 10 * GRAIN;

/// How far from its end at the most a value is loaded anew by chance, in load times: `-ln` of the smallest chance that one
/// needs to think of.
const XFETCH_REACH: f64 = 20.0;

/// How long what a loader brought lives.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Lifetime {
    /// As the registration says.
    #[default]
    Default,
    Seconds(f64),
    Endless,
    /// It answers, and is not kept.
    NotKept,
}

impl Lifetime {
    /// The seconds for which the value is fresh, if it ever ends.
    pub fn fresh_s(self, options: &Options) -> Option<f64> {
        match (self, options.ttl) {
            (Self::Seconds(seconds), _) | (Self::Default | Self::NotKept, Ttl::Seconds(seconds)) => {
                Some(seconds)
            }
            _ => None,
        }
    }
}

fn ms(seconds: f64) -> i64 {
    // Saturates, also for what is no number.
    (seconds * 1000.0).round() as i64
}

/// When a value that is fresh for so many seconds expires (Unix time in milliseconds). `chance`: from 0 to 1.
pub fn expires_ms(options: &Options, fresh_s: f64, now_ms: i64, chance: f64) -> i64 {
    let fresh = ms(fresh_s * (1.0 - options.jitter * chance));
    let life = fresh.saturating_add(ms(options.stale)).max(1);
    let at = now_ms.saturating_add(life);
    if life < SHORTEST_MARKED_MS || !marks(options) {
        return at;
    }
    // The nearest moment with the mark.
    let before = at - (at - MARK).rem_euclid(GRAIN);
    if at - before > GRAIN / 2 {
        before + GRAIN
    } else {
        before
    }
}

/// True if values may become stale or are refreshed.
pub fn marks(options: &Options) -> bool {
    options.stale > 0.0 || options.refresh_ahead != Ahead::Never
}

pub fn is_marked(expires_ms: i64) -> bool {
    expires_ms.rem_euclid(GRAIN) == MARK
}

/// Whether [`interesting_below_ms`] is another number whenever a load has ended.
pub fn follows_load_time(options: &Options) -> bool {
    options.refresh_ahead == Ahead::Xfetch
}

/// A hit whose value lives for less than so many milliseconds is to be looked at. `load_s`: how long a load takes.
pub fn interesting_below_ms(options: &Options, load_s: f64) -> i64 {
    let stale = ms(options.stale);
    let ahead = match (options.refresh_ahead, options.ttl) {
        (Ahead::Never, _) | (Ahead::Share(_), Ttl::Endless) => 0,
        (Ahead::Share(share), Ttl::Seconds(ttl)) => ms(ttl * share),
        // Each value has a life of its own.
        (Ahead::Share(_), Ttl::Function) => return i64::MAX,
        (Ahead::Xfetch, _) => ms(load_s * XFETCH_REACH),
    };
    if marks(options) {
        stale.saturating_add(ahead)
    } else {
        0
    }
}

/// For how long a value that lives for another `left_ms` is fresh; below zero it has been stale for so long.
pub fn fresh_left_ms(options: &Options, left_ms: i64) -> i64 {
    left_ms.saturating_sub(ms(options.stale))
}

/// What a hit says of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    Fresh,
    /// It is to be loaded anew before its time.
    Ageing,
    Stale,
}

/// The age of a value of ours that lives for another `left_ms`. `fresh_s`: for how long it was to be fresh, where that is known
/// of this very value; `chance`: above 0, up to 1.
pub fn age(options: &Options, left_ms: i64, fresh_s: Option<f64>, load_s: f64, chance: f64) -> Age {
    let fresh_left = fresh_left_ms(options, left_ms);
    if fresh_left <= 0 {
        return if options.stale > 0.0 {
            Age::Stale
        } else {
            Age::Fresh
        };
    }
    let ageing = match options.refresh_ahead {
        Ahead::Never => false,
        Ahead::Share(share) => fresh_s.is_some_and(|fresh| fresh_left < ms(fresh * share)),
        Ahead::Xfetch => fresh_left <= ms(-load_s * chance.max(f64::MIN_POSITIVE).ln()),
    };
    if ageing { Age::Ageing } else { Age::Fresh }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(ttl: f64, stale: f64) -> Options {
        Options {
            ttl: Ttl::Seconds(ttl),
            stale,
            ..Options::default()
        }
    }

    #[test]
    fn the_mark_moves_an_expiry_by_a_moment_only() {
        let options = options(5.0, 60.0);
        for now in 0..200 {
            let at = expires_ms(&options, 5.0, 1_700_000_000_000 + now, 0.0);
            assert!(is_marked(at));
            assert!((at - 1_700_000_000_000 - now - 65_000).abs() <= GRAIN / 2);
        }
        let plain = Options::default();
        let at = expires_ms(&plain, 5.0, 1_000, 0.0);
        assert_eq!(at, 6_000, "what never becomes stale is exact");
        assert_eq!(
            expires_ms(&options, f64::MAX, 1_000, 0.0).rem_euclid(2),
            1,
            "no overflow"
        );
    }

    #[test]
    fn jitter_only_shortens() {
        let mut options = options(100.0, 0.0);
        options.jitter = 0.5;
        assert_eq!(expires_ms(&options, 100.0, 0, 0.0), 100_000);
        assert_eq!(expires_ms(&options, 100.0, 0, 1.0), 50_000);
    }

    #[test]
    fn ages() {
        let mut options = options(10.0, 5.0);
        options.refresh_ahead = Ahead::Share(0.2);
        let age = |left| super::age(&options, left, Some(10.0), 0.1, 0.5);
        assert_eq!(
            [age(15_000), age(7_001), age(6_999), age(5_000), age(1)],
            [Age::Fresh, Age::Fresh, Age::Ageing, Age::Stale, Age::Stale]
        );
        assert_eq!(interesting_below_ms(&options, 0.1), 7_000);
        options.refresh_ahead = Ahead::Xfetch;
        options.stale = 0.0;
        assert_eq!(interesting_below_ms(&options, 0.1), 2_000);
        assert_eq!(super::age(&options, 100, None, 0.1, 0.99), Age::Fresh);
        assert_eq!(super::age(&options, 100, None, 0.1, 0.3), Age::Ageing);
    }
}
