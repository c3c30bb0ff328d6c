use super::*;

/// One whose earlier life is done with, and that many entries have come.
fn stream(unread: u64) -> Stream {
    let mut stream = Stream::default();
    stream.note_read(Portion::Recovery, 0);
    for _ in 0..unread {
        stream.note_added();
    }
    stream
}

#[test]
fn a_new_stream_is_recovered_first() {
    let mut stream = Stream::default();
    stream.note_added();
    assert_eq!(stream.next(1), Some(Portion::Recovery));
    stream.note_read(Portion::Recovery, 0);
    assert_eq!((stream.next(1), stream.next(2)), (Some(Portion::New(1)), None));
}

#[test]
fn what_is_to_be_read_to_its_end_still_is_after_a_recovery() {
    let mut stream = stream(1);
    stream.note_standing(true, true);
    assert_eq!(stream.next(2), Some(Portion::Recovery));
    stream.note_read(Portion::Recovery, 3);
    assert_eq!(stream.next(2), Some(Portion::New(2)));
    stream.note_standing(false, false);
    assert_eq!(stream.next(2), Some(Portion::New(2)));
}

#[test]
fn a_position_that_had_to_be_made_begins_anew() {
    let mut stream = stream(1);
    stream.note_made(1);
    assert_eq!((stream.unread(), stream.next(10)), (1, None));
    stream.note_made(6);
    assert_eq!((stream.unread(), stream.next(10)), (6, Some(Portion::New(10))));
}

#[test]
fn a_scan_leaves_a_batch_that_fills_alone() {
    let mut stream = stream(1);
    stream.note_found(1);
    assert!(stream.begins_batch(10) && !stream.begins_batch(1));
    stream.note_found(2);
    assert_eq!((stream.unread(), stream.next(10)), (2, Some(Portion::New(10))));
    assert!(!stream.begins_batch(10));
}

#[test]
fn an_incomplete_batch_is_the_end() {
    let mut stream = stream(5);
    stream.note_time_over();
    assert!(stream.note_read(Portion::New(2), 2).is_some());
    assert_eq!((stream.unread(), stream.arrivals.len()), (3, 3));
    assert_eq!(stream.next(10), Some(Portion::New(10)), "it goes on to the end");
    stream.note_read(Portion::New(2), 1);
    assert_eq!(
        (stream.unread(), stream.arrivals.len(), stream.next(1)),
        (0, 0, None)
    );
}

#[test]
fn what_the_server_refuses_is_asked_for_again() {
    let mut stream = Stream::default();
    stream.note_found(3);
    assert!(stream.note_refused(), "it is said once");
    assert_eq!(stream.next(10), None);
    stream.note_added();
    stream.note_found(4);
    assert_eq!(stream.next(10), None, "whatever comes meanwhile");
    stream.try_again();
    assert_eq!(stream.next(10), Some(Portion::Recovery));
    assert!(!stream.note_refused());
    stream.try_again();
    stream.note_read(Portion::Recovery, 0);
    assert_eq!(
        stream.next(10),
        Some(Portion::New(10)),
        "also as an incomplete batch"
    );
    assert!(stream.note_refused());
}

#[test]
fn one_timer_runs_at_a_time_and_only_for_entries() {
    let time = Duration::from_secs(60);
    assert_eq!(stream(0).start_timer(time), None);
    let mut stream = stream(1);
    assert!(stream.start_timer(time).is_some_and(|left| left <= time));
    assert_eq!(stream.start_timer(time), None);
    stream.note_time_over();
    assert_eq!(stream.next(10), Some(Portion::New(10)));
    assert!(stream.start_timer(time).is_some());
}

#[test]
fn one_job_looks_and_none_where_the_next_run_comes_by_itself() {
    let mut stream = stream(1);
    assert!(stream.queue_sync() && !stream.queue_sync() && !stream.is_running_sync());
    stream.set_running_sync(true);
    assert!(stream.is_running_sync() && !stream.queue_sync());
    stream.set_running_sync(false);
    assert!(stream.queue_sync());
}

#[test]
fn who_is_paused_stays_so_until_a_client_lets_it_go_on() {
    let mut state = RegistrationStreams::default();
    state.stream(b"s").note_read(Portion::Recovery, 0);
    assert_eq!(state.note_failed(Policy::Retry, false), Status::WaitingForRetry);
    assert!(state.pause() && !state.pause() && !state.retry(0));
    assert_eq!(state.note_failed(Policy::Abort, false), Status::Paused);
    assert!(state.unpause() && !state.unpause());
    assert_eq!(state.stream(b"s").next(1), Some(Portion::Recovery));
    assert_eq!(state.note_failed(Policy::Abort, false), Status::Aborted);
    assert!(!state.pause(), "it stands already");
    assert_eq!(state.note_failed(Policy::Continue, true), Status::Paused);
}

#[test]
fn a_retry_of_an_earlier_life_does_nothing() {
    let mut state = RegistrationStreams::default();
    state.note_failed(Policy::Retry, false);
    state.begin_again();
    assert_eq!((state.status(), state.retry(0)), (Status::Ok, false));
    state.note_failed(Policy::Retry, false);
    assert!(!state.retry(0) && state.retry(1));
}

#[test]
fn streams_that_are_gone_are_found_while_others_come() {
    let mut known = RegistrationStreams::default();
    let mut living = 0;
    for number in 0..10_000_u32 {
        // Nine of ten are gone before the next one comes.
        let key = format!("{number:x}:{}", number % 10);
        known.stream(key.as_bytes()).note_added();
        living += usize::from(number % 10 == 0);
        for key in known.next_to_look_at() {
            if !key.ends_with(b":0") {
                known.forget(&key);
            }
        }
        assert!(
            known.streams.len() <= 4 * living + 50,
            "{} of {living}",
            known.streams.len()
        );
    }
    assert_eq!(living, 1000);
}

#[test]
fn a_stream_that_somebody_comes_back_to_is_kept() {
    let mut known = RegistrationStreams::default();
    for (number, key) in [b"a", b"b", b"c"].into_iter().enumerate() {
        let stream = known.stream(key);
        stream.note_added();
        match number {
            0 => assert!(stream.start_timer(Duration::from_secs(1)).is_some()),
            1 => assert!(stream.note_refused()),
            _ => assert!(stream.queue_sync()),
        }
        known.forget(key);
    }
    assert_eq!(known.streams.len(), 3);
    assert_eq!(known.next_to_look_at().len(), 0);
}

#[test]
fn a_burst_of_arrivals_takes_no_memory_for_ever() {
    let mut stream = stream(5000);
    assert!(stream.arrivals.capacity() >= 5000);
    stream.note_read(Portion::New(5000), 5000);
    assert!(
        stream.arrivals.capacity() <= 2 * FEW_ARRIVALS,
        "{}",
        stream.arrivals.capacity()
    );
}
