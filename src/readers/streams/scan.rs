//! Looks for the streams of StreamReader registrations: after their registration, after a load or a promotion, after a
//! pause, before a retry. Contract: docs/contract/readers-and-events.md 6.5, with the prefix rule for scans too.
//!
//! One thread, detached from the language; it takes the server's lock for small portions.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;

use super::{DB, StreamWatch, Watch};
use crate::{
    engine::prefix::Pattern,
    server::{
        key::{self, Kind},
        lock::{self, Lock},
        walk::Walk,
    },
    threads,
};

/// How long the server's lock is held at most for looking.
const PORTION: Duration = Duration::from_micros(500);
/// How long it is left alone between two portions.
const PAUSE: Duration = Duration::from_micros(100);

/// Starts the thread.
pub(super) fn spawn(streams: &Arc<StreamWatch>, wanted: Receiver<Arc<Watch>>) -> std::io::Result<()> {
    let streams = Arc::clone(streams);
    threads::spawn("pinion-scan".into(), move || {
        let language = Arc::clone(&streams.engine.language);
        language.thread(&mut || {
            for watch in &wanted {
                // A panic loses this scan only; the panic hook has logged it.
                let _ = catch_unwind(AssertUnwindSafe(|| scan(&streams, &watch)));
            }
        });
    })?;
    Ok(())
}

fn scan(streams: &Arc<StreamWatch>, watch: &Arc<Watch>) {
    if let Pattern::Exactly(name) = &watch.pattern {
        lock::with_lock(|lock| {
            if key::kind(lock, DB, name) == Kind::Stream {
                streams.found(lock, watch, name);
            }
        });
        return;
    }
    let mut walk = Walk::new(DB);
    let mut more = true;
    while more && !watch.registration.is_removed() && streams.engine.is_serving() {
        let mut names = Vec::new();
        lock::with_lock(|lock| {
            more = look(lock, &mut walk, &watch.pattern, &mut names);
        });
        for name in names {
            lock::with_lock(|lock| streams.found(lock, watch, &name));
        }
        thread::sleep(PAUSE);
    }
}

/// Adds the streams that are found within one portion. False when the walk has ended.
fn look(lock: Lock<'_>, walk: &mut Walk, pattern: &Pattern, names: &mut Vec<Vec<u8>>) -> bool {
    let until = Instant::now() + PORTION;
    loop {
        let more = walk.step(lock, &mut |found| {
            if pattern.matches(found.name) && found.kind() == Kind::Stream {
                names.push(found.name.to_vec());
            }
        });
        if !more || Instant::now() >= until {
            return more;
        }
    }
}
