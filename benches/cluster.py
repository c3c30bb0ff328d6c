"""Executions over three shards of a cluster on this machine, beside the same on one server (group `cluster`).

Three servers share the cores of one machine with each other, so these figures show what distribution costs, not what more
machines give. Each scenario is a line with one figure.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from pathlib import Path
from typing import Callable, Iterator

from client import HOST, Client, Failure
from harness import RUN_TIMEOUT_S, Server, free_port, wait_until
from resources import Most, Resource

SHARDS = 3
RANGES = [(0, 5460), (5461, 10922), (10923, 16383)]
TAGS = ["06S", "8M", "63n"]  # texts whose slot is the first one of each shard
RUNS = 3
SMALL_RUNS = 200
FILL_AT_ONCE = 20_000
FILL = """
for number = tonumber(ARGV[2]), tonumber(ARGV[3]) do
    redis.call('SET', '{' .. ARGV[1] .. '}' .. number, 'word' .. number % 1000 .. ' text' .. number % 10)
end
"""
WORDS = "GB('KeysReader').flatmap(lambda r: r['value'].split()).countby().count().run()"
GROUPS = "GB('KeysReader').groupby(lambda r: r['value'], lambda k, a, r: (a or 0) + 1).count().run()"
MOVED = "GB('KeysReader').repartition(lambda r: r['key'][-6:]).count().run()"
SMALL = "GB('ShardsIDReader').count().run()"


def call(server: Server, *words: str) -> str:
    """A command whose reply is text."""
    reply = server.client.call(*words)
    return reply.decode() if isinstance(reply, bytes) else str(reply)


@contextlib.contextmanager
def shards(binary: Path, count: int) -> Iterator[list[Server]]:
    """One server, or a cluster of them whose links are up."""
    with contextlib.ExitStack() as stack:
        if count == 1:
            yield [stack.enter_context(Server(binary, "module", module=True))]
            return
        ports = [free_port() for _ in range(count)]
        options = [["--cluster-enabled", "yes", "--cluster-port", str(port)] for port in ports]
        servers = [stack.enter_context(Server(binary, "module", module=True, args=args)) for args in options]
        for number, server in enumerate(servers):
            call(server, "CLUSTER", "ADDSLOTSRANGE", *map(str, RANGES[number]))
            call(server, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            if number:
                call(servers[0], "CLUSTER", "MEET", HOST, str(server.port), str(ports[number]))
        for server in servers:
            linked = lambda server=server: f"rg_links_connected:{count - 1}" in call(server, "INFO", "rg_cluster")
            wait_until(linked, 30, lambda: "all shards are linked")
            up = lambda server=server: "cluster_state:ok" in call(server, "CLUSTER", "INFO")
            wait_until(up, 30, lambda: "the cluster is up")
        yield servers


def fill(servers: list[Server], keys: int) -> None:
    """Small strings, the same number on each shard."""
    share = keys // len(servers)
    for server, tag in zip(servers, TAGS):
        for first in range(0, share, FILL_AT_ONCE):
            last = min(first + FILL_AT_ONCE, share) - 1
            server.client.call("EVAL", FILL, "0", tag, str(first), str(last))


def timed(server: Server, script: str) -> float:
    """Seconds that a script takes; a script with errors fails."""
    client = Client(server.port, RUN_TIMEOUT_S)
    try:
        begun = time.perf_counter()
        reply = client.call("RG.PYEXECUTE", script)
        seconds = time.perf_counter() - begun
    finally:
        client.close()
    if not isinstance(reply, list) or reply[1]:
        raise Failure(f"{script} gave {reply!r}")
    return seconds


def records_per_s(count: int, script: str) -> Callable[[Path, int], tuple[float, str]]:
    """Thousands of keys a second that a script reads on `count` shards; median of some runs."""

    def figure(binary: Path, keys: int) -> tuple[float, str]:
        with shards(binary, count) as servers:
            fill(servers, keys)
            timed(servers[0], SMALL)
            seconds = statistics.median(timed(servers[0], script) for _ in range(RUNS))
            return keys / seconds / 1000, servers[0].version

    return figure


def moved(binary: Path, keys: int) -> tuple[float, str]:
    """Thousands of records a second that go from one shard to another one."""
    with shards(binary, SHARDS) as servers:
        fill(servers, keys)
        timed(servers[0], SMALL)
        seconds = statistics.median(timed(servers[0], MOVED) for _ in range(RUNS))
        return keys * (SHARDS - 1) / SHARDS / seconds / 1000, servers[0].version


def messages(binary: Path, runs: int) -> tuple[float, str]:
    """Messages between all shards for one small execution. Those about registrations are too few to matter."""
    sent = lambda server: int(call(server, "INFO", "rg_cluster").split("rg_messages_sent:")[1].split()[0])  # noqa: E731
    with shards(binary, SHARDS) as servers:
        timed(servers[0], SMALL)
        before = sum(map(sent, servers))
        runs = min(runs, SMALL_RUNS)
        for _ in range(runs):
            timed(servers[0], SMALL)
        return (sum(map(sent, servers)) - before) / runs, servers[0].version


def latency(count: int) -> Callable[[Path, int], tuple[float, str]]:
    """Milliseconds of a small execution, median."""

    def figure(binary: Path, runs: int) -> tuple[float, str]:
        with shards(binary, count) as servers:
            timed(servers[0], SMALL)
            return statistics.median(timed(servers[0], SMALL) for _ in range(min(runs, SMALL_RUNS))) * 1000, servers[0].version

    return figure


def scenario(name: str, description: str, figure: Callable[[Path, int], tuple[float, str]], shown_in: str) -> Resource:
    """One of the lines; those about keys read a million of them."""
    of_keys = shown_in.startswith("k")
    requests, unit = (1_000_000, "keys") if of_keys else (SMALL_RUNS, "executions")
    return Resource(name, description, figure, shown_in, Most(), requests, unit, "cluster")


CLUSTER = {
    scenario.name: scenario
    for scenario in (
        scenario("words-1", "word count on one server", records_per_s(1, WORDS), "k keys/s"),
        scenario("words-3", "the same on three shards", records_per_s(SHARDS, WORDS), "k keys/s"),
        scenario("groups-1", "group-by in Python on one server", records_per_s(1, GROUPS), "k keys/s"),
        scenario("groups-3", "the same on three shards: two of three records move", records_per_s(SHARDS, GROUPS), "k keys/s"),
        scenario("moved-3", "records that move between three shards (`repartition`)", moved, "k records/s"),
        scenario("latency-1", "a small execution on one server", latency(1), "ms"),
        scenario("latency-3", "the same on three shards", latency(SHARDS), "ms"),
        scenario("messages-3", "messages for it, between all shards", messages, "messages"),
    )
}
