"""Readers of `run`: KeysOnlyReader, PythonReader, ShardsIDReader, StreamReader, and that walks leave no trace.

Contract: docs/contract/readers-and-events.md 2.2, 3, 4, 5, 6.1, 6.2.
"""

from __future__ import annotations

import ast

import pytest

from helpers import Server, wait_until
from probes import last_line, raised, start, status


def records(server: Server, script: str) -> list:
    results, errors = server.run(script.replace(".run(", ".map(lambda r: repr([r])).run("))
    assert errors == []
    return [ast.literal_eval(result)[0] for result in results]


# --- KeysOnlyReader ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", ["a1", "a2", "b1"]),
        ("'a*'", ["a1", "a2"]),
        ("pattern='a?'", ["a1", "a2"]),
        ("'*', count=1", ["a1", "a2", "b1"]),
        ("'*', count='2'", ["a1", "a2", "b1"]),
        ("'a1', noScan=True", ["a1"]),
        ("'none', noScan=True", []),
        ("patternGenerator=lambda: ('b*', False)", ["b1"]),
        ("patternGenerator=lambda: ('a2', True)", ["a2"]),
        ("'a*', mode='async_local'", ["a1", "a2"]),
    ],
)
def test_names_of_keys(server: Server, arguments: str, expected: list[str]) -> None:
    server.client().mset({"a1": 1, "a2": 2, "b1": 3})
    assert sorted(records(server, f"GB('KeysOnlyReader').run({arguments})")) == expected


@pytest.mark.parametrize("count", ["'many'", "None", "1.5"])
def test_a_count_that_is_none_is_an_error_of_the_execution(server: Server, count: str) -> None:
    results, errors = server.run(f"GB('KeysOnlyReader').run('*', count={count})")
    assert (results, len(errors)) == ([], 1)
    assert "gears.error" in errors[0] and "ERR value is not an integer or out of range" in errors[0]


def test_other_arguments_of_the_keysonlyreader_are_refused(server: Server) -> None:
    error = raised(server, "GB('KeysOnlyReader').run('*', readValue=True)")
    assert error == "TypeError: createKeysOnlyReader() got an unexpected keyword argument 'readValue'"


# --- PythonReader ---


def test_a_generator_gives_the_records(server: Server) -> None:
    script = "def g():\n    yield 1\n    yield None\n    yield [2]\nGB('PythonReader').run(g)"
    assert records(server, script) == [1, None, [2]]


def test_a_generator_as_default_argument(server: Server) -> None:
    assert records(server, "GB('PythonReader', lambda: (i for i in range(2))).run()") == [0, 1]


def test_records_before_an_error_of_the_generator_stay(server: Server) -> None:
    results, errors = server.run("def g():\n    yield 1\n    raise ValueError('end')\nGB('PythonReader').run(g)")
    assert (results, [last_line(error) for error in errors]) == (["1"], ["ValueError: end"])


@pytest.mark.parametrize("body", ["return [1, 2]", "return iter([1])", "return None"])
def test_what_is_no_generator_is_an_error(server: Server, body: str) -> None:
    results, errors = server.run(f"def g():\n    {body}\nGB('PythonReader').run(g)")
    assert (results, len(errors)) == ([], 1)
    assert "PythonReader function must be a generator" in errors[0]


@pytest.mark.parametrize("argument", ["'text'", "1", ""])
def test_what_is_no_function_is_refused(server: Server, argument: str) -> None:
    assert raised(server, f"GB('PythonReader').run({argument})") == "gears.error: pyreader argument must be a function"


def test_an_endless_generator_can_be_stopped(server: Server) -> None:
    script = "def g():\n    while True:\n        yield 1\nGB('PythonReader').filter(lambda r: False).run(g)"
    execution = start(server, script)
    assert server.client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
    assert status(server, execution) in ("done", "aborted")


# --- the others ---


@pytest.mark.parametrize("argument", ["", "'x'", "7"])
def test_the_id_of_the_only_shard(server: Server, argument: str) -> None:
    assert records(server, f"GB('ShardsIDReader').run({argument})") == ["1"]


@pytest.mark.parametrize("reader", ["KeysOnlyReader", "PythonReader", "ShardsIDReader"])
def test_readers_without_events(server: Server, reader: str) -> None:
    error = raised(server, f"GB('{reader}').register()")
    assert error == "gears.error: given reader does not exists or does not support register"


def test_the_commandreader_does_not_run(server: Server) -> None:
    assert raised(server, "GB('CommandReader').run()") == "gears.error: Given reader do not support run or not exists"


# --- StreamReader ---


def test_entries_after_an_id(server: Server) -> None:
    client = server.client()
    for sequence in (1, 2, 3):
        client.xadd("s", {"n": sequence, "f": "x"}, id=f"1-{sequence}")
    entry = {"key": "s", "id": "1-3", "value": {"n": "3", "f": "x"}}
    assert records(server, "GB('StreamReader').run('s', fromId='1-2')") == [entry]
    assert [record["id"] for record in records(server, "GB('StreamReader', 's').run()")] == ["1-1", "1-2", "1-3"]
    assert records(server, "GB('StreamReader').run('none')") == []
    assert records(server, "GB('StreamReader').run('s', fromId='$')") == []
    assert client.xlen("s") == 3


def test_field_names_of_entries(server: Server) -> None:
    server.client().execute_command("XADD", "s", "1-1", b"\xff", b"\xfe", "a", "1", "a", "2")
    script = "GB('StreamReader').map(lambda r: repr(r['value'])).run('s')"
    assert server.run(script) == [["{b'\\xff': bytearray(b'\\xfe'), 'a': '2'}"], []]


@pytest.mark.parametrize(
    ("key", "identifier", "error"),
    [
        ("s", "x", "ERR Invalid stream ID specified as stream command argument"),
        ("text", "0-0", "WRONGTYPE Operation against a key holding the wrong kind of value"),
    ],
)
def test_bad_streams_are_errors_of_the_execution(server: Server, key: str, identifier: str, error: str) -> None:
    server.client().set("text", "x")
    assert server.run(f"GB('StreamReader').run('{key}', fromId='{identifier}')") == [[], [error]]


def test_a_long_stream_is_read_in_order_and_to_its_present_end(server: Server) -> None:
    pipe = server.client().pipeline(transaction=False)
    for number in range(5000):
        pipe.xadd("s", {"n": number})
    pipe.execute()
    # What the function adds itself belongs to the next run.
    script = """
        def seen(record):
            execute('XADD', 's', '*', 'n', 'new')
            return int(record['value']['n'])
        GB('StreamReader').map(seen).aggregate([], lambda a, r: a + [r], lambda a, p: a + p).map(
            lambda r: r == list(range(5000))).run('s')
        """
    assert server.run(script) == [["True"], []]


# --- walks ---


def test_a_walk_leaves_no_trace(server: Server) -> None:
    client = server.client()
    client.set("k", "v")
    client.hset("h", mapping={"f": "v"})
    client.set("gone", "v", px=1)
    wait_until(lambda: not client.exists("gone"))
    before = client.info("stats")
    assert server.run("GB('KeysReader').count().run()") == [["2"], []]
    assert server.run("GB('KeysReader').map(lambda r: r['value']).count().run()") == [["2"], []]
    after = client.info("stats")
    for name in ("keyspace_hits", "keyspace_misses", "expired_keys"):
        assert after[name] == before[name], name


def test_others_are_served_during_a_walk(server: Server) -> None:
    client = server.client()
    client.execute_command(
        "EVAL", "for i = 1, 200000 do redis.call('SET', 'key:' .. i, i) end", 0
    )
    execution = start(server, "GB('KeysReader').filter(lambda r: r['value'] == 'x').count().run()")
    answered = 0
    while status(server, execution) == "running":
        client.ping()
        answered += 1
    assert answered > 5
    assert client.execute_command("RG.GETRESULTS", execution) == [[], []]


def test_keys_that_stay_are_all_seen_while_others_come_and_go(server: Server) -> None:
    client = server.client()
    client.execute_command("EVAL", "for i = 1, 50000 do redis.call('SET', 'stay:' .. i, i) end", 0)
    script = "GB('KeysReader').filter(lambda r: r['key'].startswith('stay')).map(lambda r: r['key']).distinct().count().run()"
    execution = start(server, script)
    number = 0
    while status(server, execution) == "running":
        client.set(f"come:{number}", 1)
        client.delete(f"come:{number - 10}")
        number += 1
    assert client.execute_command("RG.GETRESULTS", execution) == [["50000"], []]
