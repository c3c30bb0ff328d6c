"""Both halves against a model: a plain server that never forgets. One client sends random commands to both, the cache forgets in between, and the
replies and at last the rows have to be those of the plain server. Contract: docs/contract/write-behind.md 2.1, 2.6 and 2.10."""

from __future__ import annotations

import random
from typing import Any, Callable

import pytest
import redis

from helpers import Server, wait_until
from test_write_behind_halves import saver
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

LOADER = """
    def load(key):
        text = db.get('row:0:' + key)
        value = None if text is None else json.loads(text)
        if value is None or key[5] not in 'sz':
            return value
        return set(value) if key[5] == 's' else Sorted(value)

    read_through('user:*', load, ttl=100, onRegistered=connect)
"""
# {s}, {h}, ... are keys that hold sets, hashes, lists, sorted sets, numbers and texts; {v} is a number, {f} one of ten.
COMMANDS = """
SADD {s} {v}; SREM {s} {v}; SMOVE {s} {s} {v}; SUNIONSTORE {s} {s} {s}; SDIFFSTORE {s} {s} {s}; SINTERSTORE {s} {s}; SMEMBERS {s}; SCARD {s}
HSET {h} {f} {v}; HDEL {h} {f}; HINCRBY {h} {f} 1; HSETNX {h} {f} {v}; HGETALL {h}; HGET {h} {f}
RPUSH {l} {v}; LPUSHX {l} {v}; LPOP {l}; LREM {l} 0 {v}; LMOVE {l} {l} LEFT RIGHT; RPOPLPUSH {l} {l}; LMPOP 2 {l} {l} RIGHT; LTRIM {l} 0 5; LRANGE {l} 0 -1
ZADD {z} {v} {f}; ZINCRBY {z} 1 {f}; ZREM {z} {f}; ZPOPMIN {z}; ZRANGESTORE {z} {z} 0 2; ZUNIONSTORE {z} 2 {z} {z} AGGREGATE MAX; ZDIFFSTORE {z} 2 {z} {z}; ZMPOP 2 {z} {z} MAX; ZADD {z} GT {v} {f}; ZRANGE {z} 0 -1 WITHSCORES
INCR {n}; DECRBY {n} {v}; GETSET {n} {v}; GET {n}
APPEND {t} {v}; SETRANGE {t} 2 {v}; GETDEL {t}; SETNX {t} {v}; SET {t} {v} XX GET; SET {t} {v}; SETBIT {t} 5 1; BITOP OR {t} {t} {t}; MSETNX {t} {v} {t} {v}; MSETEX 2 {t} {v} {t} {v} NX; MSETEX 2 {t} {v} {t} {v} XX
GET {t}; GETEX {t}; HGETEX {h} FIELDS 1 {f}
COPY {l} {l} REPLACE; RENAME {t} {t}; RENAMENX {h} {h}; COPY {z} {z}; DEL {s}; UNLINK {h} {l}; DEL {z} {t} {n}; DEL {t}
""".replace("\n", ";").split(";")
# They ask about the cache: how many keys were there.
COUNT_THE_CACHE = ("DEL", "UNLINK")


def command(chance: random.Random) -> list[str]:
    text = chance.choice([words.strip() for words in COMMANDS if words.strip()])
    words = []
    for word in text.split():
        kind = word[1:-1] if word.startswith("{") else ""
        words.append({"": word, "v": str(chance.randrange(1000)), "f": f"f{chance.randrange(10)}"}.get(kind, f"user:{kind}{chance.randrange(3)}"))
    return words


def reply(client: redis.Redis, words: list[str]) -> Any:
    """A change that was loaded in vain, because the cache forgot it meanwhile, is sent again."""
    while True:
        try:
            return client.execute_command(*words)
        except redis.exceptions.TryAgainError:
            continue
        except redis.ResponseError as error:
            if not str(error).startswith("the cache has forgotten"):
                return str(error)


def forget(client: redis.Redis, chance: random.Random) -> None:
    """Everything, or one key by its expiry."""
    if chance.random() < 0.5:
        client.flushall()
    elif key := client.randomkey():
        # Redis 7.0 looks at its clock twice: what has expired by then is deleted, which is no forgetting.
        client.pexpire(key, 20)
        # What asks about the cache must not find it, and then miss it.
        wait_until(lambda: not client.exists(key))


def truth(model: redis.Redis) -> dict[str, Any]:
    def value(key: str) -> Any:
        readers: dict[str, Callable[[], Any]] = {
            "string": lambda: model.get(key),
            "hash": lambda: model.hgetall(key),
            "list": lambda: model.lrange(key, 0, -1),
            "set": lambda: sorted(model.smembers(key)),
            "zset": lambda: dict(model.zrange(key, 0, -1, withscores=True)),
        }
        return readers[model.type(key)]()

    return {key: value(key) for key in model.keys("user:*")}


def compare(server: Server, database: Database, model: redis.Redis, chance: random.Random, count: int) -> None:
    client = server.client()
    history = []
    for _ in range(count):
        words = command(chance)
        if chance.random() < 0.1:
            forget(client, chance)
            history.append(["(forgets)"])
        history.append(words)
        got, expected = reply(client, words), reply(model, words)
        assert got == expected or words[0] in COUNT_THE_CACHE, f"{words}: {got}, and not {expected}, behind {history[-30:]}"
    drained(server, saver(server))
    assert database.rows() == truth(model)


@pytest.mark.parametrize("arguments", ["", "wait=True", "coalesce=False, max_queue=5, batch=2", "ordered='all', interval=0.01"])
def test_a_cache_that_forgets_is_no_other_than_one_that_does_not(server: Server, source: Server, start_server: Callable[..., Server], arguments: str) -> None:
    model = start_server(module=False).client()
    database = register(server, source, arguments, more=LOADER)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    compare(server, database, model, random.Random(seed), 1000)
