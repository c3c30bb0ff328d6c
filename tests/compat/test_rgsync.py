"""rgsync 1.2.0 with real databases: write-behind, write-through, acknowledgements, operations, mappings, SimpleHashConnector.

The library is unmodified. Its `exactlyOnceTableName` fails with every release of Python, which the last test shows.
"""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import pytest

from databases import MariaDB, Postgres
from helpers import Server, wait_until
from sharing import Lender

REQUIREMENTS = ["rgsync==1.2.0", "PyMySQL>=1.1", "psycopg2-binary>=2.9"]


class Backend(NamedTuple):
    """A database: what a script writes to connect, and how a test looks into it."""

    connection: str
    connector: str
    execute: Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def lent(shared_servers: Lender) -> Iterator[Server]:
    """A server that has the requirements; old source packages of them are built on the way."""
    server = shared_servers.lend(fresh=True)
    # The first time on a machine this takes minutes.
    patient = server.client(socket_timeout=380)
    assert patient.execute_command("RG.PYEXECUTE", "log('rgsync')", "REQUIREMENTS", *REQUIREMENTS) == "OK"
    yield server


@pytest.fixture(scope="module")
def mariadb() -> Iterator[Backend]:
    database = MariaDB().start()
    try:
        connection = f"MySqlConnection('pinion', 'secret', '127.0.0.1:{database.port}/test')"
        yield Backend(connection, "MySqlConnector", database.execute)
    finally:
        database.cleanup()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Backend]:
    database = Postgres().start()
    try:
        connection = f"PostgresConnection('pinion', '', '127.0.0.1:{database.port}/postgres')"
        yield Backend(connection, "PostgresConnector", database.execute)
    finally:
        database.cleanup()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    path = tmp_path_factory.mktemp("sqlite") / "test.db"

    def execute(statement: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(path, timeout=30) as connection:
            return connection.execute(statement).fetchall()

    return Backend(f"SQLiteConnection({str(path).lstrip('/')!r})", "SQLiteConnector", execute)


@pytest.fixture(params=["mariadb", "postgresql", "sqlite"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """A database with an empty table `persons`."""
    found: Backend = request.getfixturevalue(request.param)
    found.execute("DROP TABLE IF EXISTS persons")
    found.execute("CREATE TABLE persons (person_id VARCHAR(100) NOT NULL, first VARCHAR(100), last VARCHAR(100), age INT, PRIMARY KEY (person_id))")
    return found


@pytest.fixture
def server(lent: Server) -> Iterator[Server]:
    lent.client().flushall()
    yield lent
    for registration in lent.registrations():
        lent.client().execute_command("RG.UNREGISTER", registration["id"])


def register(server: Server, backend: Backend, kind: str, prefix: str, extra: str = "") -> None:
    """As in the README of rgsync: fields of the hash and columns of the table have names of their own."""
    script = f"""
from rgsync import RGWriteBehind, RGWriteThrough
from rgsync.Connectors import {backend.connector}, {backend.connector.replace('Connector', 'Connection')}

connection = {backend.connection}
connector = {backend.connector}(connection, 'persons', 'person_id')
mappings = {{'first_name': 'first', 'last_name': 'last', 'age': 'age'}}
{kind}(GB, keysPrefix='{prefix}', mappings=mappings, connector=connector, name='Persons{kind}', version='99.99.99'{extra})
"""
    assert server.run(script, "REQUIREMENTS", *REQUIREMENTS) == "OK"


def rows(backend: Backend) -> list[tuple[str, ...]]:
    found = backend.execute("SELECT person_id, first, last, age FROM persons ORDER BY person_id")
    return [tuple(str(value) for value in row) for row in found]


ANN = {"first_name": "Ann", "last_name": "Lee", "age": "30"}


def test_write_behind(server: Server, backend: Backend) -> None:
    register(server, backend, "RGWriteBehind", "person", ", duration=20, onFailedRetryInterval=1")
    client = server.client()
    for number in range(1, 4):
        client.hset(f"person:{number}", mapping={**ANN, "age": 30 + number})
    wait_until(lambda: len(rows(backend)) == 3, 30)
    assert rows(backend)[0] == ("1", "Ann", "Lee", "31")
    client.hset("person:1", "last_name", "O'Neill")
    client.delete("person:2")
    wait_until(lambda: rows(backend) == [("1", "Ann", "O'Neill", "31"), ("3", "Ann", "Lee", "33")], 30)
    # `+`, `-`: not for the database; `~`, `=`: for it as well; all of them vanish from the hash.
    client.hset("person:4", mapping={**ANN, "#": "+"})
    assert client.hgetall("person:4") == ANN
    client.hset("person:3", "#", "-")
    assert not client.exists("person:3")
    client.hset("person:1", "#", "~")
    assert not client.exists("person:1")
    token = str(uuid.uuid4())
    client.hset("person:5", mapping={**ANN, "#": f"={token}"})
    [[_, [(_, acknowledged)]]] = client.xread({f"{{person:5}}{token}": "0-0"}, block=20000)
    assert acknowledged == {"status": "done"}
    assert rows(backend) == [("3", "Ann", "Lee", "33"), ("5", "Ann", "Lee", "30")]


def test_write_through(server: Server, backend: Backend) -> None:
    register(server, backend, "RGWriteThrough", "__")
    client = server.client()

    def write(key: str, token: str) -> dict[str, str]:
        client.hset(f"__{{{key}}}", mapping={**ANN, "#": f"={token}"})
        [(_, answer)] = client.xrange(f"{{{key}}}{token}")
        return dict(answer)

    # The answer is there before the client's own reply, and so is the row.
    assert write("person:1", "t1") == {"status": "done"}
    assert rows(backend) == [("1", "Ann", "Lee", "30")]
    assert client.hgetall("person:1") == ANN and client.keys("__*") == []
    backend.execute("ALTER TABLE persons RENAME TO hidden")
    try:
        answer = write("person:2", "t2")
        assert answer["status"] == "failed" and "persons" in answer["error"]
        assert not client.exists("person:2")
    finally:
        backend.execute("ALTER TABLE hidden RENAME TO persons")
    assert write("person:2", "t3") == {"status": "done"}
    assert [row[0] for row in rows(backend)] == ["1", "2"]


def test_write_behind_waits_for_its_database(server: Server, sqlite: Backend) -> None:
    """Without the table, batches are tried again until it is there; nothing is lost, and the failure is in the log."""
    sqlite.execute("DROP TABLE IF EXISTS persons")
    register(server, sqlite, "RGWriteBehind", "person", ", duration=20, onFailedRetryInterval=1")
    client = server.client()
    client.hset("person:1", mapping=ANN)
    wait_until(lambda: "no such table: persons" in server.log(), 30)
    client.hset("person:2", mapping=ANN)
    sqlite.execute("CREATE TABLE persons (person_id TEXT PRIMARY KEY, first TEXT, last TEXT, age INT)")
    wait_until(lambda: [row[0] for row in rows(sqlite)] == ["1", "2"], 30)


def test_simple_hash(server: Server) -> None:
    """SimpleHashConnector expects records as they were before rgsync 1.0; a subclass of three lines gives it those."""
    script = """
from rgsync import RGWriteBehind
from rgsync.Connectors import SimpleHashConnector

class FlatRecords(SimpleHashConnector):
    def WriteData(self, data):
        super().WriteData([{**record['value'], 'streamId': record['id']} for record in data])

RGWriteBehind(GB, keysPrefix='key', mappings={'first_name': 'first', 'last_name': 'last', 'age': 'age'},
              connector=FlatRecords('copy'), name='Simple', version='99.99.99', duration=20)
"""
    assert server.run(script, "REQUIREMENTS", *REQUIREMENTS) == "OK"
    client = server.client()
    client.hset("key:1", mapping=ANN)
    shown = {"first": "Ann", "last": "Lee", "age": "30", "#": "="}
    wait_until(lambda: client.hgetall("copy:1") == shown, 20)


def test_versions_replace_each_other(server: Server, sqlite: Backend) -> None:
    register(server, sqlite, "RGWriteBehind", "person")
    before = {registration["id"] for registration in server.registrations()}
    register(server, sqlite, "RGWriteBehind", "person")
    after = {registration["id"] for registration in server.registrations()}
    assert len(before) == len(after) == 2 and not before & after


def test_exactly_once_is_broken_by_itself(server: Server, sqlite: Backend) -> None:
    """rgsync prepares its query with a set where it needs a dictionary, says so in the log, and every batch fails then."""
    sqlite.execute("DROP TABLE IF EXISTS persons")
    sqlite.execute("CREATE TABLE persons (person_id TEXT PRIMARY KEY, first TEXT, last TEXT, age INT)")
    sqlite.execute("CREATE TABLE IF NOT EXISTS exactly (id TEXT PRIMARY KEY, val TEXT)")
    script = f"""
from rgsync import RGWriteBehind
from rgsync.Connectors import SQLiteConnector, SQLiteConnection
connector = SQLiteConnector({sqlite.connection}, 'persons', 'person_id', 'exactly')
RGWriteBehind(GB, keysPrefix='person', mappings={{'age': 'age'}}, connector=connector, name='Exact', version='99.99.99', duration=20)
"""
    server.run(script, "REQUIREMENTS", *REQUIREMENTS)
    assert "'set' object has no attribute 'items'" in server.log()
    server.client().hset("person:1", "age", 1)
    wait_until(lambda: "has no attribute 'exactlyOnceQuery'" in server.log(), 20)
    assert sqlite.execute("SELECT * FROM persons") == []
