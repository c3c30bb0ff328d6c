"""`read_through` in front of a real PostgreSQL: rows, batches, coroutines, transactions that block, a database that hangs, is
killed and comes back, under load. Contract: docs/contract/read-through.md chapters 3 and 5.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import redis

from databases import Postgres
from figures import figures, wait_for
from helpers import Server, wait_until
from read_through import at_rest

pytestmark = pytest.mark.matrix

CONNECT = """
import threading
import psycopg
from psycopg.rows import dict_row

threads = threading.local()

def database():
    '''One connection for each thread, made anew if it was lost.'''
    connection = getattr(threads, 'connection', None)
    if connection is None or connection.closed:
        connection = psycopg.connect({dsn!r}, autocommit=True, row_factory=dict_row, connect_timeout=2)
        threads.connection = connection
    return connection
"""

ROW = """
@read_through('user:*', {options})
def load(key):
    statement = 'SELECT name, city, age FROM users WHERE id = %s'
    return database().execute(statement, [int(key.partition(':')[2])]).fetchone()
"""

PEOPLE = 50


def people(postgres: Postgres, server: Server, options: str, loader: str = ROW) -> None:
    """A table of people, and their loader."""
    postgres.execute("CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL, city text, age int)")
    postgres.execute(
        "INSERT INTO users SELECT id, 'name ' || id, CASE WHEN id % 2 = 0 THEN 'Zürich' END, id"
        f" FROM generate_series(1, {PEOPLE}) id"
    )
    server.run(CONNECT.format(dsn=postgres.dsn()) + loader.format(options=options, dsn=postgres.dsn()))


def active(postgres: Postgres) -> int:
    """How many of the loaders' statements run or wait for a lock."""
    return int(postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%users%id%'")[0][0]) - 1


def test_rows_are_hashes(postgres: Postgres, server: Server) -> None:
    people(postgres, server, "ttl=60, negative_ttl=60")
    client = server.client()
    assert client.hgetall("user:2") == {"name": "name 2", "city": "Zürich", "age": "2"}
    assert client.hgetall("user:1") == {"name": "name 1", "age": "1"}, "a NULL is no field"
    assert client.hget("user:999", "name") is None and client.exists("user:999") == 0
    postgres.execute("UPDATE users SET city = 'Bern' WHERE id = 2")
    assert client.hget("user:2", "city") == "Zürich"
    assert client.execute_command("RG.REFRESH", "user:2") == 1
    assert client.hget("user:2", "city") == "Bern"
    postgres.execute("DELETE FROM users WHERE id = 2")
    client.delete("user:2")
    assert client.hgetall("user:2") == {}
    raw = server.raw()
    assert raw.call("HGET", "user:x", "name") == b"-LOADFAILED ValueError\r\n"
    at_rest(server)


def test_a_herd_on_a_row_that_is_locked_asks_once(postgres: Postgres, server: Server) -> None:
    people(postgres, server, "ttl=60")
    raws = [server.raw() for _ in range(100)]
    with postgres.connect(autocommit=False) as transaction:
        transaction.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        transaction.execute("UPDATE users SET name = 'Ann' WHERE id = 1")
        for raw in raws:
            raw.send("HGET", "user:1", "name")
        wait_for(server, waiting=100)
        wait_until(lambda: active(postgres) == 1)
    assert {raw.read() for raw in raws} == {b"$3\r\nAnn\r\n"}, "what was committed"
    assert figures(server)["loads"] == 1
    at_rest(server)


def test_one_query_for_a_batch(postgres: Postgres, server: Server) -> None:
    loader = """
@read_through('user:*', batch=100, batch_wait=0.05, {options})
def load(keys):
    names = {{int(key.partition(':')[2]): key for key in keys}}
    rows = database().execute('SELECT id, name, city FROM users WHERE id = ANY(%s)', [list(names)]).fetchall()
    return {{names[row.pop('id')]: row for row in rows}}
"""
    people(postgres, server, "ttl=60", loader)
    raws = [server.raw() for _ in range(PEOPLE + 10)]
    for number, raw in enumerate(raws, start=1):
        raw.send("HGET", f"user:{number}", "name")
    replies = [raw.read() for raw in raws]
    assert replies[PEOPLE - 1] == b"$7\r\nname 50\r\n" and replies[PEOPLE:] == [b"$-1\r\n"] * 10
    data = figures(server)
    assert data["loadedKeys"] == len(raws) and data["loads"] <= 5
    at_rest(server)


def test_coroutines(postgres: Postgres, server: Server) -> None:
    loader = """
import asyncio

@read_through('user:*', max_loads=4, {options})
async def load(key):
    async with await psycopg.AsyncConnection.connect({dsn!r}, row_factory=dict_row) as connection:
        cursor = await connection.execute('SELECT name, pg_sleep(0.01)::text AS slept FROM users WHERE id = %s', [int(key[5:])])
        return await cursor.fetchone()
"""
    people(postgres, server, "ttl=60", loader)
    pipeline = server.client().pipeline(transaction=False)
    for number in range(1, 21):
        pipeline.hget(f"user:{number}", "name")
    assert pipeline.execute() == [f"name {number}" for number in range(1, 21)]
    raws = [server.raw() for _ in range(20)]
    for number, raw in enumerate(raws, start=21):
        raw.send("HGET", f"user:{number}", "name")
    assert [raw.read() for raw in raws] == [b"$7\r\nname %d\r\n" % number for number in range(21, 41)]
    at_rest(server)


def test_a_database_that_hangs(postgres: Postgres, server: Server) -> None:
    """Those who read what is stale get it at once, the others an error in time; when it goes on, all is well by itself."""
    people(postgres, server, "ttl=0.2, stale=60, timeout=0.5, max_load_time=1, backoff=0.05, max_backoff=0.1")
    client = server.client()
    old = [client.hget(f"user:{number}", "name") for number in range(1, 11)]
    postgres.pause()
    try:
        raw, begun = server.raw(), time.monotonic()
        assert raw.call("HGET", "user:40", "name") == b"-LOADFAILED TimedOut\r\n"
        while time.monotonic() - begun < 2.5:
            assert [client.hget(f"user:{number}", "name") for number in range(1, 11)] == old
        data = figures(server)
        assert data["loadFailures"] > 0 and data["timeouts"] == 1
    finally:
        postgres.resume()
    postgres.execute("UPDATE users SET name = 'new ' || id")
    wait_until(lambda: client.hget("user:1", "name") == "new 1")
    wait_until(lambda: server.raw().call("HGET", "user:40", "name") == b"$6\r\nnew 40\r\n")
    at_rest(server)


def test_a_database_that_is_killed_while_it_answers(postgres: Postgres, server: Server) -> None:
    people(postgres, server, "ttl=60, backoff=0")
    with postgres.connect(autocommit=False) as transaction:
        transaction.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        raws = [server.raw() for _ in range(20)]
        for raw in raws:
            raw.send("HGET", "user:1", "name")
        wait_for(server, waiting=20)
        wait_until(lambda: active(postgres) == 1)
        postgres.stop(kill=True)
        assert {raw.read() for raw in raws} == {b"-LOADFAILED OperationalError\r\n"}
        assert raws[0].call("HGET", "user:1", "name") == b"-LOADFAILED OperationalError\r\n", "nobody listens"
        transaction.close()
    postgres.start()
    assert {raw.call("HGET", "user:1", "name") for raw in raws} == {b"$6\r\nname 1\r\n"}
    at_rest(server)


def test_a_database_that_is_killed_under_load(postgres: Postgres, server: Server) -> None:
    """Eight clients read all the time: warm keys show no error; of cold ones each reply is the row or an error, none is missing."""
    people(postgres, server, "ttl=0.1, stale=60, backoff=0.05, max_backoff=0.2")
    warm = [f"user:{number}" for number in range(1, 21)]
    client = server.client()
    for key in warm:
        client.hgetall(key)
    end, wrong, errors, good = threading.Event(), [], set(), [0]

    def read(seed: int) -> None:
        mine = server.client()
        number = seed
        while not end.is_set():
            number += 1
            key = warm[number % len(warm)]
            reply: Any = mine.hget(key, "name")
            if reply != "name " + key[5:]:
                wrong.append(reply)
            cold = 21 + number % (PEOPLE - 20)
            try:
                reply = mine.hget(f"user:{cold}", "name")
            except redis.ResponseError as error:
                errors.add(str(error))
            else:
                good[0] += 1
                if reply != f"name {cold}":
                    wrong.append(reply)
            mine.delete(f"user:{cold}")

    threads = [threading.Thread(target=read, args=(seed * 7,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            seen = good[0]
            wait_until(lambda: good[0] > seen + 50, message="rows are loaded")
            postgres.stop(kill=True)
            failed = figures(server)["loadFailures"]
            wait_until(lambda: figures(server)["loadFailures"] > failed + 10, message="loads fail")
            postgres.start()
        seen = good[0]
        wait_until(lambda: good[0] > seen + 50, message="rows are loaded again")
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert errors <= {"LOADFAILED OperationalError", "LOADFAILED AdminShutdown", "LOADFAILED BackingOff"}
    assert figures(server)["staleHits"] > 0
    at_rest(server)
