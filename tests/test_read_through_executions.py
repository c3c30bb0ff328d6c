"""The executions of loads: seen while they run, forgotten when they have ended, and none of them knows anything of another one, although the
module uses them again. Contract: docs/contract/commands.md 1.4 to 1.9, docs/contract/read-through.md chapter 1.
"""

from __future__ import annotations

import pytest

from figures import figures, wait_for
from helpers import RawClient, Server, wait_until
from probes import executions
from read_through import Source, at_rest, register

pytestmark = pytest.mark.matrix

# Tells its database, and what the test says of the key.
LOAD = """
def load(key):
    found = fetch(key)
    where = execute('GET', 'where')
    return None if found is None else f'{found} in {where}'
"""


def number(execution: str) -> int:
    return int(execution.rsplit("-", 1)[1])


def running(server: Server) -> str:
    """The only execution, which runs."""
    ((execution, entry),) = executions(server).items()
    assert (entry["status"], entry["registered"]) == ("running", 1)
    return execution


def begin(server: Server, origin: Source, key: str, load: int) -> RawClient:
    """A client that waits for this load, which has begun."""
    raw = server.raw()
    raw.send("GET", key)
    origin.wait_for_loads(load)
    return raw


def test_a_load_is_there_while_it_runs_and_gone_behind_its_reply(server: Server, source: Server) -> None:
    origin = register(server, source)
    seen = []
    for load in range(1, 6):
        raw = begin(server, origin, f"user:{load}", load)
        seen.append(number(running(server)))
        ((_, _, _, plan, *_),) = server.client().execute_command("RG.GETEXECUTION", list(executions(server))[0])
        assert plan[plan.index("status") + 1] == "running"
        origin.give(f"user:{load}", "x" * load)
        assert raw.read() == f"${load}\r\n{'x' * load}\r\n".encode()
        assert executions(server) == {}, "it is forgotten before its client has the reply"
    assert seen == sorted(set(seen)), "each has an id of its own"
    statistics = figures(server)
    assert (statistics["numTriggered"], statistics["numSuccess"], statistics["numFailures"]) == (5, 5, 0)


def test_a_load_knows_nothing_of_the_one_before(server: Server, source: Server) -> None:
    """Neither its database, nor its error, nor that somebody has ended it."""
    origin = register(server, source, "backoff=0", LOAD)
    here, there = server.client(), server.client(db=3)
    here.set("where", "0")
    there.set("where", "3")
    load = 0

    def ask(key: str, answer: str, db: int = 0) -> str | None:
        nonlocal load
        load += 1
        origin.give(key, answer)
        client = there if db else here
        try:
            return client.get(key)
        except Exception as error:
            return str(error)

    assert ask("user:1", "one") == "one in 0"
    assert ask("user:2", "two", 3) == "two in 3"
    assert ask("user:3", "!KeyError x") == "LOADFAILED KeyError"
    assert ask("user:4", "four") == "four in 0"
    assert ask("user:5", "-", 3) is None
    raw = begin(server, origin, "user:6", load + 1)
    assert here.execute_command("RG.ABORTEXECUTION", running(server)) == "OK"
    assert raw.read().startswith(b"-LOADFAILED ")
    load += 1
    assert ask("user:7", "seven", 3) == "seven in 3"
    assert ask("user:8", "eight") == "eight in 0"
    at_rest(server)
    statistics = figures(server)
    # Who is ended inside a function has failed.
    assert (statistics["numSuccess"], statistics["numFailures"], statistics["numAborted"]) == (6, 2, 0)
    assert executions(server) == {}


def test_who_waits_for_a_load_is_told(server: Server, source: Server) -> None:
    """And the next load, which may not be the same execution, has nobody who waits."""
    origin = register(server, source)
    for load in (1, 3):
        raw = begin(server, origin, f"user:{load}", load)
        waiting = server.raw()
        waiting.send("RG.GETRESULTSBLOCKING", running(server))
        wait_until(lambda: server.own.info("clients")["blocked_clients"] == 2)
        origin.give(f"user:{load}", "value")
        assert raw.read() == b"$5\r\nvalue\r\n"
        assert waiting.read() == b"*2\r\n*0\r\n*0\r\n"
        raw = begin(server, origin, f"user:{load + 1}", load + 1)
        running(server)
        origin.give(f"user:{load + 1}", "value")
        assert raw.read() == b"$5\r\nvalue\r\n"
        wait_for(server, loading=0)
    assert executions(server) == {}


def test_a_load_whose_coroutine_lives_on_is_not_the_next_one(server: Server, source: Server) -> None:
    """What the coroutine writes is the doing of its own load, which has ended: it breaks the lease of the one that runs."""
    origin = register(
        server,
        source,
        loader="""
    import asyncio
    async def later(key):
        while not execute('EXISTS', 'go'):
            await asyncio.sleep(0.001)
        execute('SET', 'user:2', 'written')

    def load(key):
        if key == 'user:1':
            runCoroutine(later(key))
        return fetch(key)
    """,
    )
    raw = begin(server, origin, "user:1", 1)
    origin.give("user:1", "one")
    assert raw.read() == b"$3\r\none\r\n"
    raw = begin(server, origin, "user:2", 2)
    server.client().set("go", 1)
    wait_until(lambda: server.client().exists("user:2") == 1)
    origin.give("user:2", "loaded")
    assert raw.read() == b"$7\r\nwritten\r\n"
    wait_for(server, droppedByLease=1)


def test_what_a_load_leaves_dies_with_it(server: Server, source: Server) -> None:
    """No object of a load is kept by what the next one uses again; and code that runs where one dies may ask for anything."""
    origin = register(
        server,
        source,
        loader="""
    class Text(str):
        def __del__(self):
            execute('RPUSH', 'died', f"{self} {len(execute('RG.DUMPEXECUTIONS'))}")

    def load(key):
        return Text(fetch(key))
    """,
    )
    for load in range(1, 4):
        raw = begin(server, origin, f"user:{load}", load)
        origin.give(f"user:{load}", f"value {load}")
        assert raw.read() == f"$7\r\nvalue {load}\r\n".encode()
        wait_until(lambda: server.client().llen("died") == load)
    assert server.client().lrange("died", 0, -1) == [f"value {load} 1" for load in range(1, 4)]
    at_rest(server)
