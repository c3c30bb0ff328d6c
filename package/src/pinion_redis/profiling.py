"""The text of RG.PYPROFILE as data: functions, who called whom, and a flame graph of that for speedscope.

cProfile knows how long each function ran for each of its callers, but not the whole stacks. A flame graph is made as gprof does: the
time of a function is shared among its callers in the proportion that was measured, on the way down from those that nobody called.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Optional

# Below this share of all time nothing is drawn.
_SMALLEST = 1e-4
_DEEPEST = 64
_ROW = re.compile(r"^\s*(?P<calls>\d+)(?:/(?P<primitive>\d+))?\s+(?P<own>[\d.]+)\s+[\d.]+\s+(?P<total>[\d.]+)\s+[\d.]+\s+(?P<name>\S.*)$")
_CALLER = re.compile(r"^(?P<callee>.*?)\s+<-\s*(?P<rest>.*)$")
_EDGE = re.compile(r"^\s*(?P<calls>\d+)(?:/\d+)?\s+(?P<own>[\d.]+)\s+(?P<total>[\d.]+)\s+(?P<caller>\S.*)$")


@dataclass
class Function:
    """Figures of one function: calls, and seconds without and with what it called."""

    name: str
    calls: int
    own_s: float
    total_s: float


@dataclass
class Profile:
    """Functions by name, and for each one its callers with the seconds (own, total) that it ran for them."""

    functions: dict[str, Function] = field(default_factory=dict)
    callers: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)

    @classmethod
    def merged(cls, profiles: list[Profile]) -> Profile:
        """The sums of several shards."""
        merged = cls()
        for profile in profiles:
            for name, function in profile.functions.items():
                known = merged.functions.setdefault(name, Function(name, 0, 0.0, 0.0))
                known.calls += function.calls
                known.own_s += function.own_s
                known.total_s += function.total_s
            for callee, callers in profile.callers.items():
                here = merged.callers.setdefault(callee, {})
                for caller, (own, total) in callers.items():
                    before = here.get(caller, (0.0, 0.0))
                    here[caller] = (before[0] + own, before[1] + total)
        return merged

    def by_time(self) -> list[Function]:
        """The functions that took most of the time first."""
        return sorted(self.functions.values(), key=lambda function: -function.own_s)


def parse(text: str) -> Profile:
    """Reads what `pstats` printed: statistics, then callers. Its columns have three decimals of a second."""
    profile = Profile()
    part = "statistics"
    callee: Optional[str] = None
    for line in text.splitlines():
        if line.startswith("Function") and "was called by" in line:
            part, callee = "callers", None
        elif line.startswith("Function") and "called..." in line:
            break
        elif part == "statistics":
            if row := _ROW.match(line):
                name = row["name"].strip()
                profile.functions[name] = Function(name, int(row["calls"]), float(row["own"]), float(row["total"]))
        else:
            if row := _CALLER.match(line):
                callee, line = row["callee"].strip(), row["rest"]
            if callee and (edge := _EDGE.match(line)):
                profile.callers.setdefault(callee, {})[edge["caller"].strip()] = (float(edge["own"]), float(edge["total"]))
    return profile


def speedscope(profile: Profile, name: str) -> dict[str, Any]:
    """A file of speedscope's: stacks as lists of frames, with the seconds that were spent exactly there."""
    frames: dict[str, int] = {}
    samples: list[list[int]] = []
    weights: list[float] = []
    callees: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for callee, callers in profile.callers.items():
        for caller, times in callers.items():
            if caller != callee:
                callees[caller][callee] = times
    roots = [function for function in profile.functions.values() if not set(profile.callers.get(function.name, {})) - {function.name}]
    whole = sum(function.total_s for function in roots) or 1.0

    def draw(stack: list[str], own: float, total: float) -> None:
        function = profile.functions.get(stack[-1])
        if total < whole * _SMALLEST or len(stack) > _DEEPEST:
            own = total
        if own > 0:
            samples.append([frames.setdefault(frame, len(frames)) for frame in stack])
            weights.append(own)
        if function is None or total <= own or not function.total_s:
            return
        share = min(1.0, total / function.total_s)
        for callee, (callee_own, callee_total) in sorted(callees[stack[-1]].items(), key=lambda item: -item[1][1]):
            if callee not in stack:
                draw([*stack, callee], callee_own * share, callee_total * share)

    for function in sorted(roots, key=lambda function: -function.total_s):
        draw([function.name], function.own_s, function.total_s)
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": name,
        "exporter": "pinion profile",
        "shared": {"frames": [{"name": frame} for frame in frames]},
        "profiles": [
            {
                "type": "sampled",
                "name": name,
                "unit": "seconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        ],
    }
