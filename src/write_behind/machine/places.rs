//! Places in their order: of one key, and of all that may go. Nearly always they come at the end and leave at the front.

use std::collections::{BTreeSet, VecDeque};

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

    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// The place with so many before it.
    pub fn nth(&self, at: usize) -> Option<u64> {
        match at.checked_sub(1) {
            None => self.first,
            Some(at) => self.rest.get(at).copied(),
        }
    }

    /// How many places are before this one.
    pub fn before(&self, place: u64) -> usize {
        match self.first {
            Some(first) if first < place => 1 + self.rest.partition_point(|other| *other < place),
            _ => 0,
        }
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
}

/// Places that may go into the next call.
#[derive(Default)]
pub struct Line {
    usual: VecDeque<u64>,
    /// Those that came when later ones were there: a long line is not moved for them.
    late: BTreeSet<u64>,
}

impl Line {
    pub fn first(&self) -> Option<u64> {
        let usual = self.usual.front().copied();
        let late = self.late.first().copied();
        match (usual, late) {
            (Some(usual), Some(late)) => Some(usual.min(late)),
            (usual, late) => usual.or(late),
        }
    }

    pub fn insert(&mut self, place: u64) {
        if self.usual.back().is_none_or(|&last| last < place) {
            self.usual.push_back(place);
        } else if self.usual.binary_search(&place).is_err() {
            self.late.insert(place);
        }
    }

    pub fn remove(&mut self, place: u64) {
        if self.usual.front() == Some(&place) {
            self.usual.pop_front();
        } else if !self.late.remove(&place) {
            if let Ok(at) = self.usual.binary_search(&place) {
                self.usual.remove(at);
            }
        }
    }

    /// The first one behind `place` that `fits`.
    pub fn find_behind(&self, place: u64, fits: impl Fn(u64) -> bool) -> Option<u64> {
        let start = self.usual.partition_point(|other| *other <= place);
        let usual = self.usual.range(start..).copied().find(|other| fits(*other));
        let behind = place.checked_add(1)?..usual.unwrap_or(u64::MAX);
        let late = self.late.range(behind).copied().find(|other| fits(*other));
        late.or(usual)
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
        assert_eq!(line.find_behind(1, |place| place % 2 == 0), Some(2));
        assert_eq!(line.find_behind(2, |place| place % 2 == 1), Some(3));
        assert_eq!(line.find_behind(5, |_| true), None);
        line.remove(4);
        line.remove(9);
        let mut left = Vec::new();
        while let Some(place) = line.first() {
            line.remove(place);
            left.push(place);
        }
        assert_eq!(left, [1, 2, 3, 5]);

        let mut places = Places::default();
        assert!(places.len() == 0 && places.back().is_none() && places.before(3) == 0);
        for place in [1, 4, 6, 9] {
            places.push(place);
        }
        assert_eq!(
            (places.nth(0), places.nth(3), places.nth(4)),
            (Some(1), Some(9), None)
        );
        assert_eq!((places.before(1), places.before(6), places.before(10)), (0, 2, 4));
        for place in [6, 7, 1] {
            places.remove(place);
        }
        assert_eq!((places.front(), places.back()), (Some(4), Some(9)));
        assert_eq!((places.nth(1), places.len()), (Some(9), 2));
    }
}
