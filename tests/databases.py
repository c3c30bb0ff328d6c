"""Real databases for tests: `Postgres`, started in a private folder on a free port, without a password.

The programs come from Debian's package `postgresql` (scripts/setup.sh test), the client is psycopg. Fixtures are in
conftest.py: `postgres` is shared by the tests of a file, each of which has a database of its own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Sequence

import psycopg

from helpers import HOST, free_port, wait_until

DURABILITY = ["fsync=off", "full_page_writes=off"]
"""What a test kills is the process, and what the kernel has got survives that: a commit does, a crash of the machine not."""


def postgres_programs() -> Path:
    """The folder of the newest PostgreSQL's `initdb` and `postgres`."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if beside := shutil.which("postgres"):
        found.append(Path(beside).parent)
    assert found, "PostgreSQL is not on this machine: make setup-test"
    return max(found, key=lambda path: [int(part) for part in path.parts if part.isdigit()])


def unprivileged() -> dict[str, Any]:
    """What `subprocess` needs to run a program as somebody else than root, whom PostgreSQL does not serve."""
    if os.getuid() != 0:
        return {}
    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam("postgres")
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class Postgres:
    """A PostgreSQL server in a folder of its own; the user is `pinion`, who may do everything.

    `database` is the one that `dsn()` and `connect()` mean.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.database = "postgres"
        self.dir = Path(tempfile.mkdtemp(prefix="pinion-postgres."))
        self._as = unprivileged()
        self._process: subprocess.Popen[bytes] | None = None
        if self._as:
            os.chown(self.dir, self._as["user"], self._as["group"])
        initdb = [postgres_programs() / "initdb", "--pgdata", self.dir / "data", "--username=pinion"]
        self._run([*initdb, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])

    def start(self) -> Postgres:
        """Starts it, after a crash as well, and waits until it takes connections."""
        options = [f"listen_addresses={HOST}", f"port={self.port}", f"unix_socket_directories={self.dir}", *DURABILITY]
        line: list[Any] = [postgres_programs() / "postgres", "-D", self.dir / "data"]
        for option in options:
            line += ["-c", option]
        with (self.dir / "log").open("ab") as log:
            self._process = subprocess.Popen(
                line, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **self._as
            )
        wait_until(self._answers, 60, "PostgreSQL takes connections")
        return self

    def stop(self, *, kill: bool = False) -> None:
        """Ends it: orderly, or as a crash does, with all of its processes at once."""
        if self._process is None:
            return
        if kill:
            self._signal(signal.SIGKILL)
        else:
            self._process.send_signal(signal.SIGINT)
        self._process.wait(60)
        self._process = None

    def pause(self) -> None:
        """Stops all of its processes: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Ends a pause."""
        self._signal(signal.SIGCONT)

    def dsn(self) -> str:
        """What `psycopg.connect` and functions in a server need to connect."""
        return f"host={HOST} port={self.port} user=pinion dbname={self.database}"

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A connection that commits each statement; the caller closes it."""
        return psycopg.connect(self.dsn(), **{"autocommit": True, **options})

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows, none if it has no result."""
        with self.connect() as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def new_database(self, name: str) -> None:
        """Makes an empty database and connects to it from now on."""
        self.database = "postgres"
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self.execute(f'CREATE DATABASE "{name}"')
        self.database = name

    def cleanup(self) -> None:
        """Ends it and removes its folder."""
        if self._process is not None:
            self.resume()
            self.stop(kill=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def alive(self) -> bool:
        """True while it runs."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 40) -> str:
        """The end of its log."""
        path = self.dir / "log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def _answers(self) -> bool:
        assert self.alive(), f"PostgreSQL ended by itself; its log:\n{self.log_tail()}"
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False  # not listening yet, or recovering
        return True

    def _run(self, line: Sequence[Any]) -> None:
        done = subprocess.run(line, cwd=self.dir, stdin=subprocess.DEVNULL, capture_output=True, text=True, **self._as)
        assert done.returncode == 0, f"{line[0]} failed: {done.stdout}{done.stderr}"

    def _signal(self, number: signal.Signals) -> None:
        """Each of its processes is the leader of a session of its own, so there is no group to signal."""
        assert self._process is not None, "PostgreSQL does not run"
        pid = self._process.pid
        # The first one goes first: what it cannot see dying, it does not answer by a restart.
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
