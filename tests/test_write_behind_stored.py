"""Commands that name what they write by an option, SORT and GEORADIUS, or in another database, COPY and MOVE: they are looked at as others are.
Contract: docs/contract/write-behind.md 1, 2.6, 2.7 and 2.9."""

from __future__ import annotations

from typing import Any

import pytest

from figures import wait_for
from helpers import Server, wait_until
from test_write_behind_halves import both, by, saver
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

# What each of them writes, by database and key.
CALLS: dict[str, list[tuple[int, str]]] = {
    "SORT list BY nosort STORE user:1": [(0, "user:1")],
    "sort list get # store other store user:1": [(0, "user:1")],
    "GEORADIUS places 1 1 99 km STORE user:1": [(0, "user:1")],
    "GEORADIUS places 1 1 99 km COUNT 1 STOREDIST user:1": [(0, "user:1")],
    "GEORADIUSBYMEMBER places a 99 km STORE user:1": [(0, "user:1")],
    "COPY plain user:1 DB 1": [(1, "user:1")],
    "COPY plain user:1 REPLACE DB 1": [(1, "user:1")],
    "MOVE user:here 1": [(0, "user:here"), (1, "user:here")],
}
# They write nothing that is saved.
OTHERS = ["SORT user:list BY STORE", "SORT user:list STORE other", "GEORADIUS user:places 1 1 99 km STORE other", "COPY user:here other", "COPY user:here other DB 1",
          "SUNIONSTORE other user:set", "SORT user:list BY nosort GET STORE"]  # fmt: skip
BACKOFF = "backoff=0.05, max_backoff=0.05"


def prepared(server: Server) -> Any:
    """A client; and what the calls need."""
    client = server.client()
    for prefix in ("", "user:"):
        client.rpush(prefix + "list", "2", "1")
        client.geoadd(prefix + "places", (1, 1, "a"))
        client.sadd(prefix + "set", "a")
    client.set("plain", "x")
    client.set("user:here", "x")
    return client


def at(server: Server, db: int) -> Any:
    client = server.client()
    client.execute_command("SELECT", db)
    return client


def row_of(database: Database, place: tuple[int, str]) -> Any:
    return database.row(place[1], place[0])


@pytest.mark.parametrize("call", CALLS)
def test_they_wait_for_room(server: Server, source: Server, call: str) -> None:
    client = prepared(server)
    database = register(server, source, f"max_queue=1, {BACKOFF}")
    database.fail(1_000_000)
    client.set("user:full", "x")
    wait_for(server, queued=1)
    raw, elsewhere = server.raw(), at(server, 1)
    raw.send(*call.split())
    wait_until(lambda: client.info("clients")["blocked_clients"] == 1, message="it waits")
    assert client.exists("user:1") == elsewhere.exists("user:1", "user:here") == 0, "it has not run"
    for words in OTHERS:
        assert not server.raw().call(*words.split()).startswith(b"-"), words
    database.fail(0)
    assert not raw.read().startswith(b"-")
    drained(server)
    assert all((row_of(database, place) is None) == (call.startswith("MOVE") and place[0] == 0) for place in CALLS[call])


@pytest.mark.parametrize("call", CALLS)
def test_they_are_refused_where_there_is_no_room(server: Server, source: Server, call: str) -> None:
    client = prepared(server)
    database = register(server, source, f"max_queue=1, on_full='error', {BACKOFF}")
    database.fail(1_000_000)
    client.set("user:full", "x")
    wait_for(server, queued=1)
    assert server.raw().call(*call.split()).startswith(b"-QUEUEFULL")
    assert client.exists("user:1") == at(server, 1).exists("user:1", "user:here") == 0
    for words in OTHERS:
        assert not server.raw().call(*words.split()).startswith(b"-"), words
    # What replaces a change that is not saved passes, but in the moment in which that is given to `save`; in its own database only.
    wait_until(lambda: server.raw().call("SORT", "list", "STORE", "user:full") == b":2\r\n")
    assert server.raw().call("COPY", "plain", "user:full", "DB", "1").startswith(b"-QUEUEFULL")
    database.fail(0)
    drained(server)
    assert database.row("user:full") == ["1", "2"]


@pytest.mark.parametrize("call", CALLS)
def test_their_clients_wait_for_the_save(server: Server, source: Server, call: str) -> None:
    client = prepared(server)
    database = register(server, source, f"wait=True, timeout=30, {BACKOFF}")
    database.fail(1_000_000)
    raw = server.raw()
    raw.send(*call.split())
    wait_until(lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_save"] == 1)
    assert row_of(database, CALLS[call][-1]) is None
    database.fail(0)
    assert not raw.read().startswith(b"-")
    assert row_of(database, CALLS[call][-1]) is not None, "saved by then"


NOTHING = ["SORT none STORE user:1", "GEORADIUS none 1 1 99 km STORE user:1", "GEORADIUSBYMEMBER none a 99 km STOREDIST user:1"]


@pytest.mark.parametrize("call", NOTHING)
@pytest.mark.parametrize("way", ["", "MULTI", "EVAL"])
def test_the_row_of_a_destination_that_is_not_in_the_cache_goes(server: Server, source: Server, call: str, way: str) -> None:
    database = register(server, source)
    database.client.set("row:0:user:1", '"old"')
    assert (by(server, way, *call.split()) if way else server.client().execute_command(*call.split())) == 0
    server.client().set("user:end", "x")
    drained(server)
    assert database.rows() == {"user:end": "x"}


@pytest.mark.parametrize("call", NOTHING)
def test_what_is_refused_removes_nothing(server: Server, source: Server, call: str) -> None:
    database = register(server, source)
    database.client.set("row:0:user:1", '"old"')
    raw = server.raw()
    assert raw.call(*call.split(), "wrong").startswith(b"-")
    server.client().set("none", "no list")
    assert raw.call(*call.split()).startswith(b"-WRONGTYPE")
    server.client().set("user:end", "x")
    drained(server)
    assert database.rows() == {"user:1": "old", "user:end": "x"}


@pytest.mark.parametrize("call, row", [("SORT user:list STORE user:1", ["1", "2"]), ("SORT user:list DESC LIMIT 0 1 STORE other", None)])
def test_what_they_are_made_of_is_loaded(server: Server, source: Server, call: str, row: object) -> None:
    """With both halves, and if something is stored that is saved: in the end the source is in the cache, or the row is whole."""
    database = both(server, source)
    database.client.set("row:0:user:list", '["2", "1"]')
    database.client.set("row:0:user:1", '["old"]')
    assert server.client().execute_command(*call.split()) == len(row or "x")
    assert server.client().get("loads") == "1"
    drained(server, saver(server))
    assert database.row("user:1") == (row or ["old"])
