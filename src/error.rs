//! The one error type. Its [`Error::text`] is the exact text that a client sees.
//!
//! The texts are those of the contract (docs/contract/commands.md chapter 1,
//! docs/contract/readers-and-events.md chapters 2 and 10).

use std::{borrow::Cow, fmt};

/// What stands in errors about messages for which there is no room.
const NOT_SENT: &str = "could not be sent to shard";

/// What a run ends with that has waited too long for other shards.
pub const MAX_IDLE: &str = "Execution max idle reached";

/// The code word of errors about what a shard does not know of its cluster; other shards look at it.
pub const NO_CLUSTER: &str = "ERRCLUSTER";

/// Why something was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Too few or too many arguments; the text names the command.
    WrongArity,
    /// A text of Python or of a reader, sent as it is.
    Text(String),

    // RG.PYEXECUTE
    CannotRunHere,
    ValueMissing(&'static str),
    BadSessionId,
    UnknownArgument(String),
    SessionExists(String),
    /// Of another shard, which this one has not heard of.
    LaterSession(String),
    CannotReplaceExisting {
        id: String,
        old: String,
    },
    NothingToReplace(String),
    SecondRun,

    // executions
    NoSuchPlan,
    NoSuchExecution,
    NoSuchSession,
    WrongProfileSubcommand,
    UnknownOption(String),
    StillRunning,
    NotFinished,
    UnknownSubcommand,
    NoCluster,
    BlockedInTransaction,
    BlockedInScript,

    // registrations
    NotRegistered,
    NoEventSupport,
    SessionReplaced,
    NoBatchSupport,
    UnknownCommand,
    CommandNotInScripts,
    CommandMovesKeys,
    CommandWithoutKeys,
    CommandWithoutKeyStep,
    EmptyPrefix,
    TriggerExists,
    TriggerExistsInSession,
    UnknownHook,
    HookNotInScripts,
    HookMovesKeys,
    HookWithoutKeys,
    HookWithoutKeyStep,
    HookedByBackground,
    HookedByBackgroundInSession,
    CannotPause(&'static str),
    CannotUnpause(&'static str),
    NothingToPause,
    NoSuchRegistrationHere {
        id: String,
        shard: String,
    },

    // triggers and hooks
    NoSuchTrigger,
    CannotWaitHere,
    ClientCannotWait,
    NotTriggered(&'static str),
    NotOneResult,
    NoHookContext,
    /// `SyncTimeout`, in milliseconds.
    RanTooLong(i64),
    /// `timeout` of a registration, in milliseconds.
    RanOverTime(u64),
    /// `max_memory` of a registration, in bytes.
    HeldTooMuch(u64),

    // requirements
    /// Which one, and why.
    RequirementsNotFetched(String),
    RequirementsNotInstalled(String),
    NoRequirementsDirectory,
    NoSuchRequirement,
    RequirementNotRead(String),
    RequirementFileNotOpened,
    RequirementFileNotWritten,
    ImportNotInstalled,
    /// What was to be read where an archive ends or is damaged.
    BadArchive(&'static str),
    ArchiveTooNew,

    // replicas
    ReadOnly,

    // clusters
    /// Too few words.
    ClusterSetCut,
    /// Which kind of word cannot be read.
    BadClusterSet(&'static str),
    NoTopology,
    NoTopologyForHello,
    NotAShard,
    /// Another shard says hello that is none yet, as far as this one knows.
    ShardUnknown(String),
    BadMessageId,
    UnknownMessageKind,
    MaxIdle,
    /// Why it is not known which shards there are.
    ShardsUnknown(String),
    ShardsChanged,
    SlotsMoved,
    DataReplaced,
    /// What, to which shard, and why.
    NotSent {
        what: &'static str,
        shard: String,
        why: String,
    },
    /// Messages of this shard have not come.
    MessagesLost(String),

    // linked clients
    NoCommandContext,
    OverriddenAlready,
    InnerCommand,
    NotPermitted(String),
}

/// What a client hears that the server does not let wait.
const CLIENT_CANNOT_WAIT: &str = "ERR the server does not let this client wait for a reply: it is subscribed to channels, or no ordinary client";

impl Error {
    /// The keys of a `read_through` have a loader.
    pub fn loaded_by_another(prefix: &str) -> Self {
        Self::Text(format!(
            "read_through: prefix: expected one that has no loader yet, but a registration loads '{prefix}' already"
        ))
    }

    /// A loader asks for a key whose load waits for that loader.
    pub fn waits_for_itself(name: &[u8]) -> Self {
        Self::Text(format!(
            "read_through: refresh: expected keys whose loads do not wait for this loader, got '{}'",
            String::from_utf8_lossy(name)
        ))
    }

    /// The changes of a `write_behind` are saved by another one.
    pub fn saved_by_another(prefix: &str) -> Self {
        Self::Text(format!(
            "write_behind: prefix: expected one whose changes are not saved yet, but a registration saves '{prefix}' already"
        ))
    }

    /// A script has made a decorator, `made`, and put it in front of no function.
    pub fn given_no_function(made: &str) -> Self {
        Self::Text(format!(
            "{made} was given no function: put it in front of one as a decorator, or give the function as the second argument"
        ))
    }

    /// A word of an argument is no command of this server that a registration could have: `why`.
    pub fn wrong_command(call: &str, word: &str, why: &Self) -> Self {
        let why = match why {
            Self::UnknownCommand => "it is no command of this server".to_owned(),
            other => other.to_string(),
        };
        Self::Text(format!(
            "{call}: commands: expected names of commands with keys that may be linked, got '{word}': {why}"
        ))
    }

    /// The server has nothing that tells the end of a command.
    pub fn no_write_behind_here() -> Self {
        Self::Text(
            "write_behind: expected a server of version 7.0 or later, which tells when a command has ended"
                .into(),
        )
    }

    pub fn too_many_savers(most: usize) -> Self {
        Self::Text(format!(
            "write_behind: expected at most {most} registrations on one server"
        ))
    }

    /// Changes would be lost with their registration.
    pub fn not_saved_yet(prefix: &str, count: usize) -> Self {
        Self::Text(format!(
            "{count} changes of '{prefix}' are not saved yet: wait until they are, or give them up with ABORTPENDING"
        ))
    }

    /// A writing command must not run as if there were no value, only because that could not be loaded.
    pub fn no_miss_for_writes(command: &str) -> Self {
        Self::Text(format!(
            "read_through: on_error: expected 'error' where writing commands wait, got 'miss' with '{command}'"
        ))
    }

    /// The text after the dash of the error reply to `command` (its name in lower case).
    pub fn text(&self, command: &str) -> String {
        match self {
            Self::WrongArity => format!("ERR wrong number of arguments for '{command}' command"),
            other => other.to_string(),
        }
    }

    fn message(&self) -> Cow<'_, str> {
        match self {
            Self::WrongArity => "ERR wrong number of arguments",
            Self::Text(text) => text,
            Self::CannotRunHere => {
                "Can not run gears inside a multi exec, lua, or when blocking is not allowed"
            }
            Self::ValueMissing(option) => return format!("{option} is missing").into(),
            Self::BadSessionId => "ID must be compose of: ['A'-'Z' | 'a'-'z' | '0' - '9' | '-' | '_']",
            Self::UnknownArgument(word) => {
                return format!("Unknown arguments were given: {word}").into();
            }
            Self::CannotReplaceExisting { .. }
            | Self::NothingToReplace(_)
            | Self::SessionExists(_)
            | Self::LaterSession(_) => return self.about_sessions(),
            Self::SecondRun => "Can not run more then 1 executions in a single script",
            Self::NoSuchPlan => "execution plan does not exist",
            Self::NoSuchExecution => "execution does not exist",
            Self::NoSuchSession => "session does not exists",
            Self::WrongProfileSubcommand => "Wrong subcommand given to RG.PYPROFILE",
            Self::UnknownOption(word) => return format!("Unknown option {word}").into(),
            Self::StillRunning => "execution is still running",
            Self::NotFinished => "can not drop a not yet finished execution, abort it first.",
            Self::UnknownSubcommand => "unknown subcommand",
            Self::NoCluster => "no cluster detected - use `RG.GETEXECUTION <id> [SHARD]` instead",
            Self::BlockedInTransaction => "ERR Blocking module command called from transaction",
            Self::BlockedInScript => "ERR Blocking module command called from Lua script",
            Self::NotRegistered => "execution is not registered",
            Self::NoEventSupport => "given reader does not exists or does not support register",
            Self::SessionReplaced => "Can not register in a session that was replaced",
            Self::NoBatchSupport => "Given reader do not support run or not exists",
            Self::UnknownCommand => "bad reply on COMMAND command",
            Self::CommandNotInScripts => "Can not hook a command which are not allowed inside a script",
            Self::CommandMovesKeys => "Can not hook a command with moveable keys by key prefix",
            Self::CommandWithoutKeys => "Can not hook a command by key prefix with none positive first key",
            Self::EmptyPrefix => "Empty perfix given to command hooker",
            Self::TriggerExists => "trigger already registered",
            Self::TriggerExistsInSession => "trigger already registered in this session",
            Self::UnknownHook => "Can not override an unexisting command",
            Self::HookNotInScripts => "Can not override a command which are not allowed inside a script",
            Self::HookMovesKeys => "Can not override a command with moveable keys by key prefix",
            Self::HookWithoutKeys => "Can not override a command by key prefix with none positive first key",
            Self::CommandWithoutKeyStep | Self::HookWithoutKeyStep => "Can not override a command by key prefix with none positive jump",
            Self::HookedByBackground => "Can not override a none sync registration",
            Self::HookedByBackgroundInSession => {
                "Can not override a none sync registration which already created on this session"
            }
            Self::CannotPause(reader) => return format!("Reader {reader} does not support pause").into(),
            Self::CannotUnpause(reader) => return format!("Reader {reader} does not support unpause").into(),
            Self::NothingToPause => "ERR no registration to pause",
            Self::NoSuchTrigger => "ERR subcommand not found",
            Self::CannotWaitHere => {
                "ERR can not run a non-sync execution inside a MULTI/LUA (blocking is not allowed) or on loading."
            }
            Self::ClientCannotWait => CLIENT_CANNOT_WAIT,
            Self::NotTriggered(reason) => return format!("ERR Could not trigger execution, {reason}").into(),
            Self::NotOneResult => "Command hook must return exactly one result",
            Self::RanTooLong(_) | Self::RanOverTime(_) | Self::HeldTooMuch(_) => return self.about_limits(),
            Self::NoHookContext => "Can not get CommandHook ctx",
            Self::RequirementsNotFetched(_) | Self::RequirementsNotInstalled(_) => {
                return self.about_requirements();
            }
            Self::NoRequirementsDirectory => {
                "Could not satisfy requirements, look at the log file for more information."
            }
            Self::NoSuchRequirement => "requirement does not exists",
            Self::RequirementNotRead(path) => return format!("Could not open file {path}").into(),
            Self::RequirementFileNotOpened => "Failed open file for write",
            Self::RequirementFileNotWritten => "Failed writing data to file",
            Self::ImportNotInstalled => "Failed install requirement on shard, check shard log for more info.",
            Self::BadArchive(part) => return format!("Bad serialization format on reading {part}").into(),
            Self::ArchiveTooNew => "Requirement version is not compatible, upgrade to newer RedisGears.",
            Self::ReadOnly => "READONLY You can't write against a read only replica.",
            Self::ClusterSetCut => "Could not parse cluster set arguments",
            Self::NoTopology => "ERRCLUSTER NULL cluster state",
            Self::NoTopologyForHello => "ERRCLUSTER NULL cluster state on hello msg",
            Self::NotAShard => "ERR this shard does not know the sender's secret",
            Self::BadMessageId => "bad msg id given",
            Self::UnknownMessageKind => "can not find the callback requested",
            Self::MaxIdle => MAX_IDLE,
            Self::ShardUnknown(_)
            | Self::NoSuchRegistrationHere { .. }
            | Self::BadClusterSet(_)
            | Self::ShardsUnknown(_)
            | Self::ShardsChanged
            | Self::SlotsMoved
            | Self::DataReplaced
            | Self::NotSent { .. }
            | Self::MessagesLost(_) => return self.about_shards(),
            Self::NoCommandContext => "Can not get command ctx",
            Self::OverriddenAlready => "Can only override reply once",
            Self::InnerCommand => "ERR this command is internal to the module and cannot be called",
            Self::NotPermitted(command) => {
                return format!("NOPERM this user has no permissions to run the '{command}' command").into();
            }
        }
        .into()
    }
}

/// A text of 1.2, and behind it what only we tell, if it is known.
fn with_reason(beginning: &str, between: &str, why: &str) -> String {
    if why.is_empty() {
        return beginning.to_owned();
    }
    format!("{beginning}{between}{why}")
}

impl Error {
    /// What is wrong with the sessions that a script names.
    fn about_sessions(&self) -> Cow<'_, str> {
        match self {
            Self::CannotReplaceExisting { id, old } => {
                format!("Can not replace an existing session {id} with {old}").into()
            }
            Self::NothingToReplace(old) => {
                format!("Can not replace with {old}, session does not exists.").into()
            }
            Self::SessionExists(id) => format!("Session {id} already exists").into(),
            Self::LaterSession(id) => format!("a later session {id} is registered there, try again").into(),
            _ => "".into(),
        }
    }

    /// Why packages could not be had.
    fn about_requirements(&self) -> Cow<'_, str> {
        match self {
            Self::RequirementsNotFetched(why) => {
                let beginning =
                    "Could not satisfy requirements (look at redis log file for more information)";
                with_reason(beginning, ": ", why).into()
            }
            Self::RequirementsNotInstalled(why) => {
                let beginning =
                    "Failed installing requirements on shard, please check shard log for more details.";
                with_reason(beginning, " ", why).into()
            }
            _ => "".into(),
        }
    }

    /// Which limit a function has passed.
    fn about_limits(&self) -> Cow<'_, str> {
        match self {
            Self::RanOverTime(limit) => {
                format!("ERR the function ran longer than its timeout ({limit} ms) and was stopped").into()
            }
            Self::RanTooLong(limit) => {
                format!("ERR the function ran longer than SyncTimeout ({limit} ms) and was stopped").into()
            }
            Self::HeldTooMuch(limit) => {
                format!("ERR the execution held more than its max_memory ({limit} bytes) and was ended")
                    .into()
            }
            _ => "".into(),
        }
    }

    /// Whether a text is one of [`Error::NotSent`].
    pub fn is_not_sent(text: &str) -> bool {
        text.contains(NOT_SENT)
    }

    /// What is wrong with a shard, with what is known of shards, or with their data.
    fn about_shards(&self) -> Cow<'_, str> {
        match self {
            Self::NoSuchRegistrationHere { id, shard } => {
                format!("Execution {id} does not exists on shard {shard}").into()
            }
            Self::BadClusterSet(what) => format!("Could not parse cluster set arguments: bad {what}").into(),
            Self::ShardUnknown(shard) => format!("ERRCLUSTER shard {shard} is not known here").into(),
            Self::ShardsUnknown(reason) => {
                format!("ERRCLUSTER it is not known which shards there are: {reason}").into()
            }
            Self::SlotsMoved => "ERRCLUSTER slots moved while the execution read the keys".into(),
            Self::DataReplaced => {
                "ERR the data were replaced while the execution ran (by a reload or a resynchronisation)"
                    .into()
            }
            Self::NotSent { what, shard, why } => {
                format!("ERRCLUSTER {what} {NOT_SENT} {shard}: {why}").into()
            }
            Self::MessagesLost(shard) => {
                format!("ERRCLUSTER messages of shard {shard} were lost while the execution ran").into()
            }
            _ => "ERRCLUSTER the cluster got other shards while the execution ran".into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Error {}

/// What has no name of its own, or was told by somebody else.
impl From<String> for Error {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn arity_names_the_command() {
        assert_eq!(
            Error::WrongArity.text("rg.getresults"),
            "ERR wrong number of arguments for 'rg.getresults' command"
        );
        assert_eq!(Error::ValueMissing("ID").text("rg.pyexecute"), "ID is missing");
    }
}
