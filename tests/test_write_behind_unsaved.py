"""A value that is not saved yet and that the cache has forgotten is read from the queue by whoever asks: also in transactions, scripts and
functions. Contract: docs/contract/write-behind.md 2.6."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from figures import figures, wait_for
from helpers import Server, wait_until
from test_write_behind_halves import WAYS, both, by, saver
from write_behind import Database, drained

pytestmark = pytest.mark.matrix

READ: dict[str, Any] = {
    "GET user:text": "new",
    "STRLEN user:text": 3,
    "HGET user:hash b": "2",
    "LRANGE user:list 0 -1": ["x", "y"],
    "SISMEMBER user:set a": 1,
    "ZSCORE user:sorted a": "1.5",
    "MGET user:text user:gone user:other": ["new", None, None],
    "GET user:gone": None,
    # These write, and depend on what is there.
    "APPEND user:text !": 4,
    "HSETNX user:hash b 3": 0,
    "SADD user:set a": 0,
    "RENAME user:text user:renamed": "OK",
}
IN_MORE_WAYS = WAYS + """
    GB('CommandReader').map(lambda words: execute('GET', words[1])).register(hook='strlen', mode='sync')
    GB('KeysReader').map(lambda r: execute('SET', 'read', str(execute('GET', 'user:text')))).register(
        'linked:*', eventTypes=['set'], commands=['SET'], mode='sync')
"""


def forgotten(server: Server, source: Server, how: Callable[[Any], None]) -> Database:
    """Values of which none is saved, and none is in the cache."""
    database = both(server, source, "ttl=100", saving="backoff=0.05, max_backoff=0.05")
    database.client.set("row:0:user:gone", '"old"')
    database.fail(1_000_000)
    client = server.client()
    client.set("user:text", "new")
    client.hset("user:hash", mapping={"a": 1, "b": 2})
    client.rpush("user:list", "x", "y")
    client.sadd("user:set", "a", "b")
    client.zadd("user:sorted", {"a": 1.5})
    client.delete("user:gone")
    wait_for(server, saver(server), queued=6)
    how(client)
    return database


def flush(client: Any) -> None:
    client.flushall()


def expire(client: Any) -> None:
    for key in client.keys("user:*"):
        client.pexpire(key, 20)
    wait_until(lambda: client.keys("user:*") == [])


def plain(value: Any) -> Any:
    """What functions give is a list of what each record gives, as texts."""
    return [plain(item) for item in value] if isinstance(value, list) else None if value in (None, "None") else str(value).replace("True", "OK")


@pytest.mark.parametrize("way", ["MULTI", "EVAL", "run", "run_async"])
@pytest.mark.parametrize("words", READ)
def test_whoever_reads(server: Server, source: Server, words: str, way: str) -> None:
    database = forgotten(server, source, flush)
    server.run(WAYS)
    got, expected = plain(by(server, way, *words.split())), plain(READ[words])
    if way.startswith("run") and not isinstance(READ[words], list):
        expected = [expected]
    assert got in (expected, [str(expected).replace('"', "'")]), got
    database.fail(0)
    drained(server, saver(server))
    rows = database.rows()
    assert rows.pop("user:renamed", "new") == "new"
    assert {"user:gone": None, **rows} == {
        **({} if words.startswith("RENAME") else {"user:text": "new!" if words.startswith("APPEND") else "new"}),
        "user:gone": None, "user:hash": {"a": "1", "b": "2"}, "user:list": ["x", "y"], "user:set": ["a", "b"], "user:sorted": {"a": 1.5},
    }  # fmt: skip


@pytest.mark.parametrize("how", [flush, expire])
def test_several_keys_of_one_unit(server: Server, source: Server, how: Callable[[Any], None]) -> None:
    database = forgotten(server, source, how)
    client = server.client()
    captured, loads = figures(server, saver(server))["captured"], client.get("loads")
    with client.pipeline() as transaction:
        transaction.get("user:text").hgetall("user:hash").smembers("user:set").get("user:gone").get("user:other")
        assert transaction.execute() == ["new", {"a": "1", "b": "2"}, {"a", "b"}, None, None]
    assert client.eval("return redis.call('LRANGE', KEYS[1], 0, -1)", 1, "user:list") == ["x", "y"]
    assert 90 < client.ttl("user:text") <= 100, "stored again with its lifetime"
    assert figures(server, saver(server))["captured"] == captured, "what the queue put back is no change"
    assert client.get("loads") == loads
    database.fail(0)
    drained(server, saver(server))
    assert database.row("user:text") == "new"


def test_scripts_that_only_read(server: Server, source: Server) -> None:
    forgotten(server, source, flush)
    client = server.client()
    assert client.eval_ro("return redis.call('GET', KEYS[1])", 1, "user:text") == "new"
    assert sorted(client.eval_ro("return redis.call('SMEMBERS', KEYS[1])", 1, "user:set")) == ["a", "b"]
    assert client.eval("#!lua flags=no-writes\nreturn redis.call('HGET', KEYS[1], 'b')", 1, "user:hash") == "2"


def test_nothing_is_put_back_while_clients_are_paused(server: Server, source: Server) -> None:
    """Nothing may be handed on then."""
    forgotten(server, source, flush)
    client = server.client()
    client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        assert client.eval_ro("return redis.call('GET', KEYS[1])", 1, "user:text") is None
    finally:
        client.execute_command("CLIENT", "UNPAUSE")
    assert client.eval_ro("return redis.call('GET', KEYS[1])", 1, "user:text") == "new"


def test_a_replica_hears_of_what_is_put_back(start_server: Callable[..., Server], source: Server) -> None:
    master, replica = start_server(), start_server()
    replica.client().replicaof(master.host, master.port)
    wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up", 20)
    forgotten(master, source, flush)
    client = master.client()
    with client.pipeline() as transaction:
        assert transaction.get("user:text").incr("number").execute() == ["new", 1]
    assert client.wait(1, 10_000) == 1
    assert replica.client().get("user:text") == "new" and replica.client().get("number") == "1"


def test_functions_in_the_middle_of_a_command_change_no_part(server: Server, source: Server) -> None:
    """What they run passed untouched: a part was saved over the whole row, and the deletion of a key that is not in the cache was not."""
    database = both(server, source)
    database.client.mset({"row:0:user:1": '{"name": "Ann", "city": "Bern"}', "row:0:user:2": '"b"'})
    server.run("""
        def both(r):
            execute('DEL', 'user:2')
            execute('HSET', 'user:1', 'city', 'Thun')

        GB('KeysReader').foreach(both).register('linked:*', eventTypes=['set'], commands=['SET'], mode='sync')
    """)
    server.client().set("linked:1", "a")
    drained(server, saver(server))
    assert database.rows() == {"user:1": {"name": "Ann", "city": "Bern"}}
    assert figures(server, 2)["lastError"].endswith("LOADFAILED CannotWait") or "LOADFAILED CannotWait" in figures(server, 2)["lastError"]


def test_functions_in_the_middle_of_a_command(server: Server, source: Server) -> None:
    """A hook in its place, and a function that follows it at once."""
    forgotten(server, source, flush)
    server.run(IN_MORE_WAYS)
    client = server.client()
    client.set("linked:1", "a")
    wait_until(lambda: client.get("read"))
    assert client.get("read") == "new"
    client.flushall()
    assert server.raw().call("STRLEN", "user:text") == b"$3\r\nnew\r\n"
