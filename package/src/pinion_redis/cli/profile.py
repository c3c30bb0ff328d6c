"""`pinion profile`: where functions spend time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.progress import Progress
from rich.table import Table

from pinion_redis.cli.options import Json, server_options
from pinion_redis.cli.output import err, escape, note, out, print_json
from pinion_redis.connection import Server
from pinion_redis.errors import NotFound, PinionError
from pinion_redis.profiling import Profile, parse, speedscope


@server_options
def command(
    server: Server,
    session: Annotated[str, typer.Argument(help="The id of a session.")],
    seconds: Annotated[float, typer.Option("--seconds", "-s", help="How long to measure; 0: show what was measured before.")] = 10.0,
    output: Annotated[
        Optional[Path], typer.Option("--output", "-o", help="A file for speedscope (a flame graph).", dir_okay=False)
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many functions the table has.")] = 25,
    as_json: Json = False,
) -> None:
    """Measure the functions of a session: a table, and a flame graph that speedscope opens."""
    known = [entry["id"] for shard in server.stats() for entry in shard["sessions"]]
    if session not in known:
        raise NotFound(f"there is no session {session!r}: see `pinion list --sessions`")
    if seconds:
        _measure(server, session, seconds)
    profile = Profile.merged([parse(text) for text in server.on_each("RG.PYPROFILE", "STATS", session, "tottime")])
    if output:
        output.write_text(json.dumps(speedscope(profile, session)), encoding="utf-8")
        note(f"{output} is for speedscope")
    if as_json:
        print_json([vars(function) for function in profile.by_time()])
        return
    if not profile.functions:
        note("nothing ran meanwhile; from Python 3.12 on one thread is measured at a time")
        return
    table = Table(box=None, header_style="bold")
    for title in ("calls", "own ms", "total ms", "per call µs"):
        table.add_column(title, justify="right")
    table.add_column("function", overflow="fold")
    for function in profile.by_time()[:lines]:
        table.add_row(
            f"{function.calls:,}",
            f"{function.own_s * 1000:,.1f}",
            f"{function.total_s * 1000:,.1f}",
            f"{function.total_s * 1e6 / max(function.calls, 1):,.1f}",
            escape(function.name),
        )
    out.print(table, soft_wrap=False)


def _measure(server: Server, session: str, seconds: float) -> None:
    """Switches the profiler on for a while, on all shards; afterwards it is as it was."""
    before = [reply[0] for reply in server.on_each("RG.CONFIGGET", "ProfileExecutions")]
    server.on_each("RG.PYPROFILE", "RESET", session)
    for reply in server.on_each("RG.CONFIGSET", "ProfileExecutions", "1"):
        if reply[0] not in ("OK", b"OK", True):
            raise PinionError(f"the profiler cannot be switched on: {reply[0]}")
    try:
        with Progress(console=err, transient=True) as progress:
            task = progress.add_task(f"measuring {escape(session)}", total=seconds)
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(0.1, left))
                progress.update(task, completed=seconds - left)
    finally:
        for client, value in zip(server.shards(), before):
            client.execute_command("RG.CONFIGSET", "ProfileExecutions", value)
