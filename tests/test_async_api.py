"""The helpers around coroutines: gearsFuture, createFuture, runCoroutine, isAsyncAllow, sessions, awaited runs.

Contract: docs/contract/python-api.md 2.8, 2.10, 5.4, 6.5 to 6.8. Values and order of coroutines are in test_async.py,
what goes wrong is in test_async_failures.py.
"""

from __future__ import annotations

import ast
import textwrap
from typing import Any

import pytest

from helpers import Arg, Server, wait_until
from probes import error_of, executions, in_script, in_step, last_line

IMPORTS = "import asyncio, threading, time\n"
# A future can be continued when its callback has returned it: what else happens on the machine decides when that is.
INSIST = """
def insist(finish, *args):
    while True:
        try:
            return finish(*args)
        except redisgears.GearsError as error:
            if 'untill it returned' not in str(error):
                raise
        time.sleep(0.001)
"""
BACKGROUND = ["sync", "async_local"]


def put(server: Server, body: str, mode: str = "async_local", trigger: str = "t") -> None:
    """Registers a trigger whose function `f(record)` is defined by `body`; its value comes back by `call`."""
    steps = "GB('CommandReader').map(f).map(lambda r: repr([r]))"
    script = f"{IMPORTS}{INSIST}{textwrap.dedent(body)}\n{steps}.register(trigger={trigger!r}, mode={mode!r})"
    assert server.run(script) == "OK"


def call(server: Server, *words: Arg) -> Any:
    [result] = server.client().execute_command("RG.TRIGGER", *(words or ("t",)))
    return ast.literal_eval(result)[0]


def value(server: Server, body: str, mode: str = "async_local") -> Any:
    """What the body of a coroutine returns."""
    put(server, "async def f(r):\n" + textwrap.indent(textwrap.dedent(body), "    "), mode)
    return call(server)


def noted(server: Server, key: str = "noted") -> Any:
    """What a function stored as `repr` in a key, sooner or later."""
    return ast.literal_eval(wait_until(lambda: server.own.get(key), message=f"{key} is set"))


# --- gearsFuture ---


STEPS = [
    (".map(later(5))", ["5"]),
    (".flatmap(later([1, 2]))", ["1", "2"]),
    (".flatmap(later('text'))", ["text"]),
    (".filter(later(1))", ["0"]),
    (".filter(later([]))", []),
    (".foreach(later('ignored'))", ["0"]),
    (".accumulate(later(7))", ["7"]),
    (".groupby(lambda r: 'k', later(8))", ["{'key': 'k', 'value': 8}"]),
    (".localgroupby(lambda r: 'k', later(8))", ["{'key': 'k', 'value': 8}"]),
    (".aggregate(1, later(2), lambda a, r: a + r)", ["3"]),
    (".map(later(None))", ["None"]),
]
LATER = f"""
{IMPORTS}{INSIST}
def later(value):
    def f(*args):
        future = gearsFuture()
        threading.Timer(0.005, lambda: insist(future.continueRun, value)).start()
        return future
    return f

def source():
    yield 0
"""


@pytest.mark.matrix
@pytest.mark.parametrize(("steps", "expected"), STEPS)
def test_what_a_step_does_with_the_value_of_a_future(server: Server, steps: str, expected: list[str]) -> None:
    assert server.run(f"{LATER}GB('PythonReader'){steps}.run(source)") == [expected, []]


@pytest.mark.parametrize(("steps", "expected"), STEPS)
def test_the_error_of_a_future_is_its_text(server: Server, steps: str, expected: list[str]) -> None:
    script = LATER.replace("continueRun, value", "continueFailed, ValueError('no')")
    results, errors = server.run(f"{script}GB('PythonReader'){steps}.run(source)")
    assert errors == ["no"]
    assert results == []


def test_futures_keep_the_order_of_records(server: Server) -> None:
    script = """
        futures = []
        def f(record):
            futures.append(gearsFuture())
            if len(futures) == 50:
                mine = list(futures)
                # Continued from the last to the first, the last one when it has been returned.
                threading.Timer(0.02, lambda: [insist(mine[n].continueRun, n) for n in reversed(range(50))]).start()
            return futures[-1]
        def source():
            yield from range(50)
        GB('PythonReader').map(f).run(source)
    """
    assert server.run(f"{IMPORTS}{INSIST}{textwrap.dedent(script)}") == [[str(n) for n in range(50)], []]


def test_a_future_may_fail_before_it_is_returned(server: Server) -> None:
    put(server, "def f(r):\n    future = gearsFuture()\n    future.continueFailed('early')\n    return future")
    assert error_of(server, "t", command="RG.TRIGGER") == "early"


def test_a_failed_future_that_is_not_returned_is_ignored(server: Server) -> None:
    put(server, "def f(r):\n    gearsFuture().continueFailed('early')\n    return 5")
    assert call(server) == 5
    assert "an api violation" in server.log()


@pytest.mark.parametrize(
    "step",
    [".accumulate(f)", ".groupby(lambda r: 'k', f)", ".localgroupby(lambda r: 'k', f)", ".aggregate(1, f, lambda a, r: r)"],
)
def test_where_values_are_gathered_a_future_must_be_returned(server: Server, step: str) -> None:
    script = f"def f(*args):\n    gearsFuture()\n    return 5\nGB('PythonReader'){step}.run(lambda: (n for n in [0]))"
    results, [error] = server.run(script)
    assert results == []
    assert "a future of gearsFuture was made and not returned" in error


def test_an_exception_behind_a_future_is_raised(server: Server) -> None:
    script = "def f(*args):\n    gearsFuture()\n    1 / 0\nGB('PythonReader').accumulate(f).run(lambda: (n for n in [0]))"
    results, [error] = server.run(script)
    assert results == [] and "division by zero" in error


@pytest.mark.parametrize("method", ["continueRun", "continueFailed"])
@pytest.mark.parametrize("given", ["", "1, 2"])
def test_the_number_of_arguments_of_continue(server: Server, method: str, given: str) -> None:
    put(server, f"def f(r):\n    return gearsFuture().{method}({given})")
    expected = "gears.error: Continue function expect an object"
    assert last_line(error_of(server, "t", command="RG.TRIGGER")) == expected


@pytest.mark.parametrize("second", ["continueRun", "continueFailed"])
@pytest.mark.parametrize("first", ["continueRun", "continueFailed"])
def test_a_future_is_continued_once(server: Server, first: str, second: str) -> None:
    body = f"""
    def f(r):
        future = gearsFuture()
        def finish():
            insist(future.{first}, 'one')
            try:
                insist(future.{second}, 'two')
            except redisgears.GearsError as error:
                execute('SET', 'noted', repr(str(error)))
        threading.Timer(0.005, finish).start()
        return future
    """
    put(server, body)
    reply = server.raw().call("RG.TRIGGER", "t")
    assert (b"one" in reply, reply[:1]) == (True, b"*" if first == "continueRun" else b"-")
    assert noted(server) == "Can not continue with the same future twice"


@pytest.mark.parametrize("where", ["script level", "coroutine", "thread", "onRegistered", "generator"])
def test_futures_outside_of_steps(server: Server, where: str) -> None:
    body = """
        import threading
        def make(*args):
            try:
                gearsFuture()
            except redisgears.GearsError as error:
                execute('SET', 'noted', repr(str(error)))
        async def made():
            make()
        def generator():
            make()
            yield 1
    """
    script = textwrap.dedent(body) + {
        "script level": "make()",
        "coroutine": "runCoroutine(made())",
        "thread": "threading.Thread(target=make).start()",
        "onRegistered": "GB('CommandReader').register(trigger='t', onRegistered=make)",
        "generator": "GB('PythonReader').run(generator)",
    }[where]
    server.run(script)
    assert noted(server) == "Future object can only be created inside certain execution steps"


@pytest.mark.parametrize(
    "steps",
    [".groupby(f, lambda k, a, r: r)", ".localgroupby(f, lambda k, a, r: r)", ".batchgroupby(f, lambda k, r: r)",
     ".repartition(f)", ".countby(f)", ".aggregateby(f, 0, lambda k, a, r: r, lambda k, a, r: r)",
     ".batchgroupby(lambda r: r, f)"],
)
def test_steps_without_futures(server: Server, steps: str) -> None:
    functions = "def f(*args):\n    return gearsFuture()\ndef source():\n    yield 1\n"
    results, errors = server.run(f"{functions}GB('PythonReader'){steps}.run(source)")
    assert results == []
    assert [last_line(error) for error in errors] == ["gears.error: Step does not support async"]


@pytest.mark.parametrize("registered", ["", "registerGearsThread()"])
@pytest.mark.parametrize("mode", BACKGROUND)
def test_threads_may_continue_without_being_announced(server: Server, registered: str, mode: str) -> None:
    body = f"""
    def f(r):
        future = gearsFuture()
        def work():
            {registered}
            with atomic():
                number = execute('INCR', 'n')
                log('number %d' % number)
            configGet('x')
            while True:
                try:
                    return future.continueRun(number)
                except redisgears.GearsError:  # not returned yet
                    time.sleep(0.001)
        threading.Thread(target=work).start()
        return future
    """
    put(server, body, mode)
    raws = [server.raw() for _ in range(100)]
    for raw in raws:
        raw.send("RG.TRIGGER", "t")
    server.client().ping()
    assert sorted(int(raw.read().split(b"[")[1].split(b"]")[0]) for raw in raws) == list(range(1, 101))


def test_another_trigger_may_continue_a_future(server: Server) -> None:
    body = """
    import builtins
    builtins.waiting = {}
    def f(r):
        import builtins
        future = gearsFuture()
        if r[1] == 'wait':
            builtins.waiting[r[2]] = future
            return future
        builtins.waiting.pop(r[2]).continueRun(r[3])
    """
    put(server, body)
    raw = server.raw()
    raw.send("RG.TRIGGER", "t", "wait", "a")
    wait_until(lambda: [entry["status"] for entry in executions(server).values()] == ["running"])
    assert call(server, "t", "go", "a", "hello") is None
    assert raw.read() == b"*1\r\n$9\r\n['hello']\r\n"


# --- createFuture, setFutureResults, setFutureException ---


def test_a_future_is_awaitable_and_shown(server: Server) -> None:
    body = """
    future = createFuture()
    shown = repr(future), isinstance(future, (asyncio.Future, GearsFuture))
    setFutureResults(future, [1, 2])
    return [*shown, await future, repr(future)]
    """
    assert value(server, body) == ["<GearsFuture pending>", True, [1, 2], "<GearsFuture finished>"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [("ValueError('no')", ("ValueError", "no")), ("'text'", ("Exception", "text")), ("5", ("Exception", "5")),
     ("KeyboardInterrupt('k')", ("Exception", "k"))],
)
def test_the_exception_of_a_future(server: Server, error: str, expected: tuple[str, str]) -> None:
    body = f"""
    future = createFuture()
    setFutureException(future, {error})
    try:
        await future
    except Exception as error:
        return type(error).__name__, str(error)
    """
    assert value(server, body) == expected


def test_a_future_cannot_carry_a_stopiteration(server: Server) -> None:
    body = """
    future = createFuture()
    setFutureException(future, StopIteration('s'))
    await asyncio.wait_for(asyncio.shield(future), 0.2)
    """
    put(server, "async def f(r):\n" + textwrap.indent(textwrap.dedent(body), "    "))
    error_of(server, "t", command="RG.TRIGGER")
    assert "a future could not be set: TypeError" in server.log()


def test_a_second_value_and_wrong_objects_are_ignored(server: Server) -> None:
    body = """
    future = createFuture()
    setFutureResults(future, 1)
    setFutureResults(future, 2)
    setFutureException(future, ValueError('no'))
    setFutureResults('no future', 1)
    setFutureException(None, 'x')
    return await future
    """
    assert value(server, body) == 1


def test_a_future_is_set_from_a_thread_and_awaited_by_several(server: Server) -> None:
    body = """
    future = createFuture()
    threading.Timer(0.01, setFutureResults, (future, 'done')).start()
    async def wait():
        return await future
    return await asyncio.gather(wait(), wait(), wait())
    """
    assert value(server, body) == ["done"] * 3


# --- runCoroutine ---


def test_a_coroutine_of_the_script(server: Server) -> None:
    server.run("async def f():\n    execute('SET', 'noted', repr(execute('PING')))\nrunCoroutine(f())")
    assert noted(server) == "PONG"


@pytest.mark.parametrize("what", ["5", "None", "lambda: 1"])
def test_what_is_no_coroutine_raises_nothing(server: Server, what: str) -> None:
    assert value(server, f"return repr(runCoroutine({what}))") == "None"
    wait_until(lambda: "runCoroutine: a coroutine was expected" in server.log())
    script = f"def f(r):\n    future = gearsFuture()\n    runCoroutine({what}, future)\n    return future\n"
    results, errors = server.run(f"{script}GB('PythonReader').map(f).run(lambda: iter((n for n in [1])))")
    assert results == [] and "a coroutine was expected" in errors[0]


@pytest.mark.parametrize("ending", ["return 'x'", "raise ValueError('x')"])
def test_a_future_gets_the_end_of_a_coroutine(server: Server, ending: str) -> None:
    body = f"""
    def f(r):
        async def work():
            await asyncio.sleep(0.001)
            {ending}
        future = gearsFuture()
        runCoroutine(work(), future)
        return future
    """
    put(server, body)
    if "raise" in ending:
        assert error_of(server, "t", command="RG.TRIGGER") == "x"
    else:
        assert call(server) == "x"


def test_a_coroutine_that_ends_at_once_finds_its_future_returned(server: Server) -> None:
    body = """
    def f(r):
        async def work():
            return r[1]
        future = gearsFuture()
        runCoroutine(work(), future)
        time.sleep(0.02)
        return future
    """
    put(server, body)
    assert call(server, "t", "quick") == "quick"


@pytest.mark.parametrize("delay", [0.1, "0.1", 0.25])
def test_the_delay_of_a_coroutine(server: Server, delay: Any) -> None:
    body = f"""
    def f(r):
        begun = time.monotonic()
        async def work():
            return time.monotonic() - begun
        future = gearsFuture()
        runCoroutine(work(), future, delay=float({delay!r}))
        return future
    """
    put(server, body)
    assert float(delay) <= call(server) < float(delay) + 2


def test_positional_arguments_of_runcoroutine(server: Server) -> None:
    body = """
    def f(r):
        async def work():
            return getGearsSession() is not None
        future = gearsFuture()
        runCoroutine(work(), future, 0, getGearsSession())
        return future
    """
    put(server, body)
    assert call(server) is True


def test_the_exception_of_a_coroutine_without_a_future_is_logged(server: Server) -> None:
    server.run("async def f():\n    raise ValueError('unseen')\nrunCoroutine(f())")
    wait_until(lambda: "unseen" in server.log())


def test_a_thread_starts_a_coroutine_in_a_session(server: Server) -> None:
    body = """
    def f(r):
        session, future = getGearsSession(), gearsFuture()
        async def work():
            [values, errors] = await GB('PythonReader').map(str).run(numbers)
            return values
        threading.Thread(target=lambda: runCoroutine(work(), future, s=session)).start()
        return future

    def numbers():
        yield from range(3)
    """
    put(server, body)
    assert call(server) == ["0", "1", "2"]


@pytest.mark.parametrize("start", ["runCoroutine(work())", "runCoroutine(work(), s=getGearsSession())"])
def test_a_coroutine_of_the_script_may_run_and_register(server: Server, start: str) -> None:
    script = f"""
        import asyncio

        def numbers():
            yield from range(3)

        async def work():
            await asyncio.sleep(0.05)  # the script has ended
            both = await GB('PythonReader').run(numbers)
            GB('CommandReader').map(lambda r: 'registered').register(trigger='late')
            execute('SET', 'noted', repr(both))

        {start}
    """
    server.run(script)
    assert noted(server) == [["0", "1", "2"], []]
    assert server.client().execute_command("RG.TRIGGER", "late") == ["registered"]


def test_a_thread_of_the_script_may_run_and_register(server: Server) -> None:
    script = """
        import threading, time

        session = getGearsSession()

        def numbers():
            yield from range(3)

        def work(session):
            time.sleep(0.05)  # the script has ended
            with GearsSession(session):
                GB('KeysReader').foreach(lambda r: execute('SET', 'noted', repr(r['key']))).run('k')
                GB('CommandReader').map(lambda r: 'registered').register(trigger='late')
                execute('SET', 'registered', 1)

        threading.Thread(target=work, args=(session,)).start()
        session = None
    """
    server.client().set("k", "v")
    server.run(script)
    assert noted(server) == "k"
    wait_until(lambda: server.own.get("registered"))
    assert server.client().execute_command("RG.TRIGGER", "late") == ["registered"]


# --- isAsyncAllow, isInAtomicBlock ---


def test_async_is_not_allowed_at_script_level_nor_in_threads(server: Server) -> None:
    assert in_script(server, "return isAsyncAllow()") is False
    body = """
    import threading
    seen = []
    thread = threading.Thread(target=lambda: seen.append([isAsyncAllow(), isInAtomicBlock(), getGearsSession()]))
    thread.start()
    thread.join()
    return [isAsyncAllow(), *seen]
    """
    assert in_step(server, body) == [True, [False, False, None]]


def test_async_is_not_allowed_in_onregistered(server: Server) -> None:
    server.run(
        """
        def ready():
            execute('SET', 'noted', repr(isAsyncAllow()))
        GB('CommandReader').register(trigger='t', onRegistered=ready)
        """
    )
    assert noted(server) is False


@pytest.mark.parametrize("reader", ["CommandReader", "KeysReader"])
def test_async_is_allowed_where_the_command_can_wait(server: Server, reader: str) -> None:
    script = "GB(%r).foreach(lambda r: execute('RPUSH', 'seen', str(isAsyncAllow()))).register(%s, mode='sync')"
    options = {
        "CommandReader": "trigger='t'",
        "KeysReader": "prefix='k', commands=['set'], eventTypes=['set']",
    }[reader]
    server.run(script % (reader, options))
    words = {"CommandReader": ("RG.TRIGGER", "t"), "KeysReader": ("SET", "k", "v")}[reader]
    raw = server.raw()
    raw.call(*words)
    raw.call("MULTI")
    raw.call(*words)
    raw.call("EXEC")
    script = "return redis.call(unpack(ARGV))"
    raw.call("EVAL", script, 0, *words)
    assert server.client().lrange("seen", 0, -1) == ["True", "False", "False"]


def test_blocks_of_a_coroutine(server: Server) -> None:
    body = """
    before = isInAtomicBlock()
    with atomic():
        inside = isInAtomicBlock()
        execute('SET', 'k', 'v')
    await asyncio.sleep(0)
    return [before, inside, isInAtomicBlock(), isAsyncAllow()]
    """
    assert value(server, body) == [False, True, False, True]


# --- sessions ---


@pytest.mark.parametrize(
    "waiting",
    ["asyncio.sleep(0)", "asyncio.sleep(0.001)", "asyncio.gather(asyncio.sleep(0.001), other())",
     "asyncio.wait_for(other(), 1)", "asyncio.create_task(other())", "asyncio.ensure_future(other())",
     "asyncio.shield(other())", "asyncio.to_thread(time.sleep, 0.001)",
     "asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.001)",
     "GB('PythonReader').run(numbers)", "asyncio.wait([asyncio.create_task(other())])", "future()", "lock()"],
)
def test_the_session_is_there_after_an_await(server: Server, waiting: str) -> None:
    body = f"""
    def numbers():
        yield 1
    async def other():
        assert getGearsSession() is not None
        await asyncio.sleep(0)
        assert getGearsSession() is not None
    async def lock():
        async with asyncio.Lock(), asyncio.timeout(5):
            await asyncio.sleep(0.001)
    async def future():
        waited = createFuture()
        threading.Timer(0.005, setFutureResults, (waited, 1)).start()
        return await waited
    async def f(r):
        await {waiting}
        both = await GB('PythonReader').map(str).run(numbers)
        return [str(getGearsSession()), both]
    """
    put(server, body)
    assert call(server) == ["PyExecutionSession", [["1"], []]]


def test_each_coroutine_has_its_own_session(server: Server) -> None:
    for name in "ab":
        server.run(
            f"""
            import asyncio
            async def f(record):
                mine = getGearsSession()
                for _ in range(50):
                    await asyncio.sleep(0)
                with GearsSession(mine):
                    GB('CommandReader').register(trigger='made by {name}', mode='sync')
                return '{name}'
            GB('CommandReader').map(f).register(trigger='{name}')
            """,
            "ID",
            name,
        )
    raws = {name: server.raw() for name in "ab"}
    for name, raw in raws.items():
        raw.send("RG.TRIGGER", name)
    for name, raw in raws.items():
        assert raw.read() == b"*1\r\n$1\r\n%s\r\n" % name.encode()
    owners = {
        entry["RegistrationData"]["args"]["trigger"]: ast.literal_eval(entry["PD"])["sessionId"]
        for entry in server.registrations()
    }
    assert owners == {"a": "a", "b": "b", "made by a": "a", "made by b": "b"}


def test_a_thread_without_a_session(server: Server) -> None:
    body = """
    import threading
    errors = []
    def attempt(what):
        try:
            what()
        except Exception as error:
            errors.append(str(error))
    def work():
        for what in (GB, get_command, lambda: override_reply(1), lambda: call_next(1), gearsFuture):
            attempt(what)
        errors.append([execute('PING'), hashtag(), configGet('none'), isAsyncAllow()])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return errors
    """
    assert in_step(server, body) == [
        "Can not create a gearsCtx on a python created thread",
        "Can not get command ctx",
        "Can not get command ctx",
        "Can not get CommandHook ctx",
        "Future object can only be created inside certain execution steps",
        ["PONG", "06S", None, False],
    ]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("", "Wrong number of args given to setGearsSession"),
        ("None, None", "Wrong number of args given to setGearsSession"),
        ("5", "Given object is not of type GearsSession"),
        ("'s'", "Given object is not of type GearsSession"),
    ],
)
def test_errors_of_setgearssession(server: Server, given: str, error: str) -> None:
    body = f"try:\n    setGearsSession({given})\nexcept redisgears.GearsError as error:\n    return str(error)"
    assert in_step(server, body) == error


def test_a_session_is_given_to_a_thread_and_taken_away(server: Server) -> None:
    body = """
    import threading
    session, seen = getGearsSession(), []
    def work():
        seen.append(getGearsSession())
        with GearsSession(session):
            seen.append(str(getGearsSession()))
            GB('CommandReader').map(lambda r: 'x').register(trigger='made')
        seen.append(getGearsSession())
        setGearsSession(session)
        seen.append(getGearsSession() is not None)
        setGearsSession(None)
        seen.append(getGearsSession())
        try:
            with GearsSession(session):
                raise KeyError
        except KeyError:
            seen.append(getGearsSession())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return seen
    """
    assert in_step(server, body) == [None, "PyExecutionSession", None, True, None, None]
    assert server.client().execute_command("RG.TRIGGER", "made") == ["x"]


def test_a_session_carries_its_command_into_a_thread(server: Server) -> None:
    server.run(
        """
        import threading
        def f(record):
            session, future = getGearsSession(), gearsFuture()
            def work():
                with GearsSession(session):
                    override_reply(get_command())
                future.continueRun(None)
            threading.Thread(target=work).start()
            return future
        GB('KeysReader').foreach(f).register(prefix='k', commands=['get'], eventTypes=['keymiss'], mode='async_local')
        """
    )
    assert server.client().get("k") == ["GET", "k"]


# --- other executions ---


def test_results_and_errors_of_a_run(server: Server) -> None:
    body = """
    def numbers():
        yield from (2, 1, 0)
    async def f(r):
        plain = await GB('PythonReader').run(numbers, convertToStr=False)
        failed = await GB('PythonReader').map(lambda n: flat_error('no') if n == 1 else n).run(numbers)
        await_both = await asyncio.gather(*[GB('PythonReader').count().run(numbers) for _ in range(20)])
        nothing = await GB('KeysReader').run('nosuch:*')
        return [plain, failed, await_both == [[['3'], []]] * 20, nothing]
    """
    put(server, body)
    assert call(server) == [[[2, 1, 0], []], [["2"], ["no"]], True, [[], []]]


def test_objects_come_back_from_a_run_as_they_are(server: Server) -> None:
    body = """
    class Point:
        pass
    point = Point()
    def points():
        yield point
    async def f(r):
        [[same], errors] = await GB('PythonReader').map(lambda p: p).run(points, convertToStr=False)
        return same is point
    """
    put(server, body)
    assert call(server) is True


@pytest.mark.parametrize("mode", ["sync", "async_local", "async"])
def test_runs_inside_of_runs(server: Server, mode: str) -> None:
    body = """
    def one():
        yield 1
    async def inner(r):
        [[value], errors] = await GB('PythonReader').map(innermost).run(one, convertToStr=False)
        return value + 10
    async def innermost(r):
        await asyncio.sleep(0.001)
        return r + 100
    async def f(r):
        return await GB('PythonReader').map(inner).run(one, convertToStr=False)
    """
    put(server, body, mode)
    assert call(server) == [[111], []]


def test_a_timeout_leaves_the_run_going(server: Server) -> None:
    body = """
    def one():
        yield 1
    async def slow(n):
        await asyncio.sleep(0.1)
        execute('SET', 'noted', repr('went on'))
        return n
    async def f(r):
        try:
            await asyncio.wait_for(GB('PythonReader').map(slow).run(one), 0.01)
        except asyncio.TimeoutError:
            return 'timeout'
    """
    put(server, body)
    assert call(server) == "timeout"
    assert noted(server) == "went on"
    wait_until(lambda: executions(server) == {})


def test_an_aborted_run_gives_what_it_had(server: Server) -> None:
    body = """
    def numbers():
        yield from range(3)
    async def slow(n):
        await asyncio.sleep(0 if n < 1 else 1000)
        return n
    async def f(r):
        return await GB('PythonReader').map(slow).run(numbers)
    """
    put(server, body)
    raw = server.raw()
    raw.send("RG.TRIGGER", "t")
    inner = wait_until(lambda: sorted(executions(server), key=lambda name: int(name.split("-")[1]))[1:])
    assert server.client().execute_command("RG.ABORTEXECUTION", *inner) == "OK"
    reply = raw.read()
    assert reply.startswith(b"*1\r\n") and reply.endswith(b", []]]\r\n"), reply


# --- asyncio as it is ---


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("queue = asyncio.Queue(1)\nasyncio.create_task(queue.put(5))\nreturn await queue.get()", 5),
        ("async with asyncio.timeout(5):\n    return 'in time'", "in time"),
        ("async with asyncio.TaskGroup() as group:\n    task = group.create_task(asyncio.sleep(0.001, 6))\n"
         "return task.result()", 6),
        ("return await loop.run_in_executor(None, sum, [1, 2])", 3),
        ("return loop is asyncio.get_running_loop() is asyncio.get_event_loop()", True),
        ("reader, writer = await asyncio.open_connection('127.0.0.1', int(execute('CONFIG', 'GET', 'port')[1]))\n"
         "writer.write(b'PING\\r\\n')\nline = await reader.readline()\nwriter.close()\nreturn line", b"+PONG\r\n"),
        ("async def count():\n    for n in range(3):\n        await asyncio.sleep(0)\n        yield n\n"
         "return [n async for n in count()]", [0, 1, 2]),
        ("future = loop.create_future()\nloop.call_later(0.001, future.set_result, 7)\nreturn await future", 7),
        ("process = await asyncio.create_subprocess_exec('echo', 'hi', stdout=-1)\n"
         "return (await process.communicate())[0]", b"hi\n"),
        ("first = await asyncio.wait([asyncio.create_task(asyncio.sleep(n)) for n in (0, 100)],\n"
         "                           return_when=asyncio.FIRST_COMPLETED)\n"
         "return [len(tasks) for tasks in first]", [1, 1]),
        ("task = asyncio.current_task()\nreturn [task.done(), task.cancelled()]", [False, False]),
    ],
)
def test_asyncio(server: Server, body: str, expected: Any) -> None:
    assert value(server, body) == expected


def test_a_thread_reaches_the_loop(server: Server) -> None:
    body = """
    import asyncio, threading
    async def work():
        await asyncio.sleep(0.001)
        return 'done'
    return asyncio.run_coroutine_threadsafe(work(), loop).result(5)
    """
    assert in_step(server, body) == "done"


def test_a_loop_of_ones_own_in_a_worker(server: Server) -> None:
    body = """
    import asyncio
    async def work():
        await asyncio.gather(asyncio.sleep(0.001), asyncio.sleep(0))
        return [execute('PING'), getGearsSession() is not None]
    return asyncio.run(work())
    """
    assert in_step(server, body) == ["PONG", True]


@pytest.mark.parametrize("mode", BACKGROUND)
def test_a_hook_that_executes_its_own_command_after_an_await(server: Server, mode: str) -> None:
    server.run(
        f"""
        import asyncio
        async def f(record):
            await asyncio.sleep(0.001)
            return [execute('GET', 'k'), call_next('k'), await asyncio.gather(own(), own())]
        async def own():
            return execute('GET', 'k')
        GB('CommandReader').map(f).register(hook='get', mode='{mode}', convertToStr=False)
        """
    )
    client = server.client()
    client.set("k", "v")
    assert client.get("k") == ["v", "v", ["v", "v"]]


def test_a_coroutine_that_misses_itself_gets_the_commands_reply(server: Server) -> None:
    server.run(
        """
        import asyncio
        async def f(record):
            await asyncio.sleep(0.001)
            if record['key'] == 'k1':
                override_reply([get_command(), execute('GET', 'k2')])
        GB('KeysReader').foreach(f).register(prefix='k*', commands=['get'], eventTypes=['keymiss'], mode='async_local')
        """
    )
    assert server.client().get("k1") == [["GET", "k1"], None]


def test_a_coroutine_acts_in_the_database_of_its_event(server: Server) -> None:
    server.run(
        """
        import asyncio
        async def f(record):
            await asyncio.gather(asyncio.sleep(0.001), own(record['key']))
            override_reply(execute('GET', 'own'))
        async def own(key):
            await asyncio.sleep(0)
            execute('SET', 'own', key)
        GB('KeysReader').foreach(f).register(prefix='k', commands=['get'], eventTypes=['keymiss'], mode='async_local')
        """
    )
    client = server.client(db=5)
    assert client.get("k") == "k"
    assert [client.get("own"), server.client().get("own")] == ["k", None]
