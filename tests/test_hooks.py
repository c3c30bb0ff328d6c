"""Command hooks, functions in the place of a command: when they apply, call_next, replies, contexts, servers.

Contract: docs/contract/readers-and-events.md 8, 9 and 13; docs/contract/commands.md 0.4 and 4.5.
Who may do what is in test_hooks_rights.py.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest

from helpers import Arg, RawClient, Server, wait_until
from probes import begun, blocked_clients, error_of, executions, go, raised

MODES = ["sync", "async_local"]
CANNOT_WAIT = "ERR can not run a non-sync execution inside a MULTI/LUA (blocking is not allowed) or on loading."
NOT_ONE = b"-Command hook must return exactly one result\r\n"
NO_HOOK = "Can not get CommandHook ctx"

UNKNOWN = "Can not override an unexisting command"
NOSCRIPT = "Can not override a command which are not allowed inside a script"
MOVABLE = "Can not override a command with moveable keys by key prefix"
KEYLESS = "Can not override a command by key prefix with none positive first key"
BACKGROUND = "Can not override a none sync registration"
BACKGROUND_IN_SESSION = "Can not override a none sync registration which already created on this session"

# The call with the key k has begun when the list `begun` has k; it ends when the key `go` exists.
HOLD = """
import time

def hold(record):
    execute('RPUSH', 'begun', record[1])
    while not execute('EXISTS', 'go'):
        time.sleep(0.001)
    return call_next(*record[1:]) or 'late'

"""
LATE = b"$4\r\nlate\r\n"


def hooked(steps: str, command: str = "get", mode: str = "sync", more: str = "") -> str:
    """The script of one hook."""
    return f"GB('CommandReader'){steps}.register(hook={command!r}, mode={mode!r}, {more})"


def hook(server: Server, steps: str, command: str = "get", mode: str = "sync", more: str = "") -> None:
    assert server.run(hooked(steps, command, mode, more)) == "OK"


def answer(server: Server, expression: str, command: str = "get", mode: str = "sync", more: str = "") -> None:
    """The command is answered with the value of `expression`; `r` is the record."""
    hook(server, f".map(lambda r: {expression})", command, mode, f"convertToStr=False, {more}")


def hold(server: Server, more: str = "") -> None:
    assert server.run(HOLD + hooked(".map(hold)", mode="async_local", more=more)) == "OK"


def ask(server: Server, key: str) -> RawClient:
    """A client that waits for the reply of a held GET, whose execution has begun or stands in the queue."""
    before = blocked_clients(server)
    raw = server.raw()
    raw.send("GET", key)
    wait_until(lambda: blocked_clients(server) == before + 1)
    return raw


def bulk(text: str) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text.encode()), text.encode())


def array(*items: bytes) -> bytes:
    return b"*%d\r\n%s" % (len(items), b"".join(items))


def transaction(raw: RawClient, *commands: list[Arg]) -> bytes:
    """The reply of EXEC."""
    raw.call("MULTI")
    for command in commands:
        assert raw.call(*command) == b"+QUEUED\r\n", command
    return raw.call("EXEC")


def triggered(server: Server) -> list[int]:
    """How often each registration was called, oldest first."""
    entries = sorted(server.registrations(), key=lambda entry: int(entry["id"].split("-")[1]))
    return [entry["RegistrationData"]["numTriggered"] for entry in entries]


def replicate(replica: Server, master: Server) -> None:
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")


# --- what can be hooked ---


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("hook='nosuchcommand'", UNKNOWN),
        ("hook='nosuchcommand', keyprefix='x'", UNKNOWN),
        ("hook=''", UNKNOWN),
        ("hook=' get'", UNKNOWN),
        ("hook='get\\0'", UNKNOWN),
        ("hook='multi'", NOSCRIPT),
        ("hook='EXEC', mode='sync'", NOSCRIPT),
        ("hook='subscribe'", NOSCRIPT),
        ("hook='auth'", NOSCRIPT),
        ("hook='Eval'", NOSCRIPT),
        ("hook='eval', keyprefix='x'", NOSCRIPT),
        ("hook='auth', keyprefix='x'", NOSCRIPT),
        ("hook='rg.trigger'", NOSCRIPT),
        ("hook='RG.PYEXECUTE'", NOSCRIPT),
        ("hook='rg.triggeronkey', keyprefix='x'", NOSCRIPT),
        ("hook='rg.innerread'", NOSCRIPT),
        ("hook='sort', keyprefix='x'", MOVABLE),
        ("hook='XREAD', keyprefix=''", MOVABLE),
        ("hook='zunionstore', keyprefix='x'", MOVABLE),
        ("hook='ping', keyprefix='x'", KEYLESS),
        ("hook='info', keyprefix='x'", KEYLESS),
        ("hook='xinfo', keyprefix=''", KEYLESS),
    ],
)
def test_what_cannot_be_hooked(server: Server, arguments: str, text: str) -> None:
    assert raised(server, f"GB('CommandReader').register({arguments})") == f"gears.error: {text}"
    assert server.registrations() == []
    assert server.raw().call("GET", "x") == b"$-1\r\n"


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async", "async_local"])
def test_nothing_comes_on_top_of_a_background_hook(server: Server, mode: str) -> None:
    hook(server, "")
    hook(server, "", "GeT")
    hook(server, "", mode=mode, more="keyprefix='x'")
    for newer in ("sync", "async"):
        for command in ("get", "GET"):
            assert raised(server, hooked("", command, newer)) == f"gears.error: {BACKGROUND}"
    hook(server, "", "mget", mode)
    assert len(server.registrations()) == 4


@pytest.mark.parametrize("newer", ["sync", "async"])
@pytest.mark.parametrize("commands", [("get", "get"), ("GET", "get"), ("get", "gEt")])
def test_nothing_comes_on_top_of_a_background_hook_of_the_same_script(
    server: Server, commands: tuple[str, str], newer: str
) -> None:
    older, other = commands
    script = f"{hooked('', older, 'async')}\n{hooked('', other, newer)}"
    assert raised(server, script) == f"gears.error: {BACKGROUND_IN_SESSION}"
    assert server.registrations() == []
    hook(server, "", mode="async")
    assert raised(server, script) == f"gears.error: {BACKGROUND}"


def test_one_script_may_stack_hooks(server: Server) -> None:
    steps = ".map(lambda r: '(' + call_next(*r[1:]) + ')')"
    server.run("\n".join([hooked(steps), hooked(steps, "GET"), hooked(steps, mode="async")]))
    server.client().set("k", "v")
    assert server.client().get("k") == "(((v)))"


OPTIONS = [["ID", "s", "UPGRADE"], ["ID", "new", "REPLACE_WITH", "s"]]


@pytest.mark.matrix
@pytest.mark.parametrize("options", OPTIONS, ids=["upgrade", "replace"])
@pytest.mark.parametrize("modes", [("async", "async_local"), ("async_local", "sync"), ("sync", "async")])
def test_an_upgrade_may_hook_the_same_command_again(server: Server, modes: tuple[str, str], options: list[str]) -> None:
    answer(server, "'below ' + str(call_next(*r[1:]))")
    older, newer = modes
    assert server.run(hooked(".map(lambda r: 'old')", mode=older), "ID", "s") == "OK"
    assert server.client().get("k") == "old"
    assert server.run(hooked(".map(lambda r: 'new ' + call_next(*r[1:]))", mode=newer), *options) == "OK"
    assert server.client().get("k") == "new below None"
    assert len(server.registrations()) == 2


def test_an_upgrade_does_not_come_on_top_of_another_sessions_background_hook(server: Server) -> None:
    server.run(hooked(".map(lambda r: 'below')"), "ID", "s")
    hook(server, ".map(lambda r: 'top ' + call_next(*r[1:]))", mode="async")
    error = error_of(server, hooked(".map(lambda r: 'new')"), "ID", "s", "UPGRADE")
    assert error.endswith(f"'gears.error: {BACKGROUND}\\n']")
    assert server.client().get("k") == "top below"


def test_a_script_that_fails_hooks_nothing(server: Server) -> None:
    raised(server, hooked(".map(lambda r: 'hooked')") + "\nraise ValueError")
    assert server.client().get("k") is None


# --- when a hook applies ---


@pytest.mark.own_server
@pytest.mark.matrix
@pytest.mark.parametrize(
    ("prefix", "applies", "untouched"),
    [
        ("x", ["x", "x:1", "x*"], ["X:1", " x", "a", ""]),
        ("z*", ["z*", "z*1"], ["z", "z1", "zz"]),
        ("*", ["*", "*x"], ["x", ""]),
        ("[ab]?", ["[ab]?1"], ["a1", "b?"]),
        ("é", ["é1"], ["e", "É"]),
        ("a\0b", ["a\0b", "a\0bc"], ["a", "a\0", "a\0c"]),
        ("", ["", "x", "\0"], []),
    ],
)
def test_the_key_prefix_is_literal(server: Server, prefix: str, applies: list[str], untouched: list[str]) -> None:
    answer(server, "'hooked'", more=f"keyprefix={prefix!r}")
    client = server.client()
    assert [client.get(key) for key in applies] == ["hooked"] * len(applies)
    assert [client.get(key) for key in untouched] == [None] * len(untouched)
    assert client.info("rg")["rg_hooked_commands"] == len(applies)
    assert client.get(b"\xff") == (None if prefix else "hooked")


@pytest.mark.parametrize(
    ("words", "applies"),
    [
        (["MGET", "a", "b", "x1"], True),
        (["MGET", "a", "b"], False),
        (["DEL", "x1", "a"], True),
        (["DEL", "a"], False),
        (["MSET", "a", "1", "x1", "1"], True),
        (["MSET", "a", "x1"], False),
        (["RENAME", "x1", "a"], True),
        (["RENAME", "a", "x1"], True),
        (["BITOP", "AND", "x1", "a"], True),
        (["BITOP", "AND", "a", "x1"], True),
        (["BITOP", "x1", "a", "b"], False),
        (["GETRANGE", "a", "x1", "x1"], False),
    ],
)
@pytest.mark.parametrize("place", ["client", "multi", "lua"])
def test_one_of_several_keys_is_enough(server: Server, words: list[str], applies: bool, place: str) -> None:
    answer(server, "'hooked'", words[0], more="keyprefix='x'")
    raw = server.raw()
    if place == "client":
        reply = raw.call(*words)
    elif place == "multi":
        reply = transaction(raw, words).removeprefix(b"*1\r\n")
    else:
        reply = raw.call("EVAL", "return redis.pcall(unpack(ARGV))", 0, *words)
    assert (reply == bulk("hooked")) is applies


@pytest.mark.matrix
@pytest.mark.parametrize("more", ["", "keyprefix='x'"])
def test_wrong_numbers_of_arguments(server: Server, more: str) -> None:
    answer(server, "repr(r)", more=more)
    raw = server.raw()
    wrong = b"-ERR wrong number of arguments for 'get' command\r\n"
    assert raw.call("GET") == (wrong if more else bulk("['GET']"))
    assert raw.call("GET", "x", "y") == bulk("['GET', 'x', 'y']")
    assert raw.call("GET", "y", "x") == (wrong if more else bulk("['GET', 'y', 'x']"))
    assert raw.call("MULTI") == b"+OK\r\n"
    assert raw.call("GET") == (wrong if more else b"+QUEUED\r\n")


@pytest.mark.parametrize("words", [["PING"], ["TIME"], ["SORT", "k"], ["XREAD", "COUNT", "1", "STREAMS", "k", "0"]])
def test_commands_without_fixed_keys(server: Server, words: list[str]) -> None:
    answer(server, "'hooked'", words[0])
    assert server.raw().call(*words) == bulk("hooked")


def test_a_container_is_hooked_and_a_subcommand_is_not(server: Server) -> None:
    answer(server, "'subcommand'", "xinfo|stream")
    raw = server.raw()
    raw.call("XADD", "k", "1-1", "f", "v")
    native = raw.call("XINFO", "STREAM", "k")
    assert native.startswith((b"*", b"%"))
    answer(server, "repr(r)", "xinfo")
    assert raw.call("XINFO", "stream", "k") == bulk("['XINFO', 'stream', 'k']")
    assert triggered(server) == [0, 1]


def test_a_subcommand_that_the_server_does_not_know_reaches_the_hook(server: Server) -> None:
    answer(server, "repr(r)", "xinfo")
    assert server.raw().call("XINFO", "nope", "k") == bulk("['XINFO', 'nope', 'k']")
    assert triggered(server) == [1]


def test_a_blocking_command_does_not_block_behind_a_hook(server: Server) -> None:
    raw = server.raw()
    script = hooked(".map(lambda r: repr(call_next(*r[1:])))", "blpop")
    if b"noscript" in raw.call("COMMAND", "INFO", "blpop"):  # so does Redis 7.0
        assert raised(server, script) == f"gears.error: {NOSCRIPT}"
        return
    assert server.run(script) == "OK"
    assert raw.call("BLPOP", "k", 0) == bulk("None")
    raw.call("RPUSH", "k", "a")
    assert raw.call("BLPOP", "k", 0) == bulk("['k', 'a']")


def test_what_the_module_asks_the_server_is_never_hooked(server: Server) -> None:
    answer(server, "'hooked'", "command")
    assert server.raw().call("COMMAND", "INFO", "get") == bulk("hooked")
    answer(server, "'hooked'", "get")
    assert server.run("GB().register('x', commands=['mget'], mode='sync')") == "OK"
    assert server.client().get("k") == "hooked"
    assert raised(server, hooked("", "nosuchcommand")) == f"gears.error: {UNKNOWN}"


@pytest.mark.parametrize("place", ["script", "run", "sync event", "event", "trigger"])
def test_commands_of_functions_are_hooked(server: Server, place: str) -> None:
    answer(server, "'hooked ' + str(call_next(*r[1:]))")
    store = "execute('SET', 'seen', execute('GET', 'k'))"
    if place == "script":
        server.run(store)
    elif place == "run":
        server.run(f"GB('KeysReader').foreach(lambda r: {store}).run('k', noScan=True)")
    elif place == "trigger":
        server.run(f"GB('CommandReader').foreach(lambda r: {store}).register(trigger='t')")
        server.client().execute_command("RG.TRIGGER", "t")
    else:
        mode = "sync" if place == "sync event" else "async_local"
        server.run(f"GB().foreach(lambda r: {store}).register('x', mode={mode!r})")
        server.client().set("x", "1")
    server.wait_idle()
    assert server.raw().call("GETRANGE", "seen", 0, -1) == bulk("hooked None")


def test_a_background_hook_is_refused_in_functions(server: Server) -> None:
    answer(server, "'hooked'", mode="async_local")
    assert raised(server, "execute('GET', 'k')") == f"gears.error: {CANNOT_WAIT}"
    [[], [error]] = server.run("GB('KeysReader').map(lambda r: execute('GET', 'k')).run('k', noScan=True)")
    assert error.endswith(f"'gears.error: {CANNOT_WAIT}\\n']")
    assert triggered(server) == [0]


# --- record ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async", "async_local"])
def test_the_record_is_as_typed(server: Server, mode: str) -> None:
    answer(server, "repr(r)", "mget", mode)
    raw = server.raw()
    assert raw.call("mGeT", "price:4", "", "12") == bulk("['mGeT', 'price:4', '', '12']")
    assert raw.call("MGET", b"\xff\0", "a\0b", "é") == bulk(r"['MGET', bytearray(b'\xff\x00'), 'a\x00b', 'é']")
    assert raw.call("MGET") == bulk("['MGET']")


# --- call_next ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["INCR", "n"], "13"),
        (["GET", "n"], "'12'"),
        (["GET", "binary"], r"bytearray(b'\xff\x00')"),
        (["GET", "missing"], "None"),
        (["SET", "k", "v"], "'OK'"),
        (["SET", "k", "v", "XX"], "None"),
        (["LRANGE", "l", "0", "-1"], "['a', 'b']"),
        (["LRANGE", "missing", "0", "-1"], "[]"),
        (["MGET", "n", "missing"], "['12', None]"),
    ],
)
def test_results_of_call_next(server: Server, words: list[str], value: str, mode: str) -> None:
    client = server.client()
    client.mset({"n": "12", "binary": b"\xff\0"})
    client.rpush("l", "a", "b")
    answer(server, "repr(call_next(*r[1:]))", words[0], mode)
    assert server.raw().call(*words) == bulk(value)


@pytest.mark.parametrize("mode", MODES)
def test_call_next_any_number_of_times_with_any_arguments(server: Server, mode: str) -> None:
    answer(server, "[call_next('other'), call_next(*r[1:]), call_next(b'\\xff'), call_next(5)]", mode=mode)
    server.client().mset({"k": "kay", "other": "else", b"\xff": "bytes", "5": "five"})
    items = [bulk(text) for text in ("else", "kay", "bytes", "five")]
    assert server.raw().call("GET", "k") == array(*items)
    answer(server, "'nothing was set'", "set", mode)
    assert server.raw().call("SET", "k", "new") == bulk("nothing was set")
    assert server.raw().call("GETRANGE", "k", 0, -1) == bulk("kay")


def test_call_next_changes_a_write(server: Server) -> None:
    answer(server, "call_next(r[1].upper(), len(r[2]), 'EX', 100)", "set", more="keyprefix='k'")
    client = server.client()
    assert server.raw().call("SET", "key", "value") == bulk("OK")
    assert (client.get("KEY"), client.exists("key"), client.ttl("KEY") > 0) == ("5", 0, True)


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["GET", "l"], "WRONGTYPE Operation against a key holding the wrong kind of value"),
        (["GET"], "ERR wrong number of arguments for 'get' command"),
        (["GET", "a", "b"], "ERR wrong number of arguments for 'get' command"),
        (["LSET", "l", "9", "v"], "ERR index out of range"),
    ],
)
def test_errors_of_call_next(server: Server, words: list[str], error: str, mode: str) -> None:
    server.client().rpush("l", "a")
    server.run(f"""
        def try_it(record):
            try:
                return call_next(*record[1:])
            except redisgears.GearsError as error:
                return repr(str(error))

        GB('CommandReader').map(try_it).register(hook={words[0]!r}, mode={mode!r})
    """)
    assert server.raw().call(*words) == bulk(repr(error))


def test_an_error_that_nobody_catches_is_the_reply(server: Server) -> None:
    hook(server, ".map(lambda r: call_next(*r[1:]))")
    server.client().rpush("l", "a")
    reply = server.raw().call("GET", "l")
    assert reply.startswith(b"-['Traceback (most recent call last):\\n'")
    assert reply.endswith(b"'gears.error: WRONGTYPE Operation against a key holding the wrong kind of value\\n']\r\n")


ATTEMPT = """
import threading

def attempt(record):
    try:
        call_next('k')
    except redisgears.GearsError as error:
        execute('SET', 'error', str(error))

def in_thread(record):
    threading.Thread(target=attempt, args=(record,)).start()

"""


@pytest.mark.parametrize(
    "use",
    [
        "attempt(None)",
        "GB('KeysReader').foreach(attempt).run('k', noScan=True)",
        "GB('KeysReader').foreach(attempt).register('x', mode='async_local')",
        "GB('KeysReader').foreach(attempt).register('x', mode='sync')",
        "GB('CommandReader').foreach(in_thread).register(hook='set', keyprefix='x', mode='async_local')",
    ],
    ids=["script", "run", "event", "sync event", "thread"],
)
def test_call_next_outside_of_a_hook(server: Server, use: str) -> None:
    server.run(ATTEMPT + use)
    server.raw().call("SET", "x", "1")
    assert wait_until(lambda: server.own.get("error")) == NO_HOOK


@pytest.mark.parametrize("mode", MODES)
def test_call_next_in_a_trigger(server: Server, mode: str) -> None:
    server.run(f"GB('CommandReader').map(lambda r: call_next('k')).register(trigger='t', mode={mode!r})")
    error = error_of(server, "t", command="RG.TRIGGER")
    assert error.endswith("'gears.error: Failed executing command\\n']")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("function", ["override_reply('x')", "get_command()"])
def test_there_is_no_linked_command(server: Server, function: str, mode: str) -> None:
    answer(server, function, mode=mode)
    assert server.raw().call("GET", "k").endswith(b"'gears.error: Can not get command ctx\\n']\r\n")


@pytest.mark.parametrize("mode", MODES)
def test_call_next_after_the_hook_was_unregistered(server: Server, mode: str) -> None:
    server.run(f"""
        def once(record):
            execute('RG.UNREGISTER', execute('RG.DUMPREGISTRATIONS')[0][1])
            return call_next(*record[1:])

        GB('CommandReader').map(once).register(hook='get', mode={mode!r})
    """)
    raw = server.raw()
    assert raw.call("GET", "k").endswith(b"'gears.error: Failed executing command\\n']\r\n")
    assert raw.call("GET", "k") == b"$-1\r\n"


def test_call_next_in_an_atomic_block(server: Server) -> None:
    server.run("""
        def write(record):
            with atomic():
                call_next(*record[1:])
                call_next('other', execute('INCR', 'calls'))
                return isInAtomicBlock()

        GB('CommandReader').map(write).register(hook='set', mode='async_local')
    """)
    assert server.raw().call("SET", "k", "v") == bulk("True")
    assert server.client().mget("k", "other", "calls") == ["v", "1", "1"]


# --- several hooks ---


def around(name: str) -> str:
    return f"'{name}(' + str(call_next(*r[1:])) + ')'"


@pytest.mark.matrix
@pytest.mark.parametrize("top", ["sync", "async", "async_local"])
def test_the_newest_hook_comes_first(server: Server, top: str) -> None:
    answer(server, around("oldest"))
    answer(server, around("older"), "GET")
    answer(server, around("newest"), mode=top)
    server.client().set("k", "v")
    assert server.client().get("k") == "newest(older(oldest(v)))"
    assert triggered(server) == [1, 1, 1]


def test_each_call_next_asks_the_prefixes_again(server: Server) -> None:
    answer(server, around("a"), more="keyprefix='a'")
    answer(server, around("b"), more="keyprefix='b'")
    answer(server, "[call_next('a'), call_next('b'), call_next('c')]", more="keyprefix='c'")
    client = server.client()
    client.mset({"a": "1", "b": "2", "c": "3"})
    assert (client.get("a"), client.get("b")) == ("a(1)", "b(2)")
    assert server.raw().call("GET", "c") == array(bulk("a(1)"), bulk("b(2)"), bulk("3"))


def test_the_record_of_an_older_hook_has_the_new_arguments(server: Server) -> None:
    answer(server, "r[1:]")
    answer(server, "call_next('new', *r[2:])")
    assert server.raw().call("GET", "old", "more") == array(bulk("new"), bulk("more"))


def test_a_removed_hook_is_skipped(server: Server) -> None:
    ids = []
    for name in ("oldest", "older", "newest"):
        answer(server, around(name))
        ids += {entry["id"] for entry in server.registrations()} - set(ids)
    client = server.client()
    for identifier, expected in zip([ids[1], ids[2], ids[0]], ["newest(oldest(None))", "oldest(None)", None]):
        client.execute_command("RG.UNREGISTER", identifier)
        assert client.get("k") == expected


@pytest.mark.parametrize("mode", MODES)
def test_an_error_of_an_older_hook_is_raised_by_call_next(server: Server, mode: str) -> None:
    hook(server, ".map(lambda r: flat_error('below'))")
    server.run(f"""
        def try_it(record):
            try:
                return call_next(*record[1:])
            except redisgears.GearsError as error:
                return repr(str(error))

        GB('CommandReader').map(try_it).register(hook='get', mode={mode!r})
    """)
    assert server.client().get("k") == "'below'"


# --- execute inside of hooks ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("word", ["GET", "get", "gEt"])
def test_execute_of_the_own_command_is_call_next(server: Server, word: str, mode: str) -> None:
    answer(server, f"'older(' + str(execute({word!r}, *r[1:])) + ')'")
    answer(server, f"'newer(' + execute({word!r}, *r[1:]) + ')'", mode=mode)
    server.client().set("k", "v")
    assert server.client().get("k") == "newer(older(v))"
    assert triggered(server) == [1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_other_hooked_commands_of_a_hook(server: Server, mode: str) -> None:
    answer(server, around("hget"), "hget")
    answer(server, "'get(' + execute('HGET', 'h', r[1]) + ')'", mode=mode)
    server.client().hset("h", "k", "v")
    assert server.client().get("k") == "get(hget(v))"


@pytest.mark.parametrize("mode", MODES)
def test_a_background_hook_is_refused_inside_of_a_hook(server: Server, mode: str) -> None:
    answer(server, "'hget'", "hget", "async_local")
    answer(server, "execute('HGET', 'h', r[1])", mode=mode)
    assert server.raw().call("GET", "k").endswith(b"'gears.error: %s\\n']\r\n" % CANNOT_WAIT.encode())


@pytest.mark.matrix
@pytest.mark.parametrize("tracebacks", [1, 0])
def test_hooks_that_call_each_other_for_ever_are_a_clear_error(
    start_server: Callable[..., Server], tracebacks: int
) -> None:
    server = start_server(module_args=["PythonAttemptTraceback", tracebacks])
    answer(server, "execute('HGET', 'h', r[1])")
    answer(server, "execute('GET', r[2])", "hget")
    raw = server.raw()
    for _ in range(2):
        reply = raw.call("GET", "k")
        assert b"ERR functions call each other too deeply" in reply
        assert len(reply) < 1_000_000
    assert raw.call("PING") == b"+PONG\r\n"


# --- reply ---

VALUES = [
    # expression, RESP2, RESP3 if it differs
    ("5", b":5\r\n", None),
    ("False", b":0\r\n", None),
    ("1.5", b"$8\r\n1.500000\r\n", None),
    ("-2 ** 63 - 1", b"$20\r\n-9223372036854775809\r\n", None),
    ("'text'", b"$4\r\ntext\r\n", None),
    ("''", b"$0\r\n\r\n", None),
    ("'+OK'", b"+OK\r\n", None),
    ("'-ERR x'", b"-ERR x\r\n", None),
    ("b'+x\\xff'", b"$3\r\n+x\xff\r\n", None),
    ("[]", b"*0\r\n", None),
    ("['a', ['b', 1]]", b"*2\r\n$1\r\na\r\n*2\r\n$1\r\nb\r\n:1\r\n", None),
    ("None", b"$-1\r\n", b"_\r\n"),
    ("[None]", b"*1\r\n$-1\r\n", b"*1\r\n_\r\n"),
    ("{'a': None}", b"*2\r\n$1\r\na\r\n$-1\r\n", b"%1\r\n$1\r\na\r\n_\r\n"),
    ("object()", b"$9\r\nPY RECORD\r\n", None),
]


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("protocol", [2, 3])
def test_the_result_is_the_reply(server: Server, protocol: int, mode: str) -> None:
    answer(server, f"[{', '.join(expression for expression, _, _ in VALUES)}][int(r[1])]", mode=mode)
    raw = server.raw()
    raw.call("HELLO", protocol)
    for number, (expression, resp2, resp3) in enumerate(VALUES):
        expected = (resp3 or resp2) if protocol == 3 else resp2
        assert raw.call("GET", number) == expected, expression
        if mode == "sync":
            assert transaction(raw, ["GET", number]) == array(expected), expression


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("expression", "reply"),
    [("5", "5"), ("None", "None"), ("['a', 1]", "['a', 1]"), ("b'x'", "b'x'"), ("'plain'", "plain")],
)
def test_by_default_it_is_a_text(server: Server, expression: str, reply: str, mode: str) -> None:
    hook(server, f".map(lambda r: {expression})", mode=mode)
    assert server.raw().call("GET", "k") == bulk(reply)


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("steps", "reply"),
    [
        (".filter(lambda r: False)", NOT_ONE),
        (".flatmap(lambda r: ['a', 'b'])", NOT_ONE),
        (".flatmap(lambda r: [])", NOT_ONE),
        (".flatmap(lambda r: ['a'])", b"$1\r\na\r\n"),
        (".flatmap(lambda r: r).count()", b"$1\r\n2\r\n"),
        (".map(lambda r: flat_error('X'))", b"-X\r\n"),
        (".map(lambda r: flat_error('ERR a\\r\\nb'))", b"-ERR a  b\r\n"),
        (".flatmap(lambda r: [1, 2]).map(lambda n: flat_error('E%d' % n))", b"-E1\r\n"),
        (".flatmap(lambda r: [1, 2]).map(lambda n: n if n == 1 else flat_error('E'))", b"-E\r\n"),
    ],
)
def test_zero_or_several_results_and_errors(server: Server, steps: str, reply: bytes, mode: str) -> None:
    hook(server, steps, mode=mode)
    assert server.raw().call("GET", "k") == reply


def test_an_exception_is_the_reply(server: Server) -> None:
    hook(server, ".map(lambda r: 1 / 0)")
    error = error_of(server, "k", command="GET")
    assert error.startswith("['Traceback") and error.endswith("'ZeroDivisionError: division by zero\\n']")


def test_commands_that_are_not_concerned_answer_in_the_clients_protocol(server: Server) -> None:
    answer(server, "'hooked'", "hgetall", more="keyprefix='x'")
    raw = server.raw()
    raw.call("HELLO", 3)
    assert (raw.call("HGETALL", "h"), raw.call("HGETALL", "x")) == (b"%0\r\n", bulk("hooked"))


@pytest.mark.parametrize("mode", MODES)
def test_keys_are_tracked_for_the_client(server: Server, mode: str) -> None:
    answer(server, "call_next(*r[1:])", mode=mode)
    raw = server.raw()
    raw.call("HELLO", 3)
    raw.call("CLIENT", "TRACKING", "ON")
    assert raw.call("GET", "k") == b"_\r\n"
    server.client().set("k", "v")
    assert raw.read() == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"


@pytest.mark.parametrize("mode", MODES)
def test_a_client_gets_its_replies_in_order(server: Server, mode: str) -> None:
    answer(server, "call_next(*r[1:])", mode=mode)
    raw = server.raw()
    for number in range(100):
        raw.send("SET", "k", number)
        raw.send("GET", "k")
    for number in range(100):
        assert (raw.read(), raw.read()) == (b"+OK\r\n", bulk(str(number)))


# --- transactions and scripts ---


@pytest.mark.matrix
def test_all_hooked_commands_of_a_transaction(server: Server) -> None:
    answer(server, around("get"))
    answer(server, "call_next(r[1], r[2] + '!')", "set", more="keyprefix='x'")
    raw = server.raw()
    block = [["SET", "x", "1"], ["GET", "x"], ["SET", "y", "2"], ["get", "y"], ["SET", "x2", "3"], ["MGET", "x", "x2"]]
    replies = [bulk("OK"), bulk("get(1!)"), b"+OK\r\n", bulk("get(2)"), bulk("OK"), array(bulk("1!"), bulk("3!"))]
    assert transaction(raw, *block) == array(*replies)
    assert triggered(server) == [2, 2]


@pytest.mark.matrix
def test_a_transaction_does_not_care_what_others_do_meanwhile(server: Server) -> None:
    answer(server, around("get"))
    raw, other = server.raw(), server.raw()
    raw.call("MULTI")
    for _ in range(2):
        raw.call("GET", "k")
        assert other.call("GET", "other") == bulk("get(None)")
    assert raw.call("EXEC") == array(bulk("get(None)"), bulk("get(None)"))


def test_a_hook_that_is_gone_at_exec(server: Server) -> None:
    answer(server, "'hooked'")
    raw = server.raw()
    raw.call("MULTI")
    raw.call("GET", "k")
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    answer(server, "'mget'", "mget")
    assert raw.call("MGET", "k") == b"+QUEUED\r\n"
    assert raw.call("EXEC") == array(b"$-1\r\n", bulk("mget"))


@pytest.mark.matrix
def test_hooked_commands_of_lua(server: Server) -> None:
    answer(server, "{'status': '+st', 'error': '-ERR x', 'list': ['a', 1], 'nil': None}.get(r[1], 'hooked')")
    raw = server.raw()
    get = "redis.{}('get', '{}')"
    assert raw.call("EVAL", f"return {get.format('call', 'a')} .. {get.format('call', 'b')}", 0) == bulk("hookedhooked")
    assert raw.call("EVAL", f"return {get.format('call', 'status')}.ok", 0) == bulk("st")
    assert raw.call("EVAL", f"return {get.format('pcall', 'error')}.err", 0) == bulk("ERR x")
    assert raw.call("EVAL", f"return {get.format('call', 'error')}", 0).startswith(b"-ERR x")
    assert raw.call("EVAL", f"return {get.format('call', 'list')}", 0) == array(bulk("a"), b":1\r\n")
    assert raw.call("EVAL", f"return type({get.format('call', 'nil')})", 0) == bulk("boolean")
    library = "redis.register_function('f', function(keys) return redis.call('get', keys[1]) end)"
    assert raw.call("FUNCTION", "LOAD", f"#!lua name=lib\n{library}") == bulk("lib")
    assert raw.call("FCALL", "f", 1, "k") == bulk("hooked")


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async", "async_local"])
def test_background_hooks_are_refused_where_nobody_can_wait(server: Server, mode: str) -> None:
    hook(server, ".map(lambda r: execute('INCR', 'calls'))", mode=mode, more="keyprefix='x'")
    raw = server.raw()
    raw.call("SET", "k", "v")
    error = f"-{CANNOT_WAIT}\r\n".encode()
    assert transaction(raw, ["GET", "x"], ["GET", "k"], ["GET", "x2"]) == array(error, bulk("v"), error)
    assert raw.call("EVAL", "return redis.pcall('GET', KEYS[1]).err", 1, "x") == bulk(CANNOT_WAIT)
    assert raw.call("EVAL", "return redis.call('GET', KEYS[1])", 1, "k") == bulk("v")
    assert (raw.call("EXISTS", "calls"), triggered(server)) == (b":0\r\n", [0])
    assert raw.call("GET", "x") == bulk("1")


# --- databases ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async", "async_local"])
def test_hooks_act_in_the_clients_database(server: Server, mode: str) -> None:
    answer(server, "call_next(*r[1:]) and execute('APPEND', 'seen', r[1])", "set", mode)
    answer(server, "[call_next(r[1]), execute('GETRANGE', 'seen', 0, -1)]", "get", mode)
    zero, five = server.raw(), server.raw()
    five.call("SELECT", 5)
    for number in (1, 2):
        assert five.call("SET", "k", "five") == b":%d\r\n" % number
    assert zero.call("SET", "k", "zero") == b":1\r\n"
    assert five.call("GET", "k") == array(bulk("five"), bulk("kk"))
    assert zero.call("GET", "k") == array(bulk("zero"), bulk("k"))


@pytest.mark.parametrize("hooks", [1, 2])
def test_a_change_of_database_between_commands(server: Server, hooks: int) -> None:
    for _ in range(hooks):
        answer(server, "call_next(*r[1:])")
    raw = server.raw()
    raw.call("SET", "k", "zero")
    raw.call("SELECT", 3)
    raw.call("SET", "k", "three")
    assert raw.call("GET", "k") == bulk("three")
    replies = array(b"+OK\r\n", bulk("zero"), b"+OK\r\n", bulk("three"))
    assert transaction(raw, ["SELECT", 0], ["GET", "k"], ["SELECT", 3], ["GET", "k"]) == replies
    select = "redis.call('SELECT', 0) return redis.call('GET', 'k')"
    assert raw.call("EVAL", select, 0) == bulk("zero")
    assert raw.call("GET", "k") == bulk("three")
    raw.call("RESET")
    assert raw.call("GET", "k") == bulk("zero")


def test_commands_of_functions_are_hooked_in_the_functions_database(server: Server) -> None:
    answer(server, around("get"))
    server.run("GB().foreach(lambda r: execute('SET', 'seen', execute('GET', 'x'))).register('x', mode='async_local')")
    server.client(db=5).set("x", "five")
    server.wait_idle()
    assert server.client(db=5).execute_command("GETRANGE", "seen", 0, -1) == "get(five)"


# --- events and links ---


def test_what_a_hook_does_fires_events(server: Server) -> None:
    answer(server, "call_next(*r[1:])")
    server.run("GB().foreach(lambda r: execute('RPUSH', 'missed', r['key'])).register(eventTypes=['keymiss'])")
    assert server.client().get("k") is None
    server.wait_idle()
    assert server.client().lrange("missed", 0, -1) == ["k"]


@pytest.mark.matrix
@pytest.mark.parametrize("order", ["hook first", "link first"])
@pytest.mark.parametrize("mode", MODES)
def test_a_hook_wins_over_a_link(server: Server, mode: str, order: str) -> None:
    link = "GB().foreach(lambda r: override_reply('linked')).register(commands=['get'], eventTypes=['keymiss'])"
    steps = [link, hooked(".map(lambda r: 'hooked ' + str(call_next(*r[1:])))", mode=mode, more="keyprefix='x'")]
    for script in steps if order == "link first" else reversed(steps):
        assert server.run(script) == "OK"
    client = server.client()
    assert (client.get("x1"), client.get("k")) == ("hooked None", "linked")
    server.wait_idle()
    assert sorted(triggered(server)) == [1, 1]
    for entry in server.registrations():
        if entry["reader"] == "CommandReader":
            client.execute_command("RG.UNREGISTER", entry["id"])
    assert client.get("x1") == "linked"


# --- ends of a call ---


@pytest.mark.matrix
def test_others_are_served_while_one_waits(server: Server) -> None:
    hold(server, "keyprefix='x'")
    waiting = ask(server, "x1")
    waiting.send("PING")
    begun(server, "x1")
    assert server.client().get("k") is None
    go(server)
    assert (waiting.read(), waiting.read()) == (LATE, b"+PONG\r\n")


def test_inorder_begins_one_when_the_one_before_has_ended(server: Server) -> None:
    hold(server, "inorder=True, keyprefix='x'")
    clients = [ask(server, f"x{number}") for number in range(3)]
    begun(server, "x0")
    go(server)
    assert [raw.read() for raw in clients] == [LATE] * 3
    assert server.client().lrange("begun", 0, -1) == ["x0", "x1", "x2"]


def test_unregister_while_calls_run_and_wait(server: Server) -> None:
    hold(server, "inorder=True, keyprefix='x'")
    clients = [ask(server, "x0"), ask(server, "x1")]
    begun(server, "x0")
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    assert server.raw().call("GET", "x2") == b"$-1\r\n"
    go(server)
    failed = b"'gears.error: Failed executing command\\n']\r\n"
    assert [raw.read().endswith(failed) for raw in clients] == [True, True]
    assert server.client().lrange("begun", 0, -1) == ["x0", "x1"]


@pytest.mark.parametrize("how", ["unregister", "upgrade"])
def test_abort_of_pending_calls_answers_them_at_once(server: Server, how: str) -> None:
    server.run(HOLD + hooked(".map(hold)", mode="async_local", more="inorder=True, keyprefix='x'"), "ID", "s")
    first, second = ask(server, "x0"), ask(server, "x1")
    begun(server, "x0")
    if how == "unregister":
        server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"], "ABORTPENDING")
    else:
        assert server.run(hooked(".map(lambda r: 'new')", more="keyprefix='x'"), "ID", "s", "UPGRADE") == "OK"
        assert server.client().get("x2") == "new"
    assert second.read() == NOT_ONE
    go(server)
    assert first.read().endswith(b"'gears.error: Failed executing command\\n']\r\n")


def test_abort_of_running_and_queued_calls(server: Server) -> None:
    hold(server, "inorder=True, keyprefix='x'")
    first, second = ask(server, "x0"), ask(server, "x1")
    begun(server, "x0")
    running, queued = executions(server)
    client = server.client()
    client.execute_command("RG.ABORTEXECUTION", queued)
    assert second.read() == NOT_ONE
    client.execute_command("RG.ABORTEXECUTION", running)
    assert b"gears.forcestopped" in first.read()


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["close", "kill"])
def test_the_client_goes_meanwhile(server: Server, how: str) -> None:
    hold(server, "keyprefix='x'")
    raw = server.raw()
    number = int(raw.call("CLIENT", "ID")[1:])
    raw.send("GET", "x1")
    begun(server, "x1")
    if how == "close":
        raw.close()
    else:
        assert server.client().execute_command("CLIENT", "KILL", "ID", number) == 1
    wait_until(lambda: blocked_clients(server) == 0)
    go(server)
    server.wait_idle()
    assert executions(server) == {}
    assert server.registrations()[0]["RegistrationData"]["numSuccess"] == 1


def test_client_unblock_has_no_effect(server: Server) -> None:
    hold(server, "keyprefix='x'")
    raw = server.raw()
    number = int(raw.call("CLIENT", "ID")[1:])
    raw.send("GET", "x1")
    begun(server, "x1")
    assert server.client().execute_command("CLIENT", "UNBLOCK", number) == 0
    go(server)
    assert raw.read() == LATE


def test_a_reload_meanwhile_answers_everybody(server: Server) -> None:
    hold(server, "inorder=True, keyprefix='x'")
    running, queued = ask(server, "x0"), ask(server, "x1")
    begun(server, "x0")
    server.client().execute_command("DEBUG", "RELOAD")
    assert queued.read().startswith(b"-ERR the data were replaced")
    go(server)
    running.read()
    assert server.raw().call("GET", "x2") == LATE  # the hook is in force


# --- checks of the original command ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_writes_are_refused_above_the_memory_limit(server: Server, mode: str) -> None:
    for command in ("set", "del", "get"):
        answer(server, "call_next(*r[1:])", command, mode)
    raw = server.raw()
    raw.call("CONFIG", "SET", "maxmemory", 1)
    assert raw.call("SET", "k", "v").startswith(b"-OOM command not allowed when used memory > 'maxmemory'")
    assert (raw.call("DEL", "k"), raw.call("GET", "k")) == (b":0\r\n", b"$-1\r\n")
    assert triggered(server) == [0, 1, 1]


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_writes_are_refused_on_a_read_only_replica(start_server: Callable[..., Server], mode: str) -> None:
    master, replica = start_server(), start_server()
    for server in (master, replica):
        answer(server, "execute('INCR', 'calls')", "set", mode)
    replicate(replica, master)
    assert replica.raw().call("SET", "k", "v") == b"-READONLY You can't write against a read only replica.\r\n"
    assert triggered(replica) == [0]


@pytest.mark.matrix
def test_writes_are_refused_in_read_only_scripts(server: Server) -> None:
    answer(server, "'hooked'", "set")
    answer(server, "'hooked'", "get")
    raw = server.raw()
    reply = raw.call("EVAL_RO", "return redis.call('SET', KEYS[1], '1')", 1, "k")
    assert reply.startswith(b"-ERR Write commands are not allowed from read-only scripts")
    assert raw.call("EVAL_RO", "return redis.call('GET', KEYS[1])", 1, "k") == bulk("hooked")
    assert triggered(server) == [0, 1]


def test_writes_are_refused_without_enough_replicas(server: Server) -> None:
    answer(server, "'hooked'", "set")
    raw = server.raw()
    raw.call("CONFIG", "SET", "min-replicas-to-write", 1)
    assert raw.call("SET", "k", "v").startswith(b"-NOREPLICAS")
    assert triggered(server) == [0]


# --- replicas and loading ---


def contents(server: Server) -> dict[str, Any]:
    client = server.client()
    keys = sorted(client.keys())
    return dict(zip(keys, client.mget(keys))) if keys else {}


def write_all_ways(server: Server) -> None:
    """Writes of a client, of a transaction, of scripts and of functions."""
    raw = server.raw()
    raw.call("SET", "a", "1")
    transaction(raw, ["SET", "b", "1"], ["SET", "c", "1"], ["DEL", "a"], ["SET", "plain", "1"], ["SET", "b2", "1"])
    calls = " ".join(f"redis.call({words})" for words in ("'SET','d','1'", "'SET','e','1'", "'DEL','c'"))
    assert raw.call("EVAL", calls + " return 1", 0) == b":1\r\n"
    server.run("with atomic():\n    execute('SET', 'f', '1')\n    execute('SET', 'g', '1')\nexecute('DEL', 'd')")
    server.run("GB('KeysReader').foreach(lambda r: execute('SET', 'h', '1')).run('k', noScan=True)")


WRITE_HOOKS = """
def write(record):
    execute('INCR', 'calls')
    return call_next(record[1], record[2] + '!')

def delete(record):
    execute('SET', 'gone:' + record[1], '1')
    return call_next(*record[1:])

GB('CommandReader').map(write).register(hook='set', mode='sync')
GB('CommandReader').map(delete).register(hook='del', mode='sync')
"""
WRITTEN = {"b": "1!", "b2": "1!", "e": "1!", "f": "1!", "g": "1!", "h": "1!", "plain": "1!"}
WRITTEN |= {"gone:a": "1!", "gone:c": "1!", "gone:d": "1!", "calls": "13"}


@pytest.mark.matrix
def test_a_replica_with_the_same_hooks_has_the_same_data(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    for server in (master, replica):
        server.run(WRITE_HOOKS)
    replicate(replica, master)
    write_all_ways(master)
    assert contents(master) == WRITTEN
    wait_until(lambda: contents(replica) == WRITTEN, message="the replica has the same data")
    assert triggered(replica) == [0, 0]
    assert replica.client().info("replication")["master_link_status"] == "up"
    assert "CRITICAL" not in replica.log()


@pytest.mark.matrix
def test_what_is_replicated_are_plain_commands(start_server: Callable[..., Server]) -> None:
    server, replica = start_server(), start_server()
    server.run(WRITE_HOOKS)
    replicate(replica, server)
    write_all_ways(server)
    wait_until(lambda: contents(replica) == WRITTEN)
    assert replica.client().info("replication")["master_link_status"] == "up"
    assert "CRITICAL" not in replica.log()
    assert not [name for name in replica.client().info("commandstats") if "rg.inner" in name.lower()]


def test_writes_of_a_background_hook_are_replicated(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    answer(master, "call_next(r[1], r[2] + '!')", "set", "async_local")
    replicate(replica, master)
    client = master.client(db=5)
    for number in range(20):
        client.execute_command("SET", f"k{number}", number)
    assert client.get("k19") == "19!"
    wait_until(lambda: replica.client(db=5).get("k19") == "19!")
    assert replica.client().dbsize() == 0


@pytest.mark.matrix
def test_nothing_of_the_replication_stream_is_hooked(start_server: Callable[..., Server]) -> None:
    """Also not what is no write: SELECT, PUBLISH, and the PING that a master sends."""
    master, replica = start_server(args=["--repl-ping-replica-period", "1"]), start_server()
    zero, five = master.client(), master.client(db=5)
    zero.ping(), five.ping()  # connected: a hooked SELECT selects for the function, not for its client
    replicate(replica, master)
    for command in ("select", "publish", "ping"):
        answer(master, "call_next(*r[1:])", command)
    wait_until(lambda: len(replica.registrations()) == 3)
    listener = replica.client().pubsub(ignore_subscribe_messages=True)
    listener.subscribe("news")
    listener.get_message(timeout=1)
    before = replica.client().info("replication")["slave_repl_offset"]
    wait_until(lambda: replica.own.info("replication")["slave_repl_offset"] > before, message="a PING came")
    zero.publish("news", "hello")
    zero.set("k", "zero")
    five.set("k", "five")
    zero.set("last", "1")
    wait_until(lambda: replica.own.get("last"))
    wait_until(lambda: listener.get_message(timeout=0.1))
    assert triggered(replica) == [0, 0, 0]
    assert replica.client().get("k") == "zero"
    assert replica.client().info("keyspace")["db5"]["keys"] == 1


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_reads_of_a_replicas_own_clients_are_hooked(start_server: Callable[..., Server], mode: str) -> None:
    master, replica = start_server(), start_server()
    for server in (master, replica):
        answer(server, around("get"), mode=mode)
    replicate(replica, master)
    master.client().set("k", "v")
    wait_until(lambda: replica.own.exists("k"))
    client = replica.client()
    assert (client.get("k"), client.mget("k")) == ("get(v)", ["v"])
    if mode == "sync":
        assert client.eval("return redis.call('GET', KEYS[1])", 1, "k") == "get(v)"
        assert client.pipeline(transaction=True).get("k").get("x").execute() == ["get(v)", "get(None)"]
    client.execute_command("REPLICAOF", "NO", "ONE")
    assert client.get("k") == "get(v)"


@pytest.mark.matrix
@pytest.mark.parametrize("top", ["sync", "async_local"])
def test_a_reload_keeps_hooks_and_their_order(server: Server, top: str) -> None:
    answer(server, around("oldest"))
    answer(server, around("older"), more="keyprefix='k'")
    answer(server, around("newest"), mode=top)
    client = server.client()
    client.set("k", "v")
    for _ in range(2):
        assert client.execute_command("DEBUG", "RELOAD") == "OK"
        assert client.get("k") == "newest(older(oldest(v)))"
        assert client.get("x") == "newest(oldest(None))"


def test_loading_calls_no_function(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--appendonly", "yes", "--aof-use-rdb-preamble", "no"])
    server.run(WRITE_HOOKS)
    write_all_ways(server)
    assert contents(server) == WRITTEN
    assert server.client().execute_command("DEBUG", "LOADAOF") == "OK"
    assert contents(server) == WRITTEN


# --- cluster ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_one_node_of_a_cluster(start_server: Callable[..., Server], mode: str) -> None:
    server = start_server(args=["--cluster-enabled", "yes"])
    raw = server.raw()
    raw.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    wait_until(lambda: b"cluster_state:ok" in raw.call("CLUSTER", "INFO"))
    answer(server, "call_next(r[1], r[2] + '!')", "set", mode)
    answer(server, "call_next(*r[1:])", "mget", mode, "keyprefix='{x}'")
    assert raw.call("SET", "{x}1", "a") == bulk("OK")
    assert raw.call("SET", "y", "b") == bulk("OK")
    assert raw.call("MGET", "{x}1", "{x}2") == array(bulk("a!"), b"$-1\r\n")
    assert raw.call("GET", "y") == bulk("b!")
    assert raw.call("MGET", "{x}1", "y").startswith(b"-CROSSSLOT")
    if mode == "sync":
        assert transaction(raw, ["SET", "y", "c"], ["GET", "y"]) == array(bulk("OK"), bulk("c!"))
        assert raw.call("EVAL", "return redis.call('SET', KEYS[1], 'd')", 1, "y") == bulk("OK")
        assert raw.call("GET", "y") == bulk("d!")


def test_a_key_of_another_shard(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"])
    raw = server.raw()
    raw.call("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    wait_until(lambda: b"cluster_state:ok" in raw.call("CLUSTER", "INFO"))
    hook(server, ".map(lambda r: call_next('{foo}'))")
    # The slot of {06S} is 0, that of {foo} 12182.
    assert raw.call("GET", "{foo}").startswith((b"-CLUSTERDOWN", b"-MOVED"))
    assert triggered(server) == [0]
    assert b"'gears.error: Operation not permitted: Attempted to access a non local key" in raw.call("GET", "{06S}")
