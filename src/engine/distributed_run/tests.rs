//! The phases of a run, on the side of the initiator and of those who take part.

use super::*;
use crate::{engine::id::Id, server::rights::Owner};

fn shard(digit: char) -> ShardId {
    ShardId::parse(digit.to_string().repeat(40).as_bytes()).unwrap_or(ShardId::STANDALONE)
}

fn distributed() -> DistributedRun {
    let payload = LaunchPayload {
        source: None,
        functions: Functions::Registered(Id {
            number: 1,
            shard: shard('a'),
        }),
    };
    DistributedRun::initiate(Duration::from_secs(5), payload)
}

fn place(others: &[char]) -> Place {
    let all = std::iter::once(&'a').chain(others);
    let slots = (0..).zip(all).map(|(slot, &digit)| (shard(digit), (slot, slot)));
    Place {
        me: shard('a'),
        members: Arc::new(Members::new(slots)),
    }
}

#[test]
fn the_initiator_waits_for_all_twice() {
    let (b, c) = (shard('b'), shard('c'));
    let distributed = distributed();
    assert_eq!(distributed.state(false), None);
    assert!(matches!(distributed.turn(), NextAction::Launch { first: true }));
    assert_eq!(distributed.state(false), Some("pending_receive"));
    assert!(matches!(distributed.turn(), NextAction::TooEarly));
    assert!(distributed.launch(place(&['b', 'c'])).is_some());
    assert!(!distributed.received(b, 1) && !distributed.received(b, 1) && !distributed.received(c, 2));
    assert!(distributed.received(c, 1) && !distributed.received(c, 1));
    assert!(matches!(distributed.turn(), NextAction::Run));
    assert!(distributed.patience().is_none() && distributed.launch(place(&['b', 'c'])).is_none());
    distributed.completed(b);
    assert!(distributed.part_done() && !distributed.part_done() && !distributed.may_end());
    distributed.completed(c);
    assert!(distributed.may_end());
    assert_eq!(distributed.counts(), (2, 2));
}

#[test]
fn what_has_not_begun_goes_to_those_who_are_there() {
    let distributed = distributed();
    assert!(!distributed.send_again(), "nobody has tried yet");
    assert!(matches!(distributed.turn(), NextAction::Launch { .. }));
    distributed.launch(place(&['b', 'c']));
    distributed.received(shard('b'), 1);
    let now = place(&['b', 'd']);
    let gone = BTreeSet::from([shard('c')]);
    assert_eq!(distributed.lost(&gone, Some(&now.members)), Loss::SendAgain);
    assert!(distributed.send_again() && !distributed.send_again());
    assert!(matches!(distributed.turn(), NextAction::Launch { first: false }));
    let launch = distributed.launch(now.clone());
    assert_eq!(
        launch.map(|launch| (launch.attempt, launch.left_out)),
        Some((2, vec![shard('c')]))
    );
    assert!(!distributed.received(shard('b'), 1) && !distributed.received(shard('d'), 2));
    assert!(distributed.received(shard('b'), 2));
    assert!(!distributed.send_again(), "all have it");
    assert_eq!(distributed.lost(&BTreeSet::from([shard('d')]), None), Loss::Fatal);
    distributed.completed(shard('d'));
    assert_eq!(
        distributed.lost(&BTreeSet::from([shard('d')]), None),
        Loss::Nothing
    );
    assert_eq!(distributed.idle_error().text(), MAX_IDLE);
}

#[test]
fn why_it_could_not_begin_is_told() {
    let distributed = distributed();
    distributed.turn();
    assert!(distributed.hindered(None, "why".into()));
    assert_eq!(distributed.idle_error().text(), "why");
    distributed.launch(place(&[]));
    assert!(
        !distributed.hindered(Some(1), "late".into()),
        "a shard alone begins at once"
    );
    assert_eq!(distributed.idle_error().text(), MAX_IDLE);
}

#[test]
fn who_takes_part_waits_for_the_initiator_twice() {
    let (me, initiator) = (shard('b'), shard('a'));
    let plan = SharedPlan {
        attempt: 3,
        members: Members::clone(&place(&['b']).members),
        max_idle_ms: 5000,
        db: 0,
        transient: true,
        registered: true,
        skips_errors: false,
        source: None,
        functions: Functions::Registered(Id {
            number: 1,
            shard: initiator,
        }),
        owner: Owner::default(),
    };
    let part = DistributedRun::take_part(me, initiator, &plan, None);
    assert_eq!(part.attempt_waiting(), Some(3));
    assert!(matches!(part.turn(), NextAction::TooEarly) && part.patience().is_some());
    assert_eq!(part.state(false), Some("pending_run"));
    assert!(!part.received(initiator, 3) && !part.hindered(None, "why".into()) && !part.send_again());
    assert!(part.go() && !part.go());
    assert!(matches!(part.turn(), NextAction::Run) && part.patience().is_none());
    assert_eq!((part.attempt_waiting(), part.state(true)), (None, None));
    assert!(part.part_done() && !part.part_done() && !part.may_end());
    assert_eq!(part.state(true), Some("pending_termination"));
    let gone = BTreeSet::from([initiator]);
    assert_eq!(part.lost(&gone, None), Loss::Fatal);
    part.finish();
    assert!(part.may_end());
    assert_eq!(part.lost(&gone, None), Loss::Nothing);
}
