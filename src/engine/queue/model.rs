//! The queue under all kinds of orders of its threads: each job is taken once, those of a lane one after another, and no worker sleeps
//! while one is needed. A worker that nobody wakes shows as a deadlock. `make test-model`.

use std::sync::atomic::AtomicUsize;

use shuttle::thread;

use super::*;
use crate::{
    clock::Instant,
    engine::{
        execution::Outcome,
        id::ShardId,
        phase::Status,
        plan::Plan,
        session::{Needs, Session},
        source::Once,
        start::Start,
    },
    waits::{check, turn},
};

/// How many orders are tried, of each kind.
const ORDERS: usize = 2000;
const WORKERS: usize = 3;
/// Jobs with this number tell one worker to end.
const END: u64 = u64::MAX;

fn id(number: u64) -> Id {
    let shard = ShardId::STANDALONE;
    Id { number, shard }
}

fn job(number: u64, lane: Option<u64>) -> Job {
    let plan = Arc::new(Plan {
        steps: Vec::new(),
        functions: Vec::new(),
    });
    let session = Arc::new(Session::new("session".into(), None, Needs::default()));
    let start = Start::of_run(plan, session, Box::new(Once(None)));
    Job {
        execution: Arc::new(Execution::new(id(number), start, None)),
        lane: lane.map(|lane| Lane::Registration(id(lane))),
        pool: None,
    }
}

/// What workers have done: lanes and numbers, in the order in which jobs were begun.
#[derive(Default)]
struct Done {
    begun: parking_lot::Mutex<Vec<(Option<Lane>, u64)>>,
    /// Lanes with a job that runs.
    running: parking_lot::Mutex<Vec<Lane>>,
    ended: AtomicUsize,
}

/// The life of a worker, as in `workers.rs`, but that it can end.
fn work(queue: &Queue, done: &Done) {
    let mut seat = queue.enlist();
    loop {
        queue.wait();
        let mut ends = 0;
        while let Some(job) = queue.next(&mut seat) {
            let number = job.execution.id.number;
            if number == END {
                ends += 1;
                continue;
            }
            done.begun.lock().push((job.lane, number));
            if let Some(lane) = job.lane {
                assert!(!done.running.lock().contains(&lane), "two jobs of a lane at once");
                done.running.lock().push(lane);
            }
            assert!(
                job.execution.begin(Instant::now()).is_some(),
                "a job was taken twice"
            );
            turn();
            assert!(
                job.execution
                    .end(Status::Done, Some(&Arc::new(Outcome::default())))
                    .is_some()
            );
            if let Some(lane) = job.lane {
                done.running.lock().retain(|running| *running != lane);
                queue.advance(lane);
            }
            done.ended.fetch_add(1, Ordering::AcqRel);
        }
        if ends > 0 {
            for _ in 1..ends {
                queue.push(job(END, None));
            }
            return;
        }
    }
}

/// `jobs`: for each thread that pushes what it pushes, by lane.
fn run(gathers: bool, jobs: &'static [&'static [Option<u64>]]) {
    let (queue, done) = (Arc::new(Queue::default()), Arc::new(Done::default()));
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (queue, done) = (Arc::clone(&queue), Arc::clone(&done));
            thread::spawn(move || work(&queue, &done))
        })
        .collect();
    let others: Vec<_> = (1..jobs.len())
        .map(|thread| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || push_all(&queue, thread, jobs[thread]))
        })
        .collect();
    if gathers {
        queue.gather();
    }
    push_all(&queue, 0, jobs[0]);
    queue.release();
    for other in others {
        assert!(other.join().is_ok());
    }
    let count = jobs.iter().map(|jobs| jobs.len()).sum();
    while done.ended.load(Ordering::Acquire) < count {
        turn();
    }
    for _ in 0..WORKERS {
        queue.push(job(END, None));
    }
    queue.release();
    for worker in workers {
        assert!(worker.join().is_ok());
    }
    let begun = done.begun.lock();
    let mut numbers: Vec<_> = begun.iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "each job once");
    for (place, (lane, number)) in begun.iter().enumerate() {
        let earlier = begun[..place]
            .iter()
            .filter(|(other, _)| lane.is_some() && other == lane);
        for (_, before) in earlier.filter(|(_, before)| before / 100 == number / 100) {
            assert!(
                before < number,
                "a lane keeps the order in which a thread has pushed"
            );
        }
    }
    assert_eq!(queue.waiting_jobs(), 0);
}

fn push_all(queue: &Queue, thread: usize, lanes: &[Option<u64>]) {
    for (number, lane) in lanes.iter().enumerate() {
        queue.push(job((thread * 100 + number) as u64, *lane));
    }
}

#[test]
fn jobs_without_lanes() {
    check(ORDERS, || run(false, &[&[None, None], &[None]]));
}

#[test]
fn jobs_of_lanes() {
    check(ORDERS, || {
        run(false, &[&[Some(1), Some(2), Some(1)], &[Some(1), None]]);
    });
}

#[test]
fn what_the_servers_thread_gathers() {
    check(ORDERS, || {
        run(true, &[&[Some(1), None, Some(1)], &[None, Some(1)]]);
    });
}
