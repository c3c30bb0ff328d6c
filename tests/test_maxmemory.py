"""At `maxmemory`: what functions write evicts as what a client writes does, and is refused only where a client's is."""

from __future__ import annotations

import bisect
import itertools
import random
from typing import Callable, Iterator

import pytest
import redis

from helpers import Server, wait_until
from test_replication import attach, caught_up

pytestmark = [pytest.mark.matrix, pytest.mark.own_server]

OOM = "OOM command not allowed when used memory > 'maxmemory'."
MB = 1 << 20
READS = 12000
LOADER = """
def load(r):
    value = 'x' * {size}
    execute('SET', r['key'], value, 'EX', {ttl})
    override_reply(value)
GB('KeysReader').foreach(load).register(prefix='{prefix}*', eventTypes=['keymiss'], commands=['get'], mode='{mode}', readValue=False)
"""
FILL = """
def fill(words):
    for number in range(int(words[1])):
        execute('SET', f'fill:{number}', 'x' * 3000)
def fill_atomically(words):
    with atomic():
        fill(words)
GB('CommandReader').map(fill).register(trigger='fill', mode='async_local')
GB('CommandReader').map(fill).register(trigger='fill_sync', mode='sync')
GB('CommandReader').map(fill_atomically).register(trigger='fill_atomically', mode='async_local')
GB('CommandReader').map(lambda words: execute(*words[1:])).register(trigger='run', mode='async_local')
GB('CommandReader').map(lambda words: execute(*words[1:])).register(trigger='run_sync', mode='sync')
GB('CommandReader').map(lambda words: execute(*words[1].split('|'))).register(hook='echo', mode='sync')
"""


def used(server: Server, what: str = "used_memory") -> int:
    return int(server.own.info("memory")[what])


def limit(server: Server, room: int, policy: str) -> int:
    """Lets the server have so many bytes more than it uses now."""
    client = server.own
    size = used(server) + room
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory-samples", 10)
    client.config_set("maxmemory", size)
    return size


def figure(server: Server, name: str) -> int:
    return int(server.own.info("rg")[f"rg_{name}"])


def zipf(count: int, keys: int, seed: int) -> Iterator[int]:
    """Numbers of keys as caches see them: few of them often."""
    weights = list(itertools.accumulate(1 / (rank + 1) ** 0.8 for rank in range(keys)))
    chooser = random.Random(seed)
    for _ in range(count):
        yield bisect.bisect(weights, chooser.random() * weights[-1])


class Side:
    """A server whose cache is filled by its client (`aside`) or by a function."""

    def __init__(self, server: Server, aside: bool, size: int, room: int, policy: str) -> None:
        self.server, self.aside, self.value = server, aside, b"x" * size
        self.found = b"$%d\r\n%s\r\n" % (size, self.value)
        # No connection is idle: the server gives the memory of such ones to the cache after a while.
        self.client, self.reader = server.own, server.raw()
        server.run(LOADER.format(size=size, ttl=600, prefix="fun:", mode="async_local"))
        for number in range(200):  # Python has by then what it needs, on both
            self.client.get(f"fun:{number}")
        # Valkey frees in the background otherwise, and what it has not freed yet would be room for one cache only.
        self.client.execute_command("FLUSHALL", "SYNC")
        wait_until(lambda: self.client.info("memory")["lazyfree_pending_objects"] == 0)
        self.most = limit(server, room, policy) + room // 16 + MB // 4

    def read(self, number: int) -> None:
        key = f"{'app' if self.aside else 'fun'}:{number}"
        reply = self.reader.call("GET", key)
        if reply == b"$-1\r\n" and self.aside:
            assert self.reader.call("SET", key, self.value, "EX", 600) == b"+OK\r\n"
        else:
            assert reply == self.found

    def hit_rate(self) -> float:
        stats = self.client.info("stats")
        assert stats["evicted_keys"] > 0
        assert used(self.server) < self.most
        assert figure(self.server, "refused_for_memory") == 0
        return stats["keyspace_hits"] / (stats["keyspace_hits"] + stats["keyspace_misses"])


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-ttl"])
@pytest.mark.parametrize("size,keys,room", [(500, 12000, 2 * MB), (20000, 3000, 16 * MB)], ids=["small", "large"])
def test_hit_rates_are_those_of_an_application(
    start_server: Callable[..., Server], policy: str, size: int, keys: int, room: int
) -> None:
    """A read-through cache at its limit against cache-aside: same keys, same memory, and in turn, because what LRU and LFU do
    depends on the clock. Counted is the second half, when the caches are full."""
    sides = [Side(start_server(), aside, size, room, policy) for aside in (True, False)]
    for place, number in enumerate(zipf(READS, keys, seed=1)):
        if place == READS // 2:
            for side in sides:
                side.client.config_resetstat()
        for side in sides:
            side.read(number)
    aside, through = (side.hit_rate() for side in sides)
    assert 0.1 < aside < 0.95
    assert through == pytest.approx(aside, abs=0.02)


@pytest.mark.parametrize("mode", ["sync", "async", "async_local"])
def test_no_read_fails(start_server: Callable[..., Server], mode: str) -> None:
    """The first report: a loader at its limit."""
    server = start_server()
    server.run(LOADER.format(size=3000, ttl=600, prefix="k:", mode=mode))
    limit(server, 4 * MB, "allkeys-lru")
    pipeline = server.client().pipeline(transaction=False)
    chooser = random.Random(2)
    for _ in range(40):
        for _ in range(100):
            pipeline.get(f"k:{chooser.randrange(6000)}")
        assert all(value is not None for value in pipeline.execute())
    assert server.client().info("stats")["evicted_keys"] > 0
    assert server.registrations()[0]["RegistrationData"]["numFailures"] == 0


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_memory_stays_bounded_while_no_client_sends_anything(server: Server, policy: str) -> None:
    server.run(FILL)
    size = limit(server, 8 * MB, policy)
    raw = server.raw(timeout=60)
    raw.send("RG.TRIGGER", "fill", "30000")  # 90 MB
    assert raw.read().startswith(b"*1")
    assert used(server, "used_memory_peak") < size * 9 / 8 + MB
    assert figure(server, "refused_for_memory") == 0
    assert any(server.client().exists(f"fill:{number}") for number in range(29000, 30000))


@pytest.mark.parametrize("trigger", ["fill_sync", "fill_atomically"])
def test_in_one_go_it_is_as_in_a_script(server: Server, trigger: str) -> None:
    """Nobody can evict meanwhile. The next command lets the server do it."""
    server.run(FILL)
    size = limit(server, 4 * MB, "allkeys-lru")
    raw = server.raw(timeout=60)
    assert raw.call("RG.TRIGGER", trigger, "3000").startswith(b"*1")
    client = server.client()
    wait_until(lambda: client.ping() and used(server) <= size + MB // 4)
    assert figure(server, "refused_for_memory") == 0
    assert client.info("stats")["evicted_keys"] > 0


@pytest.mark.parametrize("policy,expires", [("noeviction", True), ("noeviction", False), ("volatile-lru", False), ("volatile-ttl", False)])
@pytest.mark.parametrize("trigger", ["run", "run_sync"])
def test_refused_where_a_client_is(server: Server, policy: str, expires: bool, trigger: str) -> None:
    server.run(FILL)
    client = server.client()
    for number in range(100):
        client.set(f"k{number}", "x" * 3000, ex=600 if expires else None)
    client.xadd("s", {"n": 1})
    client.xgroup_create("s", "g", "0")
    [[_, [[entry, _]]]] = client.xreadgroup("g", "c", {"s": ">"})
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", used(server) - MB)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("own", "1")
    refused = lambda *words: client.execute_command("RG.TRIGGER", trigger, *words)  # noqa: E731
    for words in (["SET", "k", "1"], ["set", "k", "1"], ["LPUSH", "l", "1"], ["XADD", "s", "*", "n", "1"]):
        with pytest.raises(redis.ResponseError) as caught:
            refused(*words)
        assert OOM in f"{type(caught.value).__name__} OOM {caught.value}"
    assert figure(server, "refused_for_memory") == 4
    # What needs no memory goes on, as for a client.
    assert refused("GET", "k1") == ["x" * 3000]
    assert refused("XACK", "s", "g", entry) == ["1"]
    assert refused("XTRIM", "s", "MAXLEN", "0") == ["1"]
    assert refused("DEL", "k1") == ["1"]
    client.config_set("maxmemory", 0)
    assert refused("SET", "k", "1") == ["OK"]


def test_volatile_policies_evict_what_expires(server: Server) -> None:
    server.run(FILL)
    client = server.client()
    limit(server, 2 * MB, "volatile-lru")
    for number in range(2000):
        assert client.execute_command("RG.TRIGGER", "run", "SET", f"k{number}", "x" * 3000, "EX", "600") == ["OK"]
    assert client.info("stats")["evicted_keys"] > 0


@pytest.mark.parametrize("caller", ["RG.TRIGGER run", "RG.TRIGGER run_sync"])
def test_scripts_that_functions_run(server: Server, caller: str) -> None:
    server.run(FILL)
    limit(server, 2 * MB, "allkeys-lru")
    client = server.client()
    if "sync" in caller:
        script = "return redis.call('SET', KEYS[1], string.rep('x', 3000))"
    else:
        script = "#!lua\nreturn redis.call('SET', KEYS[1], string.rep('x', 3000))"
        if server.version < (7, 0) and not server.is_valkey:
            pytest.skip("has no such scripts")
    for number in range(2000):
        assert client.execute_command(*caller.split(), "EVAL", script, 1, f"k{number}") == ["OK"]
    assert client.info("stats")["evicted_keys"] > 0


@pytest.mark.parametrize("caller", ["transaction", "script", "hook"])
def test_callers_that_cannot_wait(server: Server, caller: str) -> None:
    server.run(FILL + LOADER.format(size=3000, ttl=600, prefix="k:", mode="sync"))
    limit(server, 4 * MB, "allkeys-lru")
    client = server.client()
    for number in range(3000):
        key = f"k:{number}"
        if caller == "transaction":
            pipeline = client.pipeline(transaction=True)
            assert pipeline.get(key).execute() == ["x" * 3000]
        elif caller == "script":
            assert client.eval("return redis.call('GET', KEYS[1])", 1, key) == "x" * 3000
        else:
            assert client.execute_command("ECHO", f"SET|{key}|{'x' * 3000}") == "OK"
    assert client.info("stats")["evicted_keys"] > 0


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_streams_are_read_where_nothing_can_be_evicted(server: Server, mode: str) -> None:
    """Their groups are made, and entries acknowledged and removed."""
    client = server.client()
    for number in range(10):
        client.xadd("s", {"n": number})
    client.config_set("maxmemory", used(server) - MB)
    server.run(f"GB('StreamReader').foreach(lambda r: None).register(prefix='s', mode='{mode}', trimStream=True)")
    wait_until(lambda: client.xlen("s") == 0)
    assert client.xpending("s", "__gears_consumer_group__")["pending"] == 0


def test_registrations_time_events_and_replicas(start_server: Callable[..., Server]) -> None:
    """What the module notes for itself is not refused; replicas have less memory and evict nothing by themselves."""
    master, replica = start_server(), start_server()
    attach(replica, master)
    client = master.client()
    for number in range(100):
        client.set(f"own:{number}", "x" * 3000)
    caught_up(master, replica)
    for server in (master, replica):
        server.client().config_set("maxmemory", used(server) - MB)
    assert master.run("registerTE(1, lambda: execute('EXISTS', 'x'), 'te')\nGB('CommandReader').register(trigger='t', mode='sync')") == "OK"
    caught_up(master, replica)
    assert replica.client().dbsize() == 101 and len(replica.registrations()) == 1
    client.config_set("maxmemory", 0)
    master.run(FILL)
    client.config_set("repl-backlog-size", MB)  # it is not evicted
    limit(master, 8 * MB, "allkeys-lru")
    replica.client().config_set("maxmemory-policy", "allkeys-lru")
    raw = master.raw(timeout=60)
    assert raw.call("RG.TRIGGER", "fill", "5000").startswith(b"*1")
    wait_until(lambda: master.own.info("stats")["evicted_keys"] > 0)
    caught_up(master, replica)
    assert replica.client().info("stats")["evicted_keys"] == 0
    wait_until(lambda: sorted(replica.own.keys("*")) == sorted(master.own.keys("*")))


def test_without_config_growth_ends_in_refusals(start_server: Callable[..., Server]) -> None:
    """Then nothing but a client's command lets the server evict."""
    server = start_server(args=["--rename-command", "CONFIG", "", "--maxmemory", "40mb", "--maxmemory-policy", "allkeys-lru"])
    server.run(FILL)
    raw = server.raw(timeout=60)
    reply = raw.call("RG.TRIGGER", "fill", "30000")
    assert OOM.encode() in reply
    assert used(server, "used_memory_peak") < 44 * MB
    for number in range(100):
        assert server.client().execute_command("RG.TRIGGER", "run", "SET", f"k{number}", "v") == ["OK"]
