"""Clients that wait (for a load, for room, for their save, for a function) while somebody takes their rights away: they hear that they may
not, and the server goes on. Contract: docs/contract/read-through.md 3.1, docs/contract/write-behind.md 1.
"""

from __future__ import annotations

from typing import Callable

import pytest

from figures import wait_for
from helpers import Server, wait_until
from read_through import at_rest

pytestmark = pytest.mark.matrix

# What is registered for the keys `w:*`; it ends when the key `go` is there.
WAIT = """
import time
def wait():
    execute('INCR', 'begun')
    while not execute('EXISTS', 'go'):
        time.sleep(0.01)
"""
WAYS = {
    "load": "read_through('w:*', lambda key: wait() or 'v')",
    "both halves": "read_through('w:*', lambda key: wait())\nwrite_behind('w:*', lambda changes: None, wait=True)",
    "save": "write_behind('w:*', lambda changes: wait(), wait=True)",
    "link": "GB('KeysReader').foreach(lambda r: wait()).register(prefix='w:*', commands=['get', 'incr'], mode='async_local')",
    "hook": "GB('CommandReader').map(lambda r: wait() or call_next(*r[1:])).register(hook='incr', keyprefix='w:', mode='async_local')",
}
LOSES = {
    "commands": ["-@all"],
    "keys": ["resetkeys"],
    "some commands": ["-incr", "-get", "-sunionstore", "-append"],
    "all": ["off"],
}
COMMANDS = [["INCR", "w:1"], ["GET", "w:2"], ["SUNIONSTORE", "w:3", "w:4"], ["APPEND", "w:5", "x"], ["MGET", "w:6", "w:7"]]


@pytest.mark.parametrize("loses", LOSES)
@pytest.mark.parametrize("way", WAYS)
def test_who_waits_meanwhile(borrow_server: Callable[..., Server], way: str, loses: str) -> None:
    server = borrow_server()
    server.run(f"{WAIT}\n{WAYS[way]}")
    client = server.client()
    client.execute_command("ACL", "SETUSER", "me", "on", "nopass", "~*", "&*", "+@all")
    raws = []
    for words in COMMANDS:
        raw = server.raw()
        assert raw.call("AUTH", "me", "x") == b"+OK\r\n"
        raw.send(*words)
        raws.append(raw)
    wait_until(lambda: int(client.get("begun") or 0) > 0 and client.info("clients")["blocked_clients"] > 0)
    client.execute_command("ACL", "SETUSER", "me", *LOSES[loses])
    client.set("go", 1)
    for raw in raws:
        assert raw.read()
    assert client.ping()
    wait_until(lambda: client.info("clients")["blocked_clients"] == 0)


def test_nothing_is_written_for_them(borrow_server: Callable[..., Server]) -> None:
    server = borrow_server()
    server.run(f"{WAIT}\n{WAYS['both halves']}")
    client = server.client()
    client.execute_command("ACL", "SETUSER", "me", "on", "nopass", "~*", "&*", "+@all")
    raw = server.raw()
    raw.call("AUTH", "me", "x")
    raw.send("INCR", "w:1")
    wait_for(server, waiting=1)
    client.execute_command("ACL", "SETUSER", "me", "-incr")
    client.set("go", 1)
    assert raw.read().startswith((b"-NOPERM", b"-ERR"))
    assert not client.exists("w:1")
    at_rest(server)
