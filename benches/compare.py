"""Compares two result files of run.py: what has become faster or slower, and what only varies.

    python benches/compare.py benches/results/latest.json new.json

A ratio counts as changed when its median lies outside of what the pairs of the other file reached; other figures when they
differ by more than a fifth. Never fails for a timing: exit status 1 only if a file is none.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Optional

import report

HEAD = ("scenario", "server", "figure", "kept", "now", "change", "verdict")
FIGURE_CHANGE = 0.2


def figures(document: dict[str, Any]) -> dict[tuple[str, str, str], tuple[float, float, float]]:
    """Median, least and most of every figure, by scenario, server and what it is."""
    found = {}
    for result in document["results"]:
        if "error" in result:
            continue
        place = result["scenario"], result["server"]
        if "ratio" in result:
            ratio = result["ratio"]
            found[(*place, "ratio")] = ratio["median"], ratio["min"], ratio["max"]
        elif "value" in result:
            found[(*place, result["in"])] = around(result["value"])
        for line in result.get("lines", ()):
            found[(*place, f"max ms, {line['name']}")] = around(line["max_ms"])
    return found


def around(value: float) -> tuple[float, float, float]:
    """A figure that was measured once."""
    margin = abs(value) * FIGURE_CHANGE
    return value, value - margin, value + margin


def smaller_is_better(figure: str) -> bool:
    return figure != "ratio"


def judge(figure: str, kept: tuple[float, float, float], now: tuple[float, float, float]) -> str:
    """`same` where the two cannot be told apart."""
    if kept[1] <= now[0] <= kept[2] or now[1] <= kept[0] <= now[2]:
        return "same"
    return "better" if (now[0] < kept[0]) == smaller_is_better(figure) else "WORSE"


def rows(kept: dict[str, Any], now: dict[str, Any]) -> list[list[str]]:
    """A line for each figure that both files have."""
    old, new = figures(kept), figures(now)
    lines = []
    for place in (place for place in new if place in old):
        before, after = old[place], new[place]
        change = f"{(after[0] / before[0] - 1) * 100:+.0f} %" if before[0] else ""
        lines.append([*place, f"{before[0]:.3g}", f"{after[0]:.3g}", change, judge(place[2], before, after)])
    return lines


def read(path: Path) -> Optional[dict[str, Any]]:
    """A result file of this format; says so if it is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        if document["format"] == report.FORMAT:
            return document
        reason = f"it has format {document['format']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    print(f"pinion: {path} is no result file: {reason}", file=sys.stderr)
    return None


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Compare two result files of benches/run.py.")
    parser.add_argument("kept", type=Path)
    parser.add_argument("now", type=Path)
    arguments = parser.parse_args()
    kept, now = read(arguments.kept), read(arguments.now)
    if kept is None or now is None:
        return 1
    print(f"kept: {kept['date']}, commit {kept['module']['commit']}; now: {now['date']}, {now['module']['commit']}\n")
    if kept["machine"]["cpu"] != now["machine"]["cpu"] or kept["machine"]["cores"] != now["machine"]["cores"]:
        print("These are different machines: only ratios can be compared.\n")
    print("\n".join(report.as_markdown(HEAD, rows(kept, now))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
