"""`make bench-budgets`: how many instructions each path takes, against `budgets.json`; fails where one takes over 3 % more.

    python benches/budgets.py                  # all paths
    python benches/budgets.py --path miss      # (repeatable)
    python benches/budgets.py --update         # what is counted now becomes the budget
    python benches/budgets.py --table          # the table of docs/performance.md, from the file

The budgets hold for the servers, the Python and the compiler that the file names. Where one is another one, that is said, and only the
module's own instructions are compared, more loosely.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import servers  # noqa: E402  the binaries are those of the tests
from harness import Failure  # noqa: E402
from instructions import COLUMNS, WAYS, Way, profile  # noqa: E402
from report import as_markdown  # noqa: E402

FILE = Path(__file__).with_name("budgets.json")
DOCS = ROOT / "docs" / "performance.md"
COMMANDS = 8_000
MORE = 1.03  # what a path may take of its budget
ELSEWHERE = 1.10  # the same with another compiler, Python or server
SLACK = 5  # instructions: a path of a hundred may have as many more
TOTAL, OURS, WITHOUT = "with the module", "the module", "without"
# The quick builds of people who work on the module are not what users get.
QUICK = re.compile(r"CARGO_PROFILE_RELEASE_|CARGO_INCREMENTAL$")
Paths = list[dict[str, Any]]


def main() -> int:
    """Counts, compares, prints; 1 where a budget is passed."""
    parser = argparse.ArgumentParser(description="Count instructions, and fail where a path takes more than its budget.")
    document = json.loads(FILE.read_text())
    known = sorted({path["path"] for path in document["paths"]})
    parser.add_argument("--path", action="append", choices=known, metavar="NAME", help=f"{', '.join(known)} (repeatable)")
    parser.add_argument("--update", action="store_true", help="keep what is counted as the budgets, and put the table into the docs")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--commands", type=int, default=COMMANDS, help=f"how many are counted ({COMMANDS})")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(document))
        return 0
    if shutil.which("callgrind_control") is None:
        print("pinion: valgrind is not installed: apt-get install valgrind", file=sys.stderr)
        return 1
    quick = sorted(name for name in os.environ if QUICK.match(name))
    if quick:
        print(f"pinion: budgets are for the release build; this one may be another, because of {', '.join(quick)}", file=sys.stderr)
        return 1
    paths: Paths = [path for path in document["paths"] if not arguments.path or path["path"] in arguments.path]
    here = {"python": platform.python_version(), "rust": rust()}
    try:
        for name in {path["server"] for path in paths}:
            here[name] = version(name)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            counted = list(threads.map(lambda path: count(path, arguments.update, arguments.commands), paths))
    except (Failure, subprocess.SubprocessError, servers.ServerUnavailable) as failure:
        print(f"pinion: {failure}", file=sys.stderr)
        return 1
    if arguments.update:
        keep(document, paths, counted, here)
        return 0
    return compare(document, paths, counted, here)


def count(path: dict[str, Any], without: bool, commands: int) -> dict[str, int]:
    """What a path takes now; `without`: also on a server that has no module."""
    way = next(way for way in WAYS if way.name == path["path"])
    ours = profile(path["server"], way, module=True, commands=commands)
    found = {TOTAL: sum(ours.values()), **{column: ours[column] for column in COLUMNS}}
    if without:
        found = {WITHOUT: sum(plain(path["server"], way, commands).values()), **found}
    return found


def plain(server: str, way: Way, commands: int) -> Counter[str]:
    return profile(server, way, module=False, commands=commands)


def compare(document: dict[str, Any], paths: Paths, counted: list[dict[str, int]], here: dict[str, str]) -> int:
    """Prints what was counted beside what may be."""
    others = [f"{name} {mine} (budgets: {document['versions'].get(name)})" for name, mine in here.items() if document["versions"].get(name) != mine]
    if others:
        print(
            f"pinion: NOT THE MACHINE OF THE BUDGETS: {'; '.join(others)}. Only the module's own instructions are compared, "
            f"and fail above {ELSEWHERE - 1:.0%}",
            file=sys.stderr,
        )
    rows, passed, less = [], [], []
    for path, found in zip(paths, counted):
        name = f"{path['path']} on {path['server']}"
        cells = [f"`{path['path']}`", path["server"]]
        for column in (TOTAL, *COLUMNS):
            budget, mine = path[column], found[column]
            cells.append(f"{mine:,} ({(mine - budget) / max(budget, 1):+.1%})")
            if column not in ([OURS] if others else [TOTAL, OURS]):
                continue
            # `set-saved` may have more: how many changes come to one call of `save` differs from run to run, in two ways.
            most = ELSEWHERE if others else path.get("more", MORE)
            if mine > budget * most + SLACK:
                passed.append(f"{name}: {mine:,} instructions, {column}; the budget is {budget:,}")
            elif mine < budget * (2 - MORE) - SLACK and not others:
                less.append(name)
        rows.append(cells)
    print("\n".join(as_markdown(["scenario", "server", TOTAL, *(f"in {column}" for column in COLUMNS)], rows)))
    for line in passed:
        print(f"pinion: over budget: {line}", file=sys.stderr)
    if less:
        print(f"pinion: below budget, so keep that (--update): {', '.join(dict.fromkeys(less))}")
    return 1 if passed else 0


def keep(document: dict[str, Any], paths: Paths, counted: list[dict[str, int]], here: dict[str, str]) -> None:
    """Writes the file, and the table into the docs."""
    document["versions"] |= here
    for path, found in zip(paths, counted):
        path.update(found)
    FILE.write_text(json.dumps(document, indent=1) + "\n")
    begin, end = "<!-- budgets -->\n", "<!-- /budgets -->"
    before, rest = DOCS.read_text().split(begin)
    DOCS.write_text(f"{before}{begin}\n{table(document)}\n\n{end}{rest.split(end)[1]}")
    print(table(document))


def table(document: dict[str, Any]) -> str:
    """The table of the docs."""
    columns = [WITHOUT, TOTAL, *COLUMNS]
    head = ["scenario", "server", WITHOUT, TOTAL, *(f"in {column}" for column in COLUMNS), "goal for the module"]
    rows = []
    for path in document["paths"]:
        goal = f"{path['goal']:,}" if "goal" in path else ""
        rows.append([f"`{path['path']}`", path["server"], *(f"{path[column]:,}" for column in columns), goal])
    return "\n".join(as_markdown(head, rows))


def rust() -> str:
    found = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True, timeout=30)
    return found.stdout.split()[1]


def version(server: str) -> str:
    """`8.2.3` of what the server says of itself."""
    line = servers.version_line(servers.binary(server))
    found = re.search(r"v=(\S+)", line)
    return found[1] if found else line


if __name__ == "__main__":
    sys.exit(main())
