"""`read_through` and `write_behind` on a server whose functions are not there yet, or cannot be loaded: a key that nobody can load is
not one that does not exist, and no part of a row is saved. Contract: docs/contract/read-through.md 3.2, docs/contract/write-behind.md 2.6."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator

import pytest
import redis

from helpers import Server, as_dict, wait_until
from probes import AOF
from test_slow_loads import LOADING, folder, reasons  # noqa: F401 - a fixture
from write_behind import Database

pytestmark = pytest.mark.matrix

SCRIPT = """
import sys
if {folder!r} not in sys.path: sys.path.insert(0, {folder!r})
import json, redis, slow_module
class Finder:
    def __reduce__(self): return exec, ("import sys\\nif {folder!r} not in sys.path: sys.path.insert(0, {folder!r})",)
finder = Finder()

def source():
    return redis.Redis(port={port}, decode_responses=True)

def load(key, finder=finder):
    slow_module.VALUE
    text = source().get('row:0:' + key)
    return None if text is None else json.loads(text)

def save(changes, finder=finder):
    slow_module.VALUE
    for change in changes:
        name = 'row:0:' + change['key']
        if change['type'] is None:
            source().delete(name)
        else:
            source().set(name, json.dumps(change['value']))

read_through('user:*', load, {options})
write_behind('user:*', save)
"""
ROW = '{"name": "Ann", "city": "Bern"}'


@pytest.fixture
def source(start_server: Callable[..., Server]) -> Iterator[Database]:
    database = Database(start_server(module=False))
    database.client.mset({f"row:0:user:{number}": ROW for number in range(5)})
    yield database


def register(server: Server, source: Database, folder: Path, options: str = "") -> None:  # noqa: F811
    assert server.run(SCRIPT.format(folder=str(folder), port=source.server.port, options=options)) == "OK"


def saved(server: Server) -> None:
    wait_until(lambda: server.own.info("rg_write_behind")["rg_write_behind_queued"] == 0)


def told(server: Server) -> tuple[str, str, str | None, str]:
    """What RG.KEYINFO says of a key: its state, the loader, the last error, and whether it is saved."""
    reply = as_dict(server.own.execute_command("RG.KEYINFO", "user:0"))
    [loads], [saves] = map(as_dict, reply["read_through"]), map(as_dict, reply["write_behind"])
    return loads["state"], loads["loader"], loads["lastError"], saves["saves"]


def test_clients_wait_for_the_loader_after_a_restart(start_server: Callable[..., Server], source: Database, folder: Path) -> None:  # noqa: F811
    server = start_server(args=AOF)
    register(server, source, folder, "timeout=60")
    (folder / "slow").touch()
    server.restart()
    assert reasons(server) == [LOADING] * 2
    assert told(server) == ("missing", "being loaded", LOADING, "no: its functions are not loaded")
    commands = [["HGETALL", "user:0"], ["HSET", "user:1", "city", "Thun"], ["HDEL", "user:2", "city"], ["DEL", "user:3"]]
    raws = [server.raw() for _ in commands]
    for raw, words in zip(raws, commands):
        raw.send(*words)
    assert raws[3].read() == b":0\r\n", "nothing has to be loaded for that"
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == 3)
    with pytest.raises(redis.ResponseError, match="LOADFAILED CannotWait"):
        server.own.eval("return redis.call('HINCRBY', KEYS[1], 'age', 1)", 1, "user:4")
    assert server.own.set("user:5", "a whole value")
    (folder / "slow").unlink()
    assert [raw.read() for raw in raws[:3]] == [b"*4\r\n$4\r\nname\r\n$3\r\nAnn\r\n$4\r\ncity\r\n$4\r\nBern\r\n", b":0\r\n", b":1\r\n"]
    wait_until(lambda: reasons(server) == [None] * 2)
    assert told(server) == ("endless", "ready", None, "yes")
    saved(server)
    assert source.rows() == {
        "user:0": {"name": "Ann", "city": "Bern"}, "user:1": {"name": "Ann", "city": "Thun"}, "user:2": {"name": "Ann"},
        "user:4": {"name": "Ann", "city": "Bern"}, "user:5": "a whole value",
    }


def test_they_wait_for_as_long_as_for_a_load(start_server: Callable[..., Server], source: Database, folder: Path) -> None:  # noqa: F811
    server = start_server(args=AOF)
    register(server, source, folder, "timeout=0.2")
    (folder / "slow").touch()
    server.restart()
    for words in (["HGETALL", "user:0"], ["HSET", "user:1", "city", "Thun"]):
        with pytest.raises(redis.ResponseError, match="LOADFAILED TimedOut"):
            server.own.execute_command(*words)
    (folder / "slow").unlink()
    wait_until(lambda: reasons(server) == [None] * 2)
    assert server.own.hgetall("user:0") == {"name": "Ann", "city": "Bern"}
    saved(server)
    assert source.row("user:1") == {"name": "Ann", "city": "Bern"}


def test_what_cannot_be_loaded_is_an_error(start_server: Callable[..., Server], source: Database, folder: Path) -> None:  # noqa: F811
    """At once, or where it was awaited before."""
    server = start_server(args=AOF)
    register(server, source, folder, "timeout=60")
    (folder / "bad").touch()
    (folder / "slow").touch()
    server.restart()
    raw = server.raw()
    raw.send("HSET", "user:1", "city", "Thun")
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == 1)
    (folder / "slow").unlink()
    assert raw.read().startswith(b"-LOADFAILED NotLoaded")
    assert told(server)[1] == "not loaded" and told(server)[3] == "no: its functions are not loaded"
    for _ in range(2):
        for words in (["HGETALL", "user:0"], ["HSET", "user:1", "city", "Thun"], ["HDEL", "user:1", "city"]):
            with pytest.raises(redis.ResponseError, match="LOADFAILED NotLoaded"):
                server.own.execute_command(*words)
        assert server.own.set("user:5", "a whole value")
        server.restart()
    assert "bad module" in str(reasons(server)[0])
    (folder / "bad").unlink()
    server.restart()
    wait_until(lambda: reasons(server) == [None] * 2)
    assert server.own.hset("user:1", "city", "Thun") == 0
    saved(server)
    assert source.row("user:1") == {"name": "Ann", "city": "Thun"}
    assert source.row("user:5") == "a whole value"


def test_a_miss_may_be_a_miss(start_server: Callable[..., Server], source: Database, folder: Path) -> None:  # noqa: F811
    """Where the registration says so, and never for what would be saved."""
    server = start_server(args=AOF)
    register(server, source, folder, "on_error='miss', timeout=60")
    (folder / "bad").touch()
    server.restart()
    assert server.own.hgetall("user:0") == {}
    with pytest.raises(redis.ResponseError, match="LOADFAILED NotLoaded"):
        server.own.hset("user:1", "city", "Thun")


def test_a_replica_that_is_promoted_while_it_loads(start_server: Callable[..., Server], source: Database, folder: Path) -> None:  # noqa: F811
    master, replica = start_server(), start_server()
    register(master, source, folder, "timeout=60")
    (folder / "slow").touch()
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: reasons(replica) == [LOADING] * 2, timeout=20)
    assert replica.client().hgetall("user:0") == {}, "it loads nothing"
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    raws = [replica.raw() for _ in range(2)]
    raws[0].send("HGET", "user:0", "city")
    raws[1].send("HSET", "user:1", "city", "Thun")
    wait_until(lambda: replica.client().info("clients")["blocked_clients"] == 2)
    (folder / "slow").unlink()
    assert [raw.read() for raw in raws] == [b"$4\r\nBern\r\n", b":0\r\n"]
    saved(replica)
    assert source.row("user:1") == {"name": "Ann", "city": "Thun"}


def test_a_registration_that_ends_while_it_loads(start_server: Callable[..., Server], source: Database, folder: Path) -> None:  # noqa: F811
    """Nobody waits for it any longer."""
    server = start_server(args=AOF)
    register(server, source, folder, "timeout=60")
    (folder / "slow").touch()
    server.restart()
    raw = server.raw()
    raw.send("HGET", "user:0", "city")
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == 1)
    for entry in server.registrations():
        server.own.execute_command("RG.UNREGISTER", entry["id"])
    assert raw.read() == b"$-1\r\n", "nobody loads it any more"
    (folder / "slow").unlink()
    register(server, source, folder)
    assert server.own.hget("user:0", "city") == "Bern"
