"""Hits go natively also where the server does not tell who sent a command (before 7.2), and what must not come of that: other databases,
transactions, scripts, renamed commands, calls of functions. The same holds where the server tells.
"""

from __future__ import annotations

from typing import Callable

import pytest

from helpers import Server, wait_until
from test_native_hits import FETCHED, LINK, linked, looks

pytestmark = pytest.mark.matrix


def triggered(server: Server) -> int:
    server.wait_idle()
    return server.registrations()[0]["RegistrationData"]["numTriggered"]


def test_a_client_in_another_database(server: Server) -> None:
    server.run(LINK)
    home, away = server.raw(), server.raw()
    home.call("SET", "price:1", "a")
    assert away.call("SELECT", 1) == b"+OK\r\n"
    assert away.call("GET", "price:1") == FETCHED
    away.call("SET", "price:2", "b")
    assert home.call("GET", "price:2") == FETCHED
    assert away.call("GET", "price:2") == b"$1\r\nb\r\n"
    assert home.call("GET", "price:1") == b"$1\r\na\r\n"
    assert triggered(server) == 2


def test_a_client_that_was_elsewhere_before(server: Server) -> None:
    away = server.raw()
    away.call("SELECT", 1)
    server.run(LINK)
    server.client().set("price:1", "a")
    assert away.call("GET", "price:1") == FETCHED


def test_databases_that_change_places(server: Server) -> None:
    server.run(LINK)
    raw = server.raw()
    raw.call("SET", "price:1", "a")
    assert raw.call("GET", "price:1") == b"$1\r\na\r\n"
    raw.call("SWAPDB", 0, 1)
    assert raw.call("GET", "price:1") == FETCHED
    raw.call("SWAPDB", 0, 1)
    assert raw.call("GET", "price:1") == b"$1\r\na\r\n"


def test_a_key_that_goes_before_exec(server: Server) -> None:
    server.run(LINK)
    raw, other = server.raw(), server.client()
    other.set("price:1", "a")
    raw.call("MULTI")
    raw.call("GET", "price:1")
    for _ in range(3):
        assert other.get("price:1") == "a"
    other.delete("price:1")
    assert raw.call("EXEC") == b"*1\r\n$-1\r\n"
    assert triggered(server) == 1


def test_everybody_comes_home(server: Server) -> None:
    server.run(LINK)
    raw, client = server.raw(), server.client()
    client.set("price:1", "a")
    for words in (["MULTI"], ["EXEC"], ["SELECT", 1], ["SELECT", 0], ["MULTI"], ["DISCARD"], ["SELECT", 2], ["RESET"]):
        raw.call(*words)

    def is_native() -> bool:
        before = linked(server)
        assert client.get("price:1") == "a"
        return linked(server) == before

    if looks(server):
        wait_until(is_native)
    assert client.get("price:2") == "fetched"


def test_a_client_that_leaves_in_a_transaction(server: Server) -> None:
    server.run(LINK)
    raw, client = server.raw(), server.client()
    client.set("price:1", "a")
    raw.call("MULTI")
    raw.close()

    def is_native() -> bool:
        before = linked(server)
        client.get("price:1")
        return linked(server) == before

    if looks(server):
        wait_until(is_native)


def test_a_script_that_selects(server: Server) -> None:
    server.run(LINK)
    client = server.client()
    client.set("price:1", "a")
    assert client.eval("return redis.call('get', KEYS[1])", 1, "price:1") == "a"
    assert client.eval("redis.call('select', 1) return redis.call('get', KEYS[1])", 1, "price:1") is None
    assert triggered(server) == 1
    assert client.get("price:1") == "a"


def test_functions_in_other_databases(server: Server) -> None:
    """What a function runs, it runs in the database of its event, where nobody else need be."""
    server.run(LINK)
    server.run("""
        GB('KeysReader').foreach(lambda r: execute('GET', 'price:1')).register(
            prefix='copied', eventTypes=['copy_to'], mode='async_local')
    """)
    client = server.client()
    client.mset({"price:1": "a", "copied": "x"})
    assert client.execute_command("COPY", "copied", "copied", "DB", "3") == 1
    wait_until(lambda: server.registrations()[1]["RegistrationData"]["numSuccess"] == 1)
    assert triggered(server) == 1
    assert client.get("price:1") == "a"


def test_commands_by_other_names(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--rename-command", "SELECT", "PICK"])
    server.run(LINK)
    home, away = server.raw(), server.raw()
    home.call("SET", "price:1", "a")
    assert away.call("PICK", 1) == b"+OK\r\n"
    # Where the server tells who sent a command, a client is asked about again only behind commands that are known to move it.
    if not server.native_hits:
        assert away.call("GET", "price:1") == FETCHED
    assert home.call("GET", "price:1") == b"$1\r\na\r\n"


def test_what_expires_at_the_look_is_told_once(server: Server) -> None:
    server.run(LINK)
    server.run("GB('KeysReader').register(prefix='price:*', eventTypes=['expired'], mode='sync')")
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    client.config_resetstat()
    client.set("price:1", "a", px=1)
    begun = client.time()
    wait_until(lambda: client.time() > (begun[0] + 1, begun[1]))
    assert client.get("price:1") == "fetched"
    wait_until(lambda: server.registrations()[1]["RegistrationData"]["numTriggered"] == 1)
    assert client.info("stats")["expired_keys"] == 1


@pytest.mark.parametrize("key", ["price:1", "price:2"], ids=["hit", "miss"])
def test_clients_that_want_no_reply(server: Server, key: str) -> None:
    server.run(LINK)
    raw = server.raw()
    raw.call("SET", "price:1", "a")
    raw.send("CLIENT", "REPLY", "SKIP")
    raw.send("GET", key)
    assert raw.call("PING") == b"+PONG\r\n"
    raw.send("CLIENT", "REPLY", "OFF")
    for _ in range(3):
        raw.send("GET", key)
    assert raw.call("CLIENT", "REPLY", "ON") == b"+OK\r\n"
    assert raw.call("GET", "price:1") == b"$1\r\na\r\n"
    wait_until(lambda: server.client().info("clients")["blocked_clients"] == 0)
