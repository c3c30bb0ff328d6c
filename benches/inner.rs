//! The inner loops by themselves: `make bench-inner`. No server and no Python is needed for what is measured here.

use std::{fs, hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use pinion_core::bench_api::{Ending, EntryId, Pattern, RegistrationChange, RunStats, glob};

fn names(criterion: &mut Criterion) {
    let pattern = Pattern::new(b"user:profile:*");
    criterion.bench_function("a prefix that fits", |bencher| {
        bencher.iter(|| pattern.matches(black_box(b"user:profile:000000012345")));
    });
    criterion.bench_function("a prefix that does not", |bencher| {
        bencher.iter(|| pattern.matches(black_box(b"order:000000012345")));
    });
    criterion.bench_function("a glob with two stars", |bencher| {
        bencher.iter(|| glob(black_box(b"user:*:00*5"), black_box(b"user:profile:000000012345")));
    });
    criterion.bench_function("the id of a stream's entry", |bencher| {
        bencher.iter(|| EntryId::parse(black_box(b"1763942400000-12")));
    });
}

fn counters(criterion: &mut Criterion) {
    let stats = RunStats::default();
    criterion.bench_function("counters of one execution", |bencher| {
        bencher.iter(|| {
            stats.triggered();
            stats.ended(Ending::Success, black_box(Duration::from_micros(7)));
        });
    });
}

fn steps(criterion: &mut Criterion) {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/step-v1-python-3.11.bin");
    let bytes = fs::read(sample).unwrap_or_default();
    assert!(RegistrationChange::decode(&bytes).is_ok(), "{sample} is a step");
    criterion.bench_function("six registrations from bytes", |bencher| {
        bencher.iter(|| RegistrationChange::decode(black_box(&bytes)));
    });
}

criterion_group!(inner, names, counters, steps);
criterion_main!(inner);
