"""`read_through` in a cluster: each shard loads its own keys; who waits for a key whose slot moves away is told where.
Contract: docs/contract/read-through.md 3.4.
"""

from __future__ import annotations

from typing import Callable

import pytest
import redis
from redis.crc import key_slot

from clusters import Cluster, make_cluster, node_id
from figures import figures, wait_for
from helpers import HOST, Server, wait_until
from read_through import Source, at_rest, register


def test_each_shard_loads_its_own_keys(cluster: Cluster) -> None:
    cluster[0].run("read_through('k:*', lambda key: 'v of ' + key, ttl=60)")
    wait_until(lambda: all(len(server.registrations()) == 1 for server in cluster.masters))
    client = cluster.client()
    keys = [f"k:{number}" for number in range(60)]
    assert [client.get(key) for key in keys] == ["v of " + key for key in keys]
    misses = [figures(server)["misses"] for server in cluster.masters]
    assert sum(misses) == 60 and min(misses) > 0
    assert [client.execute_command("RG.REFRESH", key) for key in keys[:5]] == [1] * 5
    assert cluster.shard_of(keys[0]).client().exists(keys[0])


def test_an_equal_prefix_is_refused_on_all_shards(cluster: Cluster) -> None:
    cluster[0].run("read_through('k:*', lambda key: 'v')")
    wait_until(lambda: all(len(server.registrations()) == 1 for server in cluster.masters))
    with pytest.raises(redis.ResponseError, match="has no loader yet"):
        cluster[1].run("read_through('k:*', lambda key: 'w')")


def waiting(cluster: Cluster, source: Server, key: str) -> tuple[Server, Source, list]:
    """Clients that wait for a key on its shard, whose load has begun."""
    owner = cluster.shard_of(key)
    origin = register(owner, source)
    raws = [owner.raw() for _ in range(5)]
    for raw in raws:
        raw.send("GET", key)
    wait_for(owner, waiting=5)
    origin.wait_for_loads(1)
    return owner, origin, raws


def test_who_waits_for_a_slot_that_moves_away_is_told_where(start_server: Callable[..., Server], source: Server) -> None:
    cluster = make_cluster(start_server)
    key = "user:1"
    owner, origin, raws = waiting(cluster, source, key)
    other = next(server for server in cluster.masters if server is not owner)
    slot = key_slot(key.encode())
    for server in (other, owner):
        server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", node_id(other))
    origin.give(key, "v")
    moved = f"-MOVED {slot} {HOST}:{other.port}\r\n".encode()
    assert {raw.read() for raw in raws} == {moved}
    assert not owner.client().execute_command("CLUSTER", "COUNTKEYSINSLOT", slot), "nothing is stored here"
    at_rest(owner)


def test_who_waits_for_a_slot_on_its_way_is_to_try_again(start_server: Callable[..., Server], source: Server) -> None:
    cluster = make_cluster(start_server)
    key = "user:1"
    owner, origin, raws = waiting(cluster, source, key)
    other = next(server for server in cluster.masters if server is not owner)
    slot = key_slot(key.encode())
    other.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(owner))
    owner.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(other))
    origin.give(key, "v")
    assert {raw.read()[:10] for raw in raws} == {b"-TRYAGAIN "}
    assert not owner.client().execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)
    at_rest(owner)


def test_a_shard_that_lacks_a_command_serves_its_keys_all_the_same(start_server: Callable[..., Server], source: Server) -> None:
    """The question where a missing key is served is answered by PERSIST, which may have another name here."""
    server = start_server(args=["--cluster-enabled", "yes", "--rename-command", "PERSIST", ""])
    server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    wait_until(lambda: "cluster_state:ok" in str(server.raw().call("CLUSTER", "INFO")))
    origin = register(server, source, "ttl=60")
    origin.give("user:1", "v")
    assert server.client().get("user:1") == "v"
    assert server.client().exists("user:1") == 1
    origin.give("user:2", "-")
    assert server.client().get("user:2") is None


@pytest.mark.matrix
def test_who_waits_while_the_cluster_goes_down_hears_so(start_server: Callable[..., Server], source: Server) -> None:
    """In the words by which clients know that they may try again. Nothing was lost: the load is kept."""
    cluster = make_cluster(start_server)
    key = "user:1"
    owner, origin, raws = waiting(cluster, source, key)
    caller = owner.raw()
    for server in cluster.masters:
        if server is not owner:
            server.stop(kill=True)
    wait_until(lambda: owner.own.execute_command("CLUSTER INFO")["cluster_state"] == "fail", 20)
    origin.give(key, "v")
    assert {raw.read()[:13] for raw in raws} == {b"-CLUSTERDOWN "}
    assert caller.call("GET", key)[:13] == b"-CLUSTERDOWN "
    at_rest(owner)


@pytest.mark.matrix
def test_what_functions_hear_while_the_cluster_is_down(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server)
    key = "user:1"
    owner = cluster.shard_of(key)
    owner.run(f"""
        def ask():
            try:
                return execute('GET', {key!r})
            except redisgears.GearsError as error:
                log('said: ' + str(error))
        import threading, time
        def again():
            while True:
                ask()
                time.sleep(0.05)
        threading.Thread(target=again, daemon=True).start()
        """)
    for server in cluster.masters:
        if server is not owner:
            server.stop(kill=True)
    wait_until(lambda: "said: CLUSTERDOWN The cluster is down" in owner.log(), 20)
