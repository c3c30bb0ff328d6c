"""`write_behind`: the queue outlives the process, reaches replicas, and a promoted one goes on. Contract:
docs/contract/write-behind.md 2.1 and 2.8.
"""

from __future__ import annotations

import time
from typing import Callable

import pytest

from figures import figures, wait_for
from helpers import Server, wait_for_aof, wait_until
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

AOF = ["--appendonly", "yes", "--appendfsync", "always"]


def hold_up(server: Server, database: Database) -> None:
    """Nothing is saved: a few changes of three keys wait."""
    database.fail(1_000_000)
    client = server.client()
    client.set("user:1", "a")
    client.hset("user:2", mapping={"n": 1})
    wait_until(lambda: figures(server)["saveFailures"] > 0)
    client.set("user:1", "b")
    client.set("user:3", "x", px=1)
    client.delete("user:2")
    wait_for(server, queued=3)


ROWS = {"user:1": "b", "user:3": "x"}


@pytest.mark.parametrize("preamble", ["yes", "no"])
def test_an_aof_file_keeps_the_queue(start_server: Callable[..., Server], source: Server, preamble: str) -> None:
    server = start_server(args=[*AOF, "--aof-use-rdb-preamble", preamble])
    database = register(server, source)
    hold_up(server, database)
    server.restart(kill=True)
    wait_for(server, queued=3)
    client = server.client()
    client.bgrewriteaof()
    wait_for_aof(client)
    client.set("user:4", "behind the rewrite")
    wait_until(lambda: figures(server)["queued"] == 4)
    server.restart(kill=True)
    wait_for(server, queued=4)
    database.fail(0)
    drained(server)
    assert database.rows() == {**ROWS, "user:4": "behind the rewrite"}
    # What was saved does not come back.
    calls = len(database.calls())
    server.restart(kill=True)
    wait_for(server, queued=0)
    server.client().set("user:5", 1)
    drained(server)
    assert len(database.calls()) == calls + 1


def test_an_rdb_file_keeps_the_queue(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=["--save", "3600 1"])
    database = register(server, source)
    hold_up(server, database)
    for _ in range(2):
        server.client().save()
        server.restart()
        wait_for(server, queued=3)
    server.client().execute_command("DEBUG", "RELOAD")
    wait_for(server, queued=3)
    database.fail(0)
    drained(server)
    assert database.rows() == ROWS
    ids = [change["id"] for change in database.changes()]
    server.client().set("user:1", "c")
    drained(server)
    last = database.changes()[-1]["id"]
    assert tuple(map(int, last.split("-"))) > max(tuple(map(int, one.split("-"))) for one in ids)


def test_a_file_without_registrations_ends_the_queue(server: Server, source: Server) -> None:
    database = register(server, source)
    hold_up(server, database)
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"], "ABORTPENDING")
    server.client().execute_command("DEBUG", "RELOAD")
    assert server.registrations() == []
    database.fail(0)
    assert database.rows() == {}


def test_whoever_comes_to_hear_of_changes_has_all_of_them(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server()
    database = register(server, source, "coalesce=False")
    database.fail(1_000_000)
    client = server.client()
    written = 0

    def write() -> int:
        nonlocal written
        written += 1
        client.set(f"user:{written % 5}", written)
        return int(client.info("rg_write_behind")["rg_write_behind_handed_on_total"])

    wait_until(lambda: write() == write(), message="nobody is there to hand it on to")
    replica = start_server(args=["--replicaof", server.host, server.port])
    # Some before it is there, some on the way, some behind.
    wait_until(lambda: write() > 0 and replica.client().info("replication")["master_link_status"] == "up")
    before = write()
    assert write() > before
    wait_for(server, queued=written)
    wait_for(replica, queued=written)

    client.config_set("appendonly", "yes")
    write()
    wait_until(lambda: write() > 0 and not client.info("persistence")["aof_rewrite_scheduled"])
    wait_for_aof(client)
    write()
    replica.client().replicaof("no", "one")
    client.execute_command("DEBUG", "LOADAOF")
    wait_for(server, queued=written)
    database.fail(0)
    drained(server)
    drained(replica)
    assert database.rows() == {f"user:{number % 5}": str(number) for number in range(written - 4, written + 1)}


def test_an_aof_file_that_begins_later_has_the_queue(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server()
    database = register(server, source, "coalesce=False")
    database.fail(1_000_000)
    client = server.client()
    handed_on = lambda: int(client.info("rg_write_behind")["rg_write_behind_handed_on_total"])  # noqa: E731
    wait_until(lambda: client.set("user:0", "x") and handed_on() == (client.set("user:0", "y") and handed_on()))
    client.config_set("appendonly", "yes")
    client.set("user:1", "on the way")
    wait_for_aof(client)
    client.set("user:2", "behind")
    queued = figures(server)["queued"]
    client.execute_command("DEBUG", "LOADAOF")
    wait_for(server, queued=queued)
    database.fail(0)
    drained(server)
    assert database.rows() == {"user:0": "y", "user:1": "on the way", "user:2": "behind"}


def test_a_promoted_replica_goes_on(start_server: Callable[..., Server], source: Server) -> None:
    master = start_server()
    database = register(master, source, "coalesce=False")
    hold_master = master.client()
    database.fail(1_000_000)
    hold_master.set("user:0", "before the replica")
    wait_for(master, queued=1)
    replica = start_server(args=["--replicaof", master.host, master.port])
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    wait_for(replica, queued=1)
    for number in range(1, 20):
        hold_master.set(f"user:{number % 4}", number)
    wait_for(replica, queued=20)
    assert figures(replica)["saveFailures"] == 0, "a replica calls nothing"
    # What the master saves leaves the replica's queue.
    database.fail(0)
    drained(master)
    wait_for(replica, queued=0)
    assert len(database.changes()) == 20
    database.fail(1_000_000)
    hold_master.set("user:9", "not saved by the old master")
    wait_for(replica, queued=1)
    master.stop(kill=True)
    database.fail(0)
    replica.client().replicaof("no", "one")
    drained(replica)
    replica.client().set("user:10", "x")
    drained(replica)
    rows = database.rows()
    assert rows["user:9"] == "not saved by the old master" and rows["user:10"] == "x"
    for key in rows:
        ids = [tuple(map(int, change["id"].split("-"))) for change in database.changes() if change["key"] == key]
        assert ids == sorted(ids), key


def test_a_master_that_becomes_a_replica_saves_no_more(start_server: Callable[..., Server], source: Server) -> None:
    one, two = start_server(), start_server()
    database = register(one, source)
    database.client.set("hang", 1)
    one.client().set("user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    one.client().replicaof(two.host, two.port)
    wait_until(lambda: one.own.info("replication")["master_link_status"] == "up")
    database.client.delete("hang")
    database.client.rpush("go", 1)
    assert one.registrations() == []
    two.client().set("user:2", "b")
    wait_until(lambda: one.own.get("user:2") == "b")
    assert "user:2" not in database.rows()


def test_damaged_changes_come_to_light(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=AOF)
    database = register(server, source, "max_tries=1, dead_letter='dead'")
    database.fail(1_000_000)
    client = server.client()
    client.set("user:1", "precious")
    client.set("user:2", "fine")
    wait_for(server, queued=2)
    server.stop(kill=True)
    (file,) = server.dir.glob("appendonlydir/*.incr.aof")
    content = file.read_bytes()
    at = content.index(b"precious", content.index(b"PINIONQ"))
    file.write_bytes(content[:at] + b"PRECIOUS" + content[at + 8 :])
    database.fail(0)
    server.start()
    drained(server)
    assert database.rows() == {"user:2": "fine"}
    ((_, letter),) = server.client().xrange("dead")
    assert (letter["key"], letter["type"], letter["error"]) == ("user:1", "damaged", "Damaged")
    assert "PRECIOUS" in letter["value"]


def damaged(server: Server, database: Database, word: bytes) -> None:
    """Starts the server with an AOF file in which a value is another one than its digest says."""
    server.stop(kill=True)
    (file,) = server.dir.glob("appendonlydir/*.incr.aof")
    content = file.read_bytes()
    at = content.index(word, content.index(b"PINIONQ"))
    file.write_bytes(content[:at] + word.upper() + content[at + len(word) :])
    database.fail(0)
    server.start()


def test_a_damaged_change_that_cannot_be_put_away_stays(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=AOF)
    database = register(server, source, "max_tries=1, dead_letter='dead', coalesce=False, backoff=0.01, max_backoff=0.05")
    database.fail(1_000_000)
    client = server.client()
    client.set("dead", "no stream")
    client.set("user:1", "precious")
    client.set("user:2", "fine")
    client.set("user:1", "newer")
    wait_for(server, queued=3)
    damaged(server, database, b"precious")
    wait_for(server, queued=2, saved=1)
    wait_until(lambda: "cannot be put into 'dead' either: WRONGTYPE" in str(figures(server)["lastError"]))
    assert database.rows() == {"user:2": "fine"}, "what is behind it waits"
    # It is in the next file, too.
    server.restart(kill=True)
    wait_for(server, queued=2)
    client = server.client()
    client.set("user:3", "goes on")
    wait_until(lambda: database.row("user:3") == "goes on")
    wait_for(server, queued=2, dead=0)
    wait_until(lambda: figures(server)["lastError"] is not None)
    assert server.log().count("cannot be put into 'dead' either") <= 2, "once a minute, of each run"
    client.delete("dead")
    drained(server)
    assert database.rows() == {"user:1": "newer", "user:2": "fine", "user:3": "goes on"}
    ((_, letter),) = client.xrange("dead")
    assert (letter["key"], letter["error"], int(letter["tries"]) > 0) == ("user:1", "Damaged", True)
    assert "PRECIOUS" in letter["value"]
    assert figures(server)["dead"] == 1


@pytest.mark.parametrize("way", ["a newer change", "an upgrade"])
def test_a_damaged_change_without_dead_letters_stays(start_server: Callable[..., Server], source: Server, way: str) -> None:
    server = start_server(args=AOF)
    database = register(server, source, "backoff=0.01, max_backoff=0.05", words=("ID", "mine"))
    database.fail(1_000_000)
    client = server.client()
    client.mset({"user:1": "precious", "user:2": "fine"})
    wait_for(server, queued=2)
    damaged(server, database, b"precious")
    wait_for(server, queued=1, saved=1)
    wait_until(lambda: "cannot be saved (Damaged), and stays where it is: there is no dead_letter" in str(figures(server)["lastError"]))
    if way == "an upgrade":
        register(server, source, "max_tries=1, dead_letter='dead'", words=("ID", "mine", "UPGRADE"))
        wait_for(server, queued=0, dead=1)
        assert server.client().xlen("dead") == 1
    else:
        server.client().append("user:1", " now")
        drained(server)
        assert database.row("user:1") == "precious now"


def test_a_damaged_id_is_above_none_that_follows(start_server: Callable[..., Server], source: Server) -> None:
    """A turned bit put the ids of all later changes thousands of years off, and hid the later ones of its key."""
    server = start_server(args=AOF)
    database = register(server, source, "coalesce=False, max_tries=1, dead_letter='dead', backoff=0.01, max_backoff=0.05")
    database.fail(1_000_000)
    client = server.client()
    client.set("user:1", "precious")
    client.set("user:1", "newer")
    wait_for(server, queued=2)
    server.stop(kill=True)
    (file,) = server.dir.glob("appendonlydir/*.incr.aof")
    content = bytearray(file.read_bytes())
    # Kind, length and digest; the queue's name with its length; then the milliseconds, the highest byte last.
    name = content.index(b"user:*", content.index(b"PINIONQ"))
    assert content[name + 6 + 7] == 0
    content[name + 6 + 7] ^= 0x40
    file.write_bytes(content)
    database.fail(0)
    server.start()
    drained(server)
    assert database.rows() == {"user:1": "newer"}
    assert server.client().xlen("dead") == 1
    server.client().set("user:2", "later")
    drained(server)
    ms = int(database.changes()[-1]["id"].partition("-")[0])
    assert abs(ms / 1000 - time.time()) < 3600


def test_the_log_tells_what_is_not_saved_at_the_end(start_server: Callable[..., Server]) -> None:
    server = start_server()
    server.run("""
        def save(changes):
            raise ConnectionError
        write_behind('user:*', save)
    """)
    server.client().mset({"user:1": "a", "user:2": "b"})
    server.stop()
    assert "write_behind: the server ends with 2 changes that are not saved" in server.log()
