"""`pinion list`: what is registered."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from pinion_redis.figures import duration, last_line, registrations, short
from pinion_redis.cli.options import Json, server_options
from pinion_redis.cli.output import escape, note, out, print_json
from pinion_redis.connection import Server


@server_options
def command(
    server: Server,
    sessions: Annotated[bool, typer.Option("--sessions", help="Sessions instead of registrations.")] = False,
    as_json: Json = False,
) -> None:
    """List the registered functions with their counters, over all shards."""
    shards = server.stats()
    if sessions:
        _sessions(shards, as_json)
        return
    found = registrations(shards)
    if as_json:
        print_json([vars(registration) for registration in found])
        return
    if not found:
        note("nothing is registered: pinion deploy FILE")
        return
    table = Table(box=None, header_style="bold")
    for title in ("id", "session", "reader", "events", "mode"):
        table.add_column(title, overflow="fold", no_wrap=title != "events", min_width=4)
    for title in ("ok", "failed", "pending", "p50", "p99"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("last error", overflow="ellipsis", max_width=40, no_wrap=True)
    for entry in found:
        table.add_row(
            entry.short_id(),
            *map(escape, (entry.session, entry.reader, entry.events(), entry.mode)),
            str(entry.succeeded),
            f"[red]{entry.failed}[/]" if entry.failed else "0",
            str(entry.backlog()),
            duration(entry.run_us["p50"]),
            duration(entry.run_us["p99"]),
            escape(last_line(entry.last_error)),
        )
    out.print(table, soft_wrap=False)


def _sessions(shards: list[dict[str, Any]], as_json: bool) -> None:
    found: list[dict[str, Any]] = shards[0]["sessions"]
    if as_json:
        print_json(found)
        return
    table = Table(box=None, header_style="bold")
    for title in ("session", "description", "registrations", "requirements", ""):
        table.add_column(title, overflow="fold")
    for entry in found:
        table.add_row(
            escape(entry["id"]),
            escape(entry["description"] or ""),
            " ".join(map(short, entry["registrations"])),
            escape(", ".join(entry["requirements"])),
            "replaced, still in use" if entry["replaced"] else "",
        )
    out.print(table, soft_wrap=False)
