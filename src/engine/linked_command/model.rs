//! The link under all kinds of orders of its threads: the client gets exactly one reply, whoever comes last, and it is the override
//! that was accepted. `make test-model`.

use parking_lot::Mutex as Plain;
use shuttle::thread;

use super::*;
use crate::waits::{check, turn};

const ORDERS: usize = 3000;
const OWN: Reply = Reply::Int(0);

/// A client that notes what it was told: a reply, or `None` if its command is to be run again.
#[derive(Clone, Default)]
struct Told(Arc<Plain<Vec<Option<Reply>>>>);

impl Waits for Told {
    fn answer(self, reply: Reply) {
        turn();
        self.0.lock().push(Some(reply));
    }

    fn run_again(self) {
        turn();
        self.0.lock().push(None);
    }
}

/// What an execution does before it lets go of the link.
#[derive(Clone, Copy)]
enum Does {
    Nothing,
    Overrides,
    /// It passes the link on to something that goes on by itself, as a coroutine does.
    PassesOn,
    /// It finds the command's own reply out of date.
    RunsAgain,
}

/// One execution; the override that was accepted.
fn execute(hold: ReplyHold<Told>, number: i64, does: Does) -> Option<Reply> {
    let reply = Reply::Int(number);
    match does {
        Does::Nothing => None,
        Does::Overrides => hold.link().replace_reply(reply.clone()).is_ok().then_some(reply),
        Does::RunsAgain => {
            hold.link().run_again();
            None
        }
        Does::PassesOn => {
            let passed = hold.link().hold_open();
            drop(hold);
            let passed = passed?;
            thread::spawn(move || execute(passed, number, Does::Overrides))
                .join()
                .ok()?
        }
    }
}

/// Somebody who knows the link and holds it no more, as a task that a coroutine has left behind; the override that was accepted.
fn come_late(link: &LinkedCommand<Told>, number: i64) -> Option<Reply> {
    turn();
    let reply = Reply::Int(number);
    link.replace_reply(reply.clone()).is_ok().then_some(reply)
}

fn run(late: bool, executions: &'static [Does]) {
    let link = LinkedCommand::<Told>::of(Words::default());
    let client = Told::default();
    let mut threads: Vec<_> = (1..)
        .zip(executions)
        .map(|(number, does)| {
            let hold = link.hold();
            thread::spawn(move || execute(hold, number, *does))
        })
        .collect();
    if late {
        let link = Arc::clone(&link);
        threads.push(thread::spawn(move || come_late(&link, 8)));
    }
    // As `hooks/proxy.rs` does it, behind the command.
    match link.close_if_free() {
        Ok(replacement) => client.clone().answer(replacement.unwrap_or(OWN)),
        Err(StillHeld) => link.wait(client.clone(), OWN),
    }
    let accepted: Vec<_> = threads
        .into_iter()
        .filter_map(|thread| thread.join().ok()?)
        .collect();
    assert!(accepted.len() <= 1, "one override");
    let told = client.0.lock().clone();
    assert_eq!(told.len(), 1, "one reply");
    match (accepted.first(), &told[0]) {
        (Some(accepted), Some(reply)) => assert_eq!(accepted, reply),
        (None, Some(reply)) => assert_eq!(*reply, OWN),
        (Some(_), None) => panic!("an override was accepted and lost"),
        (None, None) => assert!(executions.iter().any(|does| matches!(does, Does::RunsAgain))),
    }
    assert!(!link.is_open() && link.hold_open().is_none());
    assert_eq!(link.replace_reply(Reply::Int(9)), Err(Error::NoCommandContext));
}

#[test]
fn nobody_overrides() {
    check(ORDERS, || run(false, &[Does::Nothing, Does::Nothing]));
}

#[test]
fn two_override() {
    check(ORDERS, || run(false, &[Does::Overrides, Does::Overrides]));
}

#[test]
fn one_passes_the_link_on() {
    check(ORDERS, || run(false, &[Does::PassesOn, Does::Overrides]));
}

#[test]
fn a_command_that_is_run_again() {
    check(ORDERS, || {
        run(false, &[Does::RunsAgain, Does::Overrides, Does::Nothing]);
    });
}

#[test]
fn one_who_comes_late() {
    check(ORDERS, || run(true, &[Does::Nothing, Does::Nothing]));
}

#[test]
fn a_client_that_cannot_wait() {
    check(ORDERS, || {
        let link = LinkedCommand::<Told>::of(Words::default());
        let hold = link.hold();
        let thread = thread::spawn(move || execute(hold, 1, Does::Overrides));
        let reply = link.close();
        assert_eq!(reply, thread.join().ok().flatten(), "accepted means sent");
    });
}
