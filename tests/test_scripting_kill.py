"""Python in EVAL and FCALL that does not end: KILL, SyncTimeout, the limit of FUNCTION LOAD. Contract:
docs/contract/scripting-engine.md."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable

import pytest
import redis

from helpers import Server, wait_until
from scripting import error_of, evaluate, knows_scripts, library, load, needs_engine

pytestmark = pytest.mark.matrix

ENDLESS = """
@register_function
def spin(keys, args):
    while True:
        pass

@register_function
def write_and_spin(keys, args):
    execute('SET', keys[0], 1)
    import time
    end = time.monotonic() + float(args[0])
    while time.monotonic() < end:
        pass
    return 'done'

@register_function
def obstinate(keys, args):
    caught = 0
    while True:
        try:
            while True:
                pass
        except BaseException:
            caught += 1
            if caught == 3:
                raise

@register_function
def run(keys, args):
    while True:
        execute('PING')
"""


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest) -> None:
    needs_engine(request.config)


@pytest.fixture
def busy(server: Server) -> Server:
    client = server.client()
    load(client, ENDLESS)
    client.config_set("busy-reply-threshold", 50)
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 30_000)
    return server


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[str]]:
    """A call on a thread of its own, and the text of its error in the end."""
    errors: list[str] = []
    thread = threading.Thread(target=lambda: errors.append(error_of(call)))
    thread.start()
    return thread, errors


def is_busy(client: redis.Redis) -> bool:
    try:
        client.get("x")
    except redis.ResponseError as error:
        return "BUSY" in str(error) or "busy" in str(error)
    return False


@pytest.mark.parametrize("function", ["spin", "obstinate", "run"])
def test_function_kill(busy: Server, function: str) -> None:
    client = busy.client()
    thread, errors = in_background(lambda: busy.client().fcall(function, 0))
    wait_until(lambda: is_busy(client), 10)
    running = client.function_stats()
    assert function in str(running) and "FCALL" in str(running)
    assert "FUNCTION KILL" in error_of(client.get, "x")
    with pytest.raises(redis.ResponseError):
        client.script_kill()
    assert client.function_kill()
    thread.join(10)
    assert errors == ["Script killed by user with FUNCTION KILL."]
    assert client.get("x") is None and client.ping()


def test_script_kill(busy: Server) -> None:
    client = busy.client()
    thread, errors = in_background(lambda: evaluate(busy.client(), "while True: pass"))
    wait_until(lambda: is_busy(client), 10)
    with pytest.raises(redis.ResponseError):
        client.function_kill()
    assert client.script_kill()
    thread.join(10)
    assert errors == ["Script killed by user with SCRIPT KILL."]
    assert client.ping()


def test_what_has_written_is_not_killed(busy: Server) -> None:
    """As in Lua. A server that does not know of the write accepts the KILL, and nothing comes of it."""
    client = busy.client()
    replies: list[Any] = []
    thread = threading.Thread(target=lambda: replies.append(busy.client().fcall("write_and_spin", 1, "x", 1.0)))
    thread.start()
    wait_until(lambda: is_busy(client), 10)
    try:
        client.function_kill()
    except redis.ResponseError as error:
        assert "UNKILLABLE" in str(error)
    thread.join(20)
    assert replies == ["done"] and client.get("x") == "1"


def test_a_client_that_vanishes(busy: Server) -> None:
    raw = busy.raw()
    raw.send("FCALL", "spin", "0")
    client = busy.client()
    wait_until(lambda: is_busy(client), 10)
    raw.close()
    assert client.function_kill()
    wait_until(lambda: not is_busy(client), 10)
    assert client.ping()


def test_other_clients_are_told_and_served(busy: Server) -> None:
    """While a script spins, the server's loop turns in the middle of it: nothing of ours may come in between."""
    client = busy.client()
    busy.run("GB('KeysReader').foreach(lambda r: override_reply('loaded')).register(prefix='k*', commands=['get'], eventTypes=['keymiss'], mode='async_local')")
    busy.run("@read_through('r*')\ndef load(key):\n    return 'loaded'")
    thread, errors = in_background(lambda: busy.client().fcall("spin", 0))
    wait_until(lambda: is_busy(client), 10)
    for _ in range(20):
        for key in ("k1", "r1", "x"):
            assert is_busy(client), key
    assert client.function_kill()
    thread.join(10)
    assert client.get("k1") == "loaded" and client.get("r1") == "loaded"


def test_sync_timeout(busy: Server) -> None:
    client = busy.client()
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 300)
    started = time.monotonic()
    text = "the function ran longer than SyncTimeout (300 ms) and was stopped"
    assert error_of(client.fcall, "spin", 0) == text
    assert error_of(evaluate, client, "while True: pass") == text
    assert time.monotonic() - started < 10
    assert "the function spin of FCALL has held the server for longer than SyncTimeout (300 ms) and is stopped" in busy.log()
    assert client.ping()


def test_each_stop_ends_the_script_while_others_ask(busy: Server) -> None:
    """What the server does in the middle of a script may let out a stop that was meant to come out behind it; nobody waits for that then."""
    client = busy.client()
    client.config_set("busy-reply-threshold", 20)
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 102)
    over = threading.Event()

    def ask() -> None:
        raw = busy.raw(timeout=60)
        while not over.is_set():
            for _ in range(100):
                raw.send("PING")
            for _ in range(100):
                raw.read()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        raw = busy.raw(timeout=20)
        for _ in range(100):
            assert raw.call("EVAL", "#!python\nwhile True: pass", "0").startswith(b"-ERR the function ran longer than SyncTimeout (102 ms)")
    finally:
        over.set()
        for thread in threads:
            thread.join(20)


ENDLESS_OBJECTS = {
    "the text of an error": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E()",
    "an argument": "class A:\n    def __str__(self):\n        while True: pass\nexecute('SET', 'k', A())",
    "an object that dies": "class D:\n    def __del__(self):\n        while True: pass\nx = D()\ndel x\nreturn 1",
    "an object that is left": "class D:\n    def __del__(self):\n        while True: pass\nx = D()\nreturn 1",
}


@pytest.mark.parametrize("where", ENDLESS_OBJECTS)
def test_objects_that_never_end(busy: Server, where: str) -> None:
    client = busy.client()
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 300)
    assert "longer than SyncTimeout (300 ms)" in error_of(evaluate, client, ENDLESS_OBJECTS[where])
    assert client.ping()


def test_function_load_has_a_limit(busy: Server) -> None:
    client = busy.client()
    assert error_of(client.function_load, library("while True: pass", "endless")) == "FUNCTION LOAD timeout: the code ran longer than 500 ms"
    assert [listed[1] for listed in client.function_list()] == ["lib"]


def test_an_import_at_load_is_not_broken_off(busy: Server, tmp_path: Any) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass\ndone = True\n")
    client = busy.client()
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport slow_to_import\nregister_function('f', lambda keys, args: slow_to_import.done)"
    said = error_of(client.function_load, library(code, "slow"))
    assert "timeout" in said, "the limit holds for the library"
    assert evaluate(client, "import slow_to_import\nreturn slow_to_import.done") == 1, "and the module is whole"


def test_shutdown_in_the_middle(busy: Server) -> None:
    client = busy.client()
    raw = busy.raw()
    raw.send("FCALL", "spin", "0")
    wait_until(lambda: is_busy(client), 10)
    busy.expect_death()
    with pytest.raises(redis.ConnectionError):
        client.execute_command("SHUTDOWN", "NOSAVE")
    assert busy.wait_exit() == 0


def test_fast_scripts_are_never_asked(server: Server) -> None:
    client = server.client()
    client.config_set("busy-reply-threshold", 1)
    load(client, "register_function('f', lambda keys, args: sum(range(1000)))")
    with client.pipeline(transaction=False) as pipe:
        for _ in range(2000):
            pipe.execute_command("FCALL", "f", 0)
        assert set(pipe.execute()) == {499500}


@pytest.mark.parametrize("words", [["WAIT", "0", "0"], ["WAIT", "1", "0"], ["WAITAOF", "1", "0", "0"]])
def test_a_script_waits_for_no_replica(request: pytest.FixtureRequest, server: Server, words: list[str]) -> None:
    """Valkey 8.1 would end."""
    client = server.client()
    client.config_set("appendonly", "yes")
    body = f"return execute(*{words!r})"
    if knows_scripts(request.config):
        assert evaluate(client, body) in (0, [0, 0], [1, 0])
    else:
        assert f"{words[0]} cannot be run while a script runs" in error_of(evaluate, client, body)
    assert client.ping()
