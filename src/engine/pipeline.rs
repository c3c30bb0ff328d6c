//! One run of a plan over records: each record is pushed through all steps before the next one is read.
//!
//! Runs on whichever thread runs the execution, attached. Rules: `python-api.md` 3.3, 3.4 and 3.9.

use std::time::{Duration, Instant};

use super::{
    language::{Failure, Language},
    plan::{Plan, Step},
    record::{Record, Value},
};

/// What a step remembers between records.
enum Memory {
    Nothing,
    Accumulator(Option<Record>),
    Count(i64),
    Sum(Option<i64>),
    Passed { seen: u64, passed: u64 },
}

/// The state of one run.
pub struct Pipeline<'a> {
    plan: &'a Plan,
    language: &'a dyn Language,
    memories: Vec<Memory>,
    durations: Option<Vec<Duration>>,
    pub results: Vec<Record>,
    pub errors: Vec<Failure>,
}

impl<'a> Pipeline<'a> {
    /// `profiled`: measure how long each step takes.
    pub fn new(plan: &'a Plan, language: &'a dyn Language, profiled: bool) -> Self {
        let memory = |step: &Step| match step {
            Step::Accumulate(_) => Memory::Accumulator(None),
            Step::Count => Memory::Count(0),
            Step::Sum => Memory::Sum(None),
            Step::Limit { .. } => Memory::Passed { seen: 0, passed: 0 },
            _ => Memory::Nothing,
        };
        Self {
            plan,
            language,
            memories: plan.steps.iter().map(memory).collect(),
            durations: profiled.then(|| vec![Duration::ZERO; plan.steps.len()]),
            results: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// False when no further record can change anything: a limit is reached, or there was an error.
    pub fn wants_more(&self) -> bool {
        if !self.errors.is_empty() {
            return false;
        }
        let steps = self.plan.steps.iter().zip(&self.memories);
        !steps.take_while(|(step, _)| !step.is_barrier()).any(|(step, memory)| {
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

    /// The input has ended: lets go what accumulators hold, from the first step to the last.
    pub fn end_input(&mut self) {
        for index in 0..self.memories.len() {
            let held = match &mut self.memories[index] {
                Memory::Accumulator(record) => record.take(),
                Memory::Count(count) if *count > 0 => Some(Record::int(std::mem::take(count))),
                Memory::Sum(sum) => sum.take().map(Record::int),
                _ => None,
            };
            if let Some(record) = held {
                self.push_from(index + 1, record);
            }
        }
    }

    /// How long each step took, zero where it was not measured.
    pub fn durations(&self) -> Vec<Duration> {
        self.durations
            .clone()
            .unwrap_or_else(|| vec![Duration::ZERO; self.plan.steps.len()])
    }

    fn push_from(&mut self, first: usize, mut record: Record) {
        for index in first..self.plan.steps.len() {
            let started = self.durations.is_some().then(Instant::now);
            let outcome = self.apply(index, record);
            if let (Some(started), Some(durations)) = (started, &mut self.durations) {
                durations[index] += started.elapsed();
            }
            match outcome {
                Ok(Flow::On(next)) => record = next,
                Ok(Flow::Apart(records)) => {
                    for part in records {
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
        let call = |function: usize| &plan.functions[function];
        match (&plan.steps[index], &mut self.memories[index]) {
            (Step::Map(function), _) => call(*function).map(record).map(Flow::On),
            (Step::FlatMap(function), _) => call(*function).expand(record).map(Flow::Apart),
            (Step::Filter(function), _) => call(*function)
                .test(record)
                .map(|(record, passes)| if passes { Flow::On(record) } else { Flow::Kept }),
            (Step::ForEach(function), _) => call(*function).visit(record).map(Flow::On),
            (Step::Accumulate(function), Memory::Accumulator(held)) => {
                // A failure leaves the accumulator empty: the next record starts a new one.
                *held = Some(call(*function).fold(held.take(), record)?);
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
            (Step::Limit { start, length }, Memory::Passed { seen, passed }) => {
                *seen += 1;
                if *seen <= *start || *passed >= *length {
                    return Ok(Flow::Kept);
                }
                *passed += 1;
                Ok(Flow::On(record))
            }
            (Step::Text, _) => self.language.to_text(record).map(Flow::On),
            _ => Ok(Flow::On(record)),
        }
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
    use std::sync::{Arc, atomic::AtomicU64};

    use super::*;
    use crate::{engine::language::Function, redis::reply::Reply};

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
        fn interrupt(&self, _thread: &AtomicU64) {}
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
        fn run(&self) -> Result<(), Failure> {
            Ok(())
        }
    }

    fn number(record: &Record) -> i64 {
        match record {
            Record::Native(Value::Int(number)) => *number,
            _ => -1,
        }
    }

    /// Runs the steps over the input; the results, the number of errors, how many records were read.
    fn run(steps: &[Step], input: &[i64]) -> (Vec<i64>, usize, usize) {
        let plan = Plan {
            steps: steps.to_vec(),
            functions: vec![Arc::new(Arithmetic)],
        };
        let mut pipeline = Pipeline::new(&plan, &Plain, false);
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
}
