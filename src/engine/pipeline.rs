//! One run of a plan over records: each record is pushed through all steps before the next one is read. Where a function
//! returns something to wait for, the record waits in its place and the run goes on without it.
//!
//! Runs on whichever thread runs the execution, attached. Rules: `python-api.md` 3.3, 3.4, 3.9 and 6.3.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    exchange::{self, Exchange, Traffic},
    id::ShardId,
    language::{Called, Completion, Failure, Function, Language, PAUSE},
    memory::Memory,
    plan::{Plan, Step},
    record::{Record, Value},
    stop::Stop,
    waiting::{Flow, Queue, Slot},
};

/// What a run remembers; all of it, while it waits.
#[derive(Default)]
pub struct Flowing {
    /// One for each step; none at all if no step remembers anything.
    memories: Vec<Memory>,
    /// The steps where records wait.
    waiting: BTreeMap<usize, Queue>,
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
    /// The other shards, if the run is spread over several.
    exchange: Option<Exchange<'a>>,
    /// An error does not end the input, unless it is one that pauses.
    pub skips_errors: bool,
    flowing: &'a mut Flowing,
}

impl Flowing {
    /// `profiled`: measure how long each step takes.
    pub fn new(plan: &Plan, language: &dyn Language, profiled: bool) -> Self {
        let memories = if plan.steps.iter().any(Memory::is_needed) {
            plan.steps
                .iter()
                .map(|step| Memory::new(plan, step, language))
                .collect()
        } else {
            Vec::new()
        };
        let mut flowing = Self {
            memories,
            durations: profiled.then(|| vec![Duration::ZERO; plan.steps.len()]),
            ..Self::default()
        };
        flowing.satisfied = flowing.has_passed_enough(plan);
        flowing
    }

    fn has_passed_enough(&self, plan: &Plan) -> bool {
        let steps = plan.steps.iter().zip(&self.memories);
        steps.take_while(|(step, _)| !step.is_barrier()).any(|(step, memory)| {
            matches!((step, memory), (Step::Limit { length, .. }, Memory::Passed { passed, .. }) if passed >= length)
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
        self.waiting.get(&index).is_some_and(|queue| !queue.is_empty())
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
        exchange: Option<Exchange<'a>>,
        flowing: &'a mut Flowing,
    ) -> Self {
        Self {
            plan,
            language,
            stop,
            tickets,
            exchange,
            skips_errors: false,
            flowing,
        }
    }

    /// False when no further record can change anything: a limit is reached, or there was an error.
    pub fn wants_more(&self) -> bool {
        !self.flowing.input_ended && !self.flowing.satisfied && !self.flowing.failed
    }

    /// As many records wait as may.
    pub fn is_full(&self) -> bool {
        self.flowing.waiting.values().any(Queue::is_full)
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_asked()
    }

    /// All records have passed all steps.
    pub fn is_finished(&self) -> bool {
        self.flowing.input_ended && self.flowing.closed == self.plan.steps.len()
    }

    /// Pushes one record of the reader through all steps.
    pub fn push(&mut self, record: Record) {
        self.push_from(0, record);
    }

    /// Notes errors of other shards. They do not end the input here: each shard reads on until it has an error of its own.
    pub fn note_foreign(&mut self, failures: Vec<Failure>) {
        self.flowing.errors.extend(failures);
    }

    /// Notes an error.
    pub fn fail(&mut self, failure: Failure) {
        self.flowing.failed |= !self.skips_errors || failure.starts_with(PAUSE);
        self.flowing.errors.push(failure);
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
        match exchange::unpack(self.language, batch) {
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
        self.flowing.traffic().note_ended(step, from);
    }

    /// Sends what is held back for other shards.
    pub fn flush(&mut self) {
        if let Some(exchange) = &self.exchange {
            let sent = exchange.flush(self.flowing.traffic());
            self.fail_all(sent);
        }
    }

    /// The input has ended: lets go what steps hold, from the first one to the last, up to one where records wait.
    pub fn end_input(&mut self) {
        self.flowing.input_ended = true;
        while self.flowing.closed < self.plan.steps.len() {
            let index = self.flowing.closed;
            if self.is_stopping() {
                self.flowing.closed = self.plan.steps.len();
                return;
            }
            if self.flowing.is_waiting_at(index) || !self.has_all_of(index) {
                return;
            }
            self.flowing.closed += 1;
            self.release(index);
        }
    }

    /// This shard has passed its last record to a step: tells the others, and asks whether they have, too.
    fn has_all_of(&mut self, index: usize) -> bool {
        let (Some(exchange), Some(moves)) = (&self.exchange, self.plan.steps[index].moves()) else {
            return true;
        };
        let traffic = self.flowing.traffic();
        let told = exchange.end(traffic, index, moves);
        let has_all = exchange.has_all(traffic, index, moves);
        self.fail_all(told);
        has_all
    }

    fn release(&mut self, index: usize) {
        let Some(memory) = self.flowing.memories.get_mut(index) else {
            return;
        };
        let mut held = memory.release(self.language);
        loop {
            let started = self.flowing.durations.is_some().then(Instant::now);
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
        let Some(queue) = self.flowing.waiting.get_mut(&index) else {
            return;
        };
        let Some((record, key)) = queue.take(number) else {
            return;
        };
        let flow = value.and_then(|value| self.continued(index, record, key, value));
        if let Some(queue) = self.flowing.waiting.get_mut(&index) {
            queue.put_ready(number, flow);
        }
        while let Some(flow) = self.pop(index, Queue::pop_ready) {
            self.route(index, flow);
        }
        // A step that takes one record at a time takes the next one.
        while !self.flowing.waiting.get(&index).is_some_and(Queue::is_waiting) {
            let Some(record) = self.pop(index, Queue::pop_input) else {
                break;
            };
            self.push_from(index, record);
        }
        if self.flowing.input_ended {
            self.end_input();
        }
    }

    fn pop<T>(&mut self, index: usize, pop: impl FnOnce(&mut Queue) -> Option<T>) -> Option<T> {
        pop(self.flowing.waiting.get_mut(&index)?)
    }

    /// What the step does with a value that was waited for.
    fn continued(
        &mut self,
        index: usize,
        record: Option<Record>,
        key: Option<Vec<u8>>,
        value: Record,
    ) -> Result<Flow, Failure> {
        let memory = self.flowing.memories.get_mut(index);
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
            (_, Some(Memory::Accumulator(held)), ..) => {
                *held = Some(value);
                Flow::Kept
            }
            (_, Some(Memory::Groups(groups)), _, Some(key)) => {
                groups.insert(key, Some(value));
                Flow::Kept
            }
            _ => Flow::On(value),
        })
    }

    fn note(&mut self, index: usize, started: Option<Instant>) {
        if let (Some(started), Some(durations)) = (started, &mut self.flowing.durations) {
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
            if !self.flowing.waiting.is_empty() && self.plan.steps[index].takes_one_at_a_time() {
                if let Some(queue) = self.flowing.waiting.get_mut(&index) {
                    if queue.is_waiting() {
                        queue.push_input(record);
                        return None;
                    }
                }
            }
            let started = self.flowing.durations.is_some().then(Instant::now);
            let outcome = self.apply(index, record);
            self.note(index, started);
            let outcome = match outcome {
                Ok(Flow::Waiting) => return None,
                outcome if !self.flowing.is_waiting_at(index) => outcome,
                outcome => {
                    // Records in front of it wait.
                    self.flowing
                        .waiting
                        .entry(index)
                        .or_default()
                        .push(Slot::Ready(outcome));
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
        self.flowing.results.push(record);
        None
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
                let queue = self.flowing.waiting.entry(index).or_default();
                let number = queue.next_number();
                queue.push(Slot::Waiting { record, key });
                awaitable.start((self.tickets)(index, number));
                None
            }
        }
    }

    #[allow(clippy::too_many_lines)] // one arm per operation
    fn apply(&mut self, index: usize, record: Record) -> Result<Flow, Failure> {
        let plan = self.plan;
        let call = |function: usize| -> &dyn Function { plan.functions[function].as_ref() };
        let memory = self.flowing.memories.get_mut(index);
        match (&plan.steps[index], memory) {
            (Step::Map(function), _) => {
                let called = call(*function).map(record)?;
                Ok(self
                    .now_or_wait(index, called, None)
                    .map_or(Flow::Waiting, Flow::On))
            }
            (Step::FlatMap(function), _) => {
                let called = call(*function).expand(record)?;
                Ok(self
                    .now_or_wait(index, called, None)
                    .map_or(Flow::Waiting, Flow::Apart))
            }
            (Step::Filter(function), _) => {
                let called = call(*function).test(record)?;
                Ok(match self.now_or_wait(index, called, None) {
                    Some((record, true)) => Flow::On(record),
                    Some((_, false)) => Flow::Kept,
                    None => Flow::Waiting,
                })
            }
            (Step::ForEach(function), _) => {
                let called = call(*function).visit(record)?;
                Ok(self
                    .now_or_wait(index, called, None)
                    .map_or(Flow::Waiting, Flow::On))
            }
            (Step::Repartition(function), _) => {
                let (record, key) = call(*function).key(record)?;
                match self.away(&key) {
                    Some(owner) => self.send(index, owner, record),
                    None => Ok(Flow::On(record)),
                }
            }
            (Step::Collect, _) => match self.exchange.as_ref().and_then(Exchange::initiator) {
                Some(initiator) => self.send(index, initiator, record),
                None => Ok(Flow::On(record)),
            },
            (Step::Accumulate(function), Some(Memory::Accumulator(held))) => {
                // A failure leaves the accumulator empty: the next record starts a new one.
                let called = call(*function).fold(held.take(), record)?;
                Ok(self.hold(index, called))
            }
            (
                Step::GroupBy {
                    extractor,
                    reducer,
                    local,
                },
                _,
            ) => {
                let (record, key) = keyed(call(*extractor), record)?;
                match self.away(&key).filter(|_| !local) {
                    Some(owner) => self.send_keyed(index, owner, key, record),
                    None => self.fold_group(index, key, record, call(*reducer)),
                }
            }
            (Step::MergeGroups(reducer), _) => {
                let (key, value) = key_and_value(record)?;
                match self.away(&key) {
                    Some(owner) => self.send(index, owner, Record::group(key, value)),
                    None => self.fold_group(index, key, value, call(*reducer)),
                }
            }
            (Step::BatchGroupBy { extractor, .. }, _) => {
                let (record, key) = keyed(call(*extractor), record)?;
                if let Some(owner) = self.away(&key) {
                    return self.send_keyed(index, owner, key, record);
                }
                if let Some(Memory::Batches { groups, .. }) = self.flowing.memories.get_mut(index) {
                    groups.entry(key).or_default().push(record);
                }
                Ok(Flow::Kept)
            }
            (Step::CountBy(extractor), Some(Memory::Counts(counts))) => {
                let key = match extractor {
                    Some(extractor) => call(*extractor).key(record)?.1,
                    None => self.language.key_of(&record)?,
                };
                *counts.entry(key).or_default() += 1;
                Ok(Flow::Kept)
            }
            (Step::SumBy, _) => {
                let (key, value) = key_and_value(record)?;
                if let Some(owner) = self.away(&key) {
                    return self.send(index, owner, Record::group(key, value));
                }
                if let (Record::Native(Value::Int(more)), Some(Memory::Counts(counts))) =
                    (value, self.flowing.memories.get_mut(index))
                {
                    let count = counts.entry(key).or_default();
                    *count = count.saturating_add(more);
                }
                Ok(Flow::Kept)
            }
            (Step::Count, Some(Memory::Count(count))) => {
                *count += 1;
                Ok(Flow::Kept)
            }
            (Step::Sum, Some(Memory::Sum(sum))) => {
                if let Record::Native(Value::Int(count)) = record {
                    *sum = Some(sum.unwrap_or_default().saturating_add(count));
                }
                Ok(Flow::Kept)
            }
            (Step::Distinct { merging }, Some(Memory::Distinct(seen)))
                if !merging || self.exchange.is_some() =>
            {
                let new = seen.add(&record)?;
                Ok(if new { Flow::On(record) } else { Flow::Kept })
            }
            (Step::Sort { .. }, Some(Memory::Sorted { records, .. })) => {
                records.push(record);
                Ok(Flow::Kept)
            }
            (Step::Limit { start, length }, Some(Memory::Passed { seen, passed })) => {
                *seen += 1;
                if *seen <= *start || *passed >= *length {
                    return Ok(Flow::Kept);
                }
                *passed += 1;
                if *passed >= *length {
                    self.flowing.satisfied = self.flowing.has_passed_enough(plan);
                }
                Ok(Flow::On(record))
            }
            (Step::Text, _) => self.language.to_text(record).map(Flow::On),
            // What one shard has passed once is in no need of a second look.
            _ => Ok(Flow::On(record)),
        }
    }

    /// The shard that goes on with a record of this key, if that is another one.
    fn away(&self, key: &[u8]) -> Option<ShardId> {
        self.exchange.as_ref()?.away(key)
    }

    /// A record goes on with this step on another shard.
    fn send(&mut self, index: usize, to: ShardId, record: Record) -> Result<Flow, Failure> {
        if let Some(exchange) = &self.exchange {
            let sent = exchange.send(self.flowing.traffic(), index, to, record);
            self.fail_all(sent);
        }
        Ok(Flow::Kept)
    }

    fn send_keyed(
        &mut self,
        index: usize,
        to: ShardId,
        key: Vec<u8>,
        record: Record,
    ) -> Result<Flow, Failure> {
        let record = Box::new(record);
        self.send(index, to, Record::Keyed { key, record })
    }

    /// Keeps a new accumulator.
    fn hold(&mut self, index: usize, called: Called<Record>) -> Flow {
        let Some(value) = self.now_or_wait(index, called, None) else {
            return Flow::Waiting;
        };
        if let Some(Memory::Accumulator(held)) = self.flowing.memories.get_mut(index) {
            *held = Some(value);
        }
        Flow::Kept
    }

    /// Hands the record of a key to the reducer. A failure leaves the group empty: its next record starts a new one.
    fn fold_group(
        &mut self,
        index: usize,
        key: Vec<u8>,
        record: Record,
        reducer: &dyn Function,
    ) -> Result<Flow, Failure> {
        let Some(Memory::Groups(groups)) = self.flowing.memories.get_mut(index) else {
            return Ok(Flow::Kept);
        };
        // The usual call has its key there already, and its value at hand.
        if let Some(held) = groups.get_mut(&key) {
            match reducer.fold_group(&key, held.take(), record)? {
                Called::Now(value) => *held = Some(value),
                later @ Called::Later(..) => {
                    self.now_or_wait(index, later, Some(key));
                    return Ok(Flow::Waiting);
                }
            }
            return Ok(Flow::Kept);
        }
        match reducer.fold_group(&key, None, record)? {
            Called::Now(value) => {
                groups.insert(key, Some(value));
            }
            later @ Called::Later(..) => {
                groups.insert(key.clone(), None);
                self.now_or_wait(index, later, Some(key));
                return Ok(Flow::Waiting);
            }
        }
        Ok(Flow::Kept)
    }
}

/// A record with its key, which it brings along if another shard has asked for it already.
fn keyed(extractor: &dyn Function, record: Record) -> Result<(Record, Vec<u8>), Failure> {
    match record {
        Record::Keyed { key, record } => Ok((*record, key)),
        record => extractor.key(record),
    }
}

/// The parts of what the step before has made.
fn key_and_value(record: Record) -> Result<(Vec<u8>, Record), Failure> {
    match record {
        Record::Group { key, value } => Ok((key, *value)),
        // Builders put these steps behind grouping ones only.
        _ => Err("ERR the record is no group".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        engine::{
            execution::Source,
            language::{Awaitable, Distinct},
            session::Session,
        },
        redis::reply::Reply,
    };

    struct Plain;

    impl Language for Plain {
        fn thread(&self, body: &mut dyn FnMut()) {
            body();
        }
        fn attached(&self, work: &mut dyn FnMut()) {
            work();
        }
        fn detached(&self, work: &mut dyn FnMut()) {
            work();
        }
        fn to_text(&self, record: Record) -> Result<Record, Failure> {
            Ok(Record::text(number(&record).to_string()))
        }
        fn to_reply(&self, record: Record) -> Result<Reply, Failure> {
            Ok(Reply::Int(number(&record)))
        }
        fn interruptible(&self, _stop: &Stop, work: &mut dyn FnMut()) {
            work();
        }
        fn interrupt(&self, _stop: &Stop) {}
        fn key_of(&self, record: &Record) -> Result<Vec<u8>, Failure> {
            Ok(number(record).to_string().into())
        }
        fn load(&self, _image: &[u8], _session: &Session) -> Result<Arc<dyn Function>, Failure> {
            Ok(Arc::new(Arithmetic))
        }
        fn pack(&self, _objects: Vec<Record>) -> crate::engine::language::Packed {
            (Vec::new(), Vec::new())
        }
        fn unpack(&self, _bytes: &[u8]) -> Result<Vec<Record>, Failure> {
            Ok(Vec::new())
        }
        fn parts(&self, record: Record) -> Vec<Record> {
            vec![record]
        }
        fn is_true(&self, record: &Record) -> Result<bool, Failure> {
            Ok(number(record) != 0)
        }
        fn distinct(&self) -> Box<dyn Distinct> {
            Box::new(Numbers::default())
        }
        fn sort(&self, mut records: Vec<Record>, descending: bool) -> Result<Vec<Record>, Failure> {
            records.sort_by_key(number);
            if descending {
                records.reverse();
            }
            Ok(records)
        }
    }

    #[derive(Default)]
    struct Numbers(std::collections::HashSet<i64>);

    impl Distinct for Numbers {
        fn add(&mut self, record: &Record) -> Result<bool, Failure> {
            Ok(self.0.insert(number(record)))
        }
    }

    /// Never comes by itself.
    struct Tomorrow;

    impl Awaitable for Tomorrow {
        fn start(self: Box<Self>, _completion: Completion) {}
    }

    fn no_ticket(_step: usize, _number: u64) -> Completion {
        Box::new(|_| {})
    }

    /// Doubles, repeats, keeps what is odd, adds up; 13 is an error.
    struct Arithmetic;

    impl Function for Arithmetic {
        fn name(&self) -> String {
            "arithmetic".into()
        }
        fn describe(&self) -> String {
            self.name()
        }
        fn image(&self, _session: &Session) -> Result<Vec<u8>, Failure> {
            Ok(Vec::new())
        }
        fn map(&self, record: Record) -> Result<Called<Record>, Failure> {
            match number(&record) {
                13 => Err("unlucky".into()),
                0 => Ok(Called::Later(Box::new(Tomorrow), None)),
                other => Ok(Called::Now(Record::int(other * 2))),
            }
        }
        fn expand(&self, record: Record) -> Result<Called<Vec<Record>>, Failure> {
            let number = number(&record);
            Ok(Called::Now((0..number).map(Record::int).collect()))
        }
        fn test(&self, record: Record) -> Result<Called<(Record, bool)>, Failure> {
            let odd = number(&record) % 2 == 1;
            Ok(Called::Now((record, odd)))
        }
        fn visit(&self, record: Record) -> Result<Called<Record>, Failure> {
            Ok(Called::Now(record))
        }
        fn fold(&self, accumulator: Option<Record>, record: Record) -> Result<Called<Record>, Failure> {
            match number(&record) {
                13 => Err("unlucky".into()),
                other => Ok(Called::Now(Record::int(
                    accumulator.as_ref().map_or(0, number) + other,
                ))),
            }
        }
        fn key(&self, record: Record) -> Result<(Record, Vec<u8>), Failure> {
            let parity = if number(&record) % 2 == 0 { "even" } else { "odd" };
            Ok((record, parity.into()))
        }
        fn fold_group(
            &self,
            _key: &[u8],
            accumulator: Option<Record>,
            record: Record,
        ) -> Result<Called<Record>, Failure> {
            self.fold(accumulator, record)
        }
        fn reduce_group(&self, _key: &[u8], records: Vec<Record>) -> Result<Record, Failure> {
            match records.iter().map(number).sum() {
                13 => Err("unlucky".into()),
                sum => Ok(Record::int(sum)),
            }
        }
        fn produce(&self) -> Result<Value, Failure> {
            Ok(Value::None)
        }
        fn generate(&self) -> Result<Box<dyn Source>, Failure> {
            Err("generates nothing".into())
        }
        fn run(&self) -> Result<(), Failure> {
            Ok(())
        }
    }

    /// The number in a record, or in a group.
    fn number(record: &Record) -> i64 {
        match record {
            Record::Native(Value::Int(number)) => *number,
            Record::Group { value, .. } => number(value),
            _ => -1,
        }
    }

    /// Runs the steps over the input; the results, the number of errors, how many records were read.
    fn run(steps: &[Step], input: &[i64]) -> (Vec<i64>, usize, usize) {
        let plan = Plan {
            steps: steps.to_vec(),
            functions: vec![Arc::new(Arithmetic)],
        };
        let stop = Stop::default();
        let mut flowing = Flowing::new(&plan, &Plain, false);
        let mut pipeline = Pipeline::new(&plan, &Plain, &stop, &no_ticket, None, &mut flowing);
        let mut read = 0;
        for &value in input {
            if !pipeline.wants_more() {
                break;
            }
            read += 1;
            pipeline.push(Record::int(value));
        }
        pipeline.end_input();
        (
            flowing.results.iter().map(number).collect(),
            flowing.errors.len(),
            read,
        )
    }

    #[test]
    fn steps_follow_each_other() {
        assert_eq!(
            run(&[Step::Map(0), Step::FlatMap(0)], &[1, 2]),
            (vec![0, 1, 0, 1, 2, 3], 0, 2)
        );
        assert_eq!(run(&[Step::Filter(0)], &[1, 2, 3]), (vec![1, 3], 0, 3));
        assert_eq!(run(&[Step::ForEach(0), Step::Collect], &[4]), (vec![4], 0, 1));
    }

    #[test]
    fn an_error_stops_the_reader_and_not_the_aggregate() {
        assert_eq!(run(&[Step::Map(0), Step::Count], &[1, 13, 3]), (vec![1], 1, 2));
        assert_eq!(run(&[Step::Accumulate(0)], &[5, 13, 3]), (vec![], 1, 2));
        assert_eq!(
            run(&[Step::FlatMap(0), Step::Accumulate(0)], &[15]),
            (vec![14], 1, 1)
        );
    }

    #[test]
    fn a_limit_reads_no_more_than_it_passes() {
        let limit = |start, length| Step::Limit { start, length };
        assert_eq!(
            run(&[Step::Map(0), limit(1, 2)], &[1, 2, 3, 4, 5]),
            (vec![4, 6], 0, 3)
        );
        assert_eq!(run(&[limit(0, 0)], &[1]), (vec![], 0, 0));
        // Behind a barrier the limit does not end the reader's input.
        assert_eq!(run(&[Step::Count, limit(0, 0)], &[1, 2]), (vec![], 0, 2));
    }

    #[test]
    fn nothing_counts_as_no_record() {
        assert_eq!(run(&[Step::Count, Step::Sum], &[]), (vec![], 0, 0));
        assert_eq!(run(&[Step::Count, Step::Sum], &[7, 8]), (vec![2], 0, 2));
    }

    #[test]
    fn groups_come_when_the_input_has_ended() {
        let group = |local| Step::GroupBy {
            extractor: 0,
            reducer: 0,
            local,
        };
        assert_eq!(
            run(&[group(true), Step::MergeGroups(0)], &[1, 2, 3, 4]),
            (vec![4, 6], 0, 4)
        );
        let batch = Step::BatchGroupBy {
            extractor: 0,
            reducer: 0,
        };
        assert_eq!(
            run(std::slice::from_ref(&batch), &[1, 2, 3, 4]),
            (vec![6, 4], 0, 4)
        );
        assert_eq!(run(&[batch], &[10, 2, 3]), (vec![3, 12], 0, 3));
        assert_eq!(
            run(&[Step::CountBy(Some(0)), Step::SumBy], &[1, 2, 3]),
            (vec![2, 1], 0, 3)
        );
        assert_eq!(run(&[Step::CountBy(None)], &[7, 7, 5]), (vec![2, 1], 0, 3));
    }

    #[test]
    fn a_failing_reducer_loses_its_group() {
        let batch = Step::BatchGroupBy {
            extractor: 0,
            reducer: 0,
        };
        assert_eq!(run(&[batch], &[6, 7, 4, 6]), (vec![7, 16], 0, 4));
        let group = Step::GroupBy {
            extractor: 0,
            reducer: 0,
            local: false,
        };
        assert_eq!(run(&[Step::FlatMap(0), group], &[16]), (vec![56, 15], 1, 1));
    }

    #[test]
    fn each_record_passes_once_and_in_order() {
        let steps = [Step::Distinct { merging: false }, Step::Sort { descending: true }];
        assert_eq!(run(&steps, &[3, 9, 3, 4]), (vec![9, 4, 3], 0, 4));
    }

    #[test]
    fn a_stop_drops_what_is_held() {
        let plan = Plan {
            steps: vec![Step::Sort { descending: false }],
            functions: Vec::new(),
        };
        let stop = Stop::default();
        let mut flowing = Flowing::new(&plan, &Plain, false);
        let mut pipeline = Pipeline::new(&plan, &Plain, &stop, &no_ticket, None, &mut flowing);
        pipeline.push(Record::int(1));
        stop.ask();
        pipeline.end_input();
        assert!(flowing.results.is_empty());
    }

    #[test]
    fn a_record_that_waits_keeps_its_place() {
        let plan = Plan {
            steps: vec![Step::Map(0), Step::Count],
            functions: vec![Arc::new(Arithmetic)],
        };
        let mapped = Plan {
            steps: vec![Step::Map(0)],
            functions: vec![Arc::new(Arithmetic)],
        };
        for (plan, expected) in [(plan, vec![3]), (mapped, vec![4, 10, 6])] {
            let stop = Stop::default();
            let mut flowing = Flowing::new(&plan, &Plain, false);
            let mut pipeline = Pipeline::new(&plan, &Plain, &stop, &no_ticket, None, &mut flowing);
            for value in [2, 0, 3] {
                pipeline.push(Record::int(value));
            }
            pipeline.end_input();
            assert!(!pipeline.is_finished());
            pipeline.complete(0, 0, Ok(Record::int(10)));
            assert!(pipeline.is_finished());
            let results: Vec<_> = flowing.results.iter().map(number).collect();
            assert_eq!(results, expected);
        }
    }
}
