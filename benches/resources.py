"""What the module takes besides time on the commands of clients: memory, and time to start (group `resources`).

Each scenario is a line with one figure and the most that it may be; nothing here runs in pairs but the start.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import herds
from client import HOST, Failure
from harness import RedisBenchmark, Server, wait_until
from loaders import herd, herd_calls

MIB = 2**20
STARTS = 5
WARM_UP = 100_000
TRIGGER = "GB('CommandReader').map(lambda record: 1).register(trigger='one', mode='sync', convertToStr=False)"
KEPT = "GB('KeysReader').map(lambda record: record['key']).register(prefix='key:*', eventTypes=['set'], mode='async_local')"
WAITING = """
import asyncio
async def wait(record):
    await asyncio.sleep(3600)
GB('CommandReader').map(wait).register(trigger='wait', mode='async_local')
"""


class Most(NamedTuple):
    """The largest figure that is good; None: measured without a goal."""

    value: Optional[float] = None

    def text(self) -> str:
        """For --list."""
        return "no goal" if self.value is None else f"goal <= {self.value:g}"


@dataclass(frozen=True)
class Resource:
    """One line of the report."""

    name: str
    description: str
    figure: Callable[[Path, int], tuple[float, str]]  # the value and the server's version
    shown_in: str  # what the value counts, e.g. MiB
    goal: Most
    requests: int
    unit: str = "requests"
    group: str = "resources"

    def measure(self, binary: Path, _repeat: int, requests: int) -> dict[str, Any]:
        """One measurement.

        # Raises `Failure`.
        """
        value, version = self.figure(binary, requests)
        return {"version": version, "requests": requests, "goal": self.goal.value, "value": value, "in": self.shown_in}


def resident(server: Server) -> int:
    """The resident memory of a server in bytes, without what its allocator could give back."""
    server.client.call("MEMORY", "PURGE")
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise Failure("the server's process has no VmRSS")


def idle(binary: Path, _: int) -> tuple[float, str]:
    """MiB that the module adds to a server which does nothing."""
    with Server(binary, "vanilla", module=False) as vanilla, Server(binary, "module", module=True) as module:
        return (resident(module) - resident(vanilla)) / MIB, module.version


def growth(binary: Path, requests: int) -> tuple[float, str]:
    """MiB that executions leave behind, after some that warm up."""
    with Server(binary, "module", module=True) as server:
        server.client.call("RG.PYEXECUTE", TRIGGER)
        load = RedisBenchmark(("RG.TRIGGER", "one"), 16, 1)
        load.run(server, WARM_UP)
        before = resident(server)
        load.run(server, requests)
        return (resident(server) - before) / MIB, server.version


def kept(binary: Path, requests: int) -> tuple[float, str]:
    """Bytes of one execution that is kept, with its result."""
    with Server(binary, "module", module=True) as server:
        for option in ("MaxExecutions", "MaxExecutionsPerRegistration"):
            server.client.call("RG.CONFIGSET", option, "0")
        server.client.call("RG.PYEXECUTE", KEPT)
        change(server, 0, 1000)
        before = resident(server)
        change(server, 1000, requests)
        return (resident(server) - before) / requests, server.version


def change(server: Server, first: int, number: int) -> None:
    """Sets one key again and again, and waits until the executions have ended."""
    for begin in range(0, number, 1000):
        server.client.pipeline([("SET", "key:1", "x") for _ in range(min(1000, number - begin))])
    wait_until(lambda: server.events()[1] >= first + number, 60, lambda: "all events are worked off")


def blocked(binary: Path, requests: int) -> tuple[float, str]:
    """Bytes of one client that waits for a coroutine, with its connection."""
    with Server(binary, "module", module=True) as server, contextlib.ExitStack() as open_sockets:
        server.client.call("RG.PYEXECUTE", WAITING)
        wait_for_clients(server, open_sockets, 50)
        before = resident(server)
        wait_for_clients(server, open_sockets, requests)
        return (resident(server) - before) / requests, server.version


def wait_for_clients(server: Server, open_sockets: contextlib.ExitStack, number: int) -> None:
    """Connects clients that wait for ever."""
    info = lambda: server.client.call("INFO", "clients").decode()  # noqa: E731
    waiting = lambda: int(info().split("blocked_clients:")[1].split()[0])  # noqa: E731
    wanted = waiting() + number
    for _ in range(number):
        connection = open_sockets.enter_context(socket.create_connection((HOST, server.port), 10))
        connection.sendall(b"RG.TRIGGER wait\r\n")
    wait_until(lambda: waiting() >= wanted, 60, lambda: "all clients wait")


def start(binary: Path, _: int) -> tuple[float, str]:
    """Milliseconds from the start of the process to its first reply, more than without the module."""
    times: dict[bool, list[float]] = {False: [], True: []}
    version = ""
    for _ in range(STARTS + 1):
        for module in times:
            begun = time.perf_counter()
            with Server(binary, "start", module=module) as server:
                times[module].append(time.perf_counter() - begun)
                version = server.version
    return (statistics.median(times[True][1:]) - statistics.median(times[False][1:])) * 1000, version


RESOURCES = {
    scenario.name: scenario
    for scenario in (
        Resource("memory-idle", "what the loaded module adds to the resident memory", idle, "MiB", Most(25), 1),
        Resource(
            "memory-growth",
            "what executions leave behind: RG.TRIGGER in mode sync, after 100,000 of them",
            growth,
            "MiB",
            Most(5),
            1_000_000,
        ),
        Resource("memory-kept", "an execution that is kept, with one result", kept, "bytes", Most(), 20_000, "events"),
        Resource(
            "memory-blocked",
            "a client that waits for a coroutine, with its connection",
            blocked,
            "bytes",
            Most(),
            1_000,
            "clients",
        ),
        Resource(
            "herd",
            "5,000 clients ask for the same cold key together, the tutorial's loader: until the last has its reply",
            herd,
            "ms",
            Most(),
            5_000,
            "clients",
        ),
        Resource("herd-calls", "how often the source is asked then", herd_calls, "calls", Most(), 5_000, "clients"),
        *(Resource(name, said, measure, shown_in, Most(), herds.CLIENTS, "clients") for name, said, measure, shown_in in herds.figures()),
        Resource(
            "start", f"time to the first reply, more than without the module; median of {STARTS}", start, "ms", Most(150), 1
        ),
    )
}
