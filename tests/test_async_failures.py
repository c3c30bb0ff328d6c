"""Coroutines and futures when something goes wrong: refusals, errors, aborts, leaks, a loop that is held up.

Contract: docs/contract/python-api.md 6 and 12, docs/contract/readers-and-events.md 1.4, 8.4, 10.3 to 10.6, 13. No
client may hang and nothing may leak.
"""

from __future__ import annotations

import ast
import textwrap
import time
from typing import Any

import pytest

from helpers import Arg, RawClient, Server, wait_until
from probes import blocked_clients, data, error_of, executions

IMPORTS = "import asyncio, threading, time\n"
NIL = b"$-1\r\n"
REFUSED = "Creating async record is not allowed"
# Waits until the key `go` exists.
HELD = """
async def held():
    execute('INCR', 'begun')
    while not execute('EXISTS', 'go'):
        await asyncio.sleep(0.002)
"""


def put(server: Server, body: str, mode: str = "async_local", trigger: str = "t", *options: Arg) -> None:
    """Registers a trigger whose function `f(record)` is defined by `body`."""
    script = f"{IMPORTS}{HELD}{textwrap.dedent(body)}\n"
    script += f"GB('CommandReader').map(f).register(trigger={trigger!r}, mode={mode!r})"
    assert server.run(script, *options) == "OK"


def link(server: Server, body: str, mode: str = "async_local", *options: Arg) -> None:
    """Links missed GETs of `k*` to a function `f(record)` that is defined by `body`."""
    script = f"{IMPORTS}{HELD}{textwrap.dedent(body)}\n"
    script += "GB('KeysReader').foreach(f).register(prefix='k*', commands=['get'], eventTypes=['keymiss'], "
    assert server.run(f"{script}mode={mode!r})", *options) == "OK"


def ask(server: Server, *words: Arg) -> RawClient:
    """A client whose command waits, its function begun."""
    count = int(server.client().get("begun") or 0)
    raw = server.raw()
    raw.send(*words)
    wait_until(lambda: server.own.get("begun") == str(count + 1), message="the function has begun")
    return raw


def outcome(server: Server, steps: str, setup: str, records: Any = (0,)) -> tuple[list[str], list[str]]:
    """Results and errors of steps over records."""
    setup = IMPORTS + textwrap.dedent(setup)
    script = f"{setup}\ndef source():\n    yield from {list(records)!r}\nGB('PythonReader'){steps}.run(source)"
    results, errors = server.run(script)
    return results, errors


def assert_well(server: Server) -> None:
    """Nobody waits, nothing is under way, and coroutines still run."""
    server.wait_idle()
    wait_until(lambda: blocked_clients(server) == 0)
    results, errors = outcome(server, ".map(f)", "async def f(r):\n    await asyncio.sleep(0.001)\n    return r + 1")
    assert (results, errors) == (["1"], [])


# --- where nothing can wait ---


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (".groupby(f, lambda k, a, r: r)", "coroutine are not allow on extractor"),
        (".localgroupby(f, lambda k, a, r: r)", "coroutine are not allow on extractor"),
        (".batchgroupby(f, lambda k, rs: rs)", "coroutine are not allow on extractor"),
        (".repartition(f)", "coroutine are not allow on extractor"),
        (".countby(f)", "coroutine are not allow on extractor"),
        (".aggregateby(f, 0, lambda k, a, r: r, lambda k, a, r: r)", "coroutine are not allow on extractor"),
        (".batchgroupby(lambda r: r, f)", "coroutine are not allow on reduce"),
    ],
)
def test_steps_without_coroutines(server: Server, steps: str, error: str) -> None:
    results, errors = outcome(server, steps, "async def f(*args):\n    return 1")
    assert (results, errors) == ([], [f"Error type: <class 'gears.error'>, Value: {error}"])
    assert "never awaited" not in server.log()


@pytest.mark.parametrize("awaited", [False, True])
def test_an_error_without_text_shows_the_frames_of_users_only(server: Server, awaited: bool) -> None:
    inner = "    await g()\n" if awaited else "    raise KeyError\n"
    results, [error] = outcome(server, ".map(f)", f"async def g():\n    raise KeyError\nasync def f(r):\n{inner}")
    assert results == [] and "KeyError" in error and "<pinion>" not in error
    assert error.count("File ") == 1 + awaited and ", in f" in error


def test_one_error_for_each_group_of_a_batch(server: Server) -> None:
    steps = ".flatmap(lambda r: [1, 2, 3, 4]).batchgroupby(lambda r: r % 2, f)"
    results, errors = outcome(server, steps, "async def f(*args):\n    return 1")
    assert (results, len(errors)) == ([], 2)


def test_a_coroutine_of_onregistered_is_an_error(server: Server) -> None:
    script = "async def ready():\n    pass\nGB('CommandReader').register(trigger='t', onRegistered=ready)"
    assert server.run(script) == "OK"
    wait_until(lambda: "Coroutines are not allow" in server.log(), message="the log tells")
    assert "never awaited" not in server.log()


@pytest.mark.parametrize("body", ["async def f(r):\n    return 1", "def f(r):\n    return gearsFuture()"])
def test_a_transaction_cannot_wait(server: Server, body: str) -> None:
    put(server, body, "sync")
    raw = server.raw()
    raw.call("MULTI")
    raw.call("RG.TRIGGER", "t")
    reply = raw.call("EXEC")
    assert reply.startswith(b"*1\r\n-") and REFUSED.encode() in reply
    assert REFUSED in error_of(server, "return redis.call('RG.TRIGGER', 't')", 0, command="EVAL")
    assert_well(server)


def test_a_function_that_execute_calls_cannot_wait(server: Server) -> None:
    put(server, "async def f(r):\n    return 1", "sync")
    put(server, "def f(r):\n    return execute('RG.TRIGGER', 't')", "sync", "outer")
    assert REFUSED in error_of(server, "outer", command="RG.TRIGGER")
    assert_well(server)


def test_isasyncallow_tells_what_to_do(server: Server) -> None:
    body = """
    async def later():
        return 'later'
    def f(r):
        return later() if isAsyncAllow() else 'now'
    """
    put(server, body, "sync")
    client = server.client()
    assert client.execute_command("RG.TRIGGER", "t") == ["later"]
    assert client.eval("return redis.call('RG.TRIGGER', 't')", 0) == ["now"]


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_missed_key_inside_a_transaction(server: Server, mode: str) -> None:
    link(server, "async def f(r):\n    await asyncio.sleep(0)\n    override_reply('late')", mode)
    raw = server.raw()
    raw.call("MULTI")
    raw.call("GET", "k")
    assert raw.call("EXEC") == b"*1\r\n$-1\r\n"
    assert raw.call("EVAL", "return redis.call('GET', KEYS[1])", 1, "k") == NIL
    server.wait_idle()
    counted = data(server)
    assert counted["numFailures"] == 2
    assert (REFUSED if mode == "sync" else "Can not get command ctx") in counted["lastError"]
    assert raw.call("GET", "k") == b"$4\r\nlate\r\n"


def test_a_hook_that_waits_inside_a_transaction(server: Server) -> None:
    server.run(
        """
        async def f(record):
            return call_next(*record[1:])
        GB('CommandReader').map(f).register(hook='get', mode='sync', convertToStr=False)
        """
    )
    raw = server.raw()
    raw.call("SET", "k", "v")
    assert raw.call("GET", "k") == b"$1\r\nv\r\n"
    raw.call("MULTI")
    raw.call("GET", "k")
    reply = raw.call("EXEC")
    assert reply.startswith(b"*1\r\n-") and REFUSED.encode() in reply
    assert_well(server)


# --- what functions raise ---


ERRORS = [
    ("ValueError('no')", "no"),
    ("KeyError('no')", "'no'"),
    ("flat_error('flat')", "flat"),
    ("ValueError('\\u00e9\\n')", "\u00e9\n"),
]
BASE_ERRORS = ["SystemExit('no')", "KeyboardInterrupt('no')", "GeneratorExit('no')", "asyncio.CancelledError('no')"]
BASE_ERRORS += ["type('Own', (BaseException,), {})('no')"]


@pytest.mark.matrix
@pytest.mark.parametrize(("error", "text"), ERRORS)
def test_the_error_is_its_text(server: Server, error: str, text: str) -> None:
    raising = f"{error}" if "flat" in error else f"raise {error}"
    setup = f"async def f(r):\n    await asyncio.sleep(0)\n    {raising}"
    assert outcome(server, ".map(f)", setup) == ([], [text])


@pytest.mark.matrix
@pytest.mark.parametrize("error", BASE_ERRORS)
@pytest.mark.parametrize("before", ["pass", "await asyncio.sleep(0.001)"])
def test_nothing_ends_the_loop(server: Server, error: str, before: str) -> None:
    assert outcome(server, ".map(f)", f"async def f(r):\n    {before}\n    raise {error}") == ([], ["no"])
    assert_well(server)


@pytest.mark.parametrize("error", BASE_ERRORS)
@pytest.mark.parametrize("awaited", ["asyncio.gather(g())", "asyncio.create_task(g())", "asyncio.wait_for(g(), 1)"])
def test_nothing_in_a_task_ends_the_loop(server: Server, error: str, awaited: str) -> None:
    setup = f"async def g():\n    await asyncio.sleep(0)\n    raise {error}\nasync def f(r):\n    await {awaited}"
    results, errors = outcome(server, ".map(f)", setup)
    assert (results, len(errors)) == ([], 1)
    assert_well(server)


@pytest.mark.parametrize("error", [*BASE_ERRORS, "ValueError('no')"])
def test_nothing_in_a_coroutine_of_its_own_ends_the_loop(server: Server, error: str) -> None:
    server.run(f"import asyncio\nasync def f():\n    raise {error}\nrunCoroutine(f())")
    server.run(f"def f():\n    raise {error}\nimport asyncio\nloop.call_soon_threadsafe(f)")
    assert_well(server)


def test_who_is_stopped_while_he_starts_a_coroutine_holds_up_nobody(server: Server) -> None:
    # What SyncTimeout raises hits any line; here it is the one before the loop is woken.
    put(server, """
        import sys

        class Stopped(BaseException):
            pass

        def look(frame, event, _):
            module = frame.f_globals
            if module['__name__'] != 'pinion_loop' or frame.f_code.co_name != 'start':
                return None
            if event == 'line' and module['_draining']:
                raise Stopped
            return look

        async def late():
            execute('INCR', 'late')

        def f(_):
            sys.settrace(look)
            try:
                runCoroutine(late())
            except Stopped:
                return 'stopped'
            finally:
                sys.settrace(None)
    """, "sync", "stop")  # fmt: skip
    put(server, """
        async def f(_):
            return 'well'
    """)
    assert server.own.execute_command("RG.TRIGGER", "stop") == ["stopped"]
    assert server.own.execute_command("RG.TRIGGER", "t") == ["well"]
    wait_until(lambda: server.own.get("late") == "1", message="what was started before has run, too")


def test_an_error_whose_text_cannot_be_made(server: Server) -> None:
    setup = """
    class Bad(Exception):
        def __str__(self):
            raise ValueError
    async def f(r):
        raise Bad()
    """
    results, [error] = outcome(server, ".map(f)", setup)
    assert results == [] and "Bad" in error and "line 7, in f" in error


@pytest.mark.parametrize("steps", [".accumulate(f)", ".aggregate(None, f, lambda a, r: r)"])
def test_an_accumulator_starts_again_after_an_error(server: Server, steps: str) -> None:
    setup = """
    async def f(a, r):
        await asyncio.sleep(0)
        if r == 2:
            raise ValueError('two')
        return (a or []) + [r]
    """
    assert outcome(server, f".flatmap(lambda r: [5, 2, 4, 2, 3, 1]){steps}", setup) == (["[3, 1]"], ["two", "two"])


@pytest.mark.parametrize("step", ["groupby", "localgroupby"])
def test_a_group_starts_again_after_an_error(server: Server, step: str) -> None:
    setup = """
    async def f(k, a, r):
        await asyncio.sleep(0.001 * (r % 2))
        if r == 4:
            raise ValueError('four of ' + k)
        return (a or []) + [r]
    """
    steps = f".flatmap(lambda r: [1, 2, 3, 4, 5, 6]).{step}(lambda r: r % 2, f)"
    results, errors = outcome(server, steps, setup)
    assert sorted(results) == ["{'key': '0', 'value': [6]}", "{'key': '1', 'value': [1, 3, 5]}"]
    assert errors == ["four of 0"]


def test_reducers_take_one_record_at_a_time(server: Server) -> None:
    setup = """
    running = []
    async def f(a, r):
        running.append(r)
        assert len(running) == 1
        await asyncio.sleep(0.001)
        running.remove(r)
        return (a or 0) + r
    """
    assert outcome(server, ".flatmap(lambda r: list(range(50))).accumulate(f)", setup) == (["1225"], [])


@pytest.mark.matrix
def test_every_error_of_many_is_kept(server: Server) -> None:
    setup = """
    async def f(r):
        await asyncio.sleep(0.001 * (r % 5))
        if r % 2:
            raise ValueError(r)
        return r
    """
    results, errors = outcome(server, ".flatmap(lambda r: list(range(200))).map(f)", setup)
    assert results == [str(number) for number in range(0, 200, 2)]
    assert errors == [str(number) for number in range(1, 200, 2)]


def test_a_stopiteration_is_an_error(server: Server) -> None:
    setup = "async def f(r):\n    raise StopIteration(5)"
    assert outcome(server, ".map(f)", setup) == ([], ["coroutine raised StopIteration"])


def test_a_coroutine_that_is_returned_twice(server: Server) -> None:
    setup = """
    async def once():
        return 1
    made = []
    def f(r):
        made.extend([] if made else [once()])
        return made[0]
    """
    expected = (["1"], ["cannot reuse already awaited coroutine"])
    assert outcome(server, ".flatmap(lambda r: [1, 2]).map(f)", setup) == expected
    assert_well(server)


@pytest.mark.parametrize("value", ["[g()]", "createFuture()", "wrapped()", "(n for n in [1])"])
def test_what_is_no_coroutine_is_a_value(server: Server, value: str) -> None:
    setup = f"""
    import types
    async def g():
        pass
    class wrapped:
        def __await__(self):
            yield
    def f(r):
        return {value}
    """
    results, errors = outcome(server, ".map(f)", setup)
    assert (len(results), errors) == (1, [])


# --- atomic blocks ---


@pytest.mark.matrix
@pytest.mark.parametrize(
    "awaited",
    ["asyncio.sleep(0)", "asyncio.sleep(1)", "createFuture()", "GB('KeysReader').run()", "asyncio.gather(other())",
     "asyncio.create_task(other())", "asyncio.wait_for(other(), 1)", "asyncio.to_thread(time.sleep, 0)"],
)
def test_nothing_is_awaited_in_an_atomic_block(server: Server, awaited: str) -> None:
    body = f"""
    async def other():
        await asyncio.sleep(0)
    async def f(r):
        with atomic():
            execute('SET', 'inside', '1')
            await {awaited}
    """
    put(server, body)
    assert error_of(server, "t", command="RG.TRIGGER") == "await is not allow inside atomic block"
    assert server.client().get("inside") == "1"
    assert_well(server)


def test_the_error_of_an_atomic_block_can_be_caught(server: Server) -> None:
    body = """
    async def f(r):
        try:
            with atomic():
                await asyncio.sleep(0)
        except Exception as error:
            caught = type(error) is Exception and str(error)
        await asyncio.sleep(0.001)
        with atomic():
            execute('SET', 'k', 'v')
        return [isInAtomicBlock(), caught]
    """
    put(server, body)
    [shown] = server.client().execute_command("RG.TRIGGER", "t")
    assert ast.literal_eval(shown) == [False, "await is not allow inside atomic block"]


def test_what_is_awaited_without_waiting_may_be_in_a_block(server: Server) -> None:
    body = """
    async def other():
        return execute('INCR', 'n')
    async def f(r):
        with atomic():
            return [await other(), await other(), isInAtomicBlock()]
    """
    put(server, body)
    assert server.client().execute_command("RG.TRIGGER", "t") == ["[1, 2, True]"]


def test_a_block_that_a_coroutine_does_not_leave(server: Server) -> None:
    put(server, "async def f(r):\n    atomic().__enter__()\n    return 'left'")
    assert server.client().execute_command("RG.TRIGGER", "t") == ["left"]
    assert_well(server)


# --- futures that nobody continues ---


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_lost_future_is_an_error(server: Server, mode: str) -> None:
    put(server, "def f(r):\n    return gearsFuture()", mode)
    assert error_of(server, "t", command="RG.TRIGGER") == "Async record did not called continue"
    assert_well(server)


def test_a_future_is_lost_when_its_thread_fails(server: Server) -> None:
    body = """
    def f(r):
        future = gearsFuture()
        def work(future):
            while isAsyncAllow():
                pass
            del future
            raise ValueError('the thread ends')
        threading.Thread(target=work, args=(future,)).start()
        return future
    """
    put(server, body)
    assert error_of(server, "t", command="RG.TRIGGER") == "Async record did not called continue"


def test_a_linked_client_goes_when_its_future_is_lost(server: Server) -> None:
    link(server, "def f(r):\n    return gearsFuture()")
    assert server.client().get("k") is None
    server.wait_idle()
    assert data(server)["lastError"] == "Async record did not called continue"


@pytest.mark.parametrize("what", ["createFuture()", "asyncio.Event().wait()", "asyncio.sleep(10000)"])
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_wait_without_end_is_visible_and_can_be_aborted(server: Server, what: str, mode: str) -> None:
    put(server, f"async def f(r):\n    execute('INCR', 'begun')\n    await {what}", mode)
    raw = ask(server, "RG.TRIGGER", "t")
    [(execution, entry)] = executions(server).items()
    assert entry["status"] in ("created", "running")
    assert server.client().execute_command("RG.ABORTEXECUTION", execution) == "OK"
    assert raw.read() == b"*0\r\n"
    assert data(server)["numAborted"] == 1
    assert_well(server)


def test_a_future_that_is_kept_can_be_aborted_and_continued(server: Server) -> None:
    body = """
    kept = []
    def f(r):
        if len(r) > 1:
            return str(kept.pop().continueRun('late'))
        kept.append(gearsFuture())
        execute('INCR', 'begun')
        return kept[0]
    """
    put(server, body)
    raw = ask(server, "RG.TRIGGER", "t")
    server.client().execute_command("RG.ABORTEXECUTION", *executions(server))
    assert raw.read() == b"*0\r\n"
    assert server.client().execute_command("RG.TRIGGER", "t", "go") == ["None"]
    assert_well(server)


# --- abort, unregister, upgrade ---


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_coroutine_goes_on_after_an_abort(server: Server, mode: str) -> None:
    put(server, "async def f(r):\n    await held()\n    execute('SET', 'ended', '1')\n    return 'x'", mode)
    raw = ask(server, "RG.TRIGGER", "t")
    server.client().execute_command("RG.ABORTEXECUTION", *executions(server))
    assert raw.read() == b"*0\r\n"
    server.client().set("go", "1")
    wait_until(lambda: server.own.get("ended"))
    counted = data(server)
    assert [counted[name] for name in ("numTriggered", "numSuccess", "numFailures", "numAborted")] == [1, 0, 0, 1]
    assert_well(server)


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_an_abort_lets_a_linked_client_go(server: Server, mode: str) -> None:
    link(server, "async def f(r):\n    await held()\n    override_reply('late')", mode)
    raw = ask(server, "GET", "k")
    server.client().execute_command("RG.ABORTEXECUTION", *executions(server))
    assert raw.read() == NIL
    server.client().set("go", "1")
    assert_well(server)


def test_an_override_is_kept_over_an_abort(server: Server) -> None:
    link(server, "async def f(r):\n    override_reply('early')\n    await held()")
    raw = ask(server, "GET", "k")
    server.client().execute_command("RG.ABORTEXECUTION", *executions(server))
    assert raw.read() == b"$5\r\nearly\r\n"


@pytest.mark.parametrize("how", ["unregister", "abortpending", "upgrade"])
@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_who_waits_goes_on_without_the_registration(server: Server, how: str, mode: str) -> None:
    body = """
    word = 'late'
    async def f(r):
        await held()
        both = await GB('KeysReader').map(lambda r: word).run('go')
        override_reply(both[0])
    """
    link(server, body, mode, "ID", "s")
    raw = ask(server, "GET", "k")
    if how == "upgrade":
        server.run("1", "ID", "s", "UPGRADE")
    else:
        extra = ["ABORTPENDING"] if how == "abortpending" else []
        server.client().execute_command("RG.UNREGISTER", server.registrations()[0]["id"], *extra)
    server.client().set("go", "1")
    assert raw.read() == b"*1\r\n$4\r\nlate\r\n"
    assert server.registrations() == []
    assert_well(server)
    wait_until(lambda: executions(server) == {})


@pytest.mark.parametrize("end", ["kill", "close"])
def test_a_client_that_goes_away(server: Server, end: str) -> None:
    link(server, "async def f(r):\n    await held()\n    override_reply('late')\n    execute('SET', 'ended', '1')")
    raw = ask(server, "GET", "k")
    if end == "kill":
        [identity] = [entry["id"] for entry in server.client().client_list() if "b" in entry["flags"]]
        server.client().client_kill_filter(_id=identity)
    else:
        raw.close()
    server.client().set("go", "1")
    wait_until(lambda: server.own.get("ended"))
    assert_well(server)


def test_the_server_ends_while_coroutines_wait(server: Server) -> None:
    put(server, "async def f(r):\n    await held()")
    ask(server, "RG.TRIGGER", "t")
    server.stop()  # with status 0


@pytest.mark.parametrize("command", ["FLUSHALL", "DEBUG RELOAD"])
def test_data_that_goes_away_while_somebody_waits(server: Server, command: str) -> None:
    link(server, "async def f(r):\n    await held()\n    override_reply('late')")
    raw = ask(server, "GET", "k")
    server.client().execute_command(command)
    server.client().set("go", "1")
    assert raw.read() in ([b"$4\r\nlate\r\n"] if command == "FLUSHALL" else [b"$4\r\nlate\r\n", NIL])
    assert_well(server)


# --- leaks ---


def test_nothing_is_left_unawaited(server: Server) -> None:
    setup = """
    async def f(r):
        return r
    async def slow(r):
        await asyncio.sleep(1000)
    """
    outcome(server, ".limit(1).map(f)", setup, [1, 2, 3])
    outcome(server, ".map(f).map(lambda r: 1 // r).map(f)", setup, [1, 0, 2])
    outcome(server, ".groupby(f, lambda k, a, r: 1)", setup, [1, 2])
    put(server, textwrap.dedent(setup) + "f = slow")
    raw = server.raw()
    raw.send("RG.TRIGGER", "t")
    wait_until(lambda: executions(server))
    server.client().execute_command("RG.ABORTEXECUTION", *executions(server))
    server.run("import gc\ngc.collect()")
    assert_well(server)
    assert "never awaited" not in server.log()


@pytest.mark.parametrize("body", ["task = asyncio.create_task(other())\n    task.cancel()",
                                  "task = asyncio.gather(other(), other())\n    task.cancel()"])
def test_a_task_that_is_cancelled_before_it_begins(server: Server, body: str) -> None:
    setup = f"""
async def other():
    pass
async def f(r):
    {body}
    try:
        await task
    except asyncio.CancelledError:
        return 'cancelled'
"""
    assert outcome(server, ".map(f)", setup) == (["cancelled"], [])
    server.run("import gc\ngc.collect()")
    assert_well(server)
    assert "never awaited" not in server.log()


@pytest.mark.parametrize("how", ["timeout", "cancel"])
def test_a_cancelled_task_cleans_up(server: Server, how: str) -> None:
    setup = f"""
    async def other():
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            execute('SET', 'cleaned', '1')
    async def f(r):
        if {how == 'timeout'}:
            await asyncio.wait_for(other(), 0.01)
        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        task.cancel()
        await task
    """
    results, errors = outcome(server, ".map(f)", setup)
    # Their exceptions have no text of their own.
    kind = "TimeoutError" if how == "timeout" else "CancelledError"
    assert results == [] and len(errors) == 1 and kind in errors[0]
    assert server.client().get("cleaned") == "1"
    assert_well(server)


def test_a_function_and_its_data_are_forgotten(server: Server) -> None:
    setup = """
    import weakref, builtins
    class Big:
        pass
    async def f(r):
        big = Big()
        builtins.seen = weakref.ref(big)
        await asyncio.sleep(0.001)
        return big
    """
    outcome(server, ".map(f).map(lambda r: 1)", setup)
    forgotten = "import gc, builtins\ngc.collect()\nexecute('SET', 'gone', str(builtins.seen() is None))"
    wait_until(lambda: server.run(forgotten) and server.own.get("gone") == "True")


# --- the loop is held up ---


def blocked_line(server: Server) -> str:
    lines = [line for line in server.log().splitlines() if "the event loop has been blocked" in line]
    return lines[0] if lines else ""


def test_who_holds_the_loop_up_is_named(server: Server) -> None:
    put(server, "async def f(r):\n    while not execute('EXISTS', 'go'):\n        time.sleep(0.01)\n    return 1")
    raw = server.raw()
    raw.send("RG.TRIGGER", "t")
    line = wait_until(lambda: blocked_line(server), message="the log names the registration")
    assert server.registrations()[0]["id"] in line
    assert server.client().ping()  # others are served
    server.client().set("go", "1")
    assert raw.read() == b"*1\r\n$1\r\n1\r\n"
    assert_well(server)


def test_each_standstill_is_named_also_of_coroutines_that_begin_late(server: Server) -> None:
    """Nobody watched while nothing but a delayed coroutine was there, and a standstill was told once."""
    server.run("""
        import time
        async def blocks():
            while not execute('EXISTS', 'go'):
                time.sleep(0.01)
            execute('INCR', 'ended')
        GB('CommandReader').foreach(lambda r: runCoroutine(blocks(), delay=float(r[1]))).register(trigger='go', mode='sync')
    """)
    client = server.client()
    for number, delay in enumerate([0, 0, 2.5], 1):
        client.delete("go")
        raw = server.raw()
        raw.send("RG.TRIGGER", "go", str(delay))
        wait_until(lambda: server.log().count("the event loop has been blocked") == number, timeout=20)
        client.set("go", 1)
        wait_until(lambda: client.get("ended") == str(number))
        raw.read()
        # As long as the loop is looked at, the next one is seen anyway.
        deadline = time.monotonic() + 2.5
        wait_until(lambda: time.monotonic() > deadline)
    assert_well(server)


def test_a_script_that_holds_the_loop_up_is_named(server: Server) -> None:
    script = """
        import time
        async def f():
            while not execute('EXISTS', 'go'):
                time.sleep(0.01)
        runCoroutine(f())
    """
    server.run(script, "ID", "culprit")
    line = wait_until(lambda: blocked_line(server), message="the log names the session")
    assert "session culprit" in line
    server.client().set("go", "1")
    assert_well(server)


def test_a_coroutine_that_only_waits_holds_nobody_up(server: Server) -> None:
    put(server, "async def f(r):\n    await held()")
    raw = ask(server, "RG.TRIGGER", "t")
    put(server, "async def f(r):\n    await asyncio.sleep(2.5)", trigger="u")
    server.client().execute_command("RG.TRIGGER", "u")
    server.client().set("go", "1")
    raw.read()
    assert blocked_line(server) == ""


# --- linked clients ---


@pytest.mark.parametrize("mode", ["sync", "async_local"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("async def f(r):\n    await held()\n    override_reply(get_command())", b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"),
        ("async def g():\n    await held()\n    override_reply('g')\ndef f(r):\n    runCoroutine(g())", b"$1\r\ng\r\n"),
        ("async def f(r):\n    override_reply('f')\n    await held()\n    raise ValueError", b"$1\r\nf\r\n"),
        ("async def f(r):\n    await held()\n    raise ValueError", NIL),
        ("async def g():\n    await held()\n    raise SystemExit\ndef f(r):\n    runCoroutine(g())", NIL),
        ("async def g():\n    await held()\n    override_reply('g')\ndef f(r):\n    runCoroutine(g(), delay=0.01)",
         b"$1\r\ng\r\n"),
    ],
)
def test_a_linked_client_waits_for_all_coroutines(server: Server, body: str, expected: bytes, mode: str) -> None:
    link(server, body, mode)
    raw = ask(server, "GET", "k")
    assert blocked_clients(server) == 1
    server.client().set("go", "1")
    assert raw.read() == expected
    assert_well(server)


def test_the_client_of_a_coroutine_that_starts_another(server: Server) -> None:
    body = """
    async def second():
        await held()
        override_reply('second')
    async def first():
        await asyncio.sleep(0.001)
        runCoroutine(second())
    async def f(r):
        runCoroutine(first())
    """
    link(server, body)
    raw = ask(server, "GET", "k")
    server.client().set("go", "1")
    assert raw.read() == b"$6\r\nsecond\r\n"


def test_the_reply_cannot_be_overridden_after_it_was_sent(server: Server) -> None:
    body = """
    async def late():
        await held()
        try:
            override_reply('late')
        except redisgears.GearsError as error:
            execute('SET', 'error', str(error))
    def f(r):
        session = getGearsSession()
        threading.Thread(target=lambda: (execute('INCR', 'started'), wait(session))).start()
    def wait(session):
        while not execute('EXISTS', 'answered'):
            time.sleep(0.001)
        runCoroutine(late(), s=session)
    """
    link(server, body)
    client = server.client()
    assert client.get("k") is None
    client.mset({"answered": 1, "go": 1})
    assert wait_until(lambda: client.get("error")) == "Can not get command ctx"


def test_coroutines_of_one_client_override_once(server: Server) -> None:
    body = """
    async def f(r):
        async def answer(word):
            await asyncio.sleep(0)
            override_reply(word)
        ends = await asyncio.gather(*[answer(word) for word in 'abc'], return_exceptions=True)
        execute('SET', 'ends', repr([str(end) for end in ends]))
    """
    link(server, body)
    client = server.client()
    assert client.get("k") == "a"
    twice = "Can only override reply once"
    assert client.get("ends") == repr(["None", twice, twice])


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_a_hook_calls_the_next_one_after_an_await(server: Server, mode: str) -> None:
    server.run(
        f"""
        import asyncio
        async def f(record):
            await asyncio.sleep(0.001)
            values = await asyncio.gather(*[one(key) for key in record[1:] * 3])
            try:
                call_next()
            except redisgears.GearsError as error:
                return [*values, str(error)]
        async def one(key):
            await asyncio.sleep(0)
            return call_next(key)
        GB('CommandReader').map(f).register(hook='get', mode='{mode}', convertToStr=False)
        """
    )
    raw = server.raw()
    raw.call("SET", "k", "v")
    reply = raw.call("GET", "k")
    assert reply.startswith(b"*4\r\n$1\r\nv\r\n$1\r\nv\r\n$1\r\nv\r\n$"), reply
    assert_well(server)


def test_a_sync_stream_function_waits(server: Server) -> None:
    server.run(
        """
        import asyncio
        async def f(record):
            await asyncio.sleep(0.001)
            execute('RPUSH', 'seen', record['value']['n'])
        GB('StreamReader').foreach(f).register(prefix='s', mode='sync')
        """
    )
    client = server.client()
    for number in range(20):
        client.xadd("s", {"n": number})
    wait_until(lambda: client.lrange("seen", 0, -1) == [str(number) for number in range(20)])
    wait_until(lambda: client.xlen("s") == 0)
    assert_well(server)


@pytest.mark.parametrize("mode", ["sync", "async_local"])
def test_an_unlinked_key_function_waits(server: Server, mode: str) -> None:
    server.run(
        f"""
        import asyncio
        async def f(record):
            await asyncio.sleep(0.001)
            execute('RPUSH', 'seen', record['key'])
        GB('KeysReader').foreach(f).register(prefix='k*', eventTypes=['set'], mode='{mode}')
        """
    )
    client = server.client()
    for number in range(20):
        client.set(f"k{number}", number)
    wait_until(lambda: sorted(client.lrange("seen", 0, -1)) == sorted(f"k{number}" for number in range(20)))
    assert_well(server)
    assert data(server)["numSuccess"] == 20


# --- endless coroutines ---


ENDLESS = """
def spin():
    while True: pass

async def f(record):
    execute('INCR', 'begun')
    {before}
    {body}
"""
QUICK = """
async def f(record):
    await asyncio.sleep(0)
    return 'quick'
"""


def abort_all(server: Server) -> None:
    for identifier, entry in executions(server).items():
        if entry["status"] == "running":
            assert server.client().execute_command("RG.ABORTEXECUTION", identifier) == "OK"


def others_run(server: Server) -> None:
    for number in range(20):
        assert server.client().execute_command("RG.TRIGGER", "quick", number) == ["quick"]
    assert server.run("GB('KeysReader').map(lambda r: sum(range(1000))).run('k', noScan=True)") == [["499500"], []]


@pytest.mark.matrix
@pytest.mark.parametrize(
    "body",
    [
        "spin()",
        "await asyncio.gather(*[asyncio.create_task(g()) for g in [spinning]])",
        "for _ in range(3):\n        try: spin()\n        except Exception: pass",
        "try: spin()\n    finally: await asyncio.sleep(0.01)",
    ],
)
def test_an_endless_coroutine_can_be_aborted(server: Server, body: str) -> None:
    put(server, QUICK, "async_local", "quick")
    put(server, "async def spinning(): spin()\n" + ENDLESS.format(before="pass", body=body))
    raw = ask(server, "RG.TRIGGER", "t")
    abort_all(server)
    assert raw.read() == b"*0\r\n"
    others_run(server)


def test_one_that_becomes_endless_after_its_abort(server: Server) -> None:
    put(server, QUICK, "async_local", "quick")
    put(server, ENDLESS.format(before="await held()", body="execute('SET', 'spins', 1); spin()"))
    raw = server.raw()
    raw.send("RG.TRIGGER", "t")
    wait_until(lambda: server.own.get("begun") == "2")
    abort_all(server)
    assert raw.read() == b"*0\r\n"
    server.client().set("go", 1)
    wait_until(lambda: server.own.get("spins"))
    others_run(server)


def test_an_abort_hits_no_other_coroutine(server: Server) -> None:
    """Aborts of coroutines that come and go at full speed, beside one that must not notice."""
    put(server, "async def f(record):\n    for _ in range(2000):\n        await asyncio.sleep(0)\n    return 'whole'",
        "async_local", "whole")
    busy = "async def f(record):\n    execute('INCR', 'begun')\n    while True:\n        sum(range(200))\n"
    put(server, f"{busy}        await asyncio.sleep(0)")
    waiting = [server.raw(timeout=50) for _ in range(3)]
    for raw in waiting:
        raw.send("RG.TRIGGER", "whole")
    wait_until(lambda: len(executions(server)) == 3)
    for _ in range(20):
        ask(server, "RG.TRIGGER", "t")
        newest = max(executions(server), key=lambda name: int(name.split("-")[1]))
        server.client().execute_command("RG.ABORTEXECUTION", newest)
    for raw in waiting:
        assert raw.read() == b"*1\r\n$5\r\nwhole\r\n"


def test_a_coroutine_that_waits_for_a_stream_is_not_collected(server: Server, source: Server) -> None:
    """Only the loop's own task refers to the stream that the coroutine waits for."""
    server.run(f"""
        import asyncio, gc
        async def ask(record):
            reader, writer = await asyncio.open_connection('127.0.0.1', {source.port})
            writer.write(b'BLPOP never 0.3\\r\\n')
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(gc.collect)
            reply = await reader.read(5)
            writer.close()
            return reply.decode().strip()
        GB('CommandReader').map(ask).register(trigger='ask', mode='async_local')
    """)
    assert server.client().execute_command("RG.TRIGGER", "ask") == ["*-1"]
