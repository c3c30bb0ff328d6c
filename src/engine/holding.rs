//! `max_memory`: how many bytes one execution holds in records: those on their way between two steps, those that wait for a value, what
//! steps remember, and results.
//!
//! To count means to look at each object, so it is done now and then: for each eighth that comes, and before what has come since could
//! have passed the limit. Used by the pipeline, attached; an execution without a limit has no [`Gauge`].

use std::ops::AddAssign;

use super::{
    language::{Failure, Language},
    record::Record,
};

/// The kind of the error of an execution that held too much, as loads and saves tell it.
pub const HELD_TOO_MUCH: &str = "HeldTooMuch";

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub bytes: usize,
    /// How many objects were looked at for that.
    pub objects: usize,
}

impl AddAssign for Size {
    fn add_assign(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.objects += more.objects;
    }
}

/// What an execution holds at one moment. Objects of the language are counted together, since they may share others.
#[derive(Default)]
pub struct Inventory<'a> {
    size: Size,
    objects: Vec<&'a Record>,
}

impl<'a> Inventory<'a> {
    pub fn add(&mut self, record: &'a Record) {
        match record {
            Record::Foreign(_) => self.objects.push(record),
            Record::Group { key, value: record } | Record::Keyed { key, record } => {
                self.add_bytes(key.len());
                self.add(record);
            }
            Record::Native(_) => self.add_bytes(record.bytes()),
        }
    }

    pub fn add_all(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        for record in records {
            self.add(record);
        }
    }

    /// Something that is no record, e.g. a key.
    pub fn add_bytes(&mut self, bytes: usize) {
        self.add_size(Size { bytes, objects: 1 });
    }

    pub fn add_size(&mut self, size: Size) {
        self.size += size;
    }

    /// The sum.
    ///
    /// # Errors
    /// The text of the error that an object raised when it was asked for its size.
    pub fn count(mut self, language: &dyn Language) -> Result<Size, Failure> {
        if !self.objects.is_empty() {
            self.size += language.size_of(&self.objects)?;
        }
        Ok(self.size)
    }
}

/// What is known of the size of a run that has a limit.
pub struct Gauge {
    limit: usize,
    /// As it was counted last.
    counted: Size,
    /// What has come since then, at least.
    since: Size,
}

impl Gauge {
    /// `limit`: in bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            counted: Size::default(),
            since: Size::default(),
        }
    }

    /// A record has come to where it, or something made of it, is held.
    ///
    /// # Errors
    /// As of [`Inventory::count`].
    pub fn feed(&mut self, record: &Record, language: &dyn Language) -> Result<(), Failure> {
        let mut fed = Inventory::default();
        fed.add(record);
        self.since.bytes = self.since.bytes.saturating_add(fed.count(language)?.bytes);
        Ok(())
    }

    /// A record has passed some steps. True if it is time to count.
    pub fn is_due(&mut self) -> bool {
        self.since.objects += 1;
        let much = |since: usize, counted: usize| since.saturating_mul(8) > counted;
        let may_have_passed = self.counted.bytes.saturating_add(self.since.bytes) > self.limit;
        much(self.since.objects, self.counted.objects)
            || (may_have_passed && much(self.since.bytes, self.counted.bytes))
    }

    /// Notes what was counted. True if that is more than the limit.
    pub fn note(&mut self, counted: Size) -> bool {
        self.counted = counted;
        self.since = Size::default();
        counted.bytes > self.limit
    }

    pub fn limit(&self) -> u64 {
        self.limit as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::Plain;

    fn count<'a>(records: impl IntoIterator<Item = &'a Record>) -> Size {
        let mut inventory = Inventory::default();
        inventory.add_all(records);
        inventory.count(&Plain).unwrap_or_default()
    }

    #[test]
    fn bytes_of_all_that_is_in_a_record() {
        let text = Record::text(vec![0; 1000]);
        let alone = count([&text]);
        assert!((1000..1100).contains(&alone.bytes));
        let group = Record::group(vec![0; 500], text);
        assert_eq!(count([&group]).bytes, alone.bytes + 500);
    }

    #[test]
    fn counting_costs_a_few_looks_for_each_record() {
        let mut gauge = Gauge::new(u64::MAX);
        let mut looks = 0;
        for held in 1..=10_000 {
            if gauge.is_due() {
                looks += held;
                gauge.note(Size {
                    bytes: held,
                    objects: held,
                });
            }
        }
        assert!(looks < 10 * 10_000, "{looks}");
    }

    #[test]
    fn what_may_have_passed_the_limit_is_counted_soon() {
        let mut gauge = Gauge::new(1000);
        let many = Size {
            bytes: 900,
            objects: 1_000_000,
        };
        assert!(gauge.is_due() && !gauge.note(many));
        assert!(gauge.feed(&Record::int(1), &Plain).is_ok() && !gauge.is_due());
        assert!(gauge.feed(&Record::text(vec![0; 500]), &Plain).is_ok() && gauge.is_due());
        assert!(gauge.note(Size {
            bytes: 1001,
            objects: 1
        }));
    }
}
