"""`pinion top`: what runs now."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Optional

import typer
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pinion_redis.cli.options import Json, server_options
from pinion_redis.cli.output import out, print_json
from pinion_redis.connection import Server
from pinion_redis.errors import NoConnection
from pinion_redis.figures import Registration, duration, last_line, registrations, size


@dataclass
class Look:
    """What was seen at one time."""

    at: float
    shards: list[dict[str, Any]]
    entries: list[Registration] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = registrations(self.shards)


@server_options
def command(
    server: Server,
    interval: Annotated[float, typer.Option("--interval", "-i", min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one picture of an interval, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Watch registrations, their rates, times, backlog and errors, memory and shards. Ctrl-C ends it."""
    if as_json:
        print_json(server.stats())
        return
    before = Look(time.monotonic(), server.stats())
    if once or not out.is_terminal:
        time.sleep(interval)
        out.print(screen(server, before, Look(time.monotonic(), server.stats())), soft_wrap=False)
        return
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        raise KeyboardInterrupt

    # Python drops an exception that comes out where an object ends: then the flag tells.
    signal.signal(signal.SIGINT, end)
    with Live(screen(server, before, before), console=out, screen=True, auto_refresh=False) as live:
        try:
            while not ended:
                time.sleep(interval)
                try:
                    now = Look(time.monotonic(), server.stats())
                except NoConnection as error:
                    live.update(Panel(Text(str(error), "red"), title="pinion top"), refresh=True)
                    continue
                live.update(screen(server, before, now), refresh=True)
                before = now
        except KeyboardInterrupt:
            pass


def screen(server: Server, before: Look, now: Look) -> RenderableType:
    """One picture: the servers, then their registrations, the busiest first."""
    return Group(_head(server, now), _table(before, now), _errors(now))


def _head(server: Server, now: Look) -> RenderableType:
    shards = now.shards
    first = shards[0]
    used = sum(shard["memory"]["server_used"] or 0 for shard in shards)
    python = sum(shard["memory"]["python_current"] for shard in shards)
    queued = sum(shard["executions"]["queued"] for shard in shards)
    running = sum(shard["executions"]["by_status"].get("running", 0) for shard in shards)
    line = Text()
    line.append(" Pinion ", "bold reverse")
    line.append(f" {first['pinion']}  Python {first['python']}  {server.address.shown()}")
    cells = {
        "memory": size(used),
        "of it Python": size(python),
        "queued": f"{queued:,}",
        "running": f"{running:,}",
        "sessions": str(len(first["sessions"])),
    }
    cells |= _links(shards)
    loads = [shard["read_through"] for shard in shards]
    if any(load["registrations"] for load in loads):
        total = {name: sum(load[f"{name}_total"] for load in loads) for name in ("hits", "misses")}
        looked = total["hits"] + total["misses"]
        cells["hit rate"] = f"{100 * total['hits'] / looked:.1f} %" if looked else "-"
        cells["clients waiting"] = str(sum(load["waiting_clients"] for load in loads))
    figures = Columns(
        [Text.assemble((f" {name} ", "dim"), (value, _alarm(name, value))) for name, value in cells.items()], padding=(0, 2)
    )
    return Group(line, figures, "")


def _links(shards: list[dict[str, Any]]) -> dict[str, str]:
    if not shards[0]["cluster"]["enabled"]:
        return {"role": shards[0]["role"]}
    wanted = sum(max(0, len(shard["cluster"]["shards"]) - 1) for shard in shards)
    there = sum(shard["cluster"]["links_connected"] for shard in shards)
    pending = sum(shard["cluster"]["messages_pending"] for shard in shards)
    return {"shards": str(len(shards)), "links": f"{there}/{wanted}", "messages pending": str(pending)}


def _alarm(name: str, value: str) -> str:
    there, slash, wanted = value.partition("/")
    return "bold red" if name == "links" and slash and there != wanted else "bold"


def _table(before: Look, now: Look) -> RenderableType:
    table = Table(box=None, header_style="bold", expand=True, padding=(0, 1))
    table.add_column("session", no_wrap=True, overflow="ellipsis", max_width=18)
    table.add_column("events", no_wrap=True, overflow="ellipsis", ratio=1, min_width=14)
    for title in ("per s", "p50", "p99", "backlog", "done", "errors"):
        table.add_column(title, justify="right", no_wrap=True)
    old = {entry.id: entry for entry in before.entries}
    seconds = max(now.at - before.at, 1e-9)

    def rate(entry: Registration) -> float:
        known: Optional[Registration] = old.get(entry.id)
        if known is None or entry is known:
            return 0.0
        return max(0.0, _work(entry) - _work(known)) / seconds

    for entry in sorted(now.entries, key=lambda entry: (-rate(entry), entry.id)):
        speed = rate(entry)
        table.add_row(
            Text(entry.description or entry.session),
            Text(f"{_SHORT.get(entry.reader, entry.reader)} {entry.events()}", "bold" if speed else ""),
            f"{speed:,.1f}" if speed else "[dim]0[/]",
            duration(_time(entry, "p50")),
            duration(_time(entry, "p99")),
            f"[yellow]{entry.backlog():,}[/]" if entry.backlog() else "[dim]0[/]",
            f"{entry.finished():,}",
            f"[red]{entry.failed:,}[/]" if entry.failed else "[dim]0[/]",
        )
    if not now.entries:
        return Text("nothing is registered: pinion deploy FILE", "dim")
    return table


_SHORT = {"KeysReader": "keys", "StreamReader": "stream", "CommandReader": "command", "ReadThrough": "loads", "WriteBehind": "saves"}


def _work(entry: Registration) -> int:
    """What a rate is about: for loads the misses, else what has ended."""
    return int(entry.figures["misses"]) if "misses" in entry.figures else entry.finished()


def _time(entry: Registration, point: str) -> float:
    name = f"load{point.upper()}US"
    return float(entry.figures.get(name, 0) or entry.run_us.get(point, 0))


def _errors(now: Look) -> RenderableType:
    lines: list[RenderableType] = [""]
    for entry in now.entries:
        if entry.last_error:
            text = Text.assemble((f" {entry.description or entry.session}: ", "bold"), (last_line(entry.last_error), "red"))
            text.truncate(200, overflow="ellipsis")
            lines.append(text)
        lines += [Text.assemble((f" {entry.description or entry.session}: ", "bold"), (f"may never fire: {text}", "yellow"))
                  for text in entry.warnings]
    return Group(*lines)
