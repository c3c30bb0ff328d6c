"""What is stopped while it starts a thread: the error is for the function, never for the thread that it has just made, which would not
begin, and would be waited for, for ever. Contract: docs/contract/python-api.md 2.1.
"""

from __future__ import annotations

from typing import Callable

import pytest

from helpers import Server, wait_until
from scripting import error_of, load, needs_engine

pytestmark = pytest.mark.matrix

STOPS = 40  # one of ten hit the wrong thread
WAYS = {
    "threading": "threading.Thread(target=int).start()",
    "a timer": "threading.Timer(0.0001, int).start()",
    "a pool": "\n            with concurrent.futures.ThreadPoolExecutor(2) as pool:\n                pool.submit(int)",
    "_thread": "_thread.start_new_thread(int, ())",
}


def endless(way: str) -> str:
    return f"""
import _thread, concurrent.futures, threading
def endless(record):
    while True:
        try:
            {WAYS[way]}
        except RuntimeError:
            pass  # too many at once
"""


@pytest.fixture
def server(borrow_server: Callable[..., Server]) -> Server:
    return borrow_server()


@pytest.mark.parametrize("way", WAYS)
def test_the_watch(server: Server, way: str) -> None:
    server.run(f"{endless(way)}GB('CommandReader').map(endless).register(trigger='t', mode='sync')")
    client = server.client()
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 20)
    for _ in range(STOPS):
        assert "SyncTimeout" in error_of(client.execute_command, "RG.TRIGGER", "t")
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 5000)
    assert client.ping()


@pytest.mark.parametrize("way", WAYS)
def test_an_abort(server: Server, way: str) -> None:
    client = server.client()
    for number in range(STOPS):
        code = endless(way).replace("while True", f"execute('SET', 'begun', {number})\n    while True", 1)
        execution = server.run(f"{code}GB('ShardsIDReader').foreach(endless).run()", "UNBLOCKING")
        wait_until(lambda: client.get("begun") == str(number), 10)
        assert client.execute_command("RG.ABORTEXECUTION", execution) == "OK"
    server.wait_idle()


def test_a_timeout_of_a_registration(server: Server) -> None:
    server.run(f"{endless('threading')}GB('CommandReader').map(endless).register(trigger='t', mode='async_local', timeout=20)")
    for _ in range(STOPS):
        assert "timeout" in error_of(server.client().execute_command, "RG.TRIGGER", "t")


def test_a_function_of_the_server(request: pytest.FixtureRequest, server: Server) -> None:
    needs_engine(request.config)
    client = server.client()
    load(client, f"{endless('threading')}\nregister_function('f', lambda keys, args: endless(None))")
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 20)
    for _ in range(STOPS):
        assert "SyncTimeout" in error_of(client.fcall, "f", 0)
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 5000)
    assert client.ping()
