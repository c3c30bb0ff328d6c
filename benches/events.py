"""Triggers, hooks, changes and streams, as further lines of the group `linked`: against what a user would do without them.

As in scenarios.py; the sides differ in more than the module, so each has its own preparation and check.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Optional

from client import HOST
from harness import Failure, RedisBenchmark, Sample, Server, wait_until
from scenarios import Goal, Scenario

CONSTANT = "return 1"
CONSTANT_SHA = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"
TRIGGER = "GB('CommandReader').map(lambda record: 1).register(trigger='one', mode='{mode}', convertToStr=False)"
HOOK = """
GB('CommandReader').map(lambda record: call_next(*record[1:])).register(hook='hset', keyprefix='hooked:', mode='sync')
"""
CHANGES = "GB('KeysReader').foreach(lambda record: None).register(prefix='key:*', eventTypes=['set'], mode='{mode}')"

STREAM = "entries"
STREAM_TIMEOUT_S = 120.0
PROCESS = """
GB('StreamReader').foreach(lambda record: execute('INCR', 'processed')).register(
    prefix='entries', batch={batch}, duration=10, mode='async_local')
"""


@dataclass(frozen=True)
class Events(Scenario):
    """A scenario whose replies and events are its own."""

    proof: tuple[tuple[str, ...], Any] = (("PING",), b"PONG")  # a command of the module's side, with its reply

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        vanilla.client.call("SCRIPT", "LOAD", CONSTANT)
        if self.script is not None:
            module.client.call("RG.PYEXECUTE", self.script)

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        module.expect(*self.proof)
        if events is not None and (events < runs if self.fires else events != 0):
            raise Failure(f"{runs} commands made {events} events")


@dataclass(frozen=True)
class Entries:
    """Adds entries to a stream, then measures how fast they are processed: `process` is told the server and their number."""

    process: Callable[[Server, int], None]

    def run(self, server: Server, requests: int) -> Sample:
        """Entries per second; there are no latencies."""
        done = int(server.client.call("INCRBY", "processed", "0"))
        for first in range(0, requests, 1000):
            some = range(first, min(first + 1000, requests))
            server.client.pipeline([("XADD", STREAM, "*", "number", str(number)) for number in some])
        begun = time.monotonic()
        self.process(server, done + requests)
        return Sample(requests / (time.monotonic() - begun), float("nan"), float("nan"))


def consumer(batch: int) -> Callable[[Server, int], None]:
    """A redis-py consumer that does what the function does, a batch at a time."""

    def process(server: Server, awaited: int) -> None:
        import redis

        client = redis.Redis(host=HOST, port=server.port)
        try:
            client.xgroup_create(STREAM, "group", "0", mkstream=True)
        except redis.ResponseError:
            pass  # it is there from the run before
        while int(client.get("processed") or 0) < awaited:
            [[_, entries]] = client.xreadgroup("group", "consumer", {STREAM: ">"}, count=batch)
            for _ in entries:
                client.incr("processed")
            pipe = client.pipeline()
            pipe.xack(STREAM, "group", *[identifier for identifier, _ in entries])
            pipe.xtrim(STREAM, minid=entries[-1][0], approximate=False)
            pipe.execute()
        client.close()

    return process


def registration(batch: int) -> Callable[[Server, int], None]:
    """The function in the server. Registered for each run, so that nothing is processed before the clock runs."""

    def process(server: Server, awaited: int) -> None:
        server.client.call("RG.PYEXECUTE", PROCESS.format(batch=batch), "ID", "stream", "UPGRADE")
        wait_until(
            lambda: int(server.client.call("GET", "processed") or 0) >= awaited,
            STREAM_TIMEOUT_S,
            lambda: f"{awaited} entries are processed",
        )
        server.client.call("RG.PYEXECUTE", "pass", "ID", "stream", "UPGRADE")

    return process


def trigger(name: str, pipeline: int, goal: Goal, mode: str = "sync") -> Events:
    """RG.TRIGGER against EVALSHA of a script that returns the same."""
    return Events(
        name,
        f"RG.TRIGGER of a function in mode {mode} against EVALSHA of `{CONSTANT}`, pipeline {pipeline}",
        vanilla=RedisBenchmark(("EVALSHA", CONSTANT_SHA, "0"), pipeline, 1),
        module=RedisBenchmark(("RG.TRIGGER", "one"), pipeline, 1),
        requests=100_000 if pipeline == 1 else 500_000,
        script=TRIGGER.format(mode=mode),
        fires=True,
        goal=goal,
        proof=(("RG.TRIGGER", "one"), [1]),
    )


def changes(mode: str) -> Events:
    """SET with a registration on its events."""
    command = RedisBenchmark(("SET", "key:__rand_int__", "value"), 1, 100_000)
    return Events(
        f"set-{mode}",
        f"SET with a registration in mode {mode} on its events, pipeline 1",
        vanilla=command,
        module=command,
        requests=100_000,
        script=CHANGES.format(mode=mode),
        fires=True,
    )


def stream(batch: int, goal: Goal) -> Events:
    """Entries of one stream."""
    return Events(
        f"stream-{batch}",
        f"a stream, one INCR per entry, batches of {batch}, against a redis-py consumer group; entries per second",
        vanilla=Entries(consumer(batch)),
        module=Entries(registration(batch)),
        requests=20_000,
        fires=False,
        goal=goal,
        unit="entries",
    )


EVENTS = {
    scenario.name: scenario
    for scenario in (
        trigger("trigger", 1, Goal.everywhere(0.9)),
        trigger("trigger-pipelined", 16, Goal.everywhere(1.2)),
        trigger("trigger-async", 1, Goal(), mode="async_local"),
        Events(
            "hook-other-keys",
            "HSET of keys that a hook on `hset` is not about, pipeline 16",
            vanilla=RedisBenchmark(("HSET", "key:__rand_int__", "field", "value"), 16, 100_000),
            module=RedisBenchmark(("HSET", "key:__rand_int__", "field", "value"), 16, 100_000),
            requests=1_000_000,
            script=HOOK,
            goal=Goal.everywhere(0.95),
        ),
        changes("sync"),
        changes("async_local"),
        stream(1, Goal()),
        stream(100, Goal.everywhere(5.0)),
    )
}
