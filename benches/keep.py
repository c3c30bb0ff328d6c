"""Keeps what the last `make bench` has measured: the results in benches/results/latest.json, the tables of docs/performance.md, the pictures.

    python benches/keep.py target/bench/results.json    # new figures take the place of those of the same scenario and server
    python benches/keep.py --table commands             # what stands in the page

A table stands between `<!-- results NAME -->` and `<!-- /results NAME -->`; below it stands when, and on which commit, each of its figures
was measured. A scenario that is broken keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Callable

import compare
import report
from harness import ROOT

KEPT = ROOT / "benches" / "results" / "latest.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN = re.compile(r"<!-- results ([a-z-]+) -->\n")


def is_loading(result: dict[str, Any]) -> bool:
    """Of the chapter on read-through."""
    return str(result["scenario"]).startswith("read-through-")


def is_saving(result: dict[str, Any]) -> bool:
    """Of the chapter on write-behind."""
    return "saved" in result["scenario"].split("-")


def of_group(name: str) -> Callable[[dict[str, Any]], bool]:
    """Of a group that is a chapter by itself."""
    return lambda result: report.group_of(result) == name and not is_loading(result) and not is_saving(result)


TABLES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "commands": of_group("linked"),
    "read-through": is_loading,
    "write-behind": is_saving,
    **{name: of_group(name) for name in ("scripts", "resources", "limit", "batch", "stall", "cluster", "against")},
}


def merge(kept: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The kept results with new ones in the places of older ones. Each knows when it was measured, and of which module."""
    measured = {"date": new["date"], "commit": new["module"]["commit"], "pairs": new["settings"]["repeat"], "against": new.get("against")}
    fresh = {place(result): {**result, "measured": measured} for result in new["results"] if "error" not in result}
    there = {place(result): result for result in kept["results"]}
    return {**new, "results": list({**there, **fresh}.values())}


def place(result: dict[str, Any]) -> tuple[str, str]:
    return result["scenario"], result["server"]


def table(document: dict[str, Any], name: str) -> str:
    """The table of a chapter, and when its figures were measured."""
    results = [result for result in document["results"] if TABLES[name](result)]
    paired = [result for result in results if "vanilla_ops" in result]
    worked = [result for result in results if report.group_of(result) == "batch"]
    stalls = [result for result in results if report.group_of(result) == "stall"]
    valued = [result for result in results if "value" in result]
    tables = []
    if paired:
        rows = [[*report.row(result, smoke=False), *report.latencies(result)] for result in paired]
        rows = [[f"`{cells[0]}`", *cells[1:]] for cells in rows]
        tables.append(report.as_markdown([*report.HEAD, *report.LATENCY_HEAD], rows))
    if worked:
        tables.append(report.as_markdown(report.BATCH_HEAD, [report.batch_row(result, smoke=False) for result in worked]))
    if valued:
        tables.append(report.as_markdown(report.RESOURCE_HEAD, [report.resource_row(result, smoke=False) for result in valued]))
    if stalls:
        tables.append(report.as_markdown(report.STALL_HEAD, [row for result in stalls for row in report.stall_rows(result, smoke=False)]))
    return "\n\n".join(["\n".join(lines) for lines in tables] + [when(results)])


def when(results: list[dict[str, Any]]) -> str:
    """When the figures of a table were measured, those of one run together."""
    runs: dict[str, list[str]] = {}
    for result in results:
        measured = result["measured"]
        other = f" against {measured['against']}" if measured.get("against") else ""
        run = f"{measured['date'][:10]} (commit {measured['commit']}{other}, {measured['pairs']} pairs)"
        runs.setdefault(run, []).append(f"`{result['scenario']}`")
    told = [run if len(runs) == 1 else f"{run}: {', '.join(dict.fromkeys(names))}" for run, names in sorted(runs.items(), reverse=True)]
    versions = {result["server"]: result["version"] for result in results if "version" in result}
    servers = "".join(f"; {name} = {version}" for name, version in versions.items())
    return f"Measured {'; '.join(told)}{servers}."


def write(document: dict[str, Any], page: str) -> str:
    """The page with its tables made anew."""
    for name in BEGIN.findall(page):
        begin, end = f"<!-- results {name} -->\n", f"<!-- /results {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n{table(document, name)}\n\n{end}{rest.split(end)[1]}"
    return page


def main() -> int:
    """Keeps a result file, or prints a table."""
    parser = argparse.ArgumentParser(description="Keep the results of a run of benches/run.py.")
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--table", choices=TABLES, help="print a table of what is kept, and keep nothing")
    arguments = parser.parse_args()
    if (arguments.file is None) == (arguments.table is None):
        parser.error("either FILE or --table is needed")
    kept = compare.read(KEPT)
    if kept is None:
        return 1
    if arguments.table:
        print(table(kept, arguments.table))
        return 0
    new = compare.read(arguments.file)
    if new is None:
        return 1
    if new["settings"]["smoke"] or new["module"]["dirty"]:
        print("pinion: a smoke run, or one with local changes, is not kept", file=sys.stderr)
        return 1
    document = merge(kept, new)
    KEPT.write_text(json.dumps(document, indent=2) + "\n")
    PAGE.write_text(write(document, PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
