"""`max_memory` of `read_through` and `write_behind`: a load or a save that passes it fails as one that raised. docs/security.md."""

from __future__ import annotations

import pytest
import redis

from figures import errors, figures
from helpers import Server, as_dict, wait_until
from read_through import at_rest
from write_behind import drained, register

pytestmark = pytest.mark.matrix

TOO_MUCH = "the execution held more than its max_memory (100000 bytes) and was ended"
BYTES = "a whole number of bytes from 1 on"

LOADERS = {
    "a text": ("def load(key): return 'x' * int(key[2:])", ""),
    "bytes": ("def load(key): return b'x' * int(key[2:])", ""),
    "a hash": ("def load(key): return {str(n): 'x' * 990 + str(n) for n in range(int(key[2:]) // 1000)}", ""),
    "a list": ("def load(key): return ['x' * 990 + str(n) for n in range(int(key[2:]) // 1000)]", ""),
    "a sorted set": ("def load(key): return Sorted({'x' * 900 + str(n): n for n in range(int(key[2:]) // 1000)})", ""),
    "with a lifetime": ("def load(key): return Loaded('x' * int(key[2:]), ttl=60)", ""),
    "a coroutine": ("import asyncio\nasync def load(key):\n    await asyncio.sleep(0.01)\n    return 'x' * int(key[2:])", ""),
    "a batch": ("def load(keys): return {key: 'x' * int(key[2:]) for key in keys}", ", batch=10"),
    "a batch of a coroutine": ("async def load(keys): return ['x' * int(key[2:]) for key in keys]", ", batch=10"),
}


@pytest.mark.parametrize("what", LOADERS)
def test_what_a_load_may_bring(server: Server, what: str) -> None:
    loader, more = LOADERS[what]
    server.run(f"{loader}\nread_through('k:*', load, max_memory=100_000, backoff=0{more})")
    client = server.client()
    with pytest.raises(redis.ResponseError) as told:
        client.strlen("k:200000")
    assert str(told.value) == "LOADFAILED HeldTooMuch"
    data = figures(server)
    assert (data["loadFailures"], data["numFailures"], data["numAborted"], data["numSuccess"]) == (1, 1, 0, 0)
    assert TOO_MUCH in data["lastError"]
    assert "has held more than its max_memory (100000 bytes) and is ended" in server.log()
    assert client.exists("k:200000") == 0, "nothing of it is stored"
    try:
        client.strlen("k:50000")
    except redis.ResponseError as error:
        assert "WRONGTYPE" in str(error)
    assert client.exists("k:50000") == 1, "the next load has a limit of its own"
    at_rest(server)


def test_a_batch_that_is_too_large_as_a_whole(server: Server) -> None:
    server.run("read_through('k:*', lambda keys: {key: 'x' * 30_000 + key for key in keys}, batch=10, max_memory=100_000, backoff=0)")
    client = server.client()
    with pytest.raises(redis.ResponseError, match="LOADFAILED HeldTooMuch"):
        client.mget([f"k:{number}" for number in range(5)])
    assert client.exists(*(f"k:{number}" for number in range(5))) == 0
    assert client.mget("k:1", "k:2") == ["x" * 30_000 + "k:1", "x" * 30_000 + "k:2"]
    at_rest(server)


def test_it_backs_off_and_opens_the_breaker(server: Server) -> None:
    server.run("read_through('b:*', lambda key: 'x' * 200_000, max_memory=100_000, backoff=60, max_backoff=60)")
    server.run("read_through('c:*', lambda key: 'x' * 200_000, max_memory=100_000, backoff=0, breaker=(1, 60))")
    client = server.client()
    for prefix, then in (("b", "BackingOff"), ("c", "BreakerOpen")):
        with pytest.raises(redis.ResponseError, match="HeldTooMuch"):
            client.get(f"{prefix}:1")
        with pytest.raises(redis.ResponseError, match=then):
            client.get(f"{prefix}:1")
    assert figures(server, 1)["breaker"] == "open"
    at_rest(server)


def test_the_old_value_is_served(server: Server) -> None:
    """A value that is stale stays when what would take its place is too large."""
    server.run("""
        def load(key): return 'small' if execute('INCR', 'loads') == 1 else 'x' * 200_000
        read_through('k:*', load, ttl=0.05, stale=600, max_memory=100_000, backoff=0)
    """)
    client = server.client()
    assert client.get("k:1") == "small"
    wait_until(lambda: client.get("k:1") == "small" and figures(server)["loadFailures"] > 0)
    assert client.get("k:1") == "small"
    assert TOO_MUCH in figures(server)["lastError"]


SIZES = {
    "never ends": ("while True: pass", "LoadTimedOut"),
    "raises": ("raise KeyError('odd')", "KeyError"),
    "is negative": ("return -1", "ValueError"),
    "is huge": ("return 2 ** 62", "HeldTooMuch"),
    "is larger than all": ("return 2 ** 70", "OverflowError|HeldTooMuch"),
    "exits": ("import sys; sys.exit(1)", "SystemExit"),
}


@pytest.mark.parametrize("what", SIZES)
def test_an_object_that_lies_about_its_size(server: Server, what: str) -> None:
    body, said = SIZES[what]
    server.run(f"""
        def load(key):
            class Odd(str):
                def __sizeof__(self):
                    {body}
            return Odd('odd')
        read_through('odd:*', load, max_memory=100_000, max_load_time=0.5, backoff=0)
        read_through('even:*', lambda key: 'fine', max_memory=100_000)
    """)
    client = server.client()
    for number in range(5):  # more than there are workers
        with pytest.raises(redis.ResponseError, match=f"^LOADFAILED ({said})$"):
            client.get(f"odd:{number}")
    assert figures(server)["loadFailures"] == 5
    assert client.get("even:1") == "fine"
    at_rest(server)
    wait_until(lambda: server.own.execute_command("RG.DUMPEXECUTIONS") == [])
    assert "panicked" not in server.log()


# --- write_behind ---


def test_a_change_that_is_too_large_stands_alone_in_the_end(server: Server, source: Server) -> None:
    database = register(server, source, "max_memory=100_000, max_tries=1, backoff=0.01, dead_letter='dead'")
    client = server.client()
    client.mset({"user:1": "a", "user:2": "x" * 200_000, "user:3": "c"})
    drained(server)
    assert database.rows() == {"user:1": "a", "user:3": "c"}
    (entry,) = client.xrange("dead")
    assert (entry[1]["key"], entry[1]["error"]) == ("user:2", "HeldTooMuch") and TOO_MUCH in entry[1]["traceback"]
    data = figures(server)
    assert data["saveFailures"] > 0
    client.set("user:2", "small")
    drained(server)
    assert database.row("user:2") == "small"


def test_a_batch_that_is_too_large_is_halved(server: Server, source: Server) -> None:
    database = register(server, source, "max_memory=100_000, max_tries=1, backoff=0.01")
    client = server.client()
    rows = {f"user:{number}": str(number) + "x" * 30_000 for number in range(10)}
    client.mset(rows)
    drained(server)
    assert database.rows() == rows
    assert max(map(len, database.calls())) <= 3


def test_clients_that_wait_for_a_save_hear_of_it(server: Server) -> None:
    server.run("write_behind('k:*', lambda changes: None, max_memory=100_000, wait=True, timeout=0.3)")
    client = server.client()
    assert client.set("k:1", "small")
    with pytest.raises(redis.ResponseError, match="^SAVEFAILED HeldTooMuch"):
        client.set("k:2", "x" * 200_000)


@pytest.mark.parametrize("how", ["", "async "])
def test_what_save_returns_counts(server: Server, how: str) -> None:
    server.run(f"""
        {how}def save(changes): return 'x' * 200_000
        write_behind('k:*', save, max_memory=100_000, backoff=60, max_backoff=60)
    """)
    server.client().set("k:1", "small")
    wait_until(lambda: figures(server)["saveFailures"] == 1)
    assert TOO_MUCH in figures(server)["lastError"]
    assert figures(server)["numAborted"] == 0


# --- the argument ---


@pytest.mark.parametrize("call", ["read_through", "write_behind"])
@pytest.mark.parametrize("given", ["0", "-1", "1.5", "True", "'1mb'", "2 ** 64", "[]"])
def test_what_is_no_size(server: Server, call: str, given: str) -> None:
    said = errors(server, f"{call}('k:*', lambda given: None, max_memory={given})")
    assert f"{call}: max_memory: expected {BYTES}, got " in said
    assert server.registrations() == []


@pytest.mark.parametrize("call", ["read_through", "write_behind"])
def test_it_is_shown_and_kept(server: Server, call: str) -> None:
    server.run(f"{call}('k:*', lambda given: None, max_memory=5000)\n{call}('l:*', lambda given: None, max_memory=None)")

    def shown() -> list[int | None]:
        return [as_dict(server.client().execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")[place])["maxMemory"] for place in range(2)]

    assert shown() == [5000, None]
    server.client().execute_command("DEBUG", "RELOAD")
    assert shown() == [5000, None]
