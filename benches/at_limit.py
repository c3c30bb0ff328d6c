"""Caches at `maxmemory` (group `limit`): the hit rate of a read-through function against that of an application.

Both sides have the module loaded, ask for the same keys in turn (what LRU and LFU do depends on the clock), and may fill
the same memory. The application does cache-aside with redis-py; the function stores what it loads by `execute`. What
counts is how many percentage points lie between the two in the second half of the requests, when the caches are full.
"""

from __future__ import annotations

import bisect
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from client import HOST
from harness import Failure, Server
from resources import MIB, Most

SKEW = 0.8  # of Zipf's law: how much oftener the first keys are asked for
WARM_UP = 500
LOADER = """
def load(record):
    value = 'x' * {size}
    execute('SET', record['key'], value, 'EX', 600)
    override_reply(value)
GB('KeysReader').foreach(load).register(
    prefix='fun:*', commands=['get'], eventTypes=['keymiss'], mode='async_local', readValue=False)
"""


class Values(NamedTuple):
    """What is cached: about a third fits."""

    name: str
    size: int
    keys: int
    room: int  # bytes between what the server takes when it is empty and `maxmemory`


SMALL = Values("small", 300, 20_000, 2 * MIB)
LARGE = Values("large", 20_000, 2_400, 16 * MIB)


@dataclass(frozen=True)
class AtLimit:
    """One policy, with values of one size."""

    policy: str
    values: Values
    goal: Most = Most(2)
    requests: int = 30_000
    unit: str = "requests"
    group: str = "limit"

    @property
    def name(self) -> str:
        return f"limit-{self.policy}-{self.values.name}"

    @property
    def description(self) -> str:
        size = f"{self.values.size:,} bytes"
        return f"hit rate at maxmemory, {self.policy}, values of {size}: read-through against cache-aside"

    def measure(self, binary: Path, _repeat: int, requests: int) -> dict[str, Any]:
        """The difference, and both rates.

        # Raises `Failure`.
        """
        with Server(binary, "application", module=True) as own, Server(binary, "function", module=True) as other:
            sides = [Side(own, True, self), Side(other, False, self)]
            for place, number in enumerate(zipf(requests, self.values.keys)):
                if place == requests // 2:
                    for side in sides:
                        side.client.config_resetstat()
                for side in sides:
                    side.read(number)
            application, function = (side.hit_rate() for side in sides)
            return {
                "version": other.version,
                "requests": requests,
                "goal": self.goal.value,
                "value": abs(application - function),
                "in": "points",
                "detail": f"application {application:.1f} %, function {function:.1f} %",
            }


class Side:
    """A server whose cache is filled by its client (`aside`) or by the function."""

    def __init__(self, server: Server, aside: bool, scenario: AtLimit) -> None:
        import redis

        self.aside, self.value = aside, b"x" * scenario.values.size
        server.client.call("RG.PYEXECUTE", LOADER.format(size=scenario.values.size))
        self.client = redis.Redis(host=HOST, port=server.port)
        for number in range(WARM_UP):  # of both sides, so that Python takes the same memory
            self.client.get(f"fun:{number}")
        self.client.flushall()
        limit = int(self.client.info("memory")["used_memory"]) + scenario.values.room
        self.client.config_set("maxmemory-policy", scenario.policy)
        self.client.config_set("maxmemory", limit)

    def read(self, number: int) -> None:
        """Reads a key; a missing one is stored."""
        key = f"{'app' if self.aside else 'fun'}:{number}"
        found = self.client.get(key)
        if found is None and self.aside:
            self.client.set(key, self.value, ex=600)
        elif found != self.value:
            raise Failure(f"GET {key} gave {found!r:.20}")

    def hit_rate(self) -> float:
        """Percent of the reads since the figures were set to zero."""
        stats = self.client.info("stats")
        self.client.close()
        return 100 * stats["keyspace_hits"] / (stats["keyspace_hits"] + stats["keyspace_misses"])


def zipf(count: int, keys: int) -> Iterator[int]:
    """Numbers of keys as caches see them: few of them often. The same ones each time."""
    weights = list(itertools.accumulate(1 / (rank + 1) ** SKEW for rank in range(keys)))
    chooser = random.Random(1)
    for _ in range(count):
        yield bisect.bisect(weights, chooser.random() * weights[-1])


AT_LIMIT = {
    scenario.name: scenario
    for scenario in (
        AtLimit(policy, values)
        for values in (SMALL, LARGE)
        for policy in ("allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-ttl")
    )
}
