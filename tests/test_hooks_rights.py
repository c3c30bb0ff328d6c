"""Access rights and hooked commands: a hook neither widens nor narrows what a user may do.

Contract: docs/contract/readers-and-events.md 8.7 and 10.9, docs/contract/commands.md 9.4 and 9.13,
docs/contract/README.md ("flags and ACL", "internal commands"); the inner commands: docs/linked-clients.md. Redis 7.0
cannot look at a user inside the filter: there each user needs the inner command, too.
"""

from __future__ import annotations

import pytest

from helpers import Arg, RawClient, Server, as_dict

pytestmark = pytest.mark.matrix

MODES = ["sync", "async_local"]
INNER = "ERR this command is internal to the module and cannot be called"
HOOKED = b"$6\r\nhooked\r\n"
# What every user here may do in any case.
ALWAYS = ["+client", "+hello", "+ping"]


def answer(
    server: Server, expression: str = "'hooked'", command: str = "get", mode: str = "sync", more: str = ""
) -> None:
    """The command is answered with the value of `expression`; `r` is the record."""
    script = f"GB('CommandReader').map(lambda r: {expression}).register(hook={command!r}, mode={mode!r}, {more})"
    assert server.run(script) == "OK"


def set_user(server: Server, *rules: str) -> None:
    server.client().execute_command("ACL", "SETUSER", "limited", *rules)


def user(server: Server, *rules: str) -> RawClient:
    """A connection of a user with these rights only."""
    set_user(server, "reset", "on", ">secret", *ALWAYS, *rules)
    raw = server.raw()
    assert raw.call("AUTH", "limited", "secret") == b"+OK\r\n"
    return raw


def refused(raw: RawClient, *words: Arg) -> bool:
    """True if the user lacks a right."""
    return raw.call(*words).startswith(b"-NOPERM")


def calls(server: Server) -> int:
    """How often functions were called."""
    return sum(entry["RegistrationData"]["numTriggered"] for entry in server.registrations())


# --- who has the inner command, too: no difference between plain and hooked commands ---


@pytest.mark.parametrize("mode", MODES)
def test_a_user_with_the_command_and_the_key(server: Server, mode: str) -> None:
    answer(server, mode=mode)
    raw = user(server, "+get", "+rg.innerread", "~a*")
    assert raw.call("GET", "a1") == HOOKED
    assert refused(raw, "GET", "b1")
    assert refused(raw, "MGET", "a1")
    assert calls(server) == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "rules",
    [
        ["+rg.innerread"],
        ["+rg.trigger", "+rg.innerread", "+mget"],
        ["+@all", "-get"],
        ["+@read", "+rg.innerread", "-get"],
        ["+@write", "+rg.innerread", "+rg.innerwrite", "+rg.innerwritemore"],
        ["+@dangerous", "+rg.innerread"],
    ],
)
def test_a_user_without_the_command(server: Server, rules: list[str], mode: str) -> None:
    answer(server, mode=mode)
    raw = user(server, "~*", *rules)
    assert refused(raw, "GET", "a") and refused(raw, "get", "a")
    assert raw.call("GET").startswith(b"-")
    assert calls(server) == 0


def test_the_text_is_that_of_the_server(server: Server) -> None:
    raw = user(server, "~*", "+rg.innerread", "+mget")
    plain = raw.call("GET", "a")
    answer(server, more="keyprefix='a'")
    if server.native_hits:
        assert raw.call("GET", "a") == plain
    assert raw.call("GET", "b") == plain


def test_each_key_counts(server: Server) -> None:
    answer(server, command="mget", more="keyprefix='a'")
    answer(server, command="rename")
    raw = user(server, "+mget", "+rename", "+rg.innerread", "+rg.innerwrite", "~a*", "~b*")
    assert raw.call("MGET", "a1", "b1") == HOOKED
    assert raw.call("RENAME", "a1", "b1") == HOOKED
    assert refused(raw, "MGET", "a1", "c1")
    assert refused(raw, "MGET", "c1", "a1")
    assert refused(raw, "RENAME", "a1", "c1")
    assert calls(server) == 2


def test_reading_and_writing_are_different_rights(server: Server) -> None:
    for command in ("get", "set", "getdel"):
        answer(server, command=command)
    inner = ["+rg.innerread", "+rg.innerwrite", "+rg.innerwritemore"]
    raw = user(server, "+get", "+set", "+getdel", *inner, "%R~r*", "%W~w*", "%RW~b*")
    assert (raw.call("GET", "r"), raw.call("SET", "w", "1"), raw.call("GETDEL", "b")) == (HOOKED,) * 3
    assert [refused(raw, *words) for words in (["GET", "w"], ["SET", "r", "1"], ["GETDEL", "r"])] == [True] * 3
    assert calls(server) == 3


def test_the_function_has_all_rights(server: Server) -> None:
    answer(server, "execute('INCR', 'counter') and str(call_next('other'))")
    raw = user(server, "+get", "+rg.innerread", "~a*")
    server.client().execute_command("SET", "other", "v")
    assert raw.call("GET", "a") == b"$1\r\nv\r\n"
    assert refused(raw, "GET", "other") and refused(raw, "INCR", "counter")


def test_the_rights_are_those_of_the_moment(server: Server) -> None:
    answer(server, command="get")
    raw = user(server, "+get", "+rg.innerread", "~a*")
    assert raw.call("GET", "a") == HOOKED
    for rule, back in (("-get", "+get"), ("resetkeys", "~a*"), ("-rg.innerread", "+rg.innerread")):
        set_user(server, rule)
        lost = raw.call("GET", "a")
        assert lost.startswith(b"-NOPERM") or (server.native_hits and rule == "-rg.innerread")
        set_user(server, back)
        assert raw.call("GET", "a") == HOOKED


def test_a_connection_that_changes_its_user(server: Server) -> None:
    answer(server)
    raw = user(server, "+mget", "+rg.innerread", "~*")
    client = server.client()
    client.execute_command("ACL", "SETUSER", "able", "on", ">secret", "~*", "+@all")
    for _ in range(2):
        assert raw.call("AUTH", "able", "secret") == b"+OK\r\n"
        assert raw.call("GET", "a") == HOOKED
        assert raw.call("AUTH", "limited", "secret") == b"+OK\r\n"
        assert refused(raw, "GET", "a")


def test_users_in_turns(server: Server) -> None:
    """Nobody gains from the rights of the one whose command came before, also if that one was refused later."""
    answer(server, command="set")
    limited = user(server, "+get", "+rg.innerwritemore", "+rg.innerread", "~*")
    able = server.raw()
    for _ in range(2):
        assert able.call("SET", "a", "1") == HOOKED
        assert refused(limited, "SET", "a", "1")
        server.client().config_set("maxmemory", 1)
        assert able.call("SET", "a", "1").startswith(b"-OOM")
        server.client().config_set("maxmemory", 0)
        assert refused(limited, "SET", "a", "1")
    assert calls(server) == 2


# --- who has the command only ---


@pytest.mark.parametrize("mode", MODES)
def test_a_user_without_the_inner_command(server: Server, mode: str) -> None:
    answer(server, mode=mode, more="keyprefix='a'")
    server.client().mset({"a": "plain", "b": "plain"})
    raw = user(server, "+get", "~*")
    assert raw.call("GET", "b") == b"$5\r\nplain\r\n"
    if server.native_hits:
        unlinked = lambda: server.client().info("rg")["rg_unlinked_for_acl"]  # noqa: E731
        before = unlinked()
        # Served, by the command itself, and counted.
        assert raw.call("GET", "a") == b"$5\r\nplain\r\n"
        assert unlinked() == before + 1
    else:
        assert refused(raw, "GET", "a")
    assert calls(server) == 0


@pytest.mark.parametrize(
    ("rules", "command", "category"),
    [(["+@read"], "get", True), (["+@write", "+@read"], "set", True), (["+@all", "-@dangerous"], "get", False)],
)
def test_a_user_with_categories(server: Server, rules: list[str], command: str, category: bool) -> None:
    answer(server, command=command)
    raw = user(server, "~*", *rules)
    words = {"get": ["GET", "a"], "set": ["SET", "a", "1"]}[command]
    if server.native_hits or not category:
        assert raw.call(*words) == HOOKED
    else:
        assert refused(raw, *words)  # modules have no categories


def test_the_right_to_call_triggers_is_another_one(server: Server) -> None:
    answer(server)
    server.run("GB('CommandReader').register(trigger='t', mode='sync')")
    raw = user(server, "+@all", "-rg.trigger", "-rg.triggeronkey", "~*")
    assert raw.call("GET", "a") == HOOKED
    assert refused(raw, "RG.TRIGGER", "t")
    raw = user(server, "+rg.trigger", "~*")
    assert refused(raw, "GET", "a")
    assert raw.call("RG.TRIGGER", "t") == b"*1\r\n$5\r\n['t']\r\n"


# --- transactions and scripts ---


def test_a_transaction(server: Server) -> None:
    answer(server)
    raw = user(server, "+get", "+mget", "+multi", "+exec", "+rg.innerread", "~a*")
    raw.call("MULTI")
    assert [raw.call(*words) for words in (["GET", "a"], ["MGET", "a"])] == [b"+QUEUED\r\n"] * 2
    assert raw.call("EXEC") == b"*2\r\n" + HOOKED + b"*1\r\n$-1\r\n"
    raw.call("MULTI")
    assert refused(raw, "GET", "b")
    assert raw.call("EXEC").startswith(b"-EXECABORT")
    assert calls(server) == 1


@pytest.mark.parametrize("rule", ["-get", "resetkeys"])
def test_a_right_that_is_taken_before_exec(server: Server, rule: str) -> None:
    answer(server)
    raw = user(server, "+get", "+multi", "+exec", "+rg.innerread", "~a*")
    raw.call("MULTI")
    assert raw.call("GET", "a") == b"+QUEUED\r\n"
    set_user(server, rule)
    assert raw.call("EXEC").startswith(b"*1\r\n-NOPERM")
    assert calls(server) == 0


def test_a_script(server: Server) -> None:
    answer(server)
    call = "return redis.pcall('get', KEYS[1])"
    able = user(server, "+eval", "+get", "+rg.innerread", "~a*")
    assert able.call("EVAL", call, 1, "a") == HOOKED
    foreign = able.call("EVAL", "return redis.pcall('get', 'b')", 0)
    assert foreign.startswith(b"-") and calls(server) == 1
    unable = user(server, "+eval", "+rg.innerread", "~a*")
    assert unable.call("EVAL", call, 1, "a").startswith(b"-")
    assert calls(server) == 1


# --- inner commands ---


@pytest.mark.parametrize("inner", ["RG.INNERREAD", "rg.innerwrite", "RG.InnerWriteMore"])
def test_inner_commands_are_not_for_clients(server: Server, inner: str) -> None:
    answer(server)
    answer(server, command="set")
    raw = server.raw()
    error = f"-{INNER}".encode()
    for words in ([], ["GET", "a"], ["SET", "a", "1"], [inner, "GET", "a"]):
        raw.send("GET", "a")
        raw.send(inner, *words)
        raw.send("SET", "a", "1")
        assert raw.read() == HOOKED
        assert raw.read().startswith(error)
        assert raw.read() == HOOKED
    raw.call("MULTI")
    raw.call("GET", "a")
    raw.call(inner, "GET", "a")
    assert raw.call("EXEC").startswith(b"*2\r\n" + HOOKED + error)
    assert raw.call("EVAL", f"return redis.pcall('{inner}', 'GET', 'a').err", 0).endswith(INNER.encode() + b"\r\n")
    assert calls(server) == 9


def test_functions_cannot_call_inner_commands(server: Server) -> None:
    answer(server, "execute('RG.INNERREAD', *r)")
    assert server.raw().call("GET", "a").endswith(f"'gears.error: {INNER}\\n']\r\n".encode())


def test_keys_of_a_hooked_command(server: Server) -> None:
    answer(server, command="mget")
    raw = server.raw()
    assert raw.call("COMMAND", "GETKEYS", "MGET", "a", "b") == b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"
    assert raw.call("COMMAND", "GETKEYS", "RG.INNERREAD", "MGET", "a").startswith(b"-ERR")


def test_the_log_of_refused_commands_names_the_command(server: Server) -> None:
    answer(server)
    raw = user(server, "+mget", "+rg.innerread", "~*")
    assert refused(raw, "GET", "a")
    entries = [as_dict(entry) for entry in server.client().execute_command("ACL", "LOG")]
    if server.native_hits:
        assert [(entry["reason"], entry["object"]) for entry in entries] == [("command", "get")]
