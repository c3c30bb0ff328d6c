//! Random damage for everything that reads bytes or texts, on stable Rust: no coverage is measured, but inputs that lead to an
//! outcome that none had before are kept and damaged further. Each target stands in the tests of what it reads.
//!
//! `FUZZ_SECONDS` is how long each target runs (2), `FUZZ_SEED` repeats a run's choices. Inputs that matter are kept in
//! `tests/corpus/<target>/` and come first; with `FUZZ_KEEP=yes` a run adds those that led to something new. An input that fails
//! is in `target/fuzz/<target>.failed`; one that ended the process in `target/fuzz/<target>.last`, behind its length (8 bytes).

use std::{
    collections::HashSet,
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    ptr,
    time::{Duration, Instant, SystemTime},
};

/// Inputs do not become longer.
const MAX_LENGTH: usize = 1 << 14;
/// How many inputs are damaged further; one above that takes the place of another.
const MAX_POOL: usize = 2000;
/// How many inputs a corpus has at most, and how long they are.
const MAX_KEPT: usize = 20;
const LONGEST_KEPT: usize = 1000;
/// Whatever takes longer for so little is as bad as a panic. Builds with checks on busy machines are slow.
const MAX_TIME: Duration = Duration::from_secs(5);
/// What the server's own thread has.
const STACK: usize = 8 << 20;
/// Numbers that lie where lengths and counters go wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// Random numbers that are the same each time (xorshift).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        // It would give nothing but zeros.
        Self(if seed == 0 { 1 } else { seed })
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    /// Bytes with some damage: changed, cut off, taken out, put in, moved, repeated, or a number in the place of some.
    pub fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        let place = self.below(bytes.len());
        match self.below(7) {
            0 if !bytes.is_empty() => {
                for _ in 0..=self.below(4) {
                    let place = self.below(bytes.len());
                    bytes[place] ^= 1 + self.below(255) as u8;
                }
            }
            1 => bytes.truncate(place),
            2 => drop(bytes.drain(place..(place + 1 + self.below(20)).min(bytes.len()))),
            3 | 0 => {
                let more: Vec<u8> = (0..=self.below(20)).map(|_| self.below(256) as u8).collect();
                bytes.splice(place..place, more);
            }
            4 => {
                let part = bytes[place..(place + 1 + self.below(8)).min(bytes.len())].to_vec();
                let often = [2, 3, 4, 10, 20, 2000][self.below(6)];
                bytes.splice(place..place, part.repeat(often));
            }
            5 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let number = match self.below(2) {
                    0 => number.to_le_bytes(),
                    _ => number.to_be_bytes(),
                };
                let size = [1, 2, 4, 8][self.below(4)];
                let part = match self.below(2) {
                    0 => &number[..size],
                    _ => &number[8 - size..],
                };
                let end = (place + size).min(bytes.len());
                bytes.splice(place..end, part.iter().copied());
            }
            _ => {
                let middle = self.below(bytes.len());
                bytes.rotate_left(middle);
            }
        }
        bytes
    }

    /// Damages one of several, up to four times, or puts it together with another one.
    fn next(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = pool[self.below(pool.len())].clone();
        if self.below(8) == 0 {
            let other = &pool[self.below(pool.len())];
            bytes.truncate(self.below(bytes.len() + 1));
            bytes.extend(&other[self.below(other.len() + 1)..]);
        }
        for _ in 0..=self.below(4) {
            bytes = self.damage(&bytes);
        }
        bytes.truncate(MAX_LENGTH);
        bytes
    }
}

/// Damages `seeds`, and what is kept of earlier runs, and gives it to a target, which panics where something is wrong and says
/// in a few words what became of the input: that tells what is new.
pub fn fuzz(name: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8]) -> String + Sync) {
    assert!(!seeds.is_empty(), "{name} has something to damage");
    std::thread::scope(|scope| {
        #[allow(clippy::disallowed_methods)] // a test's thread, which never sees Python
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || run(name, seeds, &target));
        if let Err(panic) = thread.expect("there is room for a thread").join() {
            resume_unwind(panic);
        }
    });
}

fn run(name: &str, seeds: &[Vec<u8>], target: &dyn Fn(&[u8]) -> String) {
    let seed = number("FUZZ_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    let seconds = number("FUZZ_SECONDS").unwrap_or(2);
    let keeps = env::var("FUZZ_KEEP").is_ok_and(|keep| keep == "yes");
    let mut trial = Trial::new(name, seed, target);
    let mut pool: Vec<Vec<u8>> = seeds.to_vec();
    pool.extend(corpus(name));
    for input in &pool {
        trial.is_new(input);
    }
    let mut chance = Chance::new(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for _ in 0..100 {
            let input = chance.next(&pool);
            if !trial.is_new(&input) {
                continue;
            }
            if keeps && input.len() <= LONGEST_KEPT && corpus(name).len() < MAX_KEPT {
                keep(name, &input);
            }
            if pool.len() < MAX_POOL {
                pool.push(input);
            } else {
                let place = chance.below(pool.len());
                pool[place] = input;
            }
        }
    }
    println!(
        "{name}: {} inputs, {} outcomes, FUZZ_SEED={seed}",
        trial.count,
        trial.outcomes.len()
    );
}

/// What a target has been given so far.
struct Trial<'a> {
    name: &'a str,
    seed: u64,
    target: &'a dyn Fn(&[u8]) -> String,
    outcomes: HashSet<u64>,
    count: u64,
    folder: PathBuf,
    last: Option<Last>,
}

impl<'a> Trial<'a> {
    fn new(name: &'a str, seed: u64, target: &'a dyn Fn(&[u8]) -> String) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
        // Without it there is less to look at afterwards.
        let _ = fs::create_dir_all(&folder);
        let last = Last::new(&folder.join(format!("{name}.last")));
        Self {
            name,
            seed,
            target,
            outcomes: HashSet::new(),
            count: 0,
            folder,
            last,
        }
    }

    /// Whether an input leads to something that none has led to before.
    fn is_new(&mut self, input: &[u8]) -> bool {
        self.count += 1;
        if let Some(last) = &self.last {
            last.note(input);
        }
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.target)(input)));
        let took = begun.elapsed();
        if outcome.is_err() || took > MAX_TIME {
            let failed = self.folder.join(format!("{}.failed", self.name));
            let _ = fs::write(&failed, input);
            println!(
                "{}: input {} (FUZZ_SEED={}) is in {}",
                self.name,
                self.count,
                self.seed,
                failed.display()
            );
        }
        assert!(
            took <= MAX_TIME,
            "{}: {took:?} for {} bytes",
            self.name,
            input.len()
        );
        let outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic));
        self.outcomes.insert(hash(shape(&outcome)))
    }
}

/// A file, mapped, which has each input before the target does: the kernel keeps it when the process ends.
struct Last(*mut u8);

const HEAD: usize = size_of::<u64>();

impl Last {
    /// `None` where there can be no such file.
    fn new(path: &Path) -> Option<Self> {
        let size = HEAD + MAX_LENGTH;
        let mut options = fs::OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .ok()?;
        file.set_len(size as u64).ok()?;
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of a file of that size; it outlives the descriptor.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, access, shared, file.as_raw_fd(), 0) };
        (start != libc::MAP_FAILED).then_some(Self(start.cast()))
    }

    fn note(&self, input: &[u8]) {
        let length = input.len().min(MAX_LENGTH);
        // SAFETY: the mapping has room for both, and nobody else has it.
        unsafe {
            self.0
                .copy_from_nonoverlapping((length as u64).to_le_bytes().as_ptr(), HEAD);
            self.0.add(HEAD).copy_from_nonoverlapping(input.as_ptr(), length);
        }
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; failure would leave it until the process ends.
        unsafe { libc::munmap(self.0.cast(), HEAD + MAX_LENGTH) };
    }
}

/// An outcome without its numbers: each length is not a new one.
fn shape(outcome: &str) -> String {
    outcome
        .chars()
        .filter(|c| !c.is_ascii_digit())
        .take(120)
        .collect()
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

fn corpus_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name)
}

/// What earlier runs have kept, in the same order each time.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(corpus_folder(name)).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

fn keep(name: &str, input: &[u8]) {
    let folder = corpus_folder(name);
    let _ = fs::create_dir_all(&folder);
    let _ = fs::write(folder.join(format!("{:016x}", hash(input))), input);
}

mod tests {
    use super::*;

    /// What is hidden behind two conditions is found by what was kept of the first one.
    #[test]
    fn what_is_new_is_damaged_further() {
        let found = catch_unwind(|| {
            fuzz("itself", &[b"0000".to_vec()], |input| {
                let known = input.iter().zip(b"PIN").take_while(|(one, other)| one == other);
                let known = known.count();
                assert!(known < 2, "found");
                "I".repeat(known)
            });
        });
        assert!(found.is_err(), "two bytes of one input are found in two seconds");
    }
}
