"""Clients that cache what they read, as redis-py does it: whatever is loaded, refreshed and dropped, none of them keeps an old value.
Contract: docs/contract/read-through.md 3.5; the messages one by one are in test_read_through_operations.py.
"""

from __future__ import annotations

import threading
import time
from typing import Iterator

import pytest
import redis
from redis.cache import CacheConfig

from figures import figures
from helpers import Server, wait_until
from read_through import at_rest

COUNTER = """
@read_through('k:*', {options})
def load(key):
    version = execute('INCR', 'version')
    return {value}
"""


@pytest.fixture
def caching(server: Server) -> Iterator[list[redis.Redis]]:
    """Three clients with a cache of their own."""
    if server.is_valkey or server.version < (7, 4):
        pytest.skip("redis-py caches for Redis 7.4 or newer only")
    clients = [server.client(protocol=3, cache_config=CacheConfig(max_size=1000)) for _ in range(3)]
    yield clients
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", ["string", "hash"])
def test_caches_of_redis_py(server: Server, caching: list[redis.Redis], kind: str) -> None:
    value = {"string": "version", "hash": "{'version': version}"}[kind]
    server.run(COUNTER.format(options="ttl=60", value=value))

    def read(client: redis.Redis) -> int:
        return int(client.get("k:1") if kind == "string" else client.hget("k:1", "version"))

    assert [read(client) for client in caching] == [1, 1, 1]
    assert [read(client) for client in caching] == [1, 1, 1]
    cached = sum(client.get_cache().size for client in caching)
    assert cached > 0, "they cache"
    before = figures(server)["hits"]
    for _ in range(100):
        assert [read(client) for client in caching] == [1, 1, 1]
    assert figures(server)["hits"] < before + 20, "most of these came from their own memory"
    other = server.client()
    for version, command in enumerate((("RG.REFRESH", "k:1"), ("DEL", "k:1"), ("UNLINK", "k:1"), ("RG.REFRESH", "k:1")), start=2):
        other.execute_command(*command)
        # Messages come on their own way: at once, but not with the reply to somebody else.
        wait_until(lambda: [read(client) for client in caching] == [version] * 3)


def test_no_cache_goes_back_in_time(server: Server, caching: list[redis.Redis]) -> None:
    """Clients read a key whose value is loaded anew all the time, by each way there is. No client ever sees an older value
    after a newer one, and in the end all see the newest."""
    server.run(COUNTER.format(options="ttl=0.7, stale=0.5, refresh_ahead=0.5", value="version"))
    end, wrong = threading.Event(), []

    def work(client: redis.Redis) -> None:
        last = 0
        while not end.is_set():
            version = int(client.get("k:1"))
            if version < last:
                wrong.append((last, version))
            last = version

    threads = [threading.Thread(target=work, args=(client,)) for client in caching]
    for thread in threads:
        thread.start()
    other, until = server.client(), time.monotonic() + 3
    while time.monotonic() < until:
        for command in ("DEL", "RG.REFRESH"):
            other.execute_command(command, "k:1")
            seen = figures(server)["misses"]
            wait_until(lambda: wrong or figures(server)["misses"] >= seen)
    end.set()
    for thread in threads:
        thread.join()
    assert not wrong
    newest = str(other.execute_command("RG.REFRESH", "k:1") and other.get("version"))
    wait_until(lambda: [client.get("k:1") for client in caching] == [newest] * 3)
    at_rest(server)
