//! The threads of the engine: workers that run executions, and one that stops those that somebody aborts.
//!
//! A worker stays attached to the language while there is work and waits detached. None of them ever ends.

use std::{sync::Arc, thread, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{Engine, execution::Execution, stop::INTERRUPT_INTERVAL, timers::Timers};
use crate::config::Number;

/// Starts all threads.
pub(super) fn spawn(engine: &Arc<Engine>, to_stop: Receiver<Arc<Execution>>) -> std::io::Result<()> {
    for number in 0..engine.config.number(Number::ExecutionThreads) {
        let engine = Arc::clone(engine);
        thread::Builder::new()
            .name(format!("pinion-{number}"))
            .spawn(move || engine.language.thread(&mut || work(&engine)))?;
    }
    Timers::start(engine)?;
    let stopping = Arc::clone(engine);
    thread::Builder::new()
        .name("pinion-stop".into())
        .spawn(move || stopping.language.thread(&mut || stop(&stopping, &to_stop)))?;
    let watching = Arc::clone(engine);
    thread::Builder::new()
        .name("pinion-watch".into())
        .spawn(move || {
            let engine = &watching;
            let limit = || {
                let limit = engine.config.limit(Number::SyncTimeout)?;
                Some(Duration::from_millis(limit as u64))
            };
            engine
                .language
                .thread(&mut || engine.sync_watch.watch(engine.language.as_ref(), limit));
        })?;
    Ok(())
}

fn work(engine: &Engine) {
    loop {
        engine.queue.wait();
        engine.language.attached(&mut || {
            while let Some(job) = engine.queue.next() {
                engine.run_job(&job.execution);
                if let Some(lane) = &job.lane {
                    engine.queue.advance(lane);
                }
            }
        });
    }
}

fn stop(engine: &Engine, to_stop: &Receiver<Arc<Execution>>) {
    let mut stopping: Vec<Arc<Execution>> = Vec::new();
    loop {
        let more = if stopping.is_empty() {
            to_stop.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            to_stop.recv_timeout(INTERRUPT_INTERVAL)
        };
        match more {
            Ok(execution) => stopping.push(execution),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        stopping.retain(|execution| !execution.status().is_final());
        for execution in &stopping {
            engine.language.interrupt(&execution.stop);
        }
    }
}
