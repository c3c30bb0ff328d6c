//! While memory is short (`maxmemory`) what is loaded in the background cannot be stored, and the value that it was to replace is served on.
//! Each hit of it would begin a load: they rest, as behind failures, until there is room.

use super::{
    machine::Time,
    options::{Options, seconds},
};
use crate::backoff;

/// What a registration knows of it.
#[derive(Default)]
pub struct Room {
    /// Values in a row that could not be stored.
    lacked: u32,
    rests_until: Time,
}

impl Room {
    /// A value could not be stored.
    pub fn lacks(&mut self, now: Time, options: &Options, chance: f64) {
        self.lacked = self.lacked.saturating_add(1);
        let (first, most) = (seconds(options.backoff), seconds(options.max_backoff));
        self.rests_until = now.saturating_add(backoff::delay(self.lacked, first, most, chance));
    }

    /// Loads in the background are not to begin, unless there is room by now.
    pub fn rests(&self, now: Time) -> bool {
        self.lacked > 0 && now < self.rests_until
    }
}
