"""What tests hold in their hands: `Server`, `RawClient`, `wait_until`. Fixtures are in conftest.py, binaries in
servers.py. A helper used by one suite only stays with that suite.
"""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, TypeVar, Union

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from servers import ROOT, version_line

Arg = Union[str, bytes, int, float]
T = TypeVar("T")

HOST = "127.0.0.1"
FINISHED = ("done", "aborted")
MAX_CLIENTS = 3000
# A wait tells what hangs from what is slow. Where other tests run beside this one, slow is three times as slow.
PATIENCE = 3 if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1 else 1


def wait_for_aof(client: redis.Redis) -> None:
    """Waits until the AOF file is rewritten: another process that writes may have put that off."""
    def is_written() -> bool:
        told = client.info("persistence")
        return not told["aof_rewrite_in_progress"] and not told["aof_rewrite_scheduled"]

    wait_until(is_written, 60, "the AOF file is rewritten")


def wait_until(predicate: Callable[[], T], timeout: float = 10, message: str = "", interval: float = 0.02) -> T:
    """Polls until `predicate()` is true and returns its value; fails with `message` and the last value seen after `timeout`
    seconds (times PATIENCE).

    It looks often at first, and every `interval` seconds at last: the tests share the machine with what they wait for.
    """
    deadline = time.monotonic() + timeout * PATIENCE
    pause = 0.002
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout * PATIENCE} s: {message or 'the awaited condition'} (last value: {value!r})")
        time.sleep(min(pause, interval))
        pause *= 1.5


def module_path() -> Path:
    """The module under test: $PINION_MODULE or the release build."""
    return Path(os.environ.get("PINION_MODULE") or ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release/libpinion.so").resolve()


def free_port() -> int:
    """A port that is free together with the cluster bus port 10000 above it; both below the ephemeral range.

    Test processes that run side by side (pytest-xdist) have ports of their own.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(1000):
        port = random.randrange(12000 + process, 22000, processes)
        try:
            for candidate in (port, port + 10000):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((HOST, candidate))
            return port
        except OSError:
            continue
    raise AssertionError("no free port found")


class ServerDied(AssertionError):
    """A server process ended although nobody asked for it; the text ends with its log."""


class Server:
    """One server process on a free port, in a directory of its own.

    Made by the fixtures `server`, `source` and `start_server`, which also end it and fail the test if it died.
    """

    def __init__(
        self,
        binary: Path,
        name: str,
        directory: Path,
        *,
        module: bool = True,
        module_args: Sequence[Arg] = (),
        args: Sequence[Arg] = (),
        python_env: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.binary = binary
        self.name = name
        self.dir = directory
        self.host = HOST
        self.port = free_port()
        self.module = module
        self.module_args = list(module_args)
        if python_env is not None:
            self.module_args += ["PythonVenv", os.fspath(python_env)]
        self.args = list(args)
        self.environment = dict(environment or {})
        self.credentials: dict[str, str] = {}
        """What clients made from now on log in with: `username`, `password`."""
        self.version: tuple[int, ...] = ()
        self.is_valkey = False
        self.death_expected = False
        self.death_reported = False
        self.was_restarted = False
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        self._raws: list[RawClient] = []
        self._client: redis.Redis | None = None

    # --- process ---

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server's process, also after its end."""
        assert self._process is not None, "the server was never started"
        return self._process

    def start(self, timeout: float = 20) -> Server:
        """Starts the process and waits until it answers PING."""
        assert not self.alive(), "the server runs already"
        self.death_expected = False
        self.was_restarted = self._process is not None
        # The runtime of a sanitizer (scripts/sanitize.sh) has to be there before all else.
        preload = [path for path in (os.environ.get("PINION_PRELOAD"), self.environment.get("LD_PRELOAD")) if path]
        environment = {**os.environ, **self.environment, **({"LD_PRELOAD": ":".join(preload)} if preload else {})}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command_line(),
                cwd=self.dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        wait_until(self._answers, timeout, f"{self.name} on port {self.port} answers PING")
        info = self.own.info("server")
        assert info["process_id"] == self.process.pid, f"another server answers on port {self.port}"
        self.is_valkey = "valkey_version" in info
        version = str(info["valkey_version" if self.is_valkey else "redis_version"])
        self.version = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
        return self

    def command_line(self) -> list[str]:
        """The whole command line, as for `subprocess`."""
        line = [self.binary, "--port", self.port, "--bind", self.host, "--dir", self.dir]
        line += ["--save", "", "--appendonly", "no", "--loglevel", "notice", "--repl-diskless-sync-delay", "0"]
        if not re.search(r"v=6\.", version_line(self.binary)):
            line += ["--enable-debug-command", "yes"]
        line += self.args
        if self.module:
            assert module_path().exists(), f"{module_path()} does not exist: make build"
            line += ["--loadmodule", module_path(), *self.module_args]
        return [part.decode() if isinstance(part, bytes) else str(part) for part in line]

    def alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.poll() is None

    def expect_death(self) -> None:
        """The test ends this server on purpose, by a command: its end is not a failure. May come before or after."""
        self.death_expected = True

    def died(self) -> bool:
        """True if the process ended and nobody asked for it."""
        return self._process is not None and self._process.poll() is not None and not self.death_expected

    def wait_exit(self, timeout: float = 10) -> int:
        """Waits for the end of the process and returns its exit status (negative: killed by that signal)."""
        self.death_expected = True
        return self.process.wait(timeout * PATIENCE)

    def stop(self, *, kill: bool = False, timeout: float = 20) -> None:
        """Ends the server: with SIGTERM (saves as configured) and a check that it ended well, or with SIGKILL."""
        self.disconnect()
        if not self.alive():
            return
        self.death_expected = True
        self.process.kill() if kill else self.process.terminate()
        try:
            status = self.process.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServerDied(f"{self.death_text()}\n(did not end within {timeout * PATIENCE} s of SIGTERM)") from None
        if not kill and status != 0:
            raise ServerDied(self.death_text())

    def restart(self, *, kill: bool = False) -> Server:
        """Ends the server (see `stop`) and starts it again: same port, directory and arguments."""
        self.stop(kill=kill)
        return self.start()

    def cleanup(self) -> None:
        """Ends whatever is left. Never fails."""
        self.disconnect()
        if self.alive():
            self.death_expected = True
            self.process.kill()
        if self._process is not None:
            self._process.wait()

    @property
    def log_path(self) -> Path:
        return self.dir / "server.log"

    def log(self) -> str:
        """All that the server has printed so far, since a test got it."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_bytes()[self._log_start :].decode(errors="replace")

    def sanitizer_report(self) -> str:
        """What a sanitizer has reported first; empty if none has, or there is none."""
        found = re.search(r"(ERROR|WARNING): \w+Sanitizer:[\s\S]{0,8000}", self.log())
        return found[0] if found else ""

    def mark_log(self) -> None:
        """What was printed so far is of no interest to whoever gets the server now."""
        self._log_start = self.log_path.stat().st_size

    def log_tail(self, lines: int = 200) -> str:
        """The last lines of the log."""
        return "\n".join(self.log().splitlines()[-lines:])

    def death_text(self) -> str:
        """What a failure says about a dead server."""
        return f"{self.name} on port {self.port} ended with status {self.process.returncode}; its log:\n{self.log_tail()}"

    def _answers(self) -> bool:
        if not self.alive():
            self.death_reported = True
            raise ServerDied(self.death_text())
        try:
            return bool(self.own.ping())
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            return False  # not listening yet, or still loading

    # --- talking to it ---

    @property
    def native_hits(self) -> bool:
        """True if the server lets a command filter see the client (CommandFilterGetClientId)."""
        return self.is_valkey or self.version >= (7, 2)

    def client(self, **options: Any) -> redis.Redis:
        """A client of its own: RESP2, text replies, no retries (a test sees each error), closed after the test."""
        # Without `driver_info`: to tell who it is takes a client longer than all that tests ask of it.
        defaults = {"decode_responses": True, "protocol": 2, "socket_timeout": 60 * PATIENCE, "retry": Retry(NoBackoff(), 0), "driver_info": None}
        assert len(self._clients) < MAX_CLIENTS, "a poll makes connections until the server refuses them: see `own`"
        client = redis.Redis(host=self.host, port=self.port, **{**defaults, **self.credentials, **options})
        self._clients.append(client)
        return client

    def raw(self, timeout: float = 60 * PATIENCE) -> RawClient:
        """A bare connection, for asserts on the exact bytes of a reply."""
        raw = RawClient(self.host, self.port, timeout)
        self._raws.append(raw)
        return raw

    def disconnect(self) -> None:
        """Closes every connection that the test opened."""
        for connection in (*self._clients, *self._raws):
            connection.close()
        self._clients, self._raws, self._client = [], [], None

    def run(self, script: str, *args: Arg, client: redis.Redis | None = None) -> Any:
        """`RG.PYEXECUTE` of an indented script, with further arguments of the command."""
        return (client or self.own).execute_command("RG.PYEXECUTE", textwrap.dedent(script), *args)

    def registrations(self) -> list[dict[str, Any]]:
        """`RG.DUMPREGISTRATIONS` with its name/value lists as dicts."""
        found = []
        for entry in self.own.execute_command("RG.DUMPREGISTRATIONS"):
            registration = as_dict(entry)
            data = as_dict(registration["RegistrationData"])
            data["args"] = as_dict(data["args"])
            registration["RegistrationData"] = data
            found.append(registration)
        return found

    def wait_idle(self, timeout: float = 10) -> None:
        """Waits until every event has been worked off and no execution is under way."""
        wait_until(lambda: not self._busy(), timeout, f"{self.name} on port {self.port} is idle")

    def _busy(self) -> bool:
        for registration in self.registrations():
            data = registration["RegistrationData"]
            if data["numTriggered"] != data["numSuccess"] + data["numFailures"] + data["numAborted"]:
                return True
        executions = self.own.execute_command("RG.DUMPEXECUTIONS")
        return any(as_dict(execution)["status"] not in FINISHED for execution in executions)

    @property
    def own(self) -> redis.Redis:
        """The client that looks at the server, for `wait_until`: a poll must not make a connection every few milliseconds."""
        if self._client is None:
            self._client = self.client()
        return self._client


def as_dict(pairs: Any) -> dict[str, Any]:
    """`[name, value, ...]` (or a RESP3 map) as a dict."""
    return dict(pairs) if isinstance(pairs, dict) else dict(zip(pairs[::2], pairs[1::2]))


class RawClient:
    """One socket that sends commands and gives back replies byte for byte (RESP2 or RESP3)."""

    def __init__(self, host: str, port: int, timeout: float = 10) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self._file = self.socket.makefile("rb")

    def send(self, *args: Arg) -> None:
        """Sends one command, without waiting for its reply."""
        words = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
        self.send_bytes(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))

    def send_bytes(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.socket.sendall(data)

    def read(self) -> bytes:
        """The bytes of exactly one reply, nested ones included."""
        head = self._file.readline()
        if not head.endswith(b"\r\n"):
            raise ConnectionError(f"the server closed the connection after {head!r}")
        kind, rest = head[:1], head[1:-2]
        if kind in b"$!=":
            size = int(rest)
            return head if size < 0 else head + self._exactly(size + 2)
        parts = {b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}.get(kind, 0) * (int(rest) if kind in b"*~>%|" else 0)
        nested = b"".join(self.read() for _ in range(parts))
        return head + nested + (self.read() if kind == b"|" else b"")  # an attribute precedes its reply

    def call(self, *args: Arg) -> bytes:
        """`send`, then `read`."""
        self.send(*args)
        return self.read()

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise ConnectionError("the server closed the connection inside a reply")
        return data

    def close(self) -> None:
        self._file.close()
        self.socket.close()
