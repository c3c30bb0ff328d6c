"""Functions that wait in calls which do not return: what others have goes on. Contract: docs/security.md, "What a function can do to
the server"."""

from __future__ import annotations

import socket
import time
from typing import Callable, Iterator

import pytest
import redis

from helpers import Server, wait_until
from probes import BUSY, start, status

pytestmark = pytest.mark.matrix

# Three workers, unless ExecutionThreads says otherwise.
WORKERS = 3
SCRIPT = """
import socket

def hang():
    if execute('EXISTS', 'released'):
        return 'released'
    connection = socket.create_connection(('127.0.0.1', {port}))
    connection.recv(1)
    return 'released'

{hanging}

@read_through('free:*')
def load(key):
    return 'loaded'

@write_behind('saved:*')
def save(changes):
    for change in changes:
        execute('SET', 'copy:' + change['key'], change['value'])

GB('CommandReader').map(lambda words: words[1]).register(trigger='say')
GB('KeysReader').foreach(lambda r: execute('RPUSH', 'seen', r['key'])).register(prefix='event:*', eventTypes=['set'], readValue=False)
"""
WAYS = {
    "loads": "read_through('hang:*', lambda key: hang())",
    "commands": "GB('CommandReader').map(lambda words: hang()).register(trigger='hang')",
    "saves": "for name in ('a', 'b', 'c'): write_behind('hang:' + name + ':*', lambda changes: hang() and None)",
    "events": "GB('KeysReader').foreach(lambda r: hang()).register(prefix='hang:*', eventTypes=['set'], readValue=False)",
}


class Hole:
    """Takes connections and says nothing."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self.socket.getsockname()[1]
        self.socket.settimeout(20)
        self.taken: list[socket.socket] = []

    def take(self, count: int) -> None:
        """Waits for so many."""
        while len(self.taken) < count:
            self.taken.append(self.socket.accept()[0])

    def release(self) -> None:
        """Lets those go that it has taken."""
        for connection in self.taken:
            connection.close()

    def close(self) -> None:
        self.release()
        self.socket.close()


@pytest.fixture
def hole() -> Iterator[Hole]:
    hole = Hole()
    yield hole
    hole.close()


def hang(server: Server, way: str, count: int) -> None:
    """Nobody waits for them here."""
    for number in range(count):
        raw = server.raw()
        if way == "loads":
            raw.send("GET", f"hang:{number}")
        elif way == "commands":
            raw.send("RG.TRIGGER", "hang")
        elif way == "saves":
            raw.send("SET", f"hang:{'abc'[number % 3]}:{number}", "x")
        else:
            raw.send("SET", f"hang:{number}", "x")


def others_go_on(client: redis.Redis, round: int) -> None:
    assert client.get(f"free:{round}") == "loaded"
    assert client.execute_command("RG.TRIGGER", "say", "it") == ["it"]
    client.set(f"saved:{round}", "x")
    wait_until(lambda: client.get(f"copy:saved:{round}") == "x")
    client.set(f"event:{round}", "x")
    wait_until(lambda: f"event:{round}" in client.lrange("seen", 0, -1))


@pytest.mark.parametrize("way", WAYS)
def test_what_hangs_keeps_nobody_else_waiting(server: Server, hole: Hole, way: str) -> None:
    server.run(SCRIPT.format(port=hole.port, hanging=WAYS[way]))
    client = server.client(socket_timeout=20)
    others_go_on(client, 0)
    # Far more than there are workers.
    hang(server, way, 12)
    hole.take(WORKERS)
    for round in range(1, 4):
        others_go_on(client, round)
    # What hangs gets no more workers than there are.
    hole.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        hole.take(WORKERS + 1)
    client.set("released", 1)
    hole.release()
    others_go_on(client, 4)
    server.wait_idle()


def test_several_that_hang(server: Server, hole: Hole) -> None:
    """Each keeps one worker in reserve at most."""
    many = "\n".join(f"read_through('hang:{name}:*', lambda key: hang())" for name in "abcdef")
    server.run(SCRIPT.format(port=hole.port, hanging=many))
    client = server.client(socket_timeout=20)
    for name in "abcdef":
        for number in range(3):
            server.raw().send("GET", f"hang:{name}:{number}")
    others_go_on(client, 1)
    hole.take(WORKERS)
    others_go_on(client, 2)
    hole.close()


CHAIN = """
@read_through('chain:*')
def load(key):
    number = int(key[6:])
    if number:
        refresh(f'chain:{number - 1}')
    return key
"""


@pytest.mark.parametrize("hanging", [WORKERS, WORKERS + 2])
def test_what_waits_for_others_gets_on_while_all_workers_hang(server: Server, hole: Hole, hanging: int) -> None:
    """A loader that asks for another key keeps no worker while it waits, and each that waits brings one if none is free."""
    server.run(SCRIPT.format(port=hole.port, hanging=WAYS["commands"]) + CHAIN)
    client = server.client(socket_timeout=20)
    hang(server, "commands", hanging)
    hole.take(WORKERS)
    assert client.get("chain:4") == "chain:4"
    # Those that came for these are there, and are too few.
    assert client.get("chain:14") == "chain:14"
    hole.release()
    others_go_on(client, 1)
    hole.close()


def test_order_holds_in_reserve(server: Server, hole: Hole) -> None:
    """Events of one key come in their order, whoever runs them."""
    server.run(SCRIPT.format(port=hole.port, hanging=WAYS["loads"]))
    server.run("GB('KeysReader').foreach(lambda r: execute('RPUSH', 'order', execute('HGET', r['key'], 'n') or '')).register("
               "prefix='row:*', eventTypes=['hset'], readValue=False)")
    client = server.client(socket_timeout=20)
    hang(server, "loads", WORKERS)
    hole.take(WORKERS)
    with client.pipeline(transaction=False) as pipe:
        for number in range(200):
            pipe.hset("row:1", "n", number)
        pipe.execute()
    wait_until(lambda: client.llen("order") == 200)
    seen = [int(number) for number in client.lrange("order", 0, -1)]
    assert seen == sorted(seen)


def test_the_log_names_it(start_server: Callable[..., Server], hole: Hole) -> None:
    server = start_server(module_args=["ExecutionThreads", 2])
    server.run(SCRIPT.format(port=hole.port, hanging=WAYS["loads"]))
    hang(server, "loads", 3)
    hole.take(2)
    others_go_on(server.own, 1)
    assert server.log().count("all 2 workers (ExecutionThreads) wait in functions that do not return") == 1


def test_a_single_worker_runs_one_after_the_other(start_server: Callable[..., Server]) -> None:
    """Functions that count on it are not run beside each other."""
    server = start_server(module_args=["ExecutionThreads", "1"])
    busy = start(server, BUSY)
    queued = start(server, "GB().run('k', noScan=True)", "created")
    began = time.monotonic()
    # Several times as long as workers in reserve wait for the others.
    wait_until(lambda: time.monotonic() - began > 0.5)
    assert status(server, queued) == "created"
    assert "in reserve" not in server.log()
    server.client().set("go", 1)
    server.wait_idle()
    assert (status(server, busy), status(server, queued)) == ("done", "done")
