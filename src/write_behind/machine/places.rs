//! Places in their order: of one key, and of all that may go. Nearly always they come at the end and leave at the front.

use std::collections::VecDeque;

/// The places of one key. Most keys have one, which takes no memory of its own.
#[derive(Default)]
pub struct Places {
    first: Option<u64>,
    rest: VecDeque<u64>,
}

impl Places {
    pub fn front(&self) -> Option<u64> {
        self.first
    }

    pub fn back(&self) -> Option<u64> {
        self.rest.back().copied().or(self.first)
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// `place` is the last one.
    pub fn push(&mut self, place: u64) {
        if self.first.is_none() {
            self.first = Some(place);
        } else {
            self.rest.push_back(place);
        }
    }

    pub fn remove(&mut self, place: u64) {
        if self.first == Some(place) {
            self.first = self.rest.pop_front();
        } else if let Ok(at) = self.rest.binary_search(&place) {
            self.rest.remove(at);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.first.into_iter().chain(self.rest.iter().copied())
    }
}

/// Places that may go into the next call.
#[derive(Default)]
pub struct Line(VecDeque<u64>);

impl Line {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn first(&self) -> Option<u64> {
        self.0.front().copied()
    }

    pub fn insert(&mut self, place: u64) {
        if self.0.back().is_none_or(|&last| last < place) {
            self.0.push_back(place);
        } else if let Err(at) = self.0.binary_search(&place) {
            self.0.insert(at, place);
        }
    }

    pub fn remove(&mut self, place: u64) {
        if self.first() == Some(place) {
            self.0.pop_front();
        } else if let Ok(at) = self.0.binary_search(&place) {
            self.0.remove(at);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_keep_their_order_wherever_they_come_and_leave() {
        let mut line = Line::default();
        for place in [3, 5, 1, 4, 4, 2] {
            line.insert(place);
        }
        line.remove(4);
        line.remove(9);
        assert_eq!(line.iter().collect::<Vec<_>>(), [1, 2, 3, 5]);
        line.remove(1);
        assert_eq!((line.first(), line.len()), (Some(2), 3));

        let mut places = Places::default();
        assert!(places.is_empty() && places.back().is_none());
        for place in [1, 4, 6, 9] {
            places.push(place);
        }
        for place in [6, 7, 1] {
            places.remove(place);
        }
        assert_eq!((places.front(), places.back()), (Some(4), Some(9)));
        assert_eq!(places.iter().collect::<Vec<_>>(), [4, 9]);
    }
}
