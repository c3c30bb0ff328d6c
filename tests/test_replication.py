"""Registrations on replicas: they are there, do not fire, and fire at once after a promotion. Writes of functions arrive once.

Contract: docs/contract/commands.md 6.2 to 6.4 and 9.29.
"""

from __future__ import annotations

import ast
from typing import Any, Callable

import pytest

from helpers import Server, wait_until
from probes import AOF, attach, error_of, triggered

pytestmark = pytest.mark.matrix

COUNTING = """
GB('KeysReader').foreach(lambda record: execute('INCR', 'events')).register('k:*', mode='{mode}', eventTypes=['set'])
GB('StreamReader').foreach(lambda record: execute('INCR', 'entries')).register('s:*', mode='async_local')
GB('CommandReader').map(lambda words: 'mine').register(trigger='mine', mode='sync')
"""


def promote(replica: Server) -> None:
    replica.client().execute_command("REPLICAOF", "NO", "ONE")


def caught_up(master: Server, *replicas: Server) -> None:
    """Waits until the replicas have done all that the master has sent."""

    def same() -> bool:
        offset = master.client().info("replication")["master_repl_offset"]
        return all(replica.own.info("replication")["slave_repl_offset"] >= offset for replica in replicas)

    wait_until(same)


def listed(server: Server) -> list[Any]:
    """All registrations without what is counted."""
    described = []
    for entry in server.registrations():
        session = ast.literal_eval(entry["PD"])
        del session["refCount"]
        described.append([entry["id"], entry["reader"], entry["desc"], entry["RegistrationData"]["args"], session])
    return described


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_promoted_replica_goes_on_at_once(start_server: Callable[..., Server], when: str, mode: str) -> None:
    master, replica = start_server(), start_server()
    if when == "after":
        attach(replica, master)
    assert master.run(COUNTING.format(mode=mode), "ID", "s", "DESCRIPTION", "d") == "OK"
    if when == "before":
        attach(replica, master)
    client = master.client()
    for number in range(10):
        client.set(f"k:{number}", 1)
        client.xadd("s:1", {"n": number})
    wait_until(lambda: client.get("events") == "10" and client.get("entries") == "10")
    master.wait_idle()
    caught_up(master, replica)
    assert listed(replica) == listed(master)
    assert triggered(replica) == [0, 0, 0]
    assert replica.client().get("events") == replica.client().get("entries") == "10"

    promote(replica)
    client = replica.client()
    client.set("k:x", 1)
    client.xadd("s:1", {"n": "x"})
    wait_until(lambda: client.get("events") == "11" and client.get("entries") == "11")
    assert client.execute_command("RG.TRIGGER", "mine") == ["mine"]


def test_every_change_arrives(start_server: Callable[..., Server]) -> None:
    """Also on the replica of a replica, and in the files of all three."""
    master, middle, last = (start_server(args=AOF) for _ in range(3))
    attach(middle, master)
    attach(last, middle)
    master.run("GB('KeysReader').register('a*')\nGB('KeysReader').register('b*')", "ID", "one")
    master.run("GB('CommandReader').register(trigger='t')", "ID", "two")
    master.run("GB('CommandReader').register(trigger='t')\nGB('KeysReader').register('c*')", "ID", "two", "UPGRADE")
    master.run("GB('KeysReader').register('d*')", "ID", "three", "REPLACE_WITH", "one")
    gone = master.registrations()[0]["id"]
    assert master.client().execute_command("RG.UNREGISTER", gone, "ABORTPENDING") == "OK"
    caught_up(master, middle, last)
    assert len(listed(master)) == 2
    assert listed(middle) == listed(last) == listed(master)
    before = listed(master)
    for server in (master, middle, last):
        promote(server)
        server.restart(kill=True)
        assert listed(server) == before


def test_registrations_of_functions_arrive(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    attach(replica, master)
    script = """
def more(words):
    GB('CommandReader').map(lambda w: 'second').register(trigger='second', mode='sync')
GB('CommandReader').foreach(more).register(trigger='first', mode='async_local')
"""
    master.run(script)
    master.client().execute_command("RG.TRIGGER", "first")
    master.wait_idle()
    caught_up(master, replica)
    promote(replica)
    assert replica.client().execute_command("RG.TRIGGER", "second") == ["second"]


def test_a_partial_resync_brings_what_was_missed(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    master.run("GB('KeysReader').register('a*')")
    attach(replica, master)
    identifiers = [entry["id"] for entry in replica.registrations()]
    replica.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    master.run("GB('KeysReader').register('b*')")
    attach(replica, master)
    stats = master.client().info("stats")
    assert (stats["sync_full"], stats["sync_partial_ok"]) == (1, 1)
    caught_up(master, replica)
    assert [entry["id"] for entry in replica.registrations()][:1] == identifiers
    assert listed(replica) == listed(master)


def test_a_full_resync_replaces_what_the_replica_had(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    replica.run("GB('CommandReader').register(trigger='own')", "ID", "own")
    master.run("GB('CommandReader').register(trigger='t')", "ID", "s")
    attach(replica, master)
    assert listed(replica) == listed(master)
    promote(replica)
    assert "subcommand not found" in error_of(replica, "own", command="RG.TRIGGER")


def test_a_replica_changes_nothing_itself(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    master.run("GB('CommandReader').map(lambda _: 1).register(trigger='t', mode='sync')", "ID", "s")
    attach(replica, master)
    [identifier] = [entry["id"] for entry in replica.registrations()]
    for command, *words in (
        ["RG.PYEXECUTE", "1"],
        ["RG.PYEXECUTE", "GB('KeysReader').register('a*')"],
        ["RG.UNREGISTER", identifier],
        ["RG.INNERUNREGISTER", identifier],
        ["RG.TRIGGER", "t"],
        ["RG.PYIMPORTREQ", "x"],
    ):
        assert error_of(replica, *words, command=command).startswith("READONLY"), command
    assert listed(replica) == listed(master)
    for command in ("RG.DUMPREGISTRATIONS", "RG.PYDUMPSESSIONS", "RG.PYDUMPREQS", "RG.DUMPEXECUTIONS", "RG.PYSTATS"):
        replica.client().execute_command(command)


def test_a_writable_replica_does_not_register_either(start_server: Callable[..., Server]) -> None:
    """Its ids would clash with those of its master (docs/contract/commands.md 9.10)."""
    master, replica = start_server(), start_server(args=["--replica-read-only", "no"])
    attach(replica, master)
    assert error_of(replica, "GB('KeysReader').register('a*')").startswith("READONLY")
    master.run("GB('KeysReader').register('b*')")
    caught_up(master, replica)
    [identifier] = [entry["id"] for entry in replica.registrations()]
    assert error_of(replica, identifier, command="RG.UNREGISTER").startswith("READONLY")
    assert listed(replica) == listed(master)


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_writes_of_functions_arrive_exactly_once(start_server: Callable[..., Server], mode: str) -> None:
    """On the replica, in its file, and in the master's; an atomic block as one transaction."""
    master, replica = start_server(args=AOF), start_server(args=AOF)
    attach(replica, master)
    script = f"""
def count(record):
    with atomic():
        execute('INCR', 'count')
        execute('RPUSH', 'keys', record['key'])
GB('KeysReader').foreach(count).register('k:*', mode='{mode}', eventTypes=['set'], readValue=False)
"""
    master.run(script)
    client = master.client()
    for number in range(50):
        client.set(f"k:{number}", 1)
    wait_until(lambda: client.get("count") == "50")
    master.wait_idle()
    caught_up(master, replica)
    expected = [f"k:{number}" for number in range(50)]
    for server in (master, replica):
        assert server.client().get("count") == "50"
        assert sorted(server.client().lrange("keys", 0, -1)) == sorted(expected)
    for server in (replica, master):
        promote(server)
        server.restart(kill=True)
        assert server.client().get("count") == "50"
        assert server.client().llen("keys") == 50


def test_a_master_that_is_demoted_under_a_writing_function(start_server: Callable[..., Server]) -> None:
    """The function meets READONLY, its execution ends, and both servers hold the same data."""
    old, new = start_server(), start_server()
    attach(new, old)
    script = """
def write(words):
    n = 0
    while True:
        n = execute('INCR', 'n')
        execute('SET', 'last', n)
GB('CommandReader').foreach(write).register(trigger='write', mode='async_local')
"""
    old.run(script)
    waiting = old.raw()
    waiting.send("RG.TRIGGER", "write")
    wait_until(lambda: int(old.own.get("n") or 0) > 100)
    promote(new)
    attach(old, new)
    error = waiting.read()
    assert b"READONLY" in error or b"UNBLOCKED" in error, error
    wait_until(lambda: not old._busy(), message="the function has ended")
    new.client().set("after", 1)
    caught_up(new, old)
    for key in ("n", "last", "after"):
        assert old.client().get(key) == new.client().get(key)


PREPARED = """
def prepare():
    global connection
    execute('INCR', 'prepared')
    connection = 'made'

GB('CommandReader').map(lambda words: connection).register(trigger='connection', mode='sync', onRegistered=prepare)

def quiet():
    log('quiet is prepared')

GB('CommandReader').map(lambda words: 1).register(trigger='quiet', mode='sync', onRegistered=quiet)
"""


@pytest.mark.parametrize("when", ["before", "after", "reloaded"])
def test_what_could_not_prepare_itself_on_a_replica_does_so_after_a_promotion(
    start_server: Callable[..., Server], when: str
) -> None:
    master, replica, last = start_server(), start_server(args=AOF), start_server()
    if when != "before":
        attach(replica, master)
        attach(last, replica)
    assert master.run(PREPARED) == "OK"
    if when != "after":
        # A resynchronisation or a restart: what failed before is loaded anew, and fails anew.
        promote(replica) if when == "reloaded" else None
        attach(replica, master)
        attach(last, replica)
    caught_up(master, replica, last)
    assert len(replica.registrations()) == 2
    assert "READONLY" in replica.log()
    failures = replica.log().count("Error occured on RedisGearsPy_OnRegistered")
    quiet = replica.log().count("quiet is prepared")
    before = int(replica.client().get("prepared") or 0)
    master.stop(kill=True)
    promote(replica)
    client = replica.client()
    assert client.execute_command("RG.TRIGGER", "connection") == ["made"]
    assert int(client.get("prepared") or 0) == before + 1
    assert replica.log().count("Error occured on RedisGearsPy_OnRegistered") == failures
    assert replica.log().count("quiet is prepared") == quiet, "only what failed runs again"
    # What it wrote reaches the next replica and the AOF file, where it runs as always.
    caught_up(replica, last)
    assert last.client().get("prepared") == client.get("prepared")
    promote(replica)
    assert int(client.get("prepared") or 0) == before + 1
    replica.restart(kill=True)
    assert int(replica.client().get("prepared") or 0) == before + 2


def test_what_fails_to_prepare_itself_on_a_master_is_not_tried_again(start_server: Callable[..., Server]) -> None:
    master, other = start_server(), start_server()
    master.run("""
        def prepare():
            log('tried')
            1 / 0

        GB('CommandReader').map(lambda words: 1).register(trigger='t', mode='sync', onRegistered=prepare)
    """)
    assert master.log().count("GEARS: tried") == 1
    attach(other, master)
    promote(other)
    assert (master.log().count("GEARS: tried"), other.log().count("GEARS: tried")) == (1, 2)
