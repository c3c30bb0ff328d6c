"""Event storms: MaxPendingPerRegistration bounds what waits. The oldest are kept, the newest dropped and counted.

Beyond the original, whose queue has no bound (docs/contract/readers-and-events.md 12 and 13.30): our own option,
issue 4.
"""

from __future__ import annotations

import re
import time
from typing import Any, Callable, Iterable

import pytest

from helpers import Arg, RawClient, Server, as_dict, wait_until
from probes import blocked_clients, error_of, executions, go

LIMIT = 5
DROPPED = "(MaxPendingPerRegistration): new events are dropped"
TOO_MANY = "ERR Could not trigger execution, too many executions are pending"
NIL = b"$-1\r\n"

# The first event is worked on until the key `go` exists; `done` has the keys of all that were worked off.
HOLD = """
import time

def hold(record):
    key = record['key'] if isinstance(record, dict) else record[1]
    execute('RPUSH', 'begun', key)
    while not execute('EXISTS', 'go'):
        time.sleep(0.001)
    execute('RPUSH', 'done', key)
    return key

"""


@pytest.fixture
def server(borrow_server: Callable[..., Server]) -> Server:
    """With one worker: what is not running waits."""
    return borrow_server(module_args=["ExecutionThreads", "1", "MaxPendingPerRegistration", LIMIT])


def hold(server: Server, arguments: str = "'k:*', eventTypes=['set']", mode: str = "async_local") -> None:
    assert server.run(f"{HOLD}GB('KeysReader').foreach(hold).register({arguments}, mode={mode!r})") == "OK"


def events(server: Server, numbers: Iterable[int]) -> None:
    """One SET per number, in one go."""
    pipeline = server.client().pipeline(transaction=False)
    for number in numbers:
        pipeline.set(f"k:{number}", "v")
    pipeline.execute()


def storm(server: Server, count: int) -> None:
    """`count` events, the first of which is being worked on when the others come."""
    events(server, [0])
    wait_until(lambda: server.own.lrange("begun", 0, -1) == ["k:0"])
    events(server, range(1, count))


def ask(server: Server, *words: Arg) -> RawClient:
    """A client that waits for the reply of this command."""
    before = blocked_clients(server)
    raw = server.raw()
    raw.send(*words)
    wait_until(lambda: blocked_clients(server) == before + 1)
    return raw


def counters(server: Server) -> tuple[int, ...]:
    """Of the registration made first."""
    found = min(server.registrations(), key=lambda entry: int(entry["id"].split("-")[1]))["RegistrationData"]
    return tuple(found[name] for name in ("numTriggered", "numSuccess", "numFailures", "numAborted"))


def pending(server: Server) -> int:
    """How much waits, as RG.DUMPREGISTRATIONS VERBOSE shows it for the only registration."""
    [entry] = server.client().execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")
    return as_dict(entry)["pending"]


def pending_in_info(server: Server) -> int:
    text = server.raw().call("INFO", "rg_regisrations").decode()
    [shown] = re.findall(r",pending=(\d+),", text)
    return int(shown)


def lines(server: Server) -> list[str]:
    return [line for line in server.log().splitlines() if DROPPED in line]


# --- policy ---


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async", "async_local"])
@pytest.mark.parametrize("more", ["", ", inorder=True"])
def test_the_oldest_are_kept(server: Server, mode: str, more: str) -> None:
    hold(server, "'k:*', eventTypes=['set']" + more, mode)
    storm(server, 20)
    dropped = 20 - 1 - LIMIT
    assert counters(server) == (20, 0, 0, dropped)
    assert pending(server) == pending_in_info(server) == LIMIT
    assert server.client().info("rg")["rg_queued_executions"] == LIMIT
    go(server)
    server.wait_idle()
    assert counters(server) == (20, 1 + LIMIT, 0, dropped)
    assert pending(server) == pending_in_info(server) == 0
    assert server.client().lrange("done", 0, -1) == [f"k:{number}" for number in range(1 + LIMIT)]


def test_events_of_one_key(server: Server) -> None:
    hold(server)
    storm(server, 1)
    for _ in range(10):
        events(server, [0])
    assert (counters(server), pending(server)) == ((11, 0, 0, 10 - LIMIT), LIMIT)
    go(server)
    server.wait_idle()
    assert counters(server) == (11, 1 + LIMIT, 0, 10 - LIMIT)


def test_when_there_is_room_again_events_are_kept_again(server: Server) -> None:
    hold(server)
    storm(server, 20)
    go(server)
    server.wait_idle()
    for number in range(100, 103):
        events(server, [number])
        server.wait_idle()
    assert server.client().lrange("done", -3, -1) == ["k:100", "k:101", "k:102"]


def test_dropped_events_leave_the_last_error_and_no_execution(server: Server) -> None:
    server.run("GB().foreach(lambda r: flat_error('no')).register('x')")
    server.client().set("x", "1")
    server.wait_idle()
    [failed] = server.registrations()
    client = server.client()
    client.execute_command("RG.UNREGISTER", failed["id"])
    hold(server)
    storm(server, 20)
    assert len(executions(server)) == 1 + LIMIT
    assert server.registrations()[0]["RegistrationData"]["lastError"] is None


@pytest.mark.matrix
def test_the_first_dropped_event_is_logged(server: Server) -> None:
    hold(server)
    storm(server, 20)
    identifier = server.registrations()[0]["id"]
    [line] = wait_until(lambda: lines(server))
    assert f"{LIMIT} executions of registration {identifier} are pending" in line


def test_the_log_has_one_line_per_second(server: Server) -> None:
    hold(server)
    began = time.monotonic()
    storm(server, 20)

    def logged() -> bool:
        events(server, range(20, 70))
        return len(lines(server)) >= 3

    wait_until(logged)
    assert len(lines(server)) <= time.monotonic() - began + 2


@pytest.mark.matrix
def test_each_registration_has_its_own_bound(server: Server) -> None:
    hold(server)
    server.run("GB().foreach(lambda r: execute('RPUSH', 'other', r['key'])).register('o:*', eventTypes=['set'])")
    storm(server, 20)
    client = server.client()
    for number in range(LIMIT):
        client.set(f"o:{number}", "v")
    go(server)
    server.wait_idle()
    assert client.lrange("other", 0, -1) == [f"o:{number}" for number in range(LIMIT)]


def test_sync_functions_never_wait(server: Server) -> None:
    hold(server)
    server.run("GB().foreach(lambda r: execute('INCR', 'sync')).register('k:*', eventTypes=['set'], mode='sync')")
    storm(server, 50)
    assert server.client().get("sync") == "50"


@pytest.mark.matrix
def test_no_entry_of_a_stream_is_dropped(borrow_server: Callable[..., Server]) -> None:
    server = borrow_server(module_args=["ExecutionThreads", "1", "MaxPendingPerRegistration", "1"])
    server.run("GB('StreamReader').foreach(lambda r: execute('SADD', 'done', r['id'])).register('s:*')")
    client = server.client()
    busy = start_busy(server)
    for number in range(60):
        client.xadd(f"s:{number % 10}", {"f": "v"}, id=f"1-{number + 1}")
    go(server)
    client.execute_command("RG.GETRESULTSBLOCKING", busy)
    expected = {f"1-{number + 1}" for number in range(60)}
    wait_until(lambda: client.smembers("done") == expected)


def start_busy(server: Server) -> str:
    """Occupies the worker until the key `go` exists."""
    wait = "import time\ndef wait(record):\n    while not execute('EXISTS', 'go'): time.sleep(0.001)\n"
    execution = server.run(wait + "GB('KeysReader').map(wait).run('k', noScan=True)", "UNBLOCKING")
    wait_until(lambda: executions(server)[execution]["status"] == "running")
    return execution


# --- clients ---


@pytest.mark.matrix
def test_clients_of_dropped_events_have_their_own_reply(server: Server) -> None:
    hold(server, "'k:*', commands=['get', 'mget'], eventTypes=['keymiss']")
    waiting = [ask(server, "GET", "k:0")]
    wait_until(lambda: server.own.exists("begun"))
    waiting += [ask(server, "GET", f"k:{number}") for number in range(1, 1 + LIMIT)]
    raw = server.raw()
    assert raw.call("GET", "k:99") == NIL
    assert raw.call("MGET", "k:98", "k:99") == b"*2\r\n" + 2 * NIL
    assert counters(server) == (9, 0, 0, 3)
    go(server)
    assert [client.read() for client in waiting] == [NIL] * (1 + LIMIT)
    server.wait_idle()
    assert counters(server) == (9, 1 + LIMIT, 0, 3)


def test_a_client_waits_for_those_of_its_events_that_were_kept(server: Server) -> None:
    hold(server, "'k:*', commands=['mget'], eventTypes=['keymiss']")
    raw = ask(server, "MGET", *[f"k:{number}" for number in range(20)])
    done = server.client()
    go(server)
    assert raw.read() == b"*20\r\n" + 20 * NIL
    server.wait_idle()
    triggered, succeeded, failed, aborted = counters(server)
    assert (triggered, failed, triggered - aborted) == (20, 0, succeeded)
    assert done.llen("done") == succeeded and LIMIT <= succeeded <= 1 + LIMIT


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async", "async_local"])
@pytest.mark.parametrize("more", ["", ", inorder=True"])
def test_a_trigger_answers_an_error(server: Server, more: str, mode: str) -> None:
    server.run(f"{HOLD}GB('CommandReader').map(hold).register(trigger='t', mode={mode!r}{more})")
    waiting = [ask(server, "RG.TRIGGER", "t", "0")]
    wait_until(lambda: server.own.exists("begun"))
    waiting += [ask(server, "RG.TRIGGER", "t", number) for number in range(1, 1 + LIMIT)]
    for command in ("RG.TRIGGER", "RG.TRIGGERONKEY"):
        assert error_of(server, "t", "k", command=command) == TOO_MANY
    assert (counters(server), pending(server)) == ((8, 0, 0, 2), LIMIT)
    go(server)
    assert [raw.read() for raw in waiting] == [b"*1\r\n$1\r\n%d\r\n" % number for number in range(1 + LIMIT)]
    assert error_of(server, command="RG.TRIGGER").startswith("ERR wrong number")
    assert counters(server) == (8, 1 + LIMIT, 0, 2)


@pytest.mark.matrix
def test_a_hook_answers_an_error(server: Server) -> None:
    server.run(f"{HOLD}GB('CommandReader').map(hold).register(hook='get', keyprefix='k:', mode='async_local')")
    waiting = [ask(server, "GET", "k:0")]
    wait_until(lambda: server.own.exists("begun"))
    waiting += [ask(server, "GET", f"k:{number}") for number in range(1, 1 + LIMIT)]
    assert error_of(server, "k:9", command="GET") == TOO_MANY
    assert server.raw().call("GET", "other") == NIL
    go(server)
    assert [raw.read() for raw in waiting] == [b"$3\r\nk:%d\r\n" % number for number in range(1 + LIMIT)]
    assert counters(server) == (7, 1 + LIMIT, 0, 1)


def test_sync_triggers_and_hooks_have_no_bound(server: Server) -> None:
    server.client().execute_command("RG.CONFIGSET", "MaxPendingPerRegistration", 1)
    server.run("GB('CommandReader').register(trigger='t', mode='sync')")
    server.run("GB('CommandReader').map(lambda r: 'hooked').register(hook='get', mode='sync')")
    pipeline = server.client().pipeline(transaction=False)
    for _ in range(20):
        pipeline.execute_command("RG.TRIGGER", "t").get("k")
    assert pipeline.execute() == [["['t']"], "hooked"] * 20


# --- the option ---


@pytest.mark.matrix
def test_there_is_no_bound_by_default(borrow_server: Callable[..., Server]) -> None:
    server = borrow_server(module_args=["ExecutionThreads", "1"])
    client = server.client()
    assert client.execute_command("RG.CONFIGGET", "MaxPendingPerRegistration") == [0]
    assert client.config_get("rg.max-pending-per-registration") == {"rg.max-pending-per-registration": "0"}
    hold(server)
    storm(server, 3000)
    assert (counters(server), pending(server)) == ((3000, 0, 0, 0), 2999)
    go(server)
    wait_until(lambda: pending(server) == 0, 30)
    server.wait_idle()
    assert counters(server) == (3000, 3000, 0, 0)
    assert client.llen("done") == 3000 and lines(server) == []


@pytest.mark.parametrize(
    "command", [["RG.CONFIGSET", "MaxPendingPerRegistration"], ["CONFIG", "SET", "rg.max-pending-per-registration"]]
)
def test_a_change_concerns_new_events(server: Server, command: list[str]) -> None:
    hold(server)
    storm(server, 20)
    client = server.client()
    client.execute_command(*command, LIMIT - 2)
    events(server, [100])
    assert pending(server) == LIMIT  # those that wait stay
    client.execute_command(*command, LIMIT + 2)
    events(server, range(101, 110))
    assert pending(server) == LIMIT + 2
    client.execute_command(*command, 0)
    events(server, range(110, 120))
    assert pending(server) == LIMIT + 12
    go(server)
    server.wait_idle()
    expected = [*range(1 + LIMIT), 101, 102, *range(110, 120)]
    assert client.lrange("done", 0, -1) == [f"k:{number}" for number in expected]


@pytest.mark.parametrize("value", ["-1", "x"])
def test_refused_values(server: Server, value: str) -> None:
    [reply] = server.client().execute_command("RG.CONFIGSET", "MaxPendingPerRegistration", value)
    assert "Failed setting config value MaxPendingPerRegistration" in str(reply)
    assert server.raw().call("CONFIG", "SET", "rg.max-pending-per-registration", value).startswith(b"-ERR")


# --- ends ---


@pytest.mark.parametrize("how", ["abort", "unregister", "reload"])
def test_what_is_aborted_waits_no_longer(server: Server, how: str) -> None:
    hold(server)
    storm(server, 20)
    client = server.client()
    if how == "abort":
        queued = [name for name, entry in executions(server).items() if entry["status"] == "created"]
        for number, execution in enumerate(queued, 1):
            client.execute_command("RG.ABORTEXECUTION", execution)
            assert pending(server) == LIMIT - number
    elif how == "unregister":
        client.execute_command("RG.UNREGISTER", server.registrations()[0]["id"], "ABORTPENDING")
    else:
        client.execute_command("DEBUG", "RELOAD")
        wait_until(lambda: pending(server) == 0)
    go(server)
    server.wait_idle()
    assert client.lrange("done", 0, -1) == ["k:0"]
    assert client.info("rg")["rg_queued_executions"] == 0
    if how != "unregister":
        events(server, [100])
        wait_until(lambda: client.lrange("done", 0, -1) == ["k:0", "k:100"])


# --- memory ---


def used_memory(server: Server) -> int:
    return int(server.own.info("memory")["used_memory"])


def grown(server: Server, count: int) -> tuple[int, Any]:
    """How much memory `count` waiting events take, and how much was used before."""
    hold(server, "'k:*', eventTypes=['set'], readValue=False")
    events(server, range(count))  # the keys themselves take memory, too
    go(server)
    server.wait_idle(60)
    client = server.client()
    client.delete("go", "begun", "done")
    before = used_memory(server)
    storm(server, count)
    client.delete("begun")
    return used_memory(server) - before, before


@pytest.mark.matrix
def test_memory_is_bounded(start_server: Callable[..., Server]) -> None:
    arguments = ["ExecutionThreads", "1", "MaxPendingPerRegistration"]
    unlimited, _ = grown(start_server(module_args=[*arguments, "0"]), 10_000)
    limited, _ = grown(start_server(module_args=[*arguments, "100"]), 10_000)
    assert limited < unlimited / 5


@pytest.mark.matrix
def test_memory_falls_back_after_a_storm(start_server: Callable[..., Server]) -> None:
    server = start_server(module_args=["ExecutionThreads", "1"])
    growth, before = grown(server, 10_000)
    assert pending(server) == 9999
    go(server)
    wait_until(lambda: pending(server) == 0, 60)
    server.wait_idle(30)
    server.client().delete("done", "begun")
    wait_until(lambda: used_memory(server) < before + growth / 2, 30)
