"""Times that have passed, and fields that have expired and that the server has not cleared away: what a client removes by them, or beside them, is
saved as removed; what the cache forgets is not. Contract: docs/contract/write-behind.md 2.2 and 2.7."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from helpers import Server, wait_until
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

# Each takes the field away, and whether Valkey calls that an expiry.
LAST = {
    "HDEL k:1 live": False,
    "HGETDEL k:1 FIELDS 1 live": False,
    "HPEXPIRE k:1 0 FIELDS 1 live": True,
    "HEXPIRE k:1 0 FIELDS 1 live": True,
    "HEXPIREAT k:1 1 FIELDS 1 live": True,
    "HPEXPIREAT k:1 1 FIELDS 1 live": True,
    "HGETEX k:1 EXAT 1 FIELDS 1 live": True,
    "HGETEX k:1 PXAT 1 FIELDS 1 live": True,
    # These change the value before.
    "HSETEX k:1 EXAT 1 FIELDS 1 live x": False,
    "HSETEX k:1 PXAT 1 FIELDS 1 live x": False,
}


def with_fields(server: Server, source: Server, beside: bool) -> Database:
    """A hash that is saved, of whose fields one is left; `beside` another one that has expired and is still there."""
    if server.version < ((9, 0) if server.is_valkey else (8, 0)):
        pytest.skip("fields do not expire on this server, or only one by one")
    database = register(server, source, prefix="k:*")
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.hset("k:1", mapping={"live": "1", "dead": "2"} if beside else {"live": "1"})
    drained(server)
    if beside:
        client.execute_command("HPEXPIRE", "k:1", 1, "FIELDS", 1, "dead")
        wait_until(lambda: client.hget("k:1", "dead") is None)
    return database


@pytest.mark.parametrize("beside", [True, False], ids=["beside one that has expired", "alone"])
@pytest.mark.parametrize("command", LAST)
def test_the_last_field(server: Server, source: Server, command: str, beside: bool) -> None:
    database = with_fields(server, source, beside)
    before = database.rows()
    assert not server.raw().call(*command.split()).startswith(b"-")
    server.client().set("k:end", "x")
    drained(server)
    expires = LAST[command] and server.is_valkey
    assert database.row("k:1") == (before["k:1"] if expires else None)
    assert [change["key"] for change in database.changes()] == ["k:1", *([] if expires else ["k:1"]), "k:end"]


@pytest.mark.parametrize("beside", [True, False], ids=["beside one that has expired", "alone"])
@pytest.mark.parametrize("command", LAST)
def test_the_last_field_behind_another_change(server: Server, source: Server, command: str, beside: bool) -> None:
    """Of one transaction: it leaves nothing, whatever the server calls that."""
    database = with_fields(server, source, beside)
    with server.client().pipeline() as transaction:
        transaction.hset("k:1", "live", "3")
        transaction.execute_command(*command.split())
        transaction.execute()
    drained(server)
    assert database.row("k:1") is None
    assert [change["type"] for change in database.changes()] == ["hash", None]


@pytest.mark.parametrize("command", LAST)
def test_a_field_that_is_not_the_last_one(server: Server, source: Server, command: str) -> None:
    database = with_fields(server, source, False)
    with server.client().pipeline() as transaction:
        transaction.hset("k:1", "other", "3")
        transaction.execute_command(*command.split())
        transaction.execute()
    drained(server)
    assert database.row("k:1") == {"other": "3"}


@pytest.mark.parametrize("command", ["RENAME k:1 k:2", "COPY k:1 k:2 REPLACE"])
def test_a_hash_of_which_nothing_is_left_takes_the_place_of_another_value(server: Server, source: Server, command: str) -> None:
    database = with_fields(server, source, True)
    client = server.client()
    client.set("k:2", "a")
    drained(server)
    client.execute_command("HPEXPIRE", "k:1", 1, "FIELDS", 1, "live")
    wait_until(lambda: client.hget("k:1", "live") is None)
    if server.raw().call(*command.split()) not in (b"+OK\r\n", b":1\r\n"):
        pytest.skip("the server finds nothing there")
    drained(server)
    assert client.hgetall("k:2") == {} and database.row("k:2") is None


PASSED = ["PEXPIREAT k:1 1", "EXPIREAT k:1 1", "EXPIRE k:1 -1", "PEXPIRE k:1 -5", "GETEX k:1 EXAT 1", "GETEX k:1 PXAT 1"]
SCRIPT = "redis.call('SET', KEYS[1], 'b') return redis.call(unpack(ARGV))"


@pytest.mark.parametrize("way", ["MULTI", "EVAL"])
@pytest.mark.parametrize("command", PASSED)
def test_a_key_that_a_unit_changes_and_ends(server: Server, source: Server, command: str, way: str) -> None:
    """Valkey calls that an expiry, and nothing of the unit was captured."""
    database = register(server, source, prefix="k:*")
    client = server.client()
    client.set("k:1", "a")
    drained(server)
    if way == "EVAL":
        client.eval(SCRIPT, 1, "k:1", *command.split())
    else:
        with client.pipeline() as transaction:
            transaction.set("k:1", "b")
            transaction.execute_command(*command.split())
            transaction.execute()
    assert client.get("k:1") is None
    drained(server)
    assert database.row("k:1") is None
    assert database.changes()[-1]["type"] is None


def test_a_restored_value_of_the_past(server: Server, source: Server) -> None:
    """Takes the place of what was there, and is gone: a deletion on all servers. Where nothing was there, nothing happens."""
    database = register(server, source, prefix="k:*")
    client = server.client(decode_responses=False)
    client.set("k:1", "a")
    dumped = client.dump("k:1")
    drained(server)
    client.restore("k:1", 1, dumped, replace=True, absttl=True)
    client.restore("k:2", 1, dumped, absttl=True)
    drained(server)
    assert database.rows() == {}
    assert [(change["key"], change["type"]) for change in database.changes()] == [("k:1", "string"), ("k:1", None)]


def test_who_saves_no_deletions_gets_none(server: Server, source: Server) -> None:
    """Whatever ends a key of its unit."""
    database = register(server, source, "events=['set', 'hset']", prefix="k:*")
    client = server.client()
    client.mset({"k:1": "a", "k:2": "a"})
    drained(server)
    for command in ("PEXPIREAT k:1 1", "DEL k:1"):
        with client.pipeline() as transaction:
            transaction.set("k:1", "b")
            transaction.execute_command(*command.split())
            transaction.execute()
    client.set("k:end", "x")
    drained(server)
    assert database.row("k:1") is not None
    assert all(change["type"] == "string" for change in database.changes())


def test_a_key_that_has_expired_by_itself_is_no_deletion(server: Server, source: Server) -> None:
    """Also where a transaction finds that, and changes others, or the key itself behind it."""
    database = register(server, source, prefix="k:*")
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.mset({"k:1": "a", "k:2": "a"})
    drained(server)
    for key in ("k:1", "k:2"):
        client.pexpire(key, 30)
    wait_until(lambda: client.pttl("k:1") < 0 and client.pttl("k:2") < 0)
    with client.pipeline() as transaction:
        transaction.get("k:1").append("k:2", "b").set("k:3", "c")
        assert transaction.execute() == [None, 1, True]
    drained(server)
    assert database.rows() == {"k:1": "a", "k:2": "b", "k:3": "c"}


@pytest.mark.parametrize("command, row", [("PEXPIREAT k:1 1", None), ("FLUSHALL", "b"), ("SWAPDB 0 1", "a")])
def test_a_unit_after_which_its_key_is_not_there_is_in_files(
    borrow_server: Callable[..., Server], source: Server, command: str, row: Any
) -> None:
    server = borrow_server(args=["--appendonly", "yes", "--appendfsync", "always"])
    database = register(server, source, prefix="k:*")
    client = server.client()
    client.set("k:1", "a")
    drained(server)
    client.execute_command("RG.CONFIGSET", "WriteBehindSaving", "no")
    with client.pipeline() as transaction:
        transaction.set("k:1", "b").execute_command(*command.split())
        transaction.execute()
    server.restart(kill=True)
    drained(server)
    assert database.row("k:1") == row
    assert database.row("k:1", 1) == ("b" if command.startswith("SWAPDB") else None)
