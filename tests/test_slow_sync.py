"""A function that waits while it holds the server is named in the log, at once and once in a while."""

from __future__ import annotations

from typing import Callable

import pytest

from helpers import Server, wait_until

pytestmark = pytest.mark.matrix

WAITS = {
    "sleep": "import time\ndef waits(x):\n    time.sleep(0.5)\n    return 1\n",
    "a socket": (
        "import socket\ndef waits(x):\n    a, b = socket.socketpair()\n    a.settimeout(0.5)\n    try:\n        a.recv(1)\n"
        "    except TimeoutError:\n        return 1\n"
    ),
    "a lock": "import threading\ndef waits(x):\n    threading.Event().wait(0.5)\n    return 1\n",
    "computing": "import time\ndef waits(x):\n    end = time.monotonic() + 0.5\n    while time.monotonic() < end:\n        pass\n    return 1\n",
}


def lines(server: Server) -> list[str]:
    return [line for line in server.log().splitlines() if "has blocked the server for" in line]


@pytest.mark.parametrize("timeout", ["SyncTimeout", 0])
@pytest.mark.parametrize("kind", WAITS)
def test_a_sync_function_is_named_once(start_server: Callable[..., Server], kind: str, timeout: object) -> None:
    server = start_server(module_args=["SyncTimeout", 0] if timeout == 0 else [])
    server.run(WAITS[kind] + "GB('CommandReader').map(waits).register(trigger='w', mode='sync')", "ID", "writer")
    before = len(lines(server))
    for _ in range(2):
        assert server.client().execute_command("RG.TRIGGER", "w") == ["1"]
    found = lines(server)[before:]
    assert len(found) == 1, server.log_tail()
    registration = server.registrations()[0]["id"]
    assert f"a function of registration {registration} of session writer (waits) has blocked the server" in found[0]
    assert "no client is served" in found[0]
    # The line comes while it runs: how long it was is told at its end.
    [end] = [line for line in server.log().splitlines() if "writer (waits) has given the server back after" in line]
    assert 490 < int(end.split(" after ")[1].split(" ms")[0]) < 20_000


def test_each_registration_and_each_kind_of_code_is_named(server: Server) -> None:
    server.run(WAITS["sleep"] + "GB('CommandReader').map(waits).register(trigger='a', mode='sync')", "ID", "a")
    server.run(WAITS["sleep"] + "GB('CommandReader').map(waits).register(trigger='b', mode='sync')", "ID", "b")
    for trigger in "ab":
        server.client().execute_command("RG.TRIGGER", trigger)
    server.run("def g(x):\n    import time\n    with atomic():\n        time.sleep(0.5)\nGB('ShardsIDReader').map(g).run()", "ID", "c")
    server.run("import time\ntime.sleep(0.5)", "ID", "d")
    said = "\n".join(lines(server))
    for whose in ("session a (waits)", "session b (waits)", "session c (g)", "the script of session d"):
        assert whose in said, said


def test_a_function_in_the_background_is_not(server: Server) -> None:
    server.run(WAITS["sleep"] + "GB('CommandReader').map(waits).register(trigger='w')", "ID", "quiet")
    before = len(lines(server))
    assert server.client().execute_command("RG.TRIGGER", "w") == ["1"]
    assert len(lines(server)) == before
    wait_until(lambda: server.own.ping(), 5)
