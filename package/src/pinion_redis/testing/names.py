"""The names that scripts see without an import, and the module `redisgears`, as the stub mode has them."""

from __future__ import annotations

import asyncio
import builtins
import pickle
import types
from collections.abc import Callable
from typing import Any, NoReturn, Optional

from .arguments import LOADS, SAVES
from .builder import Builder
from .changes import Sorted
from .errors import GearsError, GearsFlatError, GearsForceStopped, NeedsServer
from .script import StubScript

# What only makes sense in a server.
_FUNCTIONS_OF_SERVER = ("createFuture", "gearsFuture", "getGearsSession", "get_command", "registerGearsThread", "registerTE",
                        "register_function", "runCoroutine", "setFutureException", "setFutureResults", "setGearsSession")  # fmt: skip
_CLASSES_OF_SERVER = ("GearsFuture", "GearsSession", "PyExecutionSession", "PyFuture")
# Names of the module `redisgears` that scripts see under other ones.
_IN_MODULE = {
    "GearsBuilder": "PyFlatExecution",
    "atomic": "atomicCtx",
    "call_next": "callNext",
    "configGet": "config_get",
    "execute": "executeCommand",
    "flat_error": "flatError",
    "gearsFuture": "gearsFutureCtx",
    "get_command": "getCommand",
    "hashtag": "getMyHashTag",
    "override_reply": "overrideReply",
    "read_through": "readThrough",
    "registerTE": "registerTimeEvent",
    "write_behind": "writeBehind",
}
_ONLY_IN_MODULE = ("PyExecutionSession", "PyFuture", "register_function")


class Loaded:
    """What a loader returns for a value with a lifetime of its own."""

    def __init__(self, value: Any, ttl: Optional[float] = None) -> None:
        self.value, self.ttl = value, ttl

    def __repr__(self) -> str:
        return f"Loaded({self.value!r}, ttl={self.ttl!r})"


class _Atomic:
    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _Atomic:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _Loop:
    """The server's event loop, which is not there."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NeedsServer.by_name(f"loop.{name}")


def names(script: StubScript, config: dict[str, str]) -> dict[str, Any]:
    """What a script sees, `__import__` for the module `redisgears` included; what only makes sense in a server raises."""
    seen = {**_calls(script, config), **_of_server()}
    seen["GB"] = seen["GearsBuilder"]
    module = types.ModuleType("redisgears")
    shown = {_IN_MODULE.get(name, name): value for name, value in seen.items()}
    errors = {"GearsError": GearsError, "GearsFlatError": GearsFlatError, "GearsForceStopped": GearsForceStopped}
    module.__dict__.update({**shown, **errors, "PyAtomic": _Atomic})
    seen = {name: value for name, value in seen.items() if name not in _ONLY_IN_MODULE}

    def load_module(name: str, *arguments: Any, **options: Any) -> Any:
        return module if name == "redisgears" else builtins.__import__(name, *arguments, **options)

    return {**seen, "redisgears": module, "rg": module, "__builtins__": {**vars(builtins), "__import__": load_module}}


def _calls(script: StubScript, config: dict[str, str]) -> dict[str, Any]:
    def builder(*arguments: Any, **options: Any) -> Builder:
        return Builder(script.enlist, *arguments, **options)

    def gears_context(reader: str = "KeysReader", desc: Optional[str] = None) -> Builder:
        return Builder(script.enlist, reader, desc=desc)

    def read_through(prefix: str, loader: Optional[Callable[..., Any]] = None, **options: Any) -> Any:
        return script.half(LOADS, prefix, loader, options)

    def write_behind(prefix: str, save: Optional[Callable[..., Any]] = None, **options: Any) -> Any:
        return script.half(SAVES, prefix, save, options)

    def log(message: str, level: str = "notice") -> None:
        script.logs.append(message)

    def override_reply(value: Any) -> None:
        script.replies.append(value)

    def call_next(*arguments: object) -> Any:
        script.next_calls.append(arguments)
        answer = script.execute.answers.get(("CALL_NEXT",))
        return answer(*arguments) if callable(answer) else answer

    def flat_error(message: object) -> NoReturn:
        raise GearsFlatError(message)

    def configured(key: str, default: Any = None) -> Any:
        return config.get(key, default)

    return {
        "ConfigGet": config.get,
        "GearsBuilder": builder,
        "GearsConfigGet": configured,
        "Loaded": Loaded,
        "Log": log,
        "Sorted": Sorted,
        "asyncio": asyncio,
        "atomic": _Atomic,
        "call_next": call_next,
        "configGet": config.get,
        "dump": _dump,
        "dumps": _dumps,
        "execute": script.execute,
        "flat_error": flat_error,
        "gearsConfigGet": configured,
        "gearsCtx": gears_context,
        "hashtag": lambda: "06S",
        "isAsyncAllow": lambda: True,
        "isInAtomicBlock": lambda: False,
        "load": pickle.load,
        "loads": pickle.loads,
        "log": log,
        "loop": _Loop(),
        "override_reply": override_reply,
        "read_through": read_through,
        "refresh": lambda *keys: len(keys),
        "write_behind": write_behind,
    }


def _of_server() -> dict[str, Any]:
    def refusing(name: str) -> Callable[..., NoReturn]:
        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise NeedsServer.by_name(name)

        return refuse

    functions = {name: refusing(name) for name in _FUNCTIONS_OF_SERVER}
    return {**functions, **{name: type(name, (), {"__init__": refusing(name)}) for name in _CLASSES_OF_SERVER}}


def _dumps(value: object) -> bytes:
    """# Raises `NeedsServer` where the package cloudpickle is not installed, which the server has."""
    try:
        import cloudpickle  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise NeedsServer("dumps needs the package cloudpickle in the stub mode: pip install cloudpickle") from None
    image: bytes = cloudpickle.dumps(value)
    return image


def _dump(value: object, file: Any) -> None:
    file.write(_dumps(value))
