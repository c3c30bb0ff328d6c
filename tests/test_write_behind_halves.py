"""`read_through` and `write_behind` on the same keys. Contract: docs/contract/write-behind.md 2.5, 2.6 and 2.10."""

from __future__ import annotations

import re

import pytest
import redis

from figures import figures, wait_for
from helpers import Server, wait_until
from servers import ROOT
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

BOTH = """
    loads = []

    def load(key):
        execute('INCR', 'loads')
        text = db.get('row:0:' + key)
        return None if text is None else json.loads(text)

    read_through('user:*', load, onRegistered=connect, {arguments})
"""


def both(server: Server, source: Server, arguments: str = "", saving: str = "") -> Database:
    """Registers both halves; returns the database."""
    return register(server, source, saving, prefix="user:*", more=BOTH.format(arguments=arguments))


def saver(server: Server) -> int:
    return next(place for place, entry in enumerate(server.registrations()) if entry["reader"] == "WriteBehind")


def test_what_was_loaded_is_not_saved(server: Server, source: Server) -> None:
    database = both(server, source, "ttl=100")
    database.client.set("row:0:user:1", '"from the database"')
    client = server.client()
    assert client.get("user:1") == "from the database"
    assert client.get("user:none") is None
    client.set("user:2", "x")
    drained(server, saver(server))
    assert [change["key"] for change in database.changes()] == ["user:2"]


WAYS = """
    GB('CommandReader').map(lambda words: execute(*words[1:])).register(trigger='run', mode='sync')
    GB('CommandReader').map(lambda words: execute(*words[1:])).register(trigger='run_async')
"""


def by(server: Server, way: str, *words: str) -> object:
    """What a command gives that a transaction, a script or a function runs."""
    client = server.client()
    if way == "MULTI":
        pipeline = client.pipeline()
        pipeline.execute_command(*words)
        [reply] = pipeline.execute()
        return reply
    if way == "EVAL":
        # What stands behind the script's name in the text of an error is the server's.
        return client.eval("return redis.call(unpack(ARGV))", 0, *words)
    return client.execute_command("RG.TRIGGER", way, *words)


@pytest.mark.parametrize("way", ["MULTI", "EVAL", "run", "run_async"])
@pytest.mark.parametrize("words", [["HSET", "user:1", "city", "Thun"], ["HINCRBY", "user:1", "age", "1"], ["HSETNX", "user:1", "city", "Thun"]], ids=" ".join)
def test_no_part_is_saved_where_nobody_can_wait(server: Server, source: Server, way: str, words: list[str]) -> None:
    database = both(server, source)
    server.run(WAYS)
    database.client.set("row:0:user:1", '{"name": "Ann", "city": "Bern"}')
    with pytest.raises(redis.ResponseError, match="LOADFAILED CannotWait"):
        by(server, way, *words)
    client = server.client()
    assert client.hgetall("user:1") == {"name": "Ann", "city": "Bern"}, "a plain command loads it"
    assert by(server, way, "HSET", "user:1", "city", "Thun") in (0, ["0"]), "it is there now"
    drained(server, saver(server))
    assert [change["value"] for change in database.changes()] == [{"name": "Ann", "city": "Thun"}]


def test_a_whole_value_passes_where_nobody_can_wait(server: Server, source: Server) -> None:
    """A SET without conditions, and whatever comes behind a DEL."""
    database = both(server, source)
    database.client.set("row:0:user:2", '{"name": "Bob", "city": "Bern"}')
    pipeline = server.client().pipeline()
    pipeline.set("user:1", "all of it")
    pipeline.delete("user:2", "user:3")
    pipeline.hset("user:2", "name", "Eve")
    pipeline.hset("user:3", "name", "Joe")
    pipeline.delete("user:4")
    assert pipeline.execute() == [True, 0, 1, 1, 0]
    assert server.client().eval("redis.call('DEL', 'user:5') return redis.call('HSET', 'user:5', 'name', 'Kim')", 0) == 1
    drained(server, saver(server))
    assert database.rows() == {"user:1": "all of it", "user:2": {"name": "Eve"}, "user:3": {"name": "Joe"}, "user:5": {"name": "Kim"}}


def test_a_change_that_is_not_saved_yet_is_no_part(server: Server, source: Server) -> None:
    """What the queue has is put back first, also where nobody can wait."""
    database = both(server, source, saving="backoff=0.05, max_backoff=0.05")
    database.fail(1000)
    client = server.client()
    client.hset("user:1", mapping={"name": "Ann", "city": "Bern"})
    client.execute_command("DEBUG", "SLEEP", "0.01")
    client.pexpire("user:1", 1)
    wait_until(lambda: client.execute_command("DBSIZE") == 1, message="only `loads` is left")
    assert by(server, "MULTI", "HSET", "user:1", "city", "Thun") == 0
    database.fail(0)
    drained(server, saver(server))
    assert database.row("user:1") == {"name": "Ann", "city": "Thun"}


def test_who_saves_may_write_parts(server: Server, source: Server) -> None:
    """What `save` itself writes is not saved."""
    database = both(server, source)
    server.run("""
        @write_behind('mark:*')
        def save(changes):
            for change in changes:
                execute('HSET', 'user:9', 'seen', change['key'])
                execute('RPUSH', 'marked', change['key'])
    """)
    client = server.client()
    client.set("mark:1", "x")
    wait_until(lambda: client.lrange("marked", 0, -1) == ["mark:1"])
    assert client.hgetall("user:9") == {"seen": "mark:1"}
    # What was written before that is saved by then, if it is at all.
    client.set("user:1", "x")
    drained(server, saver(server))
    assert database.rows() == {"user:1": "x"}


def test_nothing_is_lost_for_want_of_rights(server: Server, source: Server) -> None:
    """Who may not run the inner commands is refused where his change would be lost, or be saved as a part."""
    database = both(server, source)
    database.client.set("row:0:user:1", '{"name": "Ann", "city": "Bern"}')
    database.client.set("row:0:user:2", '"there"')
    server.client().execute_command("ACL", "SETUSER", "mini", "on", ">secret", "~*", "+hset", "+del", "+set")
    client = server.client(username="mini", password="secret")
    for words in (["HSET", "user:1", "city", "Thun"], ["DEL", "user:2"]):
        with pytest.raises(redis.exceptions.NoPermissionError, match="(?i)rg.innerwrite"):
            client.execute_command(*[words[0].lower(), *words[1:]])
    assert client.execute_command("HSET", "other", "a", "b") == 1
    assert client.execute_command("DEL", "other") == 1
    drained(server, saver(server))
    assert database.rows() == {"user:1": {"name": "Ann", "city": "Bern"}, "user:2": "there"}


def test_the_rights_that_the_page_names_are_enough(server: Server, source: Server) -> None:
    """A user of single commands: docs/write-behind.md, "Rights"."""
    database = both(server, source, "ttl=100")
    database.client.set("row:0:user:1", '{"name": "Ann", "city": "Bern"}')
    [rules] = re.findall(r"^    ACL SETUSER app (.*)$", (ROOT / "docs/write-behind.md").read_text(), re.MULTILINE)
    server.client().execute_command("ACL", "SETUSER", "app", "reset", *rules.split())
    client = server.client(username="app", password="secret")
    assert client.hset("user:1", "city", "Thun") == 0
    assert client.hgetall("user:1") == {"name": "Ann", "city": "Thun"}
    assert client.delete("user:2") == 0
    drained(server, saver(server))
    saved = [(change["key"], change["value"]) for change in database.changes()]
    assert saved == [("user:1", {"name": "Ann", "city": "Thun"}), ("user:2", None)]
    server.client().execute_command("ACL", "DELUSER", "app")


def test_a_miss_is_answered_from_the_queue(server: Server, source: Server) -> None:
    database = both(server, source, "ttl=100")
    database.client.set("row:0:user:3", '"old"')
    database.fail(1_000_000)
    client = server.client()
    client.set("user:1", "new")
    client.hset("user:2", mapping={"a": 1, "b": 2})
    client.delete("user:3")
    wait_for(server, saver(server), queued=3)
    client.flushall()
    assert client.get("user:1") == "new"
    assert client.hget("user:2", "b") == "2"
    assert client.get("user:3") is None, "deleted, although the database has it still"
    assert client.exists("loads") == 0
    assert 90 < client.ttl("user:1") <= 100, "stored again with its lifetime"
    assert figures(server, saver(server))["captured"] == 3, "what the queue put back is no change"
    database.fail(0)
    drained(server, saver(server))
    assert database.rows() == {"user:1": "new", "user:2": {"a": "1", "b": "2"}}
    client.flushall()
    assert client.get("user:1") == "new" and client.get("loads") == "1"


def test_the_queue_puts_values_back_at_the_memory_limit(server: Server, source: Server) -> None:
    """What takes a part of a value away needs no memory, and finds what is not saved yet also where there is none."""
    database = both(server, source, "ttl=100", saving="backoff=0.05, max_backoff=0.05")
    database.fail(1_000_000)
    client, raw = server.client(), server.raw()
    for number in range(6):
        client.hset(f"user:{number}", mapping={"a": 1, "b": 2})
    client.rpush("user:list", "x", "y")
    client.flushall()
    client.config_set("maxmemory", 1)
    try:
        assert raw.call("HGET", "user:0", "a") == b"$1\r\n1\r\n"
        assert raw.call("HDEL", "user:1", "a") == b":1\r\n"
        assert raw.call("EVAL", "return redis.call('HDEL', KEYS[1], 'a')", 1, "user:2") == b":1\r\n"
        assert raw.call("LPOP", "user:list") == b"$1\r\nx\r\n"
        raw.call("MULTI")
        queued = raw.call("HDEL", "user:3", "a")
        # 7.0 queues nothing then.
        assert raw.call("EXEC") == (b"*1\r\n:1\r\n" if queued == b"+QUEUED\r\n" else b"-EXECABORT Transaction discarded because of previous errors.\r\n")
        assert raw.call("HSET", "user:4", "a", 5).startswith(b"-OOM")
        assert b"OOM" in raw.call("EVAL", "return redis.call('HSET', KEYS[1], 'a', 5)", 1, "user:4")
        assert raw.call("DEL", "user:5") == b":0\r\n"
    finally:
        client.config_set("maxmemory", 0)
    database.fail(0)
    drained(server, saver(server))
    whole, rest = {"a": "1", "b": "2"}, {"b": "2"}
    assert database.rows() == {"user:0": whole, "user:1": rest, "user:2": rest, "user:list": ["y"], "user:4": whole,
                               "user:3": rest if queued == b"+QUEUED\r\n" else whole}  # fmt: skip


def test_what_the_queue_puts_back_does_not_stay_for_ever_where_a_function_says_how_long(server: Server, source: Server) -> None:
    database = both(server, source, "ttl=lambda key, value: 1000")
    database.fail(1_000_000)
    client = server.client()
    client.set("user:1", "new")
    wait_for(server, saver(server), queued=1)
    client.flushall()
    assert client.get("user:1") == "new"
    assert 0 < client.ttl("user:1") <= 60
    database.fail(0)
    drained(server, saver(server))
    client.flushall()
    assert client.get("user:1") == "new" and 900 < client.ttl("user:1") <= 1000


@pytest.mark.parametrize(
    "command, value",
    [
        ("HSET user:hash b 2", {"a": "1", "b": "2"}),
        ("HINCRBY user:hash a 5", {"a": "6"}),
        ("HSETNX user:hash a 9", None),
        ("APPEND user:text !", "text!"),
        ("RPUSH user:list b", ["a", "b"]),
        ("SETNX user:text other", None),
        ("SET user:text other NX", None),
        ("SET user:text other XX", "other"),
        ("SET user:text whole", "whole"),
    ],
)
def test_partial_writers_wait_for_the_load(server: Server, source: Server, command: str, value: object) -> None:
    database = both(server, source)
    database.client.mset({"row:0:user:hash": '{"a": "1"}', "row:0:user:text": '"text"', "row:0:user:list": '["a"]'})
    client = server.client()
    client.execute_command(*command.split())
    key = command.split()[1]
    loads = 0 if command.endswith("whole") else 1
    assert int(client.get("loads") or 0) == loads
    client.set("user:end", 1)
    drained(server, saver(server))
    saved = {change["key"]: change["value"] for change in database.changes()}
    assert saved.pop("user:end") == "1"
    assert saved == ({} if value is None else {key: value})


def test_who_waits_for_room_makes_no_part_of_what_was_forgotten(server: Server, source: Server) -> None:
    database = both(server, source, saving="max_queue=1")
    database.client.mset({"row:0:user:1": '{"a": "1"}', "row:0:user:2": '{"a": "1"}'})
    client, raws = server.client(), [server.raw() for _ in range(3)]
    assert client.hgetall("user:1") == client.hgetall("user:2") == {"a": "1"}
    database.fail(1_000_000)
    client.set("user:full", "x")
    wait_for(server, saver(server), queued=1)
    raws[0].send("HINCRBY", "user:1", "n", 1)
    raws[1].send("HINCRBY", "user:2", "n", 1)
    raws[2].send("SET", "user:3", "whole")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 3)
    client.flushall()
    assert client.hgetall("user:1") == {"a": "1"}
    database.fail(0)
    assert raws[0].read() == b":1\r\n"
    assert raws[1].read().startswith(b"-TRYAGAIN the cache has forgotten")
    assert raws[2].read() == b"+OK\r\n"
    drained(server, saver(server))
    assert database.row("user:1") == {"a": "1", "n": "1"} and database.row("user:2") == {"a": "1"}
    assert raws[1].call("HINCRBY", "user:2", "n", 1) == b":1\r\n"
    drained(server, saver(server))
    assert database.row("user:2") == {"a": "1", "n": "1"} and database.row("user:3") == "whole"


def test_a_value_that_was_loaded_in_vain_three_times_is_changed_by_nobody(server: Server, source: Server) -> None:
    database = register(server, source, more="""
    def load(key):
        text = db.get('row:0:' + key)
        db.rpush('begun', key)
        db.blpop('end', 20)
        return json.loads(text)

    read_through('user:*', load, onRegistered=connect)
    """)
    database.client.set("row:0:user:1", '"5"')
    client, raw = server.client(), server.raw()
    raw.send("INCR", "user:1")
    for number in range(3):
        wait_until(lambda: database.client.llen("begun") == number + 1)
        client.set("user:1", 10 * number)
        drained(server, saver(server))
        client.flushall()
        database.client.rpush("end", 1)
    assert raw.read().startswith(b"-TRYAGAIN the cache has forgotten")
    assert database.row("user:1") == "20"
    database.client.rpush("end", 1)
    assert raw.call("INCR", "user:1") == b":21\r\n"
    drained(server, saver(server))
    assert database.row("user:1") == "21"


def test_writers_wait_only_where_changes_are_saved(server: Server, source: Server) -> None:
    register(server, source, prefix="user:saved:*", more=BOTH.format(arguments="on_error='miss', backoff=0"))
    client = server.client()
    assert client.hset("user:plain", "f", 1) == 1
    assert client.exists("loads") == 0
    assert client.hset("user:saved:1", "f", 1) == 1
    assert client.get("loads") == "1"
    source.client().set("row:0:user:saved:2", "no json")
    assert server.raw().call("HSET", "user:saved:2", "f", "1").startswith(b"-LOADFAILED JSONDecodeError")
    assert client.exists("user:saved:2") == 0
    assert client.get("user:saved:2") is None, "on_error is for readers"


def test_nothing_is_loaded_over_a_change_that_is_not_saved(server: Server, source: Server) -> None:
    database = both(server, source, "ttl=100")
    database.client.set("row:0:user:1", '"old"')
    database.fail(1_000_000)
    client = server.client()
    client.set("user:1", "new")
    client.execute_command("RG.REFRESH", "user:1")
    assert client.get("user:1") == "new"
    database.fail(0)
    drained(server, saver(server))
    assert database.row("user:1") == "new"
    assert client.execute_command("RG.REFRESH", "user:1") == 1
    assert client.get("user:1") == "new"


def test_the_second_half_may_come_first(server: Server, source: Server) -> None:
    database = register(server, source)
    register(server, source, prefix="elsewhere:*", more=BOTH.format(arguments=""))
    database.client.set("row:0:user:1", '{"a": "1"}')
    client = server.client()
    assert client.hset("user:1", "b", 2) == 1
    assert client.hgetall("user:1") == {"a": "1", "b": "2"}
    wait_until(lambda: database.row("user:1") == {"a": "1", "b": "2"})
