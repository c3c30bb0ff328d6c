"""A Redis Cluster of real servers for tests: `make_cluster` puts it together in a second or two.

Masters share the slots evenly, as `redis-cli --cluster create` does it; replica `n` follows master `n`.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, Mapping, Sequence

import redis
from redis.crc import key_slot

from clock import Clock
from helpers import PATIENCE, Arg, Server, as_dict, free_port, wait_until
from proxy import Proxy

SLOTS = 16384
NODE_TIMEOUT_MS = 2000


class Cluster:
    """Masters and replicas that know each other, with links between the module's shards."""

    def __init__(self, masters: Sequence[Server], replicas: Sequence[Server]) -> None:
        self.masters = list(masters)
        self.replicas = list(replicas)

    @property
    def nodes(self) -> list[Server]:
        return [*self.masters, *self.replicas]

    def __getitem__(self, number: int) -> Server:
        return self.masters[number]

    def client(self, **options: Any) -> redis.RedisCluster:
        """A client that finds the shard of each key."""
        first = self.masters[0]
        return redis.RedisCluster(host=first.host, port=first.port, **{"decode_responses": True, "socket_timeout": 60 * PATIENCE, **options})

    def shard_of(self, key: str) -> Server:
        """The master that owns a key."""
        slot = key_slot(key.encode())
        count = len(self.masters)
        return next(
            server for number, server in enumerate(self.masters) if slot < round((number + 1) * SLOTS / count)
        )

    def fill(self, pairs: dict[str, Any]) -> None:
        """Stores strings, each on its shard."""
        pipelines = {server.port: server.client().pipeline(transaction=False) for server in self.masters}
        for key, value in pairs.items():
            pipelines[self.shard_of(key).port].set(key, value)
        for pipeline in pipelines.values():
            pipeline.execute()

    def clear(self) -> None:
        """Ends and forgets whatever a test has left."""
        for server in self.masters:
            for entry in server.registrations():
                tried(server, "RG.UNREGISTER", entry["id"], "ABORTPENDING")
            wait_until(lambda: not server.registrations())
        for server in self.masters:
            for entry in map(as_dict, server.own.execute_command("RG.DUMPEXECUTIONS")):
                tried(server, "RG.ABORTEXECUTION", entry["executionId"])
                tried(server, "RG.DROPEXECUTION", entry["executionId"])
            server.own.flushall()

    def wait_linked(self) -> None:
        """Waits until the cluster is up and all shards talk to each other."""
        for server in self.masters:
            wait_until(lambda: server.own.execute_command("CLUSTER INFO")["cluster_state"] == "ok", 20)
            wait_until(lambda: is_linked(server, len(self.masters)), 20, "all shards are linked")


def tried(server: Server, *words: str) -> None:
    """A command that another shard may have made needless."""
    with contextlib.suppress(redis.ResponseError):
        server.own.execute_command(*words)


def node_id(server: Server) -> str:
    """The id of a node."""
    return str(server.own.execute_command("CLUSTER", "MYID"))


def info_cluster(server: Server) -> dict[str, dict[str, Any]]:
    """The shards that RG.INFOCLUSTER shows, by id; empty while there is no cluster."""
    reply = server.own.execute_command("RG.INFOCLUSTER")
    if reply == "no cluster mode":
        return {}
    return {shard["id"]: shard for shard in map(as_dict, reply[4])}


def is_linked(server: Server, count: int) -> bool:
    """Whether a server knows `count` shards and all of them have answered."""
    shards = info_cluster(server)
    figures = server.own.info("rg_cluster")
    return (
        len(shards) == count
        and all(shard["runid"] for shard in shards.values())
        and figures["rg_links_connected"] == count - 1
    )


def fail_over(replica: Server) -> bool:
    """Lets a replica take the place of its master, and returns as soon as it says that it has."""
    client, deadline = replica.own, time.monotonic() + 40
    while time.monotonic() < deadline:
        # A master that does not know yet that this is its replica lets the request time out.
        tried(replica, "CLUSTER", "FAILOVER")
        with contextlib.suppress(AssertionError):
            return wait_until(lambda: client.execute_command("ROLE")[0] == "master", 6, "the replica is a master", 0.003)
    raise AssertionError("the replica did not become a master")


def move_slot(masters: Sequence[Server], source: Server, target: Server, slot: int) -> None:
    """Moves a slot with its keys, as `redis-cli --cluster reshard` does.

    Waits first until the masters agree on their epochs: the target of a slot takes the next epoch after those that it has heard of, and
    loses the slot again if the old owner has a later one, which happens to whoever moves slots in quick succession.
    """
    wait_until(lambda: len({_epochs(server) for server in masters}) == 1, 20, "the masters agree on their epochs")
    origin, to = node_id(source), node_id(target)
    target.own.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", origin)
    source.own.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", to)
    for key in source.own.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000):
        source.own.execute_command("MIGRATE", target.host, target.port, key, 0, 5000)
    for server in sorted(masters, key=lambda server: server is not target):
        server.own.execute_command("CLUSTER", "SETSLOT", slot, "NODE", to)


def _epochs(server: Server) -> tuple[tuple[str, str], ...]:
    """The configuration epoch of each master, as a server knows it."""
    nodes = server.own.execute_command("CLUSTER NODES").values()
    return tuple(sorted((node["node_id"], node["epoch"]) for node in nodes if "master" in node["flags"]))


def make_cluster(
    start_server: Callable[..., Server],
    masters: int = 3,
    replicas: int = 0,
    *,
    args: Sequence[Arg] = (),
    module_args: Sequence[Arg] = (),
    proxies: Sequence[Proxy] = (),
    tls: bool = False,
    clocks: Mapping[int, Clock] | None = None,
) -> Cluster:
    """Starts `masters` masters and a replica for each of the first `replicas` ones.

    `clocks`: of nodes whose clock a test sets, by their number.

    `tls`: nodes listen for TLS, too, on a port of its own.

    `proxies`: what stands in front of each node, for other nodes and for clients that go by what the cluster tells.
    """
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS), *args]
    servers: list[Server] = []
    ports: dict[int, int] = {}
    for number in range(masters + replicas):
        announced = ["--cluster-announce-port", str(proxies[number].port)] if proxies else []
        if tls:
            ports[number] = free_port()
            announced += ["--tls-port", str(ports[number])]
        environment = clocks[number].environment if clocks and number in clocks else None
        servers.append(start_server(args=[*options, *announced], module_args=module_args, environment=environment))
        if proxies:
            proxies[number].target = servers[number].port
            bus = str(servers[number].port + 10000)
            servers[number].client().config_set("cluster-announce-bus-port", bus)
            # When it starts again it has its options only.
            servers[number].args = [*servers[number].args, "--cluster-announce-bus-port", bus]
    cluster = Cluster(servers[:masters], servers[masters:])
    for number, server in enumerate(cluster.masters):
        first, last = round(number * SLOTS / masters), round((number + 1) * SLOTS / masters) - 1
        server.own.execute_command("CLUSTER", "ADDSLOTS", *range(first, last + 1))
    for number, server in enumerate(servers):
        server.own.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number > 0:
            # Over TLS the nodes' bus is beside the port for TLS.
            servers[0].own.execute_command("CLUSTER", "MEET", server.host, ports.get(number, server.port))
    known = lambda server: server.own.execute_command("CLUSTER INFO")
    for server in servers:
        wait_until(lambda: known(server)["cluster_known_nodes"] == str(len(servers)), 20, "all nodes are known")
    for server, master in zip(cluster.replicas, cluster.masters):
        master_id = node_id(master)
        wait_until(lambda: _replicate(server, master_id), 20, "the replica knows its master")
        wait_until(lambda: server.own.info("replication").get("master_link_status") == "up", 20)
    for server in servers:
        wait_until(lambda: known(server)["cluster_state"] == "ok", 20, "the cluster is up")
        wait_until(lambda: server.own.execute_command("CLUSTER", "NODES").count("slave ") == replicas, 20, "all know the replicas")
    cluster.wait_linked()
    return cluster


def _replicate(server: Server, master_id: str) -> bool:
    try:
        return bool(server.own.execute_command("CLUSTER", "REPLICATE", master_id))
    except redis.ResponseError:
        return False
