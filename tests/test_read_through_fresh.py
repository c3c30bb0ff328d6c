"""Lifetimes: negative entries, stale values, refreshing before expiry, batches. Contract:
docs/contract/read-through.md chapter 1.
"""

from __future__ import annotations

import time

import pytest

from figures import figures, wait_for
from helpers import Server, wait_until
from read_through import at_rest, register

pytestmark = pytest.mark.matrix


def test_what_is_absent_is_remembered_without_a_key(server: Server, source: Server) -> None:
    origin = register(server, source, "negative_ttl=60")
    client = server.client()
    origin.give("user:1", "-")
    for _ in range(5):
        assert client.get("user:1") is None
    assert (origin.loads(), client.dbsize()) == (1, 0)
    assert figures(server)["negativeHits"] >= 4
    at_rest(server)


@pytest.mark.parametrize(
    "commands",
    ["DEL user:1", "FLUSHDB", "FLUSHALL ASYNC", "SWAPDB 0 5", "SET user:1 x;DEL user:1", "SET user:1 x PX 1;DEBUG SLEEP 0.01"],
)
def test_a_negative_entry_dies_with_any_event_of_its_key(server: Server, source: Server, commands: str) -> None:
    origin = register(server, source, "negative_ttl=60")
    client = server.client()
    origin.give("user:1", "-")
    assert client.get("user:1") is None
    for command in commands.split(";"):
        client.execute_command(*command.split())
    origin.give("user:1", "there")
    assert client.get("user:1") == "there"
    assert origin.loads() == 2


def test_a_negative_entry_ends(server: Server, source: Server) -> None:
    origin = register(server, source, "negative_ttl=0.05")
    origin.give("user:1", "-")
    assert server.client().get("user:1") is None
    origin.give("user:1", "v")
    wait_until(lambda: server.own.get("user:1") == "v")


def test_a_write_finds_no_marker(server: Server, source: Server) -> None:
    origin = register(server, source, "negative_ttl=60")
    client = server.client()
    origin.give("user:1", "-")
    assert client.get("user:1") is None
    assert client.hset("user:1", "f", "v") == 1
    assert client.hget("user:1", "f") == "v"


def test_a_stale_value_is_served_while_one_load_runs(server: Server, source: Server) -> None:
    origin = register(server, source, "ttl=0.2, stale=60")
    client = server.client()
    origin.give("user:1", "old")
    assert client.get("user:1") == "old"
    assert 59 < client.ttl("user:1") <= 61
    wait_until(lambda: client.get("user:1") and origin.loads() == 2, message="a hit begins a load")
    for _ in range(20):
        assert client.get("user:1") == "old"
    assert origin.loads() == 2, "one load"
    origin.give("user:1", "new")
    wait_until(lambda: client.get("user:1") == "new")
    data = figures(server)
    assert data["staleHits"] >= 20 and data["backgroundRefreshes"] >= 1
    at_rest(server)


def test_a_stale_value_is_served_when_the_load_fails(server: Server, source: Server) -> None:
    origin = register(server, source, "ttl=0.1, stale=60, backoff=30, max_backoff=30")
    client = server.client()
    origin.give("user:1", "old")
    assert client.get("user:1") == "old"
    origin.give("user:1", "!KeyError down")
    wait_until(lambda: client.get("user:1") == "old" and figures(server)["loadFailures"] == 1)
    for _ in range(20):
        assert client.get("user:1") == "old"
    assert origin.loads() == 2, "it backs off"


def test_a_background_load_that_finds_nothing_deletes_the_key(server: Server, source: Server) -> None:
    origin = register(server, source, "ttl=0.1, stale=60")
    client = server.client()
    origin.give("user:1", "old")
    assert client.get("user:1") == "old"
    origin.give("user:1", "-")
    origin.give("user:1", "-")  # for a hit that comes a moment too late
    wait_until(lambda: client.get("user:1") is None or not client.exists("user:1"))
    wait_until(lambda: not client.exists("user:1"))


def test_a_clients_own_value_is_left_alone(server: Server, source: Server) -> None:
    origin = register(server, source, "ttl=10, stale=60, refresh_ahead=0.5")
    client = server.client()
    client.set("user:1", "mine")
    client.set("user:2", "mine")
    # No moment with the mark: one in 64 has it.
    client.execute_command("PEXPIREAT", "user:2", (client.time()[0] + 30) * 64000 // 64 // 64 * 64)
    for _ in range(20):
        assert client.get("user:1") == "mine"
        client.get("user:2")
    assert origin.loads() == 0


def test_a_value_is_refreshed_in_the_last_share_of_its_life(server: Server, source: Server) -> None:
    origin = register(server, source, "ttl=4, refresh_ahead=0.95")
    client = server.client()
    origin.give("user:1", "old")
    assert client.get("user:1") == "old"
    assert client.get("user:1") == "old" and origin.loads() == 1
    wait_until(lambda: client.get("user:1") == "old" and origin.loads() == 2)
    origin.give("user:1", "new")
    wait_until(lambda: client.get("user:1") == "new")
    assert client.pttl("user:1") > 3000
    at_rest(server)


def test_xfetch_refreshes_near_the_end(server: Server) -> None:
    server.run("""
        import time
        @read_through('k:*', ttl=2, refresh_ahead='xfetch')
        def load(key):
            time.sleep(0.4)
            execute('INCR', 'loads')
            return 'v'
    """)
    client = server.client()
    assert client.get("k:1") == "v"
    wait_until(lambda: client.get("k:1") == "v" and client.get("loads") != "1")
    data = figures(server)
    assert data["backgroundRefreshes"] >= 1 and data["misses"] == 1, "before it expired"


def test_ttl_may_be_a_function_of_key_and_value(server: Server) -> None:
    server.run("""
        def seconds(key, value):
            return {'k:zero': 0, 'k:ever': None, 'k:bad': -1, 'k:text': '5'}.get(key, 100 * len(value))
        read_through('k:*', lambda key: {'a': 1, 'b': 2} if key == 'k:hash' else 'v', ttl=seconds, backoff=0, refresh_ahead=0.1)
    """)
    client, raw = server.client(), server.raw()
    assert client.get("k:1") == "v" and 90 < client.ttl("k:1") <= 100
    assert client.hlen("k:hash") == 2 and 190 < client.ttl("k:hash") <= 200
    assert client.get("k:zero") == "v" and not client.exists("k:zero")
    assert client.get("k:ever") == "v" and client.ttl("k:ever") == -1
    assert raw.call("GET", "k:bad") == b"-LOADFAILED TypeError\r\n"
    assert raw.call("GET", "k:text") == b"-LOADFAILED TypeError\r\n"
    assert "the function given as ttl, got '5'" in figures(server)["lastError"].replace("\\'", "'")


def test_a_life_of_its_own_is_refreshed_by_its_own_share(server: Server) -> None:
    server.run("""
        @read_through('k:*', ttl=100, refresh_ahead=0.5)
        def load(key):
            execute('INCR', 'loads')
            return Loaded('v', ttl=2)
    """)
    client = server.client()
    assert client.get("k:1") == "v" and client.get("k:1") == "v"
    assert client.get("loads") == "1", "not by the share of the registration's ttl"
    wait_until(lambda: client.get("k:1") == "v" and client.get("loads") == "2")
    assert figures(server)["misses"] == 1


def test_jitter_spreads_the_ends(server: Server) -> None:
    server.run("read_through('k:*', lambda key: 'v', ttl=1000, jitter=0.5)")
    client = server.client()
    client.mget([f"k:{number}" for number in range(100)])
    lives = [client.pttl(f"k:{number}") for number in range(100)]
    assert 490_000 < min(lives) < 600_000 and 900_000 < max(lives) <= 1_000_000
    assert len(set(lives)) > 90


BATCH = """
    @read_through('k:*', batch={batch}, batch_wait={wait}, negative_ttl=60, ttl=60)
    def load(keys):
        execute('RPUSH', 'batches', ' '.join(sorted(keys)))
        return {{key: 'v of ' + key for key in keys if 'none' not in key}} | {{'k:surplus': 'x'}}
"""


def test_missing_keys_go_to_the_loader_together(server: Server) -> None:
    server.run(BATCH.format(batch=10, wait=0.2))
    client = server.client()
    assert client.mget("k:1", "k:2", "k:none") == ["v of k:1", "v of k:2", None]
    assert client.lrange("batches", 0, -1) == ["k:1 k:2 k:none"]
    assert not client.exists("k:surplus")
    assert client.get("k:none") is None and client.llen("batches") == 1
    raws = [server.raw() for _ in range(15)]
    for number, raw in enumerate(raws):
        raw.send("GET", f"k:{number + 10}")
    assert [raw.read() for raw in raws] == [b"$9\r\nv of k:%d\r\n" % number for number in range(10, 25)]
    assert [len(batch.split()) for batch in client.lrange("batches", 1, -1)] == [10, 5]
    data = figures(server)
    assert (data["loads"], data["loadedKeys"]) == (3, 18)
    at_rest(server)


def test_keys_of_one_command_beyond_a_batch_go_in_several(server: Server) -> None:
    server.run(BATCH.format(batch=4, wait=0))
    keys = [f"k:{number}" for number in range(10)]
    assert server.client().mget(keys) == ["v of " + key for key in keys]
    # Two workers may run two of them at the same time.
    assert sorted(len(batch.split()) for batch in server.client().lrange("batches", 0, -1)) == [2, 4, 4]


def test_one_key_alone_waits_for_no_more_than_batch_wait(server: Server) -> None:
    server.run(BATCH.format(batch=4, wait=0.001))
    client = server.client()
    # The server's own timer comes once a second: it must not be what ends the wait.
    client.config_set("hz", 1)
    if client.config_get("dynamic-hz"):  # Valkey 9.1 has none
        client.config_set("dynamic-hz", "no")
    began = time.monotonic()
    for number in range(20):
        assert client.get(f"k:{number}") == f"v of k:{number}"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "returns, replies",
    [
        ("['a', 'b']", [b"$1\r\na\r\n", b"$1\r\nb\r\n"]),
        ("('a', None)", [b"$1\r\na\r\n", b"$-1\r\n"]),
        ("{}", [b"$-1\r\n", b"$-1\r\n"]),
        ("['a', True]", [b"$1\r\na\r\n", b"-LOADFAILED TypeError\r\n"]),
        ("{'k:1': object(), 'k:2': 'b'}", [b"-LOADFAILED TypeError\r\n", b"$1\r\nb\r\n"]),
        ("['a']", [b"-LOADFAILED TypeError\r\n"] * 2),
        ("'ab'", [b"-LOADFAILED TypeError\r\n"] * 2),
        ("1 / 0", [b"-LOADFAILED ZeroDivisionError\r\n"] * 2),
        ("[Loaded('a', 5), Loaded('b', 0)]", [b"$1\r\na\r\n", b"$1\r\nb\r\n"]),
    ],
)
def test_what_a_batch_may_return(server: Server, returns: str, replies: list[bytes]) -> None:
    server.run(f"read_through('k:*', lambda keys: {returns} if keys == ['k:1', 'k:2'] else None, batch=2, batch_wait=5, backoff=0)")
    one, two = server.raw(), server.raw()
    one.send("GET", "k:1")
    wait_for(server, waiting=1)
    two.send("GET", "k:2")
    assert [one.read(), two.read()] == replies
    at_rest(server)


OTHERS = "returned a dict with none of the keys that it got"


def test_a_batch_of_other_keys_is_said_in_the_log(server: Server) -> None:
    """Once a minute for each registration."""
    server.run("""
        read_through('k:*', lambda keys: {key.encode(): 'v' for key in keys}, batch=9)
        read_through('l:*', lambda keys: {1: 'v'}, batch=9)
        read_through('m:*', lambda keys: {'m:1': 'v', 'more': 'v'}, batch=9)
        read_through('n:*', lambda keys: {}, batch=9)
        read_through('o:*', lambda keys: {key: None for key in keys}, batch=9)
    """)
    client = server.client()
    for name in ("k:1", "k:2", "l:1", "n:1", "o:1"):
        assert client.get(name) is None
    assert client.mget("m:1", "m:2") == ["v", None]
    wait_until(lambda: server.log().count(OTHERS) == 2, message="one line for each of two registrations")
    assert "(str), but with others (bytes): all that it was asked for counts as absent" in server.log()
    assert "(str), but with others (int)" in server.log()


def test_batches_are_of_one_database(server: Server) -> None:
    server.run("read_through('k:*', lambda keys: [execute('GET', 'where')] * len(keys), batch=10, batch_wait=0.05)")
    raws = []
    for db in (0, 1, 0, 1):
        raw = server.raw()
        raw.call("SELECT", db)
        raw.call("SET", "where", db)
        raws.append(raw)
    for number, raw in enumerate(raws):
        raw.send("GET", f"k:{number}")
    assert [raw.read() for raw in raws] == [b"$1\r\n0\r\n", b"$1\r\n1\r\n"] * 2


def test_batches_of_coroutines(server: Server) -> None:
    server.run("""
        import asyncio
        @read_through('k:*', batch=50)
        async def load(keys):
            await asyncio.sleep(0.01)
            return dict.fromkeys(keys, 'v')
    """)
    raws = [server.raw() for _ in range(120)]
    for number, raw in enumerate(raws):
        raw.send("GET", f"k:{number}")
    assert {raw.read() for raw in raws} == {b"$1\r\nv\r\n"}
    assert figures(server)["loads"] < 60
    at_rest(server)
