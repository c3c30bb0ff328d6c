"""A failover that Sentinel makes: registrations run on the new master by themselves, streams go on, and the old master comes back
as a replica. docs/deploying.md, "Replicas and Sentinel".
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import redis
from redis.sentinel import Sentinel

from helpers import HOST, Server, free_port, wait_until
from probes import attach

SCRIPT = """
loads = 0

def load(key):
    global loads
    loads += 1
    return 'value of ' + key

read_through('user:*', load, ttl=60)
GB('CommandReader').map(lambda words: 'hello').register(trigger='greet')
GB('StreamReader').foreach(lambda entry: execute('RPUSH', 'seen', entry['value']['n'])).register('orders', trimStream=False)
"""


class Pair:
    """A master, its replica, and a Sentinel that watches them."""

    def __init__(self, master: Server, replica: Server, folder: Path) -> None:
        self.master, self.replica = master, replica
        self.port = free_port()
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\ndir {folder}\nsentinel monitor cache {HOST} {master.port} 1\n"
            "sentinel down-after-milliseconds cache 300\nsentinel failover-timeout cache 3000\n"
        )
        self.log = folder / "sentinel.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([master.binary, config, "--sentinel"], stdout=log, stderr=log)
        self.sentinel = Sentinel([(HOST, self.port)], socket_timeout=15)
        self.client: redis.Redis = self.sentinel.master_for("cache", decode_responses=True)

    def knows(self) -> bool:
        """Whether Sentinel answers and has found the replica."""
        try:
            return [port for _, port in self.sentinel.discover_slaves("cache")] == [self.replica.port]
        except (redis.ConnectionError, redis.sentinel.SlaveNotFoundError):
            return False

    def master_is(self, server: Server) -> bool:
        try:
            return self.sentinel.discover_master("cache")[1] == server.port and server.own.role()[0] in (b"master", "master")
        except redis.ConnectionError:
            return False


@pytest.fixture
def pair(start_server: Callable[..., Server], tmp_path: Path) -> Iterator[Pair]:
    master, replica = start_server(), start_server()
    attach(replica, master)
    pair = Pair(master, replica, tmp_path)
    try:
        wait_until(pair.knows, 15, "the Sentinel knows both")
        yield pair
    finally:
        pair.process.terminate()
        pair.process.wait()


def all_work(client: redis.Redis, name: str) -> None:
    assert client.get(f"user:{name}") == f"value of user:{name}"
    assert client.execute_command("RG.TRIGGER", "greet") == ["hello"]
    client.xadd("orders", {"n": name})
    wait_until(lambda: client.lrange("seen", -1, -1) == [name], message="the stream's entry is processed")


def test_a_killed_master(pair: Pair) -> None:
    """Applications ask Sentinel, also for RG.PYEXECUTE; the old one comes back as a replica and has all."""
    assert pair.client.execute_command("RG.PYEXECUTE", SCRIPT) == "OK"
    all_work(pair.client, "before")
    assert pair.client.wait(1, 5000) == 1
    pair.master.stop(kill=True)
    wait_until(lambda: pair.master_is(pair.replica), 20, "Sentinel has made the replica the master")
    all_work(pair.client, "after")
    assert pair.client.lrange("seen", 0, -1) == ["before", "after"], "entries are processed once"
    pair.master.start()
    # As Sentinel does, which may take it half a minute on a busy machine.
    pair.process.terminate()
    attach(pair.master, pair.replica)
    wait_until(lambda: [entry["reader"] for entry in pair.master.registrations()] == ["ReadThrough", "CommandReader", "StreamReader"], 20)


def test_over_and_back_while_clients_miss(pair: Pair) -> None:
    """SENTINEL FAILOVER twice; a client that asks Sentinel anew after an error never gets a wrong value."""
    assert pair.client.execute_command("RG.PYEXECUTE", SCRIPT) == "OK"
    assert pair.client.wait(1, 5000) == 1, "what a replica has not heard of is lost in a failover"
    number = 0

    def get() -> Any:
        nonlocal number
        number += 1
        try:
            return pair.client.get(f"user:{number}")
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            return "refused"

    for new in (pair.replica, pair.master):
        client = redis.Redis(port=pair.port)

        def ordered() -> bool:
            try:
                return bool(client.execute_command("SENTINEL", "FAILOVER", "cache"))
            except redis.ResponseError:  # it still settles the one before
                return False

        wait_until(ordered, 30, interval=0.1)
        asked = number

        def is_over() -> bool:
            found = get()
            assert found in (f"value of user:{number}", "refused"), found
            return pair.master_is(new) and found != "refused"

        wait_until(is_over, 30, "the failover is over")
        assert number > asked
        all_work(pair.client, f"on-{new.port}")
