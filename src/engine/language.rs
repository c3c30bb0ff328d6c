//! What the engine asks of the language that functions are written in. The engine never names which it is.
//!
//! "Attached" means that this thread may touch objects of the language. A thread that waits for anything is detached.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    holding::Size,
    record::{Record, Value},
    session::Session,
    source::Source,
    stop::{Interrupted, Stop},
};
use crate::server::{
    lock::{self, Lock},
    reply::Reply,
    string::Argv,
};

pub use super::failure::Failure;

/// One runtime of a language.
pub trait Language: Send + Sync {
    /// Runs the whole life of a background thread, prepared for cheap attaching but detached.
    fn thread(&self, body: &mut (dyn FnMut() + Send));

    /// Runs `work` attached. May be nested.
    fn attached(&self, work: &mut dyn FnMut());

    /// Runs `work` detached, whatever this thread was before; attached again afterwards if it was.
    fn detached(&self, work: &mut (dyn FnMut() + Send));

    /// Runs `work`, which calls functions, so that [`Language::interrupt`] finds this thread in `stop`. What was raised
    /// for `work` and came too late is taken back.
    fn interruptible(&self, stop: &Stop, work: &mut dyn FnMut());

    /// Raises the "stop" error in the thread whose id stands in `stop`, unless none does by then, or it is inside an import.
    fn interrupt(&self, stop: &Stop) -> Interrupted;

    /// What matters of an error string, in one short line.
    fn in_one_line(&self, failure: &str) -> String;

    /// The language's text form of a record; a text stays the record it is.
    ///
    /// # Errors
    /// The text of the error that the conversion raised.
    fn to_text(&self, record: Record) -> Result<Record, Failure>;

    /// A record that has passed the last step, as part of a reply (docs/contract/commands.md 0.4).
    ///
    /// # Errors
    /// The text of the error that the conversion raised.
    fn to_reply(&self, record: Record) -> Result<Reply, Failure>;

    /// The text form of a record that nobody else can change any more, and whose text is no error: made when somebody asks for it.
    ///
    /// # Errors
    /// It is no such record.
    fn to_late_text(&self, record: Record) -> Result<Arc<dyn LateText>, Record> {
        Err(record)
    }

    /// The key that a record stands for when it is grouped by itself (docs/contract/python-api.md 3.3, "Keys").
    ///
    /// # Errors
    /// The text of the error that the conversion raised.
    fn key_of(&self, record: &Record) -> Result<Vec<u8>, Failure>;

    /// Makes packages importable that were installed into `folder`, and forgets what was imported before of those that
    /// `archives` have brought anew.
    ///
    /// # Errors
    /// The text of the error that the language raised.
    fn use_packages(&self, folder: &Path, archives: &[PathBuf]) -> Result<(), Failure>;

    /// Makes a function of its image, as one of `session`.
    ///
    /// # Errors
    /// The text of the error that loading raised, e.g. a module that is not there.
    fn load(&self, image: &[u8], session: &Session) -> Result<Arc<dyn Function>, Failure>;

    /// The first objects of the language, `at_most` so many, as bytes for [`Language::unpack`] on another shard. Takes them out: at least
    /// one, and no more when they have become [`PIECE`] bytes.
    fn pack(&self, objects: &mut Vec<Record>, at_most: usize) -> Packed;

    /// Makes the objects again, in their order.
    ///
    /// # Errors
    /// The text of the error that loading raised.
    fn unpack(&self, bytes: &[u8]) -> Result<Vec<Record>, Failure>;

    /// The elements of a record that is a list, else the record itself.
    fn parts(&self, record: Record) -> Vec<Record>;

    /// Whether the language takes a record for true.
    ///
    /// # Errors
    /// The text of the error that the question raised.
    fn is_true(&self, record: &Record) -> Result<bool, Failure>;

    /// How much memory objects of the language take, with all that is in lists and the like; what several of them have counts once.
    ///
    /// # Errors
    /// The text of the error that an object raised when it was asked.
    fn size_of(&self, objects: &[&Record]) -> Result<Size, Failure>;

    /// An empty set of records, equal where the language says so.
    fn distinct(&self) -> Box<dyn Distinct>;

    /// Sorts records by the language's order. Equal ones come in the reverse of their order, as 1.2 has it.
    ///
    /// # Errors
    /// The text of the error that a comparison raised.
    fn sort(&self, records: Vec<Record>, descending: bool) -> Result<Vec<Record>, Failure>;
}

/// From how many bytes on objects that are packed together are enough for one message.
pub const PIECE: usize = 4 << 20;

/// Objects as bytes.
pub struct Packed {
    pub bytes: Vec<u8>,
    /// How many were taken, with those that could not become bytes.
    pub taken: usize,
    /// The places of the latter among those that were taken, and why.
    pub refused: Vec<(usize, Failure)>,
}

/// A text that is made when somebody asks for it: most results are kept and never looked at.
pub trait LateText: Send + Sync {
    fn text(&self) -> Vec<u8>;
}

/// A text that is a result.
#[derive(Clone)]
pub enum Shown {
    Now(Reply),
    Late(Arc<dyn LateText>),
}

/// A set of records.
pub trait Distinct: Send {
    /// Adds a record; false if an equal one is there.
    ///
    /// # Errors
    /// The text of the error that comparing raised.
    fn add(&mut self, record: &Record) -> Result<bool, Failure>;

    /// How much memory it takes.
    ///
    /// # Errors
    /// As of [`Language::size_of`].
    fn size(&self) -> Result<Size, Failure>;
}

/// What a call of a user function gave.
pub enum Called<T> {
    Now(T),
    /// Something to wait for, and the record that it was called with, where it is still needed.
    Later(Box<dyn Awaitable>, Option<Record>),
}

impl<T> Called<T> {
    #[inline]
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Called<U> {
        match self {
            Self::Now(given) => Called::Now(change(given)),
            Self::Later(awaitable, record) => Called::Later(awaitable, record),
        }
    }
}

/// Told the value that was waited for, or its error. Called once, on any thread.
pub type Completion = Box<dyn FnOnce(Result<Record, Failure>) + Send>;

/// What a function returned that has no value yet. Dropped unstarted if nobody waits for it.
pub trait Awaitable: Send {
    /// Begins to wait. Called attached.
    fn start(self: Box<Self>, completion: Completion);
}

/// Runs `work` under the server's lock from any thread: at once where it is held, else detached while waiting.
pub fn with_lock<R: Send>(language: &dyn Language, work: impl FnOnce(Lock<'_>) -> R + Send) -> R {
    if lock::is_held() {
        return lock::with_lock(work);
    }
    let mut work = Some(work);
    let mut result = None;
    language.detached(&mut || result = work.take().map(lock::with_lock));
    // `detached` runs its argument exactly once, which the type cannot say.
    #[allow(clippy::expect_used)]
    result.expect("detached work runs")
}

/// A user function. Called attached, by one thread at a time per record, by several for different records.
pub trait Function: Send + Sync {
    /// The name for error texts.
    fn name(&self) -> String;

    /// What [`Language::load`] makes the function of again, in another process. `session` is the one that it belongs to.
    ///
    /// # Errors
    /// It holds something that cannot travel.
    fn image(&self, session: &Session) -> Result<Vec<u8>, Failure>;

    /// The language's description of the function, for RG.GETEXECUTION.
    fn describe(&self) -> String;

    /// Calls it with one record.
    ///
    /// # Errors
    /// The text of the error that it raised; the same for the calls below.
    fn map(&self, record: Record) -> Result<Called<Record>, Failure>;

    /// Calls it with the words of a command under the server's lock, so that `stop` can end it: [`Language::interruptible`],
    /// [`Function::map`] and [`Language::to_reply`], in one. `text`: behind [`Language::to_text`].
    fn answer(&self, stop: &Stop, words: Argv<'_>, text: bool) -> Result<Called<Reply>, Failure>;

    /// Calls it with one record so that `stop` can end it, and gives the text of what it returns, or of the record (`visits`):
    /// [`Language::interruptible`], [`Function::map`] or [`Function::visit`], and [`Language::to_text`], in one.
    /// `outdated`: what ends meanwhile, attached.
    fn text(
        &self,
        stop: &Stop,
        record: Record,
        visits: bool,
        outdated: Option<Shown>,
    ) -> Result<Called<Shown>, Failure>;

    /// Calls it with one record so that `stop` can end it, and `take` gets what it returns: [`Language::interruptible`] and
    /// [`Function::map`] in one.
    fn hand_over(
        &self,
        stop: &Stop,
        record: Record,
        take: &mut dyn FnMut(Record),
    ) -> Result<Called<()>, Failure>;

    /// Calls it with one record and takes a returned list apart, in its order.
    fn expand(&self, record: Record) -> Result<Called<Vec<Record>>, Failure>;

    /// Calls it with one record; the record comes back with the truth of what was returned.
    fn test(&self, record: Record) -> Result<Called<(Record, bool)>, Failure>;

    /// Calls it with one record, which comes back; what was returned is dropped.
    fn visit(&self, record: Record) -> Result<Called<Record>, Failure>;

    /// Calls it with one record, which comes back with the key that was returned.
    fn key(&self, record: Record) -> Result<(Record, Vec<u8>), Failure>;

    /// Calls it with an accumulator and one record. Without an accumulator it gets its own initial value.
    fn fold(&self, accumulator: Option<Record>, record: Record) -> Result<Called<Record>, Failure>;

    /// The same for the records of one key, which it gets first.
    fn fold_group(
        &self,
        key: &[u8],
        accumulator: Option<Record>,
        record: Record,
    ) -> Result<Called<Record>, Failure>;

    /// Calls it with a key and all records of that key.
    fn reduce_group(&self, key: &[u8], records: Vec<Record>) -> Result<Record, Failure>;

    /// Calls it without arguments and gives what it returns as a plain value; objects become their text.
    fn produce(&self) -> Result<Value, Failure>;

    /// Calls it without arguments; it must return a generator, whose values are the records.
    fn generate(&self) -> Result<Box<dyn Source>, Failure>;

    /// Calls it without arguments; the result is dropped.
    fn run(&self) -> Result<(), Failure>;

    /// The same for a time event, where it may also return something to wait for: nobody does.
    fn tick(&self) -> Result<(), Failure> {
        self.run()
    }
}
