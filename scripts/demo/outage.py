"""The act of a source that is killed and comes back, while clients read all the time and values get stale."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

import redis
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from servers import Server
from stage import Checks, Work, announce, client, end_picture

KEYS = 10
READERS = 10
PAUSE = 0.01
"""Seconds between two reads of one client."""
COLUMN = 0.16
"""Seconds that one column of the picture stands for."""
PHASES = ((1.6, True), (3.2, False), (2.6, True))
"""Seconds, and whether the source is there."""
BARS = " ▁▂▃▄▅▆▇█"

LOADER = """
@read_through('rate:*', ttl=0.25, stale=60, backoff=0.2, max_backoff=1)
def load(key):
    return query([key])[0]
"""


@dataclass
class Column:
    """What happened in a moment."""

    up: bool
    good: int = 0
    errors: int = 0
    failed_loads: int = 0
    loads: int = 0
    age: float = 0.0


@dataclass
class Story:
    """All columns so far, and what was promised."""

    columns: list[Column] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    backwards: int = 0
    now: str = ""

    def __rich__(self) -> Panel:
        picture = Table.grid(padding=(0, 1))
        picture.add_column(justify="right", style="dim")
        picture.add_column()
        columns = self.columns
        source = Text()
        for column in columns:
            source.append("█", style="green" if column.up else "red")
        picture.add_row("source", source)
        picture.add_row("replies", bars([column.good for column in columns], "green"))
        picture.add_row("errors", bars([column.errors for column in columns], "bold red"))
        picture.add_row("loads", bars([column.loads - column.failed_loads for column in columns], "cyan"))
        picture.add_row("failed loads", bars([column.failed_loads for column in columns], "magenta"))
        picture.add_row("age of values", bars([column.age for column in columns], "yellow"))
        picture.add_row("", Text(self.now))
        return Panel(picture, title="ten clients read ten rates, all the time", border_style="cyan")


def bars(values: list[float] | list[int], style: str) -> Text:
    """A line of bars, the highest of which is a full one."""
    most = max([*values, 0]) or 1
    text = Text(style=style)
    for value in values:
        height = 0 if value <= 0 else max(1, round(value / most * (len(BARS) - 1)))
        text.append(BARS[height])
    if len(values) > 1:
        text.append(f"  {values[-1]:.1f} s" if isinstance(values[-1], float) else f"  {sum(values)}", style="dim")
    return text


async def play(console: Console, cache: Server, source: Server) -> None:
    """The source is killed for a while: who reads sees old values, and no error."""
    announce(
        console,
        "A source that goes down and comes back",
        "Rates change ten times a second. They are fresh for a quarter of a second, and may be served for a minute more while they"
        " are loaded anew. Then the source is killed, and started again.",
        LOADER,
    )
    work = Work(source, ms=1)
    cache.run(work.prelude() + LOADER)
    story = Story()
    written: dict[int, float] = {}
    ended = asyncio.Event()
    helpers = [asyncio.create_task(change(source, written, ended))]
    while not written:
        await asyncio.sleep(0.01)
    warm = client(cache)
    for number in range(KEYS):
        await warm.get(f"rate:{number}")
    helpers += [asyncio.create_task(read(cache, number, story, written, ended)) for number in range(READERS)]
    down = [0, 0.0]
    with Live(story, console=console, refresh_per_second=20):
        for seconds, up in PHASES:
            if up and source.process.poll() is not None:
                await asyncio.to_thread(source.start)
            elif not up:
                source.stop()
                down = [await loads(warm), time.perf_counter()]
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                await column(warm, story, up)
            if not up:
                down = [await loads(warm) - down[0], time.perf_counter() - down[1]]
    end_picture(console)
    ended.set()
    await asyncio.gather(*helpers)
    await warm.aclose()
    await show(console, story, down)


async def column(connection: redis.asyncio.Redis, story: Story, up: bool) -> None:
    """One moment more."""
    before = await connection.info("rg_read_through")
    current = Column(up)
    story.columns.append(current)
    await asyncio.sleep(COLUMN)
    after = await connection.info("rg_read_through")
    current.loads = after[LOADS] - before[LOADS]
    current.failed_loads = after[FAILURES] - before[FAILURES]
    state = "the source is there" if up else "the source is down"
    story.now = f"{state}; a value is {current.age:.1f} s old"


LOADS, FAILURES = ("rg_read_through_loads_total", "rg_read_through_load_failures_total")


async def loads(connection: redis.asyncio.Redis) -> int:
    """How many loads there were."""
    return int((await connection.info("rg_read_through"))[LOADS])


async def change(source: Server, written: dict[int, float], ended: asyncio.Event) -> None:
    """Gives all rates a new value ten times a second, while the source is there."""
    version = 0
    while not ended.is_set():
        connection = client(source)
        with contextlib.suppress(redis.RedisError, OSError):
            while not ended.is_set():
                await connection.mset({f"rate:{number}": version + 1 for number in range(KEYS)})
                version += 1
                written[version] = time.perf_counter()
                await asyncio.sleep(0.1)
        with contextlib.suppress(redis.RedisError, OSError):
            await connection.aclose()
        await asyncio.sleep(0.05)


async def read(cache: Server, number: int, story: Story, written: dict[int, float], ended: asyncio.Event) -> None:
    """Reads one rate after the other, and notes what is wrong: an error, no value, one older than the last."""
    connection = client(cache)
    seen = [0] * KEYS
    while not ended.is_set():
        number = (number + 1) % KEYS
        column = story.columns[-1] if story.columns else Column(True)
        try:
            value = int(await connection.get(f"rate:{number}") or 0)
        except redis.RedisError as error:
            value, seen_error = 0, str(error)
        else:
            seen_error = "no value"
        if value == 0:
            column.errors += 1
            story.errors.append(seen_error)
        else:
            column.good += 1
            story.backwards += value < seen[number]
            seen[number] = max(seen[number], value)
            column.age = time.perf_counter() - written.get(value, time.perf_counter())
        await asyncio.sleep(PAUSE)
    await connection.aclose()


async def show(console: Console, story: Story, down: list[float]) -> None:
    """What was promised, and what came of it."""
    replies = sum(column.good for column in story.columns)
    tried, lasted = down
    # Of a key: after 0.2, 0.4, 0.8, 1, 1, ... seconds, each of them shortened by up to a half.
    most = KEYS * (4 + 2 * lasted)
    oldest = max(column.age for column in story.columns)
    last = story.columns[-1].age
    checks = Checks()
    checks.add("no client sees an error", f"{len(story.errors)} in {replies} replies {story.errors[:1] or ''}", not story.errors)
    checks.add("no client sees an older value after a newer one", f"{story.backwards} times", story.backwards == 0)
    checks.add(f"the dead source is tried at most {most:.0f} times in {lasted:.1f} s", f"{tried:.0f} times", tried <= most)
    checks.add("old values are served meanwhile", f"up to {oldest:.1f} s old", oldest > lasted / 2)
    checks.add("new ones as soon as it is back", f"{last:.1f} s old at the end", last < 1.5)
    checks.show(console)
