"""Work over all keys, in the server and in a client (group `batch`), and how long it holds the server up (`stall`).

run.py calls `measure` of each scenario, report.py shows what it returns. A scenario fills one server with the module
and does the same work in two ways, in turn: redis-py by SCAN and pipelined reads, and a script in the server. Both must
come to the same result in every run. `stall` times PINGs from a process of its own while walks run.
"""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import socket
import statistics
import tempfile
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple, Optional

from client import HOST, Client, Failure
from harness import RUN_TIMEOUT_S, Server

if TYPE_CHECKING:
    import redis

KEYS = 1_000_000
FILL_AT_ONCE = 20_000  # keys for each EVAL, far below the time after which the server calls a script slow
SCAN_COUNT = 1000

STALL_GOAL_MS = 5.0
PIP = "pip installs a package of 500 files"
TRIGGER = "`RG.TRIGGER` of a `sync` function, beside a worker that computes"
TRIGGER_GOAL_MS = 10.0
COMPUTES = """
def compute(record):
    while True:
        sum(range(1000))
GB('ShardsIDReader').map(compute).run()
"""
STALL_S = 10.0  # of PINGs for each line
STALL_S_PER_KEY = 1e-4  # less of them where there are fewer keys: `--smoke`
PING_PAUSE_S = 0.0002  # a client that never pauses would keep a core of its own busy, and the server's thread as well


class Data(NamedTuple):
    """What the keys hold."""

    fill: str  # Lua: makes the key `name` from `number`
    read: Callable[[Any, str], Any]  # queues the read of one key on a pipeline of redis-py


STRINGS = Data("redis.call('SET', name, number)", lambda pipeline, name: pipeline.get(name))
HASHES = Data(
    "redis.call('HSET', name, 'name', 'user ' .. number, 'city', 'city ' .. number % 10, 'age', number % 100)",
    lambda pipeline, name: pipeline.hgetall(name),
)


def fill(server: Server, data: Data, keys: int) -> None:
    """Makes the keys `key:<number>`, without a client's time for each of them."""
    script = f"for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do local name = 'key:' .. number {data.fill} end"
    for first in range(0, keys, FILL_AT_ONCE):
        server.client.call("EVAL", script, "0", str(first), str(min(first + FILL_AT_ONCE, keys) - 1))
    server.expect(("DBSIZE",), keys)


def scan(client: redis.Redis, **options: Any) -> Iterator[list[str]]:
    """The names of all keys, as many at once as SCAN gives."""
    cursor = 0
    while True:
        cursor, names = client.scan(cursor, count=SCAN_COUNT, **options)
        if names:
            yield names
        if cursor == 0:
            return


def values(client: redis.Redis, data: Data) -> Iterator[Any]:
    """The values of all keys, one round trip for those of one SCAN."""
    for names in scan(client):
        pipeline = client.pipeline(transaction=False)
        for name in names:
            data.read(pipeline, name)
        yield from pipeline.execute()


def count_by(items: Iterator[str]) -> dict[str, int]:
    """What a careful client would write."""
    counts: dict[str, int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    return counts


def single(results: list[Any]) -> Any:
    """The result of a script that counts."""
    return results[0] if results else 0


def groups(results: list[Any]) -> dict[str, int]:
    """The result of `countby`: each group as a flat list of names and values."""
    return {key.decode(): count for _, key, _, count in results}


@dataclass(frozen=True)
class Ratio:
    """The least ratio of the client's time to the module's, median of the pairs; None: measured without a goal."""

    least: Optional[float] = None

    def text(self) -> str:
        """For --list."""
        return "no goal" if self.least is None else f"goal >= {self.least:g} times faster than the client"


@dataclass(frozen=True)
class Work:
    """The same work for both: one line of the report."""

    name: str
    description: str
    data: Data
    script: str
    result: Callable[[list[Any]], Any]  # of the script, to be compared with what the client returns
    client: Callable[[redis.Redis], Any]
    goal: Ratio
    requests: int = KEYS
    unit: str = "keys"
    group: str = "batch"

    def measure(self, binary: Path, repeat: int, requests: int) -> dict[str, Any]:
        """`repeat` pairs after one discarded pair, on one server.

        # Raises `Failure`.
        """
        import redis  # the only scenarios that need a package

        times: dict[str, list[float]] = {"client": [], "module": []}
        with Server(binary, "module", module=True) as server:
            fill(server, self.data, requests)
            memory: Optional[Memory] = None
            with closing_client(server.port) as client:
                for pair in range(repeat + 1):
                    try:
                        of_client, client_s = timed(lambda: self.client(client))
                    except redis.RedisError as error:
                        raise Failure(f"{self.name}: the client got an error: {error}") from None
                    # Memory begins here: what filling the server has left behind would hide what a run takes.
                    memory = memory or Memory(server)
                    with memory.watched():
                        of_module, module_s = timed(lambda: self.run_script(server.port))
                    if of_client != of_module:
                        raise Failure(f"{self.name}: client and module found {of_client!r:.200}, {of_module!r:.200}")
                    if pair > 0:  # the first pair warms up: allocator, caches, worker threads
                        times["client"].append(client_s)
                        times["module"].append(module_s)
            ratios = [client_s / module_s for client_s, module_s in zip(times["client"], times["module"])]
            return {
                "version": server.version,
                "requests": requests,
                "client_s": times["client"],
                "module_s": times["module"],
                "ratios": ratios,
                "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
                "goal": self.goal.least,
                "extra_bytes": memory.most_extra if memory else 0,
            }

    def run_script(self, port: int) -> Any:
        """Sends the script and waits for its result."""
        return self.result(run_script(port, self.script))


@contextmanager
def closing_client(port: int) -> Iterator[redis.Redis]:
    """redis-py as most programs use it: replies as `str`."""
    import redis

    client = redis.Redis(HOST, port, decode_responses=True, socket_timeout=RUN_TIMEOUT_S)
    try:
        yield client
    finally:
        client.close()


def run_script(port: int, script: str, *words: str) -> list[Any]:
    """The results of a script that runs something; an error of the execution is a `Failure`."""
    client = Client(port, RUN_TIMEOUT_S)
    try:
        results, errors = client.call("RG.PYEXECUTE", script, *words)
    finally:
        client.close()
    if errors:
        raise Failure(f"{script}: {errors[0].decode(errors='replace')}")
    return results


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returned, and its seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


class Memory:
    """How far the resident memory of a server rises above what it is now."""

    def __init__(self, server: Server) -> None:
        server.client.call("MEMORY", "PURGE")
        self._folder = Path(f"/proc/{server.pid}")
        self._before = self._status("VmRSS")
        self.most_extra = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Takes the peak of what happens inside into account."""
        (self._folder / "clear_refs").write_text("5")  # the peak begins anew
        yield
        self.most_extra = max(self.most_extra, self._status("VmHWM") - self._before)

    def _status(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise Failure(f"{self._folder}/status has no {name}")


@dataclass(frozen=True)
class Stall:
    """How long a command waits: on the idle server, beside a process that computes, while walks run in a row, while pip
    installs a package, and behind Python that computes in the background."""

    name: str
    description: str
    data: Data
    walks: dict[str, str]  # scripts by their names in the report
    requests: int = KEYS
    unit: str = "keys"
    group: str = "stall"

    @dataclass(frozen=True)
    class Goal:
        """The longest PING during walks."""

        most_ms: float

        def text(self) -> str:
            """For --list."""
            return f"goal <= {self.most_ms:g} ms"

    goal: Goal = Goal(STALL_GOAL_MS)

    def measure(self, binary: Path, _repeat: int, requests: int) -> dict[str, Any]:
        """One stretch of PINGs for each line.

        # Raises `Failure`.
        """
        seconds = min(STALL_S, max(0.3, requests * STALL_S_PER_KEY))
        with Server(binary, "module", module=True) as server:
            fill(server, self.data, requests)
            walks = {name: functools.partial(run_script, server.port, script) for name, script in self.walks.items()}
            for walk in walks.values():
                walk()  # warms up
            nothing = functools.partial(time.sleep, seconds)
            lines = [pings("idle", server.port, seconds, nothing)]
            with busy_process():
                lines.append(pings("idle, beside a process that computes", server.port, seconds, nothing))
            lines += [pings(name, server.port, seconds, walk) for name, walk in walks.items()]
            with package() as install:
                lines.append(pings(PIP, server.port, seconds, functools.partial(run_script, server.port, *install)))
            with busy_function(server):
                lines.append(pings(TRIGGER, server.port, seconds, nothing, b"RG.TRIGGER one\r\n"))
            return {
                "version": server.version,
                "requests": requests,
                "goal": self.goal.most_ms,
                "lines": lines,
                "idle_ms": max(line["max_ms"] for line in lines if line["name"].startswith("idle")),
                "max_ms": max(line["max_ms"] for line in lines if line["name"] in walks),
                "goals": {TRIGGER: TRIGGER_GOAL_MS},
            }


@contextmanager
def package() -> Iterator[list[str]]:
    """The words of RG.PYEXECUTE that make pip build a package and install it, without a network."""
    with tempfile.TemporaryDirectory(prefix="pinion-bench-package-") as folder:
        wheel = Path(folder) / "pinion_bench-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as files:
            info = "pinion_bench-1.0.dist-info"
            for number in range(500):
                files.writestr(f"pinion_bench/part{number}.py", "x = 1\n" * 100)
            files.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pinion-bench\nVersion: 1.0\n")
            files.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            files.writestr(f"{info}/RECORD", "")
        yield ["GB('ShardsIDReader').run()", "FORCE_REINSTALL_REQUIREMENTS", "REQUIREMENTS", str(wheel)]


@contextmanager
def busy_function(server: Server) -> Iterator[None]:
    """A function that computes on a worker, and a trigger that runs at once."""
    server.client.call("RG.PYEXECUTE", "GB('CommandReader').map(lambda r: 1).register(trigger='one', mode='sync')")
    execution = server.client.call("RG.PYEXECUTE", COMPUTES, "UNBLOCKING").decode()
    try:
        yield
    finally:
        server.client.call("RG.ABORTEXECUTION", execution)


def pings(
    name: str, port: int, seconds: float, work: Callable[[], Any], command: bytes = b"PING\r\n"
) -> dict[str, Any]:
    """Times a command in another process while `work` is done again and again for `seconds`."""
    ours, theirs = multiprocessing.Pipe()
    prober = multiprocessing.Process(target=ping_until_told, args=(port, theirs, command), daemon=True)
    prober.start()
    theirs.close()
    try:
        if not ours.poll(RUN_TIMEOUT_S) or ours.recv() != "begun":
            raise Failure(f"{name}: the process that sends PINGs did not begin")
        started, runs = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            work()
            runs += 1
        ours.send("end")
        if not ours.poll(RUN_TIMEOUT_S):
            raise Failure(f"{name}: the process that sends PINGs did not end")
        waits = sorted(ours.recv())
    except (EOFError, OSError):
        raise Failure(f"{name}: the process that sends PINGs ended") from None
    finally:
        prober.kill()
        prober.join()
    return {
        "name": name,
        "runs": runs,
        "pings": len(waits),
        "p50_ms": percentile(waits, 0.5) * 1000,
        "p999_ms": percentile(waits, 0.999) * 1000,
        "max_ms": waits[-1] * 1000,
    }


def ping_until_told(port: int, pipe: Connection, command: bytes) -> None:
    """The process of `pings`: sends back how long each command took, in seconds."""
    with socket.create_connection((HOST, port), RUN_TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waits: list[float] = []
        pipe.send("begun")
        for number in itertools.count():
            started = time.perf_counter()
            connection.sendall(command)
            if not connection.recv(64):
                return
            waits.append(time.perf_counter() - started)
            if number % 64 == 0 and pipe.poll():
                break
            time.sleep(PING_PAUSE_S)
        pipe.send(waits)


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that only computes: what a busy core does to PINGs has nothing to do with the server."""
    process = multiprocessing.Process(target=compute_for_ever, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def compute_for_ever() -> None:
    """Keeps one core busy."""
    for number in itertools.count():
        math.sqrt(number)


def percentile(ordered: list[float], part: float) -> float:
    """The value that `part` of an ordered list does not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)]


def map_filter(value: str) -> str:
    """The script that keeps one value in a hundred."""
    return f"GB().map(lambda r: int({value}) % 100).filter(lambda n: n == 99).run(convertToStr=False)"


BATCH = {
    scenario.name: scenario
    for scenario in (
        Work(
            "count",
            "`GB().count().run()` over strings; the client adds up what SCAN gives",
            STRINGS,
            "GB().count().run(convertToStr=False)",
            single,
            lambda client: sum(len(names) for names in scan(client)),
            Ratio(15),
        ),
        Work(
            "count-hashes",
            "the same over hashes of three fields",
            HASHES,
            "GB().count().run(convertToStr=False)",
            single,
            lambda client: sum(len(names) for names in scan(client)),
            Ratio(15),
        ),
        Work(
            "count-walk",
            "`GB().count().run('key:*')`: the names must be looked at; the client uses SCAN with MATCH",
            STRINGS,
            "GB().count().run('key:*', convertToStr=False)",
            single,
            lambda client: sum(len(names) for names in scan(client, match="key:*")),
            Ratio(),
        ),
        Work(
            "names",
            "`GB('KeysOnlyReader')`, a lambda that tests each name, `count`; the client does so with what SCAN gives",
            STRINGS,
            "GB('KeysOnlyReader').filter(lambda name: name.endswith('7')).count().run(convertToStr=False)",
            single,
            lambda client: sum(name.endswith("7") for names in scan(client) for name in names),
            Ratio(5),
        ),
        Work(
            "countby",
            "`countby` with a lambda over strings, ten groups; the client uses pipelined GET",
            STRINGS,
            "GB().countby(lambda r: r['value'][-1]).run(convertToStr=False)",
            groups,
            lambda client: count_by(value[-1] for value in values(client, STRINGS)),
            Ratio(5),
        ),
        Work(
            "countby-hashes",
            "the same over hashes of three fields; the client uses pipelined HGETALL",
            HASHES,
            "GB().countby(lambda r: r['value']['city']).run(convertToStr=False)",
            groups,
            lambda client: count_by(value["city"] for value in values(client, HASHES)),
            Ratio(5),
        ),
        Work(
            "map-filter",
            "`map` and `filter` with lambdas over strings, one in a hundred passes; the client uses pipelined GET",
            STRINGS,
            map_filter("r['value']"),
            len,
            lambda client: sum(int(value) % 100 == 99 for value in values(client, STRINGS)),
            Ratio(5),
        ),
        Work(
            "map-filter-hashes",
            "the same over hashes of three fields; the client uses pipelined HGETALL",
            HASHES,
            map_filter("r['value']['age']"),
            len,
            lambda client: sum(int(value["age"]) % 100 == 99 for value in values(client, HASHES)),
            Ratio(5),
        ),
        Stall(
            "stall",
            "a command every 0.2 ms from another process (PING, but for the last line), while something else goes on",
            HASHES,
            {
                "`GB().count().run('key:*')`": "GB().count().run('key:*', convertToStr=False)",
                "`GB().filter(lambda r: False).run()`": "GB().filter(lambda r: False).run(convertToStr=False)",
            },
        ),
    )
}
