"""Both halves on the same keys: what a command needs of a value that is not in the cache is there before it runs, whatever kind of value
that is. Contract: docs/contract/write-behind.md 2.6 and 2.10."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
import redis

from figures import figures
from helpers import Server, wait_until
from test_write_behind_awaited import LOADER, ROW, blocked
from test_write_behind_halves import both, by, saver
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

# What is there before, the row of user:1, the command, its reply, and the rows behind it.
WHOLE = {
    "RENAMENX over a row": (["SET other a"], '"row"', "RENAMENX other user:1", b":0\r\n", {"user:1": "row"}),
    "COPY over a row": (["SET other a"], '"row"', "COPY other user:1", b":0\r\n", {"user:1": "row"}),
    "COPY in its place": (["SET other a"], '"row"', "COPY other user:1 REPLACE", b":1\r\n", {"user:1": "a"}),
    "SETNX": ([], '"row"', "SETNX user:1 a", b":0\r\n", {"user:1": "row"}),
    "LMOVE to a list": (["RPUSH other b"], '["a"]', "LMOVE other user:1 LEFT RIGHT", b"$1\r\nb\r\n", {"user:1": ["a", "b"]}),
    "PFADD": ([], '"no registers"', "PFADD user:1 a", b"-WRONGTYPE", {"user:1": "no registers"}),
    "PFMERGE": (["PFADD other a"], '"no registers"', "PFMERGE user:1 other", b"-WRONGTYPE", {"user:1": "no registers"}),
    "BITOP": ([], '"row"', "BITOP OR user:2 user:1", b":3\r\n", {"user:1": "row", "user:2": "row"}),
    "a union": ([], "SADD user:1 a b", "SUNIONSTORE user:2 user:1", b":2\r\n", {"user:1": ["a", "b"], "user:2": ["a", "b"]}),
    "a union of scores": ([], "ZADD user:1 1 a", "ZUNIONSTORE user:2 1 user:1", b":1\r\n", {"user:1": {"a": 1.0}, "user:2": {"a": 1.0}}),
    "LMPOP": ([], '["a", "b"]', "LMPOP 2 user:0 user:1 LEFT", b"*2\r\n$6\r\nuser:1\r\n*1\r\n$1\r\na\r\n", {"user:1": ["b"]}),
    "ZMPOP": ([], "ZADD user:1 1 a 2 b", "ZMPOP 1 user:1 MIN", b"*2\r\n$6\r\nuser:1\r\n", {"user:1": {"b": 2.0}}),
    "RENAME": ([], '"row"', "RENAME user:1 user:2", b"+OK\r\n", {"user:2": "row"}),
    "RENAMENX": ([], '"row"', "RENAMENX user:1 user:2", b":1\r\n", {"user:2": "row"}),
    "COPY": ([], '"row"', "COPY user:1 user:2", b":1\r\n", {"user:1": "row", "user:2": "row"}),
    "MSETEX NX": ([], '"row"', "MSETEX 2 user:1 a user:2 b NX", b":0\r\n", {"user:1": "row"}),
    "MSETEX XX": (["SET user:2 b"], '"row"', "MSETEX 2 user:1 a user:2 c XX", b":1\r\n", {"user:1": "a", "user:2": "c"}),
    "MSETEX": ([], '"row"', "MSETEX 1 user:1 nx EX 100", b":1\r\n", {"user:1": "nx"}),
    "a range": ([], "ZADD user:1 1 a", "ZRANGESTORE user:2 user:1 0 -1", b":1\r\n", {"user:1": {"a": 1.0}, "user:2": {"a": 1.0}}),
}
TYPED = """
    def load(key):
        execute('INCR', 'loads')
        text = db.get('row:0:' + key)
        value = None if text is None else json.loads(text)
        kind = db.get('kind')
        return set(value) if kind == 'SADD' and value else Sorted(value) if kind == 'ZADD' and value else value

    read_through('user:*', load, onRegistered=connect)
"""


def forgotten(server: Server, database: Database, row: str) -> None:
    """user:1 has this row, and is not in the cache."""
    if row[0] in "SZ":
        client = server.client()
        client.execute_command(*row.split())
        drained(server, saver(server))
        client.flushall()
        database.client.set("kind", row.split()[0])
        database.client.delete("calls")
    else:
        database.client.set("row:0:user:1", row)


def known(server: Server, words: str) -> None:
    if words.split()[0].lower() not in server.client().execute_command("COMMAND LIST"):
        pytest.skip("the server does not know the command")


@pytest.mark.parametrize("case", WHOLE)
def test_what_a_command_needs_is_loaded_first(server: Server, source: Server, case: str) -> None:
    before, row, words, reply, rows = WHOLE[case]
    known(server, words)
    database = register(server, source, more=TYPED)
    forgotten(server, database, row)
    for command in before:
        server.client().execute_command(*command.split())
    assert server.raw().call(*words.split()).startswith(reply)
    drained(server, saver(server))
    assert {key: sorted(value) if isinstance(value, list) else value for key, value in database.rows().items()} == rows


@pytest.mark.parametrize(
    "case", ["RENAMENX over a row", "COPY over a row", "LMOVE to a list", "BITOP", "a union", "a union of scores", "LMPOP", "RENAME", "COPY", "MSETEX NX"]
)
def test_and_is_refused_where_it_cannot_be(server: Server, source: Server, case: str) -> None:
    before, row, words, _, _ = WHOLE[case]
    known(server, words)
    database = register(server, source, more=TYPED)
    forgotten(server, database, row)
    saved = database.rows()
    for command in before:
        server.client().execute_command(*command.split())
    with pytest.raises(redis.ResponseError, match="LOADFAILED CannotWait"):
        by(server, "MULTI", *words.split())
    drained(server, saver(server))
    assert database.rows() == saved


def test_what_a_command_replaces_is_not_loaded(server: Server, source: Server) -> None:
    """Nor is it needed in a transaction."""
    database = register(server, source, more=TYPED)
    client = server.client()
    client.sadd("other", "a", "b")
    assert client.sunionstore("user:1", "other") == 2
    assert by(server, "MULTI", "SUNIONSTORE", "user:2", "other") == 2
    assert client.execute_command("COPY", "other", "user:3", "REPLACE") == 1
    assert client.get("loads") is None
    drained(server, saver(server))
    assert database.rows() == {f"user:{number}": ["a", "b"] for number in (1, 2, 3)}


EMPTY = ["SUNIONSTORE user:1 nothing", "SINTERSTORE user:1 other nothing", "SDIFFSTORE user:1 other other", "ZRANGESTORE user:1 nothing 0 -1", "BITOP OR user:1 nothing",
         "ZUNIONSTORE user:1 1 nothing", "ZINTERSTORE user:1 2 other nothing", "ZDIFFSTORE user:1 2 other other"]


@pytest.mark.parametrize("way", ["plain", "MULTI", "EVAL"])
@pytest.mark.parametrize("words", EMPTY)
@pytest.mark.parametrize("halves", [True, False], ids=["both halves", "write_behind alone"])
def test_what_becomes_nothing_is_deleted_also_where_it_is_not_in_the_cache(server: Server, source: Server, words: str, way: str, halves: bool) -> None:
    database = both(server, source) if halves else register(server, source)
    database.client.mset({"row:0:user:1": '"row"', "row:0:user:2": '"row"'})
    client = server.client()
    client.sadd("other", "a")
    assert (client.execute_command(*words.split()) if way == "plain" else by(server, way, *words.split())) == 0
    drained(server, saver(server))
    assert database.rows() == {"user:2": "row"}
    assert not halves or client.get("user:1") is None
    # What is made is saved once, and nothing is removed.
    client.sunionstore("user:1", "other")
    drained(server, saver(server))
    assert [(change["event"], change["value"]) for change in database.changes()] == [("del", None), ("sunionstore", ["a"])]


def test_what_becomes_nothing_while_it_is_loaded_stays_nothing(server: Server, source: Server) -> None:
    database = register(server, source, more=LOADER)
    database.client.mset({"row:0:user:1": ROW, "load:hang": 1})
    raw, client = server.raw(), server.client()
    raw.send("HGETALL", "user:1")
    wait_until(lambda: database.client.llen("load:hanging") == 1)
    assert client.sinterstore("user:1", "nothing", "at all") == 0
    drained(server, saver(server))
    database.client.delete("load:hang")
    database.client.rpush("load:go", 1)
    assert raw.read() == b"*0\r\n"
    assert client.hgetall("user:1") == {} == database.rows()


@pytest.mark.parametrize("words", ["BLMOVE other user:1 LEFT RIGHT 0", "BRPOPLPUSH other user:1 0"])
def test_a_blocking_move_to_a_list_that_is_not_in_the_cache(server: Server, source: Server, words: str) -> None:
    """It does not wait for the other list then, and does as ever where this one is there."""
    if server.version < (7, 2):
        pytest.skip("the server lets no module run these commands in a client's place")
    database = both(server, source)
    database.client.set("row:0:user:1", '["a", "b"]')
    client, raw = server.client(), server.raw()
    client.rpush("other", "c")
    assert raw.call(*words.split()) == b"$1\r\nc\r\n"
    whole = client.lrange("user:1", 0, -1)
    assert sorted(whole) == ["a", "b", "c"]
    client.execute_command("PEXPIRE", "user:1", 900)                # It ends soon, and is there.
    raw.send(*words.split())
    wait_until(lambda: client.info("clients")["blocked_clients"] == 1)
    client.persist("user:1")
    client.rpush("other", "d")
    assert raw.read() == b"$1\r\nd\r\n"
    drained(server, saver(server))
    assert sorted(database.row("user:1")) == ["a", "b", "c", "d"]


def test_a_client_that_may_not_wait_saves_no_part(server: Server, source: Server) -> None:
    """Valkey lets a client that is subscribed to channels wait for nobody, and no flag tells of it."""
    database = both(server, source)
    database.client.set("row:0:user:1", '{"name": "Ann", "city": "Bern"}')
    raw = server.raw()
    raw.call("HELLO", "3")
    raw.call("SUBSCRIBE", "news")
    reply = raw.call("HSET", "user:1", "city", "Thun")
    assert reply == b":0\r\n" or reply.startswith(b"-LOADFAILED CannotWait")
    client = server.client()
    assert client.hset("user:1", "city", "Chur") == 0, "it is whole by now"
    drained(server, saver(server))
    assert database.row("user:1") == {"name": "Ann", "city": "Chur"}
    assert raw.call("HSET", "user:1", "city", "Thun") == b":0\r\n", "it is in the cache"


@pytest.mark.parametrize("arguments", ["", "max_queue=1, on_full='error'", "wait=True"])
def test_a_set_is_loaded_as_any_other_value(server: Server, source: Server, arguments: str) -> None:
    """The module puts it there by SADD, for which it waits for nothing."""
    database = register(server, source, arguments, more=TYPED)
    forgotten(server, database, "SADD user:1 a b")
    if "error" in arguments:
        database.client.set("hang", 1)
        server.client().set("user:0", "fills the queue")
        wait_until(lambda: database.client.llen("hanging") == 1)
    assert server.client().smembers("user:1") == {"a", "b"}
    assert server.client().exists("user:1") == 1, "it is kept"
    database.client.delete("hang")
    database.client.rpush("go", 1)
    drained(server, saver(server))
    assert server.client().sadd("user:1", "c") == 1
    drained(server, saver(server))
    assert database.row("user:1") == ["a", "b", "c"]


def test_a_set_that_is_not_saved_yet_is_put_back(server: Server, source: Server) -> None:
    database = register(server, source, "backoff=0.05, max_backoff=0.05", more=TYPED)
    database.client.set("kind", "SADD")
    database.fail(1000)
    client = server.client()
    client.sadd("user:1", "a", "b")
    client.pexpire("user:1", 1)
    wait_until(lambda: client.exists("user:1") == 0)
    assert client.sadd("user:1", "c") == 1
    assert client.smembers("user:1") == {"a", "b", "c"}
    database.fail(0)
    drained(server, saver(server))
    assert database.row("user:1") == ["a", "b", "c"]


def test_what_save_writes_needs_no_room(server: Server, source: Server) -> None:
    server.run("""
        @write_behind('*', max_queue=1, on_full='error', backoff=0.01)
        def save(changes):
            for change in changes:
                execute('SET', 'saved:' + change['key'], change['value'])
    """)
    client = server.client()
    client.set("a", "1")
    wait_until(lambda: client.get("saved:a") == "1")
    assert figures(server)["saveFailures"] == 0


KINDS: dict[str, list[list[Any]]] = {
    "text": [["SET", "user:1", b"\xff\x00"]],
    "number": [["SET", "user:1", "12345678901234567890"], ["APPEND", "user:1", "1"]],
    "bits": [["SETBIT", "user:1", 7777, 1]],
    "hash": [["HSET", "user:1", "a", "1", "", "", b"\xff", b"\x00"]],
    "large hash": [["HSET", "user:1", *(word for number in range(2000) for word in (number, "v" * (number % 90)))]],
    "list": [["RPUSH", "user:1", "a", "", "-5", "99999999999", b"\xff", "x" * 200_000]],
    "set": [["SADD", "user:1", "a", "", b"\xff"]],
    "numbers": [["SADD", "user:1", "1", "-2", "9999999999"]],
    "large set": [["SADD", "user:1", *range(5000), "a"]],
    "sorted set": [["ZADD", "user:1", "1", "a", "-inf", "b", "inf", "c", "0.1", "d", "1e-300", "e", "3.0000000000000004", ""]],
}
READERS: dict[bytes, list[str]] = {
    b"string": ["GET", "user:1"],
    b"hash": ["HGETALL", "user:1"],
    b"list": ["LRANGE", "user:1", "0", "-1"],
    b"set": ["SMEMBERS", "user:1"],
    b"zset": ["ZRANGE", "user:1", "0", "-1", "WITHSCORES"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_is_not_saved_yet_is_put_back_as_it_was(server: Server, source: Server, kind: str) -> None:
    database = both(server, source, saving="backoff=0.05, max_backoff=0.05")
    database.fail(1_000_000)
    client = server.client(decode_responses=False)
    for words in KINDS[kind]:
        client.execute_command(*words)
    reader = READERS[client.type("user:1")]
    value = client.execute_command(*reader)
    client.pexpire("user:1", 1)
    wait_until(lambda: client.exists("user:1") == 0)
    assert client.execute_command(*reader) == value
    assert client.exists("user:1") == 1
    database.fail(0)
    drained(server, saver(server))


def test_a_loader_that_ends_while_a_change_of_a_part_waits(server: Server, source: Server) -> None:
    """Whoever only reads finds nothing."""
    database = register(server, source, "wait=True")
    server.run(f"import json, redis\ndb = redis.Redis(port={source.port}, decode_responses=True)\n{textwrap.dedent(LOADER)}")
    database.client.mset({"row:0:user:1": ROW, "load:hang": 1})
    writer, reader = server.raw(), server.raw()
    writer.send("HSET", "user:1", "city", "Thun")
    blocked(server)
    reader.send("HGET", "user:1", "city")
    blocked(server, 2)
    loader = next(entry["id"] for entry in server.registrations() if entry["reader"] == "ReadThrough")
    assert server.client().execute_command("RG.UNREGISTER", loader) == "OK"
    assert writer.read() == b"-LOADFAILED Aborted\r\n"
    assert reader.read() == b"$-1\r\n"
    database.client.delete("load:hang")
    database.client.rpush("load:go", 1)
    drained(server)
    assert database.row("user:1") == {"name": "Ann", "city": "Bern", "age": "7"}
