"""`write_behind` with real databases: the examples, and a fault test with kills of the server and of the database. Contract:
docs/contract/write-behind.md 2.1 and 2.3.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import redis

from databases import MariaDB, Postgres
from figures import figures
from helpers import Server, wait_until
from servers import ROOT
from write_behind import drained

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

TABLE = """create table users (key text primary key, name text, city text, last_id text collate "C" not null, gone boolean not null)"""


@pytest.fixture
def mariadb() -> Iterator[MariaDB]:
    database = MariaDB()
    yield database.start()
    database.cleanup()


def change_users(server: Server) -> dict[str, tuple[str | None, str | None]]:
    """Writes some users, changes and deletes some. Who is there in the end."""
    client = server.client()
    for number in range(50):
        client.hset(f"user:{number}", mapping={"name": f"name {number}", "city": "Bern"})
    for number in range(0, 50, 5):
        client.hset(f"user:{number}", "city", "Thun")
    client.delete(*(f"user:{number}" for number in range(0, 50, 10)), "user:never")
    drained(server)
    return {f"user:{number}": (f"name {number}", "Thun" if number % 5 == 0 else "Bern") for number in range(50) if number % 10}


def test_postgresql(server: Server, postgres: Postgres) -> None:
    postgres.execute(TABLE)
    server.client().execute_command("RG.CONFIGSET", "database", postgres.dsn())
    server.run((EXAMPLES / "write_behind_postgresql.py").read_text())
    expected = change_users(server)
    assert {key: (name, city) for key, name, city in postgres.execute("select key, name, city from users where not gone")} == expected
    # An older change that comes late changes nothing.
    assert postgres.execute("select count(*) from users where gone") == [(6,)]
    postgres.stop(kill=True)
    server.client().hset("user:1", "city", "Chur")
    wait_until(lambda: figures(server)["saveFailures"] > 0)
    postgres.start()
    drained(server)
    assert postgres.execute("select city from users where key = 'user:1'") == [("Chur",)]


@pytest.mark.compat
def test_mariadb(server: Server, mariadb: MariaDB) -> None:
    mariadb.execute("create table users (`key` varbinary(255) primary key, name text, city text,"
                    " last_id varchar(30) character set ascii not null, gone bool not null)")  # fmt: skip
    for name, value in (("mariadbPort", mariadb.port), ("mariadbUser", "pinion"), ("mariadbPassword", "secret"), ("mariadbDatabase", "test")):
        server.client().execute_command("RG.CONFIGSET", name, value)
    server.run((EXAMPLES / "write_behind_mariadb.py").read_text())
    expected = change_users(server)
    rows = mariadb.execute("select `key`, name, city from users where not gone")
    assert {key: (name, city) for key, name, city in rows} == expected
    mariadb.stop()
    server.client().hset("user:1", "city", "Chur")
    wait_until(lambda: figures(server)["saveFailures"] > 0)
    mariadb.start()
    drained(server)
    assert mariadb.execute("select city from users where `key` = 'user:1'") == [("Chur",)]


def test_sqlite(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "users.sqlite"
    server.client().execute_command("RG.CONFIGSET", "sqliteFile", str(file))
    server.run((EXAMPLES / "write_behind_sqlite.py").read_text())
    expected = change_users(server)
    with sqlite3.connect(file) as connection:
        rows = connection.execute("select key, name, city from users where not gone").fetchall()
    assert {key: (name, city) for key, name, city in rows} == expected


def first_example() -> str:
    """The first script of the page."""
    [script, *_] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/write-behind.md").read_text(), re.MULTILINE | re.DOTALL)
    return str(script)


@pytest.mark.parametrize("which", ["first of the page", "sqlite"])
def test_what_comes_late_changes_nothing(server: Server, source: Server, tmp_path: Path, which: str) -> None:
    """The guard of examples, by what a call that hung or an old queue would bring."""
    file = tmp_path / "users.sqlite"
    server.client().execute_command("RG.CONFIGSET", "sqliteFile", str(file), "sourcePort", source.port)
    script = first_example() if which != "sqlite" else (EXAMPLES / "write_behind_sqlite.py").read_text()
    script += "\nimport json\nGB('CommandReader').map(lambda words: save(json.loads(words[1]))).register(trigger='save', mode='async_local')\n"
    server.run(script)

    def save(change_id: str, value: dict[str, str] | None) -> None:
        change = {"id": change_id, "key": "user:1", "db": 0, "event": "hset", "type": value and "hash", "value": value}
        server.client().execute_command("RG.TRIGGER", "save", json.dumps([change]))

    def row() -> tuple[str | None, str | None] | None:
        if which != "sqlite":
            found = source.client().hgetall("user:1")
            return (found.get("name"), found.get("city")) if found else None
        with sqlite3.connect(file) as connection:
            rows: list[tuple[str | None, str | None]] = connection.execute("select name, city from users where not gone").fetchall()
            return rows[0] if rows else None

    save("20-9", {"name": "Ann", "city": "Bern"})
    save("20-10", {"name": "Ann"})
    assert row() == ("Ann", None), "the field is gone"
    for late in ("20-9", "3-77"):
        save(late, {"name": "old", "city": "old"})
        assert row() == ("Ann", None), late
    save("20-11", None)
    assert row() is None
    save("20-10", {"name": "Ann"})
    assert row() is None, "nothing brings it back"
    save("20-12", {"city": "Thun"})
    assert row() == (None, "Thun")


def test_an_outbox(server: Server) -> None:
    server.run((EXAMPLES / "write_behind_outbox.py").read_text())
    client = server.client()
    client.hset("user:1", "name", "Ann")
    client.hset("user:1", "name", "Bob")
    client.delete("user:1")
    drained(server)
    (name,) = client.keys("users:changed*")
    entries = [fields for _, fields in client.xrange(name)]
    assert [(entry["event"], entry["value"]) for entry in entries] == [
        ("hset", '{"name": "Ann"}'), ("hset", '{"name": "Bob"}'), ("del", "null"),
    ]  # fmt: skip
    assert figures(server)["captured"] == 3


FAULTY = """
import psycopg, random

connection = None

def ordered(change_id):
    milliseconds, sequence = change_id.split('-')
    return '%015d-%010d' % (int(milliseconds), int(sequence))

@write_behind('user:*', batch=50, max_tries=3, dead_letter='dead', backoff=0.01, max_backoff=0.2)
def save(changes):
    global connection
    if connection is None or connection.closed:
        connection = psycopg.connect({dsn!r}, connect_timeout=2)
    if random.random() < 0.02:
        raise ValueError('by chance')
    with connection.transaction(), connection.cursor() as cursor:
        for change in changes:
            if change['key'] == 'user:poison':
                raise LookupError('poison')
            value = (change['value'] or {{}}).get('n')
            cursor.execute('insert into log (key, id, n) values (%s, %s, %s)', (change['key'], ordered(change['id']), value))
            cursor.execute('insert into users values (%s, %s, %s) on conflict (key) do update set n = excluded.n, last_id = excluded.last_id '
                           'where users.last_id < excluded.last_id', (change['key'], value, ordered(change['id'])))
    if random.random() < 0.02:
        raise ValueError('saved, and failed nevertheless')
"""


@pytest.mark.parametrize("changes, kills", [(5_000, 3), pytest.param(100_000, 10, marks=pytest.mark.soak)])
def test_nothing_is_lost_when_everything_fails(
    start_server: Callable[..., Server], postgres: Postgres, changes: int, kills: int
) -> None:
    """The server is killed (AOF always), the database is killed, `save` fails at random, one row never works."""
    postgres.execute("create table users (key text primary key, n text, last_id text collate \"C\")")
    postgres.execute("create table log (key text, id text collate \"C\", n text, place bigserial)")
    server = start_server(args=["--appendonly", "yes", "--appendfsync", "always"])
    server.run(FAULTY.format(dsn=postgres.dsn()))
    chance = random.Random(4)
    acknowledged: dict[str, str | None] = {}
    doubtful: dict[str, set[str | None]] = {}
    steps = sorted(chance.sample(range(changes // 10, changes), 2 * kills))
    writer = server.client()
    writer.hset("user:poison", "n", "x")
    for number in range(changes):
        if number in steps:
            if steps.index(number) % 2:
                postgres.stop(kill=True)
                restart = threading.Timer(0.3, postgres.start)
                restart.start()
                restart.join()
            else:
                killer = threading.Timer(0.002, server.process.kill)
                server.expect_death()
                killer.start()
                try:
                    client = server.client(retry=None)
                    for _ in range(100_000):
                        key, value = f"user:{chance.randrange(200)}", f"doubt {chance.random()}"
                        doubtful.setdefault(key, {acknowledged.get(key)}).add(value)
                        client.hset(key, "n", value)
                        acknowledged[key] = value
                        doubtful.pop(key)
                except (redis.ConnectionError, ConnectionError):
                    pass
                killer.join()
                server.restart(kill=True)
                # One client each time: a hundred thousand are more than a server takes.
                writer = server.client()
        key = f"user:{chance.randrange(200)}"
        if chance.random() < 0.05:
            writer.delete(key)
            acknowledged[key] = None
        else:
            writer.hset(key, "n", number)
            acknowledged[key] = str(number)
        doubtful.pop(key, None)
    client = server.client()
    wait_until(lambda: figures(server)["queued"] == 0, 120, f"all is saved: {figures(server)}")
    cache = {key: client.hget(key, "n") for key in client.scan_iter("user:*", count=1000) if key != "user:poison"}
    for key, value in acknowledged.items():
        if key not in doubtful:
            assert cache.get(key) == value, f"the server's own loss of {key}"
    rows = {key: n for key, n in postgres.execute("select key, n from users") if n is not None}
    assert rows == cache, {key: (rows.get(key), cache.get(key)) for key in rows.keys() | cache.keys() if rows.get(key) != cache.get(key)}
    dead = [fields for _, fields in client.xrange("dead")]
    # Its last try may be one of those that fail at random.
    assert {letter["key"] for letter in dead} == {"user:poison"} and dead[0]["error"] in ("LookupError", "ValueError")
    # The first time that a change was saved, it was behind all older ones of its key.
    first: dict[tuple[str, str], int] = {}
    for place, (key, change) in enumerate(postgres.execute("select key, id from log order by place")):
        first.setdefault((key, change), place)
    newest: dict[str, str] = {}
    for (key, change), _ in sorted(first.items(), key=lambda item: item[1]):
        assert newest.get(key, "") < change, f"{key}: {change} behind {newest[key]}"
        newest[key] = change
