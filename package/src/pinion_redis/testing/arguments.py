"""The arguments of `read_through` and `write_behind`: refused here as the server refuses them, in the same words.

The server's own checks are src/python/keywords.rs, read_through.rs and write_behind.rs; tests/test_stub_arguments.py holds both
against the same table.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .errors import GearsError

# As long as anything may last: a century.
_LONGEST_S = 100 * 366 * 24 * 3600
_MOST_NAMES = 1000
_SHOWN = 100


@dataclass(frozen=True)
class Kind:
    """What an argument must be, in words, and whether a value is that."""

    what: str
    fits: Callable[[Any], bool]


def _number(value: Any) -> Optional[float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _within(low: float, high: float, *, above: bool = False) -> Callable[[Any], bool]:
    """Numbers from `low` (with `above`: except `low`) to `high`."""

    def fits(value: Any) -> bool:
        number = _number(value)
        return number is not None and low <= number <= high and not (above and number == low)

    return fits


def _whole(most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


def _names(of: str) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)

    return Kind(f"a list of names of {of} (str), at least one", fits)


def _words(first: str, second: str) -> Kind:
    return Kind(f"'{first}' or '{second}'", lambda value: isinstance(value, str) and value in (first, second))


def _is_breaker(value: Any) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2
    return is_pair and _whole(2**32 - 1)(value[0]) and _POSITIVE.fits(value[1])


_COUNT = Kind("a whole number from 1 on", _whole(2**64 - 1))
_BYTES = Kind("a whole number of bytes from 1 on", _COUNT.fits)
_SECONDS = Kind("a number of seconds that is not negative", _within(0, _LONGEST_S))
_POSITIVE = Kind("a number of seconds above 0", _within(0, _LONGEST_S, above=True))
_FLAG = Kind("True or False", lambda value: isinstance(value, bool))
_TEXT = Kind("a str", lambda value: isinstance(value, str))
_FUNCTION = Kind("a function", callable)
_SHARE = Kind("a number from 0 to 1", _within(0, 1))

READ_THROUGH: dict[str, Kind] = {
    "commands": _names("commands"),
    "ttl": Kind("a number of seconds above 0 or a function", lambda value: callable(value) or _POSITIVE.fits(value)),
    "jitter": _SHARE,
    "negative_ttl": _SECONDS,
    "stale": _SECONDS,
    "refresh_ahead": Kind("a number from 0 to 1 or 'xfetch'", lambda value: value == "xfetch" or _SHARE.fits(value)),
    "timeout": _POSITIVE,
    "on_error": _words("error", "miss"),
    "max_waiting": _COUNT,
    "max_loads": _COUNT,
    "max_load_time": _POSITIVE,
    "max_memory": _BYTES,
    "backoff": _SECONDS,
    "max_backoff": _SECONDS,
    "breaker": Kind("a pair of failures (a whole number from 1 on) and seconds above 0", _is_breaker),
    "batch": _COUNT,
    "batch_wait": _SECONDS,
    "user": _TEXT,
    "onRegistered": _FUNCTION,
    "desc": _TEXT,
}
WRITE_BEHIND: dict[str, Kind] = {
    "events": _names("events"),
    "batch": _COUNT,
    "interval": _SECONDS,
    "coalesce": _FLAG,
    "backoff": _SECONDS,
    "max_backoff": _SECONDS,
    "max_tries": Kind(_COUNT.what, _whole(2**32 - 1)),
    "dead_letter": Kind("the name of a stream (a str that is not empty)", lambda value: isinstance(value, str) and value != ""),
    "max_queue": _COUNT,
    "max_queue_bytes": _COUNT,
    "on_full": _words("wait", "error"),
    "full_timeout": _POSITIVE,
    "wait": _FLAG,
    "timeout": _POSITIVE,
    "ordered": _words("key", "all"),
    "max_save_time": _POSITIVE,
    "max_memory": _BYTES,
    "user": _TEXT,
    "onRegistered": _FUNCTION,
    "desc": _TEXT,
}
# What functions get that are arguments.
_ARGUMENTS: dict[str, tuple[str, ...]] = {"ttl": ("key", "value"), "onRegistered": ()}
# What makes no sense without another argument.
_NEEDS = {
    "read_through": {"stale": "ttl", "refresh_ahead": "ttl", "jitter": "ttl"},
    "write_behind": {"dead_letter": "max_tries"},
}


@dataclass(frozen=True)
class Call:
    """One of the two functions: its name, that of the argument with its function, what that gets, and the keywords that it knows."""

    name: str
    function: str
    gets: str
    known: Mapping[str, Kind]

    def check_prefix(self, prefix: Any) -> None:
        """# Raises `GearsError`: it is no text, e.g. since a decorator has no brackets."""
        if not isinstance(prefix, str) or not prefix:
            raise self._expected("prefix", "a str that is not empty", prefix)

    def checked(self, prefix: Any, function: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords that say something, names as lists in lower case.

        # Raises `GearsError` with the words of the server.
        """
        for name in given:
            if name not in self.known:
                raise GearsError(f"{self.name}: {name}: expected one of {', '.join(self.known)}")
        self.check_prefix(prefix)
        if not callable(function):
            raise self._expected(self.function, "a function", function)
        self._takes(self.function, function, self.gets + ("s" if given.get("batch") is not None and self.gets == "key" else ""))
        options = {name: self._value(name, value) for name, value in given.items() if value is not None}
        for name, other in _NEEDS[self.name].items():
            if options.get(name) and other not in options:
                raise GearsError(f"{self.name}: {name}: expected {other} beside it, got none")
        return options

    def _value(self, name: str, value: Any) -> Any:
        kind = self.known[name]
        if kind.what.startswith("a list of names") and not isinstance(value, str):
            try:
                names = list(itertools.islice(value, _MOST_NAMES + 1))
            except TypeError:
                raise self._expected(name, kind.what, value) from None
            if len(names) > _MOST_NAMES:
                raise self._expected(name, f"at most {_MOST_NAMES} names", value)
            if not kind.fits(names):
                raise self._expected(name, kind.what, value)
            return [word.lower() for word in names]
        if not kind.fits(value):
            raise self._expected(name, kind.what, value)
        if callable(value) and name in _ARGUMENTS:
            self._takes(name, value, *_ARGUMENTS[name])
        return value

    def _takes(self, name: str, function: Any, *arguments: str) -> None:
        """# Raises `GearsError`: it cannot be called with so many arguments, or it is a generator."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise self._expected(name, "a function without yield", function)
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some functions in C have none
            return
        try:
            signature.bind(*arguments)
        except TypeError:
            counts = {0: "without arguments", 1: "of one argument"}
            what = counts.get(len(arguments), f"of {len(arguments)} arguments")
            named = f" ({', '.join(arguments)})" if arguments else ""
            raise self._expected(name, f"a function {what}{named}", function) from None

    def _expected(self, name: str, what: str, got: Any) -> GearsError:
        return GearsError(f"{self.name}: {name}: expected {what}, got {repr(got)[:_SHOWN]}")


LOADS = Call("read_through", "loader", "key", READ_THROUGH)
SAVES = Call("write_behind", "save", "changes", WRITE_BEHIND)
