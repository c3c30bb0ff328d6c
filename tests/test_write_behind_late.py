"""`write_behind`: changes are handed on behind their commands, and a file or a stream that ends in between loses none of them.
Contract: docs/contract/write-behind.md 2.1.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from figures import figures, wait_for
from helpers import Server, wait_for_aof, wait_until
from write_behind import Database, drained, register

pytestmark = pytest.mark.matrix

AOF = ["--appendonly", "yes", "--appendfsync", "always"]
OUTAGE = 1_000_000
# The cache forgets these by itself: their DEL is no change.
FORGOTTEN = b"user:e"
# Behind this one it forgets whatever it likes.
EVICTED = b"user:e2"

TURN = """
SET user:1 a
HSET user:2 f 1
HSET user:2 g 2 f 3
EXPIRE user:1 1000
SET user:3 c
SET other x
DEL user:2
INCR user:4
APPEND user:4 0
SET user:5 v PX 1000000
RPUSH user:6 a b
MULTI
SET user:7 1
HSET user:8 f v
EXEC
SET user:7 2
RENAME user:7 user:9
SET user:l 1
MULTI
SET user:m 1
EXPIRE user:l 1000
EXEC
SET user:n 1
EVAL redis.call('SET',KEYS[1],'s')redis.call('SET',KEYS[2],'t') 2 user:a user:b
HINCRBYFLOAT user:8 n 1.5
SET user:c x
SET user:e1 forgotten
PEXPIRE user:e1 1
DEBUG SLEEP 0.01
GET user:e1
SET user:d x
FLUSHALL
SADD user:f m
SWAPDB 0 1
SET user:f again
SELECT 1
SET user:g one
COPY user:g user:h
SETRANGE user:h 1 X
INCRBYFLOAT user:i 1.5
LPOP user:6
SET user:e2 forgotten
CONFIG SET maxmemory 1
CONFIG SET maxmemory 0
SET user:j last
HSET user:k f v
"""


def skip_where_it_is_not_one_step(server: Server) -> None:
    if server.version < (7, 2):
        pytest.skip("there a change follows its command, and a crash between them loses it")


def comes_late(server: Server) -> bool:
    """Whether this server lets changes come late."""
    return server.version >= (7, 2) and not (server.is_valkey and (8, 1) <= server.version < (9, 1, 2))


def commands(content: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """The commands of an AOF file, each with the place where it ends."""
    at = 0

    def line() -> bytes:
        nonlocal at
        end = content.index(b"\r\n", at)
        found, at = content[at:end], end + 2
        return found

    while at < len(content):
        words = []
        for _ in range(int(line()[1:])):
            length = int(line()[1:])
            words.append(content[at : at + length])
            at += length + 2
        yield at, words


class Model:
    """What commands of a file do to keys, and what is to be saved of that: the newest change of each key."""

    def __init__(self) -> None:
        self.dbs: list[dict[bytes, Any]] = [{}, {}]
        self.db = 0
        self.open: list[list[bytes]] | None = None
        self.saved: dict[str, Any] = {}
        self.evicting = False

    def run(self, words: list[bytes]) -> None:
        """One more command is in the file; those of a transaction count when it has ended."""
        name = words[0].upper()
        if name == b"MULTI":
            self.open = []
        elif name == b"EXEC":
            unit, self.open = self.open or [], None
            self.unit(unit)
        elif self.open is not None:
            self.open.append(words)
        else:
            self.unit([words])

    def unit(self, unit: list[list[bytes]]) -> None:
        for words in unit:
            name, *rest = words
            touched = self.apply(name.upper(), rest)
            self.evicting |= EVICTED in touched
            for key in touched:
                if key.startswith(b"user:"):
                    value = self.dbs[self.db].get(key)
                    shown = f"{self.db}:{key.decode()}"
                    if value is not None:
                        self.saved[shown] = value
                    elif not key.startswith(FORGOTTEN) and not self.evicting:
                        self.saved.pop(shown, None)

    def apply(self, name: bytes, rest: list[bytes]) -> list[bytes]:
        """The keys that were changed."""
        keys = self.dbs[self.db]
        if name == b"SELECT":
            self.db = int(rest[0])
        elif name == b"FLUSHALL":
            self.dbs = [{}, {}]
        elif name == b"SWAPDB":
            self.dbs.reverse()
        elif name in (b"DEL", b"UNLINK"):
            for key in rest:
                keys.pop(key, None)
            return rest
        elif name == b"RENAME":
            keys[rest[1]] = keys.pop(rest[0])
            return rest
        elif name == b"COPY":
            keys[rest[1]] = keys[rest[0]]
            return rest[1:2]
        elif name in CHANGES:
            keys[rest[0]] = CHANGES[name](keys.get(rest[0]), [word.decode() for word in rest[1:]])
            return rest[:1]
        elif name not in (b"EXPIRE", b"PEXPIRE", b"PEXPIREAT", b"RG.INNERQUEUE", b"RG.INNERREGISTER"):
            raise AssertionError(f"the model does not know {name!r}")
        return []


CHANGES: dict[bytes, Callable[[Any, list[str]], Any]] = {
    b"SET": lambda old, words: words[0],
    b"HSET": lambda old, words: {**(old or {}), **dict(zip(words[::2], words[1::2]))},
    b"HSETEX": lambda old, words: {**old, words[-2]: words[-1]},
    b"INCR": lambda old, words: str(int(old or 0) + 1),
    b"APPEND": lambda old, words: (old or "") + words[0],
    b"SETRANGE": lambda old, words: old[: int(words[0])] + words[1] + old[int(words[0]) + len(words[1]) :],
    b"RPUSH": lambda old, words: [*(old or []), *words],
    b"LPOP": lambda old, words: old[1:] or None,
    b"SADD": lambda old, words: sorted({*(old or []), *words}),
}


def rows(database: Database) -> dict[str, Any]:
    """All that is saved, by database and key."""
    names = database.client.keys("row:*")
    return {name.removeprefix("row:"): database.row(name.split(":", 2)[2], int(name.split(":")[1])) for name in names}


def newest_file(server: Server) -> Path:
    return max(server.dir.glob("appendonlydir/*.incr.aof"), key=lambda file: int(file.name.split(".")[-3]))


def rewrite(server: Server) -> None:
    """What follows is in a file of its own."""
    client = server.client()
    client.bgrewriteaof()
    wait_for_aof(client)


@pytest.mark.parametrize("preamble", ["yes", "no"])
def test_an_aof_file_that_ends_anywhere_loses_no_change(start_server: Callable[..., Server], source: Server, preamble: str) -> None:
    server = start_server(args=[*AOF, "--aof-use-rdb-preamble", preamble, "--enable-debug-command", "yes", "--maxmemory-policy", "allkeys-random"])
    skip_where_it_is_not_one_step(server)
    database = register(server, source)
    server.client().set("user:0", "in the base")
    drained(server)
    database.fail(OUTAGE)
    rewrite(server)
    raw = server.raw()
    lines = TURN.strip().splitlines()
    words = [line.split(" ", 3) if line.startswith("EVAL") else line.split() for line in lines]
    words = [[*first[:2], *first[2].split(), *first[3].split()] if first[0] == "EVAL" else first for first in words]
    # All of it in one turn of the server's loop.
    raw.send("SET", "user:0", "announces")
    raw.read()
    raw.send_bytes(b"".join(b"*%d\r\n" % len(line) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in line) for line in words))
    replies = [raw.read() for _ in words]
    assert not [(line, reply) for line, reply in zip(lines, replies) if reply.startswith(b"-")]
    server.stop(kill=True)
    file = newest_file(server)
    content = file.read_bytes()
    told = [words for _, words in commands(content)]
    if comes_late(server):
        alone = sum(words[0] == b"MULTI" for words in told)
        assert alone < sum(words[0] in (b"SET", b"HSET") for words in told) - 3, "some changes came late"
    model = Model()
    step = 1 if preamble == "yes" else 7
    for number, (end, words) in enumerate(commands(content)):
        model.run(words)
        # The server goes back to the beginning of a transaction that is cut off: a few of those will do.
        if number % (11 if model.open is not None else step) and end < len(content):
            continue
        file.write_bytes(content[:end])
        database.client.flushall()
        server.start()
        drained(server)
        assert rows(database) == model.saved, f"behind {number} commands of {told}"
        server.stop(kill=True)
        file = newest_file(server)
    server.start()


def in_a_turn(server: Server, *lines: str) -> None:
    """Runs commands in one turn of the loop; what is handed on at its end waits, because clients are paused by then."""
    raw = server.raw()
    raw.send_bytes("".join(f"{line}\r\n" for line in (*lines, "CLIENT PAUSE 60000 WRITE")).encode())
    for _ in range(len(lines) + 1):
        assert not raw.read().startswith(b"-")


@pytest.fixture
def pair(start_server: Callable[..., Server], source: Server) -> tuple[Server, Server, Database]:
    """A master that saves nothing, with a replica that knows its queue."""
    master = start_server(args=["--repl-backlog-size", "1mb"])
    database = register(master, source)
    database.fail(OUTAGE)
    replica = start_server(args=["--replicaof", master.host, master.port, "--save", ""])
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    master.client().set("user:0", "told")
    wait_for(replica, queued=1)
    return master, replica, database


def promoted(master: Server, replica: Server, database: Database) -> dict[str, Any]:
    """The master dies, the replica takes over and saves. What is saved then."""
    master.stop(kill=True)
    database.fail(0)
    replica.client().replicaof("no", "one")
    wait_until(lambda: figures(replica)["queued"] == 0 and "user:0" in database.rows())
    return database.rows()


def test_a_promoted_replica_captures_what_it_was_not_told(pair: tuple[Server, Server, Database]) -> None:
    master, replica, database = pair
    in_a_turn(master, "SET user:1 a", "SET user:1 b", "HSET user:2 f v", "SET other x", "INCR user:3")
    wait_until(lambda: replica.own.get("user:3") == "1")
    expected = {"user:0": "told", "user:1": "b", "user:2": {"f": "v"}, "user:3": "1"}
    assert promoted(master, replica, database) == expected
    ids = [tuple(map(int, change["id"].split("-"))) for change in database.changes()]
    replica.client().set("user:1", "c")
    drained(replica)
    last = database.changes()[-1]
    assert last["value"] == "c" and tuple(map(int, last["id"].split("-"))) > max(ids)


def test_a_replica_that_restarts_still_knows_what_it_was_not_told(pair: tuple[Server, Server, Database]) -> None:
    master, replica, database = pair
    in_a_turn(master, "SET user:1 a")
    wait_until(lambda: replica.own.get("user:1") == "a")
    replica.client().save()
    partial = master.client().info("stats")["sync_partial_ok"]
    replica.stop(kill=True)
    replica.start()
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    assert master.client().info("stats")["sync_partial_ok"] == partial + 1
    assert promoted(master, replica, database) == {"user:0": "told", "user:1": "a"}


@pytest.mark.parametrize("place", ["its own", "beside it"])
def test_replicas_of_a_promoted_replica_hear_what_it_captured(
    pair: tuple[Server, Server, Database], start_server: Callable[..., Server], place: str
) -> None:
    # The server must not hand on the very command that promotes: whoever runs it as its replica ends.
    master, replica, database = pair
    followed = replica if place == "its own" else master
    other = start_server(args=["--replicaof", followed.host, followed.port, "--save", ""])
    linked(other)
    master.client().set("user:0", "told")
    in_a_turn(master, "SET user:1 a", "RPUSH user:2 a")
    wait_until(lambda: other.own.exists("user:2") == 1 and replica.own.exists("user:2") == 1)
    master.stop(kill=True)
    replica.client().replicaof("no", "one")
    if place == "beside it":
        other.client().replicaof(replica.host, replica.port)
    linked(other)
    replica.client().set("user:3", "c")
    wait_for(other, queued=4)
    expected = {"user:0": "told", "user:1": "a", "user:2": ["a"], "user:3": "c"}
    assert promoted(replica, other, database) == expected


def test_a_failover_in_the_turn_of_a_change(pair: tuple[Server, Server, Database], start_server: Callable[..., Server]) -> None:
    master, replica, database = pair
    other = start_server(args=["--replicaof", replica.host, replica.port, "--save", ""])
    linked(other)
    master.client().set("user:0", "told")
    with master.client().pipeline(transaction=False) as pipe:
        pipe.set("user:1", "a").rpush("user:2", "a")
        pipe.execute_command("FAILOVER", "TO", replica.host, replica.port)
        pipe.execute()
    wait_until(lambda: replica.own.info("replication")["role"] == "master")
    linked(other)
    replica.client().set("user:3", "c")
    wait_for(other, queued=4)
    assert promoted(replica, other, database) == {"user:0": "told", "user:1": "a", "user:2": ["a"], "user:3": "c"}


def test_a_master_that_was_a_replica_for_a_moment_tells_what_it_has_not(pair: tuple[Server, Server, Database]) -> None:
    master, replica, database = pair
    with master.client().pipeline(transaction=False) as pipe:
        pipe.set("user:1", "a").execute_command("REPLICAOF", "127.0.0.1", "1")
        pipe.execute()
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "down" or replica.own.get("user:1") == "a")
    master.client().replicaof("no", "one")
    linked(replica)
    master.client().set("user:2", "b")
    wait_for(replica, queued=3)
    assert promoted(master, replica, database) == {"user:0": "told", "user:1": "a", "user:2": "b"}


def test_a_replica_that_begins_with_the_file_of_a_save(pair: tuple[Server, Server, Database], start_server: Callable[..., Server]) -> None:
    master, replica, database = pair
    master.client().set("user:0", "told")
    master.client().save()
    other = start_server(args=["--save", ""])
    other.stop()
    shutil.copy(master.dir / "dump.rdb", other.dir / "dump.rdb")
    other.args += ["--replicaof", master.host, str(master.port)]
    other.start()
    linked(other)
    in_a_turn(master, "SET user:1 a")
    wait_until(lambda: other.own.get("user:1") == "a")
    replica.stop(kill=True)
    assert promoted(master, other, database) == {"user:0": "told", "user:1": "a"}


def test_a_file_in_which_a_registration_for_more_events_comes_later(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=AOF)
    if not comes_late(server):
        pytest.skip("there a change comes with its command")
    database = register(server, source, "events=['set']", prefix="a:*")
    database.fail(OUTAGE)
    server.client().set("a:0", "told")
    register(server, source, prefix="b:*")
    in_a_turn(server, "HSET b:1 f v")
    server.stop(kill=True)
    database.fail(0)
    server.start()
    wait_until(lambda: database.rows() == {"a:0": "told", "b:1": {"f": "v"}})


def test_a_promoted_replica_finds_what_has_gone_with_its_database(pair: tuple[Server, Server, Database]) -> None:
    master, replica, database = pair
    in_a_turn(master, "MULTI", "SET user:1 a", "SWAPDB 0 1", "SET user:2 b", "EXEC")
    wait_until(lambda: replica.own.exists("user:2"))
    promoted(master, replica, database)
    assert rows(database) == {"0:user:0": "told", "1:user:1": "a", "0:user:2": "b"}


def test_what_is_told_after_all_is_one_change(pair: tuple[Server, Server, Database]) -> None:
    master, replica, database = pair
    in_a_turn(master, "SET user:1 a", "SET user:2 b")
    wait_until(lambda: replica.own.get("user:2") == "b")
    master.client().execute_command("CLIENT", "UNPAUSE")
    wait_for(replica, queued=3)
    assert promoted(master, replica, database) == {"user:0": "told", "user:1": "a", "user:2": "b"}
    assert len(database.changes()) == 3


def test_a_file_that_is_written_in_between_has_a_change_once(start_server: Callable[..., Server], source: Server) -> None:
    master = start_server()
    database = register(master, source, "coalesce=True")
    database.fail(OUTAGE)
    one = start_server(args=["--replicaof", master.host, master.port])
    wait_until(lambda: one.own.info("replication")["master_link_status"] == "up")
    master.client().set("user:0", "told")
    in_a_turn(master, "SET user:1 a", "SET user:2 b")
    # Its data have the changes, and so has what follows.
    two = start_server(args=["--replicaof", master.host, master.port])
    wait_until(lambda: two.own.info("replication")["master_link_status"] == "up")
    master.client().execute_command("CLIENT", "UNPAUSE")
    for replica in (one, two):
        wait_for(replica, queued=3, coalesced=0)
    database.fail(0)
    drained(master)
    for replica in (one, two):
        wait_for(replica, queued=0)
    assert database.rows() == {"user:0": "told", "user:1": "a", "user:2": "b"}


def test_what_is_loaded_last_is_no_change(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=AOF)
    database = register(server, source)
    client = server.client()
    server.run("read_through('user:*', lambda key: 'loaded')")
    client.set("user:1", "a")
    client.set("user:2", "b")
    drained(server)
    saved = len(database.changes())
    assert client.get("user:3") == "loaded"
    server.restart(kill=True)
    assert server.client().get("user:3") == "loaded"
    server.client().set("user:4", "d")
    drained(server)
    assert [change["key"] for change in database.changes()[saved:]] == ["user:4"]


def test_what_save_writes_last_is_no_change(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=AOF)
    skip_where_it_is_not_one_step(server)
    server.run("""
def save(changes):
    execute('SET', 'user:mark', 'saved')
    execute('RPUSH', 'keys', *(change['key'] for change in changes))
write_behind('user:*', save)
""")
    client = server.client()
    for value in ("a", "b"):
        client.set("user:1", value)
        drained(server)
    server.stop(kill=True)
    file = newest_file(server)
    content = file.read_bytes()
    # The file ends behind what `save` has written, with its step.
    ends = list(commands(content))
    last = max(place for place, (_, words) in enumerate(ends) if words[:2] == [b"SET", b"user:mark"])
    inside = ends[last - 1][1] == [b"MULTI"]
    end = next(end for end, words in ends[last:] if not inside or words == [b"EXEC"])
    file.write_bytes(content[:end])
    server.start()
    drained(server)
    assert set(server.client().lrange("keys", 0, -1)) == {"user:1"}


def linked(replica: Server) -> None:
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")


def test_what_is_loaded_is_no_change_behind_a_fork(pair: tuple[Server, Server, Database]) -> None:
    master, replica, database = pair
    skip_where_it_is_not_one_step(master)
    master.run("read_through('user:l*', lambda key: 'loaded')")
    master.client().set("user:1", "a")
    wait_for(replica, queued=2)
    master.client().bgsave()
    wait_until(lambda: not master.client().info("persistence")["rdb_bgsave_in_progress"])
    assert master.client().get("user:l") == "loaded"
    wait_until(lambda: replica.own.get("user:l") == "loaded")
    assert promoted(master, replica, database) == {"user:0": "told", "user:1": "a"}


def test_what_is_loaded_first_is_no_change(start_server: Callable[..., Server], source: Server) -> None:
    server = start_server(args=AOF)
    skip_where_it_is_not_one_step(server)
    database = register(server, source)
    server.run("read_through('user:l*', lambda key: 'loaded')")
    for value in ("a", "b"):
        server.client().set("user:1", value)
    drained(server)
    # The file says that changes may come late, and this run of the server has said nothing yet.
    server.restart(kill=True)
    assert server.client().get("user:l") == "loaded"
    server.restart(kill=True)
    server.client().set("user:2", "c")
    drained(server)
    assert database.rows() == {"user:1": "b", "user:2": "c"}


def test_fields_that_expire_are_no_change(pair: tuple[Server, Server, Database]) -> None:
    master, replica, database = pair
    if master.version < ((9, 0) if master.is_valkey else (7, 4)):
        pytest.skip("fields do not expire there")
    client = master.client()
    client.execute_command("HSET", "user:h", "f", "1", "g", "2")
    client.execute_command("HPEXPIRE", "user:h", "20", "FIELDS", "1", "f")
    # Replicas get an HDEL, which is a change where a client sends it.
    wait_until(lambda: replica.own.hlen("user:h") == 1)
    assert promoted(master, replica, database) == {"user:0": "told", "user:h": {"f": "1", "g": "2"}}


@pytest.mark.parametrize("command", ["'INCRBYFLOAT', 'user:n', '1'", "'HINCRBYFLOAT', 'user:n', 'f', '1'", "'SPOP', 'user:s'"])
def test_what_save_writes_is_no_change_where_it_is_handed_on_as_another_command(
    start_server: Callable[..., Server], command: str
) -> None:
    master = start_server()
    skip_where_it_is_not_one_step(master)
    master.run(f"""
import time

def save(changes):
    execute('RPUSH', 'keys', *(change['key'] for change in changes))
    if execute('GETDEL', 'armed'):
        execute({command})
        execute('SET', 'written', 1)
        time.sleep(60)

write_behind('user:*', save)
""")
    replica = start_server(args=["--replicaof", master.host, master.port, "--save", ""])
    linked(replica)
    client = master.client()
    client.sadd("user:s", "a", "b", "c")
    drained(master)
    client.set("armed", 1)
    client.set("user:1", "a")
    wait_until(lambda: replica.own.exists("written"))
    master.stop(kill=True)
    before = replica.own.llen("keys")
    replica.client().replicaof("no", "one")
    wait_until(lambda: replica.own.llen("keys") > before)
    drained(replica)
    assert replica.own.lrange("keys", before, -1) == ["user:1"]


def test_what_was_not_told_before_a_shutdown_is_told_behind_it(pair: tuple[Server, Server, Database]) -> None:
    master, replica, database = pair
    if not comes_late(master):
        pytest.skip("nothing comes late there")
    # The file has changes of which the replica knows nothing, and the replica goes on where it was.
    master.raw().send_bytes(b"SET user:1 a\r\nSET user:2 b\r\nSHUTDOWN SAVE\r\n")
    master.wait_exit(20)
    master.start()
    linked(replica)
    assert master.client().info("stats")["sync_partial_ok"] == 1
    master.client().set("user:3", "c")
    wait_for(replica, queued=4)
    assert promoted(master, replica, database) == {"user:0": "told", "user:1": "a", "user:2": "b", "user:3": "c"}


@pytest.mark.parametrize("command", ["FLUSHALL", "SWAPDB 0 1"])
def test_a_promoted_replica_captures_before_anything_else_happens(pair: tuple[Server, Server, Database], command: str) -> None:
    master, replica, database = pair
    in_a_turn(master, "SET user:1 a")
    wait_until(lambda: replica.own.get("user:1") == "a")
    master.stop(kill=True)
    raw = replica.raw()
    raw.send_bytes(f"REPLICAOF NO ONE\r\n{command}\r\n".encode())
    assert [raw.read()[:1] for _ in range(2)] == [b"+", b"+"]
    database.fail(0)
    drained(replica)
    assert database.rows() == {"user:0": "told", "user:1": "a"}


@pytest.mark.parametrize("arguments", ["coalesce=False", "ordered='all'", "events=['set', 'del']"])
def test_registrations_that_want_each_change_are_told_at_once(
    start_server: Callable[..., Server], source: Server, arguments: str
) -> None:
    server = start_server(args=AOF)
    skip_where_it_is_not_one_step(server)
    database = register(server, source, arguments)
    database.fail(OUTAGE)
    server.client().set("user:0", "told")
    in_a_turn(server, "SET user:1 a", "SET user:1 b")
    server.stop(kill=True)
    told = [words for _, words in commands(newest_file(server).read_bytes())]
    units = [[words[0] for words in told[at : at + 4]] for at, words in enumerate(told) if words[0] == b"MULTI"]
    assert units[-2:] == [[b"MULTI", b"SET", b"RG.INNERQUEUE", b"EXEC"]] * 2
    database.fail(0)
    server.start()
    drained(server)
    assert database.rows() == {"user:0": "told", "user:1": "b"}
    if arguments == "coalesce=False":
        assert [change["value"] for change in database.changes()] == ["told", "a", "b"]
