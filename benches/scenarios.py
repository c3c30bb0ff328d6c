"""The group `linked`: what runs on the two servers, how it is known to work, and what it should reach.

harness.compare runs these scenarios, `run.py --list` prints them; the other groups are in batch.py. The loads of both
sides are anything with `run(server, requests) -> Sample`. `Scenario.check` runs before and after the measurement, on
plain connections: redis-benchmark verifies nothing, and a fast wrong reply is no result. redis-benchmark also takes one
of the machine's cores for itself (see harness.py), which the goals allow for: they were set on 2 cores.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Optional

from harness import Failure, Load, RedisBenchmark, Server, compare

KEYS = 1000
VALUE = b"value"
OVERRIDE = b"x"
# Few events share a key, as with a real cache: executions for one key wait for each other, those of others do not.
MISSING_KEYS = 1_000_000

PRESENT, MISSING = "key:__rand_int__", "missing:__rand_int__"
PRESENT_KEY, MISSING_KEY = (name.replace("__rand_int__", "0" * 12) for name in (PRESENT, MISSING))

KEYMISS = """
GB('KeysReader').foreach(lambda r: override_reply('x')).register(
    prefix='*', commands=['get'], eventTypes=['keymiss'], mode='{mode}')
"""


OTHER_KEYS = "GB('KeysReader').register(prefix='other:*', mode='async_local')"
# Of the keys that are there, with the value that they have.
SETS = RedisBenchmark(("SET", PRESENT, VALUE.decode()), 16, KEYS)


def hits(pipeline: int) -> RedisBenchmark:
    """GET of keys that are there."""
    return RedisBenchmark(("GET", PRESENT), pipeline, KEYS)


def misses(pipeline: int) -> RedisBenchmark:
    """GET of keys that are not there."""
    return RedisBenchmark(("GET", MISSING), pipeline, MISSING_KEYS)


class Goal(NamedTuple):
    """The least ratio of module to vanilla, median of the pairs; None: measured without a goal."""

    native: Optional[float] = None  # on servers with the native path of hits: Redis >= 7.2, Valkey
    others: Optional[float] = None  # on the rest, where every linked command is rewritten

    @staticmethod
    def everywhere(ratio: float) -> Goal:
        """The same for all servers."""
        return Goal(ratio, ratio)

    def text(self) -> str:
        """For --list."""
        if self.native == self.others:
            return "no goal" if self.native is None else f"goal >= {self.native:.2f}"
        native, others = ("none" if ratio is None else f">= {ratio:.2f}" for ratio in self)
        return f"goal {native} with native hits (Redis >= 7.2, Valkey), {others} without"


@dataclass(frozen=True)
class Scenario:
    """One line of the report."""

    name: str
    description: str
    vanilla: Load
    module: Load
    requests: int  # about one to two seconds for each run
    script: Optional[str] = None  # for RG.PYEXECUTE on the module server
    other_script: Optional[str] = None  # for the other one, which has the module then, too
    fires: bool = False  # whether each measured command is an event of the registration; if not, none may be
    goal: Goal = Goal()
    unit: str = "requests"
    group: str = "linked"
    only: str = ""  # how the names of the servers begin that can run it

    def measure(self, binary: Path, repeat: int, requests: int) -> dict[str, Any]:
        """What run.py keeps of one comparison.

        # Raises `Failure`.
        """
        comparison = compare(self, binary, repeat, requests)
        return {"goal": self.goal_on(comparison.native_hits), **comparison.as_json()}

    def goal_on(self, native_hits: bool) -> Optional[float]:
        """The goal where it applies."""
        return self.goal.native if native_hits else self.goal.others

    @contextlib.contextmanager
    def surroundings(self, _binary: Path) -> Iterator[Any]:
        """Whatever else must run; what it yields is given to `prepare`."""
        yield None

    def prepare(self, vanilla: Server, module: Server, around: Any = None) -> None:
        """The same keys on both servers, the registration on one."""
        for server in (vanilla, module):
            server.client.pipeline([("SET", f"key:{number:012}", VALUE.decode()) for number in range(KEYS)])
        if self.script is not None:
            module.client.call("RG.PYEXECUTE", self.script)

    def check(self, vanilla: Server, module: Server, events: Optional[int] = None, runs: int = 0) -> None:
        """Are the replies right? After the measurement also: did the registration see its commands, and only those?

        # Raises `Failure`.
        """
        for server in (vanilla, module):
            server.expect(("GET", PRESENT_KEY), VALUE)
            server.expect(("DBSIZE",), KEYS)
        vanilla.expect(("GET", MISSING_KEY), None)
        answers = self.script is not None and "override_reply" in self.script
        module.expect(("GET", MISSING_KEY), OVERRIDE if answers else None)
        if events is not None and (events < runs if self.fires else events != 0):
            raise Failure(f"{runs} commands made {events} events")


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "idle",
            "module loaded, nothing registered: GET hits, pipeline 16",
            vanilla=hits(16),
            module=hits(16),
            requests=2_000_000,
            goal=Goal.everywhere(0.99),
        ),
        Scenario(
            "idle-set",
            "module loaded, nothing registered: SET, pipeline 16",
            vanilla=SETS,
            module=SETS,
            requests=1_000_000,
            goal=Goal.everywhere(0.99),
        ),
        Scenario(
            "set-other-keys",
            "SET, pipeline 16, with a registration on the events of a prefix that fits none of the keys",
            vanilla=SETS,
            module=SETS,
            requests=1_000_000,
            script=OTHER_KEYS,
            goal=Goal.everywhere(0.97),
        ),
        Scenario(
            "hit",
            "a keymiss registration on GET: GET hits, pipeline 16",
            vanilla=hits(16),
            module=hits(16),
            requests=2_000_000,
            script=KEYMISS.format(mode="async_local"),
            goal=Goal(native=0.95),
        ),
        Scenario(
            "miss",
            "the same registration, constant override: GET misses against vanilla GET hits, pipeline 1",
            vanilla=hits(1),
            module=misses(1),
            requests=200_000,
            script=KEYMISS.format(mode="async_local"),
            fires=True,
            goal=Goal.everywhere(0.65),
        ),
        Scenario(
            "miss-pipelined",
            "the same at pipeline 16",
            vanilla=hits(16),
            module=misses(16),
            requests=400_000,
            script=KEYMISS.format(mode="async_local"),
            fires=True,
        ),
        Scenario(
            "sync",
            "the same at pipeline 16, in mode sync: the function runs on the server's own thread",
            vanilla=hits(16),
            module=misses(16),
            requests=1_000_000,
            script=KEYMISS.format(mode="sync"),
            fires=True,
        ),
    )
}
