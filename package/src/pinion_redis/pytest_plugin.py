"""Fixtures for tests of functions.

- `gears`: a server with the module; each test finds it empty, without registrations.
- `gears_cluster`: three shards, the same.
- `gears_stub`: functions in plain Python, see `pinion_redis.testing`.

Options: `--gears-server` (a program, or $PINION_SERVER), `--gears-option NAME=VALUE` (of the module, may be repeated).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional, Union

import pytest
import redis

from .connection import Address, Server, Word
from .deployment import Deployment, deploy
from .errors import PinionError
from .figures import Registration, last_line, registrations
from .local_server import HOST, LocalServer, find_server, free_port
from .scripts import Script, read
from .testing import Loader

_BUS = 10000  # how far the port of a cluster's bus is above the other


class Gears:
    """A server with the module, or the shards of a cluster, as tests see it."""

    def __init__(self, servers: list[LocalServer], *, cluster: bool) -> None:
        self.servers = servers
        self.url = servers[0].url
        self._server = Server(Address(self.url, timeout=60))
        self.client: Any = (
            redis.RedisCluster(host=HOST, port=servers[0].port, decode_responses=True)
            if cluster
            else redis.Redis(host=HOST, port=servers[0].port, decode_responses=True)
        )

    def deploy(self, script: Union[Path, str], **options: Any) -> Deployment:
        """Deploys a file, a folder (a `Path`), or a text; options as of `pinion_redis.deployment.deploy`.

        # Raises `PinionError` with what the script raised.
        """
        if isinstance(script, Path):
            return deploy(self._server, read(script), **options)
        return deploy(self._server, Script("test", script), **options)

    def command(self, *words: Word) -> Any:
        """Any command, on the first server: `gears.command("RG.TRIGGER", "name")`."""
        return self._server.call(*words)

    def registrations(self) -> list[Registration]:
        """What is registered, with its figures over all shards."""
        return registrations(self._server.stats())

    def wait_idle(self, timeout: float = 10) -> None:
        """Waits until all that was started has ended, and no change waits to be saved by `write_behind`.

        # Raises `AssertionError` when time is over: what there still is, and its last error.
        """
        deadline = time.monotonic() + timeout
        while True:
            shards = self._server.stats()
            busy = [entry for entry in registrations(shards) if entry.triggered != entry.finished() or entry.figures.get("queued")]
            running = any(set(shard["executions"]["by_status"]) - {"done", "aborted"} for shard in shards)
            if not busy and not running and not any(shard["executions"]["queued"] for shard in shards):
                return
            if time.monotonic() > deadline:
                left = "; ".join(map(_unfinished, busy)) or "executions without a registration"
                raise AssertionError(f"after {timeout} s there is still work: {left}")
            time.sleep(0.01)

    def errors(self) -> dict[str, str]:
        """The last error of each registration that failed, by the session's id."""
        return {entry.session: entry.last_error for entry in self.registrations() if entry.last_error}

    def reset(self) -> None:
        """No registrations, no data."""
        for entry in self.registrations():
            self._server.call("RG.UNREGISTER", entry.id, "ABORTPENDING")
        self._server.on_each("FLUSHALL")

    def close(self) -> None:
        """Ends connections and servers."""
        self.client.close()
        self._server.close()
        for server in self.servers:
            server.stop()


def _unfinished(entry: Registration) -> str:
    """What a registration has not done yet, on one line."""
    queued = entry.figures.get("queued")
    what = "changes that are not saved" if entry.reader == "WriteBehind" else "keys that are not loaded"
    left = f"{what}: {queued}" if queued else f"executions that have not ended: {entry.triggered - entry.finished()}"
    error = f", its last error: {last_line(entry.last_error)}" if entry.last_error else ""
    return f"{entry.reader} {entry.events()} of session {entry.session} ({entry.short_id()}): {left}{error}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of this plugin."""
    group = parser.getgroup("pinion")
    group.addoption("--gears-server", default=None, help="a redis-server or valkey-server for the fixture gears")
    group.addoption("--gears-option", action="append", default=[], help="NAME=VALUE, an option of the module")


def _start(config: pytest.Config, folder: Path, port: int, *arguments: str) -> LocalServer:
    words = [word for pair in config.getoption("--gears-option") for word in pair.split("=", 1)]
    try:
        program = find_server(config.getoption("--gears-server"))
        server = LocalServer(
            folder,
            port=port,
            program=program,
            module_options=words,
            arguments=["--save", "", "--appendonly", "no", "--bind", HOST, *arguments],
            log=folder / "server.log",
        )
        return server.start()
    except PinionError as error:
        pytest.fail(f"the fixture gears has no server: {error}", pytrace=False)


@pytest.fixture(scope="session")
def _gears_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gears]:
    server = _start(request.config, tmp_path_factory.mktemp("gears"), free_port())
    gears = Gears([server], cluster=False)
    yield gears
    gears.close()


@pytest.fixture
def gears(_gears_server: Gears) -> Iterator[Gears]:
    """A server with the module, empty; shared by all tests of a run."""
    _gears_server.reset()
    yield _gears_server


@pytest.fixture(scope="session")
def _gears_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gears]:
    servers: list[LocalServer] = []
    gears: Optional[Gears] = None
    try:
        for _ in range(3):
            folder = tmp_path_factory.mktemp("shard")
            servers.append(_start(request.config, folder, free_port(_BUS), "--cluster-enabled", "yes"))
        _join(servers)
        gears = Gears(servers, cluster=True)
        _wait_for_links(gears)
        yield gears
    finally:
        if gears:
            gears.close()
        for server in servers:
            server.stop()


@pytest.fixture
def gears_cluster(_gears_cluster: Gears) -> Iterator[Gears]:
    """Three shards with the module, empty; shared by all tests of a run."""
    _gears_cluster.reset()
    yield _gears_cluster


def _join(servers: list[LocalServer]) -> None:
    clients = [redis.Redis(port=server.port, decode_responses=True) for server in servers]
    bounds = [0, 5461, 10923, 16384]
    for number, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE" if _has_ranges(client) else "ADDSLOTS", *_slots(client, *bounds[number : number + 2]))
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for server in servers[1:]:
        clients[0].execute_command("CLUSTER", "MEET", HOST, server.port, server.port + _BUS)
    deadline = time.monotonic() + 30
    while not all(_is_whole(client) for client in clients):
        if time.monotonic() > deadline:
            pytest.fail("the shards of gears_cluster did not find each other within 30 s", pytrace=False)
        time.sleep(0.05)
    for client in clients:
        client.close()


def _has_ranges(client: redis.Redis) -> bool:
    return int(str(client.info("server")["redis_version"]).split(".")[0]) >= 7


def _slots(client: redis.Redis, first: int, after: int) -> list[int]:
    return [first, after - 1] if _has_ranges(client) else list(range(first, after))


def _is_whole(client: redis.Redis) -> bool:
    told = client.execute_command("CLUSTER", "INFO")
    if not isinstance(told, dict):  # how the client library shows it depends on its release
        told = dict(line.split(":", 1) for line in str(told).split() if ":" in line)
    wanted = {"cluster_state": "ok", "cluster_known_nodes": "3", "cluster_slots_ok": "16384"}
    return all(str(told.get(name)) == value for name, value in wanted.items())


def _wait_for_links(gears: Gears) -> None:
    deadline = time.monotonic() + 30
    while True:
        shards = gears._server.stats()
        if len(shards) == 3 and all(shard["cluster"]["links_connected"] == 2 for shard in shards):
            return
        if time.monotonic() > deadline:
            pytest.fail("the shards of gears_cluster have no links after 30 s", pytrace=False)
        gears._server.on_each("RG.REFRESHCLUSTER")
        time.sleep(0.1)


@pytest.fixture
def gears_stub() -> type[Loader]:
    """Functions in plain Python with a fake `execute`: `gears_stub.load(path, answers={...})`."""
    return Loader
