"""What test_fuzz.py sends to a server: random commands, scripts, transactions, Lua, both protocols, reloads, rewrites, and bytes
that mean nothing. All of it comes from one seed; what several clients do meanwhile depends on the machine.
"""

from __future__ import annotations

import collections
import contextlib
import random
import threading
import time
from typing import Any, Callable, Sequence, Union

import redis

from helpers import RawClient, Server, as_dict

Word = Union[str, bytes, int]
# A function may hold the server for SyncTimeout, and a save or a reload takes its time on a busy machine.
BOUND_S = 60
KEYS = [f"k:{number}" for number in range(12)] + ["s", "t:1", "", "\xff", "{tag}x", "long" * 50]
NAMES = ["one", "two", "three"]
NUMBERS = ["0", "1", "-1", "2", "100", "18446744073709551615", "18446744073709551616", "-9223372036854775808", "1e300", "nan", "01", " 1", "1.5"]
WORDS = ["ID", "UNBLOCKING", "UPGRADE", "REPLACE_WITH", "DESCRIPTION", "VERBOSE", "DEAD", "TS", "SESSIONS", "SHARD", "CLUSTER",
         "ABORTPENDING", "STATS", "RESET", "MaxExecutions", "ProfileExecutions", "*"]
COMMANDS = """ABORTEXECUTION ALLREGISTRATIONSABORT CLEARREGISTRATIONSSTATS CONFIGGET CONFIGSET DROPEXECUTION DUMPEXECUTIONS
DUMPREGISTRATIONS GETEXECUTION GETRESULTS GETRESULTSBLOCKING HELLO INFOCLUSTER NETWORKTEST PAUSEREGISTRATIONS UNPAUSEREGISTRATIONS
PYDUMPREQS PYDUMPSESSIONS PYEXECUTE PYEXPORTREQ PYIMPORTREQ PYPROFILE PYSTATS REFRESH KEYINFO REFRESHCLUSTER STATS TRIGGER TRIGGERONKEY
UNREGISTER UNREGISTERSESSION INNERAFTER INNERMSGCOMMAND INNERQUEUE INNERREAD INNERREADLATER INNERREGISTER INNERTIMEEVENT
INNERUNREGISTER INNERWRITE INNERWRITEMORE PYIMPORTRETINTERNAL CLUSTERSET CLUSTERSETFROMSHARD""".split()

READERS = ["KeysReader", "KeysOnlyReader", "StreamReader", "PythonReader", "ShardsIDReader", "CommandReader", "Nowhere"]
EVENT_READERS = ["KeysReader", "StreamReader", "CommandReader"]
MODES = ["sync", "async", "async_local", "never"]
# Bodies of functions of a record `r`; each is also the expression of a lambda where it has no line end.
EXPRESSIONS = ["r", "None", "1", "str(r)", "r['key']", "1/0", "[r, r]", "execute('GET', 'k:1')", "execute('SET', 'k:2', 'v')",
               "execute('INCR', 'n')", "execute()", "execute('RG.DUMPEXECUTIONS')", "execute('XADD', 's', '*', 'f', str(r))",
               "override_reply('o')", "override_reply(execute('HGETALL', 'k:3'))", "call_next(*r[1:])", "get_command()",
               "hashtag()", "log('x')", "config_get('maxmemory')", "gearsConfigGet('a', 1)", "time.sleep(0.002)", "b'\\xff'", "{'a': {r['key']}}",
               "float('nan')", "10**400", "isAsyncAllow()", "refresh('k:4')", "[i for i in range(50)]", "(r,)", "object()",
               "Loaded('v', ttl=0.1)", "Loaded(None)", "Sorted({'m': 1})", "{k: 'v' for k in r}", "execute('DEL', 'k:1')", "execute('HSET', 'k:4', 'f', 'v')",
               "registerTE(1, lambda: None)", "atomic().__enter__()", "lambda: r", "len", "r.decode()", "r.read()", "sys.exit(1)", "'x' * 10000"]
STEPS = ["map({f})", "filter({f})", "foreach({f})", "flatmap({f})", "count()", "limit(3)", "limit(1, 2)", "limit(-1)", "collect()", "distinct()",
         "groupby({f}, lambda k, a, r: (a or 0) + 1)", "batchgroupby({f}, lambda k, r: len(r))", "countby({f})", "sort()", "sort(reverse=False)",
         "aggregate(0, lambda a, r: a, lambda a, r: a)", "aggregateby({f}, {{}}, lambda k, a, r: a, lambda k, a, r: a)", "repartition({f})",
         "accumulate(lambda a, r: (a or 0) + 1)", "avg({f})", "localgroupby({f}, lambda k, a, r: r)", "nothing()"]
COROUTINE = """
async def {name}(r):
    await asyncio.sleep({seconds})
    return {expression}
"""
FUNCTION = """
def {name}(r):
    with atomic():
        {expression}
    return {expression}
"""
# Whoever loads ends soon, and nobody waits for a queue whose changes are never saved: nobody would be answered within `BOUND_S`.
READ_THROUGH = ["ttl=1", "ttl=0.05", "ttl=lambda k, v: 0.1", "jitter=0.5", "negative_ttl=0.5", "stale=1", "refresh_ahead=0.9", "refresh_ahead='xfetch'", "timeout=0.05",
                "on_error='miss'", "max_waiting=1", "max_loads=2, timeout=2", "backoff=0", "max_backoff=0.2", "breaker=(2, 0.1)", "batch=5", "batch=3, batch_wait=0.01",
                "commands=['get', 'mget', 'hgetall']", "max_memory=300", "ttl=-1"]
WRITE_BEHIND = ["batch=1", "batch=500", "interval=0.01", "coalesce=False", "backoff=0.01", "max_backoff=0.1", "max_tries=1, dead_letter='s'", "max_tries=1, dead_letter='k:1'",
                "max_queue=3, on_full='error'", "max_queue=2, full_timeout=0.05", "max_queue_bytes=200, on_full='error'", "wait=True, timeout=0.05", "wait=True, timeout=1", "ordered='all'", "max_save_time=0.5",
                "events=['set', 'hset']", "events=['set', 'del', 'expired', 'evicted']", "max_memory=300", "batch=0"]
SLOW_QUEUE = "write_behind(prefix='k:*', max_queue=3)(lambda changes: time.sleep(0.005))"
# Of libraries and scripts for the server's engine of Python, where there is one.
LIBRARY = """#!python name={name}
from redisgears import register_function
{definition}
register_function('{name}', {function}, flags={flags})
"""
LUA = ["return redis.call({words})", "return redis.pcall({words})",
       "for i = 1, 3 do redis.call({words}) end return redis.status_reply('x')", "#!lua flags=no-writes\nreturn redis.call({words})"]


class Fuzzer:
    """One client that does what chance tells; another one begins where its connection ends."""

    def __init__(self, server: Server, seed: int, upkeep: threading.Lock) -> None:
        self.server, self.random, self._upkeep = server, random.Random(seed), upkeep
        self.done: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.history: collections.deque[str] = collections.deque(maxlen=150)
        self.failure: str | None = None
        self.registered: collections.Counter[str] = collections.Counter()
        self.ids: collections.deque[bytes] = collections.deque([b"0" * 40 + b"-1"], maxlen=40)
        self._raw: RawClient | None = None
        self._plain = server.client(decode_responses=False)

    # --- pieces ---

    def one(self, choices: Sequence[str]) -> str:
        return self.random.choice(choices)

    def word(self) -> Word:
        """Any word; some of them are what the server has told."""
        kind = self.random.randrange(9)
        if kind == 0:
            return self.random.randbytes(self.random.choice([0, 1, 5, 300]))
        if kind == 1:
            return self.random.choice(list(self.ids))
        return self.one([KEYS, NAMES, NUMBERS, WORDS, KEYS, NAMES, EXPRESSIONS][kind - 2])

    def data_command(self) -> list[Word]:
        key = self.one(KEYS)
        return self.random.choice([
            ["GET", key], ["GET", key], ["MGET", key, self.one(KEYS)], ["SET", key, self.word()], ["SET", key, "v", "PX", self.random.randrange(1, 50)], ["DEL", key],
            ["UNLINK", key, self.one(KEYS)], ["INCR", key], ["APPEND", key, "x"], ["HSET", key, "f", self.word()], ["HGETALL", key], ["HGET", key, "f"],
            ["XADD", "s", "*", "f", self.word()], ["XTRIM", "s", "MAXLEN", "5"], ["LPUSH", key, "a", "b"], ["LPOP", key], ["SADD", key, "m"],
            ["ZADD", key, "1", "m"], ["RENAME", key, self.one(KEYS)], ["COPY", key, self.one(KEYS)], ["EXPIRE", key, "0"], ["PERSIST", key],
            ["SORT", key, "BY", "nosort", "GET", "k:*"], ["EXISTS", key], ["TYPE", key], ["DUMP", key], ["OBJECT", "ENCODING", key], ["GETSET", key, "v"],
            ["ECHO", key], ["BLPOP", key, "0.01"], ["BLMOVE", key, self.one(KEYS), "LEFT", "RIGHT", "0.01"], ["GETEX", key, "PX", "20"], ["GETDEL", key],
            ["SETEX", key, "1", "v"], ["MSET", key, "v", self.one(KEYS), "w"], ["MSETNX", key, "v"], ["MOVE", key, "1"], ["PEXPIRE", key, self.random.randrange(1, 50)],
            ["SUNIONSTORE", key, self.one(KEYS)], ["SORT", self.one(KEYS), "STORE", key], ["HEXPIRE", key, "1", "FIELDS", "1", "f"], ["HDEL", key, "f"], ["RPUSH", key, "a"],
            ["RENAMENX", key, self.one(KEYS)], ["SETRANGE", key, "3", "x"], ["BITOP", "NOT", key, self.one(KEYS)], ["PFADD", key, "a"], ["HINCRBY", key, "f", "1"], ["XREADGROUP", "GROUP", "__gears_consumer_group__", "c", "STREAMS", "s", ">"],
        ])

    def module_command(self) -> list[Word]:
        if self.random.random() < 0.3:
            return ["RG.TRIGGER", self.one(NAMES), *[self.word() for _ in range(self.random.randrange(3))]]
        name = self.one(COMMANDS)
        return [f"RG.{name}", *[self.word() for _ in range(self.random.choice([0, 1, 1, 2, 3, 6]))]]

    def function(self) -> tuple[str, str]:
        """A definition, or nothing, and an expression that is a function."""
        name, expression = f"f{self.random.randrange(1000)}", self.one(EXPRESSIONS)
        kind = self.random.randrange(6)
        if kind == 0:
            return COROUTINE.format(name=name, expression=expression, seconds=self.one(["0", "0.001", "0.02", "-1"])), name
        if kind == 1:
            return FUNCTION.format(name=name, expression=expression), name
        return "", f"(lambda r: {expression})"

    def script(self) -> str:
        """A script that builds something, sometimes with damage."""
        lines = ["import asyncio, sys, time"]
        for _ in range(self.random.choice([1, 1, 2])):
            definitions, steps = [], []
            for _ in range(self.random.randrange(4)):
                definition, function = self.function()
                definitions.append(definition)
                steps.append(self.one(STEPS).format(f=function))
            registers = self.random.random() < 0.5
            reader = self.one(EVENT_READERS if registers else READERS)
            argument = {"PythonReader": ", lambda: iter(range(5))", "StreamReader": "" if registers else ", 's'"}.get(reader, "")
            ending = self.registering(reader) if registers else self.one([".run()", ".run('k:*')", f".run(mode='{self.one(MODES)}')", ""])
            lines += [*definitions, "".join([f"GB('{reader}'{argument})", *[f".{step}" for step in steps], ending])]
        if self.random.random() < 0.3:
            definition, function = self.function()
            prefix = self.one(["k:*", "t:*", "k:1", "*"])
            lines += [definition, self.one([
                f"read_through(prefix='{prefix}', max_load_time=3{self.options(READ_THROUGH)})({function})",
                f"read_through(prefix='{prefix}', max_load_time=3{self.options(READ_THROUGH)})({function})",
                f"write_behind(prefix='{prefix}'{self.options(WRITE_BEHIND)})({self.one([function, function, '(lambda changes: None)'])})", SLOW_QUEUE,
                f"registerTE(1, {function}, 'te:{self.random.randrange(3)}')", f"runCoroutine({function}(1))",
                f"execute({', '.join(repr(word) for word in self.data_command())})", f"atomic()\n{self.one(EXPRESSIONS)}",
            ])]
        text = "\n".join(lines)
        if SLOW_QUEUE in text:
            return text
        for _ in range(self.random.choice([0, 0, 0, 1, 3])):
            start = self.random.randrange(len(text))
            text = text[:start] + text[start + self.random.randrange(1, 9):]
        return text

    def registering(self, reader: str) -> str:
        arguments = [f"mode='{self.one(MODES)}'"]
        if reader == "CommandReader":
            arguments.append(self.random.choice([f"trigger='{self.one(NAMES)}'", f"hook='{self.one(['get', 'set', 'hgetall', 'echo'])}'"]))
        else:
            arguments.append(f"prefix='{self.one(['*', 'k:*', 's', 'k:1'])}'")
        for extra in ("commands=['get', 'mget']", "eventTypes=['keymiss', 'set']", "eventTypes=['del', 'expired']", "keyTypes=['string']", "readValue=False",
                      "batch=3", "duration=5", "onFailedPolicy='retry'", "trimStream=False", "inorder=True", "onRegistered=lambda: 1/0", "batch=-1"):
            if self.random.random() < 0.12:
                arguments.append(extra)
        return f".register({', '.join(arguments)})"

    def execute_script(self) -> list[Word]:
        words: list[Word] = ["RG.PYEXECUTE", self.script()]
        for extra in (["UNBLOCKING"], ["ID", self.one(NAMES), "UPGRADE"], ["ID", self.one(NAMES)], ["REPLACE_WITH", self.one(NAMES)], ["DESCRIPTION", self.word()]):
            if self.random.random() < 0.25:
                words += extra
        return words

    def options(self, given: Sequence[str]) -> str:
        """A few of these arguments, each named once."""
        chosen: dict[str, str] = {}
        for option in self.random.sample(given, self.random.randrange(5)):
            names = [part.split("=")[0] for part in option.split(", ") if part[0].islower()]
            if not any(name in taken.split(", ") for name in names for taken in chosen):
                chosen[", ".join(names)] = option
        return "".join(f", {option}" for option in chosen.values())

    def engine_command(self) -> list[Word]:
        """For Python as a language of the server's own scripts."""
        name, expression = f"lib{self.random.randrange(3)}", self.one(EXPRESSIONS)
        definition, function = self.function()
        flags = self.one(["[]", "['no-writes']", "['allow-oom']", "['nothing']", "1"])
        library = LIBRARY.format(name=name, definition=definition, function=function.replace("lambda r:", "lambda r, args:"), flags=flags)
        return self.random.choice([
            ["FUNCTION", "LOAD", "REPLACE", library], ["FUNCTION", "LOAD", library], ["FCALL", name, "1", self.one(KEYS), self.word()], ["FCALL", name, "0"], ["FCALL", name, "0"],
            ["FCALL_RO", name, "0"], ["FUNCTION", "DELETE", name], ["FUNCTION", "LIST", "WITHCODE"], ["FUNCTION", "DUMP"], ["FUNCTION", "STATS"], ["SCRIPT", "KILL"],
            ["FUNCTION", "KILL"], ["FUNCTION", "FLUSH", self.one(["SYNC", "ASYNC"])], ["FUNCTION", "RESTORE", self.word()],
            ["EVAL", f"#!python\nr = KEYS\nreturn {expression}", "1", self.one(KEYS)], ["EVAL", f"#!python flags=no-writes\nr = ARGV\nreturn {expression}", "0", "a"],
        ])

    def any_command(self) -> list[Word]:
        return self.random.choice([self.data_command, self.data_command, self.module_command, self.execute_script, self.engine_command])()

    # --- what it does ---

    def actions(self) -> list[Callable[[], None]]:
        often = [self.send_data] * 8 + [self.send_module] * 6 + [self.send_script] * 4
        return [*often, self.send_engine, self.transaction, self.transaction, self.lua, self.lua, self.pipeline, self.leave, self.change_connection, self.restore,
                self.tidy, self.upkeep, self.nonsense]

    def send_data(self) -> None:
        self.call(*self.data_command())

    def send_module(self) -> None:
        self.call(*self.module_command())

    def send_script(self) -> None:
        self.call(*self.execute_script())

    def send_engine(self) -> None:
        self.call(*self.engine_command())

    def transaction(self) -> None:
        self.call("MULTI")
        for _ in range(self.random.randrange(5)):
            self.call(*self.any_command())
        self.call(self.one(["EXEC", "EXEC", "EXEC", "DISCARD"]))

    def lua(self) -> None:
        words = self.random.choice([self.data_command, self.module_command, self.execute_script])()
        shown = ", ".join('"' + "".join(f"\\{byte:03d}" for byte in as_bytes(word)) + '"' for word in words)
        self.call("EVAL", self.one(LUA).format(words=shown), "0")

    def pipeline(self) -> None:
        """Several commands before the first reply."""
        count = self.random.randrange(2, 20)
        for _ in range(count):
            self.note_and_send(self.any_command())
        for _ in range(count):
            self.read()

    def leave(self) -> None:
        """Goes without waiting for the reply."""
        self.note_and_send(self.any_command())
        self.disconnect()

    def change_connection(self) -> None:
        self.call(*self.random.choice([
            ["HELLO", "3"], ["HELLO", "2"], ["SELECT", "1"], ["SELECT", "0"], ["RESET"], ["CLIENT", "TRACKING", "ON", "BCAST"], ["CLIENT", "NO-EVICT", "ON"],
            ["WATCH", "k:1"], ["UNWATCH"], ["CLIENT", "SETNAME", "x"], ["READONLY"], ["WAIT", "0", "10"],
        ]))

    def restore(self) -> None:
        """What a key of the module would be in a file, and other values, damaged."""
        client = self.server.own
        with contextlib.suppress(redis.RedisError):
            dumped = self._plain.dump(self.one(KEYS)) or b""
            place = self.random.randrange(len(dumped) + 1)
            damaged = dumped[:place] + self.random.randbytes(self.random.randrange(4)) + dumped[place:]
            client.execute_command("RESTORE", self.one(KEYS), 0, damaged, "REPLACE")
        archive = b"PINREQ" + (1).to_bytes(8, "little") + self.random.randbytes(self.random.randrange(80))
        self.call("RG.PYIMPORTREQ", archive)

    def tidy(self) -> None:
        """Ends some of what has been registered and what runs; otherwise there is more and more of it."""
        client = self.server.own
        with contextlib.suppress(redis.RedisError):
            entries = client.execute_command("RG.DUMPREGISTRATIONS")
            self.registered.update(map(kind, entries))
            registrations = [entry[1] for entry in entries]
            for identifier in registrations[self.random.randrange(8):]:
                client.execute_command("RG.UNREGISTER", identifier, *self.random.choice([[], ["ABORTPENDING"]]))
            for entry in client.execute_command("RG.DUMPEXECUTIONS")[-30:]:
                self.ids.append(entry[1].encode())
                if self.random.random() < 0.5:
                    client.execute_command("RG.ABORTEXECUTION", entry[1])

    def upkeep(self) -> None:
        words = self.random.choice([
            ["DEBUG", "RELOAD"], ["BGREWRITEAOF"], ["BGSAVE"], ["FLUSHALL"], ["FLUSHDB"], ["SWAPDB", "0", "1"], ["SCRIPT", "FLUSH"], ["CLIENT", "PAUSE", "20", "WRITE"],
            ["CLIENT", "PAUSE", "20"], ["INFO", "everything"], ["DEBUG", "SLEEP", "0.01"], ["RG.CONFIGSET", "ProfileExecutions", self.one(["0", "1"])],
            # Never without one: functions that call each other a hundred deep, twice each, end by nothing else.
            ["RG.CONFIGSET", "SyncTimeout", self.one(["1", "20", "500"])],
            ["CONFIG", "SET", "maxmemory", self.one(["0", "0", "40mb"])], ["COMMAND", "DOCS"], ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no"],
            ["CONFIG", "SET", "appendonly", self.one(["yes", "no"])], ["ACL", "LOG"], ["MEMORY", "DOCTOR"],
        ])
        # A server lets others in while it loads, also to load something else, and ends over that.
        with self._upkeep:
            if words == ["DEBUG", "RELOAD"]:
                # After a reload in the middle of a BGSAVE it counts fewer changes than none since the last file, takes the next reload for a write,
                # and ends over that if clients are paused.
                self.call("CLIENT", "UNPAUSE")
            self.call(*words)

    def nonsense(self) -> None:
        """Bytes that are no command."""
        self.note("bytes")
        with contextlib.suppress(OSError):
            self.raw().send_bytes(self.random.randbytes(self.random.randrange(1, 60)) + b"\r\n*1\r\n$4\r\nPING\r\n")
        self.disconnect()

    # --- its connection ---

    def raw(self) -> RawClient:
        if self._raw is None:
            self._raw = RawClient(self.server.host, self.server.port, BOUND_S)
        return self._raw

    def disconnect(self) -> None:
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def note(self, text: str) -> None:
        self.history.append(f"{time.strftime('%H:%M:%S')} {text[:1500]}")

    def note_and_send(self, words: list[Word]) -> None:
        self.note(" ".join(repr(word) for word in words))
        self.done[str(words[0]).upper()[:30]] += 1
        with contextlib.suppress(ConnectionError):  # the server ends those that ask too much, and those that it is told to
            self.raw().send(*words)

    def read(self) -> None:
        if self._raw is None:
            return  # it ended behind an earlier command: on the next connection nothing was sent
        try:
            reply = self._raw.read()
            while reply.startswith(b">"):  # what another client has changed
                reply = self._raw.read()
        except ConnectionError:
            self.disconnect()
            return
        self.note(f"    -> {reply[:80]!r}")
        if reply.startswith(b"-"):
            self.errors[" ".join(reply[1:].decode(errors="replace").split()[:3])[:60]] += 1
        elif reply.startswith(b"$") and b"-" in reply[:60]:
            self.ids.append(reply.split(b"\r\n")[1])

    def call(self, *words: Word) -> None:
        self.note_and_send(list(words))
        self.read()

    # --- the whole ---

    def run(self, stop: threading.Event) -> None:
        """Acts until it is stopped, or something is wrong: no reply within `BOUND_S`, or no server."""
        while not stop.is_set() and self.failure is None:
            action = self.random.choice(self.actions())
            try:
                action()
            except TimeoutError:
                self.failure = f"no reply within {BOUND_S} s in {action.__name__}\n{state(self.server)}"
            except ConnectionRefusedError:
                self.failure = "there is no server any more"
            except (OSError, redis.RedisError):
                self.disconnect()
            except Exception as error:  # noqa: BLE001 (who stops by a fault of its own must not look like one that found nothing)
                self.failure = f"{action.__name__}: {type(error).__name__}: {error}"
        self.disconnect()


# What the scripts register: each of them has to be seen in a run.
KINDS = [*EVENT_READERS, "ReadThrough", "ReadThrough batch", "WriteBehind"]


def kind(entry: list[Any]) -> str:
    """What an entry of RG.DUMPREGISTRATIONS is, one of `KINDS`."""
    shown = as_dict(entry)
    arguments = as_dict(as_dict(shown["RegistrationData"])["args"])
    batch = arguments["batch"] if shown["reader"] == "ReadThrough" else 1
    return shown["reader"] + (" batch" if batch != 1 else "")


def as_bytes(word: Word) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


def state(server: Server) -> str:
    """What a server says about what it is at."""
    lines = []
    for command in (["RG.DUMPEXECUTIONS"], ["RG.DUMPREGISTRATIONS", "VERBOSE"], ["CLIENT", "LIST"], ["INFO", "everything"]):
        try:
            lines.append(f"{' '.join(command)}: {server.client(socket_timeout=5).execute_command(*command)}")
        except redis.RedisError as error:
            lines.append(f"{' '.join(command)}: {error}")
    return "\n".join(lines)
