"""Values that are not kept: whatever a load has brought, the old value gives way. Contract: docs/contract/read-through.md 3.8, RG.REFRESH."""

from __future__ import annotations

from typing import Any, Iterator

import pytest
import redis

from helpers import Server, wait_until

pytestmark = pytest.mark.matrix

SCRIPT = """
def now():
    return configGet('value') or '1'

{loader}

def again(words):
    return refresh(*words[1:])
GB('CommandReader').map(again).register(trigger='again', mode='async_local')
"""
LOADERS = {
    "plain": "read_through('k:*', lambda key: {value}{more})",
    "async": "@read_through('k:*'{more})\nasync def load(key): return {value}",
    "batch": "read_through('k:*', lambda keys: dict((key, {value}) for key in keys), batch=10{more})",
    "both": "read_through('k:*', lambda key: {value}{more})\nwrite_behind('k:*', lambda changes: None)",
}
MORE = {"for ever": "", "stale": ", ttl=100, stale=100", "fresh": ", ttl=100"}
UNKEPT = "Loaded(now(), ttl=0) if now() == '2' else now()"


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    yield server.own
    server.own.config_set("maxmemory", 0)
    server.own.config_set("maxmemory-policy", "noeviction")


def run(server: Server, loader: str, value: str, more: str = "") -> None:
    server.run(SCRIPT.format(loader=LOADERS[loader].format(value=value, more=more)), "ID", "script")
    tell(server, "1")
    assert server.own.get("k:1") == "1" and server.own.get("k:2") == "1"
    tell(server, "2")


def tell(server: Server, value: str) -> None:
    server.own.execute_command("RG.CONFIGSET", "value", value)


def refreshed(client: redis.Redis, way: str, *keys: str) -> Any:
    if way == "command":
        return client.execute_command("RG.REFRESH", *keys)
    return int(client.execute_command("RG.TRIGGER", "again", *keys)[0])


def not_stored(client: redis.Redis) -> int:
    return int(client.info("rg_read_through")["rg_read_through_not_stored_total"])


@pytest.mark.parametrize("way", ["command", "function"])
@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("loader", LOADERS)
def test_an_answer_that_is_not_to_be_kept(server: Server, client: redis.Redis, loader: str, more: str, way: str) -> None:
    run(server, loader, UNKEPT, MORE[more])
    assert refreshed(client, way, "k:1", "k:2") == 2
    assert client.exists("k:1", "k:2") == 0
    assert client.get("k:1") == "2"


def test_a_function_gives_the_lifetime(server: Server, client: redis.Redis) -> None:
    run(server, "plain", "now()", ", ttl=lambda key, value: 0 if value == '2' else 100")
    assert client.execute_command("RG.REFRESH", "k:1") == 1
    assert client.exists("k:1") == 0 and client.get("k:1") == "2"


@pytest.mark.parametrize("more", [", ttl=0.05, stale=100", ", ttl=100, refresh_ahead=1"])
def test_in_the_background(server: Server, client: redis.Redis, more: str) -> None:
    run(server, "plain", UNKEPT, more)
    wait_until(lambda: client.get("k:1") == "2")
    assert client.exists("k:1") == 0


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru"])
@pytest.mark.parametrize("way", ["command", "function"])
@pytest.mark.parametrize("loader", LOADERS)
def test_no_room(server: Server, client: redis.Redis, loader: str, way: str, policy: str) -> None:
    run(server, loader, "now()")
    before = not_stored(client)
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", 1)
    assert refreshed(client, way, "k:1", "k:2") == 2
    assert not_stored(client) == before + 2
    assert client.exists("k:1", "k:2") == 0
    assert client.get("k:1") == "2"
    client.config_set("maxmemory", 0)
    assert client.get("k:1") == "2" and client.exists("k:1") == 1


def test_a_change_that_is_not_saved_counts(server: Server, client: redis.Redis) -> None:
    server.run("read_through('k:*', lambda key: 'loaded')\nwrite_behind('k:*', lambda changes: 1 / 0, backoff=100, max_backoff=100)")
    client.set("k:1", "changed")
    client.config_set("maxmemory", 1)
    assert client.execute_command("RG.REFRESH", "k:1") == 0
    assert client.get("k:1") == "changed"


def test_who_may_neither_store_nor_delete_changes_nothing(server: Server, client: redis.Redis) -> None:
    client.execute_command("ACL", "SETUSER", "loader", "on", "nopass", "~*", "+@all")
    try:
        server.run(SCRIPT.format(loader="read_through('k:*', lambda key: now(), user='loader')"))
        tell(server, "1")
        assert client.get("k:1") == "1"
        tell(server, "2")
        client.execute_command("ACL", "SETUSER", "loader", "-set", "-del")
        assert client.execute_command("RG.REFRESH", "k:1") == 0
        assert client.get("k:1") == "1"
        # What may be removed is.
        client.execute_command("ACL", "SETUSER", "loader", "+del")
        assert client.execute_command("RG.REFRESH", "k:1") == 1
        assert client.exists("k:1") == 0
    finally:
        client.execute_command("ACL", "DELUSER", "loader")


def test_a_stale_value_is_loaded_while_memory_is_short(server: Server, client: redis.Redis) -> None:
    """Not for each hit; and at once when there is room."""
    server.run(SCRIPT.format(loader="read_through('k:*', lambda key: now(), ttl=0.01, stale=1000, backoff=0.2, max_backoff=1000)"))
    tell(server, "1")
    assert client.get("k:1") == "1"
    tell(server, "2")

    def stale() -> bool:
        return "stale" in str(client.execute_command("RG.KEYINFO", "k:1"))

    def loads() -> int:
        return int(client.info("rg_read_through")["rg_read_through_loads_total"])

    wait_until(stale)
    begun, hits = loads(), 0
    client.config_set("maxmemory", 1)

    def twice() -> bool:
        nonlocal hits
        hits += 1
        assert client.get("k:1") == "1"
        return loads() == begun + 2

    wait_until(twice)
    assert hits > 3, "not for each hit"
    client.config_set("maxmemory", 0)
    wait_until(lambda: client.get("k:1") == "2")
