"""Loads that fail, clients that give up, sources that are down, bounds: each waiting client gets exactly one reply, and nothing
leaks. Contract: docs/contract/read-through.md chapters 1 and 3.
"""

from __future__ import annotations

import time
from typing import Callable

import pytest

from figures import figures, wait_for
from helpers import Server, as_dict, wait_until
from read_through import at_rest, register

pytestmark = pytest.mark.matrix


def test_an_exception_is_told_by_its_type_only(server: Server, source: Server) -> None:
    origin = register(server, source, "backoff=0")
    raws = [server.raw() for _ in range(20)]
    for raw in raws:
        raw.send("GET", "user:1")
    wait_for(server, waiting=20)
    origin.give("user:1", "!ValueError password=secret")
    assert {raw.read() for raw in raws} == {b"-LOADFAILED ValueError\r\n"}
    data = figures(server)
    assert "password=secret" in data["lastError"]
    assert (data["loadFailures"], data["numFailures"], origin.loads()) == (1, 1, 1)
    at_rest(server)


def test_a_miss_instead_of_an_error(server: Server, source: Server) -> None:
    origin = register(server, source, "on_error='miss', backoff=0")
    raw = server.raw()
    raw.send("MGET", "user:1", "other")
    origin.give("user:1", "!KeyError x")
    assert raw.read() == b"*2\r\n$-1\r\n$-1\r\n"
    at_rest(server)


def test_each_registration_has_its_own_answer_to_errors(server: Server, source: Server) -> None:
    origin = register(server, source, "on_error='miss', backoff=0", prefix="soft:*")
    register(server, source, "backoff=0", prefix="hard:*")
    raw = server.raw()
    raw.send("MGET", "soft:1", "hard:1")
    origin.wait_for_loads(2)
    origin.give("hard:1", "!KeyError x")
    assert raw.read() == b"-LOADFAILED KeyError\r\n"
    origin.give("soft:1", "v")
    wait_until(lambda: server.own.exists("soft:1"), message="the other load goes on")
    at_rest(server)


@pytest.mark.parametrize(("other", "arguments"), [("hard:1", "backoff=0"), ("soft:2", "")], ids=["of another registration", "of the same one"])
def test_a_miss_of_one_key_does_not_let_the_others_go(server: Server, source: Server, other: str, arguments: str) -> None:
    """A key that could not be loaded is decided, and the command waits for the rest."""
    origin = register(server, source, "on_error='miss', backoff=0", prefix="soft:*")
    register(server, source, "backoff=0", prefix="hard:*")
    raw = server.raw()
    raw.send("MGET", "soft:1", other)
    origin.wait_for_loads(2)
    origin.give("soft:1", "!KeyError x")
    wait_until(lambda: sum(figures(server, place)["loadFailures"] for place in (0, 1)) == 1)
    origin.give(other, "v")
    assert raw.read() == b"*2\r\n$-1\r\n$1\r\nv\r\n"
    at_rest(server)


def test_a_key_that_backs_off_does_not_let_the_others_go(server: Server, source: Server) -> None:
    origin = register(server, source, "on_error='miss', backoff=60, max_backoff=60")
    origin.give("user:1", "!KeyError x")
    raw = server.raw()
    assert raw.call("GET", "user:1") == b"$-1\r\n"
    raw.send("MGET", "user:1", "user:2")
    origin.give("user:2", "v")
    assert raw.read() == b"*2\r\n$-1\r\n$1\r\nv\r\n"
    assert raw.call("GET", "user:1") == b"$-1\r\n"
    assert origin.loads() == 2
    at_rest(server)


def test_a_miss_does_not_hide_an_error_behind_it(server: Server, source: Server) -> None:
    origin = register(server, source, "on_error='miss', backoff=0", prefix="soft:*")
    register(server, source, "backoff=0", prefix="hard:*")
    raw = server.raw()
    raw.send("MGET", "soft:1", "hard:1")
    origin.wait_for_loads(2)
    origin.give("soft:1", "!KeyError x")
    wait_until(lambda: sum(figures(server, place)["loadFailures"] for place in (0, 1)) == 1)
    origin.give("hard:1", "!ValueError x")
    assert raw.read() == b"-LOADFAILED ValueError\r\n"
    at_rest(server)


def test_who_waits_no_longer_for_one_key_waits_for_the_others(server: Server, source: Server) -> None:
    origin = register(server, source, "on_error='miss', timeout=0.05", prefix="soft:*")
    register(server, source, "timeout=20", prefix="hard:*")
    raw = server.raw()
    raw.send("MGET", "soft:1", "hard:1")
    wait_until(lambda: sum(figures(server, place)["timeouts"] for place in (0, 1)) == 1)
    origin.give("hard:1", "v")
    assert raw.read() == b"*2\r\n$-1\r\n$1\r\nv\r\n"
    origin.give("soft:1", "late")
    wait_until(lambda: server.own.get("soft:1") == "late", message="the load goes on")
    at_rest(server)


def test_a_lifetime_that_cannot_be_told_names_what_was_raised(server: Server) -> None:
    server.run("""
def lifetime(key, value):
    raise KeyError(key)
read_through('user:*', lambda key: 'v', ttl=lifetime, backoff=0)
""")
    assert server.raw().call("GET", "user:1") == b"-LOADFAILED KeyError\r\n"


def test_who_has_waited_long_enough_is_let_go_and_the_load_goes_on(server: Server, source: Server) -> None:
    origin = register(server, source, "timeout=0.05")
    raw = server.raw()
    assert raw.call("GET", "user:1") == b"-LOADFAILED TimedOut\r\n"
    assert figures(server)["timeouts"] == 1
    origin.give("user:1", "v")
    wait_until(lambda: server.own.exists("user:1"))
    assert raw.call("GET", "user:1") == b"$1\r\nv\r\n"
    assert origin.loads() == 1
    at_rest(server)


def test_a_load_that_takes_too_long_has_failed_and_another_may_begin(server: Server, source: Server) -> None:
    origin = register(server, source, "max_load_time=3, backoff=0")
    raw = server.raw(20)
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    assert raw.read() == b"-LOADFAILED LoadTimedOut\r\n"
    wait_until(lambda: "LoadTimedOut: the load took longer than max_load_time" in (figures(server)["lastError"] or ""))
    raw.send("GET", "user:1")
    origin.wait_for_loads(2)
    # Both of the loads get something: what the old one brings is dropped.
    origin.give("user:1", "first")
    origin.give("user:1", "second")
    assert raw.read() in (b"$5\r\nfirst\r\n", b"$6\r\nsecond\r\n", b"-LOADFAILED LoadTimedOut\r\n")
    at_rest(server)


def test_a_coroutine_that_takes_too_long_is_stopped(server: Server) -> None:
    server.run("""
        import asyncio
        @read_through('k:*', max_load_time=0.05, backoff=0)
        async def load(key):
            if key == 'k:slow':
                await asyncio.sleep(60)
            return 'v'
    """)
    raw = server.raw()
    assert raw.call("GET", "k:slow") == b"-LOADFAILED LoadTimedOut\r\n"
    wait_until(lambda: "LoadTimedOut" in (figures(server)["lastError"] or ""))
    assert raw.call("GET", "k:1") == b"$1\r\nv\r\n"
    at_rest(server)
    wait_until(lambda: server.own.execute_command("RG.DUMPEXECUTIONS") == [])
    data = figures(server)
    assert (data["loadFailures"], data["numFailures"], data["numAborted"]) == (1, 1, 0)


def test_what_says_nothing_of_the_source_is_no_failure(start_server: Callable[..., Server], source: Server) -> None:
    """A load that MaxPendingPerRegistration refuses, and one that somebody aborts: neither back-off nor breaker count them."""
    server = start_server(module_args=["ExecutionThreads", "1", "MaxPendingPerRegistration", "1"])
    origin = register(server, source, "backoff=60, max_backoff=60, breaker=(1, 60)")
    raws = [server.raw() for _ in range(3)]
    raws[0].send("GET", "user:0")
    origin.wait_for_loads(1)
    raws[1].send("GET", "user:1")
    wait_for(server, waiting=2)
    assert raws[2].call("GET", "user:2") == b"-LOADFAILED TooManyPending\r\n"
    data = figures(server)
    assert (data["refusals"], data["loadFailures"], data["breaker"]) == (1, 0, "closed")
    for execution in map(as_dict, server.client().execute_command("RG.DUMPEXECUTIONS")):
        server.client().execute_command("RG.ABORTEXECUTION", execution["executionId"])
    assert [raw.read() for raw in raws[:2]] == [b"-LOADFAILED Aborted\r\n"] * 2
    data = figures(server)
    assert (data["loadFailures"], data["breaker"]) == (0, "closed")
    for number, raw in enumerate(raws):
        origin.give(f"user:{number}", "v")
        assert raw.call("GET", f"user:{number}") == b"$1\r\nv\r\n"
    at_rest(server)


def test_after_a_failure_there_is_no_load_for_a_while(server: Server, source: Server) -> None:
    origin = register(server, source, "backoff=0.3, max_backoff=60")
    raw = server.raw()
    origin.give("user:1", "!KeyError x")
    assert raw.call("GET", "user:1") == b"-LOADFAILED KeyError\r\n"
    assert raw.call("GET", "user:1") == b"-LOADFAILED BackingOff\r\n"
    assert (origin.loads(), figures(server)["refusals"]) == (1, 1)
    origin.give("user:2", "v")
    assert raw.call("GET", "user:2") == b"$1\r\nv\r\n", "it is about one key"
    origin.give("user:1", "v")
    wait_until(lambda: raw.call("GET", "user:1") == b"$1\r\nv\r\n")
    at_rest(server)


def test_a_breaker_spares_a_source_that_is_down(server: Server, source: Server) -> None:
    origin = register(server, source, "backoff=0, breaker=(3, 0.5)")
    raw = server.raw()
    for number in range(3):
        origin.give(f"user:{number}", "!KeyError x")
        assert raw.call("GET", f"user:{number}") == b"-LOADFAILED KeyError\r\n"
    assert figures(server)["breaker"] == "open"
    for number in range(50):
        assert raw.call("GET", f"user:{number}") == b"-LOADFAILED BreakerOpen\r\n"
    assert origin.loads() == 3
    wait_until(lambda: figures(server)["breaker"] == "half-open")
    trial, other = server.raw(), server.raw()
    trial.send("GET", "user:9")
    origin.wait_for_loads(4)
    assert other.call("GET", "user:8") == b"-LOADFAILED BreakerOpen\r\n", "one trial"
    origin.give("user:9", "v")
    assert trial.read() == b"$1\r\nv\r\n"
    assert figures(server)["breaker"] == "closed"
    at_rest(server)
    turns = [line.split("the breaker of registration ")[1].split()[1].strip(":") for line in server.log().splitlines() if "the breaker of" in line]
    assert turns == ["opens", "closes"]


def test_so_many_clients_wait_and_no_more(server: Server, source: Server) -> None:
    origin = register(server, source, "max_waiting=3")
    raws = [server.raw() for _ in range(3)]
    for raw in raws:
        raw.send("GET", "user:1")
    wait_for(server, waiting=3)
    raw = server.raw()
    assert raw.call("GET", "user:1") == b"-LOADFAILED TooManyWaiting\r\n"
    assert figures(server)["refusals"] == 1
    origin.give("user:1", "v")
    assert {waiting.read() for waiting in raws} == {b"$1\r\nv\r\n"}
    assert raw.call("GET", "user:1") == b"$1\r\nv\r\n"
    at_rest(server)


def test_so_many_loads_run_and_further_ones_queue(server: Server, source: Server) -> None:
    origin = register(server, source, "max_loads=2")
    raws = [server.raw() for _ in range(6)]
    for number, raw in enumerate(raws):
        raw.send("GET", f"user:{number}")
    wait_for(server, waiting=6, loading=2, queued=4)
    origin.wait_for_loads(2)
    for number in range(6):
        assert origin.loads() <= 2 + number
        origin.give(f"user:{number}", f"v{number}")
        assert raws[number].read() == f"$2\r\nv{number}\r\n".encode()
    at_rest(server)


def test_clients_that_go_away_leave_nothing_behind(server: Server, source: Server) -> None:
    origin = register(server, source, "max_loads=1")
    raws = [server.raw() for _ in range(10)]
    for number, raw in enumerate(raws):
        raw.send("GET", f"user:{number % 5}")
    wait_for(server, waiting=10)
    for raw in raws[:5]:
        raw.close()
    wait_for(server, waiting=5)
    server.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_for(server, waiting=0)
    origin.give("user:0", "v")
    at_rest(server)
    assert origin.loads() == 1, "nobody waits for those that had not begun"
    assert server.client().get("user:0") == "v"


def test_client_unblock_leaves_a_waiting_client_alone(server: Server, source: Server) -> None:
    origin = register(server, source)
    raw, client = server.raw(), server.client()
    number = int(raw.call("CLIENT", "ID")[1:])
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    client.execute_command("CLIENT", "UNBLOCK", number)
    origin.give("user:1", "v")
    assert raw.read() == b"$1\r\nv\r\n"
    at_rest(server)


@pytest.mark.parametrize("kind", ["ALL", "WRITE"])
def test_nothing_is_stored_while_clients_are_paused(server: Server, source: Server, kind: str) -> None:
    origin = register(server, source, "timeout=20")
    raw, other = server.raw(), server.client()
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    offset = other.info("replication")["master_repl_offset"]
    other.execute_command("CLIENT", "PAUSE", 400, kind)
    paused = time.monotonic()
    origin.give("user:1", "v")
    assert raw.read() == b"$1\r\nv\r\n"
    assert time.monotonic() - paused > 0.3
    assert other.info("replication")["master_repl_offset"] >= offset
    at_rest(server)


def test_a_removed_registration_lets_its_clients_go(server: Server, source: Server) -> None:
    origin = register(server, source)
    raws = [server.raw() for _ in range(5)]
    for raw in raws:
        raw.send("GET", "user:1")
    wait_for(server, waiting=5)
    origin.wait_for_loads(1)
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    assert {raw.read() for raw in raws} == {b"$-1\r\n"}
    origin.give("user:1", "v")
    assert server.client().get("user:1") is None
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == 0)


def test_what_an_old_loader_found_out_says_nothing_of_a_new_one(server: Server) -> None:
    options = "negative_ttl=60, backoff=60, max_backoff=60"
    server.run(f"read_through('k:*', lambda key: None if key == 'k:none' else 1 / 0, {options})", "ID", "s")
    raw = server.raw()
    assert raw.call("GET", "k:none") == b"$-1\r\n"
    assert raw.call("GET", "k:1") == b"-LOADFAILED ZeroDivisionError\r\n"
    server.run(f"read_through('k:*', lambda key: 'there', {options})", "ID", "s", "UPGRADE")
    assert [raw.call("GET", key) for key in ("k:none", "k:1")] == [b"$5\r\nthere\r\n"] * 2


def test_an_upgrade_takes_over_who_waits(server: Server, source: Server) -> None:
    origin = register(server, source, "", "def load(key):\n    return fetch(key)", "user:*", "ID", "s")
    raw = server.raw()
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    server.run("read_through('user:*', lambda key: 'new code')", "ID", "s", "UPGRADE")
    assert raw.read() == b"$8\r\nnew code\r\n"
    origin.give("user:1", "old code")
    assert server.client().get("user:1") == "new code"
    at_rest(server)


def test_reloaded_data_bring_new_loads(server: Server, source: Server) -> None:
    origin = register(server, source)
    raw = server.raw()
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    server.client().execute_command("DEBUG", "RELOAD")
    origin.wait_for_loads(2)
    origin.give("user:1", "v")
    origin.give("user:1", "v")
    assert raw.read() == b"$1\r\nv\r\n"
    at_rest(server)


def test_a_replica_answers_plainly(server: Server, source: Server, start_server: Callable[..., Server]) -> None:
    origin = register(server, source)
    replica = start_server()
    replica.client().execute_command("REPLICAOF", server.host, server.port)
    wait_until(lambda: replica.registrations(), timeout=20)
    assert replica.client().get("user:1") is None and replica.client().get("other") is None
    # The server tells of the miss: a key of an MGET each.
    assert replica.client().mget("user:1", "user:2") == [None, None]
    assert figures(replica)["plainMisses"] == 3
    raw = server.raw()
    raw.send("GET", "user:1")
    origin.wait_for_loads(1)
    origin.give("user:1", "v")
    assert raw.read() == b"$1\r\nv\r\n"
    wait_until(lambda: replica.own.get("user:1") == "v")
    # Promoted, it loads.
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    promoted = replica.raw()
    promoted.send("GET", "user:2")
    origin.give("user:2", "w")
    assert promoted.read() == b"$1\r\nw\r\n"
    at_rest(replica)


def test_who_waits_when_the_role_changes_gets_one_reply(
    server: Server, source: Server, start_server: Callable[..., Server]
) -> None:
    origin = register(server, source)
    master = start_server()
    raws = [server.raw() for _ in range(5)]
    for raw in raws:
        raw.send("GET", "user:1")
    wait_for(server, waiting=5)
    server.client().execute_command("REPLICAOF", master.host, master.port)
    for raw in raws:
        assert raw.read().startswith((b"$-1", b"-UNBLOCKED"))
    origin.give("user:1", "v")
    wait_until(lambda: server.own.info("clients")["blocked_clients"] == 0)
    assert server.client().get("user:1") is None
