"""No lost update: what is loaded is stored only if nothing happened to the key since the load began. Contract:
docs/contract/read-through.md 3.2 and "Details".
"""

from __future__ import annotations

from typing import Callable

import pytest

from figures import figures, wait_for
from helpers import Server, wait_until
from read_through import at_rest, register

pytestmark = pytest.mark.matrix


def loading(server: Server, source: Server, key: str = "user:1", arguments: str = "") -> tuple:
    """A client that waits for a load that has begun."""
    origin = register(server, source, arguments)
    raw = server.raw()
    raw.send("GET", key)
    origin.wait_for_loads(1)
    return origin, raw


def test_a_newer_value_stays_and_answers(server: Server, source: Server) -> None:
    origin, raw = loading(server, source, arguments="ttl=100")
    client = server.client()
    client.set("user:1", "newer")
    origin.give("user:1", "older")
    assert raw.read() == b"$5\r\nnewer\r\n"
    assert client.get("user:1") == "newer" and client.ttl("user:1") == -1
    assert figures(server)["droppedByLease"] == 1
    at_rest(server)


INVALIDATIONS: dict[str, Callable] = {
    "del": lambda client: client.delete("user:1"),
    "unlink": lambda client: client.unlink("other", "user:1"),
    "del in a transaction": lambda client: client.pipeline(transaction=True).delete("user:1").execute(),
    "del in a script": lambda client: client.eval("return redis.call('DEL', KEYS[1])", 1, "user:1"),
    "del by a function": lambda client: client.execute_command("RG.TRIGGER", "remove"),
    "flushdb": lambda client: client.flushdb(),
    "flushall": lambda client: client.execute_command("FLUSHALL", "ASYNC"),
    "swapdb": lambda client: client.swapdb(0, 9),
    "set and del": lambda client: (client.set("user:1", "x"), client.delete("user:1")),
    "set and rename": lambda client: (client.set("user:1", "x"), client.rename("user:1", "other")),
    "set and move": lambda client: (client.set("user:1", "x"), client.move("user:1", 5)),
    "push and pop": lambda client: (client.rpush("user:1", "x"), client.lpop("user:1")),
    "set and getdel": lambda client: (client.set("user:1", "x"), client.execute_command("GETDEL", "user:1")),
    "set and expire": lambda client: (
        client.set("user:1", "x", px=1),
        wait_until(lambda: not client.exists("user:1")),
    ),
}


@pytest.mark.parametrize("name", INVALIDATIONS)
def test_what_was_invalidated_is_loaded_again(server: Server, source: Server, name: str) -> None:
    origin, raw = loading(server, source)
    server.run("GB('CommandReader').map(lambda words: execute('DEL', 'user:1')).register(trigger='remove', mode='sync')")
    INVALIDATIONS[name](server.client())
    origin.give("user:1", "old")
    origin.wait_for_loads(2)
    origin.give("user:1", "new")
    assert raw.read() == b"$3\r\nnew\r\n"
    assert server.client().get("user:1") == "new"
    assert figures(server)["droppedByLease"] == 1
    at_rest(server)


@pytest.mark.parametrize(
    "command",
    ["EXPIRE user:1 5", "PERSIST user:1", "DEL user:2", "GETEX user:2 PERSIST", "SWAPDB 3 9", "SET user:2 x", "GET user:3x"],
)
def test_what_concerns_others_invalidates_nothing(server: Server, source: Server, command: str) -> None:
    origin, raw = loading(server, source)
    origin.give("user:2", "v")
    origin.give("user:3x", "v")
    server.client().execute_command(*command.split())
    origin.give("user:1", "v")
    assert raw.read() == b"$1\r\nv\r\n"
    assert figures(server)["droppedByLease"] == 0
    at_rest(server)


def test_a_del_in_another_database_invalidates_nothing(server: Server, source: Server) -> None:
    origin, raw = loading(server, source)
    server.client(db=4).delete("user:1")
    server.client(db=4).flushdb()
    origin.give("user:1", "v")
    assert raw.read() == b"$1\r\nv\r\n" and origin.loads() == 1


def test_the_third_lost_lease_answers_without_being_kept(server: Server, source: Server) -> None:
    origin, raw = loading(server, source)
    client = server.client()
    for load in (1, 2, 3):
        origin.wait_for_loads(load)
        client.delete("user:1")
        origin.give("user:1", f"v{load}")
    assert raw.read() == b"$2\r\nv3\r\n"
    assert not client.exists("user:1")
    assert (origin.loads(), figures(server)["droppedByLease"]) == (3, 3)
    at_rest(server)


@pytest.mark.parametrize(
    ("words", "reply", "left"),
    [(["INCRBY", "user:1", "5"], b":1005\r\n", "1005"), (["APPEND", "user:1", "x"], b":5\r\n", "1000x"), (["SETRANGE", "user:1", "1", "x"], b":4\r\n", "1x00")],
)
def test_a_writing_command_keeps_the_value_of_the_third_lost_lease(
    server: Server, source: Server, words: list[str], reply: bytes, left: str
) -> None:
    """It ran on nothing: a counter began at 0."""
    origin = register(server, source, f"commands=['get', '{words[0].lower()}'], ttl=100")
    raw = server.raw()
    raw.send(*words)
    client = server.client()
    for load in (1, 2, 3):
        origin.wait_for_loads(load)
        client.delete("user:1")
        origin.give("user:1", "1000")
    assert raw.read() == reply
    assert client.get("user:1") == left
    assert 0 < client.ttl("user:1") <= 100
    at_rest(server)


def test_a_writing_command_whose_value_finds_no_room_changes_nothing(server: Server) -> None:
    """Not every one of them is refused by the server itself."""
    server.run("read_through('list:*', lambda key: ['a', 'b'], commands=['lpop', 'lrange'])")
    client = server.client()
    client.config_set("maxmemory", 1)
    reply, there = server.raw().call("LPOP", "list:1"), client.exists("list:1")
    client.config_set("maxmemory", 0)
    assert (reply[:5], there) == (b"-OOM ", 0)
    assert client.lpop("list:1") == "a"


def test_nobody_gets_a_load_that_began_before_his_own_invalidation(server: Server, source: Server) -> None:
    origin, first = loading(server, source)
    second = server.raw()
    for load in (1, 2):
        origin.wait_for_loads(load)
        server.client().delete("user:1")
        origin.give("user:1", f"v{load}")
    origin.wait_for_loads(3)
    # The third load has begun: whoever deletes and asks now must not get what it brings.
    assert second.call("DEL", "user:1") == b":0\r\n"
    second.send("GET", "user:1")
    wait_for(server, waiting=2)
    origin.give("user:1", "v3")
    assert first.read() == b"$2\r\nv3\r\n"
    origin.wait_for_loads(4)
    origin.give("user:1", "v4")
    assert second.read() == b"$2\r\nv4\r\n"
    assert server.client().get("user:1") == "v4"
    at_rest(server)


def test_the_loaders_own_writes_do_not_break_its_lease(server: Server, source: Server) -> None:
    loader = """
        def load(key):
            value = fetch(key)
            execute('DEL', key)
            execute('SET', key, 'stored by itself')
            return value
    """
    origin = register(server, source, loader=loader)
    raw = server.raw()
    raw.send("GET", "user:1")
    origin.give("user:1", "returned")
    assert raw.read() == b"$16\r\nstored by itself\r\n"
    assert origin.loads() == 1
    at_rest(server)


def test_a_coroutines_own_writes_do_not_break_its_lease(server: Server) -> None:
    server.run("""
        import asyncio
        @read_through('user:*')
        async def load(key):
            await asyncio.sleep(0.001)
            execute('DEL', key)
            execute('INCR', 'loads')
            return 'v'
    """)
    client = server.client()
    assert client.get("user:1") == "v"
    assert client.get("loads") == "1"


def test_a_value_that_is_gone_again_is_put_back_for_who_waits(server: Server, source: Server) -> None:
    """Expired between the store and the reply: with a lifetime of a millisecond nearly all are."""
    origin = register(server, source, "ttl=0.001")
    raws = [server.raw() for _ in range(500)]
    for raw in raws:
        raw.send("GET", "user:1")
    wait_for(server, waiting=500)
    origin.give("user:1", "v")
    assert {raw.read() for raw in raws} == {b"$1\r\nv\r\n"}
    assert origin.loads() == 1
    at_rest(server)


def test_values_that_are_not_kept_fire_no_events_and_reach_no_replica(
    server: Server, start_server: Callable[..., Server]
) -> None:
    replica = start_server()
    replica.client().execute_command("REPLICAOF", server.host, server.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up", timeout=20)
    server.run("""
        read_through('k:*', lambda key: Loaded('v', ttl=0), negative_ttl=5)
        GB('KeysReader').foreach(lambda record: execute('INCR', 'events')).register('k:*', mode='sync', readValue=False)
    """)
    client = server.client()
    for _ in range(3):
        assert client.get("k:1") == "v"
    assert client.get("events") is None
    assert not client.exists("k:1")
    client.set("last", "1")
    wait_until(lambda: replica.own.get("last") == "1")
    assert replica.client().keys("k:*") == []


def test_a_writing_command_keeps_what_was_not_to_be_kept(server: Server) -> None:
    server.run("read_through('k:*', lambda key: Loaded('v', ttl=0), commands=['append', 'get'], ttl=60)")
    client = server.client()
    assert client.get("k:1") == "v" and not client.exists("k:1")
    assert client.append("k:1", "!") == 2
    assert client.get("k:1") == "v!" and 0 < client.ttl("k:1") <= 60


def test_stores_fire_their_events_for_others(server: Server) -> None:
    server.run("""
        read_through('k:*', lambda key: {'h': {'f': 1}, 's': {1}, 'l': [1], 'z': Sorted({'a': 1}), 't': 'x'}[key[-1]], ttl=60)
        def note(record):
            execute('SADD', 'events', record['event'] + ' ' + record['key'])
        GB('KeysReader').foreach(note).register('k:*', mode='sync', eventTypes=['set', 'hset', 'sadd', 'rpush', 'zadd', 'expire'])
    """)
    client = server.client()
    for key in "hslzt":
        client.execute_command({"h": "HLEN", "s": "SCARD", "l": "LLEN", "z": "ZCARD", "t": "STRLEN"}[key], "k:" + key)
    wanted = {f"{event} k:{key}" for event, key in zip(("hset", "sadd", "rpush", "zadd", "set"), "hslzt")}
    wait_until(lambda: client.smembers("events") == wanted | {f"expire k:{key}" for key in "hslzt"})


LOADERS = {
    "one key": "def load(key): return {value}",
    "a coroutine": "async def load(key): return {value}",
    "batches": "def load(keys): return dict.fromkeys(keys, {value})",
}
VALUES = {"GET": ("'v'", b"$1\r\nv\r\n"), "HGETALL": ("{'f': 'v'}", b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n")}


@pytest.mark.parametrize("command", VALUES)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_value_that_ends_in_this_moment_is_no_newer_one(server: Server, loader: str, command: str) -> None:
    """A key in its last milliseconds is loaded as a missing one. What is loaded meanwhile takes its place, and is not made again; and nobody
    is told that there is nothing."""
    value, reply = VALUES[command]
    batch = ", batch=20, batch_wait=0.001" if loader == "batches" else ""
    server.run(f"{LOADERS[loader].format(value=value)}\nread_through('user:*', load, ttl=0.03{batch})")
    raw = server.raw()
    while figures(server)["loads"] < 30:
        for _ in range(100):
            raw.send(command, "user:1")
        assert {raw.read() for _ in range(100)} == {reply}
    found = figures(server)
    assert found["droppedByLease"] == 0 and found["loads"] <= found["misses"], found


def test_a_part_of_a_value_that_ends_in_this_moment_is_written(server: Server) -> None:
    """With both halves: the whole row is there, or is loaded once."""
    server.run("""
        rows = {}
        def save(changes):
            for change in changes:
                rows[change['key']] = change['value']
        read_through('user:*', lambda key: rows.get(key) or {'name': 'x', 'n': '0'}, ttl=0.03)
        write_behind('user:*', save, wait=True)
        """)
    raw = server.raw()
    number = 0
    while figures(server)["loads"] < 20:
        number += 1
        assert raw.call("HINCRBY", "user:1", "n", 1) == b":%d\r\n" % number
    assert figures(server)["droppedByLease"] == 0
