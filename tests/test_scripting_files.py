"""Libraries of Python in files, on replicas and between servers; and code that is no good. Contract:
docs/contract/scripting-engine.md."""

from __future__ import annotations

import random
import string
from typing import Callable

import pytest
import redis
import valkey

from helpers import Server
from scripting import evaluate, library, load, needs_engine

pytestmark = pytest.mark.matrix

SHOP = """
calls = 0

@register_function(description='counts')
def count(keys, args):
    global calls
    calls += 1
    return [calls, execute('INCR', keys[0])]
"""


@pytest.fixture(autouse=True)
def engine(request: pytest.FixtureRequest) -> None:
    needs_engine(request.config)


@pytest.mark.parametrize("kind", ["rdb", "aof", "aof without preamble"])
def test_restarts(start_server: Callable[..., Server], kind: str) -> None:
    args = () if kind == "rdb" else ("--appendonly", "yes", "--aof-use-rdb-preamble", "no" if "without" in kind else "yes")
    server = start_server(args=args)
    client = server.client()
    load(client, SHOP, "shop")
    assert client.fcall("count", 1, "n") == [1, 1]
    client.bgrewriteaof() if kind != "rdb" else client.save()
    assert client.fcall("count", 1, "n") == [2, 2]
    if kind == "rdb":
        client.save()
    client = server.restart(kill=kind != "rdb").client()
    assert client.fcall("count", 1, "n") == [1, 3], "the library's globals are new, its functions and the data are not"
    assert client.execute_command("RG.PYDUMPSESSIONS") == []


def test_a_library_travels(start_server: Callable[..., Server]) -> None:
    one, other = start_server().client(), start_server().client()
    load(one, SHOP, "shop")
    dump = one.execute_command("FUNCTION", "DUMP", **{"NEVER_DECODE": True})
    assert other.execute_command("FUNCTION", "RESTORE", dump) in ("OK", b"OK")
    assert other.fcall("count", 1, "n") == [1, 1]
    # A library that does not load spoils nothing.
    spoilt = dump.replace(b"calls = 0", b"calls = (")
    with pytest.raises(redis.ResponseError):
        other.execute_command("FUNCTION", "RESTORE", spoilt, "FLUSH")
    assert other.fcall("count", 1, "n") == [2, 2]


def test_lua_and_python_side_by_side(server: Server) -> None:
    client = server.client()
    load(client, SHOP, "shop")
    client.function_load("#!lua name=lua\nserver.register_function('lua_count', function(keys, args) return server.call('INCR', keys[1]) end)")
    assert client.fcall("lua_count", 1, "n") == 1 and client.fcall("count", 1, "n") == [1, 2]
    assert client.eval("return server.call('INCR', KEYS[1])", 1, "n") == 3


def test_a_valkey_client(server: Server) -> None:
    client = valkey.Valkey(port=server.port, decode_responses=True)
    assert client.function_load(library(SHOP, "shop"), replace=True) == "shop"
    assert client.fcall("count", 1, "n") == [1, 1]
    script = client.register_script("#!python\nreturn [KEYS[0], ARGV[0]]")
    assert script(keys=["k"], args=["v"]) == ["k", "v"]
    client.close()


def broken(rng: random.Random, sample: str) -> bytes:
    """The sample with some of its parts cut, doubled, exchanged, or replaced by anything."""
    code = bytearray(sample.encode())
    for _ in range(rng.choice([1, 1, 2, 3])):
        start = rng.randrange(len(code) + 1)
        end = min(len(code), start + rng.choice([0, 1, 1, 2, 8, 40]))
        code[start:end] = rng.choice([
            b"", bytes(code[start:end] * 2), bytes(rng.randrange(256) for _ in range(rng.randint(1, 4))), b"\x00", b"\xff\xfe", b"\n", b"\t",
            rng.choice(string.punctuation).encode() * rng.choice([1, 1, 2, 300]), b"lambda: ", b"yield ", b"await ", b"return ", b"'''",
            b"async ", b"class ", b"raise ", b"register_function(", b"execute(", b"flags=", b"None", b"(" * 120, b"-" * 400 + b"1",
        ])
    return bytes(code)


def throw(server: Server, count: int, seed: int) -> None:
    """Throws that many broken scripts at a server, which survives them."""
    rng, client, loaded = random.Random(seed), server.client(), 0
    body = "total = 0\nfor key in KEYS:\n    total += int(execute('GET', key) or 0)\nif ARGV:\n    return {'sum': total, 'args': ARGV}\nreturn total"
    client.execute_command("RG.CONFIGSET", "SyncTimeout", 500)
    for number in range(count):
        is_library = number % 2 == 0
        code = broken(rng, library(SHOP, "fuzzed") if is_library else "#!python\n" + body)
        if b"\n" not in code:
            code += b"\n"
        try:
            if is_library:
                client.execute_command("FUNCTION", "LOAD", "REPLACE", code)
                loaded += 1
                client.fcall("count", 1, "n")
            else:
                client.execute_command("EVAL", code, 2, "a", "b", "x")
                loaded += 1
        except redis.ResponseError as error:
            assert "internal error" not in str(error), (seed, number, code)
            assert " at 0x" not in str(error), (seed, number, code)
        except UnicodeDecodeError:
            pass  # a reply that is no text
        if number % 500 == 0:
            client.execute_command("SCRIPT", "FLUSH", rng.choice(["SYNC", "ASYNC"]))
    assert loaded > count // 50, "the samples are not all broken"
    assert client.ping()


def test_broken_code_is_refused(server: Server) -> None:
    throw(server, 400, random.randrange(1 << 32))


@pytest.mark.soak
def test_much_broken_code_is_refused(server: Server) -> None:
    throw(server, 10_000, random.randrange(1 << 32))
