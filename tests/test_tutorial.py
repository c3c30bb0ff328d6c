"""The key-miss tutorial, end to end, with the scripts of examples/: it always works.

Contract: docs/tutorial-key-miss.md. The page in our own words is played by test_docs.py.
"""

from __future__ import annotations

import ast

import pytest

from helpers import Server, wait_until
from probes import data
from servers import ROOT

pytestmark = pytest.mark.matrix


def send(server: Server, source: Server, example: str) -> None:
    server.client().execute_command("RG.CONFIGSET", "sourcePort", source.port)
    assert server.run((ROOT / "examples" / example).read_text()) == "OK"


def test_a_miss_is_logged(server: Server, source: Server) -> None:
    send(server, source, "miss_log.py")
    assert server.client().get("x") is None
    wait_until(lambda: "GEARS: missed: x" in server.log())


def test_the_second_read_has_the_value(server: Server, source: Server) -> None:
    send(server, source, "miss_fetch.py")
    source.client().set("x", "1")
    client = server.client()
    assert client.get("x") is None
    wait_until(lambda: client.exists("x"))
    assert client.get("x") == "1"


def test_the_first_read_has_the_value(server: Server, source: Server) -> None:
    send(server, source, "miss_read_through.py")
    source.client().set("x", "1")
    client = server.client()
    assert client.keys("*") == []
    assert client.get("x") == "1"
    assert client.get("x") == "1"
    assert client.get("unknown") is None
    server.wait_idle()
    assert (data(server)["numTriggered"], data(server)["numSuccess"]) == (2, 2)


def test_a_transaction_gets_nil_and_the_registration_the_error(server: Server, source: Server) -> None:
    send(server, source, "miss_read_through.py")
    source.client().set("x", "1")
    raw = server.raw()
    assert raw.call("MULTI") == b"+OK\r\n"
    assert raw.call("GET", "x") == b"+QUEUED\r\n"
    assert raw.call("EXEC") == b"*1\r\n$-1\r\n"
    server.wait_idle()
    counted = data(server)
    assert [counted[name] for name in ("numTriggered", "numSuccess", "numFailures", "numAborted")] == [1, 0, 1, 0]
    lines = ast.literal_eval(counted["lastError"])
    assert lines[0] == "Traceback (most recent call last):\n"
    assert lines[1].startswith('  File "<string>", line ') and lines[1].endswith(", in fetch_data\n")
    assert lines[-1] == "gears.error: Can not get command ctx\n"
    assert counted["args"]["hookCommands"] == ["get"]
    assert server.client().get("x") == "1"  # stored by the function all the same


def test_a_script_gets_nil(server: Server, source: Server) -> None:
    send(server, source, "miss_read_through.py")
    source.client().set("x", "1")
    assert server.client().eval("return redis.call('GET', KEYS[1])", 1, "x") is None
    server.wait_idle()
    assert data(server)["numFailures"] == 1
    assert ast.literal_eval(data(server)["lastError"])[-1] == "gears.error: Can not get command ctx\n"


def test_a_source_that_is_down_gives_the_nil(server: Server, source: Server) -> None:
    send(server, source, "miss_read_through.py")
    source.stop()
    assert server.client().get("x") is None
    server.wait_idle()
    assert "ConnectionError" in data(server)["lastError"]


def test_many_clients_at_once(server: Server, source: Server) -> None:
    send(server, source, "miss_read_through.py")
    source.client().mset({f"k{number}": f"v{number}" for number in range(200)})
    clients = [server.raw() for _ in range(200)]
    for number, client in enumerate(clients):
        client.send("GET", f"k{number}")
    for number, client in enumerate(clients):
        value = f"v{number}"
        assert client.read() == f"${len(value)}\r\n{value}\r\n".encode()
