"""Fixtures and options, for every suite. What they hand out is defined in helpers.py.

A test gets fresh servers. If one of them dies by itself the test fails, and every failure shows the servers' logs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Generator, Mapping, Sequence

import pytest

from clusters import Cluster, make_cluster
from databases import Postgres
from helpers import Arg, Server, module_path
from servers import ServerUnavailable, binary, version_line
from sharing import Lender

SERVERS = pytest.StashKey[list[Server]]()
SHARED = pytest.StashKey[list[Server]]()  # those that other tests use, too
BINARY = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", default="redis-7.0", help="a name from tests/servers.py, or a path (redis-7.0)")


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[BINARY] = binary(config.getoption("--server"))
    except ServerUnavailable as error:
        raise pytest.UsageError(f"pinion: {error}") from None


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"server: {config.getoption('--server')}: {version_line(config.stash[BINARY])}", f"module: {module_path()}"]


# How long a node of a cluster may be silent that tests share, on a machine that is busy with other tests.
PATIENT_MS = 15_000
# Files that take longest, the longest first: whoever works at one begins early, and not when the others have nothing left to do.
# From the durations of a whole run (`--durations=0`).
LONG_FILES = [
    "test_cluster_changes", "test_cluster_requirements", "test_source_packages", "test_requirements_elsewhere",
    "test_requirements_failures", "test_maxmemory", "test_cluster_faults", "test_time_events", "test_persistence", "test_faults",
    "test_runbooks", "test_clock_jumps", "test_write_behind_roles", "test_types", "test_shipped_packages", "test_async_load",
    "test_cluster_chaos", "test_sync_writes", "test_cluster_registrations", "test_hooks", "test_children", "test_limits",
    "test_streams", "test_write_behind_cluster", "test_cluster_links", "test_requirements", "test_docs", "test_fuzz",
    "test_async_failures", "test_leaks", "test_write_behind_late", "test_demo", "test_replication", "test_write_behind_durable",
    "test_cluster_runs", "test_user_code_everywhere", "test_slow_loads", "test_paused", "test_sync_timeout", "test_server_config",
    "test_write_behind_trouble", "test_read_through_under_load", "test_command_line", "test_stress", "test_examples",
    "test_read_through_operations", "test_owners", "test_async", "test_shutdown", "test_stopped_imports", "test_write_behind_whole",
    "test_write_behind_captured", "test_run_statistics", "test_write_behind_stale", "test_read_through_failures",
    "test_write_behind_model", "test_halves_not_loaded", "test_odd_arguments", "test_write_behind_databases",
    "test_linked_client_failures", "test_crashes", "test_read_through_cluster", "test_slow_sync", "test_unreadable_streams",
    "test_command_line_watching", "test_triggers", "test_execute", "test_refused_commands", "test_read_through_postgres",
    "test_read_through_sources", "test_write_behind_pressure", "test_readers_batch",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first; within a file nothing changes."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test whose server died, or has made a sanitizer complain, and attaches the servers' logs to failures."""
    report = yield
    servers = [*item.stash.get(SERVERS, []), *item.stash.get(SHARED, [])]
    if report.when == "call":
        for server in servers:
            if server.died() and not server.death_reported:
                server.death_reported = True
                report.longrepr = f"{report.longreprtext}\n{server.death_text()}".lstrip()
                report.outcome = "failed"
            if server.sanitizer_report():
                report.longrepr = f"{report.longreprtext}\n{server.sanitizer_report()}".lstrip()
                report.outcome = "failed"
    if report.failed:
        for server in servers:
            report.sections.append((f"log of {server.name} on port {server.port}", server.log_tail()))
    return report


def serve(config: pytest.Config, servers: list[Server], folder: Path) -> Generator[Callable[..., Server], None, None]:
    """A factory that notes what it starts in `servers`. In the end all of them are ended, and checked."""

    def start(
        *,
        module: bool = True,
        module_args: Sequence[Arg] = (),
        args: Sequence[Arg] = (),
        python_env: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Server:
        directory = folder / f"server-{len(servers)}"
        directory.mkdir()
        options: dict[str, Any] = {"module_args": module_args, "args": args, "python_env": python_env, "environment": environment}
        server = Server(config.stash[BINARY], config.getoption("--server"), directory, module=module, **options)
        servers.append(server)
        return server.start()

    yield start
    dead = [server for server in servers if server.died() and not server.death_reported]
    for server in servers:
        server.cleanup()
    if dead:
        pytest.fail("\n\n".join(server.death_text() for server in dead), pytrace=False)


@pytest.fixture
def start_server(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Callable[..., Server], None, None]:
    """Factory for servers: replicas, sources, cluster nodes. All are ended, and checked, after the test.

    `python_env` is the directory of a virtual environment (the module argument PythonVenv), `environment` what is added to its own.
    """
    servers: list[Server] = request.node.stash.setdefault(SERVERS, [])
    yield from serve(request.config, servers, tmp_path)


@pytest.fixture(scope="module")
def shared_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Cluster, None, None]:
    """Three shards for all tests of a file, which leave them as they found them: see `cluster`."""
    for start in serve(request.config, [], tmp_path_factory.mktemp("cluster")):
        cluster = make_cluster(start)
        for node in cluster.nodes:
            # Nobody stops them: who gets no processor for two seconds is not gone, and the cluster is not down.
            node.own.config_set("cluster-node-timeout", PATIENT_MS)
        yield cluster


@pytest.fixture
def cluster(request: pytest.FixtureRequest, shared_cluster: Cluster) -> Generator[Cluster, None, None]:
    """Three shards without data, registrations or executions. Tests that stop a node make a cluster of their own."""
    request.node.stash[SHARED] = [*request.node.stash.get(SHARED, []), *shared_cluster.nodes]
    yield shared_cluster
    shared_cluster.clear()
    for server in shared_cluster.nodes:
        server.disconnect()


@pytest.fixture(scope="module")
def shared_servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Lender, None, None]:
    """What lends the tests of a file one server after the other: see `server` and `borrow_server`."""
    servers: list[Server] = []
    for start in serve(request.config, servers, tmp_path_factory.mktemp("server")):
        yield Lender(start)


@pytest.fixture
def borrow_server(request: pytest.FixtureRequest, shared_servers: Lender) -> Generator[Callable[..., Server], None, None]:
    """As `start_server`, with `module_args` and `args`, for tests to which the server's past does not matter.

    The tests of a file share servers that are started alike, as long as they leave nothing behind that cannot be taken away.
    """
    borrowed: list[Server] = []

    def borrow(**arguments: Any) -> Server:
        server = shared_servers.lend(**arguments)
        borrowed.append(server)
        request.node.stash[SHARED] = [*request.node.stash.get(SHARED, []), server]
        return server

    yield borrow
    for server in borrowed:
        shared_servers.take_back(server)


@pytest.fixture
def server(request: pytest.FixtureRequest, borrow_server: Callable[..., Server]) -> Server:
    """A server with the module that is as a fresh one.

    The tests of a file share it as long as they leave nothing behind that cannot be taken away; the others get a new one.
    The mark `own_server` is for tests to which the server's past matters: ids, counters, threads, memory.
    """
    return borrow_server(fresh=request.node.get_closest_marker("own_server") is not None)


@pytest.fixture
def source(start_server: Callable[..., Server]) -> Server:
    """A fresh plain server, without the module."""
    return start_server(module=False)


@pytest.fixture(scope="module")
def shared_postgres() -> Generator[Postgres, None, None]:
    """One PostgreSQL for all tests of a file: see `postgres`."""
    database = Postgres()
    try:
        yield database.start()
    finally:
        database.cleanup()


@pytest.fixture
def postgres(shared_postgres: Postgres) -> Postgres:
    """A running PostgreSQL with an empty database. Tests may kill it: it is started again for the next one."""
    if not shared_postgres.alive():
        shared_postgres.start()
    shared_postgres.new_database("pinion")
    return shared_postgres
