"""Both halves in a cluster, and slots that move while changes of their keys are not saved: no load comes over a change that waits on the shard where
the slot was. Contract: docs/contract/write-behind.md 2.3 and 2.6. The database answers loads, and refuses saves while it "is away"."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from typing import Callable

import pytest
from redis.crc import key_slot

from clusters import Cluster, info_cluster, make_cluster, move_slot, node_id
from helpers import RawClient, Server, wait_until
from write_behind import Database, register

HALVES = '''
    def load(key):
        text = db.get('row:0:' + key)
        return None if text is None else json.loads(text)

    def load_all(keys):
        return {key: load(key) for key in keys}

    GUARDED = """
    if (redis.call('HGET', KEYS[2], KEYS[1]) or '') < ARGV[1] then
        redis.call('HSET', KEYS[2], KEYS[1], ARGV[1])
        redis.call('SET', KEYS[1], ARGV[2])
    end
    redis.call('RPUSH', 'saved', ARGV[3])
    """

    def save(changes):
        # A row keeps the value with the newest id, as recipes do it.
        if int(db.get('outage') or 0) > 0:
            raise ConnectionError('the database is away')
        for change in changes:
            ms, seq = change['id'].split('-')
            value = json.dumps(plain(change['value']))
            db.eval(GUARDED, 2, 'row:0:' + change['key'], 'ids', '%015d-%010d' % (int(ms), int(seq)), value, change['key'] + ' ' + value)

    read_through('user:*', LOADER, onRegistered=connect, ttl=1000)
'''
WAITS = "wait until changes of them are saved that happened before their slots moved"


def deploy(cluster: Cluster, source: Server, loader: str = "load", saving: str = "backoff=0.05, max_backoff=0.05") -> Database:
    database = register(cluster[0], source, saving, more=HALVES.replace("LOADER", loader))
    wait_until(lambda: all(len(server.registrations()) == 2 for server in cluster.masters))
    return database


def keys_of(cluster: Cluster, shard: int, count: int, tag: str = "") -> list[str]:
    """Of one slot where `tag` is given."""
    if tag:
        tag = next(f"{{{tag}{number}}}" for number in range(1000) if cluster.shard_of(f"{{{tag}{number}}}") is cluster[shard])
    names = (name for name in (f"user:{tag}{number}" for number in range(1000)) if cluster.shard_of(name) is cluster[shard])
    return list(itertools.islice(names, count))


def queued(server: Server) -> int:
    return int(server.own.info("rg_write_behind")["rg_write_behind_queued"])


def all_saved(cluster: Cluster) -> None:
    for server in cluster.masters:
        wait_until(lambda: queued(server) == 0, 20, "all is saved")


def row(database: Database, key: str, **fields: object) -> None:
    database.client.set(f"row:0:{key}", json.dumps(fields))


def forget(server: Server, *keys: str) -> None:
    """They end in the cache, which is no change."""
    for key in keys:
        server.own.pexpire(key, 1)
        wait_until(lambda: not server.own.exists(key), message=f"{key} has ended")


def unsaved(cluster: Cluster, database: Database, shard: int, *keys: str) -> None:
    """Rows with n=100 are 101 in the cache of a shard, which has forgotten them, and in its queue."""
    for key in keys:
        row(database, key, n=100, name="Ann")
    # The slots of before are settled first.
    assert cluster[shard].own.hget(keys[0], "n") == "100"
    database.fail(1_000_000)
    for key in keys:
        assert cluster[shard].own.hincrby(key, "n", 1) == 101
    wait_until(lambda: queued(cluster[shard]) == len(keys))
    forget(cluster[shard], *keys)


def sends(server: Server, *words: str | int) -> RawClient:
    raw = server.raw()
    raw.send(*words)
    return raw


def waits_there(server: Server) -> None:
    wait_until(lambda: WAITS in server.log(), 20, "loads wait for the other shard")


@pytest.mark.parametrize("loader", ["load", "load_all, batch=10"])
def test_a_slot_moves_with_a_change_that_is_not_saved(start_server: Callable[..., Server], source: Server, loader: str) -> None:
    cluster = make_cluster(start_server)
    database = deploy(cluster, source, loader)
    first, second, plain = keys_of(cluster, 0, 3, "x")
    unsaved(cluster, database, 0, first, second)
    row(database, plain, n=7)
    move_slot(cluster.masters, cluster[0], cluster[1], key_slot(first.encode()))
    writer, reader = sends(cluster[1], "HINCRBY", first, "n", 1), sends(cluster[1], "HGET", second, "n")
    waits_there(cluster[1])
    assert cluster[1].own.hget(plain, "n") == "7", "keys without such a change do not wait"
    assert b"CannotWait" in cluster[1].raw().call("EVAL", "return redis.call('HINCRBY', KEYS[1], 'n', 1)", 1, first)
    assert not cluster[1].own.exists(first, second)
    database.fail(0)
    assert writer.read() == b":102\r\n"
    assert reader.read() == b"$3\r\n101\r\n"
    all_saved(cluster)
    assert database.rows() == {first: {"n": "102", "name": "Ann"}, second: {"n": "101", "name": "Ann"}, plain: {"n": 7}}


def test_a_slot_that_is_on_its_way(start_server: Callable[..., Server], source: Server) -> None:
    """Who comes by ASK is told to try again, also where its load waits for the old shard, and what was loaded is not kept."""
    cluster = make_cluster(start_server)
    database = deploy(cluster, source)
    (key,) = keys_of(cluster, 0, 1)
    unsaved(cluster, database, 0, key)
    slot = key_slot(key.encode())
    cluster[1].own.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", node_id(cluster[0]))
    cluster[0].own.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", node_id(cluster[1]))
    raw = cluster[1].raw()
    assert cluster[0].raw().call("HGET", key, "n").startswith(b"-ASK")
    for _ in range(3):
        assert raw.call("ASKING") == b"+OK\r\n"
        assert raw.call("HINCRBY", key, "n", 1).startswith(b"-TRYAGAIN")
    for server in (cluster[1], cluster[0], cluster[2]):
        server.own.execute_command("CLUSTER", "SETSLOT", slot, "NODE", node_id(cluster[1]))
    writer = sends(cluster[1], "HINCRBY", key, "n", 1)
    waits_there(cluster[1])
    database.fail(0)
    assert writer.read() == b":102\r\n"
    all_saved(cluster)
    assert database.row(key) == {"n": "102", "name": "Ann"}


def test_a_slot_that_moves_on(start_server: Callable[..., Server], source: Server) -> None:
    """Through a second shard that has a change of its own, to a third one, while somebody waits."""
    cluster = make_cluster(start_server)
    database = deploy(cluster, source)
    first, second = keys_of(cluster, 0, 2, "x")
    unsaved(cluster, database, 0, first)
    slot = key_slot(first.encode())
    move_slot(cluster.masters, cluster[0], cluster[1], slot)
    waiting = sends(cluster[1], "HINCRBY", first, "n", 1)
    waits_there(cluster[1])
    # A whole value is newer than whatever is not saved, and waits for nothing.
    assert cluster[1].own.set(second, "whole")
    move_slot(cluster.masters, cluster[1], cluster[2], slot)
    assert waiting.read() == f"-MOVED {slot} {cluster[2].host}:{cluster[2].port}\r\n".encode()
    forget(cluster[2], second)
    writers = [sends(cluster[2], "HINCRBY", first, "n", 1), sends(cluster[2], "GET", second)]
    waits_there(cluster[2])
    database.fail(0)
    assert writers[0].read() == b":102\r\n"
    all_saved(cluster)
    assert writers[1].read() == b"$5\r\nwhole\r\n"
    assert database.rows() == {first: {"n": "102", "name": "Ann"}, second: "whole"}


def test_a_slot_that_comes_back(start_server: Callable[..., Server], source: Server) -> None:
    """The first shard has a change of before; the second one's is newer, saved or not."""
    cluster = make_cluster(start_server)
    database = deploy(cluster, source)
    (key,) = keys_of(cluster, 0, 1)
    unsaved(cluster, database, 0, key)
    slot = key_slot(key.encode())
    assert cluster[0].own.hget(key, "n") == "101", "answered from the queue"
    move_slot(cluster.masters, cluster[0], cluster[1], slot)
    assert cluster[1].own.hincrby(key, "n", 1) == 102
    wait_until(lambda: queued(cluster[1]) == 1)
    forget(cluster[1], key)
    move_slot(cluster.masters, cluster[1], cluster[0], slot)
    writer = sends(cluster[0], "HINCRBY", key, "n", 1)
    waits_there(cluster[0])
    database.fail(0)
    assert writer.read() == b":103\r\n"
    all_saved(cluster)
    assert database.row(key) == {"n": "103", "name": "Ann"}


def test_an_old_shard_that_is_dead(start_server: Callable[..., Server], source: Server) -> None:
    """For ten seconds loads wait for its answer. Then they go on without it, which is said in the log."""
    cluster = make_cluster(start_server, args=["--cluster-require-full-coverage", "no"])
    database = deploy(cluster, source)
    (key,) = keys_of(cluster, 0, 1)
    unsaved(cluster, database, 0, key)
    move_slot(cluster.masters, cluster[0], cluster[1], key_slot(key.encode()))
    os.kill(cluster[0].process.pid, signal.SIGSTOP)
    try:
        writer = sends(cluster[1], "HGET", key, "n")
        waits_there(cluster[1])
        assert writer.read() == b"$3\r\n100\r\n"
        assert "does not say whether it has changes that are not saved" in cluster[1].log()
    finally:
        os.kill(cluster[0].process.pid, signal.SIGCONT)
    database.fail(0)
    all_saved(cluster)


def test_a_shard_that_loses_its_last_slot(start_server: Callable[..., Server], source: Server) -> None:
    """The server makes a replica of it, whose queue is that of its master, unless it is told not to: then it saves what it has."""
    cluster = make_cluster(start_server, args=["--cluster-allow-replica-migration", "no"])
    database = deploy(cluster, source)
    (key,) = keys_of(cluster, 2, 1)
    unsaved(cluster, database, 2, key)
    importing, owned = ("IMPORTING", node_id(cluster[2])), ("NODE", node_id(cluster[1]))
    for server, state in ((cluster[1], importing), (cluster[1], owned), (cluster[2], owned), (cluster[0], owned)):
        with server.own.pipeline(transaction=False) as pipe:
            for slot in range(10923, 16384):
                pipe.execute_command("CLUSTER", "SETSLOT", slot, *state)
            pipe.execute()
    wait_until(lambda: len(info_cluster(cluster[1])) == 2, 20, "it is no shard any more")
    assert cluster[2].own.execute_command("ROLE")[0] == "master"
    assert queued(cluster[2]) == 1
    database.fail(0)
    all_saved(cluster)
    assert database.row(key) == {"n": "101", "name": "Ann"}


def test_the_queue_is_empty_before_slots_move(start_server: Callable[..., Server], source: Server) -> None:
    """The way that docs/cluster.md shows: writes go on, the figure is looked at on each shard, and what is loaded then is what was saved."""
    cluster = make_cluster(start_server)
    database = deploy(cluster, source)
    keys = keys_of(cluster, 0, 4, "x")
    unsaved(cluster, database, 0, *keys)
    assert queued(cluster[0]) == 4
    threading.Timer(0.2, database.fail, [0]).start()
    all_saved(cluster)
    move_slot(cluster.masters, cluster[0], cluster[1], key_slot(keys[0].encode()))
    assert [cluster[1].own.hincrby(key, "n", 1) for key in keys] == [102] * 4
    all_saved(cluster)
    assert {key: value["n"] for key, value in database.rows().items()} == dict.fromkeys(keys, "102")
    assert WAITS not in cluster[1].log()


def test_clients_vanish_while_their_loads_wait_for_another_shard(start_server: Callable[..., Server], source: Server) -> None:
    """Closed, killed, unblocked: nobody writes for them, and who stays gets the newest value."""
    cluster = make_cluster(start_server)
    database = deploy(cluster, source)
    [key] = keys_of(cluster, 0, 1)
    unsaved(cluster, database, 0, key)
    move_slot(cluster.masters, cluster[0], cluster[1], key_slot(key.encode()))
    new, admin = cluster[1], cluster[1].client()
    closed, killed, unblocked, stays = (new.raw() for _ in range(4))
    killed_id, unblocked_id = (int(raw.call("CLIENT", "ID")[1:]) for raw in (killed, unblocked))
    for raw in (closed, killed, unblocked, stays):
        raw.send("HINCRBY", key, "n", 1)
    waits_there(new)
    wait_until(lambda: admin.info("clients")["blocked_clients"] == 4)
    closed.close()
    admin.execute_command("CLIENT", "KILL", "ID", killed_id)
    admin.execute_command("CLIENT", "UNBLOCK", unblocked_id, "ERROR")
    wait_until(lambda: admin.info("clients")["blocked_clients"] <= 2)
    database.fail(0)
    said = stays.read()
    assert int(said[1:]) in (102, 103), "UNBLOCK may find that it does not end this wait"
    all_saved(cluster)
    assert database.rows()[key] == {"n": admin.hget(key, "n"), "name": "Ann"}
    assert admin.info("clients")["blocked_clients"] == 0
