"""Keys that get another name, or a copy, or another database: with both halves what is not in the cache is loaded before, and what is stale is loaded
anew, since the destination is saved. Contract: docs/contract/write-behind.md 2.6."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis

from helpers import Server
from test_write_behind_halves import WAYS, by, saver
from test_write_behind_stale import NEWER, ROWS, both, loads, make_stale
from write_behind import drained, register

pytestmark = pytest.mark.matrix

# What becomes of the rows of the hash and of its destination: of databases 0 and 1.
MOVES: list[tuple[str, list[str]]] = [
    ("RENAME user:hash user:new", ["0:user:new"]),
    ("RENAMENX user:hash user:new", ["0:user:new"]),
    ("RENAME user:hash user:list", ["0:user:list"]),
    ("RENAME user:hash user:hash", ["0:user:hash"]),
    ("COPY user:hash user:new", ["0:user:hash", "0:user:new"]),
    ("COPY user:hash user:list REPLACE", ["0:user:hash", "0:user:list"]),
    ("COPY user:hash user:new DB 1", ["0:user:hash", "1:user:new"]),
    ("MOVE user:hash 1", ["1:user:hash"]),
]


def hash_rows(server: Server, source: Server) -> dict[str, Any]:
    client = source.client()
    rows = {key[4:]: json.loads(client.get(key)) for key in client.keys("row:*")}
    return {key: row for key, row in rows.items() if isinstance(row, dict)}


@pytest.mark.parametrize("state", ["stale", "missing", "unsaved"])
@pytest.mark.parametrize("command, places", MOVES, ids=[move[0] for move in MOVES])
def test_what_moves_is_what_the_database_has(server: Server, source: Server, command: str, places: list[str], state: str) -> None:
    database = both(server, source)
    expected = json.loads(NEWER["user:hash"] if state == "stale" else ROWS["user:hash"])
    if state == "stale":
        make_stale(server, database, "user:hash")
    if state == "unsaved":
        expected = {"all": "new"}
        database.fail(1_000_000)
        with server.client().pipeline() as transaction:
            transaction.delete("user:hash").hset("user:hash", "all", "new").execute()
        server.client().flushall()
        database.fail(0)
    reply = server.raw().call(*command.split())
    assert reply in (b"+OK\r\n", b":1\r\n"), reply
    drained(server, saver(server))
    assert hash_rows(server, source) == {place: expected for place in places}
    if state != "unsaved":
        assert loads(database) == (2 if command == "COPY user:hash user:new" or command.startswith("RENAMENX") else 1)


@pytest.mark.parametrize("state", ["stale", "missing"])
@pytest.mark.parametrize("way", ["MULTI", "EVAL", "run", "run_async"])
@pytest.mark.parametrize("command", ["RENAME user:hash user:new", "COPY user:hash user:new", "MOVE user:hash 1"])
def test_who_cannot_wait_is_refused(server: Server, source: Server, command: str, way: str, state: str) -> None:
    database = both(server, source)
    server.run(WAYS)
    if state == "stale":
        make_stale(server, database, "user:hash")
    with pytest.raises(redis.ResponseError, match="LOADFAILED CannotWait"):
        by(server, way, *command.split())
    drained(server, saver(server))
    assert list(hash_rows(server, source)) == ["0:user:hash"]


def test_what_is_nowhere_has_no_other_name(server: Server, source: Server) -> None:
    both(server, source)
    raw = server.raw()
    assert raw.call("RENAME", "user:none", "user:new").startswith(b"-ERR no such key")
    assert raw.call("COPY", "user:none", "user:new") == raw.call("MOVE", "user:none", "1") == b":0\r\n"
    drained(server, saver(server))
    assert list(hash_rows(server, source)) == ["0:user:hash"]


def test_without_the_other_half_nothing_is_loaded(server: Server, source: Server) -> None:
    register(server, source)
    assert server.raw().call("RENAME", "user:1", "user:2").startswith(b"-ERR no such key")
