"""A herd on one cold key, by who loads it: the tutorial's function, the same with `coalesce=True`, `read_through`.

Clients that come at the same moment miss the same key together. The source takes 10 ms, as a database might. Rows of the group
`resources`: how long the last client waits, and how often the source is asked.
"""

from __future__ import annotations

import functools
from pathlib import Path

from harness import Server
from loaders import together

CLIENTS = 2_000
FUNCTION = """
import time
def fetch(record):
    execute('INCR', 'asked')
    time.sleep(0.01)
    execute('SET', record['key'], 'value', 'EX', 3600)
    override_reply('value')
GB('KeysReader').foreach(fetch).register(
    prefix='user:*', commands=['get'], eventTypes=['keymiss'], mode='async_local'{more})
"""
READ_THROUGH = """
import time
@read_through('user:*', ttl=3600, max_waiting=100000)
def load(key):
    execute('INCR', 'asked')
    time.sleep(0.01)
    return 'value'
"""
# Name, what it is, and the script.
WAYS = (
    ("tutorial", "the tutorial's own function", FUNCTION.format(more="")),
    ("coalesce", "the same with coalesce=True", FUNCTION.format(more=", coalesce=True")),
    ("read-through", "read_through", READ_THROUGH),
)


def last(script: str, binary: Path, clients: int) -> tuple[float, str]:
    """Milliseconds until the last client has its reply, and the server's version."""
    with Server(binary, "module", module=True) as cache:
        cache.client.call("RG.PYEXECUTE", script)
        return together(cache.port, clients)[-1] * 1000, cache.version


def asked(script: str, binary: Path, clients: int) -> tuple[float, str]:
    """How often the source was asked, and the server's version."""
    with Server(binary, "module", module=True) as cache:
        cache.client.call("RG.PYEXECUTE", script)
        together(cache.port, clients)
        return float(cache.client.call("GET", "asked")), cache.version


def figures() -> list[tuple[str, str, functools.partial[tuple[float, str]], str]]:
    """Name, description, how it is measured, and in what, of each row."""
    rows = []
    for name, what, script in WAYS:
        said = f"{CLIENTS:,} clients ask for the same cold key together, a source of 10 ms, {what}: "
        rows.append((f"herd-{name}", said + "until the last has its reply", functools.partial(last, script), "ms"))
        rows.append((f"herd-{name}-calls", said + "how often the source is asked", functools.partial(asked, script), "calls"))
    return rows
