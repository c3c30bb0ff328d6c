"""`write_behind`, alone and with `read_through`, where its databases change under it, are saved, loaded and handed on. Contract:
docs/contract/write-behind.md 2.1, 2.3, 2.6 and 2.7."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from clock import Clock
from figures import wait_for
from helpers import Server, wait_until
from test_write_behind_halves import both, saver
from test_write_behind_roles import AOF, OUTAGE, go_on, hang, linked
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

FAST = "backoff=0.05, max_backoff=0.05"


def at(server: Server, db: int) -> Any:
    client = server.client()
    client.execute_command("SELECT", db)
    return client


def loads_slowly(server: Server, source: Server, arguments: str = "", saving: str = "") -> Database:
    """Both halves; each load says that it has begun, and waits."""
    return register(server, source, saving, more=f"""
    def load(key):
        db.rpush('begun', key)
        db.blpop('end', 20)
        text = db.get('row:0:' + key)
        return None if text is None else json.loads(text)

    read_through('user:*', load, onRegistered=connect, {arguments})
    """)


def test_a_transaction_that_selects_databases(server: Server, source: Server) -> None:
    database = both(server, source)
    database.client.set("row:0:user:1", '{"a": "1"}')
    raw = server.raw()
    raw.call("SELECT", 2)
    raw.call("MULTI")
    for words in (["SELECT", 3], ["HSET", "user:1", "b", "2"], ["SET", "user:2", "x"], ["DEL", "user:3"], ["HSET", "user:3", "c", "3"], ["SELECT", 0], ["DEL", "user:4"], ["SET", "user:2", "y"]):
        assert raw.call(*words) == b"+QUEUED\r\n"
    replies = raw.call("EXEC")
    assert replies.count(b"-LOADFAILED CannotWait") == 1, replies
    assert raw.call("SET", "user:5", "in 0") == b"+OK\r\n"
    drained(server, saver(server))
    changes = {(change["db"], change["key"]): change["value"] for change in database.changes()}
    assert changes == {(3, "user:2"): "x", (3, "user:3"): {"c": "3"}, (0, "user:4"): None, (0, "user:2"): "y", (0, "user:5"): "in 0"}


def test_databases_are_swapped_between_a_change_and_its_save(server: Server, source: Server) -> None:
    """What was changed in a database is saved as a change of that."""
    database = register(server, source, f"batch=1, {FAST}")
    hang(database)
    client, other = server.client(), at(server, 1)
    client.set("user:1", "zero")
    wait_until(lambda: database.client.llen("hanging") == 1)
    client.set("user:2", "zero")
    other.set("user:2", "one")
    client.execute_command("SWAPDB", 0, 1)
    other.set("user:1", "one, behind")
    client.set("user:3", "zero, behind")
    go_on(database)
    drained(server)
    assert {key: database.row(key) for key in ("user:1", "user:2", "user:3")} == {"user:1": "zero", "user:2": "zero", "user:3": "zero, behind"}
    assert {key: database.row(key, 1) for key in ("user:1", "user:2", "user:3")} == {"user:1": "one, behind", "user:2": "one", "user:3": None}


@pytest.mark.parametrize("words", [["SWAPDB", "0", "1"], ["FLUSHDB"], ["FLUSHALL"], ["FLUSHALL", "ASYNC"], ["DEL", "user:1"]], ids=" ".join)
def test_what_is_there_is_another_before_a_load_lands(server: Server, source: Server, words: list[str]) -> None:
    """The value is loaded again for who waits, and a part of it is changed then."""
    database = loads_slowly(server, source)
    database.client.set("row:0:user:1", '{"a": "old"}')
    raw, client = server.raw(), server.client()
    raw.send("HSET", "user:1", "b", "2")
    wait_until(lambda: database.client.llen("begun") == 1)
    client.execute_command(*words)
    database.client.set("row:0:user:1", '{"a": "new"}')
    database.client.rpush("end", 1, 1, 1)
    if words[0] == "DEL":
        # That deletes the row. Where its save comes between a load and the command, the client hears that, and tries again.
        database.client.rpush("end", *range(20))
        while (reply := raw.read()).startswith(b"-TRYAGAIN the cache has forgotten"):
            raw.send("HSET", "user:1", "b", "2")
        assert reply in (b":1\r\n", b":0\r\n")
        drained(server, saver(server))
        assert database.row("user:1") in ({"b": "2"}, {"a": "new", "b": "2"})
        return
    assert raw.read() == b":1\r\n"
    assert database.client.llen("begun") == 2
    drained(server, saver(server))
    assert database.row("user:1") == {"a": "new", "b": "2"}


@pytest.mark.parametrize("words", [["FLUSHALL"], ["FLUSHDB"], ["FLUSHALL", "ASYNC"], ["DEBUG", "RELOAD"], ["SWAPDB", "0", "3"]], ids=" ".join)
def test_data_go_while_loads_and_saves_are_under_way(server: Server, source: Server, words: list[str]) -> None:
    """Nothing that was written is lost, whoever waits has a reply, and the rows are whole."""
    database = loads_slowly(server, source, saving=f"batch=1, {FAST}")
    for number in range(10):
        database.client.set(f"row:0:user:{number}", '{"a": "1"}')
    client, raws = server.client(), [server.raw() for _ in range(5)]
    hang(database)
    client.set("user:first", "x")
    wait_until(lambda: database.client.llen("hanging") == 1)
    client.set("user:second", "y")
    for number, raw in enumerate(raws):
        raw.send("HSET", f"user:{number}", "b", "2")
    wait_until(lambda: database.client.llen("begun") >= 1 and client.info("clients")["blocked_clients"] == 5)
    client.execute_command(*words)
    database.client.rpush("end", *range(30))
    go_on(database)
    assert [raw.read() for raw in raws] == [b":1\r\n"] * 5
    drained(server, saver(server))
    assert database.rows() == {"user:first": "x", "user:second": "y", **{f"user:{number}": {"a": "1", **({"b": "2"} if number < 5 else {})} for number in range(10)}}


def test_a_key_moves_while_its_change_is_not_saved(server: Server, source: Server) -> None:
    database = register(server, source, FAST)
    database.fail(OUTAGE)
    client = server.client()
    client.hset("user:1", "a", "1")
    assert client.move("user:1", 3)
    at(server, 3).hset("user:1", "b", "2")
    wait_for(server, queued=2)
    database.fail(0)
    drained(server)
    assert database.row("user:1") is None and database.row("user:1", 3) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("how", ["DEBUG RELOAD", "save", "aof"])
def test_entries_of_several_databases_outlive_the_process(start_server: Callable[..., Server], source: Server, how: str) -> None:
    server = start_server(args=AOF if how == "aof" else ["--enable-debug-command", "yes"])
    database = both(server, source, saving=FAST)
    database.fail(OUTAGE)
    client, third = server.client(), at(server, 3)
    client.set("user:1", "zero")
    third.set("user:1", "three")
    third.hset("user:2", "f", "three")
    client.delete("user:3")
    third.delete("user:3")
    wait_for(server, saver(server), queued=5)
    if how == "DEBUG RELOAD":
        client.execute_command(*how.split())
    else:
        if how == "save":
            client.save()
        server.restart(kill=True)
    wait_for(server, saver(server), queued=5)
    third = at(server, 3)
    server.client().flushall()
    assert third.get("user:1") == "three" and third.hget("user:2", "f") == "three" and third.get("user:3") is None
    assert server.client().get("user:1") == "zero", "misses are answered from the queue"
    database.fail(0)
    drained(server, saver(server))
    assert {key: (database.row(key), database.row(key, 3)) for key in ("user:1", "user:2", "user:3")} == {
        "user:1": ("zero", "three"), "user:2": (None, {"f": "three"}), "user:3": (None, None)}  # fmt: skip


def test_a_replica_is_promoted_with_entries_of_several_databases(start_server: Callable[..., Server], source: Server) -> None:
    master, replica = start_server(), start_server()
    database = register(master, source, FAST)
    replica.client().replicaof(master.host, master.port)
    linked(replica)
    database.fail(OUTAGE)
    client, third = master.client(), at(master, 3)
    third.set("user:1", "three")
    client.set("user:1", "zero")
    third.hset("user:2", "f", "three")
    with third.pipeline() as pipe:
        pipe.execute_command("SELECT", 5)
        pipe.set("user:5", "five")
        pipe.execute_command("SELECT", 3)
        pipe.execute()
    client.wait(1, 5000)
    wait_for(replica, queued=4)
    master.stop(kill=True)
    replica.client().replicaof("no", "one")
    database.fail(0)
    at(replica, 3).hset("user:2", "g", "more")
    drained(replica)
    assert (database.row("user:1"), database.row("user:1", 3), database.row("user:2", 3), database.row("user:5", 5)) == (
        "zero", "three", {"f": "three", "g": "more"}, "five")  # fmt: skip


@pytest.mark.parametrize("way", ["restart", "promotion", "reload"])
def test_ids_ascend_although_the_clock_is_set_back(start_server: Callable[..., Server], source: Server, way: str) -> None:
    """Also where nothing was in the queue when the process ended."""
    clock = Clock()
    server = start_server(args=AOF, environment=clock.environment)
    database = register(server, source, f"coalesce=False, {FAST}")
    replica = start_server(environment=clock.environment) if way == "promotion" else server
    if way == "promotion":
        replica.client().replicaof(server.host, server.port)
        linked(replica)
    client = server.client()
    client.set("user:1", "a")
    clock.jump(-3600)
    client.set("user:1", "b")
    drained(server)
    if way == "promotion":
        client.wait(1, 5000)
        wait_for(replica, queued=0)
        wait_until(lambda: replica.own.get("user:1") == "b")
        replica.client().replicaof("no", "one")
    elif way == "restart":
        server.restart(kill=True)
    else:
        client.execute_command("DEBUG", "RELOAD")
    clock.jump(-3600)
    replica.client().set("user:1", "c")
    drained(replica)
    clock.jump(10_000)
    replica.client().set("user:1", "d")
    drained(replica)
    ids = [tuple(map(int, change["id"].split("-"))) for change in database.changes()]
    assert [change["value"] for change in database.changes()] == list("abcd")
    assert ids == sorted(set(ids)), ids
