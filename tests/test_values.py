"""Values that records hold: they are what the server holds, and reading them changes nothing in it.

Contract: docs/contract/readers-and-events.md 0.1, 2.1 and 2.5. A plain server of the same version says what a command answers and how its
key is kept.
"""

from __future__ import annotations

from typing import Any

import pytest
import redis

from helpers import Server, wait_until
from test_events import record, records

MODES = ["sync", "async_local", "async"]

# Commands after which the server may keep a string as a number, in one piece with its object, or plainly.
STRINGS = [
    "SET k 12345; INCRBYFLOAT k 1.5",
    "INCRBYFLOAT k 1.5; INCRBYFLOAT k 1.5",
    "INCRBY k 100000; INCRBY k 1; DECRBY k 3",
    "INCR k; INCR k",
    "INCRBY k 9223372036854775807",
    "SET k -9223372036854775808; DECR j",
    "SET k short; APPEND k er; APPEND k est",
    "APPEND k one; SETRANGE k 1 xx",
    "SET k 77; SETRANGE k 1 0; INCR k",
    "SET k 12345; APPEND k 6; INCRBY k 1",
    "SETBIT k 7 1; BITFIELD k SET u8 0 65; BITOP NOT j k",
    "SET k 5; GETSET k 6; GETSET k word",
    "SET k 5; GETEX k EX 100; PERSIST k; GETEX k PERSIST",
    "SET k 00012; SET j +5; SET i 5",
    "SET k " + "x" * 44 + "; SET j " + "x" * 45 + "; SET i " + "x" * 500,
    "MSET k 1 j two; RENAME k i; COPY j k",
    "SETEX k 100 10; PSETEX j 100000 word; SETNX i 10",
    "SET k 10; EXPIRE k 100; INCR k; SET k 10 KEEPTTL",
    "PFADD k a b c; PFCOUNT k; PFMERGE j k",
    "SET k 7; MOVE k 1; SET k 8",
    "SET k 1; EVAL return{redis.call('incrbyfloat',KEYS[1],'1.5'),redis.call('incr',KEYS[2]),redis.call('append',KEYS[2],'x')} 2 k j",
    "RPUSH l 1 2 three; SORT l ALPHA STORE m; LPOP l 2; LINSERT m BEFORE 1 0",
    "HSET h f 1 g word; HINCRBY h f 5; HINCRBYFLOAT h f 0.5; HSETNX h i 3",
    "SADD s 1 2 3; SINTERSTORE t s s; ZADD z 1 a 2 b; ZINCRBY z 1.5 a; XADD x 1-1 f v",
]  # fmt: skip


def run(client: redis.Redis, commands: str, transaction: bool = False) -> list[Any]:
    """The replies of commands that are separated by `; `."""
    pipe = client.pipeline(transaction=transaction)
    for command in commands.split("; "):
        pipe.execute_command(*command.split(" "))
    return pipe.execute(raise_on_error=False)


def kept(client: redis.Redis) -> dict[bytes, tuple[Any, Any]]:
    """How the server keeps each key: its encoding, and how much memory it takes."""
    return {key: (client.object("encoding", key), client.memory_usage(key)) for key in client.keys("*")}


def encodings(client: redis.Redis) -> dict[bytes, Any]:
    return {key: client.object("encoding", key) for key in client.keys("*")}


def value_of(server: Server, key: str) -> Any:
    """As a record holds it."""
    client = server.client(decode_responses=False)
    kind = client.type(key)
    if kind == b"string":
        return text(client.get(key))
    if kind == b"list":
        return [text(item) for item in client.lrange(key, 0, -1)]
    return {text(name): text(value) for name, value in client.hgetall(key).items()} if kind == b"hash" else None


def text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


@pytest.mark.parametrize("transaction", [False, True], ids=["plain", "multi"])
@pytest.mark.parametrize("mode", MODES)
def test_reading_values_changes_nothing(
    server: Server, source: Server, mode: str, transaction: bool
) -> None:
    """Whatever has happened to a key: replies, encodings and memory are those of a server without the module."""
    # The C library's allocator gives the same object more room at one time than at another.
    shape = kept if server.client().info("memory")["mem_allocator"].startswith("jemalloc") else encodings
    assert server.run(f"GB().foreach(lambda r: None).register(prefix='*', mode='{mode}')") == "OK"
    for commands in STRINGS:
        expected = run(source.client(), commands, transaction)
        assert run(server.client(), commands, transaction) == expected, commands
        server.wait_idle()
        assert shape(server.client()) == shape(source.client()), commands
        server.client().flushall()
        source.client().flushall()


@pytest.mark.parametrize("mode", MODES)
def test_records_hold_the_value_after_the_command(server: Server, mode: str) -> None:
    record(server, mode=mode)
    noted = 0
    for commands in STRINGS:
        for command in commands.split("; "):
            run(server.client(), command)
            found = records(server)
            for r in found[noted:]:
                # Others have changed the key since.
                if not command.startswith("EVAL") and r["event"] not in ("rename_from", "move_from", "move_to", "lpop", "keymiss"):
                    assert r["value"] == value_of(server, r["key"]), (command, r)
            noted = len(found)
        server.client().flushall()


def test_a_walk_changes_nothing(server: Server) -> None:
    client = server.client()
    texts = ["0", "7", "10000", "-5", "9223372036854775807", "-9223372036854775808", "007", "", "x" * 44, "x" * 45, "x" * 400]
    for number, text in enumerate(texts):
        client.set(f"k{number}", text)
    client.append("k8", "y")
    client.rpush("l", 1, "two")
    client.hset("h", "f", "1")
    before = kept(client)
    found, errors = server.run("GB().map(lambda r: [r['key'], r['value']]).sort().run()")
    assert errors == [] and len(found) == len(texts) + 2
    exactly, _ = server.run("GB().map(lambda r: r['value']).run('k2', noScan=True)")
    assert exactly == ["10000"]
    assert kept(client) == before
    values = dict(eval(entry) if isinstance(entry, str) else entry for entry in found)
    assert values == {key: value_of(server, key) for key in client.keys("*")}


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu"])
def test_reading_is_no_use_of_a_key(server: Server, policy: str) -> None:
    """By events and by walks: neither what is evicted first changes nor, from 7.0 on, what the server counts."""
    client = server.client()
    client.config_set("maxmemory-policy", policy)
    client.set("number", 5)
    client.set("text", "short")
    client.rpush("list", "a")
    figure = "freq" if policy == "allkeys-lfu" else "idletime"
    if figure == "idletime":
        wait_until(lambda: client.object("idletime", "number") >= 1, message="the key has not been used for a second")
    used = lambda: [client.object(figure, key) for key in ("number", "text", "list")]  # noqa: E731
    before = used()
    hits = client.info("stats")["keyspace_hits"]
    for _ in range(30):
        assert len(server.run("GB().map(lambda r: r['value']).run()")[0]) == 3
    if server.version >= (7, 0):
        assert client.info("stats")["keyspace_hits"] == hits
        assert "cmdstat_get" not in client.info("commandstats")
    after = used()
    assert after == before if figure == "freq" else all(now >= then for now, then in zip(after, before))


def test_reading_is_nobodys_command(server: Server) -> None:
    """Where the server must be asked by command (6.2): neither hooks nor links nor events see it."""
    server.run("GB('CommandReader').map(lambda r: 'hooked').register(hook='get', mode='sync', convertToStr=False)")
    server.run("GB('CommandReader').map(lambda r: ['hooked']).register(hook='lrange', mode='sync', convertToStr=False)")
    record(server, mode="sync")
    server.client().set("k", "12")
    server.client().rpush("l", "a", "b")
    assert [r["value"] for r in records(server)] == ["12", ["a", "b"]]


def test_values_on_their_way_out(server: Server) -> None:
    """Events of keys that are no longer there hold nothing."""
    client = server.client()
    record(server, mode="sync")
    client.set("k", "5")
    client.execute_command("GETDEL", "k")
    client.set("e", "5", px=1)
    wait_until(lambda: "expired" in [r["event"] for r in records(server)], message="the key is gone")
    client.set("r", "5")
    dump = server.client(decode_responses=False).dump("r")
    client.restore("n", 0, dump)
    shown = {(r["event"], r["key"]): r["value"] for r in records(server)}
    assert shown["del", "k"] is None and shown["expired", "e"] is None and shown["restore", "n"] == "5"
    assert client.object("encoding", "n") == "int"
