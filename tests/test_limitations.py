"""What `commands=` refuses, and what a linked command cannot do. Contract:
docs/contract/readers-and-events.md 10.1 and 10.6."""

from __future__ import annotations

import pytest

from helpers import Server
from probes import error_of

UNKNOWN = "bad reply on COMMAND command"
NOSCRIPT = "Can not hook a command which are not allowed inside a script"
MOVABLE = "Can not hook a command with moveable keys by key prefix"
KEYLESS = "Can not hook a command by key prefix with none positive first key"
EMPTY = "Empty perfix given to command hooker"


def register(prefix: str, commands: list[str], mode: str = "async_local", step: str = "lambda r: None") -> str:
    events = "eventTypes=['keymiss']"
    return f"GB('KeysReader').foreach({step}).register(prefix='{prefix}', commands={commands}, {events}, mode='{mode}')"


@pytest.mark.parametrize(
    ("prefix", "commands", "text"),
    [
        ("*", ["nosuchcommand"], UNKNOWN),
        ("*", ["get", "nosuchcommand"], UNKNOWN),
        ("*", [""], UNKNOWN),
        ("*", ["multi"], NOSCRIPT),
        ("*", ["eval"], NOSCRIPT),
        ("*", ["SUBSCRIBE"], NOSCRIPT),
        ("*", ["rg.pyexecute"], NOSCRIPT),
        ("x*", ["sort"], MOVABLE),
        ("x*", ["ZUNIONSTORE"], MOVABLE),
        ("x*", ["xread"], MOVABLE),
        ("x*", ["ping"], KEYLESS),
        ("x*", ["info"], KEYLESS),
        ("", ["get"], EMPTY),
    ],
)
def test_refused_at_registration(server: Server, prefix: str, commands: list[str], text: str) -> None:
    error = error_of(server, register(prefix, commands))
    assert error.startswith("['Traceback") and error.endswith(f"'gears.error: {text}\\n']")
    assert server.registrations() == []
    assert server.raw().call("GET", "x") == b"$-1\r\n"


def test_one_refused_name_registers_nothing_of_the_script(server: Server) -> None:
    error_of(server, f"{register('*', ['get'])}\n{register('*', ['exec'])}")
    assert server.registrations() == []


def test_every_key_includes_commands_whose_keys_move(server: Server) -> None:
    assert server.run(register("*", ["sort", "ping", "GET", "get"], step="lambda r: override_reply(r['key'])")) == "OK"
    raw = server.raw()
    assert raw.call("PING") == b"+PONG\r\n"
    assert raw.call("SORT", "missing") == b"$7\r\nmissing\r\n"
    assert raw.call("GET", "k") == b"$1\r\nk\r\n"
    assert server.registrations()[0]["RegistrationData"]["args"]["hookCommands"] == ["sort", "ping", "GET", "get"]


def test_a_blocking_command_answers_at_once_as_in_a_transaction(server: Server) -> None:
    raw = server.raw()
    if b"noscript" in raw.call("COMMAND", "INFO", "blpop"):  # so does Redis 7.0
        assert error_of(server, register("k*", ["blpop"])).endswith(f"'gears.error: {NOSCRIPT}\\n']")
        return
    assert server.run(register("k*", ["blpop"])) == "OK"
    assert raw.call("BLPOP", "k", 0) == b"*-1\r\n"
    raw.call("RPUSH", "k", "a")
    assert raw.call("BLPOP", "k", 0) == b"*2\r\n$1\r\nk\r\n$1\r\na\r\n"


def test_a_subcommand_is_accepted_and_never_fires(server: Server) -> None:
    assert server.run(register("*", ["object|encoding"])) == "OK"
    assert server.raw().call("OBJECT", "ENCODING", "k").startswith(b"$-1")
    assert server.registrations()[0]["RegistrationData"]["numTriggered"] == 0


@pytest.mark.parametrize("function", ["override_reply('x')", "get_command()"])
@pytest.mark.parametrize("context", ["multi", "lua", "function"])
def test_background_functions_are_not_linked_where_nobody_can_wait(server: Server, context: str, function: str) -> None:
    server.run(register("*", ["get"], step=f"lambda r: {function}"))
    raw = server.raw()
    if context == "multi":
        raw.call("MULTI")
        raw.call("GET", "x")
        assert raw.call("EXEC") == b"*1\r\n$-1\r\n"
    elif context == "lua":
        assert raw.call("EVAL", "return redis.call('get', KEYS[1])", 1, "x") == b"$-1\r\n"
    else:
        library = "redis.register_function('f', function(keys) return redis.call('get', keys[1]) end)"
        assert raw.call("FUNCTION", "LOAD", f"#!lua name=lib\n{library}") == b"$3\r\nlib\r\n"
        assert raw.call("FCALL", "f", 1, "x") == b"$-1\r\n"
    server.wait_idle()
    data = server.registrations()[0]["RegistrationData"]
    assert (data["numTriggered"], data["numFailures"]) == (1, 1)
    assert data["lastError"].endswith("'gears.error: Can not get command ctx\\n']")


def test_sync_functions_answer_inside_transactions_and_scripts(server: Server) -> None:
    step = "lambda r: override_reply({'status': '+st', 'error': '-ERR x', 'list': [1, 'a']}[r['key']])"
    server.run(register("*", ["get"], "sync", step))
    raw = server.raw()
    for key, reply in (("status", b"+st\r\n"), ("error", b"-ERR x\r\n"), ("list", b"*2\r\n:1\r\n$1\r\na\r\n")):
        raw.call("MULTI")
        raw.call("GET", key)
        raw.call("GET", key)
        assert raw.call("EXEC") == b"*2\r\n" + reply + reply
    assert raw.call("EVAL", "return redis.call('get', 'status').ok", 0) == b"$2\r\nst\r\n"
    assert raw.call("EVAL", "return redis.pcall('get', 'error').err", 0).startswith(b"$5\r\nERR x")
    assert raw.call("EVAL", "return redis.call('get', 'error')", 0).startswith(b"-ERR x")
    assert raw.call("EVAL", "return redis.call('get', 'list')[2]", 0) == b"$1\r\na\r\n"


@pytest.mark.parametrize("function", ["override_reply(1)", "get_command()"])
def test_without_a_link(server: Server, function: str) -> None:
    expected = "gears.error: Can not get command ctx"
    assert expected in error_of(server, function)
    _, [error] = server.run(f"GB('KeysReader').foreach(lambda r: {function}).run('k', noScan=True)")
    assert expected in error
    server.run(f"GB('KeysReader').foreach(lambda r: {function}).register(prefix='k', mode='async_local')")
    server.client().set("k", "v")
    server.wait_idle()
    assert expected in server.registrations()[0]["RegistrationData"]["lastError"]


INNER = ["RG.INNERREAD", "RG.InnerReadLater", "rg.innerwrite", "RG.INNERWRITEMORE"]


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("linked", [False, True])
def test_inner_commands_are_not_for_clients(server: Server, inner: str, linked: bool) -> None:
    if linked:
        server.run(register("*", ["get", "set"]))
    raw = server.raw()
    error = b"-ERR this command is internal to the module and cannot be called"
    assert raw.call(inner).startswith(error)
    assert raw.call(inner, "SET", "k", "v").startswith(error)
    assert raw.call("EVAL", f"return redis.call('{inner}', 'SET', 'k', 'v')", 0).startswith(error)
    raw.call("MULTI")
    raw.call(inner, "SET", "k", "v")
    assert error in raw.call("EXEC")
    assert raw.call("EXISTS", "k") == b":0\r\n"
    assert raw.call("COMMAND", "GETKEYS", inner, "SET", "k", "v").startswith(b"-ERR")


def test_inner_commands_cannot_be_nested_into_a_crash(server: Server) -> None:
    raw = server.raw(timeout=30)
    nested = [INNER[0]] * 20000 + ["GET", "k"]
    assert raw.call(*nested).startswith(b"-ERR")
    assert raw.call("COMMAND", "GETKEYS", *nested).startswith(b"-ERR")
