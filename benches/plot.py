"""Draws a result file of run.py: ratios with their spread, and latencies, as PNG and SVG.

    python benches/plot.py benches/results/latest.json docs/performance

Makes `docs/performance.png` and `docs/performance.svg`. Needs matplotlib (`make setup-bench` installs it).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, Callable

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "pinion"  # the same figures make the same file

import matplotlib.pyplot as plt  # noqa: E402

import compare  # noqa: E402
import report  # noqa: E402

COLOURS = {"redis-7.0": "#9ecae1", "redis-8.2": "#3182bd"}
SIDES = (("vanilla", "the other side"), ("module", "with Pinion"))


def ratios(axes: Any, results: list[dict[str, Any]], title: str) -> None:
    """Horizontal bars with their spread; a black line for each goal."""
    names = list(dict.fromkeys(result["scenario"] for result in results))
    servers = list(dict.fromkeys(result["server"] for result in results))
    height = 0.8 / len(servers)
    for result in results:
        at = names.index(result["scenario"]) + (servers.index(result["server"]) - (len(servers) - 1) / 2) * height
        ratio = result["ratio"]
        spread = [[ratio["median"] - ratio["min"]], [ratio["max"] - ratio["median"]]]
        colour = COLOURS.get(result["server"], "#bdbdbd")
        axes.barh(at, ratio["median"], height, xerr=spread, color=colour, ecolor="#636363", capsize=2)
        if result["goal"] is not None:
            axes.plot([result["goal"]] * 2, [at - height / 2, at + height / 2], color="black", linewidth=2)
    for server in servers:
        axes.barh(0, 0, color=COLOURS.get(server, "#bdbdbd"), label=server)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="#636363", linewidth=0.8, linestyle=":")
    axes.set_title(title)
    axes.legend(fontsize="small")


def latencies(axes: Any, results: list[dict[str, Any]]) -> None:
    """From the median to the 99th percentile, both sides of each scenario on the newest server."""
    for place, result in enumerate(results):
        for shift, ((side, label), colour) in zip((-0.17, 0.17), zip(SIDES, ("#bdbdbd", "#3182bd"))):
            p50, p99 = (statistics.median(run[name] for run in result[side]) for name in ("p50_ms", "p99_ms"))
            axes.plot([p50, p99], [place + shift] * 2, color=colour, linewidth=5, label=label if place == 0 else None)
    axes.set_yticks(range(len(results)), [result["scenario"] for result in results])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_title("latency in ms, from the median to the 99th percentile")
    axes.legend(fontsize="small")


def main() -> int:
    """Draws the file."""
    parser = argparse.ArgumentParser(description="Draw a result file of benches/run.py.")
    parser.add_argument("file", type=Path)
    parser.add_argument("picture", type=Path, help="without its ending")
    arguments = parser.parse_args()
    document = compare.read(arguments.file)
    if document is None:
        return 1
    works = {**document, "results": [result for result in document["results"] if "error" not in result]}
    linked, batch = (report.of_group(works, group) for group in ("linked", "batch"))
    newest = linked[-1]["server"] if linked else ""
    timed = [r for r in linked if r["server"] == newest and r["vanilla"][0]["p50_ms"] == r["vanilla"][0]["p50_ms"]]
    panels: list[tuple[list[dict[str, Any]], Callable[[Any], None]]] = [
        (linked, lambda axes: ratios(axes, linked, "throughput: Pinion to the other side (black: goal)")),
        (batch, lambda axes: ratios(axes, batch, "work over all keys: times faster than a client (black: goal)")),
        (timed, lambda axes: latencies(axes, timed)),
    ]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        print("pinion: there is nothing to draw")
        return 0
    heights = [len(results) / 2 + 1 for results, _ in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 0.45 * sum(heights) + 1), height_ratios=heights, squeeze=False
    )
    for (_, draw), [panel] in zip(panels, axes):
        draw(panel)
    figure.suptitle(f"{document['date']}, {document['machine']['cores']} cores", fontsize="small")
    figure.tight_layout()
    for ending, metadata in ((".png", {}), (".svg", {"Date": None})):
        figure.savefig(arguments.picture.with_suffix(ending), dpi=110, metadata=metadata)
    return 0


if __name__ == "__main__":
    sys.exit(main())
