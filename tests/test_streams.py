"""StreamReader registrations: batches, positions, policies, pauses, restarts, replicas.

Contract: docs/contract/readers-and-events.md 6, docs/contract/commands.md 1.12; several registrations on one stream and
failed entries: docs/contract/README.md.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from helpers import Server, wait_until
from probes import error_of, executions, raised

GROUP = "__gears_consumer_group__"


def put(server: Server, steps: str = "", **options: Any) -> str:
    """Registers a function that notes `key id n` of each entry in the list `seen`; returns the registration's id."""
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    note = "lambda r: execute('RPUSH', 'seen', r['key'] + ' ' + r['id'] + ' ' + r['value'].get('n', ''))"
    server.run(f"GB('StreamReader'){steps}.foreach({note}).register({given.lstrip(', ')})")
    return server.registrations()[-1]["id"]


def seen(server: Server) -> list[str]:
    """The values `n` of the entries that were processed, in order."""
    return [line.split(" ")[2] for line in server.own.lrange("seen", 0, -1)]


def data(server: Server, place: int = -1) -> dict[str, Any]:
    return server.registrations()[place]["RegistrationData"]


def add(server: Server, *numbers: Any, key: str = "s") -> None:
    client = server.client()
    for number in numbers:
        client.xadd(key, {"n": number})


# --- reading ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async", "async_local", "sync"])
def test_entries_are_processed_and_trimmed(server: Server, mode: str) -> None:
    put(server, prefix="s", mode=mode)
    add(server, 1, 2, 3)
    wait_until(lambda: seen(server) == ["1", "2", "3"])
    wait_until(lambda: server.own.xlen("s") == 0)
    server.wait_idle()
    # The first entry of a new stream takes two executions: one recovers what an earlier life left.
    assert data(server)["numSuccess"] == 4
    assert server.client().xpending("s", GROUP)["pending"] == 0


def test_a_sync_function_runs_before_the_reply(server: Server) -> None:
    if not server.native_hits:
        pytest.skip("before 7.2 it runs a moment later")
    put(server, prefix="s", mode="sync")
    client = server.client()
    for number in range(20):
        client.xadd("s", {"n": number})
        assert (seen(server)[-1], client.xlen("s")) == (str(number), 0)


def test_entries_from_before_the_registration(server: Server) -> None:
    add(server, 1, 2, 3, key="old:1")
    add(server, 4, key="other")
    put(server, prefix="old:*", batch=2)
    wait_until(lambda: seen(server) == ["1", "2", "3"])


def test_batches(server: Server) -> None:
    server.run("GB('StreamReader').count().foreach(lambda n: execute('RPUSH', 'sizes', n)).register('s', batch=3)")
    add(server, *range(10))
    wait_until(lambda: server.own.lrange("sizes", 0, -1) == ["3", "3", "3"])
    assert server.client().xlen("s") == 1


def test_an_incomplete_batch_has_its_time(server: Server) -> None:
    put(server, prefix="s", batch=100, duration=100)
    add(server, 1, 2)
    wait_until(lambda: seen(server) == ["1", "2"])
    assert data(server)["lastEstimatedLagMS"] >= 100


def test_the_position_outlives_the_registration(server: Server) -> None:
    registration = put(server, prefix="s", trimStream=False)
    add(server, 1, 2)
    wait_until(lambda: seen(server) == ["1", "2"])
    server.wait_idle()
    server.client().execute_command("RG.UNREGISTER", registration)
    add(server, 3)
    put(server, prefix="s*", trimStream=False)
    wait_until(lambda: seen(server) == ["1", "2", "3"])
    assert server.client().xlen("s") == 3


def test_a_group_of_1_2_goes_on(server: Server) -> None:
    client = server.client()
    add(server, 1, 2, 3)
    client.xgroup_create("s", GROUP, "0")
    client.xreadgroup(GROUP, "__gears_client__", {"s": ">"}, count=2)
    put(server, prefix="s", batch=10, duration=10)
    wait_until(lambda: seen(server) == ["1", "2", "3"])  # two delivered and not acknowledged, then the rest


def test_registrations_on_one_stream_see_all_entries(server: Server) -> None:
    put(server, prefix="s")
    server.run("GB('StreamReader').foreach(lambda r: execute('RPUSH', 'second', r['value']['n'])).register('s*')")
    add(server, *range(20))
    expected = [str(number) for number in range(20)]
    wait_until(lambda: seen(server) == expected)
    wait_until(lambda: server.own.lrange("second", 0, -1) == expected)
    wait_until(lambda: server.own.xlen("s") == 0)


def test_what_one_registration_has_not_finished_is_not_trimmed(server: Server) -> None:
    put(server, prefix="s")
    put(server, ".foreach(lambda r: flat_error('PAUSE'))", prefix="s*")
    add(server, 1)
    wait_until(lambda: data(server)["status"] == "PAUSED")
    server.wait_idle()
    assert (seen(server), server.client().xlen("s")) == (["1"], 1)


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_a_function_that_adds_to_its_own_stream_loses_nothing(server: Server, mode: str) -> None:
    steps = ".foreach(lambda r: int(r['value']['n']) < 5 and execute('XADD', 's', '*', 'n', int(r['value']['n']) + 1))"
    put(server, steps, prefix="s", mode=mode)
    add(server, 0)
    wait_until(lambda: seen(server) == ["0", "1", "2", "3", "4", "5"])


def test_other_databases_are_left_alone(server: Server) -> None:
    put(server, prefix="*")
    other = server.client(db=5)
    other.xadd("s", {"n": 1})
    add(server, 2)
    wait_until(lambda: seen(server) == ["2"])
    assert other.xlen("s") == 1


def test_own_commands_are_nobodys_events(server: Server) -> None:
    server.run("GB('KeysReader').foreach(lambda r: execute('RPUSH', 'events', r['event'])).register('s', mode='async_local')")
    put(server, prefix="s")
    add(server, 1)
    wait_until(lambda: seen(server) == ["1"])
    server.wait_idle()
    assert server.client().lrange("events", 0, -1) == ["xadd"]


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("prefix=1", "regex argument must be a string"),
        ("batch='5'", "batch argument must be a number"),
        ("batch=0", "batch argument must be a number"),
        ("batch=1.5", "batch argument must be a number"),
        ("duration=-1", "duration argument must be a number"),
        ("onFailedPolicy='never'", "onFailedPolicy must be Continue/Abort/Retry"),
        ("onFailedPolicy=1", "onFailedPolicy must be a string (Continue/Abort/Retry)"),
        ("mode='sync', onFailedPolicy='retry'", "ExecutionMode sync can only be combined with OnFailedPolicy Continue"),
        ("onFailedRetryInterval='x'", "retryInterval argument must be a number"),
        ("batch=2**63", "batch argument must not be above 9223372036854775807"),
        ("duration=2**63", "duration argument must not be above 3162240000000"),
        ("onFailedRetryInterval=2**63-1", "retryInterval argument must not be above 3162240000"),
        ("onFailedRetryInterval=-2**200", "retryInterval argument must be a number"),
        ("trimStream=1", "pyTrimmStream argument must be a boolean"),
    ],
)
def test_bad_arguments(server: Server, arguments: str, error: str) -> None:
    assert raised(server, f"GB('StreamReader').register({arguments})") == f"gears.error: {error}"


# --- failures ---

ONCE = ".foreach(lambda r: 1 / (r['value']['n'] != '2' or execute('EXISTS', 'works')))"


def test_continue_skips_the_failed_entry(server: Server) -> None:
    put(server, ONCE, prefix="s", batch=3)
    add(server, 1, 2, 3)
    wait_until(lambda: seen(server) == ["1", "3"])
    wait_until(lambda: data(server)["numFailures"] == 1)
    wait_until(lambda: server.own.xlen("s") == 0)
    assert data(server)["status"] == "OK"


def test_abort_stops_the_registration(server: Server) -> None:
    registration = put(server, ONCE, prefix="s", onFailedPolicy="ABORT")
    add(server, 1, 2, 3)
    wait_until(lambda: data(server)["status"] == "ABORTED")
    server.wait_idle()
    assert seen(server) == ["1"]
    server.client().set("works", 1)
    server.client().execute_command("RG.UNPAUSEREGISTRATIONS", registration)
    wait_until(lambda: seen(server) == ["1", "2", "3"])


@pytest.mark.parametrize("interval", [0, 1])
def test_retry_brings_the_batch_back(server: Server, interval: int) -> None:
    put(server, ONCE, prefix="s", batch=2, onFailedPolicy="retry", onFailedRetryInterval=interval)
    add(server, 1, 2, 3, 4)
    wait_until(lambda: data(server)["numFailures"] >= 2)
    assert "3" not in seen(server)
    server.client().set("works", 1)
    wait_until(lambda: seen(server)[-4:] == ["1", "2", "3", "4"])
    wait_until(lambda: server.own.xlen("s") == 0)


def test_a_retry_in_a_hundred_years(server: Server) -> None:
    """It blocks nobody: neither a worker nor the timers of others."""
    for number in range(4):
        put(server, ".foreach(lambda r: 1 / 0)", prefix=f"s{number}", onFailedPolicy="retry", onFailedRetryInterval=3162240000)
        add(server, 1, key=f"s{number}")
    wait_until(lambda: [r["RegistrationData"]["status"] for r in server.registrations()] == ["WAITING_FOR_RETRY_ON_FAILURE"] * 4)
    put(server, prefix="t", batch=2, duration=50)
    add(server, 1, key="t")
    wait_until(lambda: seen(server) == ["1"])
    assert server.run("GB('ShardsIDReader').count().run()") == [["1"], []]


PAUSES = """
def work(r):
    execute('RPUSH', 'tried', r['value']['n'])
    if execute('EXISTS', 'works'):
        return
    if r['value']['n'] == '1':
        raise ValueError('a failure')
    if r['value']['n'] == '2':
        flat_error('PAUSE me')

GB('StreamReader').foreach(work).register('s', batch=4, mode='%s')
"""


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_any_error_of_a_batch_can_pause(server: Server, mode: str) -> None:
    client = server.client()
    server.run(PAUSES % mode)
    add(server, 1, 2, 3, 4)
    wait_until(lambda: data(server)["status"] == "PAUSED")
    server.wait_idle()
    assert client.lrange("tried", 0, -1) == ["1", "2"]  # reading has stopped there
    assert (client.xpending("s", GROUP)["pending"], client.xlen("s")) == (4, 4)
    client.set("works", 1)
    client.execute_command("RG.UNPAUSEREGISTRATIONS", server.registrations()[0]["id"])
    wait_until(lambda: client.lrange("tried", 2, -1) == ["1", "2", "3", "4"] and client.xlen("s") == 0)


@pytest.mark.parametrize(("mode", "policy"), [("sync", "continue"), ("async_local", "continue"), ("async", "retry")])
def test_a_function_pauses_itself(server: Server, mode: str, policy: str) -> None:
    put(server, ".foreach(lambda r: flat_error('PAUSE for a while'))", prefix="s", mode=mode, onFailedPolicy=policy)
    add(server, 1)
    wait_until(lambda: data(server)["status"] == "PAUSED")
    assert (data(server)["lastError"], server.client().xlen("s")) == ("PAUSE for a while", 1)
    assert server.client().xpending("s", GROUP)["pending"] == 1


@pytest.mark.parametrize("disturbance", [("DEL", "s"), ("SET", "s", "x"), ("XGROUP", "DESTROY", "s", GROUP), ("FLUSHALL",)])
def test_streams_that_change_under_a_function(server: Server, disturbance: tuple[str, ...]) -> None:
    client = server.client()
    put(server, ".foreach(lambda r: execute(*%r) if execute('INCR', 'n') == 1 else None)" % (disturbance,), prefix="s")
    add(server, 1)
    wait_until(lambda: "1" in seen(server))
    server.wait_idle()
    client.delete("s")
    add(server, 2)
    wait_until(lambda: "2" in seen(server))


# --- pause ---


def test_pause_and_unpause(server: Server) -> None:
    client = server.client()
    first, second = put(server, prefix="a*"), put(server, prefix="b*")
    assert client.execute_command("RG.PAUSEREGISTRATIONS", "ABORTPENDING", first, second) == "OK"
    assert [data(server, place)["status"] for place in (0, 1)] == ["PAUSED", "PAUSED"]
    add(server, 1, key="a1")
    add(server, 2, key="b1")
    assert client.execute_command("RG.UNPAUSEREGISTRATIONS", first) == "OK"
    wait_until(lambda: seen(server) == ["1"])
    assert client.execute_command("RG.UNPAUSEREGISTRATIONS", first, second) == "OK"
    wait_until(lambda: seen(server) == ["1", "2"])
    wait_until(lambda: client.xlen("b1") == 0)


def test_pausing_is_all_or_nothing(server: Server) -> None:
    stream = put(server, prefix="s")
    server.run("GB('KeysReader').register('k')")
    keys = server.registrations()[-1]["id"]
    unknown = stream.rsplit("-", 1)[0] + "-999"
    zeros = "0" * 40
    for ids, error in [
        ((), "ERR wrong number of arguments for 'rg.pauseregistrations' command"),
        (("ABORTPENDING",), "ERR no registration to pause"),
        ((stream, unknown), f"Execution {unknown} does not exists on shard {zeros}"),
        ((stream, keys), "Reader KeysReader does not support pause"),
    ]:
        assert error_of(server, *ids, command="RG.PAUSEREGISTRATIONS") == error
        assert data(server, 0)["status"] == "OK"
    assert error_of(server, keys, command="RG.UNPAUSEREGISTRATIONS") == "Reader KeysReader does not support unpause"


def test_a_pause_cancels_a_retry(server: Server) -> None:
    registration = put(server, ONCE, prefix="s", onFailedPolicy="retry", onFailedRetryInterval=1)
    add(server, 2)
    wait_until(lambda: data(server)["status"] == "WAITING_FOR_RETRY_ON_FAILURE")
    server.client().execute_command("RG.PAUSEREGISTRATIONS", registration)
    failures = data(server)["numFailures"]
    time.sleep(1.5)  # the retry would have come by now
    assert (data(server)["status"], data(server)["numFailures"]) == ("PAUSED", failures)


# --- batches that wait ---


def cpu_seconds(server: Server) -> float:
    """The processor time that the server has used so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_at_rest(server: Server) -> bool:
    before = cpu_seconds(server)
    time.sleep(0.5)
    return cpu_seconds(server) - before < 0.2


WAITS = """
GB('StreamReader').foreach(lambda r: execute('RPUSH', 'seen', '%s ' + r['id'] + ' ' + r['value']['n'])) \
    .foreach(lambda r: 1 / (r['value']['n'] != 'bad' or execute('EXISTS', 'works'))) \
    .register('h*', batch=10, duration=300, onFailedPolicy='abort')
"""


@pytest.mark.parametrize("mode", ["async_local", "sync"])
@pytest.mark.parametrize("event", ["pause", "unregister", "upgrade", "demote", "abort"])
def test_nobody_turns_in_circles_for_a_batch_that_waits(server: Server, event: str, mode: str) -> None:
    client = server.client()
    script = WAITS if mode == "async_local" else WAITS.replace("onFailedPolicy='abort'", "mode='sync'")
    if event == "abort" and mode == "sync":
        pytest.skip("sync functions have no such policy")
    server.run(script % "old", "ID", "waits")
    registration = server.registrations()[0]["id"]
    add(server, 1, key="h1")
    server.wait_idle()
    if event == "pause":
        client.execute_command("RG.PAUSEREGISTRATIONS", registration)
    elif event == "unregister":
        client.execute_command("RG.UNREGISTER", registration)
    elif event == "upgrade":
        server.run(script % "new", "ID", "waits", "UPGRADE")
    elif event == "demote":
        client.replicaof("127.0.0.1", 1)
    else:
        add(server, *(["bad"] * 10), key="h2")
        wait_until(lambda: data(server)["status"] == "ABORTED")
        client.set("works", 1)
    time.sleep(0.4)  # the time of the batch is over
    assert is_at_rest(server)
    if event in ("pause", "abort"):
        assert "1" not in seen(server)
        client.execute_command("RG.UNPAUSEREGISTRATIONS", registration)
    elif event == "demote":
        assert seen(server) == []
        client.replicaof("NO", "ONE")
    if event == "unregister":
        assert (seen(server), client.xlen("h1")) == ([], 1)
        return
    by = "new" if event == "upgrade" else "old"
    wait_until(lambda: [line for line in client.lrange("seen", 0, -1) if line.endswith(" 1")])
    server.wait_idle()
    assert [line.split()[0] for line in client.lrange("seen", 0, -1) if line.endswith(" 1")] == [by]


# --- streams in the place of others ---


def add_as(client: redis.Redis, *ids: str, key: str = "s") -> None:
    """Adds entries with these ids, all in one transaction; `n` is the id."""
    pipe = client.pipeline(transaction=True)
    for entry in ids:
        pipe.xadd(key, {"n": entry}, id=entry)
    pipe.execute()


LOWER = ["1-1", "1-2", "1-3", "1-4", "1-5"]


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_a_stream_with_lower_ids_in_the_place_of_another(server: Server, mode: str) -> None:
    client = server.client()
    put(server, prefix="s", mode=mode)
    add_as(client, "100-1")
    wait_until(lambda: seen(server) == ["100-1"] and client.xlen("s") == 0)
    server.wait_idle()
    client.delete("s")
    add_as(client, *LOWER)
    wait_until(lambda: seen(server) == ["100-1", *LOWER])
    wait_until(lambda: client.xlen("s") == 0)


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_renamed_stream_is_read_from_its_beginning(server: Server, batch: int, known: bool, trim: bool) -> None:
    client = server.client()
    put(server, prefix="q", batch=batch, trimStream=trim)
    if known:
        add(server, *range(batch), key="q")
        wait_until(lambda: len(seen(server)) == batch)
        server.wait_idle()
    first = seen(server)
    add(server, *(f"old{number}" for number in range(1, 6)), key="other")
    # In one: the scan that follows a registration may be late, and is not to see the stream without its last entry.
    pipe = client.pipeline(transaction=True)
    pipe.rename("other", "q")
    pipe.xadd("q", {"n": "new"})
    pipe.execute()
    expected = [*first, "old1", "old2", "old3", "old4", "old5", "new"]
    wait_until(lambda: seen(server) == expected)
    server.wait_idle()
    assert (seen(server), client.xlen("q")) == (expected, 0 if trim else 6)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_renamed_stream_that_has_the_group_already(server: Server, batch: int) -> None:
    client = server.client()
    put(server, prefix="q", batch=batch)
    add_as(client, *(f"900-{number}" for number in range(1, batch + 1)), key="q")
    wait_until(lambda: len(seen(server)) == batch)
    server.wait_idle()
    first = seen(server)
    add_as(client, *LOWER, key="other")
    client.xgroup_create("other", GROUP, "0")
    client.xreadgroup(GROUP, "__gears_client__", {"other": ">"}, count=2)
    client.xack("other", GROUP, "1-1")
    client.rename("other", "q")
    add_as(client, "2-1", key="q")
    wait_until(lambda: set(seen(server)) == {*first, "1-2", "1-3", "1-4", "1-5", "2-1"})
    server.wait_idle()
    assert client.xlen("q") == 0


# --- the end of a registration while a batch runs ---

SLOW = """
import time

def work(r):
    execute('RPUSH', 'log', 'begin %(who)s ' + r['value']['n'])
    while r['value']['n'] == '1' and not execute('GET', 'go %(who)s'):
        time.sleep(0.001)
    execute('RPUSH', 'log', 'end %(who)s ' + r['value']['n'])
    if execute('GET', 'fails %(who)s'):
        raise ValueError('%(who)s fails')

GB('StreamReader').foreach(work).register('s', mode='async_local', onFailedPolicy='abort')
"""


def log(server: Server) -> list[str]:
    return server.own.lrange("log", 0, -1)


def begin_slow(server: Server) -> str:
    """Registers `old`, adds entry 1 and waits until that one is under way; then adds entry 2. The registration's id."""
    server.run(SLOW % {"who": "old"}, "ID", "slow")
    add(server, 1)
    wait_until(lambda: log(server) == ["begin old 1"])
    add(server, 2)
    return server.registrations()[0]["id"]


@pytest.mark.parametrize("others", [False, True])
def test_what_an_ended_registration_has_finished_is_trimmed(server: Server, others: bool) -> None:
    client = server.client()
    registration = begin_slow(server)
    if others:
        put(server, prefix="s*")
        wait_until(lambda: seen(server) == ["1", "2"])
    client.execute_command("RG.UNREGISTER", registration)
    client.set("go old", 1)
    wait_until(lambda: client.xpending("s", GROUP)["pending"] == 0)
    # What the others have finished is left to them.
    wait_until(lambda: [fields["n"] for _, fields in client.xrange("s")] == ["2"])
    assert log(server) == ["begin old 1", "end old 1"]
    add(server, 3)
    if others:
        wait_until(lambda: seen(server) == ["1", "2", "3"] and client.xlen("s") == 0)
    else:
        assert client.xlen("s") == 2


def test_an_upgrade_waits_for_the_batch_that_runs(server: Server) -> None:
    client = server.client()
    begin_slow(server)
    client.set("go new", 1)
    server.run(SLOW % {"who": "new"}, "ID", "slow", "UPGRADE")
    add(server, 3)
    put(server, prefix="t")
    add(server, 4, key="t")
    wait_until(lambda: seen(server) == ["4"])  # other streams do not wait
    assert log(server) == ["begin old 1"]
    client.set("go old", 1)
    wait_until(lambda: client.xlen("s") == 0)
    server.wait_idle()
    assert log(server) == ["begin old 1", "end old 1", "begin new 2", "end new 2", "begin new 3", "end new 3"]


@pytest.mark.parametrize("end", ["fails", "aborted"])
def test_an_upgrade_takes_over_what_the_old_batch_has_not_finished(server: Server, end: str) -> None:
    client = server.client()
    begin_slow(server)
    client.set("go new", 1)
    [running] = [name for name, one in executions(server).items() if one["status"] == "running"]
    server.run(SLOW % {"who": "new"}, "ID", "slow", "UPGRADE")
    if end == "fails":
        client.mset({"fails old": 1, "go old": 1})
    else:
        client.execute_command("RG.ABORTEXECUTION", running)
    wait_until(lambda: client.xlen("s") == 0)
    server.wait_idle()
    assert log(server)[-4:] == ["begin new 1", "end new 1", "begin new 2", "end new 2"]
    assert log(server)[:-4] == (["begin old 1", "end old 1"] if end == "fails" else ["begin old 1"])


def test_a_short_demotion_does_not_bring_two_executions_of_one_stream(server: Server) -> None:
    client = server.client()
    begin_slow(server)
    client.replicaof("127.0.0.1", 1)
    client.replicaof("NO", "ONE")
    put(server, prefix="t")
    add(server, 4, key="t")
    wait_until(lambda: seen(server) == ["4"])
    assert log(server) == ["begin old 1"]
    client.set("go old", 1)
    wait_until(lambda: client.xlen("s") == 0)
    server.wait_idle()
    # What was under way may have been lost with the data of the time before.
    assert log(server) == [f"{what} old {number}" for number in (1, 1, 2) for what in ("begin", "end")]


# --- restart, replicas ---


def test_a_replica_knows_the_position(server: Server, start_server: Callable[..., Server]) -> None:
    replica = start_server()
    put(server, prefix="s*", trimStream=False)
    put(server, ".foreach(lambda r: flat_error('PAUSE'))", prefix="s2")
    add(server, 1, 2, 3, key="s1")
    add(server, 4, key="s2")
    wait_until(lambda: data(server)["status"] == "PAUSED")
    server.wait_idle()
    replica.client().replicaof(server.host, server.port)
    add(server, 5, 6, key="s1")
    wait_until(lambda: len(seen(server)) == 6)
    server.wait_idle()
    wait_until(lambda: len(replica.own.lrange("seen", 0, -1)) == 6)
    assert server.client().wait(1, 5000) == 1
    for key in ("s1", "s2"):
        assert replica.client().xrange(key) == server.client().xrange(key)
        groups = [[(g["name"], g["pending"], g["last-delivered-id"]) for g in one.client().xinfo_groups(key)] for one in (server, replica)]
        assert groups[0] == groups[1]


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_trimming_reaches_replicas_after_the_entry(server: Server, start_server: Callable[..., Server], mode: str) -> None:
    replica = start_server()
    replica.client().replicaof(server.host, server.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    put(server, prefix="s", mode=mode)
    add(server, *range(20))
    wait_until(lambda: len(seen(server)) == 20 and server.own.xlen("s") == 0)
    wait_until(lambda: len(replica.own.lrange("seen", 0, -1)) == 20 and replica.own.xlen("s") == 0)


# Slow enough that there is always something to be finished when the server is killed.
NOTE = """
import time

def note(r):
    execute('RPUSH', 'seen:' + r['key'], r['value']['n'])
    time.sleep(0.001)

GB('StreamReader').foreach(note).register('s:*', batch=7, duration=20)
"""
STREAMS = 10


class Producers:
    """Threads that add numbered entries to ten streams, whatever happens to the server, and note what was acknowledged:
    by the server, and by as many of its replicas as given."""

    def __init__(self, server: Server, per_stream: int, replicas: int = 0) -> None:
        self.server, self.per_stream, self.replicas = server, per_stream, replicas
        self.acknowledged: list[list[int]] = [[] for _ in range(STREAMS)]
        self.threads = [threading.Thread(target=self._produce, args=(stream,)) for stream in range(STREAMS)]
        for thread in self.threads:
            thread.start()

    def move(self, server: Server) -> None:
        """From now on they add to another server, which has no replicas."""
        self.replicas, self.server = 0, server

    def _produce(self, stream: int) -> None:
        server, number = self.server, 0
        client = server.client()
        while number < self.per_stream:
            if server is not self.server:
                server = self.server
                client = server.client()
            replicas = self.replicas
            try:
                client.xadd(f"s:{stream}", {"n": number})
                if not replicas or client.wait(replicas, 5000) >= replicas:
                    self.acknowledged[stream].append(number)
            except (redis.ConnectionError, redis.TimeoutError):
                time.sleep(0.02)  # it may be there or not: the next one has another number
            except redis.ResponseError:
                time.sleep(0.02)  # the server is loading, or a replica
                continue
            number += 1

    def count(self) -> int:
        return sum(map(len, self.acknowledged))

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def first_seen(server: Server, stream: int) -> list[int]:
    """The numbers of a stream in the order in which they were processed first."""
    processed = [int(number) for number in server.client().lrange(f"seen:s:{stream}", 0, -1)]
    return list(dict.fromkeys(processed))


def kill(server: Server) -> None:
    server.death_expected = True
    server.process.kill()
    server.process.wait()
    server._client = None


def check_processed(server: Server, producers: Producers, *, complete: bool = True) -> None:
    """Waits until all is processed; nothing that was acknowledged may be missing, and each stream must be in order."""
    client = server.client()
    wait_until(lambda: all(client.xlen(f"s:{stream}") == 0 for stream in range(STREAMS)), timeout=120)
    server.wait_idle()
    assert [registration["reader"] for registration in server.registrations()] == ["StreamReader"]
    for stream in range(STREAMS):
        first = first_seen(server, stream)
        assert first == sorted(first), f"stream {stream} is out of order"
        missing = set(producers.acknowledged[stream]) - set(first)
        assert not (complete and missing), f"stream {stream} lost {sorted(missing)}"
        pending = client.xpending(f"s:{stream}", GROUP)["pending"]
        assert pending == 0, f"stream {stream} has {pending} entries that nobody finished"


def check_kills(start_server: Callable[..., Server], fsync: str, per_stream: int, kills: int) -> None:
    server = start_server(args=["--appendonly", "yes", "--appendfsync", fsync])
    server.run(NOTE)
    producers = Producers(server, per_stream)
    for number in range(1, kills + 1):
        awaited = number * per_stream * STREAMS // (kills + 2)
        wait_until(lambda: producers.count() > awaited, timeout=300)
        kill(server)
        server.start(timeout=60)
    producers.join()
    check_processed(server, producers, complete=fsync == "always")


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_no_entry_is_lost_by_kills(start_server: Callable[..., Server], fsync: str) -> None:
    check_kills(start_server, fsync, per_stream=400, kills=3)


@pytest.mark.soak
@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_no_entry_of_many_is_lost_by_many_kills(start_server: Callable[..., Server], fsync: str) -> None:
    check_kills(start_server, fsync, per_stream=2000, kills=5)


def check_failover(server: Server, replica: Server, per_stream: int) -> None:
    replica.client().replicaof(server.host, server.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    server.run(NOTE)
    producers = Producers(server, per_stream, replicas=1)
    wait_until(lambda: producers.count() > per_stream * STREAMS // 3, timeout=300)
    kill(server)
    producers.move(replica)
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    producers.join()
    assert producers.count() > per_stream * STREAMS * 0.9
    check_processed(replica, producers)


def test_a_promoted_replica_goes_on(server: Server, start_server: Callable[..., Server]) -> None:
    check_failover(server, start_server(), per_stream=400)


@pytest.mark.soak
def test_a_replica_promoted_under_load_loses_nothing_of_many(server: Server, start_server: Callable[..., Server]) -> None:
    check_failover(server, start_server(), per_stream=2000)


@pytest.mark.parametrize("mode", ["async_local", "sync"])
def test_upgrades_and_pauses_under_load_lose_and_repeat_nothing(server: Server, mode: str) -> None:
    client = server.client()
    script = NOTE.replace("duration=20", f"duration=20, mode='{mode}'")
    server.run(script, "ID", "load")
    producers = Producers(server, 200)
    for number in range(60):
        registration = server.registrations()[-1]["id"]
        if number % 3 == 0:
            server.run(script, "ID", "load", "UPGRADE")
        elif number % 3 == 1:
            client.execute_command("RG.PAUSEREGISTRATIONS", registration)
            client.execute_command("RG.UNPAUSEREGISTRATIONS", registration)
        else:
            client.execute_command("RG.UNREGISTER", registration)
            server.run(script, "ID", "load", "UPGRADE")
    producers.join()
    check_processed(server, producers)
    for stream in range(STREAMS):
        assert client.lrange(f"seen:s:{stream}", 0, -1) == [str(number) for number in range(200)]


def test_streams_that_are_gone_take_no_memory(server: Server) -> None:
    """A registration knew the name of each stream for ever that it had seen."""
    server.run("GB('StreamReader').foreach(lambda r: None).register('job:*', trimStream=True)")
    client = server.client()
    used = []
    for turn in range(12):
        names = [f"job:{turn}:{number}:" + "x" * 500 for number in range(1000)]
        pipe = client.pipeline(transaction=False)
        for name in names:
            pipe.xadd(name, {"a": 1})
        pipe.execute()
        wait_until(lambda: data(server)["numSuccess"] >= 2000 * (turn + 1), timeout=60)
        server.wait_idle()
        client.unlink(*names)
        wait_until(lambda: client.info("memory")["lazyfree_pending_objects"] == 0)
        used.append(client.info("memory")["used_memory"])
    # Eight turns, of which each left a megabyte.
    assert max(used[8:]) - min(used[2:5]) < 3_000_000, used
