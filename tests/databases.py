"""Databases that tests start: PostgreSQL and MariaDB, each in a folder of its own, on a free port or a socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from helpers import free_port, wait_until


def _binary(name: str) -> str:
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    assert found, f"{name} is not installed: scripts/setup.sh test"
    return found


class _Process:
    """A server in a folder that is its own. As root it runs as another user, since databases refuse to run as root."""

    user = "nobody"

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pinion-db-"))
        self._process: subprocess.Popen[bytes] | None = None
        if os.getuid() == 0:
            owner = pwd.getpwnam(self.user)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)

    def _as_user(self) -> dict[str, Any]:
        return {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []} if os.getuid() == 0 else {}

    def _run(self, *words: str) -> None:
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, **self._as_user())
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"

    def command_line(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command_line(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._as_user()
            )
        wait_until(self.answers, 60, f"{type(self).__name__} answers: {(self.folder / 'server.log').read_text()}")

    def kill(self) -> None:
        """Ends it as a crash does, with all of its processes."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, 9)
            self._process.wait()

    def cleanup(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgreSQL(_Process):
    """Its database and user are `postgres`; `dsn` is what psycopg connects to."""

    user = "postgres"

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self.dsn = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        self._run(_binary("initdb"), "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    def command_line(self) -> list[str]:
        return [_binary("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder),
                "-c", "shared_buffers=16MB", "-c", "max_connections=20"]  # fmt: skip

    def answers(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self.dsn, connect_timeout=2) as connection:
                return connection.execute("select 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """What a statement returns; none for those that return nothing."""
        import psycopg

        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(text)
            return cursor.fetchall() if cursor.description else []


class MariaDB(_Process):
    """With the database `shop` and its user, who needs no password."""

    user = "mysql"

    def __init__(self) -> None:
        super().__init__()
        self.socket = str(self.folder / "socket")
        self._run(_binary("mariadb-install-db"), "--no-defaults", f"--datadir={self.folder}/data", "--auth-root-authentication-method=normal")
        self.start()
        self.query("create database shop")
        self.query("create user shop@localhost")
        self.query("grant all on shop.* to shop@localhost")

    def command_line(self) -> list[str]:
        return [shutil.which("mariadbd") or "/usr/sbin/mariadbd", "--no-defaults", f"--datadir={self.folder}/data", f"--socket={self.socket}",
                "--skip-networking", f"--pid-file={self.folder}/pid", "--innodb-buffer-pool-size=16M"]  # fmt: skip

    def answers(self) -> bool:
        import pymysql

        try:
            return self.query("select 1") == [(1,)]
        except pymysql.MySQLError:
            return False

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """What a statement returns."""
        import pymysql

        connection = pymysql.connect(unix_socket=self.socket, user="root", autocommit=True, connect_timeout=2)
        try:
            with connection.cursor() as cursor:
                cursor.execute(text)
                return list(cursor.fetchall())
        finally:
            connection.close()
