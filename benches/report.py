"""Shows results: `table` for the terminal (run.py prints it), Markdown from a kept JSON file for docs/performance.md.

    python benches/report.py results.json > table.md

Reads the JSON only, so that an old file can be shown as long as its `format` is known. The figures come from one
machine whose cores the load generator shares (see harness.py): the ratios carry, the absolute figures do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

FORMAT = 1
NOISY_SPREAD = 0.20  # of the ratios, (max - min) / median: beyond it a verdict is a guess

HEAD = ("scenario", "server", "vanilla ops/s", "module ops/s", "ratio", "min - max", "goal", "verdict")
LEFT = {"scenario", "server", "verdict"}
# Only the Markdown shows these: the terminal has 80 to 100 columns.
LATENCY_HEAD = ("vanilla p50 / p99 ms", "module p50 / p99 ms")


def verdict(result: dict[str, Any], smoke: bool) -> str:
    """`pass` or `MISS` where a goal applies, `-` where none does; `works` in a smoke run, which judges no timing."""
    if "error" in result:
        return "BROKEN"
    if smoke:
        return "works"
    noisy = " (noisy)" if spread(result) > NOISY_SPREAD else ""
    if result["goal"] is None:
        return f"-{noisy}"
    return ("pass" if reached(result) else "MISS") + noisy


def reached(result: dict[str, Any]) -> bool:
    """False if a goal applies and the median ratio is below it."""
    return bool(result["goal"] is None or result["ratio"]["median"] >= result["goal"])


def spread(result: dict[str, Any]) -> float:
    """How far apart the ratios of the pairs are, relative to their median."""
    ratio = result["ratio"]
    return float((ratio["max"] - ratio["min"]) / ratio["median"])


def row(result: dict[str, Any], smoke: bool) -> list[str]:
    """The cells of one line, in the order of HEAD."""
    names = [result["scenario"], result["server"]]
    if "error" in result:
        return [*names, "", "", "", "", "", verdict(result, smoke)]
    ratio = result["ratio"]
    return [
        *names,
        f"{result['vanilla_ops']:,.0f}",
        f"{result['module_ops']:,.0f}",
        f"{ratio['median']:.3f}",
        f"{ratio['min']:.3f} - {ratio['max']:.3f}",
        "" if result["goal"] is None else f">= {result['goal']:.2f}",
        verdict(result, smoke),
    ]


def latencies(result: dict[str, Any]) -> list[str]:
    """The cells of LATENCY_HEAD: medians over the runs."""
    if "error" in result:
        return ["", ""]
    return [
        " / ".join(f"{statistics.median(run[name] for run in result[side]):.2f}" for name in ("p50_ms", "p99_ms"))
        for side in ("vanilla", "module")
    ]


def table(document: dict[str, Any]) -> str:
    """Aligned columns."""
    smoke = document["settings"]["smoke"]
    rows = [list(HEAD), *(row(result, smoke) for result in document["results"])]
    widths = [max(len(line[column]) for line in rows) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if title in LEFT else cell.rjust(width)
            for cell, width, title in zip(line, widths, HEAD)
        ).rstrip()
        for line in rows
    )


def markdown(document: dict[str, Any]) -> str:
    """A table, what its lines mean, and what it was measured on."""
    settings, machine, module = document["settings"], document["machine"], document["module"]
    results = document["results"]
    smoke = settings["smoke"]
    head = [*HEAD, *LATENCY_HEAD]
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("| " + " | ".join("---" if title in LEFT else "---:" for title in head) + " |")
    for result in results:
        cells = [*row(result, smoke), *latencies(result)]
        cells[0] = f"`{cells[0]}`"
        lines.append("| " + " | ".join(cells) + " |")
    described = {result["scenario"]: result["description"] for result in results}
    versions = {result["server"]: result["version"] for result in results if "version" in result}
    dirty = ", with local changes" if module["dirty"] else ""
    lines += ["", *(f"- `{name}`: {text}" for name, text in described.items()), ""]
    lines += [
        f"Median of {settings['repeat']} pairs of runs, vanilla and module in turn, after a discarded pair; "
        "50 clients, redis-benchmark on the same machine.",
        f"{document['date']}, {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"load {machine['load_1min']:.2f} before; "
        + ", ".join(f"{name} = {version}" for name, version in versions.items())
        + f"; {machine['redis_benchmark']}; commit {module['commit']}{dirty}.",
    ]
    if smoke:
        lines.append("This was a smoke run: its figures mean nothing.")
    return "\n".join(lines)


def main() -> int:
    """Prints a JSON file of run.py as Markdown, or as the table of the terminal."""
    parser = argparse.ArgumentParser(description="Show the results of benches/run.py --json as Markdown.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--text", action="store_true", help="the aligned table instead of Markdown")
    arguments = parser.parse_args()
    try:
        document = json.loads(arguments.file.read_text())
        known = document["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"pinion: {arguments.file} is no result file: {error}", file=sys.stderr)
        return 1
    if not known:
        print(f"pinion: {arguments.file} has format {document['format']}, not {FORMAT}", file=sys.stderr)
        return 1
    print(table(document) if arguments.text else markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
