"""`WriteBehindSaving no`: changes stay queued, and no `save` is called, until somebody says so. Contract: docs/contract/write-behind.md 2.8."""

from __future__ import annotations

import json
from typing import Callable, Generator

import pytest
import redis

from figures import figures, wait_for
from helpers import Server, as_dict, wait_until
from test_write_behind_halves import both, saver
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

OFF = "no: WriteBehindSaving is off"


def switch(server: Server, word: str) -> None:
    assert server.own.execute_command("RG.CONFIGSET", "WriteBehindSaving", word) == ["OK"]


@pytest.fixture
def off(server: Server) -> Generator[Server, None, None]:
    """A server whose saving is off."""
    switch(server, "no")
    yield server
    switch(server, "yes")


def had_the_time(server: Server) -> None:
    """Workers have run what came later than the changes: a call of `save` would have begun."""
    for _ in range(3):
        assert server.run("GB('ShardsIDReader').count().run()")[0] == ["1"]


def shown(server: Server) -> tuple[int, int, str]:
    """What INFO, RG.STATS and RG.KEYINFO say of it."""
    [entry] = as_dict(server.own.execute_command("RG.KEYINFO", "user:1"))["write_behind"]
    return (
        server.own.info("rg_write_behind")["rg_write_behind_saving"],
        json.loads(server.own.execute_command("RG.STATS"))["write_behind"]["saving"],
        as_dict(entry)["saves"],
    )


def test_changes_stay_queued_until_it_is_on(off: Server, source: Server) -> None:
    database = register(off, source)
    client = off.client()
    for number in range(3):
        client.set("user:1", number)
    client.hset("user:2", "name", "Ann")
    client.delete("user:3")
    had_the_time(off)
    found = figures(off)
    assert (found["queued"], found["coalesced"], found["numTriggered"], found["batches"], found["saveFailures"]) == (3, 2, 0, 0, 0)
    assert shown(off) == (0, 0, OFF)
    assert "saving is off (WriteBehindSaving)" in off.log()
    assert client.config_get("rg.write-behind-saving") == {"rg.write-behind-saving": "no"}
    client.config_set("rg.write-behind-saving", "yes")
    drained(off)
    assert [change["key"] for change in database.changes()] == ["user:1", "user:2", "user:3"]
    assert database.rows() == {"user:1": "2", "user:2": {"name": "Ann"}}
    assert shown(off) == (1, 1, "yes") and "saving is on" in off.log()


def test_a_call_that_runs_ends_as_usual(server: Server, source: Server) -> None:
    database = register(server, source)
    database.client.set("hang", 1)
    client = server.client()
    client.set("user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    switch(server, "no")
    try:
        client.set("user:2", "b")
        database.client.delete("hang")
        database.client.rpush("go", 1)
        wait_for(server, saved=1)
        had_the_time(server)
        assert figures(server)["queued"] == 1 and database.rows() == {"user:1": "a"}
    finally:
        switch(server, "yes")
    drained(server)
    assert database.rows() == {"user:1": "a", "user:2": "b"}


def test_a_call_that_hangs_is_stopped_all_the_same(server: Server, source: Server) -> None:
    register(server, source, "max_save_time=0.2, wait=True", more="import time\ndef save(changes):\n    while True:\n        time.sleep(0.01)\n")
    raw = server.raw()
    raw.send("SET", "user:1", "a")
    wait_until(lambda: figures(server)["numTriggered"] == 1)
    switch(server, "no")
    try:
        wait_for(server, saveFailures=1)
        had_the_time(server)
        assert (figures(server)["numTriggered"], figures(server)["queued"]) == (1, 1)
    finally:
        raw.close()
        server.own.execute_command("RG.UNREGISTER", server.registrations()[0]["id"], "ABORTPENDING")
        switch(server, "yes")


def test_who_waits_for_his_save(off: Server, source: Server) -> None:
    database = register(off, source, "wait=True, timeout=0.3")
    client = off.client()
    with pytest.raises(redis.ResponseError, match="^SAVEFAILED SavingIsOff$"):
        client.set("user:1", "a")
    assert client.get("user:1") == "a", "it is there, and queued"
    off.own.execute_command("RG.UNREGISTER", off.registrations()[0]["id"], "ABORTPENDING")
    database = register(off, source, "wait=True, timeout=100")
    raw = off.raw()
    raw.send("SET", "user:2", "b")
    wait_until(lambda: off.own.info("rg_write_behind")["rg_write_behind_clients_waiting_for_save"] == 1)
    switch(off, "yes")
    assert raw.read() == b"+OK\r\n" and database.row("user:2") == "b"


def test_a_full_queue(off: Server, source: Server) -> None:
    database = register(off, source, "max_queue=1, full_timeout=0.2")
    client = off.client()
    client.set("user:1", "a")
    with pytest.raises(redis.ResponseError, match="^QUEUEFULL 1 changes"):
        client.set("user:2", "b")
    client.set("user:1", "c")
    off.own.execute_command("RG.UNREGISTER", off.registrations()[0]["id"], "ABORTPENDING")
    database = register(off, source, "max_queue=1")
    client.set("user:1", "d")
    raw = off.raw()
    raw.send("SET", "user:3", "e")
    wait_for(off, waitedForRoom=1)
    switch(off, "yes")
    assert raw.read() == b"+OK\r\n"
    drained(off)
    assert database.rows() == {"user:1": "d", "user:3": "e"}


def test_both_halves(off: Server, source: Server) -> None:
    database = both(off, source, "ttl=100")
    database.client.set("row:0:user:2", '"from the database"')
    client = off.client()
    client.set("user:1", "a")
    client.flushall()
    assert client.get("user:1") == "a", "the queue has it"
    assert client.get("user:2") == "from the database", "loads go on"
    had_the_time(off)
    assert database.rows() == {"user:2": "from the database"}
    switch(off, "yes")
    drained(off, saver(off))
    assert database.row("user:1") == "a"


@pytest.mark.parametrize("way", ["argument", "option"])
def test_from_the_start_on(start_server: Callable[..., Server], source: Server, way: str) -> None:
    """After a restart with a queue in the file."""
    server = start_server(args=["--appendonly", "yes", "--appendfsync", "always"])
    database = register(server, source, "backoff=0.01, max_backoff=0.01")
    database.fail(1_000_000)
    server.client().set("user:1", "a")
    wait_until(lambda: figures(server)["saveFailures"] > 0)
    server.stop()
    database.client.delete("outage")
    if way == "argument":
        server.module_args += ["WriteBehindSaving", "no"]
    else:
        server.args += ["--rg.write-behind-saving", "no"]
    server.start()
    wait_until(lambda: figures(server)["lastError"] is None, message="its functions are loaded")
    server.client().set("user:2", "b")
    had_the_time(server)
    assert (figures(server)["queued"], figures(server)["numTriggered"]) == (2, 0)
    assert database.rows() == {} and shown(server) == (0, 0, OFF)
    assert "saving is off (WriteBehindSaving)" in server.log()
    switch(server, "yes")
    drained(server)
    assert database.rows() == {"user:1": "a", "user:2": "b"}


def test_a_promoted_replica_goes_by_its_own(start_server: Callable[..., Server], source: Server) -> None:
    master = start_server()
    switch(master, "no")
    database = register(master, source)
    replica = start_server(args=["--replicaof", master.host, master.port])
    master.client().set("user:1", "a")
    wait_until(lambda: replica.registrations() and figures(replica)["queued"] == 1)
    switch(replica, "no")
    replica.client().replicaof("no", "one")
    wait_until(lambda: shown(replica)[2] == OFF)
    had_the_time(replica)
    assert database.rows() == {} and figures(replica)["queued"] == 1
    switch(replica, "yes")
    drained(replica)
    assert database.rows() == {"user:1": "a"} and figures(master)["queued"] == 1
