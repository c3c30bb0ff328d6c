"""`make bench`, `make bench-smoke`: measures the module and prints a table for each group of scenarios.

    python benches/run.py --server redis-8.2 --scenario hit --check --json results.json
    python benches/run.py --server redis-8.2 --group batch --group stall
    python benches/run.py --server redis-8.2 --scenario hit --against 3e44fc5

Group `linked`: against the same server without the module. `batch`: against a client that does the same work. `stall`:
how long the server is held up; it needs no pairs. `resources`: memory and start. `limit`: hit rates at maxmemory.
`cluster`: three shards beside one server. With --against the other side is the module of an earlier commit.

Exit status: 0; 1 if a scenario is broken, the module was rebuilt meanwhile or, with --check, a goal is missed; 2 for
wrong arguments. Timings without --check never fail a run. redis-benchmark runs on the same machine and takes a core
for itself: on 2 cores the server's thread and the workers share the other, and anything else that runs (a compiler,
tests) makes the figures worthless.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn, Optional, Union

import report
from against import Against, built
from at_limit import AT_LIMIT, AtLimit
from batch import BATCH, Stall, Work
from cluster import CLUSTER
from events import EVENTS
from harness import ROOT, Failure, module_path, progress
from loaders import LOADERS
from read_through_rows import READ_THROUGH
from resources import RESOURCES, Resource
from saved_elsewhere import ELSEWHERE
from savers import SAVERS
from scenarios import SCENARIOS, Scenario
from scripts import SCRIPTS

sys.path.append(str(ROOT / "tests"))
import servers  # noqa: E402  the binaries are those of the tests

AnyScenario = Union[Scenario, Work, Stall, Resource, AtLimit, Against]

EVERY: dict[str, AnyScenario] = {**SCENARIOS, **EVENTS, **LOADERS, **SAVERS, **ELSEWHERE, **BATCH, **RESOURCES, **AT_LIMIT, **CLUSTER, **READ_THROUGH, **SCRIPTS}
GROUPS = list(dict.fromkeys(scenario.group for scenario in EVERY.values()))
DEFAULT_SERVERS = ["redis-7.0", "redis-8.2"]
DEFAULT_REPEAT = 5
SMOKE_REPEAT = 1
SMOKE_SHARE = 50  # of what each scenario measures with otherwise
SMOKE_SERVERS = ("redis-8.2",)
BUSY_LOAD = 0.5
SOURCES = ("src", "python", "build.rs", "Cargo.toml", "Cargo.lock")  # what the module is made of


def parse() -> argparse.Namespace:
    """The command line; wrong ones end here."""
    parser = argparse.ArgumentParser(description="Measure Pinion against the same server without it, or a client.")
    names = ", ".join(servers.SERVERS)
    parser.add_argument("--server", action="append", metavar="NAME", help=f"{names}, or a path (repeatable)")
    parser.add_argument("--scenario", action="append", choices=EVERY, metavar="NAME", help="see --list (repeatable)")
    parser.add_argument("--group", action="append", choices=GROUPS, help="all scenarios of a group (repeatable)")
    parser.add_argument("--repeat", type=positive, metavar="N", help=f"measured pairs of runs ({DEFAULT_REPEAT})")
    parser.add_argument("--requests", type=positive, metavar="N", help="requests of each run, or keys (by scenario)")
    parser.add_argument("--against", metavar="COMMIT", help="compare with the module of a commit, or of a file")
    parser.add_argument("--smoke", action="store_true", help="everything once, briefly: does it work?")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed where it applies")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure and the facts of the machine")
    parser.add_argument("--list", action="store_true", help="print the scenarios and end")
    arguments = parser.parse_args()
    if arguments.smoke and arguments.check:
        parser.error("--smoke judges no timing, so it cannot be used with --check")
    arguments.repeat = arguments.repeat or (SMOKE_REPEAT if arguments.smoke else DEFAULT_REPEAT)
    return arguments


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def choose(arguments: argparse.Namespace, earlier: Optional[Path]) -> list[AnyScenario]:
    """What was asked for; everything if nothing was. With an earlier module: those of two sides that get the same commands."""
    names, groups = arguments.scenario or [], arguments.group or []
    chosen: list[AnyScenario]
    if not names and not groups:
        chosen = list(EVERY.values())
    else:
        chosen = [scenario for scenario in EVERY.values() if scenario.name in names or scenario.group in groups]
    if earlier is None:
        return chosen
    return [Against(scenario, earlier) for scenario in chosen if isinstance(scenario, Scenario) and type(scenario).measure is Scenario.measure]


def servers_for(scenario: AnyScenario, asked: list[str] | tuple[str, ...]) -> list[str]:
    """The names of the servers to run it on: those that were asked for, or one that it fits, if none of them does."""
    only = getattr(scenario, "only", "")
    return [name for name in asked if name.startswith(only)] or [name for name in servers.SERVERS if name.startswith(only)][-1:]


def describe(scenario: AnyScenario) -> str:
    """Two lines for --list."""
    details = f"group {scenario.group}; {scenario.goal.text()}; {scenario.requests:,} {scenario.unit} a run"
    return f"{scenario.name:<18}{scenario.description}\n{'':<18}{details}"


def output_of(*line: str) -> str:
    """What a small tool prints; empty if it cannot."""
    try:
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def package_version(name: str) -> str:
    """That of an installed package; empty if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine_facts() -> dict[str, Any]:
    """What the figures depend on, outside this repository."""
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_1min": os.getloadavg()[0],
        "python": platform.python_version(),
        "redis_benchmark": output_of("redis-benchmark", "--version"),
        "redis_py": package_version("redis"),
        "hiredis": package_version("hiredis"),
    }


def module_facts() -> dict[str, Any]:
    """Which module: the commit checked out now, and the file itself, which may be older than the commit."""
    return {
        "commit": output_of("git", "rev-parse", "--short=12", "HEAD") or "unknown",
        "dirty": bool(output_of("git", "status", "--porcelain", "--", *SOURCES)),
        "file": str(module_path()),
        "sha256": hashlib.sha256(module_path().read_bytes()).hexdigest(),
    }


def measure(scenario: AnyScenario, server: str, binary: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One entry of the results; a scenario that does not work gives one with `error`."""
    usual = max(1, scenario.requests // SMOKE_SHARE) if arguments.smoke else scenario.requests
    repeat, requests = arguments.repeat, arguments.requests or usual
    result: dict[str, Any] = {"scenario": scenario.name, "group": scenario.group, "server": server}
    result["description"] = scenario.description
    pairs = "" if isinstance(scenario, (Stall, Resource, AtLimit)) else f"{repeat} x 2 runs of "
    progress(f"{scenario.name} on {server}: {pairs}{requests:,} {scenario.unit}")
    try:
        measured = scenario.measure(binary, repeat, requests)
        if report.is_noisy(measured) and not arguments.smoke:
            progress(f"{scenario.name} on {server}: the machine was too noisy, once more")
            measured = min(measured, scenario.measure(binary, repeat, requests), key=report.spread)
        return {**result, **measured}
    except Failure as failure:
        progress(f"BROKEN: {scenario.name} on {server}: {failure}")
        return {**result, "goal": None, "error": str(failure)}


def end_by_signal(number: int, _: object) -> NoReturn:
    """SIGTERM as an exception, so that the servers end with us."""
    raise SystemExit(128 + number)


def main() -> int:
    """Runs what was asked for and returns the exit status."""
    arguments = parse()
    signal.signal(signal.SIGTERM, end_by_signal)
    if arguments.list:
        print("\n".join(describe(scenario) for scenario in choose(arguments, None)))
        return 0
    try:
        earlier, other = built(arguments.against) if arguments.against else (None, None)
    except Failure as failure:
        print(f"pinion: {failure}", file=sys.stderr)
        return 1
    chosen = choose(arguments, earlier)
    if not module_path().exists():
        print(f"pinion: {module_path()} does not exist: make build", file=sys.stderr)
        return 1
    defaults = SMOKE_SERVERS if arguments.smoke else DEFAULT_SERVERS
    try:
        asked = arguments.server or defaults
        used = dict.fromkeys(name for scenario in chosen for name in servers_for(scenario, asked))
        binaries = {name: servers.binary(name) for name in used}
    except servers.ServerUnavailable as error:
        print(f"pinion: {error}", file=sys.stderr)
        return 1
    document: dict[str, Any] = {
        "format": report.FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine_facts(),
        "module": module_facts(),
        "against": other,
        "settings": {"repeat": arguments.repeat, "requests": arguments.requests, "smoke": arguments.smoke},
        "results": [],
    }
    if document["machine"]["load_1min"] > BUSY_LOAD and not arguments.smoke:
        progress(f"the machine is busy (load {document['machine']['load_1min']:.2f}): take no figure seriously")
    for scenario in chosen:
        for name in servers_for(scenario, asked):
            document["results"].append(measure(scenario, name, binaries[name], arguments))
    changed = module_facts()["sha256"] != document["module"]["sha256"]
    if changed:
        progress("the module was built anew meanwhile: the figures are not those of one module")
    print(report.table(document))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    broken = [result for result in document["results"] if "error" in result]
    for result in broken:  # once more, where somebody looks who sees only the end
        progress(f"BROKEN: {result['scenario']} on {result['server']}: {result['error']}")
    missed = arguments.check and not all(report.reached(result) for result in document["results"])
    return 1 if broken or missed or changed else 0


if __name__ == "__main__":
    sys.exit(main())
