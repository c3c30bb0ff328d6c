"""Both halves with `stale=`: a part of a stale value is changed only when its rest is loaded anew, since the rest is saved with it and somebody
else may have changed the row. Contract: docs/contract/write-behind.md 2.6."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from figures import figures, wait_for
from helpers import Server, as_dict, wait_until
from test_write_behind_halves import WAYS, by, saver
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

BOTH = """
    def load(key):
        db.rpush('loads', key)
        if db.exists('hold'):
            db.blpop('release', 20)
        text = db.get('row:0:' + key)
        if text == 'down':
            raise ConnectionError('the database is away')
        value = None if text is None else json.loads(text)
        return {value}

    read_through('user:*', load, onRegistered=connect, {arguments})
"""
STALE = "ttl=0.3, stale=1000, backoff=0, max_backoff=0"


def both(server: Server, source: Server, arguments: str = STALE, saving: str = "", value: str = "value", words: tuple[str, ...] = ()) -> Database:
    """Registers both halves, with a row of each type."""
    database = register(server, source, saving, more=BOTH.format(arguments=arguments, value=value), words=words)
    for key, row in ROWS.items():
        database.client.set("row:0:" + key, row)
    return database


ROWS = {"user:hash": '{"name": "Ann", "age": "1"}', "user:text": '"7"', "user:list": '["a"]'}
NEWER = {"user:hash": '{"name": "Eve", "age": "5"}', "user:text": '"70"', "user:list": '["b"]'}


def state(server: Server, key: str) -> str:
    """What RG.KEYINFO says of a key."""
    return str(as_dict(as_dict(server.own.execute_command("RG.KEYINFO", key))["read_through"][0])["state"])


def make_stale(server: Server, database: Database, *keys: str) -> None:
    """Loads the keys, lets their time pass, and somebody else change the rows."""
    client = server.client()
    for key in keys:
        {"user:hash": client.hgetall, "user:text": client.get, "user:list": lambda key: client.lrange(key, 0, -1)}[key](key)
    for key in keys:
        wait_until(lambda: state(server, key) == "stale", message=f"{key} is stale")
        database.client.set("row:0:" + key, NEWER[key])
    database.client.delete("loads")


def loads(database: Database) -> int:
    return database.client.llen("loads")


@pytest.mark.parametrize(
    "command, reply, row",
    [
        ("HSET user:hash city Bern", 1, {"name": "Eve", "age": "5", "city": "Bern"}),
        ("HINCRBY user:hash age 2", 7, {"name": "Eve", "age": "7"}),
        ("HDEL user:hash name", 1, {"age": "5"}),
        ("INCR user:text", 71, "71"),
        ("APPEND user:text 1", 3, "701"),
        ("SET user:text x XX", "OK", "x"),
        ("RPUSH user:list c", 2, ["b", "c"]),
    ],
)
def test_a_part_is_changed_of_what_is_loaded_anew(server: Server, source: Server, command: str, reply: Any, row: Any) -> None:
    database = both(server, source)
    key = command.split()[1]
    make_stale(server, database, key)
    assert server.raw().call(*command.split()) == (b"+OK\r\n" if reply == "OK" else b":%d\r\n" % reply)
    assert loads(database) == 1
    drained(server, saver(server))
    assert database.row(key) == row
    assert figures(server, 1 - saver(server))["misses"] == 2, "the first read, and this"


def test_reads_go_on_and_are_given_the_old_value(server: Server, source: Server) -> None:
    database = both(server, source)
    make_stale(server, database, "user:hash")
    database.client.set("hold", 1)
    raw = server.raw()
    raw.send("HSET", "user:hash", "city", "Bern")
    wait_until(lambda: loads(database) == 1)
    assert server.client().hgetall("user:hash") == {"name": "Ann", "age": "1"}
    database.client.delete("hold")
    database.client.rpush("release", 1)
    assert raw.read() == b":1\r\n"
    assert server.client().hgetall("user:hash") == {"name": "Eve", "age": "5", "city": "Bern"}
    assert loads(database) == 1


@pytest.mark.parametrize("on_error", ["error", "miss"])
def test_nothing_is_done_while_the_database_is_down(server: Server, source: Server, on_error: str) -> None:
    database = both(server, source, STALE + f", on_error={on_error!r}")
    make_stale(server, database, "user:hash")
    database.client.set("row:0:user:hash", "down")
    assert server.raw().call("HSET", "user:hash", "city", "Bern").startswith(b"-LOADFAILED ConnectionError")
    assert server.client().hgetall("user:hash") == {"name": "Ann", "age": "1"}, "readers have the old one"
    assert figures(server, saver(server))["captured"] == 0
    database.client.set("row:0:user:hash", NEWER["user:hash"])
    assert server.client().hset("user:hash", "city", "Bern") == 1
    drained(server, saver(server))
    assert database.row("user:hash") == {"name": "Eve", "age": "5", "city": "Bern"}


def test_what_is_not_saved_yet_is_newer_than_the_database(server: Server, source: Server) -> None:
    database = both(server, source)
    server.own.execute_command("RG.CONFIGSET", "WriteBehindSaving", "no")
    try:
        client = server.client()
        client.hgetall("user:hash")
        client.hset("user:hash", "city", "Bern")
        wait_until(lambda: state(server, "user:hash") == "stale")
        database.client.set("row:0:user:hash", NEWER["user:hash"])
        before = loads(database)
        client.hset("user:hash", "city", "Thun")
        assert by(server, "MULTI", "HINCRBY", "user:hash", "age", "1") == 2
        assert loads(database) == before
    finally:
        server.own.execute_command("RG.CONFIGSET", "WriteBehindSaving", "yes")
    drained(server, saver(server))
    assert database.row("user:hash") == {"name": "Ann", "age": "2", "city": "Thun"}


@pytest.mark.parametrize("way", ["MULTI", "EVAL", "run", "run_async"])
def test_who_cannot_wait_is_refused(server: Server, source: Server, way: str) -> None:
    database = both(server, source)
    server.run(WAYS)
    make_stale(server, database, "user:hash")
    with pytest.raises(redis.ResponseError, match="LOADFAILED CannotWait"):
        by(server, way, "HSET", "user:hash", "city", "Bern")
    assert figures(server, saver(server))["captured"] == 0 and loads(database) == 0
    assert server.client().hgetall("user:hash") == {"name": "Ann", "age": "1"}


def test_a_unit_that_writes_the_whole_may_change_parts_of_that(server: Server, source: Server) -> None:
    database = both(server, source)
    make_stale(server, database, "user:hash", "user:text")
    with server.client().pipeline() as transaction:
        transaction.delete("user:hash")
        transaction.hset("user:hash", "name", "Joe")
        transaction.hset("user:hash", "age", "3")
        transaction.set("user:text", "x", keepttl=True)
        transaction.append("user:text", "y")
        assert transaction.execute() == [1, 1, 1, True, 2]
    drained(server, saver(server))
    assert database.row("user:hash") == {"name": "Joe", "age": "3"} and database.row("user:text") == "xy"
    assert loads(database) == 0


@pytest.mark.parametrize("command, row", [("SET user:text whole", "whole"), ("DEL user:text", None), ("UNLINK user:text", None)])
def test_whole_values_load_nothing(server: Server, source: Server, command: str, row: Any) -> None:
    database = both(server, source)
    make_stale(server, database, "user:text")
    server.client().execute_command(*command.split())
    drained(server, saver(server))
    assert database.row("user:text") == row and loads(database) == 0


def test_a_row_that_is_gone(server: Server, source: Server) -> None:
    """As for a key that is missing: what the client writes is all of it."""
    database = both(server, source)
    make_stale(server, database, "user:hash")
    database.client.delete("row:0:user:hash")
    assert server.client().hset("user:hash", "city", "Bern") == 1
    drained(server, saver(server))
    assert database.row("user:hash") == {"city": "Bern"}


def test_a_value_that_is_not_to_be_kept_takes_the_place_all_the_same(server: Server, source: Server) -> None:
    database = both(server, source, value="Loaded(value, ttl=0) if db.exists('not kept') else value")
    make_stale(server, database, "user:hash")
    database.client.set("not kept", 1)
    assert server.client().hset("user:hash", "city", "Bern") == 1
    drained(server, saver(server))
    assert database.row("user:hash") == {"name": "Eve", "age": "5", "city": "Bern"}


def test_a_value_that_finds_no_room_is_changed_by_nobody(server: Server, source: Server) -> None:
    database = both(server, source)
    make_stale(server, database, "user:hash")
    client = server.client()
    client.config_set("maxmemory-policy", "noeviction")
    database.client.set("hold", 1)
    raw = server.raw()
    raw.send("HDEL", "user:hash", "name")
    wait_until(lambda: loads(database) == 1)
    client.config_set("maxmemory", 1)
    try:
        database.client.delete("hold")
        database.client.rpush("release", 1)
        assert raw.read().startswith(b"-OOM")
    finally:
        client.config_set("maxmemory", 0)
    assert figures(server, saver(server))["captured"] == 0
    assert client.hdel("user:hash", "name") == 1
    drained(server, saver(server))
    assert database.row("user:hash") == {"age": "5"}


def test_several_clients_wait_for_one_load(server: Server, source: Server) -> None:
    database = both(server, source, "ttl=2, stale=1000", "wait=True, timeout=100")
    make_stale(server, database, "user:text")
    database.client.set("hold", 1)
    raws = [server.raw() for _ in range(5)]
    for raw in raws:
        raw.send("INCR", "user:text")
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == len(raws))
    database.client.delete("hold")
    database.client.rpush("release", 1)
    assert sorted(raw.read() for raw in raws) == [b":%d\r\n" % number for number in range(71, 76)]
    assert database.row("user:text") == "75" and loads(database) == 1


def test_who_waited_for_room_until_the_value_was_stale(server: Server, source: Server) -> None:
    database = both(server, source, STALE.replace("0.3", "2"), "max_queue=1")
    client, raw = server.client(), server.raw()
    database.client.set("hang", 1)
    client.set("user:full", "x")
    wait_until(lambda: database.client.llen("hanging") == 1)
    client.hgetall("user:hash")
    raw.send("HINCRBY", "user:hash", "age", 1)
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == 1)
    assert figures(server, saver(server))["waitedForRoom"] == 1
    wait_until(lambda: state(server, "user:hash") == "stale")
    database.client.set("row:0:user:hash", NEWER["user:hash"])
    database.client.delete("hang")
    database.client.rpush("go", 1)
    assert raw.read().startswith(b"-TRYAGAIN the cache has forgotten")
    assert raw.call("HINCRBY", "user:hash", "age", 1) == b":6\r\n"
    drained(server, saver(server))
    assert database.row("user:hash") == {"name": "Eve", "age": "6"}


def test_a_registration_that_is_replaced_while_somebody_waits(server: Server, source: Server) -> None:
    database = both(server, source, words=("ID", "users"))
    make_stale(server, database, "user:hash")
    database.client.set("hold", 1)
    raw = server.raw()
    raw.send("HINCRBY", "user:hash", "age", 1)
    wait_until(lambda: loads(database) == 1)
    both(server, source, words=("ID", "users", "UPGRADE"))
    database.client.set("row:0:user:hash", NEWER["user:hash"])
    database.client.delete("hold")
    database.client.rpush("release", 1, 1)
    reply = raw.read()
    assert reply == b":6\r\n" or reply.startswith(b"-TRYAGAIN the cache has forgotten"), reply
    drained(server, saver(server))
    assert database.row("user:hash")["age"] == ("6" if reply == b":6\r\n" else "5")


@pytest.mark.parametrize("command", ["HSET", "HGET"])
def test_commands_that_the_script_names(server: Server, source: Server, command: str) -> None:
    """Those wait that it names."""
    database = both(server, source, STALE + f", commands=['HGETALL', {command!r}]")
    make_stale(server, database, "user:hash")
    assert server.client().hset("user:hash", "city", "Bern") == 1
    drained(server, saver(server))
    name = "Eve" if command == "HSET" else "Ann"
    assert database.row("user:hash")["name"] == name


def test_a_value_of_a_client_is_no_stale_one(server: Server, source: Server) -> None:
    """It has a lifetime of its own, and no row that is newer. One of 64 milliseconds has the mark of a loaded value: then it is loaded, and the row is the same."""
    database = both(server, source)
    client = server.client()
    client.hset("user:mine", "a", 1)
    database.client.delete("loads")
    for count, at in enumerate((0, 17, 40, 42, 63, 41), 2):
        client.pexpireat("user:mine", 64 * (int(time.time() + 500) * 1000 // 64) + at)
        drained(server, saver(server))
        assert client.hincrby("user:mine", "a", 1) == count
        assert loads(database) == (at == 41)
    drained(server, saver(server))
    assert database.row("user:mine") == {"a": "7"}


def test_without_the_other_half_a_part_of_a_stale_value_is_changed_at_once(server: Server, source: Server) -> None:
    """Nothing is saved: it is the cache's own business."""
    database = register(server, source, prefix="order:*", more=BOTH.format(arguments=STALE + ", commands=['HGETALL', 'HINCRBY']", value="value"))
    for key, row in ROWS.items():
        database.client.set("row:0:" + key, row)
    make_stale(server, database, "user:hash")
    assert server.client().hincrby("user:hash", "age", 1) == 2
    wait_for(server, saver(server), captured=0)
