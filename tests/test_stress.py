"""Many clients at once on a linked command: hits and misses, failing functions, clients killed in flight.

Each live client gets the right reply for its key, nobody is left waiting, memory returns to its level, the server lives.
`make soak` runs it in full size.
"""

from __future__ import annotations

import random
import threading
from typing import Iterator

import pytest
import redis

from helpers import RawClient, Server, wait_until

SCRIPT = """
import time

def fetch(record):
    key = record['key']
    number = int(key.rpartition(':')[2])
    if number % 7 == 0:
        raise ValueError(key)
    if number % 11 == 0:
        time.sleep(0.001)
    if number % 3 == 0:
        execute('SET', key, 'value of ' + key, 'PX', 50)
    override_reply('value of ' + key)

GB('KeysReader').foreach(fetch).register(prefix='k:*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
"""


class Client(threading.Thread):
    """Sends `count` commands in pipelines of some, checks each reply, and may be cut off in the middle."""

    def __init__(self, server: Server, seed: int, count: int, keys: int) -> None:
        super().__init__(daemon=True)
        self.server, self.count, self.keys = server, count, keys
        self.random = random.Random(seed)
        self.suicidal = seed % 10 == 0
        self.failure: str | None = None
        self.checked = 0

    def run(self) -> None:
        try:
            while self.checked < self.count:
                self.checked += self.burst()
        except Exception as error:  # shown by the test
            self.failure = f"{type(error).__name__}: {error}"

    def burst(self) -> int:
        """One connection's work."""
        raw = RawClient(self.server.host, self.server.port, 30)
        done = 0
        for _ in range(20):
            numbers = [self.random.randrange(self.keys) for _ in range(self.random.choice((1, 1, 4, 16)))]
            for number in numbers:
                raw.send("GET", f"k:{number}")
            if self.suicidal and self.random.random() < 0.2:
                if self.random.random() < 0.5:
                    self.call("CLIENT", "KILL", "ADDR", "%s:%d" % raw.socket.getsockname())
                break
            for number in numbers:
                reply, wanted = raw.read(), self.expected(number)
                assert reply == wanted, f"k:{number}: {reply!r} instead of {wanted!r}"
            done += len(numbers)
        raw.close()
        return max(done, 1)

    def call(self, *words: str) -> None:
        raw = RawClient(self.server.host, self.server.port, 30)
        raw.call(*words)
        raw.close()

    @staticmethod
    def expected(number: int) -> bytes:
        if number % 7 == 0:
            return b"$-1\r\n"
        value = f"value of k:{number}".encode()
        return b"$%d\r\n%s\r\n" % (len(value), value)


def round_of(server: Server, client: redis.Redis, clients: int, commands: int, keys: int) -> int:
    """Lets all clients do their work; the server's memory afterwards, in bytes."""
    threads = [Client(server, seed, commands // clients, keys) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a client waits for ever"
    assert [thread.failure for thread in threads if thread.failure] == []
    wait_until(lambda: client.info("clients")["blocked_clients"] == 0)
    wait_until(lambda: client.info("clients")["connected_clients"] <= 3)
    server.wait_idle(60)
    assert client.info("rg")["rg_queued_executions"] == 0
    data = server.registrations()[0]["RegistrationData"]
    assert data["numAborted"] == 0 and data["numFailures"] > 0 and data["numSuccess"] > 0
    client.flushall()
    return resident(server)


def resident(server: Server) -> int:
    def pages() -> Iterator[int]:
        for line in (open(f"/proc/{server.process.pid}/status")).read().splitlines():
            if line.startswith("VmRSS:"):
                yield int(line.split()[1]) * 1024

    return next(pages())


def stress(server: Server, clients: int, commands: int, keys: int) -> None:
    client = server.client()
    server.run(SCRIPT, client=client)
    round_of(server, client, clients, commands, keys)  # pools and caches find their size
    before = round_of(server, client, clients, commands, keys)
    after = round_of(server, client, clients, commands, keys)
    assert after - before < max(before // 5, 20_000_000), f"grew from {before} to {after} bytes"


@pytest.mark.timeout(180)
def test_stress(server: Server) -> None:
    stress(server, clients=200, commands=50_000, keys=5_000)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_stress_for_long(server: Server) -> None:
    stress(server, clients=200, commands=1_000_000, keys=50_000)
