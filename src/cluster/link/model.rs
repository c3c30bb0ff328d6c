//! The exchange between two shards under all kinds of orders of its threads, and connections that break at any place: each message
//! comes once, those of a thread in their order, and whoever waits for room gets it. `make test-model`.

use parking_lot::Mutex as Plain;
use shuttle::thread;

use super::*;
use crate::{
    cluster::greeting::{Sender, Taken},
    waits::{chance, check},
};

const ORDERS: usize = 1000;
/// Messages of each thread.
const MESSAGES: u8 = 3;

/// The other shard: what it knows of the link, and what has come, in order.
#[derive(Default)]
struct Other {
    knows: Option<Sender>,
    received: Vec<Vec<u8>>,
}

impl Other {
    /// RG.HELLO on a new connection.
    fn hello(&mut self, client: u64, epoch: u64) -> u64 {
        let Ok(sender) = Sender::greeting(self.knows.as_ref(), client, b"run", epoch) else {
            panic!("it was refused");
        };
        self.knows.insert(sender).next()
    }

    /// RG.INNERMSGCOMMAND.
    fn message(&mut self, item: &Item) {
        match self.knows.as_mut().map(|sender| sender.takes(item.number)) {
            Some(Taken::Next) => self.received.push(item.payload.to_vec()),
            Some(Taken::Seen) | None => {}
            Some(Taken::BehindLost) => panic!("one was lost before {}", item.number),
        }
    }
}

/// The life of the link's thread, over connections that break.
fn send(link: &Link, other: &Plain<Other>) {
    for client in 0.. {
        let next = other.lock().hello(client, link.epoch);
        link.acknowledged_below(next);
        'connection: loop {
            match link.next_batch() {
                Next::Nothing => {}
                Next::Reset => {
                    let mut state = link.state.lock();
                    if state.closed {
                        return;
                    }
                    state.reset = false;
                    break 'connection;
                }
                Next::Batch(batch) => {
                    for item in &batch {
                        if chance() {
                            break 'connection;
                        }
                        other.lock().message(item);
                        if chance() {
                            // It has come, and nobody is told.
                            break 'connection;
                        }
                        link.acknowledged_below(item.number + 1);
                    }
                }
            }
        }
    }
}

fn run(moves: bool) {
    let address = |port| Address {
        host: "shard".into(),
        port,
        password: None,
    };
    let link = Arc::new(Link::new(ShardId::STANDALONE, address(1), None));
    let other = Arc::new(Plain::new(Other::default()));
    let sender = {
        let (link, other) = (Arc::clone(&link), Arc::clone(&other));
        thread::spawn(move || send(&link, &other))
    };
    let threads: Vec<_> = (0..2)
        .map(|number| {
            let link = Arc::clone(&link);
            thread::spawn(move || {
                for message in 0..MESSAGES {
                    while !link.wait_for_room(2, Duration::from_secs(1)) {}
                    link.push(KIND, vec![number, message]);
                }
            })
        })
        .collect();
    if moves {
        link.set_address(&address(2));
    }
    for thread in threads {
        assert!(thread.join().is_ok());
    }
    while link.state().pending > 0 {}
    link.close();
    assert!(sender.join().is_ok());
    assert!(
        link.wait_for_room(2, Duration::ZERO),
        "nobody waits for a link that is closed"
    );
    let received = &other.lock().received;
    assert_eq!(received.len(), 2 * usize::from(MESSAGES), "each once");
    for number in 0..2 {
        let its = received.iter().filter(|payload| payload[0] == number);
        assert!(its.map(|payload| payload[1]).eq(0..MESSAGES), "in their order");
    }
}

#[test]
fn messages_over_connections_that_break() {
    check(ORDERS, || run(false));
}

#[test]
fn a_shard_that_moves_meanwhile() {
    check(ORDERS, || run(true));
}
