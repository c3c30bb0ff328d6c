"""Functions whose commands make the server free scripts: Valkey 9 takes its lock for that unless it is on its own thread, and Valkey 8.1
frees many at once beside its own thread. Contract: docs/contract/python-api.md 2.1."""

from __future__ import annotations

import threading
from typing import Any, Callable

import pytest
import redis

from helpers import Server, wait_until

pytestmark = pytest.mark.matrix

LUA = "#!lua name=lua_library\nredis.register_function('lua_function', function() return 1 end)"
PYTHON = "#!python name=python_library\nfrom redisgears import register_function\nregister_function('f', lambda keys, arguments: 1)"
FUNCTIONS = """
def run(record):
    return str(execute(*record[1:]))

async def run_later(record):
    return run(record)

def in_atomic(record):
    with atomic():
        execute('SET', 'k', 'before')
        return run(record)

def in_a_thread(record):
    found = createFuture()
    def work():
        try:
            setFutureResults(found, run(record))
        except Exception as error:
            setFutureException(found, str(error))
    Thread(target=work).start()
    return found

for name, function in [('background', run), ('coroutine', run_later), ('atomic', in_atomic)]:
    GB('CommandReader').map(function).register(trigger=name, mode='async_local')
GB('CommandReader').map(run).register(trigger='sync', mode='sync')
"""
PLACES = ["background", "coroutine", "sync", "atomic"]
COMMANDS = {
    "script flush": ["SCRIPT", "FLUSH"],
    "script flush async": ["SCRIPT", "FLUSH", "ASYNC"],
    "load": ["FUNCTION", "LOAD", "REPLACE", LUA],
    "delete": ["FUNCTION", "DELETE", "lua_library"],
    "function flush": ["FUNCTION", "FLUSH", "SYNC"],
}


def takes_python(server: Server) -> bool:
    return server.is_valkey and server.version >= (8, 1)


def locks_for_scripts(server: Server) -> bool:
    return server.is_valkey and server.version >= (9,)


@pytest.fixture
def with_scripts(server: Server) -> Server:
    client = server.client()
    client.eval("return 42", 0)
    client.function_load(LUA)
    if takes_python(server):
        client.eval("#!python\nreturn 43", 0)
        client.function_load(PYTHON)
    assert server.run(FUNCTIONS) == "OK"
    return server


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", PLACES)
def test_scripts_are_freed_by_functions(with_scripts: Server, place: str, command: str) -> None:
    server, words = with_scripts, COMMANDS[command]
    client = server.client(socket_timeout=20)
    if place == "atomic" and locks_for_scripts(server):
        with pytest.raises(redis.ResponseError, match=f"{words[0]} {words[1]} cannot be run by a function that holds the server"):
            client.execute_command("RG.TRIGGER", place, *words)
    else:
        [found] = client.execute_command("RG.TRIGGER", place, *words)
        assert found in ("OK", "lua_library")
    assert server.client(socket_timeout=20).ping()


@pytest.mark.parametrize("language", ["lua", "python"])
@pytest.mark.parametrize("place", PLACES)
def test_more_scripts_than_the_server_keeps(with_scripts: Server, place: str, language: str) -> None:
    """From the 500th on each takes the place of an older one (Valkey)."""
    server = with_scripts
    if language == "python" and not takes_python(server):
        pytest.skip("this server has no Python for EVAL")
    head = "#!python\n" if language == "python" else ""
    client = server.client(socket_timeout=20)
    refused = 0
    for number in range(600):
        try:
            assert client.execute_command("RG.TRIGGER", place, "EVAL", f"{head}return {number}", 0) == [str(number)]
        except redis.ResponseError as error:
            assert "EVAL cannot be run by a function that holds the server" in str(error)
            refused += 1
    if place == "atomic" and locks_for_scripts(server):
        assert refused > 50
        digest = client.script_load("return 'there'")
        assert client.execute_command("RG.TRIGGER", place, "EVALSHA", digest, 0) == ["there"]
    else:
        assert refused == 0


def test_they_wait_while_clients_are_paused(with_scripts: Server) -> None:
    server, waiting = with_scripts, with_scripts.raw(timeout=20)
    server.client().execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    waiting.send("RG.TRIGGER", "background", "EVAL", "return redis.call('SET', 'k', 'v')", 0)
    assert server.client().get("k") is None
    server.client().execute_command("CLIENT", "UNPAUSE")
    assert b"OK" in waiting.read()
    assert server.client().get("k") == "v"


def test_a_long_script_is_waited_for(with_scripts: Server) -> None:
    """The server looks at other things in the middle of a script that takes long; this is none of them."""
    server = with_scripts
    server.client().config_set("lua-time-limit", 50)
    spin = "local t = redis.call('TIME'); local e = t[1] * 1000 + t[2] / 1000 + 600; "
    spin += "repeat t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > e; return 1"
    slow = threading.Thread(target=lambda: server.client(socket_timeout=20).eval(spin, 0))
    waiting = server.raw(timeout=20)
    slow.start()
    waiting.send("RG.TRIGGER", "background", "EVAL", "return 5", 0)
    reply = waiting.read()
    slow.join()
    # Who comes in the middle of the script is told so.
    assert reply.startswith(b"-BUSY") or reply == b"*1\r\n$1\r\n5\r\n", reply


@pytest.mark.own_server
@pytest.mark.parametrize("flush", [["SCRIPT", "FLUSH"], ["SCRIPT", "FLUSH", "ASYNC"], ["FUNCTION", "FLUSH", "ASYNC"]], ids=" ".join)
def test_many_are_freed_while_functions_run(server: Server, flush: list[str]) -> None:
    if not takes_python(server):
        pytest.skip("this server has no Python for EVAL")
    busy = """
    import time
    def work(record):
        while not execute('EXISTS', 'end'):
            execute('PING')
    GB('CommandReader').foreach(work).register(trigger='busy', mode='async_local')
    """
    assert server.run(busy) == "OK"
    threading.Thread(target=lambda: server.client(socket_timeout=60).execute_command("RG.TRIGGER", "busy")).start()
    client = server.client(socket_timeout=20)

    def script(number: int) -> list[Any]:
        if flush[0] == "SCRIPT":
            # One of a module among those of Lua is enough.
            return ["EVAL", f"return {number}" if number else "#!python\nreturn 0", 0]
        return ["FUNCTION", "LOAD", PYTHON.replace("python_library", f"l{number}").replace("'f'", f"'f{number}'")]

    for _ in range(4):
        pipeline = client.pipeline(transaction=False)
        for number in range(300):
            pipeline.execute_command(*script(number))
        pipeline.execute_command(*flush)
        for _ in range(50):
            pipeline.ping()
        pipeline.execute()
    client.set("end", 1)
    server.wait_idle()


def test_flushes_in_any_form(server: Server) -> None:
    """SYNC and ASYNC are what the server is told, in any letter case, and wrong words stay errors."""
    client = server.client()
    if takes_python(server):
        client.eval("#!python\nreturn 1", 0)
    assert client.execute_command("script", "flush", "async") and client.execute_command("Function", "Flush", "Sync")
    with client.pipeline(transaction=True) as pipeline:
        pipeline.execute_command("SCRIPT", "FLUSH", "ASYNC")
        pipeline.execute_command("FUNCTION", "FLUSH")
        assert all(pipeline.execute())
    for words in (["SCRIPT", "FLUSH", "LATER"], ["SCRIPT", "FLUSH", "ASYNC", "x"], ["FUNCTION", "FLUSH", "x"]):
        with pytest.raises(redis.ResponseError):
            client.execute_command(*words)


def test_a_replica_frees_its_functions_at_once(start_server: Callable[..., Server]) -> None:
    """Valkey 8.1 would free many of them on a thread beside its own, as it does in a full synchronisation unless it is told not to."""
    server = start_server()
    if not takes_python(server):
        pytest.skip("no functions in Python on this server")
    master, client = start_server(), server.client()
    frees_beside_itself = server.version < (9,)
    client.config_set("replica-lazy-flush", "yes")
    for number in range(100):
        client.function_load(PYTHON.replace("python_library", f"l{number}").replace("'f'", f"'f{number}'"))
    assert client.config_get("replica-lazy-flush") == {"replica-lazy-flush": "no" if frees_beside_itself else "yes"}
    assert ("replica-lazy-flush is no from now on" in server.log()) == frees_beside_itself
    client.replicaof(master.host, master.port)
    wait_until(lambda: client.info("replication")["master_link_status"] == "up" and not client.function_list(), 20)
    assert not frees_beside_itself or client.info("memory")["lazyfreed_objects"] == 0
