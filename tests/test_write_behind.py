"""`write_behind`: changes are captured with their values, saved in batches, in order by key. Contract: docs/contract/write-behind.md
chapters 1 and 2.
"""

from __future__ import annotations

import re

import pytest

from figures import figures, wait_for
from helpers import Server, wait_until
from write_behind import drained, register

pytestmark = pytest.mark.matrix


def test_changes_are_saved_with_their_values(server: Server, source: Server) -> None:
    database = register(server, source)
    client = server.client()
    client.set("user:1", "Ann")
    client.hset("user:2", mapping={"name": "Bob", "city": "Bern"})
    client.set("other", "x")
    drained(server)
    client.delete("user:1")
    drained(server)
    assert database.rows() == {"user:2": {"name": "Bob", "city": "Bern"}}
    shown = [(change["key"], change["event"], change["type"], change["value"]) for change in database.changes()]
    assert shown == [
        ("user:1", "set", "string", "Ann"),
        ("user:2", "hset", "hash", {"name": "Bob", "city": "Bern"}),
        ("user:1", "del", None, None),
    ]
    assert all(re.fullmatch(r"\d{13}-\d+", change["id"]) and change["db"] == 0 for change in database.changes())
    data = figures(server)
    assert (data["captured"], data["saved"], data["queuedBytes"], data["mode"]) == (3, 3, 0, "async_local")


def test_a_decorator_returns_the_function_and_coroutines_save(server: Server, source: Server) -> None:
    database = register(server, source, prefix="none", more="""
        @write_behind('user:*', batch=10, onRegistered=connect)
        async def later(changes):
            import asyncio
            await asyncio.sleep(0.01)
            save(changes)

        assert later.__name__ == 'later'
    """)
    client = server.client()
    for number in range(30):
        client.set(f"user:{number}", number)
    drained(server, 0)
    drained(server, 1)
    assert len(database.rows()) == 30


def test_batches_wait_for_the_interval_and_newer_changes_replace_older_ones(server: Server, source: Server) -> None:
    database = register(server, source, "batch=10, interval=0.3")
    client = server.client()
    for value in range(5):
        client.set("user:1", value)
    client.set("user:2", "x")
    drained(server)
    assert [[(change["key"], change["value"]) for change in call] for call in database.calls()] == [[("user:1", "4"), ("user:2", "x")]]
    assert figures(server)["coalesced"] == 4
    for number in range(10):
        client.set(f"user:{number}", "full")
    wait_until(lambda: len(database.calls()) == 2, 0.25, "a full batch does not wait")


def test_without_coalescing_each_change_is_saved(server: Server, source: Server) -> None:
    database = register(server, source, "coalesce=False, interval=0.1")
    client = server.client()
    for value in range(20):
        client.set("user:1", value)
    drained(server)
    assert [change["value"] for change in database.changes()] == [str(value) for value in range(20)]
    ids = [tuple(map(int, change["id"].split("-"))) for change in database.changes()]
    assert ids == sorted(set(ids))


def test_one_change_for_a_key_and_a_unit(server: Server, source: Server) -> None:
    database = register(server, source, "coalesce=False, interval=0.1")
    client = server.client()
    with client.pipeline(transaction=True) as pipe:
        pipe.set("user:1", "a").append("user:1", "b").set("user:2", "x").delete("user:2").incr("user:3").incr("user:3")
        pipe.execute()
    if server.version >= (7, 2):
        drained(server)
        shown = [(change["key"], change["event"], change["value"]) for change in database.changes()]
        assert shown == [("user:1", "append", "ab"), ("user:2", "del", None), ("user:3", "incrby", "2")]
    client.eval("for n = 1, 9 do redis.call('HSET', KEYS[1], 'n', n) redis.call('RPUSH', KEYS[2], n) end", 2, "user:4", "user:5")
    drained(server)
    rows = database.rows()
    assert (rows["user:1"], rows["user:3"], rows["user:4"]) == ("ab", "2", {"n": "9"})
    assert rows["user:5"] == list("123456789")
    if server.version >= (7, 2):
        assert len(database.changes()) == 5, "one for each key of a script"


def test_many_keys_of_one_unit(server: Server, source: Server) -> None:
    database = register(server, source, "coalesce=False")
    client = server.client()
    client.mset({f"user:{number}": number for number in range(50)})
    client.eval("for i = 1, 2 do for n = 0, 49 do redis.call('APPEND', 'user:' .. n, 'x') end end", 0)
    drained(server)
    assert database.rows() == {f"user:{number}": f"{number}xx" for number in range(50)}
    if server.version >= (7, 2):
        assert len(database.changes()) == 100


def test_what_the_function_itself_writes_is_not_captured(server: Server, source: Server) -> None:
    register(server, source, prefix="unused", more="""
        @write_behind('k:*')
        def store(changes):
            for change in changes:
                execute('SET', 'k:saved:' + change['key'], change['id'])

        GB('CommandReader').map(lambda words: execute('SET', 'k:2', 'by a function')).register(trigger='write')
    """)
    client = server.client()
    client.set("k:1", "x")
    client.execute_command("RG.TRIGGER", "write")
    wait_until(lambda: client.exists("k:saved:k:1", "k:saved:k:2") == 2)
    drained(server)
    data = [entry["RegistrationData"] for entry in server.registrations()]
    assert [entry["captured"] for entry in data if entry["args"].get("prefix") == "k:*"] == [2]


def test_each_registration_that_matches_saves(server: Server, source: Server) -> None:
    database = register(server, source, more="write_behind('user:1', lambda changes: execute('SET', 'second', changes[0]['value']))")
    client = server.client()
    client.set("user:1", "a")
    drained(server, 0)
    drained(server, 1)
    assert database.rows() == {"user:1": "a"} and client.get("second") == "a"


def test_databases_are_told_apart(server: Server, source: Server) -> None:
    database = register(server, source)
    for db in (0, 5):
        server.client(db=db).set("user:1", f"in {db}")
    drained(server)
    assert (database.row("user:1"), database.row("user:1", 5)) == ("in 0", "in 5")
    assert server.client(db=5).get("user:1") == "in 5"


def test_values_are_those_of_the_moment_of_the_change(server: Server, source: Server) -> None:
    database = register(server, source, "interval=0.5")
    client = server.client()
    client.set("user:1", "short", px=20)
    client.set("user:2", "flushed")
    wait_until(lambda: not client.exists("user:1"))
    client.flushall()
    drained(server)
    assert database.rows() == {"user:1": "short", "user:2": "flushed"}
    assert client.dbsize() == 0


def test_bytes_and_kinds_of_values(server: Server, source: Server) -> None:
    database = register(server, source)
    client = server.client()
    client.set(b"user:\xff", b"\x00\xfe")
    client.set("user:number", 12)
    client.set("user:long", "x" * 100_000)
    client.rpush("user:list", "a", "b", b"\xff")
    client.sadd("user:set", "b", "a", 3)
    client.sadd("user:ints", 1, 2, 3)
    client.zadd("user:zset", {"a": 1, "b": 2.5, "c": float("inf"), "d": 0.1})
    client.hset("user:hash", mapping={f"f{number}": "v" * number for number in range(300)})
    client.xadd("user:stream", {"a": 1})
    client.sadd("user:big", *range(2000))
    client.zadd("user:bigz", {f"m{number}": number / 7 for number in range(500)})
    drained(server)
    rows = database.rows()
    assert rows["b'user:\\xff'"] == "b'\\x00\\xfe'"
    assert (rows["user:number"], rows["user:long"]) == ("12", "x" * 100_000)
    assert rows["user:list"] == ["a", "b", "b'\\xff'"]
    assert (rows["user:set"], rows["user:ints"]) == (["3", "a", "b"], ["1", "2", "3"])
    assert rows["user:zset"] == {"a": 1.0, "b": 2.5, "c": float("inf"), "d": 0.1}
    assert rows["user:hash"] == {f"f{number}": "v" * number for number in range(300)}
    assert rows["user:big"] == sorted(map(str, range(2000)))
    assert rows["user:bigz"] == {f"m{number}": number / 7 for number in range(500)}
    stream = [change for change in database.changes() if change["key"] == "user:stream"]
    assert [(change["type"], change["value"], change["event"]) for change in stream] == [("stream", None, "xadd")]


def test_failed_calls_are_made_again(server: Server, source: Server) -> None:
    database = register(server, source, "backoff=0.01")
    database.fail(4)
    client = server.client()
    client.set("user:1", "a")
    wait_for(server, queued=0, saveFailures=4, saved=1)
    assert database.rows() == {"user:1": "a"}
    data = figures(server)
    assert (data["numFailures"], data["numSuccess"]) == (4, 1)
    assert "cannot save 1 of 1 changes" in server.log() and "ConnectionError: the database is away" in server.log()


def test_unregister_waits_for_what_is_not_saved(server: Server, source: Server) -> None:
    database = register(server, source)
    database.fail(1000)
    client = server.client()
    client.set("user:1", "a")
    wait_for(server, queued=1)
    registration = server.registrations()[0]["id"]
    with pytest.raises(Exception, match="1 changes of 'user:\\*' are not saved yet"):
        client.execute_command("RG.UNREGISTER", registration)
    assert len(server.registrations()) == 1
    assert client.execute_command("RG.UNREGISTER", registration, "ABORTPENDING") == "OK"
    assert server.registrations() == []
    client.set("user:1", "b")
    assert client.info("rg_write_behind")["rg_write_behind_queued"] == 0


def test_a_session_ends_as_a_whole_or_not_at_all(server: Server, source: Server) -> None:
    """Whatever of it minds, and wherever that stands among the others."""
    more = """
    read_through('user:*', lambda key: 'loaded')
    write_behind('first:*', save)
    GB('CommandReader').map(lambda _: 'pong').register(trigger='ping')
    """
    database = register(server, source, more=more, words=("ID", "shop"))
    server.run("write_behind('last:*', lambda changes: None)", "ID", "other")
    database.fail(1000)
    client = server.client()
    client.set("user:1", "a")
    wait_until(lambda: any(entry["RegistrationData"].get("queued") for entry in server.registrations()))
    known = [entry["id"] for entry in server.registrations()]
    with pytest.raises(Exception, match="1 changes of 'user:\\*' are not saved yet"):
        client.execute_command("RG.UNREGISTERSESSION", "shop")
    assert [entry["id"] for entry in server.registrations()] == known
    assert client.get("user:2") == "loaded" and client.execute_command("RG.TRIGGER", "ping") == ["pong"]
    client.set("first:1", "b")
    assert client.execute_command("RG.UNREGISTERSESSION", "shop", "ABORTPENDING") == 4
    assert len(server.registrations()) == 1


def test_an_upgrade_goes_on_with_the_queue(server: Server, source: Server) -> None:
    database = register(server, source, words=("ID", "mine"))
    database.fail(1000)
    client = server.client()
    client.set("user:1", "a")
    wait_for(server, queued=1)
    with pytest.raises(Exception, match="not saved yet"):
        client.execute_command("RG.PYEXECUTE", "write_behind('other', print)", "ID", "mine", "UPGRADE")
    assert figures(server)["queued"] == 1
    database.fail(0)
    register(server, source, "batch=7", words=("ID", "mine", "UPGRADE"))
    client.set("user:2", "b")
    drained(server)
    assert database.rows() == {"user:1": "a", "user:2": "b"}
    assert len(server.registrations()) == 1


def test_figures(server: Server, source: Server) -> None:
    database = register(server, source)
    database.client.set("hang", 1)
    client = server.client()
    before = client.info("rg_write_behind")
    client.set("user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    client.set("user:2", "b")
    client.set("user:2", "c")
    wait_until(lambda: figures(server)["oldestMS"] > 0)
    data = figures(server)
    assert (data["queued"], data["captured"], data["coalesced"], data["saved"]) == (2, 3, 1, 0)
    assert data["queuedBytes"] > 400
    database.client.delete("hang")
    database.client.rpush("go", 1)
    drained(server)
    data = figures(server)
    assert (data["queued"], data["saved"], data["batches"], data["dead"], data["retried"]) == (0, 2, 2, 0, 0)
    assert data["saveMaxUS"] >= data["saveP50US"] > 0
    info = client.info("rg_write_behind")
    assert info["rg_write_behind_registrations"] == 1
    assert [info[f"rg_write_behind_{name}_total"] - before[f"rg_write_behind_{name}_total"] for name in ("captured", "saved")] == [3, 2]
    client.execute_command("RG.CLEARREGISTRATIONSSTATS")
    assert figures(server)["saved"] == 0
