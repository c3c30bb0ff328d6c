"""What all acts share: a query that keeps the source busy, the loader on show, and the checks at the end."""

from __future__ import annotations

import time
from typing import Any

import redis.asyncio
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table

from servers import HOST, Failed, Server

QUERY_MS = 5
"""How long one query keeps the source busy."""

WORK = """
local sum = 0
for turn = 1, tonumber(ARGV[1]) do sum = sum + turn end
return redis.call('MGET', unpack(KEYS))
"""

PRELUDE = """
import redis

threads = __import__('threading').local()

def query(keys):
    '''One question to the source, which keeps it busy for a while.'''
    if not hasattr(threads, 'source'):
        threads.source = redis.Redis(host={host!r}, port={port}, decode_responses=True, socket_timeout=2, retry=None)
    return threads.source.eval({work!r}, len(keys), *keys, {turns})
"""


def client(server: Server) -> Any:
    """A connection of redis-py, without its retries: each error is seen."""
    options = {"decode_responses": True, "single_connection_client": True, "socket_timeout": 60, "retry": None}
    return redis.asyncio.Redis(host=HOST, port=server.port, **options)


class Work:
    """The query, measured so that it takes the source about `QUERY_MS`."""

    def __init__(self, source: Server, ms: float = QUERY_MS) -> None:
        self.source = source
        self.turns = 100_000
        with redis.Redis(host=HOST, port=source.port) as connection:
            for _ in range(2):
                begun = time.perf_counter()
                connection.eval(WORK, 1, "nothing", self.turns)
                self.turns = max(1, round(self.turns * ms / 1000 / (time.perf_counter() - begun)))

    def prelude(self) -> str:
        """The same query for a loader."""
        return PRELUDE.format(host=HOST, port=self.source.port, work=WORK, turns=self.turns)

    async def ask(self, connection: Any, key: str) -> Any:
        """The same for an application: the value of one key."""
        return (await connection.eval(WORK, 1, key, self.turns))[0]

    def asked(self) -> int:
        """How many queries the source has answered, by its own count."""
        with redis.Redis(host=HOST, port=self.source.port) as connection:
            return int(connection.info("commandstats").get("cmdstat_eval", {}).get("calls", 0))


def announce(console: Console, title: str, text: str, loader: str) -> None:
    """Says what comes, and shows the whole of the function that does it."""
    console.rule(f"[bold]{title}")
    console.print(text, highlight=False)
    console.print(Panel(Syntax(loader.strip(), "python", theme="ansi_dark", background_color="default"), border_style="dim"))


def end_picture(console: Console) -> None:
    """Ends the line that a picture leaves open where it does not move."""
    if not console.is_terminal:
        console.print()


class Checks:
    """What was promised, and what was seen."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, bool]] = []

    def add(self, promised: str, seen: str, holds: bool) -> None:
        self._rows.append((promised, seen, holds))

    def show(self, console: Console) -> None:
        """Shows all of them; raises `Failed` if one does not hold."""
        console.print()
        table = Table(show_header=True, header_style="dim", box=None, padding=(0, 2))
        table.add_column("")
        table.add_column("promised")
        table.add_column("seen")
        for promised, seen, holds in self._rows:
            table.add_row("[bold green]✓" if holds else "[bold red]✗", promised, seen)
        console.print(table)
        console.print()
        broken = [f"expected {promised}, saw {seen}" for promised, seen, holds in self._rows if not holds]
        if broken:
            raise Failed("; ".join(broken))
