//! Records of one step that wait for a value, and those behind them: the order of records is kept whatever comes first.
//! Rules: docs/contract/python-api.md 6.3.

use std::collections::VecDeque;

use super::{holding::Inventory, language::Failure, record::Record};

/// How many records of one step wait at a time; the reader is not asked for more then.
pub const MAX_WAITING: usize = 1000;

/// What becomes of a record after a step.
pub enum Flow {
    On(Record),
    Apart(Vec<Record>),
    /// Dropped, or held until the input ends.
    Kept,
    /// It waits for a value.
    Waiting,
}

/// The records of one step from the first one on that waits.
#[derive(Default)]
pub struct Queue {
    slots: VecDeque<Slot>,
    /// The number of the first slot.
    first: u64,
    /// How many slots wait.
    waiting: usize,
    /// Records that have not reached the step yet, because it takes one at a time.
    inputs: VecDeque<Record>,
}

/// The queues of a run by the index of their step. Most runs have none.
#[derive(Default)]
pub struct Queues(Vec<(usize, Queue)>);

impl Queues {
    /// No step ever had a record that waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn values(&self) -> impl Iterator<Item = &Queue> {
        self.0.iter().map(|(_, queue)| queue)
    }

    pub fn get(&self, step: usize) -> Option<&Queue> {
        let found = self.0.iter().find(|(index, _)| *index == step)?;
        Some(&found.1)
    }

    pub fn get_mut(&mut self, step: usize) -> Option<&mut Queue> {
        let found = self.0.iter_mut().find(|(index, _)| *index == step)?;
        Some(&mut found.1)
    }

    /// That of a step, made if there is none.
    pub fn of(&mut self, step: usize) -> &mut Queue {
        let known = self.0.iter().position(|(index, _)| *index == step);
        let place = known.unwrap_or_else(|| {
            self.0.push((step, Queue::default()));
            self.0.len() - 1
        });
        &mut self.0[place].1
    }
}

/// The place of one record.
pub enum Slot {
    /// Waits; with the record it was called with, and its key, where they are still needed.
    Waiting {
        record: Option<Record>,
        key: Option<Vec<u8>>,
    },
    Ready(Result<Flow, Failure>),
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.inputs.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.waiting >= MAX_WAITING
    }

    /// Something waits: a step that takes one record at a time takes none now.
    pub fn is_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// The number that the next slot gets.
    pub fn next_number(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    pub fn push(&mut self, slot: Slot) {
        self.waiting += usize::from(matches!(slot, Slot::Waiting { .. }));
        self.slots.push_back(slot);
    }

    /// Takes what is known of a record that waits; it is to be put back as ready.
    pub fn take(&mut self, number: u64) -> Option<(Option<Record>, Option<Vec<u8>>)> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let slot = self.slots.get_mut(place)?;
        match std::mem::replace(slot, Slot::Ready(Ok(Flow::Kept))) {
            Slot::Waiting { record, key } => {
                self.waiting -= 1;
                Some((record, key))
            }
            ready @ Slot::Ready(_) => {
                *slot = ready;
                None
            }
        }
    }

    /// The value of a record that waited has come.
    pub fn put_ready(&mut self, number: u64, flow: Result<Flow, Failure>) {
        let place = number
            .checked_sub(self.first)
            .and_then(|place| usize::try_from(place).ok());
        if let Some(slot) = place.and_then(|place| self.slots.get_mut(place)) {
            *slot = Slot::Ready(flow);
        }
    }

    /// The first record, if it waits no longer.
    pub fn pop_ready(&mut self) -> Option<Result<Flow, Failure>> {
        match self.slots.pop_front()? {
            Slot::Ready(flow) => {
                self.first += 1;
                Some(flow)
            }
            waiting @ Slot::Waiting { .. } => {
                self.slots.push_front(waiting);
                None
            }
        }
    }

    /// Adds what waits.
    pub fn take_stock<'a>(&'a self, stock: &mut Inventory<'a>) {
        for slot in &self.slots {
            match slot {
                Slot::Waiting { record, .. } => stock.add_all(record),
                Slot::Ready(Ok(Flow::On(record))) => stock.add(record),
                Slot::Ready(Ok(Flow::Apart(records))) => stock.add_all(records),
                Slot::Ready(Ok(Flow::Kept | Flow::Waiting) | Err(_)) => {}
            }
        }
        stock.add_all(&self.inputs);
    }

    pub fn push_input(&mut self, record: Record) {
        self.inputs.push_back(record);
    }

    pub fn pop_input(&mut self) -> Option<Record> {
        self.inputs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_leave_in_their_order() {
        let mut queue = Queue::default();
        let wait = || Slot::Waiting {
            record: None,
            key: None,
        };
        let (first, second) = (queue.next_number(), queue.next_number() + 1);
        queue.push(wait());
        queue.push(wait());
        assert!(queue.take(second).is_some());
        queue.put_ready(second, Ok(Flow::On(Record::int(2))));
        assert!(queue.pop_ready().is_none());
        assert!(queue.take(first).is_some());
        assert!(queue.take(first).is_none(), "a value comes once");
        queue.put_ready(first, Ok(Flow::Kept));
        assert!(matches!(queue.pop_ready(), Some(Ok(Flow::Kept))));
        assert!(matches!(queue.pop_ready(), Some(Ok(Flow::On(_)))));
        assert!(queue.is_empty() && !queue.is_waiting());
        assert_eq!(queue.next_number(), 2);
    }
}
