"""What the suites of `write_behind` share: a plain server as the database behind, and figures."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from figures import figures
from helpers import Server, wait_until

SAVE = """
import json, redis

def connect():
    global db
    db = redis.Redis(port={port}, decode_responses=True)

def plain(value):
    # JSON has neither bytes nor sets.
    if isinstance(value, (bytes, bytearray)):
        return repr(bytes(value))
    if isinstance(value, set):
        return sorted(map(plain, value))
    if isinstance(value, dict):
        return {{str(plain(name)): plain(item) for name, item in value.items()}}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value

def save(changes):
    '''Notes the call, and fails as the test says: for one key, for all, or so many times.'''
    poison = db.smembers('poison')
    left = int(db.get('outage') or 0)
    if left > 0:
        db.decr('outage')
        raise ConnectionError('the database is away')
    for change in changes:
        if plain(change['key']) in poison:
            raise ValueError('bad row ' + plain(change['key']))
    if db.exists('hang'):
        db.rpush('hanging', len(changes))
        db.blpop('go', 20)
    with db.pipeline() as pipe:
        pipe.rpush('calls', json.dumps([{{name: plain(item) for name, item in change.items()}} for change in changes]))
        for change in changes:
            name = 'row:%d:%s' % (change['db'], plain(change['key']))
            if change['type'] is None:
                pipe.delete(name)
            else:
                pipe.set(name, json.dumps(plain(change['value'])))
        pipe.execute()
"""


class Database:
    """The other side of `save`, a plain server."""

    def __init__(self, plain: Server) -> None:
        self.server = plain
        self.client = plain.client()

    def calls(self) -> list[list[dict[str, Any]]]:
        """The changes of each call that ended well."""
        return [json.loads(call) for call in self.client.lrange("calls", 0, -1)]

    def changes(self) -> list[dict[str, Any]]:
        """All of them, one after the other."""
        return [change for call in self.calls() for change in call]

    def row(self, key: str, db: int = 0) -> Any:
        """What is saved of a key; None if nothing is."""
        text = self.client.get(f"row:{db}:{key}")
        return None if text is None else json.loads(text)

    def newest(self) -> dict[str, Any]:
        """What is saved where each row has the id of its last change, and an older one changes nothing: keys of database 0."""
        kept: dict[str, tuple[tuple[int, ...], Any]] = {}
        for change in self.changes():
            number = tuple(map(int, change["id"].split("-")))
            kept[change["key"]] = max(kept.get(change["key"], ((0,), None)), (number, change["value"]), key=lambda pair: pair[0])
        return {key: value for key, (_, value) in kept.items()}

    def rows(self) -> dict[str, Any]:
        """All that is saved of database 0."""
        names = self.client.keys("row:0:*")
        return {name[6:]: json.loads(text) for name, text in zip(names, self.client.mget(names) if names else [])}

    def poison(self, *keys: str) -> None:
        """Calls with one of these keys fail from now on."""
        self.client.delete("poison")
        if keys:
            self.client.sadd("poison", *keys)

    def fail(self, times: int) -> None:
        """So many calls fail."""
        self.client.set("outage", times)


def register(server: Server, plain: Server, arguments: str = "", prefix: str = "user:*", more: str = "", words: tuple[str, ...] = ()) -> Database:
    """Registers `save` with these arguments of `write_behind`."""
    script = SAVE.format(port=plain.port) + textwrap.dedent(more)
    script += f"\nwrite_behind({prefix!r}, save, onRegistered=connect, {arguments})\n"
    assert server.client().execute_command("RG.PYEXECUTE", script, *words) == "OK"
    return Database(plain)


def drained(server: Server, place: int = 0) -> None:
    """Waits until all is saved."""
    wait_until(lambda: figures(server, place)["queued"] == 0, message=f"nothing is queued: {figures(server, place)}")
