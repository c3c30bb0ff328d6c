"""Two acts that are races of the same clients: a herd on a cold key, with and without `read_through`; many keys, one query for
each and one for a hundred of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Awaitable, Callable

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from servers import Server
from stage import QUERY_MS, Checks, Work, announce, client, end_picture

CLIENTS = 300
ACROSS = 30
CALM, WAITING, WRONG = ("●", "grey35"), ("○", "white"), ("✗", "bold red")
SHADES = ((0.1, "green3"), (0.3, "chartreuse3"), (0.7, "gold3"), (1.5, "dark_orange3"), (60.0, "orange_red1"))
"""How a dot looks whose client had its reply within so many seconds."""

HERD = """
@read_through('page:*', ttl=60)
def load(key):
    return query([key])[0]
"""

BATCH = """
@read_through('price:*', ttl=60, batch=100)
def load(keys):
    return query(keys)          # one question for all of them
"""


class Lane:
    """One side of a race: a dot for each client."""

    def __init__(self, title: str, work: Work) -> None:
        self.title = title
        self.dots = [CALM] * CLIENTS
        self.wrong = CLIENTS
        self.replies = 0
        self.seconds = 0.0
        self.queries = 0
        self._work = work
        self._before = 0

    async def run(self, ask: Callable[[int], Awaitable[bool]]) -> None:
        """All clients ask at the same moment; `ask(number)` is true if the reply is right."""
        self._before = self._work.asked()
        begun = time.perf_counter()

        async def one(number: int) -> None:
            self.dots[number] = WAITING
            right = await ask(number)
            self.seconds = time.perf_counter() - begun
            self.replies += 1
            self.wrong -= right
            self.dots[number] = ("●", next(shade for limit, shade in SHADES if self.seconds <= limit)) if right else WRONG

        await asyncio.gather(*(one(number) for number in range(CLIENTS)))
        self.queries = self._work.asked() - self._before

    def __rich__(self) -> Panel:
        picture = Text()
        for number, (dot, style) in enumerate(self.dots):
            if number and number % ACROSS == 0:
                picture.append("\n")
            picture.append(dot, style=style)
        replies = Text.assemble((f"{self.replies:>5}", "bold"), " replies in ", (f"{self.seconds:.2f} s", "bold"))
        queries = Text.assemble((f"{self.queries or '...':>5}", "bold magenta"), " query" if self.queries == 1 else " queries")
        return Panel(Group(picture, Text(), replies, queries), title=self.title, border_style="cyan", width=ACROSS + 4)


class Picture:
    """Both lanes, and what the colours mean."""

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = lanes

    def __rich__(self) -> Group:
        legend = Text("  reply within ")
        for limit, shade in SHADES:
            legend.append(f" ● {limit:g} s " if limit < 60 else " ● later", style=shade)
        return Group(Columns(self.lanes, padding=(0, 2)), legend)


async def race(console: Console, lanes: list[Lane], runs: list[Callable[[], Awaitable[None]]]) -> None:
    """One lane after the other, in one picture."""
    with Live(Picture(lanes), console=console, refresh_per_second=20):
        for run in runs:
            await run()
    end_picture(console)


@contextlib.asynccontextmanager
async def crowd(server: Server) -> Any:
    """Connected clients of a server."""
    clients = [client(server) for _ in range(CLIENTS)]
    try:
        for one in clients:
            await one.ping()
        yield clients
    finally:
        for one in clients:
            await one.aclose()


async def herd(console: Console, cache: Server, source: Server) -> None:
    """All clients want one page that is not in the cache: each application asks the source, or Pinion does once."""
    announce(
        console,
        "A herd on a cold key",
        f"{CLIENTS} clients want the same page in one moment, and it is not in the cache. A query keeps the source busy for"
        f" {QUERY_MS} ms. Left: each of them looks, misses, asks the source, stores (cache-aside). Right: each of them says GET.",
        HERD,
    )
    work = Work(source)
    async with crowd(source) as sources, crowd(cache) as caches:
        await sources[0].mset({"page:1": "the page", "page:2": "the page"})
        left, right = Lane("each asks by itself", work), Lane("read_through", work)

        async def aside(number: int) -> bool:
            value = await caches[number].get("page:1")
            if value is None:
                value = await work.ask(sources[number], "page:1")
                await caches[number].set("page:1", value, ex=60)
            return value == "the page"

        async def through(number: int) -> bool:
            return await caches[number].get("page:2") == "the page"

        async def second() -> None:
            cache.run(work.prelude() + HERD)
            await right.run(through)

        await race(console, [left, right], [lambda: left.run(aside), second])
    checks = Checks()
    checks.add("each client gets the page", f"{left.wrong + right.wrong} wrong replies", left.wrong + right.wrong == 0)
    checks.add("one query, however many clients", f"{right.queries}, and {left.queries} without", right.queries == 1)
    checks.show(console)


async def batch(console: Console, cache: Server, source: Server) -> None:
    """Each client wants a key of its own: a query for each, or one for up to a hundred."""
    announce(
        console,
        "A batch",
        f"{CLIENTS} clients want {CLIENTS} different prices. A query keeps the source busy for {QUERY_MS} ms, whether it is for one"
        " of them or for a hundred. Left: without `batch`. Right: this loader.",
        BATCH,
    )
    work = Work(source)
    async with crowd(cache) as caches:
        feeder = client(source)
        await feeder.mset({f"{kind}:{number}": f"price {number}" for kind in ("price", "single") for number in range(CLIENTS)})
        await feeder.aclose()
        left, right = Lane("one key a query", work), Lane("batch=100", work)
        single = "@read_through('single:*', ttl=60)\ndef load(key):\n    return query([key])[0]\n"
        cache.run(work.prelude() + single)
        cache.run(work.prelude() + BATCH)

        def ask(kind: str) -> Callable[[int], Awaitable[bool]]:
            async def one(number: int) -> bool:
                return await caches[number].get(f"{kind}:{number}") == f"price {number}"

            return one

        await race(console, [left, right], [lambda: left.run(ask("single")), lambda: right.run(ask("price"))])
    checks = Checks()
    checks.add("each client gets its price", f"{left.wrong + right.wrong} wrong replies", left.wrong + right.wrong == 0)
    few = CLIENTS // 10
    checks.add(f"at most {few} queries for {CLIENTS} keys", f"{right.queries}, and {left.queries} without", right.queries <= few)
    checks.show(console)
