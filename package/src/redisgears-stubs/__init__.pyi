"""Types of the module `redisgears`, which exists inside the server only. For editors and type checkers.

What each function does is in docs/functions.md. Scripts see some of the names under other ones: `execute` is
`executeCommand`, `atomic` is `atomicCtx`, `configGet` is `config_get`, `hashtag` is `getMyHashTag`, `read_through` is `readThrough`,
`write_behind` is `writeBehind`.
"""

from asyncio import Future
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, TypedDict, TypeVar, overload

from typing_extensions import Self

# A reply has the form of RESP2: str, int, list, None, or bytearray where it is no UTF-8. Scripts know which one a command gives.
Reply = Any

# What a decorator gets, it returns: the function keeps its type.
_Function = TypeVar("_Function", bound=Callable[..., object])
_Loader = TypeVar("_Loader", bound=Callable[[Any], object])
_Save = TypeVar("_Save", bound=Callable[[Any], object])

class Change(TypedDict):
    """What `save` of `write_behind` gets a list of. A type only: scripts cannot name it when they run."""

    id: str
    key: Any  # str, or bytes where it is not UTF-8
    db: int
    event: str
    type: Literal["string", "hash", "list", "set", "zset", "stream", "module"] | None
    value: Any  # by the type: str, dict, list, set, dict of float, None; texts as for `key`

class GearsError(Exception): ...
class GearsFlatError(Exception): ...
class GearsForceStopped(Exception): ...

def executeCommand(command: str, /, *args: object) -> Reply: ...
def callNext(*args: object) -> Reply: ...
def log(message: str, /, level: Literal["debug", "verbose", "notice", "warning"] = "notice") -> None: ...
def config_get(key: str, /) -> str | bytearray | None: ...
def gearsConfigGet(key: str, default: Any = None) -> Any: ...
def getMyHashTag() -> str: ...
def isInAtomicBlock() -> bool: ...
def flatError(message: object, /) -> None: ...
def getCommand() -> list[str | bytearray]: ...
def overrideReply(value: object, /) -> None: ...
def isAsyncAllow() -> bool: ...
def gearsFutureCtx() -> PyFuture: ...
def getGearsSession() -> PyExecutionSession | None: ...
def setGearsSession(session: PyExecutionSession | None, /) -> None: ...
def registerGearsThread() -> None: ...
def registerTimeEvent(seconds: int, callback: Callable[[], object], key: str = ..., /) -> bool: ...

class Sorted(dict[Any, float]): ...

class Loaded:
    value: Any
    ttl: float | None
    def __init__(self, value: Any, ttl: float | None = None) -> None: ...

@overload
def register_function(name: _Function) -> _Function: ...
@overload
def register_function(
    name: str | None,
    function: _Function,
    *,
    description: str | None = None,
    flags: Iterable[Literal["no-writes", "allow-oom", "allow-stale", "no-cluster", "allow-cross-slot-keys"]] = (),
) -> _Function: ...
@overload
def register_function(
    name: str | None = None,
    *,
    description: str | None = None,
    flags: Iterable[Literal["no-writes", "allow-oom", "allow-stale", "no-cluster", "allow-cross-slot-keys"]] = (),
) -> Callable[[_Function], _Function]:
    """Makes a function one that FCALL can call (Valkey 8.1 and later): `function(keys, args)`. For libraries that FUNCTION LOAD loads;
    a decorator, with or without arguments, or a call. Returns the function. Raises `gears.error` that names the argument."""

@overload
def readThrough(
    prefix: str,
    loader: _Loader,
    *,
    commands: Iterable[str] | None = None,
    ttl: float | Callable[[Any, Any], float | None] | None = None,
    jitter: float = 0,
    negative_ttl: float = 0,
    stale: float = 0,
    refresh_ahead: float | Literal["xfetch"] = 0,
    timeout: float | None = None,
    on_error: Literal["error", "miss"] = "error",
    max_waiting: int = 2000,
    max_loads: int | None = None,
    max_load_time: float = 30,
    max_memory: int | None = None,
    backoff: float = 0.1,
    max_backoff: float = 10,
    breaker: tuple[int, float] | None = None,
    batch: int = 1,
    batch_wait: float = 0.001,
    onRegistered: Callable[[], object] | None = None,
    user: str | None = None,
    desc: str | None = None,
) -> _Loader: ...
@overload
def readThrough(
    prefix: str,
    *,
    commands: Iterable[str] | None = None,
    ttl: float | Callable[[Any, Any], float | None] | None = None,
    jitter: float = 0,
    negative_ttl: float = 0,
    stale: float = 0,
    refresh_ahead: float | Literal["xfetch"] = 0,
    timeout: float | None = None,
    on_error: Literal["error", "miss"] = "error",
    max_waiting: int = 2000,
    max_loads: int | None = None,
    max_load_time: float = 30,
    max_memory: int | None = None,
    backoff: float = 0.1,
    max_backoff: float = 10,
    breaker: tuple[int, float] | None = None,
    batch: int = 1,
    batch_wait: float = 0.001,
    onRegistered: Callable[[], object] | None = None,
    user: str | None = None,
    desc: str | None = None,
) -> Callable[[_Loader], _Loader]: ...
def refresh(*keys: object) -> int | Future[int]: ...
@overload
def writeBehind(
    prefix: str,
    save: _Save,
    *,
    events: Iterable[str] | None = None,
    batch: int = 100,
    interval: float = 0,
    coalesce: bool = True,
    backoff: float = 0.1,
    max_backoff: float = 30,
    max_tries: int | None = None,
    dead_letter: str | None = None,
    max_queue: int = 1_000_000,
    max_queue_bytes: int = 268_435_456,
    on_full: Literal["wait", "error"] = "wait",
    full_timeout: float | None = None,
    wait: bool = False,
    timeout: float = 5,
    ordered: Literal["key", "all"] = "key",
    max_save_time: float | None = None,
    max_memory: int | None = None,
    onRegistered: Callable[[], object] | None = None,
    user: str | None = None,
    desc: str | None = None,
) -> _Save: ...
@overload
def writeBehind(
    prefix: str,
    *,
    events: Iterable[str] | None = None,
    batch: int = 100,
    interval: float = 0,
    coalesce: bool = True,
    backoff: float = 0.1,
    max_backoff: float = 30,
    max_tries: int | None = None,
    dead_letter: str | None = None,
    max_queue: int = 1_000_000,
    max_queue_bytes: int = 268_435_456,
    on_full: Literal["wait", "error"] = "wait",
    full_timeout: float | None = None,
    wait: bool = False,
    timeout: float = 5,
    ordered: Literal["key", "all"] = "key",
    max_save_time: float | None = None,
    max_memory: int | None = None,
    onRegistered: Callable[[], object] | None = None,
    user: str | None = None,
    desc: str | None = None,
) -> Callable[[_Save], _Save]: ...

class PyExecutionSession: ...

class PyFuture:
    def continueRun(self, value: object, /) -> None: ...
    def continueFailed(self, error: object, /) -> None: ...

class PyAtomic:
    def __init__(self, *args: object) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None: ...

atomicCtx = PyAtomic

class PyFlatExecution:
    def __new__(cls, reader: str = "KeysReader", desc: str | None = None) -> Self: ...
    def map(self, f: Callable[[Any], object]) -> Self: ...
    def flatmap(self, f: Callable[[Any], object]) -> Self: ...
    def filter(self, f: Callable[[Any], object]) -> Self: ...
    def foreach(self, f: Callable[[Any], object]) -> Self: ...
    def accumulate(self, f: Callable[[Any, Any], object]) -> Self: ...
    def groupby(self, extractor: Callable[[Any], object], reducer: Callable[[str, Any, Any], object]) -> Self: ...
    def localgroupby(self, extractor: Callable[[Any], object], reducer: Callable[[str, Any, Any], object]) -> Self: ...
    def batchgroupby(self, extractor: Callable[[Any], object], reducer: Callable[[str, list[Any]], object]) -> Self: ...
    def repartition(self, extractor: Callable[[Any], object]) -> Self: ...
    def aggregate(
        self, zero: object, seqOp: Callable[[Any, Any], object], combOp: Callable[[Any, Any], object]
    ) -> Self: ...
    def aggregateby(
        self,
        extractor: Callable[[Any], object],
        zero: object,
        seqOp: Callable[[str, Any, Any], object],
        combOp: Callable[[str, Any, Any], object],
    ) -> Self: ...
    def countby(self, extractor: Callable[[Any], object] = ...) -> Self: ...
    def distinct(self) -> Self: ...
    def sort(self, reverse: bool = True) -> Self: ...  # GearsBuilder also takes `key`
    def limit(self, length: int, start: int = 0) -> Self: ...
    def collect(self) -> Self: ...
    def count(self) -> Self: ...
    def run(
        self,
        arg: str | Callable[[], Iterable[Any]] = "*",
        *,
        mode: Literal["async", "async_local"] = "async",
        noScan: bool = False,
        readValue: bool = True,
        fromId: str = "0-0",
        count: int = 1000,
        patternGenerator: Callable[[], tuple[str, bool]] | None = None,
    ) -> Future[list[list[Any]]]: ...
    def register(
        self,
        *,
        prefix: str = "*",
        mode: Literal["async", "async_local", "sync"] = "async",
        onRegistered: Callable[[], object] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        max_concurrent: int | None = None,
        max_memory: int | None = None,
        eventTypes: Iterable[str] | None = None,
        keyTypes: Iterable[str] | None = None,
        readValue: bool = True,
        commands: Iterable[str] | None = None,
        inorder: bool = False,
        trigger: str = ...,
        hook: str = ...,
        keyprefix: str = ...,
        batch: int = 1,
        duration: int = 0,
        onFailedPolicy: str = "continue",
        onFailedRetryInterval: int = 1,
        trimStream: bool = True,
    ) -> str: ...

gearsCtx = PyFlatExecution
