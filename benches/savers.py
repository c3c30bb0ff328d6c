"""Changes that are saved behind, as further lines of the group `linked`: the module with `write_behind` against a server without it.

`save` does nothing, so that what is measured is capturing, the queue and the calls; the values have 100 bytes, the hashes 5 fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from harness import Failure, RedisBenchmark, Server, wait_until
from scenarios import Goal, Scenario

KEYSPACE = 100_000
VALUE = "v" * 100
FIELDS = [word for number in range(5) for word in (f"field{number}", "v" * 20)]
SAVE = "write_behind('{prefix}:*', lambda changes: None, batch=500)"


def sets(pipeline: int) -> RedisBenchmark:
    """SET of values of 100 bytes."""
    return RedisBenchmark(("SET", "saved:__rand_int__", VALUE), pipeline, KEYSPACE)


def hsets(pipeline: int) -> RedisBenchmark:
    """HSET of hashes of 5 fields."""
    return RedisBenchmark(("HSET", "saved:__rand_int__", *FIELDS), pipeline, KEYSPACE)


@dataclass(frozen=True)
class Saver(Scenario):
    """A scenario whose commands are changes that are saved."""

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        module.client.call("RG.PYEXECUTE", SAVE.format(prefix="saved"))

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        if events is not None and events == 0:
            raise Failure(f"{runs} commands made no call of save")


@dataclass(frozen=True)
class Logged(Saver):
    """The same where both servers write an AOF file: each change is in it, and that it was saved."""

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        super().prepare(vanilla, module, around)
        for server in (vanilla, module):
            # No rewrite while something is measured, after the first one.
            words = ("appendfsync", "everysec", "auto-aof-rewrite-percentage", "0", "appendonly", "yes")
            for option, value in zip(words[::2], words[1::2]):
                server.client.call("CONFIG", "SET", option, value)
            wait_until(lambda: logs(server), 30, lambda: "the AOF file is there")

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        super().check(vanilla, module, events, runs)
        if not (logs(vanilla) and logs(module)):
            raise Failure("a server writes no AOF file")


def logs(server: Server) -> bool:
    """Whether it writes an AOF file, and rewrites none."""
    lines = server.client.call("INFO", "persistence").split()
    return b"aof_enabled:1" in lines and b"aof_rewrite_in_progress:0" in lines and b"aof_rewrite_scheduled:0" in lines


SAVERS = {
    scenario.name: scenario
    for scenario in (
        Saver("set-saved", "write_behind with a function that does nothing: SET of 100 bytes, pipeline 1", sets(1), sets(1), 200_000,
              goal=Goal.everywhere(0.85)),
        Saver("set-saved-pipelined", "the same at pipeline 16", sets(16), sets(16), 1_000_000, goal=Goal.everywhere(0.45)),
        Saver("hset-saved", "the same: HSET of 5 fields, pipeline 1", hsets(1), hsets(1), 200_000, goal=Goal.everywhere(0.85)),
        Saver("hset-saved-pipelined", "the same at pipeline 16", hsets(16), hsets(16), 600_000, goal=Goal.everywhere(0.45)),
        Logged("set-saved-logged", "write_behind and an AOF file (everysec) on both servers: SET of 100 bytes, pipeline 1", sets(1), sets(1),
               200_000, goal=Goal.everywhere(0.85)),
        Logged("set-saved-logged-pipelined", "the same at pipeline 16", sets(16), sets(16), 600_000, goal=Goal.everywhere(0.45)),
        Logged("hset-saved-logged", "the same: HSET of 5 fields, pipeline 1", hsets(1), hsets(1), 200_000, goal=Goal.everywhere(0.85)),
        Logged("hset-saved-logged-pipelined", "the same at pipeline 16", hsets(16), hsets(16), 600_000, goal=Goal.everywhere(0.45)),
    )
}  # fmt: skip
