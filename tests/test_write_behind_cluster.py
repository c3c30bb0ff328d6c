"""`write_behind` in a cluster: each shard saves its own changes, also of a slot that moved; dead letters stay on their shard. Contract:
docs/contract/write-behind.md 2.3 and 2.8.
"""

from __future__ import annotations

from typing import Callable

import pytest
from redis.crc import key_slot
from redis.exceptions import ResponseError

from clusters import Cluster, make_cluster, move_slot
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
