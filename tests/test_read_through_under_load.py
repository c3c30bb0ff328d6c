"""`read_through` while clients read all the time and servers change under them: failover, resharding, a server that is killed.
Whoever gets a reply gets the right one. Contract: docs/contract/read-through.md 3.4.
"""

from __future__ import annotations

import threading
from typing import Callable

import pytest
import redis
from redis.crc import key_slot

from chaos import owner_of
from clusters import Cluster, fail_over, make_cluster, move_slot, node_id
from figures import figures, wait_for
from helpers import RawClient, Server, wait_until
from read_through import at_rest, register

LOADER = """
import asyncio

@read_through('k:*', ttl=60, timeout=30)  # a failover that finds no votes pauses clients for ten seconds
async def load(key):
    await asyncio.sleep(0.002)
    return 'v of ' + key
"""
KEYS = [f"k:{number}" for number in range(40)]

# What a client hears whose server goes away or changes its part; everything else is a fault of ours.
PASSING = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.ClusterError, redis.exceptions.RedisClusterException)


class Readers:
    """Threads that read cold and warm keys until the end."""

    def __init__(self, cluster: Cluster, count: int = 6) -> None:
        self.good = 0
        self.wrong: list[object] = []
        self.passing: list[str] = []
        self._end = threading.Event()
        self._cluster = cluster
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(count)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Waits for so many right replies more."""
        wanted = self.good + count
        wait_until(lambda: self.wrong or self.good >= wanted, 60, f"{count} replies; {self.passing[-3:]}")
        assert not self.wrong

    def _work(self, number: int) -> None:
        client = self._cluster.client(socket_timeout=10)
        while not self._end.is_set():
            number += 1
            key = KEYS[number % len(KEYS)]
            try:
                if number % 3 == 0:
                    client.delete(key)
                reply = client.get(key)
            except PASSING as error:
                self.passing.append(str(error))
            except redis.ResponseError as error:
                expected = str(error).startswith(("UNBLOCKED", "READONLY", "LOADING"))
                (self.passing if expected else self.wrong).append(str(error))
            else:
                if reply == "v of " + key:
                    self.good += 1
                else:
                    self.wrong.append((key, reply))
        client.close()


def test_failover_under_load(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server, 3, 1)
    cluster[0].run(LOADER)
    wait_until(lambda: all(len(server.registrations()) == 1 for server in cluster.nodes), 20)
    old, new = cluster.masters[0], cluster.replicas[0]
    with Readers(cluster) as readers:
        readers.wait_for(300)
        fail_over(new)
        readers.wait_for(300)
        assert figures(new)["loads"] > 0, "it loads as soon as it is a master"
        wait_until(lambda: old.own.info("replication").get("master_link_status") == "up", 20)
        fail_over(old)
        readers.wait_for(300)
    assert not readers.wrong
    for server in cluster.nodes:
        at_rest(server)


def test_a_master_that_is_killed_under_load(start_server: Callable[..., Server]) -> None:
    """Its replica takes over by itself, and loads."""
    cluster = make_cluster(start_server, 3, 1)
    cluster[0].run(LOADER)
    wait_until(lambda: all(len(server.registrations()) == 1 for server in cluster.nodes), 20)
    with Readers(cluster) as readers:
        readers.wait_for(300)
        cluster[0].stop(kill=True)
        wait_until(lambda: cluster.replicas[0].own.execute_command("ROLE")[0] == "master", 30)
        before = figures(cluster.replicas[0])["loads"]
        wait_until(lambda: readers.wrong or figures(cluster.replicas[0])["loads"] > before + 50, 30)
        readers.wait_for(300)
    assert not readers.wrong
    for server in (*cluster.masters[1:], *cluster.replicas):
        at_rest(server)


def test_resharding_under_load(start_server: Callable[..., Server]) -> None:
    cluster = make_cluster(start_server)
    cluster[0].run(LOADER)
    wait_until(lambda: all(len(server.registrations()) == 1 for server in cluster.masters), 20)
    slots = {key: key_slot(key.encode()) for key in KEYS}
    owners = {key: cluster.shard_of(key) for key in KEYS}
    with Readers(cluster) as readers:
        readers.wait_for(200)
        for turn in range(2):
            for key in KEYS[:15]:
                place = (cluster.masters.index(owners[key]) + 1) % 3
                move_slot(cluster.masters, owners[key], cluster[place], slots[key])
                owners[key] = cluster[place]
            readers.wait_for(200)
    assert not readers.wrong
    for key in KEYS:
        seen = lambda: {owner_of(server, slots[key]) for server in cluster.masters}  # noqa: B023, E731
        wait_until(lambda: seen() == {node_id(owners[key])}, 20, f"all shards see one owner of {key}")
    client = cluster.client()
    assert [client.get(key) for key in KEYS] == ["v of " + key for key in KEYS]
    for server in cluster.masters:
        at_rest(server)
        for key in KEYS:
            held = server.client().execute_command("CLUSTER", "GETKEYSINSLOT", slots[key], 10)
            assert server is owners[key] or key not in held, "no shard keeps what belongs to another one"


@pytest.mark.matrix
def test_a_server_that_is_killed_while_it_loads(start_server: Callable[..., Server], source: Server) -> None:
    """Those who wait lose their connection; started again, it has its values and its registration, and loads."""
    server = start_server(args=["--appendonly", "yes", "--appendfsync", "always"])
    origin = register(server, source, "ttl=60, stale=60")
    raws = [RawClient(server.host, server.port) for _ in range(10)]  # of their own: stopping closes those of the server
    origin.give("user:0", "kept")
    assert server.client().get("user:0") == "kept"
    for raw in raws:
        raw.send("GET", "user:1")
    wait_for(server, waiting=10)
    origin.wait_for_loads(2)
    server.stop(kill=True)
    for raw in raws:
        with pytest.raises((ConnectionError, OSError)):
            raw.read()
        raw.close()
    server.start()
    assert len(server.registrations()) == 1
    assert server.client().get("user:0") == "kept" and 60 < server.client().ttl("user:0") <= 120
    raws = [server.raw() for _ in range(10)]
    for raw in raws:
        raw.send("GET", "user:1")
    wait_for(server, waiting=10)
    origin.give("user:1", "after the restart")  # the load that died may have taken an answer, or not
    origin.give("user:1", "after the restart")
    assert {raw.read() for raw in raws} == {b"$17\r\nafter the restart\r\n"}
    at_rest(server)
