"""Commands that a node of a cluster cannot run for a function: it says why, and the next one runs.

Contract: docs/contract/python-api.md 4.3 and chapter 9.
"""

from __future__ import annotations

import ast
from typing import Any

import pytest

from clusters import Cluster
from helpers import Server

ELSEWHERE = "gears.error: Operation not permitted: Attempted to access a non local key in a cluster node"
SEVERAL = "gears.error: Operation not permitted: CROSSSLOT Keys in request don't hash to the same slot"
MODES = ["async_local", "sync"]


def executed(server: Server, *command: str) -> Any:
    """What a function in the background gets, or its error."""
    step = f"lambda r: execute({', '.join(map(repr, command))})"
    results, errors = server.run(f"GB('ShardsIDReader').map({step}).map(lambda x: [x]).run(mode='async_local')")
    return errors[0] if errors else ast.literal_eval(results[0])[0]


def local_keys(server: Server, cluster: Cluster) -> tuple[str, str]:
    """Two keys of this shard, of different slots."""
    first, second, *_ = (key for key in (f"k{n}" for n in range(100)) if cluster.shard_of(key) is server)
    return first, second


def foreign_key(server: Server, cluster: Cluster) -> str:
    return next(key for key in (f"k{n}" for n in range(100)) if cluster.shard_of(key) is not server)


def says(server: Server, error: Any, text: str) -> bool:
    # Redis 6.2 has one text for both, and none of its own.
    return (ELSEWHERE if server.version < (7, 0) else text) in str(error)


@pytest.mark.parametrize("shape", ["MGET {0} {1}", "MGET {0} {2}", "MSET {0} v {1} v", "DEL {1} {0}", "EVAL return(1) 2 {0} {1}"])
def test_one_call_fails_and_the_next_one_works(cluster: Cluster, shape: str) -> None:
    server = cluster[0]
    (first, second), foreign = local_keys(server, cluster), foreign_key(server, cluster)
    command = shape.format(first, second, foreign).split(" ")
    for _ in range(3):
        error = executed(server, *command)
        assert says(server, error, SEVERAL), error
        assert executed(server, "SET", first, "v") == "OK"
        assert executed(server, "GET", first) == "v"
        assert executed(server, "MGET", first, first) == ["v", "v"]
        assert says(server, executed(server, "GET", foreign), ELSEWHERE)
        assert executed(server, "PING") == "PONG"


def test_in_triggers_and_sync_functions(cluster: Cluster) -> None:
    server = cluster[0]
    first, second = local_keys(server, cluster)
    script = f"""
    def f(record):
        try:
            return execute('MGET', '{first}', '{second}')
        except Exception as error:
            return f'{{type(error).__name__}}: {{error}}'
    GB('CommandReader').map(f).register(trigger='f', mode='sync')
    GB('CommandReader').map(f).register(trigger='g', mode='async_local')
    GB('KeysReader').map(f).register('*', mode='sync', commands=['mget'])
    """
    assert server.run(script) == "OK"
    for name in ("f", "g", "f"):
        assert "Operation not permitted" in server.client().execute_command("RG.TRIGGER", name)[0]
        assert executed(server, "SET", first, "v") == "OK"


def test_scripts_that_may_use_several_slots(cluster: Cluster) -> None:
    """A linked command among them cannot be run for a module; nothing else suffers."""
    server = cluster[0]
    if server.version < (7, 0):
        pytest.skip("Redis 6.2 has no flags of scripts")
    first, second = local_keys(server, cluster)
    assert server.run("GB().foreach(lambda r: None).register('*', commands=['mget'], mode='sync')") == "OK"
    script = f"#!lua flags=allow-cross-slot-keys\nreturn redis.pcall('MGET', '{first}', '{second}')"
    reply = server.raw().call("EVAL", script, 0)
    assert reply.startswith((b"-", b"*2")), reply
    assert executed(server, "SET", first, "v") == "OK"
    assert executed(server, "GET", first) == "v"
