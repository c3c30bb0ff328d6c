"""Statistics of registrations: RegistrationData of each reader, how counters change, times, RG.CLEARREGISTRATIONSSTATS.

Contract: docs/contract/readers-and-events.md chapter 11, docs/contract/commands.md 1.10 and 1.13; RG.DUMPREGISTRATIONS
VERBOSE is ours (issue 4). The KeysReader's counters are in test_registrations.py, INFO's usual fields in test_info.py.
"""

from __future__ import annotations

import re
import time
from typing import Any, Callable

import pytest

from helpers import Server, as_dict, wait_until
from probes import BUSY, error_of, executions, start

COMMON = ["mode", "numTriggered", "numSuccess", "numFailures", "numAborted"]
COMMON += ["lastRunDurationMS", "totalRunDurationMS", "avgRunDurationMS"]
LAG = ["lastEstimatedLagMS", "avgEstimatedLagMS"]
COUNTERS = ["numTriggered", "numSuccess", "numFailures", "numAborted"]
TIMES = ["lastRunDurationMS", "totalRunDurationMS"]

# Runs until the key `go` exists; the key `begun` tells that it runs.
HOLD = """
import time

def work(record):
    execute('INCR', 'begun')
    while not execute('EXISTS', 'go'):
        time.sleep(0.001)

"""
# Fails for what is called `bad`, sleeps for what is called `slow`.
WORK = """
import time

def work(record):
    text = str(record)
    if 'slow' in text:
        time.sleep(0.02)
    if 'bad' in text:
        flat_error('it is bad')

"""
REGISTER = {
    "KeysReader": "GB('KeysReader').foreach(work).register('k*', eventTypes=['set'], readValue=False, mode='{mode}')",
    "CommandReader": "GB('CommandReader').foreach(work).register(trigger='t', mode='{mode}')",
    "hook": "GB('CommandReader').foreach(work).register(hook='get', keyprefix='k', mode='{mode}')",
    "StreamReader": "GB('StreamReader').foreach(work).register('s', mode='{mode}')",
}
CASES = [(reader, mode) for reader in REGISTER for mode in ("sync", "async_local")]
each_reader = pytest.mark.parametrize(("reader", "mode"), CASES)


def register(server: Server, reader: str, mode: str, script: str = WORK) -> None:
    """Makes the registration. The first contact with a stream, which has executions of its own, is over then."""
    client = server.client()
    if reader == "StreamReader":
        client.set("go", "1")
        client.xadd("s", {"field": "first"})
    assert server.run(script + REGISTER[reader].format(mode=mode)) == "OK"
    if reader == "StreamReader":
        wait_until(lambda: client.xlen("s") == 0, message="the first entry was worked off")
        server.wait_idle()
        client.delete("go", "begun")


def cause(server: Server, reader: str, word: str) -> None:
    """One event whose record has `word`, without waiting for what follows."""
    words = {
        "KeysReader": ["SET", f"k{word}", "1"],
        "CommandReader": ["RG.TRIGGER", "t", word],
        "hook": ["GET", f"k{word}"],
        "StreamReader": ["XADD", "s", "*", "field", word],
    }
    server.raw().send(*words[reader])


def entry(server: Server, *words: str) -> list[Any]:
    """RG.DUMPREGISTRATIONS of the only registration."""
    [found] = server.client().execute_command("RG.DUMPREGISTRATIONS", *words)
    return found


def data(server: Server) -> dict[str, Any]:
    return as_dict(as_dict(entry(server))["RegistrationData"])


def counters(server: Server) -> tuple[int, ...]:
    found = data(server)
    return tuple(found[name] for name in COUNTERS)


def finished(server: Server, count: int) -> None:
    """Waits until so many executions have ended."""
    wait_until(lambda: sum(counters(server)[1:]) == count, message=f"{count} executions have ended")


def verbose(server: Server) -> dict[str, Any]:
    """`pending`, `runTimeUS` and `waitTimeUS`."""
    found = as_dict(entry(server, "VERBOSE"))
    times = {name: as_dict(found[name]) for name in ("runTimeUS", "waitTimeUS")}
    return {"pending": found["pending"], **times}


def in_info(server: Server) -> dict[str, str]:
    """The fields of the only registration's line."""
    text = server.raw().call("INFO", "rg_regisrations").decode()
    [line] = re.findall(r"^rg_0{40}-\d+:(.*)\r$", text, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in line.split(","))


def clear(server: Server) -> None:
    assert server.client().execute_command("RG.CLEARREGISTRATIONSSTATS") == "OK"


# --- RegistrationData ---


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("script", "names", "arguments"),
    [
        (
            "GB('KeysReader').register('k*', commands=['GET'])",
            [*COMMON, "lastError", "args"],
            ["regex", "k*", "eventTypes", None, "keyTypes", None, "hookCommands", ["GET"]],
        ),
        (
            "GB('CommandReader').register(trigger='greet', inorder=True)",
            [*COMMON, "lastError", "args"],
            ["trigger", "greet", "inorder", 1],
        ),
        (
            "GB('CommandReader').register(hook='GeT', keyprefix='k')",
            [*COMMON, "lastError", "args"],
            ["trigger", "GeT", "inorder", 0],
        ),
        (
            "GB('StreamReader').register()",
            [*COMMON, *LAG, "lastError", "args", "status"],
            [
                *("batchSize", 1, "durationMS", 0, "stream", "*", "trimStream", 1),
                *("onFailedPolicy", "continue", "retryInterval", 1),
            ],
        ),
        (
            "GB('StreamReader').register('s*', batch=7, duration=250, onFailedPolicy='ReTry', onFailedRetryInterval=3,"
            " trimStream=False)",
            [*COMMON, *LAG, "lastError", "args", "status"],
            [
                *("batchSize", 7, "durationMS", 250, "stream", "s*", "trimStream", 0),
                *("onFailedPolicy", "retry", "retryInterval", 3),
            ],
        ),
    ],
)
def test_registration_data(server: Server, script: str, names: list[str], arguments: list[Any]) -> None:
    server.run(script)
    found = as_dict(entry(server))["RegistrationData"]
    assert found[::2] == names
    values = as_dict(found)
    assert [values[name] for name in COMMON] == ["async", 0, 0, 0, 0, 0, 0, "0"]
    assert (values["lastError"], values["args"]) == (None, arguments)
    if "StreamReader" in script:
        assert [values[name] for name in [*LAG, "status"]] == [0, "0", "OK"]


@pytest.mark.parametrize(("protocol", "zero"), [(2, b"$1\r\n0\r\n"), (3, b",0\r\n")])
@pytest.mark.parametrize("reader", REGISTER)
def test_averages_are_doubles(server: Server, reader: str, protocol: int, zero: bytes) -> None:
    server.run(WORK + REGISTER[reader].format(mode="sync"))
    raw = server.raw()
    raw.call("HELLO", protocol)
    for words in ([], ["VERBOSE"]):
        reply = raw.call("RG.DUMPREGISTRATIONS", *words)
        assert b"$16\r\navgRunDurationMS\r\n" + zero in reply
        assert (b"$17\r\navgEstimatedLagMS\r\n" + zero in reply) is (reader == "StreamReader")


@pytest.mark.own_server
@pytest.mark.matrix
@pytest.mark.parametrize("words", [[], ["other"], ["other", "VERBOSE"], ["VERBOSEX"]])
def test_without_verbose_an_entry_has_12_elements(server: Server, words: list[str]) -> None:
    server.run("GB('CommandReader', desc='greets').register(trigger='greet', mode='sync')")
    server.client().execute_command("RG.TRIGGER", "greet")
    found = entry(server, *words)
    names = ["id", "reader", "desc", "RegistrationData", "PD", "ExecutionThreadPool"]
    assert found[::2] == names
    assert (found[1], found[3], found[5], found[11]) == ("0" * 40 + "-1", "CommandReader", "greets", "DefaultPool")


@pytest.mark.matrix
@pytest.mark.parametrize("word", ["VERBOSE", "verbose"])
@pytest.mark.parametrize("reader", REGISTER)
def test_verbose_adds_pairs_at_the_end(server: Server, reader: str, word: str) -> None:
    server.run(WORK + REGISTER[reader].format(mode="async_local"))
    server.wait_idle()
    found, plain = entry(server, word), entry(server)
    assert found[:12] == plain
    nothing = ["p50", 0, "p99", 0, "max", 0]
    owner = ["owner", "default", "actsAs", None, "timeoutMS", None, "maxConcurrent", None, "maxMemory", None]
    assert found[12:] == ["pending", 0, "runTimeUS", nothing, "waitTimeUS", nothing, "warnings", [], *owner]


# --- counters ---


@pytest.mark.matrix
@each_reader
def test_successes_failures_and_the_last_error(server: Server, reader: str, mode: str) -> None:
    register(server, reader, mode)
    clear(server)
    for number, (word, expected, error) in enumerate(
        [
            ("good", (1, 1, 0, 0), None),
            ("bad", (2, 1, 1, 0), "it is bad"),
            ("bad", (3, 1, 2, 0), "it is bad"),
            ("good", (4, 2, 2, 0), None),
        ]
    ):
        cause(server, reader, word)
        finished(server, number + 1)
        assert (counters(server), data(server)["lastError"]) == (expected, error)


@pytest.mark.matrix
@each_reader
def test_durations(server: Server, reader: str, mode: str) -> None:
    register(server, reader, mode)
    clear(server)
    for number in range(3):
        cause(server, reader, "slow")
        finished(server, number + 1)
    found, times = data(server), verbose(server)["runTimeUS"]
    assert 20 <= found["lastRunDurationMS"] <= found["totalRunDurationMS"]
    assert found["totalRunDurationMS"] >= 60
    assert float(found["avgRunDurationMS"]) == pytest.approx(found["totalRunDurationMS"] / 3)
    # Exact to one per cent.
    assert 19_800 <= times["p50"] <= times["p99"] <= times["max"]
    assert times["max"] >= found["lastRunDurationMS"] * 990
    assert times["max"] <= (found["totalRunDurationMS"] + 3) * 1010


def test_the_last_error_is_the_first_one_of_the_run(server: Server) -> None:
    server.run("GB('CommandReader').flatmap(lambda r: r[1:]).map(flat_error).register(trigger='t')")
    error_of(server, "t", "first", "second", command="RG.TRIGGER")
    server.wait_idle()
    assert data(server)["lastError"] == "first"


def test_what_a_filter_drops_is_a_success(server: Server) -> None:
    server.run("GB('CommandReader').filter(lambda r: False).register(trigger='t')")
    server.client().execute_command("RG.TRIGGER", "t")
    server.wait_idle()
    assert counters(server) == (1, 1, 0, 0)


@pytest.mark.parametrize("reader", REGISTER)
def test_aborts(start_server: Callable[..., Server], reader: str) -> None:
    server = start_server(module_args=["ExecutionThreads", "1"])
    register(server, reader, "async_local")
    cause(server, reader, "bad")
    wait_until(lambda: counters(server)[2] == 1, message="the first one has failed")
    server.wait_idle()
    clear(server)
    cause(server, reader, "bad")
    finished(server, 1)
    busy = start(server, BUSY)
    cause(server, reader, "good")
    queued = wait_until(lambda: [name for name, it in executions(server).items() if it["status"] == "created"])
    assert server.client().execute_command("RG.ABORTEXECUTION", *queued) == "OK"
    server.client().set("go", "1")
    server.client().execute_command("RG.GETRESULTSBLOCKING", busy)
    assert counters(server) == (2, 0, 1, 1)
    assert data(server)["lastError"] == "it is bad"  # an abort leaves it


def test_a_load_sets_everything_to_zero(server: Server) -> None:
    register(server, "CommandReader", "sync")
    error_of(server, "t", "bad", command="RG.TRIGGER")
    assert counters(server) == (1, 0, 1, 0)
    server.client().execute_command("DEBUG", "RELOAD")
    assert (counters(server), data(server)["lastError"]) == ((0, 0, 0, 0), None)


def test_replicas_count_nothing(start_server: Callable[..., Server]) -> None:
    master, replica = start_server(), start_server()
    for server in (master, replica):
        register(server, "KeysReader", "async_local")
    replica.client().execute_command("REPLICAOF", master.host, master.port)
    wait_until(lambda: replica.own.info("replication")["master_link_status"] == "up")
    master.client().set("k1", "v")
    master.wait_idle()
    wait_until(lambda: replica.own.exists("k1"))
    assert (counters(master), counters(replica)) == ((1, 1, 0, 0), (0, 0, 0, 0))


# --- waiting ---


@pytest.mark.matrix
@pytest.mark.parametrize("reader", REGISTER)
def test_the_time_in_the_queue(start_server: Callable[..., Server], reader: str) -> None:
    server = start_server(module_args=["ExecutionThreads", "1"])
    register(server, reader, "async_local")
    clear(server)
    busy = start(server, BUSY)
    cause(server, reader, "good")
    wait_until(lambda: verbose(server)["pending"] == 1)
    began = time.monotonic()
    assert in_info(server)["pending"] == "1"
    wait_until(lambda: time.monotonic() - began > 0.05)
    server.client().set("go", "1")
    server.client().execute_command("RG.GETRESULTSBLOCKING", busy)
    finished(server, 1)
    found = verbose(server)
    assert found["pending"] == 0
    assert found["waitTimeUS"]["max"] >= 49_500
    assert found["runTimeUS"]["max"] < 50_000
    assert data(server)["totalRunDurationMS"] < 50


@pytest.mark.parametrize("reader", ["KeysReader", "CommandReader", "hook"])
def test_sync_functions_wait_for_nothing(server: Server, reader: str) -> None:
    register(server, reader, "sync")
    for number in range(5):
        cause(server, reader, "slow")
        finished(server, number + 1)
    found = verbose(server)
    assert (found["pending"], found["waitTimeUS"]) == (0, {"p50": 0, "p99": 0, "max": 0})
    assert found["runTimeUS"]["p50"] >= 19_800


def test_quantiles(server: Server) -> None:
    """Of 100 runs one is slow: it is the maximum, and half of all are quick."""
    register(server, "CommandReader", "sync")
    client = server.client()
    for number in range(100):
        client.execute_command("RG.TRIGGER", "t", "slow" if number == 50 else "quick")
    found = verbose(server)["runTimeUS"]
    assert found["p50"] < 19_800 <= found["max"]
    assert found["p50"] <= found["p99"] <= found["max"]


@each_reader
def test_info_shows_the_same(server: Server, reader: str, mode: str) -> None:
    register(server, reader, mode)
    for number in range(3):
        before = sum(counters(server)[1:])
        cause(server, reader, "slow")
        finished(server, before + 1)
    shown, found = in_info(server), verbose(server)
    assert shown["pending"] == "0"
    for name, times in (("run", found["runTimeUS"]), ("wait", found["waitTimeUS"])):
        for quantile, value in times.items():
            assert shown[f"{name}{quantile.capitalize()}US"] == str(value)
    assert list(shown)[-1] == "PD"


# --- RG.CLEARREGISTRATIONSSTATS ---


def test_arity(server: Server) -> None:
    error = "ERR wrong number of arguments for 'rg.clearregistrationsstats' command"
    assert error_of(server, "x", command="RG.CLEARREGISTRATIONSSTATS") == error


def test_without_registrations(server: Server) -> None:
    clear(server)


@pytest.mark.matrix
@each_reader
def test_clear(server: Server, reader: str, mode: str) -> None:
    register(server, reader, mode)
    for word in ("slow", "bad"):
        before = sum(counters(server)[1:])
        cause(server, reader, word)
        finished(server, before + 1)
    server.wait_idle()
    clear(server)
    found = data(server)
    assert [found[name] for name in COUNTERS + TIMES] == [0] * 6
    assert (found["avgRunDurationMS"], found["lastError"]) == ("0", None)
    assert [found.get(name) for name in LAG] == ([0, "0"] if reader == "StreamReader" else [None, None])
    nothing = {"p50": 0, "p99": 0, "max": 0}
    assert verbose(server) == {"pending": 0, "runTimeUS": nothing, "waitTimeUS": nothing}
    cause(server, reader, "good")
    finished(server, 1)
    assert counters(server) == (1, 1, 0, 0)


@pytest.mark.matrix
@pytest.mark.parametrize("reader", REGISTER)
def test_clear_keeps_the_runs_in_flight(start_server: Callable[..., Server], reader: str) -> None:
    server = start_server(module_args=["ExecutionThreads", "1"])
    register(server, reader, "async_local", HOLD)
    client = server.client()
    cause(server, reader, "first")
    wait_until(lambda: client.get("begun") == "1")
    if reader != "StreamReader":  # one batch at a time
        cause(server, reader, "second")
        wait_until(lambda: verbose(server)["pending"] == 1)
    in_flight = 1 if reader == "StreamReader" else 2
    clear(server)
    assert (counters(server), verbose(server)["pending"]) == ((in_flight, 0, 0, 0), in_flight - 1)
    client.set("go", "1")
    finished(server, in_flight)
    server.wait_idle()
    assert counters(server) == (in_flight, in_flight, 0, 0)


def test_clear_concerns_all_registrations(server: Server) -> None:
    for name in ("a", "b"):
        server.run(f"GB('CommandReader').register(trigger={name!r})")
        server.client().execute_command("RG.TRIGGER", name)
    server.wait_idle()
    clear(server)
    assert [it["RegistrationData"]["numTriggered"] for it in server.registrations()] == [0, 0]


def test_clear_is_refused_where_nobody_can_wait(server: Server) -> None:
    server.run("GB('CommandReader').register(trigger='t', mode='sync')")
    raw = server.raw()
    raw.call("RG.TRIGGER", "t")
    raw.call("MULTI")
    raw.call("RG.CLEARREGISTRATIONSSTATS")
    assert raw.call("EXEC") == b"*1\r\n-ERR Blocking module command called from transaction\r\n"
    error = raw.call("EVAL", "return redis.pcall('RG.CLEARREGISTRATIONSSTATS').err", 0)
    # The second text is the server's own, for commands flagged noscript.
    assert b"Blocking module command called from Lua script" in error or b"not allowed from script" in error
    assert counters(server) == (1, 1, 0, 0)
