//! Whether anybody hears of what is replicated: an AOF file, a replica, a backlog that one may ask for.
//!
//! Handing a command on costs two thousand instructions also where nobody hears of it. Whoever comes to hear of anything gets
//! all data first, which a forked process writes, or this server gets another role: the server tells of both. So after a
//! look at INFO that has found nobody there is nobody until one of that happens. All of it under the server's lock.

use std::time::{Duration, Instant};

use super::{figures, guarded::Guarded, lock::Lock};

/// How long a look holds that has found somebody.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
enum Audience {
    /// The server does not tell when it changes: there may always be somebody.
    Untold,
    /// There may be somebody; when that was looked at last.
    Perhaps(Option<Instant>),
    Nobody,
}

static AUDIENCE: Guarded<Audience> = Guarded::new(Audience::Untold);

/// How often somebody may have come.
static ARRIVALS: Guarded<u64> = Guarded::new(0);

/// The server tells of processes that it forks. Called once, while the module loads.
pub(super) fn is_told(lock: Lock<'_>) {
    *AUDIENCE.write(lock) = Audience::Perhaps(None);
}

/// A process was forked, the role has changed, data are loaded: there may be somebody now.
pub(super) fn may_have_come(lock: Lock<'_>) {
    *ARRIVALS.write(lock) += 1;
    let mut audience = AUDIENCE.write(lock);
    if !matches!(*audience, Audience::Untold) {
        *audience = Audience::Perhaps(Some(Instant::now()));
    }
}

/// Another number whenever somebody may have come to hear of what is handed on, who knows only what is handed on from then on.
/// `None` where the server does not tell of that.
pub fn generation(lock: Lock<'_>) -> Option<u64> {
    (!matches!(*AUDIENCE.read(lock), Audience::Untold)).then(|| *ARRIVALS.read(lock))
}

/// In this turn of the server's loop somebody wanted to know whether anybody is there.
static ASKED: Guarded<bool> = Guarded::new(false);

/// False if whatever is handed on would be heard by nobody.
pub fn is_there(lock: Lock<'_>) -> bool {
    let there = !matches!(*AUDIENCE.read(lock), Audience::Nobody);
    if there {
        *ASKED.write(lock) = true;
    }
    there
}

/// Another turn of the server's loop ends. Looks whether there is anybody, where that is not known, somebody wants to know and it
/// was not looked at lately.
pub fn next_turn(lock: Lock<'_>) {
    if !std::mem::take(&mut *ASKED.write(lock)) {
        return;
    }
    let Audience::Perhaps(looked) = *AUDIENCE.read(lock) else {
        return;
    };
    if looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
        return;
    }
    let replication = figures::read(
        lock,
        c"replication",
        [c"connected_slaves", c"repl_backlog_active"],
    );
    let files = figures::read(lock, c"persistence", [c"aof_enabled", c"loading"]);
    let nobody = replication == [Some(0); 2] && files == [Some(0); 2] && lock.is_master();
    *AUDIENCE.write(lock) = if nobody {
        Audience::Nobody
    } else {
        Audience::Perhaps(Some(Instant::now()))
    };
}
