"""What a measurement needs: a server in a directory of its own, a bare client, redis-benchmark, and the comparison.

run.py calls `compare` for each scenario and server: two servers with the same binary, one with the module (`module`)
and one without (`vanilla`), measured in turn (A B A B), so that a slow change of the machine touches both sides of a
pair. Everything runs on one machine: redis-benchmark fills a core by itself, so on 2 cores the server's thread and the
module's workers share what is left. The ratio of a pair is the result; the absolute figures say little elsewhere.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Optional, Protocol, Sequence

from client import HOST, Client, Failure, as_dict

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60
REPLY_TIMEOUT_S = 60
DEATH_TIMEOUT_S = 2
LOG_LINES = 100
RUN_TIMEOUT_S = 600
WORK_TIMEOUT_S = 300


def module_path() -> Path:
    """The module to measure: $PINION_MODULE or the release build, as in the tests."""
    return Path(os.environ.get("PINION_MODULE") or ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release/libpinion.so").resolve()


def wait_until(predicate: Callable[[], bool], timeout_s: float, failure: Callable[[], str]) -> None:
    """Polls until `predicate()` is true; raises `Failure` with the text of `failure()` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise Failure(f"not within {timeout_s} s: {failure()}")
        time.sleep(0.005)


def free_port() -> int:
    """A port nobody listens on, below the range from which the system gives ports to clients."""
    for _ in range(1000):
        port = random.randrange(22000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return port
            except OSError:
                continue
    raise Failure("no free port found")


class Server:
    """One server process on a free port, alive inside `with`. Keeps nothing: no RDB, no AOF, a scratch directory."""

    def __init__(self, binary: Path, side: str, *, module: bool, file: Optional[Path] = None, args: Sequence[str] = ()) -> None:
        """`file`: another module than the one to measure."""
        self.binary, self.side, self.module, self.args = binary, side, module, args
        self.file = file or module_path()
        self.version = ""
        self.native_hits = False
        self.source_port: Optional[int] = None

    def __enter__(self) -> Server:
        self.dir = Path(tempfile.mkdtemp(prefix=f"pinion-bench-{self.side}-"))
        self.log_path = self.dir / "server.log"
        self.port = free_port()
        line = [str(self.binary), "--port", str(self.port), "--bind", HOST, "--dir", str(self.dir)]
        line += ["--save", "", "--appendonly", "no", *self.args]
        if self.module:
            line += ["--loadmodule", str(self.file)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                line, cwd=self.dir, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_until(self._answers, START_TIMEOUT_S, lambda: f"the {self.side} server answers PING")
            self.client = Client(self.port)
            self._learn()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], _: Optional[TracebackType]
    ) -> None:
        try:
            if hasattr(self, "client"):
                self.client.close()
            if isinstance(error, Failure):
                self._explain(error)
        finally:
            self._process.kill()  # nothing is kept, so there is nothing to end gently
            self._process.wait()
            shutil.rmtree(self.dir, ignore_errors=True)

    def _explain(self, failure: Failure) -> None:
        """Adds the log, unless this is the vanilla server and it is alive: then the reason is elsewhere."""
        ended = self._end_of_process() if self.module else self._process.poll()
        if self.module or ended is not None:
            state = "was alive" if ended is None else f"had ended with status {ended}"
            tail = "\n".join(self.log_path.read_text(errors="replace").splitlines()[-LOG_LINES:])
            failure.args = (f"{failure}\n--- the {self.side} server {state}; its log:\n{tail}",)

    def _end_of_process(self) -> Optional[int]:
        """The exit status if the server died. One that crashes closes its connections before its report is written."""
        try:
            return self._process.wait(DEATH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise Failure(f"the {self.side} server did not start")
        try:
            probe = Client(self.port)
        except OSError:
            return False  # not listening yet
        try:
            return probe.call("PING") == b"PONG"
        except Failure:
            return False  # still loading
        finally:
            probe.close()

    def _learn(self) -> None:
        info = dict(re.findall(r"^(\w+):(.*?)\r?$", self.client.call("INFO", "server").decode(), re.MULTILINE))
        if int(info["process_id"]) != self._process.pid:
            raise Failure(f"another server answers on port {self.port}")
        valkey = info.get("valkey_version")
        self.version = valkey or info["redis_version"]
        numbers = tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])
        # What the native path of hits needs: the server tells a command filter which client it is.
        self.native_hits = valkey is not None or numbers >= (7, 2)

    def expect(self, command: tuple[str, ...], wanted: Any) -> None:
        """Waits for this reply: redis-benchmark itself looks at no reply but errors."""
        seen: list[Any] = []

        def arrived() -> bool:
            seen[:] = [self.client.call(*command)]
            return bool(seen[0] == wanted)

        text = " ".join(command)
        wait_until(arrived, REPLY_TIMEOUT_S, lambda: f"{self.side}: {text} gives {wanted!r}, last seen {seen[0]!r}")

    def events(self) -> tuple[int, int, int]:
        """How many events the registrations have seen, how many of these are finished, how many went wrong."""
        triggered = finished = wrong = 0
        for entry in self.client.call("RG.DUMPREGISTRATIONS") if self.module else ():
            data = as_dict(as_dict(entry)[b"RegistrationData"])
            bad = data[b"numFailures"] + data[b"numAborted"]
            triggered += data[b"numTriggered"]
            finished += data[b"numSuccess"] + bad
            wrong += bad
        return triggered, finished, wrong


@dataclass(frozen=True)
class Sample:
    """What one run gave."""

    ops: float
    p50_ms: float
    p99_ms: float


class Load(Protocol):
    """Anything that can be measured on a server. A load that is no redis-benchmark command needs only this."""

    def run(self, server: Server, requests: int) -> Sample: ...


@dataclass(frozen=True)
class RedisBenchmark:
    """A command for redis-benchmark; it replaces `__rand_int__` by 12 digits below `keyspace`."""

    command: tuple[str, ...]
    pipeline: int
    keyspace: int
    clients: int = 50

    def run(self, server: Server, requests: int) -> Sample:
        """One run of redis-benchmark."""
        line = ["redis-benchmark", "-h", HOST, "-p", str(server.port), "-q", "--csv", "--precision", "3"]
        line += ["-c", str(self.clients), "-P", str(self.pipeline), "-n", str(requests), "-r", str(self.keyspace)]
        try:
            done = subprocess.run([*line, *self.command], capture_output=True, text=True, timeout=RUN_TIMEOUT_S)
        except FileNotFoundError:
            raise Failure("redis-benchmark is not in PATH: make setup-test") from None
        except subprocess.TimeoutExpired:
            raise Failure(f"{server.side}: redis-benchmark did not end within {RUN_TIMEOUT_S} s") from None
        rows = list(csv.DictReader(done.stdout.splitlines()))
        if done.returncode != 0 or len(rows) != 1 or "rps" not in rows[0]:
            said = (done.stderr + done.stdout).strip()
            raise Failure(f"{server.side}: redis-benchmark ended with status {done.returncode} and said: {said}")
        row = rows[0]
        sample = Sample(float(row["rps"]), float(row["p50_latency_ms"]), float(row["p99_latency_ms"]))
        if not (math.isfinite(sample.ops) and sample.ops > 0):
            raise Failure(f"{requests} requests are too few to measure: redis-benchmark counts whole milliseconds")
        return sample


def in_process(work: Callable[..., None], *arguments: Any) -> Sample:
    """Runs `work(*arguments, pipe)` in a process of its own, which sends the seconds that it took, and how long each operation did.

    # Raises `Failure`.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=work, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(WORK_TIMEOUT_S):
            raise Failure(f"{work.__name__} did not end")
        seconds, waits = ours.recv()
    except EOFError:
        raise Failure(f"{work.__name__} ended with an error") from None
    finally:
        process.kill()
        process.join()
    waits.sort()
    return Sample(len(waits) / seconds, waits[len(waits) // 2] * 1000, waits[len(waits) * 99 // 100] * 1000)


@dataclass(frozen=True)
class Comparison:
    """Pairs of runs, vanilla first, and the facts of the servers that made them."""

    version: str
    native_hits: bool
    requests: int
    vanilla: list[Sample] = field(default_factory=list)
    module: list[Sample] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Module to vanilla, pair by pair."""
        return [module.ops / vanilla.ops for vanilla, module in zip(self.vanilla, self.module)]

    def as_json(self) -> dict[str, Any]:
        """Every figure, and what they come to."""
        ratios = self.ratios()
        return {
            **asdict(self),
            "ratios": ratios,
            "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
            "vanilla_ops": statistics.median(sample.ops for sample in self.vanilla),
            "module_ops": statistics.median(sample.ops for sample in self.module),
        }


def compare(scenario: Any, binary: Path, repeat: int, requests: int) -> Comparison:
    """Starts both servers, prepares and checks them, runs `repeat` pairs after one discarded pair.

    `scenario` is a `scenarios.Scenario`.

    # Raises `Failure`.
    """
    with (
        scenario.surroundings(binary) as around,
        Server(binary, "vanilla", module=scenario.other_script is not None) as vanilla,
        Server(binary, "module", module=True) as module,
    ):
        scenario.prepare(vanilla, module, around)
        scenario.check(vanilla, module)
        before = module.events()[0]
        result = Comparison(module.version, module.native_hits, requests)
        measure_pairs(result, (scenario.vanilla, vanilla), (scenario.module, module), repeat, requests)
        settled(module)
        scenario.check(vanilla, module, events=module.events()[0] - before, runs=(repeat + 1) * requests)
        return result


def measure_pairs(result: Comparison, other: tuple[Load, Server], module: tuple[Load, Server], repeat: int, requests: int) -> None:
    """Runs `repeat` pairs after one that is discarded: it warms up the allocator, caches and worker threads."""
    for pair in range(repeat + 1):
        samples = [load.run(server, requests) for load, server in (other, module)]
        if pair > 0:
            result.vanilla.append(samples[0])
            result.module.append(samples[1])


def settled(module: Server) -> None:
    """Waits until every event has been worked off; none may have gone wrong."""
    wait_until(lambda: module.events()[0] == module.events()[1], REPLY_TIMEOUT_S, lambda: "all events are worked off")
    wrong = module.events()[2]
    if wrong:
        raise Failure(f"{wrong} executions failed or were aborted")


def progress(text: str) -> None:
    """A line for the person who waits; results go to standard output."""
    print(text, file=sys.stderr, flush=True)
