"""`write_behind` while servers change their roles, load, flush, swap and are paused, with calls of `save` that run and queues that are full. Contract:
docs/contract/write-behind.md 2.1, 2.5, 2.7 and 2.9.
"""

from __future__ import annotations

import contextlib
from typing import Callable

import pytest
from redis.exceptions import OutOfMemoryError

from figures import figures, wait_for
from helpers import Server, wait_until
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

AOF = ["--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes"]
OUTAGE = 1_000_000


def waiting(server: Server, what: str = "room") -> int:
    return int(server.own.info("rg_write_behind")[f"rg_write_behind_clients_waiting_for_{what}"])


def hang(database: Database) -> None:
    """The next calls of `save` wait until `go_on`."""
    database.client.delete("hanging", "go")
    database.client.set("hang", 1)


def go_on(database: Database) -> None:
    database.client.delete("hang")
    database.client.rpush("go", *range(20))


def linked(replica: Server) -> None:
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")


@pytest.mark.parametrize("command", [("DEBUG", "RELOAD"), ("DEBUG", "LOADAOF"), ("DEBUG", "RELOAD", "NOSAVE", "NOFLUSH", "MERGE")], ids=" ".join)
def test_data_are_loaded_while_the_queue_is_full(start_server: Callable[..., Server], source: Server, command: tuple[str, ...]) -> None:
    server = start_server(args=AOF)
    database = register(server, source, "max_queue=20, backoff=0.05, max_backoff=0.05, batch=3")
    database.fail(OUTAGE)
    client = server.client()
    for number in range(20):
        client.hset(f"user:{number}", mapping={"n": number})
    wait_for(server, queued=20)
    raws = [server.raw() for _ in range(6)]
    for number, raw in enumerate(raws):
        raw.send("HSET", f"user:{100 + number}", "n", "waits")
    wait_until(lambda: waiting(server) == 6)
    if "NOSAVE" in command:
        client.save()
    client.execute_command(*command)
    wait_for(server, queued=20)
    assert waiting(server) == 6
    assert client.exists("user:100") == 0
    client.hset("user:3", "n", "replaced")
    client.execute_command(*command[:2])
    database.fail(0)
    assert [raw.read() for raw in raws] == [b":1\r\n"] * 6
    drained(server)
    expected = {**{f"user:{number}": {"n": str(number)} for number in range(20)}, **{f"user:{100 + number}": {"n": "waits"} for number in range(6)}}
    assert database.rows() == {**expected, "user:3": {"n": "replaced"}}
    server.restart(kill=True)
    wait_for(server, queued=0)


@pytest.mark.parametrize("command", [("DEBUG", "RELOAD"), ("DEBUG", "LOADAOF")], ids=" ".join)
def test_data_are_loaded_while_a_call_runs(start_server: Callable[..., Server], source: Server, command: tuple[str, ...]) -> None:
    """It goes on, and the queue that is loaded has its changes as well: they come twice, and the first call may end last."""
    server = start_server(args=AOF)
    database = register(server, source, "wait=True, timeout=30, coalesce=False")
    hang(database)
    client, raws = server.client(), [server.raw() for _ in range(3)]
    raws[0].send("SET", "user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    raws[1].send("SET", "user:1", "b")
    raws[2].send("SET", "user:2", "c")
    wait_until(lambda: waiting(server, "save") == 3)
    client.execute_command(*command)
    wait_until(lambda: figures(server)["queued"] == 3)
    go_on(database)
    replies = [raw.read() for raw in raws]
    assert all(reply in (b"+OK\r\n", b"-SAVEFAILED Reloaded\r\n", b"-SAVEFAILED Unregistered\r\n") for reply in replies), replies
    drained(server)
    wait_until(lambda: database.newest() == {"user:1": "b", "user:2": "c"})
    assert raws[0].call("SET", "user:3", "d") == b"+OK\r\n"
    assert database.row("user:3") == "d"
    assert waiting(server, "save") == 0


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl", "allkeys-lfu", "volatile-lfu", "volatile-random"])
@pytest.mark.parametrize("file", ["rdb", "aof"])
def test_a_queue_is_loaded_above_the_memory_limit(start_server: Callable[..., Server], source: Server, policy: str, file: str) -> None:
    server = start_server(args=["--save", "3600 1", *(AOF if file == "aof" else AOF[4:])])
    database = register(server, source, "backoff=0.05, max_backoff=0.05, max_tries=2, dead_letter='dead'")
    database.fail(OUTAGE)
    client = server.client()
    with client.pipeline(transaction=False) as pipe:
        for number in range(200):
            pipe.set(f"user:{number}", f"{number}:" + "x" * 20_000, ex=1000 if number % 2 else None)
        pipe.execute()
    wait_for(server, queued=200)
    server.args = [*server.args, "--maxmemory-policy", policy, "--maxmemory", "6000000"]
    for command in ("RESTART", "DEBUG LOADAOF" if file == "aof" else "DEBUG RELOAD"):
        if command == "RESTART":
            client.save()
            server.restart(kill=file == "aof")
            client = server.client()
        else:
            client.execute_command(command)
        wait_for(server, queued=200)
        assert client.config_get("maxmemory") == {"maxmemory": "6000000"}
        with contextlib.suppress(OutOfMemoryError):
            client.set("other", "x")
        wait_for(server, queued=200)
    database.fail(0)
    drained(server)
    rows = database.rows()
    assert {key: len(row) for key, row in rows.items()} == {f"user:{number}": len(f"{number}:") + 20_000 for number in range(200)}
    assert all(change["event"] == "set" for change in database.changes())


def test_a_key_is_evicted_while_its_change_waits_in_a_full_queue(server: Server, source: Server) -> None:
    database = register(server, source, "max_queue=3, backoff=0.05, max_backoff=0.05")
    database.fail(OUTAGE)
    client, raw, other = server.client(), server.raw(), server.raw()
    client.mset({f"user:{number}": "x" * 10_000 for number in range(3)})
    wait_for(server, queued=3)
    raw.send("SET", "user:9", "waits")
    other.send("APPEND", "user:8", "waits")
    wait_until(lambda: waiting(server) == 2)
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", "1mb")
    wait_until(lambda: client.exists("user:0", "user:1", "user:2") == 0)
    client.config_set("maxmemory", 0)
    assert waiting(server) == 2 and figures(server)["queued"] == 3
    # What replaces it passes, and is a value of its own.
    assert client.append("user:1", "new") == 3, "it may have to wait for the call that has the old one"
    assert client.delete("user:2") == 0
    database.fail(0)
    assert (raw.read(), other.read()) == (b"+OK\r\n", b":5\r\n")
    drained(server)
    assert database.rows() == {"user:0": "x" * 10_000, "user:1": "new", "user:8": "waits", "user:9": "waits"}


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHALL ASYNC", "FLUSHDB SYNC", "SWAPDB 0 1"])
def test_keys_vanish_while_a_call_runs(server: Server, source: Server, command: str) -> None:
    database = register(server, source, "coalesce=False")
    hang(database)
    client = server.client()
    client.set("user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    client.mset({"user:1": "b", "user:2": "c"})
    client.execute_command(*command.split())
    client.set("user:2", "d")
    with client.pipeline(transaction=True) as pipe:
        pipe.set("user:3", "e").execute_command(*command.split())
        pipe.execute()
    go_on(database)
    drained(server)
    shown = [(change["db"], change["key"], change["value"]) for change in database.changes()]
    assert shown[:4] == [(0, "user:1", "a"), (0, "user:1", "b"), (0, "user:2", "c"), (0, "user:2", "d")]
    assert shown[4:] in ([(0, "user:3", "e")], [(1, "user:3", "e")], [])
    assert shown[4:] or "FLUSH" in command


def test_a_replica_is_promoted_while_its_master_saves(start_server: Callable[..., Server], source: Server) -> None:
    """And becomes a replica again, while it saves itself."""
    one = start_server()
    database = register(one, source, "coalesce=False, batch=2")
    two = start_server(args=["--replicaof", one.host, one.port])
    linked(two)
    wait_until(lambda: len(two.registrations()) == 1)
    hang(database)
    one.client().set("user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    for number in range(5):
        one.client().set(f"user:{number}", f"{number} of one")
    wait_for(two, queued=6)
    two.client().replicaof("no", "one")
    wait_until(lambda: database.client.llen("hanging") == 2)
    two.client().set("user:1", "b of two")
    one.client().replicaof(two.host, two.port)
    linked(one)
    wait_for(one, queued=figures(two)["queued"])
    # Back again: the call of two runs.
    two.client().set("user:7", "last")
    wait_for(one, queued=figures(two)["queued"])
    two.client().replicaof(one.host, one.port)
    one.client().replicaof("no", "one")
    # The oldest call first: one that is late writes over what came after it.
    database.client.rpush("go", 1)
    wait_until(lambda: len(database.calls()) == 1)
    go_on(database)
    linked(two)
    one.client().set("user:8", "of one again")
    drained(one)
    wait_for(two, queued=0)
    rows = database.rows()
    assert rows == {"user:0": "0 of one", "user:1": "b of two", "user:2": "2 of one", "user:3": "3 of one", "user:4": "4 of one",
                    "user:7": "last", "user:8": "of one again"}  # fmt: skip
    assert figures(one)["queued"] == figures(two)["queued"] == 0


def test_a_master_with_a_full_queue_follows_another_one_and_comes_back(start_server: Callable[..., Server], source: Server) -> None:
    one, other = start_server(), start_server()
    database = register(one, source, "max_queue=3, backoff=0.05, max_backoff=0.05")
    database.fail(OUTAGE)
    client, raws = one.client(), [one.raw() for _ in range(3)]
    client.mset({"user:1": "a", "user:2": "b", "user:3": "c"})
    wait_for(one, queued=3)
    for number, raw in enumerate(raws):
        raw.send("SET", f"user:1{number}", "waits")
    wait_until(lambda: waiting(one) == 3)
    client.replicaof(other.host, other.port)
    assert all(raw.read().startswith((b"-READONLY", b"-UNBLOCKED")) for raw in raws)
    linked(one)
    wait_until(lambda: one.registrations() == [], message="it has the data of the other one")
    assert waiting(one) == 0 and one.own.info("clients")["blocked_clients"] == 0
    client.replicaof("no", "one")
    # A call of `save` that was under way may still have its changes.
    one.wait_idle()
    database.fail(0)
    assert one.registrations() == []
    client.set("user:1", "x")
    register(one, source)
    client.set("user:2", "y")
    drained(one)
    assert database.rows() == {"user:2": "y"}


@pytest.mark.parametrize("way", ["nobody there", "it comes back at once"])
def test_a_master_that_finds_no_master_goes_on(start_server: Callable[..., Server], source: Server, way: str) -> None:
    server = start_server()
    database = register(server, source, "wait=True, timeout=20, max_queue=2, coalesce=False")
    hang(database)
    client, raws = server.client(), [server.raw() for _ in range(3)]
    raws[0].send("SET", "user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    raws[1].send("SET", "user:2", "b")
    wait_until(lambda: waiting(server, "save") == 2)
    raws[2].send("SET", "user:3", "c")
    wait_until(lambda: waiting(server) == 1)
    with client.pipeline(transaction=False) as pipe:
        pipe.replicaof("127.0.0.1", "1")
        if way == "it comes back at once":
            pipe.replicaof("no", "one")
        pipe.execute()
    replies = [raw.read() for raw in raws]
    assert all(reply.startswith((b"-SAVEFAILED RoleChanged", b"-UNBLOCKED")) for reply in replies[:2]), replies
    if way == "nobody there":
        assert replies[2].startswith((b"-READONLY", b"-UNBLOCKED")), replies
        client.replicaof("no", "one")
    go_on(database)
    drained(server)
    rows = database.rows()
    assert (rows["user:1"], rows["user:2"]) == ("a", "b")
    assert rows.get("user:3") == client.get("user:3")
    # The server closes connections that it has unblocked.
    assert server.raw().call("SET", "user:4", "d") == b"+OK\r\n" and database.row("user:4") == "d"


def test_letters_are_written_in_the_turn_of_a_promotion(start_server: Callable[..., Server], source: Server) -> None:
    """A change that is given up while the server becomes a replica, or a master, is in the queue or in the stream."""
    one = start_server()
    database = register(one, source, "max_tries=1, dead_letter='dead', backoff=0.001, max_backoff=0.002, batch=1")
    two = start_server(args=["--replicaof", one.host, one.port])
    linked(two)
    wait_until(lambda: len(two.registrations()) == 1)
    masters = [one, two]
    for number in range(6):
        master, replica = masters
        database.poison(f"user:bad:{number}")
        client = master.client()
        with client.pipeline(transaction=False) as pipe:
            pipe.set(f"user:bad:{number}", number)
            for good in range(number):
                pipe.set(f"user:good:{number}:{good}", good)
            pipe.execute()
        client.execute_command("WAIT", 1, 2000)
        replica.client().replicaof("no", "one")
        master.client().replicaof(replica.host, replica.port)
        linked(master)
        masters.reverse()
    master = masters[0]
    database.poison()
    drained(master)
    rows = database.rows()
    dead = {fields["key"] for _, fields in master.own.xrange("dead")}
    assert {f"user:bad:{number}" for number in range(6)} <= dead | set(rows)
    assert {f"user:good:{number}:{good}" for number in range(6) for good in range(number)} <= set(rows)


def test_the_server_is_paused(server: Server, source: Server) -> None:
    """Nothing is called and nobody let in while writes are paused; deadlines hold."""
    database = register(server, source, "max_queue=2, backoff=0.02, max_backoff=0.02")
    database.fail(OUTAGE)
    client, raw = server.client(), server.raw()
    client.mset({"user:1": "a", "user:2": "b"})
    wait_for(server, queued=2)
    raw.send("SET", "user:3", "waits")
    wait_until(lambda: waiting(server) == 1)
    client.execute_command("CLIENT", "PAUSE", 100_000, "WRITE")
    database.fail(0)
    wait_until(lambda: client.exists("user:1"))
    other = server.raw()
    other.send("SET", "user:4", "paused")
    wait_until(lambda: client.info("clients")["blocked_clients"] >= 2)
    client.execute_command("CLIENT", "UNPAUSE")
    assert raw.read() in (b"+OK\r\n",) and other.read() == b"+OK\r\n"
    drained(server)
    assert database.rows() == {"user:1": "a", "user:2": "b", "user:3": "waits", "user:4": "paused"}


def test_wait_and_waitaof(start_server: Callable[..., Server], source: Server) -> None:
    """A client that has WAITed knows that replicas, or the file, have the change as well."""
    server = start_server(args=AOF)
    database = register(server, source)
    replica = start_server(args=["--replicaof", server.host, server.port])
    linked(replica)
    wait_until(lambda: len(replica.registrations()) == 1)
    database.fail(OUTAGE)
    client = server.client()
    for number in range(20):
        client.set(f"user:{number}", number)
        assert client.execute_command("WAIT", 1, 5000) == 1
        assert figures(replica)["queued"] == number + 1
    if server.version >= (7, 2):
        client.set("user:last", "x")
        assert client.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
    else:
        client.set("user:last", "x")
    server.restart(kill=True)
    wait_for(server, queued=21)
    # Behind a script and a transaction, too.
    linked(replica)
    client = server.client()
    with client.pipeline(transaction=True) as pipe:
        pipe.set("user:t", 1).hset("user:h", "f", "v").execute()
    assert client.execute_command("WAIT", 1, 5000) == 1
    assert figures(replica)["queued"] == 23
    database.fail(0)
    drained(server)


def test_write_through_and_wait_in_one_pipeline(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=AOF)
    database = register(server, source, "wait=True")
    replica = start_server(args=["--replicaof", server.host, server.port])
    linked(replica)
    wait_until(lambda: len(replica.registrations()) == 1)
    raw = server.raw()
    raw.send_bytes(b"SET user:1 a\r\nWAIT 1 5000\r\nSET user:2 b\r\nCLIENT NO-EVICT on\r\nGET user:2\r\n")
    assert [raw.read() for _ in range(5)] == [b"+OK\r\n", b":1\r\n", b"+OK\r\n", b"+OK\r\n", b"$1\r\nb\r\n"]
    assert database.rows() == {"user:1": "a", "user:2": "b"}
    wait_for(replica, queued=0)


@pytest.mark.parametrize("copy", [False, True], ids=["moved", "copied"])
def test_keys_that_migrate_to_another_server(start_server: Callable[..., Server], source: Server, copy: bool) -> None:
    """MIGRATE without a cluster: who moves a key away does not delete it, and who gets it has a change."""
    one, two = start_server(), start_server()
    client = one.client()
    database = register(one, source)
    register(two, source)
    client.set("user:1", "a")
    client.hset("user:2", "f", "v")
    drained(one)
    database.fail(OUTAGE)
    client.set("user:1", "b")
    wait_for(one, queued=1)
    captured = figures(one)["captured"]
    assert client.execute_command("MIGRATE", two.host, two.port, "", 0, 5000, *(["COPY"] if copy else []), "REPLACE", "KEYS", "user:1", "user:2") == "OK"
    assert figures(one)["captured"] == captured, "moving is no change"
    assert client.exists("user:1", "user:2") == 2 * copy
    wait_for(two, queued=2)
    database.fail(0)
    drained(one)
    drained(two)
    assert database.rows() == {"user:1": "b", "user:2": {"f": "v"}}
