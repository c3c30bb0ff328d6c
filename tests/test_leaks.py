"""What a server holds does not grow with what it has done: deployments, registrations, errors, clients that leave, coroutines that are
cancelled, reloads, requirements. Resident memory, descriptors, threads and the objects of Python are level.

`LEAK_SECONDS` sets how long the soak takes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable, NamedTuple

import pytest
import redis

from helpers import Server, as_dict, wait_until
from requirements import build_wheel

SOAK_S = float(os.environ.get("LEAK_SECONDS", "3600"))
SHORT_S = 20
MB = 1 << 20

# Each version is another text, so nothing is known from before.
APP = """
import asyncio
version = {turn}
table = {{number: 'x' * 50 for number in range(500)}}

async def load(r):
    await asyncio.sleep(0.002)
    if r['key'].endswith('7'):
        raise ValueError('no source %d' % version)
    override_reply(table[version % 500])

def later(r):
    future = gearsFuture()
    async def answer():
        await asyncio.sleep(0.001)
        return version
    runCoroutine(answer(), future)
    return future

GB('KeysReader').foreach(load).register(prefix='k:*', eventTypes=['keymiss'], commands=['get'], mode='async_local')
GB('CommandReader').map(later).register(trigger='later', mode='async_local')
GB('CommandReader').map(lambda r: call_next(*r[1:])).register(hook='hget', mode='sync')
GB('StreamReader').foreach(lambda r: execute('INCR', 'n')).register(prefix='s', batch=2, mode='async_local')
"""
SLOW = "import asyncio\nasync def f(r):\n    await asyncio.sleep(0.5)\nGB('ShardsIDReader').map(f).run()"
TASKS = "import asyncio\nexecute('SET', 'tasks', len(asyncio.all_tasks(loop)))"
OTHERS = [
    "GB('KeysReader').map(lambda r: r['value']).groupby(lambda v: v, lambda k, a, r: (a or 0) + 1).run('k:*')",
    "1/0",
    "def f(:",
    "GB('ShardsIDReader').map(lambda r: 1/0).run()",
    "GB('CommandReader').map(len).register(trigger='once')\nraise ValueError('after all')",
    "class C:\n    pass\na, b = C(), C()\na.b, b.a = b, a\nGB('ShardsIDReader').map(lambda r: str(a)[:1]).run()",
]


class Level(NamedTuple):
    """What a server holds."""

    resident: int
    descriptors: int
    threads: int
    objects: int
    used: int


def level(server: Server) -> Level:
    """As little as it can be: nothing is under way, nobody else is connected, garbage is gone."""
    client = server.own
    wait_until(lambda: client.info("clients")["connected_clients"] <= 2, 20, "all other clients are gone")
    wait_until(lambda: not is_busy(client), 20, "nothing is under way")
    wait_until(lambda: server.run(TASKS) and client.get("tasks") == "0", 20, "coroutines of aborted executions have gone on to their end")
    client.flushall()
    server.run("import gc\ngc.collect()\nexecute('SET', 'objects', len(gc.get_objects()))")
    folder = Path("/proc", str(server.process.pid))
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    resident, threads = int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"])
    return Level(resident, len(list((folder / "fd").iterdir())), threads, int(client.get("objects")), int(client.info("memory")["used_memory"]))


def is_busy(client: redis.Redis) -> bool:
    return any(as_dict(entry)["status"] not in ("done", "aborted") for entry in client.execute_command("RG.DUMPEXECUTIONS"))


def refused(server: Server, script: str, *words: str) -> None:
    """Runs a script that may end with an error."""
    try:
        server.run(script, *words)
    except redis.ResponseError:
        pass


def turn(server: Server, number: int) -> None:
    """A bit of everything."""
    client = server.own
    server.run(APP.format(turn=number), "ID", "app", "UPGRADE")
    for script in OTHERS:
        refused(server, script)
    raws = [server.raw() for _ in range(6)]
    for place, raw in enumerate(raws):
        raw.send("GET", f"k:{number}{place}")
        if place % 2:  # the others leave without their reply
            raw.read()
        raw.close()
    server._raws.clear()
    for place in range(4):
        client.xadd("s", {"n": place})
        client.hset("h", "f", place)
        assert client.hget("h", "f") == str(place)
    assert client.execute_command("RG.TRIGGER", "later") == [str(number)]
    identifier = server.run(SLOW, "UNBLOCKING")
    client.execute_command("RG.ABORTEXECUTION", identifier)
    client.execute_command("RG.DROPEXECUTION", identifier)
    assert client.eval("return redis.call('HGETALL', KEYS[1])", 1, "h") == ["f", "3"]
    server.run("registerTE(100, lambda: None, 'te')")
    client.delete("te")
    if number % 10 == 0:
        client.execute_command("DEBUG", "RELOAD")
    if number % 100 == 50:
        # What only the last version needed goes with it.
        server.run("import pinion_demo", "ID", "packed", "UPGRADE", "REQUIREMENTS", f"pinion-demo=={1 + number // 100 % 2}.0")


def check(server: Server, seconds: float) -> None:
    for number in range(1, 60):  # whatever is filled only once is full then
        turn(server, number)
    levels = [level(server)]
    end, number = time.monotonic() + seconds, 100
    while time.monotonic() < end:
        for _ in range(50):
            turn(server, number)
            number += 1
        levels.append(level(server))
    print(f"{number - 100} turns; at first {levels[0]}, in the end {levels[-1]}")
    print(*levels[:: max(1, len(levels) // 20)], sep="\n")
    first, last = levels[0], min(levels[-3:])
    assert last.descriptors <= first.descriptors + 1
    assert last.threads <= first.threads + 2
    turns = number - 100
    assert last.objects - first.objects < 500 + turns / 10, "less than one object for ten turns, each of which makes hundreds"
    assert last.used - first.used < 3 * MB
    assert last.resident - first.resident < max(15 * MB, first.resident // 5)


@pytest.fixture
def packed(start_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that finds two versions of a package, in a folder."""
    for version in ("1.0", "2.0"):
        build_wheel(tmp_path, "pinion-demo", version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    # What is kept of executions for whoever asks is full soon.
    return start_server(module_args=["MaxExecutions", 50, "MaxExecutionsPerRegistration", 10])


def test_what_is_done_leaves_nothing(packed: Server) -> None:
    check(packed, SHORT_S)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 600)
def test_an_hour(packed: Server) -> None:
    check(packed, SOAK_S)
