"""RG.KEYINFO: what both halves of the cache know of one key. Contract: docs/contract/read-through.md chapter 4 and
docs/contract/write-behind.md 2.11.

Each state is shown by a real server, a source whose answers the test holds back, and a `save` that fails as the test says.
"""

from __future__ import annotations

import time
from typing import Any, Callable

import pytest
import redis

import read_through as loading
import write_behind as saving
from clusters import Cluster
from figures import figures
from helpers import Server, as_dict, wait_until

pytestmark = pytest.mark.matrix

READ = ["state", "freshMS", "staleMS", "absentMS", "load", "loadMS", "waiting", "failures", "backoffMS", "breaker", "breakerMS", "loader", "lastError"]
WRITTEN = ["saves", "state", "queued", "oldestId", "oldestMS", "oldestEvent", "newestId", "newestEvent", "savingMS", "tries", "nextTryMS", "givenUpId",
           "lastError", "waitingForSave", "waitingForRoom"]


def info(server: Server, key: str, client: redis.Redis | None = None) -> dict[str, Any]:
    """The reply, with a dict for each registration."""
    reply = as_dict((client or server.own).execute_command("RG.KEYINFO", key))
    for half in ("read_through", "write_behind"):
        reply[half] = [as_dict(entry) for entry in reply[half]]
    return reply


def read(server: Server, key: str) -> dict[str, Any]:
    """The only registration of `read_through`."""
    [entry] = info(server, key)["read_through"]
    return entry


def written(server: Server, key: str) -> dict[str, Any]:
    """The only registration of `write_behind`."""
    [entry] = info(server, key)["write_behind"]
    return entry


# --- the reply ---


def test_a_key_that_nobody_has(server: Server) -> None:
    client = server.client()
    client.set("elsewhere", "x", px=100_000)
    reply = info(server, "elsewhere")
    assert 0 < reply.pop("leftMS") <= 100_000
    assert reply == {"key": "elsewhere", "db": 0, "role": "master", "registered": "no", "inCache": 1, "read_through": [], "write_behind": []}
    assert info(server, "none") == {**reply, "key": "none", "leftMS": None, "inCache": 0}


def test_errors(server: Server) -> None:
    wrong = b"-ERR wrong number of arguments for 'rg.keyinfo' command\r\n"
    assert server.raw().call("RG.KEYINFO") == wrong
    assert server.raw().call("RG.KEYINFO", "a", "b") == wrong


def test_a_map_in_resp3(server: Server) -> None:
    server.run("read_through('user:*', lambda key: None)")
    reply = server.client(protocol=3).execute_command("RG.KEYINFO", "user:1")
    assert isinstance(reply, dict) and reply["registered"] == "read_through"
    assert list(reply["read_through"][0]) == ["id", "prefix", "session", *READ]
    plain = server.client().execute_command("RG.KEYINFO", "user:1")
    assert plain[::2] == list(reply), "the same names in RESP2"


def test_the_selected_database(server: Server, source: Server) -> None:
    saving.register(server, source, "interval=60")
    server.client(db=3).set("user:1", "x")
    assert (written(server, "user:1")["queued"], info(server, "user:1")["inCache"]) == (0, 0)
    reply = info(server, "user:1", server.client(db=3))
    assert (reply["db"], reply["inCache"], reply["write_behind"][0]["queued"]) == (3, 1, 1)


def test_in_transactions_scripts_and_functions(server: Server) -> None:
    server.run("read_through('user:*', lambda key: None)\nGB('CommandReader').map(lambda r: execute('RG.KEYINFO', r[1])).register(trigger='look', mode='sync')")
    client = server.client()
    pipeline = client.pipeline()
    pipeline.execute_command("RG.KEYINFO", "user:1")
    assert as_dict(pipeline.execute()[0])["registered"] == "read_through"
    assert "read_through" in client.eval("return redis.call('RG.KEYINFO', KEYS[1])", 1, "user:1")
    assert "missing" in client.execute_command("RG.TRIGGER", "look", "user:1")[0]
    assert server.registrations()[0]["RegistrationData"]["loads"] == 0


def test_rights(server: Server) -> None:
    own = server.own
    own.execute_command("ACL", "SETUSER", "looker", "on", ">x", "resetkeys", "~user:*", "+rg.keyinfo")
    try:
        client = server.client(username="looker", password="x")
        assert info(server, "user:1", client)["registered"] == "no"
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command("RG.KEYINFO", "order:1")
        own.execute_command("ACL", "SETUSER", "looker", "-rg.keyinfo")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command("RG.KEYINFO", "user:1")
    finally:
        own.execute_command("ACL", "DELUSER", "looker")


def test_nothing_begins_and_nothing_is_touched_or_counted(server: Server, source: Server) -> None:
    """Of a key that is missing, and of one that is stale: a read would load both."""
    loads = loading.register(server, source, "ttl=0.001, stale=1000")
    loads.give("user:1", "old")
    client = server.client()
    assert client.get("user:1") == "old"
    wait_until(lambda: read(server, "user:1")["state"] == "stale")
    client.config_set("maxmemory-policy", "allkeys-lfu")
    try:
        client.set("plain", "x")
        uses = client.object("freq", "plain")
        before, counted = figures(server), client.info("stats")
        for _ in range(300):
            info(server, "user:1")
            info(server, "user:2")
            info(server, "plain")
        after, now = figures(server), client.info("stats")
        assert after == before and loads.loads() == 1
        for name in ("keyspace_hits", "keyspace_misses", "expired_keys"):
            assert now[name] == counted[name], name
        # Three hundred uses would show by all chance.
        assert client.object("freq", "plain") <= uses
    finally:
        client.config_set("maxmemory-policy", "noeviction")


# --- read_through ---


def test_fresh_stale_and_a_load_in_the_background(server: Server, source: Server) -> None:
    loads = loading.register(server, source, "ttl=1, stale=1000")
    loads.give("user:1", "one")
    client = server.client()
    client.get("user:1")
    seen = read(server, "user:1")
    assert (seen["state"], seen["staleMS"], seen["load"], seen["loader"], seen["breaker"]) == ("fresh", None, "none", "ready", "closed")
    assert 0 < seen["freshMS"] <= 1100
    assert 1_000_000 - 100 < info(server, "user:1")["leftMS"] < 1_001_200
    wait_until(lambda: read(server, "user:1")["state"] == "stale", message="its ttl is over")
    seen = read(server, "user:1")
    assert seen["freshMS"] is None and 0 <= seen["staleMS"] < 60_000
    wait_until(lambda: read(server, "user:1")["staleMS"] > seen["staleMS"], message="it grows older")
    assert client.get("user:1") == "one"
    loads.wait_for_loads(2)
    seen = read(server, "user:1")
    assert (seen["state"], seen["load"], seen["waiting"]) == ("stale", "running", 0)
    loads.give("user:1", "two")
    wait_until(lambda: read(server, "user:1")["load"] == "none")
    assert client.get("user:1") == "two"


def test_a_load_and_who_waits_for_it(server: Server, source: Server) -> None:
    loads = loading.register(server, source, "ttl=100, max_loads=1")
    assert read(server, "user:1")["state"] == "missing"
    waiting = [server.raw() for _ in range(3)]
    for client in waiting:
        client.send("GET", "user:1")
    loads.wait_for_loads(1)
    wait_until(lambda: read(server, "user:1")["waiting"] == 3)
    seen = read(server, "user:1")
    assert (seen["state"], seen["load"]) == ("missing", "running") and seen["loadMS"] >= 0
    wait_until(lambda: read(server, "user:1")["loadMS"] > seen["loadMS"], message="it goes on")
    behind = server.raw()
    behind.send("GET", "user:2")
    wait_until(lambda: read(server, "user:2")["waiting"] == 1)
    second = read(server, "user:2")
    assert (second["load"], second["loadMS"]) == ("queued", None)
    loads.give("user:1", "one")
    loads.give("user:2", "two")
    assert [client.read() for client in waiting] == [b"$3\r\none\r\n"] * 3
    assert behind.read() == b"$3\r\ntwo\r\n"
    loading.at_rest(server)
    seen = read(server, "user:1")
    assert (seen["state"], seen["load"], seen["waiting"]) == ("fresh", "none", 0)


def test_absent_and_remembered(server: Server, source: Server) -> None:
    loads = loading.register(server, source, "negative_ttl=100")
    loads.give("user:1", "-")
    client = server.client()
    assert client.get("user:1") is None
    seen = read(server, "user:1")
    assert seen["state"] == "absent" and 0 < seen["absentMS"] <= 100_000
    client.delete("user:1")
    seen = read(server, "user:1")
    assert (seen["state"], seen["absentMS"]) == ("missing", None), "DEL ends it"


def test_loads_that_fail_back_off_and_open_the_breaker(server: Server, source: Server) -> None:
    loads = loading.register(server, source, "backoff=50, max_backoff=50, breaker=(2, 500)")
    client = server.client()
    loads.give("user:1", "!ValueError first")
    with pytest.raises(redis.ResponseError, match="LOADFAILED ValueError"):
        client.get("user:1")
    seen = read(server, "user:1")
    assert (seen["state"], seen["failures"], seen["breaker"], seen["breakerMS"]) == ("missing", 1, "closed", None)
    assert 0 < seen["backoffMS"] <= 50_000 and "first" in seen["lastError"]
    assert read(server, "user:2")["backoffMS"] is None, "the rest is the key's own"
    loads.give("user:2", "!ValueError second")
    with pytest.raises(redis.ResponseError, match="LOADFAILED ValueError"):
        client.get("user:2")
    seen = read(server, "user:3")
    assert (seen["failures"], seen["breaker"]) == (0, "open") and 0 < seen["breakerMS"] <= 500_000


def test_values_that_nothing_loads_again(server: Server, source: Server) -> None:
    loading.register(server, source, "ttl=10, stale=10")
    client = server.client()
    client.set("user:1", "x")
    seen = read(server, "user:1")
    assert (seen["state"], seen["freshMS"], info(server, "user:1")["leftMS"]) == ("endless", None, None)
    # One millisecond of 64 has the mark of a loaded value.
    client.set("user:2", "x", pxat=64 * (int(time.time() * 1000) // 64 + 500))
    assert read(server, "user:2")["state"] == "own"


def test_the_nearest_of_several_registrations(server: Server) -> None:
    server.run("read_through('user:*', lambda key: None)\nread_through('user:vip:*', lambda key: None, ttl=5)\nread_through('order:*', lambda key: None)")
    first, second = info(server, "user:vip:1")["read_through"]
    assert (first["prefix"], first["state"]) == ("user:vip:*", "missing")
    assert (second["prefix"], second["state"], len(second)) == ("user:*", "shadowed", 4)
    assert len(info(server, "user:1")["read_through"]) == 1


# --- write_behind ---


def test_nothing_queued_then_waiting_then_saved(server: Server, source: Server) -> None:
    database = saving.register(server, source, "interval=1000, coalesce=False")
    seen = written(server, "user:1")
    assert list(seen) == ["id", "prefix", "session", *WRITTEN]
    assert (seen["saves"], seen["state"], seen["queued"], seen["oldestId"], seen["nextTryMS"]) == ("yes", "nothing queued", 0, None, None)
    client = server.client()
    client.hset("user:1", "a", "1")
    client.hdel("user:1", "a")
    seen = written(server, "user:1")
    assert (seen["state"], seen["queued"], seen["oldestEvent"], seen["newestEvent"], seen["tries"]) == ("waiting", 2, "hset", "del", 0)
    assert tuple(map(int, seen["oldestId"].split("-"))) < tuple(map(int, seen["newestId"].split("-")))
    assert 0 <= seen["oldestMS"] < 100_000 and 900_000 < seen["nextTryMS"] <= 1_000_000
    wait_until(lambda: written(server, "user:1")["oldestMS"] > seen["oldestMS"], message="it grows older")
    assert written(server, "user:2")["queued"] == 0
    assert database.calls() == []


def test_a_call_that_runs_and_who_waits_for_it(server: Server, source: Server) -> None:
    database = saving.register(server, source, "wait=True, timeout=100")
    database.client.set("hang", "1")
    client = server.raw()
    client.send("SET", "user:1", "x")
    wait_until(lambda: database.client.llen("hanging") == 1, message="the call runs")
    seen = written(server, "user:1")
    assert (seen["state"], seen["queued"], seen["waitingForSave"], seen["nextTryMS"]) == ("saving", 1, 1, None) and seen["savingMS"] >= 0
    wait_until(lambda: written(server, "user:1")["savingMS"] > seen["savingMS"], message="it goes on")
    database.client.delete("hang")
    database.client.rpush("go", "1")
    assert client.read() == b"+OK\r\n"
    seen = written(server, "user:1")
    assert (seen["state"], seen["waitingForSave"], seen["savingMS"]) == ("nothing queued", 0, None)
    assert database.row("user:1") == "x"


def test_a_change_that_fails_and_is_given_up(server: Server, source: Server) -> None:
    database = saving.register(server, source, "max_tries=1, backoff=0.01, max_backoff=0.01, batch=1")
    database.poison("user:bad")
    client = server.client()
    client.set("user:bad", "x")
    wait_until(lambda: written(server, "user:bad")["tries"] > 2)
    wait_until(lambda: written(server, "user:bad")["state"] == "failed", message="between two tries")
    seen = written(server, "user:bad")
    assert seen["queued"] == 1 and "bad row user:bad" in seen["lastError"] and seen["givenUpId"] is None
    client.set("user:good", "x")
    wait_until(lambda: database.row("user:good") == "x")
    wait_until(lambda: written(server, "user:good")["queued"] == 0)
    assert "bad row" in written(server, "user:bad")["lastError"], "its own, whatever went well since"
    assert written(server, "user:good")["lastError"] is None, "and nobody else's"
    identity = written(server, "user:bad")["newestId"]
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"], "ABORTPENDING")
    database = saving.register(server, source, "max_tries=1, backoff=0.01, max_backoff=0.01, batch=1, dead_letter='dead'")
    client.set("user:bad", "y")
    client.set("user:good", "y")
    wait_until(lambda: (client.set("user:good", "z"), client.xlen("dead"))[1] == 1, message="it is given up")
    seen = written(server, "user:bad")
    assert (seen["state"], seen["queued"], seen["tries"]) == ("nothing queued", 0, 0)
    assert seen["givenUpId"] > identity and "bad row user:bad" in seen["lastError"]
    database.poison()
    client.set("user:bad", "at last")
    wait_until(lambda: database.row("user:bad") == "at last")
    wait_until(lambda: written(server, "user:bad")["givenUpId"] is None, message="a newer one is saved")
    assert written(server, "user:bad")["lastError"] is None


def test_who_waits_for_room(server: Server, source: Server) -> None:
    saving.register(server, source, "max_queue=1, interval=1000")
    server.client().set("user:1", "x")
    client = server.raw()
    client.send("SET", "user:2", "x")
    wait_until(lambda: written(server, "user:2")["waitingForRoom"] == 1)
    assert (written(server, "user:2")["queued"], written(server, "user:1")["waitingForRoom"]) == (0, 0)
    client.close()


def test_why_nothing_is_saved(server: Server, source: Server) -> None:
    saving.register(server, source)
    client = server.client()
    client.execute_command("CLIENT", "PAUSE", "100000", "WRITE")
    try:
        assert written(server, "user:1")["saves"] == "no: clients are paused"
    finally:
        client.execute_command("CLIENT", "UNPAUSE")
    assert written(server, "user:1")["saves"] == "yes"


# --- both halves, replicas, shards ---


def test_both_halves(server: Server, source: Server) -> None:
    database = saving.register(
        server, source, "interval=1000", more="read_through('user:*', lambda key: db.get('row:0:' + key), onRegistered=connect, ttl=100)"
    )
    client = server.client()
    client.set("user:1", "x")
    assert info(server, "user:1")["registered"] == "both"
    assert read(server, "user:1")["state"] == "endless"
    # An eviction, in one command.
    client.flushall()
    reply = info(server, "user:1")
    assert (reply["inCache"], reply["read_through"][0]["state"], reply["write_behind"][0]["queued"]) == (0, "unsaved", 1)
    assert client.get("user:1") == "x", "the next read has it from the queue"
    assert database.calls() == []


def test_a_replica_tells_what_it_has(start_server: Callable[..., Server], source: Server) -> None:
    master = start_server()
    replica = start_server(args=["--replicaof", master.host, master.port])
    wait_until(lambda: replica.client().info("replication").get("master_link_status") == "up")
    saving.register(master, source, "interval=1000", more="read_through('rate:*', lambda key: 'loaded', ttl=1000)")
    client = master.client()
    client.get("rate:chf")
    client.set("user:1", "x")
    client.wait(1, 10_000)
    wait_until(lambda: info(replica, "user:1")["write_behind"] and written(replica, "user:1")["queued"] == 1)
    reply = info(replica, "user:1")
    assert (reply["role"], reply["inCache"], reply["write_behind"][0]["saves"]) == ("replica", 1, "no: this is a replica")
    seen = read(replica, "rate:chf")
    assert seen["state"] == "fresh" and 0 < seen["freshMS"] <= 1_000_000
    assert written(replica, "user:1")["oldestId"] == written(master, "user:1")["oldestId"]


def test_a_shard_redirects(cluster: Cluster) -> None:
    slot = cluster[0].own.execute_command("CLUSTER", "KEYSLOT", "user:1")
    replies = [shard.raw().call("RG.KEYINFO", "user:1") for shard in cluster]
    moved = [reply for reply in replies if reply.startswith(b"-MOVED %d " % slot)]
    assert len(moved) == len(replies) - 1 and sum(reply.startswith(b"*") for reply in replies) == 1
