"""A server that ends while functions run: it exits with 0 and writes no crash report. Contract: docs/contract/commands.md 9."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import Any, Callable

import pytest
import redis

from clusters import make_cluster
from helpers import Server

# Threads of each kind want the server's lock all the time.
BUSY = """
import asyncio, threading

def spin(r):
    for _ in range(200):
        execute('INCR', 'count{%s}' % hashtag())
    return r

async def task(r):
    for _ in range(50):
        with atomic():
            execute('INCR', 'count{%s}' % hashtag())
        await asyncio.sleep(0)
    return r

GB('KeysReader').foreach(spin).register(prefix='k*', mode='async_local', eventTypes=['set'])
GB('KeysReader').map(task).register(prefix='k*', mode='async_local', eventTypes=['set'])
GB('KeysReader').foreach(lambda r: (spin(r), override_reply('x'))).register(
    prefix='m*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
GB('StreamReader').foreach(spin).register(prefix='s*', mode='async_local', batch=5)
GB('CommandReader').map(spin).register(trigger='all')
"""
TROUBLE = ("CRASHED", "ASSERTION", "BUG REPORT", "panicked")


class Traffic:
    """Clients that keep a server busy until it is gone."""

    def __init__(self, server: Server) -> None:
        self.count = 0
        self._server = server
        self._stop = False
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(2)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + 20
        while self.count < 40 and time.monotonic() < deadline:
            time.sleep(0.005)
        return self

    def _run(self, number: int) -> None:
        client = redis.Redis(host=self._server.host, port=self._server.port, protocol=2, socket_timeout=20)
        client.set_retry(redis.retry.Retry(redis.backoff.NoBackoff(), 0))
        commands: list[list[Any]] = [["SET", f"k{number}", 1], ["GET", f"m{number}"], ["XADD", f"s{number}", "*", "a", 1], ["RG.TRIGGER", "all"]]
        while not self._stop:
            for command in commands:
                try:
                    client.execute_command(*command)
                except redis.ResponseError:
                    pass
                except redis.RedisError:
                    return
                self.count += 1

    def __exit__(self, *_: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join(30)


def end(server: Server, how: str) -> int:
    """Lets a server end itself; the status of its process."""
    server.death_expected = True
    if how == "SIGTERM":
        server.process.send_signal(signal.SIGTERM)
    else:
        with contextlib.suppress(redis.RedisError):
            server.client().execute_command("SHUTDOWN", how)
    return server.process.wait(30)


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["SIGTERM", "NOSAVE", "SAVE"])
def test_it_ends_while_functions_run(start_server: Callable[..., Server], how: str) -> None:
    server = start_server(args=["--appendonly", "yes"])
    for _ in range(5):
        server.run(BUSY, "ID", "busy", "UPGRADE")
        with Traffic(server) as traffic:
            assert end(server, how) == 0, server.log_tail()
        assert traffic.count >= 40
        found = [word for word in TROUBLE if word in server.log()]
        assert not found, server.log_tail()
        server.disconnect()
        server.start()


@pytest.mark.matrix
@pytest.mark.parametrize("how", ["SIGTERM", "NOSAVE"])
def test_shards_end_while_they_talk(start_server: Callable[..., Server], how: str) -> None:
    cluster = make_cluster(start_server, args=["--cluster-require-full-coverage", "no"])
    cluster[0].run("GB('CommandReader').map(lambda r: hashtag()).register(trigger='all')")
    with Traffic(cluster[0]), Traffic(cluster[1]):
        for server in reversed(cluster.masters):
            assert end(server, how) == 0, server.log_tail()
            assert not [word for word in TROUBLE if word in server.log()], server.log_tail()
