//! What a script says about a registration: the arguments of `read_through`, as data that travels to files and replicas.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::machine::Limits;
use crate::{engine::prefix::Pattern, server::reply::Reply};

/// The commands that wait by default: readers of the five kinds of values whose keys stand at fixed places, the last of them
/// [`SETTING_LIFETIMES`]. A server that does not know one of them does without.
const COMMANDS: [&str; 56] = [
    "get",
    "mget",
    "getrange",
    "substr",
    "strlen",
    "getbit",
    "bitcount",
    "bitpos",
    "bitfield_ro",
    "lcs",
    "hget",
    "hmget",
    "hgetall",
    "hexists",
    "hkeys",
    "hvals",
    "hlen",
    "hstrlen",
    "hrandfield",
    "hscan",
    "lrange",
    "lindex",
    "llen",
    "lpos",
    "smembers",
    "sismember",
    "smismember",
    "scard",
    "srandmember",
    "sscan",
    "sinter",
    "sunion",
    "sdiff",
    "zrange",
    "zrevrange",
    "zrangebyscore",
    "zrevrangebyscore",
    "zrangebylex",
    "zrevrangebylex",
    "zscore",
    "zmscore",
    "zcard",
    "zcount",
    "zlexcount",
    "zrank",
    "zrevrank",
    "zrandmember",
    "zscan",
    "geopos",
    "geodist",
    "geohash",
    "geosearch",
    "georadius_ro",
    "georadiusbymember_ro",
    "getex",
    "hgetex",
];

/// Those that read and set lifetimes. To the server they are writing ones, which wait only where a load that fails is an error.
const SETTING_LIFETIMES: usize = 2;

/// Commands that change a part of a value, or depend on it: they wait, too, where changes are saved. Which of their keys have to be
/// there the room `hooks` knows.
pub const PARTIAL_WRITERS: [&str; 72] = [
    "set",
    "setnx",
    "msetnx",
    "msetex",
    "getset",
    "append",
    "setrange",
    "setbit",
    "bitfield",
    "incr",
    "decr",
    "incrby",
    "decrby",
    "incrbyfloat",
    "hset",
    "hmset",
    "hsetnx",
    "hsetex",
    "hincrby",
    "hincrbyfloat",
    "hdel",
    "hgetdel",
    "lpush",
    "rpush",
    "lpushx",
    "rpushx",
    "linsert",
    "lset",
    "lrem",
    "ltrim",
    "lpop",
    "rpop",
    "lmpop",
    "rpoplpush",
    "lmove",
    "sadd",
    "srem",
    "spop",
    "smove",
    "zadd",
    "zincrby",
    "zrem",
    "zremrangebyscore",
    "zremrangebyrank",
    "zremrangebylex",
    "zpopmin",
    "zpopmax",
    "zmpop",
    "geoadd",
    "getdel",
    "delex",
    "pfadd",
    "pfmerge",
    "copy",
    "rename",
    "renamenx",
    "move",
    "blmove",
    "brpoplpush",
    "bitop",
    "sinterstore",
    "sunionstore",
    "sdiffstore",
    "zrangestore",
    "zunionstore",
    "zinterstore",
    "zdiffstore",
    "geosearchstore",
    "delifeq",
    "sort",
    "georadius",
    "georadiusbymember",
];

/// How long a loaded value is fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ttl {
    #[default]
    Endless,
    Seconds(f64),
    /// What the second function of the plan says of a key and its value.
    Function,
}

/// When a value is loaded anew before its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ahead {
    #[default]
    Never,
    /// In the last share of its life.
    Share(f64),
    /// By chance, the more likely the nearer the end and the longer a load takes.
    Xfetch,
}

/// What clients get that wait for a load that comes to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    #[default]
    Error,
    /// The command's own reply.
    Miss,
}

/// All of them. Durations in seconds, as given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    pub prefix: String,
    pub commands: Option<Vec<String>>,
    pub ttl: Ttl,
    pub jitter: f64,
    pub negative_ttl: f64,
    pub stale: f64,
    pub refresh_ahead: Ahead,
    pub timeout: Option<f64>,
    pub on_error: OnError,
    pub max_waiting: u64,
    pub max_loads: Option<u64>,
    pub max_load_time: f64,
    pub backoff: f64,
    pub max_backoff: f64,
    pub breaker: Option<(u32, f64)>,
    pub batch: u64,
    pub batch_wait: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: "*".into(),
            commands: None,
            ttl: Ttl::Endless,
            jitter: 0.0,
            negative_ttl: 0.0,
            stale: 0.0,
            refresh_ahead: Ahead::Never,
            timeout: None,
            on_error: OnError::Error,
            max_waiting: 2000,
            max_loads: None,
            max_load_time: 30.0,
            backoff: 0.1,
            max_backoff: 10.0,
            breaker: None,
            batch: 1,
            batch_wait: 0.001,
        }
    }
}

/// A duration that was checked when it was given; what a damaged file says is none.
pub fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Options {
    pub fn pattern(&self) -> Pattern {
        Pattern::new(self.prefix.as_bytes())
    }

    /// The commands that wait where none were named.
    pub fn default_commands(&self) -> &'static [&'static str] {
        match self.on_error {
            OnError::Error => &COMMANDS,
            OnError::Miss => &COMMANDS[..COMMANDS.len() - SETTING_LIFETIMES],
        }
    }

    /// What the machine goes by.
    pub fn limits(&self) -> Limits {
        Limits {
            timeout: self.timeout.map(seconds),
            negative_ttl: seconds(self.negative_ttl),
            max_waiting: count(self.max_waiting),
            max_loads: self.max_loads.map_or(usize::MAX, count),
            max_load_time: seconds(self.max_load_time),
            backoff: seconds(self.backoff),
            max_backoff: seconds(self.max_backoff),
            breaker: self.breaker.map(|(failures, time)| (failures, seconds(time))),
            batch: count(self.batch).max(1),
            batch_wait: seconds(self.batch_wait),
            misses: self.on_error == OnError::Miss,
        }
    }

    /// As RG.DUMPREGISTRATIONS shows them.
    pub fn shown(&self) -> Vec<(&'static str, Reply)> {
        let number = |number: u64| Reply::Int(i64::try_from(number).unwrap_or(i64::MAX));
        let time = |seconds: f64| Reply::bulk(seconds.to_string());
        let commands = self.commands.as_ref();
        vec![
            ("prefix", Reply::bulk(&self.prefix)),
            (
                "commands",
                commands.map_or_else(|| Reply::bulks(self.default_commands()), Reply::bulks),
            ),
            (
                "ttl",
                match self.ttl {
                    Ttl::Endless => Reply::Null,
                    Ttl::Seconds(seconds) => time(seconds),
                    Ttl::Function => Reply::bulk("function"),
                },
            ),
            ("jitter", time(self.jitter)),
            ("negative_ttl", time(self.negative_ttl)),
            ("stale", time(self.stale)),
            (
                "refresh_ahead",
                match self.refresh_ahead {
                    Ahead::Never => time(0.0),
                    Ahead::Share(share) => time(share),
                    Ahead::Xfetch => Reply::bulk("xfetch"),
                },
            ),
            ("timeout", self.timeout.map_or(Reply::Null, time)),
            (
                "on_error",
                Reply::bulk(match self.on_error {
                    OnError::Error => "error",
                    OnError::Miss => "miss",
                }),
            ),
            ("max_waiting", number(self.max_waiting)),
            ("max_loads", self.max_loads.map_or(Reply::Null, number)),
            ("max_load_time", time(self.max_load_time)),
            ("backoff", time(self.backoff)),
            ("max_backoff", time(self.max_backoff)),
            (
                "breaker",
                self.breaker.map_or(Reply::Null, |(failures, seconds)| {
                    Reply::Array(vec![number(failures.into()), time(seconds)])
                }),
            ),
            ("batch", number(self.batch)),
            ("batch_wait", time(self.batch_wait)),
        ]
    }
}
