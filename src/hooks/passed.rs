//! Replies that a function in the place of a command gets from `call_next`, for clients of RESP3.
//!
//! A function sees the RESP2 form. If it passes a reply on as it got it, its client gets what the command itself would have
//! answered: maps, sets, doubles.

use std::collections::VecDeque;

use crate::{
    mutex::Mutex,
    server::{call_reply::Forms, reply::Reply},
};

/// How many replies are remembered, in case that the function passes on another one than the last.
const REMEMBERED: usize = 8;

/// The replies that one function has got.
#[derive(Default)]
pub(super) struct Passed(Mutex<VecDeque<Forms>>);

impl Passed {
    /// Remembers a reply, if there is a RESP3 form of it; returns what the function sees.
    pub(super) fn note(&self, forms: Forms) -> Reply {
        if forms.resp3.is_none() {
            return forms.resp2;
        }
        let seen = forms.resp2.clone();
        let mut passed = self.0.lock();
        if passed.len() == REMEMBERED {
            passed.pop_front();
        }
        passed.push_back(forms);
        seen
    }

    /// What the function replies, with the RESP3 form if that is a reply that it has got.
    pub(super) fn forms_of(&self, reply: Reply) -> Forms {
        let passed = self.0.lock();
        let same = passed.iter().rev().find(|forms| is_same(&forms.resp2, &reply));
        let resp3 = same.and_then(|forms| forms.resp3.clone());
        drop(passed);
        Forms { resp2: reply, resp3 }
    }
}

/// True if `reply` is what becomes of a reply that went through Python unchanged: all texts are one there, and those that
/// begin with `+` or `-` have a meaning on their way out.
fn is_same(got: &Reply, reply: &Reply) -> bool {
    let marked = |mark: u8, text: &[u8], rest: &[u8]| text.split_first() == Some((&mark, rest));
    match (got, reply) {
        (Reply::Array(got), Reply::Array(reply)) => {
            got.len() == reply.len() && got.iter().zip(reply).all(|(got, reply)| is_same(got, reply))
        }
        (Reply::Null | Reply::NullArray, Reply::Null) => true,
        (Reply::Bulk(text) | Reply::Status(text), Reply::Bulk(same)) => text == same,
        (Reply::Bulk(text) | Reply::Status(text), Reply::Status(rest)) => marked(b'+', text, rest),
        (Reply::Bulk(text) | Reply::Status(text), Reply::Error(rest)) => marked(b'-', text, rest),
        (got, reply) => got == reply,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms() -> Forms {
        Forms {
            resp2: Reply::bulks(["f", "+v"]),
            resp3: Some(Reply::Map(vec![(Reply::bulk("f"), Reply::bulk("+v"))])),
        }
    }

    #[test]
    fn what_is_passed_on_has_its_form() {
        let passed = Passed::default();
        assert_eq!(passed.note(forms()), forms().resp2);
        let returned = Reply::Array(vec![Reply::bulk("f"), Reply::status("v")]);
        assert_eq!(passed.forms_of(returned).resp3, forms().resp3);
        assert_eq!(passed.forms_of(Reply::bulks(["f", "w"])).resp3, None);
    }

    #[test]
    fn few_replies_are_remembered() {
        let passed = Passed::default();
        passed.note(forms());
        for number in 0..REMEMBERED {
            passed.note(Forms {
                resp2: Reply::bulk(number.to_string()),
                resp3: Some(Reply::Double(1.0)),
            });
        }
        assert_eq!(passed.forms_of(forms().resp2).resp3, None);
    }
}
