//! One run of a plan over records: each record is pushed through all steps before the next one is read. Where a function
//! returns something to wait for, the record waits in its place and the run goes on without it.
//!
//! Runs on whichever thread runs the execution, attached. Rules: docs/contract/python-api.md 3.3, 3.4, 3.9 and 6.3.

mod operations;
pub mod single;
#[cfg(test)]
mod tests;

use crate::clock::Instant;
use std::time::Duration;

use super::{
    holding::{Gauge, Inventory, Size},
    id::ShardId,
    language::{Called, Completion, Failure, Language},
    plan::{Plan, Step},
    record::Record,
    shuffle::{self, Shuffle, Traffic},
    step_state::StepState,
    stop::Stop,
    waiting::{Flow, Queue, Queues, Slot},
};

/// What a run remembers; all of it, while it waits.
#[derive(Default)]
pub struct PipelineState {
    /// One for each step; none at all if no step remembers anything.
    step_states: Vec<StepState>,
    /// The steps where records wait.
    waiting: Queues,
    durations: Option<Vec<Duration>>,
    /// Some limit in front of all barriers has passed what it passes.
    satisfied: bool,
    /// The reader has no more records, or is not asked for them.
    input_ended: bool,
    /// How many steps have seen their last record.
    closed: usize,
    /// What is on the way between shards, if anything ever was.
    traffic: Option<Box<Traffic>>,
    /// There was an error on this shard that ends the input.
    failed: bool,
    /// How many of the errors the initiator knows.
    told: usize,
    /// What it holds, where that is limited.
    pub gauge: Option<Box<Gauge>>,
    /// It held more than it may, and holds nothing any more.
    pub held_too_much: bool,
    pub results: Vec<Record>,
    pub errors: Vec<Failure>,
}

/// Makes what tells the value of a record that waits: for the step and the number.
pub type Tickets<'a> = &'a dyn Fn(usize, u64) -> Completion;

/// One run, while a thread is at it.
pub struct Pipeline<'a> {
    plan: &'a Plan,
    language: &'a dyn Language,
    /// Somebody asked for the end: what is held back is dropped.
    stop: &'a Stop,
    tickets: Tickets<'a>,
    /// The other shards, if the run is distributed over several.
    shuffle: Option<Shuffle<'a>>,
    /// An error does not end the input, unless it is one that pauses.
    pub skips_errors: bool,
    state: &'a mut PipelineState,
}

impl PipelineState {
    /// `profiled`: measure how long each step takes.
    pub fn new(plan: &Plan, language: &dyn Language, profiled: bool) -> Self {
        let step_states = if plan.steps.iter().any(StepState::is_needed) {
            plan.steps
                .iter()
                .map(|step| StepState::new(plan, step, language))
                .collect()
        } else {
            Vec::new()
        };
        let mut state = Self {
            step_states,
            durations: profiled.then(|| vec![Duration::ZERO; plan.steps.len()]),
            ..Self::default()
        };
        state.satisfied = state.has_passed_enough(plan);
        state
    }

    fn has_passed_enough(&self, plan: &Plan) -> bool {
        let steps = plan.steps.iter().zip(&self.step_states);
        steps.take_while(|(step, _)| !step.is_barrier()).any(|(step, memory)| {
            matches!((step, memory), (Step::Limit { length, .. }, StepState::Passed { passed, .. }) if passed >= length)
        })
    }

    /// The errors that the initiator has not heard of. `taken`: they are the initiator's alone from now on.
    pub fn untold_errors(&mut self, taken: bool) -> Vec<Failure> {
        if taken {
            return std::mem::take(&mut self.errors);
        }
        let told = std::mem::replace(&mut self.told, self.errors.len());
        self.errors[told..].to_vec()
    }

    /// Records wait for values.
    pub fn waits_for_values(&self) -> bool {
        self.waiting.values().any(|queue| !queue.is_empty())
    }

    fn is_waiting_at(&self, index: usize) -> bool {
        self.waiting.get(index).is_some_and(|queue| !queue.is_empty())
    }

    fn traffic(&mut self) -> &mut Traffic {
        self.traffic.get_or_insert_default()
    }

    /// How long each step took; empty if that was not measured.
    pub fn take_durations(&mut self) -> Vec<Duration> {
        self.durations.take().unwrap_or_default()
    }
}

impl<'a> Pipeline<'a> {
    pub fn new(
        plan: &'a Plan,
        language: &'a dyn Language,
        stop: &'a Stop,
        tickets: Tickets<'a>,
        shuffle: Option<Shuffle<'a>>,
        state: &'a mut PipelineState,
    ) -> Self {
        Self {
            plan,
            language,
            stop,
            tickets,
            shuffle,
            skips_errors: false,
            state,
        }
    }

    /// False when no further record can change anything: a limit is reached, or there was an error.
    pub fn wants_more(&self) -> bool {
        !self.state.input_ended && !self.state.satisfied && !self.state.failed
    }

    /// As many records wait as may.
    pub fn is_full(&self) -> bool {
        self.state.waiting.values().any(Queue::is_full)
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_asked()
    }

    /// All records have passed all steps.
    pub fn is_finished(&self) -> bool {
        self.state.input_ended && self.state.closed == self.plan.steps.len()
    }

    /// Pushes one record of the reader through all steps.
    pub fn push(&mut self, record: Record) {
        self.push_from(0, record);
    }

    /// The way to other shards, for a run that is distributed.
    pub fn shuffle(&self) -> Option<&Shuffle<'a>> {
        self.shuffle.as_ref()
    }

    /// Notes errors of other shards. They do not end the input here: each shard reads on until it has an error of its own.
    pub fn note_foreign(&mut self, failures: Vec<Failure>) {
        self.state.errors.extend(failures);
    }

    /// Notes an error.
    pub fn fail(&mut self, failure: Failure) {
        self.state.failed |= !self.skips_errors || failure.pauses();
        self.state.errors.push(failure);
    }

    fn fail_all(&mut self, outcome: Result<(), Vec<Failure>>) {
        for failure in outcome.err().into_iter().flatten() {
            self.fail(failure);
        }
    }

    /// Records have come from another shard.
    pub fn arrive(&mut self, step: usize, batch: &[u8]) {
        if step >= self.plan.steps.len() {
            return;
        }
        // Their step goes by the key that they come with; behind the others nothing is left to do.
        let by_key = matches!(
            self.plan.steps[step],
            Step::GroupBy { .. } | Step::BatchGroupBy { .. } | Step::MergeGroups(_) | Step::SumBy
        );
        match shuffle::unpack(self.language, batch) {
            Ok(records) => {
                for record in records {
                    if self.is_stopping() {
                        return;
                    }
                    self.push_from(if by_key { step } else { step + 1 }, record);
                }
            }
            Err(failure) => self.fail(failure),
        }
    }

    /// Another shard has no more records for a step.
    pub fn arrived_all(&mut self, step: usize, from: ShardId) {
        self.state.traffic().note_ended(step, from);
    }

    /// Sends what is held back for other shards.
    pub fn flush(&mut self) {
        if let Some(shuffle) = &self.shuffle {
            let sent = shuffle.flush(self.state.traffic());
            self.fail_all(sent);
        }
    }

    /// The input has ended: lets go what steps hold, from the first one to the last, up to one where records wait.
    pub fn end_input(&mut self) {
        self.state.input_ended = true;
        while self.state.closed < self.plan.steps.len() {
            let index = self.state.closed;
            if self.is_stopping() {
                self.state.closed = self.plan.steps.len();
                return;
            }
            if self.state.is_waiting_at(index) || !self.has_all_of(index) {
                return;
            }
            self.state.closed += 1;
            self.release(index);
        }
    }

    /// This shard has passed its last record to a step: tells the others, and asks whether they have, too.
    fn has_all_of(&mut self, index: usize) -> bool {
        let (Some(shuffle), Some(moves)) = (&self.shuffle, self.plan.steps[index].routing()) else {
            return true;
        };
        let traffic = self.state.traffic();
        let told = shuffle.end(traffic, index, moves);
        let has_all = shuffle.has_all(traffic, index, moves);
        self.fail_all(told);
        has_all
    }

    fn release(&mut self, index: usize) {
        let Some(memory) = self.state.step_states.get_mut(index) else {
            return;
        };
        let mut held = memory.release(self.language);
        loop {
            let started = self.state.durations.is_some().then(Instant::now);
            let next = held.next();
            self.note(index, started);
            match next {
                _ if self.is_stopping() => break,
                Some(Ok(record)) => self.push_from(index + 1, record),
                Some(Err(failure)) => self.fail(failure),
                None => break,
            }
        }
    }

    /// The value of a record that waited at a step has come.
    pub fn complete(&mut self, index: usize, number: u64, value: Result<Record, Failure>) {
        let Some(queue) = self.state.waiting.get_mut(index) else {
            return;
        };
        let Some((record, key)) = queue.take(number) else {
            return;
        };
        let flow = value.and_then(|value| self.continued(index, record, key, value));
        if let Some(queue) = self.state.waiting.get_mut(index) {
            queue.put_ready(number, flow);
        }
        while let Some(flow) = self.pop(index, Queue::pop_ready) {
            self.route(index, flow);
        }
        // A step that takes one record at a time takes the next one.
        while !self.state.waiting.get(index).is_some_and(Queue::is_waiting) {
            let Some(record) = self.pop(index, Queue::pop_input) else {
                break;
            };
            self.push_from(index, record);
        }
        if self.state.input_ended {
            self.end_input();
        }
    }

    fn pop<T>(&mut self, index: usize, pop: impl FnOnce(&mut Queue) -> Option<T>) -> Option<T> {
        pop(self.state.waiting.get_mut(index)?)
    }

    /// What the step does with a value that was waited for.
    fn continued(
        &mut self,
        index: usize,
        record: Option<Record>,
        key: Option<Vec<u8>>,
        value: Record,
    ) -> Result<Flow, Failure> {
        let memory = self.state.step_states.get_mut(index);
        Ok(match (&self.plan.steps[index], memory, record, key) {
            (Step::FlatMap(_), ..) => Flow::Apart(self.language.parts(value)),
            (Step::Filter(_), _, Some(record), _) => {
                if self.language.is_true(&value)? {
                    Flow::On(record)
                } else {
                    Flow::Kept
                }
            }
            (Step::ForEach(_), _, Some(record), _) => Flow::On(record),
            (_, Some(StepState::Accumulator(held)), ..) => {
                *held = Some(value);
                Flow::Kept
            }
            (_, Some(StepState::Groups(groups)), _, Some(key)) => {
                groups.insert(key, Some(value));
                Flow::Kept
            }
            _ => Flow::On(value),
        })
    }

    fn note(&mut self, index: usize, started: Option<Instant>) {
        if let (Some(started), Some(durations)) = (started, &mut self.state.durations) {
            durations[index] += started.elapsed();
        }
    }

    /// Pushes a record through the steps from `first` on, and all that becomes of it. A loop: a builder may have any number
    /// of steps that take records apart, and the stack has an end.
    fn push_from(&mut self, first: usize, record: Record) {
        let mut apart: Vec<(usize, std::vec::IntoIter<Record>)> = Vec::new();
        let mut next = Some((first, record));
        while let Some((first, record)) = next.take() {
            if let Some((index, parts)) = self.pass(first, record) {
                apart.push((index, parts.into_iter()));
            }
            if self.state.gauge.as_mut().is_some_and(|gauge| gauge.is_due()) {
                self.look_at_size(&apart);
            }
            while let Some((index, parts)) = apart.last_mut() {
                if self.is_stopping() {
                    return;
                }
                next = parts.next().map(|part| (*index, part));
                if next.is_some() {
                    break;
                }
                apart.pop();
            }
        }
    }

    /// Pushes a record through the steps from `first` on, up to one that takes it apart: its parts go on with the step that
    /// is returned.
    fn pass(&mut self, first: usize, mut record: Record) -> Option<(usize, Vec<Record>)> {
        for index in first..self.plan.steps.len() {
            if !self.state.waiting.is_empty() && self.plan.steps[index].takes_one_at_a_time() {
                if let Some(queue) = self.state.waiting.get_mut(index) {
                    if queue.is_waiting() {
                        queue.push_input(record);
                        return None;
                    }
                }
            }
            if self.state.gauge.is_some() && StepState::is_needed(&self.plan.steps[index]) {
                self.feed(&record);
            }
            let started = self.state.durations.is_some().then(Instant::now);
            let outcome = self.apply(index, record);
            self.note(index, started);
            let outcome = match outcome {
                Ok(Flow::Waiting) => return None,
                outcome if !self.state.is_waiting_at(index) => outcome,
                outcome => {
                    // Records in front of it wait.
                    self.state.waiting.of(index).push(Slot::Ready(outcome));
                    return None;
                }
            };
            match outcome {
                Ok(Flow::On(next)) => record = next,
                Ok(Flow::Apart(parts)) => return Some((index + 1, parts)),
                other => {
                    self.route(index, other);
                    return None;
                }
            }
        }
        if self.state.gauge.is_some() {
            self.feed(&record);
        }
        self.state.results.push(record);
        None
    }

    /// Tells the gauge of a record that is about to be held.
    fn feed(&mut self, record: &Record) {
        let Some(gauge) = &mut self.state.gauge else {
            return;
        };
        if let Err(failure) = gauge.feed(record, self.language) {
            self.fail(failure);
        }
    }

    /// Counts what the run holds; ends it if that is too much. `apart`: what is on its way.
    fn look_at_size(&mut self, apart: &[(usize, std::vec::IntoIter<Record>)]) {
        match self.size(apart) {
            Ok(size) => {
                let Some(gauge) = &mut self.state.gauge else {
                    return;
                };
                if gauge.note(size) {
                    self.state.held_too_much = true;
                    self.stop.ask();
                    // What they hold must not become results; objects end here, where code of users can be stopped.
                    self.state.results.clear();
                    self.state.step_states.clear();
                }
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn size(&self, apart: &[(usize, std::vec::IntoIter<Record>)]) -> Result<Size, Failure> {
        let mut stock = Inventory::default();
        for (_, parts) in apart {
            stock.add_all(parts.as_slice());
        }
        for memory in &self.state.step_states {
            memory.take_stock(&mut stock)?;
        }
        for queue in self.state.waiting.values() {
            queue.take_stock(&mut stock);
        }
        stock.add_all(&self.state.results);
        stock.count(self.language)
    }

    /// Sends on what became of a record at a step.
    fn route(&mut self, index: usize, outcome: Result<Flow, Failure>) {
        match outcome {
            Ok(Flow::On(record)) => self.push_from(index + 1, record),
            Ok(Flow::Apart(records)) => {
                for part in records {
                    if self.is_stopping() {
                        return;
                    }
                    self.push_from(index + 1, part);
                }
            }
            Ok(Flow::Kept | Flow::Waiting) => {}
            Err(failure) => self.fail(failure),
        }
    }

    /// The value of a call, or `None` when the record has begun to wait.
    fn now_or_wait<T>(&mut self, index: usize, called: Called<T>, key: Option<Vec<u8>>) -> Option<T> {
        match called {
            Called::Now(value) => Some(value),
            Called::Later(awaitable, record) => {
                let queue = self.state.waiting.of(index);
                let number = queue.next_number();
                queue.push(Slot::Waiting { record, key });
                awaitable.start((self.tickets)(index, number));
                None
            }
        }
    }
}
