"""SLOWLOG and command statistics of commands that wait for an execution: the time that it ran. Contract:
docs/contract/commands.md 7.2."""

from __future__ import annotations

import time
from typing import Any

import pytest

from helpers import Arg, RawClient, Server, wait_until
from probes import BUSY, executions, start

pytestmark = pytest.mark.matrix

SPIN = """
import asyncio, time

def spin(seconds=0.15):
    end = time.monotonic() + seconds
    while time.monotonic() < end: pass
    return 'spun'

"""
MICROSECONDS = 1_000_000


def entries(server: Server) -> list[tuple[list[str], float]]:
    """Slow commands, oldest first: the words and the time in seconds."""
    found: list[Any] = server.client().execute_command("SLOWLOG", "GET")
    return [(entry[3], entry[2] / MICROSECONDS) for entry in reversed(found)]


@pytest.fixture(autouse=True)
def slow(server: Server) -> None:
    server.client().config_set("slowlog-log-slower-than", 100_000)


def of(server: Server, *words: str) -> list[float]:
    """The times of one command."""
    return [
        seconds
        for command, seconds in entries(server)
        if [word.lower() for word in command[: len(words)]] == list(words)
    ]


def call(server: Server, *words: Arg) -> bytes:
    raw: RawClient = server.raw()
    return raw.call(*words)


@pytest.mark.parametrize("mode", ["async", "async_local", "sync"])
def test_a_trigger(server: Server, mode: str) -> None:
    server.run(f"{SPIN}GB('CommandReader').map(lambda r: spin()).register(trigger='t', mode='{mode}')")
    server.client().execute_command("SLOWLOG RESET")
    assert call(server, "RG.TRIGGER", "t", "a") == b"*1\r\n$4\r\nspun\r\n"
    [seconds] = wait_until(lambda: of(server, "rg.trigger", "t", "a"))
    assert 0.14 < seconds < 1


def test_a_script(server: Server) -> None:
    assert server.run(f"{SPIN}GB('KeysReader').map(lambda r: spin()).run('k', noScan=True)") == [["spun"], []]
    [seconds] = wait_until(lambda: of(server, "rg.pyexecute"))
    assert 0.14 < seconds < 1


def test_a_hook(server: Server) -> None:
    server.run(f"{SPIN}GB('CommandReader').map(lambda r: spin()).register(hook='get', mode='async_local')")
    assert call(server, "GET", "k") == b"$4\r\nspun\r\n"
    [seconds] = wait_until(lambda: of(server, "rg.innerread", "get", "k"))
    assert 0.14 < seconds < 1


def test_a_linked_client(server: Server) -> None:
    if not server.is_valkey and server.version < (7, 0):
        pytest.skip("workers may begin before the client waits")
    server.run(
        f"{SPIN}GB('KeysReader').foreach(lambda r: override_reply(spin()))"
        ".register(commands=['get'], eventTypes=['keymiss'], mode='async_local')"
    )
    assert call(server, "GET", "k") == b"$4\r\nspun\r\n"
    [seconds] = wait_until(lambda: of(server, "rg.innerread", "get", "k"))
    assert 0.14 < seconds < 1


def test_waiting_does_not_count(server: Server) -> None:
    """Neither for a worker nor for coroutines."""
    server.run(f"{SPIN}async def wait(r):\n    await asyncio.sleep(0.3)\n    return r\n"
               "GB('CommandReader').map(wait).register(trigger='waits')")
    server.run(f"{SPIN}async def wait(r):\n    await asyncio.sleep(0.3)\n    return r\n"
               "GB('CommandReader').foreach(lambda r: spin(0.07)).map(wait).foreach(lambda r: spin(0.07))"
               ".register(trigger='both')")
    assert call(server, "RG.TRIGGER", "waits")[:2] == b"*1"
    assert call(server, "RG.TRIGGER", "both")[:2] == b"*1"
    [seconds] = wait_until(lambda: of(server, "rg.trigger", "both"))
    assert 0.13 < seconds < 0.29
    assert of(server, "rg.trigger", "waits") == []
    busy = [start(server, BUSY) for _ in range(3)]
    server.run("GB('CommandReader').register(trigger='quick')")
    raw = server.raw()
    raw.send("RG.TRIGGER", "quick")
    time.sleep(0.2)
    server.client().set("go", 1)
    assert raw.read()[:2] == b"*1" and len(busy) == 3
    assert of(server, "rg.trigger", "quick") == []


def test_a_client_that_leaves_or_is_let_go(server: Server) -> None:
    """The server forgets the client while its work is being measured."""
    server.run(f"{SPIN}GB('CommandReader').map(lambda r: spin(0.05)).register(trigger='t')")
    for _ in range(10):
        raw = server.raw()
        raw.send("RG.TRIGGER", "t")
        raw.close()
    server.wait_idle()
    # Whoever looks may come late: it is stopped long before its end.
    server.run(f"{SPIN}GB('CommandReader').map(lambda r: spin(30)).register(trigger='long')")
    for _ in range(10):
        raw = server.raw()
        raw.send("RG.TRIGGER", "long")
        # The one before goes a moment after its reply.
        wait_until(lambda: len(executions(server)) == 1)
        (execution,) = executions(server)
        assert server.client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
        raw.read()
    assert server.client().ping()
