"""Coroutines and futures in functions: values, order, errors, sessions, what waits for them.

Contract: docs/contract/python-api.md 6 and 12, docs/contract/readers-and-events.md 1.4, 10.3.
"""

from __future__ import annotations

import ast
import asyncio
import textwrap
import threading
import time
from typing import Any

import pytest
import redis.asyncio

from helpers import Server, wait_until
from probes import error_of, executions, last_line

IMPORTS = "import asyncio, threading, time\n"


def outcome(server: Server, steps: str, records: Any, setup: str = "") -> tuple[list[Any], list[str]]:
    """The results (as Python values) and the errors of steps over records."""
    results, errors = server.run(
        f"{IMPORTS}{textwrap.dedent(setup)}\ndef source():\n    yield from {list(records)!r}\n"
        f"GB('PythonReader'){steps}.map(lambda r: repr([r])).run(source)"
    )
    return [ast.literal_eval(result)[0] for result in results], errors


def put(server: Server, body: str, mode: str = "async_local", trigger: str = "t") -> None:
    """Registers a trigger whose function `f(record)` is made by `body`."""
    steps = "GB('CommandReader').map(f).map(lambda r: repr([r]))"
    script = f"{IMPORTS}{textwrap.dedent(body)}\n{steps}.register(trigger={trigger!r}, mode={mode!r})"
    assert server.run(script) == "OK"


def call(server: Server, *words: Any) -> Any:
    [result] = server.client().execute_command("RG.TRIGGER", *(words or ("t",)))
    return ast.literal_eval(result)[0]


LATER = """
async def later(r):
    await asyncio.sleep(0.001 * (7 - r % 7))
    return r
"""


# --- values and order ---


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (".map(later)", list(range(20))),
        (".map(later).map(later)", list(range(20))),
        (".filter(odd)", list(range(1, 20, 2))),
        (".flatmap(twice)", [r for r in range(20) for _ in (0, 1)]),
        (".foreach(nothing)", list(range(20))),
        (".map(later).filter(lambda r: r > 16)", [17, 18, 19]),
        (".filter(lambda r: r % 2).map(later).limit(2)", [1, 3]),
        (".accumulate(add)", [190]),
        (".groupby(lambda r: r % 2, addby)", [{"key": "0", "value": 90}, {"key": "1", "value": 100}]),
        (".aggregate(10, add, add)", [210]),
        (".map(later).count()", [20]),
        (".map(some)", list(range(20))),  # some wait, some do not: the order stays
        (".localgroupby(lambda r: r % 2, addby)", [{"key": "0", "value": 90}, {"key": "1", "value": 100}]),
        (".aggregateby(lambda r: r % 2, 5, addby, addby)", [{"key": "0", "value": 100}, {"key": "1", "value": 110}]),
        (".avg(later)", [9.5]),
        (".flatmap(later)", list(range(20))),  # no list: one record
        (".map(later).distinct().sort(reverse=False)", list(range(19, -1, -1))),
        (".filter(later).limit(3, 1)", [2, 3, 4]),
    ],
)
def test_the_value_of_a_coroutine_takes_its_place(server: Server, steps: str, expected: list[Any]) -> None:
    setup = f"""{LATER}
async def odd(r):
    return await later(r) % 2
async def twice(r):
    return [await later(r)] * 2
async def nothing(r):
    await later(r)
async def add(a, r):
    await asyncio.sleep(0)
    return (a or 0) + r
async def addby(k, a, r):
    return await add(a, r)
def some(r):
    return later(r) if r % 3 else r
"""
    assert outcome(server, steps, range(20), setup) == (expected, [])


def test_many_wait_at_the_same_time(server: Server) -> None:
    setup = "async def f(r):\n    await asyncio.sleep(0.2)\n    return r"
    begun = time.monotonic()
    assert outcome(server, ".map(f)", range(900), setup) == (list(range(900)), [])
    assert time.monotonic() - begun < 5


def test_more_than_may_wait(server: Server) -> None:
    setup = "async def f(r):\n    await asyncio.sleep(0.01)\n    return r"
    assert outcome(server, ".map(f).count()", range(3500), setup) == ([3500], [])


def test_a_thousand_wait_at_a_time(server: Server) -> None:
    setup = """
    waiting = 0
    most = []
    async def f(r):
        global waiting
        waiting += 1
        most.append(waiting)
        await asyncio.sleep(0.1)
        waiting -= 1
        return r
    """
    assert outcome(server, ".map(f).count().map(lambda n: [n, max(most)])", range(2500), setup) == ([[2500, 1000]], [])


def test_the_records_of_a_step_are_read_only_as_far_as_they_are_wanted(server: Server) -> None:
    setup = f"{LATER}\nbegun = []\ndef f(r):\n    begun.append(r)\n    return later(r)"
    steps = ".limit(3).map(f).map(lambda r: [r, len(begun)])"
    assert outcome(server, steps, range(50), setup) == ([[0, 3], [1, 3], [2, 3]], [])


# --- errors ---


def test_the_error_of_a_coroutine_is_its_text(server: Server) -> None:
    # An error ends the reading: all of them begin before.
    setup = """
    begun = []
    async def f(r):
        begun.append(r)
        while len(begun) < 3:
            await asyncio.sleep(0.001)
        if r:
            raise ValueError('no %s' % r)
        return r
    """
    assert outcome(server, ".map(f)", [0, 1, 2], setup) == ([0], ["no 1", "no 2"])


@pytest.mark.parametrize("error", ["SystemExit('bye')", "KeyboardInterrupt('bye')", "asyncio.CancelledError('bye')"])
def test_the_loop_survives_what_is_no_exception(server: Server, error: str) -> None:
    setup = f"async def f(r):\n    raise {error}"
    assert outcome(server, ".map(f)", [0], setup) == ([], ["bye"])
    assert outcome(server, ".map(later)", [3], LATER) == ([3], [])


def test_an_accumulator_starts_again_after_an_error(server: Server) -> None:
    setup = "async def add(a, r):\n    if r == 2: raise ValueError('two')\n    return (a or []) + [r]"
    steps = ".flatmap(lambda r: [3, 2, 1, 0]).accumulate(add)"
    assert outcome(server, steps, [0], setup) == ([[1, 0]], ["two"])


def test_nothing_waits_in_a_transaction(server: Server) -> None:
    put(server, "async def f(r):\n    return 1", "sync")
    client = server.client()
    pipe = client.pipeline()
    pipe.execute_command("RG.TRIGGER", "t")
    [error] = pipe.execute(raise_on_error=False)
    assert "Creating async record is not allowed" in str(error)
    assert "Creating async record is not allowed" in error_of(
        server, "return redis.call('RG.TRIGGER', 't')", 0, command="EVAL"
    )


# --- modes, sessions, blocks ---


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
def test_functions_of_each_mode_wait(server: Server, mode: str) -> None:
    body = "async def f(r):\n    await asyncio.sleep(0)\n    return [r[1], isAsyncAllow(), isInAtomicBlock()]"
    put(server, body, mode)
    assert call(server, "t", "x") == ["x", True, False]
    server.wait_idle()
    assert executions(server) == {}


def test_a_waiting_function_takes_no_thread(server: Server) -> None:
    put(server, "async def f(r):\n    await asyncio.sleep(0.2)\n    return r[1]")
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(call(server, "t", n))) for n in range(20)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers, key=int) == [str(n) for n in range(20)]
    assert time.monotonic() - begun < 2


def test_sessions_are_kept_across_tasks(server: Server) -> None:
    body = """
    async def one(n):
        await asyncio.sleep(0.001)
        return getGearsSession() is not None and execute('INCR', 'n')

    async def f(r):
        numbers = await asyncio.gather(*[one(n) for n in range(5)])
        inner = await asyncio.to_thread(lambda: getGearsSession() is not None)
        after = await GB('PythonReader').map(lambda v: v + 1).run(lambda: (n for n in range(3)))
        return [sorted(numbers), inner, after]
    """
    put(server, body)
    assert call(server) == [[1, 2, 3, 4, 5], True, [["1", "2", "3"], []]]


def test_await_inside_an_atomic_block_is_an_error(server: Server) -> None:
    put(server, "async def f(r):\n    with atomic():\n        await asyncio.sleep(0)")
    assert error_of(server, "t", command="RG.TRIGGER") == "await is not allow inside atomic block"
    body = """
    async def f(r):
        with atomic():
            execute('SET', 'k', 'v')
        await asyncio.sleep(0)
        return 1
    """
    put(server, body, trigger="u")
    assert call(server, "u") == 1


def test_errors_of_an_awaited_run_are_data(server: Server) -> None:
    body = """
    async def f(r):
        results, errors = await GB('PythonReader').map(lambda v: 1 // v).run(lambda: (n for n in [1, 0]))
        return [results, len(errors)]
    """
    put(server, body)
    assert call(server) == [["1"], 1]


# --- futures ---


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_future_is_continued_by_a_thread(server: Server, mode: str) -> None:
    body = """
    def f(r):
        future = gearsFuture()
        def later():
            time.sleep(0.02)
            getattr(future, r[1])(execute('PING'))
        threading.Thread(target=later).start()
        return future
    """
    put(server, body, mode)
    assert call(server, "t", "continueRun") == "PONG"
    assert error_of(server, "t", "continueFailed", command="RG.TRIGGER") == "PONG"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("gearsFuture(1)", "Future gets no arguments"),
        ("[gearsFuture() for _ in '12']", "Can not create async record twice on the same step"),
        ("gearsFuture().continueRun(1)", "Can not handle future untill it returned from the callback"),
        ("gearsFuture().continueRun()", "Continue function expect an object"),
    ],
)
def test_wrong_uses_of_a_future(server: Server, body: str, error: str) -> None:
    put(server, f"def f(r):\n    return {body}")
    assert last_line(error_of(server, "t", command="RG.TRIGGER")) == f"gears.error: {error}"


def test_futures_that_nobody_continues(server: Server) -> None:
    put(server, "def f(r):\n    return gearsFuture()")
    assert error_of(server, "t", command="RG.TRIGGER") == "Async record did not called continue"
    put(server, "def f(r):\n    gearsFuture()\n    return 5", trigger="unused")
    assert call(server, "unused") == 5


def test_a_future_is_continued_once(server: Server) -> None:
    body = """
    def f(r):
        future = gearsFuture()
        def later():
            future.continueRun(1)
            try:
                future.continueRun(2)
            except Exception as error:
                execute('SET', 'error', str(error))
        runCoroutine(waits(later), delay=0.05)
        return future

    async def waits(what):
        what()
    """
    put(server, body)
    assert call(server) == 1
    wait_until(lambda: server.own.get("error") == "Can not continue with the same future twice")


def test_runcoroutine_continues_a_future(server: Server) -> None:
    body = """
    def f(r):
        value, future = createFuture(), gearsFuture()
        async def wait():
            return await value + 1
        runCoroutine(wait(), future, delay=0.01)
        setFutureResults(value, 41)
        return future
    """
    put(server, body)
    assert call(server) == 42


@pytest.mark.parametrize(
    ("steps", "error"),
    [(".groupby(lambda r: gearsFuture(), lambda k, a, r: r)", "Step does not support async")],
)
def test_steps_without_futures(server: Server, steps: str, error: str) -> None:
    _, errors = outcome(server, steps, [1])
    assert [last_line(text) for text in errors] == [f"gears.error: {error}"]


# --- ends ---


def test_an_abort_ends_a_waiting_execution_at_once(server: Server) -> None:
    put(server, "async def f(r):\n    await asyncio.sleep(1000)")
    raw = server.raw()
    raw.send("RG.TRIGGER", "t")
    wait_until(lambda: [entry["status"] for entry in executions(server).values()] == ["running"])
    assert server.client().execute_command("RG.ABORTEXECUTION", *executions(server)) == "OK"
    assert raw.read() == b"*0\r\n"
    assert server.registrations()[0]["RegistrationData"]["numAborted"] == 1


def test_a_blocked_loop_is_named_in_the_log(server: Server) -> None:
    put(server, "async def f(r):\n    await asyncio.sleep(0)\n    time.sleep(3)\n    return 1")
    assert call(server) == 1
    registration = server.registrations()[0]["id"]
    assert f"the event loop has been blocked for more than a second by registration {registration}" in server.log()


@pytest.mark.parametrize("seconds", [0, -1])
def test_time_events_need_a_period(server: Server, seconds: int) -> None:
    assert "positive" in error_of(server, f"registerTE({seconds}, lambda: None)")


def test_a_time_event_lives_as_long_as_its_key(server: Server) -> None:
    client = server.client()
    made = "execute('SET', 'made', str([registerTE(1, tick, 'k') for _ in '12']))"
    server.run(f"def tick():\n    execute('INCR', 'ticks')\n{made}")
    assert client.get("made") == "[True, False]"
    assert client.type("k") == "rg_timeev"
    wait_until(lambda: client.get("ticks"))
    client.execute_command("DEBUG", "RELOAD")
    client.delete("ticks")
    wait_until(lambda: client.get("ticks"))
    client.delete("k", "ticks")
    time.sleep(1.3)  # the next tick would have come by now
    assert client.get("ticks") is None


# --- linked clients ---


@pytest.mark.matrix
@pytest.mark.parametrize("failing", [False, True])
def test_a_thousand_misses_wait_on_one_thread(server: Server, failing: bool) -> None:
    """None of the loaders ends before all have begun."""
    clients = 1000
    server.run(
        f"""
        import asyncio, threading
        waiting = []
        async def fetch(record):
            if not waiting:
                waiting.append(asyncio.Event())
            waiting.append(threading.get_ident())
            if len(waiting) > {clients}:
                waiting[0].set()
            await waiting[0].wait()
            number = int(record['key'].split(':')[1])
            if {failing} and number % 3 == 0:
                raise ValueError('no source')
            override_reply('value of %d on %d' % (number, len(set(waiting[1:]))))
        GB('KeysReader').foreach(fetch).register(prefix='k:*', eventTypes=['keymiss'], commands=['get'],
                                                mode='async_local')
        """
    )

    async def ask() -> list[Any]:
        # A busy machine takes its time to make so many connections.
        limits = {"socket_timeout": 60, "socket_connect_timeout": 60, "retry": None}
        pool = redis.asyncio.ConnectionPool(host=server.host, port=server.port, max_connections=clients, **limits)
        client = redis.asyncio.Redis(connection_pool=pool)
        await asyncio.gather(*[client.ping() for _ in range(clients)])
        replies = await asyncio.gather(*[client.get(f"k:{n}") for n in range(clients)])
        await pool.disconnect()
        return replies

    for number, reply in enumerate(asyncio.run(ask())):
        expected = None if failing and number % 3 == 0 else b"value of %d on 1" % number
        assert reply == expected


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_client_waits_for_coroutines_that_its_function_started(server: Server, mode: str) -> None:
    server.run(
        f"""
        import asyncio
        def start(record):
            async def answer():
                await asyncio.sleep(0.02)
                override_reply([get_command(), 'late'])
            runCoroutine(answer())
        GB('KeysReader').foreach(start).register(prefix='k', eventTypes=['keymiss'], commands=['get'], mode='{mode}')
        """
    )
    assert server.client().get("k") == [["GET", "k"], "late"]


def test_the_loader_of_the_tutorial_as_a_coroutine(server: Server, source: Server) -> None:
    source.client().set("user:1", "Ann")
    server.run(
        f"""
        import redis.asyncio
        pool = redis.asyncio.Redis(port={source.port}, decode_responses=True)
        async def fetch(record):
            value = await pool.get(record['key'])
            if value is not None:
                execute('SET', record['key'], value)
                override_reply(value)
        def connect():
            global pool
            pool = redis.asyncio.Redis(port={source.port}, decode_responses=True)
        del pool
        GB('KeysReader').foreach(fetch).register(prefix='user:*', eventTypes=['keymiss'], commands=['get'],
                                                mode='async_local', onRegistered=connect)
        """
    )
    client = server.client()
    assert [client.get("user:1"), client.get("user:1"), client.get("user:2")] == ["Ann", "Ann", None]
    assert server.registrations()[0]["RegistrationData"]["numTriggered"] == 2
