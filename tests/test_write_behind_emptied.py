"""Both halves, and hashes whose fields have all expired: they count as missing although the server has not cleared them away. Contract:
docs/contract/write-behind.md 2.6 and 2.10, docs/contract/read-through.md 3.1 and 3.8."""

from __future__ import annotations

import json
from typing import Any, Callable

import pytest
import redis

from helpers import Server, wait_until
from test_write_behind_elsewhere import loads_slowly
from test_write_behind_halves import both, by, saver
from test_write_behind_roles import linked
from write_behind import Database, drained

pytestmark = pytest.mark.matrix

ROW = {"name": "Ann", "city": "Bern"}
DEBUG = ["--enable-debug-command", "yes"]
# As many fields as need another form of a hash.
MANY = {f"f{number}": "x" * 10 for number in range(600)}


@pytest.fixture(params=["small", "large"])
def row(request: pytest.FixtureRequest) -> dict[str, str]:
    return ROW if request.param == "small" else {**ROW, **MANY}


def emptied(server: Server, source: Server, row: dict[str, str], key: str = "user:1", arguments: str = "") -> Database:
    """Both halves, and a hash of which nothing is left, but which is there."""
    if server.version < ((9, 0) if server.is_valkey else (8, 0)):
        pytest.skip("fields do not expire on this server, or only one by one")
    database = both(server, source, arguments)
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    database.client.set(f"row:0:{key}", json.dumps(row))
    empty(client, key, row)
    client.delete("loads")
    return database


def empty(client: Any, key: str, row: dict[str, str]) -> None:
    assert client.hgetall(key) == row
    client.execute_command("HPEXPIRE", key, 1, "FIELDS", len(row), *row)
    wait_until(lambda: is_empty(client, key))
    assert client.exists(key)


def is_empty(client: Any, key: str) -> bool:
    """By a script, which loads nothing."""
    return not client.eval("return redis.call('HGETALL', KEYS[1])", 1, key)


READS: list[tuple[list[str], Any]] = [
    (["HGET", "user:1", "city"], "Bern"),
    (["HMGET", "user:1", "name", "city"], ["Ann", "Bern"]),
    (["HEXISTS", "user:1", "city"], True),
    (["HSTRLEN", "user:1", "city"], 4),
]


@pytest.mark.parametrize("words, reply", READS, ids=lambda given: given[0] if isinstance(given, list) else "")
def test_a_read_loads_it(server: Server, source: Server, row: dict[str, str], words: list[str], reply: object) -> None:
    database = emptied(server, source, row)
    client = server.client()
    assert client.execute_command(*words) == reply
    assert client.get("loads") == "1" and client.hgetall("user:1") == row
    assert client.get("loads") == "1", "it is there now"
    client.set("user:end", "x")
    drained(server, saver(server))
    assert [change["key"] for change in database.changes()] == ["user:end"], "what is loaded is no change"


@pytest.mark.parametrize("words, after", [(["HSET", "user:1", "city", "Thun"], {"city": "Thun"}), (["HINCRBY", "user:1", "age", "3"], {"age": "3"}),
                                          (["HSETNX", "user:1", "city", "Thun"], {})], ids=lambda given: given[0] if isinstance(given, list) else "")  # fmt: skip
def test_a_change_of_a_part_is_made_of_the_whole_row(server: Server, source: Server, row: dict[str, str], words: list[str], after: dict[str, str]) -> None:
    database = emptied(server, source, row)
    client = server.client()
    client.execute_command(*words)
    assert client.hgetall("user:1") == {**row, **after} and client.get("loads") == "1"
    drained(server, saver(server))
    assert database.row("user:1") == {**row, **after}


@pytest.mark.parametrize("way", ["MULTI", "EVAL"])
def test_nobody_changes_a_part_of_it_who_cannot_wait(server: Server, source: Server, row: dict[str, str], way: str) -> None:
    database = emptied(server, source, row)
    with pytest.raises(redis.ResponseError, match="LOADFAILED CannotWait"):
        by(server, way, "HSET", "user:1", "city", "Thun")
    assert server.client().hset("user:1", "city", "Thun") == 0
    drained(server, saver(server))
    assert database.row("user:1") == {**row, "city": "Thun"}


def test_it_is_still_missing_where_the_source_has_nothing(server: Server, source: Server) -> None:
    database = emptied(server, source, ROW)
    database.client.delete("row:0:user:1")
    client = server.client()
    assert client.hget("user:1", "city") is None and client.get("loads") == "1"
    assert client.hset("user:1", "city", "Thun") == 1
    drained(server, saver(server))
    assert database.row("user:1") == {"city": "Thun"}


def test_a_value_that_is_not_kept_answers_in_its_place(server: Server, source: Server) -> None:
    """And nothing of the hash is left, which replicas hear of: they would keep it otherwise."""
    emptied(server, source, ROW)
    client = server.client()
    server.run("""
        def load(key):
            execute('INCR', 'guests')
            return {'name': 'Eve'}

        read_through('guest:*', load, ttl=lambda key, value: 0)
        write_behind('guest:*', lambda changes: None)
    """)
    client.hset("free:1", "name", "Ann")
    client.execute_command("HPEXPIRE", "free:1", 1, "FIELDS", 1, "name")
    wait_until(lambda: is_empty(client, "free:1"))
    assert client.rename("free:1", "guest:1") and client.exists("guest:1")
    # To the other name it has brought nothing, which is saved first.
    drained(server, max(place for place, entry in enumerate(server.registrations()) if entry["reader"] == "WriteBehind"))
    assert (client.hgetall("guest:1"), client.get("guests")) == ({"name": "Eve"}, "1")
    assert (client.exists("guest:1"), client.get("guests")) == (0, "1")


def test_what_is_left_of_a_hash_is_enough(server: Server, source: Server, row: dict[str, str]) -> None:
    """One field that lives is a hash that is there."""
    database = emptied(server, source, row)
    client = server.client()
    client.delete("user:1")
    drained(server, saver(server))
    database.client.delete("row:0:user:1")
    client.hset("user:1", mapping={**row, "more": "m"})
    client.execute_command("HPEXPIRE", "user:1", 1, "FIELDS", len(row), *row)
    wait_until(lambda: client.hgetall("user:1") == {"more": "m"})
    client.delete("loads")
    assert client.hset("user:1", "last", "l") == 1 and client.exists("loads") == 0
    drained(server, saver(server))
    assert database.row("user:1") == {"more": "m", "last": "l"}


def test_it_is_seen_behind_a_restart(server: Server, source: Server) -> None:
    """And where a script is registered when such hashes are there by then."""
    database = emptied(server, source, ROW)
    client = server.client()
    client.hset("free:1", "a", "1")
    assert client.hgetall("user:1") == ROW
    client.execute_command("HPEXPIRE", "user:1", 700, "FIELDS", 2, "name", "city")
    client.execute_command("DEBUG", "RELOAD")
    assert client.hget("user:1", "city") == "Bern"
    wait_until(lambda: is_empty(client, "user:1"))
    assert client.hset("user:1", "city", "Thun") == 0
    drained(server, saver(server))
    assert database.row("user:1") == {**ROW, "city": "Thun"}


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
def test_replicas_hear_of_what_takes_its_place(start_server: Callable[..., Server], source: Server, kept: bool) -> None:
    """And take it for no change, also where they are promoted before they hear of anything else."""
    server, replica = start_server(args=DEBUG), start_server(args=DEBUG)
    if server.version < ((9, 0) if server.is_valkey else (8, 0)):
        pytest.skip("fields do not expire on this server, or only one by one")
    database = both(server, source, "" if kept else "ttl=lambda key, value: 0")
    replica.client().replicaof(server.host, server.port)
    linked(replica)
    client = server.client()
    for each in (client, replica.client()):
        each.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    database.client.set("row:0:user:1", json.dumps(ROW))
    with client.pipeline() as pipe:
        pipe.delete("user:1").hset("user:1", mapping=ROW).execute()
    drained(server, saver(server))
    client.execute_command("HPEXPIRE", "user:1", 1, "FIELDS", 2, *ROW)
    wait_until(lambda: is_empty(client, "user:1"))
    saved = len(database.changes())
    assert client.hgetall("user:1") == ROW
    client.wait(1, 5000)
    own = replica.own
    wait_until(lambda: own.execute_command("EXISTS", "user:1") == kept)
    assert own.hgetall("user:1") == (ROW if kept else {})
    replica.client().replicaof("no", "one")
    replica.client().set("user:end", "x")
    drained(replica, saver(replica))
    assert [change["key"] for change in database.changes()[saved:]] == ["user:end"]
    assert database.row("user:1") == ROW


def test_the_server_clears_it_away_while_it_is_loaded(server: Server, source: Server) -> None:
    """That is no deletion by anybody: what is loaded counts."""
    if server.version < ((9, 0) if server.is_valkey else (8, 0)):
        pytest.skip("fields do not expire on this server, or only one by one")
    database = loads_slowly(server, source)
    client, raw = server.client(), server.raw()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    database.client.set("row:0:user:1", json.dumps(ROW))
    database.client.rpush("end", 1)
    assert client.hgetall("user:1") == ROW
    client.execute_command("HPEXPIRE", "user:1", 1, "FIELDS", 2, *ROW)
    wait_until(lambda: is_empty(client, "user:1"))
    raw.send("HSET", "user:1", "city", "Thun")
    wait_until(lambda: database.client.llen("begun") == 2)
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)
    wait_until(lambda: not client.exists("user:1"), message="it is cleared away")
    database.client.rpush("end", 1)
    assert raw.read() == b":0\r\n"
    assert database.client.llen("begun") == 2, "and is not loaded once more"
    drained(server, saver(server))
    assert database.row("user:1") == {**ROW, "city": "Thun"}
