//! Runs of one record at most, through steps that remember nothing: what most events are. The same as `run.rs` does, without what more
//! records need.
//!
//! On the thread that runs the execution; where it waits, `run.rs` goes on with it.

use crate::clock::Instant;
use std::{sync::Arc, time::Duration};

use super::{
    Engine,
    ended::Single,
    execution::{Execution, Late, Outcome},
    language::{Called, Failure, Function},
    phase::Parked,
    pipeline::{
        PipelineState, Tickets,
        single::{self, Passed},
    },
    plan::OnlyCall,
    record::Record,
    run::{Ran, ended_with, note_timeout, pass_records, ticket},
    source::{Reading, Source},
};

/// Runs the steps for one record at most, and a plan that needs to remember nothing.
pub(super) fn run_single(
    engine: &Engine,
    execution: &Arc<Execution>,
    source: Box<dyn Source>,
    started: Instant,
) -> Ran {
    let (mut ran, mut source) = (Ran::Gone, Some(source));
    let timed = engine.time_run(execution, Duration::ZERO);
    engine.language.interruptible(&execution.stop, &mut || {
        if let Some(source) = source.take() {
            ran = pass_single(engine, execution, source, started);
        }
    });
    drop(timed);
    note_timeout(engine, execution, &mut ran);
    ran
}

/// The same for a plan that is one call, whose text is kept and nobody waits for it.
pub(super) fn run_call(
    engine: &Engine,
    execution: &Arc<Execution>,
    source: Box<dyn Source>,
    started: Instant,
    call: OnlyCall,
) -> Ran {
    run_only(
        engine,
        execution,
        source,
        started,
        call,
        |function, record, reading| {
            let called = function.text(&execution.stop, record, call.visits, None)?;
            Ok(called.map(|result| {
                let run = Single {
                    result,
                    total: started.elapsed(),
                    reading,
                };
                if execution.stop.is_asked() || execution.stop.has_timed_out() {
                    ended_with(engine, execution, None, run.into_outcome())
                } else {
                    Ran::Well(run)
                }
            }))
        },
    )
}

/// The same for a plan that is one call, whose result the collector gets.
pub(super) fn run_collected(
    engine: &Engine,
    execution: &Arc<Execution>,
    source: Box<dyn Source>,
    started: Instant,
    call: OnlyCall,
) -> Ran {
    run_only(
        engine,
        execution,
        source,
        started,
        call,
        |function, record, reading| {
            let mut ran = Ran::Gone;
            let mut take = |returned| {
                let outcome = Outcome {
                    total: started.elapsed(),
                    reading,
                    ..Outcome::default()
                };
                ran = ended_with(engine, execution, Some(returned), outcome);
            };
            let called = function.hand_over(&execution.stop, record, &mut take)?;
            Ok(called.map(|()| ran))
        },
    )
}

/// Reads the only record and lets `passes` call the plan's only function with it, which says what the run has come to; it is also given how
/// long reading took.
fn run_only(
    engine: &Engine,
    execution: &Arc<Execution>,
    source: Box<dyn Source>,
    started: Instant,
    call: OnlyCall,
    passes: impl FnOnce(&dyn Function, Record, Duration) -> Result<Called<Ran>, Failure>,
) -> Ran {
    let (read, reading) = read_single(engine, execution, source, started);
    let called = read.and_then(|record| {
        let Some(record) = record else { return Ok(None) };
        execution.note_read();
        let _timed = engine.time_run(execution, Duration::ZERO);
        let function = &execution.plan.functions[call.function];
        passes(function.as_ref(), record, reading).map(Some)
    });
    let errors = match called {
        Ok(Some(Called::Now(mut ran))) => {
            note_timeout(engine, execution, &mut ran);
            return ran;
        }
        Ok(Some(Called::Later(awaitable, record))) => {
            return wait_for(engine, execution, reading, started, |ticket| {
                single::waiting_at(0, awaitable, record, ticket)
            });
        }
        Ok(None) => Vec::new(),
        Err(failure) => vec![failure],
    };
    let outcome = Outcome {
        errors,
        reading,
        ..Outcome::default()
    };
    ended_at_once(engine, execution, outcome, started)
}

/// The only record, and how long it took to read it.
fn read_single(
    engine: &Engine,
    execution: &Execution,
    mut source: Box<dyn Source>,
    started: Instant,
) -> (Result<Option<Record>, Failure>, Duration) {
    let mut reading = Duration::ZERO;
    let read = match source.buffered() {
        _ if execution.stop.is_asked() => Ok(None),
        Some(record) => Ok(Some(record)),
        None if source.is_at_end() => Ok(None),
        None => {
            let what = Reading {
                engine,
                delayed: execution.is_delayed(),
                actor: execution.actor.as_ref(),
            };
            let at_hand = source.is_at_hand(&what);
            let record = source.next(&what);
            if !at_hand {
                reading = started.elapsed();
            }
            record
        }
    };
    (read, reading)
}

fn pass_single(
    engine: &Engine,
    execution: &Arc<Execution>,
    source: Box<dyn Source>,
    started: Instant,
) -> Ran {
    let language = engine.language.as_ref();
    let (read, reading) = read_single(engine, execution, source, started);
    let passed = match read {
        Ok(Some(record)) => {
            execution.note_read();
            let ticket = |step, number| ticket(engine, execution, step, number);
            single::pass(
                &execution.plan,
                language,
                &ticket,
                record,
                execution.is_kept_only(),
            )
        }
        Ok(None) => Passed::Through(Ok(None)),
        Err(failure) => Passed::Through(Err(failure)),
    };
    match passed {
        Passed::Text(text) => {
            let outcome = Outcome {
                late: Some(Late(text)),
                total: started.elapsed(),
                reading,
                ..Outcome::default()
            };
            ended_with(engine, execution, None, outcome)
        }
        Passed::Through(result) => {
            let total = started.elapsed();
            let (results, errors) = match result {
                Ok(record) => (record, Vec::new()),
                Err(failure) => (None, vec![failure]),
            };
            let outcome = Outcome {
                errors,
                total,
                reading,
                ..Outcome::default()
            };
            ended_with(engine, execution, results, outcome)
        }
        Passed::Waits(state) => go_on_waiting(engine, execution, state, reading, started),
    }
}

fn go_on_waiting(
    engine: &Engine,
    execution: &Arc<Execution>,
    state: PipelineState,
    reading: Duration,
    started: Instant,
) -> Ran {
    let mut parked = Parked {
        source: None,
        state,
        loads: engine.loads(),
        total: Duration::ZERO,
        reading,
    };
    pass_records(engine, execution, &mut parked, started)
}

/// A run whose only call gave something to wait for; `wait` begins that.
pub(super) fn wait_for(
    engine: &Engine,
    execution: &Arc<Execution>,
    reading: Duration,
    started: Instant,
    wait: impl FnOnce(Tickets<'_>) -> PipelineState,
) -> Ran {
    let (mut ran, mut wait) = (Ran::Gone, Some(wait));
    engine.language.interruptible(&execution.stop, &mut || {
        let ticket = |step, number| ticket(engine, execution, step, number);
        if let Some(wait) = wait.take() {
            ran = go_on_waiting(engine, execution, wait(&ticket), reading, started);
        }
    });
    note_timeout(engine, execution, &mut ran);
    ran
}

/// A run whose only call has ended otherwise than well.
pub(super) fn ended_at_once(
    engine: &Engine,
    execution: &Arc<Execution>,
    mut outcome: Outcome,
    started: Instant,
) -> Ran {
    outcome.total = started.elapsed();
    let mut ran = ended_with(engine, execution, None, outcome);
    note_timeout(engine, execution, &mut ran);
    ran
}
