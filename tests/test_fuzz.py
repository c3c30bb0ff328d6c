"""A server that gets everything at once, and nonsense: it lives, answers, and comes back as it was. See fuzzing.py.

`FUZZ_SECONDS` sets how long, `FUZZ_SEED` repeats the choices of a run (not its timing).
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from typing import Any, Callable

import pytest
import redis

from fuzzing import BOUND_S, KINDS, Fuzzer
from helpers import Server, as_dict, wait_for_aof, wait_until

CLIENTS = 3
MINUTE_S = int(os.environ.get("FUZZ_SECONDS", "45"))
HOUR_S = int(os.environ.get("FUZZ_SECONDS", "3600"))
# What the log never says: a panic, an order of locks that could hang, a crash report.
WRONG = re.compile(r"panicked at|while a mutex is held|BUG REPORT|ASSERTION FAILED|Sanitizer|a job of the timer failed|<rg>.*internal error")


def look(server: Server) -> None:
    """The server answers whoever asks, and has not said anything that it must not."""
    wait_until(lambda: answers(server), BOUND_S, "the server answers")
    found = WRONG.search(server.log())
    assert found is None, server.log()[max(0, found.start() - 2000) : found.end() + 4000]


def answers(server: Server) -> bool:
    try:
        return bool(server.own.ping())
    except redis.exceptions.TimeoutError:
        raise
    except redis.ConnectionError:  # it loads, it was told to end all clients; or it has died, which every test looks at
        assert server.alive()
        return False


def fuzz(start_server: Callable[..., Server], seconds: float, seed: int | None = None) -> None:
    seed = int(os.environ.get("FUZZ_SEED") or seed or random.randrange(1 << 30))
    print(f"FUZZ_SEED={seed}")
    limits = ["SyncTimeout", "500", "ExecutionMaxIdleTime", "3000"]
    server = start_server(args=["--appendonly", "yes", "--appendfsync", "no", "--busy-reply-threshold", "60000"], module_args=limits)
    upkeep = threading.Lock()
    fuzzers = [Fuzzer(server, seed + number, upkeep) for number in range(CLIENTS)]
    stop = threading.Event()
    threads = [threading.Thread(target=fuzzer.run, args=[stop]) for fuzzer in fuzzers]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not any(fuzzer.failure for fuzzer in fuzzers):
            time.sleep(0.5)
            look(server)
    finally:
        stop.set()
        for thread in threads:
            thread.join(2 * BOUND_S)
        report = "\n".join(f"client {number}: {fuzzer.failure}\n" + "\n".join(fuzzer.history) for number, fuzzer in enumerate(fuzzers))
        print(sum((fuzzer.done for fuzzer in fuzzers), start=type(fuzzers[0].done)()).most_common(60))
        print(sum((fuzzer.errors for fuzzer in fuzzers), start=type(fuzzers[0].errors)()).most_common(40))
        (server.dir / "history").write_text(report)
    assert not any(fuzzer.failure for fuzzer in fuzzers), report
    registered = sum((fuzzer.registered for fuzzer in fuzzers), start=type(fuzzers[0].registered)())
    print(registered)
    assert [kind for kind in KINDS if not registered[kind]] == [], "each kind of script has registered something"
    settle(server)


def settle(server: Server) -> None:
    """Nothing that was begun is left: no client, no execution; and a restart has the same registrations."""
    client = server.client(socket_timeout=BOUND_S)
    client.execute_command("CLIENT", "UNPAUSE")
    client.config_set("maxmemory", 0)
    wait_until(lambda: end_executions(client), 60, "all executions have ended")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 0, 60, "nobody is blocked")
    client.config_set("appendonly", "yes")
    wait_for_aof(client)
    assert client.info("persistence")["aof_last_bgrewrite_status"] == "ok"
    before = registered(server)
    look(server)
    server.stop(timeout=60)
    server.start(60)
    assert registered(server) == before
    look(server)
    for identifier in before:
        server.own.execute_command("RG.UNREGISTER", identifier, "ABORTPENDING")
    assert server.registrations() == []
    assert server.run("GB('ShardsIDReader').count().run()") == [["1"], []]


def end_executions(client: redis.Redis) -> bool:
    left = [entry for entry in map(as_dict, client.execute_command("RG.DUMPEXECUTIONS")) if entry["status"] not in ("done", "aborted")]
    for entry in left:
        try:
            client.execute_command("RG.ABORTEXECUTION", entry["executionId"])
        except redis.ResponseError:
            pass  # it has ended meanwhile
    return not left


def registered(server: Server) -> set[Any]:
    return {entry["id"] for entry in server.registrations()}


@pytest.mark.timeout(MINUTE_S + 600)
def test_a_minute(start_server: Callable[..., Server]) -> None:
    # The same choices each time: what chance finds is for the hour.
    fuzz(start_server, MINUTE_S, seed=20261127)


@pytest.mark.soak
@pytest.mark.timeout(HOUR_S + 900)
def test_an_hour(start_server: Callable[..., Server]) -> None:
    fuzz(start_server, HOUR_S)
