"""`pinion show`: all about one registration or session."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from pinion_redis.figures import Registration, duration, registrations
from pinion_redis.cli.options import Json, server_options
from pinion_redis.cli.output import escape, out, print_json
from pinion_redis.connection import Server
from pinion_redis.errors import NotFound


@server_options
def command(
    server: Server,
    name: Annotated[str, typer.Argument(help="The id of a session or of a registration.", metavar="ID")],
    as_json: Json = False,
) -> None:
    """Show all that is known of a session or a registration."""
    found = named(server, name)
    if as_json:
        print_json([vars(registration) for registration in found])
        return
    for registration in found:
        _print(registration)


def named(server: Server, name: str) -> list[Registration]:
    """The registration `name`, or all of the session `name`. # Raises `NotFound`."""
    found = [entry for entry in registrations(server.stats()) if entry.is_named(name)]
    if not found:
        raise NotFound(f"there is neither a session nor a registration {name!r}: see `pinion list`")
    return found


def _print(entry: Registration) -> None:
    table = Table(box=None, show_header=False, title=escape(entry.id), title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "session": entry.session,
        "description": entry.description or "",
        "reader": entry.reader,
        "mode": entry.mode,
        **{name: str(value) for name, value in entry.arguments.items() if value is not None},
        "status": entry.status or "",
        "executions": f"{entry.triggered} triggered, {entry.succeeded} succeeded, {entry.failed} failed, "
        f"{entry.aborted} aborted, {entry.pending} pending",
        "run time": _times(entry.run_us),
        "waited before": _times(entry.wait_us),
        **{name: str(value) for name, value in entry.figures.items()},
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    for warning in entry.warnings:
        table.add_row("warning", f"[yellow]{escape(warning)}[/]")
    if entry.last_error:
        table.add_row("last error", f"[red]{escape(entry.last_error)}[/]")
    out.print(table, soft_wrap=False)


def _times(times: dict[str, int]) -> str:
    return ", ".join(f"{name} {duration(us)}" for name, us in times.items())
