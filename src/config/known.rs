//! The options that there are: their names, defaults and bounds, and how they are found and read. Contract: docs/contract/commands.md chapter 5.

/// Options with a number. The discriminant is the place in [`NUMBERS`].
// Some are only stored and reported: what reads them comes with the part of the contract that they belong to.
#[allow(dead_code)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Number {
    MaxExecutions,
    MaxExecutionsPerRegistration,
    ProfileExecutions,
    ExecutionThreads,
    ExecutionMaxIdleTime,
    SendMsgRetries,
    CreateVenv,
    DownloadDeps,
    DownloadDepsOnEnterprise,
    PythonAttemptTraceback,
    OverridePythonAllocators,
    PythonInstallReqMaxIdleTime,
    SyncTimeout,
    MaxPendingPerRegistration,
    ReadThroughMaxAbsent,
    ReadThroughMaxBackoffs,
    ReadThroughMaxLoads,
    WriteBehindMaxSaveTime,
    ScriptingEngine,
    SaveRegistrations,
    WriteBehindSaving,
}

/// Who an option belongs to: core names are matched in any letter case and are invisible to `configGet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Core,
    Python,
}

pub(super) struct Definition {
    pub(super) name: &'static str,
    pub(super) owner: Owner,
    pub(super) default: i64,
    pub(super) min: i64,
    /// Stored as 0 or 1.
    pub(super) boolean: bool,
    /// May be changed by RG.CONFIGSET.
    pub(super) runtime: bool,
}

const fn core(name: &'static str, default: i64, min: i64, runtime: bool) -> Definition {
    Definition {
        name,
        owner: Owner::Core,
        default,
        min,
        boolean: false,
        runtime,
    }
}

/// `yes` or `no`.
const fn switch(name: &'static str, default: bool) -> Definition {
    Definition {
        name,
        owner: Owner::Core,
        default: default as i64,
        min: i64::MIN,
        boolean: true,
        runtime: true,
    }
}

const fn python(name: &'static str, default: i64, boolean: bool, runtime: bool) -> Definition {
    let min = if boolean { i64::MIN } else { 1 };
    Definition {
        name,
        owner: Owner::Python,
        default,
        min,
        boolean,
        runtime,
    }
}

pub(super) const NUMBERS: [Definition; 21] = [
    core("MaxExecutions", 1000, i64::MIN, true),
    core("MaxExecutionsPerRegistration", 100, i64::MIN, true),
    core("ProfileExecutions", 0, i64::MIN, true),
    core("ExecutionThreads", 3, 1, false),
    core("ExecutionMaxIdleTime", 5000, 1, true),
    core("SendMsgRetries", 3, 0, true),
    python("CreateVenv", 0, true, false),
    python("DownloadDeps", 0, true, false),
    python("ForeceDownloadDepsOnEnterprise", 0, true, false),
    python("PythonAttemptTraceback", 1, true, true),
    python("OverridePythonAllocators", 1, true, false),
    python("PythonInstallReqMaxIdleTime", 30_000, false, true),
    core("SyncTimeout", 5000, 0, true),
    core("MaxPendingPerRegistration", 0, 0, true),
    core("ReadThroughMaxAbsent", 100_000, 0, true),
    core("ReadThroughMaxBackoffs", 100_000, 0, true),
    core("ReadThroughMaxLoads", 10_000, 1, true),
    core("WriteBehindMaxSaveTime", 60_000, 1, true),
    switch("ScriptingEngine", true),
    switch("SaveRegistrations", true),
    switch("WriteBehindSaving", true),
];

/// Options with a text: name and default. None changes at run time.
pub(super) const TEXTS: [(&str, &str); 9] = [
    (PYTHON_VENV, ""),
    (ASYNC_LOOP, "asyncio"),
    (REQUIREMENTS_DIR, "pinion-requirements"),
    (REQUIREMENTS_POLICY, "allow"),
    (RUN_AS, "all"),
    (REGISTRATION_POLICY, "allow"),
    ("PythonInstallationDir", "/var/opt/redislabs/modules/rg"),
    ("DependenciesUrl", ""),
    ("DependenciesSha256", ""),
];

/// The folder of the virtual environment that functions import from.
pub const PYTHON_VENV: &str = "PythonVenv";
/// Which event loop coroutines run on: `asyncio` or `uvloop`.
pub const ASYNC_LOOP: &str = "AsyncLoop";
/// The folder for requirements, below the server's working directory unless it is absolute.
pub const REQUIREMENTS_DIR: &str = "PythonRequirementsDir";
/// Which requirements clients may ask for: `allow`, `deny`, or a file with a list.
pub const REQUIREMENTS_POLICY: &str = "RequirementsPolicy";
/// Whose rights code has: `all` rights, or those of its `owner`.
pub const RUN_AS: &str = "RunAs";
/// Whether clients may bring code: `allow` or `deny`.
pub const REGISTRATION_POLICY: &str = "RegistrationPolicy";
pub(super) const PLUGIN: &str = "Plugin";

/// Options of 1.2 that mean nothing here: accepted and reported, but not part of the server's configuration.
pub(super) const WITHOUT_MEANING: [&str; 3] =
    ["CreateVenv", "DownloadDeps", "ForeceDownloadDepsOnEnterprise"];

/// An option with a text: those of rights in any letter case, the others as they are spelled.
pub(super) fn find_text(key: &str) -> Option<&'static str> {
    let is_it = |name: &str| match name {
        RUN_AS | REGISTRATION_POLICY => name.eq_ignore_ascii_case(key),
        _ => name == key,
    };
    TEXTS.iter().map(|(name, _)| *name).find(|name| is_it(name))
}

/// Core keys in any letter case, Python keys as they are spelled.
pub(super) fn find(key: &str) -> Option<usize> {
    NUMBERS.iter().position(|known| match known.owner {
        Owner::Core => known.name.eq_ignore_ascii_case(key),
        Owner::Python => known.name == key,
    })
}

pub(super) enum BadNumber {
    NotANumber,
    TooSmall,
}

impl Definition {
    pub(super) fn parse(&self, value: &[u8]) -> Result<i64, BadNumber> {
        if self.boolean && self.owner == Owner::Core {
            match value.to_ascii_lowercase().as_slice() {
                b"yes" => return Ok(1),
                b"no" => return Ok(0),
                _ => {}
            }
        }
        let number: i64 = std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(BadNumber::NotANumber)?;
        if number < self.min {
            return Err(BadNumber::TooSmall);
        }
        Ok(if self.boolean {
            i64::from(number != 0)
        } else {
            number
        })
    }
}
