"""`write_behind` where things come together: clients that are killed while they wait for room, and a `save` that hangs while memory is at its
limit. Contract: docs/contract/write-behind.md 2.1, 2.8 and 2.9.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from redis.exceptions import OutOfMemoryError

from figures import figures, wait_for
from helpers import Server, wait_until
from write_behind import drained, register

pytestmark = pytest.mark.matrix


def seconds(server: Server) -> float:
    """How long the server's own thread has computed, whatever else the machine does."""
    tick = os.sysconf("SC_CLK_TCK")
    fields = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / tick


def test_a_call_that_fails_before_many_changes_of_its_key(server: Server, source: Server) -> None:
    """It took the server's thread for as long as the batch is times as long as the queue: twelve seconds here."""
    database = register(server, source, "coalesce=False, batch=1000, backoff=0.05, max_backoff=0.05")
    database.client.set("hang", 1)
    client = server.client()
    client.set("user:1", "the first call hangs with it")
    wait_until(lambda: database.client.llen("hanging") == 1)
    for _ in range(20):
        pipe = client.pipeline(transaction=False)
        for _ in range(5000):
            pipe.incr("user:hot")
        pipe.execute()
    database.fail(1_000_000)
    before = seconds(server)
    database.client.rpush("go", 1)
    wait_until(lambda: figures(server)["saveFailures"] >= 4, timeout=120)
    assert seconds(server) - before < 3
    database.client.delete("hang", "outage")
    wait_until(lambda: figures(server)["queued"] == 0, timeout=120)
    assert database.row("user:hot") == "100000"


def test_many_changes_that_are_refused(server: Server) -> None:
    """Each turn of the server's loop went through all of them."""
    server.run("""
        @write_behind('user:*', batch=1, backoff=0.001, max_backoff=100000)
        def save(changes):
            if 'bad' in changes[0]['key']:
                raise ValueError('refused')
    """)
    client = server.client()
    for start in range(0, 5000, 1000):
        pipe = client.pipeline(transaction=False)
        for number in range(start, start + 1000):
            pipe.set(f"user:good{number}", "x").set(f"user:bad{number}", "x")
        pipe.execute()
    wait_until(lambda: figures(server)["queued"] == 5000, timeout=120)
    before = seconds(server)
    for _ in range(5000):
        client.ping()
    # 5,000 looks in each turn took several seconds.
    assert seconds(server) - before < 1.5


def test_clients_that_vanish_while_they_wait_for_room(server: Server, source: Server) -> None:
    database = register(server, source, "max_queue=2, coalesce=False")
    database.fail(1_000_000)
    client = server.client()
    client.mset({"user:1": "a", "user:2": "b"})
    wait_for(server, queued=2)
    waiting = [server.raw() for _ in range(30)]
    numbers = [int(raw.call("CLIENT", "ID")[1:-2]) for raw in waiting]
    for number, raw in enumerate(waiting):
        raw.send("SET", f"user:{10 + number}", "never")
    wait_until(lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 30)
    # Some close their connection, some are killed; one of each behind the next one in the queue.
    for raw in waiting[0:20:2]:
        raw.close()
    for number in numbers[1:20:2]:
        assert client.client_kill_filter(_id=number) == 1
    wait_until(lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 10)
    wait_until(lambda: client.info("clients")["blocked_clients"] == 10)
    database.fail(0)
    assert [raw.read() for raw in waiting[20:]] == [b"+OK\r\n"] * 10
    drained(server)
    assert database.rows() == {"user:1": "a", "user:2": "b", **{f"user:{10 + number}": "never" for number in range(20, 30)}}
    assert client.exists(*(f"user:{10 + number}" for number in range(20))) == 0
    assert client.info("clients")["blocked_clients"] == 0


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_save_that_hangs_at_the_memory_limit(server: Server, source: Server, policy: str) -> None:
    server.client().execute_command("RG.CONFIGSET", "WriteBehindMaxSaveTime", 400)
    database = register(server, source, "backoff=0.01")
    database.client.set("hang", 1)
    client = server.client()
    client.set("user:0", "hangs")
    wait_until(lambda: database.client.llen("hanging") == 1)
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
    written = []
    refused = 0
    for number in range(1, 1000):
        try:
            client.set(f"user:{number}", f"{number}:" + "x" * 5000)
            written.append(number)
        except OutOfMemoryError:
            refused += 1
        if refused >= 3:
            break
    # The queue counts for the memory, and nothing takes it away; where the server evicts it evicts all there is.
    assert refused == 3
    assert figures(server)["queued"] == len(written) + 1
    # The call that hangs is stopped, and made again, also now.
    wait_until(lambda: figures(server)["saveFailures"] >= 1)
    database.client.delete("hang")
    database.client.rpush("go", *range(100))
    drained(server)
    assert set(database.rows()) == {"user:0"} | {f"user:{number}" for number in written}
    client.config_set("maxmemory", 0)
    client.set("user:0", "saved")
    drained(server)
    assert database.row("user:0") == "saved"


def test_an_upgrade_to_the_order_of_all(server: Server, source: Server) -> None:
    database = register(server, source, "max_tries=1, backoff=0.2, batch=1", words=("ID", "mine"))
    database.poison("user:bad")
    client = server.client()
    client.set("user:bad", "x")
    for number in range(3):
        client.set(f"user:{number}", "x")
    wait_until(lambda: len(database.changes()) == 3)
    register(server, source, "backoff=0.2, ordered='all'", words=("ID", "mine", "UPGRADE"))
    failures = figures(server)["saveFailures"]
    client.set("user:3", "x")
    wait_until(lambda: figures(server)["saveFailures"] > failures)
    database.poison()
    drained(server)
    assert [change["key"] for change in database.changes()[3:]] == ["user:bad", "user:3"]


def test_no_python_is_on_the_way_of_a_write(server: Server) -> None:
    """While a function keeps Python to itself, clients write, and their changes are captured."""
    server.run("""
        import ctypes

        @write_behind('user:*', batch=1)
        def save(changes):
            if changes[0]['key'] == 'user:first':
                execute('SET', 'busy', 1)
                ctypes.PyDLL(None).sleep(2)     # a call that keeps Python to itself
                execute('SET', 'free', 1)
    """)
    client = server.client()
    before = client.info("rg_write_behind")["rg_write_behind_captured_total"]
    client.set("user:first", "x")
    wait_until(lambda: client.exists("busy"))
    for number in range(200):
        client.hset(f"user:{number}", "f", number)
        client.delete(f"user:{number}x")
    captured = client.info("rg_write_behind")["rg_write_behind_captured_total"] - before
    assert (captured, client.exists("free")) == (401, 0)
    drained(server)
