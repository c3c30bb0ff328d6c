"""Random histories of keys that are saved, and crashes in their middle: whoever goes on, with a file that was cut off or as a
promoted replica, saves what is there in the end, and nothing else. `HISTORY_SEED` repeats the choices of a run.

Contract: docs/contract/write-behind.md 2.1 and 2.2.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
from typing import Any, Callable

import pytest
import redis

from figures import figures
from helpers import RawClient, Server, wait_until
from probes import attach
from test_replication import promote
from test_write_behind_late import OUTAGE, commands, newest_file, rewrite
from write_behind import Database, register

pytestmark = pytest.mark.matrix

SEED = int(os.environ.get("HISTORY_SEED") or random.randrange(1 << 30))
Command = tuple[str, ...]

# {s}, {h}, {l}, {t}, {n}, {z}: a key of a string, hash, list, set, number, sorted set; {S}, {L}, {T}: another one, perhaps; {v}: a new value.
# All are removed by commands only: then their rows go. Rows of user:l* are never written: that is loaded, and no change.
TEMPLATES = """
SET {s} {v}
SET {s} {v} KEEPTTL
SETEX {s} 10000 {v}
SETNX {s} {v}
MSET {s} {v} {S} {v}
GETSET {s} {v}
APPEND {s} x
SETRANGE {s} 1 q
GETDEL {s}
GETEX {s} EX 10000
GETEX {s} PERSIST
EXPIRE {s} 10000
PERSIST {s}
DEL {s}
RENAME {s} {S}
COPY {s} {S} REPLACE
INCR {n}
INCRBYFLOAT {n} 1.5
HSET {h} f0 {v} f1 {v}
HSET {h} f2 {v}
HDEL {h} f0 f1
HINCRBY {h} number 1
HINCRBYFLOAT {h} float 0.5
EXPIRE {h} 10000
UNLINK {h}
LPUSH {l} {v}
RPUSH {l} {v} {v}
LPOP {l}
RPOP {l}
LSET {l} 0 {v}
LTRIM {l} 0 3
LMOVE {l} {L} LEFT RIGHT
SORT {l} BY nosort STORE {L}
SADD {t} {v} same other
SREM {t} same
SPOP {t}
SMOVE {t} {T} other
SINTERSTORE {t} {T} {t}
DEL {l} {t}
ZADD {z} 1 {v}
ZREM {z} m
GET user:l{v}
SET elsewhere {v}
RG.TRIGGER in_sync
RG.TRIGGER in_background
""".strip().splitlines()
SCRIPTS = [
    "redis.call('SET',KEYS[1],ARGV[1]) redis.call('DEL',KEYS[2]) redis.call('RPUSH',KEYS[3],ARGV[1]) redis.call('SET',KEYS[2],'z')",
    "redis.call('SET',KEYS[1],ARGV[1]) redis.call('EXPIRE',KEYS[2],1000) redis.call('RPUSH',KEYS[3],'f')",
]
FUNCTIONS = """
read_through('user:l*', lambda key: 'loaded')
def in_sync(words):
    execute('SET', 'user:as1', 'sync')
    execute('HSET', 'user:ah1', 'sync', '1')
    execute('GET', 'user:l')
GB('CommandReader').foreach(in_sync).register(trigger='in_sync', mode='sync')
def in_background(words):
    execute('SET', 'user:as2', 'background')
    execute('RPUSH', 'user:al2', 'y')
    execute('DEL', 'user:as3')
GB('CommandReader').foreach(in_background).register(trigger='in_background')
"""


def history(chooser: random.Random, count: int) -> list[Command]:
    """So many commands, transactions and scripts among them."""

    def key(kind: str) -> str:
        return f"user:a{kind}{chooser.randrange(4)}"

    def one() -> Command:
        if chooser.random() < 0.05:
            return ("EVAL", chooser.choice(SCRIPTS), "3", key("s"), key("s"), key("l"), str(chooser.randrange(10**6)))
        template = chooser.choice(TEMPLATES)
        values: dict[str, Any] = {kind: key(kind.lower()) for kind in "shltnzSLT"}
        return tuple(word.format(v=chooser.randrange(10**6), **values) for word in template.split())

    done: list[Command] = []
    while len(done) < count:
        if chooser.random() < 0.12:
            done += [("MULTI",), *(one() for _ in range(chooser.randrange(1, 5))), ("EXEC",)]
        elif chooser.random() < 0.01:
            done.append(("BGREWRITEAOF",))
        else:
            done.append(one())
    return done


def send(raw: RawClient, chooser: random.Random, words: list[Command]) -> None:
    """In pipelines of all sizes, so that turns of the server's loop have all sizes."""
    place = 0
    while place < len(words):
        pipeline = words[place : place + chooser.choice([1, 1, 2, 5, 20, 60])]
        for command in pipeline:
            raw.send(*command)
        for _ in pipeline:
            raw.read()
        place += len(pipeline)


def value(client: redis.Redis, key: str) -> Any:
    """As `save` gets it, as JSON has it."""
    looks: dict[str, Callable[[], Any]] = {
        "string": lambda: client.get(key),
        "hash": lambda: client.hgetall(key),
        "list": lambda: client.lrange(key, 0, -1),
        "set": lambda: sorted(client.smembers(key)),
        "zset": lambda: dict(client.zrange(key, 0, -1, withscores=True)),
    }
    return looks[str(client.type(key))]()


def check(server: Server, database: Database, what: str) -> None:
    """All is saved, and the rows are the keys."""
    wait_until(lambda: figures(server)["queued"] == 0, timeout=30, message=f"all is saved: {what}")
    there = {key: value(server.own, key) for key in server.own.keys("user:a*")}
    assert database.rows() == there, what


def register_all(server: Server, plain: Server) -> Database:
    if server.version < (7, 2):
        pytest.skip("a change follows its command there, and a crash in between loses it")
    database = register(server, plain)
    server.run(FUNCTIONS)
    return database


@pytest.mark.parametrize("preamble", ["yes", "no"])
@pytest.mark.parametrize("number", range(2))
def test_a_file_that_is_cut_off(start_server: Callable[..., Server], source: Server, number: int, preamble: str) -> None:
    """Behind any command, or in the middle of one."""
    what = f"HISTORY_SEED={SEED}"
    chooser = random.Random(f"{SEED} file {number} {preamble}")
    args = ["--appendonly", "yes", "--appendfsync", "no", "--aof-use-rdb-preamble", preamble, "--save", ""]
    server = start_server(args=args)
    database = register_all(server, source)
    # What is registered is in the file before the one that is cut.
    rewrite(server)
    # Nothing is saved meanwhile: each file has to bring all of it.
    database.fail(OUTAGE)
    send(server.raw(), chooser, history(chooser, 400))
    server.stop(kill=True)
    whole = server.dir / "whole"
    shutil.copytree(server.dir / "appendonlydir", whole)
    newest = newest_file(server).name
    content = (whole / newest).read_bytes()
    # Nothing is in it if it was begun by the last command.
    ends = [0, *(end for end, _ in commands(content))]
    cuts = {chooser.choice(ends) for _ in range(4)} | {chooser.randrange(len(content) + 1) for _ in range(2)} | {len(content)}
    for cut in sorted(cuts):
        shutil.rmtree(server.dir / "appendonlydir")
        shutil.copytree(whole, server.dir / "appendonlydir")
        (server.dir / "appendonlydir" / newest).write_bytes(content[:cut])
        database.client.flushall()
        server.start()
        check(server, database, f"{what}, cut at {cut} of {len(content)}")
        server.stop(kill=True)
    server.start()


@pytest.mark.parametrize("fails", [False, True], ids=["saves", "fails"])
@pytest.mark.parametrize("number", range(2))
def test_a_replica_that_is_promoted(start_server: Callable[..., Server], source: Server, number: int, fails: bool) -> None:
    """In the middle of a history, and its own replica in the middle of the next one."""
    what = f"HISTORY_SEED={SEED}"
    chooser = random.Random(f"{SEED} replica {number} {fails}")
    servers = [start_server(args=["--save", ""]) for _ in range(3)]
    database = register_all(servers[0], source)
    for replica, master in zip(servers[1:], servers):
        attach(replica, master)
    for master, replica in zip(servers, servers[1:]):
        database.fail(OUTAGE if fails else 0)
        words = history(chooser, 500)
        raw, last = master.raw(), chooser.randrange(100, 500)

        def run(raw: RawClient = raw, words: list[Command] = words) -> None:
            try:
                send(raw, chooser, words)
            except (OSError, ValueError):  # it has been killed, and the connection closed
                pass

        begun = master.own.info("stats")["total_commands_processed"]
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: master.own.info("stats")["total_commands_processed"] - begun > last or not thread.is_alive(), interval=0.0)
        master.stop(kill=True)
        thread.join()
        database.fail(0)
        promote(replica)
        check(replica, database, what)
