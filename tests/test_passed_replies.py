"""Replies that a function in the place of a command passes on: a client of RESP3 gets what the command would have answered
it, a client of RESP2 and the function itself see RESP2.

Contract: docs/contract/readers-and-events.md 8.4 and 8.5, and the decision on `call_next` in docs/contract/README.md.
"""

from __future__ import annotations

import re

import pytest

from helpers import RawClient, Server

FILL = """
HSET h f v g 2
HSET empty f v
HDEL empty f
SADD s a
ZADD z 1 a 2.5 b 1e20 c 0.1 d inf e
ZADD y 1 a
GEOADD g 13.361389 38.115556 place
XADD x 1-1 f v
XGROUP CREATE x group 0
SET text +plus
SET other -minus
SET number 5
RPUSH l a +b -c
"""
# One of each form, where a server has it; `*` marks what only servers from 7.0 on have, `**` from 7.2 on.
COMMANDS = """
HGETALL h
HGETALL empty
HGETALL missing
SMEMBERS s
SPOP s 1
ZSCORE z b
ZSCORE z c
ZSCORE z d
ZSCORE z e
ZSCORE z missing
ZMSCORE z a missing b
ZINCRBY z 1.5 a
ZADD z INCR 1 a
ZRANGE z 0 -1
ZRANGE z 0 -1 WITHSCORES
ZREVRANGE z 0 1 WITHSCORES
ZRANGEBYSCORE z 1 3 WITHSCORES
ZDIFF 2 z y WITHSCORES
ZINTER 2 z y WITHSCORES
ZUNION 2 z y WITHSCORES
ZRANDMEMBER y 1 WITHSCORES
ZPOPMIN y
ZPOPMAX z 2
ZMPOP 1 z MIN COUNT 2
HRANDFIELD empty 1 WITHVALUES
HRANDFIELD h 2
GEOPOS g place missing
GEODIST g place place
XREAD COUNT 1 STREAMS x 0
XREADGROUP GROUP group me STREAMS x >
XRANGE x - +
XINFO STREAM x
XINFO GROUPS x
CONFIG GET maxmemory
OBJECT ENCODING number
GET text
GET other
GET number
GET missing
MGET text missing other
LRANGE l 0 -1
LPOP missing 2
INCR number
LCS text other IDX
EVAL return{double=1.5} 0
COMMAND INFO get
FUNCTION LIST
""".strip().splitlines()


def connected(server: Server, protocol: int) -> RawClient:
    client = server.raw()
    client.call("HELLO", protocol)
    return client


def prepared(server: Server) -> None:
    raw = server.raw()
    raw.call("FLUSHALL")
    for line in FILL.strip().splitlines():
        assert not raw.call(*line.split()).startswith(b"-"), line


def hook(server: Server, command: str, mode: str, steps: str = ".map(lambda r: call_next(*r[1:]))") -> None:
    script = f"GB('CommandReader'){steps}.register(hook='{command}', mode='{mode}', convertToStr=False)"
    assert server.run(script) == "OK"


def hookable(server: Server, command: str) -> bool:
    """What the server knows, but for commands that scripts cannot run."""
    return not server.raw().call("COMMAND", "INFO", command).startswith((b"*1\r\n*-1", b"*1\r\n_", b"*1\r\n$-1"))


NOT_HOOKED = {"CONFIG", "EVAL", "FUNCTION", "COMMAND"}


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_what_is_passed_on_keeps_its_form(server: Server, source: Server, mode: str) -> None:
    names = {line.split()[0] for line in COMMANDS} - NOT_HOOKED
    for name in names:
        if hookable(server, name):
            hook(server, name.lower(), mode)
    for protocol in (3, 2):
        for line in COMMANDS:
            if line.split()[0] in NOT_HOOKED or (server.version < (7, 0) and protocol == 3):
                continue
            prepared(server)
            prepared(source)
            expected = connected(source, protocol).call(*line.split())
            found = connected(server, protocol).call(*line.split())
            if line.startswith("XINFO"):
                found, expected = found[:4], expected[:4]
            if line.startswith("GEOPOS") and protocol == 3:
                # The server writes more digits of a coordinate than a double has.
                found, expected = (re.sub(rb"(,\d+\.\d{12})\d*", rb"\1", reply) for reply in (found, expected))
            # Both are None to a function.
            expected = expected.replace(b"*-1\r\n", b"$-1\r\n")
            # A text that begins with + or - has a meaning, and so have statuses none: as before.
            if b"+plus" in expected or b"-minus" in expected or b"+b" in expected:
                continue
            assert found == expected, (protocol, line)


def test_functions_see_one_form_whatever_their_client(server: Server) -> None:
    seen = "def seen(r):\n    value = call_next(*r[1:])\n    log('seen ' + repr(value))\n    return value\n"
    names = {line.split()[0].lower() for line in COMMANDS} - {name.lower() for name in NOT_HOOKED}
    for name in sorted(names):
        if hookable(server, name):
            script = f"{seen}GB('CommandReader').map(seen).register(hook='{name}', mode='sync', convertToStr=False)"
            assert server.run(script) == "OK"

    def run(protocol: int, line: str) -> list[str]:
        prepared(server)
        before = server.log().count("seen ")
        connected(server, protocol).call(*line.split())
        return [entry.partition("seen ")[2] for entry in server.log().splitlines() if "seen " in entry][before:]

    for line in COMMANDS:
        if not line.startswith("XINFO STREAM"):
            assert run(3, line) == run(2, line), line


def test_texts_with_a_meaning_inside_of_a_map(server: Server) -> None:
    """The function's list would say otherwise; the map is the command's own."""
    if server.version < (7, 0):
        pytest.skip("Redis 6.2 gives modules RESP2 only")
    hook(server, "hgetall", "sync")
    server.client().hset("h", mapping={"+f": "-v"})
    assert connected(server, 3).call("HGETALL", "h") == b"%1\r\n$2\r\n+f\r\n$2\r\n-v\r\n"


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_chain_of_functions(server: Server, mode: str) -> None:
    hook(server, "hgetall", "sync")
    hook(server, "hgetall", "sync", ".map(lambda r: call_next(*r[1:]))")
    hook(server, "zscore", "sync", ".map(lambda r: call_next(*r[1:]) + '0')")
    hook(server, "zscore", mode)
    hook(server, "hgetall", mode)
    client = server.client()
    client.hset("h", "f", "v")
    client.zadd("z", {"m": 1.5})
    if server.version >= (7, 0):
        assert connected(server, 3).call("HGETALL", "h") == b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n"
    assert connected(server, 2).call("HGETALL", "h") == b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n"
    # What the older function made of it is its own.
    assert connected(server, 3).call("ZSCORE", "z", "m") == b"$4\r\n1.50\r\n"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (".map(lambda r: call_next(*r[1:]) + ['more', 'x'])", b"*4\r\n$1\r\nf\r\n$1\r\nv\r\n$4\r\nmore\r\n$1\r\nx\r\n"),
        (".map(lambda r: call_next(*r[1:])[::-1])", b"*2\r\n$1\r\nv\r\n$1\r\nf\r\n"),
        (".map(lambda r: dict(zip(*[iter(call_next(*r[1:]))] * 2)))", b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n"),
        (".map(lambda r: [call_next(*r[1:]), call_next('other')][0])", b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n"),
        (".map(lambda r: str(call_next(*r[1:])))", b"$10\r\n['f', 'v']\r\n"),
    ],
    ids=["longer", "turned", "made", "the first of two", "text"],
)
def test_what_is_changed_is_the_functions_own(server: Server, steps: str, expected: bytes) -> None:
    if server.version < (7, 0):
        pytest.skip("Redis 6.2 gives modules RESP2 only")
    hook(server, "hgetall", "async_local", steps)
    server.client().hset("h", "f", "v")
    assert connected(server, 3).call("HGETALL", "h") == expected


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_linked_commands_keep_their_form(server: Server, source: Server, mode: str) -> None:
    """Whether their client waits or not, also where an override is the reply of `execute`, which is a list."""
    names = sorted({line.split()[0].lower() for line in COMMANDS} - {name.lower() for name in NOT_HOOKED})
    names = [name for name in names if hookable(server, name)]
    script = f"GB().foreach(lambda r: None).register('*', mode='{mode}', commands={names})"
    assert server.run(script) == "OK"
    for line in COMMANDS:
        if server.version < (7, 0) or line.startswith("XINFO"):
            continue
        prepared(server)
        prepared(source)
        assert connected(server, 3).call(*line.split()) == connected(source, 3).call(*line.split()), line
