"""`write_behind` in a cluster: each shard saves its own changes, also of a slot that moved; dead letters stay on their shard. Contract:
docs/contract/write-behind.md 2.3 and 2.8.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from typing import Callable

import pytest
import redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from clusters import Cluster, make_cluster, move_slot, node_id
from figures import figures
from helpers import Server, as_dict, wait_until
from write_behind import Database, drained, register


def everywhere(cluster: Cluster) -> None:
    wait_until(lambda: all(len(server.registrations()) == 1 for server in cluster.masters))


def all_drained(cluster: Cluster) -> None:
    for server in cluster.masters:
        drained(server)


def session_of(server: Server) -> str:
    [session] = server.client().execute_command("RG.PYDUMPSESSIONS")
    return as_dict(session)["ID"]


def test_each_shard_saves_its_own(cluster: Cluster, source: Server) -> None:
    database = register(cluster[0], source, "max_tries=2, dead_letter='dead', backoff=0.01")
    everywhere(cluster)
    database.poison("user:7")
    client = cluster.client()
    for number in range(60):
        client.set(f"user:{number}", number)
    all_drained(cluster)
    assert database.rows() == {f"user:{number}": str(number) for number in range(60) if number != 7}
    owner = cluster.shard_of("user:7").client()
    (stream,) = owner.keys("dead{*}")
    assert owner.xrange(stream)[0][1]["key"] == "user:7"


def test_others_save_what_they_have_before_it_ends_there(cluster: Cluster, source: Server) -> None:
    database = register(cluster[0], source)
    everywhere(cluster)
    database.fail(1_000_000)
    key = next(f"user:{number}" for number in range(1000) if cluster.shard_of(f"user:{number}") is cluster[1])
    cluster[1].client().set(key, "x")
    wait_until(lambda: figures(cluster[1])["queued"] == 1)
    # In a transaction it cannot wait for the other shards.
    with cluster[0].client().pipeline(transaction=True) as transaction:
        transaction.execute_command("RG.UNREGISTER", cluster[0].registrations()[0]["id"])
        assert transaction.execute() == ["OK"]
    wait_until(lambda: not cluster[2].registrations())
    cluster[1].client().set(key, "not captured any more")
    assert figures(cluster[1])["queued"] == 1
    database.fail(0)
    wait_until(lambda: not cluster[1].registrations(), timeout=20)
    assert database.rows() == {key: "x"}


def test_it_does_not_end_while_any_shard_has_something(cluster: Cluster, source: Server) -> None:
    database = register(cluster[0], source)
    everywhere(cluster)
    database.fail(1_000_000)
    key = next(f"user:{number}" for number in range(1000) if cluster.shard_of(f"user:{number}") is cluster[1])
    cluster[1].client().set(key, "x")
    wait_until(lambda: figures(cluster[1])["queued"] == 1)
    (registration,) = cluster[0].registrations()
    client = cluster[0].client()
    for command in (["RG.UNREGISTER", registration["id"]], ["RG.UNREGISTERSESSION", session_of(cluster[0])]):
        with pytest.raises(ResponseError, match=r"1 changes of 'user:\*' are not saved yet"):
            client.execute_command(*command)
    assert all(server.registrations() for server in cluster.masters)
    database.fail(0)
    all_drained(cluster)
    assert client.execute_command("RG.UNREGISTERSESSION", session_of(cluster[0])) == 1
    wait_until(lambda: not any(server.registrations() for server in cluster.masters))
    assert database.rows() == {key: "x"}


def test_slots_that_move(start_server: Callable[..., Server], source: Server) -> None:
    cluster = make_cluster(start_server)
    database: Database = register(cluster[0], source, "coalesce=False")
    everywhere(cluster)
    client = cluster.client()
    keys = [f"user:{number}" for number in range(40)]
    for key in keys:
        client.set(key, "before")
    all_drained(cluster)
    moved = [key for key in keys if cluster.shard_of(key) is cluster[0]][:5]
    assert moved
    database.fail(1_000_000)
    for key in moved:
        client.set(key, "not saved yet")
    wait_until(lambda: figures(cluster[0])["queued"] == len(moved))
    captured = [figures(server)["captured"] for server in cluster.masters]
    for key in moved:
        move_slot(cluster.masters, cluster[0], cluster[1], key_slot(key.encode()))
    assert [figures(server)["captured"] for server in cluster.masters] == captured, "moving is no change"
    for key in moved:
        assert cluster[1].client().get(key) == "not saved yet"
    cluster[1].client().append(moved[0], " and moved")
    database.fail(0)
    all_drained(cluster)
    rows = database.rows()
    assert {key: rows[key] for key in moved[1:]} == dict.fromkeys(moved[1:], "not saved yet")
    ids = {change["value"]: tuple(map(int, change["id"].split("-"))) for change in database.changes() if change["key"] == moved[0]}
    assert ids["not saved yet and moved"] > ids["not saved yet"], "a recipe that compares ids keeps the newer one"
    assert all(change["type"] for change in database.changes()), "nothing was deleted"


ROW = {"name": "Ann", "city": "0"}
HALVES = """
    def load(key):
        text = db.get('row:0:' + key)
        return None if text is None else json.loads(text)

    read_through('user:*', load, onRegistered=connect, ttl={ttl})
"""


def halves(cluster: Cluster, source: Server, ttl: float = 1000, saving: str = "") -> Database:
    database = register(cluster[0], source, saving, more=HALVES.format(ttl=ttl))
    wait_until(lambda: all(len(server.registrations()) == 2 for server in cluster.masters))
    return database


def half_way(source: Server, target: Server, key: str) -> None:
    """The key's slot is on its way from one shard to the other."""
    slot = key_slot(key.encode())
    target.own.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(source))
    source.own.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(target))


def test_no_part_is_saved_of_a_key_whose_slot_is_on_its_way(start_server: Callable[..., Server], source: Server) -> None:
    cluster = make_cluster(start_server)
    database = halves(cluster, source)
    keys = [f"user:{number}" for number in range(60) if cluster.shard_of(f"user:{number}") is cluster[0]][:6]
    for key in keys:
        database.client.set(f"row:0:{key}", json.dumps(ROW))
        half_way(cluster[0], cluster[1], key)
    old, new = cluster[0].raw(), cluster[1].raw()
    script = ("EVAL", "return redis.call('HSET', KEYS[1], 'city', '1')", 1)

    def asking(*words: str | int) -> bytes:
        assert new.call("ASKING") == b"+OK\r\n"
        return new.call(*words)

    # A key that is nowhere is the new shard's affair.
    assert old.call("HSET", keys[0], "city", "1").startswith(b"-ASK")
    assert old.call(*script, keys[0]).startswith(b"-ASK")
    assert new.call("HSET", keys[0], "city", "1").startswith(b"-MOVED")
    assert asking(*script, keys[0]).startswith(b"-LOADFAILED CannotWait")
    assert asking("HSET", keys[0], "city", "1").startswith(b"-TRYAGAIN"), "no client is sent to and fro"
    assert asking("HGET", keys[0], "city").startswith(b"-TRYAGAIN")
    # One that is still there, and one that has come over with its change not saved.
    database.fail(1_000_000)
    assert old.call("HGET", keys[2], "city").startswith((b"-ASK", b"$1"))
    cluster[1].own.execute_command("CLUSTER", "SETSLOT", key_slot(keys[2].encode()), "STABLE")
    cluster[0].own.execute_command("CLUSTER", "SETSLOT", key_slot(keys[2].encode()), "STABLE")
    assert old.call("HSET", keys[2], "city", "2") == b":0\r\n"
    half_way(cluster[0], cluster[1], keys[2])
    assert old.call("HSET", keys[2], "city", "3") == b":0\r\n"
    cluster[0].own.execute_command("MIGRATE", cluster[1].host, cluster[1].port, keys[2], 0, 5000)
    assert old.call("HSET", keys[2], "city", "4").startswith(b"-ASK")
    assert asking("HSET", keys[2], "city", "4") == b":0\r\n"
    assert asking(*script, keys[2]) == b":0\r\n"
    database.fail(0)
    all_saved(cluster)
    assert {row["name"] for row in database.rows().values()} == {"Ann"}, "no part was saved over a row"
    # Both shards save what they have.
    assert database.newest()[keys[2]]["city"] == "1"


def all_saved(cluster: Cluster) -> None:
    for server in cluster.masters:
        wait_until(lambda: server.own.info("rg_write_behind")["rg_write_behind_queued"] == 0, message="all is saved")


def test_no_part_is_saved_while_slots_move_under_load(start_server: Callable[..., Server], source: Server) -> None:
    """Rows of which the cache forgets each after a moment; clients, scripts and transactions change one field."""
    cluster = make_cluster(start_server)
    database = halves(cluster, source, ttl=0.05, saving="batch=7, backoff=0.01")
    keys = [f"user:{number}" for number in range(24)]
    for key in keys:
        database.client.set(f"row:0:{key}", json.dumps(ROW))
    said: dict[str, int] = {}
    acknowledged: dict[str, int] = {}
    attempted: dict[str, int] = {}
    done = threading.Event()

    def write(mine: list[str]) -> None:
        client = cluster.client()
        for number in itertools.count(1):
            for key in mine:
                if done.is_set():
                    return
                attempted[key] = number
                try:
                    if number % 2:
                        client.hset(key, "city", number)
                    else:
                        client.eval("return redis.call('HSET', KEYS[1], 'city', ARGV[1])", 1, key, number)
                    acknowledged[key] = number
                except redis.exceptions.RedisError as error:
                    kind = " ".join(str(error).split()[:2])
                    said[kind] = said.get(kind, 0) + 1

    threads = [threading.Thread(target=write, args=(keys[place::3],), daemon=True) for place in range(3)]
    for thread in threads:
        thread.start()
    places = {key: cluster.masters.index(cluster.shard_of(key)) for key in keys}
    for step in range(2):
        for key in keys[:8]:
            origin, to = places[key], (places[key] + 1 + step) % 3
            move_slot(cluster.masters, cluster[origin], cluster[to], key_slot(key.encode()))
            places[key] = to
    wait_until(lambda: len(acknowledged) == len(keys), message=f"all were written: {said}")
    done.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    all_saved(cluster)
    rows = database.rows()
    assert {key: row for key, row in rows.items() if row.get("name") != "Ann"} == {}, said
    # The shard that has lost a slot may save its old changes behind newer ones of the other: who looks at ids keeps the newest.
    newest = database.newest()
    late = {key: (row["city"], acknowledged[key], attempted[key]) for key, row in newest.items() if not acknowledged[key] <= int(row["city"]) <= attempted[key]}
    assert late == {}, said


def test_a_slot_moves_away_from_who_waits_for_room(start_server: Callable[..., Server], source: Server) -> None:
    cluster = make_cluster(start_server)
    database = register(cluster[0], source, "max_queue=1, coalesce=False, backoff=0.05, max_backoff=0.05")
    everywhere(cluster)
    first, moving = [f"user:{number}" for number in range(60) if cluster.shard_of(f"user:{number}") is cluster[0]][:2]
    database.fail(1_000_000)
    cluster[0].own.set(first, "fills it")
    wait_until(lambda: figures(cluster[0])["queued"] == 1)
    raw = cluster[0].raw()
    raw.send("SET", moving, "waits")
    wait_until(lambda: cluster[0].own.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 1)
    move_slot(cluster.masters, cluster[0], cluster[1], key_slot(moving.encode()))
    database.fail(0)
    assert raw.read() == f"-MOVED {key_slot(moving.encode())} {cluster[1].host}:{cluster[1].port}\r\n".encode()
    all_drained(cluster)
    assert database.rows() == {first: "fills it"}
    assert cluster[1].own.get(moving) is None


def test_slots_do_not_move_at_once(start_server: Callable[..., Server]) -> None:
    """Valkey 9 moves whole slots (CLUSTER MIGRATESLOTS) only where all modules say that they are ready for that: we are not, see docs/cluster.md."""
    cluster = make_cluster(start_server)
    if not cluster[0].is_valkey or cluster[0].version < (9, 0):
        pytest.skip("slots move key by key on this server")
    with pytest.raises(ResponseError, match="module rg does not support atomic slot migrations"):
        cluster[0].own.execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", 0, 0, "NODE", node_id(cluster[1]))


def test_it_does_not_end_while_a_shard_does_not_answer(start_server: Callable[..., Server], source: Server) -> None:
    """The client hears of that from us, or from the server, which tells that the cluster is down; what the shard says later refuses as well."""
    cluster = make_cluster(start_server)
    database = register(cluster[0], source)
    everywhere(cluster)
    database.fail(1_000_000)
    key = next(f"user:{number}" for number in range(1000) if cluster.shard_of(f"user:{number}") is cluster[1])
    cluster[1].client().set(key, "x")
    wait_until(lambda: figures(cluster[1])["queued"] == 1)
    words = ("RG.UNREGISTER", cluster[0].registrations()[0]["id"])
    os.kill(cluster[1].process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(ResponseError, match="Execution max idle reached|The cluster is down"):
            cluster[0].client().execute_command(*words)
        assert cluster[0].registrations() and cluster[2].registrations()
    finally:
        os.kill(cluster[1].process.pid, signal.SIGCONT)
    # The next question stands behind the first one.
    wait_until(lambda: "are not saved yet" in said(cluster[0], *words), 30, "the shard answers again")
    assert all(len(server.registrations()) == 1 for server in cluster.masters)
    database.fail(0)
    all_drained(cluster)
    assert database.rows() == {key: "x"}


def said(server: Server, *words: str) -> str:
    try:
        return str(server.client().execute_command(*words))
    except ResponseError as error:
        return str(error)
