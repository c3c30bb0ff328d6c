"""Commands of clients that have waited, for a load or for room in the queue: what they change is saved as what others change is.
Contract: docs/contract/write-behind.md 1, 2.5 and 2.6."""

from __future__ import annotations

import pytest
import redis

from figures import wait_for
from helpers import RawClient, Server, wait_until
from test_write_behind_halves import both, saver
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix


def blocked(server: Server, count: int = 1) -> None:
    """Waits until so many clients wait."""
    wait_until(lambda: server.client().info("clients")["blocked_clients"] == count)


def released(database: Database) -> None:
    database.client.delete("hang")
    database.client.rpush("go", 1)


@pytest.mark.parametrize("word", ["DEL", "UNLINK"])
@pytest.mark.parametrize("arguments", ["", "wait=True"])
def test_a_deletion_that_waited_for_room_is_saved(server: Server, source: Server, word: str, arguments: str) -> None:
    """Also where the key is not in the cache."""
    database = register(server, source, f"max_queue=1, {arguments}")
    database.client.mset({"row:0:user:1": '"a"', "row:0:user:2": '"b"'})
    raw, first = server.raw(), server.raw()
    database.client.set("hang", 1)
    first.send("SET", "user:first", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    raw.send(word, "user:1", "user:2")
    wait_for(server, waitedForRoom=1)
    released(database)
    assert raw.read() == b":0\r\n"
    drained(server)
    assert database.rows() == {"user:first": "a"}


def test_a_deletion_behind_which_somebody_waits_is_saved_by_then(server: Server, source: Server) -> None:
    """Of a key that is not in the cache: no event tells of it."""
    database = register(server, source, "wait=True")
    database.client.set("row:0:user:1", '"a"')
    assert server.client().delete("user:1") == 0
    assert database.rows() == {}
    database.client.set("hang", 1)
    raw = server.raw()
    raw.send("DEL", "user:2")
    wait_until(lambda: database.client.llen("hanging") == 1)
    blocked(server)
    released(database)
    assert raw.read() == b":0\r\n"


@pytest.mark.parametrize("what", ["load", "room"])
def test_all_who_waited_for_the_same_are_told_that_it_is_saved(server: Server, source: Server, what: str) -> None:
    """Their commands run in one turn of the server's loop, and are one change."""
    database = register(
        server,
        source,
        "wait=True, timeout=100, max_queue=3",
        more="""
        def load(key):
            if db.exists('hold'):
                db.blpop('end', 20)
            return json.loads(db.get('row:0:' + key))

        read_through('user:*', load, onRegistered=connect)
        """,
    )
    database.client.set("row:0:user:1", "7")
    client, first, raws = server.client(), server.raw(), [server.raw() for _ in range(3)]
    if what == "room":
        assert client.get("user:1") == "7"
        database.client.set("hang", 1)
        first.send("MSET", "user:2", "a", "user:3", "a", "user:4", "a")
        wait_until(lambda: database.client.llen("hanging") == 1)
    else:
        database.client.set("hold", 1)
    for raw in raws:
        raw.send("INCR", "user:1")
    blocked(server, len(raws) + (what == "room"))
    released(database)
    database.client.rpush("end", 1)
    assert what == "load" or first.read() == b"+OK\r\n"
    assert sorted(raw.read() for raw in raws) == [b":10\r\n", b":8\r\n", b":9\r\n"]
    assert database.row("user:1") == "10"


PARTS = [
    (["HSET", "user:1", "city", "Thun"], b":0\r\n", {"name": "Ann", "city": "Thun", "age": "7"}),
    (["HDEL", "user:1", "city", "nothing"], b":1\r\n", {"name": "Ann", "age": "7"}),
    (["HINCRBY", "user:1", "age", "1"], b":8\r\n", {"name": "Ann", "city": "Bern", "age": "8"}),
    (["HINCRBYFLOAT", "user:1", "age", "0.5"], b"$3\r\n7.5\r\n", {"name": "Ann", "city": "Bern", "age": "7.5"}),
]
ROW = '{"name": "Ann", "city": "Bern", "age": "7"}'


@pytest.mark.parametrize("words, reply, row", PARTS, ids=[part[0][0] for part in PARTS])
def test_who_waited_for_a_load_waits_until_the_change_is_saved(
    server: Server, source: Server, words: list[str], reply: bytes, row: dict[str, str]
) -> None:
    database = both(server, source, saving="wait=True")
    database.client.set("row:0:user:1", ROW)
    database.client.set("hang", 1)
    raw, client = server.raw(), server.client()
    raw.send(*words)
    wait_until(lambda: database.client.llen("hanging") == 1)
    blocked(server)
    assert client.hgetall("user:1") == row, "visible before it is saved"
    released(database)
    assert raw.read() == reply
    assert database.row("user:1") == row
    assert raw.call("PING") == b"+PONG\r\n"
    drained(server, saver(server))
    assert client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_save"] == 0


def test_it_hears_that_the_change_is_not_saved(server: Server, source: Server) -> None:
    database = both(server, source, saving="wait=True, timeout=0.3, backoff=0.01, max_backoff=0.05")
    database.client.set("row:0:user:1", ROW)
    database.fail(1_000_000)
    raw = server.raw()
    assert raw.call("HSET", "user:1", "city", "Thun") == b"-SAVEFAILED ConnectionError\r\n"
    assert server.client().hget("user:1", "city") == "Thun"
    database.fail(0)
    drained(server, saver(server))
    assert database.row("user:1") == {"name": "Ann", "city": "Thun", "age": "7"}


def test_who_waited_for_room_waits_until_the_change_is_saved(server: Server, source: Server) -> None:
    database = register(server, source, "max_queue=1, wait=True, batch=1")
    raws = [server.raw() for _ in range(4)]
    database.client.set("hang", 1)
    raws[0].send("SET", "user:0", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    for number, raw in enumerate(raws[1:], 1):
        raw.send("SET", f"user:{number}", "a")
    wait_for(server, waitedForRoom=3)
    for number in range(1, 4):
        database.client.rpush("go", 1)
        wait_until(lambda: database.client.llen("hanging") == number + 1)  # noqa: B023
        blocked(server, 4 - number)
    released(database)
    assert [raw.read() for raw in raws] == [b"+OK\r\n"] * 4
    drained(server)
    assert database.rows() == {f"user:{number}": "a" for number in range(4)}


def test_it_runs_in_its_client_s_database_protocol_and_name(server: Server, source: Server) -> None:
    database = both(server, source, saving="wait=True")
    database.client.set("row:1:user:1", ROW)
    database.client.set("row:0:user:2", ROW)
    raw = server.raw()
    raw.call("HELLO", "3")
    assert raw.call("SELECT", "1") == b"+OK\r\n"
    assert raw.call("HGETALL", "user:1") == b"%0\r\n", "the source has rows of database 0 only"
    assert raw.call("HSET", "user:1", "city", "Thun") == b":1\r\n"
    assert raw.call("SELECT", "0") == b"+OK\r\n"
    assert raw.call("SADD", "user:2", "x").startswith(b"-WRONGTYPE")
    # RESP3 has doubles.
    assert raw.call("ZINCRBY", "user:3", "1.5", "member") == b",1.5\r\n"
    assert database.row("user:1", db=1) == {"city": "Thun"}


def test_it_runs_with_its_client_s_rights(server: Server, source: Server) -> None:
    """As they are when it runs."""
    database = both(server, source, saving="wait=True")
    database.client.mset({"row:0:user:1": ROW, "row:0:user:2": ROW})
    client = server.client()
    client.execute_command("ACL", "SETUSER", "ann", "on", "nopass", "~user:*", "+@all")
    raw = server.raw()
    assert raw.call("AUTH", "ann", "x") == b"+OK\r\n"
    assert raw.call("HSET", "user:1", "city", "Thun") == b":0\r\n"
    # No other key than these, whatever the command makes of them.
    assert raw.call("SORT", "user:2", "STORE", "other").startswith(b"-NOPERM")
    client.execute_command("ACL", "SETUSER", "ann", "-hset")
    assert raw.call("HSET", "user:2", "city", "Thun").startswith(b"-NOPERM")
    assert database.row("user:2") == {"name": "Ann", "city": "Bern", "age": "7"}


def test_clients_that_vanish_while_they_wait(server: Server, source: Server) -> None:
    """For room, and then behind their commands: what has run is saved, and nobody else is kept waiting."""
    database = register(server, source, "max_queue=1, wait=True, batch=1")
    database.client.set("hang", 1)
    raws = [server.raw() for _ in range(6)]
    raws[0].send("SET", "user:0", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    for number, raw in enumerate(raws[1:], 1):
        raw.send("SET", f"user:{number}", "a")
        wait_for(server, waitedForRoom=number)
    raws[0].close()
    raws[2].close()
    blocked(server, 4)
    database.client.rpush("go", 1)
    wait_until(lambda: database.client.llen("hanging") == 2)
    raws[1].close()
    raws[4].close()
    blocked(server, 2)
    released(database)
    assert [raws[place].read() for place in (3, 5)] == [b"+OK\r\n"] * 2
    drained(server)
    assert database.rows() == {f"user:{number}": "a" for number in (0, 1, 3, 5)}
    assert server.client().info("rg_write_behind")["rg_write_behind_clients_waiting_for_save"] == 0


LOADER = """
    def load(key):
        'Writes nothing here, and waits if the test says so.'
        if db.exists('load:hang'):
            db.rpush('load:hanging', 1)
            db.blpop('load:go', 20)
        text = db.get('row:0:' + key)
        return None if text is None else json.loads(text)

    read_through('user:*', load)
"""


def limited(server: Server) -> None:
    """Memory is used up, and nothing is evicted."""
    client = server.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1_000_000)


OOM = "command not allowed when used memory"


@pytest.mark.parametrize("words", [["HDEL", "user:1", "city"], ["HSET", "user:1", "city", "Thun"], ["GETDEL", "user:1"]], ids=" ".join)
def test_no_part_is_saved_where_a_loaded_value_has_no_room(server: Server, source: Server, words: list[str]) -> None:
    database = register(server, source, more=LOADER)
    database.client.set("row:0:user:1", ROW if words[0] != "GETDEL" else '"text"')
    limited(server)
    client = server.client()
    try:
        with pytest.raises(redis.ResponseError, match=OOM):
            client.execute_command(*words)
    finally:
        client.config_set("maxmemory", 0)
    drained(server, saver(server))
    assert database.changes() == []
    assert client.execute_command(*words) in (0, 1, "text")
    drained(server, saver(server))
    assert database.row("user:1") == {"HDEL": {"name": "Ann", "age": "7"}, "HSET": {"name": "Ann", "city": "Thun", "age": "7"}}.get(words[0])


def test_nor_where_memory_ends_while_it_is_loaded(server: Server, source: Server) -> None:
    database = register(server, source, more=LOADER)
    database.client.mset({"row:0:user:1": ROW, "load:hang": 1})
    raw, client = server.raw(), server.client()
    raw.send("HSET", "user:1", "city", "Thun")
    wait_until(lambda: database.client.llen("load:hanging") == 1)
    limited(server)
    database.client.rpush("load:go", 1)
    reply = raw.read()
    client.config_set("maxmemory", 0)
    assert reply.startswith(b"-OOM")
    drained(server, saver(server))
    assert database.changes() == []




def herd(server: Server, database: Database, *commands: list[str], user: str = "default") -> list[RawClient]:
    """Clients that wait for one load, in their order; it has ended when this returns. `user`: whose the second one is."""
    database.client.set("load:hang", 1)
    raws = [server.raw() for _ in commands]
    for place, (raw, words) in enumerate(zip(raws, commands)):
        if place == 1 and user != "default":
            assert raw.call("AUTH", user, "x") == b"+OK\r\n"
        raw.send(*words)
        blocked(server, place + 1)
    database.client.delete("load:hang")
    database.client.rpush("load:go", 1)
    return raws


@pytest.mark.parametrize("arguments", ["wait=True", "wait=True, coalesce=False"])
def test_all_who_waited_for_one_load_hear_of_their_own_changes(server: Server, source: Server, arguments: str) -> None:
    """They are let go in one turn of the server's loop, which is one unit of the server's."""
    database = register(server, source, arguments, more=LOADER)
    database.client.set("row:0:user:1", '"10"')
    raws = herd(server, database, *[["INCR", "user:1"]] * 5)
    assert [raw.read() for raw in raws] == [b":%d\r\n" % number for number in range(11, 16)]
    drained(server, saver(server))
    assert database.row("user:1") == "15"
    if "coalesce" in arguments:
        assert [change["value"] for change in database.changes()] == ["11", "12", "13", "14", "15"]


def test_all_who_waited_for_room_hear_of_their_own_changes(server: Server, source: Server) -> None:
    database = register(server, source, "max_queue=3, batch=3, wait=True")
    database.client.set("hang", 1)
    raws = [server.raw() for _ in range(6)]
    raws[0].send("SET", "user:0", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    for number in (1, 2):
        raws[number].send("SET", f"user:{number}", "a")
        wait_for(server, queued=number + 1)
    for raw in raws[3:]:
        raw.send("SET", "user:3", "b")
    wait_for(server, waitedForRoom=3)
    database.client.delete("hang")
    database.client.rpush("go", 1)
    assert [raw.read() for raw in raws] == [b"+OK\r\n"] * 6
    drained(server)
    assert database.row("user:3") == "b"


def test_nothing_runs_for_a_user_who_was_deleted_in_that_turn(server: Server, source: Server) -> None:
    """The server makes the default user of him until it closes his connection; by then his command would have run with its rights."""
    database = register(server, source, "wait=True", more=LOADER)
    server.run("""
        def delete(record):
            execute('ACL', 'DELUSER', 'ann')

        GB('KeysReader').foreach(delete).register(prefix='user:*', eventTypes=['hset'], mode='sync')
    """)
    client = server.client()
    client.execute_command("ACL", "SETUSER", "ann", "on", "nopass", "~user:*", "+@all")
    database.client.set("row:0:user:1", ROW)
    raws = herd(server, database, *(["HSET", "user:1", f"by{place}", "x"] for place in range(3)), user="ann")
    assert [raws[place].read() for place in (0, 2)] == [b":1\r\n"] * 2
    with pytest.raises((ConnectionError, TimeoutError)):
        raws[1].read()
    drained(server, saver(server))
    assert database.row("user:1") == client.hgetall("user:1")
    assert set(client.hgetall("user:1")) == {"name", "city", "age", "by0", "by2"}
