"""Changes that are saved elsewhere, as further lines of the group `linked`: `write_behind` against rgsync's recipe on the same module, and
into PostgreSQL against an application that writes the cache and the database by itself.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Iterator, Optional

from client import HOST, Client, as_dict
from harness import ROOT, Failure, RedisBenchmark, Sample, Server, in_process, wait_until
from savers import FIELDS, SAVE, hsets
from scenarios import Goal, Scenario

sys.path.append(str(ROOT / "tests"))

# A connector that saves nowhere, as `save` of the other side.
RGSYNC = """
from rgsync import RGWriteBehind

class Nowhere:
    def TableName(self):
        return 'nowhere'
    def PrimaryKey(self):
        return 'key'
    def WriteData(self, data):
        pass

RGWriteBehind(GB, keysPrefix='saved', mappings={names!r}, connector=Nowhere(), name='Nowhere', version='99.99.99', batch=500)
"""
CONFLICT = "on conflict (key) do update set name = excluded.name, last_id = excluded.last_id"
UPSERT = f"insert into users (key, name, last_id) values (%s, %s, %s) {CONFLICT}"
# The keys of one call are distinct, so one statement takes them all.
UPSERT_ALL = f"insert into users (key, name, last_id) select * from unnest(%s::text[], %s::text[], %s::text[]) {CONFLICT}"
POSTGRES = """
import psycopg
connection = None

def save(changes):
    global connection
    if connection is None:
        connection = psycopg.connect({dsn!r})
    rows = [(change['key'], change['value']['name'], change['id']) for change in changes]
    with connection.transaction():
        connection.execute({upsert!r}, [list(column) for column in zip(*rows)])

write_behind('user:*', save, batch=500)
"""
KEYSPACE = 100_000_000  # so that nearly every change is one of another key: none takes the place of another one
THREADS = 8
INSTALL_TIMEOUT_S = 600  # old source packages are built


@dataclass(frozen=True)
class AgainstRgsync(Scenario):
    """Both sides have the module; the other one runs rgsync, which it installs."""

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        script = RGSYNC.format(names={name: name for name in FIELDS[::2]})
        patient = Client(vanilla.port, INSTALL_TIMEOUT_S)
        patient.call("RG.PYEXECUTE", script, "REQUIREMENTS", "rgsync==1.2.0")
        patient.close()
        module.client.call("RG.PYEXECUTE", SAVE.format(prefix="saved"))

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        for server in (vanilla, module):
            if events is not None and server.events()[0] == 0:
                raise Failure(f"{server.side}: {runs} commands were seen by nobody")


def queued(server: Server) -> int:
    """The changes that are not saved yet."""
    [entry] = server.client.call("RG.DUMPREGISTRATIONS")
    data = as_dict(as_dict(entry)[b"RegistrationData"])
    return int(data[b"queued"])


@dataclass(frozen=True)
class Drained:
    """Commands of redis-benchmark; over when all changes are in the database."""

    load: RedisBenchmark

    def run(self, server: Server, requests: int) -> Sample:
        """Changes a second; how long a command took."""
        begun = time.perf_counter()
        sample = self.load.run(server, requests)
        wait_until(lambda: queued(server) == 0, 120, lambda: f"all is saved, {queued(server)} changes are not")
        return Sample(requests / (time.perf_counter() - begun), sample.p50_ms, sample.p99_ms)


@dataclass(frozen=True)
class WritesBoth:
    """A process with threads, each of which writes the cache and then the database, one statement a change."""

    def run(self, server: Server, requests: int) -> Sample:
        """Changes a second; how long one took."""
        return in_process(application, server.port, server.args[-1], requests)


def application(port: int, dsn: str, requests: int, pipe: Connection) -> None:
    """The process of `WritesBoth`."""
    import psycopg
    import redis

    cache = redis.Redis(HOST, port)
    numbers, waits = iter(range(requests)), []

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as database:
            for number in numbers:
                key = f"user:{number * 7919:012}"
                begun = time.perf_counter()
                cache.hset(key, "name", "v" * 20)
                database.execute(UPSERT, (key, "v" * 20, str(number)))
                waits.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((time.perf_counter() - begun, waits))


@dataclass(frozen=True)
class IntoPostgres(Scenario):
    """A scenario with a PostgreSQL that waits for no disk, which is to the application's good: it commits each change."""

    @contextlib.contextmanager
    def surroundings(self, _binary: Path) -> Iterator[str]:
        """Where the database is."""
        from databases import Postgres

        postgres = Postgres()
        try:
            postgres.start()
            postgres.execute("create table users (key text primary key, name text, last_id text)")
            yield postgres.dsn()
        finally:
            postgres.cleanup()

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        vanilla.args = (around,)
        module.client.call("RG.PYEXECUTE", POSTGRES.format(dsn=around, upsert=UPSERT_ALL))

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        if events is not None and events == 0:
            raise Failure(f"{runs} commands made no call of save")


INTO_POSTGRES = RedisBenchmark(("HSET", "user:__rand_int__", "name", "v" * 20), 16, KEYSPACE)

ELSEWHERE = {
    scenario.name: scenario
    for scenario in (
        AgainstRgsync("hset-saved-rgsync", "write_behind against rgsync's recipe on the same module: HSET of 5 fields, pipeline 16",
                      hsets(16), hsets(16), 100_000, other_script=RGSYNC, goal=Goal.everywhere(3)),
        IntoPostgres("saved-postgres", "write_behind into PostgreSQL, batch 500, against 8 threads that write both, one statement each",
                     WritesBoth(), Drained(INTO_POSTGRES), 20_000, goal=Goal.everywhere(3)),
    )
}  # fmt: skip
