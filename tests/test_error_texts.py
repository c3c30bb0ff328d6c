"""What an error says where its exception says nothing, and where in the script it was raised."""

from __future__ import annotations

from typing import Any, Callable

import pytest

from helpers import Server, wait_until
from probes import data

pytestmark = pytest.mark.matrix

# The code of a function, and what its error must name.
SILENT = {
    "a timeout": ("async with asyncio.timeout(0.05):\n        await asyncio.sleep(10)", "TimeoutError"),
    "wait_for": ("await asyncio.wait_for(asyncio.sleep(10), 0.05)", "TimeoutError"),
    "ValueError": ("raise ValueError", "ValueError"),
    "an empty text": ("raise ValueError('')", "ValueError"),
    "assert": ("assert False", "AssertionError"),
    "CancelledError": ("raise asyncio.CancelledError", "CancelledError"),
    "a cancelled task": ("t = asyncio.create_task(asyncio.sleep(9)); t.cancel(); await t", "CancelledError"),
    "unprintable": ("raise Mute()", "Mute"),
    "StopAsyncIteration": ("raise StopAsyncIteration", "StopAsyncIteration"),
    "NotImplementedError": ("raise NotImplementedError", "NotImplementedError"),
}
HEAD = "import asyncio\nclass Mute(Exception):\n    def __str__(self):\n        raise ValueError('mute')\n"


def last_error(server: Server, script: str) -> str:
    server.run(script)
    server.client().get("missing")
    wait_until(lambda: data(server)["numFailures"] == 1, 10, "the loader has failed")
    return str(data(server)["lastError"])


@pytest.mark.parametrize("kind", SILENT)
def test_a_coroutine(server: Server, kind: str) -> None:
    code, name = SILENT[kind]
    script = f"{HEAD}async def load(x):\n    {code}\nGB('KeysReader').map(load).register(eventTypes=['keymiss'])"
    said = last_error(server, script)
    assert name in said and "in load" in said and '"<string>", line 6' in said, said


@pytest.mark.parametrize("kind", ["ValueError", "an empty text", "assert", "unprintable", "NotImplementedError"])
@pytest.mark.parametrize("traceback", [0, 1])
def test_a_function(server: Server, kind: str, traceback: int) -> None:
    server.client().execute_command("RG.CONFIGSET", "PythonAttemptTraceback", traceback)
    code, name = SILENT[kind]
    said = last_error(server, f"{HEAD}def load(x):\n    {code}\nGB('KeysReader').map(load).register(eventTypes=['keymiss'])")
    assert name in said, said
    assert not traceback or "in load" in said


def test_a_future(server: Server) -> None:
    for error, name in {"ValueError()": "ValueError", "KeyError('x')": "'x'", "'text'": "text", "Mute()": "Mute"}.items():
        said = server.run(HEAD + f"def f(x):\n    g = gearsFuture()\n    g.continueFailed({error})\n    return g\n"
                          "GB('ShardsIDReader').map(f).run()")  # fmt: skip
        assert name in said[1][0], said


def test_what_says_something_is_its_text(server: Server) -> None:
    """The contract (docs/contract/python-api.md 4.6)."""
    for error, text in {"KeyError('x')": "'x'", "ValueError('why')": "why", "OSError(2, 'no')": "[Errno 2] no"}.items():
        said = server.run(f"async def f(x):\n    raise {error}\nGB('ShardsIDReader').map(f).run()")
        assert said == [[], [text]]


SCRIPT = """
def inner(x):
    return [1 / (y - y) for y in range(1)]

class Method:
    def call(self, x):
        return inner(x)

method = Method()

def f(x):
    return (lambda: method.call(x))()

GB('CommandReader').map(f).register(trigger='f')
"""


def traceback_of(server: Server) -> str:
    with pytest.raises(Exception) as raised:
        server.client().execute_command("RG.TRIGGER", "f")
    return str(raised.value)


def test_tracebacks_name_the_script_after_a_load(start_server: Callable[..., Server]) -> None:
    server = start_server()
    server.run(SCRIPT)
    first = traceback_of(server)
    for line, name in ((3, "inner"), (7, "call"), (12, "f")):
        assert f'File "<string>", line {line}, in {name}' in first.replace('\\"', '"'), first
    server.client().execute_command("DEBUG", "RELOAD")
    assert traceback_of(server) == first
    server.client().execute_command("DEBUG", "RELOAD")
    assert traceback_of(server) == first


def test_profiles_name_the_script_after_a_load(server: Server) -> None:
    server.client().execute_command("RG.CONFIGSET", "ProfileExecutions", 1)
    server.run(SCRIPT.replace("1 / (y - y)", "y"), "ID", "s")
    server.client().execute_command("DEBUG", "RELOAD")
    server.client().execute_command("RG.TRIGGER", "f")
    stats = server.client().execute_command("RG.PYPROFILE", "STATS", "s")
    assert "<string>:2(inner)" in stats and "<dynamic-code>" not in stats, stats


@pytest.mark.matrix
def test_tracebacks_on_other_shards(cluster: Any) -> None:
    node = cluster.nodes[0]
    said = node.run("def boom(x):\n    raise ValueError('here')\nGB('ShardsIDReader').map(boom).run()")
    assert len(said[1]) == 3
    for error in said[1]:
        assert '"<string>", line 2, in boom' in error.replace('\\"', '"'), said
