//! What a link takes, and what becomes of what it does not take.

use super::*;

#[test]
fn what_is_not_taken_is_told_or_leaves_a_number_out() {
    let address = Address {
        host: "shard".into(),
        port: 1,
        password: None,
    };
    let link = Link::new(ShardId::STANDALONE, address, None);
    let large = OVERFLOW + RESERVE + 1;
    assert_eq!(
        link.offer(KIND, vec![0; large]),
        Ok(()),
        "an empty queue takes it"
    );
    assert_eq!(link.offer(KIND, vec![0]), Err(NotSent::Full { limit: OVERFLOW }));
    assert!(!link.has_room(0) && !link.wait_for_room(1, Duration::ZERO));
    assert_eq!(link.queue_or_lose(KIND, vec![0]), Kept::LostFirst);
    assert_eq!(link.queue_or_lose(KIND, vec![0]), Kept::Lost);
    assert_eq!(link.state().pending, 1);
    link.acknowledged_below(1);
    assert!(link.has_room(LARGEST), "it is empty again");
    assert_eq!(
        link.offer(KIND, vec![0; LARGEST + 1]),
        Err(NotSent::TooLarge {
            bytes: LARGEST + 1,
            limit: LARGEST
        })
    );
    assert_eq!(link.offer(KIND, vec![0; FULL + 1]), Ok(()));
    assert!(!link.has_room(0));
    assert_eq!(link.queue_or_lose(KIND, vec![0; OVERFLOW - 1]), Kept::Queued);
    let numbers: Vec<_> = link.state.lock().queue.iter().map(|item| item.number).collect();
    assert_eq!(numbers, [3, 4], "numbers 1 and 2 were lost");
    link.close();
    assert_eq!(link.offer(KIND, vec![0]), Err(NotSent::NoWay));
}
