"""SyncTimeout: a `sync` function, or other code, that holds the server too long is stopped, and the server goes on.

Beyond the original, which such a function stops for ever (docs/contract/readers-and-events.md 13.34): our own option,
issue 4.
"""

from __future__ import annotations

import time
from typing import Any, Callable

import pytest

from helpers import Arg, Server, wait_until
from probes import BUSY, error_of, refused, start

LIMIT = 250  # ms, for everything but the default

LOOP = """
import time

def loop(record):
    execute('INCR', 'begun')
    while True:
        pass

"""


@pytest.fixture
def server(borrow_server: Callable[..., Server]) -> Server:
    server = borrow_server()
    # The first registration imports what pickles functions, which takes a while and counts as the script's.
    server.run("GB('CommandReader').map(len).register(trigger='first')")
    client = server.client()
    client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    client.execute_command("RG.CONFIGSET", "SyncTimeout", LIMIT)
    return server


def trigger(server: Server, function: str, name: str = "t", mode: str = "sync") -> None:
    """A trigger that calls `function`, a definition of `loop`."""
    assert server.run(f"{function}\nGB('CommandReader').map(loop).register(trigger={name!r}, mode={mode!r})") == "OK"


def stopped(server: Server, *words: Arg) -> str:
    """The error of a command that runs a function for too long."""
    began = time.monotonic()
    error = error_of(server, *words[1:], command=str(words[0]))
    assert LIMIT / 1000 <= time.monotonic() - began < 10
    assert "SyncTimeout" in error and f"{LIMIT} ms" in error, error
    return error


def data(server: Server) -> list[dict[str, Any]]:
    """RegistrationData, oldest registration first."""
    entries = sorted(server.registrations(), key=lambda entry: int(entry["id"].split("-")[1]))
    return [entry["RegistrationData"] for entry in entries]


def failures(server: Server) -> list[int]:
    return [entry["numFailures"] for entry in data(server)]


def works(server: Server) -> None:
    """Nothing is left of a stopped function: others run to their end."""
    assert server.client().ping()
    run = "GB('KeysReader').map(lambda r: sum(range(100000))).run('k', noScan=True)"
    assert server.run(run) == [["4999950000"], []]
    trigger(server, "def loop(record):\n    return sum(range(10000))", "works")
    client = server.client()
    for _ in range(20):
        assert client.execute_command("RG.TRIGGER", "works") == ["49995000"]


# --- the option ---


@pytest.mark.matrix
def test_the_default(borrow_server: Callable[..., Server]) -> None:
    server = borrow_server()
    client = server.client()
    assert client.execute_command("RG.CONFIGGET", "SyncTimeout") == [5000]
    assert client.config_get("rg.sync-timeout") == {"rg.sync-timeout": "5000"}


@pytest.mark.matrix
@pytest.mark.parametrize("command", [["RG.CONFIGSET", "SyncTimeout"], ["CONFIG", "SET", "rg.sync-timeout"]])
def test_a_change_takes_effect(borrow_server: Callable[..., Server], command: list[str]) -> None:
    server = borrow_server()
    trigger(server, LOOP)
    server.client().execute_command(*command, LIMIT)
    assert server.client().execute_command("RG.CONFIGGET", "SyncTimeout") == [LIMIT]
    stopped(server, "RG.TRIGGER", "t")
    for value in ("-1", "x"):
        assert server.raw().call(*command, value)[:2] != b"+O"
    assert server.client().execute_command("RG.CONFIGGET", "SyncTimeout") == [LIMIT]


@pytest.mark.parametrize("limit", ["-1", "x", "1.5"])
def test_refused_values(server: Server, limit: str) -> None:
    assert refused(server.client(), "CONFIG", "SET", "rg.sync-timeout", limit)
    [reply] = server.client().execute_command("RG.CONFIGSET", "SyncTimeout", limit)
    assert "Failed setting config value SyncTimeout" in str(reply)


@pytest.mark.matrix
def test_zero_is_no_limit(server: Server) -> None:
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 0)
    trigger(server, f"import time\ndef loop(record):\n    end = time.time() + {5 * LIMIT / 1000}\n"
                    "    while time.time() < end: pass\n    return 'ended'")
    assert server.client().execute_command("RG.TRIGGER", "t") == ["ended"]
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", LIMIT)
    stopped(server, "RG.TRIGGER", "t")


# --- who is stopped ---


@pytest.mark.matrix
def test_a_trigger(server: Server) -> None:
    trigger(server, LOOP)
    assert stopped(server, "RG.TRIGGER", "t").startswith("ERR ")
    assert server.client().get("begun") == "1"
    [found] = data(server)
    assert (found["numTriggered"], found["numSuccess"], found["numFailures"]) == (1, 0, 1)
    assert "SyncTimeout" in found["lastError"]
    assert found["lastRunDurationMS"] >= LIMIT
    works(server)


@pytest.mark.matrix
def test_a_hook(server: Server) -> None:
    server.run(f"{LOOP}\nGB('CommandReader').map(loop).register(hook='get', keyprefix='x', mode='sync')")
    stopped(server, "GET", "x")
    assert failures(server) == [1]
    assert server.raw().call("GET", "k") == b"$-1\r\n"
    works(server)


@pytest.mark.matrix
@pytest.mark.parametrize("commands", ["None", "['set']"])
def test_a_function_of_key_events(server: Server, commands: str) -> None:
    """The client has its reply, the registration the error."""
    server.run(f"{LOOP}\nGB().foreach(loop).register('x', mode='sync', commands={commands})")
    raw = server.raw()
    assert raw.call("SET", "x", "v") == b"+OK\r\n"
    [found] = data(server)
    assert found["numFailures"] == 1 and "SyncTimeout" in found["lastError"]
    assert raw.call("GET", "x") == b"$1\r\nv\r\n"
    works(server)


@pytest.mark.matrix
def test_a_function_of_a_stream(server: Server) -> None:
    server.run(f"{LOOP}\nGB('StreamReader').foreach(loop).register('s', mode='sync')")
    raw = server.raw()
    assert raw.call("XADD", "s", "1-1", "f", "v") == b"$3\r\n1-1\r\n"
    wait_until(lambda: failures(server) == [1])
    assert "SyncTimeout" in data(server)[0]["lastError"]
    works(server)
    assert raw.call("XADD", "s", "1-2", "f", "v") == b"$3\r\n1-2\r\n"
    wait_until(lambda: failures(server)[0] == 2)
    assert server.client().get("begun") == "2"


@pytest.mark.parametrize(
    "steps",
    [
        ".filter(loop)",
        ".foreach(loop)",
        ".flatmap(loop)",
        ".accumulate(lambda a, r: loop(r))",
        ".flatmap(lambda r: r).groupby(lambda r: r, lambda k, a, r: loop(r))",
        ".map(lambda r: [loop(r) for _ in range(2)])",
        ".foreach(lambda r: time.sleep(0.6))",
    ],
)
def test_any_step(server: Server, steps: str) -> None:
    server.run(f"{LOOP}\nGB('CommandReader'){steps}.register(trigger='t', mode='sync')")
    stopped(server, "RG.TRIGGER", "t")
    works(server)


@pytest.mark.parametrize("body", ["execute('PING')", "execute('GET', 'missing')", "hashtag() and execute('PING')"])
def test_a_function_that_calls_the_server_again_and_again(server: Server, body: str) -> None:
    trigger(server, f"def loop(record):\n    while True:\n        {body}")
    stopped(server, "RG.TRIGGER", "t")
    works(server)


def test_a_function_in_an_atomic_block(server: Server) -> None:
    trigger(server, "def loop(record):\n    with atomic():\n        while True: pass")
    stopped(server, "RG.TRIGGER", "t")
    works(server)


def test_what_it_did_before_stays(server: Server) -> None:
    trigger(server, "def loop(record):\n    execute('SET', 'k', 'v')\n    while True: pass")
    stopped(server, "RG.TRIGGER", "t")
    assert server.client().get("k") == "v"


# --- contexts ---


@pytest.mark.matrix
def test_in_a_transaction(server: Server) -> None:
    trigger(server, LOOP)
    server.run(f"{LOOP}\nGB('CommandReader').map(loop).register(hook='get', mode='sync')")
    raw = server.raw()
    raw.call("MULTI")
    for words in (["RG.TRIGGER", "t"], ["GET", "k"], ["INCR", "n"]):
        raw.call(*words)
    raw.send("EXEC")
    assert raw.read().count(b"SyncTimeout") == 2
    assert (server.raw().call("GETRANGE", "n", 0, 0), failures(server)) == (b"$1\r\n1\r\n", [1, 1])
    works(server)


@pytest.mark.matrix
def test_in_lua(server: Server) -> None:
    trigger(server, LOOP)
    raw = server.raw()
    script = "return {redis.pcall('RG.TRIGGER', 't').err, redis.call('PING')}"
    reply = raw.call("EVAL", script, 0)
    assert b"SyncTimeout" in reply and reply.endswith(b"+PONG\r\n")
    works(server)


@pytest.mark.parametrize("place", ["run", "async_local"])
def test_called_by_a_background_function(server: Server, place: str) -> None:
    trigger(server, LOOP)
    if place == "run":
        [[], [error]] = server.run("GB('KeysReader').map(lambda r: execute('RG.TRIGGER', 't')).run('k', noScan=True)")
    else:
        trigger(server, "def loop(record):\n    return execute('RG.TRIGGER', 't')", "caller", "async_local")
        error = error_of(server, "caller", command="RG.TRIGGER")
    assert "SyncTimeout" in error
    works(server)


def test_an_older_hook_below_a_background_one(server: Server) -> None:
    server.run(f"{LOOP}\nGB('CommandReader').map(loop).register(hook='get', mode='sync')")
    server.run("GB('CommandReader').map(lambda r: call_next(*r[1:])).register(hook='get', mode='async_local')")
    stopped(server, "GET", "k")
    assert failures(server) == [1, 1]
    works(server)


# --- nested calls ---


@pytest.mark.matrix
def test_a_nested_call_belongs_to_the_outer_one(server: Server) -> None:
    trigger(server, LOOP)
    trigger(server, "def loop(record):\n    return execute('RG.TRIGGER', 't')", "outer")
    stopped(server, "RG.TRIGGER", "outer")
    assert failures(server) == [1, 1]
    works(server)


def test_an_outer_function_that_goes_on_is_stopped_too(server: Server) -> None:
    trigger(server, LOOP)
    trigger(
        server,
        "def loop(record):\n    try:\n        execute('RG.TRIGGER', 't')\n    except Exception:\n        pass\n"
        "    while True: pass",
        "outer",
    )
    stopped(server, "RG.TRIGGER", "outer")
    assert failures(server)[1] == 1
    works(server)


def test_many_short_nested_calls_together_take_too_long(server: Server) -> None:
    trigger(server, "def loop(record):\n    return sum(range(1000))")
    trigger(server, "def loop(record):\n    while True:\n        execute('RG.TRIGGER', 't')", "outer")
    stopped(server, "RG.TRIGGER", "outer")
    assert failures(server)[1] == 1
    works(server)


def test_events_inside_of_a_function(server: Server) -> None:
    server.run(f"{LOOP}\nGB().foreach(loop).register('x', mode='sync')")
    trigger(server, "def loop(record):\n    return execute('SET', 'x', 'v')", "outer")
    stopped(server, "RG.TRIGGER", "outer")
    assert failures(server)[0] == 1
    works(server)


# --- functions that resist ---


# A function of its own: an exception in an empty loop at the very beginning of a `try` is one outside for Python 3.11.
SPIN = "def spin():\n    while True: pass\n"
STUBBORN = """
caught = []

def loop(record):
    for _ in range({times}):
        try:
            spin()
        except BaseException as error:
            caught.append(type(error).__name__)
    while True: pass

GB('CommandReader').flatmap(lambda r: caught).register(trigger='caught', mode='sync')
"""


@pytest.mark.matrix
@pytest.mark.parametrize("times", [1, 3])
def test_a_function_that_catches_the_exception_and_goes_on(server: Server, times: int) -> None:
    trigger(server, SPIN + STUBBORN.format(times=times))
    stopped(server, "RG.TRIGGER", "t")
    caught = server.client().execute_command("RG.TRIGGER", "caught")
    assert 1 <= len(caught) <= times
    works(server)


def test_a_function_that_catches_the_exception_and_ends(server: Server) -> None:
    catch = "def loop(record):\n    try:\n        spin()\n    except Exception:\n        return 'fine'"
    trigger(server, f"{SPIN}\n{catch}")
    stopped(server, "RG.TRIGGER", "t")
    assert failures(server) == [1]
    works(server)


def test_a_long_clean_up(server: Server) -> None:
    trigger(server, f"{SPIN}\ndef loop(record):\n    try:\n        spin()\n    finally:\n        spin()")
    stopped(server, "RG.TRIGGER", "t")
    works(server)


def test_again_and_again(server: Server) -> None:
    trigger(server, LOOP)
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 10)
    raw = server.raw()
    for number in range(1, 21):
        assert b"SyncTimeout" in raw.call("RG.TRIGGER", "t")
        assert raw.call("GET", "begun") == b"$%d\r\n%d\r\n" % (len(str(number)), number)
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", LIMIT)
    works(server)


def test_quick_functions_are_never_hit(server: Server) -> None:
    """Each one is far below the limit; all together are not."""
    trigger(server, "def loop(record):\n    return sum(range(100))")
    raw = server.raw()
    end = time.monotonic() + 5 * LIMIT / 1000
    while time.monotonic() < end:
        for _ in range(50):
            raw.send("RG.TRIGGER", "t")
        assert {raw.read() for _ in range(50)} == {b"*1\r\n$4\r\n4950\r\n"}
    assert failures(server) == [0]


# --- background functions ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async", "async_local"])
def test_background_functions_have_no_limit(server: Server, mode: str) -> None:
    wait = "    while not execute('EXISTS', 'go'): time.sleep(0.001)\n    return 'ended'"
    trigger(server, f"import time\ndef loop(record):\n{wait}", "waits", mode)
    trigger(server, LOOP)
    raw = server.raw()
    raw.send("RG.TRIGGER", "waits")
    busy = start(server, BUSY)
    for _ in range(2):
        stopped(server, "RG.TRIGGER", "t")
    client = server.client()
    client.set("go", "1")
    assert raw.read() == b"*1\r\n$5\r\nended\r\n"
    assert client.execute_command("RG.GETRESULTSBLOCKING", busy) == [["went"], []]
    assert sorted(failures(server)) == [0, 2]


# --- other code that holds the server ---


def logged(server: Server, what: str) -> None:
    line = f"{what} has held the server for longer than SyncTimeout ({LIMIT} ms) and is stopped"
    wait_until(lambda: line in server.log(), message=line)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "while True: execute('PING')",
        "while True:\n    try:\n        while True: pass\n    except Exception: pass",
        "with atomic():\n    while True: pass",
        "def endless():\n    while True: yield 1\nsum(endless())",
    ],
)
def test_a_script(server: Server, body: str) -> None:
    script = f"execute('SET', 'begun', 1)\nGB().register('x')\n{body}"
    assert stopped(server, "RG.PYEXECUTE", script, "ID", "endless").startswith("ERR ")
    logged(server, "the script of session endless")
    assert (server.client().get("begun"), server.registrations()) == ("1", [])
    works(server)


def test_a_script_that_ends_late_has_not_taken_effect(server: Server) -> None:
    stopped(server, "RG.PYEXECUTE", "GB().register('x')\nimport time\ntime.sleep(0.6)")
    assert server.registrations() == []
    works(server)


def test_a_function_that_a_script_calls(server: Server) -> None:
    trigger(server, LOOP)
    stopped(server, "RG.PYEXECUTE", "execute('RG.TRIGGER', 't')")
    works(server)


@pytest.mark.matrix
@pytest.mark.parametrize("place", ["script", "function"])
def test_on_registered(server: Server, place: str) -> None:
    register = "def prepare():\n    while True: pass\nGB().register('x', onRegistered=prepare)"
    if place == "script":
        server.run(register, "ID", "s")
    else:
        body = register.replace("\n", "\n    ")
        server.run(f"def step(r):\n    {body}\nGB('KeysReader').foreach(step).run('k', noScan=True)", "ID", "s")
    logged(server, "onRegistered of session s")
    wait_until(lambda: "onRegistered" in server.log() and f"SyncTimeout ({LIMIT} ms) and was stopped" in server.log())
    assert len(server.registrations()) == 1
    works(server)


@pytest.mark.matrix
def test_a_time_event(server: Server) -> None:
    script = "def tick():\n    execute('INCR', 'ticks')\n    while True: pass\nregisterTE(1, tick)\nGB().register('x')"
    server.run(script, "ID", "s")
    wait_until(lambda: server.own.get("ticks") == "1")
    logged(server, "a time event of session s")
    works(server)


BLOCK = "with atomic():\n        execute('SET', 'begun', 1)\n        while True: pass"


@pytest.mark.matrix
def test_an_atomic_block_of_a_worker(server: Server) -> None:
    run = f"def step(r):\n    {BLOCK}\nGB('KeysReader').foreach(step).run('k', noScan=True)"
    results, errors = server.run(run, "ID", "s")
    assert (results, errors[0]) == ([], f"ERR the function ran longer than SyncTimeout ({LIMIT} ms) and was stopped")
    logged(server, "a function of session s")
    works(server)


def test_an_atomic_block_of_a_background_trigger(server: Server) -> None:
    trigger(server, f"def loop(record):\n    {BLOCK}", mode="async_local")
    stopped(server, "RG.TRIGGER", "t")
    assert failures(server) == [1]
    works(server)


def test_the_time_outside_of_blocks_does_not_count(server: Server) -> None:
    step = """
import time
def step(r):
    for number in range(10):
        with atomic():
            time.sleep(0.04)
        end = time.monotonic() + 0.04
        while time.monotonic() < end: pass
    return 'ended'
GB('KeysReader').map(step).run('k', noScan=True)
"""
    assert server.run(step) == [["ended"], []]


@pytest.mark.parametrize("catches", [False, True])
def test_an_atomic_block_of_a_coroutine(server: Server, catches: bool) -> None:
    body = BLOCK if not catches else BLOCK.replace("while True: pass", "\n".join(
        ["for _ in range(3):", "            try:", "                spin()", "            except Exception: pass"]))
    server.run(f"{SPIN}async def step(r):\n    {body}\nGB('CommandReader').map(step).register(trigger='t')", "ID", "s")
    stopped(server, "RG.TRIGGER", "t")
    logged(server, "an atomic block of session s")
    quick = "async def quick(r):\n    return 'quick'\nGB('CommandReader').map(quick).register(trigger='quick')"
    server.run(quick)
    assert server.client().execute_command("RG.TRIGGER", "quick") == ["quick"]
    works(server)


def test_an_atomic_block_of_a_thread(server: Server) -> None:
    server.run(
        """
        from threading import Thread
        def work():
            try:
                with atomic():
                    while True: pass
            except redisgears.GearsError as error:
                execute('SET', 'error', str(error))
        Thread(target=work).start()
        """
    )
    error = wait_until(lambda: server.own.get("error"))
    assert error == f"ERR the function ran longer than SyncTimeout ({LIMIT} ms) and was stopped"
    logged(server, "an atomic block")
    works(server)


def test_a_function_that_is_loaded(server: Server) -> None:
    """What an image says is run when files and replicas load it: without the server, which waits no longer than this."""
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 5000)
    server.run(
        """
        import os
        class Slow:
            def __reduce__(self):
                return (exec, ("import os\\nwhile os.path.exists('loop'): pass",))
        slow = Slow()
        GB('CommandReader').map(lambda r, slow=slow: 'loaded').register(trigger='t', mode='sync')
        """
    )
    (server.dir / "loop").touch()
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", LIMIT)
    began = time.monotonic()
    assert server.client().execute_command("DEBUG", "RELOAD")
    assert time.monotonic() - began < 5
    [entry] = server.registrations()
    assert entry["RegistrationData"]["lastError"] == "its functions are being loaded"
    (server.dir / "loop").unlink()
    wait_until(lambda: server.registrations()[0]["RegistrationData"]["lastError"] is None)
    assert server.client().execute_command("RG.TRIGGER", "t") == ["loaded"]
    works(server)
