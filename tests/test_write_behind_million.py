"""Long queues: what is asked of them, and what ends them, does not hold the server. Contract: docs/contract/write-behind.md 2.8 and 2.11."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from figures import figures, wait_for
from helpers import PATIENCE, Server, as_dict, wait_until
from write_behind import register

MANY = 300_000
ROOM = "max_queue=10_000_000, max_queue_bytes=1 << 33, backoff=100, max_backoff=100"


def microseconds(client: redis.Redis, *words: str) -> int:
    """How long the server takes for a command, by its own figures."""
    client.config_resetstat()
    client.execute_command(*words)
    return client.info("commandstats")[f"cmdstat_{words[0].lower()}"]["usec"]


def fill(client: redis.Redis) -> None:
    for start in range(0, MANY, 1000):
        client.mset({f"user:{start + more}": "x" * 100 for more in range(1000)})


def test_a_long_queue_ends_on_a_thread_of_its_own(server: Server, source: Server) -> None:
    register(server, source, ROOM).fail(1_000_000)
    client = server.client()
    fill(client)
    wait_for(server, queued=MANY)
    before = client.info("memory")["used_memory"]
    took = microseconds(client, "RG.UNREGISTER", server.registrations()[0]["id"], "ABORTPENDING")
    assert took < 30_000 * PATIENCE
    wait_until(lambda: client.info("memory")["used_memory"] < before - MANY * 150, message="its memory is given back")
    assert server.registrations() == []


def test_who_waits_for_a_long_queue_that_ends(server: Server, source: Server) -> None:
    register(server, source, ROOM + ", wait=True, timeout=1000").fail(1_000_000)
    client, raws = server.client(), [server.raw() for _ in range(3)]
    raws[0].send("SET", "user:first", "a")
    wait_for(server, queued=1)
    with client.pipeline() as transaction:
        for number in range(20_000):
            transaction.set(f"user:{number}", "a")
        transaction.execute()
    raws[1].send("SET", "user:5", "a")
    raws[2].send("MSET", "user:5", "b", "user:last", "b")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 3)
    client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"], "ABORTPENDING")
    assert [raw.read() for raw in raws] == [b"-SAVEFAILED Unregistered\r\n"] * 3


@pytest.mark.parametrize("arguments", ["", ", wait=True, timeout=1000"])
def test_what_is_known_of_a_key_with_many_changes(server: Server, source: Server, arguments: str) -> None:
    """It is known as soon as of a key with one."""
    register(server, source, ROOM + ", coalesce=False" + arguments).fail(1_000_000)
    client, raw = server.client(), server.raw()
    raw.send("SET", "user:other", "a")
    wait_for(server, queued=1)
    # In transactions nobody waits, and each is a unit.
    command = b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$6\r\nuser:1\r\n$1\r\na\r\n*1\r\n$4\r\nEXEC\r\n"
    changing = server.raw()
    for _ in range(50):
        changing.send_bytes(command * 1000)
        for _ in range(1000):
            assert [changing.read(), changing.read(), changing.read()] == [b"+OK\r\n", b"+QUEUED\r\n", b"*1\r\n+OK\r\n"]

    def known(key: str) -> dict[str, Any]:
        return as_dict(as_dict(client.execute_command("RG.KEYINFO", key))["write_behind"][0])

    last = server.raw()
    last.send("SET", "user:1", "b")
    wait_until(lambda: known("user:1")["queued"] == 50_001)
    waits = int(bool(arguments))
    assert known("user:1")["waitingForSave"] == known("user:other")["waitingForSave"] == waits
    many, one = (min(microseconds(client, "RG.KEYINFO", key) for _ in range(20)) for key in ("user:1", "user:other"))
    # Where somebody waits for another key of the queue all are looked at.
    assert waits or many < 10 * one, (many, one)
