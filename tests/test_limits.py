"""What a registration may use (`timeout`, `max_concurrent`, `max_memory`), and what a function can do to the server. docs/security.md."""

from __future__ import annotations

import textwrap
from typing import Any, Callable

import pytest
import redis

from clusters import Cluster
from helpers import Server, as_dict, wait_until

pytestmark = pytest.mark.matrix

StartServer = Callable[..., Server]
MODES = ["sync", "async_local", "async"]


def register(server: Server, body: str, mode: str = "async_local", more: str = "") -> None:
    """The trigger `t`."""
    script = "import time\n" + textwrap.dedent(body)
    server.run(f"{script}\nGB('CommandReader').map(f).register(trigger='t', mode={mode!r}, {more})")


def call(server: Server, *words: str) -> Any:
    return server.client().execute_command("RG.TRIGGER", "t", *words)


def verbose(server: Server) -> dict[str, Any]:
    [entry] = server.client().execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")
    return as_dict(entry)


def data(server: Server) -> dict[str, Any]:
    return server.registrations()[0]["RegistrationData"]


# --- timeout ---


@pytest.mark.parametrize("mode", MODES)
def test_a_function_that_runs_for_too_long(server: Server, mode: str) -> None:
    register(server, "def f(r):\n    while r[1:]: pass\n    return 'ended'", mode, "timeout=100")
    with pytest.raises(redis.ResponseError, match=r"ran longer than its timeout \(100 ms\) and was stopped"):
        call(server, "long")
    assert call(server) == ["ended"], "the next one has a time of its own"
    assert (data(server)["numSuccess"], data(server)["numFailures"]) == (1, 1)
    assert "has run for longer than its timeout (100 ms) and is stopped" in server.log()


@pytest.mark.parametrize("mode", MODES)
def test_the_exception_can_be_caught_once(server: Server, mode: str) -> None:
    body = """
    def spin():
        while True: pass
    def f(r):
        try:
            spin()
        except Exception as error:
            return 'cleaned up after ' + type(error).__name__
    """
    register(server, body, mode, "timeout=100")
    [reply] = call(server)
    assert reply.startswith("cleaned up after ")
    assert data(server)["numFailures"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_who_goes_on_is_stopped_for_good(server: Server, mode: str) -> None:
    body = """
    def spin():
        while True: pass
    def f(r):
        try:
            spin()
        except Exception:
            pass
        spin()
    """
    register(server, body, mode, "timeout=100")
    with pytest.raises(redis.ResponseError, match="ran longer than its timeout"):
        call(server)
    wait_until(lambda: data(server)["numFailures"] == 1)


def test_waiting_does_not_count(server: Server) -> None:
    body = """
    import asyncio
    async def f(r):
        await asyncio.sleep(0.4)
        return 'ended'
    """
    register(server, body, more="timeout=100")
    assert call(server) == ["ended"]


def test_quick_functions_are_never_hit(server: Server) -> None:
    register(server, "def f(r): return sum(range(1000))", more="timeout=50")
    client = server.client()
    for _ in range(20):
        with client.pipeline(transaction=False) as pipe:
            for _ in range(50):
                pipe.execute_command("RG.TRIGGER", "t")
            assert pipe.execute() == [["499500"]] * 50
    assert data(server)["numFailures"] == 0


def test_events_of_keys(server: Server) -> None:
    script = """
    def f(r):
        while r['key'] == 'long': pass
    GB().foreach(f).register(prefix='*', mode='async_local', eventTypes=['set'], timeout=100)
    """
    server.run(script)
    client = server.client()
    client.set("long", 1)
    client.set("short", 1)
    server.wait_idle()
    assert (data(server)["numSuccess"], data(server)["numFailures"]) == (1, 1)


# --- max_concurrent ---


COUNTED = """
import asyncio
running, most = 0, 0
async def f(r):
    global running, most
    running += 1
    most = max(most, running)
    await asyncio.sleep(0.02)
    running -= 1
    return most
"""


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_so_many_at_the_same_time(server: Server, limit: int) -> None:
    register(server, COUNTED, more=f"max_concurrent={limit}")
    raws = [server.raw() for _ in range(20)]
    for raw in raws:
        raw.send("RG.TRIGGER", "t")
    most = max(int(raw.read().split(b"\r\n")[2]) for raw in raws)
    assert most == limit


def test_events_keep_their_order_by_key(server: Server) -> None:
    script = COUNTED.replace("async def f(r):", "async def f(r):\n    execute('RPUSH', 'order:' + r['key'], r['value'])")
    script += "GB().foreach(f).register(prefix='k*', mode='async_local', eventTypes=['incrby'], max_concurrent=2)"
    server.run(script + "\nGB('CommandReader').map(lambda r: most).register(trigger='most', mode='sync')")
    client = server.client()
    for _ in range(10):
        for key in ("k1", "k2", "k3", "k4"):
            client.incr(key)
    server.wait_idle()
    for key in ("k1", "k2", "k3", "k4"):
        assert len(client.lrange(f"order:{key}", 0, -1)) == 10
    assert client.execute_command("RG.TRIGGER", "most") == ["2"] or client.execute_command("RG.TRIGGER", "most") == ["1"]


# --- max_memory ---

TOO_MUCH = r"the execution held more than its max_memory \(1000000 bytes\) and was ended"
HOLDING = {
    "results": ("flatmap(lambda r: list(range(int(r[1])))).map(lambda n: 'x' * 990 + str(n))", 500, 2000),
    "parts": ("flatmap(lambda r: ['x' * 990 + str(n) for n in range(int(r[1]))]).filter(lambda _: False)", 500, 2000),
    "accumulator": (
        "flatmap(lambda r: list(range(int(r[1])))).accumulate(lambda a, n: (a or []) + ['x' * 990 + str(n)])"
        ".map(len)",
        500,
        2000,
    ),
    "groups": ("flatmap(lambda r: list(range(int(r[1])))).groupby(str, lambda k, a, n: 'x' * 900 + k).count()", 500, 2000),
    "records of groups": (
        "flatmap(lambda r: list(range(int(r[1])))).map(lambda n: 'x' * 990 + str(n))"
        ".batchgroupby(lambda r: r[-1], lambda k, rs: len(rs)).count()",
        500,
        2000,
    ),
    "counts": ("flatmap(lambda r: list(range(int(r[1])))).countby(lambda n: 'x' * 900 + str(n)).count()", 500, 2000),
    "distinct": (
        "flatmap(lambda r: list(range(int(r[1])))).map(lambda n: 'x' * 900 + str(n)).distinct().count()",
        500,
        2000,
    ),
    "distinct objects": ("flatmap(lambda r: list(range(int(r[1])))).map(lambda n: (n, n)).distinct().count()", 500, 20000),
    "sorted": ("flatmap(lambda r: list(range(int(r[1])))).map(lambda n: 'x' * 990 + str(n)).sort().count()", 500, 2000),
    "one record": ("map(lambda r: 'x' * int(r[1]))", 900_000, 1_100_000),
    "keys of a dict": ("map(lambda r: {'x' * 900 + str(n): 1 for n in range(int(r[1]))})", 500, 2000),
    "nested": ("map(lambda r: {'a': [{'b': ('x' * int(r[1]),)}]})", 900_000, 1_100_000),
}


@pytest.mark.parametrize("what", HOLDING)
def test_what_an_execution_may_hold(server: Server, what: str) -> None:
    steps, few, many = HOLDING[what]
    server.run(f"GB('CommandReader').{steps}.register(trigger='t', mode='async_local', max_memory=1_000_000)")
    call(server, str(few))
    with pytest.raises(redis.ResponseError, match=TOO_MUCH):
        call(server, str(many))
    assert (data(server)["numSuccess"], data(server)["numFailures"]) == (1, 1)
    assert "max_memory" in data(server)["lastError"]
    assert "(1000000 bytes) and is ended" in server.log()


@pytest.mark.parametrize("mode", MODES)
def test_in_each_mode(server: Server, mode: str) -> None:
    register(server, "def f(r): return 'x' * int(r[1])", mode, "max_memory=1_000_000")
    with pytest.raises(redis.ResponseError, match=TOO_MUCH):
        call(server, "2000000")
    assert call(server, "10") == ["x" * 10], "the next one has a limit of its own"


def test_an_object_counts_once(server: Server) -> None:
    script = """
    shared = 'x' * 100_000
    keep = GB('CommandReader').flatmap(lambda r: list(range(1000))).map(lambda n: [n, shared]).sort().count()
    keep.register(trigger='t', mode='async_local', max_memory=1_000_000)
    """
    server.run(script)
    assert call(server) == ["1000"]


def test_records_that_wait(server: Server) -> None:
    script = """
    import asyncio
    async def wait(r):
        await asyncio.sleep(0.01)
        return True
    GB('CommandReader').flatmap(lambda r: list(range(int(r[1])))).map(lambda n: 'x' * 990 + str(n)).filter(wait).count().register(
        trigger='t', mode='async_local', max_memory=1_000_000)
    """
    server.run(script)
    assert call(server, "500") == ["500"]
    with pytest.raises(redis.ResponseError, match=TOO_MUCH):
        call(server, "2000")


def test_events_end_with_it(server: Server) -> None:
    script = """
    GB().map(lambda r: r['value'] * 1000).register(
        prefix='*', mode='async_local', eventTypes=['set'], max_memory=1_000_000)
    """
    server.run(script)
    client = server.client()
    client.set("much", "x" * 2000)
    client.set("little", "x")
    server.wait_idle()
    assert (data(server)["numSuccess"], data(server)["numFailures"]) == (1, 1)


def test_the_shard_that_holds_too_much_ends_it_everywhere(cluster: Cluster) -> None:
    here, *_ = cluster.masters
    key = next(key for key in map(str, range(100)) if cluster.shard_of(key) is not here)
    script = f"""
    records = GB('CommandReader').flatmap(lambda r: list(range(int(r[1])))).map(lambda n: 'x' * 990 + str(n))
    groups = records.batchgroupby(lambda r: '{key}', lambda k, rs: len(rs)).map(lambda r: r['value'])
    groups.register(trigger='t', mode='async', max_memory=1_000_000)
    """
    here.run(script)
    assert call(here, "200") == ["600"], "each shard has the command"
    with pytest.raises(redis.ResponseError, match=TOO_MUCH):
        call(here, "2000")
    assert "(1000000 bytes) and is ended" in cluster.shard_of(key).log()
    assert call(here, "10") == ["30"]


# --- all of them ---

ALL = {"timeoutMS": 100, "maxConcurrent": 3, "maxMemory": 5000}
ALL_ARGUMENTS = "timeout=100, max_concurrent=3, max_memory=5000"


def limits(server: Server) -> dict[str, Any]:
    shown = verbose(server)
    return {name: shown[name] for name in ALL}


def test_they_are_shown_and_kept(server: Server) -> None:
    register(server, "def f(r): return 1", more=ALL_ARGUMENTS)
    assert limits(server) == ALL
    server.client().execute_command("DEBUG", "RELOAD")
    assert limits(server) == ALL


def test_they_are_on_replicas(start_server: StartServer) -> None:
    master = start_server()
    replica = start_server(args=["--replicaof", "127.0.0.1", master.port])
    wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up")
    register(master, "def f(r): return 1", more=ALL_ARGUMENTS)
    wait_until(lambda: len(replica.registrations()) == 1)
    assert limits(replica) == ALL


@pytest.mark.parametrize("name", ["timeout", "max_concurrent", "max_memory"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "True", "'1'"])
def test_values_that_are_none(server: Server, name: str, value: str) -> None:
    with pytest.raises(redis.ResponseError, match=f"register: {name}: expected a whole number .*from 1 on, got"):
        register(server, "def f(r): return 1", more=f"{name}={value}")
    assert server.registrations() == []


# --- what a function can do to the server ---


@pytest.mark.parametrize("mode", MODES)
def test_sys_exit_ends_the_execution_only(server: Server, mode: str) -> None:
    register(server, "import sys\ndef f(r): sys.exit(3)", mode)
    with pytest.raises(redis.ResponseError, match="SystemExit|3"):
        call(server)
    assert server.alive() and data(server)["numFailures"] == 1


def test_os_exit_ends_the_server(start_server: StartServer) -> None:
    server = start_server()
    register(server, "import os\ndef f(r): os._exit(3)")
    server.expect_death()
    with pytest.raises(redis.ConnectionError):
        call(server)
    assert server.wait_exit() == 3


@pytest.mark.parametrize("mode", ["async_local", "async"])
def test_background_functions_set_no_signal_handlers(server: Server, mode: str) -> None:
    register(server, "import signal\ndef f(r): signal.signal(signal.SIGTERM, print)", mode)
    with pytest.raises(redis.ResponseError, match="signal only works in main thread"):
        call(server)


@pytest.mark.parametrize("daemon", [True, False])
def test_threads_left_behind_do_not_keep_the_server(start_server: StartServer, daemon: bool) -> None:
    server = start_server()
    body = f"""
    import threading
    def endless():
        while True: time.sleep(0.01)
    def f(r):
        threading.Thread(target=endless, daemon={daemon}).start()
    """
    register(server, body)
    call(server)
    server.stop()


def test_a_background_call_that_holds_python(server: Server) -> None:
    """A C function that keeps Python to itself: commands are served, functions wait."""
    script = """
    import ctypes, time
    libc = ctypes.PyDLL(None)
    def hold(r):
        execute('SET', 'holds', '1')
        libc.usleep(400_000)
    GB('CommandReader').map(hold).register(trigger='hold', mode='async_local')
    """
    server.run(script)
    client = server.client()
    raw = server.raw()
    raw.send("RG.TRIGGER", "hold")
    wait_until(lambda: client.exists("holds"))
    for number in range(100):
        assert client.set("k", number)
    assert raw.read() == b"*1\r\n$4\r\nNone\r\n"


HELD = "Python has been held for more than 1000 ms by "
HOLDERS = {
    "sleeps": "import ctypes\nlibc = ctypes.PyDLL(None)\ndef work(): libc.usleep(3_000_000)",
    # Two to four seconds of this processor's time.
    "computes": """
import re, time
size, begun = 20, time.thread_time()
while time.thread_time() - begun < 0.03:
    begun, size = time.thread_time(), size + 1
    re.match('(a+)+$', 'a' * size + 'b')
size += 6
def work(): re.match('(a+)+$', 'a' * size + 'b')
""",
}


def held(server: Server) -> list[str]:
    return [line for line in server.log().splitlines() if HELD in line]


@pytest.mark.own_server
@pytest.mark.parametrize("how", HOLDERS)
def test_who_holds_python_is_named_once(server: Server, how: str) -> None:
    script = f"""
{HOLDERS[how]}
import time
def hold(r):
    for _ in range(20):
        begun = time.monotonic()
        work()
        took = time.monotonic() - begun
        if took > 2.5:
            return int(took)
def wait(r):
    execute('INCR', 'waits')
    time.sleep(5)
def spin(r):
    execute('INCR', 'spins')
    end = time.monotonic() + 1
    while time.monotonic() < end: pass
GB('CommandReader', desc='keeps Python').map(hold).register(trigger='hold', mode='async_local')
GB('CommandReader').map(wait).register(trigger='wait', mode='async_local')
GB('CommandReader').map(spin).register(trigger='spin', mode='async_local')
"""
    server.run(script)
    client = server.client()
    waits, spins, holds = server.raw(), server.raw(), server.raw()
    waits.send("RG.TRIGGER", "wait")
    wait_until(lambda: client.exists("waits"))
    spins.send("RG.TRIGGER", "spin")
    wait_until(lambda: client.exists("spins"))
    holds.send("RG.TRIGGER", "hold")
    for raw in (holds, waits, spins):
        raw.read()
    lines = held(server)
    assert lines, server.log()
    for line in lines:
        assert "of registration" in line and "(hold" in line and "'keeps Python'" in line, line


@pytest.mark.own_server
def test_nobody_is_named_where_python_changes_hands(server: Server) -> None:
    script = """
    import time, hashlib
    data = b'x' * 100_000_000
    def spin(r):
        end = time.monotonic() + 2.5
        while time.monotonic() < end: pass
    def sums(r):
        end = time.monotonic() + 2.5
        while time.monotonic() < end: hashlib.sha256(data)
    def sleep(r): time.sleep(2.5)
    for f in (spin, sums, sleep):
        GB('CommandReader').map(f).register(trigger=f.__name__, mode='async_local')
    """
    server.run(script)
    raws = [server.raw() for _ in range(3)]
    for raw, name in zip(raws, ("spin", "sums", "sleep")):
        raw.send("RG.TRIGGER", name)
    for raw in raws:
        assert raw.read() == b"*1\r\n$4\r\nNone\r\n"
    assert held(server) == []
