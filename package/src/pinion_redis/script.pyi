"""The names that scripts see without an import, as namespaces of the server have them: docs/functions.md tells what each does."""

import asyncio as asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, BinaryIO, Literal

import redisgears
import redisgears as rg
from redisgears import Change as Change
from redisgears import Loaded as Loaded
from redisgears import PyFlatExecution, Reply
from redisgears import Sorted as Sorted
from redisgears import atomicCtx as atomic
from redisgears import callNext as call_next
from redisgears import config_get as configGet
from redisgears import executeCommand as execute
from redisgears import flatError as flat_error
from redisgears import gearsConfigGet as gearsConfigGet
from redisgears import gearsCtx as gearsCtx
from redisgears import gearsFutureCtx as gearsFuture
from redisgears import getCommand as get_command
from redisgears import getGearsSession as getGearsSession
from redisgears import getMyHashTag as hashtag
from redisgears import isAsyncAllow as isAsyncAllow
from redisgears import isInAtomicBlock as isInAtomicBlock
from redisgears import log as log
from redisgears import overrideReply as override_reply
from redisgears import readThrough as read_through
from redisgears import writeBehind as write_behind
from redisgears import refresh as refresh
from redisgears import registerGearsThread as registerGearsThread
from redisgears import registerTimeEvent as registerTE
from redisgears import setGearsSession as setGearsSession
from typing_extensions import Self

# Without `load`, a name that nearly each script gives to a function of its own: it would be defined twice.
__all__ = [
    "GB",
    "Change",
    "ConfigGet",
    "GearsBuilder",
    "GearsConfigGet",
    "GearsFuture",
    "GearsSession",
    "Loaded",
    "Log",
    "Reply",
    "Sorted",
    "atomic",
    "call_next",
    "configGet",
    "createFuture",
    "dump",
    "dumps",
    "execute",
    "flat_error",
    "gearsConfigGet",
    "gearsCtx",
    "gearsFuture",
    "getGearsSession",
    "get_command",
    "hashtag",
    "isAsyncAllow",
    "isInAtomicBlock",
    "loads",
    "log",
    "loop",
    "override_reply",
    "read_through",
    "write_behind",
    "redisgears",
    "refresh",
    "registerGearsThread",
    "registerTE",
    "rg",
    "runCoroutine",
    "setFutureException",
    "setFutureResults",
    "setGearsSession",
]

class GearsBuilder(PyFlatExecution):
    """A function over the records of a reader; every operation returns the builder itself."""

    def __new__(cls, reader: str = "KeysReader", defaultArg: object = "*", desc: str | None = None) -> Self: ...
    def avg(self, extractor: Callable[[Any], float] = ...) -> Self: ...
    def sort(self, reverse: bool = True, key: Callable[[Any], Any] | None = None) -> Self: ...
    def run(
        self,
        arg: str | Callable[[], Iterable[Any]] | None = None,
        convertToStr: bool = True,
        collect: bool = True,
        mode: Literal["async", "async_local"] = "async",
        *,
        noScan: bool = False,
        readValue: bool = True,
        fromId: str = "0-0",
        count: int = 1000,
        patternGenerator: Callable[[], tuple[str, bool]] | None = None,
    ) -> Future[list[list[Any]]]: ...
    def register(  # type: ignore[override]
        self,
        prefix: str = "*",
        convertToStr: bool = True,
        collect: bool = True,
        mode: Literal["async", "async_local", "sync"] = "async",
        onRegistered: Callable[[], object] | None = None,
        *,
        user: str | None = None,
        timeout: int | None = None,
        max_concurrent: int | None = None,
        max_memory: int | None = None,
        eventTypes: Iterable[str] | None = None,
        keyTypes: Iterable[str] | None = None,
        readValue: bool = True,
        commands: Iterable[str] | None = None,
        inorder: bool = False,
        coalesce: bool = False,
        trigger: str = ...,
        hook: str = ...,
        keyprefix: str = ...,
        batch: int = 1,
        duration: int = 0,
        onFailedPolicy: Literal["continue", "abort", "retry"] = "continue",
        onFailedRetryInterval: int = 1,
        trimStream: bool = True,
    ) -> str: ...

GB = GearsBuilder

class GearsFuture(Future[Any]): ...

class GearsSession:
    def __init__(self, s: redisgears.PyExecutionSession | None) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

loop: AbstractEventLoop

def createFuture() -> GearsFuture: ...
def runCoroutine(
    cr: Coroutine[Any, Any, object],
    f: redisgears.PyFuture | None = None,
    delay: float = 0,
    s: redisgears.PyExecutionSession | None = None,
) -> None: ...
def setFutureResults(f: Future[Any], value: object) -> None: ...
def setFutureException(f: Future[Any], error: object) -> None: ...
def Log(*args: str, **kwargs: str) -> None: ...
def ConfigGet(*args: str) -> str | bytearray | None: ...
def GearsConfigGet(key: str, default: Any = None) -> Any: ...
def dumps(value: object) -> bytes: ...
def dump(value: object, file: BinaryIO) -> None: ...
def loads(image: bytes) -> Any: ...
def load(file: BinaryIO) -> Any: ...
