"""Functions of a script in plain Python, without a server: the stub mode.

    script = load("functions/users.py", answers={"GET": "1"})
    assert script.load_user("user:7") == ...       # any name of the script
    script.fire({"key": "order:1", "value": {...}})  # what its registrations do with a record
    assert script.execute.calls == [("HINCRBY", "orders", "tea", "2")]

`execute` notes its calls and gives the answers that it was told; `override_reply`, `log`, `call_next` and the others note theirs. What
needs a whole plan (groupby, aggregate, sort, ...) needs a server: the fixture `gears` of the pytest plugin.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Optional, Union

__all__ = ["FakeExecute", "Loader", "NeedsServer", "Registration", "StubScript", "load"]

Answer = Union[object, Callable[..., object]]


class NeedsServer(NotImplementedError):
    """The script does something that the stub mode cannot do: use the fixture `gears`."""


class FakeExecute:
    """`execute` of the stub mode.

    `answers`: a command's name, or the name and its first arguments in a tuple, to what it replies: a value, a function of the
    arguments, or an exception that is raised. The longest entry that fits counts; without one the reply is None.
    """

    def __init__(self, answers: Optional[Mapping[Union[str, tuple[Any, ...]], Answer]] = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[tuple[str, ...], Answer] = {}
        for command, answer in (answers or {}).items():
            self.answer(command, answer)

    def answer(self, command: Union[str, tuple[Any, ...]], answer: Answer) -> None:
        """From now on the command replies that."""
        words = command if isinstance(command, tuple) else (command,)
        self.answers[_words(words)] = answer

    def __call__(self, command: str, *arguments: object) -> Any:
        if not isinstance(command, str):
            raise TypeError(f"the name of a command must be a text, got {command!r}")
        call = (command, *map(_as_sent, arguments))
        self.calls.append(call)
        words = _words(call)
        fitting = [known for known in self.answers if words[: len(known)] == known]
        if not fitting:
            return None
        answer = self.answers[max(fitting, key=len)]
        if isinstance(answer, BaseException):
            raise answer
        return answer(*call[1:]) if callable(answer) else answer


def _words(call: Iterable[Any]) -> tuple[str, ...]:
    name, *rest = map(str, call)
    return (name.upper(), *rest)


def _as_sent(argument: object) -> object:
    """What a command gets: texts and bytes; anything else in its text form."""
    return argument if isinstance(argument, (str, bytes, bytearray)) else str(argument)


@dataclass
class Registration:
    """What a script has registered: a plan's steps (name, arguments), and the keywords of `register`."""

    reader: str
    description: Optional[str]
    steps: list[tuple[str, tuple[Any, ...]]]
    options: dict[str, Any]

    def fire(self, record: Any) -> list[Any]:
        """The records that come out of the steps for one that goes in. Coroutines are run to their end.

        # Raises `NeedsServer` for a step that needs more than one record.
        """
        records = [record]
        for name, arguments in self.steps:
            records = [result for one in records for result in self._step(name, arguments, one)]
        return records

    def _step(self, name: str, arguments: tuple[Any, ...], record: Any) -> list[Any]:
        if name not in ("map", "filter", "foreach", "flatmap"):
            raise NeedsServer(f"{name} needs a server: use the fixture `gears` instead of the stub mode")
        result = arguments[0](record)
        if inspect.isawaitable(result):
            result = asyncio.run(_wait(result))
        if name == "map":
            return [result]
        if name == "filter":
            return [record] if result else []
        if name == "flatmap":
            return list(result) if isinstance(result, (list, tuple)) else [result]
        return [record]


async def _wait(awaitable: Any) -> Any:
    return await awaitable


class _Builder:
    """`GearsBuilder` of the stub mode: notes what is done to it."""

    def __init__(self, script: StubScript, reader: str = "KeysReader", defaultArg: Any = "*", desc: Optional[str] = None) -> None:
        self._script = script
        self._registration = Registration(reader, desc, [], {})
        self._default = defaultArg

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def note(*arguments: Any) -> _Builder:
            self._registration.steps.append((name, arguments))
            return self

        return note

    def register(self, prefix: Any = None, convertToStr: bool = True, collect: bool = True, **options: Any) -> None:
        """Notes the registration; `onRegistered` is called, as in the server."""
        if prefix is not None:
            options["prefix"] = prefix
        self._registration.options = options
        self._script.registrations.append(self._registration)
        if options.get("onRegistered"):
            options["onRegistered"]()

    def run(self, *_: Any, **__: Any) -> NoReturn:
        """# Raises `NeedsServer`."""
        raise NeedsServer("run reads the keys of a server: use the fixture `gears` instead of the stub mode")


@dataclass
class StubScript:
    """A script that ran in plain Python. Its own names are attributes."""

    execute: FakeExecute
    globals: dict[str, Any] = field(default_factory=dict, repr=False)
    registrations: list[Registration] = field(default_factory=list)
    loaders: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Prefix to the function that `read_through` got."""
    replies: list[Any] = field(default_factory=list)
    """What `override_reply` got."""
    logs: list[str] = field(default_factory=list)
    next_calls: list[tuple[Any, ...]] = field(default_factory=list)
    """What `call_next` got; it replies as `execute` does for the first argument `call_next`."""

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__.get("globals", {})
        if name in found:
            return found[name]
        raise AttributeError(f"the script has no name {name!r}")

    def fire(self, record: Any, registration: int = 0) -> list[Any]:
        """What the registration, by its place, does with a record; see `Registration.fire`."""
        if not self.registrations:
            raise LookupError("the script registers nothing")
        return self.registrations[registration].fire(record)


def load(
    path: Union[str, Path],
    *,
    answers: Optional[Mapping[Union[str, tuple[Any, ...]], Answer]] = None,
    execute: Optional[FakeExecute] = None,
    config: Optional[Mapping[str, str]] = None,
) -> StubScript:
    """Runs a script's file in plain Python.

    `answers`: see `FakeExecute`; `config`: what `configGet` and `gearsConfigGet` find.
    # Raises what the script raises, and `NeedsServer`.
    """
    path = Path(path)
    script = StubScript(execute or FakeExecute(answers))
    names = {**_names(script, dict(config or {})), "__name__": "not_main", "__file__": str(path)}
    module = types.ModuleType("not_main")
    module.__dict__.update(names)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), module.__dict__)
    script.globals = module.__dict__
    return script


class Loader:
    """What the fixture `gears_stub` is: `load`, and the classes of this module."""

    FakeExecute = FakeExecute
    NeedsServer = NeedsServer
    load = staticmethod(load)


class _Atomic:
    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _Atomic:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _Loaded:
    def __init__(self, value: Any, ttl: Optional[float] = None) -> None:
        self.value, self.ttl = value, ttl


class _Sorted(dict):  # type: ignore[type-arg]
    pass


def _names(script: StubScript, config: dict[str, str]) -> dict[str, Any]:
    """What a script sees; what only makes sense in a server raises."""

    def builder(*arguments: Any, **options: Any) -> _Builder:
        return _Builder(script, *arguments, **options)

    def read_through(prefix: str, loader: Optional[Callable[..., Any]] = None, **options: Any) -> Any:
        def take(function: Callable[..., Any]) -> Callable[..., Any]:
            script.loaders[prefix] = function
            if options.get("onRegistered"):
                options["onRegistered"]()
            return function

        return take if loader is None else take(loader)

    def log(message: str, level: str = "notice") -> None:
        script.logs.append(message)

    def call_next(*arguments: object) -> Any:
        script.next_calls.append(arguments)
        known = {name: answer for name, answer in script.execute.answers.items() if name == ("CALL_NEXT",)}
        answer = next(iter(known.values()), None)
        return answer(*arguments) if callable(answer) else answer

    def flat_error(message: object) -> NoReturn:
        raise RuntimeError(message)

    def of_server(name: str) -> Callable[..., NoReturn]:
        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise NeedsServer(f"{name} needs a server: use the fixture `gears` instead of the stub mode")

        return refuse

    names: dict[str, Any] = {
        "GB": builder,
        "GearsBuilder": builder,
        "Loaded": _Loaded,
        "Sorted": _Sorted,
        "atomic": _Atomic,
        "call_next": call_next,
        "configGet": config.get,
        "execute": script.execute,
        "flat_error": flat_error,
        "gearsConfigGet": lambda key, default=None: config.get(key, default),
        "hashtag": lambda: "06S",
        "isAsyncAllow": lambda: True,
        "isInAtomicBlock": lambda: False,
        "log": log,
        "override_reply": script.replies.append,
        "read_through": read_through,
        "refresh": lambda *keys: len(keys),
    }
    for name in ("createFuture", "gearsFuture", "getGearsSession", "get_command", "registerGearsThread", "registerTE",
                 "runCoroutine", "setFutureException", "setFutureResults", "setGearsSession"):
        names[name] = of_server(name)
    return names
