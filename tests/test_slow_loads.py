"""Functions whose modules take long to import: restarts, replicas and other shards wait for them in the background.

Contract: docs/contract/commands.md 4.4 and 6; docs/persistence.md.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from clusters import Cluster, make_cluster
from helpers import Server, wait_until
from probes import AOF

LOADING = "its functions are being loaded"
# A module that is imported fast where the file `slow` is not, and waits for the file's end otherwise.
MODULE = """
import os, time
folder = os.path.dirname(__file__)
while os.path.exists(os.path.join(folder, 'slow')):
    time.sleep(0.01)
if os.path.exists(os.path.join(folder, 'bad')):
    raise ValueError('bad module')
VALUE = 'imported'
"""
SCRIPT = """
import sys
if {folder!r} not in sys.path: sys.path.insert(0, {folder!r})
import slow_module
class Finder:
    # As a deployment has it: the folder is in the path of every process.
    def __reduce__(self): return exec, ("import sys\\nif {folder!r} not in sys.path: sys.path.insert(0, {folder!r})",)
finder = Finder()
def value(words, finder=finder):
    import slow_module as module
    return [module.VALUE, slow_module.VALUE][0]
GB('CommandReader').map(value).register(trigger='{name}', mode='sync')
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "slow_module.py").write_text(MODULE)
    return folder


def register(server: Server, folder: Path, name: str, session: str | None = None) -> None:
    assert server.run(SCRIPT.format(folder=str(folder), name=name), *(["ID", session] if session else [])) == "OK"


def reasons(server: Server) -> list[str | None]:
    return [entry["RegistrationData"]["lastError"] for entry in server.registrations()]


def trigger(server: Server, name: str) -> Any:
    return server.own.execute_command("RG.TRIGGER", name)


@pytest.mark.matrix
def test_a_restart_does_not_wait_for_a_slow_import(start_server: Callable[..., Server], folder: Path) -> None:
    server = start_server(args=AOF)
    register(server, folder, "first", "one")
    register(server, folder, "second", "two")
    server.run("GB('CommandReader').map(lambda _: 'at once').register(trigger='fast', mode='sync')")
    known = [entry["id"] for entry in server.registrations()]
    (folder / "slow").touch()
    server.restart()
    # Listed with their numbers and the reason; others run.
    assert [entry["id"] for entry in server.registrations()] == known
    assert reasons(server) == [LOADING, LOADING, None]
    assert trigger(server, "fast") == ["at once"]
    with pytest.raises(Exception, match="subcommand not found"):
        trigger(server, "first")
    (folder / "slow").unlink()
    wait_until(lambda: reasons(server) == [None] * 3)
    assert [entry["id"] for entry in server.registrations()] == known
    assert (trigger(server, "first"), trigger(server, "second")) == (["imported"], ["imported"])
    server.restart()
    assert reasons(server) == [None] * 3


def test_sync_timeout_does_not_break_the_import(start_server: Callable[..., Server], folder: Path) -> None:
    server = start_server(args=AOF)
    register(server, folder, "first")
    server.module_args += ["SyncTimeout", "100"]
    (folder / "slow").touch()
    server.restart()
    assert reasons(server) == [LOADING]
    time.sleep(0.3)  # three times the limit: it must have no effect
    (folder / "slow").unlink()
    wait_until(lambda: reasons(server) == [None])
    assert trigger(server, "first") == ["imported"]
    assert "is stopped" not in server.log()


@pytest.mark.matrix
def test_replicas_and_promotion(start_server: Callable[..., Server], folder: Path) -> None:
    master, replica = start_server(), start_server()
    register(master, folder, "first")
    (folder / "slow").touch()
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: reasons(replica) == [LOADING], timeout=20)
    register(master, folder, "second")
    wait_until(lambda: len(reasons(replica)) == 2)
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    assert reasons(replica) == [LOADING] * 2
    # What is held has its name, also for clients of the new master.
    with pytest.raises(Exception, match="trigger already registered"):
        register(replica, folder, "first") if not (folder / "slow").exists() else replica.run(
            "GB('CommandReader').map(lambda _: 1).register(trigger='first')"
        )
    (folder / "slow").unlink()
    wait_until(lambda: reasons(replica) == [None] * 2)
    assert (trigger(replica, "first"), trigger(replica, "second")) == (["imported"], ["imported"])


def test_a_module_that_raises_is_told_and_may_be_mended(start_server: Callable[..., Server], folder: Path) -> None:
    server = start_server(args=AOF)
    register(server, folder, "first")
    register(server, folder, "second")
    known = [entry["id"] for entry in server.registrations()]
    for mark in ("slow", "bad"):
        (folder / mark).touch()
    server.restart()
    assert reasons(server) == [LOADING] * 2
    (folder / "slow").unlink()
    wait_until(lambda: all("bad module" in str(reason) for reason in reasons(server)))
    assert [entry["id"] for entry in server.registrations()] == known
    (folder / "bad").unlink()
    server.client().execute_command("DEBUG", "RELOAD")
    assert reasons(server) == [None] * 2
    assert trigger(server, "first") == ["imported"]


def test_one_that_hangs_can_be_removed_and_replaced(start_server: Callable[..., Server], folder: Path) -> None:
    server = start_server(args=AOF)
    register(server, folder, "first", "one")
    server.run("GB('CommandReader').map(lambda _: 'other').register(trigger='other', mode='sync')", "ID", "two")
    (folder / "slow").touch()
    server.restart()
    assert reasons(server) == [LOADING, None]
    new = "GB('CommandReader').map(lambda _: 'new').register(trigger='first', mode='sync')"
    assert server.run(new, "ID", "one", "UPGRADE") == "OK"
    assert trigger(server, "first") == ["new"]
    # A load while it hangs, and the end of the server.
    server.client().execute_command("DEBUG", "RELOAD")
    assert (trigger(server, "first"), trigger(server, "other")) == (["new"], ["other"])
    (folder / "slow").unlink()
    server.wait_idle()
    assert (trigger(server, "first"), len(server.registrations())) == (["new"], 2)


def test_events_meanwhile_go_by(start_server: Callable[..., Server], folder: Path) -> None:
    """As for requirements: what is not there yet does not see them. A stream keeps its entries."""
    server = start_server(args=AOF)
    body = SCRIPT.format(folder=str(folder), name="t")
    body += "GB('KeysReader').foreach(lambda r: (slow_module, execute('RPUSH', '{l}', r['key']))).register('k*', mode='sync')\n"
    body += "GB('StreamReader').foreach(lambda r: (slow_module, execute('RPUSH', '{s}', r['value']['x']))).register('s', trimStream=False)\n"
    server.run(body)
    (folder / "slow").touch()
    server.restart()
    assert reasons(server) == [LOADING] * 3
    client = server.client()
    client.set("k1", 1)
    client.xadd("s", {"x": "1"})
    client.save() if False else client.execute_command("BGREWRITEAOF")
    (folder / "slow").unlink()
    wait_until(lambda: reasons(server) == [None] * 3)
    client.set("k2", 2)
    client.xadd("s", {"x": "2"})
    wait_until(lambda: client.lrange("{s}", 0, -1) == ["1", "2"])
    assert client.lrange("{l}", 0, -1) == ["k2"]


def test_other_shards_prepare_in_the_background(start_server: Callable[..., Server], folder: Path) -> None:
    cluster: Cluster = make_cluster(start_server)
    # Imported on the first one before it became slow for the others.
    cluster[0].run(f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport slow_module\nexecute('PING')")
    (folder / "slow").touch()
    raw = cluster[0].raw(timeout=30)
    raw.send("RG.PYEXECUTE", SCRIPT.format(folder=str(folder), name="t"))
    for server in cluster.masters:
        wait_until(lambda: server.own.ping())
        assert server.registrations() == []
    time.sleep(2)  # longer than others wait for it under their lock
    for server in cluster.masters:
        assert server.client().ping() and server.registrations() == []
    (folder / "slow").unlink()
    assert raw.read() == b"+OK\r\n"
    for server in cluster.masters:
        assert trigger(server, "t") == ["imported"]


def test_what_is_given_up_while_others_load_is_in_nobodys_way(start_server: Callable[..., Server], folder: Path) -> None:
    """Whoever had loaded it after the cancel kept its claims for a minute, and refused the next try."""
    cluster: Cluster = make_cluster(start_server, module_args=["PythonInstallReqMaxIdleTime", "2000"])
    script = SCRIPT.format(folder=str(folder), name="t")
    cluster[0].run(f"import sys\nsys.path.insert(0, {str(folder)!r})\nimport slow_module\nexecute('PING')")
    (folder / "slow").touch()
    failures = cluster[0].run(script)
    assert {str(failure) for failure in failures} == {"Execution max idle reached"}
    assert cluster[0].registrations() == []
    (folder / "slow").unlink()
    for server in cluster.masters:
        look = "import sys\nGB('ShardsIDReader').map(lambda _: hasattr(sys.modules.get('slow_module'), 'VALUE')).run(collect=False)"
        wait_until(lambda: server.run(look)[0] == ["True"])
    assert cluster[0].run(script) == "OK"
    for server in cluster.masters:
        assert trigger(server, "t") == ["imported"]


def test_time_events_load_in_the_background(start_server: Callable[..., Server], folder: Path) -> None:
    server = start_server(args=AOF)
    script = SCRIPT.format(folder=str(folder), name="t")
    server.run(script + "registerTE(1, lambda: (slow_module, execute('INCR', 'ticks')), 'event')")
    wait_until(lambda: server.own.get("ticks"))
    (folder / "slow").touch()
    server.restart()
    ticks = server.client().get("ticks")
    wait_until(lambda: reasons(server) == [LOADING])
    os.stat(folder / "slow")
    (folder / "slow").unlink()
    wait_until(lambda: server.own.get("ticks") != ticks, timeout=20)
    assert "does not load" not in server.log()
