//! The threads of the engine: workers that run executions, and one that stops those that somebody aborts.
//!
//! A worker stays attached to the language while there is work and waits detached. None of them ever ends.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{Engine, execution::Execution, stop::INTERRUPT_INTERVAL, timers::Timers};
use crate::{config::Number, threads};

/// Starts all threads.
pub(super) fn spawn(engine: &Arc<Engine>, to_stop: Receiver<Arc<Execution>>) -> std::io::Result<()> {
    for number in 0..engine.config.number(Number::ExecutionThreads) {
        let engine = Arc::clone(engine);
        threads::spawn(format!("pinion-{number}"), move || {
            engine.language.thread(&mut || work(&engine));
        })?;
    }
    Timers::start(engine)?;
    let stopping = Arc::clone(engine);
    threads::spawn("pinion-stop".into(), move || {
        stopping.language.thread(&mut || stop(&stopping, &to_stop));
    })?;
    let watching = Arc::clone(engine);
    threads::spawn("pinion-watch".into(), move || {
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
    engine.queue.enlist();
    let mut last = 0;
    loop {
        engine.queue.wait();
        engine.language.attached(&mut || {
            while let Some(job) = engine.queue.next(&mut last) {
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

#[cfg(test)]
mod tests {
    use std::thread;

    use crossbeam_channel::{RecvTimeoutError, bounded};

    use super::*;
    use crate::{
        config::Config,
        engine::{
            execution::Outcome,
            language::Failure,
            plan::Plan,
            record::Record,
            session::{Needs, Session},
            source::{Reading, Source},
            start::Start,
            testing::Plain,
        },
        server::api::Features,
    };

    struct Empty;

    impl Source for Empty {
        fn next(&mut self, _reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
            Ok(None)
        }
    }

    struct Broken;

    impl Source for Broken {
        fn next(&mut self, _reading: &Reading<'_>) -> Result<Option<Record>, Failure> {
            panic!("a source that panics, for a test")
        }
    }

    fn start(source: Box<dyn Source>, waiter: impl FnOnce(&Outcome) + Send + 'static) -> Start {
        let plan = Arc::new(Plan {
            steps: Vec::new(),
            functions: Vec::new(),
        });
        let session = Arc::new(Session::new("session".into(), None, Needs::default()));
        Start::of_run(plan, session, source).told(waiter)
    }

    #[test]
    fn a_panic_ends_one_execution_and_no_worker() {
        let started = Engine::start(Arc::default(), Features::default(), Arc::new(Plain));
        let engine = started.unwrap_or_else(|error| panic!("no threads: {error}"));
        let config: &Config = &engine.config;
        let (told, errors) = bounded(1);
        for _ in 0..2 * config.number(Number::ExecutionThreads) {
            engine.submit(
                start(Box::new(Empty), |_| panic!("a waiter that panics, for a test")),
                None,
            );
            let told = told.clone();
            let waiter = move |outcome: &Outcome| {
                // Nobody listens any more only where the test has failed.
                let _ = told.send(outcome.errors.clone());
            };
            engine.submit(start(Box::new(Broken), waiter), None);
            let said: Result<_, RecvTimeoutError> = errors.recv_timeout(Duration::from_secs(20));
            assert_eq!(
                said,
                Ok(vec![Failure::from("ERR internal error, see the server's log")])
            );
        }
        while engine.registry.execution_count() > 0 {
            thread::yield_now();
        }
    }
}
