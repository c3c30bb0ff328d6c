"""Code of users runs wherever Python looks at an object or forgets one. Whatever it does there, the server goes on: an
atomic block that it leaves open ends, SyncTimeout counts, and commands that it runs find nothing locked.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest
import redis
from redis import ResponseError

from helpers import Server, free_port, wait_until

# What the dunder does, for a function `mischief()`.
ENTER = "def mischief():\n    try:\n        atomic().__enter__()\n    except Exception:\n        pass\n"
LOOP = "def mischief():\n    while True:\n        pass\n"
INSPECT = """
def mischief():
    for command in ('RG.PYDUMPSESSIONS', 'RG.DUMPREGISTRATIONS', 'RG.DUMPEXECUTIONS', 'RG.PYDUMPREQS'):
        execute(command)
    execute('RG.PYDUMPSESSIONS', 'DEAD')
    for execution in execute('RG.DUMPEXECUTIONS'):
        try:
            execute('RG.DROPEXECUTION', execution[1])
        except Exception:
            pass
    for registration in execute('RG.DUMPREGISTRATIONS'):
        if 'victim' in str(registration):
            execute('RG.UNREGISTER', registration[1])
    execute('INCR', 'ended')
"""

OBJECT = """
class Odd(Exception):
    def __str__(self):
        mischief()
        return 'odd'
    def __repr__(self):
        mischief()
        return 'odd'
    def __bool__(self):
        mischief()
        return True
    def __eq__(self, other):
        mischief()
        return True
    def __lt__(self, other):
        mischief()
        return True
    def __hash__(self):
        mischief()
        return 1
    def __index__(self):
        mischief()
        return 1
    def __int__(self):
        mischief()
        return 1
    def __iter__(self):
        mischief()
        return iter(())
    def __reduce__(self):
        mischief()
        return str, ('odd',)
    def __deepcopy__(self, memo):
        mischief()
        return self
class Ends:
    def __del__(self):
        mischief()
class Text(str):
    def __del__(self):
        mischief()
def fail(x):
    raise Odd()
def closing(x):
    import contextlib
    @contextlib.contextmanager
    def opened():
        try:
            yield 1
        finally:
            mischief()
    global kept
    kept = opened()
    kept.__enter__()
    del kept
    return 1
def watched(x):
    import weakref
    ended = type('T', (), {})()
    watch = weakref.ref(ended, lambda _: mischief())
    del ended
    return 1
def circle(x):
    import gc
    ends = Ends()
    ends.itself = ends
    del ends
    gc.collect()
    return 1
def records():
    yield Odd()
    yield Odd()
"""

PLACES = {
    "the error of a function": "GB('ShardsIDReader').map(fail).run()",
    "the error of a generator": "def g():\n    yield 1\n    raise Odd()\nGB('PythonReader').run(g)",
    "a result": "GB('ShardsIDReader').map(lambda x: Odd()).run()",
    "a result, not converted": "GB('ShardsIDReader').map(lambda x: Odd()).run(convertToStr=False)",
    "a filter": "GB('ShardsIDReader').filter(lambda x: Odd()).run()",
    "groupby keys": "GB('PythonReader').groupby(lambda x: Odd(), lambda k, a, r: Odd()).run(records)",
    "countby": "GB('PythonReader').countby(lambda x: x).run(records)",
    "sort": "GB('PythonReader').sort().run(records)",
    "distinct": "GB('PythonReader').distinct().run(records)",
    "aggregate": "GB('PythonReader').aggregate(Odd(), lambda a, r: Odd(), lambda a, r: Odd()).run(records)",
    "execute": "GB('ShardsIDReader').map(lambda x: execute('SET', 'x', Odd())).run()",
    "gearsFuture": "def f(x):\n    g = gearsFuture()\n    g.continueFailed(Odd())\n    return g\nGB('ShardsIDReader').map(f).run()",
    "a coroutine's error": "async def f(x):\n    raise Odd()\nGB('ShardsIDReader').map(f).run()",
    "a coroutine's value": "async def f(x):\n    return Odd()\nGB('ShardsIDReader').map(f).filter(lambda x: x).run()",
    "log": "GB('ShardsIDReader').map(lambda x: log(Odd())).run()",
    "an argument of run": "GB('KeysReader').run(Odd(), noScan=Odd(), count=Odd())",
    "an argument of register": "GB('KeysReader', desc=Odd()).register(prefix=Odd(), readValue=Odd())",
    "pickling at register": "o = Odd()\ndef f(x):\n    return o\nGB('CommandReader').map(f).register(trigger='pickled')",
    "the end of a record": "GB('ShardsIDReader').map(lambda x: Ends()).filter(lambda x: False).run()",
    "the end of a text": "GB('ShardsIDReader').map(lambda x: Text('t')).run()",
    "a generator's finally": "GB('ShardsIDReader').map(closing).run()",
    "a weak reference": "GB('ShardsIDReader').map(watched).run()",
    "the collector": "GB('ShardsIDReader').map(circle).run()",
    "a script's error": "raise Odd()",
    "a script's globals": "ends = Ends()",
    "a trigger's error": "GB('CommandReader').map(fail).register(trigger='trigger')",
    "a sync trigger's error": "GB('CommandReader').map(fail).register(trigger='trigger', mode='sync')",
    "a sync trigger's result": "GB('CommandReader').map(lambda x: Odd()).register(trigger='trigger', mode='sync')",
    "a sync trigger's end": "GB('CommandReader').map(lambda x: Ends()).filter(lambda x: False).register(trigger='trigger', mode='sync')",
    "a callback of the loop": (
        "import asyncio\nasync def f(x):\n    asyncio.get_running_loop().call_soon(mischief)\n"
        "    await asyncio.sleep(0.01)\n    return 1\nGB('ShardsIDReader').map(f).run()"
    ),
    "an object of a context": (
        "import asyncio, contextvars\nv = contextvars.ContextVar('v')\nasync def f(x):\n    v.set(Ends())\n    return 1\n"
        "GB('ShardsIDReader').map(f).run()"
    ),
}


@pytest.fixture
def server(borrow_server: Callable[..., Server]) -> Server:
    server = borrow_server()
    # What pickles functions is imported first: that takes a while and counts as the script's.
    server.run("GB('CommandReader').map(len).register(trigger='first')")
    server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"])
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 250)
    return server


def go(server: Server, script: str) -> Any:
    client = server.client(socket_timeout=20)
    said = []
    try:
        said.append(server.run(script, client=client))
    except Exception as error:
        said.append(str(error))
    if "trigger='trigger'" in script:
        try:
            said.append(client.execute_command("RG.TRIGGER", "trigger"))
        except Exception as error:
            said.append(str(error))
    return said


def unregister_all(server: Server) -> None:
    for registration in server.registrations():
        try:
            server.client().execute_command("RG.UNREGISTER", registration["id"])
        except ResponseError as error:
            assert "not registered" in str(error)  # some object has done that meanwhile


@pytest.mark.matrix
@pytest.mark.parametrize("place", PLACES)
def test_a_block_that_is_left_open_ends(server: Server, place: str) -> None:
    go(server, ENTER + OBJECT + PLACES[place])
    assert server.client(socket_timeout=10).set("after", 1)
    unregister_all(server)
    collect(server)
    assert server.client(socket_timeout=10).get("after") == "1"
    assert "a mutex is held" not in server.log()


SYNC = [place for place in PLACES if "sync" in place or "script" in place or "register" in place or "argument" in place]


@pytest.mark.parametrize("place", SYNC)
def test_what_never_ends_is_stopped_where_the_server_is_held(server: Server, place: str) -> None:
    go(server, LOOP + OBJECT + PLACES[place])
    assert server.client(socket_timeout=20).set("after", 1)
    unregister_all(server)
    collect(server)
    assert server.client(socket_timeout=20).get("after") == "1"


@pytest.mark.parametrize("place", PLACES)
def test_what_it_runs_finds_nothing_locked(server: Server, place: str) -> None:
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 10000)
    server.run("GB('CommandReader').map(len).register(trigger='victim')", "ID", "victim")
    go(server, INSPECT + OBJECT + PLACES[place])
    unregister_all(server)
    collect(server)
    assert int(server.client(socket_timeout=10).get("ended") or 0) > 0 or place in HARMLESS
    assert "a mutex is held" not in server.log()


# Nothing looks at the object there.
HARMLESS = {"log", "a result, not converted", "a sync trigger's result", "an argument of run", "an argument of register"}


def collect(server: Server) -> None:
    """Whatever can end has ended."""
    go(server, "import gc\nGB('ShardsIDReader').foreach(lambda x: gc.collect()).map(lambda x: x).run()")


def end_by_a_sync_function(server: Server) -> None:
    server.run("""
        def end(x):
            for registration in execute('RG.DUMPREGISTRATIONS'):
                if 'kept' in str(registration):
                    execute('RG.UNREGISTER', registration[1])
        GB('CommandReader').foreach(end).register(trigger='end', mode='sync')
        """)
    try:
        server.client().execute_command("RG.TRIGGER", "end")
    except ResponseError as error:
        assert "SyncTimeout" in str(error)


ENDINGS = {
    "unregister": lambda server: unregister_all(server),
    "unregister from a function": lambda server: server.run("""
        def end(x):
            for registration in execute('RG.DUMPREGISTRATIONS'):
                execute('RG.UNREGISTER', registration[1])
        GB('ShardsIDReader').foreach(end).run()
        """),
    "unregister from a sync function": end_by_a_sync_function,
    "upgrade": lambda server: server.run("GB('CommandReader').register(trigger='new')", "ID", "s", "UPGRADE"),
    "reload": lambda server: server.client().execute_command("DEBUG", "RELOAD"),
}


@pytest.mark.matrix
@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_an_object_that_dies_with_its_session_may_run_commands(server: Server, ending: str, mode: str) -> None:
    """A global variable of the session and a default argument: they go when the last registration goes."""
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 10000)
    before = int(server.client().get("ended") or 0)
    server.run(DIES.replace("MODE", mode), "ID", "s")
    assert server.client().execute_command("RG.TRIGGER", "kept") == ["together"]
    server.run("GB('CommandReader').map(len).register(trigger='victim')", "ID", "victim")
    ENDINGS[ending](server)
    unregister_all(server)

    def ended() -> bool:
        collect(server)
        return int(server.client(socket_timeout=10).get("ended") or 0) > before

    wait_until(ended, 10, "the objects have ended and run their commands")
    assert "a mutex is held" not in server.log()


# No circle keeps the globals: they end at once, wherever the last reference goes.
ENDS = """
class Ends:
    def __init__(self, name):
        self.name = name
    def __reduce__(self):
        return str, (self.name,)
    def __del__(self):
        mischief()
"""
DIES = f"""
names = {{'execute': execute}}
exec({INSPECT + ENDS!r}, names)
in_globals = names['Ends']('to')
in_default = names['Ends']('gether')
GB('CommandReader').map(
    lambda x, y=in_default: ''.join(z if isinstance(z, str) else z.name for z in (in_globals, y))
).register(trigger='kept', mode='MODE')
del names, in_default
"""


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("mischief", [ENTER, LOOP], ids=["enter", "loop"])
def test_what_a_dying_object_does_ends(server: Server, ending: str, mischief: str) -> None:
    """Blocks that it leaves open; loops where it holds the server. (On other threads a loop is the user's own affair.)"""
    if mischief == LOOP and ending in ("unregister", "unregister from a function", "upgrade", "reload"):
        pytest.skip("these objects end on some thread that does not hold the server")
    server.run(DIES.replace(repr(INSPECT + ENDS), repr(mischief + ENDS)).replace("MODE", "sync"), "ID", "s")
    ENDINGS[ending](server)
    assert server.client(socket_timeout=20).set("after", 1)
    collect(server)
    assert server.client(socket_timeout=20).get("after") == "1"


@pytest.mark.parametrize("step", ["map(len)", "foreach(lambda x: 1)"])
@pytest.mark.parametrize("reply", [[], ["UNBLOCKING"]], ids=["blocking", "unblocking"])
def test_an_object_that_dies_with_a_run_may_run_commands(server: Server, reply: list[str], step: str) -> None:
    """The session of a run ends with its execution, on a worker that is attached. Without a function of the script nothing
    but the session keeps the globals."""
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 10000)
    names = f"names = {{'execute': execute}}\nexec({INSPECT + ENDS!r}, names)\nin_globals = names['Ends']('g')\ndel names\n"
    client = server.client(socket_timeout=10)
    id = server.run(names + f"GB('ShardsIDReader').{step}.run()", *reply, client=client)
    if reply:
        client.execute_command("RG.GETRESULTSBLOCKING", id)
        client.execute_command("RG.DROPEXECUTION", id)

    def ended() -> bool:
        collect(server)
        return int(client.get("ended") or 0) > 0

    wait_until(ended, 10, "the object has ended and run its commands")
    assert "a mutex is held" not in server.log()


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_object_that_only_its_session_keeps(server: Server, ending: str) -> None:
    server.client().execute_command("RG.CONFIGSET", "SyncTimeout", 10000)
    names = f"names = {{'execute': execute}}\nexec({INSPECT + ENDS!r}, names)\nin_globals = names['Ends']('g')\ndel names\n"
    server.run(names + "GB('CommandReader').map(len).register(trigger='kept')", "ID", "s")
    ENDINGS[ending](server)
    unregister_all(server)

    def ended() -> bool:
        collect(server)
        return int(server.client(socket_timeout=10).get("ended") or 0) > 0

    wait_until(ended, 10, "the object has ended and run its commands")
    assert "a mutex is held" not in server.log()


@pytest.mark.matrix
def test_imports_by_the_server_are_watched_too(borrow_server: Callable[..., Server]) -> None:
    """Who has replaced `__import__` sees those of Pinion: where the server listens is told to Python by one (7.0)."""
    server = borrow_server(module_args=["SyncTimeout", 500])
    if server.version < (7,):
        pytest.skip("the server does not tell when its port changes")
    script = LOOP + "import builtins\nbefore = builtins.__import__\n"
    script += "def importing(name, *args, **kwargs):\n    if name == 'pinion_children':\n        mischief()\n"
    script += "    return before(name, *args, **kwargs)\nbuiltins.__import__ = importing\n"
    assert server.run(script) == "OK"
    port = free_port()
    assert server.client(socket_timeout=20).config_set("port", port)
    assert "longer than SyncTimeout" in server.log()
    with redis.Redis(server.host, port) as client:
        assert client.ping()
