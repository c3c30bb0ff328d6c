"""`GearsBuilder` of the stub mode: what a script registers with it, and what that does with a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Optional

from .errors import GearsError, NeedsServer
from .execute import ended

_READERS = ("KeysReader", "KeysOnlyReader", "StreamReader", "PythonReader", "ShardsIDReader", "CommandReader")
_MODES = ("sync", "async_local", "async")
# Steps that take one record.
_SINGLE = ("map", "filter", "foreach", "flatmap")
_STEPS = (*_SINGLE, "accumulate", "aggregate", "aggregateby", "avg", "batchgroupby", "collect", "count", "countby", "distinct",
          "groupby", "limit", "localgroupby", "repartition", "sort")  # fmt: skip


@dataclass
class Registration:
    """What a script has registered: a plan's steps (name, arguments), and the keywords of `register`."""

    reader: str
    description: Optional[str]
    steps: list[tuple[str, tuple[Any, ...]]]
    options: dict[str, Any]

    def names(self) -> list[str]:
        """By what it can be named: its trigger or hook, its prefix, its description."""
        named = [self.options.get(name) for name in ("trigger", "hook", "prefix")]
        return [str(name) for name in [*named, self.description] if name is not None]

    def fits(self, record: Any) -> bool:
        """Whether a server would give it such a record, as far as a trigger's name or a key tell."""
        if self.reader == "CommandReader":
            name = self.options.get("trigger", self.options.get("hook"))
            return isinstance(record, (list, tuple)) and bool(record) and str(record[0]).lower() == str(name).lower()
        key = record.get("key") if isinstance(record, dict) else None
        if not isinstance(key, str):
            return False
        prefix = str(self.options.get("prefix", "*"))
        return key.startswith(prefix[:-1]) if prefix.endswith("*") else key == prefix

    def fire(self, record: Any) -> list[Any]:
        """The records that come out of the steps for one that goes in. Coroutines are run to their end.

        # Raises `NeedsServer` for a step that needs more than one record.
        """
        records = [record]
        for name, arguments in self.steps:
            records = [result for one in records for result in self._step(name, arguments, one)]
        return records

    def _step(self, name: str, arguments: tuple[Any, ...], record: Any) -> list[Any]:
        if name not in _SINGLE:
            raise NeedsServer.by_name(name)
        result = ended(arguments[0](record))
        if name == "map":
            return [result]
        if name == "filter":
            return [record] if result else []
        if name == "flatmap":
            return list(result) if isinstance(result, (list, tuple)) else [result]
        return [record]


class Builder:
    """Notes what is done to it; `enlist` gets the registration, and what is to be called when it is in force."""

    def __init__(
        self,
        enlist: Callable[[Registration, Optional[Callable[[], object]]], None],
        reader: str = "KeysReader",
        defaultArg: Any = "*",
        desc: Optional[str] = None,
    ) -> None:
        if reader not in _READERS:
            raise GearsError("The given reader does not exists")
        self._enlist = enlist
        self._registration = Registration(reader, desc, [], {})
        self._on_registered: Optional[Callable[[], object]] = None

    def __getattr__(self, name: str) -> Any:
        if name not in _STEPS:
            raise AttributeError(f"'GearsBuilder' object has no attribute '{name}'")

        def note(*arguments: Any, **options: Any) -> Builder:
            if name in _SINGLE and not (arguments and callable(arguments[0])):
                raise GearsError(f"{name} argument must be a function")
            self._registration.steps.append((name, (*arguments, *options.values())))
            return self

        return note

    def register(
        self,
        prefix: Any = None,
        convertToStr: bool = True,
        collect: bool = True,
        mode: str = "async",
        onRegistered: Optional[Callable[[], object]] = None,
        **options: Any,
    ) -> None:
        """Notes the registration. # Raises `GearsError` for an unknown mode and for what can never be called."""
        if mode not in _MODES:
            raise GearsError(f"unknown execution mode: expected sync, async_local or async, got {mode}")
        if self._registration.reader == "CommandReader" and not {"trigger", "hook"} & set(options):
            raise GearsError("no trigger or hook argument was given")
        if prefix is not None:
            options["prefix"] = prefix
        self._registration.options = {**options, "mode": mode}
        self._on_registered = onRegistered or self._on_registered
        self._enlist(self._registration, self._on_registered)

    def run(self, *_: Any, **__: Any) -> NoReturn:
        """# Raises `NeedsServer`."""
        raise NeedsServer("run reads the keys of a server: use the fixture `gears` instead of the stub mode")
