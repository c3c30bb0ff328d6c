"""The clock of the machine is set while the server runs, forwards and backwards: what is a duration stays one. docs/reliability.md."""

from __future__ import annotations

import time
from typing import Callable

import pytest
import redis

import read_through
import write_behind
from clock import MINUTE_S, Clock, shown_s
from clusters import make_cluster
from figures import figures, wait_for
from helpers import Server, wait_until

StartServer = Callable[..., Server]
pytestmark = pytest.mark.matrix

JUMPS = {"forwards": 10 * MINUTE_S, "backwards": -10 * MINUTE_S}
# Less than a jump, more than a busy machine needs: what a test waits for comes within it, and what must not come has not come by then.
SOON_S = 30


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(start_server: StartServer, clock: Clock) -> Server:
    server = start_server(environment=clock.environment)
    if server.version < (7, 0):
        pytest.skip("the timers of modules go by the clock of the day there")
    return server


@pytest.fixture(params=JUMPS)
def jump(request: pytest.FixtureRequest, server: Server, clock: Clock) -> Callable[[], None]:
    """Sets the server's clock."""

    return lambda: set_clock(server, clock, JUMPS[request.param])


def set_clock(server: Server, clock: Clock, seconds: float) -> None:
    """Sets the server's clock by so much, and waits until the server has looked at it."""
    before = shown_s(server)
    clock.jump(seconds)
    wait_until(lambda: abs(shown_s(server) - before - seconds) < SOON_S, SOON_S, "the server sees it")


def ticks(server: Server) -> int:
    return int(server.own.get("ticks") or 0)


def test_python_and_the_server_see_it(server: Server, clock: Clock) -> None:
    set_clock(server, clock, -3600)
    assert abs(shown_s(server) - (time.time() - 3600)) < SOON_S
    server.run("import time\nexecute('SET', 'here', str(time.time()))")
    assert abs(float(server.own.get("here")) - (time.time() - 3600)) < SOON_S


def test_time_events_go_on(server: Server, jump: Callable[[], None]) -> None:
    server.run("def tick(): execute('INCR', 'ticks')\nregisterTE(1, tick)\nregisterTE(1, tick, 'event')")
    wait_until(lambda: ticks(server) >= 2)
    started, before = time.monotonic(), ticks(server)
    jump()
    wait_until(lambda: ticks(server) >= before + 4, SOON_S)
    periods = time.monotonic() - started + 1
    assert ticks(server) - before <= 2 * (periods + 1), "those of the time that was skipped are not made up for"


def test_a_time_event_that_is_not_due_does_not_come(server: Server, jump: Callable[[], None]) -> None:
    server.run("def tick(): execute('INCR', 'ticks')\nregisterTE(300, tick)\ndef now(): execute('INCR', 'now')\nregisterTE(1, now)")
    jump()
    wait_until(lambda: int(server.own.get("now") or 0) >= 2, SOON_S)
    assert ticks(server) == 0


def test_a_load_that_failed_is_made_again_when_its_back_off_is_over(server: Server, source: Server, jump: Callable[[], None]) -> None:
    origin = read_through.register(server, source, "backoff=1, max_backoff=1")
    read_through.register(server, source, "backoff=200, max_backoff=200", prefix="slow:*")
    client = server.client()
    for key in ("user:1", "slow:1"):
        origin.give(key, "!KeyError x")
        with pytest.raises(redis.ResponseError, match="LOADFAILED KeyError"):
            client.get(key)
    jump()
    with pytest.raises(redis.ResponseError, match="LOADFAILED BackingOff"):
        client.get("slow:1")
    origin.give("user:1", "v")
    wait_until(lambda: outcome(client, "user:1") == "v", SOON_S)
    with pytest.raises(redis.ResponseError, match="LOADFAILED BackingOff"):
        client.get("slow:1")


def outcome(client: redis.Redis, key: str) -> str | None:
    try:
        return client.get(key)  # type: ignore[return-value]
    except redis.ResponseError as error:
        return str(error)


def test_what_is_known_to_be_absent(server: Server, jump: Callable[[], None]) -> None:
    server.run("""
        read_through('long:*', lambda key: execute('INCR', 'loads:long') and None, negative_ttl=200)
        read_through('short:*', lambda key: execute('INCR', 'loads:short') and None, negative_ttl=0.5)
    """)
    client = server.client()
    assert client.get("long:1") is None and client.get("short:1") is None
    jump()
    assert client.get("long:1") is None
    wait_until(lambda: client.get("short:1") is None and int(client.get("loads:short") or 0) >= 3, SOON_S)
    assert client.get("loads:long") == "1"


def test_clients_wait_for_a_load_as_long_as_they_should(server: Server, source: Server, jump: Callable[[], None]) -> None:
    origin = read_through.register(server, source, "timeout=300, max_load_time=300")
    read_through.register(server, source, "timeout=1", prefix="soon:*")
    patient, hasty = server.raw(SOON_S), server.raw(SOON_S)
    patient.send("GET", "user:1")
    hasty.send("GET", "soon:1")
    origin.wait_for_loads(2)
    jump()
    assert hasty.read() == b"-LOADFAILED TimedOut\r\n"
    assert figures(server)["waiting"] == 1
    origin.give("user:1", "v")
    assert patient.read() == b"$1\r\nv\r\n"
    origin.give("soon:1", "v")
    read_through.at_rest(server)


def test_a_load_that_hangs_is_ended_in_time(server: Server, source: Server, jump: Callable[[], None]) -> None:
    # Long enough for the import of what asks the source.
    origin = read_through.register(server, source, "max_load_time=5, backoff=0")
    raw = server.raw(SOON_S)
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    jump()
    assert raw.read() == b"-LOADFAILED LoadTimedOut\r\n"
    origin.give("user:1", "late")


def test_lifetimes_go_by_the_clock(server: Server, clock: Clock) -> None:
    """They are the server's, which keeps moments: a jump is as much time for a key."""
    server.run("""
        read_through('k:*', lambda key: str(execute('INCR', 'loads')), ttl=300)
        read_through('s:*', lambda key: str(execute('INCR', 'stale')), ttl=300, stale=3600)
    """)
    client = server.client()
    assert client.get("k:1") == "1" and client.get("s:1") == "1"
    set_clock(server, clock, 10 * MINUTE_S)
    assert client.get("k:1") == "2", "it has expired"
    assert client.get("s:1") == "1", "it is stale, and loaded in the background"
    wait_until(lambda: client.get("s:1") == "2")
    set_clock(server, clock, -20 * MINUTE_S)
    assert (client.get("k:1"), client.get("s:1")) == ("2", "2")
    assert 25 * 60 - SOON_S < client.ttl("k:1") <= 25 * 60, "they live on for as long as the clock was set back"
    # What is loaded from now on has its own lifetime.
    assert client.get("k:2") == "3" and 300 - SOON_S < client.ttl("k:2") <= 300


def test_saves_are_tried_again(server: Server, source: Server, jump: Callable[[], None]) -> None:
    database = write_behind.register(server, source, "backoff=1, max_backoff=1, interval=0.5")
    client = server.client()
    database.fail(2)
    client.set("user:1", "a")
    wait_until(lambda: figures(server)["saveFailures"] >= 1)
    jump()
    client.set("user:2", "b")
    assert figures(server)["oldestMS"] < 1000 * SOON_S
    wait_until(lambda: figures(server)["queued"] == 0, SOON_S)
    assert database.rows() == {"user:1": "a", "user:2": "b"}
    changes = {change["key"]: change["id"] for change in database.changes()}
    numbers = [tuple(map(int, changes[key].split("-"))) for key in ("user:1", "user:2")]
    assert numbers[0] < numbers[1], "ids ascend, whatever the clock says"


def test_clients_wait_for_a_save_as_long_as_they_should(server: Server, source: Server, jump: Callable[[], None]) -> None:
    database = write_behind.register(server, source, "wait=True, timeout=2, backoff=0.05, max_backoff=0.05")
    database.fail(1_000_000)
    raw = server.raw(SOON_S)
    raw.send("SET", "user:1", "a")
    wait_for(server, queued=1)
    jump()
    assert raw.read() == b"-SAVEFAILED ConnectionError\r\n"
    database.fail(0)
    assert raw.call("SET", "user:1", "b") == b"+OK\r\n"


def test_a_save_that_hangs_is_made_again(server: Server, source: Server, jump: Callable[[], None]) -> None:
    database = write_behind.register(server, source, "max_save_time=1, backoff=0.05")
    database.client.set("hang", 1)
    server.client().set("user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    jump()
    wait_until(lambda: "max_save_time (1000 ms) and is stopped" in server.log(), SOON_S)
    database.client.delete("hang")
    database.client.rpush("go", *range(100))
    wait_until(lambda: figures(server)["queued"] == 0, SOON_S)
    assert database.rows() == {"user:1": "a"}


WAITS = """
import time
def f(r):
    execute('SET', 'begun', 1)
    until = time.monotonic() + float(r[1])
    while time.monotonic() < until: pass
    return 'ended'
"""


def check_limit(server: Server, clock: Clock, ends: tuple[str, str], is_stopped: tuple[str, str], error: bytes) -> None:
    """Jumps change neither the end of what may run so long (trigger, seconds) nor that of what may not."""
    for seconds in (10 * MINUTE_S, -20 * MINUTE_S):
        raw = server.raw(SOON_S)
        raw.send("RG.TRIGGER", *ends)
        clock.jump(seconds)
        assert raw.read() == b"*1\r\n$5\r\nended\r\n"
        raw.send("RG.TRIGGER", *is_stopped)
        clock.jump(seconds)
        assert error in raw.read()


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_functions_run_for_as_long_as_they_may(server: Server, clock: Clock, mode: str) -> None:
    """Nobody else comes to the server's thread while a `sync` function runs: the clock is looked at by the module only."""
    server.run(f"{WAITS}\nGB('CommandReader').map(f).register(trigger='t', mode={mode!r}, timeout=60_000)")
    server.run(f"{WAITS}\nGB('CommandReader').map(f).register(trigger='short', mode={mode!r}, timeout=1000)")
    check_limit(server, clock, ("t", "1"), ("short", "120"), b"ran longer than its timeout (1000 ms)")


def test_sync_timeout(server: Server, clock: Clock) -> None:
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 2000)
    server.run(f"{WAITS}\nGB('CommandReader').map(f).register(trigger='t', mode='sync')")
    check_limit(server, clock, ("t", "0.5"), ("t", "120"), b"SyncTimeout (2000 ms)")


def test_coroutines_sleep_for_as_long_as_they_said(server: Server, jump: Callable[[], None]) -> None:
    server.run("""
        import asyncio
        async def f(r):
            execute('INCR', 'begun')
            await asyncio.sleep(float(r[1]))
            return 'awake'
        GB('CommandReader').map(f).register(trigger='t', mode='async_local')
    """)
    short, long = server.raw(SOON_S), server.raw(SOON_S)
    long.send("RG.TRIGGER", "t", "300")
    short.send("RG.TRIGGER", "t", "1")
    wait_until(lambda: server.own.get("begun") == "2")
    jump()
    assert short.read() == b"*1\r\n$5\r\nawake\r\n"
    assert server.own.info("clients")["blocked_clients"] == 1


@pytest.mark.parametrize("policy", ["Retry", "Continue"])
def test_streams(server: Server, jump: Callable[[], None], policy: str) -> None:
    """Batches that are waited for, and those that are tried again."""
    server.run(f"""
        def note(r):
            if execute('INCR', 'tries') == 1:
                raise ValueError('not yet')
            execute('RPUSH', 'seen', r['value']['n'])
        GB('StreamReader').foreach(note).register(
            prefix='s', batch=100, duration=500, mode='async_local', onFailedPolicy={policy!r}, onFailedRetryInterval=1)
    """)
    client = server.client()
    client.xadd("s", {"n": 1})
    wait_until(lambda: int(client.get("tries") or 0) == 1)
    jump()
    client.xadd("s", {"n": 2})
    client.xadd("s", {"n": 3})
    expected = ["1", "2", "3"] if policy == "Retry" else ["2", "3"]
    wait_until(lambda: client.lrange("seen", 0, -1) == expected, SOON_S)
    wait_until(lambda: client.xlen("s") == 0, SOON_S)


def test_a_session_is_replaced_by_what_is_sent_after_it(start_server: StartServer, clock: Clock) -> None:
    """Whichever is newer of two sessions is told by the clock where nothing else tells: not where the clock went back."""
    server = start_server(environment=clock.environment, args=["--appendonly", "yes"])
    replica = start_server(args=["--replicaof", "127.0.0.1", server.port])
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    script = "GB('CommandReader').map(lambda r: '{0}').register(trigger='version', mode='sync')"
    server.run(script.format("one"), "ID", "app")
    clock.jump(-10 * MINUTE_S)
    server.run(script.format("two"), "ID", "app", "UPGRADE")
    assert server.own.execute_command("RG.TRIGGER", "version") == ["two"]
    server.stop()
    server.start()
    clock.jump(-10 * MINUTE_S)
    assert server.own.execute_command("RG.TRIGGER", "version") == ["two"]
    server.run(script.format("three"), "ID", "app", "UPGRADE")
    assert server.own.execute_command("RG.TRIGGER", "version") == ["three"]
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up", SOON_S)
    replica.own.execute_command("REPLICAOF", "NO", "ONE")
    wait_until(lambda: replica.own.execute_command("RG.TRIGGER", "version") == ["three"], SOON_S)


def test_a_shard_whose_clock_is_wrong(start_server: StartServer, clock: Clock) -> None:
    """What is deployed there is in force everywhere, also in the place of what others have made; runs over all shards end."""
    cluster = make_cluster(start_server, clocks={1: clock})
    here, wrong, there = cluster.masters
    if here.version < (7, 0):
        pytest.skip("the timers of modules go by the clock of the day there")
    script = "GB('CommandReader').map(lambda r: '{0}').register(trigger='version', mode='sync')"
    for number, seconds in enumerate((10 * MINUTE_S, -20 * MINUTE_S)):
        clock.jump(seconds)
        # A shard takes the others for gone until it has heard of them: by the server's own clock.
        wait_until(lambda: all(node.own.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for node in cluster.nodes), SOON_S)
        for place, node in enumerate((here, wrong, there, wrong, here)):
            word = f"{number}-{place}"
            assert node.client().execute_command("RG.PYEXECUTE", script.format(word), "ID", "app", "UPGRADE") == "OK"
            for other in cluster.nodes:
                wait_until(lambda: other.own.execute_command("RG.TRIGGER", "version") == [word], SOON_S, f"{word} is in force")
            assert node.run("GB('ShardsIDReader').count().run()") == [["3"], []]
