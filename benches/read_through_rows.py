"""`read_through` (docs/contract/read-through.md), as further lines of the groups `linked` and `resources`: against the function of
the tutorial, against itself without batches, against an application that does the same with redis-py; a herd, an outage, waiting
clients.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import random
import selectors
import signal
import socket
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable, Iterator, Optional

from client import HOST, Client, as_dict
from harness import Failure, Sample, Server, in_process, wait_until
from loaders import FILL, Fresh, Loader, loader, together
from resources import Most, Resource, resident
from scenarios import KEYMISS, Goal, Scenario, hits

HIT = "read_through('*', lambda key: 'x', ttl=3600, stale=600, refresh_ahead=0.2)"
CONSTANT = "read_through('user:*', lambda key: 'value', ttl=3600)"
# What the tutorial's function does when its source has answered.
TUTORIAL = """
def fetch(record):
    execute('SET', record['key'], 'value')
    override_reply('value')
GB('KeysReader').foreach(fetch).register(prefix='user:*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
"""
CONNECT = """
import threading
import redis
threads = threading.local()
def source():
    if not hasattr(threads, 'source'):
        threads.source = redis.Redis(port={port}, decode_responses=True, socket_timeout=5, protocol=2)
    return threads.source
"""
ONE = CONNECT + "read_through('user:*', lambda key: source().mget([key])[0], ttl=3600)"
BATCH = CONNECT + "read_through('user:*', lambda keys: source().mget(keys), ttl=3600, batch=100)"
HERD = """
import asyncio
@read_through('user:*', ttl=3600, max_waiting=100000)
async def load(key):
    await asyncio.sleep(0.01)
    return 'value'
"""
OUTAGE_S, OUTAGE_KEYS, MOST_BACKOFF_S = 10, 100, 2
OUTAGE = CONNECT + "read_through('user:*', lambda key: source().get(key), ttl=0.2, stale=60, backoff=0.1, max_backoff=2)"
SLEEPER = """
import asyncio
@read_through('wait:*', max_waiting=100000, max_load_time=3600)
async def load(key):
    await asyncio.sleep(3600)
"""
ENDLESS = """
import asyncio
async def sleep(record):
    await asyncio.sleep(3600)
GB('KeysReader').map(sleep).run()
"""

ZIPF_KEYS, ZIPF_EXPONENT = 50_000, 1.0
THREADS = 8


# --- an application with keys of which some are popular ---


def popular_keys(seed: int) -> Iterator[str]:
    """Names of keys by Zipf's law, endlessly."""
    weights = list(itertools.accumulate(1 / rank**ZIPF_EXPONENT for rank in range(1, ZIPF_KEYS + 1)))
    chance = random.Random(seed)
    while True:
        yield f"user:{bisect.bisect(weights, chance.random() * weights[-1]) * 7919 % 1_000_000:012}"


@dataclass(frozen=True)
class Popular:
    """Reads popular keys of an empty cache from a process of its own."""

    work: Callable[[int, Optional[int], int, Connection], None]

    def run(self, server: Server, requests: int) -> Sample:
        """Requests per second, and how long one took."""
        server.client.call("FLUSHALL")
        return in_process(self.work, server.port, server.source_port, requests)


def locked_cache_aside(cache_port: int, source_port: Optional[int], requests: int, pipe: Connection) -> None:
    """What an application does by hand: look in the cache; who gets the lock of a missing key asks the source, the others look
    again a moment later."""
    import redis

    cache = redis.Redis(HOST, cache_port, decode_responses=True)
    source = redis.Redis(HOST, source_port, decode_responses=True, protocol=2)
    waits: list[float] = []

    def fetch(key: str) -> str:
        while True:
            value = cache.get(key)
            if value is not None:
                return str(value)
            if cache.set("lock:" + key, "1", nx=True, ex=10):
                value = source.get(key)
                cache.set(key, value, ex=3600)
                cache.delete("lock:" + key)
                return str(value)
            time.sleep(0.001)

    def work(seed: int) -> None:
        for key in itertools.islice(popular_keys(seed), requests // THREADS):
            begun = time.perf_counter()
            assert fetch(key) == "value"
            waits.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if len(waits) == requests // THREADS * THREADS:
        pipe.send((time.perf_counter() - begun, waits))


def plain_readers(cache_port: int, _: Optional[int], requests: int, pipe: Connection) -> None:
    """50 clients that only say GET."""
    keys = popular_keys(0)
    selector, waits, sent = selectors.DefaultSelector(), [], 0

    def send(connection: socket.socket) -> None:
        nonlocal sent
        sent += 1
        begins[connection] = time.perf_counter()
        connection.sendall(b"GET %s\r\n" % next(keys).encode())

    begins: dict[socket.socket, float] = {}
    connections = [socket.create_connection((HOST, cache_port)) for _ in range(50)]
    begun = time.perf_counter()
    for connection in connections:
        selector.register(connection, selectors.EVENT_READ)
        send(connection)
    while len(waits) < sent:
        for ready, _events in selector.select():
            connection = ready.fileobj  # type: ignore[assignment]
            assert connection.recv(100) == b"$5\r\nvalue\r\n"
            waits.append(time.perf_counter() - begins[connection])
            if sent < requests:
                send(connection)
    pipe.send((time.perf_counter() - begun, waits))


@dataclass(frozen=True)
class Sharing(Loader):
    """Not every read is an event."""

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        super().check(vanilla, module)


@dataclass(frozen=True)
class Registered(Scenario):
    """The module on both sides, with another script."""

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        super().prepare(vanilla, module, around)
        vanilla.client.call("RG.PYEXECUTE", self.other_script or "")

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        for server in (vanilla, module):
            server.expect(("GET", "key:000000000001"), b"value")


# --- figures of their own ---


def herd(binary: Path, clients: int) -> tuple[float, str]:
    """How long the last of the herd waits, as a share of what it may: twice the time of as many hits, and 10 ms."""
    with Server(binary, "module", module=True) as cache:
        cache.client.call("RG.PYEXECUTE", HERD)
        cold = together(cache.port, clients)[-1]
        loads = data_of(cache)[b"loads"]
        if loads != 1:
            raise Failure(f"{loads} loads for one key")
        warm = together(cache.port, clients)[-1]
        return cold / (2 * warm + 0.01), cache.version


def data_of(server: Server) -> dict[bytes, Any]:
    """What RG.DUMPREGISTRATIONS tells of the first registration."""
    return as_dict(as_dict(server.client.call("RG.DUMPREGISTRATIONS")[0])[b"RegistrationData"])


def outage(binary: Path, _: int) -> tuple[float, str]:
    """Loads while the source is down under load, as a share of what back-off allows. A client that sees anything but a value is a
    failure of the scenario."""
    keys = [f"user:{number:012}" for number in range(OUTAGE_KEYS)]
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Server(binary, "source", module=False))
        source.client.call("EVAL", FILL, "0")
        cache = stack.enter_context(Server(binary, "module", module=True))
        cache.client.call("RG.PYEXECUTE", OUTAGE.format(port=source.port))
        if cache.client.pipeline([("GET", key) for key in keys]) != [b"value"] * OUTAGE_KEYS:
            raise Failure("the keys were not loaded")
        os.kill(source.pid, signal.SIGKILL)
        time.sleep(0.3)  # all values are stale by now
        before, begun, wrong = data_of(cache)[b"loads"], time.monotonic(), []

        def read() -> None:
            client = Client(cache.port)
            while time.monotonic() < begun + OUTAGE_S:
                replies = client.pipeline([("GET", key) for key in keys])
                wrong.extend(reply for reply in replies if reply != b"value")
            client.close()

        readers = [threading.Thread(target=read) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        if wrong:
            raise Failure(f"{len(wrong)} clients saw {wrong[0]!r}")
        lasted = time.monotonic() - begun
        # Of a key: after 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, ... seconds, each of them shortened by up to a half.
        allowed = OUTAGE_KEYS * (5 + 2 * lasted / MOST_BACKOFF_S)
        return (data_of(cache)[b"loads"] - before) / allowed, cache.version


def waiting(binary: Path, clients: int) -> tuple[float, str]:
    """Bytes of a client that waits for a load, more than of one that is blocked and waits for nothing else."""
    sizes = []
    for command in (b"RG.GETRESULTSBLOCKING %s\r\n", b"GET wait:0\r\n"):
        with Server(binary, "module", module=True) as server, contextlib.ExitStack() as open_sockets:
            server.client.call("SET", "one", "key")
            server.client.call("RG.PYEXECUTE", SLEEPER)
            execution = server.client.call("RG.PYEXECUTE", ENDLESS, "UNBLOCKING")
            words = command % execution if b"%s" in command else command
            connect(server, open_sockets, words, 50)
            before = resident(server)
            connect(server, open_sockets, words, clients)
            sizes.append((resident(server) - before) / clients)
            version = server.version
    return sizes[1] - sizes[0], version


def connect(server: Server, open_sockets: contextlib.ExitStack, words: bytes, number: int) -> None:
    """Connects clients that wait for ever."""
    info = lambda: server.client.call("INFO", "clients").decode()  # noqa: E731
    blocked = lambda: int(info().split("blocked_clients:")[1].split()[0])  # noqa: E731
    wanted = blocked() + number
    for _ in range(number):
        open_sockets.enter_context(socket.create_connection((HOST, server.port), 10)).sendall(words)
    wait_until(lambda: blocked() >= wanted, 60, lambda: "all clients wait")


READ_THROUGH = {
    scenario.name: scenario
    for scenario in (
        Registered(
            "read-through-hit",
            "GET hits, pipeline 16, with ttl, stale and refresh_ahead, against a keymiss function with commands=['get']",
            vanilla=hits(16),
            module=hits(16),
            requests=2_000_000,
            script=HIT,
            other_script=KEYMISS.format(mode="async_local"),
        ),
        loader(
            "read-through-cold",
            "cold keys, pipeline 1, a constant loader, against the tutorial's function with a constant",
            vanilla=Fresh(),
            module=Fresh(),
            script=CONSTANT,
            other_script=TUTORIAL,
            slow=True,
            requests=50_000,
            goal=Goal.everywhere(1.5),
        ),
        Sharing(
            "read-through-batch",
            "200 clients, distinct keys, a source that takes 5 ms: batch=100 against one key a call, default ExecutionThreads",
            vanilla=Fresh(200),
            module=Fresh(200),
            script=BATCH,
            other_script=ONE,
            slow=True,
            fires=True,
            requests=2_000,
            goal=Goal.everywhere(10),
        ),
        Sharing(
            "read-through-zipf",
            "popular keys (Zipf's law), a source that takes 5 ms, 50 clients and batch=100, against cache-aside with a lock key by"
            " redis-py from 8 threads",
            vanilla=Popular(locked_cache_aside),
            module=Popular(plain_readers),
            script=BATCH,
            slow=True,
            requests=40_000,
            fires=True,
            goal=Goal.everywhere(3.0),
        ),
        Resource(
            "read-through-herd",
            "5,000 clients on one cold key, a loader of 10 ms: until the last reply, as a share of twice the time of 5,000 hits and 10 ms",
            herd,
            "of what it may take",
            Most(1),
            5_000,
            "clients",
        ),
        Resource(
            "read-through-outage",
            f"a source that is down for {OUTAGE_S} s under load, {OUTAGE_KEYS} warm keys, stale=60: loads, as a share of what back-off allows",
            outage,
            "of what back-off allows, no error",
            Most(1),
            1,
        ),
        Resource(
            "read-through-waiting",
            "a client that waits for a load, more than one that is blocked by RG.GETRESULTSBLOCKING",
            waiting,
            "bytes",
            Most(2048),
            2_000,
            "clients",
        ),
    )
}
