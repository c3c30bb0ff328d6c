"""Real databases for tests: `Postgres` and `MariaDB`, each started in a private folder on a free port.

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


def is_running(pid: int) -> bool:
    """Whether a process is there and not dead already."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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
        killed: list[int] = []
        if kill:
            self._signal(signal.SIGSTOP)  # it makes no more of them
            killed = self._signal(signal.SIGKILL)
        else:
            self._process.send_signal(signal.SIGINT)
        self._process.wait(60)
        # What is left of one would keep the memory that they share from the next server.
        wait_until(lambda: not any(map(is_running, killed)), 20, "all processes are gone")
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

    def _signal(self, number: signal.Signals) -> list[int]:
        """Signals all of its processes, and gives their ids. Each is the leader of a session of its own, so there is no group."""
        assert self._process is not None, "PostgreSQL does not run"
        pid = self._process.pid
        # The first one goes first: what it cannot see dying, it does not answer by a restart.
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        everybody = [pid, *map(int, children)]
        for process in everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        return everybody


class MariaDB:
    """A server with the database `test` and the user `pinion` with the password `secret`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.dir = Path(tempfile.mkdtemp(prefix="pinion-mariadb."))
        self._process: subprocess.Popen[bytes] | None = None
        self._user = "mysql" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        if os.getuid() == 0:
            os.chown(self.dir, pwd.getpwnam("mysql").pw_uid, pwd.getpwnam("mysql").pw_gid)
        assert shutil.which("mariadbd"), "MariaDB is not on this machine: make setup-compat"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={self.dir}/data", f"--user={self._user}"]
        done = subprocess.run([*install, "--auth-root-authentication-method=normal", "--skip-test-db"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> MariaDB:
        """Starts it and waits until it answers."""
        line = ["mariadbd", "--no-defaults", f"--datadir={self.dir}/data", f"--user={self._user}", f"--port={self.port}"]
        line += [f"--bind-address={HOST}", f"--socket={self.socket}", f"--pid-file={self.dir}/pid", "--innodb-flush-log-at-trx-commit=0"]
        with (self.dir / "log").open("ab") as log:
            self._process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        wait_until(lambda: self._client("SELECT 1", check=False).returncode == 0, 60, "MariaDB answers")
        self._client(
            "CREATE DATABASE IF NOT EXISTS test; CREATE USER IF NOT EXISTS pinion@'%' IDENTIFIED BY 'secret';"
            "CREATE USER IF NOT EXISTS pinion@localhost IDENTIFIED BY 'secret'; GRANT ALL ON test.* TO pinion@'%';"
            "GRANT ALL ON test.* TO pinion@localhost"
        )
        return self

    @property
    def socket(self) -> Path:
        return self.dir / "socket"

    def execute(self, statement: str) -> list[tuple[str, ...]]:
        """Runs statements in the database `test`; the rows of the result as texts."""
        return [tuple(line.split("\t")) for line in self._client(statement, "test").stdout.splitlines()]

    def stop(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def cleanup(self) -> None:
        """Ends it and removes its folder."""
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def _client(self, statement: str, *database: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        line: list[Any] = ["mariadb", "--no-defaults", f"--socket={self.socket}", "--user=root", "--batch", "--skip-column-names"]
        done = subprocess.run([*line, "--execute", statement, *database], capture_output=True, text=True)
        assert done.returncode == 0 or not check, done.stderr
        return done
