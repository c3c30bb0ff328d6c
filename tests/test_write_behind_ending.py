"""What has changes that are not saved does not end in passing: with a session as a whole, and on shards. And how old the oldest of them is, whoever
has them. Contract: docs/contract/write-behind.md 2.8."""

from __future__ import annotations

import json
import time
from typing import Any, Callable

import pytest
import redis

from clusters import Cluster
from helpers import Server, wait_until
from write_behind import register

SESSION = """
@read_through('a:*')
def load(key):
    return 'loaded'

@write_behind('a:*')
def save(changes):
    pass

@write_behind('b:*', backoff=0.01, max_backoff=0.05)
def fail(changes):
    raise ConnectionError('down')

GB('CommandReader').map(lambda _: 'pong').register(trigger='ping')
"""


def sums(server: Server) -> dict[str, Any]:
    return json.loads(server.client().execute_command("RG.STATS"))["write_behind"]


@pytest.mark.matrix
def test_a_session_ends_as_a_whole_or_not_at_all(borrow_server: Callable[..., Server]) -> None:
    """What stood before the one that refuses was gone for ever."""
    server = borrow_server(args=["--appendonly", "yes"])
    assert server.run(SESSION, "ID", "shop") == "OK"
    client = server.client()
    before = [registration["id"] for registration in server.registrations()]
    client.set("b:1", "x")
    wait_until(lambda: sums(server)["queued"] == 1)
    for _ in range(2):
        with pytest.raises(redis.ResponseError, match="not saved yet"):
            client.execute_command("RG.UNREGISTERSESSION", "shop")
        assert [registration["id"] for registration in server.registrations()] == before
    assert client.get("a:1") == "loaded"
    assert client.execute_command("RG.TRIGGER", "ping") == ["pong"]
    assert client.execute_command("RG.UNREGISTERSESSION", "shop", "ABORTPENDING") == 4
    assert server.registrations() == []


def test_on_shards_too(cluster: Cluster) -> None:
    assert cluster[0].run(SESSION, "ID", "shop") == "OK"
    counts = lambda: [len(server.registrations()) for server in cluster.masters]
    wait_until(lambda: counts() == [4, 4, 4])
    key = next(f"b:{number}" for number in range(1000) if cluster.shard_of(f"b:{number}") is cluster[1])
    cluster[1].client().set(key, "x")
    wait_until(lambda: sums(cluster[1])["queued"] == 1)
    for server in cluster.masters:
        with pytest.raises(redis.ResponseError, match="not saved yet"):
            server.client().execute_command("RG.UNREGISTERSESSION", "shop")
    assert counts() == [4, 4, 4]
    assert cluster[0].client().execute_command("RG.UNREGISTERSESSION", "shop", "ABORTPENDING") == 4
    wait_until(lambda: counts() == [0, 0, 0])


@pytest.mark.matrix
def test_the_age_of_a_change_goes_on_behind_a_restart(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=["--appendonly", "yes"])
    database = register(server, source)
    database.fail(1_000_000)
    began = time.monotonic()
    server.client().set("user:1", "a")
    wait_until(lambda: sums(server)["oldest_ms"] > 1500)
    server.restart(kill=True)
    wait_until(lambda: sums(server)["queued"] == 1)
    assert sums(server)["oldest_ms"] > 1500
    assert sums(server)["oldest_ms"] <= (time.monotonic() - began) * 1000 + 1000
    replica = start_server()
    replica.client().execute_command("REPLICAOF", server.host, server.port)
    wait_until(lambda: sums(replica)["queued"] == 1, 20)
    assert sums(replica)["oldest_ms"] > 1500
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    assert sums(replica)["oldest_ms"] > 1500
