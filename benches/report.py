"""Shows results: `table` for the terminal (run.py prints it), Markdown from a kept JSON file for docs/performance.md.
The groups `batch`, `stall`, `resources`, `limit` and `cluster` are Markdown in both.

    python benches/report.py results.json > table.md

Reads the JSON only, so that an old file can be shown as long as its `format` is known. The figures come from one
machine whose cores the load generator shares (see harness.py): the ratios carry, the absolute figures do not.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

FORMAT = 1
WIDTH = 118  # of prose in Markdown
NOISY_SPREAD = 0.25  # of the ratios, (max - min) / median: beyond it there is no verdict

HEAD = ("scenario", "server", "other side ops/s", "module ops/s", "ratio", "min - max", "goal", "verdict")
LEFT = {"scenario", "server", "verdict", "meanwhile", "in"}
# Only the Markdown shows these: the terminal has 80 to 100 columns.
LATENCY_HEAD = ("other side p50 / p99 ms", "module p50 / p99 ms")
BATCH_HEAD = (
    *("scenario", "server", "client s", "module s", "keys/s", "times faster", "min - max", "goal", "verdict"),
    "extra memory",
)
RESOURCE_HEAD = ("scenario", "server", "value", "in", "goal", "verdict")
STALL_HEAD = ("server", "meanwhile", "PINGs", "p50 ms", "p99.9 ms", "max ms", "goal", "verdict")


def verdict(result: dict[str, Any], smoke: bool) -> str:
    """`pass` or `MISS` where a goal applies, `-` where none does, `too noisy` where nothing can be told; `works` in a smoke run, which judges no timing."""
    if "error" in result:
        return "BROKEN"
    if smoke:
        return "works"
    if is_noisy(result):
        return "too noisy"
    if result["goal"] is None:
        return "-"
    return "pass" if reached(result) else "MISS"


def reached(result: dict[str, Any]) -> bool:
    """False if a goal applies and was missed, but for a machine that misses it without any work of ours."""
    if result["goal"] is None:
        return True
    if group_of(result) in ("resources", "limit", "cluster"):
        return bool(result["value"] <= result["goal"])
    if group_of(result) == "stall":
        return bool(result["max_ms"] <= max(result["goal"], result["idle_ms"]))
    return is_noisy(result) or bool(result["ratio"]["median"] >= result["goal"])


def group_of(result: dict[str, Any]) -> str:
    """Old files know one group only."""
    return str(result.get("group", "linked"))


def of_group(document: dict[str, Any], *groups: str) -> list[dict[str, Any]]:
    """The results of these groups."""
    return [result for result in document["results"] if group_of(result) in groups]


def paired(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of two sides that get the same commands."""
    return of_group(document, "linked", "scripts", "against")


def spread(result: dict[str, Any]) -> float:
    """How far apart the ratios of the pairs are, relative to their median."""
    ratio = result["ratio"]
    return float((ratio["max"] - ratio["min"]) / ratio["median"])


def is_noisy(result: dict[str, Any]) -> bool:
    """The pairs differ too much to tell anything. A goal that all of them reach, or none, is told all the same."""
    if "ratio" not in result or spread(result) <= NOISY_SPREAD:
        return False
    ratio, goal = result["ratio"], result["goal"]
    return goal is None or ratio["min"] < goal <= ratio["max"]


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
    medians = [
        [statistics.median(run[name] for run in result[side]) for name in ("p50_ms", "p99_ms")]
        for side in ("vanilla", "module")
    ]
    # Loads that have none give NaN.
    return ["" if any(map(math.isnan, both)) else " / ".join(f"{value:.2f}" for value in both) for both in medians]


def batch_row(result: dict[str, Any], smoke: bool) -> list[str]:
    """The cells of BATCH_HEAD."""
    names = [f"`{result['scenario']}`", result["server"]]
    if "error" in result:
        return [*names, "", "", "", "", "", "", verdict(result, smoke), ""]
    client_s, module_s = (statistics.median(result[side]) for side in ("client_s", "module_s"))
    ratio = {name: faster(times) for name, times in result["ratio"].items()}
    return [
        *names,
        f"{client_s:.3g}",
        f"{module_s:.3g}",
        f"{result['requests'] / module_s:,.0f}",
        ratio["median"],
        f"{ratio['min']} - {ratio['max']}",
        "" if result["goal"] is None else f">= {result['goal']:g}",
        verdict(result, smoke),
        f"{result['extra_bytes'] / 2**20:.1f} MB",
    ]


def faster(times: float) -> str:
    """More digits say nothing."""
    return f"{times:.1f}" if times < 100 else f"{times:,.0f}"


def stall_rows(result: dict[str, Any], smoke: bool) -> list[list[str]]:
    """The cells of STALL_HEAD for each line; only those with walks have a goal."""
    if "error" in result:
        return [[result["server"], "", "", "", "", "", "", verdict(result, smoke)]]
    rows = []
    for line in result["lines"]:
        figures = [f"{line['pings']:,}", *(f"{line[name]:.2f}" for name in ("p50_ms", "p999_ms", "max_ms"))]
        goal = result.get("goals", {}).get(line["name"], result["goal"])
        judged = ["", ""] if line["name"].startswith("idle") else judgement(result, goal, line["max_ms"], smoke)
        rows.append([result["server"], line["name"], *figures, *judged])
    return rows


def judgement(result: dict[str, Any], most: float, max_ms: float, smoke: bool) -> list[str]:
    """Goal and verdict of one line."""
    goal = f"<= {most:g}"
    if smoke:
        return [goal, "works"]
    if max_ms <= most:
        return [goal, "pass"]
    return [goal, "idle is noisier" if result["idle_ms"] > max_ms else "MISS"]


def resource_row(result: dict[str, Any], smoke: bool) -> list[str]:
    """The cells of RESOURCE_HEAD."""
    names = [f"`{result['scenario']}`", result["server"]]
    if "error" in result:
        return [*names, "", "", "", verdict(result, smoke)]
    goal, value = result["goal"], result["value"]
    judged = "works" if smoke else "-" if goal is None else "pass" if value <= goal else "MISS"
    shown_in = ": ".join(filter(None, (result["in"], result.get("detail"))))
    return [*names, f"{value:,.0f}" if value >= 100 else f"{value:.1f}", shown_in, "" if goal is None else f"<= {goal:g}", judged]


def as_markdown(head: tuple[str, ...] | list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("| " + " | ".join("---" if title in LEFT else "---:" for title in head) + " |")
    return lines + ["| " + " | ".join(cells) + " |" for cells in rows]


def other_groups(document: dict[str, Any]) -> list[str]:
    """The tables of the groups without a vanilla server, with what their lines mean."""
    smoke, machine = document["settings"]["smoke"], document["machine"]
    lines: list[str] = []
    work, stalls = of_group(document, "batch"), of_group(document, "stall")
    if work:
        lines += ["", *as_markdown(BATCH_HEAD, [batch_row(result, smoke) for result in work]), ""]
        lines += descriptions(work)
        parser = f"hiredis {machine['hiredis']}" if machine.get("hiredis") else "its own parser"
        lines += [
            "",
            *textwrap.wrap(
                f"Median of {document['settings']['repeat']} pairs of runs over {keys_of(work)} keys, client and "
                "module in turn on one server, after a discarded pair. Client: redis-py "
                f"{machine.get('redis_py')} with {parser}, Python {machine['python']}, SCAN with COUNT 1000, one "
                "pipeline for the keys of each SCAN. Extra memory: the highest peak of the server's resident memory in "
                "any run of the module, above that before the first.",
                WIDTH,
            ),
        ]
    for resources in filter(None, (of_group(document, group) for group in ("resources", "limit", "cluster"))):
        rows = [resource_row(result, smoke) for result in resources]
        lines += ["", *as_markdown(RESOURCE_HEAD, rows), "", *descriptions(resources)]
    if stalls:
        rows = [row for result in stalls for row in stall_rows(result, smoke)]
        lines += ["", *as_markdown(STALL_HEAD, rows), "", *descriptions(stalls), ""]
        lines.append(f"{keys_of(stalls)} keys. PINGs wait for the server's thread, and for a core.")
    return lines


def keys_of(results: list[dict[str, Any]]) -> str:
    """How many keys the servers held."""
    different = dict.fromkeys(result["requests"] for result in results if "requests" in result)
    return " or ".join(f"{keys:,}" for keys in different)


def descriptions(results: list[dict[str, Any]]) -> list[str]:
    """What each scenario does, once."""
    described = {result["scenario"]: result["description"] for result in results}
    return [f"- `{name}`: {text}" for name, text in described.items()]


def table(document: dict[str, Any]) -> str:
    """Aligned columns for the comparison with a vanilla server, Markdown for the other groups."""
    smoke = document["settings"]["smoke"]
    linked = paired(document)
    lines: list[str] = []
    if linked:
        rows = [list(HEAD), *(row(result, smoke) for result in linked)]
        widths = [max(len(line[column]) for line in rows) for column in range(len(HEAD))]
        lines += [
            "  ".join(
                cell.ljust(width) if title in LEFT else cell.rjust(width)
                for cell, width, title in zip(line, widths, HEAD)
            ).rstrip()
            for line in rows
        ]
    return "\n".join([*lines, *other_groups(document)]).strip("\n")


def markdown(document: dict[str, Any]) -> str:
    """The tables, what their lines mean, and what they were measured on."""
    settings, machine, module = document["settings"], document["machine"], document["module"]
    smoke = settings["smoke"]
    linked = paired(document)
    lines: list[str] = []
    if linked:
        rows = [[*row(result, smoke), *latencies(result)] for result in linked]
        for cells in rows:
            cells[0] = f"`{cells[0]}`"
        lines += [*as_markdown([*HEAD, *LATENCY_HEAD], rows), "", *descriptions(linked), ""]
        lines += [
            f"Median of {settings['repeat']} pairs of runs, vanilla and module in turn, after a discarded pair; "
            f"50 clients, {machine['redis_benchmark']} on the same machine.",
        ]
    lines += other_groups(document)
    versions = {result["server"]: result["version"] for result in document["results"] if "version" in result}
    dirty = ", with local changes" if module["dirty"] else ""
    lines += [
        "",
        f"{document['date']}, {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"load {machine['load_1min']:.2f} before; "
        + ", ".join(f"{name} = {version}" for name, version in versions.items())
        + f"; commit {module['commit']}{dirty}.",
    ]
    if smoke:
        lines.append("This was a smoke run: its figures mean nothing.")
    return "\n".join(lines).strip("\n")


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
