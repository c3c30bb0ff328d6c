//! The options and their present values. Contract: docs/contract/commands.md chapter 5.
//!
//! Read on any thread without a lock; changed by module arguments and by RG.CONFIGSET.

mod known;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

pub use self::known::{
    ASYNC_LOOP, Number, PYTHON_VENV, REGISTRATION_POLICY, REQUIREMENTS_DIR, REQUIREMENTS_POLICY, RUN_AS,
};
use self::known::{BadNumber, Definition, NUMBERS, Owner, PLUGIN, TEXTS, WITHOUT_MEANING, find, find_text};
use crate::mutex::Mutex;

use crate::server::options::{Kind, ServerOption};

/// What RG.CONFIGSET says about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Set,
    SavedExtra,
    Refused(String),
}

/// What RG.CONFIGGET says about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    Number(i64),
    Text(Vec<u8>),
    List(Vec<Vec<u8>>),
    Unknown,
}

/// All options with their present values.
pub struct Config {
    numbers: [AtomicI64; NUMBERS.len()],
    texts: Mutex<Texts>,
    /// The environment that the loader has chosen: the default of [`PYTHON_VENV`].
    environment: String,
}

#[derive(Default)]
struct Texts {
    /// Whatever was given explicitly and is not a core key: what `configGet` sees.
    extra: BTreeMap<Vec<u8>, Vec<u8>>,
    plugins: Vec<Vec<u8>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            numbers: std::array::from_fn(|index| AtomicI64::new(NUMBERS[index].default)),
            texts: Mutex::default(),
            environment: String::new(),
        }
    }
}

impl Config {
    /// Reads the module arguments `<key> <value> ...`. `environment`: that of the Python that runs.
    ///
    /// # Errors
    /// The log lines that tell why the module does not load.
    pub fn load(args: &[Vec<u8>], environment: &str) -> Result<Self, String> {
        let config = Self {
            environment: environment.to_owned(),
            ..Self::default()
        };
        for pair in args.chunks(2) {
            let key = String::from_utf8_lossy(&pair[0]).into_owned();
            let Some(value) = pair.get(1) else {
                return Err(format!("Value was not given to {key}"));
            };
            config.load_one(&key, value)?;
        }
        Ok(config)
    }

    fn load_one(&self, key: &str, value: &[u8]) -> Result<(), String> {
        if key.eq_ignore_ascii_case(PLUGIN) {
            self.texts.lock().plugins.push(value.to_vec());
            return Ok(());
        }
        let Some(index) = find(key) else {
            let name = find_text(key).unwrap_or(key);
            self.texts.lock().extra.insert(name.into(), value.to_vec());
            return Ok(());
        };
        let definition = &NUMBERS[index];
        match (definition.parse(value), definition.owner) {
            (Ok(number), owner) => {
                self.numbers[index].store(number, Ordering::Relaxed);
                if owner == Owner::Python {
                    self.texts.lock().extra.insert(key.into(), value.to_vec());
                }
                Ok(())
            }
            (Err(_), Owner::Core) => Err(format!("Failed setting config value {key}")),
            (Err(BadNumber::NotANumber), Owner::Python) => {
                Err(format!("Failed parsing {key} config, value must be a number."))
            }
            (Err(BadNumber::TooSmall), Owner::Python) => Err(format!(
                "Failed parsing {key} config, value must be greater then zero."
            )),
        }
    }

    /// The present value of a numeric option.
    pub fn number(&self, option: Number) -> i64 {
        self.numbers[option as usize].load(Ordering::Relaxed)
    }

    /// A limit as a count; `None` where the option says "unlimited".
    pub fn limit(&self, option: Number) -> Option<usize> {
        usize::try_from(self.number(option))
            .ok()
            .filter(|&limit| limit > 0)
    }

    /// True when a switch is on.
    pub fn is_on(&self, option: Number) -> bool {
        self.number(option) != 0
    }

    /// An option with a text.
    pub fn text(&self, name: &str) -> String {
        match self.get(name.as_bytes()) {
            Current::Text(text) => String::from_utf8_lossy(&text).into_owned(),
            _ => String::new(),
        }
    }

    /// Which of two words an option has: true for the second one.
    ///
    /// # Errors
    /// It is neither of them; for the log.
    fn is_second(&self, name: &str, words: [&str; 2]) -> Result<bool, String> {
        let given = self.text(name);
        let found = words.iter().position(|word| *word == given);
        found
            .map(|index| index == 1)
            .ok_or_else(|| format!("{name}: expected '{}' or '{}', got '{given}'", words[0], words[1]))
    }

    /// # Errors
    /// An option is none of its words; for the log.
    pub fn check_words(&self) -> Result<(), String> {
        self.is_second(ASYNC_LOOP, ["asyncio", "uvloop"])?;
        self.denies_code().map(|_| ())
    }

    /// True if code has the rights of its owner.
    ///
    /// # Errors
    /// `RunAs` is no word that it knows.
    pub fn runs_as_owner(&self) -> Result<bool, String> {
        self.is_second(RUN_AS, ["all", "owner"])
    }

    /// True if clients may not bring code.
    ///
    /// # Errors
    /// `RegistrationPolicy` is no word that it knows.
    pub fn denies_code(&self) -> Result<bool, String> {
        self.is_second(REGISTRATION_POLICY, ["allow", "deny"])
    }

    /// One element of RG.CONFIGGET. Keys are case-sensitive.
    pub fn get(&self, key: &[u8]) -> Current {
        if let Some(index) = NUMBERS.iter().position(|known| known.name.as_bytes() == key) {
            return Current::Number(self.numbers[index].load(Ordering::Relaxed));
        }
        let texts = self.texts.lock();
        if key == PLUGIN.as_bytes() {
            return Current::List(texts.plugins.clone());
        }
        if let Some(value) = texts.extra.get(key) {
            return Current::Text(value.clone());
        }
        if key == PYTHON_VENV.as_bytes() {
            return Current::Text(self.environment.clone().into());
        }
        TEXTS
            .iter()
            .find(|(name, _)| name.as_bytes() == key)
            .map_or(Current::Unknown, |(_, default)| Current::Text((*default).into()))
    }

    /// One element of RG.CONFIGSET: `value` is absent when the last key has none.
    pub fn set(&self, key: &[u8], value: Option<&[u8]>) -> Change {
        let name = String::from_utf8_lossy(key).into_owned();
        if name.eq_ignore_ascii_case(PLUGIN) {
            return Change::Refused(not_modifiable(&name));
        }
        if find_text(&name).is_some() {
            return Change::Refused(format!("(error) {name} is not configurable at runtime"));
        }
        let Some(index) = find(&name) else {
            let Some(value) = value else {
                return Change::Refused(format!("(error) Value was not given to {name}"));
            };
            self.texts.lock().extra.insert(key.to_vec(), value.to_vec());
            return Change::SavedExtra;
        };
        let definition = &NUMBERS[index];
        match (definition.owner, definition.runtime) {
            (Owner::Core, false) => return Change::Refused(not_modifiable(&name)),
            (Owner::Python, false) => {
                return Change::Refused(format!("(error) {name} is not configurable at runtime"));
            }
            _ => {}
        }
        match (
            value.map(|value| (value, definition.parse(value))),
            definition.owner,
        ) {
            (Some((_, Ok(number))), Owner::Core) => {
                self.numbers[index].store(number, Ordering::Relaxed);
                Change::Set
            }
            (_, Owner::Core) => Change::Refused(format!("(error) Failed setting config value {name}")),
            (Some((value, Ok(number))), Owner::Python) => {
                self.numbers[index].store(number, Ordering::Relaxed);
                self.texts.lock().extra.insert(key.to_vec(), value.to_vec());
                Change::SavedExtra
            }
            (Some((value, Err(_))), Owner::Python) => Change::Refused(format!(
                "Failed setting config value for key '{name}' with value '{}'",
                String::from_utf8_lossy(value)
            )),
            (None, Owner::Python) => Change::Refused(format!("(error) Value was not given to {name}")),
        }
    }

    /// The options as part of the server's own configuration: `MaxExecutions` is `rg.max-executions`.
    pub fn server_options(self: &Arc<Self>) -> Vec<ServerOption> {
        let numbers = NUMBERS.iter().enumerate();
        let meaningful = numbers.filter(|(_, known)| !WITHOUT_MEANING.contains(&known.name));
        let mut options: Vec<_> = meaningful
            .map(|(index, known)| self.server_option(index, known))
            .collect();
        for name in [
            PYTHON_VENV,
            ASYNC_LOOP,
            REQUIREMENTS_DIR,
            REQUIREMENTS_POLICY,
            RUN_AS,
            REGISTRATION_POLICY,
        ] {
            let (read, change) = (Arc::clone(self), Arc::clone(self));
            options.push(ServerOption {
                name: kebab_case(name),
                fixed: true,
                kind: Kind::Text {
                    get: Box::new(move || read.text(name)),
                    set: Box::new(move |text| {
                        // The server sets the default, too, which nobody has given.
                        if text != change.text(name) {
                            let mut texts = change.texts.lock();
                            texts.extra.insert(name.into(), text.into_bytes());
                        }
                    }),
                },
            });
        }
        options
    }

    fn server_option(self: &Arc<Self>, index: usize, known: &Definition) -> ServerOption {
        let (read, change) = (Arc::clone(self), Arc::clone(self));
        let kind = if known.boolean {
            Kind::Switch {
                get: Box::new(move || read.numbers[index].load(Ordering::Relaxed) != 0),
                set: Box::new(move |on| change.set_number(index, i64::from(on))),
            }
        } else {
            Kind::Number {
                min: known.min,
                get: Box::new(move || read.numbers[index].load(Ordering::Relaxed)),
                set: Box::new(move |number| change.set_number(index, number)),
            }
        };
        ServerOption {
            name: kebab_case(known.name),
            fixed: !known.runtime,
            kind,
        }
    }

    /// The server sets an option, also to the default that nobody has given.
    fn set_number(&self, index: usize, number: i64) {
        let before = self.numbers[index].swap(number, Ordering::Relaxed);
        let known = &NUMBERS[index];
        if known.owner == Owner::Python && before != number {
            let mut texts = self.texts.lock();
            texts
                .extra
                .insert(known.name.into(), number.to_string().into_bytes());
        }
    }

    /// What `configGet` answers: only what was given explicitly, as text.
    pub fn explicit(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.texts.lock().extra.get(key).cloned()
    }

    /// `<key>:<value>` for the log, one line per option. Names that are no options are a script's: their values may be passwords.
    pub fn lines(&self) -> Vec<String> {
        let numbers = NUMBERS
            .iter()
            .zip(&self.numbers)
            .map(|(known, value)| format!("{}:{}", known.name, value.load(Ordering::Relaxed)));
        let texts = self.texts.lock();
        let extra = texts
            .extra
            .iter()
            .filter(|(key, _)| find(&String::from_utf8_lossy(key)).is_none())
            .map(|(key, value)| {
                let key = String::from_utf8_lossy(key);
                let is_option = TEXTS.iter().any(|(name, _)| *name == key);
                let value = is_option.then(|| String::from_utf8_lossy(value));
                format!("{key}:{}", value.unwrap_or("(not shown)".into()))
            });
        numbers.chain(extra).collect()
    }
}

/// `max-executions` for `MaxExecutions`.
fn kebab_case(name: &str) -> String {
    let mut words = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push('-');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

fn not_modifiable(name: &str) -> String {
    format!("(error) Config value {name} not modifiable at runtime")
}
