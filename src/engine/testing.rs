//! What unit tests share: a language whose objects are numbers and whose functions do arithmetic.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    holding::Size,
    language::{Awaitable, Called, Completion, Distinct, Failure, Function, Language, Packed, Shown},
    record::{Record, Value},
    session::Session,
    source::Source,
    stop::{Interrupted, Stop},
};
use crate::server::{reply::Reply, string::Argv};

pub struct Plain;

impl Language for Plain {
    fn thread(&self, body: &mut (dyn FnMut() + Send)) {
        body();
    }
    fn attached(&self, work: &mut dyn FnMut()) {
        work();
    }
    fn detached(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }
    fn in_one_line(&self, failure: &str) -> String {
        failure.to_owned()
    }
    fn to_text(&self, record: Record) -> Result<Record, Failure> {
        Ok(Record::text(number(&record).to_string()))
    }
    fn to_reply(&self, record: Record) -> Result<Reply, Failure> {
        Ok(Reply::Int(number(&record)))
    }
    fn interruptible(&self, _stop: &Stop, work: &mut dyn FnMut()) {
        work();
    }
    fn interrupt(&self, _stop: &Stop) -> Interrupted {
        Interrupted::Nothing
    }
    fn key_of(&self, record: &Record) -> Result<Vec<u8>, Failure> {
        Ok(number(record).to_string().into())
    }
    fn use_packages(&self, _folder: &Path, _archives: &[PathBuf]) -> Result<(), Failure> {
        Ok(())
    }
    fn load(&self, _image: &[u8], _session: &Session) -> Result<Arc<dyn Function>, Failure> {
        Ok(Arc::new(Arithmetic))
    }
    fn pack(&self, objects: &mut Vec<Record>, at_most: usize) -> Packed {
        Packed {
            bytes: Vec::new(),
            taken: objects.drain(..at_most.min(objects.len())).count(),
            refused: Vec::new(),
        }
    }
    fn unpack(&self, _bytes: &[u8]) -> Result<Vec<Record>, Failure> {
        Ok(Vec::new())
    }
    fn parts(&self, record: Record) -> Vec<Record> {
        vec![record]
    }
    fn is_true(&self, record: &Record) -> Result<bool, Failure> {
        Ok(number(record) != 0)
    }
    fn size_of(&self, objects: &[&Record]) -> Result<Size, Failure> {
        let bytes = objects.iter().map(|object| object.bytes()).sum();
        let objects = objects.len();
        Ok(Size { bytes, objects })
    }
    fn distinct(&self) -> Box<dyn Distinct> {
        Box::new(Numbers::default())
    }
    fn sort(&self, mut records: Vec<Record>, descending: bool) -> Result<Vec<Record>, Failure> {
        records.sort_by_key(number);
        if descending {
            records.reverse();
        }
        Ok(records)
    }
}

#[derive(Default)]
struct Numbers(std::collections::HashSet<i64>);

impl Distinct for Numbers {
    fn add(&mut self, record: &Record) -> Result<bool, Failure> {
        Ok(self.0.insert(number(record)))
    }
    fn size(&self) -> Result<Size, Failure> {
        let objects = self.0.len();
        let bytes = objects * 8;
        Ok(Size { bytes, objects })
    }
}

/// Never comes by itself.
struct Tomorrow;

impl Awaitable for Tomorrow {
    fn start(self: Box<Self>, _completion: Completion) {}
}

/// Doubles, repeats, keeps what is odd, adds up; 13 is an error.
pub struct Arithmetic;

impl Function for Arithmetic {
    fn name(&self) -> String {
        "arithmetic".into()
    }
    fn describe(&self) -> String {
        self.name()
    }
    fn image(&self, _session: &Session) -> Result<Vec<u8>, Failure> {
        Ok(Vec::new())
    }
    fn map(&self, record: Record) -> Result<Called<Record>, Failure> {
        match number(&record) {
            13 => Err("unlucky".into()),
            0 => Ok(Called::Later(Box::new(Tomorrow), None)),
            other => Ok(Called::Now(Record::int(other * 2))),
        }
    }
    fn answer(&self, _stop: &Stop, words: Argv<'_>, _text: bool) -> Result<Called<Reply>, Failure> {
        Ok(Called::Now(Reply::Int(words.len() as i64)))
    }
    fn text(
        &self,
        _stop: &Stop,
        record: Record,
        _visits: bool,
        _outdated: Option<Shown>,
    ) -> Result<Called<Shown>, Failure> {
        let text = number(&record).to_string();
        Ok(Called::Now(Shown::Now(Reply::bulk(text))))
    }
    fn hand_over(
        &self,
        _stop: &Stop,
        record: Record,
        take: &mut dyn FnMut(Record),
    ) -> Result<Called<()>, Failure> {
        Ok(match self.map(record)? {
            Called::Now(returned) => {
                take(returned);
                Called::Now(())
            }
            Called::Later(awaitable, record) => Called::Later(awaitable, record),
        })
    }
    fn expand(&self, record: Record) -> Result<Called<Vec<Record>>, Failure> {
        let number = number(&record);
        Ok(Called::Now((0..number).map(Record::int).collect()))
    }
    fn test(&self, record: Record) -> Result<Called<(Record, bool)>, Failure> {
        let odd = number(&record) % 2 == 1;
        Ok(Called::Now((record, odd)))
    }
    fn visit(&self, record: Record) -> Result<Called<Record>, Failure> {
        Ok(Called::Now(record))
    }
    fn fold(&self, accumulator: Option<Record>, record: Record) -> Result<Called<Record>, Failure> {
        match number(&record) {
            13 => Err("unlucky".into()),
            other => Ok(Called::Now(Record::int(
                accumulator.as_ref().map_or(0, number) + other,
            ))),
        }
    }
    fn key(&self, record: Record) -> Result<(Record, Vec<u8>), Failure> {
        let parity = if number(&record) % 2 == 0 { "even" } else { "odd" };
        Ok((record, parity.into()))
    }
    fn fold_group(
        &self,
        _key: &[u8],
        accumulator: Option<Record>,
        record: Record,
    ) -> Result<Called<Record>, Failure> {
        self.fold(accumulator, record)
    }
    fn reduce_group(&self, _key: &[u8], records: Vec<Record>) -> Result<Record, Failure> {
        match records.iter().map(number).sum() {
            13 => Err("unlucky".into()),
            sum => Ok(Record::int(sum)),
        }
    }
    fn produce(&self) -> Result<Value, Failure> {
        Ok(Value::None)
    }
    fn generate(&self) -> Result<Box<dyn Source>, Failure> {
        Err("generates nothing".into())
    }
    fn run(&self) -> Result<(), Failure> {
        Ok(())
    }
}

/// The number in a record, or in a group.
pub fn number(record: &Record) -> i64 {
    match record {
        Record::Native(Value::Int(number)) => *number,
        Record::Group { value, .. } => number(value),
        _ => -1,
    }
}
