"""The KeysReader in a `run`: which keys, what a record holds, what other clients see meanwhile.

Contract: docs/contract/readers-and-events.md 0.1, 0.2, 1.6 and 2.
"""

import ast

import pytest

from helpers import wait_until
from probes import raised, start

NAMES = ["a1", "a2", "A1", "b1", "b*", "abc"]


def names(server, pattern, **run):
    """The names that a run with this pattern delivers."""
    script = f"GB('KeysReader').map(lambda record: record['key']).run({pattern!r}, **{run!r})"
    results, errors = server.run(script)
    assert errors == []
    return sorted(results)


def record(server, key, **run):
    """The record of one key."""
    [text], errors = server.run(f"GB('KeysReader').run({key!r}, noScan=True, **{run!r})")
    assert errors == []
    return ast.literal_eval(text)


def part(server, expression):
    """The `repr` of an expression over the record of key `k`."""
    [text], errors = server.run(f"GB('KeysReader').map(lambda record: repr({expression})).run('k', noScan=True)")
    assert errors == []
    return text


# --- which keys ---


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", NAMES),
        ("a*", ["a1", "a2", "abc"]),
        ("a?", ["a1", "a2"]),
        ("[ab]1", ["a1", "b1"]),
        ("[^a]1", ["A1", "b1"]),
        ("[a-b]1", ["a1", "b1"]),
        ("b\\*", ["b*"]),
        ("*1", ["A1", "a1", "b1"]),
        ("abc", ["abc"]),
        ("ab", []),
    ],
)
def test_patterns_are_globs(server, pattern, expected):
    server.client().mset(dict.fromkeys(NAMES, 1))
    assert names(server, pattern) == sorted(expected)


def test_no_scan_takes_the_pattern_as_a_name(server):
    server.client().mset(dict.fromkeys(NAMES, 1))
    assert names(server, "b*", noScan=True) == ["b*"]
    assert names(server, "a?", noScan=True) == ["a?"]  # one record also for a missing key


def test_no_scan_without_pattern_reads_the_key_named_star(server):
    server.client().set("*", "star")
    [text], _ = server.run("GB('KeysReader').run(noScan=True)")
    assert ast.literal_eval(text) == {"key": "*", "event": None, "type": "string", "value": "star"}


def test_keys_of_other_databases_are_not_read(server):
    server.client(db=1).set("far", 1)
    server.client().set("near", 1)
    for db in (0, 1):
        caller = server.client(db=db)
        assert server.run("GB('KeysReader').map(lambda r: r['key']).run()", client=caller) == [["near"], []]
    assert record(server, "far")["type"] == "empty"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("5", "regex argument must be a string"),
        ("b'*'", "regex argument must be a string"),
        ("'*', noScan=1", "exactMatch value is not boolean"),
        ("'*', noScan=None", "exactMatch value is not boolean"),
        ("'*', readValue=1", "readValue value is not boolean"),
        ("'*', readValue=None", "readValue value is not boolean"),
    ],
)
def test_argument_errors(server, arguments, error):
    assert raised(server, f"GB('KeysReader').run({arguments})") == f"gears.error: {error}"


# --- what a record holds ---


@pytest.mark.parametrize(
    ("command", "kind", "value"),
    [
        (("SET", "k", "12"), "string", "12"),
        (("SET", "k", ""), "string", ""),
        (("SET", "k", "é\0x"), "string", "é\0x"),
        (("INCR", "k"), "string", "1"),
        (("APPEND", "k", "text"), "string", "text"),
        (("RPUSH", "k", "a", "2", "é"), "list", ["a", "2", "é"]),
        (("HSET", "k", "f", "1", "g\0h", "é"), "hash", {"f": "1", "g\0h": "é"}),
        (("SADD", "k", "1"), "set", None),
        (("ZADD", "k", "1", "m"), "zset", None),
        (("XADD", "k", "*", "f", "v"), "unknown", None),
        (("PING",), "empty", None),
    ],
)
def test_types_and_values(server, command, kind, value):
    server.client().execute_command(*command)
    assert record(server, "k") == {"key": "k", "event": None, "type": kind, "value": value}


def test_large_values_are_whole(server):
    client = server.client()
    fields = {f"field{index}": "x" * 100 for index in range(1000)}
    client.hset("hash", mapping=fields)
    client.rpush("list", *fields)
    client.set("string", "é" * 100_000)
    assert record(server, "hash")["value"] == fields
    assert record(server, "list")["value"] == list(fields)
    assert record(server, "string")["value"] == "é" * 100_000


def test_values_that_are_not_utf8_are_bytearrays(server):
    client = server.client()
    client.set("k", b"\xff\0")
    assert part(server, "record['value']") == r"bytearray(b'\xff\x00')"
    client.delete("k")
    client.rpush("k", b"\xff", "text")
    assert part(server, "record['value']") == r"[bytearray(b'\xff'), 'text']"
    client.delete("k")
    client.hset("k", "f", b"\xff")
    assert part(server, "record['value']") == r"{'f': bytearray(b'\xff')}"


def test_field_names_that_are_not_utf8_are_bytes(server):
    server.client().hset("k", mapping={b"\xff\0": "v", "text": "w"})
    assert ast.literal_eval(part(server, "record['value']")) == {b"\xff\0": "v", "text": "w"}


def test_key_names_are_kept_whole(server):
    client = server.client()
    client.mset({"n\0ul": 1, b"\xff\0": 1})
    code = "lambda r: (r['key'].encode() if isinstance(r['key'], str) else r['key']).hex()"
    assert sorted(server.run(f"GB('KeysReader').map({code}).run()")[0]) == [b"n\0ul".hex(), b"\xff\0".hex()]


@pytest.mark.parametrize("scan", [True, False])
def test_without_value_type_and_value_are_absent(server, scan):
    server.client().set("k", "v")
    assert record(server, "k", readValue=False) == {"key": "k", "event": None}
    [text], _ = server.run(f"GB('KeysReader').run('k', noScan={scan}, readValue=False)")
    assert ast.literal_eval(text) == {"key": "k", "event": None}


def test_expired_keys_are_skipped(server):
    client = server.client()
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    client.set("string", 1)
    client.hset("hash", "f", 1)
    client.rpush("list", 1)
    client.set("alive", 1)
    for key in ("string", "hash", "list"):
        client.pexpire(key, 1)

    def clock():
        seconds, microseconds = client.time()  # asks without touching the keys
        return seconds * 1_000_000 + microseconds

    deadline = clock() + 3000
    wait_until(lambda: clock() > deadline)
    assert client.dbsize() == 4  # expired, but still there
    assert names(server, "*") == ["alive"]
    assert record(server, "hash")["type"] == "empty"


def test_reading_fires_no_event(server):
    client = server.client()
    server.run("GB('KeysReader').register('k*', mode='sync')")
    client.rpush("k1", 1)
    record(server, "k1")
    record(server, "k2")  # no keymiss
    names(server, "k*")
    assert server.registrations()[0]["RegistrationData"]["numTriggered"] == 1


# --- whole keyspaces, other clients ---


def test_a_large_keyspace_is_read_completely(server):
    pipeline = server.client().pipeline(transaction=False)
    for index in range(20_000):
        pipeline.set(f"key:{index}", index)
    pipeline.execute()
    assert server.run("GB('KeysReader').count().run('key:*')") == [["20000"], []]
    total = "accumulate(lambda total, record: (total or 0) + int(record['value']))"
    assert server.run(f"GB('KeysReader').{total}.run()") == [[str(sum(range(20_000)))], []]


def test_other_clients_are_served_meanwhile(server):
    client = server.client()
    client.mset(dict.fromkeys(NAMES, 1))
    execution = start(
        server,
        """
        import time
        def wait(record):
            while not execute('GET', 'go'):
                time.sleep(0.001)
            return record['key']
        GB('KeysReader').map(wait).run('[aAb]*')
        """,
    )
    assert client.ping()
    assert client.get("a1") == "1"
    client.set("go", 1)
    results, errors = client.execute_command("RG.GETRESULTSBLOCKING", execution)
    assert (sorted(results), errors) == (sorted(NAMES), [])


@pytest.mark.parametrize("command", ["'DEL', record['key']", "'FLUSHALL'", "'SET', record['key'] + 'x', 1"])
def test_the_keyspace_may_change_during_the_walk(server, command):
    client = server.client()
    client.mset({f"key:{index:04}": 1 for index in range(1000)})
    results, errors = server.run(f"GB('KeysReader').foreach(lambda record: execute({command})).count().run('key:????')")
    assert errors == []
    assert int(results[0]) >= 1
    assert client.exists("key:0000", "key:0999") == (2 if "SET" in command else 0)
