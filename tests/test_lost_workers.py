"""Calls that are given up and go on hanging: their workers are replaced, so that all go on as soon as the source is well again, within
bounds. Contract: docs/security.md, "What a function can do to the server"; docs/contract/write-behind.md 2.8."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import pytest
import redis

from helpers import Server, wait_until
from test_hung_functions import Hole

pytestmark = pytest.mark.matrix

# What new connections do is well as soon as the key is there: those of before stay silent.
SCRIPT = """
import socket

def hang():
    if execute('EXISTS', 'well'):
        return
    connection = socket.create_connection(('127.0.0.1', {port}))
    connection.recv(1)

def store(changes):
    hang()
    for change in changes:
        execute('SET', 'copy:' + change['key'], change['value'])

def load(key):
    hang()
    return 'x'

for n in range({many}):
    read_through('load%d:*' % n, load, max_load_time=0.3, timeout=5, backoff=0.05, max_backoff=0.1)
    write_behind('save%d:*' % n, store, max_save_time=0.3, backoff=0.05, max_backoff=0.1)
    GB('CommandReader').map(lambda words: hang() or 'said').register(trigger='say%d' % n, timeout=300)
"""


@pytest.fixture
def hole() -> Iterator[Hole]:
    hole = Hole()
    yield hole
    hole.close()


def run(server: Server, hole: Hole, many: int = 1) -> redis.Redis:
    server.run(SCRIPT.format(port=hole.port, many=many), "ID", "script")
    return server.client(socket_timeout=20)


def lost(server: Server) -> int:
    return int(server.own.info("rg")["rg_lost_workers"])


def reads(client: redis.Redis, key: str) -> bool:
    try:
        return client.get(key) == "x"
    except redis.ResponseError as error:
        assert "LOADFAILED" in str(error)
        return False


def says(client: redis.Redis, number: int) -> bool:
    try:
        return client.execute_command("RG.TRIGGER", f"say{number}") == ["said"]
    except redis.ResponseError:
        return False


def all_are_well(client: redis.Redis, number: int, mark: str) -> None:
    wait_until(lambda: reads(client, f"load{number}:{mark}"))
    client.set(f"save{number}:{mark}", mark)
    wait_until(lambda: client.get(f"copy:save{number}:{mark}") == mark)
    wait_until(lambda: says(client, number))


@pytest.mark.parametrize(("loads", "saves", "calls"), [(2, 1, 0), (3, 1, 0), (6, 0, 0), (0, 0, 3), (0, 1, 2), (1, 1, 1), (4, 1, 4)])
def test_all_goes_on_when_the_source_is_well_again(server: Server, hole: Hole, loads: int, saves: int, calls: int) -> None:
    client = run(server, hole)
    for number in range(saves):
        client.set(f"save0:{number}", "first")
    for number in range(calls):
        server.raw().send("RG.TRIGGER", "say0")
    for number in range(loads):
        server.raw().send("GET", f"load0:{number}")
    hole.take(min(3, loads + saves + calls))
    client.set("well", 1)
    all_are_well(client, 0, "after")
    for number in range(saves):
        wait_until(lambda: client.get(f"copy:save0:{number}") == "first")
    # Several at once, as before.
    for number in range(20):
        server.raw().send("GET", f"load0:more:{number}")
    wait_until(lambda: all(client.exists(f"load0:more:{number}") for number in range(20)))
    # Whoever is let go at last gives his worker back.
    hole.release()
    wait_until(lambda: lost(server) == 0)
    all_are_well(client, 0, "last")
    server.wait_idle()


def test_many_registrations(server: Server, hole: Hole) -> None:
    """More than there are workers, and workers in reserve, each with calls that hang."""
    many = 6
    client = run(server, hole, many)
    for number in range(many):
        client.set(f"save{number}:0", "first")
        server.raw().send("GET", f"load{number}:0")
        server.raw().send("RG.TRIGGER", f"say{number}")
    hole.take(11)
    client.set("well", 1)
    for number in range(many):
        all_are_well(client, number, "after")
        wait_until(lambda: client.get(f"copy:save{number}:0") == "first")


def test_a_long_outage_takes_workers_slower_and_slower(server: Server, hole: Hole) -> None:
    """Nobody takes one thread after the other, and others are well meanwhile."""
    client = run(server, hole)
    server.run("read_through('free:*', lambda key: 'free')")
    stop = []

    def outage() -> bool:
        number = len(stop)
        stop.append(number)
        server.raw().send("GET", f"load0:{number}")
        assert client.get(f"free:{number}") == "free"
        return lost(server) >= 8

    wait_until(outage, 60)
    # The rests double from 100 ms on: the eighth comes after three seconds at least.
    assert lost(server) < 12
    client.set("well", 1)
    all_are_well(client, 0, "after")
    assert "was given up and does not return: its worker is replaced" in server.log()


def test_one_worker(start_server: Callable[..., Server], hole: Hole) -> None:
    """It is replaced as well, and there is one again when the call returns."""
    server = start_server(module_args=["ExecutionThreads", "1"])
    client = run(server, hole)
    client.set("save0:0", "first")
    hole.take(1)
    client.set("well", 1)
    wait_until(lambda: client.get("copy:save0:0") == "first")
    all_are_well(client, 0, "after")
    hole.release()
    wait_until(lambda: lost(server) == 0)
    server.run("""
running, most = 0, 0
def count(words):
    global running, most
    import time
    running += 1
    most = max(most, running)
    time.sleep(0.01)
    running -= 1
    return most
GB('CommandReader').map(count).register(trigger='count')""")
    raws = [server.raw() for _ in range(20)]
    for raw in raws:
        raw.send("RG.TRIGGER", "count")
    wait_until(lambda: client.execute_command("RG.TRIGGER", "count") == ["1"])


def test_an_upgrade_goes_on_with_the_queue_at_once(server: Server, hole: Hole) -> None:
    """Whatever the old `save` does, and however long its rests have become."""
    script = SCRIPT.format(port=hole.port, many=1).replace("max_save_time=0.3", "max_save_time=600")
    server.run(script, "ID", "script")
    client = server.client(socket_timeout=20)
    client.set("save0:0", "first")
    hole.take(1)
    client.set("well", 1)
    server.run(script + "\n# another one", "ID", "script", "UPGRADE")
    wait_until(lambda: client.get("copy:save0:0") == "first")


def test_an_upgrade_waits_for_no_rest(server: Server) -> None:
    failing = "write_behind('s:*', lambda changes: 1 / 0, backoff=600, max_backoff=600)"
    server.run(failing, "ID", "script")
    client = server.client(socket_timeout=20)
    client.set("s:0", "first")
    wait_until(lambda: figures_of(server, "WriteBehind")["saveFailures"] == 1)
    saving = "def save(changes):\n    for c in changes: execute('SET', 'copy:' + c['key'], c['value'])\nwrite_behind('s:*', save)"
    server.run(saving, "ID", "script", "UPGRADE")
    wait_until(lambda: client.get("copy:s:0") == "first")


def figures_of(server: Server, reader: str) -> dict[str, Any]:
    for registration in server.registrations():
        if registration["reader"] == reader:
            return dict(registration["RegistrationData"])
    raise AssertionError(reader)


def test_figures_count_what_was_given_up(server: Server, hole: Hole) -> None:
    client = run(server, hole)
    server.raw().send("GET", "load0:0")
    client.set("save0:0", "first")
    hole.take(2)
    wait_until(lambda: figures_of(server, "ReadThrough")["loadMaxUS"] >= 300_000)
    assert figures_of(server, "ReadThrough")["loadP99US"] >= 300_000
    wait_until(lambda: figures_of(server, "WriteBehind")["saveMaxUS"] >= 300_000)


ASYNC = """
@write_behind('s:*', wait=True, timeout=10, max_save_time=0.2, max_backoff=0.1)
{kind} save(changes):
    import time, asyncio
    {wait}
"""


@pytest.mark.parametrize(("kind", "wait"), [
    ("def", "time.sleep(100)"), ("def", "while True: time.sleep(0.001)"), ("async def", "await asyncio.sleep(100)"),
])
def test_a_save_that_takes_too_long_has_one_kind(server: Server, kind: str, wait: str) -> None:
    server.run(ASYNC.format(kind=kind, wait=wait).replace("timeout=10", "timeout=1.5"))
    with pytest.raises(redis.ResponseError, match="SAVEFAILED SaveTimedOut"):
        server.client(socket_timeout=20).set("s:1", "x")


COUNTED = """
read_through('load:*', lambda key: 'x')
write_behind('save:*', lambda changes: None)
GB('CommandReader').map(lambda words: 'said').register(trigger='say')
"""


def test_figures_of_a_registration_begin_anew_by_an_upgrade_and_sums_go_on(server: Server) -> None:
    client = server.own

    def use(name: str) -> None:
        assert client.get(f"load:{name}") == "x"
        client.set(f"save:{name}", "x")
        assert client.execute_command("RG.TRIGGER", "say") == ["said"]

    def sums() -> list[int]:
        saved = client.info("rg_write_behind")
        loaded = client.info("rg_read_through")
        return [saved["rg_write_behind_captured_total"], saved["rg_write_behind_saved_total"], loaded["rg_read_through_loads_total"]]

    def figures() -> list[int]:
        by_reader = {entry["reader"]: entry["RegistrationData"] for entry in server.registrations()}
        saves, loads, says = by_reader["WriteBehind"], by_reader["ReadThrough"], by_reader["CommandReader"]
        return [saves["captured"], saves["saved"], saves["batches"], saves["saveMaxUS"], loads["loads"], loads["loadMaxUS"], says["numTriggered"]]

    before = sums()
    server.run(COUNTED, "ID", "script")
    use("first")
    wait_until(lambda: sums() == [one + 1 for one in before])
    assert all(figures()), figures()
    server.run(COUNTED + "\n# another one", "ID", "script", "UPGRADE")
    assert figures() == [0] * 7
    assert sums() == [one + 1 for one in before]
    use("second")
    wait_until(lambda: sums() == [one + 2 for one in before])
    client.execute_command("RG.UNREGISTERSESSION", "script")
    assert sums() == [one + 2 for one in before]
