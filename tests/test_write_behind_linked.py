"""`wait=True`, and functions linked to the same command: its client gets its reply when the change is saved and the functions have had their say.
Contract: docs/contract/write-behind.md 1; docs/contract/readers-and-events.md 10."""

from __future__ import annotations

import pytest

from figures import figures
from helpers import Server, wait_until
from test_write_behind_awaited import blocked, released
from test_write_behind_halves import saver
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

LINKED = """
    GB('KeysReader').foreach(lambda r: override_reply({reply})).register(
        'user:*', eventTypes=['set', 'hset', 'incrby', 'del'], commands=['SET', 'HSET', 'INCR', 'DEL'], mode={mode!r})
"""
LOADER = """
    def load(key):
        if db.exists('hold'):
            db.blpop('end', 20)
        text = db.get('row:0:' + key)
        return None if text is None else json.loads(text)

    read_through('user:*', load, onRegistered=connect)
"""
MODES = ["sync", "async", "async_local"]


def linked(server: Server, source: Server, mode: str, arguments: str = "wait=True, timeout=100", more: str = "", reply: str = "'mine'") -> Database:
    database = register(server, source, arguments, more=more)
    server.run(LINKED.format(mode=mode, reply=reply))
    return database


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("words", [["SET", "user:1", "a"], ["HSET", "user:1", "f", "v"], ["INCR", "user:1"]], ids=" ".join)
def test_the_override_comes_when_the_change_is_saved(server: Server, source: Server, mode: str, words: list[str]) -> None:
    database = linked(server, source, mode)
    database.client.set("hang", 1)
    raw = server.raw()
    raw.send(*words)
    wait_until(lambda: database.client.llen("hanging") == 1)
    blocked(server)
    assert database.rows() == {}
    released(database)
    assert raw.read() == b"$4\r\nmine\r\n"
    assert list(database.rows()) == ["user:1"]
    assert raw.call("PING") == b"+PONG\r\n"


def test_the_slower_one_counts(server: Server, source: Server) -> None:
    """Here the function: the change is saved before it ends."""
    database = register(server, source, "wait=True, timeout=100")
    server.run("""
        async def late(r):
            while not execute('EXISTS', 'free'):
                await asyncio.sleep(0.01)
            override_reply('late')

        import asyncio
        GB('KeysReader').foreach(late).register('user:*', eventTypes=['set'], commands=['SET'], mode='async')
    """)
    raw = server.raw()
    raw.send("SET", "user:1", "a")
    wait_until(lambda: database.row("user:1") == "a")
    drained(server)
    blocked(server)
    server.client().set("free", 1)
    assert raw.read() == b"$4\r\nlate\r\n"


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_saved_is_told_whatever_a_function_says(server: Server, source: Server, mode: str) -> None:
    database = linked(server, source, mode, "wait=True, timeout=0.3, backoff=0.05, max_backoff=0.05")
    database.fail(1_000_000)
    raw = server.raw()
    assert raw.call("SET", "user:1", "a") == b"-SAVEFAILED ConnectionError\r\n"
    database.fail(0)
    assert raw.call("SET", "user:1", "b") == b"$4\r\nmine\r\n"
    assert database.row("user:1") == "b"


@pytest.mark.parametrize("mode", MODES)
def test_a_function_that_overrides_nothing(server: Server, source: Server, mode: str) -> None:
    database = linked(server, source, mode, reply="1 / 0")
    raw = server.raw()
    assert raw.call("INCR", "user:1") == b":1\r\n"
    assert database.row("user:1") == "1"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("arguments", ["wait=True, timeout=100", ""])
def test_a_command_that_waited_for_a_load_first(server: Server, source: Server, mode: str, arguments: str) -> None:
    """The link of a command that had waited was forgotten."""
    database = linked(server, source, mode, arguments, more=LOADER)
    database.client.set("row:0:user:1", '{"name": "Ann"}')
    database.client.set("hold", 1)
    raws = [server.raw() for _ in range(3)]
    for number, raw in enumerate(raws):
        raw.send("HSET", "user:1", f"f{number}", "v")
    blocked(server, len(raws))
    database.client.delete("hold")
    database.client.rpush("end", 1)
    assert [raw.read() for raw in raws] == [b"$4\r\nmine\r\n"] * 3
    drained(server, saver(server))
    assert database.row("user:1") == {"name": "Ann", "f0": "v", "f1": "v", "f2": "v"}
    assert figures(server, saver(server))["captured"] == 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("arguments", ["wait=True, timeout=100", ""])
def test_a_command_that_waited_for_room_first(server: Server, source: Server, mode: str, arguments: str) -> None:
    database = linked(server, source, mode, "max_queue=1, " + arguments)
    raw, first = server.raw(), server.raw()
    database.client.set("hang", 1)
    first.send("SET", "user:first", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    raw.send("SET", "user:1", "a")
    wait_until(lambda: figures(server)["waitedForRoom"] == 1)
    released(database)
    assert first.read() == raw.read() == b"$4\r\nmine\r\n"
    drained(server)
    assert database.rows() == {"user:first": "a", "user:1": "a"}


@pytest.mark.parametrize("mode", MODES)
def test_a_reader_that_waited_for_a_load_first(server: Server, source: Server, mode: str) -> None:
    """Nothing was found, and the function that hears of misses says what is the reply then."""
    register(server, source, more=LOADER)
    server.run(f"""
        GB('KeysReader').foreach(lambda r: override_reply('nothing')).register(
            'user:*', eventTypes=['keymiss'], commands=['GET'], mode={mode!r})
    """)
    assert server.client().get("user:1") == "nothing"
    source.client().set("row:0:user:2", '"there"')
    assert server.client().get("user:2") == "there"


@pytest.mark.parametrize("mode", MODES)
def test_who_is_gone_keeps_nobody(server: Server, source: Server, mode: str) -> None:
    database = linked(server, source, mode)
    database.client.set("hang", 1)
    raw = server.raw()
    raw.send("SET", "user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    raw.close()
    blocked(server, 0)
    released(database)
    drained(server)
    assert server.raw().call("SET", "user:1", "b") == b"$4\r\nmine\r\n"


@pytest.mark.parametrize("mode", MODES)
def test_the_queue_ends_while_somebody_waits(server: Server, source: Server, mode: str) -> None:
    database = linked(server, source, mode)
    database.client.set("hang", 1)
    raw = server.raw()
    raw.send("SET", "user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    blocked(server)
    server.client().execute_command("RG.UNREGISTER", server.registrations()[saver(server)]["id"], "ABORTPENDING")
    assert raw.read() == b"-SAVEFAILED Unregistered\r\n"
    released(database)
