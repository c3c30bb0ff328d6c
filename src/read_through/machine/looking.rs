//! What is known of one key, for whoever asks about it: nothing begins and nothing changes by that.

use std::time::Duration;

use super::{Backoff, Machine, Stage, Time};

/// A load that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenLoad {
    /// It waits for its turn.
    Queued,
    /// It has run for so long.
    Running(Duration),
}

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub load: Option<SeenLoad>,
    /// Clients and functions that wait for the key and have no reply yet.
    pub waiting: usize,
    /// For how long it is still known to be absent.
    pub absent_for: Option<Duration>,
    /// How many of its loads have failed in a row.
    pub failures: u32,
    /// For how long no command begins another one.
    pub backs_off_for: Option<Duration>,
}

impl<V> Machine<V> {
    pub fn look_at(&self, now: Time, db: i32, name: &[u8]) -> Seen {
        let flight = self.flights.get(db, name);
        let landed = self.landed.get(db, name).map_or(0, |landed| landed.left);
        let backoff = self.backoffs.get(db, name).map(|(_, backoff)| backoff);
        let until = self.absent.get(db, name).map(|(_, until)| *until);
        Seen {
            load: flight.map(|flight| match flight.stage {
                Stage::Queued => SeenLoad::Queued,
                Stage::Loading(load) => {
                    let begun = self.loads.get(&load).map_or(now, |load| load.begun);
                    SeenLoad::Running(now.saturating_sub(begun))
                }
            }),
            waiting: landed + flight.map_or(0, |flight| flight.live),
            absent_for: until
                .filter(|until| now < *until)
                .map(|until| until.saturating_sub(now)),
            failures: backoff.map_or(0, Backoff::failures),
            backs_off_for: backoff
                .filter(|backoff| !backoff.is_over(now))
                .map(|backoff| backoff.rest(now)),
        }
    }
}
