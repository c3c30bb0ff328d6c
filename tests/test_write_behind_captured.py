"""`write_behind`: what is captured, command by command; each row of the table in docs/write-behind.md. Contract:
docs/contract/write-behind.md 2.7.
"""

from __future__ import annotations

from typing import Any

import pytest

from helpers import Server, wait_until
from write_behind import drained, register

pytestmark = pytest.mark.matrix

ROWS: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
    # name, commands before, commands, what is captured: key -> (event, value)
    ("set", [], ["SET k:1 a"], {"k:1": ("set", "a")}),
    ("mset", [], ["MSET k:1 a k:2 b x c"], {"k:1": ("set", "a"), "k:2": ("set", "b")}),
    ("append", ["SET k:1 a"], ["APPEND k:1 b"], {"k:1": ("append", "ab")}),
    ("incr", [], ["INCR k:1"], {"k:1": ("incrby", "1")}),
    ("setrange", ["SET k:1 abc"], ["SETRANGE k:1 1 X"], {"k:1": ("setrange", "aXc")}),
    ("setbit", [], ["SETBIT k:1 1 1"], {"k:1": ("setbit", "@")}),
    ("getset", ["SET k:1 a"], ["GETSET k:1 b"], {"k:1": ("set", "b")}),
    ("getdel", ["SET k:1 a"], ["GETDEL k:1"], {"k:1": ("del", None)}),
    ("setnx of a key that is there", ["SET k:1 a"], ["SETNX k:1 b"], {}),
    ("del", ["SET k:1 a"], ["DEL k:1 k:2 x"], {"k:1": ("del", None), "k:2": ("del", None)}),
    ("unlink", ["SET k:1 a"], ["UNLINK k:1 k:2"], {"k:1": ("del", None), "k:2": ("del", None)}),
    ("hset", ["HSET k:1 a 1"], ["HSET k:1 b 2"], {"k:1": ("hset", {"a": "1", "b": "2"})}),
    ("hdel", ["HSET k:1 a 1 b 2"], ["HDEL k:1 a"], {"k:1": ("hdel", {"b": "2"})}),
    ("hdel of the last field", ["HSET k:1 a 1"], ["HDEL k:1 a"], {"k:1": ("del", None)}),
    ("hincrby", [], ["HINCRBY k:1 a 5"], {"k:1": ("hincrby", {"a": "5"})}),
    ("rpush", [], ["RPUSH k:1 a b"], {"k:1": ("rpush", ["a", "b"])}),
    ("lpop of the last item", ["RPUSH k:1 a"], ["LPOP k:1"], {"k:1": ("del", None)}),
    ("lmove", ["RPUSH k:1 a b"], ["LMOVE k:1 k:2 LEFT LEFT"], {"k:1": ("lpop", ["b"]), "k:2": ("lpush", ["a"])}),
    ("sadd", [], ["SADD k:1 a"], {"k:1": ("sadd", ["a"])}),
    ("spop", ["SADD k:1 a"], ["SPOP k:1"], {"k:1": ("del", None)}),
    ("zadd", [], ["ZADD k:1 1.5 a"], {"k:1": ("zadd", {"a": 1.5})}),
    ("zincrby", ["ZADD k:1 1 a"], ["ZINCRBY k:1 2 a"], {"k:1": ("zincr", {"a": 3.0})}),
    ("zunionstore", ["ZADD x 1 a"], ["ZUNIONSTORE k:1 1 x"], {"k:1": ("zunionstore", {"a": 1.0})}),
    ("sinterstore of nothing", ["SADD k:1 a"], ["SINTERSTORE k:1 x y"], {"k:1": ("del", None)}),
    ("sort store", ["RPUSH x b a"], ["SORT x ALPHA STORE k:1"], {"k:1": ("sortstore", ["a", "b"])}),
    ("rename", ["SET k:1 a"], ["RENAME k:1 k:2"], {"k:1": ("rename_from", None), "k:2": ("rename_to", "a")}),
    ("rename into the prefix", ["SET x a"], ["RENAME x k:2"], {"k:2": ("rename_to", "a")}),
    ("rename out of the prefix", ["SET k:1 a"], ["RENAME k:1 x"], {"k:1": ("rename_from", None)}),
    ("copy", ["SET k:1 a"], ["COPY k:1 k:2"], {"k:2": ("copy_to", "a")}),
    ("expire, persist and touch", ["SET k:1 a"], ["EXPIRE k:1 100", "PERSIST k:1", "GETEX k:1 EX 100", "TOUCH k:1"], {}),
    ("expire in the past", ["SET k:1 a"], ["EXPIRE k:1 -1"], {"k:1": ("del", None)}),
    ("flushdb", ["SET k:1 a"], ["FLUSHDB"], {}),
    ("flushall", ["SET k:1 a"], ["FLUSHALL"], {}),
    ("swapdb", ["SET k:1 a"], ["SWAPDB 0 1"], {}),
    ("xadd", [], ["XADD k:1 1-1 a b"], {"k:1": ("xadd", None)}),
    ("a script", [], ["EVAL redis.call('SET',KEYS[1],'a')redis.call('DEL',KEYS[2]) 2 k:1 k:2"],
     {"k:1": ("set", "a"), "k:2": ("del", None)}),
    ("a refused command", ["SET k:1 a"], ["HSET k:1 f v", "DEL", "SET k:1"], {}),
]  # fmt: skip


# Commands of some servers only, or with conditions, or that move and store; those that a server does not know are left out there.
MORE: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
    ("set with a condition that fails", ["SET k:1 a"], ["SET k:1 b NX", "SET k:2 b XX", "SET k:1 b NX GET"], {}),
    ("set with a condition that holds", ["SET k:1 a"], ["SET k:1 b XX", "SET k:2 b NX GET"], {"k:1": ("set", "b"), "k:2": ("set", "b")}),
    ("set get of another type", ["RPUSH k:1 a"], ["SET k:1 b GET"], {}),
    ("set with a lifetime", [], ["SET k:1 a EX 100", "SETEX k:2 100 b", "PSETEX k:3 100000 c"],
     {"k:1": ("set", "a"), "k:2": ("set", "b"), "k:3": ("set", "c")}),
    ("set keepttl", ["SET k:1 a EX 100"], ["SET k:1 b KEEPTTL"], {"k:1": ("set", "b")}),
    ("set ifeq", ["MSET k:1 a k:2 a"], ["SET k:1 b IFEQ a", "SET k:2 b IFEQ x"], {"k:1": ("set", "b")}),
    ("delifeq", ["MSET k:1 a k:2 a"], ["DELIFEQ k:1 a", "DELIFEQ k:2 x"], {"k:1": ("del", None)}),
    ("delex", ["MSET k:1 a k:2 a"], ["DELEX k:1 IFEQ a", "DELEX k:2 IFEQ x"], {"k:1": ("del", None)}),
    ("msetnx", ["SET k:1 a"], ["MSETNX k:1 b k:2 b", "MSETNX k:3 c k:4 d"], {"k:3": ("set", "c"), "k:4": ("set", "d")}),
    ("msetex", [], ["MSETEX 2 k:1 a k:2 b EX 100"], {"k:1": ("set", "a"), "k:2": ("set", "b")}),
    ("getex", ["SET k:1 a EX 100"], ["GETEX k:1 PERSIST"], {}),
    ("incrbyfloat", ["SET k:1 1"], ["INCRBYFLOAT k:1 0.5"], {"k:1": ("incrbyfloat", "1.5")}),
    ("bitop", ["SET x a"], ["BITOP OR k:1 x x"], {"k:1": ("set", "a")}),
    ("bitop of nothing", ["SET k:1 a"], ["BITOP OR k:1 x x"], {"k:1": ("del", None)}),
    ("bitfield", [], ["BITFIELD k:1 SET u8 0 97", "BITFIELD k:2 GET u8 0"], {"k:1": ("setbit", "a")}),
    ("pfadd", [], ["PFADD k:1 a", "PFADD k:1 a"], {"k:1": ("pfadd", ...)}),
    ("pfmerge", ["PFADD x a"], ["PFMERGE k:1 x"], {"k:1": ("pfadd", ...)}),
    ("hsetnx", ["HSET k:1 a 1"], ["HSETNX k:1 a 2", "HSETNX k:2 a 2"], {"k:2": ("hset", {"a": "2"})}),
    ("hincrbyfloat", ["HSET k:1 a 1"], ["HINCRBYFLOAT k:1 a 0.5"], {"k:1": ("hincrbyfloat", {"a": "1.5"})}),
    ("hsetex", ["HSET k:1 a 1"], ["HSETEX k:1 EX 100 FIELDS 1 b 2"], {"k:1": ("hset", {"a": "1", "b": "2"})}),
    ("hsetex of a field that is there", ["HSET k:1 a 1"], ["HSETEX k:1 FNX FIELDS 1 a 2", "HSETEX k:2 FXX FIELDS 1 a 2"], {}),
    ("hgetdel", ["HSET k:1 a 1 b 2"], ["HGETDEL k:1 FIELDS 1 a"], {"k:1": ("hdel", {"b": "2"})}),
    ("hgetdel of the last field", ["HSET k:1 a 1"], ["HGETDEL k:1 FIELDS 1 a"], {"k:1": ("del", None)}),
    ("hgetdel of no field", ["HSET k:1 a 1"], ["HGETDEL k:1 FIELDS 1 x", "HGETDEL k:2 FIELDS 1 x"], {}),
    ("lifetimes of fields", ["HSET k:1 a 1"], ["HEXPIRE k:1 100 FIELDS 1 a", "HGETEX k:1 EX 200 FIELDS 1 a", "HPERSIST k:1 FIELDS 1 a"], {}),
    ("lifetimes that have passed", ["MSET k:1 a k:3 a", "HSET k:2 a 1 b 2"], ["GETEX k:1 PXAT 1", "HPEXPIRE k:2 0 FIELDS 1 a", "SET k:3 b PXAT 1"],
     {"k:1": ("del", None), "k:2": ("hdel", {"b": "2"})}),
    ("ltrim and lrem", ["RPUSH k:1 a b c"], ["LTRIM k:1 0 1", "LREM k:1 1 a"], {"k:1": ("lrem", ["b"])}),
    ("ltrim of all", ["RPUSH k:1 a b c"], ["LTRIM k:1 5 6"], {"k:1": ("del", None)}),
    ("linsert and lset", ["RPUSH k:1 a"], ["LINSERT k:1 BEFORE a x", "LSET k:1 0 y"], {"k:1": ("lset", ["y", "a"])}),
    ("linsert of nothing", ["RPUSH k:1 a"], ["LINSERT k:1 BEFORE nothing x", "LPUSHX k:2 a"], {}),
    ("lmpop", ["RPUSH k:1 a b"], ["LMPOP 2 k:0 k:1 LEFT COUNT 1"], {"k:1": ("lpop", ["b"])}),
    ("rpoplpush onto itself", ["RPUSH k:1 a b"], ["RPOPLPUSH k:1 k:1"], {"k:1": ("rpop", ["b", "a"])}),
    ("lmove of the last item", ["RPUSH k:1 a"], ["LMOVE k:1 x LEFT LEFT"], {"k:1": ("del", None)}),
    ("blocking commands that need not wait", ["RPUSH k:1 a", "RPUSH k:2 a b", "ZADD k:3 1 a"],
     ["BLPOP k:1 0", "BLMOVE k:2 k:4 LEFT LEFT 0", "BZPOPMIN k:3 0"],
     {"k:1": ("del", None), "k:2": ("lpop", ["b"]), "k:4": ("lpush", ["a"]), "k:3": ("del", None)}),
    ("smove", ["SADD k:1 a b"], ["SMOVE k:1 k:2 a", "SMOVE k:1 k:2 nothing"], {"k:1": ("srem", ["b"]), "k:2": ("sadd", ["a"])}),
    ("spop of several", ["SADD k:1 a a b c"], ["SPOP k:1 10"], {"k:1": ("del", None)}),
    ("sdiffstore", ["SADD x a b", "SADD y b"], ["SDIFFSTORE k:1 x y"], {"k:1": ("sdiffstore", ["a"])}),
    ("zpopmin and zmpop", ["ZADD k:1 1 a 2 b 3 c"], ["ZPOPMIN k:1", "ZMPOP 1 k:1 MAX"], {"k:1": ("zpopmax", {"b": 2.0})}),
    ("zadd that changes nothing", ["ZADD k:1 1 a"], ["ZADD k:1 NX 2 a", "ZADD k:1 GT 0 a", "ZADD k:1 XX 5 b"], {}),
    ("zrangestore", ["ZADD x 1 a 2 b"], ["ZRANGESTORE k:1 x 1 1", "ZRANGESTORE k:2 nothing 0 1"], {"k:1": ("zrangestore", {"b": 2.0}), "k:2": ("del", None)}),
    ("zremrangebyrank", ["ZADD k:1 1 a"], ["ZREMRANGEBYRANK k:1 0 0"], {"k:1": ("del", None)}),
    ("geosearchstore", ["GEOADD x 0 0 a"], ["GEOSEARCHSTORE k:1 x FROMLONLAT 0 0 BYRADIUS 1 km"], {"k:1": ("geosearchstore", ...)}),
    ("georadius store", ["GEOADD x 0 0 a"], ["GEORADIUS x 0 0 1 km STORE k:1"], {"k:1": ("georadiusstore", ...)}),
    ("geoadd", [], ["GEOADD k:1 0 0 a"], {"k:1": ("zadd", ...)}),
    ("sort store of nothing", ["SET k:1 a"], ["SORT nothing STORE k:1"], {"k:1": ("del", None)}),
    ("copy over another one", ["SET k:1 a", "RPUSH k:2 x"], ["COPY k:1 k:2", "COPY x k:1 REPLACE", "COPY k:1 k:2 REPLACE"], {"k:2": ("copy_to", "a")}),
    ("rename over another one", ["SET k:1 a", "SET k:2 b"], ["RENAMENX k:1 k:2", "RENAME k:1 k:2"],
     {"k:1": ("rename_from", None), "k:2": ("rename_to", "a")}),
    ("rename onto itself", ["SET k:1 a"], ["RENAME k:1 k:1"], {}),
    ("set over another type", ["RPUSH k:1 a"], ["SET k:1 b"], {"k:1": ("set", "b")}),
    ("changes of a stream", ["XADD k:1 1-1 a b", "XGROUP CREATE k:1 g 0"], ["XDEL k:1 1-1", "XSETID k:1 5-5"], {"k:1": ("xsetid", None)}),
    ("vector sets, which tell of nothing", ["VADD k:1 VALUES 2 1 1 a"], ["VADD k:2 VALUES 2 1 1 a", "VREM k:1 a", "RENAME k:2 k:3"],
     {"k:2": ("rename_from", None), "k:3": ("rename_to", None)}),
    ("refused in a script", ["SET k:1 a"], ["EVAL redis.pcall('HSET',KEYS[1],'f','v')return(redis.call('GET',KEYS[1])) 1 k:1"], {}),
    ("a script that ends by an error", [], ["EVAL redis.call('SET',KEYS[1],'a')error('no') 1 k:1"], {"k:1": ("set", "a")}),
]  # fmt: skip


@pytest.mark.parametrize("name, before, commands, captured", MORE, ids=[row[0] for row in MORE])
def test_what_else_is_captured(
    server: Server, source: Server, name: str, before: list[str], commands: list[str], captured: dict[str, Any]
) -> None:
    if name == "lifetimes that have passed" and server.is_valkey:
        captured = {"k:1": ("del", None)} if server.version < (8, 1) else {}  # there it is an expiry
    client, raw = server.client(), server.raw()
    for command in before + commands:
        if raw.call("COMMAND", "INFO", command.split()[0]).startswith((b"*1\r\n*-1", b"*1\r\n$-1", b"*1\r\n_")):
            pytest.skip(f"this server does not know {command}")
    for command in before:
        assert not raw.call(*command.split()).startswith(b"-")
    database = register(server, source, prefix="k:*")
    for command in commands:
        reply = raw.call(*command.split())
        if reply.startswith((b"-ERR syntax", b"-ERR unknown")):
            pytest.skip(f"this server does not know {command}")
    client.set("k:end", "x")
    wait_until(lambda: database.row("k:end") == "x")
    shown = {change["key"]: (change["event"], change["value"]) for change in database.changes() if change["key"] != "k:end"}
    assert {key: (event, ... if captured.get(key, (0, 0))[1] is ... else value) for key, (event, value) in shown.items()} == captured
    drained(server)


def test_blocking_commands_that_are_served_later(server: Server, source: Server) -> None:
    database = register(server, source, "coalesce=False", prefix="k:*")
    client, raws = server.client(), [server.raw() for _ in range(4)]
    raws[0].send("BLPOP", "k:1", "0")
    raws[1].send("BLMOVE", "k:2", "k:3", "LEFT", "RIGHT", "0")
    raws[2].send("BLMOVE", "x", "k:4", "LEFT", "RIGHT", "0")
    raws[3].send("BZPOPMIN", "k:5", "0")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 4)
    client.rpush("k:1", "a", "b")
    with client.pipeline(transaction=True) as pipe:
        pipe.rpush("k:2", "a").rpush("x", "c").zadd("k:5", {"m": 1}).execute()
    assert [raw.read()[:1] for raw in raws] == [b"*", b"$", b"$", b"*"]
    drained(server)
    last = {change["key"]: change["value"] for change in database.changes()}
    assert last == {"k:1": ["b"], "k:2": None, "k:3": ["a"], "k:4": ["c"], "k:5": None}
    assert {key: client.lrange(key, 0, -1) for key in ("k:1", "k:2", "k:3", "k:4")} == {"k:1": ["b"], "k:2": [], "k:3": ["a"], "k:4": ["c"]}


@pytest.mark.parametrize("name, before, commands, captured", ROWS, ids=[row[0] for row in ROWS])
def test_what_is_captured(
    server: Server, source: Server, name: str, before: list[str], commands: list[str], captured: dict[str, Any]
) -> None:
    if name == "expire in the past" and server.is_valkey and server.version >= (8, 1):
        captured = {}  # there it is an expiry
    client, raw = server.client(), server.raw()
    for command in before:
        raw.call(*command.split())
    database = register(server, source, prefix="k:*")
    for command in commands:
        raw.call(*command.split())
    client.set("k:end", "x")
    wait_until(lambda: database.row("k:end") == "x")
    shown = {change["key"]: (change["event"], change["value"]) for change in database.changes() if change["key"] != "k:end"}
    assert shown == captured
    drained(server)


def test_move_restore_and_transactions(server: Server, source: Server) -> None:
    database = register(server, source, prefix="k:*")
    client, other = server.client(decode_responses=False), server.client(db=1)
    client.set("k:1", "a")
    dumped = client.dump("k:1")
    client.move("k:1", 1)
    client.restore("k:2", 0, dumped)
    with other.pipeline(transaction=True) as pipe:
        pipe.set("k:3", 1).incr("k:3").delete("k:4").execute()
    drained(server)
    shown = {(change["db"], change["key"]): change["value"] for change in database.changes()}
    assert shown == {(0, "k:1"): None, (1, "k:1"): "a", (0, "k:2"): "a", (1, "k:3"): "2", (1, "k:4"): None}


@pytest.mark.parametrize("flush", ["FLUSHALL", "FLUSHDB"])
def test_what_a_transaction_does_before_it_flushes(server: Server, source: Server, flush: str) -> None:
    client = server.client()
    client.mset({"k:1": "a", "k:2": "b"})
    database = register(server, source, prefix="k:*")
    with client.pipeline(transaction=True) as pipe:
        pipe.delete("k:1").rename("k:2", "x").set("k:3", "c").execute_command(flush)
        pipe.set("k:4", "d").execute()
    drained(server)
    assert {change["key"]: change["value"] for change in database.changes()} == {"k:1": None, "k:2": None, "k:3": "c", "k:4": "d"}


def test_what_a_transaction_changes_before_it_swaps_databases(server: Server, source: Server) -> None:
    client = server.client()
    client.delete("k:0")
    database = register(server, source, prefix="k:*")
    with client.pipeline(transaction=True) as pipe:
        pipe.set("k:1", "a").delete("k:0").execute_command("SWAPDB", 0, 1)
        pipe.set("k:2", "b").execute()
    drained(server)
    if server.version < (7, 2):
        return  # each command is a unit
    shown = {(change["db"], change["key"]): change["value"] for change in database.changes()}
    assert shown == {(1, "k:1"): "a", (1, "k:0"): None, (0, "k:2"): "b"}


def test_a_cache_that_forgets_deletes_nothing(server: Server, source: Server) -> None:
    database = register(server, source, prefix="k:*")
    client = server.client()
    client.set("k:expires", "a", px=30)
    client.set("k:stays", "a")
    client.set("k:evicted", "x" * 100_000)
    drained(server)
    wait_until(lambda: client.get("k:expires") is None)
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", "1mb")
    wait_until(lambda: client.exists("k:evicted") == 0)
    client.config_set("maxmemory", "0")
    client.config_set("maxmemory-policy", "noeviction")
    drained(server)
    assert set(database.rows()) == {"k:expires", "k:stays", "k:evicted"}
    assert all(change["event"] == "set" for change in database.changes())


def test_events_that_are_named(server: Server, source: Server) -> None:
    database = register(server, source, "events=['expired', 'SET']", prefix="k:*")
    client = server.client()
    client.set("k:1", "a", px=20)
    client.set("k:2", "b")
    client.append("k:2", "c")
    client.delete("k:2", "k:3")
    wait_until(lambda: client.get("k:1") is None)
    wait_until(lambda: len(database.changes()) == 3)
    drained(server)
    shown = [(change["key"], change["event"], change["type"]) for change in database.changes()]
    assert shown == [("k:1", "set", "string"), ("k:2", "set", "string"), ("k:1", "expired", None)]


def test_fields_that_expire(server: Server, source: Server) -> None:
    if server.is_valkey or server.version < (7, 4):
        pytest.skip("fields do not expire on this server")
    database = register(server, source, prefix="k:*")
    client = server.client()
    client.hset("k:1", "f", "v")
    client.hset("k:2", mapping={"f": "v", "g": "w"})
    drained(server)
    for key in ("k:1", "k:2"):
        client.execute_command("HPEXPIRE", key, 10, "FIELDS", 1, "f")
    wait_until(lambda: not client.exists("k:1") and client.hlen("k:2") == 1)
    client.set("k:end", "x")
    drained(server)
    assert database.rows() == {"k:1": {"f": "v"}, "k:2": {"f": "v", "g": "w"}, "k:end": "x"}


def test_the_last_field_that_has_not_expired(server: Server, source: Server) -> None:
    """The server has not cleared the other one away yet: a hash without fields was saved, and the row stayed."""
    if server.version < ((9, 0) if server.is_valkey else (7, 4)):
        pytest.skip("fields do not expire on this server")
    database = register(server, source, prefix="k:*")
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.hset("k:1", mapping={"f": "v", "g": "w"})
    drained(server)
    client.execute_command("HPEXPIRE", "k:1", 1, "FIELDS", 1, "f")
    wait_until(lambda: client.hget("k:1", "f") is None)
    client.hdel("k:1", "g")
    drained(server)
    assert database.rows() == {}
    assert database.changes()[-1]["type"] is None


def test_functions_of_the_server(server: Server, source: Server) -> None:
    database = register(server, source, prefix="k:*")
    client = server.client()
    client.function_load("#!lua name=lib\nredis.register_function('put', function(keys) redis.call('SET', keys[1], 'f') end)", replace=True)
    client.fcall("put", 1, "k:1")
    drained(server)
    assert database.rows() == {"k:1": "f"}


NUMBERS = [sign * (2**bits + more) for bits in (0, 7, 12, 15, 23, 31) for more in (-1, 0, 1) for sign in (1, -1)] + [2**63 - 1, -(2**63)]
TEXTS = ["", "a", "00", "+5", "1.5", "\xe9", b"\xff\x00", *("x" * length for length in (63, 64, 127, 128, 4095, 4096, 15999, 16383, 20000))]


def test_containers_are_captured_as_they_are(server: Server, source: Server) -> None:
    """Small ones are copied as the server keeps them, others are walked; rows of one call that are alike are copies of each other."""
    database = register(server, source, prefix="k:*")
    client = server.client(decode_responses=False)
    client.config_set("hash-max-listpack-value", 30_000)
    mixed = [*NUMBERS, *TEXTS]
    with client.pipeline(transaction=True) as pipe:
        for number, value in enumerate(mixed):
            pipe.hset(f"k:alike:{number}", mapping={"a": value, "b": number, b"\xfe": "c"})
        for number in range(5):
            pipe.hset(f"k:turned:{number}", mapping={"b": number, "a": "x"} if number % 2 else {"a": "x", "b": number})
        pipe.hset("k:wide", mapping={value: other for value, other in zip(mixed, reversed(mixed))})
        pipe.hset("k:many", mapping={f"field {number}": number for number in range(2000)})
        pipe.sadd("k:numbers", *NUMBERS).sadd("k:texts", *mixed).sadd("k:small", "a", 1, -1)
        pipe.rpush("k:list", *mixed).rpush("k:long list", *range(2000)).zadd("k:sorted", {"a": 1.5, "b": 2, "c": "-inf"})
        pipe.set("k:string", "x" * 100_000).set("k:number", -5)
        pipe.execute()
    kept = {key: client.object("encoding", key) for key in client.keys("k:*")}
    drained(server)
    assert {key: client.object("encoding", key) for key in kept} == kept
    assert {kept[b"k:alike:0"], kept[b"k:wide"], kept[b"k:many"]} == {b"listpack", b"hashtable"}
    expected = {plain(key): plain(value_of(client, key)) for key in kept}
    expected["k:sorted"]["c"] = float("-inf")
    rows = database.rows()
    assert set(rows) == set(expected)
    assert {key: row for key, row in rows.items() if row != expected[key]} == {}


def value_of(client: Any, key: bytes) -> Any:
    """What commands say that a key holds."""
    kind = client.type(key)
    if kind == b"zset":
        return dict(client.zrange(key, 0, -1, withscores=True))
    read = {b"string": client.get, b"hash": client.hgetall, b"set": client.smembers}
    return client.lrange(key, 0, -1) if kind == b"list" else read[kind](key)


def plain(value: Any) -> Any:
    """As the database of these tests keeps it."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return repr(value)
    if isinstance(value, set):
        return sorted(map(plain, value))
    if isinstance(value, dict):
        return {plain(name): plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
