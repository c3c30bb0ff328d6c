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
SORT {l} STORE {l}; SORT {s} DESC LIMIT 0 3 STORE {l}; SORT {l} BY nosort GET # STORE {l}; GEORADIUS {z} -180 -85 9999 km STORE {z}
COPY {l} {l} REPLACE; RENAME {t} {t}; RENAMENX {h} {h}; COPY {z} {z}; DEL {s}; UNLINK {h} {l}; DEL {z} {t} {n}; DEL {t}
""".replace("\n", ";").split(";")
# Transactions that write all of a value: what stands first leaves nothing to be loaded.
UNITS = [unit.strip().split("; ") for unit in """
SET {t} {v}; APPEND {t} {v}; GET {t}; PEXPIREAT {t} 1; GET {t}
SET {t} {v}; GETEX {t} PXAT 1
DEL {h}; HSET {h} {f} {v}; HINCRBY {h} {f} 1; HGETALL {h}
DEL {l}; RPUSH {l} {v} {v}; LPOP {l}; RENAME {l} user:l9; COPY user:l9 {l}; DEL user:l9
DEL {s}; SADD {s} {v}; EXPIRE {s} -1; SADD {s} {v}
SET {n} {v}; INCR {n}; EXPIREAT {n} 1
DEL {z}; ZADD {z} {v} {f}; ZINCRBY {z} 1 {f}
""".strip().splitlines()]
# They ask about the cache: how many keys were there.
COUNT_THE_CACHE = ("DEL", "UNLINK")


def command(chance: random.Random, text: str = "") -> list[str]:
    text = text or chance.choice([words.strip() for words in COMMANDS if words.strip()])
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


def unit(chance: random.Random) -> list[list[str]]:
    """The commands of a transaction, each of one key."""
    key = str(chance.randrange(3))
    return [[f"{word[:-1]}{key}" if word.startswith("user:") and word[-1] != "9" else word for word in command(chance, text)] for text in chance.choice(UNITS)]


def replies(client: redis.Redis, unit: list[list[str]]) -> list[Any]:
    """What a transaction replies, but for what counts keys."""
    with client.pipeline() as transaction:
        for words in unit:
            transaction.execute_command(*words)
        return [reply for words, reply in zip(unit, transaction.execute()) if words[0] not in COUNT_THE_CACHE]


def now_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


def forget_fields(client: redis.Redis, key: str) -> None:
    """All fields of a hash, which may stay there without them. Nothing else happens where they do not expire."""
    try:
        fields = client.hkeys(key)
        if fields:
            # Not at a moment: one that has passed by then would be a deletion.
            client.execute_command("HPEXPIRE", key, 2, "FIELDS", len(fields), *fields)
            end = now_ms(client) + 2
            # In the last millisecond they are there for some commands, and not for others.
            wait_until(lambda: now_ms(client) > end)
    except redis.ResponseError as error:
        assert "unknown command" in str(error), error


def forget(client: redis.Redis, chance: random.Random) -> None:
    """Everything, or one key by its expiry, or all fields of a hash."""
    how = chance.random()
    if how < 0.3:
        client.flushall()
    elif how < 0.6:
        # Sometimes the server clears such hashes away, and sometimes it has not come to it yet.
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", chance.randrange(2))
        forget_fields(client, f"user:h{chance.randrange(3)}")
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
    history: list[Any] = []
    for _ in range(count):
        words = command(chance)
        if chance.random() < 0.1:
            forget(client, chance)
            history.append(["(forgets)"])
        if chance.random() < 0.05:
            words = unit(chance)
            history.append(words)
            assert replies(client, words) == replies(model, words), f"behind {history[-30:]}"
            continue
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


def by_any_way(client: redis.Redis, way: str, words: list[str]) -> Any:
    """What a command replies, to whom it may be that runs it."""
    if way == "EVAL":
        try:
            return client.eval("return redis.call(unpack(ARGV))", 0, *words)
        except redis.ResponseError as error:
            return str(error).split(" script:")[0]
    if way == "MULTI":
        with client.pipeline() as transaction:
            transaction.execute_command(*words)
            try:
                [got] = transaction.execute(raise_on_error=False)
            except redis.ResponseError as error:  # this server does not know the command
                got = error
            return str(got).split(") of pipeline caused error: ")[-1] if isinstance(got, redis.ResponseError) else got
    return reply(client, words)


def test_whoever_asks_finds_what_is_not_saved(server: Server, source: Server, start_server: Callable[..., Server]) -> None:
    """All that is known is in the queue, and the cache forgets."""
    model, client = start_server(module=False).client(), server.client()
    database = register(server, source, more=LOADER)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    client.execute_command("RG.CONFIGSET", "WriteBehindSaving", "no")
    try:
        # What was never there may be in the database: nobody knows.
        client.delete(*[f"user:{kind}{number}" for kind in "shlznt" for number in range(3)])
        history: list[Any] = []
        for _ in range(2000):
            if chance.random() < 0.2:
                forget(client, chance)
                history.append("(forgets)")
            way, words = chance.choice(["plain", "MULTI", "EVAL"]), command(chance)
            history.append([way, *words])
            got, expected = by_any_way(client, way, words), by_any_way(model, way, words)
            if isinstance(got, list) and words[0] == "SMEMBERS":
                got, expected = sorted(got), sorted(expected)
            if isinstance(got, list) and words[0] == "HGETALL":
                # Redis keeps fields that expire in another order.
                got, expected = (dict(zip(pairs[::2], pairs[1::2])) for pairs in (got, expected))
            assert got == expected or words[0] in COUNT_THE_CACHE, f"{got}, and not {expected}, behind {history[-30:]}"
    finally:
        client.execute_command("RG.CONFIGSET", "WriteBehindSaving", "yes")
    drained(server, saver(server))
    assert database.rows() == truth(model)
