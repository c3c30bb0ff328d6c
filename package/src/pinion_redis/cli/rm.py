"""`pinion rm`: removes registrations."""

from __future__ import annotations

from typing import Annotated

import typer

from pinion_redis.cli.options import server_options
from pinion_redis.cli.output import escape, out
from pinion_redis.cli.show import named
from pinion_redis.connection import Server


@server_options
def command(
    server: Server,
    names: Annotated[list[str], typer.Argument(help="Ids of sessions or of registrations.", metavar="ID...")],
    abort_pending: Annotated[bool, typer.Option("--abort-pending", help="Drop what no worker has begun yet.")] = False,
) -> None:
    """Remove registrations, or all of a session. Nothing is removed if one of the ids is unknown."""
    found = {entry.id: entry for name in names for entry in named(server, name)}
    for entry in found.values():
        server.call("RG.UNREGISTER", entry.id, *(["ABORTPENDING"] if abort_pending else []))
        out.print(f"[red]-[/] {escape(entry.reader)} {escape(entry.events())} [dim]{escape(entry.session)} {entry.id}[/]")
