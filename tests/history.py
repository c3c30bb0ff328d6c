"""Chaos (chaos.py) with data that change: streams, misses, and write-behind into a database, with a history of what was
acknowledged. A write is acknowledged when the server has replied and its replica has it (WAIT), which no failover takes back.

What must hold: a miss gives the value of its own key, whoever loads it; each acknowledged entry of a stream is processed, and those
of one stream in their order; in the end the database has what the cache has, of each key.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any, Callable

import redis

from chaos import BOUND_S, Chaos, client_of, is_up, role
from clusters import is_linked
from helpers import Server, wait_until

STREAMS = [f"s:{{{number}}}" for number in range(6)]
ORDERS = [f"order:{number}" for number in range(30)]
USERS = 200

SCRIPT = """
import redis

GUARD = '''
local ms, seq = string.match(ARGV[1], '(%d+)-(%d+)')
local last = redis.call('HMGET', KEYS[1], 'ms', 'seq')
local old_ms, old_seq = tonumber(last[1] or 0), tonumber(last[2] or -1)
if tonumber(ms) < old_ms or (tonumber(ms) == old_ms and tonumber(seq) <= old_seq) then
    return 0
end
redis.call('HSET', KEYS[1], 'ms', ms, 'seq', seq, 'value', ARGV[2])
return 1
'''

def connect():
    global guarded, db
    db = redis.Redis(port={port}, socket_timeout=5)
    guarded = db.register_script(GUARD)

def save(changes):
    # At least once, so each row keeps the id of its last change.
    with db.pipeline(transaction=False) as pipe:
        for change in changes:
            value = '' if change['type'] is None else change['value']
            guarded(keys=['row:' + change['key']], args=[change['id'], value], client=pipe)
        pipe.execute()

write_behind('order:*', save, onRegistered=connect, batch=20)
read_through('user:*', lambda key: 'value of ' + key, ttl=1)
GB('KeysReader').foreach(lambda r: override_reply('linked ' + r['key'])).register(
    'linked:*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
GB('StreamReader').foreach(lambda e: execute('RPUSH', 'done:' + e['key'], e['value']['n'])).register(
    's:*', batch=5, duration=100, mode='async_local')
"""


def hold(predicate: Callable[[], bool], timeout: float, tell: Callable[[], str]) -> None:
    """Waits until it is true; what `tell` says then is the failure."""
    try:
        wait_until(predicate, timeout)
    except AssertionError as error:
        raise AssertionError(tell()) from error


class NotDone(Exception):
    """A command had no effect, or nobody knows; the text is for the figures."""


class History(Chaos):
    """Chaos with a history. `source` is the plain server that is the database."""

    def __init__(self, start_server: Callable[..., Server], source: Server, seed: int) -> None:
        super().__init__(start_server, seed)
        self.database = source.client()
        self.script = SCRIPT.format(port=source.port)
        self.owners: dict[int, Server] = {}
        if self.clocks:
            # Behind a move ids of changes ascend as far as clocks agree (docs/contract/write-behind.md), and one of them does not.
            self.fixed_slots = {redis.crc.key_slot(key.encode()) for key in ORDERS}
        self.number = self.value = 0
        self.entries: dict[str, list[int]] = {stream: [] for stream in STREAMS}
        self.saved: dict[str, int] = {}
        self.work += [self.miss, self.miss, self.add, self.write]

    def is_well(self) -> bool:
        """Data change meanwhile, so that sizes tell nothing."""
        pairs = self.shard_mates()
        self.rejoin(pairs)
        return len(pairs) == 3 and all(is_up(master) and is_linked(master, 3) for master, _ in pairs)

    def prepare(self) -> None:
        super().prepare()
        reply = client_of(self.masters()[0]).execute_command("RG.PYEXECUTE", self.script, "ID", "data")
        assert reply == "OK", reply

    # --- clients ---

    def call(self, key: str, *words: Any, replicated: bool = False) -> Any:
        """The reply of the master that has the key. With `replicated` also its replica has it.

        Raises `NotDone`.
        """
        slot = redis.crc.key_slot(key.encode())
        node = self.owners.get(slot) or self.nodes[0]
        for _ in range(5):
            client = client_of(node, timeout=BOUND_S)
            try:
                reply = client.execute_command(*words)
                if replicated and client.execute_command("WAIT", 1, 2000) < 1:
                    raise NotDone("not replicated")
                self.owners[slot] = node
                return reply
            except redis.exceptions.MovedError as error:
                node = self.announced[error.port]
            except redis.exceptions.AskError as error:
                raise NotDone("the slot moves") from error
            except redis.exceptions.TimeoutError as error:
                raise TimeoutError(f"no reply within {BOUND_S} s to {words}") from error
            except (redis.ConnectionError, redis.ResponseError) as error:
                self.owners.pop(slot, None)
                raise NotDone(str(error)) from error
        raise NotDone("moved too often")

    def miss(self, chosen: random.Random) -> None:
        """A key that is not there, or not any more: its own value, or an error."""
        kind, right = chosen.choice([("user", "value of "), ("linked", "linked ")])
        key = f"{kind}:{chosen.randrange(USERS)}"
        try:
            found = self.call(key, "GET", key)
        except NotDone as error:
            return self.note_error(f"GET: {error}")
        with self._lock:
            if found == right + key:
                self.told.right += 1
            elif found is None:
                # The functions of a server that has just started are being loaded: see docs/persistence.md.
                self.told.error("GET: nil")
            else:
                self.told.wrong.append(f"GET {key}: {found!r}")

    def add(self, chosen: random.Random) -> None:
        """The next entry of a stream; there is one writer."""
        stream = chosen.choice(STREAMS)
        self.number += 1
        number = self.number
        with contextlib.suppress(NotDone):
            self.call(stream, "XADD", stream, "*", "n", number, replicated=True)
            self.entries[stream].append(number)

    def write(self, chosen: random.Random) -> None:
        """The next value of a key that is saved; there is one writer."""
        key = chosen.choice(ORDERS)
        self.value += 1
        number = self.value
        with contextlib.suppress(NotDone):
            if chosen.random() < 0.1:
                self.saved.pop(key, None)
                self.call(key, "DEL", key, replicated=True)
            else:
                self.call(key, "SET", key, number, replicated=True)
                self.saved[key] = number

    # --- the end ---

    def check(self) -> None:
        super().check()
        assert sum(map(len, self.entries.values())) > 20 and len(self.saved) > 5, "too little was acknowledged to tell anything"
        for stream, acknowledged in self.entries.items():
            hold(lambda: set(acknowledged) <= set(self.processed(stream)), 60, lambda: self.missing(stream))
            first = list(dict.fromkeys(self.processed(stream)))
            known = [number for number in first if number in set(acknowledged)]
            assert known == sorted(known), f"{stream} was processed in the order {first}"
        for key in ORDERS:
            hold(lambda: self.row(key) == self.cached(key), 60, lambda: f"{key}: cache {self.cached(key)}, database {self.row(key)}")
            if key in self.saved:
                assert int(self.cached(key) or 0) >= self.saved[key], f"{key}: an acknowledged write is lost"
        for master in self.masters():
            wait_until(lambda: client_of(master).info("rg_write_behind")["rg_write_behind_queued"] == 0, 30, "all is saved")

    def processed(self, stream: str) -> list[int]:
        with contextlib.suppress(NotDone):
            return [int(number) for number in self.call(stream, "LRANGE", f"done:{stream}", 0, -1)]
        return []

    def missing(self, stream: str) -> str:
        gone = sorted(set(self.entries[stream]) - set(self.processed(stream)))
        return f"{stream}: acknowledged and not processed: {gone}; left in the stream: {self.call(stream, 'XRANGE', stream, '-', '+')}"

    def cached(self, key: str) -> str | None:
        with contextlib.suppress(NotDone):
            return self.call(key, "GET", key)  # type: ignore[no-any-return]
        time.sleep(0.1)
        return None

    def row(self, key: str) -> str | None:
        """What the database has; None for a key that was deleted or never written."""
        return self.database.hget(f"row:{key}", "value") or None  # type: ignore[return-value]
