"""`refresh` in functions that are to stop while they wait, and loaders that ask for keys themselves. RG.REFRESH is in
test_read_through_operations.py. Contract: docs/contract/read-through.md chapter 3.
"""

from __future__ import annotations

import time
from typing import Any, Callable

import pytest
import redis

from figures import figures
from helpers import Server, wait_until
from read_through import Source, at_rest, register

pytestmark = pytest.mark.matrix

# A function that waits in `refresh`, in three ways; what it ended with is in the reply of the trigger `ended`.
WAITS = """
import asyncio
ended = []

def note(error):
    ended.append(type(error).__name__)

def plain(words):
    try:
        return refresh(words[1])
    except BaseException as error:
        note(error)
        raise

async def coroutine(words):
    try:
        return await refresh(words[1])
    except BaseException as error:
        note(error)
        raise

def in_thread(key):
    try:
        refresh(key)
    except BaseException as error:
        note(error)

async def thread(words):
    return await asyncio.to_thread(in_thread, words[1])

GB('CommandReader').map({way}).register(trigger='waits', mode='async_local', {more})
GB('CommandReader').map(lambda words: str(ended)).register(trigger='ended', mode='sync')
"""
WAYS = ["plain", "coroutine", "thread"]


def wait_in_refresh(server: Server, source: Server, way: str, more: str = "") -> tuple[Source, Any]:
    """A function waits for the load of `user:1`, whose loader waits for the test."""
    origin = register(server, source, "max_load_time=600")
    server.run(WAITS.format(way=way, more=more))
    raw = server.raw()
    raw.send("RG.TRIGGER", "waits", "user:1")
    origin.wait_for_loads(1)
    wait_until(lambda: loader(server)["waiting"] == 1)
    return origin, raw


def loader(server: Server) -> dict[str, Any]:
    [entry] = [entry for entry in server.registrations() if entry["reader"] == "ReadThrough"]
    return entry["RegistrationData"]


def ended(server: Server) -> str:
    [text] = server.client().execute_command("RG.TRIGGER", "ended")
    return text


def waiting_execution(server: Server) -> str:
    """The execution of the function that waits, which began behind no other one and is not the load."""
    running = [entry[1] for entry in server.client().execute_command("RG.DUMPEXECUTIONS") if entry[3] == "running"]
    assert len(running) == 2, running
    return running[0]


@pytest.mark.parametrize("way", ["plain", "thread"])  # a coroutine goes on, and what it returns is dropped
def test_an_aborted_function_does_not_wait_on(server: Server, source: Server, way: str) -> None:
    origin, raw = wait_in_refresh(server, source, way)
    assert server.client().execute_command("RG.ABORTEXECUTION", waiting_execution(server)) == "OK"
    wait_until(lambda: ended(server) != "[]", message="the function has ended, although its load has not")
    assert ended(server) == "['forcestopped']"
    assert raw.read()
    wait_until(lambda: loader(server)["waiting"] == 0, message="nobody waits any more")
    assert loader(server)["loading"] == 1, "the load goes on, and fills the cache"
    origin.give("user:1", "new")
    at_rest(server)
    assert server.client().get("user:1") == "new"


def test_a_coroutine_that_waits_no_longer(server: Server, source: Server) -> None:
    origin = register(server, source, "max_load_time=600")
    server.run("""
        import asyncio
        async def work(words):
            try:
                return await asyncio.wait_for(refresh(words[1]), 0.2)
            except asyncio.TimeoutError:
                return 'too late'
        GB('CommandReader').map(work).register(trigger='work', mode='async_local')
    """)
    raw = server.raw()
    raw.send("RG.TRIGGER", "work", "user:1")
    origin.wait_for_loads(1)
    assert raw.read() == b"*1\r\n$8\r\ntoo late\r\n"
    wait_until(lambda: loader(server)["waiting"] == 0, message="nobody waits any more")
    origin.give("user:1", "new")
    at_rest(server)
    assert server.client().get("user:1") == "new"


def test_a_function_whose_time_is_over_may_clean_up(server: Server, source: Server) -> None:
    """What was raised is raised once: behind that the function may wait again, for another key."""
    origin = register(server, source, "max_load_time=600")
    server.run("""
        read_through('quick:*', lambda key: 'quick')
        def work(words):
            try:
                refresh(words[1])
            except Exception as error:
                return [type(error).__name__, refresh('quick:1')]
        GB('CommandReader').map(work).register(trigger='work', mode='async_local', timeout=200)
    """)
    raw = server.raw()
    begun = time.monotonic()
    raw.send("RG.TRIGGER", "work", "user:1")
    reply = raw.read()
    assert b"forcestopped" in reply.lower() and b", 1]" in reply, reply
    assert 0.15 < time.monotonic() - begun < 10
    assert server.client().get("quick:1") == "quick"
    origin.give("user:1", "x")
    at_rest(server)


def test_a_function_whose_time_is_over(server: Server, source: Server) -> None:
    origin, raw = wait_in_refresh(server, source, "plain", "timeout=200")
    assert b"ran longer than its timeout (200 ms)" in raw.read()
    assert ended(server) == "['forcestopped']"
    origin.give("user:1", "x")
    at_rest(server)


@pytest.mark.parametrize("way", WAYS)
def test_a_loader_that_is_unregistered_keeps_nobody_waiting(server: Server, source: Server, way: str) -> None:
    _, raw = wait_in_refresh(server, source, way)
    [identifier] = [entry["id"] for entry in server.registrations() if entry["reader"] == "ReadThrough"]
    assert server.client().execute_command("RG.UNREGISTER", identifier, "ABORTPENDING") == "OK"
    assert raw.read() in (b"*1\r\n$1\r\n0\r\n", b"*1\r\n$4\r\nNone\r\n"), "nothing was loaded"


def test_reloaded_data_are_loaded_anew(server: Server, source: Server) -> None:
    origin, raw = wait_in_refresh(server, source, "plain")
    assert server.client().execute_command("DEBUG", "RELOAD") == "OK"
    origin.wait_for_loads(2)
    origin.give("user:1", "new")
    origin.give("user:1", "new")
    assert raw.read()
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_server_ends_while_functions_wait(start_server: Callable[..., Server], source: Server, way: str) -> None:
    server = start_server()
    wait_in_refresh(server, source, way)
    server.stop(timeout=10)
    assert "BUG REPORT" not in server.log()


# --- loaders that ask for keys themselves ---

IMMEDIATELY_S = 5  # max_load_time is 30


def load(server: Server, key: str) -> str:
    """The error of a load that fails at once."""
    begun = time.monotonic()
    with pytest.raises(redis.ResponseError, match="LOADFAILED error"):
        server.client().get(key)
    assert time.monotonic() - begun < IMMEDIATELY_S
    at_rest(server)
    errors = [str(entry["RegistrationData"]["lastError"]) for entry in server.registrations()]
    return " ".join(errors)


@pytest.mark.parametrize("coroutine", [False, True], ids=["function", "coroutine"])
def test_a_loader_that_refreshes_its_own_key(server: Server, coroutine: bool) -> None:
    define, call = ("async def", "await refresh") if coroutine else ("def", "refresh")
    server.run(f"""
        {define} load(key):
            return str({call}(key))
        read_through('k:*', load)
    """)
    assert "expected keys whose loads do not wait for this loader, got 'k:1'" in load(server, "k:1")


def test_a_loader_may_look_at_its_own_key(server: Server) -> None:
    """`execute` in a loader does not wait: it gets the plain reply."""
    server.run("""
        def load(key):
            return 'found ' + str(execute('GET', key)) + str(execute('MGET', 'k:2', key))
        read_through('k:*', load)
    """)
    begun = time.monotonic()
    assert server.client().get("k:1") == "found None[None, None]"
    assert time.monotonic() - begun < IMMEDIATELY_S


def test_a_circle_of_loaders(server: Server) -> None:
    server.run("""
        def load(key):
            refresh({'a:1': 'b:1', 'b:1': 'c:1', 'c:1': 'a:1'}[key])
            return 'never'
        for prefix in 'abc':
            read_through(prefix + ':*', load)
    """)
    client = server.client()
    begun = time.monotonic()
    # The circle closes in the loader of c:1, which fails; the others go on without it.
    assert client.get("a:1") == "never"
    assert time.monotonic() - begun < IMMEDIATELY_S
    at_rest(server)
    assert client.mget("a:1", "b:1") == ["never", "never"]
    assert [figures(server, place)["loadFailures"] for place in range(3)] == [0, 0, 1]
    assert "got 'a:1'" in str(figures(server, 2)["lastError"])


def test_a_circle_of_loads_that_began_for_different_clients(server: Server, source: Server) -> None:
    """Each of the two loads was under way already when its key was asked for by the other's loader."""
    origin = register(server, source, "backoff=0", loader="""
        def load(key):
            fetch(key)
            return str(refresh({'user:1': 'user:2', 'user:2': 'user:1'}[key]))
    """)
    raws = [server.raw(), server.raw()]
    for number, raw in enumerate(raws, 1):
        raw.send("GET", f"user:{number}")
    origin.wait_for_loads(2)
    begun = time.monotonic()
    for _ in range(6):  # a load whose key is refreshed meanwhile is made again
        for key in ("user:1", "user:2"):
            origin.give(key, "go on")
    replies = [raw.read() for raw in raws]
    assert time.monotonic() - begun < IMMEDIATELY_S
    assert any(b"LOADFAILED error" in reply for reply in replies), replies
    at_rest(server)
    assert "whose loads do not wait for this loader" in server.log()


def test_a_loader_that_needs_the_load_which_it_occupies(server: Server) -> None:
    server.run("""
        def load(key):
            return 'value' if key == 'k:2' else str(refresh('k:2'))
        read_through('k:*', load, max_loads=1)
    """)
    assert "got 'k:2'" in load(server, "k:1")
    assert server.client().get("k:2") == "value"


def test_a_loader_of_a_batch(server: Server) -> None:
    server.run("""
        def load(keys):
            return {key: str(refresh('k:2')) for key in keys}
        read_through('k:*', load, batch=10, batch_wait=0)
    """)
    with pytest.raises(redis.ResponseError, match="LOADFAILED error"):
        server.client().mget("k:1", "k:2")
    assert "got 'k:2'" in str(figures(server)["lastError"])


def test_a_loader_may_refresh_what_does_not_wait_for_it(server: Server) -> None:
    server.run("""
        def load(key):
            number = int(key.partition(':')[2])
            return str(number + refresh(f'k:{number - 1}') if number else 0)
        read_through('k:*', load)
    """)
    assert server.client().get("k:9") == "10"
    at_rest(server)
    assert server.client().exists(*[f"k:{number}" for number in range(10)]) == 10
