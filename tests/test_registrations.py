"""Registrations as clients see them: RG.DUMPREGISTRATIONS, RG.UNREGISTER, statistics, onRegistered, end of a session.

Contract: docs/contract/commands.md 1.10, 1.11, 2 and 4; docs/contract/readers-and-events.md 1.3 and 11; PD:
docs/contract/README.md.
"""

import ast
import re

import pytest

from helpers import wait_until
from probes import BUSY, error_of, executions, raised, session, start

FIRST = "0" * 40 + "-1"
COUNT = "GB('KeysReader').foreach(lambda record: execute('INCR', 'handled')).register('x*', mode='{}')"


def data(server):
    """RegistrationData of the only registration."""
    [entry] = server.registrations()
    return entry["RegistrationData"]


def unregister(server, *words):
    return server.own.execute_command("RG.UNREGISTER", server.registrations()[0]["id"], *words)


# --- RG.DUMPREGISTRATIONS ---


def test_nothing_registered(server):
    assert server.raw().call("RG.DUMPREGISTRATIONS", "ignored") == b"*0\r\n"


def test_a_whole_entry(server):
    server.run(
        """
        GB('KeysReader', desc='orders').register(
            'order:*', mode='async_local', eventTypes=['Set', 'keymiss'], keyTypes=['string', 'empty'],
            commands=['GET', 'mget'])
        """
    )
    [entry] = server.client().execute_command("RG.DUMPREGISTRATIONS")
    session = entry.pop(9)
    assert entry == [
        *("id", FIRST, "reader", "KeysReader", "desc", "orders", "RegistrationData"),
        [
            *("mode", "async_local", "numTriggered", 0, "numSuccess", 0, "numFailures", 0, "numAborted", 0),
            *("lastRunDurationMS", 0, "totalRunDurationMS", 0, "avgRunDurationMS", "0", "lastError", None, "args"),
            [
                *("regex", "order:*", "eventTypes", ["Set", "keymiss"]),
                *("keyTypes", ["string", "empty"], "hookCommands", ["GET", "mget"]),
            ],
        ],
        *("PD", "ExecutionThreadPool", "DefaultPool"),
    ]
    assert isinstance(ast.literal_eval(session), dict)


def test_what_is_not_given_is_nil(server):
    server.run("GB('KeysReader').register()")
    [entry] = server.registrations()
    assert entry["desc"] is None
    assert entry["RegistrationData"]["mode"] == "async"
    assert entry["RegistrationData"]["args"] == {
        "regex": "*",
        "eventTypes": None,
        "keyTypes": None,
        "hookCommands": None,
    }


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("eventTypes=('a', 'B')", {"eventTypes": ["a", "B"]}),
        ("eventTypes=(name for name in ['a'])", {"eventTypes": ["a"]}),
        ("eventTypes=[]", {"eventTypes": []}),
        ("keyTypes=[]", {"keyTypes": []}),
        ("keyTypes=['stream']", {"keyTypes": ["stream"]}),
        (
            "keyTypes=['empty', 'string', 'list', 'hash', 'set', 'zset', 'module', 'stream']",
            {"keyTypes": ["empty", "string", "list", "hash", "set", "zset", "module", "stream"]},
        ),
        ("commands=[]", {"hookCommands": None}),
        ("commands=['get', 'GET']", {"hookCommands": ["get", "GET"]}),
    ],
)
def test_arguments_are_shown_as_given(server, given, shown):
    server.run(f"GB('KeysReader').register('x', {given})")
    args = data(server)["args"]
    assert {key: args[key] for key in shown} == shown


def test_pd_is_a_literal(server):
    server.run("for _ in range(2):\n    GB('KeysReader').register('x*')", "ID", "greeter", "DESCRIPTION", "a demo")
    first, second = server.registrations()
    assert first["PD"] == second["PD"]
    session = ast.literal_eval(first["PD"])
    assert sorted(session.pop("registrationsList")) == sorted([first["id"], second["id"]])
    assert session == {
        "sessionId": "greeter",
        "sessionName": "greeter",
        "sessionDescription": "a demo",
        "refCount": 2,
        "linkedTo": "primary",
        "dead": False,
        "isInstallationNeeded": 0,
        "depsList": [],
    }


@pytest.mark.parametrize("text", ["it's", 'a "b"', "new\nline", "back\\slash", "é", "', 'dead': True, 'x': '"])
def test_pd_is_a_literal_whatever_the_description(server, text):
    server.run("GB('KeysReader').register('x*')", "DESCRIPTION", text)
    assert session(server)["sessionDescription"] == text


# --- RG.UNREGISTER ---


@pytest.mark.parametrize("identifier", ["0" * 40 + "-99", FIRST + "abc", "x", "", b"\xff\0"])
def test_unregister_of_unknown_ids(server, identifier):
    server.run("GB('KeysReader').register('x*')")
    assert error_of(server, identifier, command="RG.UNREGISTER") == "execution is not registered"
    assert len(server.registrations()) == 1


@pytest.mark.parametrize("words", [[], [FIRST, "ABORTPENDING", "more"]])
def test_unregister_arity(server, words):
    error = "ERR wrong number of arguments for 'rg.unregister' command"
    assert error_of(server, *words, command="RG.UNREGISTER") == error


@pytest.mark.parametrize("words", [[], ["ABORTPENDING"], ["abortpending"], ["other"]])
@pytest.mark.parametrize("mode", ["sync", "async", "async_local"])
def test_after_unregister_nothing_fires(server, mode, words):
    client = server.client()
    server.run(COUNT.format(mode))
    client.set("x1", 1)
    server.wait_idle()
    assert unregister(server, *words) == "OK"
    client.set("x2", 1)
    assert (server.registrations(), client.get("handled")) == ([], "1")


def test_kept_executions_are_dropped_with_the_registration(server):
    server.run(COUNT.format("async_local"))
    server.client().set("x1", 1)
    server.wait_idle()
    assert [entry["registered"] for entry in executions(server).values()] == [1]
    unregister(server)
    wait_until(lambda: executions(server) == {})


@pytest.mark.parametrize(("words", "handled"), [([], "1"), (["ABORTPENDING"], None)])
def test_queued_executions(start_server, words, handled):
    server = start_server(module_args=["ExecutionThreads", "1"])
    client = server.client()
    busy = start(server, BUSY)
    server.run(COUNT.format("async_local"))
    client.set("x1", 1)
    unregister(server, *words)
    client.set("go", 1)
    client.execute_command("RG.GETRESULTSBLOCKING", busy)
    server.wait_idle()
    server.run("GB('KeysReader').run('k', noScan=True)")  # behind whatever was queued
    assert client.get("handled") == handled


@pytest.mark.parametrize("words", [[], ["ABORTPENDING"]])
def test_running_executions_continue(server, words):
    server.run(BUSY.replace("run('k', noScan=True)", "foreach(lambda r: execute('SET', 'end', r)).register('x')"))
    client = server.client()
    client.set("x", 1)
    wait_until(lambda: [entry["status"] for entry in executions(server).values()] == ["running"])
    unregister(server, *words)
    client.set("go", 1)
    assert wait_until(lambda: client.get("end")) == "went"
    wait_until(lambda: executions(server) == {})


# --- statistics ---


def counters(server):
    found = data(server)
    return tuple(found[key] for key in ("numTriggered", "numSuccess", "numFailures", "numAborted"))


@pytest.mark.parametrize("mode", ["sync", "async", "async_local"])
def test_successes_and_failures(server, mode):
    client = server.client()
    server.run(
        f"""
        def check(record):
            return record['value'] == 'good' or flat_error('bad ' + record['key'])
        GB('KeysReader').map(check).register('x*', mode='{mode}', eventTypes=['set'])
        """
    )
    for key, value, expected, error in [
        ("x1", "good", (1, 1, 0, 0), None),
        ("x2", "bad", (2, 1, 1, 0), "bad x2"),
        ("x3", "bad", (3, 1, 2, 0), "bad x3"),
        ("x4", "good", (4, 2, 2, 0), None),
    ]:
        client.set(key, value)
        server.wait_idle()
        assert (counters(server), data(server)["lastError"]) == (expected, error)


def test_an_aborted_queued_execution_is_counted_as_aborted(start_server):
    server = start_server(module_args=["ExecutionThreads", "1"])
    client = server.client()
    busy = start(server, BUSY)
    server.run(COUNT.format("async_local"))
    client.set("x", 1)
    [queued] = set(executions(server)) - {busy}
    client.execute_command("RG.ABORTEXECUTION", queued)
    client.set("go", 1)
    server.wait_idle()
    assert (counters(server), data(server)["lastError"]) == ((1, 0, 0, 1), None)


def test_an_interrupted_execution_is_a_failure(server):
    server.run("def loop(record):\n    while True: pass\nGB('KeysReader').foreach(loop).register('x')")
    client = server.client()
    client.set("x", 1)
    wait_until(lambda: [entry["status"] for entry in executions(server).values()] == ["running"])
    client.execute_command("RG.ABORTEXECUTION", *executions(server))
    assert counters(server) == (1, 0, 1, 0)
    assert "gears.forcestopped" in data(server)["lastError"]


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_durations(server, mode):
    server.run(f"import time\nGB().foreach(lambda record: time.sleep(0.02)).register('x*', mode='{mode}')")
    for index in range(3):
        server.client().set(f"x{index}", 1)
    server.wait_idle()
    found = data(server)
    assert 20 <= found["lastRunDurationMS"] <= found["totalRunDurationMS"]
    assert found["totalRunDurationMS"] >= 60
    assert float(found["avgRunDurationMS"]) == pytest.approx(found["totalRunDurationMS"] / 3)


@pytest.mark.parametrize(("protocol", "zero"), [(2, b"$1\r\n0\r\n"), (3, b",0\r\n")])
def test_averages_are_doubles(server, protocol, zero):
    server.run("GB('KeysReader').register('x*')")
    raw = server.raw()
    raw.call("HELLO", protocol)
    assert b"$16\r\navgRunDurationMS\r\n" + zero in raw.call("RG.DUMPREGISTRATIONS")


# --- onRegistered ---


@pytest.mark.parametrize("mode", ["sync", "async", "async_local"])
def test_on_registered_is_called_before_the_reply(server, mode):
    server.run(
        f"""
        def ready():
            execute('SET', 'ready', 1)
        GB('KeysReader').register('x*', mode='{mode}', onRegistered=ready)
        """
    )
    assert server.client().get("ready") == "1"


def test_an_exception_in_on_registered_is_logged_and_shown(server):
    server.run("GB('KeysReader').register('x*', onRegistered=lambda: flat_error('not ready'))")
    [entry] = server.registrations()
    wait_until(lambda: re.search(" # .*not ready", server.log()))
    assert re.match("onRegistered failed: .*not ready", entry["RegistrationData"]["lastError"])


def test_on_registered_is_not_called_by_a_failing_script(server):
    raised(server, "GB().register('x*', onRegistered=lambda: execute('SET', 'ready', 1))\nraise ValueError")
    assert server.client().get("ready") is None


@pytest.mark.parametrize("value", ["5", "'text'", "[]"])
def test_on_registered_must_be_a_function(server, value):
    error = "gears.error: OnRegistered argument must be a function"
    assert raised(server, f"GB('KeysReader').register('x*', onRegistered={value})") == error


# --- serialisation and the end of a session ---


BOUND_TO_A_FRAME = """
import sys
def make():
    frame = sys._getframe()
    def guarded(record):
        return str(frame is None)
    return guarded
"""


def test_a_closure_that_cannot_be_serialised_cannot_be_registered(server):
    error = raised(server, f"{BOUND_TO_A_FRAME}\nGB('KeysReader').map(make()).register('x*')")
    assert error.startswith(
        "gears.error: Error occured when serialized a python callback, callback=guarded error="
    )
    assert "frame" in error
    assert server.registrations() == []


def test_a_run_serialises_nothing(server):
    assert server.run(f"{BOUND_TO_A_FRAME}\nGB('KeysReader').map(make()).run('k', noScan=True)") == [["False"], []]


@pytest.mark.parametrize("script", ["GB('KeysReader').register('x*')", "kept = GB('KeysReader')\nkept.register('x*')"])
def test_a_session_ends_with_its_last_registration(server, script):
    server.run(script, "ID", "s")
    assert error_of(server, script, "ID", "s") == "Session s already exists"
    unregister(server)
    assert server.run(script, "ID", "s") == "OK"
