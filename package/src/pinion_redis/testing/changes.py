"""Changes of keys in the stub mode: what `write_behind` captures of them, and the lists that `save` gets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Optional, Union


Change = dict[str, Any]

# Types of values, each with the event that is taken where none is given.
_EVENTS = {"string": "set", "hash": "hset", "list": "rpush", "set": "sadd", "zset": "zadd", "stream": "xadd", "module": "json.set"}
# `save` gets no value of these.
_WITHOUT_VALUE = ("stream", "module")
# Not captured unless `events` names them: what a cache does by itself, or what leaves a value as it is.
_NO_CHANGES = ("expire", "expired", "evicted", "persist", "hexpire", "hexpired", "hpersist", "keymiss", "new", "overwritten", "type_changed")
_BATCH = 100
_FIRST_MS = 1_700_000_000_000


class Sorted(dict):  # type: ignore[type-arg]
    """The value of a sorted set: members with scores."""


class Saver:
    """One registration of `write_behind`: its changes that are not saved yet, the oldest first."""

    def __init__(self, prefix: str, save: Callable[[list[Change]], object], options: dict[str, Any]) -> None:
        self.prefix, self.save, self.options = prefix, save, options
        self.queue: list[Change] = []

    def wants(self, change: Change) -> bool:
        """True if it captures that."""
        key = change["key"] if isinstance(change["key"], str) else change["key"].decode(errors="surrogateescape")
        named = key.startswith(self.prefix[:-1]) if self.prefix.endswith("*") else key == self.prefix
        events = self.options.get("events")
        return named and (change["event"] in events if events else change["event"] not in _NO_CHANGES)

    def add(self, change: Change) -> None:
        """A change has happened; it takes the place of an older one of its key, unless options say otherwise."""
        place = next((number for number, other in enumerate(self.queue) if _place(other) == _place(change)), None)
        passes = self.options.get("ordered") != "all" or place == len(self.queue) - 1
        if place is not None and passes and self.options.get("coalesce", True):
            self.queue[place] = change
        else:
            self.queue.append(change)

    def run(self) -> Iterator[list[Change]]:
        """Calls `save` until nothing is left, and gives the list of each call. What fails stays, with all behind it.

        # Raises what `save` raises.
        """
        while self.queue:
            changes = self.queue[: self.options.get("batch", _BATCH)]
            self.save(copy.deepcopy(changes))
            self.queue = self.queue[len(changes) :]
            yield changes


def make(number: int, key: Union[str, bytes], value: Any, *, event: Optional[str], type: Optional[str], db: int) -> Change:
    """A change as `save` gets it. `number`: how many have been made before.

    # Raises `TypeError` for a value that no key has, and `ValueError` for an unknown type.
    """
    kind, saved = _saved(value)
    if type is not None:
        if type not in _EVENTS:
            raise ValueError(f"type: expected one of {', '.join(_EVENTS)}, got {type!r}")
        kind = type
        saved = None if type in _WITHOUT_VALUE else saved
    if kind == "zset" and isinstance(value, dict):
        saved = {_text(member): float(score) for member, score in value.items()}
    return {
        "id": f"{_FIRST_MS + number}-0",
        "key": _text(key),
        "db": db,
        "event": event or ("del" if kind is None else _EVENTS[kind]),
        "type": kind,
        "value": saved,
    }


def _place(change: Change) -> tuple[Any, int]:
    return (change["key"], change["db"])


def _saved(value: Any) -> tuple[Optional[str], Any]:
    """The type of a value that a client has written, and what `save` sees of it."""
    if value is None:
        return None, None
    if isinstance(value, Sorted):
        return "zset", value
    if isinstance(value, dict):
        return "hash", {_text(name): _text(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return "list", [_text(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return "set", {_text(item) for item in value}
    return "string", _text(value)


def _text(value: Any) -> Union[str, bytes]:
    """What the server has of a text or a number; bytes only where they are no UTF-8."""
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return bytes(value)
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"expected what a key can hold (str, bytes, numbers, and dict, list or set of these; None: deleted), got {value!r}")
