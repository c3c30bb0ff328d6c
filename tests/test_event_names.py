"""Every event that some server reports: it comes where only that one is asked for, and its record holds the key.

Contract: docs/contract/readers-and-events.md 2.4. The names are those of the servers' sources.
"""

from __future__ import annotations

import pytest

from helpers import Server, wait_until
from test_events import record, records

Version = tuple[int, ...]
ALWAYS: Version = (6, 2)
# The event, from which version of Redis and of Valkey on (`None`: never), what brings it about.
EVENTS: list[tuple[str, Version, Version | None, str]] = [
    # generic
    ("del", ALWAYS, ALWAYS, "SET k v; DEL k"),
    ("expire", ALWAYS, ALWAYS, "SET k v EX 100"),
    ("persist", ALWAYS, ALWAYS, "SET k v EX 100; PERSIST k"),
    ("rename_from", ALWAYS, ALWAYS, "SET k v; RENAME k j"),
    ("rename_to", ALWAYS, ALWAYS, "SET k v; RENAME k j"),
    ("move_from", ALWAYS, ALWAYS, "SET k v; MOVE k 1"),
    ("move_to", ALWAYS, ALWAYS, "SET k v; MOVE k 1"),
    ("copy_to", ALWAYS, ALWAYS, "SET k v; COPY k j"),
    ("restore", ALWAYS, ALWAYS, "RESTORE k 0 {dump}"),
    # strings
    ("set", ALWAYS, ALWAYS, "SET k v"),
    ("setrange", ALWAYS, ALWAYS, "SETRANGE k 0 v"),
    ("setbit", ALWAYS, ALWAYS, "SETBIT k 0 1"),
    ("append", ALWAYS, ALWAYS, "APPEND k v"),
    ("incrby", ALWAYS, ALWAYS, "INCR k"),
    ("incrbyfloat", ALWAYS, ALWAYS, "INCRBYFLOAT k 0.5"),
    ("pfadd", ALWAYS, ALWAYS, "PFADD k v"),
    # lists
    ("lpush", ALWAYS, ALWAYS, "LPUSH k v"),
    ("rpush", ALWAYS, ALWAYS, "RPUSH k v"),
    ("lpop", ALWAYS, ALWAYS, "RPUSH k v w; LPOP k"),
    ("rpop", ALWAYS, ALWAYS, "RPUSH k v w; RPOP k"),
    ("linsert", ALWAYS, ALWAYS, "RPUSH k v; LINSERT k BEFORE v w"),
    ("lset", ALWAYS, ALWAYS, "RPUSH k v; LSET k 0 w"),
    ("lrem", ALWAYS, ALWAYS, "RPUSH k v w; LREM k 0 v"),
    ("ltrim", ALWAYS, ALWAYS, "RPUSH k v w; LTRIM k 0 0"),
    ("sortstore", ALWAYS, ALWAYS, "RPUSH k 2 1; SORT k STORE j"),
    # sets
    ("sadd", ALWAYS, ALWAYS, "SADD k v"),
    ("srem", ALWAYS, ALWAYS, "SADD k v w; SREM k v"),
    ("spop", ALWAYS, ALWAYS, "SADD k v w; SPOP k"),
    ("sinterstore", ALWAYS, ALWAYS, "SADD k v; SINTERSTORE j k"),
    ("sunionstore", ALWAYS, ALWAYS, "SADD k v; SUNIONSTORE j k"),
    ("sdiffstore", ALWAYS, ALWAYS, "SADD k v; SDIFFSTORE j k"),
    # hashes
    ("hset", ALWAYS, ALWAYS, "HSET k f v"),
    ("hincrby", ALWAYS, ALWAYS, "HINCRBY k f 1"),
    ("hincrbyfloat", ALWAYS, ALWAYS, "HINCRBYFLOAT k f 0.5"),
    ("hdel", ALWAYS, ALWAYS, "HSET k f v g w; HDEL k f"),
    ("hexpire", (7, 4), (9, 0), "HSET k f v; HEXPIRE k 100 FIELDS 1 f"),
    ("hpersist", (7, 4), (9, 0), "HSET k f v; HEXPIRE k 100 FIELDS 1 f; HPERSIST k FIELDS 1 f"),
    ("hexpired", (7, 4), (9, 0), "HSET k f v g w; HPEXPIRE k 1 FIELDS 1 f"),
    # sorted sets
    ("zadd", ALWAYS, ALWAYS, "ZADD k 1 v"),
    ("zincr", ALWAYS, ALWAYS, "ZADD k 1 v; ZINCRBY k 1 v"),
    ("zrem", ALWAYS, ALWAYS, "ZADD k 1 v 2 w; ZREM k v"),
    ("zremrangebyscore", ALWAYS, ALWAYS, "ZADD k 1 v 2 w; ZREMRANGEBYSCORE k 1 1"),
    ("zremrangebyrank", ALWAYS, ALWAYS, "ZADD k 1 v 2 w; ZREMRANGEBYRANK k 0 0"),
    ("zremrangebylex", ALWAYS, ALWAYS, "ZADD k 1 v 1 w; ZREMRANGEBYLEX k [v [v"),
    ("zpopmin", ALWAYS, ALWAYS, "ZADD k 1 v 2 w; ZPOPMIN k"),
    ("zpopmax", ALWAYS, ALWAYS, "ZADD k 1 v 2 w; ZPOPMAX k"),
    ("zunionstore", ALWAYS, ALWAYS, "ZADD k 1 v; ZUNIONSTORE j 1 k"),
    ("zinterstore", ALWAYS, ALWAYS, "ZADD k 1 v; ZINTERSTORE j 1 k"),
    ("zdiffstore", ALWAYS, ALWAYS, "ZADD k 1 v; ZDIFFSTORE j 1 k"),
    ("zrangestore", ALWAYS, ALWAYS, "ZADD k 1 v; ZRANGESTORE j k 0 -1"),
    ("geosearchstore", ALWAYS, ALWAYS, "GEOADD k 1 1 v; GEOSEARCHSTORE j k FROMMEMBER v BYRADIUS 1 km"),
    ("georadiusstore", ALWAYS, ALWAYS, "GEOADD k 1 1 v; GEORADIUS k 1 1 1 km STORE j"),
    # streams
    ("xadd", ALWAYS, ALWAYS, "XADD k 1-1 f v"),
    ("xdel", ALWAYS, ALWAYS, "XADD k 1-1 f v; XDEL k 1-1"),
    ("xtrim", ALWAYS, ALWAYS, "XADD k 1-1 f v; XADD k 1-2 f v; XTRIM k MAXLEN 1"),
    ("xsetid", ALWAYS, ALWAYS, "XADD k 1-1 f v; XSETID k 1-2"),
    ("xgroup-create", ALWAYS, ALWAYS, "XADD k 1-1 f v; XGROUP CREATE k group 0"),
    ("xgroup-setid", ALWAYS, ALWAYS, "XADD k 1-1 f v; XGROUP CREATE k group 0; XGROUP SETID k group 1-1"),
    ("xgroup-createconsumer", ALWAYS, ALWAYS, "XADD k 1-1 f v; XGROUP CREATE k group 0; XGROUP CREATECONSUMER k group me"),
    ("xgroup-delconsumer", (7, 0), ALWAYS, "XADD k 1-1 f v; XGROUP CREATE k group 0; XGROUP CREATECONSUMER k group me; XGROUP DELCONSUMER k group me"),
    ("xgroup-destroy", ALWAYS, ALWAYS, "XADD k 1-1 f v; XGROUP CREATE k group 0; XGROUP DESTROY k group"),
    # classes of their own
    ("expired", ALWAYS, ALWAYS, "SET k v PX 1"),
    ("evicted", ALWAYS, ALWAYS, "SET k v; CONFIG SET maxmemory-policy allkeys-random; CONFIG SET maxmemory 1"),
    ("keymiss", ALWAYS, ALWAYS, "GET k"),
    ("new", (7, 0), ALWAYS, "SET k v"),
    ("overwritten", (8, 2), None, "SET k v; SET k w"),
    ("type_changed", (8, 2), None, "SET k v; SADD j m; SUNIONSTORE k j"),
]  # fmt: skip


def happen(server: Server, commands: str) -> None:
    client = server.client()
    binary = server.client(decode_responses=False)
    for command in commands.split("; "):
        words: list[str | bytes] = list(command.split())
        if "{dump}" in words:
            client.set("dumped", "v", px=60000)
            words[words.index("{dump}")] = binary.dump("dumped")
        client.execute_command(*words)
    if "maxmemory 1" in commands:
        wait_until(lambda: not client.exists("k"), message="the key is gone")
        client.config_set("maxmemory", 0)


def reports(server: Server, redis: Version, valkey: Version | None) -> bool:
    since = valkey if server.is_valkey else redis
    return since is not None and server.version >= since


@pytest.mark.parametrize(("event", "redis", "valkey", "commands"), EVENTS, ids=[entry[0] for entry in EVENTS])
def test_each_event_comes_by_its_name(
    server: Server, event: str, redis: Version, valkey: Version | None, commands: str
) -> None:
    if not reports(server, redis, valkey):
        pytest.skip(f"{server.name} does not report {event}")
    record(server, f"eventTypes=['{event}'], ", mode="sync")
    happen(server, commands)
    found = wait_until(lambda: records(server, idle=False), message=f"{event} comes")
    assert {r["event"] for r in found} == {event}
    assert all(r["key"] in ("k", "j", "dumped") for r in found)


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_new_keys(server: Server, mode: str) -> None:
    """Of every type, whatever makes them; not those that are there."""
    if server.version < (7, 0):
        pytest.skip("Redis 6.2 does not report new keys")
    record(server, "eventTypes=['new'], ", mode=mode)
    client = server.client()
    commands = """SET string v; APPEND other v; RPUSH list a b; HSET hash f v; SADD set m; ZADD zset 1 m; XADD stream 1-1 f v; COPY string
        copied; RENAME copied renamed; INCR counted; BITOP NOT bits string; MSET a 1 b 2; SUNIONSTORE union set"""
    for command in commands.split(";"):
        for _ in range(2):
            if not command.strip().startswith(("RENAME", "XADD", "COPY")) or _ == 0:
                client.execute_command(*command.split())
    server.wait_idle()
    found = [r["key"] for r in records(server)]
    expected = "string other list hash set zset stream copied renamed counted bits a b union".split()
    # Some servers replace the key that a command stores into by a new one.
    assert set(found) == set(expected) and found[:7] == expected[:7] if mode == "sync" else set(found) == set(expected)
    if mode == "async_local":
        assert {r["key"]: r["value"] for r in records(server)}["list"] in (["a", "b"], ["a", "b", "a", "b"])
    kinds = {key: client.object("encoding", key) for key in ("string", "counted", "a")}
    assert kinds == {"string": "embstr", "counted": "int", "a": "int"}


def test_who_asks_for_all_events_gets_none_of_the_later_classes(server: Server) -> None:
    """The contract's "all" is the server's; others who ask for more change nothing."""
    record(server, "prefix='k', ", mode="sync")
    record(server, "prefix='x', eventTypes=['new', 'overwritten', 'type_changed'], ", mode="sync")
    for command in ("SET k v", "SET k w", "SADD j m", "SUNIONSTORE k j", "GET no"):
        server.client().execute_command(*command.split())
    assert {r["event"] for r in records(server)} <= {"set", "del", "sunionstore"}
    assert [r["event"] for r in records(server)].count("set") == 2
