"""`read_through` in operation: RG.REFRESH, figures, client-side caching, WATCH, files, memory limits, rights, slices; and
`register(..., coalesce=True)`. Contract: docs/contract/read-through.md chapters 1, 3 and 4.
"""

from __future__ import annotations

import time
from typing import Callable

import pytest
import redis

from figures import figures, wait_for
from helpers import RawClient, Server, wait_for_aof, wait_until
from read_through import at_rest, register

pytestmark = pytest.mark.matrix


# --- RG.REFRESH ---


def test_refresh_loads_now_whatever_is_there(server: Server, source: Server) -> None:
    origin = register(server, source, "ttl=100, negative_ttl=60")
    client = server.client()
    client.set("user:1", "old")
    for key, value in {"user:1": "new", "user:2": "second", "user:3": "-"}.items():
        origin.give(key, value)
    assert client.execute_command("RG.REFRESH", "user:1", "user:2", "user:3", "user:1", "other") == 3
    assert client.mget("user:1", "user:2", "user:3") == ["new", "second", None]
    assert 90 < client.ttl("user:1") <= 100
    assert client.execute_command("RG.REFRESH", "other") == 0
    assert origin.loads() == 3
    at_rest(server)


def test_refresh_invalidates_a_load_under_way(server: Server, source: Server) -> None:
    origin = register(server, source)
    raw, refresher = server.raw(), server.raw()
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    refresher.send("RG.REFRESH", "user:1")
    wait_for(server, waiting=2)
    origin.give("user:1", "old")
    origin.wait_for_loads(2)
    origin.give("user:1", "new")
    assert raw.read() == b"$3\r\nnew\r\n" and refresher.read() == b":1\r\n"
    at_rest(server)


def test_refresh_of_what_is_gone_deletes_the_key(server: Server, source: Server) -> None:
    origin = register(server, source)
    client = server.client()
    client.set("user:1", "old")
    origin.give("user:1", "-")
    assert client.execute_command("RG.REFRESH", "user:1") == 1
    assert not client.exists("user:1")


def test_refresh_that_fails_keeps_the_old_value(server: Server, source: Server) -> None:
    origin = register(server, source, "backoff=30, max_backoff=30")
    client = server.client()
    client.set("user:1", "old")
    for _ in range(2):
        origin.give("user:1", "!KeyError x")
        assert client.execute_command("RG.REFRESH", "user:1") == 0, "it does not back off"
    assert client.get("user:1") == "old"


def test_refresh_of_a_key_that_is_not_there_asks_a_failing_source_once(server: Server, source: Server) -> None:
    origin = register(server, source, "backoff=0")
    for _ in range(4):
        origin.give("user:1", "!KeyError x")
    assert server.client().execute_command("RG.REFRESH", "user:1") == 0
    at_rest(server)
    assert (origin.loads(), figures(server)["loadFailures"]) == (1, 1)


@pytest.mark.parametrize("call", [("RG.REFRESH",), ("MULTI",)])
def test_refresh_refuses(server: Server, call: tuple[str, ...]) -> None:
    server.run("read_through('k:*', lambda key: 'v')")
    raw = server.raw()
    if call == ("MULTI",):
        raw.call("MULTI")
        raw.call("RG.REFRESH", "k:1")
        assert b"-ERR Blocking module command called from transaction" in raw.call("EXEC")
    else:
        assert raw.call(*call) == b"-ERR wrong number of arguments for 'rg.refresh' command\r\n"


def test_functions_refresh(server: Server) -> None:
    server.run("""
        read_through('k:*', lambda key: execute('GET', 'now'))
        GB('CommandReader').map(lambda words: refresh(*words[1:])).register(trigger='refresh', mode='async_local')
        GB('CommandReader').map(lambda words: refresh(*words[1:])).register(trigger='sync', mode='sync')
    """)
    client = server.client()
    client.mset({"now": "2", "k:1": "1"})
    assert client.execute_command("RG.TRIGGER", "refresh", "k:1", "k:2", "x") == ["2"]
    assert client.mget("k:1", "k:2") == ["2", "2"]
    with pytest.raises(redis.ResponseError, match="expected a background function"):
        client.execute_command("RG.TRIGGER", "sync", "k:1")
    with pytest.raises(redis.ResponseError, match="at least one key"):
        client.execute_command("RG.TRIGGER", "refresh")


def test_coroutines_await_a_refresh(server: Server, source: Server) -> None:
    """The loop goes on meanwhile; an error is raised where it is awaited."""
    origin = register(server, source, prefix="user:*")
    server.run("""
        import asyncio
        async def work(words):
            ticks = 0
            async def tick():
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0.001)
            ticking = asyncio.create_task(tick())
            try:
                loaded = await asyncio.gather(refresh(*words[1:]), refresh('user:2'), refresh('nobody:1'))
            except Exception as error:
                return repr(error)
            finally:
                ticking.cancel()
            return [loaded, ticks > 5]
        GB('CommandReader').map(work).register(trigger='work', mode='async_local')
    """)
    raw = server.raw()
    raw.send("RG.TRIGGER", "work", "user:1", "user:1")
    origin.wait_for_loads(2)
    time.sleep(0.05)
    for key in ("user:1", "user:2"):
        origin.give(key, "new")
    assert raw.read() == b"*1\r\n$17\r\n[[1, 1, 0], True]\r\n"
    client = server.client()
    assert client.mget("user:1", "user:2") == ["new", "new"]
    assert client.execute_command("RG.CONFIGSET", "ReadThroughMaxLoads", 1) == ["OK"]
    raw.send("RG.TRIGGER", "work", "user:3")
    assert b"LOADFAILED TooManyLoads" in raw.read()
    client.execute_command("RG.CONFIGSET", "ReadThroughMaxLoads", 10000)
    wait_until(lambda: origin.loads() >= 3)
    for key in ("user:2", "user:3"):
        origin.give(key, "newer")
    at_rest(server)


@pytest.mark.own_server
def test_more_functions_refresh_than_there_are_workers(server: Server) -> None:
    """Each of them holds a worker, and all wait for loads that need one."""
    server.run("""
        read_through('k:*', lambda key: 'new', max_load_time=20)
        GB('CommandReader').map(lambda words: refresh(words[1])).register(trigger='refresh', mode='async_local')
    """)
    raws = [server.raw() for _ in range(30)]
    begun = time.monotonic()
    for number, raw in enumerate(raws):
        raw.send("RG.TRIGGER", "refresh", f"k:{number}")
    assert {raw.read() for raw in raws} == {b"*1\r\n$1\r\n1\r\n"}
    assert time.monotonic() - begun < 15
    at_rest(server)


# --- what the server counts ---


def test_stores_count_as_changes_where_nobody_hears_of_them(start_server: Callable[..., Server]) -> None:
    """What RDB files are written for after so many changes; neither AOF file nor replica is there."""
    server = start_server()
    server.run("read_through('k:*', lambda keys: {key: {'field': 'v'} for key in keys}, batch=10, ttl=60)")
    client = server.client()
    changes = lambda: client.info("persistence")["rdb_changes_since_last_save"]  # noqa: E731

    def counted(key: str) -> int:
        before = changes()
        assert client.hget(key, "field") == "v"
        return changes() - before

    # As long as somebody may hear of it the lifetime is a command of its own.
    wait_until(lambda: counted(f"k:first:{time.monotonic()}") == 1, message="it is seen that nobody hears")
    before = changes()
    with client.pipeline(transaction=False) as pipe:
        for number in range(50):
            pipe.hget(f"k:{number}", "field")
        assert pipe.execute() == ["v"] * 50
    assert changes() == before + 50
    # Who comes later has all of it.
    replica = start_server(args=["--replicaof", "127.0.0.1", server.port])
    wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up")
    assert client.hget("k:late", "field") == "v"
    wait_until(lambda: replica.client().exists("k:late") == 1)
    assert replica.client().dbsize() == client.dbsize() and replica.client().ttl("k:1") > 0
    client.config_set("appendonly", "yes")
    wait_for_aof(client)
    assert client.hget("k:later", "field") == "v"
    client.execute_command("DEBUG", "LOADAOF")
    assert client.exists("k:1", "k:late", "k:later") == 3


# --- figures ---


@pytest.mark.own_server
def test_figures_in_info(server: Server, source: Server) -> None:
    origin = register(server, source, "negative_ttl=60, backoff=30")
    client, raw = server.client(), server.raw()
    origin.give("user:1", "v")
    origin.give("user:2", "-")
    origin.give("user:3", "!KeyError x")
    assert [client.get("user:1") for _ in range(3)] == ["v"] * 3
    assert [client.get("user:2") for _ in range(3)] == [None] * 3
    raw.call("GET", "user:3")
    raw.call("GET", "user:3")
    info = client.info("rg_read_through")
    expected = {
        "registrations": 1, "hits_total": 2, "misses_total": 3, "loads_total": 3, "loaded_keys_total": 3,
        "load_failures_total": 1, "refusals_total": 1, "waiting_clients": 0, "loading": 0, "absent_entries": 1,
        "backoff_entries": 1,
    }  # fmt: skip
    assert {name: info[f"rg_read_through_{name}"] for name in expected} == expected
    assert all(isinstance(value, int) for value in info.values()), "exporters read numbers"
    data = figures(server)
    assert 0 < data["loadP50US"] <= data["loadP99US"] <= data["loadMaxUS"]
    client.execute_command("RG.CLEARREGISTRATIONSSTATS")
    data = figures(server)
    assert (data["hits"], data["misses"], data["loads"], data["loadMaxUS"]) == (0, 0, 0, 0)


@pytest.mark.own_server
def test_totals_only_grow(server: Server) -> None:
    """What a registration has counted stays when it is replaced or goes; what is going on does not."""
    client = server.client()

    def totals() -> list[int]:
        info = client.info("rg_read_through")
        return [info[f"rg_read_through_{name}"] for name in ("loads_total", "hits_total", "misses_total", "waiting_clients", "loading")]

    def ask(key: str) -> None:
        assert client.get(key) == client.get(key) == key

    for number in range(3):
        server.run("read_through('user:*', lambda key: key)", "ID", "cache", *["UPGRADE"][: number])
        ask(f"user:{number}")
    assert totals() == [3, 3, 3, 0, 0]
    client.execute_command("RG.UNREGISTERSESSION", "cache")
    assert totals() == [3, 3, 3, 0, 0]


@pytest.mark.own_server
def test_bounds_are_options(server: Server, source: Server) -> None:
    client, raw = server.client(), server.raw()
    options = ["ReadThroughMaxAbsent", "ReadThroughMaxBackoffs", "ReadThroughMaxLoads"]
    assert client.execute_command("RG.CONFIGGET", *options) == [100000, 100000, 10000]
    assert client.execute_command("RG.CONFIGSET", "ReadThroughMaxAbsent", 10, "ReadThroughMaxBackoffs", 10, "ReadThroughMaxLoads", 2) == [
        "OK"
    ] * 3
    server.run("read_through('none:*', lambda key: None, negative_ttl=60)\nread_through('bad:*', lambda key: 1 / 0, backoff=60, max_backoff=60)")
    for number in range(30):
        client.get(f"none:{number}")
        raw.call("GET", f"bad:{number}")
    info = client.info("rg_read_through")
    assert (info["rg_read_through_absent_entries"], info["rg_read_through_backoff_entries"]) == (10, 10)
    assert info["rg_read_through_forgotten_entries_total"] == 40
    origin = register(server, source)
    raws = [server.raw() for _ in range(2)]
    for number, waiting in enumerate(raws):
        waiting.send("GET", f"user:{number}")
    origin.wait_for_loads(2)
    assert raw.call("GET", "user:9") == b"-LOADFAILED TooManyLoads\r\n"
    for number, waiting in enumerate(raws):
        origin.give(f"user:{number}", "v")
        assert waiting.read() == b"$1\r\nv\r\n"
    at_rest(server)


# --- clients that cache and watch ---


class Caching:
    """A client that caches what it reads, and hears of changes on the same connection."""

    def __init__(self, server: Server, *mode: str) -> None:
        self.raw = server.raw()
        self.raw.call("HELLO", "3")
        assert self.raw.call("CLIENT", "TRACKING", "ON", *mode) == b"+OK\r\n"

    def heard(self) -> list[bytes]:
        """What came before the reply to a PING."""
        self.raw.send("PING")
        found = []
        while (part := self.raw.read()) != b"+PONG\r\n":
            found.append(part)
        return found


def server_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


INVALID = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$6\r\nuser:1\r\n"


@pytest.mark.parametrize("mode", [(), ("BCAST", "PREFIX", "user:")], ids=["default", "broadcast"])
@pytest.mark.parametrize("value", ["'v'", "{'f': 1}", "[1]", "Sorted({'a': 1})"], ids=["string", "hash", "list", "sorted"])
def test_no_client_keeps_a_stale_reply(server: Server, source: Server, mode: tuple[str, ...], value: str) -> None:
    loader = f"def load(key):\n    fetch(key)\n    return {value}"
    origin = register(server, source, loader=loader)
    one, two = Caching(server, *mode), Caching(server, *mode)
    for caching in (one, two):
        caching.raw.send("TYPE", "user:1")
        assert caching.raw.read() == b"+none\r\n"
    command = {"'": "GET", "{": "HGETALL", "[": "LLEN", "S": "ZCARD"}[value[0]]
    for caching in (one, two):
        caching.raw.send(command, "user:1")
    wait_for(server, waiting=2)
    origin.give("user:1", "go")
    for caching in (one, two):
        reply = caching.raw.read()
        assert not reply.startswith(b">"), "the reply comes first: what is cached of it is forgotten at once"
        wait_until(lambda: INVALID in caching.heard())
    # A read that is a hit is cached until the next change.
    for caching in (one, two):
        caching.raw.call(command, "user:1")
    server.client().set("user:1", "changed")
    for caching in (one, two):
        wait_until(lambda: INVALID in caching.heard())


@pytest.mark.parametrize("left_ms", [0, 2, 8])
@pytest.mark.parametrize("mode", [(), ("OPTIN",), ("NOLOOP",)], ids=" ".join)
@pytest.mark.parametrize("value", ["'v'", "{'f': 1}", "[1]", "Sorted({'a': 1})"], ids=["string", "hash", "list", "sorted"])
def test_no_client_keeps_what_came_after_an_expired_key(server: Server, value: str, mode: tuple[str, ...], left_ms: int) -> None:
    """A key is read most often in the very moment in which it expires, and is in memory then."""
    server.run(f"read_through('user:*', lambda key: {value})")
    client, caching = server.client(), Caching(server, *mode)
    command = {"'": "GET", "{": "HGETALL", "[": "LLEN", "S": "ZCARD"}[value[0]]
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    for _ in range(5):
        client.execute_command(command, "user:1")
        moment = server_ms(client) + (left_ms or 2)
        client.pexpireat("user:1", moment)
        if not left_ms:
            # A look at the key would delete it.
            wait_until(lambda: server_ms(client) > moment)
        if "OPTIN" in mode:
            caching.raw.call("CLIENT", "CACHING", "YES")
        caching.raw.call(command, "user:1")
        client.execute_command("DEL", "user:1")
        wait_until(lambda: INVALID in caching.heard())
        assert INVALID not in caching.heard()


def test_a_watched_key_that_is_loaded_fails_the_transaction(server: Server) -> None:
    server.run("read_through('k:*', lambda key: 'v')")
    raw = server.raw()
    raw.call("WATCH", "k:1")
    assert server.client().get("k:1") == "v"
    raw.call("MULTI")
    raw.call("SET", "x", "1")
    assert raw.call("EXEC") == b"*-1\r\n"


# --- files and memory ---


@pytest.mark.parametrize("how", ["rdb", "aof"])
def test_registrations_and_values_survive_a_restart(start_server: Callable[..., Server], how: str) -> None:
    server = start_server(args=["--appendonly", "yes", "--appendfsync", "always"] if how == "aof" else ["--save", "900 1"])
    server.run("""
        read_through('k:*', lambda key: {'n': key}, ttl=lambda key, value: 100 + len(value), stale=50, batch=1, breaker=(5, 10),
                     commands=['hget', 'hincrby'], desc='of mine')
    """)
    client = server.client()
    assert client.hget("k:1", "n") == "k:1"
    shown = server.registrations()[0]
    expires = client.execute_command("PEXPIRETIME", "k:1") if server.version >= (7, 0) else None
    server.restart()
    client = server.client()
    again = server.registrations()[0]
    assert [again["id"], again["reader"], again["desc"], again["RegistrationData"]["args"]] == [
        shown["id"], "ReadThrough", "of mine", shown["RegistrationData"]["args"],
    ]  # fmt: skip
    assert client.exists("k:1")
    if expires:
        assert client.execute_command("PEXPIRETIME", "k:1") == expires
    assert client.hget("k:2", "n") == "k:2" and 140 < client.ttl("k:2") <= 151


def test_above_its_memory_limit_a_server_that_does_not_evict_stores_nothing(server: Server) -> None:
    server.run("read_through('k:*', lambda key: 'v' * 1000)")
    client = server.client()
    client.config_set("maxmemory", "1")
    assert client.get("k:1") == "v" * 1000
    assert not client.exists("k:1")
    assert figures(server)["notStored"] == 1
    client.config_set("maxmemory", "0")
    assert client.get("k:1") == "v" * 1000 and client.exists("k:1")


def test_a_server_that_evicts_stores(server: Server) -> None:
    server.run("read_through('k:*', lambda key: 'v' * 10000)")
    client = server.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
    for number in range(600):
        assert client.get(f"k:{number}") == "v" * 10000
    assert client.info("stats")["evicted_keys"] > 0
    assert client.dbsize() > 50


# --- rights ---


def test_the_command_runs_with_the_rights_of_its_client(server: Server, source: Server) -> None:
    origin = register(server, source)
    client = server.client()
    client.execute_command("ACL", "SETUSER", "ann", "on", ">p", "+@all", "~user:*")
    raw = server.raw()
    raw.call("AUTH", "ann", "p")
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    client.execute_command("ACL", "SETUSER", "ann", "-get")
    origin.give("user:1", "secret")
    assert raw.read().startswith(b"-NOPERM")
    assert raw.call("GET", "user:2").startswith(b"-NOPERM")
    assert origin.loads() == 1, "nothing is loaded for whom it is not"
    at_rest(server)


# --- slices ---


def many_wait(server: Server) -> list[RawClient]:
    """Clients that wait for one key: more than are let go in one turn."""
    raws = [server.raw(60) for _ in range(300)]
    for raw in raws:
        raw.send("HGETALL", "user:1")
    wait_for(server, waiting=300)
    return raws


def test_many_clients_hold_nobody_else_up(server: Server, source: Server) -> None:
    origin = register(server, source, "max_waiting=5000", "def load(key):\n    return {str(n): fetch(key) if n == 0 else n for n in range(800)}")
    raws = many_wait(server)
    origin.give("user:1", "v")
    seen = set()

    def answered() -> bool:
        seen.add(figures(server)["waiting"])
        return 0 in seen

    wait_until(answered, timeout=60, interval=0.0)
    first = raws[0].read()
    assert len(first) > 5000 and all(raw.read() == first for raw in raws[1:])
    assert len(seen) > 3, "others have their turn in between"
    assert server.client().info("rg_read_through")["rg_read_through_slices_total"] > 5
    at_rest(server)


@pytest.mark.parametrize("how", ["SWAPDB 0 5", "FLUSHALL", "DEL user:1", "RENAME user:1 other:1", "MOVE user:1 5"])
def test_a_key_that_goes_while_its_clients_are_let_go(server: Server, source: Server, how: str) -> None:
    """Those who still wait get what is loaded anew; nobody gets nothing."""
    origin = register(server, source, "max_waiting=5000", "def load(key):\n    found = fetch(key)\n    return {str(n): found for n in range(800)}")
    for before in range(10):
        raws = many_wait(server)
        origin.give("user:1", "first")
        wait_until(lambda: figures(server)["waiting"] < 300, interval=0.0)
        assert server.client().execute_command(*how.split()) in (True, 1, b"OK", "OK")
        left = figures(server)["waiting"]
        if left > 0:
            break
        # This process had no turn in between: all had their replies.
        assert all(b"first" in raw.read() for raw in raws)
        server.client().flushall()
    else:
        pytest.fail("all had their replies each time: nothing was tested")
    origin.give("user:1", "second")
    replies = [raw.read() for raw in raws]
    assert all(len(reply) > 5000 for reply in replies)
    old = sum(b"first" in reply for reply in replies)
    assert old + sum(b"second" in reply for reply in replies) == 300
    assert old <= 300 - left
    assert origin.loads() == before + 2
    source.client().flushall()
    at_rest(server)


# --- register(..., coalesce=True) ---

TUTORIAL = """
import time
def fetch_data(record):
    execute('INCR', 'calls')
    time.sleep(0.05)
    execute('SET', record['key'], 'fetched')
    override_reply('fetched')
GB('KeysReader').foreach(fetch_data).register(
    prefix='*', commands=['get'], eventTypes=['keymiss'], mode='async_local'{more})
"""


@pytest.mark.parametrize("coalesce", [True, False])
def test_executions_behind_another_one_are_not_run(server: Server, coalesce: bool) -> None:
    server.run(TUTORIAL.format(more=", coalesce=True" if coalesce else ""))
    raws = [server.raw() for _ in range(20)]
    for raw in raws:
        raw.send("GET", "cold")
    assert {raw.read() for raw in raws} == {b"$7\r\nfetched\r\n"}
    calls = int(server.client().get("calls"))
    assert calls == 1 if coalesce else calls > 1
    server.wait_idle()
    data = figures(server)
    assert data["numTriggered"] == data["numSuccess"]
    assert ("coalesce" in data["args"]) == coalesce


def test_coalesce_is_checked(server: Server) -> None:
    for more, said in ((", coalesce=1", "coalesce: expected True or False"),):
        with pytest.raises(redis.ResponseError, match=said):
            reply = server.run(TUTORIAL.format(more=more))
            raise redis.ResponseError(str(reply))
    with pytest.raises(redis.ResponseError, match="coalesce: expected commands beside it"):
        reply = server.run("GB('KeysReader').register('*', eventTypes=['keymiss'], coalesce=True)")
        raise redis.ResponseError(str(reply))
