"""`write_behind`: bounds of the queue, write-through, changes that cannot be saved. Contract: docs/contract/write-behind.md chapters 1 and 2.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from figures import figures, wait_for
from helpers import Server, wait_until
from write_behind import drained, register

pytestmark = pytest.mark.matrix


def test_a_full_queue_lets_writes_wait(server: Server, source: Server) -> None:
    database = register(server, source, "max_queue=5")
    database.fail(1_000_000)
    client = server.client()
    for number in range(5):
        client.set(f"user:{number}", number)
    wait_for(server, queued=5)
    raws = [server.raw() for _ in range(4)]
    raws[0].send("SET", "user:10", "waits")
    raws[1].send("HSET", "user:11", "f", "v")
    raws[2].send("MSET", "user:12", 1, "other", 2)
    raws[3].send("DEL", "user:13")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 4)
    assert client.exists("user:10", "user:11", "user:12", "other") == 0, "they have not taken effect"
    # What replaces a change passes, and so do other keys, transactions and scripts.
    client.set("user:3", "replaced")
    client.set("other", "x")
    with client.pipeline(transaction=True) as pipe:
        pipe.set("user:20", "in a transaction").execute()
    client.eval("redis.call('SET', KEYS[1], 'in a script')", 1, "user:21")
    assert client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 4
    gone = server.raw()
    gone.send("SET", "user:30", "never")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 5)
    gone.close()
    wait_until(lambda: client.info("clients")["blocked_clients"] == 4)
    database.fail(0)
    assert [raw.read() for raw in raws] == [b"+OK\r\n", b":1\r\n", b"+OK\r\n", b":0\r\n"]
    drained(server)
    rows = database.rows()
    assert rows == {**{f"user:{number}": str(number) for number in (0, 1, 2, 4)}, "user:3": "replaced", "user:10": "waits",
                    "user:11": {"f": "v"}, "user:12": "1", "user:20": "in a transaction", "user:21": "in a script"}
    assert figures(server)["waitedForRoom"] == 5


@pytest.mark.parametrize("script", ["", "more"], ids=["one queue", "two queues"])
def test_a_full_queue_lets_writes_wait_for_so_long(server: Server, source: Server, script: str) -> None:
    other = "write_behind('user:1*', save, max_queue=2, backoff=0.05, max_backoff=0.05, full_timeout=1000)" if script else ""
    database = register(server, source, "max_queue=2, full_timeout=0.4, backoff=0.05, max_backoff=0.05", more=other)
    database.fail(1_000_000)
    client, raws = server.client(), [server.raw() for _ in range(3)]
    client.mset({"user:1": "a", "user:12": "a"})
    place = 1 if script else 0
    wait_for(server, place, queued=2)
    before = time.monotonic()
    raws[0].send("SET", "user:13", "waits")
    raws[1].send("HSET", "user:14", "f", "v")
    gone = server.raw()
    gone.send("SET", "user:15", "never")
    wait_until(lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 3)
    gone.close()
    full = b"user:1*" if script else b"user:*"
    assert [raw.read() for raw in raws[:2]] == [b"-QUEUEFULL 2 changes of '" + full + b"' are not saved yet\r\n"] * 2
    assert 0.4 <= time.monotonic() - before < 5
    assert client.exists("user:13", "user:14", "user:15") == 0, "they have had no effect"
    data = figures(server, place)
    assert (data["waitedForRoom"], data["refusals"]) == (3, 2)
    assert client.info("clients")["blocked_clients"] == 0
    # Who is let in before that is not refused.
    raws[2].send("SET", "user:13", "waits")
    wait_until(lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 1)
    database.fail(0)
    assert raws[2].read() == b"+OK\r\n"
    drained(server, 0)
    drained(server, place)
    assert database.rows() == {"user:1": "a", "user:12": "a", "user:13": "waits"}


def test_who_waits_for_room_is_let_in_when_his_change_replaces_one(server: Server, source: Server) -> None:
    """One that a call has is replaced by none; behind the call, which fails, it is."""
    database = register(server, source, "max_queue=2, max_save_time=0.3, backoff=100, max_backoff=100")
    database.client.set("hang", 1)
    client, raws = server.client(), [server.raw() for _ in range(3)]
    client.mset({"user:1": "a", "user:2": "a"})
    wait_until(lambda: database.client.llen("hanging") == 1)
    raws[0].send("SET", "user:3", "waits")
    raws[1].send("SET", "user:1", "b")
    raws[2].send("MSET", "user:2", "c", "user:3", "c")
    wait_until(lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 3)
    assert client.get("user:1") == "a"
    assert raws[1].read() == b"+OK\r\n", "while there is no room"
    assert (figures(server)["queued"], figures(server)["saveFailures"], client.get("user:1")) == (2, 1, "b")
    assert client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_room"] == 2
    assert client.exists("user:3") == 0


def test_a_full_queue_refuses_writes(server: Server, source: Server) -> None:
    database = register(server, source, "max_queue_bytes=2000, on_full='error', backoff=0.5")
    database.fail(1_000_000)
    client, raw = server.client(), server.raw()
    client.set("user:1", "x" * 2000)
    wait_for(server, queued=1)
    assert raw.call("SET", "user:2", "b") == b"-QUEUEFULL 1 changes of 'user:*' are not saved yet\r\n"
    assert client.exists("user:2") == 0
    raw.call("MULTI")
    raw.call("SET", "user:3", "b")
    raw.call("SET", "other", "b")
    assert raw.call("EXEC").startswith(b"*2\r\n-QUEUEFULL")
    assert client.get("other") == "b"
    assert raw.call("EVAL", "return redis.pcall('SET', KEYS[1], 'x')", 1, "user:4").startswith(b"-QUEUEFULL")
    # A change that a call of save has is not replaced: now none has, for the pause after a failure.
    failures = figures(server)["saveFailures"]
    wait_until(lambda: figures(server)["saveFailures"] > failures)
    assert client.set("user:1", "small")
    assert client.set("user:2", "b"), "there is room again"
    database.fail(0)
    drained(server)
    assert database.rows() == {"user:1": "small", "user:2": "b"}
    assert figures(server)["refusals"] == 3


def test_write_through_answers_when_the_change_is_saved(server: Server, source: Server) -> None:
    database = register(server, source, "wait=True")
    database.client.set("hang", 1)
    raws = [server.raw() for _ in range(3)]
    client = server.client()
    raws[0].send("SET", "user:1", "a")
    wait_until(lambda: database.client.llen("hanging") == 1)
    raws[1].send("HSET", "user:2", "f", "v")
    raws[2].send("SET", "user:2x", "v", "GET")
    wait_until(lambda: client.info("clients")["blocked_clients"] == 3)
    assert client.get("user:1") == "a", "visible before it is saved"
    client.set("other", "does not wait")
    assert client.expire("user:1", 100), "no change of a value"
    assert client.get("user:1") == "a"
    with client.pipeline(transaction=True) as pipe:
        assert pipe.set("user:3", "in a transaction").execute() == [True]
    database.client.delete("hang")
    database.client.rpush("go", 1)
    assert [raw.read() for raw in raws] == [b"+OK\r\n", b":1\r\n", b"$-1\r\n"]
    assert database.row("user:1") == "a" and database.row("user:2") == {"f": "v"}
    assert client.delete("user:nothing") == 0
    assert raws[0].call("HSET", "user:1", "f", "v").startswith(b"-WRONGTYPE")
    drained(server)
    wait_until(lambda: client.info("clients")["blocked_clients"] == 0)


def test_a_transaction_with_a_wrong_command_is_refused(server: Server, source: Server) -> None:
    register(server, source, "wait=True", more="read_through('user:*', lambda key: None)")
    raw = server.raw()
    for wrong in (["SET", "user:1"], ["HSET", "user:1", "f"], ["GET", "user:1", "user:2"]):
        raw.call("MULTI")
        assert raw.call("SET", "user:2", "a") == b"+QUEUED\r\n"
        assert raw.call(*wrong).startswith(b"-ERR wrong number of arguments")
        assert raw.call("EXEC").startswith(b"-EXECABORT")
    assert server.client().exists("user:2") == 0


def test_write_through_gives_up_and_the_change_stays(server: Server, source: Server) -> None:
    database = register(server, source, "wait=True, timeout=0.3, backoff=0.01")
    database.fail(1_000_000)
    raw, client = server.raw(), server.client()
    before = time.monotonic()
    assert raw.call("SET", "user:1", "a") == b"-SAVEFAILED ConnectionError\r\n"
    assert time.monotonic() - before >= 0.3
    assert client.get("user:1") == "a"
    assert figures(server)["queued"] == 1
    database.fail(0)
    drained(server)
    assert database.rows() == {"user:1": "a"}
    database.client.set("hang", 1)
    assert raw.call("SET", "user:1", "b") == b"-SAVEFAILED Timeout\r\n"
    raw.send("SET", "user:2", "b")
    wait_until(lambda: client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_save"] == 1)
    client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"], "ABORTPENDING")
    assert raw.read() == b"-SAVEFAILED Unregistered\r\n"
    database.client.rpush("go", 1)


def test_write_through_is_told_by_what_replaces_it(server: Server, source: Server) -> None:
    database = register(server, source, "wait=True")
    database.client.set("hang", 1)
    raws = [server.raw() for _ in range(4)]
    for number, raw in enumerate(raws):
        raw.send("SET", "user:1", number)
        if number == 0:
            wait_until(lambda: database.client.llen("hanging") == 1)
    wait_for(server, queued=2, coalesced=2)
    database.client.delete("hang")
    database.client.rpush("go", 1)
    assert [raw.read() for raw in raws] == [b"+OK\r\n"] * 4
    drained(server)
    assert [change["value"] for change in database.changes()] == ["0", "3"]


def test_clients_that_are_gone_are_forgotten(server: Server, source: Server) -> None:
    """Also where they could wait for a long time."""
    database = register(server, source, "wait=True, timeout=1000, backoff=0.05")
    database.fail(1_000_000)
    client = server.client()
    stays = server.raw()
    stays.send("SET", "user:1", "stays")
    waiting = lambda: int(client.info("rg_write_behind")["rg_write_behind_clients_waiting_for_save"])  # noqa: E731
    wait_until(lambda: waiting() == 1)
    most = 0
    for number in range(300):
        raw = server.raw()
        captured = figures(server)["captured"]
        raw.send("SET", "user:1", number)
        wait_until(lambda: figures(server)["captured"] > captured)
        raw.close()
        most = max(most, waiting())
    wait_until(lambda: client.info("clients")["blocked_clients"] == 1)
    assert 64 <= most <= 66, "they are looked for now and then"
    database.fail(0)
    assert stays.read() == b"+OK\r\n"
    drained(server)
    wait_until(lambda: waiting() == 0)


def letters(server: Server, name: str = "dead") -> list[dict[str, Any]]:
    return [fields for _, fields in server.own.xrange(name)]


def test_a_change_that_fails_is_put_away_with_its_error(server: Server, source: Server) -> None:
    database = register(server, source, "max_tries=2, dead_letter='user:dead', backoff=0.01, batch=50")
    database.poison("user:7", "user:33")
    client = server.client()
    client.mset({f"user:{number}": number for number in range(60)})
    wait_for(server, queued=0, dead=2)
    client.delete("user:33")
    wait_for(server, queued=1)
    client.set("user:other", "saved since then")
    wait_for(server, queued=0, dead=3)
    expected = {f"user:{number}" for number in range(60) if number not in (7, 33)}
    assert set(database.rows()) == expected | {"user:other"}
    assert sorted(letter["key"] for letter in letters(server, "user:dead")) == ["user:33", "user:33", "user:7"]
    dead = {letter["key"]: letter for letter in letters(server, "user:dead")}
    letter = dead["user:7"]
    assert (letter["event"], letter["type"], letter["value"], letter["error"], letter["db"]) == ("set", "string", "7", "ValueError", "0")
    assert "bad row user:7" in letter["traceback"] and int(letter["tries"]) >= 2
    assert letter["registration"] == server.registrations()[0]["id"]
    assert (dead["user:33"]["type"], dead["user:33"]["event"]) == ("", "del")
    assert figures(server)["captured"] == 62, "dead letters are never captured"
    assert server.log().count("write_behind: registration") == 1, "that it cannot save is said once a minute"
    # A change of the key behind it is saved.
    database.poison()
    client.set("user:7", "good")
    drained(server)
    assert database.row("user:7") == "good"


def test_a_dead_letter_has_all_bytes_of_its_value(server: Server, source: Server) -> None:
    database = register(server, source, "max_tries=1, dead_letter='dead', backoff=0.01")
    database.poison("user:set", "user:hash")
    raw = server.raw()
    raw.call("SADD", "user:set", b"a\xfe", b"a\xff", "\u00e4\u20ac".encode())
    raw.call("HSET", "user:hash", b"f\xfe", b"\x00\xff", b"f\xff", b"\xed\xa0\x80")
    wait_for(server, queued=2)
    server.client().set("user:other", "saved since then")
    wait_for(server, queued=0, dead=2)
    values = {letter["key"]: json.loads(letter["value"]) for letter in letters(server)}
    as_bytes = lambda text: text.encode("utf-8", "surrogateescape")
    assert {as_bytes(member) for member in values["user:set"]} == {b"a\xfe", b"a\xff", "\u00e4\u20ac".encode()}
    fields = {as_bytes(name): as_bytes(value) for name, value in values["user:hash"].items()}
    assert fields == {b"f\xfe": b"\x00\xff", b"f\xff": b"\xed\xa0\x80"}


@pytest.mark.parametrize("ordered", ["key", "all"])
@pytest.mark.parametrize("why", ["WRONGTYPE", "NOPERM"])
def test_what_cannot_be_put_away_stays(server: Server, source: Server, why: str, ordered: str) -> None:
    arguments = "max_tries=1, dead_letter='user:dead', backoff=0.01, max_backoff=0.05, batch=1, ordered=%r" % ordered
    client = server.client()
    client.execute_command("ACL", "SETUSER", "app", "reset", "on", "nopass", "~user:*", "+@read")
    database = register(server, source, arguments + (", user='app'" if why == "NOPERM" else ""))
    if why == "WRONGTYPE":
        client.hset("user:dead", "no", "stream")
        drained(server)
    database.poison("user:1")
    client.set("user:1", "bad")
    client.set("user:2", "good")
    wait_until(lambda: "cannot be put into 'user:dead' either" in str(figures(server)["lastError"]))
    assert database.row("user:2") == "good" and figures(server)["queued"] == 1
    failures = figures(server)["saveFailures"]
    wait_until(lambda: figures(server)["saveFailures"] > failures + 2, message="it is tried again")
    assert server.log().count("cannot be put into 'user:dead' either") == 1, "once a minute"
    assert figures(server)["dead"] == 0
    database.poison()
    drained(server)
    assert database.row("user:1") == "bad"
    client.execute_command("ACL", "DELUSER", "app")


def test_an_outage_puts_nothing_away(server: Server, source: Server) -> None:
    database = register(server, source, "max_tries=1, dead_letter='dead', backoff=0.001, max_backoff=0.01, batch=8")
    database.fail(60)
    client = server.client()
    client.mset({f"user:{number}": number for number in range(40)})
    drained(server)
    assert len(database.rows()) == 40 and letters(server) == []
    assert figures(server)["dead"] == 0


def test_without_dead_letters_the_others_go_on(server: Server, source: Server) -> None:
    database = register(server, source, "backoff=0.01, max_backoff=0.05")
    database.poison("user:7")
    client = server.client()
    client.mset({f"user:{number}": number for number in range(20)})
    wait_for(server, queued=1)
    client.mset({f"user:{number}": f"again {number}" for number in range(20)})
    wait_for(server, queued=1, saved=38)
    database.poison()
    drained(server)
    assert database.row("user:7") == "again 7"


def test_the_order_of_all(server: Server, source: Server) -> None:
    database = register(server, source, "ordered='all', batch=3, backoff=0.01")
    database.fail(3)
    client = server.client()
    for number in range(12):
        client.set(f"user:{number % 3}", number)
    drained(server)
    assert [change["value"] for change in database.changes()] == [str(number) for number in range(12)]


@pytest.mark.parametrize("option, argument", [(200, None), (60_000, 0.2)], ids=["option", "argument"])
def test_a_call_that_hangs_is_stopped_and_made_again(server: Server, option: int, argument: float | None) -> None:
    client = server.client()
    client.execute_command("RG.CONFIGSET", "WriteBehindMaxSaveTime", option)
    server.run(f"""
        import time
        calls = []

        @write_behind('k:*', backoff=0.01, max_save_time={argument})
        def save(changes):
            calls.append(len(changes))
            if len(calls) < 3:
                while True:
                    time.sleep(0.01)
            execute('SET', 'saved', len(calls))
    """)
    client.set("k:1", "x")
    wait_until(lambda: client.get("saved") == "3")
    drained(server)
    assert "has taken longer than its max_save_time (200 ms) and is stopped" in server.log()
    client.execute_command("RG.CONFIGSET", "WriteBehindMaxSaveTime", 60_000)


@pytest.mark.parametrize("full", [True, False], ids=["full", "wait"])
def test_who_may_not_wait_is_refused(server: Server, source: Server, full: bool) -> None:
    """A user of single commands, without the rights to the inner ones, where a command has to be looked at before it runs."""
    database = register(server, source, "max_queue=1, backoff=0.05" if full else "wait=True")
    client = server.client()
    client.execute_command("ACL", "SETUSER", "mini", "on", ">secret", "~user:*", "+set", "+hset", "+multi", "+exec", "+eval")
    if full:
        database.fail(1_000_000)
        client.set("user:0", "fills it")
        wait_for(server, queued=1)
    raw = server.raw()
    assert raw.call("AUTH", "mini", "secret") == b"+OK\r\n"
    for words in (["SET", "user:1", "a"], ["HSET", "user:2", "f", "v"], ["EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", "user:3"]):
        reply = raw.call(*words)
        # In a script each server has words of its own for it.
        assert reply.startswith(b"-NOPERM" if words[0] != "EVAL" else (b"-", b"+OK")), reply
    assert raw.call("SET", "elsewhere", "a").startswith(b"-NOPERM"), "his keys are his keys"
    database.fail(0)
    drained(server)
    rows = database.rows()
    assert "user:1" not in rows and "user:2" not in rows
    assert ("user:3" in rows) == bool(client.exists("user:3")), "what took effect is saved"
    client.execute_command("ACL", "SETUSER", "mini", "+rg.innerwrite", "+rg.innerwritemore")
    assert raw.call("SET", "user:1", "a") == b"+OK\r\n"
    drained(server)
    assert database.row("user:1") == "a"
    client.execute_command("ACL", "DELUSER", "mini")
