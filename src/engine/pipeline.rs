//! One run of a plan over records: each record is pushed through all steps before the next one is read.
//!
//! Runs on whichever thread runs the execution, attached. Rules: `python-api.md` 3.3, 3.4 and 3.9.

use std::time::{Duration, Instant};

use super::{
    language::{Failure, Function, Language},
    memory::Memory,
    plan::{Plan, Step},
    record::{Record, Value},
    stop::Stop,
};

/// The state of one run.
pub struct Pipeline<'a> {
    plan: &'a Plan,
    language: &'a dyn Language,
    /// Somebody asked for the end: what is held back is dropped.
    stop: &'a Stop,
    memories: Vec<Memory>,
    durations: Option<Vec<Duration>>,
    /// Some limit in front of all barriers has passed what it passes.
    satisfied: bool,
    /// An error does not end the input.
    pub skips_errors: bool,
    pub results: Vec<Record>,
    pub errors: Vec<Failure>,
}

impl<'a> Pipeline<'a> {
    /// `profiled`: measure how long each step takes.
    pub fn new(plan: &'a Plan, language: &'a dyn Language, stop: &'a Stop, profiled: bool) -> Self {
        let memories = plan.steps.iter().map(|step| Memory::new(plan, step, language));
        let mut pipeline = Self {
            plan,
            language,
            stop,
            memories: memories.collect(),
            durations: profiled.then(|| vec![Duration::ZERO; plan.steps.len()]),
            satisfied: false,
            skips_errors: false,
            results: Vec::new(),
            errors: Vec::new(),
        };
        pipeline.satisfied = pipeline.has_passed_enough();
        pipeline
    }

    /// False when no further record can change anything: a limit is reached, or there was an error.
    pub fn wants_more(&self) -> bool {
        !self.satisfied && (self.skips_errors || self.errors.is_empty())
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.is_asked()
    }

    fn has_passed_enough(&self) -> bool {
        let steps = self.plan.steps.iter().zip(&self.memories);
        steps.take_while(|(step, _)| !step.is_barrier()).any(|(step, memory)| {
            matches!((step, memory), (Step::Limit { length, .. }, Memory::Passed { passed, .. }) if passed >= length)
        })
    }

    /// Pushes one record of the reader through all steps.
    pub fn push(&mut self, record: Record) {
        self.push_from(0, record);
    }

    /// Notes an error of the reader.
    pub fn fail(&mut self, failure: Failure) {
        self.errors.push(failure);
    }

    /// The input has ended: lets go what steps hold, from the first one to the last.
    pub fn end_input(&mut self) {
        for index in 0..self.memories.len() {
            let mut held = self.memories[index].release(self.language);
            loop {
                let started = self.durations.is_some().then(Instant::now);
                let next = held.next();
                self.note(index, started);
                match next {
                    _ if self.is_stopping() => break,
                    Some(Ok(record)) => self.push_from(index + 1, record),
                    Some(Err(failure)) => self.errors.push(failure),
                    None => break,
                }
            }
        }
    }

    /// How long each step took; empty if that was not measured.
    pub fn durations(&mut self) -> Vec<Duration> {
        self.durations.take().unwrap_or_default()
    }

    fn note(&mut self, index: usize, started: Option<Instant>) {
        if let (Some(started), Some(durations)) = (started, &mut self.durations) {
            durations[index] += started.elapsed();
        }
    }

    fn push_from(&mut self, first: usize, mut record: Record) {
        for index in first..self.plan.steps.len() {
            let started = self.durations.is_some().then(Instant::now);
            let outcome = self.apply(index, record);
            self.note(index, started);
            match outcome {
                Ok(Flow::On(next)) => record = next,
                Ok(Flow::Apart(records)) => {
                    for part in records {
                        if self.is_stopping() {
                            return;
                        }
                        self.push_from(index + 1, part);
                    }
                    return;
                }
                Ok(Flow::Kept) => return,
                Err(failure) => {
                    self.errors.push(failure);
                    return;
                }
            }
        }
        self.results.push(record);
    }

    fn apply(&mut self, index: usize, record: Record) -> Result<Flow, Failure> {
        let plan = self.plan;
        let call = |function: usize| -> &dyn Function { plan.functions[function].as_ref() };
        match (&plan.steps[index], &mut self.memories[index]) {
            (Step::Map(function), _) => call(*function).map(record).map(Flow::On),
            (Step::FlatMap(function), _) => call(*function).expand(record).map(Flow::Apart),
            (Step::Filter(function), _) => call(*function)
                .test(record)
                .map(|(record, passes)| if passes { Flow::On(record) } else { Flow::Kept }),
            (Step::ForEach(function), _) => call(*function).visit(record).map(Flow::On),
            (Step::Repartition(function), _) => {
                call(*function).key(record).map(|(record, _)| Flow::On(record))
            }
            (Step::Accumulate(function), Memory::Accumulator(held)) => {
                // A failure leaves the accumulator empty: the next record starts a new one.
                *held = Some(call(*function).fold(held.take(), record)?);
                Ok(Flow::Kept)
            }
            (
                Step::GroupBy {
                    extractor, reducer, ..
                },
                Memory::Groups(groups),
            ) => {
                let (record, key) = call(*extractor).key(record)?;
                fold_into(groups, key, record, call(*reducer))
            }
            (Step::MergeGroups(reducer), Memory::Groups(groups)) => {
                let (key, value) = key_and_value(record)?;
                fold_into(groups, key, value, call(*reducer))
            }
            (Step::BatchGroupBy { extractor, .. }, Memory::Batches { groups, .. }) => {
                let (record, key) = call(*extractor).key(record)?;
                groups.entry(key).or_default().push(record);
                Ok(Flow::Kept)
            }
            (Step::CountBy(extractor), Memory::Counts(counts)) => {
                let key = match extractor {
                    Some(extractor) => call(*extractor).key(record)?.1,
                    None => self.language.key_of(&record)?,
                };
                *counts.entry(key).or_default() += 1;
                Ok(Flow::Kept)
            }
            (Step::SumBy, Memory::Counts(counts)) => {
                if let (key, Record::Native(Value::Int(more))) = key_and_value(record)? {
                    let count = counts.entry(key).or_default();
                    *count = count.saturating_add(more);
                }
                Ok(Flow::Kept)
            }
            (Step::Count, Memory::Count(count)) => {
                *count += 1;
                Ok(Flow::Kept)
            }
            (Step::Sum, Memory::Sum(sum)) => {
                if let Record::Native(Value::Int(count)) = record {
                    *sum = Some(sum.unwrap_or_default().saturating_add(count));
                }
                Ok(Flow::Kept)
            }
            (Step::Distinct { merging: false }, Memory::Distinct(seen)) => {
                let new = seen.add(&record)?;
                Ok(if new { Flow::On(record) } else { Flow::Kept })
            }
            (Step::Sort { .. }, Memory::Sorted { records, .. }) => {
                records.push(record);
                Ok(Flow::Kept)
            }
            (Step::Limit { start, length }, Memory::Passed { seen, passed }) => {
                *seen += 1;
                if *seen <= *start || *passed >= *length {
                    return Ok(Flow::Kept);
                }
                *passed += 1;
                if *passed >= *length {
                    self.satisfied = self.has_passed_enough();
                }
                Ok(Flow::On(record))
            }
            (Step::Text, _) => self.language.to_text(record).map(Flow::On),
            // Nothing to do on one shard: what it has passed once is in no need of a second look.
            _ => Ok(Flow::On(record)),
        }
    }
}

/// Hands the record of a key to the reducer. A failure leaves the group empty: its next record starts a new one.
fn fold_into(
    groups: &mut indexmap::IndexMap<Vec<u8>, Option<Record>>,
    key: Vec<u8>,
    record: Record,
    reducer: &dyn Function,
) -> Result<Flow, Failure> {
    if let Some(held) = groups.get_mut(&key) {
        *held = Some(reducer.fold_group(&key, held.take(), record)?);
    } else {
        let value = reducer.fold_group(&key, None, record)?;
        groups.insert(key, Some(value));
    }
    Ok(Flow::Kept)
}

/// The parts of what the step before has made.
fn key_and_value(record: Record) -> Result<(Vec<u8>, Record), Failure> {
    match record {
        Record::Group { key, value } => Ok((key, *value)),
        // Builders put these steps behind grouping ones only.
        _ => Err("ERR the record is no group".into()),
    }
}

/// What becomes of a record after a step.
enum Flow {
    On(Record),
    Apart(Vec<Record>),
    /// Dropped, or held until the input ends.
    Kept,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        engine::{execution::Source, language::Distinct},
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

    /// Doubles, repeats, keeps what is odd, adds up; 13 is an error.
    struct Arithmetic;

    impl Function for Arithmetic {
        fn name(&self) -> String {
            "arithmetic".into()
        }
        fn describe(&self) -> String {
            self.name()
        }
        fn map(&self, record: Record) -> Result<Record, Failure> {
            match number(&record) {
                13 => Err("unlucky".into()),
                other => Ok(Record::int(other * 2)),
            }
        }
        fn expand(&self, record: Record) -> Result<Vec<Record>, Failure> {
            let number = number(&record);
            Ok((0..number).map(Record::int).collect())
        }
        fn test(&self, record: Record) -> Result<(Record, bool), Failure> {
            let odd = number(&record) % 2 == 1;
            Ok((record, odd))
        }
        fn visit(&self, record: Record) -> Result<Record, Failure> {
            Ok(record)
        }
        fn fold(&self, accumulator: Option<Record>, record: Record) -> Result<Record, Failure> {
            match number(&record) {
                13 => Err("unlucky".into()),
                other => Ok(Record::int(accumulator.as_ref().map_or(0, number) + other)),
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
        ) -> Result<Record, Failure> {
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
        let mut pipeline = Pipeline::new(&plan, &Plain, &stop, false);
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
            pipeline.results.iter().map(number).collect(),
            pipeline.errors.len(),
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
        let mut pipeline = Pipeline::new(&plan, &Plain, &stop, false);
        pipeline.push(Record::int(1));
        stop.ask();
        pipeline.end_input();
        assert!(pipeline.results.is_empty());
    }
}
