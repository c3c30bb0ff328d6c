"""`pinion key`: what both halves of the cache know of one key."""

from __future__ import annotations

from typing import Annotated, Any

import redis
import typer
from rich.table import Table

from pinion_redis.cli.options import Json, server_options
from pinion_redis.cli.output import escape, out, print_json
from pinion_redis.connection import Server, speaking
from pinion_redis.errors import PinionError
from pinion_redis.figures import duration, last_line

HALVES = ("read_through", "write_behind")


@server_options
def command(
    server: Server,
    name: Annotated[str, typer.Argument(help="The key, in the database of the URL.", metavar="KEY")],
    as_json: Json = False,
) -> None:
    """Show why a key is as it is: loaded, stale, remembered as absent, waiting to be saved. Nothing is loaded by that."""
    found = key_info(server, name)
    if as_json:
        print_json(found)
        return
    table = _table(f"{found['key']} (database {found['db']}, {found['role']})")
    if not found["inCache"]:
        cached = "no"
    elif found["leftMS"] is None:
        cached = "yes, without an end"
    else:
        cached = f"yes, for another {_ms(found['leftMS'])}"
    table.add_row("in the cache", cached)
    if found["registered"] == "no":
        table.add_row("registered", "no: neither read_through nor write_behind has this key")
    out.print(table, soft_wrap=False)
    for half in HALVES:
        for entry in found[half]:
            _print(half, entry)


def key_info(server: Server, name: str) -> dict[str, Any]:
    """The reply of RG.KEYINFO as dicts, from the shard that has the key. # Raises `PinionError`."""
    for client in server.shards():
        with speaking(server.address):
            try:
                found = _pairs(client.execute_command("RG.KEYINFO", name))
            except redis.exceptions.MovedError:
                continue
        return {**found, **{half: [_pairs(entry) for entry in found[half]] for half in HALVES}}
    raise PinionError(f"no shard has the slot of {name!r}")


def _pairs(reply: list[Any]) -> dict[str, Any]:
    return dict(zip(reply[::2], reply[1::2]))


def _table(title: str) -> Table:
    table = Table(box=None, show_header=False, title=escape(title), title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _print(half: str, entry: dict[str, Any]) -> None:
    """One registration; what is nil, and what is 0, says nothing."""
    table = _table(f"{half} {entry['prefix']}")
    for name, value in entry.items():
        if name == "prefix" or value is None or value == 0:
            continue
        shown = _ms(value) if name.endswith("MS") else str(value)
        if name == "lastError":
            shown = f"[red]{escape(last_line(shown))}[/]"
        else:
            shown = escape(shown)
        label = name.removesuffix("MS")
        table.add_row(f"{label} for" if label in entry and label != name else label, shown)
    out.print(table, soft_wrap=False)


def _ms(value: int) -> str:
    return duration(value * 1000)
