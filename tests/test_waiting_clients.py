"""Clients that the server does not let wait: each command answers them all the same, and nothing of theirs is left behind.

Valkey 8.1 and later let no client wait that is subscribed to channels, which RESP3 allows; other servers do.
"""

from __future__ import annotations

import pytest

from clusters import Cluster
from helpers import RawClient, Server, wait_until
from probes import error_of

REFUSAL = (
    b"-ERR the server does not let this client wait for a reply: it is subscribed to channels, or no ordinary client\r\n"
)
# Whoever waits behind it waits for the key `go`.
HELD = """
import time

def hold(record):
    while not execute('EXISTS', 'go'):
        time.sleep(0.001)
    return 'went'
"""
SCRIPT = (
    HELD
    + """
import asyncio

async def later(record):
    while not execute('EXISTS', 'go'):
        await asyncio.sleep(0.001)
    return 'later'

GB('CommandReader').map(lambda r: 'background').register(trigger='background', mode='async_local')
GB('CommandReader').map(lambda r: 'distributed').register(trigger='distributed', mode='async')
GB('CommandReader').map(later).register(trigger='coroutine', mode='sync')
GB('CommandReader').map(lambda r: 'hooked').register(hook='strlen', mode='async_local')
GB('CommandReader').map(later).register(hook='ttl', mode='sync')
"""
)


def subscribed(server: Server) -> RawClient:
    client = server.raw(timeout=20)
    assert client.call("HELLO", 3).startswith(b"%")
    assert client.call("SUBSCRIBE", "channel").startswith(b">")
    return client


def may_wait(server: Server) -> bool:
    return not (server.is_valkey and server.version >= (8, 1))


def answers(server: Server, expected: bytes) -> bytes:
    return expected if may_wait(server) else REFUSAL


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("RG.TRIGGER", "background"), b"*1\r\n$10\r\nbackground\r\n"),
        (("RG.TRIGGER", "distributed"), b"*1\r\n$11\r\ndistributed\r\n"),
        (("RG.TRIGGER", "coroutine"), b"*1\r\n$5\r\nlater\r\n"),
        (("STRLEN", "k"), b"$6\r\nhooked\r\n"),
        (("TTL", "k"), b"$5\r\nlater\r\n"),
        (("RG.PYEXECUTE", "GB('ShardsIDReader').map(lambda r: 'ran').run()"), b"*2\r\n*1\r\n$3\r\nran\r\n*0\r\n"),
        (("RG.REFRESHCLUSTER",), b"+OK\r\n"),
    ],
    ids=lambda value: "-".join(value[:2])[:24] if isinstance(value, tuple) else "",
)
def test_each_command_answers(server: Server, command: tuple[str, ...], expected: bytes) -> None:
    if server.version < (7, 0):
        pytest.skip("Redis 6.2 has no client that is subscribed and sends other commands")
    assert server.run(SCRIPT) == "OK"
    client = subscribed(server)
    client.send(*command)
    if not may_wait(server):
        assert client.read() == REFUSAL
    server.client().set("go", 1)
    if may_wait(server):
        assert client.read() == expected
    assert client.call("ECHO", "next") == b"$4\r\nnext\r\n"
    server.wait_idle()


@pytest.mark.parametrize("command", ["RG.GETRESULTSBLOCKING", "RG.ABORTEXECUTION"])
def test_commands_about_an_execution_answer(server: Server, command: str) -> None:
    execution = server.run(HELD + "GB('ShardsIDReader').map(hold).run(mode='async_local')", "UNBLOCKING")
    client = subscribed(server)
    client.send(command, execution)
    if may_wait(server):
        server.client().set("go", 1)
        assert client.read() in (b"*2\r\n*1\r\n$4\r\nwent\r\n*0\r\n", b"+OK\r\n")
    else:
        assert client.read() == REFUSAL
        server.client().set("go", 1)
    assert client.call("ECHO", "next") == b"$4\r\nnext\r\n"


def test_what_must_be_installed_first(server: Server) -> None:
    """Nothing is begun for a client that cannot hear how it ends."""
    if may_wait(server):
        pytest.skip("here the client waits")
    client = subscribed(server)
    assert client.call("RG.PYEXECUTE", "log('x')", "REQUIREMENTS", "pinion-has-no-such-package") == REFUSAL
    assert client.call("ECHO", "next") == b"$4\r\nnext\r\n"
    assert "pinion-has-no-such-package" not in server.log()


@pytest.mark.parametrize("overrides", ["at once", "later", "never"])
def test_a_linked_command_answers(server: Server, overrides: str) -> None:
    """It has run: its own reply is there, or what a function has said by then. Nobody can change it afterwards."""
    script = HELD + """
def f(record):
    hold(record)
    override_reply('overridden')

GB('KeysReader').foreach(f).register('*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
"""
    if overrides == "at once":
        script += "GB('KeysReader').foreach(lambda r: override_reply('soon')).register('*', commands=['get'], eventTypes=['keymiss'], mode='sync')"
    if overrides == "never":
        script = script.replace("    override_reply('overridden')\n", "    pass\n")
    assert server.run(script) == "OK"
    client = subscribed(server)
    own = {"at once": b"$4\r\nsoon\r\n", "later": b"$10\r\noverridden\r\n", "never": b"_\r\n"}[overrides]
    client.send("GET", "k")
    if may_wait(server):
        server.client().set("go", 1)
        assert client.read() == own
        return
    assert client.read() == (own if overrides == "at once" else b"_\r\n")
    server.client().set("go", 1)
    server.wait_idle()
    data = server.registrations()[0]["RegistrationData"]
    failed = overrides != "never"
    assert (data["numSuccess"], data["numFailures"]) == ((0, 1) if failed else (1, 0))
    assert client.call("ECHO", "next") == b"$4\r\nnext\r\n"


def test_a_script_for_all_shards(cluster: Cluster) -> None:
    """What was to be registered everywhere is registered nowhere."""
    server = cluster[0]
    client = subscribed(server)
    script = "GB('CommandReader').map(lambda r: 1).register(trigger='everywhere', mode='sync')"
    assert client.call("RG.PYEXECUTE", script) == answers(server, b"+OK\r\n")
    registered = 1 if may_wait(server) else 0
    for node in cluster.masters:
        wait_until(lambda: len(node.registrations()) == registered, message="all shards agree")  # noqa: B023
    for command in (["RG.CLEARREGISTRATIONSSTATS"], ["RG.REFRESHCLUSTER"]):
        assert client.call(*command) == answers(server, b"+OK\r\n")


def test_in_a_transaction_nothing_waits(server: Server) -> None:
    assert server.run(SCRIPT) == "OK"
    assert "blocking is not allowed" in error_of(server, "return redis.call('STRLEN', KEYS[1])", 1, "k", command="EVAL")
