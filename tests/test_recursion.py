"""Functions that call themselves without end, in C code above all: an error of Python's, on every thread that runs Python."""

from __future__ import annotations

import resource
from typing import Any, Callable

import pytest

from helpers import Server, wait_until
from probes import AOF

pytestmark = pytest.mark.matrix

KINDS = {
    "sorted": "def f(x): return sorted([1], key=f)",
    "map": "def f(x): return list(map(f, [x]))",
    "cmp_to_key": "def f(x):\n    return sorted([1, 2], key=functools.cmp_to_key(lambda a, b: f(a)))",
    "json": "def f(x):\n    nested = []\n    for _ in range(100000): nested = [nested]\n    return json.dumps(nested)",
    "json default": "def f(x): return json.dumps(object(), default=f)",
    "repr": "class R:\n    def __repr__(self): return repr([self])\ndef f(x): return repr(R())",
    "eq": "class E:\n    def __eq__(self, other): return [self] == [E()]\ndef f(x): return E() == 1",
    "hash": "class H:\n    def __hash__(self): return hash((self,))\ndef f(x): return {H()}",
    "pickle": "def f(x):\n    nested = []\n    for _ in range(100000): nested = [nested]\n    return pickle.dumps(nested)",
    "reduce": "class P:\n    def __reduce__(self): return list, (), None, iter([P()])\ndef f(x): return pickle.dumps(P())",
    "deepcopy": "def f(x):\n    nested = []\n    for _ in range(100000): nested = [nested]\n    return copy.deepcopy(nested)",
    "getattr": "class G:\n    def __getattr__(self, name): return getattr(self, name + 'x'[:0])\ndef f(x): return G().a",
    "re.sub": "def f(x): return re.sub('a', f, 'a')",
    "sorted with reduce": "def f(x): return functools.reduce(lambda a, b: sorted([1], key=f), [1, 2])",
}


def source(kind: str) -> str:
    return f"import copy, functools, json, pickle, re, threading\n{KINDS[kind]}\n"


PLACES = {
    "a worker": "GB('ShardsIDReader').map(lambda x: f(1)).run()",
    "the server's thread": "GB('CommandReader').map(lambda x: f(1)).register(trigger='go', mode='sync')",
    "the script": "f(1)",
    "the event loop": "async def go(x):\n    return f(1)\nGB('ShardsIDReader').map(go).run()",
    "to_thread": "import asyncio\nasync def go(x):\n    return await asyncio.to_thread(f, 1)\nGB('ShardsIDReader').map(go).run()",
    "a thread": """
def go(x):
    said = []
    def life():
        try:
            f(1)
        except RecursionError:
            said.append('RecursionError')
    thread = threading.Thread(target=life)
    thread.start()
    thread.join()
    return said[0]
GB('ShardsIDReader').map(go).run()
""",
}


def result(server: Server, script: str) -> str:
    try:
        reply: Any = server.run(script)
        return str(server.own.execute_command("RG.TRIGGER", "go") if reply == "OK" else reply)
    except Exception as error:
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_that_calls_itself_without_end_gets_an_error(server: Server, kind: str) -> None:
    for place, script in PLACES.items():
        said = result(server, source(kind) + script)
        assert "recursion" in said.lower(), f"{place}: {said}"
    assert server.client().ping()


def test_on_the_thread_of_timers(server: Server) -> None:
    server.run(source("sorted") + "def go():\n    f(1)\nregisterTE(1, go)\nGB('CommandReader').register(trigger='x')")
    wait_until(lambda: "RecursionError" in server.log(), 20, "the time event's error is in the log")
    assert server.client().ping()


def test_threads_have_the_stack_that_the_servers_own_has(server: Server) -> None:
    """Each thread of ours and of Python's: as large as Python counts on, whatever the default of the system's library."""
    server.run("""
        import asyncio, threading
        async def go(x):
            await asyncio.to_thread(lambda: 1)
            return threading.stack_size()
        GB('CommandReader').map(go).register(trigger='size')
        """)
    size = int(server.client().execute_command("RG.TRIGGER", "size")[0])
    assert size >= 8 << 20


def test_a_small_limit_of_the_server_is_raised(start_server: Callable[..., Server]) -> None:
    before = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, before[1]))
    try:
        server = start_server()
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, before)
    assert "RecursionError" in result(server, source("sorted") + PLACES["the server's thread"])
    assert "RecursionError" in result(server, source("sorted") + PLACES["a worker"])


def test_where_functions_are_loaded(start_server: Callable[..., Server]) -> None:
    server = start_server(args=AOF)
    server.run(f"""{source('sorted')}
def deep():
    try:
        f(1)
    except RecursionError:
        return 'RecursionError'

class Deep:
    def __reduce__(self):
        return deep, ()

GB('CommandReader').map(lambda x, it=Deep(): it).register(trigger='loaded', convertToStr=False)
""")
    server.restart()
    assert server.client().execute_command("RG.TRIGGER", "loaded") == ["RecursionError"]
