"""What helps whoever uses Pinion for the first time: what is printed, what fails, and what does nothing is told in the log.

Contract: docs/contract/commands.md 1.2 (the replies), docs/functions.md.
"""

from __future__ import annotations

import re
import shutil
from typing import Callable

import pytest
import redis

from clusters import Cluster
from helpers import Server, module_path, wait_until

GEARS = "GB('PythonReader')"


def lines(server: Server, pattern: str) -> list[str]:
    return [line for line in server.log().splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize(
    "script",
    [
        "GB().map(lambda r: r)",
        "def f(r):\n    return r",
        "",
        "log('prepared')\nGB().map(str)",
    ],
)
def test_a_script_that_does_nothing_says_so_in_the_log(server: Server, script: str) -> None:
    assert server.run(script, "ID", "idle") == "OK"
    assert len(lines(server, "session idle: the script neither runs nor registers a function")) == 1


@pytest.mark.parametrize(
    "script",
    [
        "GB().run('nothing')",
        "GB().register('x')",
        "log('only this')",
        "print('only this')",
        "execute('SET', 'x', '1')",
        "registerTE(100, lambda: None, 'timer')",
        "read_through('x', lambda key: 'y')",
        "async def f(): pass\nrunCoroutine(f())",
    ],
)
def test_a_script_that_does_something_is_left_alone(server: Server, script: str) -> None:
    server.run(script, "ID", "busy")
    assert lines(server, "neither runs nor registers") == []


def test_what_is_printed_is_in_the_log_with_the_session(server: Server) -> None:
    script = """
import sys, threading, logging
print('at script level', 1, sep='|')
print('one\\ntwo')
print('no end', end='', flush=True)
print('to stderr', file=sys.stderr)
logging.getLogger('mine').warning('by logging')

def work(n):
    print('in a function', n)
    thread = threading.Thread(target=print, args=('in a thread',))
    thread.start()
    thread.join()
    return n

GB('PythonReader').map(work).run(lambda: (n for n in [7]))
"""
    assert server.run(script, "ID", "talker") == [["7"], []]
    for text in ("at script level|1", "one", "two", "no end", "to stderr", "by logging", "in a function 7"):
        assert len(lines(server, f"session talker: {re.escape(text)}$")) == 1, text
    assert len(lines(server, "in a thread$")) == 1


def test_lines_of_threads_that_print_at_once_stay_whole(server: Server) -> None:
    script = """
import threading

def many(n):
    for turn in range(50):
        print(f'<{n}', end='')
        print(f'-{turn}>')

def work(_):
    threads = [threading.Thread(target=many, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]

GB('PythonReader').map(work).run(lambda: (n for n in [1]))
"""
    server.run(script)
    assert len(lines(server, r"<[0-3]-\d+>$")) == 200


def test_long_lines_are_whole(server: Server) -> None:
    """The server cuts what is longer than a kilobyte, and texts at a NUL."""
    server.run("print('ä' * 3000 + 'end')\nprint('a\\x00b')", "ID", "long")
    parts = [line.partition("session long: ")[2] for line in lines(server, "session long: ")]
    assert "".join(parts[:-1]) == "ä" * 3000 + "end" and parts[-1] == "a\\x00b"


def test_a_forked_child_prints_to_the_servers_own_output(server: Server) -> None:
    script = """
import os

def work(_):
    child = os.fork()
    if child == 0:
        print('from the child')
        os._exit(0)
    os.waitpid(child, 0)

GB('PythonReader').map(work).run(lambda: (n for n in [1]))
"""
    server.run(script)
    assert len(lines(server, "^from the child$")) == 1


def test_the_first_failure_is_a_line_in_the_log_and_later_ones_are_counted(server: Server) -> None:
    script = """
def fail(record):
    raise ValueError("no 'such' thing\\nin two lines")

GB().foreach(fail).register('k*', eventTypes=['set'], mode='sync')
"""
    server.run(script, "ID", "failing")
    client = server.client()
    client.set("k", 1)
    [line] = lines(server, "session failing failed")
    assert line.endswith("of session failing failed: ValueError: no 'such' thing")
    failures = 1

    def told() -> int:
        nonlocal failures
        client.set("k", 1)
        failures += 1
        counted = re.findall(r"session failing failed(?: (\d+) times, at last)?: ", server.log())
        return sum(int(number or 1) for number in counted) if len(counted) >= 3 else 0

    # Nothing is lost: the last line told comes with the failure that was just made.
    assert wait_until(told, interval=0.01) <= failures
    seconds = [re.search(r"\d\d:\d\d:\d\d", line) for line in lines(server, "session failing failed")]
    assert failures > 10 * len(seconds)


def test_sort_takes_a_key(server: Server) -> None:
    def run(steps: str) -> list[str]:
        results, errors = server.run(f"{GEARS}{steps}.run(lambda: (s for s in ['ccc', 'a', 'bb', 'dd']))")
        assert errors == []
        return list(results)

    assert run(".sort(key=len)") == ["a", "bb", "dd", "ccc"]
    assert run(".sort(False, key=len)") == ["ccc", "bb", "dd", "a"]
    assert run(".sort(key=lambda s: -ord(s[0])).limit(2)") == ["dd", "ccc"]
    assert run(".countby(len).sort(key=lambda g: g['value']).map(lambda g: g['key'])") == ["3", "1", "2"]
    assert run(".sort(reverse=False)") == ["dd", "ccc", "bb", "a"]


def test_a_wrong_key_is_named(server: Server) -> None:
    with pytest.raises(redis.ResponseError, match="sort key argument must be a function, got 'len'"):
        server.run("GB().sort(key='len')")
    results, errors = server.run(f"{GEARS}.sort(key=lambda n: 1 // n).run(lambda: (n for n in [2, 0]))")
    assert results == ["2"] and "ZeroDivisionError" in errors[0]


def test_a_long_run_shows_how_far_it_is(server: Server) -> None:
    client = server.client()
    client.mset({f"k{number}": number for number in range(10)})
    script = """
import time
def slow(record):
    while not configGet('go'):
        time.sleep(0.005)
GB('PythonReader').foreach(slow).run(lambda: (n for n in range(3)))
"""
    execution = server.run(script, "UNBLOCKING")

    def records() -> int:
        [shard] = client.execute_command("RG.GETEXECUTION", execution, "VERBOSE")
        return int(shard[shard.index("records_read") + 1])

    wait_until(lambda: records() == 1)
    client.execute_command("RG.CONFIGSET", "go", "1")
    wait_until(lambda: records() == 3)


def test_loading_the_module_twice_is_named(start_server: Callable[..., Server], request: pytest.FixtureRequest) -> None:
    allowed = () if request.config.getoption("--server") == "redis-6.2" else ("--enable-module-command", "yes")
    server = start_server(args=allowed)
    copy = shutil.copy(module_path(), server.dir / "another.so")
    for build in module_path().parent.glob("pinion-cp*.so"):  # the loader looks for them beside itself
        shutil.copy(build, server.dir)
    for path in (module_path(), copy):
        server.mark_log()
        with pytest.raises(redis.ResponseError):
            server.client().execute_command("MODULE", "LOAD", str(path))
        assert "is loaded already" in server.log()
    assert server.run("GB('ShardsIDReader').run()") == [["1"], []]


def test_a_session_can_be_removed_by_its_name(server: Server) -> None:
    client = server.client()
    server.run("GB().register('a')\nGB().register('b')", "ID", "two")
    server.run("GB().register('c')", "ID", "other")
    assert client.execute_command("RG.UNREGISTERSESSION", "two") == 2
    assert [entry["args"]["regex"] for entry in (r["RegistrationData"] for r in server.registrations())] == ["c"]
    for arguments, error in [
        (["two"], "session does not exists"),
        (["other", "NOW"], "Unknown arguments were given: NOW"),
        ([], "wrong number of arguments"),
    ]:
        with pytest.raises(redis.ResponseError, match=error):
            client.execute_command("RG.UNREGISTERSESSION", *arguments)
    assert client.execute_command("RG.UNREGISTERSESSION", "other", "ABORTPENDING") == 1
    assert server.registrations() == []


def test_unknown_arguments_are_shown_with_the_registration(server: Server) -> None:
    server.run("GB().foreach(log).register('x', comands=['get'])", "ID", "typo")
    [entry] = server.client().execute_command("RG.DUMPREGISTRATIONS", "VERBOSE")
    assert entry[entry.index("warnings") + 1] == ["register: unknown arguments are ignored: comands"]


def test_wrong_modes_are_answered_with_the_right_ones(server: Server) -> None:
    for call, expected in [
        ("register(mode='local')", "sync, async_local or async, got local"),
        ("run(mode='local')", "async_local or async, got local"),
        ("run(mode='sync')", "async_local or async, got sync"),
    ]:
        with pytest.raises(redis.ResponseError, match=f"unknown execution mode: expected {expected}"):
            server.run(f"GB().{call}")


def test_over_shards(cluster: Cluster) -> None:
    """A key to sort by is made where the record is; sessions end everywhere; each shard tells how far it is."""
    cluster.fill({f"k{number}": "x" * (number % 7) for number in range(40)})
    script = "GB().map(lambda r: r['value']).sort(False, key=lambda v: (len(v), v)).run('k*')"
    results, errors = cluster[0].run(script)
    assert errors == [] and [len(result) for result in results] == sorted((n % 7 for n in range(40)), reverse=True)
    execution = cluster[0].run(script, "UNBLOCKING")
    client = cluster[0].client()
    client.execute_command("RG.GETRESULTSBLOCKING", execution)
    shards = client.execute_command("RG.GETEXECUTION", execution, "CLUSTER", "VERBOSE")
    assert len(shards) == 3 and sum(shard[shard.index("records_read") + 1] for shard in shards) == 40
    assert {len(shard) for shard in client.execute_command("RG.GETEXECUTION", execution)} == {4}
    cluster[0].run("GB().register('a')\nGB().register('b')", "ID", "two")
    assert [len(node.registrations()) for node in cluster.masters] == [2, 2, 2]
    assert cluster[1].client().execute_command("RG.UNREGISTERSESSION", "two") == 2
    wait_until(lambda: [len(node.registrations()) for node in cluster.masters] == [0, 0, 0])
