"""`write_behind` where clients go, values are odd, memory ends and registrations are replaced in the middle. Contract:
docs/contract/write-behind.md chapter 1, 2.7, 2.8 and 2.9."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any, Callable

import pytest
import redis

from figures import figures, wait_for
from helpers import Server, wait_until
from test_write_behind_halves import both, saver
from test_write_behind_roles import AOF, OUTAGE, go_on, hang, linked, waiting
from write_behind import SAVE, Database, drained, register

pytestmark = pytest.mark.matrix

FAST = "backoff=0.05, max_backoff=0.05"


@pytest.mark.parametrize("way", ["closes", "CLIENT KILL", "CLIENT UNBLOCK", "CLIENT UNBLOCK ERROR"])
def test_a_client_goes_while_it_waits_for_its_save(server: Server, source: Server, way: str) -> None:
    database = register(server, source, f"wait=True, timeout=600, {FAST}")
    database.fail(OUTAGE)
    raw, client = server.raw(), server.client()
    own = int(raw.call("CLIENT", "ID")[1:])
    raw.send("SET", "user:1", "a")
    wait_until(lambda: waiting(server, "save") == 1)
    if way == "closes":
        raw.close()
        wait_until(lambda: not client.client_list(client_id=[own]))
    elif way == "CLIENT KILL":
        client.client_kill_filter(_id=str(own))
        wait_until(lambda: not client.client_list(client_id=[own]))
    else:
        assert client.client_unblock(own, error=way.endswith("ERROR")) in (0, False), "who waits for a module is not let go so"
    second = server.raw()
    second.send("SET", "user:2", "b")
    wait_until(lambda: waiting(server, "save") == (1 if "UNBLOCK" not in way and waiting(server, "save") == 1 else 2))
    database.fail(0)
    assert second.read() == b"+OK\r\n"
    if "UNBLOCK" in way:
        assert raw.read() == b"+OK\r\n"
    drained(server)
    wait_until(lambda: waiting(server, "save") == 0)
    assert database.rows() == {"user:1": "a", "user:2": "b"}


REPLIES = [["HSET", "user:h", "f", "1"], ["ZADD", "user:z", "INCR", "1.5", "m"], ["SADD", "user:s", "a"], ["SPOP", "user:s", "5"], ["HINCRBYFLOAT", "user:h", "f", "0.5"], ["SET", "user:t", "x"],
           ["SET", "user:t", "y", "GET"], ["GETDEL", "user:t"], ["ZPOPMIN", "user:z"], ["GETDEL", "user:t"], ["RPUSH", "user:l", "a", "b"], ["LPOP", "user:l", "2"], ["LPOP", "user:l"]]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("way", ["wait", "room"])
def test_replies_are_those_of_the_server(server: Server, source: Server, protocol: int, way: str) -> None:
    """Of commands that waited, in both protocols."""
    database = register(server, source, f"wait=True, {FAST}" if way == "wait" else f"max_queue=1, {FAST}")
    raw, plain = server.raw(), source.raw()
    for one in (raw, plain):
        one.call("HELLO", protocol)
    for words in REPLIES:
        if way == "room":
            database.fail(OUTAGE)
            server.client().set("user:full", "x")
            wait_for(server, queued=1)
        raw.send(*words)
        if way == "room":
            wait_until(lambda: waiting(server) == 1 or figures(server)["queued"] > 1 or words[0] in ("GETDEL", "LPOP"), message=str(words))
            database.fail(0)
        assert raw.read() == plain.call(*words), words
        if way == "room":
            drained(server)


def test_a_client_is_reset(server: Server, source: Server) -> None:
    database = both(server, source)
    raw = server.raw()
    raw.call("SELECT", 3)
    assert raw.call("SET", "user:1", "three") == b"+OK\r\n"
    raw.call("MULTI")
    raw.call("SET", "user:1", "never")
    assert raw.call("RESET") == b"+RESET\r\n"
    assert raw.call("SET", "user:1", "zero") == b"+OK\r\n"
    assert raw.call("HSET", "user:2", "f", "1") == b":1\r\n", "it can wait again"
    drained(server, saver(server))
    assert (database.row("user:1"), database.row("user:1", 3), database.row("user:2")) == ("zero", "three", {"f": "1"})


def test_a_pipeline_into_a_full_queue(server: Server, source: Server) -> None:
    """Each command has its own reply, in order."""
    database = register(server, source, f"max_queue=3, on_full='error', {FAST}")
    database.fail(OUTAGE)
    client = server.client()
    client.mset({"user:1": "a", "user:2": "b", "user:3": "c"})
    wait_for(server, queued=3)
    with client.pipeline(transaction=False) as pipe:
        pipe.set("user:4", "d").set("free", "x").hset("user:5", "f", 1).get("user:1").incr("user:6").delete("user:7").set("free", "y")
        replies = pipe.execute(raise_on_error=False)
    assert [type(reply).__name__ if isinstance(reply, Exception) else reply for reply in replies] == ["ResponseError", True, "ResponseError", "a", "ResponseError", "ResponseError", True]
    assert all(str(reply).startswith("QUEUEFULL 3 changes") for reply in replies if isinstance(reply, Exception))
    with client.pipeline(transaction=True) as pipe:
        pipe.set("user:4", "in a transaction").get("free")
        replies = pipe.execute(raise_on_error=False)
    assert str(replies[0]).startswith("QUEUEFULL") and replies[1] == "y"
    database.fail(0)
    drained(server)
    assert database.rows() == {"user:1": "a", "user:2": "b", "user:3": "c"}


def test_a_full_queue_at_the_memory_limit(server: Server, source: Server) -> None:
    """Who is let in where there is no memory hears that, and who frees memory is let in."""
    database = register(server, source, f"max_queue=2, {FAST}")
    client = server.client()
    client.rpush("user:list", "a", "b")
    drained(server)
    database.fail(OUTAGE)
    client.mset({"user:1": "a", "user:2": "b"})
    wait_for(server, queued=2)
    raws = [server.raw() for _ in range(3)]
    raws[0].send("SET", "user:3", "more")
    raws[1].send("LPOP", "user:list")
    raws[2].send("DEL", "user:1", "user:4")
    wait_until(lambda: waiting(server) == 3)
    client.config_set("maxmemory", 1)
    try:
        assert server.raw().call("SET", "user:5", "x").startswith(b"-OOM")
        database.fail(0)
        assert raws[0].read().startswith(b"-OOM")
        assert (raws[1].read(), raws[2].read()) == (b"$1\r\na\r\n", b":1\r\n")
        drained(server)
    finally:
        client.config_set("maxmemory", 0)
    assert database.rows() == {"user:2": "b", "user:list": ["b"]}


@pytest.mark.parametrize("how", ["save", "aof", "replica"])
def test_a_huge_value(start_server: Callable[..., Server], source: Server, how: str) -> None:
    """50 MB, while it is not saved: in a file, at a replica, put back into the cache."""
    server = start_server(args=AOF if how == "aof" else [])
    database = Database(source)
    server.run(f"""
        import hashlib, json, redis

        def connect():
            global db
            db = redis.Redis(port={source.port}, decode_responses=True)

        @write_behind('user:*', onRegistered=connect, {FAST})
        def save(changes):
            if db.exists('outage'):
                raise ConnectionError('away')
            for change in changes:
                value = change['value']
                text = value['f'] if isinstance(value, dict) else value
                data = text if isinstance(text, bytes) else text.encode()
                db.set('sum:' + change['key'], hashlib.sha1(data).hexdigest() + ':%d' % len(data))
    """)
    database.client.set("outage", 1)
    binary, plain = bytes(range(256)) * 200_000, "x" * 50_000_000
    client = server.client()
    client.set("user:1", binary)
    client.hset("user:2", "f", plain)
    wait_for(server, queued=2)
    if how == "save":
        client.save()
    if how == "replica":
        other = start_server()
        other.client().replicaof(server.host, server.port)
        linked(other)
        wait_for(other, queued=2)
        server.stop(kill=True)
        other.client().replicaof("no", "one")
        server = other
    else:
        server.restart(kill=True)
    wait_for(server, queued=2)
    database.client.delete("outage")
    wait_until(lambda: figures(server)["queued"] == 0, 30)
    for key, data in (("user:1", binary), ("user:2", plain.encode())):
        assert database.client.get("sum:" + key) == f"{hashlib.sha1(data).hexdigest()}:{len(data)}"


def test_odd_keys_and_values(server: Server, source: Server) -> None:
    database = Database(source)
    server.run(f"""
        import redis, pickle

        def connect():
            global db
            db = redis.Redis(port={source.port})

        @write_behind('*', onRegistered=connect, events=None, {FAST})
        def save(changes):
            for change in changes:
                db.hset('saved', change['key'], pickle.dumps(change['value'], 2))
    """)
    values: dict[bytes, Any] = {b"": "", b"\x00": "\x00", b"\xff\xfe": b"\xff\x00", b"a b\r\nc": "d\r\n*1", "\u20ac".encode(): "\u20ac", b"k" * 100_000: "long",
                                b"hash": {"": "", b"\xff": b"\xfe", "f": "\x00"}, b"list": ["", b"\xff", ""], b"set": {"", b"\xff"}, b"zset": {"": 0.0, b"\xff": float("inf"), "m": -0.5}}  # fmt: skip
    raw = server.raw()
    for key, value in values.items():
        if isinstance(value, dict) and key == b"hash":
            raw.call("HSET", key, *[word for pair in value.items() for word in pair])
        elif isinstance(value, dict):
            raw.call("ZADD", key, *[word for member, score in value.items() for word in (str(score), member)])
        elif isinstance(value, list):
            raw.call("RPUSH", key, *value)
        elif isinstance(value, set):
            raw.call("SADD", key, *value)
        else:
            raw.call("SET", key, value)
    wait_until(lambda: figures(server)["queued"] == 0)
    plain = redis.Redis(port=source.port)
    saved = plain.hgetall("saved")
    assert {key: pickle.loads(value) for key, value in saved.items()} == values
    raw.call("DEL", *values)
    wait_until(lambda: figures(server)["queued"] == 0)
    saved = plain.hgetall("saved")
    assert {key: pickle.loads(value) for key, value in saved.items()} == dict.fromkeys(values)


OPTIONS = ["coalesce=False", "max_queue=1", "wait=True", "ordered='all'", "batch=1", "max_tries=2, dead_letter='dead'", "events=['del']", "interval=0.2", "on_full='error', max_queue=2", "max_queue_bytes=10"]


def upgrade(server: Server, source: Server, arguments: str) -> None:
    script = SAVE.format(port=source.port) + f"\nwrite_behind('user:*', save, onRegistered=connect, {FAST}, {arguments})\n"
    assert server.client().execute_command("RG.PYEXECUTE", script, "ID", "users", "UPGRADE") == "OK"


@pytest.mark.parametrize("after", OPTIONS)
@pytest.mark.parametrize("before", ["", "coalesce=False", "ordered='all'"])
def test_other_options_go_on_with_the_queue(server: Server, source: Server, before: str, after: str) -> None:
    upgrade(server, source, before)
    database = Database(source)
    hang(database)
    client = server.client()
    client.set("user:0", "first")
    wait_until(lambda: database.client.llen("hanging") == 1)
    for number in range(20):
        client.set(f"user:{number % 5}", number)
        client.hset(f"user:h{number % 3}", f"f{number}", number)
    client.delete("user:4")
    upgrade(server, source, after)
    assert figures(server)["queued"] >= 8
    go_on(database)
    drained(server)
    hashes = {f"user:h{rest}": {f"f{number}": str(number) for number in range(20) if number % 3 == rest} for rest in range(3)}
    assert database.rows() == {**{f"user:{rest}": str(15 + rest) for rest in range(4)}, **hashes}
    orders: dict[str, list[tuple[int, ...]]] = {}
    for change in database.changes():
        orders.setdefault(change["key"], []).append(tuple(map(int, change["id"].split("-"))))
    assert all(ids == sorted(ids) for ids in orders.values()), "in order by key"


def test_a_queue_ends_in_the_middle_of_a_call(server: Server, source: Server) -> None:
    """With clients that wait for room and behind their commands."""
    upgrade(server, source, "wait=True, timeout=600, max_queue=2")
    database = Database(source)
    hang(database)
    raws = [server.raw() for _ in range(3)]
    raws[0].send("SET", "user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    raws[1].send("SET", "user:2", "b")
    wait_for(server, queued=2)
    raws[2].send("SET", "user:3", "c")
    wait_until(lambda: waiting(server) == 1)
    client = server.client()
    [entry] = server.registrations()
    assert server.raw().call("RG.UNREGISTER", entry["id"]).startswith(b"-")
    assert client.execute_command("RG.UNREGISTER", entry["id"], "ABORTPENDING") == "OK"
    replies = [raw.read() for raw in raws]
    assert replies[2] == b"+OK\r\n" and client.get("user:3") == "c"
    assert all(reply.startswith(b"-SAVEFAILED") for reply in replies[:2]), replies
    assert waiting(server) == waiting(server, "save") == 0
    upgrade(server, source, "")
    client.set("user:4", "d")
    go_on(database)
    drained(server)
    wait_until(lambda: database.row("user:4") == "d")
    assert database.row("user:2") is None and database.row("user:3") is None
