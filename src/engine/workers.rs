//! The threads of the engine: workers that run executions, and one that stops those that somebody aborts.
//!
//! A worker stays attached to the language while there is work and waits detached. None of them ever ends.

use std::{sync::Arc, thread, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{Engine, execution::Execution, run};
use crate::config::Number;

/// How often a running callback is asked to stop, until its execution is finished.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(1);

/// Starts all threads.
pub(super) fn spawn(engine: &Arc<Engine>, to_stop: Receiver<Arc<Execution>>) -> std::io::Result<()> {
    for number in 0..engine.config.number(Number::ExecutionThreads) {
        let engine = Arc::clone(engine);
        thread::Builder::new()
            .name(format!("pinion-{number}"))
            .spawn(move || engine.language.thread(&mut || work(&engine)))?;
    }
    let engine = Arc::clone(engine);
    thread::Builder::new()
        .name("pinion-stop".into())
        .spawn(move || engine.language.thread(&mut || stop(&engine, &to_stop)))?;
    Ok(())
}

fn work(engine: &Engine) {
    loop {
        engine.queue.wait();
        engine.language.attached(&mut || {
            while let Some(job) = engine.queue.next() {
                run::run(engine, &job.execution);
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
            engine.language.interrupt(&execution.thread);
        }
    }
}
