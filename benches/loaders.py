"""Loaders of missing keys, as further lines of the group `linked`: the module against what an application would do itself.

The source of the values is another server on this machine, or a process that takes its time like a database. Both sides
begin each run with an empty cache and read keys that the source has.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Iterator, Optional

from client import HOST
from harness import Failure, RedisBenchmark, Sample, Server, free_port, in_process, wait_until
from scenarios import Goal, Scenario

KEYSPACE = 1_000_000  # of the source; a run reads a small part of it, so that nearly every read is a miss
VALUE = b"value"
FILL = f"for i = 0, {KEYSPACE - 1} do redis.call('SET', string.format('user:%012d', i), 'value') end"
DELAY_S = 0.005  # of the slow source

THREADS = """
import redis
source = None
def fetch(record):
    global source
    if source is None:
        source = redis.Redis(port={port}, decode_responses=True)
    value = source.get(record['key'])
    execute('SET', record['key'], value, 'EX', 3600)
    override_reply(value)
GB('KeysReader').foreach(fetch).register(prefix='user:*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
"""
COROUTINES = """
import redis.asyncio
def connect():
    global source
    pool = redis.asyncio.BlockingConnectionPool(port={port}, decode_responses=True, max_connections=200, timeout=20)
    source = redis.asyncio.Redis(connection_pool=pool)
async def fetch(record):
    value = await source.get(record['key'])
    execute('SET', record['key'], value, 'EX', 3600)
    override_reply(value)
GB('KeysReader').foreach(fetch).register(
    prefix='user:*', commands=['get'], eventTypes=['keymiss'], mode='async_local', onRegistered=connect)
"""


@dataclass(frozen=True)
class Loader(Scenario):
    """A scenario with a source."""

    slow: bool = False  # the source answers after DELAY_S

    @contextlib.contextmanager
    def surroundings(self, binary: Path) -> Iterator[int]:
        """The port of the source."""
        if self.slow:
            with slow_source() as port:
                yield port
            return
        with Server(binary, "source", module=False) as source:
            source.client.call("EVAL", FILL, "0")
            yield source.port

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        for server, script in ((vanilla, self.other_script), (module, self.script)):
            server.source_port = around
            if script is not None:
                server.client.call("RG.PYEXECUTE", script.format(port=around))

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        module.client.call("DEL", "user:000000000001")
        module.expect(("GET", "user:000000000001"), VALUE)
        if events is not None and events < runs // 2:
            raise Failure(f"{runs} commands made {events} events: most keys were there already")


@dataclass(frozen=True)
class Fresh:
    """Empties the cache, then reads keys through the module."""

    clients: int = 50

    def run(self, server: Server, requests: int) -> Sample:
        """One run of redis-benchmark."""
        server.client.call("FLUSHALL")
        return RedisBenchmark(("GET", "user:__rand_int__"), 1, KEYSPACE, self.clients).run(server, requests)


@dataclass(frozen=True)
class Application:
    """Cache-aside in a process with threads: look in the cache, else ask the source and store what it says."""

    threads: int
    aside: bool = True  # False: the module does it, the application only reads

    def run(self, server: Server, requests: int) -> Sample:
        """Requests per second, and how long one took."""
        server.client.call("FLUSHALL")
        return in_process(application, server.port, server.source_port if self.aside else None, self.threads, requests)


def application(cache_port: int, source_port: Optional[int], threads: int, requests: int, pipe: Connection) -> None:
    """The process of `Application`."""
    import redis

    cache = redis.Redis(HOST, cache_port, decode_responses=True)
    source = redis.Redis(HOST, source_port, decode_responses=True) if source_port else None
    numbers, waits = iter(range(requests)), []

    def work() -> None:
        for number in numbers:
            key = f"user:{number * 7919 % KEYSPACE:012}"
            begun = time.perf_counter()
            value = cache.get(key)
            if value is None and source is not None:
                value = source.get(key)
                cache.set(key, value, ex=3600)
            waits.append(time.perf_counter() - begun)
            assert value == "value", value

    begun = time.perf_counter()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if len(waits) == requests:
        pipe.send((time.perf_counter() - begun, waits))


@contextlib.contextmanager
def slow_source() -> Iterator[int]:
    """A source that answers each GET and MGET with `value`, DELAY_S later; many at a time."""
    port = free_port()
    process = multiprocessing.Process(target=serve_slowly, args=(port,), daemon=True)
    process.start()
    try:
        wait_until(lambda: answers(port), 10, lambda: "the slow source listens")
        yield port
    finally:
        process.kill()
        process.join()


def answers(port: int) -> bool:
    import socket

    try:
        socket.create_connection((HOST, port), 1).close()
        return True
    except OSError:
        return False


def serve_slowly(port: int) -> None:
    """The process of `slow_source`: as much of a Redis server as redis-py needs."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            while head := await reader.readline():
                words = []
                for _ in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                if words[0].upper() in (b"GET", b"MGET"):
                    await asyncio.sleep(DELAY_S)
                    values = b"$5\r\nvalue\r\n" * (len(words) - 1)
                    writer.write(values if words[0].upper() == b"GET" else b"*%d\r\n%s" % (len(words) - 1, values))
                else:
                    writer.write(b"+OK\r\n")
        writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(answer, HOST, port, backlog=1000) as server:
            await server.serve_forever()

    asyncio.run(serve())


@contextlib.contextmanager
def cold_cache(binary: Path) -> Iterator[tuple[Server, Server]]:
    """A source with all keys, and a cache with the tutorial's loader and none."""
    with Server(binary, "source", module=False) as source, Server(binary, "module", module=True) as cache:
        source.client.call("EVAL", FILL, "0")
        cache.client.call("RG.PYEXECUTE", THREADS.format(port=source.port))
        yield source, cache


def herd(binary: Path, clients: int) -> tuple[float, str]:
    """Milliseconds until the last of many clients that ask for one cold key together has its reply."""
    with cold_cache(binary) as (_, cache):
        return together(cache.port, clients)[-1] * 1000, cache.version


def herd_calls(binary: Path, clients: int) -> tuple[float, str]:
    """How often the source is asked for that."""
    with cold_cache(binary) as (source, cache):
        together(cache.port, clients)
        stats = source.client.call("INFO", "commandstats").decode()
        return float(stats.split("cmdstat_get:calls=")[1].split(",")[0]), cache.version


def together(port: int, clients: int) -> list[float]:
    """How long each of the clients waits, in seconds, the longest last."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=ask_together, args=(port, clients, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(120):
            raise Failure("not all clients of the herd got their reply")
        return sorted(ours.recv())
    except EOFError:
        raise Failure("the herd ended with an error") from None
    finally:
        process.kill()
        process.join()


def ask_together(port: int, clients: int, pipe: Connection) -> None:
    """The process of `Herd`: connects all clients, then lets them ask."""

    async def connect(gate: asyncio.Semaphore) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with gate:
            return await asyncio.open_connection(HOST, port)

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
        writer.write(b"GET user:000000000007\r\n")
        assert await reader.readexactly(11) == b"$5\r\nvalue\r\n"
        return time.perf_counter()

    async def main() -> None:
        gate = asyncio.Semaphore(200)
        connections = await asyncio.gather(*[connect(gate) for _ in range(clients)])
        begun = time.perf_counter()
        ends = await asyncio.gather(*[ask(*connection) for connection in connections])
        pipe.send([end - begun for end in ends])

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(main())


def loader(name: str, description: str, **more: Any) -> Loader:
    """One line, with the loader of the tutorial unless it says otherwise."""
    more = {"script": THREADS, "requests": 20_000, "fires": True, **more}
    return Loader(name, description, **more)


LOADERS = {
    scenario.name: scenario
    for scenario in (
        loader(
            "loader",
            "the tutorial's loader, 50 clients, against cache-aside with redis-py from one process with 8 threads",
            vanilla=Application(8),
            module=Fresh(),
            goal=Goal.everywhere(3.0),
        ),
        loader(
            "loader-alone",
            "the same with one redis-py client on both sides",
            vanilla=Application(1),
            module=Application(1, aside=False),
            goal=Goal.everywhere(1 / 1.2),
            requests=5_000,
        ),
        loader(
            "async-loader",
            "a coroutine on the loop against the same function on three workers; 200 clients, a source that takes 5 ms",
            vanilla=Fresh(200),
            module=Fresh(200),
            script=COROUTINES,
            other_script=THREADS,
            slow=True,
            requests=2_000,
        ),
    )
}
