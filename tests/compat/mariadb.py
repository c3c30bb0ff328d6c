"""A MariaDB server for tests, in a private folder on a free port; the programs come from Debian's `mariadb-server`."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from helpers import HOST, free_port, wait_until


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
