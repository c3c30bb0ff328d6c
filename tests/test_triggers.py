"""Triggers, functions that clients call by name: record, reply, contexts, order, and how a call may end.

Contract: docs/contract/readers-and-events.md chapters 7 and 12, 10.5, 11.2, 11.3; docs/contract/commands.md 0.3, 0.4,
1.3, 1.11 and 4.5.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest
import redis

from helpers import Arg, RawClient, Server, wait_until
from probes import begun, blocked_clients, error_of, executions, go, in_script, raised, refused

MODES = ["sync", "async", "async_local"]
BACKGROUND = ["async", "async_local"]
CANNOT_WAIT = "can not run a non-sync execution inside a MULTI/LUA (blocking is not allowed) or on loading."
UNKNOWN = "ERR subcommand not found"
TAKEN = "gears.error: trigger already registered"

# The call with argument n has begun when `begun` has n; it ends when the key `go` exists.
HOLD = """
import time

def hold(record):
    execute('RPUSH', 'begun', record[1])
    execute('RPUSH', 'log', 'begin ' + record[1])
    while not execute('EXISTS', 'go'):
        time.sleep(0.001)
    execute('RPUSH', 'log', 'end ' + record[1])
    return record[1]

"""


def named(steps: str = "", trigger: str = "t", mode: str = "async", more: str = "") -> str:
    """The script of one trigger."""
    return f"GB('CommandReader'){steps}.register(trigger={trigger!r}, mode={mode!r}, {more})"


def put(server: Server, steps: str = "", trigger: str = "t", mode: str = "async", more: str = "") -> None:
    assert server.run(named(steps, trigger, mode, more)) == "OK"


def hold(server: Server, mode: str = "async_local", more: str = "") -> None:
    assert server.run(HOLD + named(".map(hold)", mode=mode, more=more)) == "OK"


def call(server: Server, *words: Arg) -> Any:
    """RG.TRIGGER of the trigger `t`."""
    return server.own.execute_command("RG.TRIGGER", "t", *words)


def ask(server: Server, word: Arg) -> RawClient:
    """A client that waits for the trigger `t`, whose execution has begun or stands in the queue."""
    before = blocked_clients(server)
    raw = server.raw()
    raw.send("RG.TRIGGER", "t", word)
    wait_until(lambda: blocked_clients(server) == before + 1)
    return raw


def unfinished(server: Server) -> list[str]:
    """The executions that are not finished, oldest first."""
    return [name for name, entry in executions(server).items() if entry["status"] in ("created", "running")]


def data(server: Server) -> dict[str, Any]:
    """RegistrationData of the only registration."""
    [entry] = server.registrations()
    return entry["RegistrationData"]


def counters(server: Server) -> tuple[int, ...]:
    found = data(server)
    return tuple(found[name] for name in ("numTriggered", "numSuccess", "numFailures", "numAborted"))


def unregister(server: Server, *words: Arg) -> None:
    assert server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"], *words) == "OK"


# --- record ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("command", ["RG.TRIGGER", "rg.TriggerOnKey"])
def test_the_record(server: Server, command: str, mode: str) -> None:
    put(server, mode=mode)
    client = server.client()
    assert client.execute_command(command, "t", "Ann", "12", "") == ["['t', 'Ann', '12', '']"]
    assert client.execute_command(command, "t") == ["['t']"]


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_arguments_are_binary_safe(server: Server, mode: str) -> None:
    put(server, mode=mode)
    expected = r"['t', bytearray(b'\xff\x00-'), 'a\x00b', '\x00', 'é', '\r\n']"
    assert call(server, b"\xff\0-", "a\0b", "\0", "é", "\r\n") == [expected]


def test_many_arguments(server: Server) -> None:
    put(server, ".map(len)", mode="sync")
    assert call(server, *["x"] * 10_000) == ["10001"]


# --- reply ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("steps", "reply"),
    [
        (".map(lambda r: 5)", ["5"]),
        (".flatmap(lambda r: r[1:])", ["a", "b", "c"]),
        (".flatmap(lambda r: r).count()", ["4"]),
        (".filter(lambda r: False)", []),
        (".map(lambda r: None)", ["None"]),
    ],
)
def test_the_reply_has_all_results(server: Server, steps: str, reply: list[str], mode: str) -> None:
    put(server, steps, mode=mode)
    assert call(server, "a", "b", "c") == reply


VALUES = [
    # expression, RESP2, RESP3 if it differs
    ("7", b":7\r\n", None),
    ("True", b":1\r\n", None),
    ("2.5", b"$8\r\n2.500000\r\n", None),
    ("2 ** 64", b"$20\r\n18446744073709551616\r\n", None),
    ("'text'", b"$4\r\ntext\r\n", None),
    ("'a\\0b'", b"$3\r\na\0b\r\n", None),
    ("'+fine'", b"+fine\r\n", None),
    ("'-ERR no'", b"-ERR no\r\n", None),
    ("'+'", b"$1\r\n+\r\n", None),
    ("b'-\\xff'", b"$2\r\n-\xff\r\n", None),
    ("None", b"$-1\r\n", b"_\r\n"),
    ("['x', [1]]", b"*2\r\n$1\r\nx\r\n*1\r\n:1\r\n", None),
    ("('x', 2)", b"*2\r\n$1\r\nx\r\n:2\r\n", None),
    ("{'a': 1}", b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
    ("{1}", b"$9\r\nPY RECORD\r\n", None),
]


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_results_are_converted(server: Server, protocol: int, mode: str) -> None:
    values = ", ".join(expression for expression, _, _ in VALUES)
    put(server, f".map(lambda r: [{values}][int(r[1])])", mode=mode, more="convertToStr=False")
    raw = server.raw()
    raw.call("HELLO", protocol)
    for number, (expression, resp2, resp3) in enumerate(VALUES):
        expected = (resp3 or resp2) if protocol == 3 else resp2
        assert raw.call("RG.TRIGGER", "t", number) == b"*1\r\n" + expected, expression


def test_texts_keep_their_meaning_when_converted(server: Server) -> None:
    put(server, ".flatmap(lambda r: ['+fine', '-ERR no', -5, '-'])", mode="sync")
    assert server.raw().call("RG.TRIGGER", "t") == b"*4\r\n+fine\r\n-ERR no\r\n$2\r\n-5\r\n$1\r\n-\r\n"


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_the_first_error_is_the_reply(server: Server, mode: str) -> None:
    put(server, ".flatmap(lambda r: r[1:]).map(lambda w: w if w < 'x' else flat_error('no ' + w))", mode=mode)
    assert server.raw().call("RG.TRIGGER", "t", "a", "y", "b", "z") == b"-no y\r\n"
    assert call(server, "a", "b") == ["a", "b"]


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_an_exception_is_one_line(server: Server, mode: str) -> None:
    put(server, ".map(lambda r: int(r[1]))", mode=mode)
    error = error_of(server, "t", "x", command="RG.TRIGGER")
    assert error.startswith("['Traceback (most recent call last):\\n'")
    assert error.endswith("\"ValueError: invalid literal for int() with base 10: 'x'\\n\"]")
    put(server, ".map(lambda r: flat_error('a\\r\\nb'))", trigger="lines", mode=mode)
    assert server.raw().call("RG.TRIGGER", "lines") == b"-a  b\r\n"


# --- which trigger ---


@pytest.mark.parametrize("word", ["T", "t ", "", "tt", "get", b"\xff", b"t\0"])
def test_an_unknown_trigger(server: Server, word: Arg) -> None:
    put(server)
    server.run("GB('CommandReader').register(hook='get', mode='sync')")
    for command in ("RG.TRIGGER", "RG.TRIGGERONKEY"):
        assert error_of(server, word, "k", command=command) == UNKNOWN


@pytest.mark.parametrize("command", ["rg.trigger", "rg.triggeronkey"])
def test_arity(server: Server, command: str) -> None:
    assert error_of(server, command=command) == f"ERR wrong number of arguments for '{command}' command"


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_any_text_is_a_name(server: Server, mode: str) -> None:
    names = ["t", "T", "", "a b", "é", "a\0b", "get"]
    server.run("\n".join(named(f".map(lambda r: {number})", name, mode) for number, name in enumerate(names)))
    client = server.client()
    for number, name in enumerate(names):
        assert client.execute_command("RG.TRIGGER", name) == [str(number)]


def test_the_prefix_has_no_effect(server: Server) -> None:
    assert server.run("GB('CommandReader').register(5, trigger='t', mode='sync')") == "OK"
    assert call(server, "x") == ["['t', 'x']"]


@pytest.mark.matrix
def test_the_key_is_declared(server: Server) -> None:
    raw = server.raw()
    assert raw.call("COMMAND", "GETKEYS", "RG.TRIGGERONKEY", "a", "b", "c") == b"*1\r\n$1\r\nb\r\n"
    assert raw.call("COMMAND", "GETKEYS", "RG.TRIGGER", "a", "b", "c").startswith(b"-ERR")


def test_keys_are_checked_against_the_users_patterns(server: Server) -> None:
    put(server, mode="sync")
    client = server.client()
    client.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "+rg.trigger", "+rg.triggeronkey", "~a*")
    limited = server.client(username="limited", password="secret")
    assert limited.execute_command("RG.TRIGGERONKEY", "t", "a1", "b") == ["['t', 'a1', 'b']"]
    assert limited.execute_command("RG.TRIGGER", "t", "b") == ["['t', 'b']"]
    with pytest.raises(redis.exceptions.NoPermissionError):
        limited.execute_command("RG.TRIGGERONKEY", "t", "b")
    assert counters(server)[0] == 2


def test_a_cluster_routes_by_the_key(start_server: Callable[..., Server]) -> None:
    server = start_server(args=["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"])
    raw = server.raw()
    raw.call("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    wait_until(lambda: b"cluster_state:ok" in raw.call("CLUSTER", "INFO"))
    put(server, ".map(lambda r: r[1])", mode="sync")
    # The slot of {06S} is 0, that of {foo} 12182.
    assert raw.call("RG.TRIGGERONKEY", "t", "{06S}") == b"*1\r\n$5\r\n{06S}\r\n"
    assert raw.call("RG.TRIGGERONKEY", "t", "{foo}").startswith((b"-CLUSTERDOWN", b"-MOVED"))
    assert raw.call("RG.TRIGGER", "t", "{foo}") == b"*1\r\n$5\r\n{foo}\r\n"


# --- arguments of register ---


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("mode=None, onRegistered=1, trigger=1", "execution mode must be a string"),
        ("mode='SYNC', onRegistered=1, trigger=1", "unknown execution mode: expected sync, async_local or async, got SYNC"),
        ("onRegistered=1, trigger=1, inorder=1", "OnRegistered argument must be a function"),
        ("trigger=1, inorder=1, keyprefix=1, hook=1", "trigger argument is not string"),
        ("trigger=None, hook='get'", "trigger argument is not string"),
        ("trigger=b't'", "trigger argument is not string"),
        ("trigger='t', inorder=1, keyprefix=1, hook=1", "inorder argument is be boolean"),
        ("trigger='t', inorder=None", "inorder argument is be boolean"),
        ("trigger='t', keyprefix=1, hook=1", "keyprefix argument is not string"),
        ("hook='get', keyprefix=None", "keyprefix argument is not string"),
        ("trigger='t', keyprefix='x', hook=1", "hook argument is not string"),
        ("trigger='t', hook=None", "hook argument is not string"),
        ("trigger='t', keyprefix='x'", "trigger argument can not be given with keyprefix or hook"),
        ("trigger='t', hook='nosuch'", "trigger argument can not be given with keyprefix or hook"),
        ("trigger='', hook=''", "trigger argument can not be given with keyprefix or hook"),
        ("", "no trigger or hook argument was given"),
        ("'t', keyprefix='x', inorder=True", "no trigger or hook argument was given"),
    ],
)
def test_wrong_arguments(server: Server, arguments: str, text: str) -> None:
    assert raised(server, f"GB('CommandReader').register({arguments})") == f"gears.error: {text}"
    assert server.registrations() == []


# --- duplicates ---


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_name_that_is_taken(server: Server, mode: str) -> None:
    put(server, ".map(lambda r: 'first')")
    assert raised(server, named(mode=mode)) == TAKEN
    assert raised(server, f"{named(trigger='other')}\n{named()}\n{named(trigger='other')}") == TAKEN
    assert (call(server), len(server.registrations())) == (["first"], 1)


def test_a_name_twice_in_one_script(server: Server) -> None:
    script = f"{named()}\n{named(mode='sync')}"
    assert raised(server, script) == f"{TAKEN} in this session"
    assert server.registrations() == []
    put(server)
    assert raised(server, script) == TAKEN


def test_a_name_that_a_script_failed_to_take_is_free(server: Server) -> None:
    raised(server, f"{named()}\nraise ValueError")
    put(server)
    unregister(server)
    put(server)
    assert call(server) == ["['t']"]


@pytest.mark.parametrize(
    "options", [["ID", "s", "UPGRADE"], ["ID", "new", "REPLACE_WITH", "s"]], ids=["upgrade", "replace"]
)
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_the_session_that_is_upgraded_gives_its_names_back(server: Server, options: list[str], mode: str) -> None:
    server.run(f"{named()}\n{named(trigger='old')}", "ID", "s")
    assert server.run(named(".map(lambda r: 'new')", mode=mode), *options) == "OK"
    assert call(server) == ["new"]
    assert error_of(server, "old", command="RG.TRIGGER") == UNKNOWN


def test_an_upgrade_takes_names_from_nobody_else(server: Server) -> None:
    server.run(named(), "ID", "s")
    server.run(named(trigger="other"), "ID", "other")
    error = error_of(server, named(trigger="t"), "ID", "other", "UPGRADE")
    assert error.endswith(f"'{TAKEN}\\n']")
    error = error_of(server, f"{named()}\n{named()}", "ID", "s", "UPGRADE")
    assert error.endswith(f"'{TAKEN} in this session\\n']")
    client = server.client()
    assert [client.execute_command("RG.TRIGGER", name) for name in ("t", "other")] == [["['t']"], ["['other']"]]


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_trigger_that_registers_another(server: Server, mode: str) -> None:
    put(server, f".map(lambda r: GB('CommandReader').register(trigger=r[1], mode={mode!r}))", mode=mode)
    [name] = call(server, "new")
    assert server.client().execute_command("RG.TRIGGER", "new", "a") == ["['new', 'a']"]
    assert name in [entry["id"] for entry in server.registrations()]
    assert error_of(server, "t", "new", command="RG.TRIGGER").endswith(f"'{TAKEN}\\n']")


# --- where nobody can wait ---


@pytest.mark.matrix
def test_sync_functions_in_a_transaction(server: Server) -> None:
    put(server, ".map(lambda r: execute('INCR', 'calls')).flatmap(lambda n: ['+fine', n])", mode="sync")
    raw = server.raw()
    raw.call("MULTI")
    for words in (["RG.TRIGGER", "t"], ["GET", "calls"], ["RG.TRIGGERONKEY", "t", "k"]):
        assert raw.call(*words) == b"+QUEUED\r\n"
    results = [b"*2\r\n+fine\r\n$1\r\n%d\r\n" % number for number in (1, 2)]
    assert raw.call("EXEC") == b"*3\r\n" + results[0] + b"$1\r\n1\r\n" + results[1]


@pytest.mark.matrix
def test_sync_functions_in_lua(server: Server) -> None:
    put(server, ".map(lambda r: r[1] if r[1] != 'bad' else flat_error('ERR bad'))", mode="sync")
    raw = server.raw()
    assert raw.call("EVAL", "return redis.call('RG.TRIGGER', 't', 'a')[1] .. 'b'", 0) == b"$2\r\nab\r\n"
    assert raw.call("EVAL", "return redis.pcall('rg.trigger', 't', 'bad').err", 0) == b"$7\r\nERR bad\r\n"
    assert raw.call("EVAL", "return redis.call('RG.TRIGGER', 't', 'bad')", 0).startswith(b"-ERR bad")
    assert raw.call("EVAL", "return redis.pcall('RG.TRIGGER', 'nosuch').err", 0) == b"$24\r\n%s\r\n" % UNKNOWN.encode()


@pytest.mark.parametrize("place", ["script", "run", "sync", "async_local"])
def test_sync_functions_called_by_functions(server: Server, place: str) -> None:
    put(server, ".map(lambda r: r[1:])", mode="sync", more="convertToStr=False")
    called = "execute('RG.TRIGGER', 't', 'a', b'\\xff')"
    if place == "script":
        found = in_script(server, f"return repr({called})")
    elif place == "run":
        [[found], []] = server.run(f"GB('KeysReader').map(lambda r: {called}).run('k', noScan=True)")
    else:
        put(server, f".map(lambda r: {called})", trigger="caller", mode=place)
        [found] = server.client().execute_command("RG.TRIGGER", "caller")
    assert found == r"[['a', bytearray(b'\xff')]]"


@pytest.mark.matrix
def test_each_call_knows_whether_its_own_caller_waits(server: Server) -> None:
    """Also behind a call that it has made, whose caller is a function."""
    put(server, ".map(lambda r: isAsyncAllow())", trigger="inner", mode="sync", more="convertToStr=False")
    calls = "[isAsyncAllow(), execute('RG.TRIGGER', 'inner')[0], isAsyncAllow()]"
    put(server, f".map(lambda r: {calls})", mode="sync", more="convertToStr=False")
    raw = server.raw()
    asked = b"*1\r\n*3\r\n:%d\r\n:0\r\n:%d\r\n"
    assert raw.call("RG.TRIGGER", "t") == asked % (1, 1)
    raw.call("MULTI")
    raw.call("RG.TRIGGER", "t")
    assert raw.call("EXEC") == b"*1\r\n" + asked % (0, 0)
    assert raw.call("EVAL", "return redis.call('RG.TRIGGER', 't')", 0) == asked % (0, 0)
    assert raw.call("RG.TRIGGER", "inner") == b"*1\r\n:1\r\n"


@pytest.mark.matrix
@pytest.mark.parametrize("mode", BACKGROUND)
@pytest.mark.parametrize("place", ["multi", "lua", "function", "script", "sync"])
def test_others_are_refused_where_nobody_can_wait(server: Server, place: str, mode: str) -> None:
    put(server, ".foreach(lambda r: execute('SET', 'called', '1'))", mode=mode)
    raw = server.raw()
    error = f"ERR {CANNOT_WAIT}".encode()
    if place == "multi":
        raw.call("MULTI")
        assert raw.call("RG.TRIGGER", "t") == b"+QUEUED\r\n"
        assert raw.call("EXEC") == b"*1\r\n-%s\r\n" % error
    elif place == "lua":
        assert raw.call("EVAL", "return redis.pcall('RG.TRIGGERONKEY', 't', KEYS[1]).err", 1, "k") == (
            b"$%d\r\n%s\r\n" % (len(error), error)
        )
    elif place == "sync":
        server.run("GB().foreach(lambda r: execute('RG.TRIGGER', 't')).register('x', mode='sync')")
        raw.call("SET", "x", "1")
        errors = [entry["RegistrationData"]["lastError"] for entry in server.registrations()]
        assert any(found and f"gears.error: ERR {CANNOT_WAIT}" in found for found in errors)
    else:
        in_place = {"function": "GB('KeysReader').map(lambda r: {}).run('k', noScan=True)", "script": "{}"}[place]
        script = in_place.format("execute('RG.TRIGGER', 't')")
        if place == "script":
            assert raised(server, script) == f"gears.error: ERR {CANNOT_WAIT}"
        else:
            [[], [found]] = server.run(script)
            assert found.endswith(f"'gears.error: ERR {CANNOT_WAIT}\\n']")
    server.wait_idle()
    assert server.client().get("called") is None
    triggered = {entry["RegistrationData"]["args"].get("trigger"): entry for entry in server.registrations()}
    assert triggered["t"]["RegistrationData"]["numTriggered"] == 0


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_refused_on_a_replica(start_server: Callable[..., Server], mode: str) -> None:
    master, replica = start_server(), start_server()
    for server in (master, replica):
        put(server, mode=mode)
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    for command in ("RG.TRIGGER", "RG.TRIGGERONKEY"):
        error = error_of(replica, "t", "k", command=command)
        assert error == "READONLY You can't write against a read only replica."
    assert counters(replica) == (0, 0, 0, 0)
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    assert call(replica, "k") == ["['t', 'k']"]


# --- what a function can do ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", MODES)
def test_functions_act_in_database_0(server: Server, mode: str) -> None:
    put(server, ".map(lambda r: execute('INCR', 'calls'))", mode=mode)
    five = server.client(db=5)
    assert five.execute_command("RG.TRIGGER", "t") == ["1"]
    assert (five.get("calls"), server.client().get("calls")) == (None, "1")
    assert five.pipeline(transaction=False).execute_command("RG.TRIGGER", "t").exists("calls").execute() == [["2"], 0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("function", ["override_reply('x')", "get_command()"])
def test_there_is_no_linked_command(server: Server, function: str, mode: str) -> None:
    put(server, f".map(lambda r: {function})", mode=mode)
    error = error_of(server, "t", command="RG.TRIGGER")
    assert error.endswith("'gears.error: Can not get command ctx\\n']")


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_what_it_writes_fires_events(server: Server, mode: str) -> None:
    server.run("GB().foreach(lambda r: execute('RPUSH', 'seen', r['key'])).register('x*', mode='sync')")
    put(server, ".foreach(lambda r: execute('SET', r[1], '1'))", mode=mode)
    call(server, "x1")
    assert server.client().lrange("seen", 0, -1) == ["x1"]


AGAIN = """
def again(record):
    execute('INCR', 'depth')
    return execute('RG.TRIGGER', 't')

GB('CommandReader').map(again).register(trigger='t', mode='sync')
"""


@pytest.mark.matrix
@pytest.mark.parametrize("tracebacks", [1, 0])
def test_a_trigger_that_calls_itself_is_a_clear_error(start_server: Callable[..., Server], tracebacks: int) -> None:
    server = start_server(module_args=["PythonAttemptTraceback", tracebacks])
    assert server.run(AGAIN) == "OK"
    error = error_of(server, "t", command="RG.TRIGGER")
    assert "ERR functions call each other too deeply (does one call itself?)" in error
    assert len(error) < 1_000_000
    assert 10 <= int(server.client().get("depth")) <= 1000
    assert error_of(server, "t", command="RG.TRIGGER") == error
    put(server, trigger="other", mode="sync")
    assert server.client().execute_command("RG.TRIGGER", "other") == ["['other']"]


def test_an_error_that_passes_many_functions_keeps_a_sane_size(server: Server) -> None:
    server.run("""
        def deeper(record):
            left = int(record[1])
            if left == 0:
                raise ValueError("isn't \\"it\\"")
            return execute('RG.TRIGGER', 't', left - 1)

        GB('CommandReader').map(deeper).register(trigger='t', mode='sync')
    """)
    assert len(error_of(server, "t", 40, command="RG.TRIGGER")) < 1_000_000


@pytest.mark.parametrize("mode", MODES)
def test_a_trigger_that_unregisters_itself(server: Server, mode: str) -> None:
    put(server, ".map(lambda r: execute('RG.UNREGISTER', r[1], 'ABORTPENDING'))", mode=mode)
    assert call(server, server.registrations()[0]["id"]) == ["OK"]
    assert error_of(server, "t", command="RG.TRIGGER") == UNKNOWN
    assert server.registrations() == []


# --- order ---


@pytest.mark.matrix
def test_calls_run_at_the_same_time_on_all_workers(server: Server) -> None:
    hold(server)
    clients = [ask(server, number) for number in range(4)]
    wait_until(lambda: sorted(server.own.lrange("begun", 0, -1)) == ["0", "1", "2"])  # ExecutionThreads is 3
    assert server.client().ping()
    go(server)
    assert [raw.read() for raw in clients] == [b"*1\r\n$1\r\n%d\r\n" % number for number in range(4)]


@pytest.mark.matrix
@pytest.mark.parametrize("mode", BACKGROUND)
def test_inorder_begins_one_when_the_one_before_has_ended(server: Server, mode: str) -> None:
    hold(server, mode, "inorder=True")
    clients = [ask(server, number) for number in range(4)]
    server.run("GB('KeysReader').run('k', noScan=True)")  # other workers are free
    begun(server, "0")
    go(server)
    assert [raw.read() for raw in clients] == [b"*1\r\n$1\r\n%d\r\n" % number for number in range(4)]
    expected = [f"{what} {number}" for number in range(4) for what in ("begin", "end")]
    assert server.client().lrange("log", 0, -1) == expected


def test_inorder_is_that_of_one_registration(server: Server) -> None:
    hold(server, more="inorder=True")
    put(server, trigger="other", mode="async_local", more="inorder=True")
    waiting = ask(server, 0)
    assert server.client().execute_command("RG.TRIGGER", "other") == ["['other']"]
    go(server)
    assert waiting.read() == b"*1\r\n$1\r\n0\r\n"


def test_inorder_goes_on_after_an_error(server: Server) -> None:
    put(server, ".foreach(lambda r: execute('RPUSH', 'done', int(r[1])))", mode="async_local", more="inorder=True")
    raws = [server.raw() for _ in range(3)]
    for raw, word in zip(raws, ["1", "x", "3"]):
        raw.send("RG.TRIGGER", "t", word)
    assert [raw.read()[:1] for raw in raws] == [b"*", b"-", b"*"]
    assert sorted(server.client().lrange("done", 0, -1)) == ["1", "3"]


def test_one_client_gets_its_replies_in_order(server: Server) -> None:
    put(server, ".map(lambda r: r[1])", mode="async_local")
    raw = server.raw()
    for number in range(100):
        raw.send("RG.TRIGGER", "t", number)
    raw.send("PING")
    assert [raw.read() for _ in range(100)] == [b"*1\r\n$%d\r\n%d\r\n" % (len(str(n)), n) for n in range(100)]
    assert raw.read() == b"+PONG\r\n"


# --- ends of a call ---


@pytest.mark.parametrize("more", ["", "inorder=True"])
def test_unregister_lets_queued_calls_run(start_server: Callable[..., Server], more: str) -> None:
    server = start_server(module_args=["ExecutionThreads", "1"])
    hold(server, more=more)
    clients = [ask(server, number) for number in range(3)]
    begun(server, "0")
    unregister(server)
    assert error_of(server, "t", command="RG.TRIGGER") == UNKNOWN
    go(server)
    assert [raw.read() for raw in clients] == [b"*1\r\n$1\r\n%d\r\n" % number for number in range(3)]


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["unregister", "upgrade"])
@pytest.mark.parametrize("more", ["", "inorder=True"])
def test_abort_of_pending_calls_answers_them_at_once(start_server: Callable[..., Server], how: str, more: str) -> None:
    server = start_server(module_args=["ExecutionThreads", "1"])
    server.run(HOLD + named(".map(hold)", mode="async_local", more=more), "ID", "s")
    clients = [ask(server, number) for number in range(3)]
    begun(server, "0")
    if how == "unregister":
        unregister(server, "ABORTPENDING")
    else:
        assert server.run(named(mode="sync"), "ID", "s", "UPGRADE") == "OK"
    removed = b"-ERR Could not trigger execution, its registration was removed before it began\r\n"
    assert [raw.read() for raw in clients[1:]] == [removed, removed]
    go(server)
    assert clients[0].read() == b"*1\r\n$1\r\n0\r\n"
    assert server.client().lrange("begun", 0, -1) == ["0"]


def test_abort_of_a_running_call_is_an_error(server: Server) -> None:
    hold(server)
    raw = ask(server, 0)
    begun(server, "0")
    assert server.client().execute_command("RG.ABORTEXECUTION", *unfinished(server)) == "OK"
    assert b"gears.forcestopped" in raw.read()
    assert counters(server) == (1, 0, 1, 0)


def test_abort_of_a_queued_call_is_an_empty_array(server: Server) -> None:
    hold(server, more="inorder=True")
    first, second = ask(server, 0), ask(server, 1)
    begun(server, "0")
    assert server.client().execute_command("RG.ABORTEXECUTION", unfinished(server)[1]) == "OK"
    assert second.read() == b"*0\r\n"
    go(server)
    assert first.read() == b"*1\r\n$1\r\n0\r\n"
    server.wait_idle()
    assert counters(server) == (2, 1, 0, 1)


@pytest.mark.parametrize("how", ["close", "kill"])
def test_the_client_goes_meanwhile(server: Server, how: str) -> None:
    hold(server)
    raw = server.raw()
    number = int(raw.call("CLIENT", "ID")[1:])
    raw.send("RG.TRIGGER", "t", "0")
    begun(server, "0")
    if how == "close":
        raw.close()
    else:
        assert server.client().execute_command("CLIENT", "KILL", "ID", number) == 1
    wait_until(lambda: blocked_clients(server) == 0)
    go(server)
    server.wait_idle()
    assert (counters(server), executions(server)) == ((1, 1, 0, 0), {})
    assert server.client().lrange("log", 0, -1) == ["begin 0", "end 0"]


def test_client_unblock_has_no_effect(server: Server) -> None:
    hold(server)
    raw = server.raw()
    number = int(raw.call("CLIENT", "ID")[1:])
    raw.send("RG.TRIGGER", "t", "0")
    begun(server, "0")
    for reason in ([], ["ERROR"]):
        assert server.client().execute_command("CLIENT", "UNBLOCK", number, *reason) == 0
    go(server)
    assert raw.read() == b"*1\r\n$1\r\n0\r\n"


def test_a_reload_meanwhile_answers_everybody(server: Server) -> None:
    hold(server, more="inorder=True")
    running, queued = ask(server, 0), ask(server, 1)
    begun(server, "0")
    assert server.client().execute_command("DEBUG", "RELOAD") == "OK"
    assert queued.read().startswith(b"-ERR the data were replaced")
    go(server)
    assert running.read() == b"*1\r\n$1\r\n0\r\n"
    assert call(server, 2) == ["2"]  # the registration is in force


def test_demotion_meanwhile(server: Server, source: Server) -> None:
    hold(server)
    raw = ask(server, 0)
    begun(server, "0")
    client = server.client()
    client.execute_command("REPLICAOF", source.host, source.port)
    assert raw.read().startswith(b"-UNBLOCKED")
    client.execute_command("REPLICAOF", "NO", "ONE")
    go(server)
    server.wait_idle()
    assert client.ping()


def test_the_server_stops_while_clients_wait(server: Server) -> None:
    hold(server)
    for number in range(5):
        ask(server, number)
    server.process.terminate()
    assert server.wait_exit(20) == 0


# --- statistics ---


@pytest.mark.parametrize("mode", MODES)
def test_successes_and_failures_are_counted(server: Server, mode: str) -> None:
    put(server, ".map(lambda r: r[1] != 'bad' or flat_error('it is bad'))", mode=mode)
    for word, expected, error in [
        ("good", (1, 1, 0, 0), None),
        ("bad", (2, 1, 1, 0), "it is bad"),
        ("bad", (3, 1, 2, 0), "it is bad"),
        ("good", (4, 2, 2, 0), None),
    ]:
        raw = server.raw()
        raw.call("RG.TRIGGER", "t", word)
        server.wait_idle()
        assert (counters(server), data(server)["lastError"]) == (expected, error)


def test_nothing_kept_and_nothing_to_pause(server: Server) -> None:
    script = "\n".join(named(trigger=mode, mode=mode) for mode in MODES)
    assert server.run(script) == "OK"
    client = server.client()
    for mode in MODES:
        client.execute_command("RG.TRIGGER", mode)
    wait_until(lambda: executions(server) == {})
    for verb in ("PAUSE", "UNPAUSE"):
        error = refused(client, f"RG.{verb}REGISTRATIONS", server.registrations()[0]["id"])
        assert error == f"Reader CommandReader does not support {verb.lower()}"


def test_sync_calls_of_all_kinds_follow_each_other(server: Server) -> None:
    """A call has nothing of the one before, however that ended."""
    server.run(
        """
sessions = []
async def later(word):
    return word
def answer(record):
    kind, word = record[1], record[2]
    sessions.append(getGearsSession())
    if kind == 'raise':
        raise ValueError(word)
    if kind == 'wait':
        return later(word)
    if kind == 'inside':
        return execute('RG.TRIGGER', 't', 'value', word)[0] + '!'
    return word
GB('CommandReader').map(answer).register(trigger='t', mode='sync')
"""
    )
    for number in map(str, range(3)):
        for kind in ("value", "raise", "value", "wait", "inside", "value"):
            if kind == "raise":
                with pytest.raises(redis.ResponseError, match=f"ValueError: {number}"):
                    call(server, kind, number)
            else:
                assert call(server, kind, number) == [number + "!" * (kind == "inside")]
    server.wait_idle()
    assert counters(server) == (21, 18, 3, 0)
    assert executions(server) == {}
