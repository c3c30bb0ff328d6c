"""`read_through` against sources that are killed, stall, are slow, flap; and an HTTP service. Contract: 
docs/contract/read-through.md chapter 5."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Iterator

import pytest

from figures import figures
from helpers import HOST, Server, wait_until
from read_through import at_rest

pytestmark = pytest.mark.matrix

KEYS = [f"k:{number}" for number in range(20)]

LOADER = """
@read_through('k:*', {options})
def load(key):
    import redis
    with redis.Redis(port={port}, decode_responses=True, socket_timeout=2, retry=None) as source:
        source.incr('loads')
        return source.get(key)
"""


def warm(server: Server, source: Server, options: str) -> None:
    """Registers, and loads all keys once."""
    source.client().mset({key: "old" for key in KEYS})
    server.run(LOADER.format(options=options, port=source.port))
    assert server.client().mget(KEYS) == ["old"] * len(KEYS)


def test_a_source_that_is_killed_and_comes_back(server: Server, source: Server) -> None:
    """Keys are warm: no client sees an error, and the source is asked no more often than back-off allows."""
    warm(server, source, "ttl=0.1, stale=60, backoff=0.2, max_backoff=1")
    client = server.client()
    source.stop(kill=True)
    time.sleep(0.2)  # all values are stale by now
    before = figures(server)["loads"]
    begun = time.monotonic()
    while time.monotonic() - begun < 3:
        assert client.mget(KEYS) == ["old"] * len(KEYS)
    lasted = time.monotonic() - begun
    data = figures(server)
    # Delays of a key: 0.2, 0.4, 0.8, 1, 1, ... seconds, each at least half of that by jitter.
    assert 1 <= data["loads"] - before <= len(KEYS) * (4 + 2 * lasted)
    assert data["loadFailures"] > 0 and data["staleHits"] > 0 and data["timeouts"] == 0
    source.start()
    source.client().mset({key: "new" for key in KEYS})
    wait_until(lambda: client.mget(KEYS) == ["new"] * len(KEYS), timeout=20)
    at_rest(server)


def test_a_breaker_asks_a_dead_source_once_in_a_while(server: Server, source: Server) -> None:
    warm(server, source, "ttl=0.1, stale=60, backoff=0, breaker=(3, 0.5)")
    client = server.client()
    source.stop(kill=True)
    time.sleep(0.2)
    before, begun = figures(server)["loads"], time.monotonic()
    while time.monotonic() - begun < 2:
        assert client.mget(KEYS) == ["old"] * len(KEYS)
    lasted = time.monotonic() - begun
    # Those of the first moment, and one trial in half a second.
    assert figures(server)["loads"] - before <= len(KEYS) + 2 + 2 * lasted
    source.start()
    source.client().mset({key: "new" for key in KEYS})
    wait_until(lambda: client.mget(KEYS) == ["new"] * len(KEYS), timeout=20)
    at_rest(server)


def test_a_source_that_stalls(server: Server, source: Server) -> None:
    warm(server, source, "timeout=1.5, backoff=0, max_loads=2")
    raws = [server.raw() for _ in range(10)]
    source.process.send_signal(signal.SIGSTOP)
    try:
        for number, raw in enumerate(raws):
            raw.send("GET", f"k:cold{number}")
        assert {raw.read() for raw in raws} == {b"-LOADFAILED TimedOut\r\n"}
        assert server.client().get(KEYS[0]) == "old", "hits are hits"
    finally:
        source.process.send_signal(signal.SIGCONT)
    source.client().set("k:cold0", "there")
    wait_until(lambda: server.raw().call("GET", "k:cold0") == b"$5\r\nthere\r\n")
    at_rest(server)


def test_a_source_that_flaps(server: Server, source: Server) -> None:
    warm(server, source, "ttl=0.05, stale=60, backoff=0.05, max_backoff=0.2")
    client = server.client()
    for value in ("one", "two", "three"):
        source.stop(kill=True)
        for _ in range(50):
            assert all(client.mget(KEYS))
        source.start()
        source.client().mset({key: value for key in KEYS})
        wait_until(lambda: client.mget(KEYS) == [value] * len(KEYS), timeout=20)
    at_rest(server)


class Service(BaseHTTPRequestHandler):
    """Answers `/<key>` with a text, 404 or 500, and counts."""

    asked: list[str] = []

    def do_GET(self) -> None:  # noqa: N802  the name is the library's
        self.asked.append(self.path)
        status = {"none": 404, "bad": 500}.get(self.path.rsplit(":", 1)[-1], 200)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"page of " + self.path.encode())

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def service() -> Iterator[int]:
    """The port of a running service."""
    Service.asked = []
    http = ThreadingHTTPServer((HOST, 0), Service)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield http.server_address[1]
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def test_pages_of_an_http_service(server: Server) -> None:
    with service() as port:
        server.run(f"""
            import urllib.error, urllib.request

            @read_through('page:*', ttl=60, negative_ttl=60, backoff=60, max_backoff=60)
            def load(key):
                try:
                    with urllib.request.urlopen('http://{HOST}:{port}/' + key, timeout=5) as reply:
                        return reply.read()
                except urllib.error.HTTPError as error:
                    if error.code == 404:
                        return None
                    raise
        """)
        client = server.client()
        raws = [server.raw() for _ in range(30)]
        for raw in raws:
            raw.send("GET", "page:1")
        assert {raw.read() for raw in raws} == {b"$15\r\npage of /page:1\r\n"}
        assert [client.get("page:none") for _ in range(3)] == [None] * 3
        assert server.raw().call("GET", "page:bad") == b"-LOADFAILED HTTPError\r\n"
        assert server.raw().call("GET", "page:bad") == b"-LOADFAILED BackingOff\r\n"
        assert Service.asked == ["/page:1", "/page:none", "/page:bad"]
    at_rest(server)


def test_coroutines_share_a_session_with_an_http_service(server: Server) -> None:
    with service() as port:
        server.run(f"""
            import asyncio

            @read_through('page:*', max_loads=8)
            async def load(key):
                reader, writer = await asyncio.open_connection('{HOST}', {port})
                writer.write(f'GET /{{key}} HTTP/1.0\\r\\n\\r\\n'.encode())
                text = await reader.read()
                writer.close()
                return text.rsplit(b'\\r\\n', 1)[-1]
        """)
        keys = [f"page:{number}" for number in range(40)]
        assert server.client().mget(keys) == [f"page of /{key}" for key in keys]
        assert len(Service.asked) == 40
    at_rest(server)
