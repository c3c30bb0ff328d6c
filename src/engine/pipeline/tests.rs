//! Runs of small plans, each operation by itself and with others.

use std::sync::Arc;

use super::*;
use crate::engine::testing::{Arithmetic, Plain, number};

fn no_ticket(_step: usize, _number: u64) -> Completion {
    Box::new(|_| {})
}

/// Runs the steps over the input; the results, the number of errors, how many records were read.
fn run(steps: &[Step], input: &[i64]) -> (Vec<i64>, usize, usize) {
    let plan = Plan {
        steps: steps.to_vec(),
        functions: vec![Arc::new(Arithmetic)],
    };
    let stop = Stop::default();
    let mut state = PipelineState::new(&plan, &Plain, false);
    let mut pipeline = Pipeline::new(&plan, &Plain, &stop, &no_ticket, None, &mut state);
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
        state.results.iter().map(number).collect(),
        state.errors.len(),
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
    let mut state = PipelineState::new(&plan, &Plain, false);
    let mut pipeline = Pipeline::new(&plan, &Plain, &stop, &no_ticket, None, &mut state);
    pipeline.push(Record::int(1));
    stop.ask();
    pipeline.end_input();
    assert!(state.results.is_empty());
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
        let mut state = PipelineState::new(&plan, &Plain, false);
        let mut pipeline = Pipeline::new(&plan, &Plain, &stop, &no_ticket, None, &mut state);
        for value in [2, 0, 3] {
            pipeline.push(Record::int(value));
        }
        pipeline.end_input();
        assert!(!pipeline.is_finished());
        pipeline.complete(0, 0, Ok(Record::int(10)));
        assert!(pipeline.is_finished());
        let results: Vec<_> = state.results.iter().map(number).collect();
        assert_eq!(results, expected);
    }
}

/// Passes one record through the steps by the short way.
fn pass_singly(steps: &[Step], value: i64) -> (Vec<i64>, usize, usize) {
    let plan = Plan {
        steps: steps.to_vec(),
        functions: vec![Arc::new(Arithmetic)],
    };
    assert!(single::takes_one_by_one(&plan));
    match single::pass(&plan, &Plain, &no_ticket, Record::int(value), false) {
        single::Passed::Through(Ok(record)) => (record.iter().map(number).collect(), 0, 1),
        single::Passed::Through(Err(_)) => (Vec::new(), 1, 1),
        single::Passed::Text(_) => panic!("the text of {value} is to be made at once"),
        single::Passed::Waits(_) => panic!("{value} waits"),
    }
}

#[test]
fn one_record_comes_to_the_same_by_the_short_way() {
    let plans: [&[Step]; 6] = [
        &[],
        &[Step::Map(0), Step::Map(0)],
        &[Step::Filter(0), Step::ForEach(0)],
        &[Step::ForEach(0), Step::Collect, Step::Text],
        &[Step::Repartition(0), Step::Map(0)],
        &[Step::Map(0), Step::Filter(0), Step::Collect],
    ];
    for steps in plans {
        for value in 1..20 {
            assert_eq!(
                pass_singly(steps, value),
                run(steps, &[value]),
                "{steps:?} of {value}"
            );
        }
    }
    let plan = Plan {
        steps: vec![Step::Collect, Step::Map(0)],
        functions: vec![Arc::new(Arithmetic)],
    };
    let waits = single::pass(&plan, &Plain, &no_ticket, Record::int(0), false);
    assert!(matches!(waits, single::Passed::Waits(state) if state.is_waiting_at(1)));
    for step in [Step::FlatMap(0), Step::Count, Step::Distinct { merging: false }] {
        let plan = Plan {
            steps: vec![Step::Map(0), step],
            functions: vec![Arc::new(Arithmetic)],
        };
        assert!(!single::takes_one_by_one(&plan));
    }
}
