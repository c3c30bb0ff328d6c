//! Runs one execution from its first record to its outcome, on this thread, attached to the language; or up to where it
//! waits, and from there on later.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{
    Engine,
    distributed_run::DistributedRun,
    ended::Single,
    execution::{Execution, Outcome},
    holding::{Gauge, HELD_TOO_MUCH},
    language::Completion,
    phase::{Parked, Status},
    pipeline::{Pipeline, PipelineState, single},
    record::Record,
    run_message::RunMessage,
    run_one::{run_call, run_collected, run_single},
    scope::Scope,
    shuffle::Shuffle,
    source::Reading,
    stop::Stoppable,
};
use crate::{clock::Instant, config::Number, error::Error, server::api};

/// The error of an execution that panicked.
pub(super) const INTERNAL: &str = "ERR internal error, see the server's log";

/// What became of a run.
pub(super) enum Ran {
    /// Well, with one result; that is kept, and nobody waits for it: there is no outcome unless somebody looks.
    Well(Single),
    Ended(Status, Outcome),
    /// It waits; whatever it waits for wakes it.
    Waits,
    /// It was ended by somebody else before.
    Gone,
}

/// Begins an execution, or goes on with one that waited.
pub(super) fn run(engine: &Engine, execution: &Arc<Execution>, started: Instant) -> Ran {
    if let Some(distributed) = &execution.distributed {
        if !engine.may_run(execution, distributed) {
            return Ran::Waits;
        }
    }
    // Before what the run remembers, so that it ends after that.
    let _scope = Scope::enter_execution(execution);
    let mut parked = if let Some(source) = execution.begin(started) {
        let profiled = engine.config.is_on(Number::ProfileExecutions);
        let is_single = !profiled
            && execution.distributed.is_none()
            && max_memory(execution).is_none()
            && source.is_single()
            && single::takes_one_by_one(&execution.plan);
        if is_single {
            let call = execution.plan.only_call();
            let ran = catch_unwind(AssertUnwindSafe(|| match call {
                Some(call) if call.text && execution.is_kept_only() => {
                    run_call(engine, execution, source, started, call)
                }
                Some(call) if call.returns() && execution.is_collected() => {
                    run_collected(engine, execution, source, started, call)
                }
                _ => run_single(engine, execution, source, started),
            }));
            return ran.unwrap_or_else(|_| Ran::Ended(Status::Done, Outcome::of_error(INTERNAL)));
        }
        let mut state = PipelineState::new(&execution.plan, engine.language.as_ref(), profiled);
        state.gauge = max_memory(execution).map(|limit| Box::new(Gauge::new(limit)));
        Parked {
            source: Some(source),
            state,
            loads: engine.loads(),
            total: Duration::ZERO,
            reading: Duration::ZERO,
        }
    } else if let Some(parked) = execution.unpark() {
        *parked
    } else {
        return Ran::Gone;
    };
    let ran = catch_unwind(AssertUnwindSafe(|| {
        run_steps(engine, execution, &mut parked, started)
    }));
    ran.unwrap_or_else(|_| Ran::Ended(Status::Done, Outcome::of_error(INTERNAL)))
}

fn run_steps(engine: &Engine, execution: &Arc<Execution>, parked: &mut Parked, started: Instant) -> Ran {
    let mut ran = Ran::Gone;
    let timed = engine.time_run(execution, parked.total);
    engine.language.interruptible(&execution.stop, &mut || {
        ran = pass_records(engine, execution, parked, started);
    });
    drop(timed);
    note_timeout(engine, execution, &mut ran);
    ran
}

/// Whoever ran for too long has that as its first error.
pub(super) fn note_timeout(engine: &Engine, execution: &Execution, ran: &mut Ran) {
    let Ran::Ended(status, outcome) = ran else { return };
    if execution.stop.has_timed_out() {
        *status = Status::Done;
        outcome.errors.insert(0, engine.sync_timeout().into());
    }
    // What the function has caught in time is no error.
    let failed = !outcome.errors.is_empty() || *status == Status::Aborted;
    if failed && execution.has_overrun() {
        let limit = execution.owner().and_then(|owner| owner.limits.timeout_ms);
        *status = Status::Done;
        let error = Error::RanOverTime(limit.unwrap_or_default());
        outcome.errors.insert(0, error.into());
    }
}

/// How much the execution may hold, in bytes.
fn max_memory(execution: &Execution) -> Option<u64> {
    execution.owner()?.limits.max_memory
}

/// Whoever held too much has that as its first error; of a part the initiator hears it.
fn note_size(execution: &Execution, state: &mut PipelineState) {
    if !state.held_too_much {
        return;
    }
    let limit = state.gauge.as_ref().map_or(0, |gauge| gauge.limit());
    api::log_warning(&format!(
        "{} has held more than its max_memory ({limit} bytes) and is ended",
        execution.describe_fully()
    ));
    execution.note_error_kind(HELD_TOO_MUCH);
    let error = Error::HeldTooMuch(limit).into();
    match &execution.distributed {
        Some(distributed) if !distributed.is_initiator() => execution.set_fate(error),
        _ => state.errors.insert(0, error),
    }
}

pub(super) fn pass_records(
    engine: &Engine,
    execution: &Arc<Execution>,
    parked: &mut Parked,
    mut started: Instant,
) -> Ran {
    let language = engine.language.as_ref();
    let ticket = |step, number| ticket(engine, execution, step, number);
    let context = Reading {
        engine,
        delayed: execution.is_delayed(),
        actor: execution.actor.as_ref(),
    };
    loop {
        let shuffle = shuffle(engine, execution);
        let mut pipeline = Pipeline::new(
            &execution.plan,
            language,
            &execution.stop,
            &ticket,
            shuffle,
            &mut parked.state,
        );
        pipeline.skips_errors = execution.skips_errors;
        take_news(execution, &mut pipeline);
        while !pipeline.is_stopping() && !pipeline.is_full() && pipeline.wants_more() {
            if execution.has_news() {
                take_news(execution, &mut pipeline);
                continue;
            }
            let Some(source) = &mut parked.source else { break };
            if let Some(record) = source.buffered() {
                execution.note_read();
                pipeline.push(record);
                continue;
            }
            if source.is_at_end() {
                break;
            }
            let asked = Instant::now();
            let record = source.next(&context);
            parked.reading += asked.elapsed();
            let reads_keys = source.reads_keys();
            if reads_keys && engine.loads() != parked.loads {
                pipeline.fail(Error::DataReplaced.into());
                break;
            }
            match record {
                Ok(Some(record)) => {
                    execution.note_read();
                    pipeline.push(record);
                }
                Ok(None) => {
                    if let (true, Some(shuffle)) = (reads_keys, pipeline.shuffle()) {
                        if let Err(failure) = shuffle.confirm() {
                            pipeline.fail(failure);
                        }
                    }
                    break;
                }
                Err(failure) => pipeline.fail(failure),
            }
        }
        if pipeline.is_stopping() || !pipeline.is_full() {
            // Nothing is read any more: the input has ended, or a limit or an error has ended it.
            parked.source = None;
            pipeline.end_input();
        }
        pipeline.flush();
        let finished = pipeline.is_finished();
        parked.total += started.elapsed();
        if finished && part_is_done(engine, execution, parked) {
            return ended(engine, execution, parked);
        }
        if let Some(distributed) = &execution.distributed {
            tell_errors(engine, execution, distributed, &mut parked.state);
            distributed.set_idle(!parked.state.waits_for_values());
        }
        match execution.park(Box::new(std::mem::take(parked))) {
            Ok(()) => return Ran::Waits,
            Err(more) => *parked = *more,
        }
        if let Some(distributed) = &execution.distributed {
            distributed.set_idle(false);
        }
        started = Instant::now();
    }
}

/// The way to the other shards, for a run that is distributed.
fn shuffle<'a>(engine: &'a Engine, execution: &'a Execution) -> Option<Shuffle<'a>> {
    let distributed = execution.distributed.as_ref()?;
    Some(Shuffle {
        distributed,
        place: distributed.place()?,
        id: execution.id,
        shards: engine.shards()?,
        language: engine.language.as_ref(),
    })
}

/// Goes on with what came meanwhile: values that records wait for, and whatever other shards told.
fn take_news(execution: &Execution, pipeline: &mut Pipeline<'_>) {
    let (completions, arrivals) = execution.take_news();
    for (step, number, value) in completions {
        pipeline.complete(step, number, value);
    }
    let Some(distributed) = &execution.distributed else {
        return;
    };
    for (from, message) in arrivals {
        match message {
            RunMessage::Records { step, batch } => pipeline.arrive(step, &batch),
            RunMessage::Ended { step } => pipeline.arrived_all(step, from),
            RunMessage::Failures(failures) => pipeline.note_foreign(failures),
            RunMessage::Completed => distributed.completed(from),
            RunMessage::Finish => distributed.finish(),
            RunMessage::Plan(_)
            | RunMessage::Received { .. }
            | RunMessage::NotYet { .. }
            | RunMessage::Refused(_)
            | RunMessage::Go
            | RunMessage::Abort
            | RunMessage::Forget => {}
        }
    }
}

/// All records have passed all steps here. True if the execution ends with that; a distributed one waits for other shards.
fn part_is_done(engine: &Engine, execution: &Arc<Execution>, parked: &mut Parked) -> bool {
    let Some(distributed) = &execution.distributed else {
        return true;
    };
    if execution.stop.is_asked() {
        return true;
    }
    if distributed.part_done() && !distributed.is_initiator() {
        tell_errors(engine, execution, distributed, &mut parked.state);
        engine.tell_initiator(execution, distributed, RunMessage::Completed);
    }
    distributed.may_end()
}

/// The initiator hears of errors as soon as there are some. Where results stay on their shard, errors do, too.
fn tell_errors(
    engine: &Engine,
    execution: &Execution,
    distributed: &DistributedRun,
    state: &mut PipelineState,
) {
    if distributed.is_initiator() {
        return;
    }
    let message = state.untold_errors(execution.plan.collects());
    if !message.is_empty() {
        engine.tell_initiator(execution, distributed, RunMessage::Failures(message));
    }
}

/// What tells the execution the value that it waits for, and wakes a worker for it.
pub(super) fn ticket(engine: &Engine, execution: &Arc<Execution>, step: usize, number: u64) -> Completion {
    let (engine, execution) = (engine.handle(), Arc::clone(execution));
    Box::new(move |value| {
        if execution.complete((step, number, value)) {
            engine.go_on(&execution);
        }
    })
}

/// The outcome of a run that has come to its end, or is broken off where it waits.
pub(super) fn ended(engine: &Engine, execution: &Execution, parked: &mut Parked) -> Ran {
    let state = &mut parked.state;
    note_size(execution, state);
    let steps = state.take_durations();
    let outcome = Outcome {
        errors: std::mem::take(&mut state.errors),
        reading: parked.reading,
        total: parked.total,
        steps,
        ..Outcome::default()
    };
    let results = std::mem::take(&mut state.results);
    // What is left may hold objects whose end runs code of users: here, where that can be stopped.
    *parked = Parked::default();
    let is_broken_off = execution.stop.is_asked() && outcome.errors.is_empty();
    let mut ran = ended_with(engine, execution, results, outcome);
    if let (true, Ran::Ended(status, _)) = (is_broken_off, &mut ran) {
        // There may have been more records: what there is of results is a part.
        *status = Status::Aborted;
    }
    ran
}

pub(super) fn ended_with(
    engine: &Engine,
    execution: &Execution,
    results: impl IntoIterator<Item = Record>,
    mut outcome: Outcome,
) -> Ran {
    let language = engine.language.as_ref();
    let mut results = results.into_iter();
    // Whoever was stopped inside a function has its error, or the result of one that has caught that, and is done; all others are aborted.
    let has_result = outcome.late.is_some() || !outcome.results.is_empty() || results.size_hint().0 > 0;
    let aborted = execution.stop.is_asked() && outcome.errors.is_empty() && !has_result;
    if let Some(collector) = execution.begin_collecting() {
        let wrong = collector.collect(&mut results, &outcome.errors);
        outcome.errors.extend(wrong);
    } else {
        // Results become replies while their objects can still be looked at.
        outcome.results.reserve_exact(results.size_hint().0);
        for record in results {
            match language.to_reply(record) {
                Ok(reply) => outcome.results.push(reply),
                Err(failure) => outcome.errors.push(failure),
            }
        }
    }
    let status = if aborted { Status::Aborted } else { Status::Done };
    Ran::Ended(status, outcome)
}
