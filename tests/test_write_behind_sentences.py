"""`write_behind`: sentences of the contract that no other test holds by itself, and clients in states that are rarely tried. Contract:
docs/contract/write-behind.md chapters 1 and 2."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from figures import figures, wait_for
from helpers import Server, wait_until
from test_write_behind_halves import both, saver
from test_write_behind_elsewhere import at
from test_write_behind_roles import AOF, OUTAGE, go_on, hang, linked, waiting
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

FAST = "backoff=0.05, max_backoff=0.05"
HASH_FIELDS = "fields do not expire on this server, or only one by one"


def has_fields(server: Server) -> bool:
    return server.version >= ((9, 0) if server.is_valkey else (8, 0))


def events_of(database: Database) -> list[tuple[str, str]]:
    return [(change["key"], change["event"]) for change in database.changes()]


def test_that_a_cache_evicts_can_be_named(server: Server, source: Server) -> None:
    database = register(server, source, "events=['evicted']")
    client = server.client()
    client.set("user:1", "a")
    client.config_set("maxmemory-policy", "allkeys-random")
    try:
        client.config_set("maxmemory", 1)
        wait_until(lambda: not server.own.exists("user:1"))
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
    drained(server)
    assert events_of(database) == [("user:1", "evicted")] and database.changes()[0]["type"] is None


def test_that_fields_expire_can_be_named(server: Server, source: Server) -> None:
    """With what it leaves; and the end of the hash, which is a deletion then."""
    if not has_fields(server):
        pytest.skip(HASH_FIELDS)
    database = register(server, source, "events=['hexpired', 'del']")
    client = server.client()
    client.hset("user:1", mapping={"a": 1, "b": 2})
    client.hset("user:2", "a", 1)
    for key in ("user:1", "user:2"):
        client.execute_command("HPEXPIRE", key, 20, "FIELDS", 1, "a")
    wait_until(lambda: not client.exists("user:2") and client.hlen("user:1") == 1)
    drained(server)
    rows = {change["key"]: change["value"] for change in database.changes()}
    assert rows == {"user:1": {"b": "2"}, "user:2": None}


def test_lifetimes_can_be_named(server: Server, source: Server) -> None:
    database = register(server, source, "events=['expire', 'persist'], coalesce=False")
    client = server.client()
    client.set("user:1", "a")
    client.expire("user:1", 100)
    client.persist("user:1")
    drained(server)
    wait_until(lambda: events_of(database) == [("user:1", "expire"), ("user:1", "persist")])
    assert database.row("user:1") == "a"


def test_what_waits_for_its_save_is_visible_and_replicated(start_server: Callable[..., Server], source: Server) -> None:
    server, replica = start_server(), start_server()
    database = register(server, source, f"wait=True, timeout=60, {FAST}")
    replica.client().replicaof(server.host, server.port)
    linked(replica)
    database.fail(OUTAGE)
    raw = server.raw()
    raw.send("HSET", "user:1", "f", "v")
    wait_until(lambda: waiting(server, "save") == 1)
    wait_until(lambda: replica.own.hget("user:1", "f") == "v")
    wait_for(replica, queued=1)
    assert server.own.hget("user:1", "f") == "v" and waiting(server, "save") == 1
    database.fail(0)
    assert raw.read() == b":1\r\n"


@pytest.mark.parametrize("way", ["DEBUG RELOAD", "DEBUG LOADAOF", "restart", "replica"])
def test_what_a_file_or_a_master_brings_is_no_change(start_server: Callable[..., Server], source: Server, way: str) -> None:
    server = start_server(args=AOF)
    client = server.client()
    client.mset({f"user:{number}": number for number in range(50)})
    database = register(server, source)
    client.hset("user:h", "f", "v")
    drained(server)
    before = len(database.changes())
    if way == "replica":
        replica = start_server()
        replica.client().replicaof(server.host, server.port)
        linked(replica)
        client.set("user:0", "new")
        drained(server)
        client.wait(1, 5000)
        before += 1
        wait_for(replica, queued=0)
        server.stop(kill=True)
        replica.client().replicaof("no", "one")
        server = replica
    elif way == "restart":
        server.restart(kill=True)
    else:
        client.execute_command(*way.split())
    server.client().set("user:end", "x")
    drained(server)
    assert events_of(database)[before:] == [("user:end", "set")]


def test_a_later_change_waits_behind_one_that_fails(server: Server, source: Server) -> None:
    """Where nothing is coalesced; and other keys go on."""
    database = register(server, source, f"coalesce=False, max_tries=1, batch=10, {FAST}")
    hang(database)
    client = server.client()
    client.set("user:0", "x")
    wait_until(lambda: database.client.llen("hanging") == 1)
    database.poison("user:1")
    for number in range(5):
        client.set("user:1", number)
        client.set("user:2", number)
    go_on(database)
    wait_for(server, queued=5)
    assert database.row("user:2") == "4" and database.row("user:1") is None
    database.poison()
    drained(server)
    assert [change["value"] for change in database.changes() if change["key"] == "user:1"] == ["0", "1", "2", "3", "4"]


def test_a_dead_letter_of_another_database(server: Server, source: Server) -> None:
    """The stream is one, in database 0, and says in which database the key is."""
    database = register(server, source, f"max_tries=1, dead_letter='dead', {FAST}")
    database.poison("user:1")
    third = at(server, 3)
    third.mset({"user:1": "bad", "user:2": "good"})
    wait_until(lambda: server.own.xlen("dead") == 1)
    [(_, letter)] = server.own.xrange("dead")
    assert (letter["db"], letter["key"], letter["value"]) == ("3", "user:1", "bad")
    assert third.exists("dead") == 0
    drained(server)


# Clients in other states.


def test_a_client_that_wants_no_replies(server: Server, source: Server) -> None:
    """CLIENT REPLY: what it sends is captured, and the next replies are in order."""
    database = register(server, source, f"wait=True, {FAST}")
    raw = server.raw()
    raw.send("CLIENT", "REPLY", "SKIP")
    raw.send("SET", "user:1", "a")
    assert raw.call("GET", "user:1") == b"$1\r\na\r\n"
    raw.send("CLIENT", "REPLY", "OFF")
    raw.send("SET", "user:2", "b")
    raw.send("SET", "user:3", "c")
    assert raw.call("CLIENT", "REPLY", "ON") == b"+OK\r\n"
    assert raw.call("SET", "user:4", "d") == b"+OK\r\n"
    assert database.rows() == {"user:1": "a", "user:2": "b", "user:3": "c", "user:4": "d"}


@pytest.mark.parametrize("saving", ["wait=True", "max_queue=1"])
def test_a_client_that_is_subscribed(server: Server, source: Server, saving: str) -> None:
    """Of RESP3. Valkey lets it wait for nothing: its command runs at once."""
    database = register(server, source, f"{saving}, {FAST}")
    database.fail(OUTAGE)
    client, raw = server.client(), server.raw()
    if "max_queue" in saving:
        client.set("user:full", "x")
        wait_for(server, queued=1)
    raw.call("HELLO", "3")
    raw.call("SUBSCRIBE", "news")
    raw.send("SET", "user:1", "a")
    wait_until(lambda: figures(server)["queued"] >= (2 if "max_queue" in saving else 1) or waiting(server) + waiting(server, "save") == 1)
    client.publish("news", "x")
    database.fail(0)
    assert sorted([raw.read(), raw.read()]) == [b"+OK\r\n", b">3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\nx\r\n"]
    drained(server)
    assert database.row("user:1") == "a"


def test_a_transaction_that_watches(server: Server, source: Server) -> None:
    """What is saved later touches no key; what is loaded does."""
    database = both(server, source)
    database.client.set("row:0:user:2", '{"a": "1"}')
    raw, client = server.raw(), server.client()
    client.set("user:1", "a")
    raw.call("WATCH", "user:1")
    drained(server, saver(server))
    raw.call("MULTI")
    raw.call("SET", "user:1", "b")
    assert raw.call("EXEC") == b"*1\r\n+OK\r\n"
    raw.call("WATCH", "user:2")
    assert client.hset("user:2", "b", "2") == 1
    raw.call("MULTI")
    raw.call("HSET", "user:2", "b", "3")
    assert raw.call("EXEC") in (b"*-1\r\n", b"$-1\r\n")
    drained(server, saver(server))
    assert database.row("user:2") == {"a": "1", "b": "2"}


@pytest.mark.parametrize("saving", ["", "wait=True", "coalesce=False"])
def test_a_call_is_aborted(server: Server, source: Server, saving: str) -> None:
    """RG.ABORTEXECUTION of a coroutine that saves: that is a failure, and its changes come again."""
    server.run(f"""
        import asyncio

        tries = []

        @write_behind('user:*', {saving or "wait=False"}, {FAST})
        async def save(changes):
            tries.append(len(changes))
            if len(tries) == 1:
                await asyncio.sleep(600)
            execute('RPUSH', 'saved', *[change['value'] for change in changes])
    """)
    client, raw = server.client(), server.raw()
    raw.send("SET", "user:1", "a")
    if not saving.startswith("wait"):
        assert raw.read() == b"+OK\r\n"

    def running() -> Any:
        entries = client.execute_command("RG.DUMPEXECUTIONS")
        return [dict(zip(entry[::2], entry[1::2])) if isinstance(entry, list) else entry for entry in entries]

    [execution] = wait_until(lambda: [entry for entry in running() if entry["status"] == "running"])
    client.set("other", "x")
    client.execute_command("RG.ABORTEXECUTION", execution["executionId"])
    if saving.startswith("wait"):
        assert raw.read() == b"+OK\r\n"
    drained(server)
    assert client.lrange("saved", 0, -1) == ["a"]
    assert figures(server)["saveFailures"] == 1


def test_two_queues_and_one_that_is_away(server: Server, source: Server) -> None:
    """Who waits for both waits for the slower one; who waits for room, too."""
    database = register(server, source, f"wait=True, timeout=600, {FAST}", more=f"""
    def other(changes):
        if db.exists('away'):
            raise OSError('away')
        for change in changes:
            db.set('other:' + change['key'], change['value'])

    write_behind('user:1*', other, wait=True, timeout=600, max_queue=1, {FAST})
    """)
    database.client.set("away", 1)
    raws = [server.raw() for _ in range(3)]
    raws[0].send("SET", "user:11", "a")
    raws[1].send("SET", "user:2", "b")
    assert raws[1].read() == b"+OK\r\n"
    wait_until(lambda: database.row("user:11") == "a")
    assert waiting(server, "save") == 1
    raws[2].send("SET", "user:12", "c")
    wait_until(lambda: waiting(server) == 1)
    assert server.own.exists("user:12") == 0
    database.client.delete("away")
    assert (raws[0].read(), raws[2].read()) == (b"+OK\r\n", b"+OK\r\n")
    assert database.client.get("other:user:12") == "c" and database.row("user:12") == "c"


def test_a_loader_goes_while_changes_of_parts_wait(server: Server, source: Server) -> None:
    """UNREGISTER of `read_through`: nothing partial is saved of who waited for it."""
    database = register(server, source, FAST, more="""
    def load(key):
        db.rpush('begun', key)
        db.blpop('end', 20)
        return {'a': '1'}

    read_through('user:*', load, onRegistered=connect)
    """)
    client, raws = server.client(), [server.raw() for _ in range(3)]
    for number, raw in enumerate(raws):
        raw.send("HSET", f"user:{number}", "b", "2")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 3 and database.client.llen("begun") >= 1)
    loader = next(entry for entry in server.registrations() if entry["reader"] == "ReadThrough")
    client.execute_command("RG.UNREGISTER", loader["id"])
    replies = [raw.read() for raw in raws]
    assert all(reply.startswith(b"-LOADFAILED") for reply in replies), replies
    database.client.rpush("end", *range(10))
    client.set("user:end", "x")
    drained(server)
    assert database.rows() == {"user:end": "x"}


def test_a_failover_with_a_queue(start_server: Callable[..., Server], source: Server) -> None:
    """FAILOVER: clients are paused meanwhile, and the new master saves the rest."""
    server, replica = start_server(), start_server()
    database = register(server, source, FAST)
    replica.client().replicaof(server.host, server.port)
    linked(replica)
    database.fail(OUTAGE)
    client = server.client()
    for number in range(30):
        client.set(f"user:{number}", number)
    wait_for(replica, queued=30)
    client.execute_command("FAILOVER")
    wait_until(lambda: replica.own.info("replication")["role"] == "master")
    wait_until(lambda: server.own.info("replication")["role"] == "slave")
    replica.client().set("user:0", "new")
    database.fail(0)
    drained(replica)
    wait_for(server, queued=0)
    assert database.rows() == {"user:0": "new", **{f"user:{number}": str(number) for number in range(1, 30)}}


@pytest.mark.parametrize("arguments", ["", "coalesce=False", "ordered='all'", "events=['del', 'hset']", "wait=True"])
def test_a_deletion_behind_a_field_that_expired(server: Server, source: Server, arguments: str) -> None:
    """The one has nothing to do with the other, unless the server deletes what is empty by that."""
    if not has_fields(server):
        pytest.skip(HASH_FIELDS)
    database = register(server, source, arguments)
    client = server.client()
    for way in ("DEL", "UNLINK", "MULTI"):
        client.hset("user:1", mapping={"a": 1, "b": 2})
        drained(server)
        assert database.row("user:1") == {"a": "1", "b": "2"}
        if way == "MULTI":
            with client.pipeline() as pipe:
                pipe.execute_command("HPEXPIRE", "user:1", 0, "FIELDS", 1, "a")
                pipe.delete("user:1").execute()
        else:
            client.execute_command("HPEXPIRE", "user:1", 10, "FIELDS", 1, "a")
            wait_until(lambda: client.hlen("user:1") == 1, message="the server has taken it away")
            assert client.execute_command(way, "user:1") == 1
        client.hset("user:end", "x", "y")
        drained(server)
        assert database.row("user:1") is None, way
