"""Commands that the module runs for itself: nobody's function stands in their place, and nobody waits before them. The server has no other way
to make a set than SADD. Contract: docs/contract/read-through.md 3, docs/contract/write-behind.md 2.6, docs/contract/readers-and-events.md 8.
"""

from __future__ import annotations

from typing import Callable

import pytest

from helpers import Server, wait_until

pytestmark = pytest.mark.matrix

SETS = "read_through('u:*', lambda key: {{'a', 'b'}})\nwrite_behind('u:*', {save})"
KEPT = "lambda changes: None"
FAILS = "lambda changes: 1 / 0, backoff=60, max_backoff=60"
PASSES_ON = "GB('CommandReader').map(lambda words: call_next(*words[1:])).register(hook='{hook}', mode='{mode}', convertToStr=False)"
ANSWERS = "GB('CommandReader').map(lambda words: 'mine').register(hook='{hook}', mode='{mode}')"


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        (["SMEMBERS", "u:1"], {"a", "b"}),
        (["SCARD", "u:1"], 2),
        (["SISMEMBER", "u:1", "a"], 1),
        (["SADD", "u:1", "z"], 1),
        (["SREM", "u:1", "a"], 1),
        (["SMOVE", "u:1", "u:1{other}", "a"], 1),
    ],
)
def test_sets_of_both_halves_are_loaded(server: Server, words: list[str], reply: object) -> None:
    server.run(SETS.format(save=KEPT))
    client = server.client()
    assert client.execute_command(*words) == reply
    left = {"SADD": {"a", "b", "z"}, "SREM": {"b"}, "SMOVE": {"b"}}.get(words[0], {"a", "b"})
    assert client.smembers("u:1") == left


def test_a_set_is_loaded_anew(server: Server) -> None:
    server.run(SETS.format(save=KEPT))
    client = server.client()
    assert client.execute_command("RG.REFRESH", "u:1") == 1
    assert client.execute_command("RG.REFRESH", "u:1") == 1
    assert client.smembers("u:1") == {"a", "b"}


@pytest.mark.parametrize("reading", [["SISMEMBER", "u:1", "x"], ["SMEMBERS", "u:1"], ["SADD", "u:1", "z"], ["SREM", "u:1", "x"]])
def test_a_set_that_is_not_saved_comes_back(start_server: Callable[..., Server], reading: list[str]) -> None:
    """Its change is all that there is of it: it ended the server."""
    server = start_server(args=["--appendonly", "yes"])
    server.run(SETS.format(save=FAILS))
    client = server.client()
    client.sadd("u:1", "x", "y")
    client.flushall()
    client.execute_command(*reading)
    assert client.smembers("u:1") == {"SADD": {"a", "b", "x", "y", "z"}, "SREM": {"a", "b", "y"}}.get(reading[0], {"a", "b", "x", "y"})
    assert server.alive()


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize("function", [PASSES_ON, ANSWERS], ids=["passes on", "answers"])
def test_a_hook_on_sadd_does_not_see_loads(server: Server, function: str, mode: str) -> None:
    server.run(function.format(hook="sadd", mode=mode))
    server.run("read_through('u:*', lambda key: {'a', 'b'})")
    assert server.client().smembers("u:1") == {"a", "b"}
    (loads,) = [entry["RegistrationData"] for entry in server.registrations() if entry["reader"] == "ReadThrough"]
    assert (loads["notStored"], server.client().exists("u:1")) == (0, 1)


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize("function", [PASSES_ON, ANSWERS], ids=["passes on", "answers"])
def test_a_hook_on_xadd_does_not_see_dead_letters(server: Server, function: str, mode: str) -> None:
    server.run(function.format(hook="xadd", mode=mode))
    server.run("""
@write_behind('k*', max_tries=1, dead_letter='dead', backoff=0.01, max_backoff=0.02)
def save(changes):
    for change in changes:
        if change['value'] == 'bad':
            raise ValueError('bad')
""")
    client = server.client()
    client.mset({"k1": "bad", "k2": "ok"})
    wait_until(lambda: client.set("k3", "ok") and client.xlen("dead") == 1)


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize("hook", ["xreadgroup", "xtrim", "xack", "xgroup"])
def test_hooks_do_not_see_what_a_stream_reader_does(server: Server, hook: str, mode: str) -> None:
    server.run(ANSWERS.format(hook=hook, mode=mode))
    server.run("GB('StreamReader').foreach(lambda entry: execute('RPUSH', 'out', entry['id'])).register(prefix='s*')")
    client = server.client()
    for number in (1, 2):
        client.xadd("s1", {"a": 1}, id=f"{number}-0")
    wait_until(lambda: client.lrange("out", 0, -1) == ["1-0", "2-0"] and client.xlen("s1") == 0)
    server.wait_idle()
    assert client.lrange("out", 0, -1) == ["1-0", "2-0"]


def test_hooks_see_what_functions_do(server: Server) -> None:
    server.run(ANSWERS.format(hook="sadd", mode="sync"))
    server.run("GB('CommandReader').map(lambda _: execute('SADD', 'own', 'a')).register(trigger='add', mode='sync')")
    assert server.client().execute_command("RG.TRIGGER", "add") == ["mine"]
    assert not server.client().exists("own")
