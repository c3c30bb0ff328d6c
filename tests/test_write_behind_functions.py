"""`write_behind` with functions that nobody expects: callable objects, wrappers, coroutines by a detour, functions that change what they get, raise
what is no error, return odd things, or register and unregister while they save. Contract: docs/contract/write-behind.md 2.1, 2.5 and 2.8.
"""

from __future__ import annotations

import pytest

from figures import errors, figures, wait_for
from helpers import Server, wait_until
from write_behind import drained

pytestmark = pytest.mark.matrix

STORE = """
import asyncio, functools, inspect

def store(*words):
    for change in words[-1]:
        execute('HSET', 'saved', change['key'], str(change['value']))

async def later(*words):
    await asyncio.sleep(0.001)
    store(words[-1])

class Saver:
    def __init__(self, name):
        self.name = name
    def __call__(self, changes):
        store(changes)
    def method(self, changes):
        store(changes)

class Later:
    async def __call__(self, changes):
        await later(changes)

class Counted:
    '''Its signature can be looked at once.'''
    looked = 0
    def __call__(self, changes):
        store(changes)
    @property
    def __signature__(self):
        type(self).looked += 1
        if self.looked > 1:
            raise RuntimeError('once only')
        return inspect.signature(store)

def lying(changes):
    store(changes)
lying.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ('a', 'b', 'c')])

def odd(changes):
    store(changes)
odd.__signature__ = 'none at all'

def inner():
    raise AssertionError('never called')

@functools.wraps(inner)
def wrapped(changes):
    store(changes)

def around(function):
    @functools.wraps(function)
    def call(*words, **named):
        return function(*words, **named)
    return call

@around
async def decorated(changes):
    await later(changes)
"""

GOOD = {
    "a partial": "functools.partial(store, 'more')",
    "a partial of a coroutine": "functools.partial(later, 'more')",
    "a partial of a partial": "functools.partial(functools.partial(store, 'a'), 'b')",
    "a callable object": "Saver('x')",
    "a callable object with a coroutine": "Later()",
    "a bound method": "Saver('x').method",
    "a lambda that returns a coroutine": "lambda changes: later(changes)",
    "a decorated coroutine": "decorated",
    "a default argument": "lambda changes, more=1: store(changes)",
    "a future": "lambda changes: asyncio.ensure_future(later(changes))",
}


@pytest.mark.parametrize("function", GOOD.values(), ids=GOOD)
def test_functions_of_all_kinds(server: Server, function: str) -> None:
    """Each saves, or is refused: none counts as one that has saved and has not."""
    said = errors(server, f"{STORE}\nwrite_behind('k:*', {function}, backoff=0.01, max_backoff=0.02)")
    client = server.client()
    client.mset({"k:1": "a", "k:2": "b"})
    if said != "OK":
        assert "write_behind: save: " in said and server.registrations() == [], said
        return
    wait_until(lambda: figures(server)["queued"] == 0 or figures(server)["saveFailures"] > 2)
    if figures(server)["queued"] == 0:
        assert client.hgetall("saved") == {"k:1": "a", "k:2": "b"}, "what counts as saved is saved"
    else:
        assert figures(server)["saved"] == 0 and figures(server)["lastError"], figures(server)


LYING = ["Counted()", "lying", "odd", "wrapped"]


@pytest.mark.parametrize("function", LYING)
def test_functions_that_lie_about_their_arguments(server: Server, function: str) -> None:
    said = errors(server, f"{STORE}\nwrite_behind('k:*', {function}, backoff=0.01)")
    client = server.client()
    client.set("k:1", "a")
    if said != "OK":
        assert server.registrations() == [], said
        return
    drained(server)
    assert client.hgetall("saved") == {"k:1": "a"}


BAD = {
    "SystemExit": "raise SystemExit(3)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "CancelledError": "raise asyncio.CancelledError",
    "BaseException": "raise BaseException('no')",
    "StopIteration": "raise StopIteration",
    "MemoryError": "raise MemoryError",
    "RecursionError": "save(changes)",
    "a group": "raise BaseExceptionGroup('all', [ValueError(1), SystemExit()])",
    "an error whose text fails": "raise Nasty()",
}


@pytest.mark.parametrize("way", ["def", "async def"])
@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_whatever_is_raised_is_a_failure(server: Server, body: str, way: str) -> None:
    if "RecursionError" in body or (body == "save(changes)" and way != "def"):
        pytest.skip("a coroutine that is not awaited does not recurse")
    server.run(f"""
        import asyncio
        calls = []

        class Nasty(Exception):
            def __str__(self):
                raise ValueError('no text')
            __repr__ = __str__

        @write_behind('k:*', backoff=0.01)
        {way} save(changes):
            if not changes[0].get('again') and len(calls) < 3:
                calls.append(len(changes))
                {body}
            execute('HSET', 'saved', changes[0]['key'], changes[0]['value'])
    """)
    client = server.client()
    client.set("k:1", "a")
    drained(server)
    assert client.hgetall("saved") == {"k:1": "a"}
    data = figures(server)
    if body != "save(changes)":
        assert (data["saveFailures"], data["batches"], data["saved"]) == (3, 1, 1), data


def test_what_save_does_to_its_list_is_its_own_affair(server: Server) -> None:
    server.run("""
        import json
        calls = []

        @write_behind('k:*', backoff=0.01, coalesce=False, interval=0.05)
        def save(changes):
            seen = [(change['key'], change['value'], change['type']) for change in changes]
            calls.append(seen)
            execute('RPUSH', 'calls', json.dumps(seen))
            for change in changes:
                if isinstance(change['value'], dict):
                    change['value']['b'] = 'changed'
                change['value'] = change['key'] = 'changed'
                change['type'] = None
            del changes[1:]
            changes.append({'key': 'k:other'})
            changes *= 50
            if len(calls) < 3:
                raise ValueError('again')
            return changes
    """)
    client = server.client()
    with client.pipeline(transaction=True) as pipe:
        pipe.set("k:1", "a").hset("k:2", mapping={"b": "c"}).rpush("k:3", "d").execute()
    drained(server)
    assert len(set(client.lrange("calls", 0, -1))) == 1 and client.llen("calls") == 3
    assert figures(server)["saved"] == 3


RETURNED = {
    "endless": "Endless()", "a generator": "(x for x in [1])", "an object that fails": "Fails()", "a huge text": "'x' * 10_000_000", "itself": "changes",
    "in a circle": "circle", "False": "False", "an error": "ValueError('returned')", "a coroutine function": "save", "a type": "Fails",
}  # fmt: skip


@pytest.mark.parametrize("value", RETURNED.values(), ids=RETURNED)
def test_whatever_is_returned_is_ignored(server: Server, value: str) -> None:
    server.run(f"""
        class Endless:
            def __iter__(self):
                return self
            def __next__(self):
                return 1

        class Fails:
            def fail(self, *words):
                raise ValueError('no')
            __str__ = __repr__ = __eq__ = __bool__ = __len__ = __iter__ = __hash__ = __del__ = __reduce__ = fail

        circle = []
        circle.append(circle)

        @write_behind('k:*', backoff=0.01)
        def save(changes):
            execute('HSET', 'saved', changes[0]['key'], changes[0]['value'])
            return {value}
    """)
    client = server.client()
    client.set("k:1", "a")
    drained(server)
    assert client.hgetall("saved") == {"k:1": "a"}
    assert (figures(server)["saveFailures"], figures(server)["saved"]) == (0, 1), figures(server)
    client.set("k:2", "b")
    drained(server)
    assert client.hgetall("saved") == {"k:1": "a", "k:2": "b"}


def test_a_save_that_unregisters_itself(server: Server) -> None:
    server.run("""
        @write_behind('k:*', backoff=0.01)
        def save(changes):
            registration = str(execute('GET', 'registration'))
            execute('RPUSH', 'said', str(execute('RG.UNREGISTER', registration, *([b'ABORTPENDING'] if changes[0]['value'] == 'end' else []))))
            execute('HSET', 'saved', changes[0]['key'], changes[0]['value'])
    """)
    client = server.client()
    client.set("registration", server.registrations()[0]["id"])
    client.set("k:1", "a")
    wait_until(lambda: client.llen("said") == 1 or figures(server)["saveFailures"] > 0)
    # What it saves itself is not saved yet.
    wait_until(lambda: "not saved yet" in str(client.lrange("said", 0, -1)) or "not saved yet" in str(figures(server)["lastError"]))
    client.set("k:1", "end")
    wait_until(lambda: not server.registrations())
    client.set("k:2", "nobody saves that")
    assert client.ping() and client.info("rg_write_behind")["rg_write_behind_queued"] == 0


def test_a_save_that_registers(server: Server) -> None:
    """Itself anew, as a client, while its own call runs; by itself it cannot."""
    server.run(f"""
        import redis
        NEXT = "write_behind('k:*', lambda changes: [execute('HSET', 'saved', one['key'], one['value'] + ' by the next one') for one in changes])"

        @write_behind('k:*', backoff=0.01)
        def save(changes):
            for attempt in (lambda: write_behind('l:*', len), lambda: execute('RG.PYEXECUTE', NEXT)):
                try:
                    execute('RPUSH', 'said', str(attempt()))
                except Exception as error:
                    execute('RPUSH', 'said', type(error).__name__)
            redis.Redis(port={server.port}).execute_command('RG.PYEXECUTE', NEXT, 'ID', 'mine', 'UPGRADE')
            for change in changes:
                execute('HSET', 'saved', change['key'], change['value'])
    """, "ID", "mine")  # fmt: skip
    client = server.client()
    client.mset({"k:1": "a", "k:2": "b"})
    wait_until(lambda: client.hlen("saved") == 2)
    drained(server)
    client.set("k:3", "c")
    drained(server)
    assert client.hgetall("saved") == {"k:1": "a", "k:2": "b", "k:3": "c by the next one"}
    assert len(server.registrations()) == 1
    assert "None" not in client.lrange("said", 0, -1) and "OK" not in client.lrange("said", 0, -1)


def test_a_save_that_writes_its_own_keys(server: Server) -> None:
    server.run("""
        @write_behind('k:*', backoff=0.01, coalesce=False)
        def save(changes):
            for change in changes:
                if change['value'] == 'poison' and not execute('GET', 'healed'):
                    execute('SET', change['key'], 'written by save')
                    execute('DEL', 'k:gone')
                    raise ValueError('again')
                execute('RPUSH', 'saved', change['key'] + '=' + str(change['value']))
                with atomic():
                    execute('SET', change['key'], 'stored')
                    execute('RENAME', change['key'], 'k:renamed')
    """)
    client = server.client()
    client.set("k:gone", "a")
    drained(server)
    client.set("k:1", "poison")
    wait_for(server, queued=1)
    wait_until(lambda: figures(server)["saveFailures"] > 2)
    captured = figures(server)["captured"]
    client.set("healed", 1)
    drained(server)
    assert client.lrange("saved", 0, -1) == ["k:gone=a", "k:1=poison"]
    assert figures(server)["captured"] == captured == 2
    assert client.keys("k:*") == ["k:renamed"]
