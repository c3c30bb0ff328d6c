//! How long to rest behind failures in a row: twice as long each time, up to a limit, and a little less by chance, so that many
//! who failed together do not come again together. Called by the machines of `read_through` and `write_behind`, on any thread.

use std::time::Duration;

/// The rest behind so many `failures` in a row, 1 at least. `first`: behind one. `jitter`: from 0 to 1, for which up to
/// half of it is left out.
pub fn delay(failures: u32, first: Duration, most: Duration, jitter: f64) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let doubled = first.saturating_mul(factor).min(most);
    doubled.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn it_doubles_up_to_its_limit_and_is_shorter_by_jitter_only() {
        let delays = [1, 2, 3, 4, 5, 6].map(|failures| delay(failures, ms(100), ms(1000), 0.0).as_millis());
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(delay(1, ms(100), ms(1000), 1.0), ms(50));
        assert_eq!(delay(1, ms(100), ms(1000), 7.0), ms(50));
        for many in [32, 33, u32::MAX] {
            assert_eq!(delay(many, ms(100), ms(1000), 0.0), ms(1000), "no overflow");
        }
        assert_eq!(delay(u32::MAX, Duration::MAX, Duration::MAX, 0.0), Duration::MAX);
    }
}
