"""Each command of the server that writes: which of its keys are loaded before it runs, with both halves. A command that is in none of these
tables fails: somebody has to say what it does. Contract: docs/contract/write-behind.md 2.6 and 2.10, docs/contract/read-through.md 2."""

from __future__ import annotations

import pytest

from helpers import Server, wait_until
from servers import ROOT
from test_write_behind_halves import by

pytestmark = pytest.mark.matrix

# Keys with a plus have to be loaded: the command keeps a part of them, depends on them, or makes something of them. Those with a minus are
# replaced or removed, whatever they had.
CALLS = """
SET k:-1 a; SET k:-1 nx EX 9; SET k:+1 a NX; SET k:+1 a XX; SET k:+1 a GET; SET k:+1 a IFEQ b; SETNX k:+1 a; SETEX k:-1 9 a; PSETEX k:-1 9000 a; GETSET k:+1 a
MSET k:-1 a k:-2 b; MSETNX k:+1 a k:+2 b; MSETEX 2 k:-1 nx k:-2 xx; MSETEX 2 k:-1 a k:-2 b EX 9; MSETEX 2 k:+1 a k:+2 b nx; MSETEX 1 k:+1 a EX 9 XX
APPEND k:+1 a; SETRANGE k:+1 1 a; SETBIT k:+1 1 1; BITFIELD k:+1 SET u8 0 1; BITOP OR k:-1 k:+2 k:+3; GETDEL k:+1; DELIFEQ k:+1 a; DELEX k:+1
INCR k:+1; DECR k:+1; INCRBY k:+1 2; DECRBY k:+1 2; INCRBYFLOAT k:+1 1.5; PFADD k:+1 a; PFMERGE k:+1 k:+2
HSET k:+1 f a; HMSET k:+1 f a; HSETNX k:+1 f a; HSETEX k:+1 FNX EX 9 FIELDS 1 f a; HINCRBY k:+1 f 1; HINCRBYFLOAT k:+1 f 1.5; HDEL k:+1 f; HGETDEL k:+1 FIELDS 1 f
LPUSH k:+1 a; RPUSH k:+1 a; LPUSHX k:+1 a; RPUSHX k:+1 a; LINSERT k:+1 BEFORE a b; LSET k:+1 0 a; LREM k:+1 0 a; LTRIM k:+1 0 1; LPOP k:+1; RPOP k:+1
LMPOP 2 k:+1 k:+2 LEFT COUNT 2; RPOPLPUSH k:+1 k:+2; LMOVE k:+1 k:+2 LEFT LEFT
SADD k:+1 a; SREM k:+1 a; SPOP k:+1; SMOVE k:+1 k:+2 a; SUNIONSTORE k:-1 k:+2 k:+3; SINTERSTORE k:-1 k:+2 k:+3; SDIFFSTORE k:-1 k:+2 k:+3
ZADD k:+1 1 a; ZADD k:+1 GT 1 a; ZINCRBY k:+1 1 a; ZREM k:+1 a; ZREMRANGEBYRANK k:+1 0 1; ZREMRANGEBYSCORE k:+1 0 1; ZREMRANGEBYLEX k:+1 - +; ZPOPMIN k:+1; ZPOPMAX k:+1
ZMPOP 2 k:+1 k:+2 MIN; ZRANGESTORE k:-1 k:+2 0 -1; ZUNIONSTORE k:-1 2 k:+2 k:+3 WEIGHTS 1 2; ZINTERSTORE k:-1 2 k:+2 k:+3; ZDIFFSTORE k:-1 1 k:+2
GEOADD k:+1 1 1 a; GEOSEARCHSTORE k:-1 k:+2 FROMLONLAT 0 0 BYRADIUS 1 km; DEL k:-1 k:-2; UNLINK k:-1; RESTORE k:-1 0 x REPLACE
SORT k:+1 STORE k:-2; SORT k:+1 BY nosort LIMIT 0 1 GET STORE ALPHA STORE k:-2; SORT k:-1; SORT k:-1 BY STORE GET k:-2
GEORADIUS k:+1 1 1 9 km STORE k:-2; GEORADIUS k:+1 1 1 9 km COUNT 1 STOREDIST k:-2; GEORADIUS k:-1 1 1 9 km; GEORADIUSBYMEMBER k:+1 STORE 9 km STORE k:-2
COPY k:+1 k:+2; COPY k:+1 k:-2 REPLACE; COPY k:+1 k:-2 DB 1; RENAME k:+1 k:-2; RENAMENX k:+1 k:+2; MOVE k:+1 1; GETEX k:+1; GETEX k:+1 EX 9; HGETEX k:+1 EX 9 FIELDS 1 f
"""
# They read; it is a lifetime that they set. Nothing is saved that would be lost.
READ = ["getex", "hgetex"]
# What is not loaded. The page for users names those of which one could think so.
NOT_LOADED = {
    "lifetimes": "expire pexpire expireat pexpireat persist hexpire hpexpire hexpireat hpexpireat hpersist",
    "streams": "xack xackdel xadd xautoclaim xclaim xdel xdelex xsetid xtrim xreadgroup xcfgset xnack xidmprecord",
    "those that block": "blpop brpop bzpopmin bzpopmax blmpop bzmpop blmove brpoplpush",
    "other servers": "migrate restore-asking",
    "no data": "pfdebug flushall flushdb swapdb function",
    "values of modules": "vadd vrem vsetattr",
}
BOTH = """
def load(key):
    execute('RPUSH', 'loaded', key)

read_through('k:*', load)
write_behind('k:*', lambda changes: None)
"""


def calls() -> list[list[str]]:
    return [call.split() for call in CALLS.replace("\n", ";").split(";") if call.strip()]


def needed(words: list[str]) -> list[str]:
    return [word for word in words if word.startswith("k:") and ":+" in word]


def of_its_own(number: int, words: list[str]) -> list[str]:
    """The call with keys that no other one has: what is not saved yet is not loaded."""
    return [word.replace("k:", f"k:{number}:") for word in words]


def test_each_command_that_writes_is_known(server: Server) -> None:
    info = server.client(decode_responses=False).execute_command("COMMAND")
    writing = {name.decode().lower() for name, command in as_pairs(info) if b"write" in command}
    known = {words[0].lower() for words in calls()} | {name for names in NOT_LOADED.values() for name in names.split()}
    unknown = {name for name in writing - known if not name.startswith("rg.")}
    assert not unknown, "say in this file which of their keys are loaded, and let src/read_through/options.rs and src/hooks/parts.rs do it"


def as_pairs(info: object) -> list[tuple[bytes, set[bytes]]]:
    """Names and flags, as redis-py has them or the server."""
    if isinstance(info, dict):
        return [(name.encode(), {flag.encode() if isinstance(flag, str) else flag for flag in command["flags"]}) for name, command in info.items()]
    assert isinstance(info, list)
    return [(command[0], set(command[2])) for command in info]


def test_what_is_not_loaded_is_said() -> None:
    page = (ROOT / "docs" / "write-behind.md").read_text() + (ROOT / "docs" / "read-through.md").read_text()
    for name in ("hexpire", "hpersist", "httl", "blpop", "bzpopmin"):
        assert f"`{name.upper()}" in page, name


def test_what_each_command_needs_is_loaded_before_it_runs(server: Server) -> None:
    """Loads and their absence, for each call; and in a transaction, where nobody can wait, that none runs without what it needs."""
    server.run(BOTH)
    client = server.client()
    known = {name.lower() for name in client.execute_command("COMMAND LIST")}
    wrong = {}
    for number, call in enumerate(calls()):
        if call[0].lower() not in known:
            continue
        words = of_its_own(2 * number, call)
        client.delete("loaded")
        reply = said(server, *words)
        loaded = sorted(client.lrange("loaded", 0, -1))
        if loaded != needed(words):
            wrong[" ".join(words)] = loaded, reply
        client.delete("loaded")
        words = of_its_own(2 * number + 1, call)
        in_transaction = said(server, "MULTI", *words)
        is_refused = "LOADFAILED CannotWait" in in_transaction
        if is_refused != bool(needed(words) and words[0].lower() not in READ) or client.llen("loaded"):
            wrong["MULTI " + " ".join(words)] = in_transaction
    assert wrong == {}


def said(server: Server, *words: str) -> str:
    """A reply as a text; what the server has against the call is one, too."""
    try:
        return str(by(server, *words) if words[0] == "MULTI" else server.client().execute_command(*words))
    except Exception as error:
        return str(error)


def test_readers_that_set_lifetimes_wait_unless_a_failure_is_a_miss(server: Server) -> None:
    """To the server they are writing commands."""
    server.run("read_through('k:*', lambda key: 'row')\nread_through('m:*', lambda key: 'row', on_error='miss')")
    client = server.client()
    assert (client.execute_command("GETEX", "k:1", "EX", "100"), client.ttl("k:1")) == ("row", 100)
    assert client.execute_command("GETEX", "m:1", "EX", "100") is None
    assert client.get("m:1") == "row"
    commands = {entry["RegistrationData"]["args"]["prefix"]: entry["RegistrationData"]["args"]["commands"] for entry in server.registrations()}
    assert ("getex" in commands["k:*"], "getex" in commands["m:*"]) == (True, False)


def test_counted_keys_may_be_named(server: Server) -> None:
    server.run("read_through('k:*', lambda key: ['a', 'b'], commands=['LMPOP', 'get'])")
    assert server.client().execute_command("LMPOP", "2", "k:1", "other", "LEFT") == ["k:1", ["a"]]
    assert server.client().lrange("k:1", 0, -1) == ["b"]


def test_clients_wait_for_changes_of_counted_keys(server: Server) -> None:
    """Write-through, and a queue that is full."""
    server.run("""
        def save(changes):
            raise ValueError('away')

        write_behind('k:*', save, wait=True, timeout=0.2)
        write_behind('l:*', save, max_queue=1, on_full='error')
    """)
    client, raw = server.client(), server.raw()
    client.zadd("z", {"a": 1})
    assert raw.call("ZUNIONSTORE", "k:1", "1", "z").startswith(b"-SAVEFAILED")
    assert client.zcard("k:1") == 1
    client.set("l:1", "a")
    assert raw.call("ZUNIONSTORE", "l:2", "1", "z").startswith(b"-QUEUEFULL")
    wait_until(lambda: not client.exists("l:2"))
